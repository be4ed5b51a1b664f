"""Tensors through the service itself: who is to blame, what is counted, and what is checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import turnout
from models import constant_label, identity_model, token_model, zipmap_model
from turnout.api.intake import Parts
from turnout.api.v2.infer import PLAIN_HEAD, answer_rows, request_of
from turnout.domain import InferenceStatistics
from turnout.errors import TurnoutError
from turnout.inference import RawTensor
from turnout.prediction import Ticket
from turnout.service import Turnout

MODEL = "m"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Turnout]]:
    """Opens a service with versions v1 (active), v2 ... of one model, and splits the traffic where there are two."""
    opened: list[Turnout] = []

    def begin(*graphs: bytes, **settings: Any) -> Turnout:
        hub = turnout.open(tmp_path / f"data{len(opened)}", device="cpu", **settings)
        opened.append(hub)
        for number, graph in enumerate(graphs, 1):
            (tmp_path / "model.onnx").write_bytes(graph)
            hub.register_version(MODEL, f"v{number}", tmp_path / "model.onnx")
        hub.activate_version(MODEL, "v1")
        if len(graphs) == 2:
            hub.configure_test(MODEL, {"v1": 0.5, "v2": 0.5})
        return hub

    yield begin
    for hub in opened:
        hub.close()


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def tokens(rows: int, ids: int = 3, mask: int = 3) -> list[dict[str, Any]]:
    return [
        tensor(name, "INT64", [rows, width], [1] * rows * width)
        for name, width in (("ids", ids), ("mask", mask))
    ]


def ask(hub: Turnout, inputs: list[dict[str, Any]], version: str | None = None, **more: Any) -> Any:
    """The answer as JSON, with its status."""
    body = json.dumps({"inputs": inputs, **more}).encode()
    request, _ = request_of(hub, (MODEL, version), PLAIN_HEAD, body)
    if request.entity_ids is None:
        status, answer = hub.predictor.answer_request(MODEL, version, request)
    else:
        try:
            status, answer = answer_rows(hub, (MODEL, version), request)
        except TurnoutError as error:
            return error.status, {"error": error.detail}
    return status, json.loads(answer)


def arm(hub: Turnout, version: str) -> str:
    return next(f"user-{n}" for n in range(1000) if hub.select_version(MODEL, f"user-{n}") == version)


def counted(hub: Turnout) -> dict[str, InferenceStatistics]:
    return {found.version: found for found in hub.inference_statistics(MODEL)}


def errors(hub: Turnout) -> list[int]:
    merged = hub.statistics()
    return [merged.answered(MODEL, version).errors for version in ("v1", "v2")]


def test_rows_that_the_caller_made_unfit_are_no_failures_of_a_version(start: Callable[..., Turnout]) -> None:
    hub = start(token_model(), token_model())
    ids = [f"user-{n}" for n in range(50)]
    status, answer = ask(hub, tokens(50, mask=4), parameters={"entity_ids": ids})
    assert status == 400
    assert "does not take these tensors" in answer["error"]
    assert errors(hub) == [0, 0]
    assert [found.fail.count for found in counted(hub).values()] == [0, 0]
    hub.desk.exposures.flush()
    assert hub.results(MODEL).entities == 0


def test_an_arm_that_fails_where_the_active_version_does_not_has_failed(
    start: Callable[..., Turnout],
) -> None:
    for settings, expected in (({}, 200), ({"fallback": False}, 500)):
        hub = start(token_model(), token_model(broken=True), **settings)
        status, answer = ask(hub, tokens(1), parameters={"entity_id": arm(hub, "v2")})
        assert status == expected, answer
        assert errors(hub) == [0, 1]
        assert counted(hub)["v2"].fail.count == 1
        status, answer = ask(hub, tokens(1, mask=4), parameters={"entity_id": arm(hub, "v2")})
        assert (status, errors(hub)) == (400, [0, 1])


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_outputs_that_are_not_there_are_refused_before_anything_is_noted(
    start: Callable[..., Turnout], rows: int
) -> None:
    hub = start(constant_label(1), constant_label(2))
    x = tensor("x", "FP32", [rows, 2], [0.0] * 2 * rows)
    more = {"parameters": {"entity_ids": [f"user-{n}" for n in range(rows)]}, "outputs": [{"name": "nope"}]}
    status, answer = ask(hub, [x], **more)
    assert (status, 'unknown output "nope"' in answer["error"]) == (400, True)
    hub.desk.exposures.flush()
    assert hub.results(MODEL).entities == 0


def test_one_row_says_who_answered_it_as_many_do(start: Callable[..., Turnout]) -> None:
    hub = start(constant_label(1))
    x = tensor("x", "FP32", [1, 2], [0.0, 0.0])
    outputs = [
        {"name": name} for name in ("label", "turnout.version", "turnout.reason", "turnout.prediction_id")
    ]
    status, answer = ask(hub, [x], parameters={"entity_ids": ["a"]}, outputs=outputs)
    assert status == 200, answer
    label, version, reason, receipt = (found["data"] for found in answer["outputs"])
    assert (label, version, reason) == ([1], ["v1"], ["active"])
    assert hub.read_receipt(MODEL, receipt[0]).version == 1


def test_no_rows_are_answered_with_none_or_refused(start: Callable[..., Turnout]) -> None:
    hub = start(zipmap_model())
    status, answer = ask(hub, [tensor("x", "FP32", [0, 2], [])])
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == []


def test_a_run_that_versions_share_is_counted_for_each(start: Callable[..., Turnout]) -> None:
    hub = start(constant_label(1))
    (hub.data.parent / "model.onnx").write_bytes(constant_label(1))
    hub.register_version(MODEL, "same", hub.data.parent / "model.onnx")

    def ticket(version: str, rows: int) -> Ticket:
        inputs = [tensor("x", "FP32", [rows, 2], [0.0] * 2 * rows)]
        request, _ = request_of(hub, (MODEL, version), PLAIN_HEAD, json.dumps({"inputs": inputs}).encode())
        return hub.predictor.admit(MODEL, version, request)

    tickets = [ticket("v1", 2), ticket("same", 3), ticket("v1", 0), ticket("same", 1)]
    session = hub.live.session(tickets[0].lane)
    assert {status for status, _ in hub.predictor.respond_together(session, tickets)} == {200}
    assert [counted(hub)[version].inference_count for version in ("v1", "same")] == [2, 4]


def test_a_long_run_does_not_hold_up_the_event_loop_though_it_has_no_rows(
    start: Callable[..., Turnout],
) -> None:
    hub = start(identity_model(["float"], [None, 3, 2]))
    request, _ = request_of(
        hub,
        (MODEL, None),
        PLAIN_HEAD,
        json.dumps({"inputs": [tensor("input0", "FP32", [5, 3, 2], [0] * 30)]}).encode(),
    )
    hub.predictor.admit(MODEL, None, request)
    assert (request.rows, request.weight) == (5, 5)


def test_bfloat16_in_json_is_refused_before_it_runs(start: Callable[..., Turnout]) -> None:
    hub = start(identity_model(["bfloat16"], [None, 2]))
    request = RawTensor(bytes(4), None, 10)
    status, answer = hub.predictor.answer_request(MODEL, None, request)
    assert (status, answer[request.json_bytes :]) == (200, bytes(4))
    head = {
        "inputs": [
            {"name": "input0", "shape": [1, 2], "datatype": "BF16", "parameters": {"binary_data_size": 4}}
        ]
    }
    text = json.dumps(head).encode()
    asked, _ = request_of(hub, (MODEL, None), PLAIN_HEAD._replace(json_bytes=len(text)), text + bytes(4))
    status, answer = hub.predictor.answer_request(MODEL, None, asked)
    assert (status, b"only be sent in binary" in answer) == (400, True)
    assert counted(hub)["v1"].execution_count == 1


def test_the_rest_of_a_body_is_not_copied_for_each_part() -> None:
    body = bytes(range(256)) * 64
    parts = Parts([body])
    read = [parts.read1(1000) for _ in range(16)]
    assert b"".join(read) == body[:16000]
    assert isinstance(parts._parts[0], memoryview)
    assert parts.read1() == body[16000:]
    assert parts.read1() == b""
