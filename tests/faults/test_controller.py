"""The whole loop on a real server: traffic, outcomes, and a controller that acts by itself, also when it is killed."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import turnout
from models import constant_label, failing_model, linear_matrix
from servers import Server, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

ERRORS = {"metric": "errors", "margin": 0.1}


class Crowd:
    """Entities that come once each, by `connections` at once, and what `then` does with each answer."""

    def __init__(
        self,
        server: Server,
        features: Callable[[int], list[float]] = lambda _: [0.0, 0.0],
        then: Callable[[int, dict[str, Any], http.client.HTTPConnection], None] = lambda *_: None,
        connections: int = 6,
        pause: float = 0.0,
    ) -> None:
        self._server, self._features, self._then, self._pause = server, features, then, pause
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self.answers: list[tuple[float, str, str]] = []
        self.broken = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(connections)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
        while not self._stop.is_set():
            number = next(self._numbers)
            body = {"entity_id": f"u{number}", "features": self._features(number)}
            try:
                answer = send(connection, "/v1/models/m/predict", body)
                self.answers.append((time.monotonic(), answer["version"], answer["reason"]))
                self._then(number, answer, connection)
            except (OSError, http.client.HTTPException):
                self.broken += 1  # the worker was killed
                connection.close()
                connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
            time.sleep(self._pause)
        connection.close()


def send(connection: http.client.HTTPConnection, path: str, body: object) -> Any:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return json.loads(connection.getresponse().read())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", workers=2) as running:
        yield running


def configure(server: Server, splits: dict[str, float], plan: dict[str, Any]) -> None:
    answer = server.client.put("/v1/models/m/test", json={"splits": splits, "plan": plan})
    assert answer.status_code == 200, answer.text


def running(server: Server) -> bool:
    return server.client.get("/v1/models/m/test").status_code == 200


def actions(server: Server) -> list[str]:
    events = server.client.get("/v1/audit", params={"model": "m"}).json()
    return [event["action"] for event in events if event["actor"] == "controller"]


def test_a_version_that_fails_five_percent_is_gone_by_itself(server: Server) -> None:
    server.release("m", "v1", constant_label(0))
    assert server.put("m", "v2", failing_model(1)).status_code == 201
    plan = {"steps": [{"share": 0.1, "dwell_seconds": 60}, {"share": 0.5}], "guardrails": [ERRORS]}
    configure(server, {"v1": 0.9, "v2": 0.1}, plan)
    with Crowd(server, lambda number: [float(number % 20 == 0), 0.0]) as crowd:
        wait_for(lambda: not running(server), 30, lambda: f"a rollback; {server.log_text()}")
        after = len(crowd.answers)
        wait_for(lambda: len(crowd.answers) > after + 500, 20, "more answers")
    assert {version for _, version, _ in crowd.answers[after + 50 :]} == {"v1"}
    assert {reason for _, _, reason in crowd.answers[after + 50 :]} == {"active"}
    assert actions(server)[-1] == "roll_back"
    results = server.client.get("/v1/models/m/test/results").json()
    assert results["recommendation"] == "roll_back"
    assert "v2" in results["reason"]
    event = server.client.get("/v1/audit", params={"model": "m"}).json()[-1]
    (guardrail,) = event["after"]["evidence"]["guardrails"]
    assert guardrail["log_e"] >= 4.6  # ln 100
    assert guardrail["events"]["v2"] > guardrail["events"]["v1"] == 0
    time.sleep(1)
    assert not running(server)  # nothing starts again by itself


def test_a_version_with_better_labels_is_promoted_by_itself(server: Server) -> None:
    # Both answer with the probability of a class: v1 always with 0, v2 with the first feature, which is the truth.
    server.release("m", "v1", linear_matrix([0.0, 0.0]))
    assert server.put("m", "v2", linear_matrix([1.0, 0.0])).status_code == 201
    metric = {"name": "truth", "kind": "label", "role": "primary", "classes": [0, 1], "window_seconds": 0.5}
    assert server.client.put("/v1/models/m/metrics", json={"metrics": [metric]}).status_code == 200
    plan = {
        "steps": [{"share": 0.2, "min_entities": 100}, {"share": 0.5, "min_entities": 200}],
        "guardrails": [ERRORS, {"metric": "truth", "margin": 0.05}],
        "negligible": 0.05,
        "alpha": 0.05,
    }

    def label(number: int, answer: dict[str, Any], connection: http.client.HTTPConnection) -> None:
        item = {
            "model": "m",
            "metric": "truth",
            "value": number % 2,
            "prediction_id": answer["prediction_id"],
        }
        assert send(connection, "/v1/outcomes", item)["state"] == "attributed"

    configure(server, {"v1": 0.8, "v2": 0.2}, plan)
    with Crowd(server, lambda number: [float(number % 2), 0.0], label, connections=4):
        wait_for(lambda: not running(server), 60, lambda: f"a promotion; {server.log_text()}")
    assert [one for one in actions(server) if one != "calibrate"] == ["advance", "promote"]
    assert server.client.get("/v1/models/m").json()["active"] == "v2"
    results = server.client.get("/v1/models/m/test/results").json()
    assert results["metrics"][0]["effects"][0]["effect"] == "better"
    assert results["recommendation"] == "promote"
    live = {found["version"]: found["live"]["accuracy"] for found in results["quality"]}
    assert live["v2"] == 1.0
    assert 0.4 < live["v1"] < 0.6


def test_a_healthy_version_is_never_rolled_back(server: Server) -> None:
    server.release("m", "v1", constant_label(0))
    assert server.put("m", "v2", constant_label(1)).status_code == 201
    plan = {
        "steps": [{"share": 0.3, "min_entities": 60}, {"share": 0.5, "min_entities": 60}],
        "guardrails": [ERRORS, {"metric": "fallbacks", "margin": 0.1}, {"metric": "invalid", "margin": 0.1}],
        "negligible": 0.05,
        "alpha": 0.05,
    }
    with Crowd(server, connections=4):
        for run in range(20):
            active = server.client.get("/v1/models/m").json()["active"]
            other = "v2" if active == "v1" else "v1"
            configure(server, {active: 0.7, other: 0.3}, plan)
            wait_for(
                lambda: not running(server), 20, lambda run=run: f"the end of run {run}; {server.log_text()}"
            )
            assert server.client.get("/v1/models/m").json()["active"] == other
    found = [one for one in actions(server) if one != "calibrate"]
    assert found == ["advance", "promote"] * 20


def test_killing_the_controller_loses_no_outcome_and_repeats_no_decision(server: Server) -> None:
    server.release("m", "v1", constant_label(0))
    assert server.put("m", "v2", constant_label(1)).status_code == 201
    metrics = [{"name": "seen", "kind": "count", "role": "primary", "window_seconds": 0.3}]
    assert server.client.put("/v1/models/m/metrics", json={"metrics": metrics}).status_code == 200
    steps = [
        {"share": share, "dwell_seconds": 1.5, "min_entities": 30} for share in (0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    plan = {"steps": steps, "guardrails": [ERRORS], "negligible": 0.05, "alpha": 0.05, "at_end": "hold"}
    acknowledged: set[str] = set()

    def outcome(number: int, answer: dict[str, Any], connection: http.client.HTTPConnection) -> None:
        item = {
            "model": "m",
            "metric": "seen",
            "value": 1,
            "prediction_id": answer["prediction_id"],
            "id": str(number),
        }
        if send(connection, "/v1/outcomes", item)["state"] == "attributed":
            acknowledged.add(answer["prediction_id"])

    configure(server, {"v1": 0.9, "v2": 0.1}, plan)
    lock = server.data / "controller.lock"
    taken: list[float] = []
    with Crowd(server, then=outcome, connections=4, pause=0.002) as crowd:
        for _ in range(3):
            time.sleep(0.7)
            leader = int(lock.read_text())
            os.kill(leader, signal.SIGKILL)
            killed = time.monotonic()
            wait_for(
                lambda leader=leader: int(lock.read_text() or leader) != leader, 10, "another controller"
            )
            taken.append(time.monotonic() - killed)
        wait_for(
            lambda: server.client.get("/v1/models/m/test").json()["step"] == len(steps) - 1,
            60,
            lambda: f"the last step; {server.log_text()}",
        )
    assert crowd.broken > 0
    assert max(taken) < 2.0
    events = server.client.get("/v1/audit", params={"model": "m"}).json()
    advances = [event["after"]["step"] for event in events if event["action"] == "advance"]
    assert advances == [1, 2, 3, 4]
    with turnout.open(server.data) as hub:
        stored = [logged for logged in hub.desk.events.outcomes("m") if logged.state == "attributed"]
        entities = {hub.read_receipt("m", one).entity for one in acknowledged}
    assert len(acknowledged) > 300
    assert entities <= {logged.entity for logged in stored}
    assert len({logged.entity for logged in stored}) == len(stored)
