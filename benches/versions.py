"""Many versions: memory, start-up, the first request to a version that is not loaded, and what loading does to others.

    python benches/versions.py [--versions 100] [--workers 2]

Models of 10 MB of weights, each with weights of its own. The server runs on loopback, and ends with the script.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from server import Server

import turnout
from turnout.client import Client

WIDTH = 928
LOADED = 20
CONNECTIONS = 4
SECONDS = 4.0
BODY = json.dumps({"entity_id": "user-1", "features": [0.5] * 20}).encode()


def model(path: Path, seed: int) -> Path:
    """A dense network with 10 MB of weights."""
    numbers = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for layer, (inner, outer) in enumerate(
        ((20, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))
    ):
        matrix = numbers.standard_normal((inner, outer), np.float32) / np.float32(inner**0.5)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", TensorProto.FLOAT, [None, 20])], [value(last, TensorProto.FLOAT, [None, 1])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def memory(server: Server) -> tuple[float, float]:
    """Resident memory of the workers together, and the part of it that each has for itself, in MiB."""
    resident = private = 0
    for worker in server.status().workers:
        found = psutil.Process(worker.pid).memory_full_info()
        resident, private = resident + found.rss, private + found.uss
    return resident / 2**20, private / 2**20


def ask(connection: http.client.HTTPConnection, path: str) -> float:
    """The time of one prediction, in milliseconds."""
    started = time.perf_counter()
    connection.request("POST", path, BODY, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content
    return (time.perf_counter() - started) * 1e3


def steadily(port: int, path: str, seconds: float, times: multiprocessing.Queue) -> None:
    """Predictions over several connections, each after the other; puts their times in milliseconds."""
    found: list[float] = []

    def one() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        ask(connection, path)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found.append(ask(connection, path))

    threads = [threading.Thread(target=one) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.put(found)


def measured(port: int, path: str, seconds: float, beside=lambda: None) -> list[float]:
    times: multiprocessing.Queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=steadily, args=(port, path, seconds, times))
    process.start()
    time.sleep(0.5)
    beside()
    found = times.get(timeout=seconds + 60)
    process.join()
    return sorted(found)


def at(found: list[float], share: float) -> float:
    return found[min(len(found) - 1, int(len(found) * share))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    count, workers = options.versions, options.workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = [f"v{number}" for number in range(count)]
        with turnout.open(folder / "one") as one, turnout.open(folder / "many") as many:
            for number, label in enumerate(labels):
                path = model(folder / "model.onnx", number)
                one.register_version("m", label, path, features=[f"f{i}" for i in range(20)])
                many.register_version(f"m{number}", "v", path, features=[f"f{i}" for i in range(20)])
                many.activate_version(f"m{number}", "v")
            one.activate_version("m", "v0")
            size = path.stat().st_size / 2**20
        with Server(folder / "one", workers) as server:
            resident, private = memory(server)
            print(f"{count} versions of {size:.1f} MiB, {workers} workers; one of them active: ready after {server.seconds:.2f} s; "
                  f"{resident:.0f} MiB resident, {private:.0f} MiB private")  # fmt: skip
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            warm = [ask(connection, "/v1/models/m/predict") for _ in range(200)]
            cold = [ask(connection, f"/v1/models/m/versions/{label}/predict") for label in labels[1:41]]
            print(f"first request to a version that is not loaded: {statistics.median(cold):.1f} ms (worst {max(cold):.1f}); "
                  f"one that is loaded: {statistics.median(warm):.2f} ms")  # fmt: skip
            ratios = []
            with Client(server.url) as client:
                for round_ in range(options.rounds):
                    before = measured(server.port, "/v1/models/m/predict", SECONDS)

                    def load(round_: int = round_) -> None:
                        for step in range(LOADED):
                            label = labels[1 + (round_ * LOADED + step) % (count - 1)]
                            client.configure_test("m", {"v0": 0.999, label: 0.001})
                            client.stop_test("m")

                    during = measured(server.port, "/v1/models/m/predict", SECONDS, load)
                    ratios.append(at(during, 0.99) / at(before, 0.99))
                    print(f"p50 / p99 before {at(before, 0.5):.2f} / {at(before, 0.99):.2f} ms, while {LOADED} versions load "
                          f"{at(during, 0.5):.2f} / {at(during, 0.99):.2f} ms: {ratios[-1]:.2f} x", flush=True)  # fmt: skip
            print(f"p99 while {LOADED} versions load against before: median {statistics.median(ratios):.2f} x "
                  f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
        with Server(folder / "many", workers) as server:
            after, private_after = memory(server)
            each = (private_after - private) / workers / (count - 1)
            print(f"{count} models, each with an active version: ready after {server.seconds:.2f} s; {after:.0f} MiB resident, "
                  f"{private_after:.0f} MiB private: {each:.1f} MiB a version in each worker, {each / size:.2f} x its file")  # fmt: skip


if __name__ == "__main__":
    main()
