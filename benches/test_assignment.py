"""Assignment across the Python boundary: one call, and a million ids from a list, NumPy and Arrow.

Run with `pytest benches/test_assignment.py --benchmark-columns=min,median`; `test_targets` compares with the figures of
the design: at most 150 ns a call, at least 20 million ids a second on one core.
"""

from __future__ import annotations

from timeit import repeat
from typing import Any

import numpy as np
import pytest

from turnout import _core

COUNT = 1_000_000
SPLIT = _core.Split(_core.Ledger.start("v1.0").apply({"v1.0": 0.8, "v2.0": 0.2})[0], "churn/1")
SERIES = _core.Series()

INTEGERS = np.arange(COUNT)
STRINGS = [f"user-{id_}" for id_ in range(COUNT)]
OFFSETS = np.cumsum([0, *map(len, STRINGS)], dtype=np.int32)
DATA = np.frombuffer("".join(STRINGS).encode(), np.uint8)

ONE = {
    "assign a string": lambda: SPLIT.assign("user-123456"),
    "assign an integer": lambda: SPLIT.assign(123456),
    "record an answer": lambda: SERIES.record(350_000, 200_000),
}
BULK = {
    "list of strings": lambda: SPLIT.assign_strings(STRINGS),
    "NumPy integers": lambda: SPLIT.assign_integers(INTEGERS),
    "Arrow strings": lambda: SPLIT.assign_utf8(OFFSETS, DATA),
    "synthetic ids": lambda: SPLIT.synthetic_counts(COUNT),
}


@pytest.mark.benchmark(group="one call")
@pytest.mark.parametrize("name", ONE)
def test_one(benchmark: Any, name: str) -> None:
    benchmark.pedantic(ONE[name], iterations=20_000, rounds=20, warmup_rounds=1)


@pytest.mark.benchmark(group="a million ids")
@pytest.mark.parametrize("name", BULK)
def test_bulk(benchmark: Any, name: str) -> None:
    benchmark.pedantic(BULK[name], rounds=10, warmup_rounds=1)


def test_targets() -> None:
    """The best of several runs each, so that a busy machine does not decide."""
    nothing = min(repeat(lambda: None, number=100_000, repeat=7)) / 100_000
    for name, call in ONE.items():
        seconds = min(repeat(call, number=100_000, repeat=7)) / 100_000 - nothing
        print(f"\n{name}: {seconds * 1e9:.0f} ns", end="")
        assert seconds <= 150e-9
    for name, call in BULK.items():
        rate = COUNT / min(repeat(call, number=1, repeat=7))
        print(f"\n{name}: {rate / 1e6:.0f} million a second", end="")
        assert rate >= 20e6
