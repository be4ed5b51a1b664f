"""How long a test will take: the size at which the sequential tests here find an effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np

from turnout.experiment.statistics.counts import log_e_many
from turnout.experiment.statistics.means import Difference, multiplier

Kind = Literal["binary", "mean", "count"]

MOST = 10**13
"""Where the search gives up."""


def entities_needed(
    kind: Kind,
    base: float,
    effect: float,
    *,
    share: float,
    alpha: float,
    power: float,
    deviation: float | None = None,
    tightest_at: float | None = None,
) -> int | None:
    """Entities in both arms until the effect is found with probability `power`; None where it never is.

    `effect` is the candidate's mean or rate less `base`, in the same unit; `share` is the candidate's share of both arms.
    "binary" and "mean" (which needs `deviation`, of one entity) ask for the two-sided interval of a difference to exclude
    0, tightest at `tightest_at`, by default where it is needed; "count" asks for an alarm of the one-sided E of bad
    events, to within some 15 %, for a candidate that is worse. ValueError where these facts contradict each other.
    """
    _check(kind, base, effect, share, deviation)
    if effect == 0 or (kind == "count" and effect < 0):
        return None
    if kind == "count":
        return _first(lambda n: _alarm_by(n, base, effect, share, alpha) >= power)
    z = NormalDist().inv_cdf(power)
    changed = base + effect
    before = base * (1 - base) if kind == "binary" else (deviation or 0.0) ** 2
    after = changed * (1 - changed) if kind == "binary" else before
    variance = after / share + before / (1 - share)
    balance = 4 * share * (1 - share)

    def found(n: float) -> bool:
        tightest = n * balance if tightest_at is None else tightest_at
        return abs(effect) >= math.sqrt(variance / n) * (multiplier(n * balance, tightest, alpha) + z)

    return _first(found)


def _check(kind: Kind, base: float, effect: float, share: float, deviation: float | None) -> None:
    if not 0 < share < 1:
        raise ValueError(f"expected a share between 0 and 1, got {share}")
    if kind == "binary" and not (0 <= base <= 1 and 0 <= base + effect <= 1):
        raise ValueError(f"expected rates in 0..1, got {base} and {base + effect}")
    if kind == "mean" and not (deviation and deviation > 0):
        raise ValueError("expected the deviation of one entity, which the size of a test of means depends on")
    if kind == "count" and not (base > 0 and base + effect > 0):
        raise ValueError(f"expected rates of bad events above 0, got {base} and {base + effect}")


def _alarm_by(n: float, base: float, effect: float, share: float, alpha: float) -> float:
    """The probability of an alarm at one of the looks up to n entities.

    Log E is taken for a Brownian motion that gains the relative entropy of the events' arms, with twice that for a
    variance, and has to reach ln(1/alpha) and what the mixture costs (the first passage of an inverse Gaussian).
    """
    worse = share * (base + effect)
    events, part = n * (worse + (1 - share) * base), worse / (worse + (1 - share) * base)
    gain = events * (part * math.log(part / share) + (1 - part) * math.log((1 - part) / (1 - share)))
    state = [np.array([value]) for value in (share, events * part, events * (1 - part))]
    height = gain - float(log_e_many(state[0], state[1], state[2])) - math.log(alpha)
    deviation, normal = math.sqrt(2 * gain), NormalDist().cdf
    before = normal(-(height + gain) / deviation)
    return normal((gain - height) / deviation) + (math.exp(height + math.log(before)) if before > 0 else 0.0)


def _first(found: Callable[[float], bool]) -> int | None:
    """The least whole number from which on `found` holds, which it does once and for all."""
    high = 2
    while not found(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def entities_until(found: Difference, alpha: float, tightest_at: float, target: float = 0.0) -> int | None:
    """Entities in both arms at which the interval would leave out `target`, 0 or a margin, if all goes on as it is.

    The present estimate and standard error an entity are taken for true. Not less than are there now; None where it never
    does, or where nothing is known yet.
    """
    distance = abs(found.estimate - target)
    if distance == 0 or found.se <= 0 or found.entities <= 0:
        return None

    def excluded(n: float) -> bool:
        growth = n / found.entities
        return distance > found.se / math.sqrt(growth) * multiplier(found.n * growth, tightest_at, alpha)

    return found.entities if excluded(found.entities) else _first(excluded)
