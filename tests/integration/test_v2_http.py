"""The Open Inference Protocol over plain HTTP: what clients hide, get wrong, or do not know of."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from models import (
    constant_label,
    failing_model,
    identity_model,
    image_model,
    linear_matrix,
    marked_model,
    token_model,
)
from protocol import (
    LENGTH,
    Given,
    answer_of,
    array_of,
    assert_error,
    body_of,
    infer,
    outputs_of,
    packed,
    register,
    target,
)
from servers import Server, path, wait_for
from turnout.api.media import zstd

ROWS = "rows"
MIXED = ("float16", "string", "bool")
GRAPHS: dict[tuple[str, str], Callable[[], bytes]] = {
    (ROWS, "v1.0"): lambda: linear_matrix([2.0, -0.5], bias=1.0),
    (ROWS, "v2.0"): lambda: linear_matrix([0.0, 0.0], bias=7.0),
    ("mixed", "v1"): lambda: identity_model(MIXED, [None, 2]),
    ("grid", "v1"): lambda: identity_model(["float16"], ["N", "M"]),
    ("cube", "v1"): lambda: identity_model(["float16"], ["N", "M", "K"]),
    ("fixed", "v1"): lambda: identity_model(["uint32", "bool"], [2, 2]),
    ("scalar", "v1"): lambda: identity_model(["int32"], []),
    ("bits", "v1"): lambda: identity_model(["bfloat16"], [None, 2]),
    ("flags", "v1"): lambda: identity_model(["bool"], [None, 3]),
    ("tokens", "v1"): token_model,
    ("image", "v1"): image_model,
    ("text", "v1"): marked_model,
    ("split", "v1"): lambda: constant_label(1),
    ("split", "v2"): lambda: constant_label(2),
    ("tensors", "v1"): lambda: identity_model(["float16", "string"], [None, 2], bias=1),
    ("tensors", "v2"): lambda: identity_model(["float16", "string"], [None, 2], bias=2),
    ("shaky", "v1"): lambda: constant_label(1),
    ("shaky", "v2"): lambda: failing_model(2),
    ("shadowed", "v1"): lambda: identity_model(["float16"], [None, 3]),
    ("shadowed", "v2"): lambda: identity_model(["float16"], [None, 3], bias=1),
}
"""The first version of each model is the active one."""
HALVES = {"splits": {"v1": 0.5, "v2": 0.5}}
KEPT = {"metrics": [{"name": "kept", "kind": "binary", "role": "primary"}]}
ENTITIES = [f"user-{number}" for number in range(24)]
BOMB_BYTES = 200 * 2**20


@pytest.fixture(scope="module")
def server(server: Server) -> Server:
    register(server.data, {at: graph() for at, graph in GRAPHS.items()})
    assert server.put("idle", "v1", linear_matrix([1.0, 1.0])).status_code == 201
    for model in ("split", "tensors", "shaky"):
        assert server.client.put(path(model, "metrics"), json=KEPT).status_code == 200
        assert server.client.put(path(model, "test"), json=HALVES).status_code == 200
    together = {"max_batch_rows": 256, "max_delay_us": 20_000}
    graphs = {("together", "v1"): identity_model(MIXED, [None, 2]), ("uneven", "v1"): token_model()}
    register(server.data, graphs, **together)
    return server


def x(*rows: tuple[float, float], binary: bool = False) -> Given:
    return Given("x", "FP32", np.array(rows, np.float32).reshape(-1, 2), binary)


ROW = x((12.5, 90.0))
SCORE = [[-19.0]]


def asked(server: Server, model: str, body: Any, **headers: str) -> httpx.Response:
    """Send a body as it is, or as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.client.post(
        target(model),
        content=content,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


def one_input(**fields: Any) -> dict[str, Any]:
    """A good request for ROWS, whose input has other fields; what is None is left out."""
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [12.5, 90.0], **fields}
    return {"inputs": [{name: value for name, value in tensor.items() if value is not None}]}


# --- health and metadata --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["live", "ready"])
def test_health_has_a_status_and_a_body(server: Server, what: str) -> None:
    answer = server.client.get(f"/v2/health/{what}")
    assert (answer.status_code, answer.json()) == (200, {"live": True, "ready": True})
    head = server.client.head(f"/v2/health/{what}")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("model", "status", "said"),
    [
        (ROWS, 200, ""),
        ("nobody", 404, "Request for unknown model: 'nobody' is not found"),
        ("idle", 503, "model idle is not ready"),
    ],
)
def test_a_model_is_ready_unknown_or_not_ready(server: Server, model: str, status: int, said: str) -> None:
    answer = server.client.get(target(model, verb="ready"))
    if status == 200:
        assert (answer.status_code, answer.json()) == (200, {"name": model, "ready": True})
    else:
        assert_error(answer, status, said)
    if model == "idle":
        assert_error(server.client.get(target(model, "v1", "ready")), 503, "version v1")
        assert_error(infer(server, model, ROW), 404, "active")
        assert_error(server.client.get(target(model, "v9", "ready")), 404, "v9")


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "rows"),
    [
        (ROWS, [("x", "FP32", [-1, 2])], [("score", "FP32", [-1, 1])], True),
        (
            "split",
            [("x", "FP32", [-1, 2])],
            [("label", "INT64", [-1]), ("probabilities", "FP32", [-1, 2])],
            True,
        ),
        (
            "tokens",
            [("ids", "INT64", [-1, -1]), ("mask", "INT64", [-1, -1])],
            [("total", "INT64", [-1])],
            True,
        ),
        ("text", [("text", "BYTES", [-1])], [("marked", "BYTES", [-1])], True),
        ("bits", [("input0", "BF16", [-1, 2])], [("output0", "BF16", [-1, 2])], True),
        ("scalar", [("input0", "INT32", [])], [("output0", "INT32", [])], False),
        (
            "fixed",
            [("input0", "UINT32", [2, 2]), ("input1", "BOOL", [2, 2])],
            [("output0", "UINT32", [2, 2]), ("output1", "BOOL", [2, 2])],
            False,
        ),
    ],
)
def test_metadata_and_configuration(
    server: Server, model: str, inputs: list[Any], outputs: list[Any], rows: bool
) -> None:
    metadata = server.client.get(target(model, verb=None)).json()
    assert (metadata["name"], metadata["platform"]) == (model, "onnxruntime_onnx")
    assert metadata["versions"] == [version for name, version in GRAPHS if name == model]
    config = server.client.get(target(model, verb="config")).json()
    assert (config["name"], config["platform"], config["backend"]) == (
        model,
        "onnxruntime_onnx",
        "onnxruntime",
    )
    assert (config["max_batch_size"] > 0) == rows
    for role, expected in (("input", inputs), ("output", outputs)):
        found = [(each["name"], each["datatype"], each["shape"]) for each in metadata[f"{role}s"]]
        assert found == expected
        found = [(each["name"], each["data_type"], each["dims"]) for each in config[role]]
        kinds = {"BYTES": "STRING"}
        assert found == [
            (name, f"TYPE_{kinds.get(datatype, datatype)}", shape[rows:])
            for name, datatype, shape in expected
        ]
    version = metadata["versions"][0]
    assert server.client.get(target(model, version, None)).json() == metadata
    assert server.client.get(target(model, version, "config")).json() == config


# --- requests in JSON -----------------------------------------------------------------------------------------------

FORMS: dict[str, Any] = {
    "flat": one_input(),
    "nested": one_input(data=[[12.5, 90.0]]),
    "integers": one_input(data=[12.5, 90]),
    "data first": b'{"inputs":[{"data":[[12.5,90]],"datatype":"FP32","shape":[1,2],"name":"x"}]}',
    "inputs last": b'{"outputs":[{"name":"score"}],"parameters":{},"id":"1","inputs":'
    b'[{"name":"x","shape":[1,2],"datatype":"FP32","data":[12.5,90]}]}',
    "white space": b' \t\r\n{ "inputs" : [ { "name" : "x" , "shape" : [ 1 , 2 ] , "datatype" : "FP32" ,\n'
    b'"data" : [ [ 12.5 , 90 ] ] } ] } \n',
    "escapes": b'{"inputs":[{"name":"\\u0078","shape":[1,2],"datatype":"FP32","data":[12.5,90]}]}',
    "exponents": b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.25e1,9E+1]}]}',
    "unknown keys": {**one_input(), "more": {"a": [1, {}]}, "parameters": {"tenant": "a", "n": [1]}},
    "an unknown parameter of the input": one_input(parameters={"more": 1}),
    "null for what is not there": {**one_input(), "id": None, "parameters": None, "outputs": None},
    "no outputs named": {**one_input(), "outputs": []},
    "an output that is named": {**one_input(), "outputs": [{"name": "score", "parameters": {}}]},
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_json_in_any_form(server: Server, body: Any) -> None:
    answer = asked(server, ROWS, body)
    assert outputs_of(answer)["score"].tolist() == SCORE
    said = answer.json()
    assert (said["model_name"], said["model_version"]) == (ROWS, "v1.0")
    assert set(said["parameters"]) == {"version", "reason", "prediction_id"}
    assert (said["parameters"]["version"], said["parameters"]["reason"]) == ("v1.0", "active")


@pytest.mark.parametrize(
    "kind", [None, "application/json", "application/octet-stream", "text/plain", "x", ""]
)
def test_the_content_type_does_not_matter(server: Server, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for given in (ROW, ROW._replace(binary=True)):
        assert outputs_of(infer(server, ROWS, given, headers=headers))["score"].tolist() == SCORE


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("fields", [{}, {"id": ""}, {"id": "1"}, {"id": 'ü "\n\\ 🙂'}, {"id": "x" * 1000}])
def test_the_id_comes_back(server: Server, fields: dict[str, Any], binary: bool) -> None:
    answer = infer(server, ROWS, ROW, parameters={"binary_data_output": binary}, **fields)
    assert {key: value for key, value in answer_of(answer).items() if key == "id"} == fields
    assert outputs_of(answer)["score"].tolist() == SCORE


def test_numbers_that_are_none(server: Server) -> None:
    body = b'{"inputs":[{"name":"x","shape":[4,2],"datatype":"FP32","data":[NaN,1,Infinity,1,-Infinity,1,null,1]}]}'
    flat = asked(server, ROWS, body).json()["outputs"][0]["data"]
    assert flat == [None] * 4, "JSON has no words for them"
    wanted = body.replace(b'{"inputs"', b'{"parameters":{"binary_data_output":true},"inputs"')
    found = outputs_of(asked(server, ROWS, wanted))["score"].reshape(-1)
    assert np.isnan(found).tolist() == [True, False, False, True]
    assert found[1:3].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("version", [None, "v1"])
def test_a_scalar(server: Server, version: str | None) -> None:
    for data in ("7", "[7]"):
        body = f'{{"inputs":[{{"name":"input0","shape":[],"datatype":"INT32","data":{data}}}]}}'
        answer = server.client.post(target("scalar", version), content=body)
        assert outputs_of(answer)["output0"].tolist() == 7
    binary = infer(server, "scalar", Given("input0", "INT32", np.array(7, np.int32), binary=True))
    assert outputs_of(binary)["output0"].tolist() == 7


@pytest.mark.parametrize(
    ("outputs", "parameters", "expected"),
    [
        (None, {}, {"output0": False, "output1": False, "output2": False}),
        (None, {"binary_data_output": True}, {"output0": True, "output1": True, "output2": True}),
        (None, {"binary_data_output": False}, {"output0": False, "output1": False, "output2": False}),
        ([("output1", None)], {}, {"output1": False}),
        ([("output2", None), ("output0", None)], {}, {"output2": False, "output0": False}),
        ([("output2", True), ("output0", None)], {}, {"output2": True, "output0": False}),
        (
            [("output0", False), ("output1", None)],
            {"binary_data_output": True},
            {"output0": False, "output1": True},
        ),
        (
            [("output2", True), ("output1", True), ("output0", True)],
            {"binary_data_output": False},
            {"output2": True, "output1": True, "output0": True},
        ),
    ],
)
def test_outputs_come_as_they_are_wanted(
    server: Server, outputs: list[tuple[str, bool | None]] | None, parameters: Any, expected: dict[str, bool]
) -> None:
    given = mixed((2, 2))
    fields: dict[str, Any] = {"parameters": parameters}
    if outputs is not None:
        fields["outputs"] = [
            {"name": name, **({} if binary is None else {"parameters": {"binary_data": binary}})}
            for name, binary in outputs
        ]
    answer = infer(server, "mixed", *given, **fields)
    assert {each["name"]: "data" not in each for each in answer_of(answer)["outputs"]} == expected
    found = outputs_of(answer)
    assert list(found) == list(expected)
    for name, values in found.items():
        assert values.tolist() == given[int(name[-1])].values.tolist()


def mixed(shape: tuple[int, int], binary: tuple[bool, ...] = (False, False, False)) -> list[Given]:
    return [
        Given(f"input{place}", datatype, array_of(datatype, *shape), chosen)
        for place, (datatype, chosen) in enumerate(zip(("FP16", "BYTES", "BOOL"), binary, strict=True))
    ]


REFUSED: dict[str, tuple[str, Any, list[str]]] = {
    "nothing": (ROWS, b"", []),
    "white space": (ROWS, b" \n", []),
    "null": (ROWS, b"null", []),
    "a list": (ROWS, b"[]", []),
    "cut off": (ROWS, b'{"inputs": [', []),
    "more behind it": (ROWS, json.dumps(one_input()).encode() + b"x", []),
    "no UTF-8": (ROWS, b'{"id": "\xff\xfe"}', ["UTF-8"]),
    "a lone surrogate": (ROWS, b'{"id": "\\ud800"}', []),
    "deep": (ROWS, b'{"x": ' + b"[" * 100_000, []),
    "deep data": (
        ROWS,
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":' + b"[" * 100_000,
        [],
    ),
    "no inputs": (ROWS, {}, ["inputs"]),
    "empty inputs": (ROWS, {"inputs": []}, ["input"]),
    "inputs that are no list": (ROWS, {"inputs": {"x": [1, 2]}}, ["inputs"]),
    "inputs twice": (ROWS, b'{"inputs":[],"inputs":[]}', ["inputs"]),
    "an input that is no object": (ROWS, {"inputs": [1]}, ["input"]),
    "no name": (ROWS, one_input(name=None), ["name"]),
    "no shape": (ROWS, one_input(shape=None), ['"x"', "shape"]),
    "no datatype": (ROWS, one_input(datatype=None), ['"x"', "datatype"]),
    "no data": (ROWS, one_input(data=None), ['"x"', "data"]),
    "data twice": (ROWS, one_input(parameters={"binary_data_size": 8}), ['"x"', "data"]),
    "an unknown datatype": (ROWS, one_input(datatype="FLOAT"), ['"x"', "FLOAT", "BYTES"]),
    "a datatype that is none of the model": (ROWS, one_input(datatype="FP64"), ['"x"', "FP32", "FP64"]),
    "an unknown input": (ROWS, one_input(name="y"), ['"y"', '"x"']),
    "an input twice": (ROWS, {"inputs": one_input()["inputs"] * 2}, ['"x"']),
    "an input too few": ("mixed", one_input(name="input0", datatype="FP16"), ['"input1"', '"input2"']),
    "data too short": (ROWS, one_input(data=[1]), ['"x"', "[1, 2]"]),
    "data too long": (ROWS, one_input(data=[1, 2, 3]), ['"x"', "[1, 2]"]),
    "nested too short": (ROWS, one_input(data=[[1]]), ['"x"', "[1, 2]"]),
    "nested too long": (ROWS, one_input(data=[[1, 2], [3, 4]]), ['"x"', "[1, 2]"]),
    "nested in another way": (ROWS, one_input(data=[[1], [2]]), ['"x"', "[1, 2]"]),
    "nested too deep": (ROWS, one_input(data=[[[1, 2]]]), ['"x"']),
    "data that is no list": (ROWS, one_input(data=1), ['"x"']),
    "the wrong number of columns": (
        ROWS,
        one_input(shape=[1, 3], data=[1, 2, 3]),
        ['"x"', "[-1, 2]", "[1, 3]"],
    ),
    "the wrong number of dimensions": (ROWS, one_input(shape=[2]), ['"x"', "[-1, 2]", "[2]"]),
    "a negative dimension": (ROWS, one_input(shape=[-1, 2]), ['"x"', "dimension"]),
    "a fraction as dimension": (ROWS, one_input(shape=[1.5, 2]), ['"x"', "dimension"]),
    "a text as dimension": (ROWS, one_input(shape=["1", 2]), ['"x"', "dimension"]),
    "a shape that is no list": (ROWS, one_input(shape=2), ['"x"', "shape"]),
    "a shape past all memory": (ROWS, one_input(shape=[2**62, 2**62], data=[]), ['"x"', "shape"]),
    "a shape of too many dimensions": (ROWS, one_input(shape=[1] * 1000, data=[1]), ['"x"', "dimensions"]),
    "a number past its type": (ROWS, one_input(data=[1, 1e39]), ['"x"', "1", "FP32"]),
    "a text for a number": (ROWS, one_input(data=[1, "2"]), ['"x"', "1"]),
    "a truth for a number": (ROWS, one_input(data=[True, 2]), ['"x"', "0"]),
    "a fraction for an integer": (
        "tokens",
        {"inputs": [{"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": [1, 1.5]}]},
        ['"ids"', "1"],
    ),
    "past an integer": (
        "fixed",
        {"inputs": [{"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [0, 1, 2**32, 3]}]},
        ['"input0"', "2", "4294967295"],
    ),
    "below an integer": (
        "fixed",
        {"inputs": [{"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [-1, 1, 2, 3]}]},
        ['"input0"', "0"],
    ),
    "a number for a truth": (
        "flags",
        {"inputs": [{"name": "input0", "shape": [1, 3], "datatype": "BOOL", "data": [True, 1, False]}]},
        ['"input0"', "1", "true or false"],
    ),
    "the example of the specification": (
        "fixed",
        {
            "inputs": [
                {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
                {"name": "input1", "shape": [3], "datatype": "BOOL", "data": [True]},
            ]
        },
        ['"input1"', "[3]"],
    ),
    "a number for a string": (
        "text",
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}]},
        ['"text"', "0"],
    ),
    "BF16 in JSON": (
        "bits",
        {"inputs": [{"name": "input0", "shape": [1, 2], "datatype": "BF16", "data": [1, 2]}]},
        ['"input0"', "BF16", "binary"],
    ),
    "an unknown output": (ROWS, {**one_input(), "outputs": [{"name": "label"}]}, ['"label"', '"score"']),
    "an output twice": (ROWS, {**one_input(), "outputs": [{"name": "score"}] * 2}, ["score"]),
    "an output without name": (ROWS, {**one_input(), "outputs": [{}]}, ["name"]),
    "outputs that are names": (ROWS, {**one_input(), "outputs": ["score"]}, ["output"]),
    "a reserved parameter": (ROWS, {**one_input(), "parameters": {"triton_x": 1}}, ["triton_x"]),
    "a priority below 0": (ROWS, {**one_input(), "parameters": {"priority": -1}}, ["priority"]),
    "a priority that is no number": (ROWS, {**one_input(), "parameters": {"priority": "1"}}, ["priority"]),
    "a timeout that is a fraction": (ROWS, {**one_input(), "parameters": {"timeout": 0.5}}, ["timeout"]),
    "a fraction as entity": (ROWS, {**one_input(), "parameters": {"entity_id": 1.5}}, ["entity"]),
    "a text for binary_data_output": (
        ROWS,
        {**one_input(), "parameters": {"binary_data_output": "true"}},
        [],
    ),
    "parameters that are a list": (ROWS, {**one_input(), "parameters": []}, ["parameters"]),
    "a number as id": (ROWS, {**one_input(), "id": 1}, []),
    "not as many rows in each": (
        "tokens",
        {
            "inputs": [
                {"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]},
                {"name": "mask", "shape": [2, 1], "datatype": "INT64", "data": [1, 2]},
            ]
        },
        ["ids 1", "mask 2"],
    ),
    "sizes that the model does not take together": (
        "tokens",
        {
            "inputs": [
                {"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]},
                {"name": "mask", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]},
            ]
        },
        ["ids [1, 2]", "mask [1, 3]"],
    ),
}


@pytest.mark.parametrize(("model", "body", "said"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_what_is_wrong(server: Server, model: str, body: Any, said: list[str]) -> None:
    text = assert_error(asked(server, model, body), 400, *said)
    assert len(text) < 1000


@pytest.mark.parametrize("width", [0, 1])
def test_more_rows_than_a_request_may_have_are_refused(server: Server, width: int) -> None:
    """As many as the configuration says."""
    most = server.client.get(target("tokens", verb="config")).json()["max_batch_size"]
    shape = {"shape": [most + 1, width], "datatype": "INT64"}
    size = {"parameters": {"binary_data_size": 8 * (most + 1) * width}}
    head = json.dumps({"inputs": [{"name": name, **shape, **size} for name in ("ids", "mask")]}).encode()
    content = head + bytes(16 * (most + 1) * width)
    answer = server.client.post(target("tokens"), content=content, headers={LENGTH: str(len(head))})
    assert_error(answer, 400, f"{most}")


@pytest.mark.parametrize("shape", [[10**9, 0], [10**12, 0], [0, 10**12], [2**62, 0]], ids=str)
def test_an_empty_tensor_promises_no_more_than_memory_has(server: Server, shape: list[int]) -> None:
    body = {
        "inputs": [
            {"name": name, "shape": shape, "datatype": "INT64", "data": []} for name in ("ids", "mask")
        ]
    }
    assert_error(asked(server, "tokens", body), 400, '"ids"')


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_outputs_that_json_does_not_have(server: Server, binary: bool) -> None:
    given = Given("input0", "BF16", array_of("BF16", 1, 2), binary=True)
    answer = infer(server, "bits", given, parameters={"binary_data_output": binary})
    if binary:
        assert outputs_of(answer)["output0"].tolist() == given.values.tolist()
    else:
        assert_error(answer, 400, "BF16", "binary", "output0")


# --- requests in binary ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", list(itertools.product([False, True], repeat=3)), ids=str)
def test_inputs_in_json_and_in_binary(server: Server, binary: tuple[bool, ...]) -> None:
    given = mixed((3, 2), binary)
    found = outputs_of(infer(server, "mixed", *given))
    for place, tensor in enumerate(given):
        assert found[f"output{place}"].tolist() == tensor.values.tolist()


@pytest.mark.parametrize("padding", range(9))
def test_tensors_may_begin_at_any_byte(server: Server, padding: int) -> None:
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    content, headers = body_of(
        Given("ids", "INT64", values, binary=True), Given("mask", "INT64", values + 1, binary=True)
    )
    length = int(headers[LENGTH])
    content = content[:length] + b" " * padding + content[length:]
    answer = server.client.post(target("tokens"), content=content, headers={LENGTH: str(length + padding)})
    assert outputs_of(answer)["total"].tolist() == (values * (values + 1)).sum(1).tolist()


def test_the_header_may_come_without_tensors(server: Server) -> None:
    content, _ = body_of(ROW)
    answer = server.client.post(target(ROWS), content=content, headers={LENGTH: str(len(content))})
    assert outputs_of(answer)["score"].tolist() == SCORE
    empty = Given("text", "BYTES", np.empty(0, np.object_), binary=True)
    assert outputs_of(infer(server, "text", empty))["marked"].shape == (0,)


BINARY, NEEDED = body_of(ROW._replace(binary=True))
SIZE = len(BINARY)


@pytest.mark.parametrize(
    "length",
    ["", "x", "-1", "+1", "1.0", "1e2", "0x10", "1 0", "9" * 18, "9" * 30, "9" * 1000, f"{SIZE + 1}"],
    ids=lambda length: length[:20],
)
def test_a_header_that_can_not_be(server: Server, length: str) -> None:
    answer = server.client.post(target(ROWS), content=BINARY, headers={LENGTH: length})
    assert_error(answer, 400, LENGTH)


@pytest.mark.parametrize(
    ("name", "status"),
    [(LENGTH, 400), ("Content-Encoding", 415), ("X-Entity-Id", 400), ("X-Timeout-Ms", 400)],
)
def test_a_header_that_is_not_ascii_is_not_one_that_is_not_there(
    server: Server, name: str, status: int
) -> None:
    content, _ = body_of(ROW)
    headers = {name.encode(): b"\xb2"}
    assert_error(server.client.post(target(ROWS), content=content, headers=headers), status)


@pytest.mark.parametrize("length", [1, 5, SIZE - 9, SIZE - 7, SIZE], ids=str)
def test_a_header_that_is_not_the_length_of_the_json(server: Server, length: int) -> None:
    answer = server.client.post(target(ROWS), content=BINARY, headers={LENGTH: str(length)})
    assert_error(answer, 400)


def binary_input(name: str, datatype: str, shape: list[int], size: Any, behind: bytes) -> tuple[bytes, int]:
    """A request of one input, and the length of its JSON."""
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + behind, len(head)


EIGHT = b"\0" * 8
TENSORS: dict[str, tuple[str, tuple[bytes, int], list[str]]] = {
    "too small for its shape": (
        ROWS,
        binary_input("x", "FP32", [1, 2], 4, b"\0" * 4),
        ['"x"', "8 bytes", "4"],
    ),
    "too large for its shape": (
        ROWS,
        binary_input("x", "FP32", [1, 2], 12, b"\0" * 12),
        ['"x"', "8 bytes", "12"],
    ),
    "fewer bytes than it says": (ROWS, binary_input("x", "FP32", [1, 2], 8, b"\0" * 7), ["8", "7"]),
    "more bytes than it says": (ROWS, binary_input("x", "FP32", [1, 2], 8, b"\0" * 9), ["8", "9"]),
    "a negative size": (ROWS, binary_input("x", "FP32", [1, 2], -8, EIGHT), ['"x"']),
    "a fraction as size": (ROWS, binary_input("x", "FP32", [1, 2], 8.5, EIGHT), ['"x"']),
    "a text as size": (ROWS, binary_input("x", "FP32", [1, 2], "8", EIGHT), ['"x"']),
    "a size past all memory": (ROWS, binary_input("x", "FP32", [2**61, 2], 2**64, EIGHT), ['"x"']),
    "a size of 63 bits": (ROWS, binary_input("x", "FP32", [1, 2], 2**63 - 1, EIGHT), ['"x"']),
    "a truth that is none": (
        "flags",
        binary_input("input0", "BOOL", [1, 3], 3, b"\0\1\2"),
        ['"input0"', "2"],
    ),
    "a string that is cut off": (
        "text",
        binary_input("text", "BYTES", [1], 8, struct.pack("<I", 5) + b"abcd"),
        ['"text"', "5", "4"],
    ),
    "a string past all memory": (
        "text",
        binary_input("text", "BYTES", [1], 8, b"\xff\xff\xff\xff" + b"abcd"),
        ['"text"', "4294967295"],
    ),
    "a length that is cut off": (
        "text",
        binary_input("text", "BYTES", [2], 8, b"\0\0\0\0\1\0\0\0"),
        ['"text"'],
    ),
    "strings too many": ("text", binary_input("text", "BYTES", [1], 8, EIGHT), ['"text"', "[1]"]),
    "strings too few": ("text", binary_input("text", "BYTES", [3], 8, EIGHT), ['"text"', "[3]"]),
    "strings without end": ("text", binary_input("text", "BYTES", [2**60], 8, EIGHT), ['"text"']),
    "a string that is no UTF-8": (
        "text",
        binary_input("text", "BYTES", [1], 6, struct.pack("<I", 2) + b"\xc3\x28"),
        ['"text"', "UTF-8"],
    ),
}


@pytest.mark.parametrize(("model", "body", "said"), TENSORS.values(), ids=TENSORS)
def test_tensors_in_binary_that_do_not_fit(
    server: Server, model: str, body: tuple[bytes, int], said: list[str]
) -> None:
    content, length = body
    assert_error(
        server.client.post(target(model), content=content, headers={LENGTH: str(length)}), 400, *said
    )


def test_a_size_needs_the_header(server: Server) -> None:
    content, _ = binary_input("x", "FP32", [1, 2], 8, b"")
    assert_error(server.client.post(target(ROWS), content=content), 400, '"x"', LENGTH)


# --- raw requests ---------------------------------------------------------------------------------------------------

RAW: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "a row": (ROWS, packed("FP32", ROW.values), {"score": SCORE}),
    "of free length": (
        "grid",
        packed("FP16", array_of("FP16", 5)),
        {"output0": array_of("FP16", 1, 5).tolist()},
    ),
    "of no length": ("grid", b"", {"output0": [[]]}),
    "truths": ("flags", b"\1\0\1", {"output0": [[True, False, True]]}),
    "BF16": ("bits", packed("BF16", array_of("BF16", 2)), {"output0": array_of("BF16", 1, 2).tolist()}),
    "a scalar": ("scalar", b"\7\0\0\0", {"output0": 7}),
    "a string": ("text", "aü🙂".encode(), {"marked": ["aü🙂!"]}),
    "no string": ("text", b"", {"marked": ["!"]}),
    "an image": ("image", b"\0" * (3 * 8 * 8 * 4), {"mean": [0.0]}),
}


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize(("model", "content", "outputs"), RAW.values(), ids=RAW)
def test_a_raw_request_is_one_row_of_the_one_input(
    server: Server, model: str, content: bytes, outputs: dict[str, Any], chunked: bool
) -> None:
    body = iter([content[:2], content[2:]]) if chunked else content
    answer = server.client.post(target(model), content=body, headers={LENGTH: "0"})
    assert {name: values.tolist() for name, values in outputs_of(answer).items()} == outputs
    said = answer_of(answer)
    assert all("data" not in output for output in said["outputs"])
    assert "id" not in said
    assert said["parameters"]["prediction_id"]


@pytest.mark.parametrize(
    ("model", "content", "status", "said"),
    [
        ("nobody", b"", 404, "unknown model"),
        (ROWS, b"", 400, "2 elements"),
        (ROWS, b"\0" * 7, 400, "7"),
        (ROWS, b"\0" * 12, 400, "found 3"),
        (ROWS, json.dumps(one_input()).encode(), 400, "x"),
        ("mixed", b"\0" * 8, 400, "3 inputs"),
        ("tokens", b"\0" * 8, 400, "2 inputs"),
        ("cube", b"\0" * 8, 400, "input0"),
        ("flags", b"\0\1\2", 400, "0 and 1"),
        ("flags", b"\0\1", 400, "found 2"),
        ("text", b"\xff", 400, "UTF-8"),
    ],
)
def test_a_raw_request_that_does_not_fit(
    server: Server, model: str, content: bytes, status: int, said: str
) -> None:
    assert_error(server.client.post(target(model), content=content, headers={LENGTH: "0"}), status, said)


# --- how bodies come and go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_bodies_in_chunks(server: Server, size: int, binary: bool) -> None:
    given = x(*[(float(number), 2.0) for number in range(300)], binary=binary)
    content, headers = body_of(given)
    pieces = (content[start : start + size] for start in range(0, len(content), size))
    answer = server.client.post(target(ROWS), content=pieces, headers=headers)
    assert outputs_of(answer)["score"].reshape(-1).tolist() == (given.values[:, 0] * 2).tolist()
    assert_error(server.client.post(target(ROWS), content=iter([b""]), headers=headers), 400)


def test_a_body_that_never_ends_holds_nobody_up(server: Server) -> None:
    content, _ = body_of(ROW)
    head = f"POST {target(ROWS)} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(head + b"%x\r\n%b\r\n" % (len(content), content))
        assert outputs_of(infer(server, ROWS, ROW))["score"].tolist() == SCORE
        slow.sendall(b"0\r\n\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "identity": bytes,
    "": bytes,
}


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize(("coding", "pack"), PACKERS.items(), ids=PACKERS)
def test_the_header_counts_what_was_unpacked(
    server: Server, coding: str, pack: Callable[[bytes], bytes], rows: int, binary: bool
) -> None:
    given = x(*[(12.5, 90.0)] * rows, binary=binary)
    content, headers = body_of(given)
    answer = server.client.post(
        target(ROWS), content=pack(content), headers={**headers, "Content-Encoding": coding}
    )
    assert outputs_of(answer)["score"].tolist() == SCORE * rows


@pytest.mark.parametrize(
    ("coding", "body", "status", "said"),
    [
        ("br", b"x", 415, "br"),
        ("gzip, gzip", b"x", 415, "gzip"),
        ("gzip", b"{}", 400, "gzip"),
        ("gzip", b"", 400, ""),
        ("gzip", gzip.compress(body_of(ROW)[0])[:-1], 400, "gzip"),
        ("gzip", gzip.compress(body_of(ROW)[0])[:-8], 400, "gzip"),
        ("gzip", gzip.compress(body_of(ROW)[0]) + b"x", 400, "gzip"),
        ("deflate", b"{}", 400, "deflate"),
        ("deflate", zlib.compress(body_of(ROW)[0])[:-1], 400, "deflate"),
        ("deflate", zlib.compress(body_of(ROW)[0]) + b"x", 400, "deflate"),
        ("zstd", b"{}", 400, "zstd"),
    ],
)
def test_codings_that_can_not_be_read(
    server: Server, coding: str, body: bytes, status: int, said: str
) -> None:
    answer = server.client.post(target(ROWS), content=body, headers={"Content-Encoding": coding})
    assert_error(answer, status, said)
    assert outputs_of(infer(server, ROWS, ROW))["score"].tolist() == SCORE


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize(
    ("accepted", "codings"),
    [
        ("gzip", {"gzip"}),
        ("deflate", {"deflate"}),
        ("gzip;q=0.1, deflate;q=0.9", {"deflate"}),
        ("gzip, deflate, br, zstd", {"gzip", "deflate"}),
        ("identity", {None}),
        ("gzip;q=0", {None}),
        ("br", {None}),
        ("", {None}),
    ],
)
def test_answers_are_packed_as_the_client_likes(
    server: Server, accepted: str, codings: set[str | None], binary: bool
) -> None:
    """As gzip or deflate: the protocol's clients send what their HTTP library knows, and know no other themselves."""
    large = x(*[(12.5, 90.0)] * 1000)
    headers, parameters = {"Accept-Encoding": accepted}, {"binary_data_output": binary}
    answer = infer(server, ROWS, large, headers=headers, parameters=parameters)
    assert answer.headers.get("content-encoding") in codings
    assert outputs_of(answer)["score"].tolist() == SCORE * 1000
    small = infer(server, ROWS, ROW, headers=headers, parameters=parameters)
    assert "content-encoding" not in small.headers
    assert outputs_of(small)["score"].tolist() == SCORE


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_body_that_unpacks_to_too_much_is_413(server: Server, coding: str) -> None:
    bomb = PACKERS[coding](bytes(BOMB_BYTES))
    assert len(bomb) < 1_000_000
    answer = server.client.post(target(ROWS), content=bomb, headers={"Content-Encoding": coding})
    assert_error(answer, 413, "max_batch_bytes")
    assert outputs_of(infer(server, ROWS, ROW))["score"].tolist() == SCORE


def test_request_ids_come_back(server: Server) -> None:
    headers = {"X-Request-Id": "abc-1 ~"}
    assert infer(server, ROWS, ROW, headers=headers).headers["x-request-id"] == "abc-1 ~"
    assert infer(server, "nobody", ROW, headers=headers).headers["x-request-id"] == "abc-1 ~"
    assert server.client.get("/v2", headers=headers).headers["x-request-id"] == "abc-1 ~"
    assert infer(server, ROWS, ROW).headers["x-request-id"]


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["rsgi", "asgi"])
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one worker with little room."""
    data = tmp_path_factory.mktemp("limited") / "data"
    settings = {"max_in_flight": 3, "max_batches": 1, "max_body_bytes": 50_000, "max_batch_bytes": 100_000}
    settings["log_predictions"] = True
    with Server(data, interface=request.param, **settings) as running:
        register(
            data,
            {
                (ROWS, "v1"): GRAPHS[ROWS, "v1.0"](),
            },
        )
        patient = {"max_delay_us": 1_000_000, "max_batch_rows": 64, "max_queue_rows": 2}
        register(data, {("patient", "v1"): linear_matrix([2.0, 0.5])}, **patient)
        yield running


def test_more_in_flight_than_may_be_is_429(limited: Server) -> None:
    begun = [limited.begin(ROWS) for _ in range(3)]
    refused = infer(limited, ROWS, ROW)
    assert_error(refused, 429, "3 requests are in flight")
    assert refused.headers["retry-after"] == "1"
    assert limited.client.get("/v2/health/ready").status_code == 200, "the bound is on inferences"
    begun.pop().close()
    wait_for(lambda: infer(limited, ROWS, ROW).status_code == 200, 5, "the place of the client that went")
    for other in begun:
        assert other.complete().startswith(b"HTTP/1.1 200")


def test_more_rows_than_may_wait_are_429(limited: Server) -> None:
    other = limited.begin(ROWS)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(infer, limited, "patient", x((1.0, 2.0), (1.0, 2.0)))
        wait_for(
            lambda: infer(limited, "patient", ROW, parameters={"timeout": 1}).status_code == 429, 5, "a queue"
        )
        refused = infer(limited, "patient", ROW)
        assert_error(refused, 429, "2 rows")
        assert refused.headers["retry-after"] == "1"
        other.close()
        assert outputs_of(first.result())["score"].tolist() == [[3.0]] * 2


def test_inferences_are_logged_when_asked(limited: Server) -> None:
    assert infer(limited, ROWS, ROW, headers={"X-Request-Id": "seen"}).status_code == 200
    assert infer(limited, ROWS, ROW._replace(name="y"), headers={"X-Request-Id": "wrong"}).status_code == 400
    wait_for(lambda: len(limited.events("infer")) > 1, 5, "their lines")
    lines = {line["request_id"]: line for line in limited.events("infer")}
    assert (lines["seen"]["model"], lines["seen"]["status"]) == (ROWS, 200)
    assert lines["wrong"]["status"] == 400
    assert '"y"' in lines["wrong"]["detail"]


def test_more_large_bodies_than_may_be_are_429(limited: Server) -> None:
    small, coding = gzip.compress(body_of(ROW)[0]), {"Content-Encoding": "gzip"}
    head = f"POST {target(ROWS)} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    with socket.create_connection(("127.0.0.1", limited.port), timeout=10) as slow:
        slow.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        # A server says this when it begins to read the body.
        assert slow.recv(64).startswith(b"HTTP/1.1 100")
        refused = limited.client.post(target(ROWS), content=small, headers=coding)
        assert_error(refused, 429, "1 batches")
        assert refused.headers["retry-after"] == "1"
        assert infer(limited, ROWS, ROW).status_code == 200, "what is small needs no such place"
    wait_for(
        lambda: limited.client.post(target(ROWS), content=small, headers=coding).status_code == 200,
        5,
        "a free worker",
    )


@pytest.mark.parametrize("rows", [6_000, 12_000])
def test_tensors_may_be_larger_than_json(limited: Server, rows: int) -> None:
    given = x(*[(12.5, 90.0)] * rows, binary=True)
    assert outputs_of(infer(limited, ROWS, given))["score"].tolist() == SCORE * rows
    padded = body_of(ROW)[0] + b" " * 50_000
    assert_error(limited.client.post(target(ROWS), content=padded), 413, "max_body_bytes", "binary")


def test_bodies_past_the_limit_are_413(limited: Server) -> None:
    large = body_of(ROW)[0] + b" " * 100_000
    assert_error(limited.client.post(target(ROWS), content=large), 413, "100000 bytes", "max_batch_bytes")
    chunks = iter([b" " * 60_000, b" " * 60_000, b"{}"])
    assert_error(limited.client.post(target(ROWS), content=chunks), 413, "max_batch_bytes")
    unpacked = limited.client.post(
        target(ROWS), content=gzip.compress(large), headers={"Content-Encoding": "gzip"}
    )
    assert_error(unpacked, 413, "max_batch_bytes")
    with socket.create_connection(("127.0.0.1", limited.port), timeout=10) as raw:
        head = f"POST {target(ROWS)} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 413")
    index = limited.client.post("/v2/repository/index", content=b" " * 60_000)
    assert_error(index, 413, "max_body_bytes")
    assert outputs_of(infer(limited, ROWS, ROW))["score"].tolist() == SCORE


def test_a_request_that_waits_longer_than_it_wants_is_504(limited: Server) -> None:
    """`patient` waits for a second request as long as there is one that it may become."""
    other = limited.begin(ROWS)
    answer = infer(limited, "patient", ROW, parameters={"timeout": 1000})
    assert_error(answer, 504, "1 ms")
    other.close()
    wait_for(lambda: infer(limited, "patient", ROW).status_code == 200, 5, "a worker that waits for nobody")


@pytest.mark.parametrize("timeout", ["", "x", "-1", "0", "1.5", "9" * 20])
def test_a_header_of_a_timeout_that_can_not_be(limited: Server, timeout: str) -> None:
    assert_error(infer(limited, ROWS, ROW, headers={"X-Timeout-Ms": timeout}), 400, "X-Timeout-Ms")


# --- statuses -------------------------------------------------------------------------------------------------------

STATUSES: dict[str, tuple[str, str, Any, int, str]] = {
    "unknown model": (
        "POST",
        target("x"),
        one_input(),
        404,
        "Request for unknown model: 'x' is not found",
    ),
    "unknown model's metadata": (
        "GET",
        target("x", verb=None),
        None,
        404,
        "Request for unknown model: 'x' is not found",
    ),
    "unknown model's configuration": ("GET", target("x", verb="config"), None, 404, "unknown model: 'x'"),
    "unknown model's statistics": ("GET", target("x", verb="stats"), None, 404, "unknown model: 'x'"),
    "unknown model's readiness": ("GET", target("x", verb="ready"), None, 404, "unknown model: 'x'"),
    "unknown version of an unknown model": ("POST", target("x", "1"), one_input(), 404, "unknown model: 'x'"),
    "unknown version": ("POST", target(ROWS, "v9"), one_input(), 404, "v9"),
    "unknown version's metadata": ("GET", target(ROWS, "v9", None), None, 404, "v9"),
    "unknown version's configuration": ("GET", target(ROWS, "v9", "config"), None, 404, "v9"),
    "unknown version's statistics": ("GET", target(ROWS, "v9", "stats"), None, 404, "v9"),
    "bad JSON": ("POST", target(ROWS), b"{", 400, ""),
    "missing inputs": ("POST", target(ROWS), {}, 400, "inputs"),
    "shape and data disagree": ("POST", target(ROWS), one_input(data=[1]), 400, '"x"'),
    "wrong element type": ("POST", target(ROWS), one_input(data=["a", 1]), 400, '"x"'),
    "unknown input": ("POST", target(ROWS), one_input(name="y"), 400, '"y"'),
    "unknown output": ("POST", target(ROWS), {**one_input(), "outputs": [{"name": "y"}]}, 400, '"y"'),
    "wrong datatype": ("POST", target(ROWS), one_input(datatype="INT32", data=[1, 2]), 400, "INT32"),
    "duplicate output": (
        "POST",
        target(ROWS),
        {**one_input(), "outputs": [{"name": "score"}] * 2},
        400,
        "score",
    ),
    "load of an unknown model": ("POST", "/v2/repository/models/x/load", None, 400, "failed to load"),
    "a path that is none": ("GET", "/v2/nothing", None, 404, "/v2/nothing"),
    "a path that is none, of a model": ("GET", "/v2/models/rows/generate", None, 404, "rows/generate"),
    "no UTF-8 in a path": ("GET", "/v2/models/%ff", None, 400, "UTF-8"),
    "no UTF-8 in a path of an inference": ("POST", "/v2/models/%ff/infer", one_input(), 400, "UTF-8"),
}


@pytest.mark.parametrize(("method", "where", "body", "status", "said"), STATUSES.values(), ids=STATUSES)
def test_statuses(server: Server, method: str, where: str, body: Any, status: int, said: str) -> None:
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    assert_error(server.client.request(method, where, content=content), status, said)


@pytest.mark.parametrize(
    ("method", "where", "allowed"),
    [
        ("GET", target(ROWS), "POST"),
        ("PUT", target(ROWS), "POST"),
        ("DELETE", target(ROWS, "v1.0"), "POST"),
        ("POST", target(ROWS, verb=None), "GET"),
        ("POST", target(ROWS, verb="ready"), "GET"),
        ("POST", target(ROWS, verb="config"), "GET"),
        ("POST", target(ROWS, verb="stats"), "GET"),
        ("POST", "/v2", "GET"),
        ("POST", "/v2/health/live", "GET"),
        ("PUT", "/v2/health/ready", "GET"),
        ("GET", "/v2/repository/index", "POST"),
        ("GET", f"/v2/repository/models/{ROWS}/load", "POST"),
        ("DELETE", f"/v2/repository/models/{ROWS}/unload", "POST"),
    ],
)
def test_a_wrong_verb_is_405_and_says_which_are_right(
    server: Server, method: str, where: str, allowed: str
) -> None:
    answer = server.client.request(method, where)
    assert_error(answer, 405, allowed)
    assert allowed in answer.headers["allow"]


@pytest.mark.parametrize("model", ["a b", "a/b", "ü/日本", "%2F", "a?b#c", "infer", "..a/../b"])
def test_names_are_percent_encoded(server: Server, model: str) -> None:
    version = "v/2 ü%."
    register(server.data, {(model, version): GRAPHS[ROWS, "v1.0"]()})
    for answer in (infer(server, model, ROW), infer(server, model, ROW, version=version)):
        said = answer_of(answer)
        assert (said["model_name"], said["model_version"]) == (model, version)
    for verb in ("ready", None, "config"):
        for label in (None, version):
            found = server.client.get(target(model, label, verb))
            assert (found.status_code, found.json()["name"]) == (200, model)
    (found,) = server.client.get(target(model, version, "stats")).json()["model_stats"]
    assert (found["name"], found["version"]) == (model, version)
    for verb in ("load", "unload"):
        answer = server.client.post(target(model, verb=verb).replace("/v2/models/", "/v2/repository/models/"))
        assert (answer.status_code, answer.content) == (200, b"")


# --- the repository -------------------------------------------------------------------------------------------------


def states(server: Server, body: bytes | None = None) -> dict[tuple[str, str], str]:
    answer = server.client.post("/v2/repository/index", content=body)
    assert answer.status_code == 200, answer.text
    assert all(set(each) == {"name", "version", "state", "reason"} for each in answer.json())
    return {(each["name"], each["version"]): each["state"] for each in answer.json()}


@pytest.mark.parametrize("body", [None, b"", b"{}", b' {"ready": false} ', b'{"more": 1}'])
def test_the_index_lists_what_there_is(server: Server, body: bytes | None) -> None:
    found = states(server, body)
    assert set(found) >= set(GRAPHS)
    assert found[ROWS, "v1.0"] == "READY"
    assert set(found.values()) <= {"READY", "UNAVAILABLE", "LOADING"}


def test_the_index_may_list_only_what_is_ready(server: Server) -> None:
    assert states(server)["idle", "v1"] == "UNAVAILABLE"
    found = states(server, b'{"ready": true}')
    assert ("idle", "v1") not in found
    assert set(found.values()) == {"READY"}


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": 1}', b"\xff", b"[" * 100_000])
def test_an_index_that_is_asked_for_wrongly(server: Server, body: bytes) -> None:
    assert_error(server.client.post("/v2/repository/index", content=body), 400)


def repository(server: Server, model: str, verb: str, body: Any = None, **headers: str) -> httpx.Response:
    where = target(model, verb=verb).replace("/v2/models/", "/v2/repository/models/")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(where, content=body, headers=named)


def test_a_model_is_kept_and_let_go(server: Server) -> None:
    first, second, third = (linear_matrix([1.0, weight]) for weight in (2.0, 3.0, 4.0))
    register(server.data, {("kept", "v1"): first, ("kept", "v2"): second})
    assert states(server)["kept", "v2"] == "UNAVAILABLE"
    for body in (None, b"", b"{}", b'{"parameters": {"more": true}}'):
        answer = repository(server, "kept", "load", body)
        assert (answer.status_code, answer.content) == (200, b"")
    assert states(server)["kept", "v2"] == "READY"
    assert server.client.get(path("kept")).json()["kept"] is True
    register(server.data, {("kept", "v3"): third})
    wait_for(lambda: states(server)["kept", "v3"] == "READY", 10, "a version that was registered later")
    answer = repository(server, "kept", "unload", b'{"parameters": {"unload_dependents": false}}')
    assert (answer.status_code, answer.content) == (200, b"")
    wait_for(lambda: states(server)["kept", "v2"] == "UNAVAILABLE", 10, "a version that was let go")
    assert states(server)["kept", "v1"] == "READY"
    assert infer(server, "kept", ROW).status_code == 200
    assert infer(server, "kept", ROW, version="v2").status_code == 200, (
        "as before, it is loaded when it is named"
    )
    actions = [event["action"] for event in server.client.get("/v1/audit", params={"model": "kept"}).json()]
    assert {"load", "unload"} <= set(actions)


def test_what_can_not_be_loaded_or_let_go(server: Server) -> None:
    assert_error(repository(server, "nobody", "load"), 400, "failed to load", "nobody")
    answer = repository(server, "nobody", "unload")
    assert (answer.status_code, answer.content) == (200, b"")
    for body in (b"{", b"[]", b'{"parameters": 1}'):
        assert_error(repository(server, ROWS, "load", body), 400)
        assert_error(repository(server, ROWS, "unload", body), 400)
    for parameters in ({"config": "{}"}, {"file:1/model.onnx": "AAAA"}):
        body = json.dumps({"parameters": parameters}).encode()
        assert_error(repository(server, ROWS, "load", body), 400, "failed to load", next(iter(parameters)))
    assert_error(repository(server, ROWS, "load", If_Match='"0"'), 412, "failed to load")
    assert_error(repository(server, ROWS, "load", If_Match="x"), 400)


def test_an_actor_that_is_not_ascii(server: Server) -> None:
    """Over RSGI, which keeps it back, it is refused: in the protocol's form."""
    head = f"POST /v2/repository/models/{ROWS}/load HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head + b"X-Actor: \xfc\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    status, _, content = answer.partition(b"\r\n\r\n")
    if not status.startswith(b"HTTP/1.1 200"):
        assert status.startswith(b"HTTP/1.1 400")
        assert "X-Actor" in json.loads(content)["error"]


# --- many at once ---------------------------------------------------------------------------------------------------


def test_requests_that_run_together_get_each_its_own(server: Server) -> None:
    """Of one model, with different rows, types on the wire and outputs."""

    def ask(number: int) -> bool:
        rows, binary = number % 7, number % 2 == 0
        values = np.full((rows, 2), number, np.float16)
        names = np.full((rows, 2), f"ü{number}", np.object_)
        given = [
            Given("input0", "FP16", values, binary),
            Given("input1", "BYTES", names, not binary),
            Given("input2", "BOOL", values > 0, binary),
        ]
        wanted = [{"name": name} for name in ("output0", "output1", "output2")[number % 3 :]]
        fields: dict[str, Any] = {"outputs": wanted, "parameters": {"binary_data_output": number % 5 == 0}}
        answer = infer(server, "together", *given, id=f"{number}", **fields)
        found = outputs_of(answer)
        assert answer_of(answer)["id"] == f"{number}"
        expected = {f"output{place}": tensor.values.tolist() for place, tensor in enumerate(given)}
        assert {name: values.tolist() for name, values in found.items()} == {
            each["name"]: expected[each["name"]] for each in wanted
        }
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_requests_of_different_widths_do_not_run_together(server: Server) -> None:
    def ask(number: int) -> bool:
        width = number % 4
        ids = np.full((2, width), number, np.int64)
        given = [Given("ids", "INT64", ids, number % 2 == 0), Given("mask", "INT64", np.ones_like(ids))]
        answer = infer(server, "uneven", *given)
        assert outputs_of(answer)["total"].tolist() == [number * width] * 2
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(100)))


# --- entities and tests ---------------------------------------------------------------------------------------------


def assigned(server: Server, model: str, entity: str) -> str:
    """The version that answers an entity."""
    return server.client.get(path(model, "assignments", entity)).json()["version"]


def entity_ids(server: Server, model: str, count: int = len(ENTITIES)) -> list[str]:
    """Entities of both versions."""
    ids = ENTITIES[:count]
    assert {assigned(server, model, entity) for entity in ids} == {"v1", "v2"}
    return ids


def about(ids: list[str], how: str) -> tuple[list[Given], dict[str, Any]]:
    """Inputs and parameters that say whom each row is about."""
    if how == "parameter":
        return [], {"entity_ids": ids}
    shape = (len(ids), 1) if how == "column" else (len(ids),)
    return [Given("entity_id", "BYTES", np.array(ids, np.object_).reshape(shape), how == "binary")], {}


ABOUT = [{"name": f"turnout.{what}"} for what in ("version", "reason", "prediction_id")]


@pytest.mark.parametrize("binary_out", [False, True], ids=["to json", "to binary"])
@pytest.mark.parametrize("how", ["parameter", "json", "binary", "column"])
def test_each_row_is_answered_by_the_version_of_its_entity(
    server: Server, how: str, binary_out: bool
) -> None:
    ids = entity_ids(server, "split")
    versions = [assigned(server, "split", entity) for entity in ids]
    more, parameters = about(ids, how)
    given = x(*[(float(number), 0.0) for number in range(len(ids))])
    answer = infer(
        server,
        "split",
        given,
        *more,
        id="7",
        outputs=[{"name": "label"}, *ABOUT, {"name": "probabilities"}],
        parameters={**parameters, "binary_data_output": binary_out},
    )
    found = outputs_of(answer)
    assert list(found) == ["label", *(each["name"] for each in ABOUT), "probabilities"]
    assert found["turnout.version"].tolist() == versions
    assert found["label"].tolist() == [int(version[1:]) for version in versions]
    assert found["turnout.reason"].tolist() == ["test"] * len(ids)
    assert found["probabilities"].tolist() == [[0.25, 0.75]] * len(ids)
    said = answer_of(answer)
    assert (said["id"], said["parameters"]["reason"]) == ("7", "test")
    assert "model_version" not in said
    assert "version" not in said["parameters"]
    receipts = found["turnout.prediction_id"].tolist()
    assert len(set(receipts)) == len(ids)
    for version, receipt in zip(versions, receipts, strict=True):
        assert server.client.get(path("split", "receipts", receipt)).json()["version"] == version
    outcomes = [
        {"model": "split", "metric": "kept", "value": 1, "prediction_id": receipt, "id": receipt}
        for receipt in receipts
    ]
    results = server.client.post("/v1/outcomes", json=outcomes).json()["results"]
    assert [result["state"] for result in results] == ["attributed"] * len(ids)
    assert [result["version"] for result in results] == versions


def test_free_tensors_are_routed_row_by_row(server: Server) -> None:
    ids = entity_ids(server, "tensors")
    versions = [assigned(server, "tensors", entity) for entity in ids]
    numbers = np.arange(2 * len(ids), dtype=np.float16).reshape(-1, 2)
    names = array_of("BYTES", len(ids), 2)
    given = [Given("input0", "FP16", numbers, binary=True), Given("input1", "BYTES", names)]
    found = outputs_of(infer(server, "tensors", *given, parameters={"entity_ids": ids}))
    assert list(found) == ["output0", "output1"]
    added = np.array([[int(version[1:])] for version in versions], np.float16)
    assert found["output0"].tolist() == (numbers + added).tolist()
    assert found["output1"].tolist() == names.tolist()
    for entity, version in zip(ids[:4], versions[:4], strict=True):
        alone = infer(server, "tensors", *given, parameters={"entity_id": entity})
        assert answer_of(alone)["model_version"] == version
        assert outputs_of(alone)["output0"].tolist() == (numbers + int(version[1:])).tolist()
        receipt = answer_of(alone)["parameters"]["prediction_id"]
        outcome = {"model": "tensors", "metric": "kept", "value": 1, "prediction_id": receipt, "id": receipt}
        state = server.client.post("/v1/outcomes", json=outcome).json()
        assert (state["state"], state["version"]) == ("attributed", version)


def test_rows_of_one_version_say_so(server: Server) -> None:
    ids = [entity for entity in ENTITIES if assigned(server, "split", entity) == "v2"]
    assert len(ids) > 1
    given = x(*[(0.0, 0.0)] * len(ids))
    answer = infer(server, "split", given, parameters={"entity_ids": ids})
    said = answer_of(answer)
    assert (said["model_version"], said["parameters"]) == ("v2", {"version": "v2", "reason": "test"})
    assert outputs_of(answer)["label"].tolist() == [2] * len(ids)
    pinned = infer(server, "split", given, version="v1", parameters={"entity_ids": ids}, outputs=[*ABOUT[:2]])
    assert answer_of(pinned)["parameters"] == {"version": "v1", "reason": "pinned"}
    found = outputs_of(pinned)
    assert found["turnout.version"].tolist() == ["v1"] * len(ids)
    assert found["turnout.reason"].tolist() == ["pinned"] * len(ids)


@pytest.mark.parametrize(
    "how", ["parameter", "header", "encoded", "ids", "input", "number", "text of a number"]
)
@pytest.mark.parametrize("entity", ["user-1", "user-2", "ü/ 日", "42"])
def test_one_entity(server: Server, how: str, entity: str) -> None:
    given = [x((0.0, 0.0))]
    headers: dict[str, str] = {}
    parameters: dict[str, Any] = {}
    if how == "header":
        headers = {"X-Entity-Id": quote(entity, safe="")}
    elif how == "encoded":
        headers = {"X-Entity-Id": "".join(f"%{byte:02x}" for byte in entity.encode())}
    elif how == "ids":
        parameters = {"entity_ids": [entity]}
    elif how == "input":
        given += about([entity], "json")[0]
    elif how == "number":
        parameters = {"entity_id": int(entity) if entity.isdigit() else entity}
    else:
        parameters = {"entity_id": entity}
    answer = infer(server, "split", *given, headers=headers, parameters=parameters)
    said = answer_of(answer)
    version = assigned(server, "split", entity)
    assert (said["parameters"]["version"], said["parameters"]["reason"]) == (version, "test")
    assert outputs_of(answer)["label"].tolist() == [int(version[1:])]


def test_a_parameter_goes_before_the_header(server: Server) -> None:
    first, second = (
        next(entity for entity in ENTITIES if assigned(server, "split", entity) == version)
        for version in ("v1", "v2")
    )
    answer = infer(
        server, "split", x((0.0, 0.0)), headers={"X-Entity-Id": first}, parameters={"entity_id": second}
    )
    assert answer_of(answer)["model_version"] == "v2"


def test_nobody_in_particular_is_drawn(server: Server) -> None:
    found = {
        (answer_of(answer)["model_version"], answer_of(answer)["parameters"]["reason"])
        for answer in (infer(server, "split", x((0.0, 0.0))) for _ in range(40))
    }
    assert found == {("v1", "random"), ("v2", "random")}


def test_a_raw_request_is_about_the_entity_of_the_header(server: Server) -> None:
    for entity in ENTITIES[:8]:
        headers = {LENGTH: "0", "X-Entity-Id": entity}
        answer = server.client.post(target("split"), content=packed("FP32", ROW.values), headers=headers)
        version = assigned(server, "split", entity)
        assert outputs_of(answer)["label"].tolist() == [int(version[1:])]


def test_headers_of_entities_that_can_not_be(server: Server) -> None:
    for value in ("%ff", "%c3%28"):
        answer = infer(server, "split", ROW, headers={"X-Entity-Id": value})
        assert_error(answer, 400, "X-Entity-Id")


TWO_ROWS = x((0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize(
    ("model", "given", "parameters", "said"),
    [
        ("split", [TWO_ROWS], {"entity_ids": []}, "each row"),
        ("split", [TWO_ROWS], {"entity_ids": ["a"]}, "each row"),
        ("split", [TWO_ROWS], {"entity_ids": ["a", "b", "c"]}, "found 3 for 2 rows"),
        ("split", [TWO_ROWS], {"entity_ids": "a"}, "entity ids"),
        ("split", [TWO_ROWS], {"entity_ids": ["a", None]}, "entity id"),
        ("split", [TWO_ROWS], {"entity_ids": ["a", 1.5]}, "entity id"),
        ("split", [TWO_ROWS, *about(["a", "b"], "json")[0]], {"entity_ids": ["a", "b"]}, "both"),
        ("split", [TWO_ROWS, *about(["a", "b", "c"], "json")[0]], {}, "found 3 for 2 rows"),
        ("split", [TWO_ROWS, *about(["a"], "json")[0]], {}, "each row"),
        ("split", [TWO_ROWS, Given("entity_id", "INT64", np.arange(2))], {}, '"entity_id"'),
        ("split", [TWO_ROWS, Given("entity_id", "BYTES", array_of("BYTES", 2, 2))], {}, '"entity_id"'),
        (
            "fixed",
            [
                Given("input0", "UINT32", array_of("UINT32", 2, 2)),
                Given("input1", "BOOL", array_of("BOOL", 2, 2)),
            ],
            {"entity_ids": ["a", "b"]},
            "rows",
        ),
    ],
)
def test_entities_that_do_not_fit_the_rows(
    server: Server, model: str, given: list[Given], parameters: dict[str, Any], said: str
) -> None:
    assert_error(infer(server, model, *given, parameters=parameters), 400, said)


def test_no_rows_have_no_entities(server: Server) -> None:
    for more in ({"entity_ids": []}, {}):
        answer = infer(server, "split", x(), parameters=more)
        assert outputs_of(answer)["probabilities"].shape == (0, 2)


# --- failures -------------------------------------------------------------------------------------------------------


def test_the_active_version_answers_for_an_arm_that_fails(server: Server) -> None:
    """One row by one, and among others."""
    ids = entity_ids(server, "shaky")
    failing = [float(number % 2) for number in range(len(ids))]
    versions = [assigned(server, "shaky", entity) for entity in ids]
    fails = [version == "v2" and bool(value) for version, value in zip(versions, failing, strict=True)]
    reasons = ["fallback" if fell else "test" for fell in fails]
    answered = ["v1" if fell else version for fell, version in zip(fails, versions, strict=True)]
    assert {"fallback", "test"} == set(reasons)
    for entity, value, version, reason in zip(ids[:8], failing, answered, reasons, strict=False):
        answer = infer(server, "shaky", x((value, 0.0)), parameters={"entity_id": entity})
        said = answer_of(answer)["parameters"]
        assert (said["version"], said["reason"]) == (version, reason)
        assert outputs_of(answer)["label"].tolist() == [int(version[1:])]
    rows = x(*[(value, 0.0) for value in failing])
    outputs = [{"name": "label"}, *ABOUT]
    found = outputs_of(infer(server, "shaky", rows, parameters={"entity_ids": ids}, outputs=outputs))
    assert found["turnout.version"].tolist() == answered
    assert found["turnout.reason"].tolist() == reasons
    assert found["label"].tolist() == [int(version[1:]) for version in answered]
    for version, receipt in zip(answered, found["turnout.prediction_id"].tolist(), strict=True):
        assert server.client.get(path("shaky", "receipts", receipt)).json()["version"] == version


def test_a_version_that_is_named_and_fails_is_500(server: Server) -> None:
    assert_error(infer(server, "shaky", x((1.0, 0.0)), version="v2"), 500, "v2", "shaky")
    assert outputs_of(infer(server, "shaky", x((0.0, 0.0)), version="v2"))["label"].tolist() == [2]


@pytest.mark.parametrize("outputs", [[{"name": "probabilities"}], []], ids=["named", "all"])
def test_outputs_that_an_arm_does_not_have_are_refused(server: Server, outputs: list[Any]) -> None:
    """The second version of `shaky` has no probabilities: rows of both cannot have them in one tensor."""
    ids = entity_ids(server, "shaky")
    rows = x(*[(0.0, 0.0)] * len(ids))
    answer = infer(server, "shaky", rows, parameters={"entity_ids": ids}, outputs=outputs)
    assert_error(answer, 400, '"probabilities"', "v2")


def test_a_free_tensor_is_shadowed(server: Server) -> None:
    plan = {"steps": [{"shadow": 1.0, "min_entities": 10_000}, {"share": 0.5}]}
    begun = server.client.put(path("shadowed", "test"), json={"splits": {"v1": 1.0, "v2": 0.0}, "plan": plan})
    assert begun.status_code == 200, begun.text
    given = Given("input0", "FP16", array_of("FP16", 1, 3), binary=True)
    for number in range(10):
        answer = infer(server, "shadowed", given, parameters={"entity_id": f"user-{number}"})
        assert answer_of(answer)["model_version"] == "v1"

    def found() -> dict[str, Any]:
        results = server.client.get(path("shadowed", "test", "results")).json()
        return (results["shadow"] or {}).get("counts", {})

    wait_for(lambda: found().get("pairs") == 10, 10, lambda: f"ten pairs, found {found()}")
    assert found().get("failed", 0) == 0


# --- statistics -----------------------------------------------------------------------------------------------------


def counts(server: Server, model: str, version: str) -> tuple[int, int, int, int]:
    """Rows, runs, requests that were answered, and those that failed."""
    (found,) = server.client.get(target(model, version, "stats")).json()["model_stats"]
    stats = found["inference_stats"]
    return (
        found["inference_count"],
        found["execution_count"],
        stats["success"]["count"],
        stats["fail"]["count"],
    )


def test_statistics_count_rows_and_runs(server: Server) -> None:
    register(server.data, {("counted", "v1"): linear_matrix([1.0, 2.0])})
    assert counts(server, "counted", "v1") == (0, 0, 0, 0)
    for rows in (1, 3, 5):
        assert infer(server, "counted", x(*[(1.0, 2.0)] * rows)).status_code == 200
    assert infer(server, "counted", ROW, version="v1").status_code == 200
    assert infer(server, "counted", ROW._replace(name="y")).status_code == 400
    wait_for(
        lambda: counts(server, "counted", "v1") == (10, 4, 4, 0),
        5,
        lambda: f"10 rows of 4 runs, found {counts(server, 'counted', 'v1')}",
    )
    (found,) = server.client.get(target("counted", verb="stats")).json()["model_stats"]
    assert set(found["inference_stats"]) == {
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
    }
    assert all(set(each) == {"count", "ns"} for each in found["inference_stats"].values())
    assert {each["batch_size"]: each["compute_infer"]["count"] for each in found["batch_stats"]} == {
        1: 2,
        3: 1,
        5: 1,
    }


def test_statistics_count_failures_and_rows_of_many_entities(server: Server) -> None:
    register(server.data, {("failing", "v2"): failing_model(2), ("failing", "v1"): constant_label(1)})
    assert infer(server, "failing", x((1.0, 0.0))).status_code == 500
    ids = ["a", "b", "c"]
    assert infer(server, "failing", x(*[(0.0, 0.0)] * 3), parameters={"entity_ids": ids}).status_code == 200
    wait_for(
        lambda: counts(server, "failing", "v2")[:2] == (3, 1) and counts(server, "failing", "v2")[3] == 1,
        5,
        lambda: f"3 rows of one run, and a failure, found {counts(server, 'failing', 'v2')}",
    )
    assert counts(server, "failing", "v1") == (0, 0, 0, 0)
