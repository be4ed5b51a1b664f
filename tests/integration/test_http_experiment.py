"""Experiments over HTTP: what is measured, what was observed, what a test has shown, and how its plan is steered."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest

from models import constant_label, linear_matrix
from servers import JSON, Server, assert_problem, path, wait_for
from turnout.api import experiments
from turnout.client import Client
from turnout.errors import (
    Conflict,
    InvalidMetric,
    InvalidPlan,
    InvalidReceipt,
    InvalidRequest,
    ModelNotFound,
    TestNotFound,
)
from turnout.experiment.outcomes import Attributed, Outcome
from turnout.experiment.results import Results
from turnout.plans import Metric, Plan, Step
from turnout.service import Turnout

FIRST, SECOND = constant_label(0), constant_label(1)
NAMES = ["a", "b"]
METRICS: list[dict[str, Any]] = [
    {"name": "kept", "kind": "binary", "role": "primary", "window_seconds": 3600},
    {"name": "spent", "kind": "mean"},
    {"name": "visits", "kind": "count"},
    {"name": "instant", "kind": "binary", "window_seconds": 0.001},
    {"name": "left", "kind": "label", "classes": ["no", "yes"]},
    {"name": "refund", "kind": "binary", "direction": "down", "role": "guardrail", "margin": 0.1},
]
RAMP: dict[str, Any] = {
    "steps": [
        {"share": 0.1, "dwell_seconds": 86400},
        {"share": 0.4, "dwell_seconds": 86400, "min_entities": 100, "approval": True},
    ]
}
GOOD = {"model": "shop", "metric": "kept", "value": 1, "entity_id": "nobody"}


def put(server: Server, model: str, what: str, body: Any, **headers: str) -> httpx.Response:
    return server.client.put(path(model, what), json=body, headers=headers)


def two_versions(server: Server, model: str, *, metrics: list[dict[str, Any]] = METRICS) -> None:
    """Two versions, the first active, and metrics."""
    server.release(model, "v1", FIRST, features=NAMES, accuracy=0.9)
    assert server.put(model, "v2", SECOND, features=NAMES).status_code == 201
    answer = put(server, model, "metrics", {"metrics": metrics})
    assert answer.status_code == 200, answer.text


def record(server: Server, body: Any) -> httpx.Response:
    return server.client.post("/v1/outcomes", json=body)


def observe(server: Server, metric: str = "kept", value: Any = 1, **more: Any) -> dict[str, Any]:
    """What became of one outcome of the shop that can be stored."""
    answer = record(server, {"model": "shop", "metric": metric, "value": value, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def receipt(server: Server, entity: str | None, model: str = "shop") -> str:
    """The prediction id of a prediction for an entity."""
    answer = server.predict(model, [0, 0], entity)
    assert answer.status_code == 200, answer.text
    return answer.json()["prediction_id"]


@pytest.fixture(scope="module", autouse=True)
def shop(server: Server) -> None:
    """A model with a test that runs; another one of the same data directory."""
    two_versions(server, "shop")
    assert put(server, "shop", "test", {"splits": {"v1": 0.5, "v2": 0.5}}).status_code == 200
    server.release("other", "v1", FIRST, features=NAMES)


@pytest.fixture(scope="module")
def client(server: Server, shop: None) -> Iterator[Client]:
    with Client(server.url, actor="ann") as opened:
        yield opened


# --- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_are_declared_and_read(server: Server) -> None:
    server.release("measured", "v1", FIRST, features=NAMES)
    read = server.client.get(path("measured", "metrics"))
    assert (read.status_code, read.json()) == (200, [])
    body = {"metrics": METRICS[:1], "reason": "why not"}
    said = put(server, "measured", "metrics", body, **{"If-Match": read.headers["etag"], "X-Actor": "ann"})
    assert said.status_code == 200, said.text
    assert said.json() == METRICS[:1]
    assert int(said.headers["turnout-generation"]) > 0
    again = server.client.get(path("measured", "metrics"))
    assert (again.json(), again.headers["etag"]) == (METRICS[:1], said.headers["etag"])
    event = server.client.get("/v1/audit", params={"model": "measured"}).json()[-1]
    assert (event["action"], event["actor"], event["reason"]) == ("declare_metrics", "ann", "why not")
    stale = put(server, "measured", "metrics", {"metrics": []}, **{"If-Match": read.headers["etag"]})
    assert_problem(stale, 412, "revision_conflict")


@pytest.mark.parametrize(
    ("metrics", "code", "said"),
    [
        ([{"name": "a", "kind": "ratio"}], "invalid_metric", "ratio"),
        ([{"name": "a"}], "invalid_metric", "kind"),
        ([{"name": "a", "kind": "mean", "unit": "s"}], "invalid_metric", "unit"),
        ([{"name": "a", "kind": "mean", "role": "guardrail"}], "invalid_metric", "margin"),
        ([{"name": "a", "kind": "mean"}] * 2, "invalid_metric", "twice"),
        ([{"name": "latency", "kind": "mean"}], "invalid_metric", "built in"),
        ([{"name": "a b", "kind": "mean"}], "invalid_metric", "regex"),
        ([{"name": "a", "kind": "mean", "window_seconds": 0}], "invalid_metric", "> 0"),
        ([{"name": f"m{i}", "kind": "mean"} for i in range(51)], "invalid_metric", "at most 50"),
        ([1], "invalid_request", "object"),
        ({"name": "a", "kind": "mean"}, "invalid_request", "array"),
    ],
)
def test_metrics_that_can_not_be_are_refused(server: Server, metrics: Any, code: str, said: str) -> None:
    assert said in assert_problem(put(server, "shop", "metrics", {"metrics": metrics}), 400, code)["detail"]


def test_what_a_running_test_counts_stays(server: Server) -> None:
    changed = [{**METRICS[0], "window_seconds": 1}, *METRICS[1:]]
    assert_problem(put(server, "shop", "metrics", {"metrics": changed}), 409, "conflict")
    assert_problem(put(server, "nowhere", "metrics", {"metrics": []}), 404, "model_not_found")
    assert_problem(server.client.get(path("nowhere", "metrics")), 404, "model_not_found")
    assert_problem(server.client.put(path("shop", "metrics")), 400, "invalid_request")


# --- outcomes -------------------------------------------------------------------------------------------------------


def test_an_outcome_right_after_its_prediction_is_attributed_by_every_worker(server: Server) -> None:
    for number in range(24):
        entity = f"fresh-{number}"
        answered = server.predict("shop", [0, 0], entity).json()
        with httpx.Client(
            base_url=server.url
        ) as another:  # a connection of its own, to whichever worker takes it
            body = {"model": "shop", "metric": "kept", "value": 1}
            by_entity = another.post("/v1/outcomes", json={**body, "entity_id": entity}).json()
            by_receipt = another.post(
                "/v1/outcomes", json={**body, "prediction_id": answered["prediction_id"]}
            ).json()
        assert by_entity == by_receipt
        assert by_entity == {
            "state": "attributed",
            "version": answered["version"],
            "test": "1",
            "segment": 1,
        }


def test_what_becomes_of_outcomes(server: Server) -> None:
    predicted = receipt(server, "states")
    assert observe(server, value=True, entity_id="states")["state"] == "attributed"
    assert observe(server, "spent", -12.5, prediction_id=predicted)["state"] == "attributed"
    assert observe(server, "visits", 3, entity_id="states")["state"] == "attributed"
    assert observe(server, "left", "yes", prediction_id=predicted)["state"] == "attributed"
    assert observe(server, "left", "no", prediction_id=predicted) == {"state": "duplicate"}
    assert observe(server, "instant", entity_id="states")["state"] == "late"
    assert observe(server, entity_id="a stranger") == {"state": "unexposed"}
    before = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert observe(server, entity_id="states", time=before) == {"state": "unexposed"}


def test_an_id_counts_once(server: Server) -> None:
    receipt(server, "once")
    first = observe(server, entity_id="once", id="order-1")
    assert first["state"] == "attributed"
    assert observe(server, entity_id="once", id="order-1") == {"state": "duplicate"}
    assert observe(server, "spent", 2.0, entity_id="once", id="order-1")["state"] == "attributed"
    body = {"model": "shop", "metric": "kept", "value": 1, "entity_id": "once", "id": "order-2"}
    answer = record(server, [body, body, {**body, "id": "order-1"}, {**body, "id": "order-3"}]).json()
    states = [result["state"] for result in answer["results"]]
    assert states == ["attributed", "duplicate", "duplicate", "attributed"]
    assert answer["counts"] == {"attributed": 2, "duplicate": 2}


def later(**more: float) -> str:
    return (datetime.now(UTC) + timedelta(**more)).isoformat()


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "a model that is not there": ({"model": "nowhere"}, 404, "model_not_found"),
    "a metric that is not declared": ({"metric": "bounce"}, 400, "invalid_metric"),
    "no kind of truth": ({"value": 2}, 400, "invalid_outcome"),
    "a number as text": ({"metric": "spent", "value": "12"}, 400, "invalid_outcome"),
    "an amount past all amounts": ({"metric": "spent", "value": 1e300}, 400, "invalid_outcome"),
    "half a visit": ({"metric": "visits", "value": 0.5}, 400, "invalid_outcome"),
    "a negative count": ({"metric": "visits", "value": -1}, 400, "invalid_outcome"),
    "true as a count": ({"metric": "visits", "value": True}, 400, "invalid_outcome"),
    "no value": ({"value": None}, 400, "invalid_outcome"),
    "a list as value": ({"value": [1]}, 400, "invalid_outcome"),
    "a time in the future": ({"time": "2999-01-01T00:00:00Z"}, 400, "invalid_outcome"),
    "a time without zone": ({"time": "2024-01-01T00:00:00"}, 400, "invalid_outcome"),
    "no time": ({"time": "yesterday"}, 400, "invalid_outcome"),
    "an id of nothing": ({"id": ""}, 400, "invalid_outcome"),
    "a long id": ({"id": "x" * 257}, 400, "invalid_outcome"),
    "nobody": ({"entity_id": None}, 400, "invalid_outcome"),
    "an entity that is true": ({"entity_id": True}, 400, "invalid_outcome"),
    "two of one": ({"prediction_id": "x"}, 400, "invalid_outcome"),
    "a forged receipt": ({"entity_id": None, "prediction_id": "A" * 80}, 400, "invalid_receipt"),
    "a field too many": ({"weight": 1}, 400, "invalid_outcome"),
    "a model without test": ({"model": "untested"}, 404, "test_not_found"),
}


@pytest.fixture(scope="module")
def untested(server: Server) -> None:
    server.release("untested", "v1", FIRST, features=NAMES)
    assert put(server, "untested", "metrics", {"metrics": METRICS}).status_code == 200


@pytest.mark.parametrize("what", REFUSED)
def test_an_outcome_that_can_not_be_is_refused(server: Server, what: str, untested: None) -> None:
    changed, status, code = REFUSED[what]
    body = {**GOOD, **changed}
    problem = assert_problem(record(server, body), status, code)
    receipt(server, "beside")
    beside = {**GOOD, "entity_id": "beside"}
    listed = record(server, [body, beside, body])
    assert listed.status_code == 200
    answer = listed.json()
    assert [result["state"] for result in answer["results"]] == ["invalid", "attributed", "invalid"]
    assert answer["counts"] == {"invalid": 2, "attributed": 1}
    for result in (answer["results"][0], answer["results"][2]):
        assert (result["code"], result["detail"]) == (code, problem["detail"])


def test_a_clock_may_be_a_little_ahead(server: Server) -> None:
    receipt(server, "ahead")
    assert observe(server, entity_id="ahead", time=later(seconds=3))["state"] == "attributed"
    assert_problem(record(server, {**GOOD, "time": later(seconds=20)}), 400, "invalid_outcome")


def test_a_list_is_neither_empty_nor_endless(server: Server) -> None:
    assert_problem(record(server, []), 400, "invalid_request")
    assert_problem(record(server, [GOOD] * 10_001), 400, "invalid_request")
    assert_problem(record(server, [{}] * 10_001), 400, "invalid_request")
    answer = record(server, [GOOD] * 10_000)
    assert answer.status_code == 200
    assert answer.json()["counts"] == {"unexposed": 10_000}


def test_a_body_past_the_limit_is_refused(server: Server) -> None:
    content = b"[" + b" " * (16 * 1024**2) + b"]"
    assert_problem(
        server.client.post("/v1/outcomes", content=content, headers=JSON), 413, "payload_too_large"
    )
    plain = server.client.post("/v1/outcomes", content=b"{}", headers={"Content-Type": "text/plain"})
    assert_problem(plain, 415, "unsupported_media_type")


def said(**fields: bytes) -> bytes:
    """An outcome with these fields as they are."""
    given = {name: json.dumps(value).encode() for name, value in GOOD.items()} | fields
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in given.items()) + b"}"


HOSTILE = {
    "nothing": b"",
    "no JSON": b"model=shop",
    "a number": b"1",
    "null": b"null",
    "a list of null": b"[null]",
    "lists in lists": b"[[[]]]",
    "deep lists": b"[" * 200_000,
    "deep lists that end": b"[" * 100_000 + b"]" * 100_000,
    "a deep value": said(value=b"[" * 100_000 + b"]" * 100_000),
    "a deep object": said(value=b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a lone surrogate": said(entity_id=b'"\\ud800"'),
    "a lone surrogate in a name": said(model=b'"\\udfff"'),
    "a lone surrogate in a receipt": said(entity_id=b"null", prediction_id=b'"\\ud800"'),
    "bytes that are no UTF-8": said(entity_id=b'"\xff\xfe"'),
    "NUL": said(model=b'"\\u0000"'),
    "NUL in an id": said(id=b'"\\u0000"'),
    "NaN": said(value=b"NaN"),
    "infinity": said(value=b"-Infinity"),
    "more than a double": said(value=b"1e999"),
    "numbers as text": said(value=b'"1"'),
    "an integer of 400 digits": said(metric=b'"spent"', value=b"9" * 400),
    "a count of 400 digits": said(metric=b'"visits"', value=b"9" * 400),
    "an integer of 40,000 digits": said(metric=b'"spent"', value=b"9" * 40_000),
    "an entity of 400 digits": said(entity_id=b"9" * 400),
    "a model of a megabyte": said(model=b'"' + b"m" * 1_000_000 + b'"'),
    "an entity of a megabyte": said(entity_id=b'"' + b"e" * 1_000_000 + b'"'),
    "a receipt of a megabyte": said(entity_id=b"null", prediction_id=b'"' + b"r" * 1_000_000 + b'"'),
    "the first time": said(time=b'"0001-01-01T00:00:00+14:00"'),
    "the last time": said(time=b'"9999-12-31T23:59:59-14:00"'),
    "a time as a number": said(time=b"1e300"),
    "twice the same key": b'{"model":"shop","model":"x","metric":"kept","value":1,"entity_id":1}',
    "keys that are none": b"{1:2}",
    "a comma too many": b"[" + said() + b",]",
    "no end": b"[" + said(),
    "two documents": said() + said(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_outcomes_are_no_fault_of_ours(server: Server, what: str) -> None:
    body = HOSTILE[what]
    for content in (body, b"[" + body + b"," + said() + b"]"):
        answer = server.client.post("/v1/outcomes", content=content, headers=JSON)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert_problem(answer, answer.status_code, answer.json()["code"])


@pytest.mark.parametrize("what", ["metrics", "test", "test/pause"])
def test_hostile_changes_are_no_fault_of_ours(server: Server, what: str) -> None:
    if server.client.get(path("hostile")).status_code == 404:
        server.release("hostile", "v1", FIRST, features=NAMES)
    method = "POST" if what == "test/pause" else "PUT"
    start = {"metrics": b'{"metrics":', "test": b'{"splits":{"v1":1},"plan":', "test/pause": b'{"reason":'}
    for part in HOSTILE.values():
        for body in (start[what] + part + b"}", start[what] + b"[" + part + b"]}", part):
            url = f"{path('hostile')}/{what}"
            answer = server.client.request(method, url, content=body, headers=JSON)
            assert answer.status_code < 500, (body[:80], answer.text)
            if answer.status_code >= 400:
                assert_problem(answer, answer.status_code, answer.json()["code"])


def test_a_label_that_is_none_says_what_would_be(server: Server) -> None:
    predicted = receipt(server, "labelled")
    for whom in ({"prediction_id": predicted}, {"entity_id": "labelled"}):
        answer = record(server, {"model": "shop", "metric": "left", "value": "maybe", **whom})
        assert "'no', 'yes'" in assert_problem(answer, 400, "invalid_outcome")["detail"]


# --- receipts -------------------------------------------------------------------------------------------------------


def test_a_receipt_says_what_the_prediction_was(server: Server) -> None:
    answered = server.predict("shop", [0, 0], "receipts").json()
    assert len(answered["prediction_id"]) == 80
    answer = server.client.get(path("shop", "receipts", answered["prediction_id"]))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["version"] == answered["version"]
    assert said["version_number"] == {"v1": 1, "v2": 2}[answered["version"]]
    assert (said["model"], said["reason"], said["test"], said["segment"]) == ("shop", "test", 1, 1)
    assert (said["score"], said["predicted"]) == (0.75, 1)
    assert len(bytes.fromhex(said["entity"])) == 16
    age = datetime.now(UTC) - datetime.fromisoformat(said["time"])
    assert timedelta(seconds=-1) < age < timedelta(seconds=10)
    anonymous = server.client.get(path("other", "receipts", receipt(server, None, "other"))).json()
    assert (anonymous["entity"], anonymous["test"], anonymous["reason"]) == (None, 0, "active")


def test_a_receipt_of_a_deleted_version_has_its_number_only(server: Server) -> None:
    server.release("passing", "v1", FIRST, features=NAMES)
    predicted = receipt(server, "x", "passing")
    server.release("passing", "v2", SECOND, features=NAMES)
    assert server.client.delete(path("passing", "versions", "v1")).status_code == 200
    said = server.client.get(path("passing", "receipts", predicted)).json()
    assert (said["version"], said["version_number"]) == (None, 1)


def test_receipts_that_were_not_given_here_are_refused(server: Server) -> None:
    predicted = receipt(server, "forged")
    altered = [
        predicted[:at] + ("A" if predicted[at] != "A" else "B") + predicted[at + 1 :] for at in range(80)
    ]
    forged = [
        "A" * 80,
        predicted[:-1],
        predicted + "A",
        predicted.lower(),
        "\u00e9" * 80,
        "x/y",
        "%00",
        *altered,
    ]
    foreign = receipt(server, "forged", "other")
    for one in (*forged, foreign):
        assert_problem(server.client.get(path("shop", "receipts", one)), 400, "invalid_receipt")
    body = {"model": "shop", "metric": "kept", "value": 1}
    results = record(server, [{**body, "prediction_id": one} for one in (*forged, foreign, predicted)]).json()
    assert {result["code"] for result in results["results"][:-1]} == {"invalid_receipt"}
    assert results["counts"] == {"invalid": len(forged) + 1, "attributed": 1}
    assert_problem(server.client.get(path("nowhere", "receipts", predicted)), 404, "model_not_found")


# --- results --------------------------------------------------------------------------------------------------------


def test_results_of_a_test(server: Server) -> None:
    two_versions(server, "shown")
    assert_problem(server.client.get(path("shown", "test", "results")), 404, "test_not_found")
    assert_problem(server.client.get(path("nowhere", "test", "results")), 404, "model_not_found")
    put(server, "shown", "test", {"splits": {"v1": 0.5, "v2": 0.5}}).raise_for_status()
    versions = Counter(server.predict("shown", [0, 0], f"e{i}").json()["version"] for i in range(40))
    body = {"model": "shown", "metric": "kept", "value": 1}
    counts = record(server, [{**body, "entity_id": f"e{i}"} for i in range(40)]).json()["counts"]
    assert counts == {"attributed": 40}
    answer = server.client.get(path("shown", "test", "results"), params={"alpha": 0.1})
    assert answer.status_code == 200, answer.text
    results = answer.json()
    assert (results["model"], results["test_id"], results["alpha"]) == ("shown", "1", 0.1)
    assert (results["baseline"], results["arms"]) == ("v1", ["v1", "v2"])
    assert results["recommendation"] == "keep_running"
    assert results["segments"][0]["answered"] == dict(versions)
    assert results["outcomes"] == {"kept": {"attributed": 40}}
    assert results["counts"]["latency"].keys() == {"v1", "v2"}
    server.client.delete(path("shown", "test")).raise_for_status()
    put(server, "shown", "test", {"splits": {"v1": 0.5, "v2": 0.5}}).raise_for_status()
    url = path("shown", "test", "results")
    assert server.client.get(url).json()["test_id"] == "2"
    ended = server.client.get(url, params={"test": "1"}).json()
    assert (ended["test_id"], ended["status"]) == ("1", "stopped")
    assert_problem(server.client.get(url, params={"test": "3"}), 404, "test_not_found")
    for alpha in ("0", "1", "-1", "nan", "inf", "a lot", ""):
        assert_problem(server.client.get(url, params={"alpha": alpha}), 400, "invalid_request")
    for alpha in ("1e-300", "5e-324", "0.9999999999999999"):
        assert server.client.get(url, params={"alpha": alpha}).status_code == 200


def test_labels_tell_the_quality_of_versions(server: Server) -> None:
    server.release("labels", "v1", FIRST, features=NAMES, accuracy=1.0)
    put(server, "labels", "metrics", {"metrics": METRICS}).raise_for_status()
    assert server.client.get(path("labels", "quality")).json() == []
    body = {"model": "labels", "metric": "left"}
    labels = [
        {**body, "value": "yes" if i else "no", "prediction_id": receipt(server, f"e{i}", "labels")}
        for i in range(4)
    ]
    assert record(server, labels).json()["counts"] == {"attributed": 4}
    (quality,) = server.client.get(path("labels", "quality")).json()
    assert (quality["version"], quality["labels"]) == ("v1", 4)
    assert quality["live"]["accuracy"] == 0.75
    assert quality["gap"]["accuracy"] == -0.25
    assert_problem(server.client.get(path("nowhere", "quality")), 404, "model_not_found")


# --- plans ----------------------------------------------------------------------------------------------------------


def ramp(server: Server, model: str, **plan: Any) -> httpx.Response:
    return put(server, model, "test", {"splits": {"v1": 0.5, "v2": 0.5}, "plan": {**RAMP, **plan}})


def step(server: Server, model: str, action: str, body: Any = None, **headers: str) -> httpx.Response:
    if body is None:
        return server.client.post(path(model, "test", action), headers=headers)
    return server.client.post(path(model, "test", action), json=body, headers=headers)


def test_a_plan_is_steered_by_hand(server: Server) -> None:
    two_versions(server, "ramp")
    for action in ("pause", "resume", "approve", "skip"):
        assert_problem(step(server, "nowhere", action), 404, "model_not_found")
        assert_problem(step(server, "ramp", action), 404, "test_not_found")
    put(server, "ramp", "test", {"splits": {"v1": 0.5, "v2": 0.5}}).raise_for_status()
    for action in ("pause", "resume", "approve", "skip"):
        assert_problem(step(server, "ramp", action), 409, "conflict")
    started = ramp(server, "ramp")
    assert started.status_code == 200, started.text
    test = started.json()
    assert test["plan"]["steps"] == RAMP["steps"]
    assert (test["step"], test["candidate"], test["baseline"]) == (0, "v2", "v1")
    assert [arm["weight"] for arm in test["arms"]] == pytest.approx([0.9, 0.1])
    paused = step(server, "ramp", "pause", {"reason": "holidays"}, **{"X-Actor": "ann"})
    assert (paused.status_code, paused.json()["paused"]) == (200, True)
    assert int(paused.headers["turnout-generation"]) > 0
    event = server.client.get("/v1/audit", params={"model": "ramp"}).json()[-1]
    assert (event["action"], event["actor"], event["reason"]) == ("pause", "ann", "holidays")
    assert step(server, "ramp", "pause", {}).json()["paused"]
    assert not step(server, "ramp", "resume").json()["paused"]
    assert step(server, "ramp", "approve", {"reason": "looked at it"}).json()["approved"]
    skipped = step(server, "ramp", "skip")
    assert skipped.status_code == 200, skipped.text
    assert skipped.json()["step"] == 1
    assert [arm["weight"] for arm in skipped.json()["arms"]] == pytest.approx([0.6, 0.4])
    assert_problem(step(server, "ramp", "skip"), 409, "conflict")
    assert_problem(step(server, "ramp", "approve", **{"If-Match": '"1"'}), 412, "revision_conflict")
    for body in ({"why": ""}, {"reason": 1}, []):
        assert_problem(step(server, "ramp", "pause", body), 400, "invalid_request")
    results = server.client.get(path("ramp", "test", "results")).json()
    assert (results["step"], results["steps"]) == (1, 2)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"steps": []}, "1 to 50 steps"),
        ({"steps": [{"share": 0.1, "min_entities": 9}, {"share": 0.2, "min_entities": 8}]}, "do not fall"),
        ({"steps": [{"share": 0.2}, {"share": 0.1}]}, "expected a share above 0.2"),
        ({"steps": [{"share": 1.5}]}, "<= 1"),
        ({"steps": [{"share": "half"}]}, "float"),
        ({"steps": [{"part": 0.5}]}, "unknown field `part`"),
        ({"speed": 1}, "unknown field `speed`"),
        ({"guardrails": [{"metric": "errors"}]}, "has no margin"),
        ({"guardrails": [{"metric": "bounce", "margin": 0.1}]}, "is no metric"),
        ({"guardrails": [{"metric": "kept"}]}, "has no margin"),
        ({"guardrails": [{"metric": "kept", "margin": 0.1, "hard_limit": 0.5}]}, "hard_limit is for"),
        ({"allocation": {"metric": "kept"}}, "steps or an allocation"),
        ({"steps": [], "allocation": {"metric": "left"}}, "no label"),
        ({"alpha": 0.5}, "< 0.5"),
    ],
)
def test_a_plan_that_can_not_be_followed_is_refused(server: Server, plan: Any, said: str) -> None:
    assert said in assert_problem(ramp(server, "shop", **plan), 400, "invalid_plan")["detail"]
    assert server.client.get(path("shop", "test")).json()["plan"] is None


def test_a_plan_of_arms_that_do_not_fit_is_refused(server: Server) -> None:
    body = {"splits": {"v2": 1.0}, "plan": RAMP}
    assert_problem(put(server, "shop", "test", body), 400, "invalid_plan")
    assert_problem(put(server, "shop", "test", {**body, "plan": [RAMP]}), 400, "invalid_request")
    assert_problem(put(server, "nowhere", "test", body), 404, "model_not_found")


# --- entities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entity", ["gone", "org/7/x", "17", "Zo\u00eb ?#%"])
def test_an_entity_is_deleted_everywhere(server: Server, entity: str) -> None:
    receipt(server, entity)
    assert observe(server, entity_id=entity)["state"] == "attributed"
    url = f"/v1/entities/{path(entity).rpartition('/')[2]}"
    answer = server.client.delete(url)
    assert (answer.status_code, answer.json()) == (200, {"deleted": 2})
    assert server.client.delete(url).json() == {"deleted": 0}
    assert observe(server, entity_id=entity) == {"state": "unexposed"}


def test_an_integer_is_the_entity_of_its_digits(server: Server) -> None:
    server.predict("shop", [0, 0], 1234567).raise_for_status()
    assert observe(server, entity_id=1234567)["state"] == "attributed"
    assert server.client.delete("/v1/entities/1234567").json() == {"deleted": 2}


def test_entities_that_have_no_name_are_refused(server: Server) -> None:
    for raw in ("%FF", "%ED%A0%80"):
        answer = server.client.delete(f"/v1/entities/{raw}")
        assert_problem(answer, 400, "invalid_request")
    assert server.client.delete("/v1/entities/").status_code in {404, 405}
    assert server.client.delete("/v1/entities/" + "x" * 4000).json() == {"deleted": 0}


# --- the client -----------------------------------------------------------------------------------------------------

VERBS = ["declare_metrics", "declared_metrics", "record_outcomes", "results", "live_quality", "read_receipt"]
VERBS += ["forget_entity", "pause_test", "resume_test", "approve_step", "skip_step", "configure_test"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_client_has_the_verbs_of_the_service(verb: str) -> None:
    assert inspect.signature(getattr(Client, verb)) == inspect.signature(getattr(Turnout, verb))


def test_the_document_of_an_outcome_has_its_fields() -> None:
    schema = experiments._outcome_schema()
    assert list(schema.properties or ()) == [
        *("model", "metric", "value"),
        *(name for name in Outcome.__struct_fields__ if name not in {"model", "metric", "value"}),
    ]


def test_a_ramp_by_the_client(server: Server, client: Client) -> None:
    server.release("remote", "v1", FIRST, features=NAMES)
    server.put("remote", "v2", SECOND, features=NAMES).raise_for_status()
    metrics = (Metric("kept", "binary", role="primary"), Metric("left", "label", classes=("no", "yes")))
    assert client.declare_metrics("remote", metrics, reason="so") == metrics
    assert client.declared_metrics("remote") == metrics
    plan = Plan(steps=(Step(0.4, dwell_seconds=86400), Step(0.5)))
    assert client.configure_test("remote", {"v1": 0.5, "v2": 0.5}, plan=plan).plan == plan
    assert client.pause_test("remote", actor="bea").paused
    assert client.last_change is not None
    assert not client.resume_test("remote").paused
    assert client.approve_step("remote").approved
    predictions = [client.predict("remote", [0, 0], entity_id=f"far-{i}") for i in range(30)]
    given = [Outcome("remote", "kept", i % 2, entity_id=f"far-{i}") for i in range(30)]
    given += [Outcome("remote", "left", "no", prediction_id=p.prediction_id) for p in predictions]
    found = client.record_outcomes(given)
    assert found == [
        Attributed("attributed", version=p.version, test="1", segment=found[0].segment)
        for p in predictions + predictions
    ]
    said = client.read_receipt("remote", predictions[0].prediction_id)
    assert (said.model, said.test, said.reason, type(said.entity)) == ("remote", 1, "test", bytes)
    assert client.skip_step("remote").step == 1
    (first, second) = client.live_quality("remote")
    assert first.labels + second.labels == 30
    assert client.forget_entity("far-0") == 3
    # A worker that answered may not have written its exposure down before.
    wait_for(lambda: client.forget_entity("far-0") == 0, 5, "an entity that is gone")


def test_results_by_the_client_are_those_of_the_service(server: Server, client: Client) -> None:
    receipt(server, "seen")
    observe(server, entity_id="seen")
    results = client.results("shop", alpha=0.1)
    assert isinstance(results, Results)
    assert (results.model, results.alpha, results.arms) == ("shop", 0.1, ("v1", "v2"))
    assert all(type(dump) is bytes for dumps in results.counts.latency.values() for dump in dumps)
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results
    assert client.results("shop", results.test_id).test_id == results.test_id
    wait_for(lambda: client.results("shop").trail, 15, "a point of the trail")
    figure = pytest.importorskip("plotly") and client.results("shop").plot()
    assert len(figure.data) > 0


def test_the_client_sends_any_number(client: Client) -> None:
    given = [Outcome("shop", "kept", 1, entity_id="nobody", id=f"n{i}") for i in range(10_000)]
    found = client.record_outcomes([*given, given[0], {"model": "shop"}])
    assert Counter(one.state for one in found) == {"unexposed": 10_001, "invalid": 1}
    assert (found[-2].state, found[-1].code) == ("unexposed", "invalid_outcome")
    assert client.record_outcomes([]) == []


def test_errors_become_exceptions_again(client: Client) -> None:
    with pytest.raises(InvalidMetric, match="margin"):
        client.declare_metrics("shop", [{"name": "a", "kind": "mean", "role": "guardrail"}])
    with pytest.raises(InvalidMetric, match="a list of metrics"):
        client.declare_metrics("shop", {"name": "a"})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="a list of outcomes"):
        client.record_outcomes(Outcome("shop", "kept", 1))  # type: ignore[arg-type]
    falling = Plan(steps=(Step(0.1, min_entities=9), Step(0.2)))
    with pytest.raises(InvalidPlan, match="do not fall"):
        client.configure_test("shop", {"v1": 0.5, "v2": 0.5}, plan=falling)
    with pytest.raises(InvalidReceipt):
        client.read_receipt("shop", "A" * 80)
    with pytest.raises(Conflict):
        client.skip_step("shop")
    with pytest.raises(TestNotFound):
        client.pause_test("other")
    with pytest.raises(TestNotFound):
        client.results("shop", "77")
    with pytest.raises(ModelNotFound):
        client.live_quality("nowhere")
    with pytest.raises(InvalidRequest):
        client.forget_entity("")


def test_results_that_need_no_classifier(server: Server, client: Client) -> None:
    """A regressor's labels are values, and its live quality has errors instead of an accuracy."""
    server.release("price", "v1", linear_matrix([1.0, 0.0]), features=NAMES)
    client.declare_metrics("price", [{"name": "paid", "kind": "label"}])
    given = [
        {"model": "price", "metric": "paid", "value": 3.0, "prediction_id": p.prediction_id}
        for p in (client.predict("price", [2, 0]), client.predict("price", [3, 0]))
    ]
    assert [one.state for one in client.record_outcomes(given)] == ["attributed", "attributed"]
    (quality,) = client.live_quality("price")
    assert quality.live == {"mae": 0.5, "rmse": pytest.approx(0.5**0.5)}


def test_a_true_value_past_all_doubles_holds_up_nobody(server: Server, client: Client) -> None:
    """It is found to be none while others are being stored, in one transaction with it."""
    two_versions(server, "large", metrics=[{"name": "paid", "kind": "label"}, METRICS[0]])
    server.put("large", "r1", linear_matrix([1.0, 0.0]), features=NAMES).raise_for_status()
    server.put("large", "r2", linear_matrix([2.0, 0.0]), features=NAMES).raise_for_status()
    client.configure_test("large", {"r1": 0.5, "r2": 0.5})
    receipt(server, "someone", "large")
    kept = Outcome("large", "kept", 1, entity_id="someone")
    assert client.record_outcomes([kept])[0].state == "attributed"
    found = client.record_outcomes([kept, Outcome("large", "paid", 10**400, entity_id="someone"), kept])
    assert [one.state for one in found] == ["attributed", "invalid", "attributed"]
    assert found[1].code == "invalid_outcome"
