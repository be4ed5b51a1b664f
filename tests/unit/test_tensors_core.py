"""`InferRequest` and what `Route` writes for it: the Open Inference Protocol between bytes and arrays."""

from __future__ import annotations

import json
import struct
import sys
from datetime import UTC, datetime

import numpy as np
import pytest

from turnout import _core
from turnout.domain import REASONS, Artifact, Signature, Tensor, Version
from turnout.errors import InvalidFeatures, InvalidRequest, PredictionFailed
from turnout.router import DATATYPES, plan_of

TYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
SHAPES = [(), (0,), (0, 3), (2, 3)]


def some(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a type: its extremes, where it is one of numbers."""
    count = int(np.prod(shape))
    if dtype == "object":
        return np.array([f"é{index}" for index in range(count)], object).reshape(shape)
    if dtype == "bool":
        return (np.arange(count) % 2 == 0).reshape(shape)
    limits = np.finfo(dtype) if dtype.startswith("f") else np.iinfo(dtype)
    cycle = np.array([limits.max, limits.min, 0, 1], dtype)
    return np.resize(cycle, count).reshape(shape)


def raw(array: np.ndarray) -> bytes:
    """As the protocol sends it in binary."""
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in array.flat)
    return array.tobytes()


def binary(*inputs: tuple[str, tuple[int, ...], bytes], ending: int | None = None) -> tuple[bytes, int]:
    """A body of inputs in binary, and the length of its JSON, which is padded until it is `ending` modulo 8."""
    described = [
        {"name": f"x{index}", "shape": shape, "datatype": kind, "parameters": {"binary_data_size": len(data)}}
        for index, (kind, shape, data) in enumerate(inputs)
    ]
    text = json.dumps({"inputs": described}).encode()
    while ending is not None and len(text) % 8 != ending:
        text += b" "
    return text + b"".join(data for *_, data in inputs), len(text)


def body(shape: object, datatype: str, data: object) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]}
    ).encode()


def refused(text: bytes, json_bytes: int | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        _core.InferRequest.read(text, json_bytes)
    assert type(caught.value) is InvalidRequest
    return caught.value


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("datatype", "dtype"), TYPES.items())
def test_json_becomes_an_array(datatype, dtype, shape):
    expected = some(dtype, shape)
    for data in (expected.ravel().tolist(), expected.tolist()):
        read = _core.InferRequest.read(body(shape, datatype, data))
        (found,) = read.arrays
        assert (read.names, read.datatypes) == (("x",), (datatype,))
        assert (found.dtype, found.shape) == (expected.dtype, shape)
        assert found.flags.c_contiguous
        assert found.flags.aligned
        np.testing.assert_array_equal(found, expected)
        assert not found.size or dtype != "object" or type(found.flat[0]) is str


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("datatype", "dtype"), [*TYPES.items(), ("BF16", "uint16")])
def test_binary_becomes_an_array(datatype, dtype, shape):
    expected = some(dtype, shape)
    for ending in range(8):
        text, json_bytes = binary((datatype, shape, raw(expected)), ending=ending)
        (found,) = _core.InferRequest.read(text, json_bytes).arrays
        assert (found.dtype, found.shape) == (expected.dtype, shape)
        assert found.flags.c_contiguous
        assert found.flags.aligned
        np.testing.assert_array_equal(found, expected)


def test_aligned_binary_is_a_view_and_other_is_copied_once():
    values = np.arange(6, dtype="float64")
    views = {}
    for ending in range(8):
        text, json_bytes = binary(("FP64", (6,), values.tobytes()), ending=ending)
        address = np.frombuffer(text, "uint8").ctypes.data
        (found,) = _core.InferRequest.read(text, json_bytes).arrays
        views[(address + json_bytes) % 8] = found.ctypes.data == address + json_bytes
        assert found.flags.writeable is not views[(address + json_bytes) % 8]
        del text
        assert found.tolist() == values.tolist()
    assert views == {offset: offset == 0 for offset in range(8)}


def test_several_binary_inputs_follow_each_other():
    inputs = [
        ("BYTES", (2,), raw(some("object", (2,)))),
        ("BOOL", (3,), b"\1\0\1"),
        ("INT32", (), b"\2\0\0\0"),
    ]
    text, json_bytes = binary(*inputs)
    read = _core.InferRequest.read(text, json_bytes)
    assert read.names == ("x0", "x1", "x2")
    assert [array.tolist() for array in read.arrays] == [["é0", "é1"], [True, False, True], 2]


@pytest.mark.parametrize("large", [False, True])
def test_arrays_of_json_own_their_memory(large):
    count = 50_000 if large else 3
    (found,) = _core.InferRequest.read(body([count], "FP32", [0.5] * count)).arrays
    assert found.flags.writeable
    assert found.sum() == count / 2


def test_python_floats_that_json_lacks_are_read():
    text = body([4], "FP64", [float("nan"), float("inf"), -float("inf"), None])
    assert b"NaN, Infinity, -Infinity, null" in text
    for order in (text, json.dumps(dict(reversed(json.loads(text).items()))).encode()):
        np.testing.assert_equal(_core.InferRequest.read(order).arrays[0], [np.nan, np.inf, -np.inf, np.nan])
    first = b'{"inputs": [{"data": [NaN, -Infinity], "datatype": "FP16", "shape": [2], "name": "x"}]}'
    np.testing.assert_equal(_core.InferRequest.read(first).arrays[0], [np.nan, -np.inf])


def test_what_a_request_asks_for():
    asked = {
        "id": "abc",
        "parameters": {
            "entity_id": 42,
            "entity_ids": ["a", 7],
            "priority": 3,
            "timeout": 1500,
            "binary_data_output": True,
            "other": {"x": [1]},
        },
        "inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}],
        "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
    }
    read = _core.InferRequest.read(json.dumps(asked).encode())
    assert (read.id, read.entity_id, read.entity_ids) == ("abc", "42", ["a", "7"])
    assert (read.priority, read.timeout_us, read.binary_output) == (3, 1500, True)
    assert read.outputs == [("a", None), ("b", False)]
    plain = _core.InferRequest.read(body([1], "INT8", [1]))
    assert (plain.id, plain.entity_id, plain.entity_ids, plain.outputs) == (None, None, None, None)
    assert (plain.priority, plain.timeout_us, plain.binary_output) == (0, 0, None)


@pytest.mark.parametrize(
    ("text", "expected", "feature"),
    [
        (b"{}", 'missing field "inputs"', None),
        (body([2, 3], "FP32", [1] * 5), 'input "x": expected 6 elements for shape [2, 3], found 5', "x"),
        (
            body([2], "UINT8", [1, 256]),
            'input "x", element 1: expected an integer from 0 to 255, found 256',
            "x",
        ),
        (body([-1], "FP32", []), 'input "x": expected a dimension: an integer from 0 on, found -1', "x"),
        (
            body([2**62], "FP32", []),
            f'input "x": expected a shape that fits into memory, found [{2**62}]',
            "x",
        ),
        (
            body([2**40], "FP64", [1]),
            f'input "x": expected {2**40} elements for shape [{2**40}], found 1',
            "x",
        ),
        (body([0, 2**62, 4], "INT8", []), "expected a shape that fits into memory", "x"),
        (body([1], "BF16", [1]), 'input "x": BF16 can only be sent in binary', "x"),
        (
            b'{"outputs": [{"name": "o", "parameters": {"classification": 1}}]}',
            'output "o": classification is not supported',
            "o",
        ),
    ],
)
def test_what_is_refused_says_what_and_where(text, expected, feature):
    error = refused(text)
    assert expected in str(error)
    assert error.feature == feature
    assert (error.position is not None) == (text != b"{}")


def test_a_bad_header_is_refused():
    text = body([1], "INT8", [1])
    for found in (len(text) + 1, -1, 2**100, sys.maxsize):
        error = refused(text, found)
        assert str(error) == (
            f"Inference-Header-Content-Length: expected at most {len(text)} (the length of the body), found {found}"
        )
    assert "expected 0 bytes of binary tensors behind the JSON, found 1" in str(
        refused(text + b"x", len(text))
    )
    assert "binary_data_size needs the header" in str(refused(binary(("INT8", (0,), b""))[0]))


# --- answers ---

OUTPUTS = ["label", "probabilities"]


def route(datatypes=(), *, names=OUTPUTS, score=None, signer=None) -> _core.Route:
    plan = _core.VersionPlan("v1", "tensors", [], [], list(names), score, list(datatypes))
    numbers = [] if signer is None else [5]
    return _core.Route("m", [plan], ["v1"], 0, None, [], {}, [], signer, numbers, (0, 0), None)


def split(answer: tuple[bytes, int]) -> tuple[dict, list]:
    """The JSON of an answer, and its outputs as the protocol's clients read them."""
    whole, length = answer
    document = json.loads(whole[:length] if length else whole)
    rest = whole[length:] if length else b""
    found = []
    for output in document["outputs"]:
        dtype = {**TYPES, "BF16": "uint16"}[output["datatype"]]
        if "data" in output:
            found.append(np.array(output["data"], dtype).reshape(output["shape"]))
            continue
        size = output["parameters"]["binary_data_size"]
        data, rest = rest[:size], rest[size:]
        request = {"inputs": [{**output, "name": "x"}]}
        head = json.dumps(request).encode()
        found.append(_core.InferRequest.read(head + data, len(head)).arrays[0])
    assert rest == b""
    return document, found


@pytest.mark.parametrize("in_binary", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("datatype", "dtype"), TYPES.items())
def test_every_output_reads_back(datatype, dtype, shape, in_binary):
    expected = some(dtype, shape)
    answer = route(names=["out"]).write_tensors(0, 0, [expected], None, 0, 1, None, [(0, in_binary)])
    assert bool(answer[1]) == in_binary
    document, (found,) = split(answer)
    assert document["outputs"][0]["datatype"] == datatype
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_an_answer_says_who_gave_it():
    outputs = [np.array([1]), np.array([[0.25, 0.75]], "float32")]
    answer = route().write_tensors(
        0, REASONS.index("pinned"), outputs, None, 0, 1, "q", [(1, False), (0, False)]
    )
    document = json.loads(answer[0])
    prediction = document["parameters"].pop("prediction_id")
    assert len(prediction) == 36
    assert document == {
        "model_name": "m",
        "model_version": "v1",
        "id": "q",
        "parameters": {"version": "v1", "reason": "pinned"},
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]},
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [1]},
        ],
    }
    assert list(document) == ["model_name", "model_version", "id", "parameters", "outputs"]


def test_the_receipt_has_the_score_of_a_single_row():
    signer = _core.Signer(b"k" * 32, "m")
    signed, entity = route(score=1, signer=signer), signer.entity("user-1")
    outputs = [np.array([1]), np.array([[0.25, 0.75]], "float32")]
    for rows, score in ((1, 0.75), (2, None)):
        written, _ = signed.write_tensors(0, 0, outputs, entity, 9, rows, None, [])
        read = signer.read(json.loads(written)["parameters"]["prediction_id"])
        assert read is not None
        assert (read[1], read[2], read[3], read[6]) == (0, entity, 5, score)


def test_the_watch_sees_the_answer_of_an_arm():
    signer, watch = _core.Signer(b"k" * 32, "m"), _core.Watch(1)
    arms = _core.Split(_core.Ledger.start("v1"), "m/1")
    plan = _core.VersionPlan("v1", "tensors", [], [], ["y"], 0)
    tested = _core.Route("m", [plan], ["v1"], 0, arms, [0], {}, [], signer, [1], (1, 1), watch)
    output = np.array([[0.5]], "float32")
    tested.write_tensors(0, REASONS.index("test"), [output], signer.entity("u"), 5, 1, None, [(0, True)])
    entries, counters, _ = watch.drain()
    assert (len(entries), counters[0][0]) == (36, 1)
    assert struct.unpack_from("<f", entries, 28) == (0.5,)
    with pytest.raises(InvalidRequest):  # what was not answered is not noted
        tested.write_many(None, None, None, [("y", "BF16", np.zeros(1, "uint16"), False)])
    with pytest.raises(PredictionFailed):
        tested.write_tensors(0, 1, [np.zeros(1, "complex64")], None, 5, 1, None, [(0, True)])
    assert watch.drain()[1][0][0] == 0


def test_binary_and_json_are_mixed_and_any_layout_is_written():
    turned = np.arange(6, dtype="float16").reshape(2, 3).T
    texts = np.array([["a", "bc"], ["d", b"e"]], object)[:, ::-1]
    every = np.arange(10)[::2]
    outputs = [turned, texts, every, turned]
    wanted = [(0, True), (1, True), (2, False), (3, False)]
    document, found = split(route(names="abcd").write_tensors(0, 0, outputs, None, 0, 3, None, wanted))
    assert [output["name"] for output in document["outputs"]] == list("abcd")
    np.testing.assert_array_equal(found[0], turned)
    assert found[1].tolist() == [["bc", "a"], ["e", "d"]]
    assert found[2].tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_array_equal(found[3], turned)


def test_numbers_that_json_lacks_are_null():
    values = np.array([np.nan, np.inf, 1.5], "float16")
    for array in (values, values.astype("float32"), values.astype("float64")):
        written, length = route(names=["y"]).write_tensors(0, 0, [array], None, 0, 3, None, [(0, False)])
        assert (json.loads(written)["outputs"][0]["data"], length) == ([None, None, 1.5], 0)


def test_bf16_is_sent_in_binary_only():
    bits, brain = np.array([0x3FC0], "uint16"), route(["BF16"], names=["y"])
    document, (found,) = split(brain.write_tensors(0, 0, [bits], None, 0, 1, None, [(0, True)]))
    assert (document["outputs"][0]["datatype"], found.tolist()) == ("BF16", bits.tolist())
    with pytest.raises(InvalidRequest, match=r'^output "y": BF16 can only be sent in binary$') as caught:
        brain.write_tensors(0, 0, [bits], None, 0, 1, None, [(0, False)])
    assert caught.value.feature == "y"


def test_what_cannot_be_written_is_refused_by_name():
    plain = route(names=["y"])
    for array, problem in (
        (np.zeros(1, "complex64"), "cannot write elements of type complex64"),
        (np.array([1], object), "expected strings, found int"),
    ):
        with pytest.raises(PredictionFailed, match=f'output "y": {problem}'):
            plain.write_tensors(0, 0, [array], None, 0, 1, None, [(0, True)])
    with pytest.raises(IndexError):
        plain.write_tensors(0, 0, [np.zeros(1)], None, 0, 1, None, [(1, True)])
    with pytest.raises(IndexError):
        plain.write_tensors(1, 0, [], None, 0, 1, None, [])
    with pytest.raises(ValueError, match="no datatype"):
        plain.write_many(None, None, None, [("y", "FP8", np.zeros(1), False)])


def test_rows_of_several_versions_have_no_prediction_id():
    outputs = [("y", "FP64", np.array([1.0, 2.0]), False), ("z", "BOOL", np.array([True]), True)]
    document, found = split(route().write_many(None, None, "", outputs))
    assert {key: value for key, value in document.items() if key != "outputs"} == {
        "model_name": "m",
        "id": "",
    }
    assert [array.tolist() for array in found] == [[1.0, 2.0], [True]]
    document, _ = split(route().write_many("v1", "active", None, outputs))
    assert document["model_version"] == "v1"
    assert document["parameters"] == {"version": "v1", "reason": "active"}
    document, _ = split(route().write_many(None, "test", None, []))
    assert document == {"model_name": "m", "parameters": {"reason": "test"}, "outputs": []}


def test_each_row_is_signed_with_its_own_score():
    signer = _core.Signer(b"k" * 32, "m")
    signed, entity = route(score=1, signer=signer), signer.entity("user-1")
    entities = np.frombuffer(entity + bytes(16), "uint8").reshape(2, 16)
    outputs = [np.array([0, 1]), np.array([[0.75, 0.25], [0.5, 0.5]], "float32")]
    ids = signed.sign_rows(0, np.array([0, 1], "uint8"), entities, outputs)
    assert len(set(ids)) == 2
    read = [signer.read(text) for text in ids]
    assert [(row[1], row[2], row[3], row[6]) for row in read if row] == [
        (0, entity, 5, 0.25),
        (1, None, 5, 0.5),
    ]
    assert [len(text) for text in route().sign_rows(0, np.zeros(3, "uint8"), None, [])] == [36] * 3
    assert signed.sign_rows(0, np.zeros(0, "uint8"), None, []) == []


def test_a_version_of_free_tensors_takes_no_row_of_features():
    with pytest.raises(InvalidFeatures, match="version v1 takes free tensors, not a row of features"):
        route().prepare(b'{"features": [1]}')
    with pytest.raises(ValueError, match="expected a datatype for each of 2 outputs"):
        route(["FP32"])


def test_every_version_has_a_plan_with_the_datatypes_of_its_outputs():
    assert set(DATATYPES.values()) == {*TYPES, "BF16"}
    tensors = tuple(Tensor(dtype, dtype, (None,)) for dtype in DATATYPES)
    free = Signature(layout="tensors", inputs=tensors, outputs=tensors)
    plan = plan_of(Version("m", "v1", Artifact("0" * 64, ()), free, (), datetime.now(UTC), 1))
    served = _core.Route("m", [plan], ["v1"], 0, None, [], {}, [])
    bits = np.zeros(1, "uint16")
    index = list(DATATYPES).index("bfloat16")
    outputs = [bits] * len(DATATYPES)
    answer = served.write_tensors(0, 0, outputs, None, 0, 1, None, [(index, True)])
    assert split(answer)[0]["outputs"][0]["datatype"] == "BF16"
