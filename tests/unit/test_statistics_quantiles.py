"""Quantiles from histograms, with intervals that hold at every look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln

from turnout.experiment.statistics.quantiles import quantile, quantile_interval

BOUNDS = [*range(101)]


def test_a_quantile_is_linear_within_its_bucket() -> None:
    assert quantile([10, 10], [0, 1, 3], 0.5) == 1
    assert quantile([10, 10], [0, 1, 3], 0.75) == 2
    assert quantile([10, 10], [0, 1, 3], 1) == 3
    assert quantile([0, 10], [0, 1, 3], 0.0) == pytest.approx(1)
    assert quantile([10, 10], [0, 1, math.inf], 0.99) == 1
    assert math.isnan(quantile([0, 0], [0, 1, 3], 0.5))


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_the_interval_narrows_around_the_quantile(q: float) -> None:
    widths = []
    for each in (1, 100, 10_000):
        low, high = quantile_interval([each] * 100, BOUNDS, q, 0.05)
        assert low <= 100 * q <= high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] <= 2


def test_few_values_say_little() -> None:
    assert quantile_interval([0] * 100, BOUNDS, 0.5, 0.05) == (0, 100)
    assert quantile_interval([1] * 100, BOUNDS, 0.99, 0.05)[1] == 100
    assert quantile_interval([3, 2], [0, 1, math.inf], 0.5, 0.05) == (0, math.inf)
    with pytest.raises(ValueError, match="expected 3 bounds"):
        quantile_interval([3, 2], [0, 1], 0.5, 0.05)


def test_it_ends_where_the_martingale_reaches_one_over_alpha() -> None:
    n, q, alpha, at = 1000, 0.9, 0.05, 5000
    low, high = quantile_interval([1] * n, [*range(n + 1)], q, alpha, at)
    twice = -2 * math.log(alpha)
    kappa = at / (twice + math.log(1 + twice)) - 1

    def log_martingale(k: float) -> float:
        mixed = betaln(q * kappa + k, (1 - q) * kappa + n - k) - betaln(q * kappa, (1 - q) * kappa)
        return float(mixed - k * math.log(q) - (n - k) * math.log(1 - q))

    # The quantile is in the bucket with the `least`-th value or beyond, and not beyond that with the one after `most`.
    least, most = low + 1, high - 1
    assert log_martingale(least) < math.log(20) <= log_martingale(least - 1)
    assert log_martingale(most) < math.log(20) <= log_martingale(most + 1)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_interval_holds_the_quantile_of_the_sample(counts: list[int], q: float) -> None:
    bounds = [*range(len(counts) + 1)]
    low, high = quantile_interval(counts, bounds, q, 0.05)
    assert bounds[0] <= low < high <= bounds[-1]
    if sum(counts):
        assert low <= quantile(counts, bounds, q) <= high


def test_coverage_at_every_look() -> None:
    rng = np.random.default_rng(5)
    misses = 0
    for _ in range(100):
        values = rng.exponential(20, 3000).clip(0, 99.9)
        looks = [np.histogram(values[:n], BOUNDS)[0] for n in range(100, 3001, 100)]
        found = [quantile_interval(look.tolist(), BOUNDS, 0.5, 0.1, 1000) for look in looks]
        misses += any(not low <= 20 * math.log(2) <= high for low, high in found)
    assert misses <= 16  # 10, and two deviations
