"""One request of 20 features to a matrix, and one answer to bytes: Turnout's core against msgspec with NumPy.

Run with `pytest benches/test_packing.py --benchmark-group-by=group --benchmark-columns=min,median`; the ratios of one
run are what counts. `test_ratios` prints them without the plugin's tables (`pytest -s -k ratios`).
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from timeit import repeat
from typing import Any

import msgspec
import numpy as np
import pytest

from turnout import _core

NAMES = [f"featureNumber{index}" for index in range(20)]
VALUES = [round(value, 4) for value in np.random.default_rng(7).normal(50.0, 30.0, len(NAMES)).tolist()]
OBJECT = msgspec.json.encode({"entity_id": "user-123", "features": dict(zip(NAMES, VALUES, strict=True))})
LIST = msgspec.json.encode({"entity_id": "user-123", "features": VALUES})
OUTPUTS = [np.array([1]), np.array([[0.12345679, 0.8765432]], np.float32)]

FREE_ID = "01a2098f-222f-7912-8bd6-1bbed400789a"
"""msgspec's side is given its prediction id: making one in Python costs more than all else."""

PLAN = _core.VersionPlan(
    "v1", "matrix", ["float32"], [(n, "float", (), None, False) for n in NAMES], ["label", "probabilities"]
)
ROUTE = _core.Route("churn", [PLAN], ["v1"], 0, None, [], {}, NAMES)

Row = msgspec.defstruct("Row", [(name, float) for name in NAMES], gc=False)
ObjectRequest = msgspec.defstruct("ObjectRequest", [("features", Row), ("entity_id", str | None, None)])
ListRequest = msgspec.defstruct("ListRequest", [("features", list[float]), ("entity_id", str | None, None)])
decode_any = msgspec.json.Decoder().decode
decode_object = msgspec.json.Decoder(ObjectRequest).decode
decode_list = msgspec.json.Decoder(ListRequest).decode
items_of, fields_of = itemgetter(*NAMES), attrgetter(*NAMES)


def turnout_object() -> Any:
    return ROUTE.prepare(OBJECT)[2][0]


def msgspec_dict() -> Any:
    return np.array([items_of(decode_any(OBJECT)["features"])], np.float32)


def msgspec_struct() -> Any:
    return np.array([fields_of(decode_object(OBJECT).features)], np.float32)


def turnout_list() -> Any:
    return ROUTE.prepare(LIST)[2][0]


def msgspec_list() -> Any:
    return np.array([decode_list(LIST).features], np.float32)


def turnout_answer() -> bytes:
    return ROUTE.encode(0, 0, OUTPUTS)


def msgspec_answer() -> bytes:
    outputs = {
        name: array.tolist()[0] for name, array in zip(("label", "probabilities"), OUTPUTS, strict=True)
    }
    head = {"model": "churn", "version": "v1", "prediction_id": FREE_ID, "reason": "active"}
    return msgspec.json.encode(head | {"outputs": outputs})


GROUPS = {
    "object": [turnout_object, msgspec_dict, msgspec_struct],
    "list": [turnout_list, msgspec_list],
    "answer": [turnout_answer, msgspec_answer],
}


@pytest.mark.parametrize(
    ("group", "work"),
    [(group, work) for group, works in GROUPS.items() for work in works],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_packing(benchmark, group, work):
    benchmark.group = group
    benchmark(work)


def test_all_ways_give_the_same():
    expected = np.array([VALUES], np.float32)
    for work in GROUPS["object"] + GROUPS["list"]:
        assert np.array_equal(work(), expected), work
    ours, theirs = (msgspec.json.decode(work()) for work in GROUPS["answer"])
    assert ours.keys() == theirs.keys()
    assert ours["outputs"]["label"] == theirs["outputs"]["label"]


def test_ratios():
    """Best of many short runs, taken in turn so that a busy moment of the machine hits all alike."""
    for group, works in GROUPS.items():
        best = dict.fromkeys(works, float("inf"))
        for _ in range(100):
            for work in works:
                best[work] = min(best[work], repeat(work, number=200, repeat=1)[0] / 200)
        ours = best[works[0]]
        for work, seconds in best.items():
            print(f"{group:8} {work.__name__:16} {seconds * 1e9:8.0f} ns  {seconds / ours:6.2f} x")
            assert seconds >= ours, f"{work.__name__} is faster"
