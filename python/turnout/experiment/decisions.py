"""Advance, hold or roll back: what a plan says at a look at the counts. Pure; the controller acts on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from turnout.domain import Test
from turnout.experiment.counts import SegmentCounts, ShadowCounts
from turnout.experiment.evidence import (
    EVENTS,
    MISMATCH_ALPHA,
    STAGES,
    Guarded,
    Pair,
    guard,
    mismatch,
    staged,
)
from turnout.plans import BUILT_IN, Guardrail, Metric, Plan, Step, guardrails_of

Action = Literal["advance", "finish", "hold", "roll_back"]
ENOUGH_FOR_THRESHOLDS = 1000


class Decision(NamedTuple):
    """What to do, why in a sentence, what is still waited for, and the numbers that it rests on."""

    action: Action
    reason: str
    waiting_for: tuple[str, ...]
    evidence: dict[str, Any]


def decide(
    test: Test,
    metrics: Sequence[Metric],
    segments: Sequence[SegmentCounts],
    now: float,
    errors_of: frozenset[str] = frozenset(),
    shadow: ShadowCounts | None = None,
) -> Decision:
    """What to do with a planned test.

    Args:
        test: the test, with its plan.
        metrics: what is declared of its model.
        segments: its counts.
        now: steady time in seconds, as `test.since`.
        errors_of: the label metrics whose values are errors, of regressors.
        shadow: what the candidate did as a shadow.
    """
    plan, baseline, candidate = test.plan, test.baseline, test.candidate
    if plan is None or baseline is None or candidate is None:
        return Decision("hold", "the test has no plan", (), {})
    pair = Pair(baseline, candidate)
    guarded = look(test, plan, metrics, segments, pair, errors_of)
    evidence = _evidence(test, plan, guarded, segments, now)
    broken = _broken(plan, guarded, len(test.weights) - 1) or _broken_shadow(test, plan, shadow)
    for arm in test.weights.keys() - {baseline, candidate}:  # an allocation may have more arms than two
        others = look(test, plan, metrics, segments, Pair(baseline, arm), errors_of)
        harm = None if broken else _broken(plan, others, len(test.weights) - 1)
        if harm is not None:
            broken, evidence = f"{arm}: {harm}", _evidence(test, plan, others, segments, now)
    if broken is not None:
        return Decision("roll_back", broken, (), evidence)
    if test.paused:
        return Decision("hold", "the test is paused", ("resume",), evidence)
    if plan.allocation is not None:
        return Decision("hold", "shares follow what is learnt", (), evidence)
    waiting = tuple(_waiting(test, plan, metrics, segments, pair, guarded, shadow, now, errors_of))
    if waiting:
        return Decision("hold", f"step {test.step + 1} waits for {waiting[0]}", waiting, evidence)
    return _forward(test, plan, candidate, evidence)


def _forward(test: Test, plan: Plan, candidate: str, evidence: dict[str, Any]) -> Decision:
    """What comes after a step that has all that it needs."""
    if test.step < len(plan.steps) - 1:
        share = plan.steps[test.step + 1].share
        reason = f"step {test.step + 1} is done without harm beyond the margins: {candidate} gets {share:.4g} of the traffic"
        return Decision("advance", reason, (), evidence)
    if plan.at_end == "hold":
        return Decision("hold", "the last step is done, and the plan says to hold there", (), evidence)
    reason = f"{candidate} has taken all {len(plan.steps)} steps without harm beyond the margins"
    return Decision("finish", reason, (), evidence)


def look(
    test: Test,
    plan: Plan,
    metrics: Sequence[Metric],
    segments: Sequence[SegmentCounts],
    pair: Pair,
    errors_of: frozenset[str],
) -> list[Guarded]:
    """What every guardrail says."""
    known = {metric.name: metric for metric in metrics}
    timed = segments if test.thresholds else []
    return [
        guard(
            timed if guardrail.metric == "latency" else segments,
            pair,
            guardrail,
            known.get(guardrail.metric),
            alpha=plan.alpha,
            negligible=plan.negligible,
            tightest_at=plan.tightest_at,
            error_metric=guardrail.metric in errors_of,
        )
        for guardrail in guardrails_of(plan, metrics)
    ]


def _broken(plan: Plan, guarded: Sequence[Guarded], arms: int) -> str | None:
    """Why to roll back, in a sentence: a hard limit, or max over guardrails, and arms, of pi E >= 1/alpha."""
    for found in guarded:
        if found.hard is not None:
            return f"hard limit: {found.hard}"
    if not guarded:
        return None
    worst = max(guarded, key=lambda found: -math.inf if math.isnan(found.log_e) else found.log_e)
    log_e = worst.log_e - math.log(len(guarded) * arms)
    if not log_e >= math.log(1 / plan.alpha):
        return None
    odds = _number(log_e)
    return (
        f"guardrail {worst.guardrail.metric}: worse than the baseline by more than {worst.guardrail.margin or 0:.1%}, with "
        f"evidence of {odds} to 1 where {1 / plan.alpha:.0f} to 1 is enough ({_counted(worst)})"
    )


def _broken_shadow(test: Test, plan: Plan, shadow: ShadowCounts | None) -> str | None:
    """Whether a shadow fails more often than a hard limit on errors allows."""
    errors = next((guardrail for guardrail in plan.guardrails if guardrail.metric == "errors"), None)
    if (
        shadow is None
        or errors is None
        or errors.hard_limit is None
        or not plan.steps
        or not plan.steps[test.step].shadow
    ):
        return None
    runs = shadow.pairs + shadow.failed
    if runs < errors.hard_requests or shadow.failed <= errors.hard_limit * runs:
        return None
    return f"the shadow failed on {shadow.failed} of {runs} requests, more than the hard limit of {errors.hard_limit:.1%}"


def _counted(found: Guarded) -> str:
    if found.events:
        return ", ".join(
            f"{arm}: {count} of {found.entities.get(arm, 0)}" for arm, count in found.events.items()
        )
    return f"difference {found.estimate:.4g}" if found.estimate is not None else ""


def _number(log_e: float) -> str:
    return f"{math.exp(log_e):,.0f}" if log_e < 20 else f"e^{log_e:.0f}"


def _waiting(
    test: Test,
    plan: Plan,
    metrics: Sequence[Metric],
    segments: Sequence[SegmentCounts],
    pair: Pair,
    guarded: Sequence[Guarded],
    shadow: ShadowCounts | None,
    now: float,
    errors_of: frozenset[str],
) -> list[str]:
    """What a step still needs, in words."""
    step = plan.steps[test.step]
    found = _unshadowed(plan, step, shadow) if step.shadow else _unseen(test, step, metrics, segments, pair)
    left = test.since + step.dwell_seconds - now
    if left > 0:
        found.append(
            f"{left:.0f} more seconds of its dwell time" if left >= 1 else "the end of its dwell time"
        )
    if not step.shadow:
        found += [_unsure(test, guard) for guard in guarded if not guard.excluded]
        found += _mismatched(segments, metrics)
        found += _worse(plan, metrics, segments, pair, errors_of)
    if step.approval and not test.approved:
        found.append("an approval")
    return found


def _unseen(
    test: Test, step: Step, metrics: Sequence[Metric], segments: Sequence[SegmentCounts], pair: Pair
) -> list[str]:
    """The entities that a step still has to see."""
    found: list[str] = []
    present = [segment for segment in segments if segment.revision == test.revision]
    for arm in pair:
        if not test.weights.get(arm):
            continue  # an arm without traffic has nobody to observe
        matured = min((_matured(segment, arm, metrics) for segment in present), default=0)
        if matured < step.min_entities:
            found.append(f"{step.min_entities - matured} more matured entities of {arm}")
    if not any(sum(arm.requests) for segment in present for arm in segment.arms.values()):
        found.append("traffic")
    return found


def _unshadowed(plan: Plan, step: Step, shadow: ShadowCounts | None) -> list[str]:
    """The requests that a shadow still has to run, and whether it does so without failing."""
    pairs, failed = (0, 0) if shadow is None else (shadow.pairs, shadow.failed)
    found: list[str] = []
    if pairs < max(step.min_entities, 1):
        found.append(f"{max(step.min_entities, 1) - pairs} more requests that the shadow has run as well")
    if failed > plan.negligible * (pairs + failed):
        found.append(f"failures of the shadow, {failed} so far, to be rarer than {plan.negligible:.4g}")
    return found


def _unsure(test: Test, found: Guarded) -> str:
    name = found.guardrail.metric
    if name == "latency" and not test.thresholds:
        return f"the latencies of {ENOUGH_FOR_THRESHOLDS} answers of the baseline"
    return f"harm beyond the margin of guardrail {name} to be excluded"


def _worse(
    plan: Plan,
    metrics: Sequence[Metric],
    segments: Sequence[SegmentCounts],
    pair: Pair,
    errors_of: frozenset[str],
) -> list[str]:
    """The primary metric, where the candidate is worse in it by more than its margin: no plan goes on over that."""
    primary = next((metric for metric in metrics if metric.role == "primary"), None)
    if primary is None:
        return []
    found = guard(
        segments,
        pair,
        Guardrail(primary.name, margin=primary.margin or 0.0),
        primary,
        alpha=plan.alpha,
        negligible=plan.negligible,
        tightest_at=plan.tightest_at,
        error_metric=primary.name in errors_of,
    )
    if found.log_e >= math.log(1 / plan.alpha):
        return [f"somebody to decide: the candidate is worse in {primary.name}, the primary metric"]
    return []


def _mismatched(segments: Sequence[SegmentCounts], metrics: Sequence[Metric]) -> list[str]:
    primary = next((metric.name for metric in metrics if metric.role == "primary"), None)
    for stage in STAGES:
        if stage == "joined" and primary is None:
            continue
        if mismatch(segments, stage, primary) >= math.log(1 / MISMATCH_ALPHA):
            return [f"the sample ratio to be as configured, which it is not among entities {stage}"]
    return []


def _matured(segment: SegmentCounts, arm: str, metrics: Sequence[Metric]) -> int:
    """Entities of an arm that every metric with a say has observed for its whole window."""
    counts = segment.arms.get(arm)
    if counts is None:
        return 0
    wanted = [metric for metric in metrics if metric.role != "secondary"]
    if not wanted:
        return counts.answered + counts.anonymous
    return min(counts.metrics[metric.name].n if metric.name in counts.metrics else 0 for metric in wanted)


def _evidence(
    test: Test, plan: Plan, guarded: Sequence[Guarded], segments: Sequence[SegmentCounts], now: float
) -> dict[str, Any]:
    """The numbers that a decision rests on, as plain data for the audit log."""
    return {
        "step": test.step,
        "revision": test.revision,
        "alpha": plan.alpha,
        "dwelt_seconds": round(now - test.since, 3),
        "guardrails": [
            {
                "metric": found.guardrail.metric,
                "margin": found.guardrail.margin,
                "log_e": round(found.log_e, 6) if math.isfinite(found.log_e) else None,
                "harm_excluded": found.excluded,
                "events": found.events,
                "entities": found.entities,
                "difference": found.estimate,
                "hard_limit_broken": found.hard is not None,
            }
            for found in guarded
        ],
        "segments": [
            {
                "revision": segment.revision,
                "shares": segment.shares,
                "assigned": {arm: staged(counts, "assigned") for arm, counts in segment.arms.items()},
                "requests": {arm: counts.requests for arm, counts in segment.arms.items()},
            }
            for segment in segments[-5:]
        ],
    }


def default_guardrails() -> tuple[Guardrail, ...]:
    """What results show of bad events where no plan says more: each built-in, with a margin of 10 %."""
    return tuple(Guardrail(name, margin=0.1) for name in BUILT_IN if name in EVENTS)
