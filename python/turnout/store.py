"""One LMDB file: transactions, a map that grows by itself, and clear errors.

The only importer of lmdb. Keys are tuples of parts joined by a zero byte; a table is the first part.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lmdb

from turnout.errors import StorageError
from turnout.forks import ForkLock

T = TypeVar("T")
DAMAGES = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.PageNotFoundError)
LOCK_BYTES = 128 + 64 * 1024
"""LMDB's lock file: its head, and a line for each of `max_readers`."""
SEPARATOR = b"\0"
MAX_KEY_BYTES = 511
"""What LMDB is compiled with; a longer key cannot be stored, so looking for one finds nothing."""
FORK_SECONDS = 2.0
FULL_BYTES = 1024**2
"""Less free space than this, when a write has failed, is the reason for it."""


class DamagedError(StorageError):
    """The file itself is broken, or no database; what else fails may pass."""


class _LostError(Exception):
    """The file was closed because LMDB had given up, and could not be opened again yet."""


def key(*parts: str | bytes | int) -> bytes:
    """Join parts into a key. Integers are 8 bytes, big-endian, so that they sort as numbers."""
    return SEPARATOR.join(_part(part) for part in parts)


def _part(part: str | bytes | int) -> bytes:
    if isinstance(part, int):
        return part.to_bytes(8, "big")
    # A lone surrogate is no text and names nothing, but looking for it must not fail.
    return part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part


class Transaction:
    """Reads, and in a change also writes, of one consistent state."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401
        self._inner = inner

    def get(self, at: bytes) -> bytes | None:
        """The value at a key."""
        return self._inner.get(at) if len(at) <= MAX_KEY_BYTES else None

    def put(self, at: bytes, value: bytes) -> None:
        """Set the value at a key."""
        self._inner.put(at, value)

    def delete(self, at: bytes) -> bool:
        """Remove a key; whether it was there."""
        return self._inner.delete(at) if len(at) <= MAX_KEY_BYTES else False

    def scan(self, *prefix: str | bytes | int, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """What lies under a prefix, in the order of the keys, as (the rest of the key, value).

        With `after`, begins behind that rest. Take all of it before changing what lies there.
        """
        head = key(*prefix) + SEPARATOR
        if len(head) > MAX_KEY_BYTES:
            return
        cursor = self._inner.cursor()
        found = cursor.set_range(head if after is None else head + after + b"\0")
        while found and (at := cursor.key()).startswith(head):
            yield at[len(head) :], cursor.value()
            found = cursor.next()

    def last(self, *prefix: str | bytes | int) -> tuple[bytes, bytes] | None:
        """The last entry under a prefix."""
        head = key(*prefix) + SEPARATOR
        cursor = self._inner.cursor()
        # The separator is the smallest byte, so this is the first key past the prefix.
        found = cursor.prev() if cursor.set_range(head[:-1] + b"\1") else cursor.last()
        if not found or not cursor.key().startswith(head):
            return None
        return cursor.key()[len(head) :], cursor.value()


class _Environment:
    """LMDB opens a file once a process: this is that opening, shared, with a gate that lets the map grow alone."""

    opened: ClassVar[dict[tuple[int, int], _Environment]] = {}
    lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str, map_size: int, *, sync: bool) -> None:
        self.path = path
        self.pid = os.getpid()
        self.users = 0
        self._active: list[int] = []  # the threads that are in a transaction
        self._growing = False
        self._gate = threading.Condition()
        self._quiet = True
        self._map_size = map_size
        self._sync = sync
        self.lmdb: Any = self._opened()

    def _opened(self) -> Any:  # noqa: ANN401
        try:
            # LMDB maps its lock file; where the disk cannot hold it, the first touch would kill the process.
            _reserve(Path(self.path + "-lock"), LOCK_BYTES)
            found = lmdb.open(
                self.path,
                subdir=False,
                map_size=self._map_size,
                sync=self._sync,
                metasync=self._sync,
                max_readers=1024,
                mode=0o644,
            )
            found.reader_check()
        except DAMAGES as error:
            raise DamagedError(f"{self.path} cannot be opened: {error}") from error
        except (lmdb.Error, OSError) as error:
            # Another file has taken the place of one that is open, and stands beside the lock file of that one.
            kind = DamagedError if "already open in this process" in str(error) else StorageError
            raise kind(f"{self.path} cannot be opened: {error}{_shared_number(error)}") from error
        return found

    @classmethod
    def acquire(cls, identity: tuple[int, int], path: str, map_size: int, *, sync: bool) -> _Environment:
        """The opening of this file in this process, with one more user."""
        with cls.lock:
            found = cls.opened.get(identity)
            if found is None:
                found = cls.opened[identity] = cls(path, map_size, sync=sync)
            found.users += 1
            return found

    def release(self, identity: tuple[int, int]) -> None:
        """One user less; the last one closes. Nothing to do in a child, which has closed what it inherited."""
        with _Environment.lock:
            self.users -= 1
            if self.users == 0 and self.pid == os.getpid():
                if self.lmdb is not None:
                    self.lmdb.close()
                _Environment.opened.pop(identity, None)

    @classmethod
    def before_fork(cls) -> None:
        """Wait until no other thread is inside of LMDB, and keep them out, so that the child can close its copy."""
        cls.lock.acquire()
        for environment in cls.opened.values():
            environment.pause()

    @classmethod
    def after_fork(cls, *, child: bool) -> None:
        """Go on. LMDB must not be used across a fork: a child closes everything, and its stores open it again."""
        for environment in cls.opened.values():
            environment.resume()
            if child:
                environment.abandon()
        if child:
            cls.opened.clear()
        cls.lock.release()

    def pause(self) -> None:
        """Keep other threads out, waiting a little for those that are in."""
        me = threading.get_ident()
        self._gate.acquire()
        self._quiet = self._gate.wait_for(lambda: all(thread == me for thread in self._active), FORK_SECONDS)

    def resume(self) -> None:
        """Let other threads in again."""
        self._gate.release()

    def abandon(self) -> None:
        """Close the copy of a child. With a thread inside, which the child does not have, that would never return."""
        if self._quiet and self.lmdb is not None:
            self.lmdb.close()

    @contextmanager
    def transaction(self, *, write: bool) -> Generator[Transaction]:
        """One transaction, aborted by an exception; never open while the map is resized."""
        with self._gate:
            self._gate.wait_for(lambda: not self._growing)
            self._active.append(threading.get_ident())
        try:
            if self.lmdb is None:
                raise _LostError
            with self.lmdb.begin(write=write) as inner:
                yield Transaction(inner)
        finally:
            with self._gate:
                self._active.remove(threading.get_ident())
                self._gate.notify_all()

    def resize(self, size: int) -> None:
        """Map `size` bytes, or with 0 what another process has grown the file to, once no transaction is open here."""
        with self._alone():
            if size == 0 or size > self.lmdb.info()["map_size"]:
                self.lmdb.set_mapsize(size)

    def reopen(self, broken: Any) -> None:  # noqa: ANN401
        """Open the file anew, unless another thread has done so since `broken` (None: nothing) was in use.

        LMDB refuses all further work after it has failed to write a page of its own; what is committed still stands.
        Where the file cannot be opened now, on a full disk say, whoever needs it next tries again.
        """
        with self._alone():
            if self.lmdb is broken:
                self.lmdb = None
                if broken is not None:
                    broken.close()
                self.lmdb = self._opened()

    @contextmanager
    def _alone(self) -> Generator[None]:
        with self._gate:
            self._gate.wait_for(lambda: not self._growing)
            self._growing = True
            self._gate.wait_for(lambda: not self._active)
        try:
            yield
        finally:
            with self._gate:
                self._growing = False
                self._gate.notify_all()


os.register_at_fork(
    before=_Environment.before_fork,
    after_in_parent=lambda: _Environment.after_fork(child=False),
    after_in_child=lambda: _Environment.after_fork(child=True),
)


class Store:
    """One LMDB file, open in any number of processes and any number of times in each.

    Args:
        map_size: bytes of address space to begin with.
        sync: whether a change is on disk before `change` returns.
    """

    def __init__(self, path: Path, *, map_size: int, sync: bool = True) -> None:
        self.path = path
        self._map_size = map_size
        self._sync = sync
        self._closed = False
        self._reopening = ForkLock()
        self._environment = self._open()

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._environment.release(self._identity)

    def replaced(self) -> bool:
        """Whether the file at the path is another one by now, or gone."""
        try:
            found = self.path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` on one consistent state; it must not open another transaction."""
        return self._run(work, write=False)

    def change(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one write transaction and commit it; may run it again after the map has grown.

        Raises StorageError where the disk is full or broken: nothing has changed then.
        """
        return self._run(work, write=True)

    def _run(self, work: Callable[[Transaction], T], *, write: bool) -> T:
        if self._closed:
            raise StorageError(f"{self.path} is closed")
        while True:
            environment = self._present()
            inner = environment.lmdb
            try:
                with environment.transaction(write=write) as transaction:
                    return work(transaction)
            except lmdb.MapFullError:
                # A reader that was killed keeps old pages from being used again; the map grows all the same.
                environment.lmdb.reader_check()
                self._resize(environment, environment.lmdb.info()["map_size"] * 2)
            except lmdb.MapResizedError:
                self._resize(environment, 0)
            except lmdb.ReadersFullError as error:
                if environment.lmdb.reader_check() == 0:
                    raise StorageError(f"{self.path}: too many processes read it at once: {error}") from error
            except _LostError:
                environment.reopen(None)
            except lmdb.PanicError as error:
                environment.reopen(inner)
                raise self._failure(error) from error
            except lmdb.Error as error:
                raise self._failure(error) from error

    def _failure(self, error: lmdb.Error) -> StorageError:
        """LMDB calls a write that the disk took only in part an input/output error, so say what is free."""
        if isinstance(error, DAMAGES):
            return DamagedError(f"{self.path}: {error}")
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError:
            return StorageError(f"{self.path}: {error}; the last committed state stands")
        hint = (", so the disk is full" if free < FULL_BYTES else "") + _shared_number(error)
        return StorageError(
            f"{self.path}: {error}; {free // 1024} KiB are free on its file system{hint}; "
            "the last committed state stands"
        )

    def _open(self) -> _Environment:
        self._identity = _identity(self.path)
        return _Environment.acquire(self._identity, str(self.path), self._map_size, sync=self._sync)

    def _present(self) -> _Environment:
        """The environment of this process, which in a forked child is not the one that the store was made with."""
        if self._environment.pid != os.getpid():
            with self._reopening:
                if self._environment.pid != os.getpid():
                    self._environment = self._open()
        return self._environment

    def _resize(self, environment: _Environment, size: int) -> None:
        try:
            environment.resize(size)
        except (lmdb.Error, OSError) as error:
            raise StorageError(f"{self.path}: the map cannot grow to {size} bytes: {error}") from error


def _shared_number(error: Exception) -> str:
    """What is behind it when LMDB finds its place among the readers taken: it tells processes apart by their numbers."""
    if isinstance(error, lmdb.LockError) or "temporarily unavailable" in str(error):
        return "; another process may have the same number: containers that share a directory need a common process namespace"
    return ""


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode of a file, made empty if it is not there; LMDB takes an empty file for a new database."""
    try:
        path.touch(0o644)
        found = path.stat()
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error}") from error
    return found.st_dev, found.st_ino


def _reserve(path: Path, size: int) -> None:
    """Make a file so large, with room on the disk for all of it. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(file).st_size < size:
            os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)
