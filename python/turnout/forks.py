"""A lock that a forked child can take, whoever held it in the parent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar
from weakref import ReferenceType, WeakSet, ref


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


T = TypeVar("T")
_locks: WeakSet[ForkLock] = WeakSet()
_children: list[tuple[ReferenceType[Any], Callable[[Any], None]]] = []


def in_child(owner: T, work: Callable[[T], None]) -> None:
    """Have `work(owner)` done in each forked child, for as long as the owner lives."""
    _children[:] = [one for one in _children if one[0]() is not None]
    _children.append((ref(owner), work))


def _after_fork() -> None:
    for lock in list(_locks):
        lock.renew()
    for reference, work in _children:
        owner = reference()
        if owner is not None:
            work(owner)


os.register_at_fork(after_in_child=_after_fork)
