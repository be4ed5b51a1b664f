"""Turnout: registry, sessions, routing and statistics wired together. Knows no HTTP; what `turnout.open()` returns."""

from __future__ import annotations

import getpass
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from io import TextIOBase
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from turnout import _core, archives, documents, interchange, reports
from turnout.affinity import roam, step_back
from turnout.answers import BatchPrediction
from turnout.artifacts import Artifacts, Staged, graph_of
from turnout.batch import BatchPredictor
from turnout.bundle import Bundle, write_bundle
from turnout.config import Settings, resolve
from turnout.copies import Copies, copying_of
from turnout.domain import (
    Assignment,
    AuditEvent,
    Change,
    Comparison,
    Distribution,
    Feature,
    History,
    InferenceStatistics,
    Model,
    OnError,
    Prediction,
    SessionOptions,
    Status,
    Test,
    Version,
    check_name,
    utc_now,
)
from turnout.errors import (
    InvalidDocument,
    InvalidModel,
    InvalidRequest,
    InvalidSplit,
    NotReady,
)
from turnout.experiment.desk import Desk
from turnout.experiment.webhooks import check_url
from turnout.external import external_files
from turnout.live import Live
from turnout.log import log
from turnout.plain import plain, to_json
from turnout.plans import Plan, check_plan
from turnout.prediction import Predictor
from turnout.probe import Probe, features_for, probe_file
from turnout.records import Author, Committed
from turnout.registry import Registry
from turnout.repository import Repository
from turnout.router import Ids, ModelRecord, Snapshot, Witness, check_entity, plan_of
from turnout.runtime import Runtime
from turnout.telemetry import Merged, Telemetry, fold, prometheus
from turnout.trials import Trials
from turnout.worker import Worker


class VersionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the person who registers a version says about it; all of it may be left out."""

    features: tuple[str | Feature, ...] | None = None
    accuracy: float | None = None
    metrics: dict[str, float] = {}
    metadata: dict[str, Any] = {}
    options: SessionOptions = SessionOptions()


class Turnout(Trials, Repository):
    """A data directory, opened: register, activate, split, predict, explain.

    Every verb that writes takes `actor` (default: the user of this process), `reason`, and `revision`: the revision
    of the model that the caller has read, against which RevisionConflict is raised if somebody was faster.

    Args:
        settings: all settings; `settings.data` is the directory, made if it is not there.
        server: whether this process serves requests together with others. A server loads versions before it routes
            to them; a notebook loads a version when it is first needed.
    """

    def __init__(self, settings: Settings, *, server: bool = False) -> None:
        self.settings = settings
        self.data = Path(settings.data).expanduser().resolve()
        self.registry = Registry(self.data, map_size=settings.map_size)
        self.artifacts = Artifacts(self.data)
        self.runtime = Runtime(self.data, self.registry.beacon, map_size=settings.map_size, fold=fold)
        self.telemetry = Telemetry()
        self.desk = Desk(self.data, self)
        self.live = Live(self.registry, self.artifacts, settings, self._witness, copying_of, eager=server)
        self.copies = Copies(self.live, self.desk)
        self.desk.also(self.copies.flush)
        self.predictor = Predictor(self.live, self.telemetry, self.copies, fallback=settings.fallback)
        self.predict_bytes = self.predictor.predict_bytes
        self.batches = BatchPredictor(
            self.live, self.telemetry, fallback=settings.fallback, most=settings.max_batch_rows
        )
        self.pool = ThreadPoolExecutor(
            settings.pool_threads, thread_name_prefix="turnout-predict", initializer=roam
        )
        self.batch_pool = ThreadPoolExecutor(
            settings.max_batches, thread_name_prefix="turnout-batch", initializer=step_back
        )
        self._worker: Worker | None = None
        self._local = threading.local()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of sessions, threads and databases. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.batch_pool.shutdown(wait=True, cancel_futures=True)
        if self._worker is not None:
            self._worker.stop()
        self.copies.close()
        self.live.sessions.clear()
        self.desk.close()
        self.runtime.close()
        self.artifacts.close()
        self.registry.close()

    # --- versions -----------------------------------------------------------------------------------------------

    def register_version(
        self,
        model: str,
        version: str,
        path: str | Path,
        *,
        features: Sequence[str | Feature | Mapping[str, Any]] | None = None,
        accuracy: float | None = None,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        options: SessionOptions | None = None,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Store, probe and register a model file, or a folder or file with external data beside it.

        Registering the same label with the same content again returns the version that is there.

        Raises:
            VersionExists: the label is taken by other content.
            InvalidModel: the file cannot run, or the features do not fit its inputs.
        """
        spec = _spec_of(features, accuracy, metrics, metadata, options)
        check_name("model", model)
        check_name("version", version)
        graph = graph_of(Path(path))
        staged = self.artifacts.stage_model(graph, external_files(graph))
        return self.register_staged(
            model, version, staged, spec=spec, actor=actor, reason=reason, revision=revision
        )

    def register_staged(
        self,
        model: str,
        version: str,
        staged: Staged,
        *,
        spec: VersionSpec,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Probe and register files that `artifacts` has already stored aside; they are gone if it raises."""
        try:
            check_name("model", model)
            check_name("version", version)
            probe = self._probe(staged, spec)
            candidate = Version(
                model=model,
                version=version,
                artifact=staged.artifact,
                signature=probe.signature,
                features=features_for(probe, spec.features),
                created_at=utc_now(),
                ordinal=0,
                accuracy=spec.accuracy,
                metrics=spec.metrics,
                metadata=spec.metadata,
                options=spec.options,
            )
            plan_of(candidate)  # refuses here what no worker could compile later
            author = self._author(actor, reason, revision)
            return self._commit(
                lambda: self.registry.register(candidate, staged.place, author, self.artifacts.remove)
            )
        finally:
            staged.discard()

    def activate_version(
        self,
        model: str,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Make a version the one that answers when no test runs; a running test goes on."""
        author = self._author(actor, reason, revision)
        return self._commit(lambda: self.registry.activate(model, version, author), model, [version])

    def rollback(
        self,
        model: str,
        version: str | None = None,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Go back to a version, by default to the one that was active before; a running test ends.

        Where none was active before, a running test ends and the active version takes all traffic.
        """
        author = self._author(actor, reason, revision)
        target = [version] if version is not None else list(self.registry.model(model).former[:1])
        test = self.registry.test(model)
        rolled_back = self._commit(lambda: self.registry.rollback(model, version, author), model, target)
        self._keep(test)
        return rolled_back

    def delete_version(
        self,
        model: str,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> bool:
        """Delete a version and, if nothing else uses them, its files. False if it is not there.

        Raises VersionInUse for the active version, an arm of a running test and the target of an override.
        """
        author = self._author(actor, reason, revision)
        return self._commit(lambda: self.registry.delete(model, version, author, self.artifacts.remove))

    def active_version(self, model: str) -> Version | None:
        """The version that answers when no test runs."""
        active = self.registry.model(model).active
        return None if active is None else self.registry.version(model, active)

    def get_version(self, model: str, version: str) -> Version | None:
        """The version with this label, or None."""
        return self.registry.version(model, version)

    def list_versions(self, model: str) -> list[Version]:
        """All versions, in order of registration."""
        return self.registry.versions(model)

    def compare_versions(self, model: str, a: str, b: str) -> Comparison:
        """Two versions side by side: offline metrics (b minus a) and what they have answered so far."""
        serving = self.live.current().serving(model)
        return reports.compare(serving.version(a), serving.version(b), self.statistics())

    def version_history(self, model: str) -> History:
        """What happened to a model, and why."""
        return self.registry.history(model)

    def model(self, model: str) -> Model:
        """The head of a model. Raises ModelNotFound."""
        return self.registry.model(model)

    def models(self) -> list[Model]:
        """The heads of all models, by name."""
        return self.registry.models()

    # --- tests --------------------------------------------------------------------------------------------------

    def configure_test(
        self,
        model: str,
        weights: Mapping[str, float],
        salt: str | None = None,
        *,
        plan: Plan | Mapping[str, Any] | None = None,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Test:
        """Start a test, or move a running one to new weights with the fewest entities changing their arm.

        With a `plan` the test goes on by itself: the weights name its arms, the active version and one other, and it
        begins with the shares of its first step. New weights without a plan on a test that has one pause the plan.

        Raises InvalidSplit unless the weights are at least 0 and sum to 1 within 0.001; InvalidPlan.
        """
        author = self._author(actor, reason, revision)
        split = _weights(weights)
        checked = None
        if plan is not None:
            checked = check_plan(plan, self.registry.model(model).metrics)
            for url in checked.webhooks:
                check_url(url)
        since = self.desk.clock.now()
        return self._commit(
            lambda: self.registry.configure_test(model, split, salt, author, checked, since),
            model,
            list(split),
        )

    def _witness(self, record: ModelRecord) -> Witness:
        if record.test is not None:
            self.desk.watch()
        return self.desk.exposures.witness(record)

    def current(self) -> Snapshot:
        """The models as this process serves them."""
        return self.live.current()

    def get_test(self, model: str) -> Test | None:
        """The running test, or None."""
        return self.registry.test(model)

    def list_tests(self, model: str) -> list[Test]:
        """Every test that the model has had, oldest first."""
        return self.registry.tests(model)

    def promote_winner(
        self,
        model: str,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """End the test and activate one of its arms."""
        author = self._author(actor, reason, revision)
        test = self.registry.test(model)
        promoted = self._commit(lambda: self.registry.promote(model, version, author), model, [version])
        self._keep(test)
        return promoted

    def stop_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """End the test; the active version takes all traffic."""
        author = self._author(actor, reason, revision)
        test = self.registry.test(model)
        stopped = self._commit(lambda: self.registry.stop_test(model, author))
        self._keep(test)
        return stopped

    def _keep(self, test: Test | None) -> None:
        """Keep the latencies of a test that was just ended."""
        if test is not None:
            self.desk.keep(test)

    def set_override(
        self,
        model: str,
        entity_id: str | int,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> None:
        """Send one entity to one version, whatever the split says; for QA and support."""
        author = self._author(actor, reason, revision)
        entity = str(check_entity(entity_id))
        self._commit(lambda: self.registry.set_override(model, entity, version, author), model, [version])

    def delete_override(
        self,
        model: str,
        entity_id: str | int,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> bool:
        """Let the split decide for this entity again. False if there was no override."""
        author = self._author(actor, reason, revision)
        return self._commit(
            lambda: self.registry.delete_override(model, str(check_entity(entity_id)), author)
        )

    def overrides(self, model: str) -> dict[str, str]:
        """Version by entity id."""
        return self.registry.overrides(model)

    # --- assignment ---------------------------------------------------------------------------------------------

    def select_version(self, model: str, entity_id: str | int) -> str | None:
        """The version that answers this entity; None where no version is active and no test runs."""
        serving = self.live.current().serving(model)
        if serving.record.model.active is None and serving.split is None and not serving.record.overrides:
            return None
        return serving.assign(entity_id).version

    def assign(self, model: str, entity_id: str | int, *, at: datetime | None = None) -> Assignment:
        """The version that answers this entity, and why; with `at` (with a time zone) the one that did then."""
        if at is None:
            return self.live.current().serving(model).assign(entity_id)
        _check_kind("at", at, datetime)
        if at.tzinfo is None:
            now = utc_now().isoformat().replace("+00:00", "Z")
            raise InvalidRequest(f"expected a time with a zone, such as {now}, found {at.isoformat()}")
        return reports.assigned_at(self.registry, model, check_entity(entity_id), at)

    def assign_many(self, model: str, ids: Ids) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """For each id an index (uint8, shape [N]) into the version names that are returned beside.

        Takes a list of strings or integers, a NumPy array of either, or a pyarrow array of either.
        """
        return self.live.current().serving(model).assign_many(ids)

    def distribution(self, model: str) -> Distribution:
        """The split as configured, on a million synthetic ids, and in the requests so far."""
        return reports.distribution(self.live.current().serving(model), self.statistics())

    # --- prediction ---------------------------------------------------------------------------------------------

    def predict(
        self,
        model: str,
        features: Mapping[str, Any] | Sequence[Any] | NDArray[Any],
        *,
        entity_id: str | int | None = None,
        version: str | None = None,
    ) -> Prediction:
        """Route and answer one row: a mapping by feature name, or values in the order of the schema.

        Raises InvalidFeatures, NoActiveVersion, PredictionFailed, and VersionNotFound for an unknown `version`.
        """
        entity = None if entity_id is None else check_entity(entity_id)
        row: Any = getattr(features, "to_dict", lambda: features)()  # a row of pandas has it
        if not isinstance(row, Mapping | Sequence | np.ndarray) or isinstance(row, str | bytes):
            raise InvalidRequest(
                f"expected features by name or in their order, found {type(features).__name__}"
            )
        body = to_json({"entity_id": entity, "features": row})
        return msgspec.json.decode(self.predictor.answer(model, version, body), type=Prediction)

    def predict_batch(
        self,
        model: str,
        rows: Any,  # noqa: ANN401
        *,
        entity_ids: Any = None,  # noqa: ANN401
        version: str | None = None,
        on_error: OnError = "fail",
        threads: int | None = None,
    ) -> BatchPrediction:
        """Route and answer many rows at once, each as `predict` would.

        Args:
            model: the model.
            rows: a list of mappings or lists, a mapping of columns, a two-dimensional NumPy array, or a table: pandas,
                polars, pyarrow. NumPy and Arrow are read where they lie, without a copy.
            entity_ids: one for each row, None for none; a table may have them in its column `entity_id`.
            version: the version that answers all of them.
            on_error: `fail` raises the first error of a row, `skip` notes it and answers the others.
            threads: chunks of rows that are run at once; by default as many as there are processors.

        Raises what `predict` raises, with `row`.
        """
        count = len(os.sched_getaffinity(0)) if threads is None else threads
        job = self.batches.job(model, version, on_error)
        return self.batches.predict(job, rows, entity_ids, threads=max(count, 1))

    # --- the state of things ------------------------------------------------------------------------------------

    def statistics(self) -> Merged:
        """The statistics of this process and of all workers, merged.

        A worker publishes its own first, so that whoever asks another one next finds no count that has fallen.
        """
        if self._worker is None:
            return Merged.from_dumps([self.telemetry.dump(), *self.runtime.statistics().values()])
        self._worker.flush()
        return Merged.from_dumps(self.runtime.statistics().values())

    def inference_statistics(
        self, model: str | None = None, version: str | None = None
    ) -> list[InferenceStatistics]:
        """What all versions, those of one model, or one version have done, as the Open Inference Protocol counts it.

        By name of the model, then in order of registration. Raises ModelNotFound, VersionNotFound, and InvalidRequest
        for a version without a model.
        """
        if model is None and version is not None:
            raise InvalidRequest(f"expected a model with version {version}")
        snapshot = self.live.current()
        names = sorted(snapshot.models) if model is None else [model]
        servings = [snapshot.serving(name) for name in names]
        chosen = [
            (serving.name, label)
            for serving in servings
            for label in (serving.labels if version is None else [serving.version(version).version])
        ]
        merged = self.statistics()
        return [reports.inference_statistics(name, label, merged) for name, label in chosen]

    def metrics(self) -> bytes:
        """The statistics and the state of all workers in Prometheus's text format."""
        shares = {name: serving.shares for name, serving in self.live.current().models.items()}
        return prometheus(self.statistics(), self.runtime.workers(), shares, self.registry.generation())

    def audit(self, *, model: str | None = None, after: int = 0, limit: int = 1000) -> list[AuditEvent]:
        """Changes in their order, from the first whose sequence number is greater than `after`."""
        return self.registry.audit(model=model, after=after, limit=limit)

    def status(self) -> Status:
        """Generation, live workers, and what each of them has loaded on which device."""
        return Status(
            turnout=_core.__version__,
            generation=self.registry.generation(),
            data=str(self.data),
            models=len(self.registry.models()),
            workers=tuple(self.runtime.workers()),
        )

    @property
    def last_change(self) -> Change | None:
        """Where the last change that this thread made has arrived."""
        return getattr(self._local, "change", None)

    # --- the whole registry -------------------------------------------------------------------------------------

    def export_registry(self, artifacts: IO[bytes] | None = None) -> dict[str, Any]:
        """The registry as plain JSON data; with a file, also written there as a tar that carries the model files."""
        if artifacts is not None and not hasattr(artifacts, "write"):
            raise InvalidRequest(
                f"expected a file opened for writing bytes, found {type(artifacts).__name__}"
            )
        document = self.registry.read(documents.document_of)
        if artifacts is not None:
            archives.write_archive(document, self.artifacts, artifacts)
        return documents.plain(document)

    def bundle(
        self, model: str, *, versions: Iterable[str] | None = None, path: str | Path | None = None
    ) -> Bundle:
        """One model as it is now, to be taken to the workers of a cluster; see docs/cluster.md.

        Args:
            model: the model. Its whole document goes along: tests with their ledgers, overrides, history.
            versions: the versions whose files go along; by default all that may answer without being named.
            path: the file to write it to; by default it is held in memory.

        Raises ModelNotFound, VersionNotFound, StorageError.
        """
        if isinstance(versions, str):
            raise InvalidRequest("expected versions as a list, found one string")
        document = self.registry.read(lambda r: documents.Document((documents.model_of(r, r.model(model)),)))
        return write_bundle(document, self.artifacts, versions, path)

    def import_registry(
        self,
        source: Mapping[str, Any] | IO[bytes],
        *,
        replace: bool = False,
        actor: str | None = None,
        reason: str = "",
    ) -> list[str]:
        """Take an export, as plain JSON data or as a tar with the model files, or an export of PrisML; the names.

        Raises:
            ImportConflict: something that is here, a running test say, would be changed or lost, without `replace`.
            InvalidDocument: it is no export, or model files are missing.
        """
        author = self._author(actor, reason, None)
        if not isinstance(source, Mapping) and (
            not hasattr(source, "read") or isinstance(source, TextIOBase)
        ):
            raise InvalidRequest(
                f"expected an export as a mapping, or a file opened for reading bytes, found {type(source).__name__}"
            )
        if isinstance(source, Mapping):
            if interchange.is_prisml(source):
                return self._import_prisml(interchange.parse_prisml(source), author)
            document, staged = documents.parse(source), {}
        else:
            document, staged = archives.read_archive(source, self.artifacts)
        try:
            for version in (version for model in document.models for version in model.versions):
                self._check_imported(version, staged.get(version.artifact.sha256))
            return self._commit(
                lambda: interchange.restore(
                    self.registry, document, self.artifacts, staged, overwrite=replace, author=author
                ),
                every=True,
            )
        finally:
            for files in staged.values():
                files.discard()

    def _check_imported(self, version: Version, staged: Staged | None) -> None:
        """Refuse what no worker could compile, and probe the files that came along: they are as hostile as uploads."""
        plan_of(version)
        if staged is None:
            return
        probe = self._probe(staged, VersionSpec(features=version.features, options=version.options))
        if probe.signature != version.signature:
            raise InvalidDocument(
                f"version {version.version} of model {version.model}: its file takes or gives something else than the "
                "document says"
            )

    def _import_prisml(self, models: dict[str, list[interchange.PrismlVersion]], author: Author) -> list[str]:
        for model, versions in models.items():
            for version in versions:
                self.register_version(
                    model,
                    version.version,
                    version.model_path,
                    accuracy=version.accuracy,
                    metrics=version.numbers,
                    metadata={
                        **version.metadata,
                        "created_at": version.created_at,
                        "deployed_at": version.deployed_at,
                    },
                    actor=author.actor,
                    reason=author.reason or "import from PrisML",
                )
            for version in versions:
                if version.is_active:
                    self.activate_version(model, version.version, actor=author.actor, reason=author.reason)
        return list(models)

    # --- serving ------------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Join the workers that serve this directory: load what is wanted, then follow every change."""
        self.live.refresh()
        self._worker = Worker(self.live, self.runtime, self.registry, self.telemetry, self.settings)
        self._worker.start()
        self.desk.start_controller()

    def ready(self) -> bool:
        """Whether this worker serves the present generation and is not about to stop."""
        return self._worker is not None and self._worker.ready()

    def drain(self) -> None:
        """Say that this worker is about to stop."""
        if self._worker is not None:
            self._worker.drain()

    # --- changes ------------------------------------------------------------------------------------------------

    def _author(self, actor: str | None, reason: str, revision: int | None) -> Author:
        _check_kind("actor", actor, str)
        _check_kind("reason", reason, str)
        _check_kind("revision", revision, int)
        return Author(actor or user_name(), reason or "", revision)

    def _probe(self, staged: Staged, spec: VersionSpec) -> Probe:
        missing = set(external_files(staged.model_path)) - {file.path for file in staged.artifact.files}
        if missing:
            raise InvalidModel(
                f"the model refers to external data ({', '.join(sorted(missing))}), which an upload cannot carry: "
                "save it as one file, or register its folder on the server"
            )
        return probe_file(
            staged.model_path,
            device=spec.options.device or self.settings.device,
            seconds=self.settings.probe_seconds,
            memory_bytes=self.settings.probe_memory_bytes,
            width=None if spec.features is None else len(spec.features),
            options=spec.options,
        )

    def _commit(
        self,
        write: Callable[[], Committed],
        model: str | None = None,
        versions: Sequence[str] = (),
        *,
        every: bool = False,
    ) -> Any:  # noqa: ANN401
        """Have every live worker load what the change makes routable, make it, and wait until all serve it.

        Waits for the state of the model that is changed, or with `every` of all models: another model that a worker
        cannot load does not hold up the answer.
        """
        tokens: list[str] = []
        try:
            if model is not None:
                self._stage(model, versions, tokens)
            committed = write()
        finally:
            for token in tokens:
                self.runtime.unstage(token)
        changed = None if every or committed.model is None else committed.model.name
        pending = self.runtime.wait_generation(committed.generation, self.settings.change_seconds, changed)
        revision = 0 if committed.model is None else committed.model.revision
        self._local.change = Change(committed.generation, revision, pending)
        if pending:
            log("warning", "change_pending", generation=committed.generation, workers=pending)
        return committed.value

    def _stage(self, model: str, labels: Sequence[str], tokens: list[str]) -> None:
        """Wait until every live worker has loaded the versions; adds the requests made to `tokens`."""
        for label in labels:
            version = self.registry.version(model, label)
            if version is None or self.runtime.all_loaded(model, label):
                continue
            token = self.runtime.stage(model, label)
            tokens.append(token)
            answers = self.runtime.wait_staged(token, self.settings.load_seconds)
            for worker, error in answers.items():
                if error is not None:
                    raise NotReady(
                        f"worker {worker} could not load version {label} of model {model}, nothing was changed: {error}"
                    )


def _spec_of(
    features: Any,  # noqa: ANN401
    accuracy: Any,  # noqa: ANN401
    metrics: Any,  # noqa: ANN401
    metadata: Any,  # noqa: ANN401
    options: Any,  # noqa: ANN401
) -> VersionSpec:
    if isinstance(features, str | Mapping | set):
        raise InvalidModel(f"expected features as a list, found {type(features).__name__}")
    try:
        fields = {
            "features": None if features is None else list(features),
            "accuracy": accuracy,
            "metrics": dict({} if metrics is None else metrics),
            "metadata": {} if metadata is None else metadata,
            "options": options or SessionOptions(),
        }
        return msgspec.convert(msgspec.to_builtins(fields, enc_hook=plain), VersionSpec)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as error:
        raise InvalidModel(f"{error}") from error


def _check_kind(what: str, value: object, kind: type) -> None:
    """Raise InvalidRequest unless this is None or of a kind; True and False are no integers."""
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise InvalidRequest(f"{what} must be of type {kind.__name__}, found {type(value).__name__}")


def _weights(weights: Any) -> dict[str, float]:  # noqa: ANN401
    """Weights by version as plain numbers, NumPy's too. Raises InvalidSplit for anything else."""
    if not isinstance(weights, Mapping):
        raise InvalidSplit(f"expected a mapping from version to weight, found {type(weights).__name__}")
    for version, weight in weights.items():
        number = isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool)
        if not isinstance(version, str) or not number:
            raise InvalidSplit(f"expected a version and a number, found {version!r}: {weight!r}")
    return {version: float(weight) for version, weight in weights.items()}


def user_name() -> str:
    """Who runs this process; a container may run under a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def open(data: str | Path | None = None, *, settings: Settings | None = None, **overrides: Any) -> Turnout:  # noqa: A001, ANN401
    """Open a data directory, made if it is not there; a context manager.

    Settings come from `settings`, else from the environment and `overrides` (see docs/settings.md).
    """
    if settings is None:
        settings = resolve(flags=overrides).settings
    elif overrides:
        settings = msgspec.structs.replace(settings, **overrides)
    if data is not None:
        if not str(data):
            raise InvalidRequest("expected a data directory, found an empty name")
        settings = msgspec.structs.replace(settings, data=str(data))
    return Turnout(settings)
