"""Ledger and Split at the Python boundary: every way in agrees with every other, and bad input is named."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType

import numpy as np
import pytest

from turnout import _core
from turnout.errors import InvalidDocument, InvalidRequest, InvalidSplit


@pytest.fixture(scope="module")
def split() -> _core.Split:
    ledger, _ = _core.Ledger.start("v1").apply({"v1": 0.5, "v2": 0.3, "v3": 0.2})
    return _core.Split(ledger, "churn/1")


class Colour(IntEnum):
    RED = 7

    def __str__(self) -> str:
        return "red"


def test_an_integer_is_its_decimal_string(split: _core.Split) -> None:
    for number in [0, 42, -1, 2**63 - 1, -(2**63), 2**64, 10**40]:
        assert split.assign(number) == split.assign(str(number))
        assert _core.slot("s", number) == _core.slot("s", str(number))
    assert split.assign(Colour.RED) == split.assign("7")


def test_bulk_agrees_with_one_by_one(split: _core.Split) -> None:
    ids = [*range(-500, 500), 2**62]
    expected = [split.assign(id_)[0] for id_ in ids]
    assert split.assign_strings(ids).tolist() == expected
    assert split.assign_strings([str(id_) for id_ in ids]).tolist() == expected
    assert split.assign_strings(tuple(ids)).tolist() == expected
    assert split.assign_integers(np.array(ids, np.int64)).tolist() == expected
    unsigned = np.array([0, 7, 2**64 - 1], np.uint64)
    assert split.assign_integers(unsigned).tolist() == split.assign_strings(unsigned.tolist()).tolist()
    assert split.assign_strings([]).dtype == np.uint8


def test_slots_are_owned_by_the_arm_that_answers() -> None:
    ledger, _ = _core.Ledger.start("a").apply({"b": 0.25, "a": 0.75})
    split = _core.Split(ledger, "s")
    for entity in range(200):
        arm, slot = split.assign(entity)
        assert ledger.owner(slot) == split.arms[arm]
    with pytest.raises(IndexError, match="99999"):
        ledger.owner(100_000)


def test_synthetic_counts_are_those_of_the_ids(split: _core.Split) -> None:
    found = np.bincount(split.assign_integers(np.arange(20_000)), minlength=3)
    assert split.synthetic_counts(20_000) == found.tolist()


def test_the_empty_id_is_an_id(split: _core.Split) -> None:
    assert split.assign("")[1] == _core.slot("churn/1", "")


@pytest.mark.parametrize(
    ("entity", "found"),
    [(None, "NoneType"), (True, "bool"), (1.5, "float"), (b"x", "bytes"), ("\ud800", "lone surrogate")],
)
def test_other_ids_are_refused(split: _core.Split, entity: object, found: str) -> None:
    message = f"an entity id is a string or an integer, found .*{found}"
    with pytest.raises(InvalidRequest, match=message):
        split.assign(entity)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidRequest, match=message) as caught:
        split.assign_strings(["a", 1, entity])  # pyright: ignore[reportArgumentType]
    assert caught.value.row == 2


def test_an_integer_too_long_to_print_is_refused(split: _core.Split) -> None:
    with pytest.raises(InvalidRequest, match="too many digits"):
        split.assign(10**5000)


@pytest.mark.parametrize("width", [np.int32, np.int64])
@pytest.mark.parametrize("offsets", [[0, 3, 2], [0, 4], [-1, 2], [-2, -1], [5, 6]])
def test_offsets_outside_the_data_are_refused(split: _core.Split, width: type, offsets: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="offsets"):
        split.assign_utf8(np.array(offsets, width), np.frombuffer(b"abc", np.uint8))


def test_offsets_may_start_inside_the_data(split: _core.Split) -> None:
    found = split.assign_utf8(np.array([1, 1, 3], np.int32), np.frombuffer(b"abc", np.uint8))
    assert found.tolist() == split.assign_strings(["", "bc"]).tolist()


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"a": 0.5, "b": 0.4},
        {"a": 1.5, "b": -0.5},
        {"a": float("nan"), "b": 1.0},
        {"a": float("inf")},
        {str(arm): 1 / 257 for arm in range(257)},
    ],
)
def test_what_is_no_split_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InvalidSplit):
        _core.Ledger.start("a").apply(weights)


def test_the_sum_is_named() -> None:
    with pytest.raises(InvalidSplit, match=r"Traffic splits must sum to 1\.0, found 0\.9"):
        _core.Ledger.start("a").apply({"a": 0.9})


def test_weights_are_normalised_within_the_tolerance() -> None:
    ledger, moved = _core.Ledger.start("a").apply(MappingProxyType({"a": 0.5004, "b": 0.5004}))
    assert ledger.counts() == {"a": 50_000, "b": 50_000}
    assert moved == 50_000


@pytest.mark.parametrize(
    "runs",
    [
        {},
        {"a": []},
        {"a": [(0, 99_998)]},
        {"a": [(0, 100_000)]},
        {"a": [(0, 99_999), (5, 5)]},
        {"a": [(0, 99_999)], "b": [(0, 0)]},
        {"a": [(0, 2**32 - 1)]},
        {"a": [(0, 2**70)]},
        {"a": [(-1, 99_999)]},
        {"a": [("0", "99999")]},
        {"a": [(0, 99_999, 1)]},
        {1: [(0, 99_999)]},
        {"a": [(0, 99_999)], **{f"x{arm}": [] for arm in range(256)}},
    ],
)
def test_runs_that_are_no_ledger_are_refused(runs: dict[str, list[tuple[int, int]]]) -> None:
    with pytest.raises(InvalidDocument, match="exactly once"):
        _core.Ledger.from_runs(runs)


def test_falling_runs_keep_their_order() -> None:
    ledger = _core.Ledger.from_runs({"a": [(0, 49_999)], "b": [(99_999, 50_000)]})
    assert ledger.runs() == {"a": [(0, 49_999)], "b": [(99_999, 50_000)]}
