"""Evidence from counts of bad events: the vectors, what excludes what, and intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln, logsumexp

from turnout.experiment.statistics.counts import (
    DRIFTS,
    Segment,
    log_e_better,
    log_e_many,
    log_e_mean,
    log_e_weighted_max,
    log_e_worse,
    rate_interval,
    rate_ratio_interval,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "statistics.json").read_text(encoding="utf-8")
)
SHARES = st.floats(0.01, 0.99)
EVENTS = st.integers(0, 10_000)
SEGMENTS = st.lists(st.builds(Segment, SHARES, EVENTS, EVENTS), min_size=1, max_size=6)


def by_hand(segments: list[Segment], tolerance: float, sign: int) -> float:
    """The formula, term by term."""
    drifts = [0.05 * j for j in range(1, 61)]
    weights = [math.exp(-d / 0.7) for d in drifts]
    terms = []
    for d, weight in zip(drifts, weights, strict=True):
        term = math.log(weight / sum(weights))
        for rho, candidate, baseline in segments:
            shifted = rho * (1 + tolerance) / (1 - rho + rho * (1 + tolerance))
            normal = math.log(1 - shifted + shifted * math.exp(sign * d))
            term += candidate * sign * d - (candidate + baseline) * normal
        terms.append(term)
    return float(logsumexp(terms))


def test_there_is_something_to_look_at() -> None:
    assert len(VECTORS["log_e_worse"]) == 4


@pytest.mark.parametrize("case", VECTORS["log_e_worse"])
def test_vectors(case: dict[str, Any]) -> None:
    segments = [Segment(*segment) for segment in case["segments"]]
    assert log_e_worse(segments) == pytest.approx(case["log_e"], abs=1e-9)


@given(SEGMENTS, st.sampled_from([0.0, 0.05, 0.5]))
def test_it_is_the_formula(segments: list[Segment], tolerance: float) -> None:
    assert log_e_worse(segments, tolerance) == pytest.approx(
        by_hand(segments, tolerance, 1), rel=1e-6, abs=1e-6
    )
    assert log_e_better(segments, tolerance) == pytest.approx(
        by_hand(segments, tolerance, -1), rel=1e-6, abs=1e-6
    )


@given(SEGMENTS)
def test_better_is_worse_with_the_arms_exchanged(segments: list[Segment]) -> None:
    exchanged = [Segment(1 - share, baseline, candidate) for share, candidate, baseline in segments]
    assert log_e_better(segments) == pytest.approx(log_e_worse(exchanged), rel=1e-6, abs=1e-6)


@given(SEGMENTS)
def test_the_more_is_tolerated_the_less_is_evidence_of_harm(segments: list[Segment]) -> None:
    assert log_e_worse(segments, 0.1) <= log_e_worse(segments, 0.0) + 1e-9
    assert log_e_better(segments, 0.1) >= log_e_better(segments, 0.0) - 1e-9


def test_segments_that_say_nothing_count_nothing() -> None:
    told = Segment(0.1, 25, 75)
    silent = [Segment(0.0, 3, 50), Segment(1.0, 50, 0), Segment(0.5, 0, 0)]
    assert log_e_worse([told, *silent]) == log_e_worse([told])
    assert log_e_worse(silent) == log_e_worse([]) == log_e_better([]) == 0.0


def test_millions_of_events_do_not_overflow() -> None:
    assert 100_000 < log_e_worse([Segment(0.5, 3_000_000, 1_000_000)]) < math.inf
    assert -math.inf < log_e_worse([Segment(0.5, 1_000_000, 3_000_000)]) < 0


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_the_mean_of_e_is_one_without_an_effect(share: float) -> None:
    events = np.arange(21.0)
    ways = -betaln(events + 1, 21 - events) - math.log(21)
    chances = np.exp(ways + events * math.log(share) + (20 - events) * math.log(1 - share))
    assert chances.sum() == pytest.approx(1)
    for drifts in (DRIFTS, -DRIFTS):
        es = np.exp(log_e_many(np.array([share]), events[:, None], 20 - events[:, None], drifts=drifts))
        assert float(chances @ es) == pytest.approx(1, abs=1e-9)


def test_the_interval_of_a_ratio_holds_the_ratio_and_is_as_strict_as_the_test() -> None:
    segments = [Segment(0.1, 25, 75)]  # 3 times the baseline's rate
    low, high = rate_ratio_interval(segments, 0.05)
    assert 1 < low < 3 < high
    assert log_e_worse(segments, low - 1) == pytest.approx(math.log(40), abs=1e-6)
    assert log_e_better(segments, high - 1) == pytest.approx(math.log(40), abs=1e-6)
    assert rate_ratio_interval([], 0.05) == (0, math.inf)
    assert rate_ratio_interval([Segment(0.5, 0, 100)], 0.05)[0] == 0
    assert rate_ratio_interval([Segment(0.5, 100, 0)], 0.05)[1] == math.inf


@given(SEGMENTS)
def test_a_ratio_has_an_interval(segments: list[Segment]) -> None:
    low, high = rate_ratio_interval(segments, 0.05)
    assert 0 <= low < high


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_interval_of_a_rate_holds_the_rate(bad: int, good: int) -> None:
    low, high = rate_interval(bad, bad + good, 0.05)
    assert 0 <= low <= high <= 1
    if bad + good:
        assert low <= bad / (bad + good) <= high


def test_the_interval_of_a_rate_ends_where_the_martingale_reaches_one_over_alpha() -> None:
    for p in rate_interval(5, 1000, 0.05):
        log_martingale = betaln(6, 996) - 5 * math.log(p) - 995 * math.log(1 - p)
        assert log_martingale == pytest.approx(math.log(20))
    assert rate_interval(0, 0, 0.05) == (0, 1)
    assert rate_interval(0, 100, 0.05)[0] == 0
    assert rate_interval(100, 100, 0.05)[1] == 1
    with pytest.raises(ValueError, match="got bad 2 of 1"):
        rate_interval(2, 1, 0.05)


def test_the_mean_of_es() -> None:
    assert log_e_mean([math.log(1), math.log(3)]) == pytest.approx(math.log(2))
    assert log_e_mean([2000.0, -math.inf]) == pytest.approx(2000 - math.log(2))
    assert log_e_mean([]) == 0
    assert log_e_mean([-math.inf]) == -math.inf


def test_the_greatest_of_weighted_es() -> None:
    assert log_e_weighted_max([(0.5, math.log(30)), (0.25, math.log(80)), (0.0, 1e9)]) == pytest.approx(
        math.log(20)
    )
    assert log_e_weighted_max([]) == -math.inf
