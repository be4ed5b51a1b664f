"""Sample ratio mismatch, against SciPy's beta function."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln, gammaln

from turnout.experiment.statistics.mismatch import log_bf, log_bf_segments


@given(st.floats(0.01, 0.99), st.integers(0, 100_000), st.integers(0, 100_000))
def test_two_arms_are_a_beta_binomial(share: float, first: int, second: int) -> None:
    one, other = 10_000 * share, 10_000 * (1 - share)
    expected = betaln(one + first, other + second) - betaln(one, other)
    expected -= first * math.log(share) + second * math.log1p(-share)
    assert log_bf([share, 1 - share], [first, second]) == pytest.approx(expected, abs=1e-5)


def test_three_arms_are_the_formula() -> None:
    shares, counts, kappa = (0.8, 0.15, 0.05), (8100, 1500, 400), 10_000
    expected = gammaln(kappa) - gammaln(kappa + sum(counts))
    for share, count in zip(shares, counts, strict=True):
        expected += gammaln(kappa * share + count) - gammaln(kappa * share) - count * math.log(share)
    assert log_bf(shares, counts) == pytest.approx(expected, abs=1e-6)
    assert log_bf([16, 3, 1], counts) == pytest.approx(expected, abs=1e-6)


def test_the_mean_of_the_bayes_factor_is_one_where_shares_are_kept() -> None:
    total = sum(
        math.comb(30, k) * 0.1**k * 0.9 ** (30 - k) * math.exp(log_bf([0.1, 0.9], [k, 30 - k], kappa=5))
        for k in range(31)
    )
    assert total == pytest.approx(1)


def test_it_alarms_at_a_mismatch_only() -> None:
    assert log_bf([0.5, 0.5], [50_000, 50_000]) < 0
    assert log_bf([0.5, 0.5], [50_800, 49_200]) > math.log(20)
    assert log_bf([0.5, 0.5], [0, 0]) == 0
    with pytest.raises(ValueError):
        log_bf([0.5, 0.5], [1])


def test_an_arm_without_a_share_is_left_out() -> None:
    assert log_bf([0.5, 0.5, 0.0], [700, 300, 5]) == log_bf([0.5, 0.5], [700, 300])


def test_segments_multiply() -> None:
    one, other = ([0.9, 0.1], [900, 120]), ([0.5, 0.5], [500, 540])
    assert log_bf_segments([one, other]) == pytest.approx(log_bf(*one) + log_bf(*other))
    assert log_bf_segments([]) == 0
