"""From counts to evidence: what each guardrail and each metric says of a candidate. Pure; no clock and no database."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from turnout.experiment.counts import ArmCounts, MetricCounts, SegmentCounts
from turnout.experiment.statistics.counts import (
    Segment,
    log_e_better,
    log_e_mean,
    log_e_worse,
    rate_interval,
)
from turnout.experiment.statistics.means import (
    Difference,
    Moments,
    difference,
    enough,
    log_e_one_sided,
)
from turnout.experiment.statistics.mismatch import log_bf_segments
from turnout.experiment.units import BAD, FAILED, INVALID, REPLACED, SLOW
from turnout.plans import Guardrail, Metric

EVENTS = {
    "errors": (FAILED,),
    "fallbacks": (REPLACED,),
    "invalid": (INVALID,),
    "latency": tuple(range(SLOW, BAD)),
}
"""The sorts of bad events that each built-in metric counts."""
DEFAULT_MARGIN = 0.1
MISMATCH_ALPHA = 0.01
STAGES = ("assigned", "answered", "joined")


class Pair(NamedTuple):
    """Two arms that are compared."""

    baseline: str
    candidate: str


class Guarded(NamedTuple):
    """What a guardrail says: the evidence of harm beyond its margin, and whether such harm is excluded."""

    guardrail: Guardrail
    log_e: float
    excluded: bool
    events: dict[str, int]
    entities: dict[str, int]
    estimate: float | None
    """The candidate's difference to the baseline, for declared metrics."""
    hard: str | None
    """Why the hard limit is broken."""


def moments(found: MetricCounts) -> Moments:
    """The sums as statistics take them; without scores unless every entity has one."""
    if found.known != found.n:
        return Moments(found.n, found.y, found.yy)
    return Moments(found.n, found.y, found.yy, found.x, found.xx, found.xy)


def bad_segments(segments: Iterable[SegmentCounts], pair: Pair, bad: int) -> list[Segment]:
    """Bad events of a sort, by segment."""
    found: list[Segment] = []
    for segment in segments:
        candidate, baseline = (segment.shares.get(arm, 0.0) for arm in (pair.candidate, pair.baseline))
        if candidate + baseline > 0:
            arms = (segment.arms.get(arm, ArmCounts()).events(bad) for arm in (pair.candidate, pair.baseline))
            found.append(Segment(candidate / (candidate + baseline), *arms))
    return found


def exposed(segments: Sequence[SegmentCounts], arm: str) -> int:
    """Entities, at least, and requests without entity that an arm had. An entity comes again in each segment."""
    found = [segment.arms[arm] for segment in segments if arm in segment.arms]
    return max((arm.assigned for arm in found), default=0) + sum(arm.anonymous for arm in found)


def compared(segments: Sequence[SegmentCounts], pair: Pair, metric: Metric) -> Difference | None:
    """The difference of a metric's means through all segments."""
    pairs = [
        tuple(
            moments(segment.arms.get(arm, ArmCounts()).metrics.get(metric.name, MetricCounts()))
            for arm in pair
        )
        for segment in segments
    ]
    reduced = variance_reduced(segments, pair, metric)
    return difference([(baseline, candidate) for baseline, candidate in pairs], cuped=reduced)


def variance_reduced(segments: Sequence[SegmentCounts], pair: Pair, metric: Metric) -> bool:
    """Whether the champion's score is known of every matured entity of both arms."""
    found = [
        segment.arms[arm].metrics[metric.name]
        for segment in segments
        for arm in pair
        if arm in segment.arms and metric.name in segment.arms[arm].metrics
    ]
    counted = [counts for counts in found if counts.n]
    return bool(counted) and all(counts.known == counts.n for counts in counted)


def has_enough(segments: Sequence[SegmentCounts], pair: Pair, metric: Metric) -> bool:
    """Whether both arms have enough to be looked at: 100 matured entities, and 20 with an event to be expected.

    To be expected at the rate of both arms together, so that an arm in which an event never, or always, happens can be
    told from the other one. Where values are 0 and 1 only, as many without an event are to be expected as well.
    """
    arms = [_together(segments, arm, metric) for arm in pair]
    n, events = sum(counts.n for counts in arms), sum(counts.events for counts in arms)
    if not n:
        return False
    yes_or_no = all(counts.y == counts.yy == counts.events for counts in arms)
    rate = min(events, n - events) / n if yes_or_no else events / n
    return all(enough(counts.n, math.floor(counts.n * rate)) for counts in arms)


def _together(segments: Sequence[SegmentCounts], arm: str, metric: Metric) -> MetricCounts:
    total = MetricCounts()
    for segment in segments:
        counts = segment.arms[arm].metrics.get(metric.name) if arm in segment.arms else None
        if counts is not None:
            total.n, total.events = total.n + counts.n, total.events + counts.events
            total.y, total.yy = total.y + counts.y, total.yy + counts.yy
    return total


def guard(
    segments: Sequence[SegmentCounts],
    pair: Pair,
    guardrail: Guardrail,
    metric: Metric | None,
    *,
    alpha: float,
    negligible: float,
    tightest_at: int,
    error_metric: bool = False,
) -> Guarded:
    """What a guardrail says of the candidate."""
    margin = guardrail.margin if guardrail.margin is not None else DEFAULT_MARGIN
    if metric is None:
        return _guard_events(segments, pair, guardrail, margin, alpha, negligible)
    found = compared(segments, pair, metric)
    entities = {arm: _matured(segments, arm, metric) for arm in pair}
    known = found is not None and math.isfinite(found.estimate) and math.isfinite(found.se)
    if found is None or not known or not has_enough(segments, pair, metric):
        estimate = None if found is None else found.estimate
        return Guarded(guardrail, 0.0, False, {}, entities, estimate, None)
    sign = better_sign(metric, error_metric=error_metric)
    tolerated = margin * abs(found.baseline)
    shift = sign * found.estimate + tolerated
    worse = log_e_one_sided(-shift, found.se, found.n, tightest_at, alpha)
    fine = log_e_one_sided(shift, found.se, found.n, tightest_at, alpha)
    return Guarded(guardrail, worse, fine >= math.log(1 / alpha), {}, entities, found.estimate, None)


def better_sign(metric: Metric, *, error_metric: bool = False) -> int:
    """1 where more is better, -1 where less is. The labels of a regressor are counted as errors."""
    if metric.kind == "label":
        return -1 if error_metric else 1
    return 1 if metric.direction == "up" else -1


def _guard_events(
    segments: Sequence[SegmentCounts],
    pair: Pair,
    guardrail: Guardrail,
    margin: float,
    alpha: float,
    negligible: float,
) -> Guarded:
    sorts = EVENTS[guardrail.metric]
    by_sort = [bad_segments(segments, pair, bad) for bad in sorts]
    log_e = log_e_mean([log_e_worse(found, margin) for found in by_sort])
    excluded = log_e_mean([log_e_better(found, margin) for found in by_sort]) >= math.log(1 / alpha)
    events = {
        arm: sum(segment.arms[arm].events(sorts[0]) for segment in segments if arm in segment.arms)
        for arm in pair
    }
    entities = {arm: exposed(segments, arm) for arm in pair}
    if len(sorts) == 1 and not excluded:
        total = entities[pair.candidate]
        excluded = rate_interval(min(events[pair.candidate], total), total, alpha)[1] < negligible
    hard = _hard(segments, pair.candidate, guardrail)
    return Guarded(guardrail, log_e, excluded and hard is None, events, entities, None, hard)


def _hard(segments: Sequence[SegmentCounts], candidate: str, guardrail: Guardrail) -> str | None:
    """Whether more of the candidate's requests are bad than may ever be, in the present segment or in all."""
    if guardrail.hard_limit is None or guardrail.metric == "latency":
        return None
    arms = [segment.arms[candidate] for segment in segments if candidate in segment.arms]
    for some in (arms[-1:], arms):
        requests = sum(sum(arm.requests) for arm in some)
        bad = sum(_bad_requests(arm, guardrail.metric) for arm in some)
        if requests >= guardrail.hard_requests and bad > guardrail.hard_limit * requests:
            return (
                f"{bad} of {requests} requests ({bad / requests:.1%}) are {guardrail.metric}, more than the hard limit of "
                f"{guardrail.hard_limit:.1%}"
            )
    return None


def _bad_requests(arm: ArmCounts, name: str) -> int:
    _, invalid, failed, replaced = arm.requests
    return {"errors": failed + replaced, "fallbacks": replaced, "invalid": invalid}[name]


def _matured(segments: Sequence[SegmentCounts], arm: str, metric: Metric) -> int:
    return sum(
        segment.arms[arm].metrics[metric.name].n
        for segment in segments
        if arm in segment.arms and metric.name in segment.arms[arm].metrics
    )


def mismatch(segments: Sequence[SegmentCounts], stage: str, metric: str | None = None) -> float:
    """The logarithm of the Bayes factor of another sample ratio than the configured one, at a stage."""
    found: list[tuple[list[float], list[int]]] = []
    for segment in segments:
        arms = [arm for arm, share in segment.shares.items() if share > 0]
        counts = [staged(segment.arms.get(arm, ArmCounts()), stage, metric) for arm in arms]
        if len(arms) > 1:
            found.append(([segment.shares[arm] for arm in arms], counts))
    return log_bf_segments(found)


def staged(arm: ArmCounts, stage: str, metric: str | None = None) -> int:
    """Entities of an arm that have come to a stage."""
    if stage == "assigned":
        return arm.assigned
    if stage == "answered":
        return arm.answered
    counts = arm.metrics.get(metric or "")
    return 0 if counts is None else counts.joined
