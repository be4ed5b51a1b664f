"""A database that may vanish or break at any time: opened, judged, and made anew by whoever finds it so."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import NamedTuple

from turnout.errors import StorageError
from turnout.forks import ForkLock
from turnout.locks import Locks
from turnout.store import DamagedError, Store


class _Look(NamedTuple):
    """What can be seen of the pair of files from outside."""

    identity: tuple[int, ...] = ()
    """Nothing if one of them is missing."""
    size: int = 0
    head: bytes = b""
    """LMDB's magic number and version."""


class Opened:
    """A store, and how its files looked when it was last found sound."""

    def __init__(self, store: Store, look: _Look) -> None:
        self.store = store
        self.look = look


class Renewable:
    """The database file, which is opened, judged and made anew here.

    The pair of the file and LMDB's lock file beside it is opened while the folder of locks is locked; only then does
    a file without the other mean that someone has deleted one of them, and both are made anew. LMDB trusts what it
    has mapped, so a damage that can be seen from outside is looked for before each transaction.
    """

    def __init__(self, path: Path, locks: Locks, map_size: int) -> None:
        self._path = path
        self._beside = path.with_name(path.name + "-lock")
        self._locks = locks
        self._map_size = map_size
        self._swapping = ForkLock()
        self._former: Store | None = None
        self._closed = False
        self.opened = self._open(broken=None)

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self._closed = True
        self.opened.store.close()
        if self._former is not None:
            self._former.close()

    def sound(self, opened: Opened) -> bool:
        """Whether the files are those that were opened, and neither cut nor overwritten at the head."""
        if self._closed:
            return True  # the store says so itself
        before = opened.look  # taken first: another thread may see the file grow meanwhile
        now = self._look()
        if now.identity != before.identity or now.size < before.size or now.head != before.head:
            return False
        opened.look = now
        return True

    def renew(self, broken: Store) -> Store:
        """The database that takes the place of a broken one, which another thread or process may have made already."""
        with self._swapping:
            if self.opened.store is broken and not self._closed:
                # Another thread may be inside a transaction of it, so what is closed is the one before.
                if self._former is not None:
                    self._former.close()
                self._former = broken
                self.opened = self._open(broken=self.opened.look.identity)
            return self.opened.store

    def _open(self, broken: tuple[int, ...] | None) -> Opened:
        with self._locks.alone():
            identity = self._look().identity
            if not identity or identity == broken or self._older_than_the_system():
                self._remove()
            try:
                store = Store(self._path, map_size=self._map_size, sync=False)
            except DamagedError:
                self._remove()
                store = Store(self._path, map_size=self._map_size, sync=False)
            return Opened(store, self._look())

    def _look(self) -> _Look:
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found, beside = os.fstat(file), os.stat(self._beside)  # noqa: PTH116 - Path.stat costs four times as much
                identity = (found.st_ino, beside.st_ino, found.st_dev)
                return _Look(identity, found.st_size, os.pread(file, 8, 16))
            finally:
                os.close(file)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ESTALE}:
                return _Look()
            raise StorageError(f"{self._path} cannot be read: {error}") from error

    def _older_than_the_system(self) -> bool:
        """Without syncs, what was written before a power cut may be torn, and LMDB would not notice it."""
        started = time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
        return self._path.stat().st_mtime < started - 1

    def _remove(self) -> None:
        for path in (self._path, self._beside):
            path.unlink(missing_ok=True)
