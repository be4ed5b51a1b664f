"""Scoring a Parquet file: rows a second against a plain loop of pyarrow and onnxruntime, and the memory it takes.

    python benches/score.py [--memory-rows 5000000] [--rounds 5]

Each way is a process of its own work within this one, medians of rounds in turn; the memory is that of a child.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq

import turnout
from turnout.score.run import score
from turnout.score.running import Options
from turnout.service import Turnout

FEATURES = [f"feature{index}" for index in range(20)]
ROWS = 500_000
BLOCK = 65_536


def tables(rows: int) -> Iterator[pa.Table]:
    """Random floats and an id for each row, in blocks."""
    random = np.random.default_rng(0)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        values = random.normal(size=(len(FEATURES), count)).astype(np.float32)
        yield pa.table({"id": np.arange(start, start + count), **dict(zip(FEATURES, values, strict=True))})


def write(path: Path, rows: int, row_group: int) -> Path:
    """A Parquet file in row groups of this many rows."""
    whole = pa.concat_tables(tables(rows))
    pq.write_table(whole, path, row_group_size=row_group)
    return path


def models(folder: Path) -> dict[str, Path]:
    """Boosted trees and a logistic regression, trained on a rule."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    values = np.random.default_rng(1).normal(size=(3000, len(FEATURES))).astype(np.float32)
    labels = (values[:, :5].sum(axis=1) > 0).astype(int)
    found: dict[str, Path] = {}
    for name, estimator in (
        ("trees", GradientBoostingClassifier(n_estimators=100, max_depth=4, random_state=0)),
        ("logistic", LogisticRegression(max_iter=1000)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = to_onnx(estimator.fit(values, labels), values[:1], options={"zipmap": False})
        found[name] = folder / f"{name}.onnx"
        found[name].write_bytes(graph.SerializeToString())
    return found


def loop(model: Path, source: Path, out: Path, threads: int) -> None:
    """What one writes by hand: batch by batch through one session that has all threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    writer: Any = None
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(BLOCK, columns=["id", *FEATURES]):
            matrix = np.column_stack([batch.column(name).to_numpy() for name in FEATURES])
            label, probabilities = session.run(None, {given.name: matrix})
            flat = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.reshape(-1)), 2)
            table = pa.table({"id": batch.column("id"), "label": label, "probabilities": flat})
            writer = writer or pq.ParquetWriter(out, table.schema)
            writer.write_table(table)
    writer.close()


def turnout_way(hub: Turnout, model: str, source: Path, out: Path, threads: int) -> None:
    """The same by `turnout score`, synced and resumable."""
    score(hub, model, [str(source)], str(out), Options(keep=("id",), threads=threads, overwrite=True))


def medians(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def speed(hub: Turnout, folder: Path, rounds: int) -> None:
    """Rows a second of each model."""
    source, out, cores = (
        write(folder / "in.parquet", ROWS, 200_000),
        folder / "out.parquet",
        len(os.sched_getaffinity(0)),
    )
    for name, path in models(folder).items():
        for version in ("v1", "v2"):
            hub.register_version(name, version, path, features=FEATURES)
        hub.activate_version(name, "v1")
        ways: dict[str, Callable[[], None]] = {}
        for threads in sorted({1, cores}):
            ways[f"plain loop, {threads} threads"] = lambda p=path, t=threads: loop(p, source, out, t)
            ways[f"turnout score, {threads} threads"] = lambda n=name, t=threads: turnout_way(
                hub, n, source, out, t
            )
        print(f"\n{name}: {ROWS:,} rows of {len(FEATURES)} float32 features, Parquet to Parquet")
        found = medians(ways, rounds)
        for way, seconds in found.items():
            other = found[f"plain loop, {way.rpartition(', ')[2]}"]
            print(f"  {way:28} {ROWS / seconds:12,.0f} rows a second {other / seconds:6.2f} x the loop")


def memory(hub: Turnout, folder: Path, rows: int) -> None:
    """The most memory that a process has while it scores a file of one row group."""
    for count in (rows // 10, rows // 3, rows):
        source = folder / f"{count}.parquet"
        subprocess.run(
            [sys.executable, __file__, "--write", str(source), "--memory-rows", str(count)], check=True
        )
        command = [
            sys.executable,
            __file__,
            "--child",
            str(hub.data),
            str(source),
            str(folder / "memory.parquet"),
        ]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(f"  {count:,} rows in one row group, {source.stat().st_size / 2**20:,.0f} MiB: {said}")
        source.unlink()


def child(data: str, source: str, out: str) -> None:
    """Score one file and say what it took."""
    with turnout.open(data) as hub:
        before = most_memory()
        report = score(hub, "logistic", [source], out, Options(keep=("id",), overwrite=True))
    print(
        f"{most_memory():,.0f} MiB at most ({before:,.0f} before it began), "
        f"{report.rows / report.seconds:,.0f} rows a second"
    )


def most_memory() -> float:
    """MiB that this process had at most; unlike `getrusage`, without those of the one that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Run all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3)
    parser.add_argument("--write")
    given = parser.parse_args()
    if given.child:
        child(*given.child)
    elif given.write:
        write(Path(given.write), given.memory_rows, given.memory_rows)
    else:
        with tempfile.TemporaryDirectory() as name, turnout.open(Path(name) / "data") as hub:
            speed(hub, Path(name), given.rounds)
            print("\nmemory of turnout score, logistic, all threads")
            memory(hub, Path(name), given.memory_rows)


if __name__ == "__main__":
    main()
