"""`turnout.open` and what it returns: registering, answering, falling back, and following what other processes change."""

from __future__ import annotations

import getpass
import io
import json
import math
from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

import turnout
from models import constant_label, failing_model, linear_matrix
from turnout.config import Settings
from turnout.domain import Feature
from turnout.errors import (
    Conflict,
    InvalidFeatures,
    InvalidRequest,
    InvalidSplit,
    NotReady,
    PredictionFailed,
    TurnoutError,
    VersionNotFound,
)
from turnout.records import Author
from turnout.service import Turnout

GOOD, BAD = {"features": [0.0, 1.0]}, {"features": [3.0, 1.0]}
"""`failing_model` answers the first and fails on the second."""


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Turnout]:
    with turnout.open(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Turnout]:
    """What each process of `turnout serve` runs, here in this one."""
    settings = Settings(data=str(tmp_path / "data"), load_seconds=10)
    with Turnout(settings, server=True) as opened:
        opened.start_worker()
        yield opened


def release(hub: Turnout, label: str, path: Path, **words: Any) -> None:
    hub.register_version("churn", label, path, **words)
    hub.activate_version("churn", label)


def label_of(hub: Turnout, **words: Any) -> Any:
    return hub.predict("churn", [0.0, 1.0], **words).outputs["label"]


def damage(hub: Turnout, label: str) -> Path:
    """Cut the stored file of a version, as a failing disk would."""
    version = hub.get_version("churn", label)
    assert version is not None
    (path,) = (
        path for path in hub.data.rglob("*") if path.is_file() and version.artifact.sha256 in str(path)
    )
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    return path


# --- registration ---------------------------------------------------------------------------------------------------


def test_numpy_values_are_taken_for_numbers_and_names(hub: Turnout, file: Any) -> None:
    version = hub.register_version(
        "churn",
        "v1",
        file(linear_matrix([1, 2])),
        features=np.array(["a", "b"]),
        accuracy=np.float32(0.5),
        metrics={"f1": np.float64(0.25)},
        metadata={"rows": np.int64(3), "curve": np.array([1, 2])},
    )
    assert [feature.name for feature in version.features] == ["a", "b"]
    assert (version.accuracy, version.metrics) == (0.5, {"f1": 0.25})
    assert version.metadata == {"rows": 3, "curve": [1, 2]}
    assert hub.get_version("churn", "v1") == version


def test_what_json_cannot_say_is_refused_and_nothing_is_stored(hub: Turnout, file: Any) -> None:
    with pytest.raises(InvalidRequest, match="found object"):
        hub.register_version("churn", "v1", file(linear_matrix([1, 2])), metadata={"model": object()})
    assert hub.models() == []


@pytest.mark.parametrize("error", [KeyError("uid not found: 1001"), OSError("no such user")])
def test_a_user_without_a_name_is_a_number(
    hub: Turnout, file: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def nameless() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", nameless)
    hub.register_version("churn", "v1", file(linear_matrix([1, 2])))
    assert hub.audit()[0].actor.startswith("uid ")


def test_an_export_is_what_json_reads_back(hub: Turnout, file: Any) -> None:
    release(hub, "v1", file(constant_label(1)), metadata={"tags": ("a", "b")})
    hub.configure_test("churn", {"v1": 1.0})
    document = hub.export_registry()
    assert json.loads(json.dumps(document)) == document


# --- what a caller in Python may hand over --------------------------------------------------------------------------


class Row:
    """What a row of pandas has."""

    def to_dict(self) -> dict[str, float]:
        return {"a": 1.0, "b": 2.0}


@pytest.fixture
def pair(hub: Turnout, file: Any) -> Turnout:
    """Two linear versions of features a and b, the first one active, in a test."""
    release(hub, "v1", file(linear_matrix([1, 2])), features=[Feature("a", nullable=True), "b"])
    hub.register_version("churn", "v2", file(linear_matrix([3, 4])), features=["a", "b"])
    hub.configure_test("churn", {"v1": 0.5, "v2": 0.5})
    return hub


CHANGES: dict[str, Callable[..., Any]] = {
    "activate": lambda hub, **words: hub.activate_version("churn", "v2", **words),
    "rollback": lambda hub, **words: hub.rollback("churn", "v2", **words),
    "test": lambda hub, **words: hub.configure_test("churn", {"v1": 1.0}, **words),
    "stop": lambda hub, **words: hub.stop_test("churn", **words),
    "promote": lambda hub, **words: hub.promote_winner("churn", "v2", **words),
    "override": lambda hub, **words: hub.set_override("churn", "user-1", "v2", **words),
    "delete": lambda hub, **words: hub.delete_override("churn", "user-1", **words),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize(
    "words",
    [
        {"reason": 4711},
        {"actor": 4711},
        {"reason": ["a"]},
        {"actor": b"ann"},
        {"revision": "7"},
        {"revision": True},
    ],
    ids=str,
)
def test_who_and_why_are_text_and_nothing_else_is_committed(pair: Turnout, change: Any, words: Any) -> None:
    before = pair.registry.generation()
    with pytest.raises(InvalidRequest, match=next(iter(words))):
        change(pair, **words)
    assert pair.registry.generation() == before
    assert pair.version_history("churn").events


@pytest.mark.parametrize(
    "author", [Author(4711), Author("ann", 4711), Author("ann", None), Author("\ud800")], ids=repr
)
def test_a_record_that_could_not_be_read_back_is_never_written(pair: Turnout, author: Any) -> None:
    before = pair.export_registry(), pair.audit()
    for change in (
        lambda: pair.registry.activate("churn", "v2", author),
        lambda: pair.registry.stop_test("churn", author),
        lambda: pair.registry.set_override("churn", "user-1", "v2", author),
    ):
        with pytest.raises(InvalidRequest):
            change()
    assert (pair.export_registry(), pair.audit()) == before


def test_no_reason_is_an_empty_one(pair: Turnout) -> None:
    nothing: Any = None
    pair.activate_version("churn", "v2", reason=nothing)
    assert pair.audit()[-1].reason == ""


def test_weights_may_be_numbers_of_numpy(pair: Turnout) -> None:
    for share in np.linspace(0, 1, 3):
        test = pair.configure_test("churn", {"v1": 1 - share, "v2": share})
        assert test.weights == {"v1": 1 - share, "v2": share}
    pair.configure_test("churn", {"v1": np.float32(0.25), "v2": np.int64(0) + 0.75})


@pytest.mark.parametrize(
    "weights",
    [None, 0.5, [("v1", 1.0)], {"v1": "1"}, {"v1": Decimal(1)}, {"v1": True}, {1: 1.0}, {"v1": None}],
    ids=repr,
)
def test_weights_that_are_none(pair: Turnout, weights: Any) -> None:
    with pytest.raises(InvalidSplit):
        pair.configure_test("churn", weights)


@pytest.mark.parametrize("salt", [7, b"salt"])
def test_a_salt_is_text(pair: Turnout, salt: Any) -> None:
    pair.stop_test("churn")
    with pytest.raises(InvalidRequest, match="salt"):
        pair.configure_test("churn", {"v1": 1.0}, salt)


@pytest.mark.parametrize("features", [{1.0, 2.0}, frozenset({1.0}), "ab", b"ab", 7, None, object()], ids=repr)
def test_features_without_an_order_are_none(pair: Turnout, features: Any) -> None:
    with pytest.raises(InvalidRequest):
        pair.predict("churn", features)


@pytest.mark.parametrize("rows", [[{1.0, 2.0}], {"a": {1.0}, "b": [2.0]}], ids=["rows", "columns"])
def test_rows_without_an_order_are_none(pair: Turnout, rows: Any) -> None:
    with pytest.raises(InvalidRequest, match="found a set"):
        pair.predict_batch("churn", rows)


def test_a_row_of_pandas_is_a_mapping(pair: Turnout) -> None:
    row: Any = Row()
    assert pair.predict("churn", row, version="v1").outputs["score"] == [5.0]


@pytest.mark.parametrize("value", [math.inf, -math.inf, np.float32("inf"), np.array(-np.inf)], ids=repr)
def test_an_infinity_is_refused_and_not_taken_for_a_missing_value(pair: Turnout, value: Any) -> None:
    for features in ([value, 1.0], {"a": value, "b": None}, np.array([value, 1.0], np.float64)):
        with pytest.raises(InvalidFeatures, match=r"1e999"):
            pair.predict("churn", features, version="v1")
        rows: Any = [[0.0, 0.0], features if isinstance(features, dict) else list(features)]
        found = pair.predict_batch("churn", rows, version="v1", on_error="skip")
        assert [(error.row, error.feature) for error in found.errors] == [(1, "a")]
    assert np.isnan(pair.predict("churn", [math.nan, 1.0], version="v1").outputs["score"][0] or math.nan)


@pytest.mark.parametrize(
    "call",
    [
        lambda hub: hub.predict("churn", [1, 2], entity_id="\ud800"),
        lambda hub: hub.predict("churn", {"\ud800": 1}),
        lambda hub: hub.predict("churn", [1, object()]),
        lambda hub: hub.predict("churn", [1, 10**5000]),
        lambda hub: hub.assign("churn", "user-1", at="2026-01-01T00:00:00Z"),
        lambda hub: hub.assign("churn", "user-1", at=date(2026, 1, 1)),
        lambda hub: hub.assign("churn", "user-1", at=datetime(2026, 1, 1)),
        lambda hub: hub.export_registry(artifacts="x.tar"),
        lambda hub: hub.import_registry("x.tar"),
        lambda hub: hub.import_registry(io.StringIO("{}")),
    ],
)
def test_what_makes_no_sense_is_an_error_of_ours(pair: Turnout, call: Any) -> None:
    with pytest.raises(TurnoutError):
        call(pair)


def circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["again"] = found
    return found


@pytest.mark.parametrize(
    "words",
    [
        {"metadata": [1]},
        {"metadata": "text"},
        {"metadata": circle()},
        {"metrics": [1, 2]},
        {"metrics": {"f1": "high"}},
        {"features": "ab"},
        {"features": {"a": 1, "b": 2}},
        {"features": ["a", ""]},
        {"features": [1, 2]},
        {"options": turnout.SessionOptions(intra_op_threads=0)},
        {"options": turnout.SessionOptions(intra_op_threads=100_000)},
        {"options": turnout.SessionOptions(gpu_memory_limit=0)},
        {"options": turnout.SessionOptions(gpu_memory_limit=2**63)},
        {"options": turnout.SessionOptions(tf32=1)},  # type: ignore[arg-type]
        {"options": turnout.SessionOptions(conv_search="best")},  # type: ignore[arg-type]
    ],
    ids=lambda words: next(iter(words)),
)
def test_a_version_that_is_described_badly(hub: Turnout, file: Any, words: Any) -> None:
    with pytest.raises(TurnoutError):
        hub.register_version("churn", "v1", file(linear_matrix([1, 2])), **words)
    assert hub.models() == []


BAD_IDS: list[Any] = [
    ["a", None],
    [1.5],
    np.array([1.0]),
    np.zeros((2, 2), int),
    np.array([b"a"]),
    np.array([True]),
    pa.array(["a", None]),
    "user-1",
    7,
]


@pytest.mark.parametrize("ids", BAD_IDS, ids=repr)
def test_ids_that_are_none_are_refused_whether_a_test_runs_or_not(pair: Turnout, ids: Any) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            pair.assign_many("churn", ids)
        if pair.get_test("churn"):
            pair.stop_test("churn")


def test_ids_in_a_list_may_be_numpys(pair: Turnout) -> None:
    found, names = pair.assign_many("churn", [np.str_("a"), np.int64(3), "b", 7])
    expected = [pair.select_version("churn", entity) for entity in ("a", 3, "b", 7)]
    assert [names[index] for index in found] == expected


def test_a_rollback_during_the_first_test_gives_all_traffic_to_the_active_version(pair: Turnout) -> None:
    assert pair.rollback("churn").version == "v1"
    assert pair.get_test("churn") is None
    assert pair.list_tests("churn")[-1].status == "rolled_back"
    with pytest.raises(Conflict, match="no formerly active version"):
        pair.rollback("churn")


# --- an arm that fails at run time ----------------------------------------------------------------------------------


@pytest.fixture
def arms(hub: Turnout, file: Any) -> Turnout:
    """v1 is active; all traffic of the test goes to v2, which fails when it is asked to."""
    release(hub, "v1", file(constant_label(1)))
    hub.register_version("churn", "v2", file(failing_model(2)))
    hub.configure_test("churn", {"v1": 0.0, "v2": 1.0})
    return hub


def test_the_active_version_answers_for_an_arm_that_fails(arms: Turnout) -> None:
    well = arms.predict("churn", GOOD["features"], entity_id="user-1")
    assert (well.version, well.reason, well.outputs["label"]) == ("v2", "test", 2)
    ill = arms.predict("churn", BAD["features"], entity_id="user-1")
    assert (ill.version, ill.reason, ill.outputs["label"]) == ("v1", "fallback", 1)
    statistics = arms.statistics()
    v1, v2 = statistics.live("churn", "v1"), statistics.live("churn", "v2")
    assert (v1.requests, v1.errors) == (1, 0)
    assert (v2.requests, v2.errors, v2.error_rate) == (2, 1, 0.5)
    metrics = arms.metrics().decode()
    assert 'turnout_errors_total{model="churn",reason="test",version="v2"} 1.0' in metrics
    assert 'turnout_requests_total{model="churn",reason="fallback",version="v1"} 1.0' in metrics


def test_who_asks_for_a_version_gets_no_other(arms: Turnout) -> None:
    with pytest.raises(PredictionFailed, match="v2"):
        arms.predict("churn", BAD["features"], version="v2")
    assert arms.statistics().live("churn", "v1").requests == 0


def test_the_active_version_has_nobody_to_answer_for_it(hub: Turnout, file: Any) -> None:
    release(hub, "v2", file(failing_model(2)))
    status, body = hub.predict_bytes("churn", None, msgspec.json.encode(BAD))
    problem = msgspec.json.decode(body)
    assert (status, problem["status"], problem["code"]) == (500, 500, "prediction_failed")
    assert hub.statistics().live("churn", "v2").errors == 1


def test_where_both_fail_the_caller_hears_of_its_own_version(hub: Turnout, file: Any) -> None:
    release(hub, "v1", file(failing_model(1)))
    hub.register_version("churn", "v2", file(failing_model(2)))
    hub.configure_test("churn", {"v1": 0.0, "v2": 1.0})
    with pytest.raises(PredictionFailed, match="v2"):
        hub.predict("churn", BAD["features"], entity_id="user-1")
    statistics = hub.statistics()
    assert [statistics.live("churn", label).errors for label in ("v1", "v2")] == [1, 1]


def test_fallback_can_be_turned_off(arms: Turnout, tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", fallback=False) as strict:
        with pytest.raises(PredictionFailed):
            strict.predict("churn", BAD["features"], entity_id="user-1")
        assert strict.statistics().live("churn", "v1").requests == 0


# --- what is loaded, and when ---------------------------------------------------------------------------------------


def test_a_notebook_loads_a_version_when_it_is_first_needed(hub: Turnout, file: Any) -> None:
    release(hub, "v1", file(constant_label(1)))
    hub.register_version("churn", "v2", file(constant_label(2)))
    assert hub.live.statuses() == ()
    assert label_of(hub) == 1
    assert [status.version for status in hub.live.statuses()] == ["v1"]
    assert label_of(hub, version="v2") == 2
    assert [status.version for status in hub.live.statuses()] == ["v1", "v2"]


def test_a_notebook_follows_what_another_process_changes(hub: Turnout, file: Any, tmp_path: Path) -> None:
    release(hub, "v1", file(constant_label(1)))
    assert label_of(hub) == 1
    with turnout.open(tmp_path / "data") as other:
        release(other, "v2", file(constant_label(2)))
        assert label_of(hub) == 2
        other.rollback("churn")
        assert label_of(hub) == 1
        other.rollback("churn", "v2")
        other.delete_version("churn", "v1")
    assert label_of(hub) == 2
    with pytest.raises(VersionNotFound):
        label_of(hub, version="v1")


def test_a_worker_has_loaded_what_a_change_makes_routable_before_it_is_made(
    hub: Turnout, worker: Turnout, file: Any
) -> None:
    release(hub, "v1", file(constant_label(1)))
    hub.register_version("churn", "v2", file(constant_label(2)))
    loads = [status.version for status in worker.live.statuses()]
    assert loads == ["v1"]
    hub.configure_test("churn", {"v1": 0.5, "v2": 0.5})
    change = hub.last_change
    assert change is not None
    assert change.pending == ()
    assert worker.ready()
    assert worker.live.served_generation == change.generation
    assert sorted(status.version for status in worker.live.statuses()) == ["v1", "v2"]


def test_a_version_that_a_worker_cannot_load_never_becomes_routable(
    hub: Turnout, worker: Turnout, file: Any
) -> None:
    release(hub, "v1", file(constant_label(1)))
    hub.register_version("churn", "v2", file(constant_label(2)))
    damage(hub, "v2")
    before = hub.model("churn")
    for change in (
        lambda: hub.activate_version("churn", "v2"),
        lambda: hub.configure_test("churn", {"v1": 0.5, "v2": 0.5}),
        lambda: hub.set_override("churn", "user-1", "v2"),
    ):
        with pytest.raises(NotReady, match=r"v2.*nothing was changed"):
            change()
    assert hub.model("churn") == before
    assert worker.ready()
    assert label_of(worker) == 1
    assert worker.runtime.staged_requests() == []


def test_a_worker_serves_the_old_state_while_it_cannot_load_the_new_one(
    worker: Turnout, hub: Turnout, file: Any
) -> None:
    """A worker that lost its files after the change was made, say, or that nobody waited for."""
    release(hub, "v1", file(constant_label(1)))
    hub.register_version("churn", "v2", file(constant_label(2)))
    content = damage(hub, "v2")
    author = hub._author(None, "", None)
    hub.registry.activate("churn", "v2", author)
    worker.live.refresh()
    worker.live.preload()
    assert label_of(worker) == 1
    assert not worker.ready()
    content.write_bytes(constant_label(2))
    worker.live.preload()
    assert label_of(worker) == 2
    assert worker.ready()


def test_versions_with_one_content_share_a_session(hub: Turnout, file: Any) -> None:
    release(hub, "v1", file(constant_label(1)))
    hub.register_version("churn", "v2", file(constant_label(1)))
    hub.register_version(
        "churn", "v3", file(constant_label(1)), options=turnout.SessionOptions(intra_op_threads=2)
    )
    sessions = {}
    for label in ("v1", "v2", "v3"):
        assert label_of(hub, version=label) == 1
        lanes = hub.live.snapshot.models["churn"]
        sessions[label] = hub.live.sessions.get(lanes.lanes[lanes.index[label]].key)
    assert sessions["v1"] is sessions["v2"] is not sessions["v3"]


def test_of_versions_that_only_pinned_requests_need_the_last_used_stay(tmp_path: Path, file: Any) -> None:
    with turnout.open(tmp_path / "data", on_demand_versions=2) as hub:
        release(hub, "v0", file(constant_label(0)))
        for number in range(1, 6):
            hub.register_version("churn", f"v{number}", file(constant_label(number)))
        for number in (0, 1, 2, 1, 3, 1, 4):
            assert label_of(hub, version=f"v{number}") == number
        hub.live.trim()
        assert [status.version for status in hub.live.statuses()] == ["v0", "v1", "v4"]


def test_closing_twice_is_closing_once_and_a_closed_hub_says_so(hub: Turnout, file: Any) -> None:
    release(hub, "v1", file(constant_label(1)))
    hub.close()
    hub.close()
    for call in (hub.models, lambda: label_of(hub), lambda: hub.predict_batch("churn", [[0, 1]])):
        with pytest.raises(TurnoutError, match="closed"):
            call()
