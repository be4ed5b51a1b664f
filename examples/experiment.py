"""Two releases that decide themselves: a better version is promoted, one that fails for some customers is rolled back.

python examples/experiment.py

It starts a server, sends it predictions and what became of the customers, and changes nothing after the release: the
server's controller does. Steps, windows and limits are those of a demonstration of seconds; yours are hours and days.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper, save

METRICS = [
    {"name": "stayed", "kind": "binary", "role": "primary", "window_seconds": 0.2},
    {"name": "spent", "kind": "mean", "role": "guardrail", "margin": 0.2, "window_seconds": 0.2},
]
PLAN = {
    "steps": [{"share": 0.2, "min_entities": 200}, {"share": 0.5, "min_entities": 400, "dwell_seconds": 0.5}],
    # So few entities cannot show that errors are rarer than 0.5 %, the default; they can for 2 %.
    "guardrails": [{"metric": "errors", "margin": 0.1, "hard_limit": 0.5}],
    "negligible": 0.02,
}
STAYS = {"v1.0": 0.5, "v2.0": 0.65, "v3.0": 0.7}
DEADLINE = 25.0


def write_model(path: Path, weight: float, regions: int) -> None:
    """`score = spent * weight` for customers of so many regions; it fails on any other. Use your own file instead."""
    nodes: list[NodeProto] = [
        helper.make_node("Gather", ["features", "first"], ["spent"], axis=1),
        helper.make_node("Gather", ["features", "second"], ["column"], axis=1),
        helper.make_node("Cast", ["column"], ["region"], to=TensorProto.INT64),
        helper.make_node("GatherND", ["weights", "region"], ["found"]),
        helper.make_node("Unsqueeze", ["found", "axis"], ["weight"]),
        helper.make_node("Mul", ["spent", "weight"], ["score"]),
    ]
    constants = {
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "axis": np.array([1], np.int64),
        "weights": np.full(regions, weight, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "regions",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """A server on a free port, and a client for its model `churn`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "turnout", "--data", str(folder / "data"), "serve", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--drain-seconds", "0"], stderr=log, env={**os.environ, "TURNOUT_DEVICE": "cpu"}
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until_ready(client, server, folder / "log")
            yield client
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(client: httpx.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + DEADLINE
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/readyz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    sys.exit(f"the server did not start:\n{log.read_text()}")


def call(client: httpx.Client, method: str, path: str, **arguments: Any) -> Any:  # noqa: ANN401
    """Call a route; a problem document becomes an error that says what it says."""
    response = client.request(method, path, **arguments)
    if response.is_error:
        sys.exit(f"{method} {path}: {response.text}")
    return response.json()


def customers(start: int, count: int) -> list[dict[str, Any]]:
    """New customers, of eight regions."""
    return [
        {"entity_id": f"user-{number}", "features": [random.gammavariate(2, 40), float(number % 8)]}
        for number in range(start, start + count)
    ]


def serve_customers(client: httpx.Client, start: int, count: int) -> None:
    """Ask about new customers, and report what became of them."""
    asked = customers(start, count)
    body = {
        "entity_ids": [one["entity_id"] for one in asked],
        "rows": [one["features"] for one in asked],
    }
    answer = call(client, "POST", "/v1/models/churn/batch", json=body)
    outcomes: list[dict[str, Any]] = []
    for one, index in zip(asked, answer["version_index"], strict=True):
        told = {"model": "churn", "entity_id": one["entity_id"]}
        stayed = random.random() < STAYS[answer["versions"][index]]
        outcomes.append({**told, "metric": "stayed", "value": stayed})
        outcomes.append({**told, "metric": "spent", "value": one["features"][0]})
    call(client, "POST", "/v1/outcomes", json=outcomes)


def release(client: httpx.Client, version: str, start: int) -> int:
    """Start a test with the plan and send customers until it is over; where the next ones begin."""
    model = "/v1/models/churn"
    active = call(client, "GET", model)["active"]
    splits = {active: 0.5, version: 0.5}
    test = call(client, "PUT", f"{model}/test", json={"splits": splits, "plan": PLAN, "reason": "release"})
    print(f"\n{version} is tested against {active}")
    deadline, said = time.monotonic() + DEADLINE, ""
    while True:
        results = call(client, "GET", f"{model}/test/results", params={"test": test["id"]})
        if results["status"] != "running":
            break
        if time.monotonic() > deadline:
            sys.exit(f"the test did not end within {DEADLINE:g} s: {results['decision']}")
        share = f"{version} has {results['shares'][version]:.0%} of the traffic"
        if share != said:
            print(share)
            said = share
        serve_customers(client, start, 100)
        start += 100
    for event in call(client, "GET", f"{model}/history")["events"]:
        if event["actor"] == "controller" and event.get("after", {}).get("test") == test["id"]:
            print(f"{event['action']}: {event['reason']}")
    print(f"the test was {results['status'].replace('_', ' ')}: {results['reason']}")
    return start


def main(folder: Path) -> None:
    """Release v2.0, which is better, and then v3.0, which does not know one of the regions."""
    for label, weight, regions in (("v1.0", 0.010, 8), ("v2.0", 0.012, 8), ("v3.0", 0.013, 7)):
        write_model(folder / f"{label}.onnx", weight, regions)
    random.seed(7)
    with served(folder) as client:
        for label in STAYS:
            with (folder / f"{label}.onnx").open("rb") as file:
                call(client, "PUT", f"/v1/models/churn/versions/{label}", files={"artifact": file})
        body = {"version": "v1.0", "reason": "first release"}
        call(client, "POST", "/v1/models/churn/activate", json=body)
        call(client, "PUT", "/v1/models/churn/metrics", json={"metrics": METRICS})
        start = release(client, "v2.0", 0)
        release(client, "v3.0", start)
        print(f"\n{call(client, 'GET', '/v1/models/churn')['active']} is active")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
