"""How long a test will take, from what is known before it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from turnout.errors import InvalidRequest
from turnout.experiment.sizing import size_test
from turnout.experiment.statistics.power import entities_needed


def test_a_rate_of_ten_percent_that_is_to_grow_by_a_tenth() -> None:
    size = size_test("binary", 0.1, 0.1, entities_per_day=1000, window_days=7)
    needed = entities_needed("binary", 0.1, 0.01, share=0.5, alpha=0.05, power=0.8, tightest_at=5000)
    assert size.entities == needed == size.baseline + size.candidate
    assert abs(size.baseline - size.candidate) <= 1
    assert size.days == pytest.approx(size.entities / 1000 + 7)
    assert f"{size.entities:,} entities" in size.sentence
    assert "0.11 instead of 0.1" in size.sentence
    assert "the last 7 to observe them" in size.sentence


def test_it_is_more_than_a_test_with_one_look_needs() -> None:
    """Looking as often as one likes is not free: the classical size of two proportions is the floor."""
    base, changed, z = 0.1, 0.11, 1.959964 + 0.841621
    once = 2 * z**2 * (base * (1 - base) + changed * (1 - changed)) / (changed - base) ** 2
    assert once < size_test("binary", base, 0.1).entities < 4 * once


def test_a_plan_that_is_tightest_where_it_ends_needs_fewer() -> None:
    usual = size_test("binary", 0.1, 0.02).entities
    assert size_test("binary", 0.1, 0.02, tightest_at=1_300_000).entities < 0.8 * usual


def test_a_small_share_of_the_candidate_takes_longer() -> None:
    half, tenth = (size_test("binary", 0.2, 0.05, share=share) for share in (0.5, 0.1))
    assert tenth.entities > 2 * half.entities
    assert tenth.candidate == round(tenth.entities * 0.1)


def test_a_count_has_the_deviation_of_rare_events_unless_it_is_said() -> None:
    assert size_test("count", 4.0, 0.1) == size_test("count", 4.0, 0.1, deviation=2.0)
    assert size_test("count", 4.0, 0.1, deviation=4.0).entities > 3 * size_test("count", 4.0, 0.1).entities
    mean = size_test("mean", 4.0, 0.1, deviation=2.0)
    assert mean.entities == size_test("count", 4.0, 0.1).entities


def test_the_sign_of_an_effect_on_a_mean_makes_no_difference() -> None:
    sizes = {size_test("mean", 25.0, lift, deviation=40.0).entities for lift in (0.01, -0.01)}
    assert len(sizes) == 1


def test_errors_are_found_by_their_alarm() -> None:
    size = size_test("errors", 0.01, 1.0, alpha=0.01)
    assert size.entities == entities_needed("count", 0.01, 0.01, share=0.5, alpha=0.01, power=0.8)
    assert "bad events" in size.sentence


def test_an_effect_that_nobody_could_miss_still_waits_for_a_hundred_entities_of_each_arm() -> None:
    size = size_test("binary", 0.5, 0.9, share=0.2)
    assert (size.baseline, size.candidate) == (400, 100)
    assert size.days is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "median"}, "kind"),
        ({"base": 0.0}, "base"),
        ({"base": math.nan}, "base"),
        ({"base": 1.5}, "rates"),
        ({"base": 0.9, "effect": 0.2}, "rates"),
        ({"effect": 0.0}, "effect"),
        ({"effect": -1.0}, "effect"),
        ({"effect": math.inf}, "effect"),
        ({"effect": 1e-9}, "larger"),
        ({"kind": "mean"}, "deviation"),
        ({"kind": "mean", "deviation": -1.0}, "deviation"),
        ({"kind": "mean", "deviation": math.nan}, "deviation"),
        ({"kind": "count", "deviation": 0.0}, "deviation"),
        ({"deviation": 1.0}, "deviation"),
        ({"kind": "errors", "effect": -0.1}, "only more errors"),
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"alpha": 0.0}, "alpha"),
        ({"power": 1.0}, "power"),
        ({"power": math.nan}, "power"),
        ({"entities_per_day": 0.0}, "entities_per_day"),
        ({"entities_per_day": math.inf}, "entities_per_day"),
        ({"window_days": -1.0}, "window_days"),
        ({"tightest_at": 0.0}, "tightest_at"),
    ],
    ids=str,
)
def test_facts_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    facts: dict[str, Any] = {"kind": "binary", "base": 0.1, "effect": 0.1, **given}
    with pytest.raises(InvalidRequest, match=said):
        size_test(**facts)


@pytest.mark.parametrize(
    ("kind", "base"), [("count", 1e-6), ("count", 1e12), ("errors", 1e-6), ("errors", 1e6)]
)
def test_extreme_bases_have_a_size(kind: Any, base: float) -> None:
    assert size_test(kind, base, 0.5).entities > 0


@pytest.mark.parametrize(("kind", "base"), [("count", 1e-15), ("errors", 1e-15)])
def test_what_nobody_will_ever_see_has_none(kind: Any, base: float) -> None:
    with pytest.raises(InvalidRequest, match="larger"):
        size_test(kind, base, 0.5)
