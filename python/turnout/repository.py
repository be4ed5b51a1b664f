"""What is loaded, and what stays so: the verbs of the model repository. A part of `Turnout`, which has the rest.

Source of the states: Open Inference Protocol, extension "model repository" (index, load, unload).
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, suppress

from turnout.changes import Changes
from turnout.domain import Model, Version, VersionState, VersionStatus
from turnout.errors import NotReady, TurnoutError
from turnout.live import Live
from turnout.router import Serving
from turnout.runtime import Runtime

NOT_LOADED = "not loaded; a request that names this version loads it, and so does loading the model"
Key = tuple[str, str]
"""Names of a model and of one of its versions."""


class Repository(Changes):
    """The verbs about what is loaded. Whoever inherits it serves, and hears of other workers."""

    live: Live
    runtime: Runtime

    def load_model(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Model:
        """Load all versions of a model now and keep them loaded, also those that are registered later.

        Every live worker loads them; where there is none, this process does. Raises ModelNotFound, and NotReady for a
        version that cannot be loaded: nothing is changed then.
        """
        author = self._author(actor, reason, revision)
        versions = self.registry.versions(model)
        with self._loaded_here(versions):
            return self._commit(
                lambda: self.registry.keep(model, author, kept=True),
                model,
                [version.version for version in versions],
            )

    def unload_model(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Model:
        """Let go of the versions of a model that no traffic needs; one of them that is named is loaded as before.

        Traffic needs the active version, arms, targets of overrides, and the last two that were active formerly.
        """
        author = self._author(actor, reason, revision)
        released = self._commit(lambda: self.registry.keep(model, author, kept=False))
        self._follow()
        return released

    def repository_index(self, *, ready_only: bool = False) -> list[VersionState]:
        """Which versions are loaded, by model and in order of registration: in every live worker, else in this process."""
        self.live.current()
        servings = [serving for _, serving in sorted(self.live.latest.models.items())]
        workers = self.runtime.workers()
        processes = [worker.versions for worker in workers] or [self.live.statuses()]
        found = index_of(servings, processes, self.runtime.staging(), lazy=not workers)
        return [state for state in found if state.state == "READY" or not ready_only]

    def version_ready(self, model: str, version: str | None = None) -> bool:
        """Whether this process can answer now without loading: with this version, else with all that it may route to.

        False for a model that has neither an active version nor a test. Raises ModelNotFound, VersionNotFound.
        """
        serving = self.live.current().serving(model)
        if version is not None:
            lanes = [serving.lanes[serving.position(version)]]
        elif serving.active_lane is None and serving.split is None:
            return False
        else:
            lanes = serving.routable_lanes
        return all(self.live.sessions.get(lane.key) is not None for lane in lanes)

    @contextmanager
    def _loaded_here(self, versions: Iterable[Version]) -> Generator[None]:
        """Where no worker is there to load them, load versions in this process, and hold them until it wants them."""
        sessions = self.live.sessions
        with ExitStack() as held:
            for version in () if self.runtime.workers() else versions:
                try:
                    sessions.stage(version)
                except TurnoutError as error:
                    raise NotReady(
                        f"version {version.version} of model {version.model} could not be loaded, nothing was changed: "
                        f"{error}"
                    ) from error
                held.callback(sessions.unstage, version)
            yield
            self._follow()

    def _follow(self) -> None:
        """Serve what was changed. It was made: if it cannot be read now, the next request says so."""
        with suppress(TurnoutError):
            self.live.current()


def index_of(
    servings: Iterable[Serving],
    processes: Sequence[Sequence[VersionStatus]],
    staging: Container[Key],
    *,
    lazy: bool,
) -> list[VersionState]:
    """The state of each version, from what processes say that they have loaded.

    Args:
        servings: the models.
        processes: what each process has loaded, or could not load.
        staging: what workers were asked to load for a change.
        lazy: whether the processes load what they want only when a request needs it.
    """
    said: dict[Key, list[VersionStatus]] = {}
    for status in (status for process in processes for status in process):
        said.setdefault((status.model, status.version), []).append(status)
    return [
        _state(
            (serving.name, label),
            said.get((serving.name, label), []),
            len(processes),
            coming=(serving.name, label) in staging or (label in serving.wanted and not lazy),
        )
        for serving in servings
        for label in serving.labels
    ]


def _state(at: Key, said: Sequence[VersionStatus], processes: int, *, coming: bool) -> VersionState:
    errors = [status.error for status in said if status.error is not None]
    loaded = len(said) - len(errors)
    if loaded == processes:
        return VersionState(*at, "READY")
    if errors:
        return VersionState(*at, "UNAVAILABLE", errors[0])
    some = f"loaded by {loaded} of {processes} workers"
    if coming:
        return VersionState(*at, "LOADING", some)
    return VersionState(*at, "UNAVAILABLE", NOT_LOADED.replace("not loaded", some) if loaded else NOT_LOADED)
