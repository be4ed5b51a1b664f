"""Shadows, and the champion's scores of the candidate's entities: run after the answer has gone, on copies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import turnout
from models import constant_label, failing_model, linear_matrix
from servers import wait_for
from turnout import copies
from turnout.config import Settings
from turnout.service import Turnout


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Turnout]:
    with turnout.open(tmp_path / "data", device="cpu") as opened:
        yield opened


def register(hub: Turnout, tmp_path: Path, **graphs: bytes) -> None:
    for version, graph in graphs.items():
        (tmp_path / version).write_bytes(graph)
        hub.register_version("m", version, tmp_path / version, features=["a", "b"])
    hub.activate_version("m", next(iter(graphs)))


def shadowed(hub: Turnout, share: float = 1.0) -> None:
    plan = {"steps": [{"shadow": share, "min_entities": 50}, {"share": 0.5}]}
    hub.configure_test("m", {"v1": 1.0, "v2": 0.0}, plan=plan)


def settled(hub: Turnout) -> Any:
    """What shadows did, once all copies have run."""
    wait_for(lambda: not hub.copies._held, 10, "nothing left to run")
    hub.copies.flush()
    return hub.results("m").shadow


def test_a_shadow_answers_nothing_and_is_compared(hub: Turnout, tmp_path: Path) -> None:
    register(hub, tmp_path, v1=linear_matrix([1.0, 0.0]), v2=linear_matrix([1.0, 0.5]))
    shadowed(hub)
    answers = [hub.predict("m", [n, n % 2], entity_id=n) for n in range(100)]
    assert {answer.version for answer in answers} == {"v1"}
    shadow = settled(hub)
    assert (shadow.version, shadow.counts.pairs, shadow.counts.failed) == ("v2", 100, 0)
    assert shadow.agreement == 0.5  # where the second feature is 0
    assert shadow.mean_difference == pytest.approx(0.25)
    assert shadow.largest_difference == pytest.approx(0.5)
    assert shadow.mean_seconds > 0
    assert shadow.mean_shadow_seconds > 0
    results = hub.results("m")
    assert results.segments[0].requests["v2"] == 0  # its runs are no requests
    assert "more requests" not in str(results.waiting_for)


def test_classes_agree_when_the_likeliest_is_the_same(hub: Turnout, tmp_path: Path) -> None:
    register(hub, tmp_path, v1=constant_label(0), v2=constant_label(1))
    shadowed(hub)
    for n in range(20):
        hub.predict("m", [n, 0], entity_id=n)
    assert settled(hub).agreement == 1.0


def test_a_share_of_the_requests(hub: Turnout, tmp_path: Path) -> None:
    register(hub, tmp_path, v1=constant_label(0), v2=constant_label(1))
    shadowed(hub, 0.25)
    for n in range(400):
        hub.predict("m", [n, 0], entity_id=n)
        if n % 50 == 0:
            wait_for(lambda: not hub.copies._queue, 10, "an empty queue")
    counts = settled(hub).counts
    assert 50 < counts.pairs + counts.dropped < 160


def test_a_shadow_that_fails_harms_nobody(hub: Turnout, tmp_path: Path) -> None:
    register(hub, tmp_path, v1=constant_label(0), v2=failing_model())
    shadowed(hub)
    answers = [hub.predict("m", [1, 0], entity_id=n) for n in range(60)]
    assert {(answer.version, answer.reason) for answer in answers} == {("v1", "test")}
    assert settled(hub).counts.failed == 60
    assert hub.results("m").recommendation == "roll_back"
    assert "the shadow failed on 60 of 60" in hub.results("m").reason


def test_what_finds_the_queue_full_is_dropped_and_counted(
    hub: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(hub, tmp_path, v1=constant_label(0), v2=constant_label(1))
    shadowed(hub)
    gate = threading.Event()
    one = hub.copies._one
    monkeypatch.setattr(hub.copies, "_one", lambda copy: (gate.wait(20), one(copy)))
    began = time.monotonic()
    for n in range(copies.WAITING + 100):
        hub.predict("m", [n, 0], entity_id=n)
    assert time.monotonic() - began < 5  # nobody waited for the shadow
    gate.set()
    counts = settled(hub).counts
    assert counts.dropped >= 99
    assert counts.pairs + counts.dropped == copies.WAITING + 100


def test_a_server_shadows_what_runs_together(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path / "data"), device="cpu", controller=False)
    with Turnout(settings, server=True) as hub:
        register(hub, tmp_path, v1=linear_matrix([1.0, 0.0]), v2=linear_matrix([1.0, 0.0]))
        shadowed(hub)
        hub.start_worker()
        serving = hub.current().serving("m")
        bodies = [b'{"entity_id": "u%d", "features": [%d, 1]}' % (n, n) for n in range(8)]
        answers = hub.predictor.respond_each(serving, bodies, [time.perf_counter_ns()] * 8)
        assert {status for status, _ in answers} == {200}
        assert (settled(hub).counts.pairs, settled(hub).agreement) == (8, 1.0)


def test_the_champions_score_takes_variance_out(
    hub: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUPED: what is spent follows the baseline's own prediction, so that most of its spread is known before."""
    register(hub, tmp_path, v1=linear_matrix([1.0, 0.0]), v2=linear_matrix([0.0, 1.0]))
    hub.declare_metrics("m", [{"name": "spent", "kind": "mean", "role": "primary", "window_seconds": 3600}])
    plan = {"steps": [{"share": 0.5, "dwell_seconds": 99}], "covariate": True}
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5}, plan=plan)
    draw = np.random.default_rng(3)
    for n in range(400):
        level = float(draw.uniform(0, 100))
        answer = hub.predict("m", [level, 0], entity_id=n)
        value = level + float(draw.normal(0, 1)) + 2 * (answer.version == "v2")
        hub.record_outcomes(
            [{"model": "m", "metric": "spent", "value": value, "prediction_id": answer.prediction_id}]
        )
        if n % 100 == 99:
            settled(hub)
    hub.desk.exposures.flush()
    settled(hub)
    matured = hub.desk.clock.matured_ms
    monkeypatch.setattr(hub.desk.clock, "matured_ms", lambda: matured() + 3_602_000)
    effect = hub.results("m").metrics[0].effects[0]
    assert effect.variance_reduced
    low, high = effect.interval
    assert low < 2 < high
    assert high - low < 2  # without the covariate it would be some 20 wide
    assert effect.effect == "better"
