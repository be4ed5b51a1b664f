"""Files that are locked as long as a process lives: the kernel frees them when it dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from turnout.errors import StorageError

ID = re.compile(r"[0-9a-f]{12}")


class Lock:
    """A file of this process, locked until it is released or the process ends."""

    inheritable: ClassVar[set[Lock]] = set()

    def __init__(self, name: str, path: Path, file: int) -> None:
        self.id = name
        self._path = path
        self._file = file
        self._marked = False
        Lock.inheritable.add(self)

    @property
    def held(self) -> bool:
        """Whether this process still holds it; a forked child does not hold what its parent does."""
        return self._file >= 0

    def mark(self) -> None:
        """Make it one of `Locks.marked`. Idempotent."""
        if self.held and not self._marked:
            with _storage(self._path):
                os.pwrite(self._file, b"1", 0)
            self._marked = True

    def release(self) -> None:
        """Let go of it. Idempotent."""
        if self.held:
            self._path.unlink(missing_ok=True)
            self.abandon()

    @classmethod
    def forget(cls) -> None:
        """In a forked child: a descriptor that it inherited would keep its parent alive in the eyes of the others."""
        for lock in list(cls.inheritable):
            lock.abandon()

    def abandon(self) -> None:
        """Close the descriptor and leave the file; what `release` does is not for a forked child to do."""
        file, self._file = self._file, -1
        os.close(file)
        Lock.inheritable.discard(self)


os.register_at_fork(after_in_child=Lock.forget)


class Locks:
    """A folder of locks, made if it is not there.

    Asking is done with shared locks, so that those who ask do not take each other for the owner.
    """

    def __init__(self, folder: Path) -> None:
        with _storage(folder):
            folder.mkdir(exist_ok=True)
        self._folder = folder
        self._prefix = f"{folder}/"  # joining paths costs as much as asking a lock

    def acquire(self) -> Lock:
        """A lock of a new id."""
        while True:
            name = uuid.uuid4().hex[:12]
            path = self._folder / name
            with _storage(path):
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX)
            # Before it was locked, somebody may have taken it for one that a dead process has left, and removed it.
            if os.fstat(file).st_nlink:
                return Lock(name, path, file)
            os.close(file)

    def held(self, name: str) -> bool:
        """Whether a live process holds the lock of this id; removes what a dead one has left."""
        return self._size(name) is not None

    def marked(self) -> list[str]:
        """The ids of marked locks that live processes hold, sorted; removes what dead ones have left."""
        with _storage(self._folder):
            names = os.listdir(self._folder)  # noqa: PTH208 - a Path for each is not wanted
        return sorted(name for name in names if self._size(name))

    @contextmanager
    def alone(self) -> Generator[None]:
        """Hold the folder itself: one process, and one thread of it, at a time."""
        with _storage(self._folder):
            folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _size(self, name: str) -> int | None:
        """The size of a lock that is held; None where it is not.

        Names come from a database that may be damaged: what is no id is nobody's lock, and never a path.
        """
        if ID.fullmatch(name) is None:
            return None
        path = self._prefix + name
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path} cannot be opened: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            Path(path).unlink(missing_ok=True)
        except BlockingIOError:
            return os.fstat(file).st_size
        finally:
            os.close(file)
        return None


@contextmanager
def _storage(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error}") from error
