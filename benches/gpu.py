"""CUDA beside the CPU: latency and throughput by the number of rows, one by one and together, with and without graphs.

    python benches/gpu.py            # a short look, on the CPU alone where there is no CUDA
    python benches/gpu.py --seconds 2

Three networks of dense layers, built here: small, medium and large. A line for each way and number of rows: the median
and the 99th percentile of the time until all rows are answered, and the rows answered in a second. One thread asks; `one
by one` asks for a row at a time, `together` for all of them at once. It checks first that every way answers alike. Of fewer
than a hundred runs the 99th percentile is about the slowest.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from turnout.domain import Artifact, Feature, SessionOptions, Signature, Tensor, Version, utc_now
from turnout.engine import Engine, Session, cuda_status, runtime_version

NETWORKS = {"small": (20, 64, 64), "medium": (64, 512, 512, 512, 512), "large": (256, *([2048] * 6))}
"""Features, then the width of each hidden layer; the answer is one number."""
ROWS = (1, 8, 64)
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "CPU": ("cpu", {}),
    "CUDA": ("cuda", {"cuda_graphs": False}),
    "CUDA, graphs": ("cuda", {"cuda_graphs": True}),
}
LEAST_RUNS = 5


class Network(NamedTuple):
    """A network on the disk."""

    path: Path
    features: int
    weights: int


def network(folder: Path, name: str) -> Network:
    """Dense layers with ReLU between them."""
    numbers = np.random.default_rng(0)
    widths = (*NETWORKS[name], 1)
    nodes, constants, last = [], [], "x"
    for layer, (taken, given) in enumerate(itertools.pairwise(widths)):
        scale = np.float32((2 / taken) ** 0.5)
        constants += [
            numpy_helper.from_array(numbers.standard_normal((taken, given), np.float32) * scale, f"w{layer}"),
            numpy_helper.from_array(np.zeros(given, np.float32), f"b{layer}"),
        ]
        end = layer == len(widths) - 2
        nodes.append(
            helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], ["y" if end else f"sum{layer}"])
        )
        if not end:
            nodes.append(helper.make_node("Relu", [f"sum{layer}"], [f"h{layer}"]))
        last = f"h{layer}"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        name,
        [value("x", TensorProto.FLOAT, [None, widths[0]])],
        [value("y", TensorProto.FLOAT, [None, 1])],
        constants,
    )
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Network(path, widths[0], sum(int(np.prod(constant.dims)) for constant in constants))


def load(found: Network, device: str, options: dict[str, Any]) -> Session:
    """The network as a worker loads it."""
    signature = Signature(
        (Tensor("x", "float", (None, found.features)),), (Tensor("y", "float", (None, 1)),), "matrix"
    )
    version = Version(
        model="bench",
        version=found.path.stem,
        artifact=Artifact("0" * 64, ()),
        signature=signature,
        features=(Feature(""),) * found.features,
        created_at=utc_now(),
        ordinal=1,
        options=SessionOptions(**options),
    )
    engine = Engine(device, intra_op_threads=1, spinning=False, inline_seconds=0.001)
    return engine.load(found.path, version)


def one_by_one(session: Session, x: NDArray[np.float32]) -> NDArray[Any]:
    """A run for each row."""
    return np.concatenate([session.run([x[row : row + 1]])[0] for row in range(len(x))])


def together(session: Session, x: NDArray[np.float32]) -> NDArray[Any]:
    """One run for all rows."""
    return session.run([x])[0]


def measure(ways: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """The times of each way, in seconds; ways take turns, so that a slow moment hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    until = time.perf_counter() + seconds * len(ways)
    while time.perf_counter() < until or len(next(iter(times.values()))) < LEAST_RUNS:
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return times


def compare(found: Network, sessions: dict[str, Session], rows: int, seconds: float) -> None:
    """A line for each session, rows one by one and together."""
    x = np.random.default_rng(1).standard_normal((rows, found.features), np.float32)
    expected = together(sessions["CPU"], x)
    ways: dict[str, Callable[[], Any]] = {}
    for name, session in sessions.items():
        for how, ask in (("one by one", one_by_one), ("together", together)):
            if rows == 1 and ask is one_by_one:
                continue
            # CUDA may multiply float32 as TF32, with 10 bits of mantissa.
            np.testing.assert_allclose(ask(session, x), expected, rtol=0.05, atol=0.05)
            ways[f"{name}, {how}" if rows > 1 else name] = lambda ask=ask, session=session: ask(session, x)
    for name, times in measure(ways, seconds).items():
        middle = statistics.median(times)
        late = np.quantile(times, 0.99)
        print(
            f"  {rows:4} {name:26} {middle * 1e6:11.0f} us {late * 1e6:11.0f} us {rows / middle:11,.0f} rows/s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="CUDA beside the CPU.")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long each way is measured")
    seconds = parser.parse_args().seconds
    works, reason = cuda_status()
    print(f"onnxruntime {runtime_version()}, one thread on the CPU")
    if not works:
        print(f"CUDA is missing, so this is the CPU alone: {reason}")
    ways = WAYS if works else {"CPU": WAYS["CPU"]}
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            found = network(Path(folder), name)
            print(f"\n{name}: {found.features} features, {found.weights:,} weights")
            sessions = {way: load(found, *asked) for way, asked in ways.items()}
            print(f"  {'rows':4} {'':26} {'median':>14} {'p99':>14} {'throughput':>18}")
            for rows in ROWS:
                compare(found, sessions, rows, seconds)


if __name__ == "__main__":
    main()
