"""Versions change under load: no request fails, and none is answered by a version that was switched away before."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from faults.traffic import Timeline, Traffic, quantile
from models import linear_matrix
from servers import Server

MODEL = "churn"
PREDICTIONS = 20_000
CYCLES = 20
ROWS = np.random.default_rng(0).standard_normal((200, 4)).round(3).astype(np.float32)
WEIGHTS = {"v1": [1.0, 2.0, 3.0, 4.0], "v2": [-1.0, 0.5, 0.25, 8.0], "v3": [0.1, 0.2, 0.3, 0.4]}


def graph(label: str) -> bytes:
    return linear_matrix(WEIGHTS[label], bias=float(label[1:]))


def expected(label: str) -> list[list[float]]:
    """What the model itself answers, row by row, without Turnout."""
    session = onnxruntime.InferenceSession(graph(label), providers=["CPUExecutionProvider"])
    return [session.run(None, {"x": ROWS[row : row + 1]})[0][0].tolist() for row in range(len(ROWS))]


def cycle(server: Server, timeline: Timeline, number: int) -> None:
    """Ten changes: register, activate, start a test, ramp, promote, roll back, stop, delete."""
    client, base = server.client, f"/v1/models/{MODEL}"

    def post(path: str, **body: object) -> Callable[[], object]:
        return lambda: client.post(base + path, json=body).raise_for_status()

    def split(**weights: float) -> Callable[[], object]:
        return lambda: client.put(base + "/test", json={"splits": weights}).raise_for_status()

    timeline.change(post("/activate", version="v2", reason=f"cycle {number}"), {"v2"})
    timeline.change(split(v1=0.5, v2=0.5), {"v1", "v2"})
    timeline.change(split(v1=0.1, v2=0.9), {"v1", "v2"})
    timeline.change(post("/test/promote", version="v1"), {"v1"})
    timeline.change(lambda: server.put(MODEL, "v3", graph("v3")).raise_for_status(), {"v1"})
    timeline.change(split(v1=0.7, v3=0.3), {"v1", "v3"})
    timeline.change(post("/rollback", version="v2"), {"v2"})
    timeline.change(lambda: client.delete(base + "/versions/v3").raise_for_status(), {"v2"})
    timeline.change(split(v1=0.5, v2=0.5), {"v1", "v2"})
    timeline.change(post("/rollback", version="v1"), {"v1"})


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_changes_under_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {label: expected(label) for label in WEIGHTS}
    timeline = Timeline()
    with Server(tmp_path / "data", workers=2) as server:
        server.put(MODEL, "v1", graph("v1")).raise_for_status()
        server.put(MODEL, "v2", graph("v2")).raise_for_status()
        server.activate(MODEL, "v1").raise_for_status()
        timeline.start({"v1"})
        with Traffic(server.port, MODEL, ROWS.tolist()) as traffic:
            while len(traffic.requests) < 2_000:
                pass_time(traffic)
            calm = len(traffic.requests)
            for number in range(CYCLES):
                cycle(server, timeline, number)
            during = len(traffic.requests)
            while len(traffic.requests) < PREDICTIONS:
                pass_time(traffic)

    assert traffic.failures == []
    assert len(timeline.steps) == 1 + 10 * CYCLES
    assert len(traffic.requests) >= PREDICTIONS
    for request in traffic.requests:
        assert request.status == 200, request
        version = request.answer["version"]
        assert version in timeline.allowed(request.began, request.ended), request
        assert np.float32(request.answer["outputs"]["score"]) == np.float32(answers[version][request.row]), (
            request
        )
    assert {request.answer["version"] for request in traffic.requests} == set(WEIGHTS)

    before = [r.ended - r.began for r in traffic.requests[:calm]]
    changing = [r.ended - r.began for r in traffic.requests[calm:during]]
    took = statistics.median(done - called for called, done, _ in timeline.steps[1:])
    with capsys.disabled():
        print(
            f"\n{len(traffic.requests)} predictions, {len(timeline.steps) - 1} changes of {took * 1e3:.1f} ms (median); "
            f"p99 before {quantile(before, 0.99) * 1e3:.2f} ms, during {quantile(changing, 0.99) * 1e3:.2f} ms"
        )


def pass_time(traffic: Traffic) -> None:
    """Wait for more requests; what failed so far ends the wait."""
    assert not traffic.failures, traffic.failures[:3]
    traffic.wait()
