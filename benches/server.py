"""A server as a whole: start-up time, memory of a worker and of a loaded version, time of a rollback.

    python benches/server.py

Every figure is a median; the server runs on loopback, and ends with the script.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

import turnout
from turnout.client import Client

ROUNDS = 30
VERSIONS = 20
MEGABYTES = 4


def model(folder: Path, seed: int) -> Path:
    """A linear model with MEGABYTES of weights."""
    width = MEGABYTES * 2**20 // 4 // 64
    weights = np.random.default_rng(seed).standard_normal((64, width), np.float32)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["y"], axes=[1], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [None, 64])],
        [value("y", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = folder / f"{seed}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Server:
    """`turnout serve` on a port of its own choice."""

    def __init__(self, data: Path, workers: int) -> None:
        self.data, self.workers = data, workers

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "turnout", "--data", str(self.data), "serve", "--port", "0"]
        command += ["--workers", str(self.workers), "--drain-seconds", "0"]
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
        ready = 0
        self.url = ""
        for line in self.process.stderr:
            if '"event":"start"' in line:
                self.url = line.split('"url":"')[1].split('"')[0]
            ready += '"event":"ready"' in line
            if ready == self.workers:
                break
        self.seconds = time.perf_counter() - started
        self.port = int(self.url.rpartition(":")[2])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # a full pipe would stop it
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)

    def worker_memory(self) -> float:
        """Mean memory of a worker that it shares with nobody, in MiB."""
        pids = [worker.pid for worker in self.status().workers]
        return statistics.mean(psutil.Process(pid).memory_full_info().uss for pid in pids) / 2**20

    def status(self) -> turnout.Status:
        with Client(self.url) as client:
            return client.status()


def prepare(folder: Path, versions: int) -> Path:
    data = folder / f"data-{versions}"
    with turnout.open(data) as hub:
        for seed in range(versions):
            name = f"m{seed}"
            hub.register_version(name, "v1", model(folder, seed))
            hub.activate_version(name, "v1")
        if versions:
            hub.register_version("m0", "v2", model(folder, versions))
            hub.activate_version("m0", "v2")
    return data


def rollbacks(server: Server) -> list[float]:
    """Seconds of rolling back and forth: from the call to the answer that says that every worker serves it."""
    times = []
    with Client(server.url) as client:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            client.rollback("m0")
            times.append(time.perf_counter() - started)
            assert client.last_change is not None
            assert not client.last_change.pending
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty, full = prepare(folder, 0), prepare(folder, VERSIONS)
        starts, memory = [], []
        for _ in range(5):
            with Server(empty, 1) as server:
                starts.append(server.seconds)
                memory.append(server.worker_memory())
        print(f"start-up to ready, no models, 1 worker: {statistics.median(starts):.2f} s")
        print(f"memory of a worker, no models: {statistics.median(memory):.0f} MiB")
        loaded = []
        for workers in (1, 4):
            with Server(full, workers) as server:
                times = rollbacks(server)
                loaded.append(server.worker_memory())
                print(
                    f"rollback, {workers} workers: median {statistics.median(times) * 1e3:.1f} ms, "
                    f"worst of {ROUNDS} {max(times) * 1e3:.1f} ms"
                )
        each = (statistics.median(loaded) - statistics.median(memory)) / (VERSIONS + 1)
        print(f"memory of a loaded version of {MEGABYTES} MiB: {each:.1f} MiB in each worker")


if __name__ == "__main__":
    main()
