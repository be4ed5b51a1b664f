"""A lock that a forked child can take, whoever held it in the parent."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from weakref import WeakSet


class ForkLock:
    """A `threading.Lock` as a context manager, made anew in a child: the thread that held it is not there to let go."""

    def __init__(self) -> None:
        self._inner = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._inner.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.release()

    def renew(self) -> None:
        """Nobody holds it any more."""
        self._inner = threading.Lock()


_locks: WeakSet[ForkLock] = WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_after_fork)
