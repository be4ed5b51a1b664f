"""The experiments of a data directory, wired: what is seen, what is reported, what is decided. Knows no HTTP."""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec

from turnout.config import Settings
from turnout.domain import Model, Test, utc_now
from turnout.errors import InvalidRequest, TestNotFound, TurnoutError
from turnout.experiment.clock import Clock
from turnout.experiment.controller import Controller, Leadership
from turnout.experiment.counts import SegmentCounts, ShadowCounts, TestCounts
from turnout.experiment.events import Events
from turnout.experiment.exposures import Exposures, Flusher
from turnout.experiment.labels import scheme_of
from turnout.experiment.outcomes import Known, Outcomes
from turnout.experiment.receipts import Signers
from turnout.experiment.report import ALPHA, Facts, point_of, quality_of, results_of
from turnout.experiment.results import Results, VersionQuality
from turnout.experiment.statistics.quality import LabelCounts, merge
from turnout.experiment.units import Show
from turnout.experiment.webhooks import Webhooks
from turnout.experiment.writer import Place, Writer
from turnout.forks import in_child
from turnout.log import log
from turnout.plans import Metric
from turnout.records import Author, Committed, Records
from turnout.registry import Registry
from turnout.router import ModelRecord, Snapshot
from turnout.telemetry import Merged

GRACE_MS = 500
"""How long after its window an exposure matures: by then what other workers have seen is written down."""
THRESHOLD_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
HOOK_SECONDS = 5.0
TIDY_SECONDS = 0.2
"""How long, of each minute, what is too old is removed."""


class Host(Protocol):
    """What experiments need of the service that they are a part of."""

    settings: Settings
    registry: Registry

    def statistics(self) -> Merged:
        """The statistics of all workers."""
        ...

    def current(self) -> Snapshot:
        """The models as they are served."""
        ...


class Desk:
    """Everything about experiments in one process.

    Args:
        data: the data directory.
        host: the service.
    """

    def __init__(self, data: Path, host: Host) -> None:
        settings = host.settings
        self._host = host
        self._data = data
        self._registry = host.registry
        self.signers = Signers(data)
        self.webhook_secret()  # what is wrong with the setting is said now, and not after a decision
        self.events = Events(data, map_size=settings.map_size)
        self.clock = Clock(self.events.anchor)
        self.exposures = Exposures(self.events, self.signers, self._seen, self.clock.ahead_ms)
        self.outcomes = Outcomes(
            self.events, self.signers, self._known, self.exposures.flush, self.clock.ahead_ms
        )
        self._flusher = Flusher("turnout-exposures", settings.exposure_seconds, self._flush)
        self._flushing = False
        self._others: list[Callable[[], object]] = []
        self._controller: Controller | None = None
        self._hooks: dict[tuple[str, ...], Webhooks] = {}
        self._due: dict[tuple[str, str], int] = {}
        in_child(self, Desk.begin_anew)

    def start_controller(self) -> None:
        """Follow plans in this process, whenever no other one does."""
        if self._host.settings.controller:
            self._controller = Controller(
                self, Leadership(self._data / "controller.lock"), self._host.settings.controller_seconds
            )
            self._controller.start()

    def watch(self) -> None:
        """Begin to write down what is seen, every so often; nothing to do where it has begun."""
        if not self._flushing:
            self._flushing = True
            self._flusher.start()

    def close(self) -> None:
        """Write the rest down and let go. Idempotent."""
        try:
            if self._controller is not None:
                self._controller.stop()
            self._flusher.stop()
            self._flush()
            for hooks in self._hooks.values():
                hooks.close(HOOK_SECONDS)
        finally:
            self.events.close()

    def begin_anew(self) -> None:
        """In a forked child: the threads of its parent are not here."""
        self._flusher = Flusher("turnout-exposures", self._host.settings.exposure_seconds, self._flush)
        if self._flushing:
            self._flusher.start()
        self._controller = None
        self._hooks = {}

    def also(self, work: Callable[[], object]) -> None:
        """Have something else written down whenever exposures are."""
        self._others.append(work)

    def _flush(self) -> None:
        self.exposures.flush()
        for work in self._others:
            work()

    def _seen(self, bad: bool) -> None:
        if bad and self._controller is not None:
            self._controller.wake()

    # --- reading --------------------------------------------------------------------------------------------------

    def _known(self, model: str) -> Known:
        """What outcomes of a model may belong to: its running test, and tests that ended within the longest window."""
        record = self._record(model)
        window = max((metric.window_seconds for metric in record.model.metrics), default=0.0)
        oldest = utc_now() - timedelta(seconds=window)
        tests = [
            test
            for test in reversed(self._registry.tests(model))
            if test.ended_at is None or test.ended_at >= oldest
        ]
        return Known(record, tests, self._began)

    def _began(self, test: Test, revision: int) -> SegmentCounts:
        """The counts of a revision of a test, before anything was counted."""
        ledger = self._registry.ledger(test.model, test.id, revision)
        if ledger is None:
            return SegmentCounts(revision, 0)
        return SegmentCounts(
            revision, round(ledger.created_at.timestamp() * 1000), shares=dict(ledger.weights)
        )

    def _record(self, model: str) -> ModelRecord:
        return self._registry.read(lambda r: r.record(r.model(model)))

    def running_tests(self) -> Sequence[tuple[int, ModelRecord]]:
        """The revision and the records of each model with a running test."""
        found: list[tuple[int, ModelRecord]] = []

        def read(r: Records) -> None:
            for name in r.names():
                try:
                    head = r.model(name)
                    if head.test_id is not None:
                        found.append((head.revision, r.record(head)))
                except (msgspec.MsgspecError, ValueError):  # of another release, say; the others go on
                    continue

        self._registry.read(read)
        return found

    def counts_of(self, test: Test) -> TestCounts:
        """The counts of a test."""
        return self.events.counts(test.model, int(test.id))

    def errors_of(self, record: ModelRecord, test: Test) -> frozenset[str]:
        """The label metrics whose values are errors, because versions of the test are regressors."""
        versions = [record.versions[arm] for arm in test.weights if arm in record.versions]
        return frozenset(
            metric.name
            for metric in counted(record, test)
            if metric.kind == "label"
            and any(not scheme_of(version, metric).is_classifier for version in versions)
        )

    def mature(self, record: ModelRecord, test: Test) -> None:
        """Count what has matured of a test."""
        now = self.clock.matured_ms() - GRACE_MS
        for metric in counted(record, test):
            self.events.mature(test.model, int(test.id), metric, now - metric.window_ms)

    def results(self, model: str, test_id: str | None = None, *, alpha: float = ALPHA) -> Results:
        """What a test has shown: the running one, else the last one, or that of an id."""
        if not 0 < alpha < 1:
            raise InvalidRequest(f"alpha: expected a number between 0 and 1, found {alpha}")
        self.exposures.flush()
        record = self._record(model)
        tests = self._registry.tests(model)
        wanted = [test for test in tests if test_id in {None, test.id}]
        if not wanted:
            raise TestNotFound(
                f"model {model} has had no test"
                if test_id is None
                else f"model {model} has no test {test_id}"
            )
        test = wanted[-1]
        self.mature(record, test)
        return results_of(self._facts(record, test), alpha)

    def _facts(self, record: ModelRecord, test: Test) -> Facts:
        counts = self.counts_of(test)
        qualities = self.events.qualities(test.model)
        for label in test.weights:
            version = record.versions.get(label)
            found = {} if version is None else qualities.get(version.ordinal, {})
            if int(test.id) in found:
                counts.quality[label] = found[int(test.id)]
        if not counts.latency or test.status == "running":
            counts.latency = self._latency(test)
        return Facts(
            test=test,
            metrics=counted(record, test),
            versions=record.versions,
            counts=counts,
            errors_of=self.errors_of(record, test),
            now=self.clock.now(),
            at=utc_now(),
            trail=self.events.trail(test.model, int(test.id)).points,
        )

    def _latency(self, test: Test) -> dict[str, list[bytes]]:
        """What is known of the latencies of a test's arms: as the sum of their dumps."""
        merged = self._host.statistics()
        return {arm: [merged.of_test(test.model, test.id, arm).dump()] for arm in test.weights}

    def quality(self, model: str) -> list[VersionQuality]:
        """What labels say of each version of a model, in all tests and outside of them."""
        record = self._record(model)
        found: list[VersionQuality] = []
        qualities = self.events.qualities(model)
        for version in record.versions.values():
            total = LabelCounts()
            for counts in qualities.get(version.ordinal, {}).values():
                total = merge(total, counts)
            if total != LabelCounts():
                found.append(quality_of(version, version.version, total))
        return found

    def begin_counting(self, head: Model, metrics: Sequence[Metric]) -> None:
        """Count for metrics that were just declared only whom a running test exposes from now on."""
        if head.test_id is None or not metrics:
            return
        number, now = int(head.test_id), self.clock.matured_ms()

        def work(writer: Writer) -> None:
            for metric in metrics:
                writer.raise_floor(head.name, number, metric.name, now)

        self.events.write(work)

    def latencies(self, model: str, version: str) -> tuple[int, tuple[float, ...]]:
        """How many answers of a version are known, and quantiles of their time in seconds."""
        totals = self._host.statistics().of_version(model, version)
        found = [totals.latency(q) for q in THRESHOLD_QUANTILES]
        return totals.requests - totals.errors, tuple(seconds for seconds in found if seconds is not None)

    # --- acting ---------------------------------------------------------------------------------------------------

    def act(
        self,
        test: Test,
        action: str,
        author: Author,
        evidence: dict[str, Any],
        **change: Any,  # noqa: ANN401
    ) -> None:
        """Do what was decided: one change of the registry."""
        registry, model = self._registry, test.model
        writes: dict[str, Callable[[], Committed]] = {
            "advance": lambda: registry.advance(
                model, author, since=self.clock.now(), evidence=evidence, action="advance", **change
            ),
            "allocate": lambda: registry.advance(
                model, author, since=self.clock.now(), evidence=evidence, action="allocate", **change
            ),
            "calibrate": lambda: registry.calibrate(model, change["thresholds"], author),
            "finish": lambda: registry.promote(model, str(test.candidate), author, evidence),
            "roll_back": lambda: registry.stop_test(model, author, "rolled_back", evidence),
        }
        # Nobody is waited for: each worker notices before its next request, and a worker that hangs may not hold up what
        # has to be done about other tests.
        committed = writes[action]()
        if action in {"roll_back", "finish"}:
            self.keep(test)
        self.tell(test, action, author, evidence, committed.generation)

    def keep(self, test: Test) -> None:
        """Keep what the statistics of the workers know of a test that is about to end."""
        try:
            self.events.keep_latency(test.model, int(test.id), self._latency(test))
        except TurnoutError as error:  # the change itself matters more
            log("error", "latencies_not_kept", model=test.model, test=test.id, detail=error.detail)

    def tell(
        self, test: Test, action: str, author: Author, evidence: Mapping[str, Any], generation: int
    ) -> None:
        """Send a decision to the webhooks of the plan."""
        plan = test.plan
        if plan is None or not plan.webhooks or action == "calibrate":
            return
        hooks = self._hooks.get(plan.webhooks)
        if hooks is None:
            hooks = self._hooks[plan.webhooks] = Webhooks(plan.webhooks, self.webhook_secret())
            hooks.start()
        hooks.send(
            {
                "id": f"turnout_{generation}",
                "type": f"test.{action}",
                "time": utc_now().isoformat(),
                "model": test.model,
                "test": test.id,
                "baseline": test.baseline,
                "candidate": test.candidate,
                "step": test.step,
                "actor": author.actor,
                "reason": author.reason,
                "evidence": dict(evidence),
            }
        )

    def webhook_secret(self) -> bytes:
        """The key that signs webhooks."""
        given = self._host.settings.webhook_secret
        if not given:
            return hashlib.blake2b(self.signers.key, digest_size=32, person=b"webhooks").digest()
        said = "webhook_secret: expected 24 to 64 bytes in base64, with or without whsec_ before them"
        try:
            secret = base64.b64decode(given.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest(said) from error
        if not 24 <= len(secret) <= 64:
            raise InvalidRequest(f"{said}, found {len(secret)} bytes")
        return secret

    def keep_copies(
        self,
        shadows: Mapping[tuple[str, int], ShadowCounts],
        scores: Mapping[tuple[Place, int], float],
    ) -> None:
        """Write down what shadows did, and the champion's scores by entity and segment."""
        metrics = {place.model: self._registry.model(place.model).metrics for place, _ in scores}

        def work(writer: Writer) -> None:
            for (model, test), counts in shadows.items():
                writer.shadow(model, test, counts)
            for (place, segment), score in scores.items():
                unit = writer.find(place)
                show = None if unit is None else unit.show(segment)
                if unit is not None and show is not None:
                    writer.change(place, unit, metrics[place.model], lambda _, s=show, x=score: _score(s, x))

        self.events.write(work)

    def follow(self, record: ModelRecord, test: Test) -> None:
        """Note how the numbers of a running test go, now and then."""
        now, at = round(time.time() * 1000), (test.model, test.id)
        if now < self._due.get(at, 0):
            return
        trail = self.events.trail(test.model, int(test.id))
        self._due[at] = now + trail.every_ms
        if trail.due(now):
            results = results_of(self._facts(record, test))
            self.events.follow(test.model, int(test.id), point_of(results))

    def tidy(self) -> None:
        """Remove single outcomes and exposures that are older than the settings say; counts stay."""
        settings = self._host.settings
        now = utc_now()
        deadline = time.monotonic() + TIDY_SECONDS
        before = round((now - timedelta(days=settings.outcome_days)).timestamp() * 1000)
        while self.events.prune(before) and time.monotonic() < deadline:
            pass
        oldest = now - timedelta(days=settings.exposure_days)
        self.events.drop_marks(round(oldest.timestamp() * 1000))
        for head in self._registry.models():
            for test in self._registry.tests(head.name):
                if test.ended_at is not None and test.ended_at < oldest:
                    while self.events.forget_test(head.name, int(test.id)) and time.monotonic() < deadline:
                        pass

    # --- single entities --------------------------------------------------------------------------------------------

    def forget(self, entity_id: str | int, models: Sequence[str]) -> int:
        """Remove an entity's exposures and outcomes from every test of these models; how many records that were."""
        self.exposures.flush()
        entity = self.signers.entity(entity_id)
        self.events.mark_gone(entity, round(time.time() * 1000))
        gone = self.events.forget_outcomes(entity)
        for model in models:
            tests = [int(test.id) for test in self._registry.tests(model)]
            gone += self.events.forget(model, tests, entity)
        return gone


def counted(record: ModelRecord, test: Test) -> tuple[Metric, ...]:
    """The metrics that a test counts: those of its model, or as they were when it ended."""
    return record.model.metrics if test.status == "running" or test.metrics is None else test.metrics


def _score(show: Show, champion: float) -> None:
    show.champion = champion
