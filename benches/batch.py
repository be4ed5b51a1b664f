"""Batches: packing 10,000 rows of JSON against msgspec and NumPy, and `predict_batch` against a bare session.

Medians of runs that take turns, so that a slow moment hits all of them alike. One thread throughout.
"""

from __future__ import annotations

import operator
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import trained

import turnout
from turnout import _core

ROWS = 10_000
NAMES = [f"featureNumber{index}" for index in range(20)]
ROUNDS = 15


def medians(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def show(title: str, found: dict[str, float], rows: int) -> None:
    """A line for each way: nanoseconds a row, and its time divided by the first one's."""
    first = next(iter(found.values()))
    print(f"\n{title}")
    for name, seconds in found.items():
        print(f"  {name:52} {seconds / rows * 1e9:9.0f} ns a row {seconds / first:8.2f} x")


def packing(values: np.ndarray) -> None:
    """JSON into a float32 matrix."""
    plan = _core.VersionPlan(
        "v1", "matrix", ["float32"], [(name, "float", [], None, False) for name in NAMES], ["y"]
    )
    route = _core.Route("m", [plan], ["v1"], 0, None, [], {}, NAMES)
    objects = msgspec.json.encode({"rows": [dict(zip(NAMES, row, strict=True)) for row in values.tolist()]})
    lists = msgspec.json.encode({"rows": values.tolist()})
    row = msgspec.defstruct("Row", [(name, float) for name in NAMES])

    def decoder(kind: Any) -> Callable[[bytes], Any]:
        return msgspec.json.Decoder(msgspec.defstruct("Body", [("rows", list[kind])])).decode

    structs, dicts, plain = decoder(row), decoder(dict[str, float]), decoder(list[float])
    fields, keys = operator.attrgetter(*NAMES), operator.itemgetter(*NAMES)
    single = np.float32
    show(
        "packing 10,000 JSON objects of 20 features",
        medians(
            {
                "Turnout": lambda: route.prepare_batch(objects, None, False, ROWS),
                "msgspec Struct + NumPy": lambda: np.array(
                    [fields(r) for r in structs(objects).rows], single
                ),
                "msgspec dict + itemgetter + NumPy": lambda: np.array(
                    [keys(r) for r in dicts(objects).rows], single
                ),
            }
        ),
        ROWS,
    )
    show(
        "packing 10,000 JSON lists of 20 features",
        medians(
            {
                "Turnout": lambda: route.prepare_batch(lists, None, False, ROWS),
                "msgspec list + NumPy": lambda: np.array(plain(lists).rows, single),
            }
        ),
        ROWS,
    )


def arrow(values: np.ndarray) -> None:
    """Arrow columns into a float32 matrix, through the whole of `sources` and `pack`."""
    from turnout.tables import sources

    plan = _core.VersionPlan(
        "v1", "matrix", ["float32"], [(name, "float", [], None, False) for name in NAMES], ["y"]
    )
    route = _core.Route("m", [plan], ["v1"], 0, None, [], {}, NAMES)
    singles = np.ascontiguousarray(values.astype(np.float32))
    for kind in (pa.float32(), pa.float64()):
        table = pa.table({name: pa.array(values[:, index]).cast(kind) for index, name in enumerate(NAMES)})

        def pack(table: Any = table) -> None:
            for given, _ in sources(table, None):
                route.pack(0, given, route.bind(0, given), None, 0, ROWS, False)

        found = medians(
            {f"Turnout, {kind} columns": pack, "one copy of the same float32 matrix": singles.copy}
        )
        show("10,000 rows of 20 Arrow columns", found, ROWS)
        print(f"  {ROWS * 20 / next(iter(found.values())) / 1e6:.0f} million values a second")


def embedded(values: np.ndarray) -> None:
    """`predict_batch` with a split of two versions against their sessions alone, in the same chunks."""
    rows = np.tile(values.astype(np.float32), (10, 1))
    ids = np.arange(len(rows))
    with tempfile.TemporaryDirectory() as folder, turnout.open(Path(folder) / "data") as hub:
        trained.fill(hub)
        for model in ("trees", "logistic"):
            hub.predict_batch(model, rows[:100], threads=1)
            serving = hub.live.current().serving(model)
            halves = np.array_split(rows, 2)

            def bare(serving: Any = serving, halves: list[np.ndarray] = halves) -> None:
                for lane, half in zip(serving.lanes, halves, strict=True):
                    session = hub.live.session(lane)
                    for start in range(0, len(half), 8192):
                        session.run([half[start : start + 8192]])

            ways = {
                "the sessions alone": bare,
                "predict_batch, a test of two versions": lambda model=model: hub.predict_batch(
                    model, rows, entity_ids=ids, threads=1
                ),
                "predict_batch, one version": lambda model=model: hub.predict_batch(
                    model, rows, version="v1", threads=1
                ),
            }
            show(f"100,000 rows of 20 features, {model}", medians(ways), len(rows))


def main() -> None:
    """Run all of them."""
    values = np.round(np.random.default_rng(0).normal(size=(ROWS, len(NAMES))) * 100, 3)
    packing(values)
    arrow(values)
    embedded(values)


if __name__ == "__main__":
    main()
