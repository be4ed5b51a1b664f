"""How long a test will take: the entities and days that a wanted effect needs, with the statistics that judge the test."""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec

from turnout.errors import InvalidRequest
from turnout.experiment.statistics.means import LEAST_ENTITIES
from turnout.experiment.statistics.power import Kind, entities_needed
from turnout.plans import Plan

SizeKind = Literal["binary", "mean", "count", "errors"]


class Size(msgspec.Struct, frozen=True):
    """How many matured entities a test needs in both arms, and in each. `days` is None where the traffic is not known."""

    entities: int
    baseline: int
    candidate: int
    days: float | None
    sentence: str


def size_test(
    kind: SizeKind,
    base: float,
    effect: float,
    *,
    deviation: float | None = None,
    share: float = 0.5,
    alpha: float = 0.05,
    power: float = 0.8,
    entities_per_day: float | None = None,
    window_days: float = 0.0,
    tightest_at: float = Plan().tightest_at,
) -> Size:
    """How many entities and days it takes to find an effect with probability `power`, however often one looks.

    `base` is what the baseline has, `effect` the relative lift: 0.02 for 2 % more. Kinds: `binary` (a rate), `mean` (needs
    the `deviation` of one entity), `count` (a mean whose deviation is the root of `base`, unless it is given), `errors`
    (bad events; one-sided, so that only more of them are found). `share` is the candidate's share of both arms,
    `entities_per_day` how many new ones come to both, `window_days` how long each is observed. `tightest_at` is that of the
    plan: a test that needs many more entities needs fewer where the plan says about as many.

    Raises InvalidRequest where these facts contradict each other.
    """
    _check(kind, base, effect, share, alpha, power, entities_per_day, window_days, tightest_at)
    if kind in {"binary", "errors"} and deviation is not None:
        raise InvalidRequest(f"deviation: that of {kind} follows from the base; leave it out")
    spread = math.sqrt(base) if kind == "count" and deviation is None else deviation
    kinds: dict[str, Kind] = {"binary": "binary", "errors": "count"}
    try:
        found = entities_needed(
            kinds.get(kind, "mean"),
            base,
            base * effect,
            share=share,
            alpha=alpha,
            power=power,
            deviation=spread,
            tightest_at=tightest_at,
        )
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"no test has this size: {error}") from error
    if found is None:
        raise InvalidRequest("no test of a size that can be had finds this effect: expected a larger one")
    # A verdict waits for so many entities of each arm, however large the effect is.
    least = 0 if kind == "errors" else LEAST_ENTITIES / min(share, 1 - share)
    entities = max(found, math.ceil(round(least, 6)))
    candidate = round(entities * share)
    days = None if entities_per_day is None else entities / entities_per_day + window_days
    return Size(
        entities=entities,
        baseline=entities - candidate,
        candidate=candidate,
        days=days,
        sentence=(
            f"{entities:,} entities, {entities - candidate:,} of the baseline and {candidate:,} of the candidate, find "
            f"{_change(kind, base, effect)} with a probability of {power:.4g}, at {alpha:.4g} false alarms a test, however "
            f"often one looks{_duration(days, window_days)}."
        ),
    )


def _change(kind: SizeKind, base: float, effect: float) -> str:
    what = {"binary": "a rate", "mean": "a mean", "count": "a count", "errors": "a rate of bad events"}[kind]
    return f"{what} of {base * (1 + effect):.4g} instead of {base:.4g} ({effect:+.4g} of it)"


def _duration(days: float | None, window_days: float) -> str:
    if days is None:
        return ""
    observed = f", the last {window_days:.4g} to observe them" if window_days else ""
    return f"; that takes {days:.1f} days{observed}"


def _check(
    kind: str,
    base: float,
    effect: float,
    share: float,
    alpha: float,
    power: float,
    entities_per_day: float | None,
    window_days: float,
    tightest_at: float,
) -> None:
    if kind not in get_args(SizeKind):
        raise InvalidRequest(f"kind: expected one of {', '.join(get_args(SizeKind))}, found {kind!r}")
    if not (math.isfinite(base) and base > 0):
        raise InvalidRequest(
            f"base: expected a number above 0, which the effect is relative to, found {base}"
        )
    if not math.isfinite(effect) or effect <= -1 or effect == 0:
        raise InvalidRequest(
            f"effect: expected a relative lift above -1 that is not 0, 0.02 for 2 % more, found {effect}"
        )
    if kind == "errors" and effect < 0:
        raise InvalidRequest(f"effect: only more errors are found, so it is above 0, found {effect}")
    for name, value in (("share", share), ("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise InvalidRequest(f"{name}: expected a number between 0 and 1, found {value}")
    if entities_per_day is not None and not (math.isfinite(entities_per_day) and entities_per_day > 0):
        raise InvalidRequest(f"entities_per_day: expected a number above 0, found {entities_per_day}")
    if not (math.isfinite(window_days) and window_days >= 0):
        raise InvalidRequest(f"window_days: expected a number of at least 0, found {window_days}")
    if not (math.isfinite(tightest_at) and tightest_at > 0):
        raise InvalidRequest(f"tightest_at: expected a number above 0, found {tightest_at}")
