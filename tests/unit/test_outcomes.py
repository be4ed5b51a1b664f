"""Exposures and outcomes: what is stored of whom, and what becomes of each outcome."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import turnout
from models import constant_label, failing_model, linear_matrix
from turnout import errors
from turnout.domain import utc_now
from turnout.experiment.outcomes import MAX_OUTCOMES, single
from turnout.experiment.receipts import KEY_FILE, Signers
from turnout.plans import Metric

BOUGHT = {"name": "bought", "kind": "binary", "role": "primary", "window_seconds": 3600}
SPENT = {"name": "spent", "kind": "mean", "window_seconds": 3600}
VISITS = {"name": "visits", "kind": "count", "window_seconds": 3600}
LABEL = {"name": "label", "kind": "label", "window_seconds": 3600}


def register(hub: turnout.Turnout, **graphs: bytes) -> None:
    for version, graph in graphs.items():
        path = hub.data / f"{version}.onnx"
        path.write_bytes(graph)
        hub.register_version("m", version, path, features=["a", "b"])
    hub.activate_version("m", next(iter(graphs)))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[turnout.Turnout]:
    with turnout.open(tmp_path / "data", device="cpu") as opened:
        register(opened, v1=constant_label(0), v2=constant_label(1))
        opened.declare_metrics("m", [BOUGHT, SPENT, VISITS, LABEL])
        yield opened


def tell(hub: turnout.Turnout, **fields: Any) -> turnout.Attributed:
    return single(hub.record_outcomes([{"model": "m", **fields}]))


def counts(hub: turnout.Turnout, arm: str, metric: str) -> tuple[int, float]:
    """Matured entities of an arm, and the sum of their values."""
    result = next(found for found in hub.results("m").metrics if found.metric == metric)
    one = next(found for found in result.arms if found.version == arm)
    return one.matured, (one.estimate or 0.0) * one.matured


def as_if_ago(monkeypatch: pytest.MonkeyPatch, hub: turnout.Turnout, seconds: float) -> None:
    """Let everything that was stored have happened so long ago."""
    later = hub.desk.clock.matured_ms
    monkeypatch.setattr(hub.desk.clock, "matured_ms", lambda: later() + round(seconds * 1000))


# --- what is stored -------------------------------------------------------------------------------------------------


def test_an_entity_is_exposed_once_however_often_it_comes(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    answers = {n: hub.predict("m", [1, 2], entity_id=n % 50) for n in range(200)}
    hub.predict_batch("m", np.zeros((50, 2), np.float32), entity_ids=list(range(50)))
    results = hub.results("m")
    expected = Counter(answer.version for n, answer in answers.items() if n < 50)
    assert results.segments[0].assigned == results.segments[0].answered == dict(expected)
    assert results.entities == 50
    assert sum(results.segments[0].requests.values()) == 250
    assert results.sample_ratio[0].counted == dict(expected)


def test_requests_that_no_test_decides_expose_nobody(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    hub.set_override("m", "qa", "v2")
    hub.predict("m", [1, 2], entity_id="qa")
    hub.predict("m", [1, 2], entity_id="user", version="v2")
    hub.predict("m", [1, 2])  # a random slot: counted, but nobody was exposed
    results = hub.results("m")
    assert results.entities == 0
    assert sum(results.segments[0].requests.values()) == 1


def test_a_failure_is_a_bad_event_of_its_entity_once(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        register(hub, v1=constant_label(0), v2=failing_model())
        hub.configure_test("m", {"v1": 0.0, "v2": 1.0})
        for n in range(30):
            assert hub.predict("m", [1, 0], entity_id=n % 10).reason == "fallback"
        hub.predict_batch("m", [[1, 0]] * 5, entity_ids=[100, 101, 102, 103, 104])
        hub.predict("m", [0, 0], entity_id=200)
        found = {bad.metric: bad.events["v2"] for bad in hub.results("m").bad_events}
        assert (found["errors"], found["fallbacks"]) == (15, 15)
        assert hub.results("m").segments[0].assigned["v2"] == 16
        assert hub.results("m").segments[0].answered["v2"] == 1


def test_a_score_that_is_no_number_is_a_bad_event(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        register(hub, v1=linear_matrix([1.0, 1.0]), v2=linear_matrix([float("nan"), 1.0]))
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
        for n in range(40):
            hub.predict("m", [1, 0], entity_id=n)
        invalid = next(bad for bad in hub.results("m").bad_events if bad.metric == "invalid")
        assert invalid.events["v2"] == invalid.requests["v2"] > 0
        assert invalid.events["v1"] == 0


def test_moving_between_arms_leaves_an_entity_out(
    hub: turnout.Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.configure_test("m", {"v1": 1.0, "v2": 0.0})
    for n in range(100):
        hub.predict("m", [1, 2], entity_id=n)
        tell(hub, metric="bought", value=1, entity_id=n)
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    moved = sum(hub.predict("m", [1, 2], entity_id=n).version == "v2" for n in range(100))
    results = hub.results("m")
    assert results.crossed == moved / 100 > 0.2
    assert results.crossed_warning
    as_if_ago(monkeypatch, hub, 3601)
    # In the first segment only those count that stayed, and so in the second, where nobody has bought again.
    matured, bought = counts(hub, "v1", "bought")
    assert (matured, bought) == (2 * (100 - moved), pytest.approx(100 - moved))
    assert counts(hub, "v2", "bought") == (0, 0.0)


def test_an_entity_that_failed_first_is_answered_later(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", device="cpu", fallback=False) as hub:
        register(hub, v1=constant_label(0), v2=failing_model())
        hub.configure_test("m", {"v1": 0.0, "v2": 1.0})
        with pytest.raises(errors.PredictionFailed):
            hub.predict("m", [1, 0], entity_id="u")
        assert hub.results("m").segments[0].answered["v2"] == 0
        hub.predict("m", [0, 0], entity_id="u")
        assert hub.results("m").segments[0].answered["v2"] == 1
        assert hub.results("m").segments[0].assigned["v2"] == 1


def test_the_distribution_of_scores(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        register(hub, v1=linear_matrix([1.0, 0.0]), v2=linear_matrix([1.0, 0.0], 0.5))
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
        answers = {n: hub.predict("m", [n % 50 / 100, 0], entity_id=n) for n in range(400)}
        found = {scores.version: scores for scores in hub.results("m").scores}
        for version, scores in found.items():
            mine = [answer.outputs["score"][0] for answer in answers.values() if answer.version == version]
            assert scores.entities == len(mine)
            assert scores.mean == pytest.approx(np.mean(mine))
            assert scores.deviation == pytest.approx(np.std(mine))
            assert (scores.least, scores.greatest) == pytest.approx((min(mine), max(mine)))
            assert sum(scores.histogram) == len(mine)
        assert found["v1"].stability == pytest.approx(0)
        assert found["v2"].stability > 0.25


# --- what becomes of an outcome ---------------------------------------------------------------------------------------


def test_an_outcome_counts_when_its_entity_has_matured(
    hub: turnout.Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.configure_test("m", {"v1": 1.0, "v2": 0.0})
    for n in range(10):
        hub.predict("m", [1, 2], entity_id=n)
    assert tell(hub, metric="bought", value=True, entity_id=3) == turnout.Attributed(
        "attributed", version="v1", test="1", segment=1
    )
    for value in (2.5, 4):
        assert tell(hub, metric="spent", value=value, entity_id=4).state == "attributed"
    assert counts(hub, "v1", "bought") == (0, 0.0)
    as_if_ago(monkeypatch, hub, 3601)
    assert counts(hub, "v1", "bought") == (10, pytest.approx(1.0))
    assert counts(hub, "v1", "spent") == (10, pytest.approx(6.5))
    # What comes later but belongs into the window changes what was counted already.
    tell(hub, metric="spent", value=1.5, entity_id=5)
    tell(hub, metric="bought", value=1, entity_id=3)
    assert counts(hub, "v1", "spent") == (10, pytest.approx(8.0))
    assert counts(hub, "v1", "bought") == (10, pytest.approx(1.0))


def test_states(hub: turnout.Turnout) -> None:
    hub.declare_metrics("m", [{**BOUGHT, "window_seconds": 0.2}, VISITS, LABEL])
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    hub.predict("m", [1, 2], entity_id="u")
    before = utc_now() - timedelta(hours=2)
    found = hub.record_outcomes(
        [
            {"model": "m", "metric": "bought", "value": 1, "entity_id": "u", "id": "o1"},
            {"model": "m", "metric": "bought", "value": 1, "entity_id": "u", "id": "o1"},
            {"model": "m", "metric": "bought", "value": 1, "entity_id": "u", "time": before},
            {"model": "m", "metric": "visits", "value": 1, "entity_id": "stranger", "time": before},
            {"model": "m", "metric": "visits", "value": -1, "entity_id": "u"},
        ]
    )
    assert [one.state for one in found] == ["attributed", "duplicate", "unexposed", "unexposed", "invalid"]
    time.sleep(0.25)
    assert tell(hub, metric="bought", value=1, entity_id="u").state == "late"
    assert hub.results("m").outcomes["bought"] == {"attributed": 1, "duplicate": 1, "unexposed": 1, "late": 1}


INVALID = {
    "unknown metric": (
        {"metric": "clicks", "value": 1, "entity_id": 1},
        errors.InvalidMetric,
        "bought, spent",
    ),
    "binary of 2": (
        {"metric": "bought", "value": 2, "entity_id": 1},
        errors.InvalidOutcome,
        "0, 1, true or false",
    ),
    "text": (
        {"metric": "spent", "value": "much", "entity_id": 1},
        errors.InvalidOutcome,
        "expected a number",
    ),
    "true amount": (
        {"metric": "spent", "value": True, "entity_id": 1},
        errors.InvalidOutcome,
        "expected a number",
    ),
    "nan": ({"metric": "spent", "value": float("nan"), "entity_id": 1}, errors.InvalidOutcome, "1e15"),
    "huge": ({"metric": "spent", "value": 1e300, "entity_id": 1}, errors.InvalidOutcome, "1e15"),
    "half a visit": (
        {"metric": "visits", "value": 0.5, "entity_id": 1},
        errors.InvalidOutcome,
        "whole number",
    ),
    "future": (
        {"metric": "bought", "value": 1, "entity_id": 1, "time": datetime(2100, 1, 1, tzinfo=UTC)},
        errors.InvalidOutcome,
        "a time that has been",
    ),
    "no zone": (
        {"metric": "bought", "value": 1, "entity_id": 1, "time": datetime(2020, 1, 1)},
        errors.InvalidOutcome,
        "with a zone",
    ),
    "nobody": ({"metric": "bought", "value": 1}, errors.InvalidOutcome, "either entity_id or prediction_id"),
    "both": (
        {"metric": "bought", "value": 1, "entity_id": 1, "prediction_id": "x"},
        errors.InvalidOutcome,
        "either entity_id or prediction_id",
    ),
    "forged": ({"metric": "bought", "value": 1, "prediction_id": "x" * 80}, errors.InvalidReceipt, "altered"),
    "long id": (
        {"metric": "bought", "value": 1, "entity_id": 1, "id": "x" * 300},
        errors.InvalidOutcome,
        "256 bytes",
    ),
    "no value": ({"metric": "bought", "entity_id": 1}, errors.InvalidOutcome, "an outcome is"),
    "no model": (
        {"model": "nobody", "metric": "b", "value": 1, "entity_id": 1},
        errors.ModelNotFound,
        "nobody",
    ),
    "bad entity": ({"metric": "bought", "value": 1, "entity_id": 1.5}, errors.InvalidOutcome, "entity_id"),
    "400 digits": (
        {"metric": "visits", "value": 10**400, "entity_id": 1},
        errors.InvalidOutcome,
        "a larger one",
    ),
    "lone surrogate": (
        {"metric": "bought", "value": 1, "prediction_id": "\ud800"},
        errors.InvalidReceipt,
        "altered",
    ),
    "class of 5 by entity": (
        {"metric": "label", "value": 5, "entity_id": 1},
        errors.InvalidOutcome,
        "0 to 1",
    ),
    "class of 5": (None, errors.InvalidOutcome, "0 to 1"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_outcome_is_told_what_would_be(hub: turnout.Turnout, name: str) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    answer = hub.predict("m", [1, 2], entity_id=1)
    fields, kind, said = INVALID[name]
    if fields is None:
        fields = {"metric": "label", "value": 5, "prediction_id": answer.prediction_id}
    with pytest.raises(kind, match=said):
        tell(hub, **fields)
    assert hub.results("m").outcomes == {}


def test_without_test_only_predictions_have_outcomes(hub: turnout.Turnout) -> None:
    answer = hub.predict("m", [1, 2], entity_id="u")
    with pytest.raises(errors.TestNotFound, match="prediction_id"):
        tell(hub, metric="bought", value=1, entity_id="u")
    assert tell(hub, metric="bought", value=1, prediction_id=answer.prediction_id).state == "unexposed"
    assert tell(hub, metric="label", value=1, prediction_id=answer.prediction_id) == turnout.Attributed(
        "attributed", version="v1"
    )


def test_as_many_as_may_be(hub: turnout.Turnout) -> None:
    with pytest.raises(errors.InvalidRequest, match="at most 10000"):
        hub.record_outcomes([{}] * (MAX_OUTCOMES + 1))
    with pytest.raises(errors.InvalidRequest, match="a list"):
        hub.record_outcomes({"model": "m"})
    assert hub.record_outcomes([]) == []


def test_an_outcome_may_follow_its_prediction_at_once(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    hub.predict("m", [1, 2], entity_id="quick")
    assert tell(hub, metric="bought", value=1, entity_id="quick").state == "attributed"


def test_threads_share_commits_and_none_is_lost(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 1.0, "v2": 0.0})
    for n in range(8):
        hub.predict("m", [1, 2], entity_id=n)
    hub.desk.exposures.flush()
    states: list[str] = []

    def send(n: int) -> None:
        states.extend(
            tell(hub, metric="visits", value=1, entity_id=n, id=f"{n}/{k % 10}").state for k in range(20)
        )

    threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(states) == {"attributed": 80, "duplicate": 80}
    assert len(list(hub.desk.events.outcomes("m"))) == 80


# --- receipts ---------------------------------------------------------------------------------------------------------


def test_a_receipt_says_what_the_prediction_was(hub: turnout.Turnout) -> None:
    test = hub.configure_test("m", {"v1": 0.0, "v2": 1.0})
    answer = hub.predict("m", [1, 2], entity_id="user-1")
    receipt = hub.read_receipt("m", answer.prediction_id)
    assert (receipt.version, receipt.test, receipt.segment, receipt.reason) == (2, int(test.id), 1, "test")
    assert (receipt.score, receipt.predicted) == (0.75, 1)
    assert receipt.entity == hub.desk.signers.entity("user-1") != hub.desk.signers.entity("user-2")
    assert abs((utc_now() - receipt.time).total_seconds()) < 5


def test_a_receipt_of_elsewhere_is_refused(hub: turnout.Turnout, tmp_path: Path) -> None:
    answer = hub.predict("m", [1, 2], entity_id="user-1")
    text = answer.prediction_id
    for other in (text[:-1] + ("A" if text[-1] != "A" else "B"), text[:-1], text + "A", "", "é" * 80):
        with pytest.raises(errors.InvalidReceipt):
            hub.read_receipt("m", other)
    with pytest.raises(errors.ModelNotFound):
        hub.read_receipt("other", text)
    with pytest.raises(errors.InvalidReceipt):
        hub.desk.signers.read("other", text)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(errors.InvalidReceipt):
        Signers(tmp_path / "elsewhere").read("m", text)


def test_who_has_the_key_can_read_receipts_on_another_machine(hub: turnout.Turnout, tmp_path: Path) -> None:
    answer = hub.predict("m", [1, 2], entity_id="user-1")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / KEY_FILE).write_bytes((hub.data / KEY_FILE).read_bytes())
    assert Signers(tmp_path / "there").read("m", answer.prediction_id) == hub.read_receipt(
        "m", answer.prediction_id
    )
    assert (hub.data / KEY_FILE).stat().st_mode & 0o077 == 0


def test_a_damaged_key_is_no_key(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(errors.StorageError, match="5 bytes, not 32"):
        Signers(tmp_path)


def test_a_receipt_brings_back_an_exposure_that_was_lost(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    answer = hub.predict("m", [1, 2], entity_id="u")
    for scope in hub.desk.exposures._scopes.values():
        scope.watch.drain()  # as if the process had been killed now
    assert tell(hub, metric="bought", value=1, prediction_id=answer.prediction_id) == turnout.Attributed(
        "attributed", version=answer.version, test="1", segment=1
    )
    assert hub.results("m").entities == 1


def test_an_early_receipt_leaves_the_guardrails_their_eyes(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        register(hub, v1=constant_label(0), v2=failing_model())
        hub.declare_metrics("m", [BOUGHT])
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
        answer = hub.predict("m", [0, 0], entity_id="first")
        lost = [scope.watch.drain() for scope in hub.desk.exposures._scopes.values()]
        assert lost
        tell(hub, metric="bought", value=1, prediction_id=answer.prediction_id)
        for n in range(200):
            hub.predict("m", [n % 2, 0], entity_id=n)
        results = hub.results("m")
        assert results.segments[0].shares == {"v1": 0.5, "v2": 0.5}
        assert results.segments[0].started_at.year > 2000
        assert next(bad for bad in results.bad_events if bad.metric == "errors").worse


def test_an_id_is_used_up_only_by_what_counts(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    early = {"metric": "bought", "value": 1, "entity_id": "u", "id": "once"}
    assert tell(hub, **early).state == "unexposed"
    hub.predict("m", [1, 2], entity_id="u")
    assert [tell(hub, **early).state for _ in range(2)] == ["attributed", "duplicate"]


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_give_the_live_quality_of_each_version(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    answers = [hub.predict("m", [1, 2], entity_id=n) for n in range(100)]
    truth = [n % 4 != 0 for n in range(100)]
    for n, answer in enumerate(answers):
        tell(hub, metric="label", value=truth[n], prediction_id=answer.prediction_id)
    for quality in hub.results("m").quality:
        mine = [truth[n] for n in range(100) if answers[n].version == quality.version]
        assert quality.labels == len(mine)
        assert quality.live["accuracy"] == pytest.approx(np.mean(mine))
        assert quality.live["brier"] == pytest.approx(np.mean([(0.75 - one) ** 2 for one in mine]))
    assert tell(hub, metric="label", value=1, prediction_id=answers[0].prediction_id).state == "duplicate"
    assert tell(hub, metric="label", value=1, entity_id=1).state == "duplicate"
    assert {found.version for found in hub.live_quality("m")} == {"v1", "v2"}


def test_labels_of_a_regressor_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        register(hub, v1=linear_matrix([1.0, 0.0]), v2=linear_matrix([1.0, 0.0], 0.5))
        hub.declare_metrics("m", [{**LABEL, "role": "primary"}])
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
        for n in range(600):
            hub.predict("m", [n % 7, 0], entity_id=n)
            tell(hub, metric="label", value=n % 7 + (n % 3 - 1) * 0.1, entity_id=n)
        as_if_ago(monkeypatch, hub, 3601)
        results = hub.results("m")
        live = {found.version: found.live for found in results.quality}
        assert live["v1"]["mae"] == pytest.approx(0.2 / 3, abs=0.01)
        assert live["v2"]["mae"] == pytest.approx(0.5, abs=0.01)
        assert results.metrics[0].direction == "down"
        assert results.metrics[0].effects[0].effect == "worse"
        assert results.recommendation == "roll_back"


def test_classes_by_name(hub: turnout.Turnout) -> None:
    hub.declare_metrics("m", [{**LABEL, "classes": ["stays", "leaves"]}])
    answer = hub.predict("m", [1, 2])
    tell(hub, metric="label", value="leaves", prediction_id=answer.prediction_id)
    assert hub.live_quality("m")[0].live["accuracy"] == 1.0
    with pytest.raises(errors.InvalidOutcome, match="'stays', 'leaves'"):
        tell(hub, metric="label", value="left", prediction_id=answer.prediction_id)


# --- keeping and forgetting ---------------------------------------------------------------------------------------------


def test_an_entity_is_forgotten_everywhere(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    for n in range(5):
        hub.predict("m", [1, 2], entity_id=n)
        tell(hub, metric="bought", value=1, entity_id=n)
    assert hub.forget_entity(3) == 2
    assert hub.forget_entity(3) == 0
    hashed = hub.desk.signers.entity(3)
    assert hashed not in {entity for _, entity, _ in hub.desk.events.exposures("m", [1])}
    assert hashed not in {logged.entity for logged in hub.desk.events.outcomes("m")}
    assert hub.results("m").entities == 5  # counts stay
    past = utc_now() - timedelta(seconds=2)
    assert tell(hub, metric="bought", value=1, entity_id=3, time=past).state == "unexposed"


def test_who_was_forgotten_does_not_come_back(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    answer = hub.predict("m", [1, 2], entity_id="u")
    with turnout.open(
        hub.data
    ) as other:  # which has not seen this one, and forgets it before it is written down
        other.forget_entity("u")
    hub.desk.exposures.flush()
    for metric, value in (("bought", 1), ("label", 1)):
        assert tell(hub, metric=metric, value=value, prediction_id=answer.prediction_id).state == "unexposed"
    assert hub.results("m").entities == 0
    assert list(hub.desk.events.outcomes("m")) == []
    time.sleep(0.002)
    hub.predict("m", [1, 2], entity_id="w")
    assert hub.results("m").entities == 1


def test_old_outcomes_and_exposures_go(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    for n in range(5):
        hub.predict("m", [1, 2], entity_id=n)
        tell(hub, metric="bought", value=1, entity_id=n, id=str(n))
    hub.stop_test("m")
    hub.desk.tidy()
    assert len(list(hub.desk.events.outcomes(None))) == 5
    late = round(time.time() * 1000) + 1000
    assert hub.desk.events.prune(late) == 5
    assert list(hub.desk.events.outcomes(None)) == []
    assert hub.desk.events.forget_test("m", 1) == 10
    results = hub.results("m")
    assert (results.entities, results.status) == (5, "stopped")
    assert sum(results.segments[0].assigned.values()) == 5


def test_results_stay_when_a_test_ends(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    for n in range(50):
        hub.predict("m", [1, 2], entity_id=n)
    running = hub.results("m")
    hub.promote_winner("m", "v2")
    ended = hub.results("m")
    assert (ended.test_id, ended.status) == ("1", "promoted")
    assert ended.counts.segments == running.counts.segments
    assert [arm.requests for arm in ended.latency] == [arm.requests for arm in running.latency]
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    assert hub.results("m").test_id == "2"
    assert hub.results("m", "1").counts.segments == running.counts.segments
    with pytest.raises(errors.TestNotFound, match="no test 9"):
        hub.results("m", "9")


def test_a_counted_metric_cannot_change(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    with pytest.raises(errors.Conflict, match="stop it before"):
        hub.declare_metrics("m", [{**BOUGHT, "window_seconds": 60}, SPENT, VISITS, LABEL])
    with pytest.raises(errors.Conflict, match="remove it"):
        hub.declare_metrics("m", [BOUGHT])
    more = [BOUGHT, SPENT, VISITS, LABEL, {"name": "new", "kind": "binary"}]
    assert hub.declare_metrics("m", more)[-1] == Metric("new", "binary")
    assert hub.declared_metrics("m")[0].role == "primary"


def test_disk_full_loses_no_exposure(hub: turnout.Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    hub.predict("m", [1, 2], entity_id="u")
    write = hub.desk.events.write

    def full(_: object) -> None:
        raise errors.StorageError("no space left")

    monkeypatch.setattr(hub.desk.events, "write", full)
    assert hub.desk.exposures.flush() == 0
    hub.predict("m", [1, 2], entity_id="w")
    with pytest.raises(errors.StorageError):
        tell(hub, metric="bought", value=1, entity_id="u")
    monkeypatch.setattr(hub.desk.events, "write", write)
    assert hub.desk.exposures.flush() == 2
    assert hub.results("m").entities == 2


# --- what a hostile reader found ----------------------------------------------------------------------------------------


def test_many_tests_at_once_are_all_seen(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        (tmp_path / "g").write_bytes(constant_label(0))
        for number in range(70):
            hub.register_version(f"m{number}", "v1", tmp_path / "g", features=["a", "b"])
            hub.activate_version(f"m{number}", "v1")
            hub.configure_test(f"m{number}", {"v1": 1.0})
        for number in range(70):
            hub.predict(f"m{number}", [1, 2], entity_id="u")
        assert [hub.results(f"m{number}").entities for number in range(70)] == [1] * 70


def test_numbers_that_are_none_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        register(hub, v1=linear_matrix([2.0, 0.0]), v2=linear_matrix([2.0, 0.0]))
        hub.declare_metrics("m", [{**LABEL, "role": "guardrail", "margin": 0.1}])
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5}, plan={"steps": [{"share": 0.5}, {"share": 0.9}]})
        answers = [hub.predict("m", [3e38 if n == 5 else n % 9, 0], entity_id=n) for n in range(400)]
        for n, answer in enumerate(answers):
            value = 1e15 if n == 7 else 2 * (n % 9) + 0.1 * (n % 3)
            tell(hub, metric="label", value=value, prediction_id=answer.prediction_id)
        with pytest.raises(errors.InvalidOutcome):
            tell(hub, metric="label", value=1e200, prediction_id=answers[0].prediction_id)
        as_if_ago(monkeypatch, hub, 3601)
        results = hub.results("m")
        assert results.recommendation == "keep_running"
        assert results.decision is not None
        assert "nan" not in results.decision


def test_an_arm_that_cannot_read_what_the_active_version_can_has_failed(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        for version, features in (("v1", ["a", "b"]), ("v2", ["a", "new"])):
            (tmp_path / version).write_bytes(constant_label(0))
            hub.register_version("m", version, tmp_path / version, features=features)
        hub.activate_version("m", "v1")
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
        refused = [n for n in range(100) if hub.assign("m", n).version == "v2"]
        for n in range(100):
            if n not in refused:
                assert hub.predict("m", {"a": 1, "b": 2}, entity_id=n).version == "v1"
                continue
            with pytest.raises(errors.InvalidFeatures, match="new"):
                hub.predict("m", {"a": 1, "b": 2}, entity_id=n)
        failed = next(bad for bad in hub.results("m").bad_events if bad.metric == "errors")
        assert failed.events == {"v1": 0, "v2": len(refused)}
        assert len(refused) > 30
        with pytest.raises(errors.InvalidFeatures, match="c"):
            hub.predict("m", {"a": 1, "c": 2}, entity_id=1)  # what nobody can read is the caller's mistake
        assert failed == next(bad for bad in hub.results("m").bad_events if bad.metric == "errors")


def test_a_new_metric_counts_whom_it_could_see(hub: turnout.Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.configure_test("m", {"v1": 1.0, "v2": 0.0})
    for n in range(50):
        hub.predict("m", [1, 2], entity_id=n)
    hub.desk.exposures.flush()
    time.sleep(0.005)
    hub.declare_metrics(
        "m", [BOUGHT, SPENT, VISITS, LABEL, {"name": "new", "kind": "binary", "window_seconds": 60}]
    )
    time.sleep(0.005)
    for n in range(50, 70):
        hub.predict("m", [1, 2], entity_id=n)
    hub.desk.exposures.flush()
    tell(hub, metric="new", value=1, entity_id=3)
    as_if_ago(monkeypatch, hub, 3601)
    assert counts(hub, "v1", "new") == (20, 0.0)
    tell(hub, metric="new", value=1, entity_id=4)
    tell(hub, metric="new", value=1, entity_id=60)
    assert counts(hub, "v1", "new") == (20, pytest.approx(1.0))


def test_one_prediction_has_one_label(hub: turnout.Turnout) -> None:
    answer = hub.predict("m", [1, 2], entity_id="u")
    label = {"metric": "label", "value": 1, "prediction_id": answer.prediction_id}
    states = [tell(hub, **label, **more).state for more in ({"id": "a"}, {"id": "b"}, {})]
    assert states == ["attributed", "duplicate", "duplicate"]


def test_results_of_a_test_that_ended_keep_its_metrics(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    hub.predict("m", [1, 2], entity_id="u")
    hub.stop_test("m")
    hub.declare_metrics("m", [])
    assert [found.metric for found in hub.results("m").metrics] == ["bought", "spent", "visits", "label"]


def test_an_import_gives_no_number_of_a_test_again(hub: turnout.Turnout) -> None:
    before = hub.export_registry()
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    hub.predict("m", [1, 2], entity_id="u")
    hub.desk.exposures.flush()
    hub.stop_test("m")
    hub.import_registry(before, replace=True)
    assert hub.configure_test("m", {"v1": 0.5, "v2": 0.5}).id == "2"
    assert hub.results("m").entities == 0


def test_a_forked_child_counts_only_what_it_has_seen(hub: turnout.Turnout) -> None:
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    hub.predict("m", [1, 2], entity_id="parent")
    child = os.fork()
    if child == 0:
        try:
            hub.predict("m", [1, 2], entity_id="child")
            hub.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    results = hub.results("m")
    assert results.entities == 2
    assert sum(results.segments[0].requests.values()) == 2


def test_a_damaged_database_of_events_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "events.lmdb").write_bytes(b"no database" * 5000)
    with turnout.open(tmp_path, device="cpu") as hub:
        register(hub, v1=constant_label(0))
        assert hub.predict("m", [1, 2], entity_id="u").version == "v1"
    (aside,) = tmp_path.glob("events.lmdb.damaged-*")
    assert aside.read_bytes().startswith(b"no database")
