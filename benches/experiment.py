"""What experiments cost and how fast they act: noting on the way of a prediction, outcomes, the rollback, a crash.

    python benches/experiment.py [notes|outcomes|rollback|crash]

Prints medians; `notes` pairs a route that signs and notes with one that does neither, in turn.
"""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

import turnout
from turnout import _core
from turnout.experiment.statistics.counts import Segment, log_e_worse

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import models
from servers import Server, wait_for

NAMES = [f"featureNumber{n}" for n in range(20)]
CALLS = 20_000
ROUNDS = 15
OUTCOMES = 100_000
CHUNK = 10_000


def routes() -> dict[str, _core.Route]:
    """The same model and test: signed and noted, signed, and neither."""
    plan = _core.VersionPlan(
        "v1", "matrix", ["float32"], [(n, "float", (), None, False) for n in NAMES], ["p"], 0
    )
    ledger, _ = _core.Ledger.start("v1").apply({"v1": 0.5, "v2": 0.5})
    split = _core.Split(ledger, "m/1")
    signer = _core.Signer(bytes(range(32)), "m")
    head = ("m", [plan, plan], ["v1", "v2"], 0, split, [0, 1], {}, NAMES)
    return {
        "neither": _core.Route(*head),
        "signed": _core.Route(*head, signer, [1, 2], (1, 1), None),
        "noted": _core.Route(*head, signer, [1, 2], (1, 1), _core.Watch(2, [10**6 * n for n in range(1, 7)])),
    }


def notes() -> None:
    """Nanoseconds of preparing and encoding one prediction, and what signing and noting add."""
    found = routes()
    bodies = [json.dumps({"entity_id": f"user-{n}", "features": [0.5] * 20}).encode() for n in range(CALLS)]
    outputs = [np.array([[0.25, 0.75]], np.float32)]
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(ROUNDS):
        for name, route in found.items():
            # Each round has entities of its own, so that every one of them is new and is noted.
            fresh = [body.replace(b"user-", b"%d-" % number) for body in bodies]
            began = time.perf_counter_ns()
            for body in fresh:
                position, reason, _, entity = route.prepare(body)
                route.encode(position, reason, outputs, entity, 350_000)
            times[name].append((time.perf_counter_ns() - began) / CALLS)
    medians = {name: statistics.median(one) for name, one in times.items()}
    for name in ("signed", "noted"):
        added = [a - b for a, b in zip(times[name], times["neither"], strict=True)]
        print(
            f"{name}: {medians[name]:.0f} ns, beside {medians['neither']:.0f} ns: "
            f"{statistics.median(added):+.0f} ns a prediction"
        )


def outcomes() -> None:
    """Outcomes a second on one core, answered after a durable commit, with and without id."""
    with tempfile.TemporaryDirectory() as folder, turnout.open(folder) as hub:
        _two(hub, folder)
        hub.declare_metrics("m", [{"name": "bought", "kind": "binary", "window_seconds": 3600}])
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
        ids = [f"u{n}" for n in range(OUTCOMES)]
        began = time.perf_counter()
        hub.predict_batch("m", np.zeros((OUTCOMES, 2), np.float32), entity_ids=ids)
        hub.desk.exposures.flush()
        print(f"exposures: {OUTCOMES / (time.perf_counter() - began):,.0f} a second, with the predictions")
        time.sleep(1.5)
        for kind in ("with id", "without id"):
            rates: list[float] = []
            for number in range(3):
                bodies = [
                    msgspec.json.encode(
                        [
                            turnout.Outcome(
                                "m",
                                "bought",
                                1,
                                entity_id=one,
                                id=f"{number}{one}" if kind == "with id" else None,
                            )
                            for one in ids[start : start + CHUNK]
                        ]
                    )
                    for start in range(0, OUTCOMES, CHUNK)
                ]
                began = time.process_time()
                for body in bodies:
                    hub.record_outcomes(msgspec.json.decode(body, type=list[turnout.Outcome]))
                rates.append(OUTCOMES / (time.process_time() - began))
            print(f"outcomes {kind}: {statistics.median(rates):,.0f} a second of one core, JSON included")


def rollback() -> None:
    """Seconds from the request that crosses the threshold to the last answer of the bad version, with 4 workers."""
    found = [_rollback_once() for _ in range(5)]
    print(
        f"threshold to last answer, 4 workers: median {statistics.median(found):.3f} s, worst {max(found):.3f} s"
    )


def _rollback_once() -> float:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data", workers=4) as server:
        server.release("m", "v1", models.constant_label(0))
        assert server.put("m", "v2", models.failing_model(1)).status_code == 201
        plan = {
            "steps": [{"share": 0.1, "dwell_seconds": 60}, {"share": 0.5}],
            "guardrails": [{"metric": "errors", "margin": 0.1}],
        }
        answers: list[tuple[float, str, str]] = []
        stop, numbers = threading.Event(), itertools.count()

        def send() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            while not stop.is_set():
                number = next(numbers)
                body = {"entity_id": f"u{number}", "features": [int(number % 20 == 0), 0]}
                connection.request(
                    "POST", "/v1/models/m/predict", json.dumps(body), {"Content-Type": "application/json"}
                )
                answer = json.loads(connection.getresponse().read())
                answers.append((time.perf_counter(), answer["version"], answer["reason"]))

        with turnout.open(Path(folder) / "data") as hub:
            threads = [threading.Thread(target=send) for _ in range(8)]
            hub.configure_test("m", {"v1": 0.9, "v2": 0.1}, plan=plan)
            for thread in threads:
                thread.start()
            wait_for(lambda: hub.get_test("m") is None, 30, "the rollback")
            time.sleep(0.5)
            stop.set()
            for thread in threads:
                thread.join()
        failures = sorted(when for when, _, reason in answers if reason == "fallback")
        crossed = next(
            when
            for count, when in enumerate(failures, 1)
            if log_e_worse([Segment(0.1, count, 0)], 0.1) >= math.log(100)
        )
        return (
            max(when for when, version, reason in answers if version == "v2" or reason == "fallback")
            - crossed
        )


def crash() -> None:
    """Exposures that are lost when every process of a server is killed at full traffic, in seconds of its traffic."""
    lost: list[float] = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data") as server:
            server.release("m", "v1", models.constant_label(0))
            server.put("m", "v2", models.constant_label(1))
            with turnout.open(Path(folder) / "data") as hub:
                hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
                seen: list[tuple[float, str]] = []
                connection = http.client.HTTPConnection("127.0.0.1", server.port)
                began = time.perf_counter()
                for number in itertools.count():
                    body = json.dumps({"entity_id": f"u{number}", "features": [0, 0]})
                    connection.request(
                        "POST", "/v1/models/m/predict", body, {"Content-Type": "application/json"}
                    )
                    connection.getresponse().read()
                    seen.append((time.perf_counter(), f"u{number}"))
                    if time.perf_counter() - began > 1.5 + number % 7 * 0.03:
                        break
                for process in [*server.family(), server.process]:
                    os.kill(process.pid, signal.SIGKILL)
                killed = seen[-1][0]
                server.process.wait()
                time.sleep(0.3)
                stored = {entity for _, entity, _ in hub.desk.events.exposures("m", [1])}
                missing = [when for when, one in seen if hub.desk.signers.entity(one) not in stored]
                lost.append(killed - min(missing) if missing else 0.0)
    print(f"lost in a crash: median {statistics.median(lost):.3f} s of exposures, worst {max(lost):.3f} s")


def _two(hub: turnout.Turnout, folder: str) -> None:
    for label, version in enumerate(("v1", "v2")):
        path = Path(folder) / f"{version}.onnx"
        path.write_bytes(models.constant_label(label))
        hub.register_version("m", version, path, features=["a", "b"])
    hub.activate_version("m", "v1")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["notes", "outcomes", "rollback", "crash"]
    for name in chosen:
        {"notes": notes, "outcomes": outcomes, "rollback": rollback, "crash": crash}[name]()
