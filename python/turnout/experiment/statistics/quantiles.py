"""Quantiles of latency from histograms, with intervals that stay valid at every look.

After Howard & Ramdas, Sequential estimation of quantiles with applications to A/B testing and best-arm identification,
Bernoulli 28(3) 2022 (arXiv 1906.09712): how many values lie below the true q-quantile is a random walk with mean q n, and
the beta-binomial mixture martingale says how far it may have gone from there at any time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

TIGHTEST_AT = 10_000
"""Values at which the interval is tightest, where the caller says nothing."""


def quantile(counts: Sequence[int], bounds: Sequence[float], q: float) -> float:
    """The q-quantile of a histogram, linear within its bucket; NaN when it is empty.

    Bucket i holds values in [bounds[i], bounds[i + 1]); of a last bucket without an end, its start is given.
    """
    sums = list(accumulate(counts))
    if not sums or not sums[-1]:
        return math.nan
    rank = q * sums[-1]
    place = min(bisect_left(sums, max(rank, 1e-12)), len(counts) - 1)
    low, high = bounds[place], bounds[place + 1]
    if math.isinf(high):
        return low
    return low + (high - low) * (rank - sums[place] + counts[place]) / counts[place]


def quantile_interval(
    counts: Sequence[int],
    bounds: Sequence[float],
    q: float,
    alpha: float,
    tightest_at: float = TIGHTEST_AT,
) -> tuple[float, float]:
    """Where the true q-quantile lies: in these bounds at every look, but for `alpha` of all sequences.

    `counts` of bucket i are values in [bounds[i], bounds[i + 1]); the interval ends at ends of buckets, outwards. The whole
    range where that is all that is known. ValueError where there is not one more bound than counts.
    Howard & Ramdas 2022, their interval for a fixed quantile with the beta-binomial mixture boundary; values need not be
    continuous, because a value counts as excluded only if every way to break its ties excludes it.
    """
    if len(bounds) != len(counts) + 1:
        raise ValueError(f"expected {len(counts) + 1} bounds of {len(counts)} buckets, got {len(bounds)}")
    sums = list(accumulate(counts))
    total = sums[-1] if sums else 0
    if total == 0:
        return bounds[0], bounds[-1]
    least, most = _accepted(total, q, alpha, tightest_at)
    low = bounds[bisect_left(sums, least)] if least > 0 else bounds[0]
    high = bounds[bisect_left(sums, most + 1) + 1] if most < total else bounds[-1]
    return low, high


def _accepted(total: int, q: float, alpha: float, tightest_at: float) -> tuple[int, int]:
    """The least and the greatest number of values, of `total`, that may lie below the true quantile."""
    twice = -2 * math.log(alpha)
    # The mixing Beta(q kappa, (1 - q) kappa) is centred on q; their rho = tightest_at q (1 - q) / (twice + ln(1 + twice)).
    kappa = max(1.0, tightest_at / (twice + math.log1p(twice)) - 1)
    one, other = q * kappa, (1 - q) * kappa
    start = math.lgamma(one + other) - math.lgamma(one) - math.lgamma(other) + math.log(alpha)

    def inside(k: int) -> bool:
        mixture = math.lgamma(k + one) + math.lgamma(total - k + other) - math.lgamma(total + one + other)
        return start + mixture - k * math.log(q) - (total - k) * math.log1p(-q) < 0

    centre = min(total, round(q * total))
    return _last(inside, centre, 0), _last(inside, centre, total)


def _last(inside: Callable[[int], bool], within: int, end: int) -> int:
    """The last number on the way from `within` to `end` that is inside."""
    if inside(end):
        return end
    while abs(end - within) > 1:
        middle = (within + end) // 2
        within, end = (middle, end) if inside(middle) else (within, middle)
    return within
