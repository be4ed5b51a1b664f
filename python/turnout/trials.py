"""What people do with experiments: measure, look, hold, let go. A part of `Turnout`, which has the rest."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from turnout.changes import Changes
from turnout.domain import Test
from turnout.errors import InvalidMetric, InvalidRequest, TestNotFound
from turnout.experiment.desk import Desk
from turnout.experiment.exports import export_exposures, export_outcomes
from turnout.experiment.outcomes import Attributed, Outcome
from turnout.experiment.receipts import Receipt
from turnout.experiment.results import Results, VersionQuality
from turnout.plans import Metric, check_metrics
from turnout.records import Author
from turnout.router import check_entity


class Trials(Changes):
    """The verbs about experiments. Whoever inherits it has a desk."""

    desk: Desk

    def pause_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Keep a planned test at its step until it is resumed; guardrails go on to be watched."""
        return self._mark(model, "pause", actor, reason, revision, paused=True)

    def resume_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Let a paused test go on; the dwell time of its step begins anew."""
        since = self.desk.clock.now()
        return self._mark(model, "resume", actor, reason, revision, paused=False, since=since)

    def approve_step(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Say that a planned test may leave its step once all else allows it."""
        if revision is None:
            revision = self.registry.model(model).revision
        return self._mark(model, "approve", actor, reason, revision, approved=True)

    def skip_step(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Take a planned test to its next step now, whatever it still waits for."""
        author = self._author(actor, reason, revision)
        head = self.registry.model(model)
        test = self.registry.test(model)
        if test is None:
            raise TestNotFound(f"no test runs on model {model}")
        if author.revision is None:
            author = author._replace(revision=head.revision)
        step, since = test.step + 1, self.desk.clock.now()
        skipped = self._commit(
            lambda: self.registry.advance(model, author, step=step, since=since, action="skip"),
            model,
            list(test.weights),
        )
        self._tell(skipped, "skip", author)
        return skipped

    def _mark(
        self,
        model: str,
        action: str,
        actor: str | None,
        reason: str,
        revision: int | None,
        **fields: Any,  # noqa: ANN401
    ) -> Test:
        author = self._author(actor, reason, revision)
        marked = self._commit(lambda: self.registry.mark_test(model, action, author, **fields))
        self._tell(marked, action, author)
        return marked

    def _tell(self, test: Test, action: str, author: Author) -> None:
        self.desk.tell(test, action, author, {}, self.registry.generation())

    # --- what became of it --------------------------------------------------------------------------------------

    def declare_metrics(
        self,
        model: str,
        metrics: Sequence[Metric | Mapping[str, Any]],
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> tuple[Metric, ...]:
        """Say what is measured of a model; replaces what was said before.

        Raises InvalidMetric; Conflict for a change to what a running test counts.
        """
        author = self._author(actor, reason, revision)
        if isinstance(metrics, Mapping | str):
            raise InvalidMetric(f"expected a list of metrics, found {type(metrics).__name__}")
        declared = check_metrics(metrics)
        before = self.registry.model(model)
        found = self._commit(lambda: self.registry.declare_metrics(model, declared, author))
        known = {metric.name for metric in before.metrics}
        self.desk.begin_counting(before, [metric for metric in declared if metric.name not in known])
        return found

    def declared_metrics(self, model: str) -> tuple[Metric, ...]:
        """What is measured of a model."""
        return self.registry.model(model).metrics

    def record_outcomes(self, outcomes: Iterable[Outcome | Mapping[str, Any]]) -> list[Attributed]:
        """Store what was observed, at most 10,000 at once; durable when this returns. What became of each of them.

        Bad ones do not hold up the others: they are `invalid`, with a `detail` that says what would be accepted.
        """
        if isinstance(outcomes, Mapping | str | bytes | Outcome):
            raise InvalidRequest(f"expected a list of outcomes, found {type(outcomes).__name__}")
        return self.desk.outcomes.record(list(outcomes))

    def results(self, model: str, test_id: str | None = None, *, alpha: float = 0.05) -> Results:
        """What a test has shown, what is recommended, and why: the running one, else the last, or that of an id.

        `alpha` is the rate of false alarms of each interval and p-value. Raises TestNotFound.
        """
        return self.desk.results(model, test_id, alpha=alpha)

    def live_quality(self, model: str) -> list[VersionQuality]:
        """What labels say of each version, in tests and outside of them, beside its offline metrics."""
        return self.desk.quality(model)

    def read_receipt(self, model: str, prediction_id: str) -> Receipt:
        """What a prediction id says of its prediction. Raises InvalidReceipt for one that was not given here."""
        return self.desk.signers.read(self.registry.model(model).name, str(prediction_id))

    def forget_entity(self, entity_id: str | int) -> int:
        """Remove the exposures and outcomes of one entity everywhere; how many records that were. Counts stay."""
        names = [head.name for head in self.registry.models()]
        return self.desk.forget(check_entity(entity_id), names)

    def export_exposures(self, model: str, path: str | Path) -> int:
        """Write the exposures of a model's tests to a Parquet file; how many these were. Entities are hashes."""
        self.desk.exposures.flush()
        tests = [int(test.id) for test in self.registry.tests(model)]
        return export_exposures(self.desk.events, model, tests, Path(path))

    def export_outcomes(self, model: str, path: str | Path) -> int:
        """Write the outcomes of a model that are kept to a Parquet file; how many these were."""
        return export_outcomes(self.desk.events, self.registry.model(model).name, Path(path))

    def webhook_secret(self) -> str:
        """What receivers check the signatures of webhooks with."""
        return "whsec_" + base64.b64encode(self.desk.webhook_secret()).decode()
