"""The snapshot that a process serves from, and how it moves to the next generation: load first, then switch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from turnout.affinity import aside, roam
from turnout.artifacts import Artifacts
from turnout.config import Settings
from turnout.domain import Version, VersionStatus
from turnout.engine import Engine, Session, release_memory
from turnout.errors import StorageError, TurnoutError, VersionNotLoaded
from turnout.forks import ForkLock
from turnout.log import log
from turnout.registry import Registry
from turnout.router import EMPTY, Lane, ModelRecord, Serving, Snapshot, Witness, plan_of
from turnout.sessions import Sessions, key_of

RETRY_SECONDS = 1.0
UNFIT = (TurnoutError, ValueError, TypeError, LookupError, OverflowError)
"""What compiling records may raise that another release has written, or a fault."""


class Progress(NamedTuple):
    """How far a process has come: it serves `generation` of all models, and `reached` of all but those `held` back."""

    generation: int
    reached: int
    held: frozenset[str]


class Live:
    """Three views: `latest` as read from the registry, `snapshot` as served, and the sessions behind them.

    An eager process (a server's worker) serves the old snapshot until every version that requests may reach is
    loaded. A lazy one (a notebook) switches at once and loads a version when it is first needed.
    """

    def __init__(
        self,
        registry: Registry,
        artifacts: Artifacts,
        settings: Settings,
        witness: Callable[[ModelRecord], Witness],
        copying: Callable[[Serving], object],
        *,
        eager: bool,
    ) -> None:
        self._registry = registry
        self._artifacts = artifacts
        self._engine = Engine(
            settings.device,
            settings.intra_op_threads,
            settings.spinning,
            settings.inline_seconds,
            batches=eager,
        )
        self._witness = witness
        self._copying = copying
        self._eager = eager
        self._intra_op_threads = settings.intra_op_threads
        self.sessions = Sessions(self._load, on_demand=settings.on_demand_versions)
        self.snapshot: Snapshot = EMPTY
        self.latest: Snapshot = EMPTY
        self.failing = False
        self.progress = Progress(0, 0, frozenset())
        self._noticed = -1
        self._staged: dict[str, Version | None] = {}
        self._staging = ForkLock()
        self._retry_at = 0.0
        self._on_its_way = False
        self._refreshing = ForkLock()
        self._preloading = ForkLock()

    @property
    def served_generation(self) -> int:
        """The generation that is served of all models."""
        return self.progress.generation

    def current(self) -> Snapshot:
        """The snapshot to serve a request from. Costs one load from shared memory when nothing has changed."""
        try:
            noticed = self._registry.beacon[0]
        except ValueError as error:
            raise StorageError("the data directory is closed") from error
        if noticed != self._noticed:
            self.catch_up()
        return self.snapshot

    def catch_up(self) -> None:
        """Refresh; a server that cannot goes on with what it serves, and tries again after a while."""
        if not self._eager:
            self.refresh()
        elif time.monotonic() >= self._retry_at:
            try:
                self.refresh()
            except TurnoutError as error:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                log("error", "refresh_failed", detail=error.detail)

    def stale(self) -> bool:
        """Whether the registry has moved on; asks the database itself, should the shared memory be lost."""
        return (
            self._registry.beacon[0] != self._noticed or self._registry.generation() != self.latest.generation
        )

    def refresh(self) -> None:
        """Read what changed and switch to it: at once where it is loaded or may load later, else after loading."""
        with self._refreshing:
            noticed = self._registry.beacon[0]
            self.latest = self._read()
            # One model that has to load does not hold up the others.
            missing = self._waiting(self.latest) if self._eager else set()
            self._install(self.latest, missing)
            self._noticed = noticed  # last: another thread that sees it serves from what was installed
            if not self._eager:
                self.trim()
            if not missing:
                self.failing = False
            if not self._eager or self._on_its_way or not self._missing(self.latest, routable_only=False):
                return  # what loads now sees the latest before it ends
            self._on_its_way = True
        threading.Thread(target=self._preload_anywhere, name="turnout-load", daemon=True).start()

    def _preload_anywhere(self) -> None:
        roam()
        try:
            self.preload()
        finally:
            self._on_its_way = False

    def preload(self) -> None:
        """Load what the latest generation wants and switch to it. Models that cannot load keep their old serving."""
        with self._preloading:
            while True:
                target = self.latest
                failed = self._load_missing(target)
                with self._refreshing:
                    if self.latest is not target:
                        continue
                    self.failing = bool(failed)
                    self._install(target, failed)
                    self._on_its_way = False
                    break
        self.trim()

    def trim(self) -> bool:
        """Drop the sessions that nothing wants any more; whether there were any."""
        servings = [*self.snapshot.models.values(), *self.latest.models.values()]
        told = [serving for serving in servings if serving.record.model.kept]
        return self.sessions.keep(
            (serving.version(label) for serving in servings for label in serving.wanted),
            (lane.version for serving in told for lane in serving.lanes),
        )

    def session(self, lane: Lane) -> Session:
        """The session of a lane, loaded now where it is not."""
        return self.sessions.get(lane.key) or self.sessions.load(lane.version)

    def pinned_session(self, lane: Lane) -> Session:
        """The same for a request that names its version: what nothing else needs stays loaded while it is used."""
        session = self.session(lane)
        self.sessions.touch(lane.key)
        return session

    def expect(self, token: str) -> None:
        """Take note of a request to stage before its loading begins, so that an `unstage` meanwhile is not lost."""
        with self._staging:
            self._staged[token] = None

    def stage(self, token: str, model: str, label: str) -> None:
        """Load a version that a change is about to make routable, and hold it until `unstage`.

        Loads nothing where the token is not expected (any more).
        """
        version = self._registry.version(model, label)
        if version is None or token not in self._staged:
            return
        try:
            self.sessions.stage(version)
        except BaseException:
            self.unstage(token)
            raise
        with self._staging:
            if token in self._staged:
                self._staged[token] = version
                return
        self.sessions.unstage(version)  # the change was given up while it loaded

    def unstage(self, token: str) -> None:
        """The change has been made or given up."""
        with self._staging:
            version = self._staged.pop(token, None)
        if version is not None:
            self.sessions.unstage(version)

    def statuses(self) -> tuple[VersionStatus, ...]:
        """Every version of the snapshot that is loaded, or could not be."""
        return tuple(
            status
            for serving in self.snapshot.models.values()
            for lane in serving.lanes
            if (status := self._status(serving.name, lane)) is not None
        )

    def _status(self, model: str, lane: Lane) -> VersionStatus | None:
        session = self.sessions.get(lane.key)
        if session is not None:
            return VersionStatus(
                model=model,
                version=lane.label,
                device=session.device,
                providers=tuple(session.providers),
                inline=session.inline,
                load_seconds=session.load_seconds,
                warmup_seconds=session.warmup_seconds,
                run_seconds=session.run_seconds,
                max_batch_rows=session.max_batch_rows,
                max_delay_us=session.max_delay_us,
                batch_seconds=session.batch_seconds,
                graphs=session.graphs,
                cpu_nodes=session.cpu_nodes,
                note=session.note,
            )
        error = self.sessions.failures.get(lane.key)
        return None if error is None else VersionStatus(model=model, version=lane.label, error=str(error))

    def _load(self, version: Version) -> Session:
        # A session with threads of its own starts them from here: they would step back with it.
        alone = (version.options.intra_op_threads or self._intra_op_threads) == 1
        try:
            session = aside(lambda: self._opened(version)) if self._eager and alone else self._opened(version)
        except TurnoutError:
            raise
        except Exception as error:
            raise VersionNotLoaded(
                f"version {version.version} of model {version.model} cannot be loaded: {error!r}"
            ) from error
        release_memory()  # what reading the file took
        log(
            "info",
            "version_loaded",
            model=version.model,
            version=version.version,
            device=session.device,
            load_seconds=session.load_seconds,
            run_seconds=session.run_seconds,
            max_batch_rows=session.max_batch_rows,
            batch_seconds=session.batch_seconds,
            graphs=session.graphs,
            cpu_nodes=session.cpu_nodes,
            note=session.note,
        )
        return session

    def _opened(self, version: Version) -> Session:
        return self._engine.load(self._artifacts.verify(version.artifact), version)

    def _read(self) -> Snapshot:
        fresh = self._registry.snapshot(self.latest.revisions())
        models: dict[str, Serving] = {
            name: serving for name, serving in self.latest.models.items() if name in fresh.names
        }
        unreadable = dict(fresh.unreadable)
        for record in fresh.records:
            try:
                serving = Serving(record, plan_of, key_of, self._witness(record))
                serving.copying = self._copying(serving)
                models[record.model.name] = serving
            except UNFIT as error:
                unreadable[record.model.name] = repr(error)
        for name in unreadable.keys() - self.latest.unreadable.keys():
            log("error", "model_unreadable", model=name, detail=unreadable[name])
        return Snapshot(fresh.generation, models, unreadable)

    def _missing(self, snapshot: Snapshot, *, routable_only: bool) -> list[tuple[Serving, Version]]:
        """What is not loaded, but of what no request may reach nothing that has failed to load: it would fail again."""
        return [
            (serving, serving.version(label))
            for serving in snapshot.models.values()
            for label in (serving.routable if routable_only else serving.wanted)
            if self.sessions.get(key := serving.lanes[serving.index[label]].key) is None
            and (label in serving.routable or key not in self.sessions.failures)
        ]

    def _load_missing(self, target: Snapshot) -> frozenset[str]:
        """Load everything wanted, and serve each model as soon as it can be, as it is in the latest generation.

        Returns the names of the models of which a version that requests may reach cannot be loaded.
        """
        failed: set[str] = set()
        for serving, version in self._missing(target, routable_only=False):
            try:
                self.sessions.load(version)
            except TurnoutError as error:
                log("error", "load_failed", model=serving.name, version=version.version, detail=str(error))
                if version.version in serving.routable:
                    failed.add(serving.name)
            else:
                with self._refreshing:  # which may be later than the target by now
                    self._install(self.latest, self._waiting(self.latest))
        return frozenset(failed)

    def _waiting(self, snapshot: Snapshot) -> set[str]:
        """The models of which a version that requests may reach is not loaded."""
        return {serving.name for serving, _ in self._missing(snapshot, routable_only=True)}

    def _install(self, snapshot: Snapshot, waiting: Iterable[str] = ()) -> None:
        """Serve a snapshot, but of models that have to load or cannot be read what is served now."""
        held = snapshot.unreadable.keys() | waiting
        kept = {name: self.snapshot.models[name] for name in held if name in self.snapshot.models}
        self.snapshot = snapshot._replace(models={**snapshot.models, **kept}) if kept else snapshot
        whole = self.progress.generation if held else snapshot.generation
        self.progress = Progress(whole, snapshot.generation, frozenset(held))
