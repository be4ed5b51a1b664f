"""How long a test takes, and how a bandit shares the traffic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from turnout.experiment.statistics.bandit import allocate, unbiased_mean
from turnout.experiment.statistics.means import Moments, difference, interval, multiplier
from turnout.experiment.statistics.power import entities_needed, entities_until


@pytest.mark.parametrize(("kind", "base", "deviation"), [("binary", 0.1, None), ("mean", 25.0, 0.4)])
def test_at_the_size_the_effect_is_the_half_width_and_the_deviations_of_the_power(
    kind: str, base: float, deviation: float | None
) -> None:
    needed = entities_needed(kind, base, 0.02, deviation=deviation, share=0.5, alpha=0.05, power=0.8)
    assert needed is not None
    variance = 0.1 * 0.9 + 0.12 * 0.88 if kind == "binary" else 2 * 0.4**2
    se = math.sqrt(variance * 2 / needed)
    assert se * (multiplier(needed, needed, 0.05) + norm.ppf(0.8)) == pytest.approx(0.02, rel=1e-3)


def test_a_smaller_share_needs_more_entities() -> None:
    needed = [
        entities_needed("binary", 0.1, 0.01, share=share, alpha=0.05, power=0.8)
        for share in (0.5, 0.25, 0.1, 0.01)
    ]
    assert all(needed)
    assert needed == sorted(needed)


def test_it_finds_the_effect_as_often_as_it_promised() -> None:
    needed = entities_needed("binary", 0.2, 0.05, share=0.5, alpha=0.05, power=0.8)
    assert needed is not None
    rng = np.random.default_rng(8)
    b, c = rng.binomial(needed // 2, 0.2, 2000), rng.binomial(needed // 2, 0.25, 2000)
    found = 0
    for one, other in zip(b.tolist(), c.tolist(), strict=True):
        seen = difference([(Moments(needed // 2, one, one), Moments(needed // 2, other, other))], cuped=False)
        assert seen is not None
        found += interval(seen, 0.05, needed)[0] > 0
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("effect", "simulated"), [(0.0025, 129_000), (0.005, 30_750), (0.01, 10_550), (0.04, 1_180)]
)
def test_bad_events_alarm_about_when_simulations_do(effect: float, simulated: int) -> None:
    # Median requests of 400 simulated canaries at 10 % of the traffic; tests/validity has the simulation.
    found = entities_needed("count", 0.01, effect, share=0.1, alpha=0.05, power=0.5)
    assert found == pytest.approx(simulated, rel=0.2)


def test_what_is_never_found() -> None:
    assert entities_needed("binary", 0.1, 0.0, share=0.5, alpha=0.05, power=0.8) is None
    assert entities_needed("count", 0.01, -0.001, share=0.5, alpha=0.05, power=0.8) is None
    assert entities_needed("count", 0.01, 0.00001, share=0.5, alpha=0.05, power=0.8) is None


@pytest.mark.parametrize(
    ("kind", "base", "effect", "share"),
    [("binary", 0.9, 0.2, 0.5), ("mean", 1.0, 0.2, 0.5), ("count", 0.0, 0.1, 0.5), ("binary", 0.1, 0.1, 1.0)],
)
def test_facts_that_contradict_each_other(kind: str, base: float, effect: float, share: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        entities_needed(kind, base, effect, share=share, alpha=0.05, power=0.8)


def test_how_long_until_zero_is_excluded() -> None:
    now = difference([(Moments(1000, 100, 100), Moments(1000, 125, 125))], cuped=False)
    assert now is not None
    until = entities_until(now, 0.05, 5000)
    assert until is not None
    assert until > 2000
    scale = until / 2000
    for factor, excluded in ((scale * 0.98, False), (scale * 1.02, True)):
        n = round(1000 * factor)
        then = difference([(Moments(n, n * 0.1, n * 0.1), Moments(n, n * 0.125, n * 0.125))], cuped=False)
        assert then is not None
        assert (interval(then, 0.05, 5000)[0] > 0) is excluded
    assert entities_until(now, 0.05, 5000, target=-0.2) == 2000
    assert entities_until(now, 0.05, 5000, target=now.estimate) is None


def test_a_bandit_gives_more_to_who_is_better() -> None:
    arms = {"v1": Moments(1000, 100, 100), "v2": Moments(1000, 130, 130), "v3": Moments(1000, 60, 60)}
    shares = allocate(arms, 0.05, 4000, seed=1)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["v2"] > 0.8
    assert min(shares.values()) >= 0.05
    assert allocate(arms, 0.05, 4000, seed=1) == shares
    assert allocate(arms, 0.05, 4000, seed=1, lower_is_better=True)["v3"] > 0.8


def test_shares_are_the_chances_of_two_normal_posteriors() -> None:
    arms = {"a": Moments(400, 100, 100), "b": Moments(400, 110, 110)}
    pooled = arms["a"].plus(arms["b"])
    gap = (110 - 100) / 401 / math.sqrt(2 * pooled.variance / 401)
    assert allocate(arms, 0.0, 200_000, seed=2)["b"] == pytest.approx(norm.cdf(gap), abs=0.005)


def test_a_bandit_that_knows_nothing_shares_equally() -> None:
    assert allocate({"a": Moments(), "b": Moments()}, 0.1, 1000, seed=1) == {"a": 0.5, "b": 0.5}
    assert allocate({"a": Moments(9), "b": Moments(5)}, 0.1, 1000, seed=1) == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match="expected a floor"):
        allocate({"a": Moments(), "b": Moments()}, 0.6, 1000, seed=1)
    with pytest.raises(ValueError, match="expected a floor"):
        allocate({}, 0.1, 1000, seed=1)


def test_weights_undo_what_the_bandit_did_to_its_estimate() -> None:
    rng = np.random.default_rng(9)
    raw, weighted = [], []
    for _ in range(3000):
        arms = {"a": Moments(), "b": Moments()}
        seen: list[tuple[float, Moments]] = []
        for step in range(6):
            shares = allocate(arms, 0.05, 200, seed=step)
            for name, share in shares.items():
                n = int(rng.binomial(40, share))
                y = rng.normal(size=n)
                got = Moments(n, float(y.sum()), float((y * y).sum()))
                arms[name] = arms[name].plus(got)
                if name == "a":
                    seen.append((share, got))
        found = unbiased_mean(seen)
        assert found is not None
        raw.append(arms["a"].mean)
        weighted.append(found[0])
    error = np.std(weighted) / math.sqrt(3000)
    assert np.mean(raw) < -5 * np.std(raw) / math.sqrt(3000)
    assert abs(np.mean(weighted)) < 3 * error
    assert abs(np.mean(weighted)) < abs(np.mean(raw)) / 2


def test_the_unbiased_mean_at_one_share_is_the_mean() -> None:
    mean, se = unbiased_mean([(0.3, Moments(1000, 100, 100))]) or (0.0, 0.0)
    assert mean == pytest.approx(0.1)
    assert se == pytest.approx(math.sqrt(0.09 / 1000))
    assert unbiased_mean([(0.3, Moments())]) is None
