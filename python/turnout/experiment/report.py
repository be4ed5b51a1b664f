"""The results of a test, computed from its counts: metrics, bad events, sample ratio, latency, quality, recommendation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from turnout._core import Totals
from turnout.domain import Test, Version
from turnout.experiment.counts import (
    SCORE_BINS,
    ArmCounts,
    MetricCounts,
    ScoreCounts,
    SegmentCounts,
    TestCounts,
)
from turnout.experiment.decisions import Decision, decide, default_guardrails
from turnout.experiment.events import Point
from turnout.experiment.evidence import (
    EVENTS,
    MISMATCH_ALPHA,
    STAGES,
    Pair,
    bad_segments,
    better_sign,
    compared,
    exposed,
    guard,
    has_enough,
    mismatch,
    moments,
    staged,
    variance_reduced,
)
from turnout.experiment.recommend import recommend
from turnout.experiment.results import (
    ArmLatency,
    ArmScores,
    BadEvents,
    CalibrationBin,
    Effect,
    Interval,
    MetricArm,
    MetricEffect,
    MetricResult,
    Quantile,
    Results,
    SampleRatio,
    SegmentResult,
    ShadowResult,
    VersionQuality,
)
from turnout.experiment.statistics import quality
from turnout.experiment.statistics.counts import rate_ratio_interval
from turnout.experiment.statistics.means import (
    Moments,
    interval,
    lift_interval,
    mean_interval,
    p_value,
)
from turnout.experiment.statistics.power import entities_until
from turnout.experiment.statistics.quantiles import quantile_interval
from turnout.plans import Metric, guardrails_of

ALPHA = 0.05
NEGLIGIBLE = 0.005
TIGHTEST_AT = 5000
CROSSED_WARNING = 0.01
QUANTILES = (0.5, 0.95, 0.99)
BOUNDS_NS = (0, *((32 + step) << power for power in range(9, 32) for step in range(32)), 32 << 32)
"""Ends of the buckets of latencies, in nanoseconds, from 16 us to 137 s; `rust/recorder.rs` has the same."""


class Facts(NamedTuple):
    """All that the results of a test are computed from."""

    test: Test
    metrics: tuple[Metric, ...]
    versions: Mapping[str, Version]
    counts: TestCounts
    errors_of: frozenset[str]
    """The label metrics that count errors of regressors."""
    now: float
    """Steady time."""
    at: datetime
    trail: Sequence[Point] = ()


def results_of(facts: Facts, alpha: float = ALPHA) -> Results:
    """What the counts of a test say."""
    test, segments = facts.test, facts.counts.segments
    baseline = test.baseline or next(iter(test.weights))
    pairs = [Pair(baseline, arm) for arm in test.weights if arm != baseline]
    metrics = tuple(_metric(facts, metric, pairs, alpha) for metric in facts.metrics)
    events = tuple(found for pair in pairs for found in _bad_events(facts, pair))
    ratio = tuple(_sample_ratio(facts))
    tally = facts.counts.tally
    decision = _decision(facts) if test.plan else None
    recommendation, reason = recommend(metrics, events, ratio)
    if recommendation == "promote" and decision is not None and decision.waiting_for:
        recommendation, reason = "keep_running", f"{reason}; but {decision.reason}"
    if decision is not None and test.status == "running":
        if decision.action == "roll_back":
            recommendation, reason = "roll_back", decision.reason
        elif decision.action == "finish" and recommendation != "roll_back":
            recommendation, reason = "promote", decision.reason
    return Results(
        model=test.model,
        test_id=test.id,
        status=test.status,
        revision=test.revision,
        at=facts.at,
        started_at=test.started_at,
        ended_at=test.ended_at,
        baseline=baseline,
        arms=tuple(test.weights),
        shares=test.weights,
        alpha=alpha,
        recommendation=recommendation,
        reason=reason,
        metrics=metrics,
        bad_events=events,
        sample_ratio=ratio,
        scores=tuple(_scores(segments, list(test.weights), baseline)),
        latency=tuple(_latency(arm, facts.counts.latency.get(arm, []), alpha) for arm in test.weights),
        quality=tuple(_qualities(facts)),
        segments=tuple(_segment(segment) for segment in segments),
        outcomes=tally.outcomes,
        entities=tally.entities,
        crossed=tally.crossed / tally.entities if tally.entities else 0.0,
        crossed_warning=tally.entities > 0 and tally.crossed > CROSSED_WARNING * tally.entities,
        seconds_left=_seconds_left(facts, metrics),
        step=test.step if test.plan and test.plan.steps else None,
        steps=len(test.plan.steps) or None if test.plan else None,
        paused=test.paused,
        waiting_for=decision.waiting_for if decision else (),
        decision=decision.reason if decision else None,
        shadow=_shadow(facts),
        trail=tuple(facts.trail),
        counts=facts.counts,
    )


def _decision(facts: Facts) -> Decision:
    counts = facts.counts
    return decide(facts.test, facts.metrics, counts.segments, facts.now, facts.errors_of, counts.shadow)


# --- metrics --------------------------------------------------------------------------------------------------------


def _metric(facts: Facts, metric: Metric, pairs: Sequence[Pair], alpha: float) -> MetricResult:
    segments = facts.counts.segments
    error_metric = metric.name in facts.errors_of
    direction = "down" if better_sign(metric, error_metric=error_metric) < 0 else "up"
    return MetricResult(
        metric=metric.name,
        kind=metric.kind,
        direction=direction,
        role=metric.role,
        window_seconds=metric.window_seconds,
        margin=_margin(facts, metric),
        arms=tuple(_arm(segments, metric, arm, alpha) for arm in facts.test.weights),
        effects=tuple(_effect(facts, metric, pair, alpha) for pair in pairs),
    )


def _margin(facts: Facts, metric: Metric) -> float | None:
    """By how much the candidate may be worse: what the plan says, else what the metric does."""
    plan = facts.test.plan
    for guardrail in () if plan is None else guardrails_of(plan, facts.metrics):
        if guardrail.metric == metric.name:
            return guardrail.margin
    return metric.margin


def _arm(segments: Sequence[SegmentCounts], metric: Metric, version: str, alpha: float) -> MetricArm:
    found = [segment.arms[version] for segment in segments if version in segment.arms]
    counts = [arm.metrics.get(metric.name, MetricCounts()) for arm in found]
    total = Moments()
    for one in counts:
        total = total.plus(moments(one)._replace(x=0.0, xx=0.0, xy=0.0))
    return MetricArm(
        version=version,
        exposed=sum(arm.answered for arm in found),
        matured=total.n,
        events=sum(one.events for one in counts),
        estimate=_or_none(total.mean),
        interval=_bounds(mean_interval(total, alpha, TIGHTEST_AT)),
    )


def _effect(facts: Facts, metric: Metric, pair: Pair, alpha: float) -> MetricEffect:
    segments = facts.counts.segments
    tightest = TIGHTEST_AT if facts.test.plan is None else facts.test.plan.tightest_at
    found = compared(segments, pair, metric)
    enough = has_enough(segments, pair, metric)
    if found is None:
        return MetricEffect(
            pair.candidate,
            pair.baseline,
            None,
            (None, None),
            None,
            (None, None),
            1.0,
            False,
            "undecided",
            0,
            None,
            False,
        )
    low, high = interval(found, alpha, tightest)
    sign = better_sign(metric, error_metric=metric.name in facts.errors_of)
    effect: Effect = "undecided"
    if enough and (low > 0 or high < 0):
        effect = "better" if (low > 0) == (sign > 0) else "worse"
    elif enough and metric.margin is not None:
        tolerated = metric.margin * abs(found.baseline)
        if -tolerated < low and high < tolerated:
            effect = "no_difference"
    needed = entities_until(found, alpha, tightest)
    if needed is None and metric.margin is not None and found.baseline:
        needed = entities_until(found, alpha, tightest, -sign * metric.margin * abs(found.baseline))
    return MetricEffect(
        version=pair.candidate,
        baseline=pair.baseline,
        difference=_or_none(found.estimate),
        interval=_bounds((low, high)),
        lift=_or_none(found.candidate / found.baseline - 1) if found.baseline > 0 else None,
        lift_interval=_bounds(lift_interval(found, alpha, tightest)),
        p_value=p_value(found, alpha, tightest) if enough else 1.0,
        decided=effect != "undecided",
        effect=effect,
        entities=found.entities,
        entities_needed=needed,
        enough=enough,
        variance_reduced=variance_reduced(segments, pair, metric),
    )


def _seconds_left(facts: Facts, metrics: Sequence[MetricResult]) -> float | None:
    """How long until the primary metric is decided, at the traffic since the test began."""
    primary = next((found for found in metrics if found.role == "primary"), None)
    if primary is None or facts.test.status != "running":
        return None
    if all(effect.decided for effect in primary.effects):
        return 0.0
    needed = [effect.entities_needed for effect in primary.effects if not effect.decided]
    entities = sum(arm.matured for arm in primary.arms)
    age = (facts.at - facts.test.started_at).total_seconds() - primary.window_seconds
    if entities <= 0 or age <= 0 or not needed or any(one is None for one in needed):
        return None
    most = max(one for one in needed if one is not None)
    return max(0.0, most - entities) * age / entities


# --- bad events and the sample ratio ----------------------------------------------------------------------------------


def _bad_events(facts: Facts, pair: Pair) -> list[BadEvents]:
    segments, plan = facts.counts.segments, facts.test.plan
    said = {} if plan is None else {one.metric: one for one in plan.guardrails}
    alpha = ALPHA if plan is None else plan.alpha
    negligible = NEGLIGIBLE if plan is None else plan.negligible
    found: list[BadEvents] = []
    for default in default_guardrails():
        if default.metric == "latency" and not facts.test.thresholds:
            continue
        guardrail = said.get(default.metric, default)
        result = guard(
            segments, pair, guardrail, None, alpha=alpha, negligible=negligible, tightest_at=TIGHTEST_AT
        )
        sort = EVENTS[default.metric][-3 if default.metric == "latency" else 0]
        found.append(
            BadEvents(
                metric=default.metric,
                version=pair.candidate,
                baseline=pair.baseline,
                margin=guardrail.margin or 0.0,
                events={
                    arm: sum(s.arms[arm].events(sort) for s in segments if arm in s.arms) for arm in pair
                },
                requests={arm: exposed(segments, arm) for arm in pair},
                ratio=_bounds(rate_ratio_interval(bad_segments(segments, pair, sort), alpha)),
                log_e=result.log_e,
                worse=result.log_e >= math.log(1 / alpha) or result.hard is not None,
                harm_excluded=result.excluded,
            )
        )
    return found


def _sample_ratio(facts: Facts) -> list[SampleRatio]:
    segments = facts.counts.segments
    primary = next((metric.name for metric in facts.metrics if metric.role == "primary"), None)
    found: list[SampleRatio] = []
    for stage in STAGES:
        if stage == "joined" and primary is None:
            continue
        log_bf = mismatch(segments, stage, primary)
        counted = {
            arm: sum(staged(segment.arms.get(arm, ArmCounts()), stage, primary) for segment in segments)
            for arm in facts.test.weights
        }
        expected = {
            arm: sum(
                segment.shares.get(arm, 0.0)
                * sum(staged(other, stage, primary) for other in segment.arms.values())
                for segment in segments
            )
            for arm in facts.test.weights
        }
        found.append(
            SampleRatio(
                stage=stage if stage != "joined" else f"joined to {primary}",
                expected={arm: round(value, 1) for arm, value in expected.items()},
                counted=counted,
                log_bayes_factor=log_bf,
                mismatch=log_bf >= math.log(1 / MISMATCH_ALPHA),
            )
        )
    return found


# --- the rest ---------------------------------------------------------------------------------------------------------


def _scores(segments: Sequence[SegmentCounts], arms: Sequence[str], baseline: str) -> list[ArmScores]:
    totals = {
        arm: _added([segment.arms[arm].scores for segment in segments if arm in segment.arms]) for arm in arms
    }
    return [
        ArmScores(
            version=arm,
            entities=found.n,
            mean=found.total / found.n if found.n else None,
            deviation=math.sqrt(max(0.0, found.squares / found.n - (found.total / found.n) ** 2))
            if found.n
            else None,
            least=found.least if found.n else None,
            greatest=found.greatest if found.n else None,
            histogram=tuple(found.bins),
            stability=_stability(totals[baseline], found),
        )
        for arm, found in totals.items()
    ]


def _added(parts: Sequence[ScoreCounts]) -> ScoreCounts:
    found = [one for one in parts if one.n]
    return ScoreCounts(
        n=sum(one.n for one in found),
        total=sum(one.total for one in found),
        squares=sum(one.squares for one in found),
        least=min((one.least for one in found), default=0.0),
        greatest=max((one.greatest for one in found), default=0.0),
        bins=[sum(column) for column in zip(*(one.bins for one in found), strict=True)] or [0] * SCORE_BINS,
    )


def _stability(baseline: ScoreCounts, other: ScoreCounts) -> float | None:
    """The population stability index: the sum of (q - p) ln(q / p) over bins, half an entity added to each.

    Source: Yurdakul, Statistical properties of population stability index, 2018.
    """
    if not baseline.n or not other.n or sum(baseline.bins) < baseline.n or sum(other.bins) < other.n:
        return None
    p = [(count + 0.5) / (baseline.n + SCORE_BINS / 2) for count in baseline.bins]
    q = [(count + 0.5) / (other.n + SCORE_BINS / 2) for count in other.bins]
    return math.fsum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


def _latency(version: str, dumps: Sequence[bytes], alpha: float) -> ArmLatency:
    totals = Totals(list(dumps))
    seconds = [ns * 1e-9 for ns in BOUNDS_NS]
    cumulative = totals.latency_buckets(seconds)
    counts = [after - before for before, after in pairwise(cumulative)]
    quantiles: list[Quantile] = []
    for q in QUANTILES:
        low, high = quantile_interval(counts, seconds, q, alpha) if sum(counts) else (None, None)
        known = None if high == seconds[-1] else high  # the last bucket has no end
        quantiles.append(Quantile(q, totals.latency(q), (low, known)))
    return ArmLatency(version, totals.requests, tuple(quantiles))


def _qualities(facts: Facts) -> list[VersionQuality]:
    return [
        quality_of(facts.versions.get(version), version, counts)
        for version, counts in facts.counts.quality.items()
    ]


def quality_of(version: Version | None, label: str, counts: quality.LabelCounts) -> VersionQuality:
    """What labels say of a version, beside its offline metrics."""
    measures: dict[str, Callable[[quality.LabelCounts], float | None]] = {
        "accuracy": quality.accuracy,
        "log_loss": quality.log_loss,
        "brier": quality.brier,
        "auc": quality.auc,
        "calibration_error": quality.calibration_error,
        "mae": quality.mean_absolute_error,
        "rmse": quality.root_mean_squared_error,
    }
    live = {name: value for name, measure in measures.items() if (value := measure(counts)) is not None}
    offline = {} if version is None else dict(version.metrics)
    if version is not None and version.accuracy is not None:
        offline["accuracy"] = version.accuracy
    known = {_plain(name): value for name, value in offline.items()}
    return VersionQuality(
        version=label,
        labels=counts.labelled + counts.valued,
        live=live,
        offline=offline,
        gap={name: value - known[_plain(name)] for name, value in live.items() if _plain(name) in known},
        calibration=tuple(CalibrationBin(*one) for one in quality.calibration(counts)),
    )


def _plain(name: str) -> str:
    """Names of metrics as people write them: `ROC-AUC`, `logLoss`, `log_loss`."""
    short = "".join(c for c in name.lower() if c.isalnum())
    return {"rocauc": "auc", "brierscore": "brier", "meanabsoluteerror": "mae"}.get(short, short)


def _segment(segment: SegmentCounts) -> SegmentResult:
    arms = segment.arms
    return SegmentResult(
        revision=segment.revision,
        started_at=datetime.fromtimestamp(segment.started_ms / 1000, UTC),
        shares=segment.shares,
        assigned={arm: counts.assigned for arm, counts in arms.items()},
        answered={arm: counts.answered for arm, counts in arms.items()},
        failed={arm: counts.requests[2] + counts.requests[3] for arm, counts in arms.items()},
        requests={arm: sum(counts.requests) for arm, counts in arms.items()},
        dropped=segment.dropped,
    )


def _shadow(facts: Facts) -> ShadowResult | None:
    counts, candidate = facts.counts.shadow, facts.test.candidate
    if counts is None or candidate is None:
        return None
    pairs = counts.pairs
    return ShadowResult(
        version=candidate,
        counts=counts,
        agreement=counts.agreed / pairs if pairs else None,
        mean_difference=counts.difference / pairs if pairs else None,
        largest_difference=counts.largest,
        mean_seconds=counts.seconds / pairs if pairs else None,
        mean_shadow_seconds=counts.shadow_seconds / pairs if pairs else None,
    )


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bounds(found: tuple[float, float]) -> Interval:
    return _or_none(found[0]), _or_none(found[1])


def point_of(results: Results) -> Point:
    """What is kept of these results to show how they went."""
    effects: dict[str, dict[str, tuple[float, float, float]]] = {}
    for metric in results.metrics:
        for effect in metric.effects:
            low, high = effect.interval
            if effect.difference is not None and low is not None and high is not None:
                effects.setdefault(metric.metric, {})[effect.version] = (effect.difference, low, high)
    return Point(round(results.at.timestamp() * 1000), effects, results.shares)
