"""What the numbers of a model say: two versions side by side, the split as configured and as seen, a look back."""

from __future__ import annotations

from datetime import datetime

from turnout import _core
from turnout.domain import (
    Assignment,
    BatchStatistics,
    Comparison,
    Deployment,
    Distribution,
    Duration,
    InferenceStatistics,
    LedgerRevision,
    Share,
    Test,
    Version,
)
from turnout.errors import NoActiveVersion
from turnout.registry import Registry
from turnout.router import Serving
from turnout.telemetry import Merged

SYNTHETIC_IDS = 1_000_000


def compare(a: Version, b: Version, merged: Merged) -> Comparison:
    """Offline metrics of b minus those of a, where both have them, and what both have answered so far."""
    accuracy = None if a.accuracy is None or b.accuracy is None else b.accuracy - a.accuracy
    return Comparison(
        model=a.model,
        a=a.version,
        b=b.version,
        accuracy_diff=accuracy,
        metrics_diff={
            name: b.metrics[name] - value for name, value in a.metrics.items() if name in b.metrics
        },
        live={version.version: merged.live(a.model, version.version) for version in (a, b)},
    )


def inference_statistics(model: str, version: str, merged: Merged) -> InferenceStatistics:
    """What a version has answered, as the statistics extension of the Open Inference Protocol tells it."""
    runs = merged.runs(model, version)
    answered, queued = merged.answered(model, version), merged.queued(model, version)
    return InferenceStatistics(
        model=model,
        version=version,
        last_inference=runs.last_ms,
        inference_count=runs.rows,
        execution_count=runs.runs,
        success=Duration(answered.requests - answered.errors, answered.latency_ns),
        fail=Duration(runs.failures, runs.failure_ns),
        queue=Duration(queued.requests, queued.latency_ns),
        compute_input=Duration(runs.runs, runs.input_ns),
        compute_infer=Duration(runs.runs, runs.infer_ns),
        compute_output=Duration(runs.runs, runs.output_ns),
        batch_stats=tuple(
            BatchStatistics(rows, Duration(count, before), Duration(count, inside), Duration(count, after))
            for rows, count, before, inside, after in runs.sizes
        ),
    )


def distribution(serving: Serving, merged: Merged) -> Distribution:
    """Configured shares beside those of a million synthetic ids ("0" to "999999") and of the requests so far.

    Requests are those that the present revision of the test has routed; without a test, all of the active version.
    """
    test, split = serving.record.test, serving.split
    requests = merged.requests(serving.name, serving.scope)
    if test is None or split is None:
        active = serving.record.model.active
        if active is None:
            raise NoActiveVersion(f"model {serving.name} has no active version and runs no test")
        configured, synthetic = {active: 1.0}, {active: SYNTHETIC_IDS}
    else:
        configured = test.weights
        synthetic = dict(zip(split.arms, split.synthetic_counts(SYNTHETIC_IDS), strict=True))
    total = sum(requests.get(label, 0) for label in configured)
    return Distribution(
        model=serving.name,
        test_id=test.id if test else None,
        test_revision=test.revision if test else None,
        synthetic_ids=SYNTHETIC_IDS,
        requests=total,
        shares=tuple(
            Share(
                version=label,
                configured=weight,
                synthetic=synthetic[label] / SYNTHETIC_IDS,
                requests=requests.get(label, 0),
                observed=requests.get(label, 0) / total if total else None,
            )
            for label, weight in sorted(configured.items())
        ),
    )


def assigned_at(registry: Registry, model: str, entity: str | int, at: datetime) -> Assignment:
    """Which version the split gave an entity at a time in the past; overrides of that time are in the audit log.

    Raises NoActiveVersion where neither a test ran nor a version was active then.
    """
    for test in registry.tests(model):
        if test.started_at <= at and (test.ended_at is None or at < test.ended_at):
            return _by_ledger(test, _standing(registry.ledgers(model, test.id), at), entity)
    for stay in registry.deployments(model):
        if _covers(stay, at):
            return Assignment(model=model, entity_id=str(entity), version=stay.version, reason="active")
    raise NoActiveVersion(f"model {model} had no active version at {at.isoformat()}")


def _standing(revisions: list[LedgerRevision], at: datetime) -> LedgerRevision:
    return max((r for r in revisions if r.created_at <= at), key=lambda r: r.revision, default=revisions[0])


def _covers(stay: Deployment, at: datetime) -> bool:
    return stay.since <= at and (stay.until is None or at < stay.until)


def _by_ledger(test: Test, revision: LedgerRevision, entity: str | int) -> Assignment:
    split = _core.Split(_core.Ledger.from_runs(revision.runs), test.salt)
    arm, slot = split.assign(entity)
    return Assignment(
        model=test.model,
        entity_id=str(entity),
        version=split.arms[arm],
        reason="test",
        slot=slot,
        test_id=test.id,
        test_revision=revision.revision,
        weights=revision.weights,
    )
