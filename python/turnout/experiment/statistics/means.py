"""Means of entities' values, and differences of means between two arms: conversion, revenue, live accuracy.

Asymptotic confidence sequences after Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, Time-uniform central limit theory and
asymptotic confidence sequences, Annals of Statistics 2024 (arXiv 2103.06476). They hold at every look once there is
`enough` to look at. An estimate without spread (se 0) counts as no knowledge: its interval is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Interval = tuple[float, float]

EVERYTHING: Interval = (-math.inf, math.inf)
LEAST_ENTITIES, LEAST_EVENTS = 100, 20


class Moments(NamedTuple):
    """Sums over entities: of the value y, of what was known before x, their squares and their product."""

    n: int = 0
    y: float = 0.0
    yy: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    @property
    def mean(self) -> float:
        """The mean of y; NaN without entities."""
        return self.y / self.n if self.n else math.nan

    @property
    def variance(self) -> float:
        """The unbiased variance of y; NaN below two entities."""
        return max(0.0, self.yy - self.y * self.y / self.n) / (self.n - 1) if self.n > 1 else math.nan

    @property
    def variance_x(self) -> float:
        """The unbiased variance of x; NaN below two entities."""
        return max(0.0, self.xx - self.x * self.x / self.n) / (self.n - 1) if self.n > 1 else math.nan

    @property
    def covariance(self) -> float:
        """The unbiased covariance of x and y; NaN below two entities."""
        return (self.xy - self.x * self.y / self.n) / (self.n - 1) if self.n > 1 else math.nan

    def plus(self, other: Moments) -> Moments:
        """The sums over the entities of both."""
        return Moments(
            n=self.n + other.n,
            y=self.y + other.y,
            yy=self.yy + other.yy,
            x=self.x + other.x,
            xx=self.xx + other.xx,
            xy=self.xy + other.xy,
        )


class Difference(NamedTuple):
    """Candidate less baseline. `baseline` and `candidate` are means over the same mix of segments.

    `n` is the size of a test at equal shares that would know as much: 4 n0 n1 / (n0 + n1), summed over segments; at equal
    shares it is `entities`, the number in both arms. `baseline_se` is the standard error of `baseline`.
    """

    estimate: float
    se: float
    n: float
    baseline: float
    candidate: float
    baseline_se: float
    entities: int


def enough(n: int, events: int) -> bool:
    """Whether one arm has enough to be looked at: 100 entities, and 20 with an event (a value that is not 0)."""
    return n >= LEAST_ENTITIES and events >= LEAST_EVENTS


def multiplier(n: float, tightest_at: float, alpha: float, *, one_sided: bool = False) -> float:
    """How many standard errors wide the half of the interval is, at `n` entities.

    `tightest_at` is the n at which it should be tightest; infinite where n is not positive. The Gaussian mixture sequence
    of Waudby-Smith et al. 2024 with their choice of its parameter, and their one-sided sequence.
    """
    if n <= 0:
        return math.inf
    scaled = n * _rate(tightest_at, 2 * alpha if one_sided else alpha)
    root = math.sqrt(scaled + 1)
    logarithm = math.log1p(root / (2 * alpha)) if one_sided else math.log(root / alpha)
    return math.sqrt(2 * (scaled + 1) / scaled * logarithm)


def _rate(tightest_at: float, alpha: float) -> float:
    """The r^2 that makes the interval tightest there."""
    twice = -2 * math.log(alpha)
    return (twice + math.log1p(twice)) / tightest_at


def log_e(estimate: float, se: float, n: float, tightest_at: float, alpha: float) -> float:
    """Evidence that a mean, or a difference, is not 0: log E in nats; `alpha` and `tightest_at` tune it only.

    E >= 1/alpha exactly where 0 is outside of the interval.
    """
    if se <= 0 or n <= 0:
        return 0.0
    scaled = n * _rate(tightest_at, alpha)
    return scaled * (estimate / se) ** 2 / (2 * (scaled + 1)) - math.log1p(scaled) / 2


def log_e_one_sided(estimate: float, se: float, n: float, tightest_at: float, alpha: float) -> float:
    """Evidence that a mean, or a difference, is greater than 0: log E in nats, -inf where it is not.

    E >= 1/alpha exactly where estimate - se * multiplier(..., one_sided=True) is greater than 0.
    """
    if se <= 0 or n <= 0:
        return 0.0
    if estimate <= 0:
        return -math.inf
    scaled = n * _rate(tightest_at, 2 * alpha)
    power = scaled * (estimate / se) ** 2 / (2 * (scaled + 1))
    # The logarithm of exp(power) - 1, for powers that exp cannot take as well.
    return math.log(2) + power + math.log(-math.expm1(-power)) - math.log1p(scaled) / 2


def difference(segments: Sequence[tuple[Moments, Moments]], *, cuped: bool = False) -> Difference | None:
    """The difference of means through a ramp, from pairs of (baseline, candidate), one a segment; None without any.

    Segments are compared within themselves and then weighted by n0 n1 / (n0 + n1): the inverse of the variance that both
    arms would have if their spread were the same. The weights must not look at the outcomes. Weights from the measured
    variances would: where the rare event happens not to have come yet, the variance is small too, and that segment would
    count most, which pulls rates to 0. Segments with less than 2 entities in an arm are left out.

    `cuped` takes off what x foretold, with theta = cov(y, x) / var(x) pooled within arms and segments (Deng, Xu, Kohavi &
    Walker, WSDM 2013); x has to be known for every entity of a segment, and segments without any x stay as they are.
    """
    pairs = [(b, c) for b, c in segments if min(b.n, c.n) >= 2]
    if not pairs:
        return None
    theta = _theta(pairs) if cuped else 0.0
    whole = math.fsum(_weight(b, c) for b, c in pairs)
    baseline = candidate = variance = baseline_variance = 0.0
    for b, c in pairs:
        share, slope = _weight(b, c) / whole, theta if b.xx > 0 and c.xx > 0 else 0.0
        middle = (b.x + c.x) / (b.n + c.n)
        baseline += share * (b.mean - slope * (b.x / b.n - middle))
        candidate += share * (c.mean - slope * (c.x / c.n - middle))
        spread = share * share * _adjusted_variance(b, slope) / b.n
        baseline_variance += spread
        variance += spread + share * share * _adjusted_variance(c, slope) / c.n
    return Difference(
        estimate=candidate - baseline,
        se=math.sqrt(variance),
        n=4 * whole,
        baseline=baseline,
        candidate=candidate,
        baseline_se=math.sqrt(baseline_variance),
        entities=sum(b.n + c.n for b, c in pairs),
    )


def _weight(baseline: Moments, candidate: Moments) -> float:
    return baseline.n * candidate.n / (baseline.n + candidate.n)


def _theta(pairs: Iterable[tuple[Moments, Moments]]) -> float:
    arms = [arm for pair in pairs if pair[0].xx > 0 and pair[1].xx > 0 for arm in pair]
    spread = math.fsum((arm.n - 1) * arm.variance_x for arm in arms)
    return math.fsum((arm.n - 1) * arm.covariance for arm in arms) / spread if spread > 0 else 0.0


def _adjusted_variance(arm: Moments, theta: float) -> float:
    return max(0.0, arm.variance - 2 * theta * arm.covariance + theta * theta * arm.variance_x)


def interval(found: Difference, alpha: float, tightest_at: float) -> Interval:
    """Where the true difference lies: in these bounds at every look, but for `alpha` of all tests."""
    return _around(found.estimate, found.se, found.n, alpha, tightest_at)


def p_value(found: Difference, alpha: float, tightest_at: float) -> float:
    """The anytime-valid p-value of no difference: min(1, 1/E)."""
    return math.exp(min(0.0, -log_e(found.estimate, found.se, found.n, tightest_at, alpha)))


def lift_interval(found: Difference, alpha: float, tightest_at: float) -> Interval:
    """Where candidate / baseline - 1 lies, at every look, by the delta method of a ratio; everywhere for baselines <= 0."""
    if found.baseline <= 0:
        return EVERYTHING
    ratio = found.candidate / found.baseline
    candidate_variance = max(0.0, found.se**2 - found.baseline_se**2)
    se = math.sqrt(candidate_variance + (ratio * found.baseline_se) ** 2) / found.baseline
    return _around(ratio - 1, se, found.n, alpha, tightest_at)


def mean_interval(moments: Moments, alpha: float, tightest_at: float) -> Interval:
    """Where the mean of one arm lies, at every look; everywhere below two entities."""
    if moments.n < 2:
        return EVERYTHING
    return _around(moments.mean, math.sqrt(moments.variance / moments.n), moments.n, alpha, tightest_at)


def _around(estimate: float, se: float, n: float, alpha: float, tightest_at: float) -> Interval:
    if se <= 0:
        return EVERYTHING
    half = se * multiplier(n, tightest_at, alpha)
    return estimate - half, estimate + half


def ratio_of_sums(moments: Moments) -> tuple[float, float]:
    """The ratio of the sum of y to the sum of x and its standard error, by the delta method over entities.

    Such as seconds an order, or revenue a session, where an entity has many of them. NaN below two entities or where
    the sum of x is 0. (Deng, Knoblich & Lu, Applying the delta method in metric analytics, KDD 2018.)
    """
    if moments.n < 2 or moments.x == 0:
        return math.nan, math.nan
    ratio = moments.y / moments.x
    return ratio, math.sqrt(_adjusted_variance(moments, ratio) / moments.n) / abs(moments.x / moments.n)
