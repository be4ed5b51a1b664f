"""Words of shared memory beside the databases, by which processes notice that something has changed."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from turnout.errors import StorageError
from turnout.forks import ForkLock


class Beacon:
    """Words of 64 bits that all processes of a data directory share; reading one costs less than a function call.

    Only a hint to look into the database: words rise, and are made again from it when the file is lost.
    """

    GENERATION, STAGE, DRAIN = range(3)
    SIZE = 8 * 8

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = ForkLock()  # flock tells processes apart, not threads
        self._pid = 0
        self._fd = -1
        try:
            with self._locked():
                if os.fstat(self._fd).st_size < self.SIZE:
                    os.posix_fallocate(self._fd, 0, self.SIZE)
                self._map = mmap.mmap(self._fd, self.SIZE)
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} cannot be opened: {error}") from error
        self.words = memoryview(self._map).cast("Q")

    def __getitem__(self, word: int) -> int:
        return self.words[word]

    def advance(self, word: int, value: int) -> None:
        """Raise a word to `value`, and in any case by one, so that everybody looks even after a restored backup."""
        with self._locked():
            self.words[word] = max(self.words[word] + 1, value)

    def raise_to(self, word: int, value: int) -> None:
        """Set a word to `value` unless it is already greater."""
        with self._locked():
            self.words[word] = max(self.words[word], value)

    def step(self, word: int) -> None:
        """Add one to a word."""
        self.advance(word, 0)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._fd >= 0:
            self.words.release()
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def _locked(self) -> Generator[None]:
        with self._lock:
            self._own()
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _own(self) -> None:
        """A descriptor opened by this process: one inherited over a fork shares its lock with the parent."""
        if self._pid == os.getpid():
            return
        inherited, self._fd = self._fd, os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._pid = os.getpid()
        if inherited >= 0:
            os.close(inherited)
