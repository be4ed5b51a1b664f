"""What we promise of a test, simulated: usual ways to read it fail where ours holds, and ours is soon enough.

Bounded and seeded; `benches/validity/run.py` has the long version with a table. Alpha is 0.05 throughout.
"""

from __future__ import annotations

import pytest

from validity.simulations import (
    ALPHA,
    delayed_outcomes,
    false_rollbacks,
    margin,
    means_through_a_ramp,
    requests_until_alarm,
    requests_until_slow,
    sample_ratio,
)

pytestmark = pytest.mark.slow


@pytest.mark.timeout(120)
def test_identical_arms_are_not_rolled_back() -> None:
    alarms = false_rollbacks(400, seed=1)
    assert alarms["ours"] <= ALPHA + margin(400)
    assert alarms["z-test"] > 3 * ALPHA
    assert alarms["one share"] > 3 * ALPHA
    assert alarms["requests"] > 3 * ALPHA


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("worse", "figure"), [(0.0125, 119_000), (0.015, 32_500), (0.02, 13_000)])
def test_a_worse_canary_alarms_soon(worse: float, figure: int) -> None:
    found = requests_until_alarm(worse, 1000, seed=2, every=1000, looks=figure // 200)
    assert found == pytest.approx(figure, rel=0.25)


@pytest.mark.timeout(60)
def test_a_much_worse_canary_alarms_at_once() -> None:
    # The reference's figure is 3,000; ours is sooner, and the sooner the more often one looks.
    assert requests_until_alarm(0.05, 1000, seed=2, every=1000, looks=50) <= 3000
    assert requests_until_alarm(0.05, 1000, seed=2, every=20, looks=500) == pytest.approx(1200, rel=0.15)


@pytest.mark.timeout(60)
def test_a_sample_ratio_mismatch_is_found() -> None:
    found = sample_ratio(300, seed=3)
    assert found.median == pytest.approx(457_000, rel=0.25)
    assert found.found > 0.95
    assert found.false_alarms["ours"] <= ALPHA + margin(300)
    assert found.false_alarms["chi-square"] > 3 * ALPHA


@pytest.mark.timeout(60)
def test_a_slower_p99_is_found() -> None:
    median, false = requests_until_slow(200, seed=4)
    assert median == pytest.approx(25_000, rel=0.3)
    assert false <= ALPHA + margin(200)


@pytest.mark.timeout(60)
def test_a_young_canary_has_no_phantom_effect() -> None:
    found = delayed_outcomes(200, seed=5)
    assert found.naive_lift == pytest.approx(-0.44, abs=0.03)
    assert found.naive_alarms > 0.99
    assert abs(found.matured_lift) < 0.01
    assert found.matured_alarms <= ALPHA + margin(200)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("effect", [0.0, 0.01])
def test_intervals_of_means_hold_at_every_look(effect: float) -> None:
    misses = means_through_a_ramp(300, seed=6, effect=effect)
    assert misses["ours"] <= ALPHA + margin(300)
    assert misses["pooled"] > 3 * ALPHA
    assert misses["repeated z"] > 3 * ALPHA
