"""What keeps other work on CUDA away while a CUDA graph is recorded."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager


class Gate:
    """Many may use CUDA at once, or one may record.

    onnxruntime records in CUDA's global mode, in which an allocation or a copy by any other thread of the process fails
    (error 900) and spoils the recording. Who waits to record goes first: it is done in milliseconds.
    """

    def __init__(self) -> None:
        self._changed = (
            threading.Condition()
        )  # re-entrant: a session may be let go wherever memory is collected
        self._using = 0
        self._waiting = 0
        self._recording = False

    @contextmanager
    def use(self) -> Generator[None]:
        """Use CUDA, beside others."""
        with self._changed:
            while self._recording or self._waiting:
                self._changed.wait()
            self._using += 1
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> bool:
        """Begin to use CUDA without waiting; False where somebody records, or is about to."""
        with self._changed:
            if self._recording or self._waiting:
                return False
            self._using += 1
            return True

    def leave(self) -> None:
        """End what `enter` began."""
        with self._changed:
            self._using -= 1
            self._changed.notify_all()

    @contextmanager
    def record(self) -> Generator[None]:
        """Be the only one to use CUDA."""
        with self._changed:
            self._waiting += 1
            try:
                while self._recording or self._using:
                    self._changed.wait()
            finally:
                self._waiting -= 1
            self._recording = True
        try:
            yield
        finally:
            with self._changed:
                self._recording = False
                self._changed.notify_all()


GATE = Gate()
"""Of this process: a recording does not care for which device others use CUDA."""
