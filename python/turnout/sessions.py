"""The loaded sessions of one process: loaded once, shared by content, kept while wanted, dropped when not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from turnout.domain import SessionOptions, Version
from turnout.engine import Session, release_memory
from turnout.errors import TurnoutError
from turnout.forks import ForkLock

DEFAULT_OPTIONS = SessionOptions()


def key_of(version: Version) -> str:
    """Versions with the same content and the same options share a session, under this key."""
    if version.options == DEFAULT_OPTIONS:
        return version.artifact.sha256
    return version.artifact.sha256 + msgspec.json.encode(version.options).decode()


class Sessions:
    """A cache of sessions. What `keep` names stays; of the rest, the `on_demand` last used ones stay.

    Nothing is closed under a running request: an evicted session is only dropped, and freed by its last user.
    """

    def __init__(self, load: Callable[[Version], Session], *, on_demand: int) -> None:
        self._load = load
        self._on_demand = on_demand
        self._loaded: dict[str, Session] = {}
        self._kept: frozenset[str] = frozenset()
        self._told: frozenset[str] = frozenset()
        self._staged: dict[str, int] = {}
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._loading: dict[str, ForkLock] = {}
        self._lock = ForkLock()
        self.failures: dict[str, TurnoutError] = {}

    def get(self, key: str) -> Session | None:
        """The session under a key if it is loaded. One look-up, no lock."""
        return self._loaded.get(key)

    def loaded(self, versions: Iterable[Version]) -> bool:
        """Whether every one of these versions is loaded."""
        return all(key_of(version) in self._loaded for version in versions)

    def load(self, version: Version) -> Session:
        """The session of a version, loaded now if it is not. Raises what verification and loading raise."""
        key = key_of(version)
        with self._lock:
            gate = self._loading.setdefault(key, ForkLock())
        with gate:
            session = self._loaded.get(key)
            if session is not None:
                return session
            try:
                session = self._load(version)
            except TurnoutError as error:
                with self._lock:
                    self.failures[key] = error
                raise
            with self._lock:
                self.failures.pop(key, None)
                self._loaded[key] = session
                self._recent[key] = None
        self._evict()
        return session

    def touch(self, key: str) -> None:
        """Count as the last used one, if it is loaded."""
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)

    def keep(self, versions: Iterable[Version], told: Iterable[Version] = ()) -> bool:
        """Replace the set of versions that stay loaded, and drop what nobody wants any more; whether anything went.

        `told` are those that stay because somebody said so. Once they are wanted no more they go at once, and are not
        counted among the last used ones.
        """
        kept, still = frozenset(map(key_of, versions)), frozenset(map(key_of, told))
        with self._lock:
            released = self._told - kept
            self._kept, self._told = kept, still
        return self._evict(released)

    def stage(self, version: Version) -> Session:
        """Load a version that a change is about to make routable; it stays until `unstage`."""
        key = key_of(version)
        with self._lock:
            self._staged[key] = self._staged.get(key, 0) + 1
        try:
            return self.load(version)
        except BaseException:
            self.unstage(version)
            raise

    def unstage(self, version: Version) -> None:
        """The change has happened or was given up; the version stays only if it is wanted."""
        key = key_of(version)
        with self._lock:
            count = self._staged.pop(key, 0) - 1
            if count > 0:
                self._staged[key] = count
        self._evict()

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._loaded.clear()
            self._recent.clear()
        release_memory()

    def _evict(self, released: Iterable[str] = ()) -> bool:
        with self._lock:
            wanted = self._kept | self._staged.keys()
            gone = [key for key in released if key in self._loaded and key not in wanted]
            spare = [key for key in self._recent if key not in wanted and key not in gone]
            gone += spare[: max(0, len(spare) - self._on_demand)]
            for key in gone:
                self._recent.pop(key, None)
                self._loaded.pop(key, None)
                self._loading.pop(key, None)
            self.failures = {key: error for key, error in self.failures.items() if key in wanted}
        if gone:
            release_memory()
        return bool(gone)
