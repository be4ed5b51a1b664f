"""Means, differences through a ramp, intervals: the vectors, the duality with E, and against NumPy and SciPy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.experiment.statistics.means import (
    Moments,
    difference,
    enough,
    interval,
    lift_interval,
    log_e,
    log_e_one_sided,
    mean_interval,
    multiplier,
    p_value,
    ratio_of_sums,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "statistics.json").read_text(encoding="utf-8")
)
SIZES = st.floats(100, 1e7)
ALPHAS = st.sampled_from([0.001, 0.01, 0.05, 0.1])


def moments(y: Any, x: Any = None) -> Moments:
    y = np.asarray(y, dtype=float)
    x = np.zeros_like(y) if x is None else np.asarray(x, dtype=float)
    return Moments(len(y), y.sum(), (y * y).sum(), x.sum(), (x * x).sum(), (x * y).sum())


@pytest.mark.parametrize("case", VECTORS["multiplier"])
def test_vectors(case: dict[str, float]) -> None:
    found = multiplier(case["n"], case["tightest_at"], case["alpha"])
    assert found == pytest.approx(case["multiplier"], abs=5e-7)


def test_it_is_tightest_where_it_was_told_to_be() -> None:
    half = {at: multiplier(5000, at, 0.05) for at in range(500, 50_000, 100)}
    assert min(half, key=half.__getitem__) == pytest.approx(5000, rel=0.15)
    assert multiplier(0, 5000, 0.05) == math.inf
    assert multiplier(5000, 5000, 0.05, one_sided=True) < multiplier(5000, 5000, 0.05)


@given(SIZES, SIZES, ALPHAS)
def test_zero_is_at_the_edge_of_the_interval_exactly_where_e_is_one_over_alpha(
    n: float, tightest_at: float, alpha: float
) -> None:
    se = 0.3
    two = se * multiplier(n, tightest_at, alpha)
    one = se * multiplier(n, tightest_at, alpha, one_sided=True)
    assert log_e(two, se, n, tightest_at, alpha) == pytest.approx(-math.log(alpha))
    assert log_e(-two, se, n, tightest_at, alpha) == pytest.approx(-math.log(alpha))
    assert log_e_one_sided(one, se, n, tightest_at, alpha) == pytest.approx(-math.log(alpha))


def test_the_one_sided_e_is_its_formula() -> None:
    estimate, se, n, at, alpha = 0.02, 0.007, 20_000, 5_000, 0.05
    r2 = (-2 * math.log(2 * alpha) + math.log(-2 * math.log(2 * alpha) + 1)) / at
    s2 = n * (estimate / se) ** 2
    e = 2 * (math.exp(r2 * s2 / (2 * (n * r2 + 1))) - 1) / math.sqrt(n * r2 + 1)
    assert log_e_one_sided(estimate, se, n, at, alpha) == pytest.approx(math.log(e))


def test_what_is_no_evidence() -> None:
    assert log_e_one_sided(-0.1, 0.1, 1000, 1000, 0.05) == -math.inf
    assert log_e(0.1, 0.0, 1000, 1000, 0.05) == log_e_one_sided(0.1, 0.0, 1000, 1000, 0.05) == 0
    assert 0 < log_e_one_sided(1e6, 1.0, 1000, 1000, 0.05) < math.inf


def test_moments_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(3, 1, 500)
    y = 2 * x + rng.normal(0, 1, 500)
    found = moments(y[:200], x[:200]).plus(moments(y[200:], x[200:]))
    assert found.n == 500
    assert found.mean == pytest.approx(y.mean())
    assert found.variance == pytest.approx(y.var(ddof=1))
    assert found.variance_x == pytest.approx(x.var(ddof=1))
    assert found.covariance == pytest.approx(np.cov(x, y)[0, 1])
    assert all(math.isnan(each) for each in (Moments().mean, Moments(1, 2, 4).variance, Moments().covariance))


def test_the_difference_of_one_segment_is_the_usual_one() -> None:
    rng = np.random.default_rng(2)
    b, c = rng.normal(1, 1, 300), rng.normal(1.5, 2, 100)
    found = difference([(moments(b), moments(c))], cuped=False)
    assert found is not None
    assert found.estimate == pytest.approx(c.mean() - b.mean())
    assert found.se == pytest.approx(math.sqrt(b.var(ddof=1) / 300 + c.var(ddof=1) / 100))
    assert (found.baseline, found.candidate) == pytest.approx((b.mean(), c.mean()))
    assert (found.n, found.entities) == (pytest.approx(4 * 300 * 100 / 400), 400)


def test_at_equal_shares_n_is_the_number_of_entities() -> None:
    found = difference([(Moments(500, 50, 50), Moments(500, 60, 60))], cuped=False)
    assert found is not None
    assert found.n == found.entities == 1000


def test_a_ramp_with_a_drifting_base_rate_shows_no_phantom_effect() -> None:
    # Both arms convert at 10 %, then at 20 %; the candidate has 1 % and then 50 % of the traffic.
    segments = [
        (Moments(9900, 990, 990), Moments(100, 10, 10)),
        (Moments(5000, 1000, 1000), Moments(5000, 1000, 1000)),
    ]
    pooled = difference(
        [(segments[0][0].plus(segments[1][0]), segments[0][1].plus(segments[1][1]))], cuped=False
    )
    found = difference(segments, cuped=False)
    assert found is not None
    assert pooled is not None
    assert found.estimate == pytest.approx(0)
    assert pooled.estimate > 0.06
    assert found.baseline == pytest.approx((99 * 0.1 + 2500 * 0.2) / (99 + 2500))


def test_rare_events_are_not_pulled_to_zero() -> None:
    # In the first segment the candidate's first event has not come yet: inverse measured variances would be infinite.
    quiet = (Moments(1000, 10, 10), Moments(100, 0, 0))
    later = (Moments(1000, 10, 10), Moments(1000, 12, 12))
    found = difference([quiet, later], cuped=False)
    assert found is not None
    assert found.candidate == pytest.approx(0.012 * 500 / (500 + 1000 / 11))


def test_too_small_segments_are_left_out() -> None:
    whole = (Moments(100, 10, 10), Moments(100, 12, 12))
    assert difference([whole, (Moments(50, 5, 5), Moments(1, 1, 1))], cuped=False) == difference(
        [whole], cuped=False
    )
    assert difference([(Moments(50, 5, 5), Moments())], cuped=False) is None
    assert difference([], cuped=True) is None


def test_cuped_takes_off_what_was_foretold() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(5, 2, 4000)
    y = x + rng.normal(0, 0.5, 4000)
    y[2000:] += 0.2
    segments = [(moments(y[:2000], x[:2000]), moments(y[2000:], x[2000:]))]
    plain, adjusted = difference(segments, cuped=False), difference(segments, cuped=True)
    assert plain is not None
    assert adjusted is not None
    assert adjusted.se < plain.se / 3.5
    assert adjusted.estimate == pytest.approx(0.2, abs=4 * adjusted.se)
    assert adjusted.candidate - adjusted.baseline == pytest.approx(adjusted.estimate)
    theta = np.polyfit(
        np.r_[x[:2000] - x[:2000].mean(), x[2000:] - x[2000:].mean()],
        np.r_[y[:2000] - y[:2000].mean(), y[2000:] - y[2000:].mean()],
        1,
    )[0]
    assert adjusted.estimate == pytest.approx(plain.estimate - theta * (x[2000:].mean() - x[:2000].mean()))


def test_cuped_without_foreknowledge_is_the_plain_difference() -> None:
    segments = [(Moments(100, 10, 10), Moments(100, 12, 12))]
    assert difference(segments, cuped=True) == difference(segments, cuped=False)


def test_intervals_and_the_p_value_agree() -> None:
    found = difference([(Moments(5000, 500, 500), Moments(5000, 640, 640))], cuped=False)
    assert found is not None
    low, high = interval(found, 0.05, 5000)
    assert 0 < low < 0.028 < high
    assert p_value(found, 0.05, 5000) < 0.05
    lift_low, lift_high = lift_interval(found, 0.05, 5000)
    assert 0 < lift_low < 0.28 < lift_high
    same = difference([(Moments(5000, 500, 500), Moments(5000, 500, 500))], cuped=False)
    assert same is not None
    assert p_value(same, 0.05, 5000) == 1


def test_without_spread_nothing_is_known() -> None:
    found = difference([(Moments(5000, 0, 0), Moments(5000, 0, 0))], cuped=False)
    assert found is not None
    assert interval(found, 0.05, 5000) == lift_interval(found, 0.05, 5000) == (-math.inf, math.inf)
    assert p_value(found, 0.05, 5000) == 1
    assert mean_interval(Moments(1, 1, 1), 0.05, 5000) == (-math.inf, math.inf)


def test_the_interval_of_one_mean() -> None:
    low, high = mean_interval(Moments(10_000, 1000, 1000), 0.05, 5000)
    assert (low + high) / 2 == pytest.approx(0.1)
    assert high - low == pytest.approx(2 * math.sqrt(0.09 / 9999) * multiplier(10_000, 5000, 0.05))


def test_a_ratio_of_sums_varies_as_the_bootstrap_says() -> None:
    rng = np.random.default_rng(4)
    orders = rng.poisson(3, 2000) + 1
    seconds = orders * rng.lognormal(0, 0.5, 2000)
    ratio, se = ratio_of_sums(moments(seconds, orders))
    assert ratio == pytest.approx(seconds.sum() / orders.sum())
    picks = rng.integers(0, 2000, (2000, 2000))
    assert se == pytest.approx(np.std(seconds[picks].sum(1) / orders[picks].sum(1)), rel=0.07)
    assert all(map(math.isnan, ratio_of_sums(Moments(5, 1, 1))))


def test_when_there_is_enough() -> None:
    assert enough(100, 20)
    assert not enough(99, 20)
    assert not enough(100, 19)
