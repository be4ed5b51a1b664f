"""What to do with a test, and one plain sentence why."""

from __future__ import annotations

from collections.abc import Sequence

from turnout.experiment.results import BadEvents, MetricEffect, MetricResult, Recommendation, SampleRatio


def recommend(
    metrics: Sequence[MetricResult],
    events: Sequence[BadEvents],
    ratio: Sequence[SampleRatio],
) -> tuple[Recommendation, str]:
    """What to do with a test, and one plain sentence why."""
    for bad in events:
        if bad.worse:
            return "roll_back", (
                f"{bad.version} has more {bad.metric} than {bad.baseline}: {bad.events[bad.version]} of "
                f"{bad.requests[bad.version]} beside {bad.events[bad.baseline]} of {bad.requests[bad.baseline]}"
            )
    for stage in ratio:
        if stage.mismatch:
            return "keep_running", (
                f"the arms did not get the entities that they should have (stage: {stage.stage}), so that no comparison "
                "can be trusted: find out why first"
            )
    guards = [found for found in metrics if found.role == "guardrail"]
    for found in guards:
        for effect in found.effects:
            if _harmful(found, effect):
                return "roll_back", _said(found, effect, "worse by more than its margin")
    primary = next((found for found in metrics if found.role == "primary"), None)
    if primary is None:
        return "keep_running", (
            "no primary metric is declared, so that only harm can be found, and none has been"
        )
    recommendation, reason = _by_effect(primary)
    worse = [(found, effect) for found in guards for effect in found.effects if effect.effect == "worse"]
    if recommendation == "promote" and worse:
        found, effect = worse[0]
        return (
            "keep_running",
            f"{reason}; but {_said(found, effect, 'worse')}, which its margin may not allow",
        )
    return recommendation, reason


def _harmful(found: MetricResult, effect: MetricEffect) -> bool:
    """Whether even the best that the interval leaves open is worse than the margin of a guardrail allows."""
    baseline = next((arm.estimate for arm in found.arms if arm.version == effect.baseline), None)
    low, high = effect.interval
    if effect.effect != "worse" or baseline is None or low is None or high is None:
        return False
    tolerated = (found.margin or 0.0) * abs(baseline)
    return high < -tolerated if found.direction == "up" else low > tolerated


def _by_effect(primary: MetricResult) -> tuple[Recommendation, str]:
    effects = primary.effects
    better = [effect for effect in effects if effect.effect == "better"]
    if better:
        best = max(better, key=lambda effect: abs(effect.difference or 0.0))
        return "promote", _said(primary, best, "better")
    if effects and all(effect.effect == "worse" for effect in effects):
        return "roll_back", _said(primary, effects[0], "worse")
    if effects and all(effect.effect in {"no_difference", "worse"} for effect in effects):
        return "no_difference", _said(primary, effects[0], "not different by more than the margin")
    return "keep_running", (
        f"{primary.metric} is not decided yet: "
        + (_said(primary, effects[0], "undecided") if effects and effects[0].enough else _few(primary))
    )


def _few(primary: MetricResult) -> str:
    counts = ", ".join(f"{arm.version} has {arm.matured} and {arm.events}" for arm in primary.arms)
    of_kind = "of either kind" if primary.kind in {"binary", "label"} else "with an event"
    return (
        f"each arm needs 100 matured entities, and so many that 20 {of_kind} are to be expected; of entities and events "
        f"{counts}"
    )


def _said(primary: MetricResult, effect: MetricEffect, word: str) -> str:
    low, high = effect.interval
    bounds = f"{_short(low)} and {_short(high)}"
    return (
        f"{effect.version} is {word} in {primary.metric} than {effect.baseline}: difference "
        f"{_short(effect.difference)}, surely between {bounds}, over {effect.entities} matured entities"
    )


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4g}"
