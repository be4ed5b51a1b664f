"""What a probe finds in model files, and how it refuses hostile ones."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import turnout
from models import (
    OPSET,
    columns_model,
    constant_label,
    external_data_model,
    failing_model,
    floats,
    identity_model,
    image_model,
    linear_matrix,
    model_bytes,
    parsed_model,
    tensor,
    token_model,
    zipmap_model,
)
from turnout.domain import Feature, Signature, Tensor
from turnout.engine import NUMPY_TYPES
from turnout.errors import DeviceUnavailable, InvalidModel
from turnout.external import external_files
from turnout.probe import Probe, examine, features_for, probe_file

MEMORY = 8 * 1024**3
GOOD = linear_matrix([1.0, 2.0])


def probe(folder: Path, graph: bytes, **limits: Any) -> Probe:
    path = folder / "graph.onnx"
    path.write_bytes(graph)
    return probe_file(path, **{"device": "cpu", "seconds": 20.0, "memory_bytes": MEMORY, **limits})


def refused(folder: Path, graph: bytes, **limits: Any) -> str:
    """Why a file is refused; never with a path of this machine's temporary folder."""
    with pytest.raises(InvalidModel) as raised:
        probe(folder, graph, **limits)
    assert "Traceback" not in raised.value.detail
    return raised.value.detail


# --- what it finds ------------------------------------------------------------------------------------------------


def test_a_matrix(tmp_path: Path) -> None:
    found = probe(tmp_path, linear_matrix([1.0, 2.0], names=["a", "b"]))
    assert found.signature == Signature(
        (Tensor("x", "float", (None, 2)),), (Tensor("score", "float", (None, 1)),), "matrix"
    )
    assert found.features == ("a", "b")
    assert features_for(found, None) == (Feature("a"), Feature("b"))
    assert [f.name for f in features_for(found, ["c", "d"])] == ["c", "d"], "the call wins over the metadata"


def test_a_matrix_without_names_takes_lists(tmp_path: Path) -> None:
    assert features_for(probe(tmp_path, GOOD), None) == (Feature(""), Feature(""))


def test_columns(tmp_path: Path) -> None:
    found = probe(tmp_path, columns_model())
    assert found.signature.layout == "columns"
    assert [tensor.dtype for tensor in found.signature.inputs] == ["float", "int64", "string"]
    assert features_for(found, None) == (Feature("age"), Feature("visits"), Feature("plan", "string"))


def test_free_tensors(tmp_path: Path) -> None:
    found = probe(tmp_path, image_model())
    assert found.signature.layout == "tensors"
    assert found.signature.inputs[0].shape == (None, 3, 8, 8)
    assert features_for(found, None) == ()
    with pytest.raises(InvalidModel, match="free tensors, which have no features"):
        features_for(found, ["a"])


@pytest.mark.parametrize("shape", [(), (None,), (None, 3), (2, 3), (None, None, 3)], ids=str)
def test_tensors_of_every_type(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    dtypes = [dtype for dtype in NUMPY_TYPES if dtype != "string"]
    path = tmp_path / "graph.onnx"
    path.write_bytes(identity_model(dtypes, shape))
    found = examine(path, "cpu", 0).signature
    assert found.layout == "tensors"
    assert found.inputs == tuple(Tensor(f"input{n}", dtype, shape) for n, dtype in enumerate(dtypes))
    assert found.outputs == tuple(Tensor(f"output{n}", dtype, shape) for n, dtype in enumerate(dtypes))
    path.write_bytes(identity_model(["string"], shape))
    (text,) = examine(path, "cpu", 0).signature.outputs
    assert (text.dtype, text.shape) == ("string", shape)


def test_rows_that_give_bfloat16_are_free_tensors(tmp_path: Path) -> None:
    """Features go with JSON, which would show the bits as numbers."""
    cast = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)]
    found = probe(tmp_path, model_bytes(cast, [floats("x", None, 2)], [tensor("y", "bfloat16", [None, 2])]))
    assert (found.signature.layout, found.signature.outputs[0].dtype) == ("tensors", "bfloat16")
    assert features_for(found, None) == ()


def test_tensors_that_nobody_can_make_up_are_taken_from_the_graph(tmp_path: Path) -> None:
    lengths, numbers = probe(tmp_path, token_model()), probe(tmp_path, parsed_model())
    assert [tensor.shape for tensor in lengths.signature.inputs] == [(None, None), (None, None)]
    assert lengths.signature.outputs == (Tensor("total", "int64", (None,)),)
    assert numbers.signature.outputs == (Tensor("number", "float", (None,)),), (
        "though it fails with empty strings"
    )


def test_a_shape_that_the_graph_does_not_say_is_seen_in_a_run(tmp_path: Path) -> None:
    """Its branches differ, so that onnxruntime cannot infer it."""
    branches = [
        helper.make_graph([helper.make_node(kind, inputs, ["z"])], kind, [], [tensor("z", "float", None)])
        for kind, inputs in (("Abs", ["x"]), ("Unsqueeze", ["x", "axis"]))
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["odd"], to=TensorProto.BOOL),
        helper.make_node("If", ["odd"], ["y"], then_branch=branches[1], else_branch=branches[0]),
    ]
    graph = model_bytes(
        nodes, [floats("x", None, 2, 2)], [tensor("y", "float", None)], {"axis": np.array([0], np.int64)}
    )
    (output,) = probe(tmp_path, graph).signature.outputs
    assert output.shape == (None, None, None)


def test_maps_of_a_classifier(tmp_path: Path) -> None:
    (output,) = probe(tmp_path, zipmap_model(["no", "yes"])).signature.outputs
    assert (output.name, output.dtype, output.shape, output.classes) == (
        "probabilities",
        "float",
        (None, 2),
        ("no", "yes"),
    )


def test_several_outputs(tmp_path: Path) -> None:
    outputs = probe(tmp_path, constant_label(7)).signature.outputs
    assert [(o.name, o.dtype) for o in outputs] == [("label", "int64"), ("probabilities", "float")]


def test_a_matrix_of_free_width_needs_its_features(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0)]
    free = model_bytes(
        nodes, [floats("x", None, None)], [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])]
    )
    assert "give the names of its features" in refused(tmp_path, free)
    assert len(features_for(probe(tmp_path, free, width=3), ["a", "b", "c"])) == 3


@pytest.mark.skipif(turnout.engine.cuda_status()[0], reason="CUDA works here")
def test_a_strict_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="CUDA does not work here"):
        probe(tmp_path, GOOD, device="cuda")


# --- features that do not fit -------------------------------------------------------------------------------------

MATRIX = Probe(Signature((Tensor("x", "float", (None, 2)),), (), "matrix"))
COLUMNS = Probe(
    Signature((Tensor("age", "float", (None, 1)), Tensor("plan", "string", (None, 1))), (), "columns")
)


@pytest.mark.parametrize(
    ("found", "given", "message"),
    [
        (MATRIX, ["a"], "input 'x' takes 2 features, found 1"),
        (MATRIX, ["a", "b", "c"], "input 'x' takes 2 features, found 3"),
        (MATRIX, [], "input 'x' takes 2 features, found 0"),
        (MATRIX, ["a", "a"], "feature 'a' is there twice"),
        (MATRIX, ["a", Feature("b", "string")], "feature 'b' is a string, but input 'x' takes float"),
        (MATRIX, ["a", Feature("b", "category")], "feature 'b': a category needs a list of distinct values"),
        (MATRIX, ["a", Feature("b", "category", ("x", "x"))], "a category needs a list of distinct values"),
        (MATRIX, ["a", Feature("b", "int", nullable=True)], "feature 'b': only floats can be null"),
        (MATRIX, ["a", Feature("b", default="1")], "feature 'b': the default '1' is no float"),
        (MATRIX, ["a", Feature("b", default=True)], "the default True is no float"),
        (MATRIX, ["a", Feature("b", "category", ("x",), default="y")], "the default 'y' is no category"),
        (COLUMNS, ["age"], "takes 2 features, found 1"),
        (COLUMNS, ["age", "plan"], "feature 'plan' is a float, but input 'plan' takes string"),
        (
            COLUMNS,
            [Feature("age", "string"), Feature("plan", "string")],
            "feature 'age' is a string, but input 'age'",
        ),
    ],
)
def test_features_that_do_not_fit(found: Probe, given: list[str | Feature], message: str) -> None:
    with pytest.raises(InvalidModel) as raised:
        features_for(found, given)
    assert message in raised.value.detail


@pytest.mark.parametrize(
    "text", ["", "{", "5", '{"a": 1}', "[1]", '[{"name": "a", "type": "date"}]', '["\\ud800"]']
)
def test_metadata_that_names_no_features(tmp_path: Path, text: str) -> None:
    model = onnx.load_from_string(GOOD)
    helper.set_model_props(model, {"turnout.features": text})
    assert "the metadata 'turnout.features' of the model is no list of features" in refused(
        tmp_path, model.SerializeToString()
    )


# --- hostile files ------------------------------------------------------------------------------------------------

HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "text": b"this is not a model\n" * 100,
    "json": b'{"model": 1}',
    "zip": b"PK\x03\x04" + bytes(200),
    "elf": b"\x7fELF" + bytes(200),
    "zeros": bytes(10_000),
    "random": random.Random(0).randbytes(10_000),
    "half": GOOD[: len(GOOD) // 2],
    "all but the last byte": GOOD[:-1],
    "a length of 2^63": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(20),
    "an endless varint": b"\xff" * 100,
    "nested groups": b"\x3a\x7f" * 5000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path, content)


def test_damaged_models_never_harm_the_caller(tmp_path: Path) -> None:
    """Bytes of a good model overwritten here and there: refused with a reason, or still a model."""
    chance, models = random.Random(1), [GOOD, columns_model(), zipmap_model()]
    for _ in range(12):
        content = bytearray(chance.choice(models))
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            found = probe(tmp_path, bytes(content)).signature.inputs
        except InvalidModel as error:
            found = error.detail
        assert found


def node(kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], domain=domain, **attributes)


def huge_constant() -> bytes:
    """Two floats of data that claim to be a matrix of 2^40 by 2^20."""
    model = onnx.load_from_string(GOOD)
    model.graph.initializer[0].dims[:] = [2**40, 2**20]
    return model.SerializeToString()


def huge_result() -> bytes:
    """ConstantOfShape of 2^44 floats."""
    constants = {"shape": np.array([2**22, 2**22], np.int64)}
    nodes = [
        node("ConstantOfShape", ["shape"], "big"),
        node("ReduceSum", ["big"], "sum"),
        node("Add", ["x", "sum"], "y"),
    ]
    return model_bytes(nodes, [floats("x", None, 2)], [floats("y", None, 2)], constants)


def endless() -> bytes:
    """A Loop of 2^62 turns."""
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], "goes"), node("Add", ["v", "v"], "w")],
        "body",
        [scalar("i", TensorProto.INT64, []), scalar("go", TensorProto.BOOL, []), floats("v", None, 2)],
        [scalar("goes", TensorProto.BOOL, []), floats("w", None, 2)],
    )
    constants = {"turns": np.array(2**62, np.int64), "yes": np.array(True)}
    nodes = [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)]
    return model_bytes(nodes, [floats("x", None, 2)], [floats("y", None, 2)], constants)


def one_node(
    kind: str, domain: str = "", output: onnx.ValueInfoProto | None = None, **attributes: Any
) -> bytes:
    return model_bytes(
        [node(kind, ["x"], "y", domain, **attributes)],
        [floats("x", None, 2)],
        [output or floats("y", None, 2)],
    )


def test_an_operator_that_does_not_exist(tmp_path: Path) -> None:
    assert "Teleport" in refused(tmp_path, one_node("Teleport"))
    assert refused(tmp_path, one_node("Relu", domain="com.example.evil"))


def test_shapes_that_no_memory_holds(tmp_path: Path) -> None:
    assert refused(tmp_path, huge_constant())
    assert refused(tmp_path, huge_result(), memory_bytes=4 * 1024**3)


def test_a_model_that_does_not_end(tmp_path: Path) -> None:
    began = time.monotonic()
    assert refused(tmp_path, endless(), seconds=2.0) == "the model did not load and run within 2 s"
    assert time.monotonic() - began < 6


def test_a_model_from_the_future(tmp_path: Path) -> None:
    graph = onnx.load_from_string(GOOD).graph
    future = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9999)], ir_version=9999)
    assert refused(tmp_path, future.SerializeToString())


def test_a_model_that_gives_another_number_of_rows(tmp_path: Path) -> None:
    total = model_bytes(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        [floats("x", None, 2)],
        [floats("y", None, None)],
    )
    assert refused(tmp_path, total).startswith("output 'y': expected 3 rows for 3 rows, found shape [1, 1]")


def test_a_model_that_fails_with_zeros_names_what_it_was_given(tmp_path: Path) -> None:
    constants = {"table": np.zeros((1, 1), np.float32), "one": np.array([[1]], np.int64)}
    nodes = [
        node("GatherND", ["table", "one"], "outside"),
        node("ReduceSum", ["outside"], "sum"),
        node("Cast", ["x"], "z", to=TensorProto.INT64),
        node("Gather", ["table", "index"], "g"),
        node("Add", ["x", "sum"], "y"),
    ]
    nodes = [node("ReduceSum", ["x"], "sum", keepdims=0), node("Cast", ["sum"], "zero", to=TensorProto.INT64)]
    constants = {"table": np.zeros(1, np.float32), "five": np.array(5, np.int64)}
    nodes += [
        node("Add", ["zero", "five"], "index"),
        node("Gather", ["table", "index"], "g"),
        node("Add", ["x", "g"], "y"),
    ]
    broken = model_bytes(nodes, [floats("x", None, 2)], [floats("y", None, 2)], constants)
    assert refused(tmp_path, broken).startswith("the model does not run with 1 rows (x [1, 2]): ")
    assert probe(tmp_path, failing_model()).signature.layout == "matrix", "one that fails only later is taken"


def test_outputs_and_inputs_that_have_no_json(tmp_path: Path) -> None:
    tensors = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    sequence = one_node("SequenceConstruct", output=helper.make_value_info("y", tensors))
    assert "expected a tensor or a sequence of maps" in refused(tmp_path, sequence)
    odd = tensor("x", "float8e4m3fn", [None, 2])
    cast = [node("Cast", ["x"], "y", to=TensorProto.FLOAT)]
    opsets = [helper.make_opsetid("", 19)]
    detail = refused(tmp_path, model_bytes(cast, [odd], [floats("y", None, 2)], opsets=opsets))
    assert detail.startswith("'x' is a tensor(float8e4m3fn): expected a tensor of float, double,")


def test_a_model_without_inputs(tmp_path: Path) -> None:
    constant = [node("Constant", [], "y", value=onnx.numpy_helper.from_array(np.zeros((1, 1), np.float32)))]
    assert refused(tmp_path, model_bytes(constant, [], [floats("y", 1, 1)])) == "the model has no inputs"


def test_the_probe_cannot_take_all_memory(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD, memory_bytes=64 * 1024**2)


def test_nothing_of_a_hostile_file_is_run_here(tmp_path: Path) -> None:
    """A name that a shell, or Python's -m, would take for something else."""
    folder = tmp_path / "-c import os; $(touch x) \n"
    folder.mkdir()
    assert probe(folder, GOOD).signature.layout == "matrix"
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


# --- external data ------------------------------------------------------------------------------------------------


def with_location(location: str) -> bytes:
    """A model whose weights are said to lie somewhere else."""
    model = onnx.load_from_string(GOOD)
    for weights in model.graph.initializer:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "8")):
            entry = weights.external_data.add()
            entry.key, entry.value = key, value
    return model.SerializeToString()


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    with turnout.open(tmp_path / "data") as opened:
        yield opened


def test_external_data_in_the_folder_is_taken(hub: turnout.Turnout, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    external_data_model(folder)
    version = hub.register_version("m", "v1", folder)
    assert [file.path for file in version.artifact.files] == ["model.onnx", "weights.bin"]
    hub.activate_version("m", "v1")
    assert hub.predict("m", [10, 100]).outputs == {"score": [210.0]}


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "/etc/passwd",
        "a/../../secret.bin",
        "",
        ".",
        "..",
        "a\x00b",
        "link.bin",
        "absent.bin",
        "folder",
    ],
)
def test_external_data_outside_the_folder_is_not(hub: turnout.Turnout, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = folder / "graph.onnx"
    path.write_bytes(with_location(location))
    assert external_files(path) == [location]
    with pytest.raises(InvalidModel) as raised:
        hub.register_version("m", "v1", path)
    assert raised.value.detail
    assert hub.models() == []
    assert list((tmp_path / "data" / "artifacts" / "sha256").iterdir()) == []


def test_external_data_in_subgraphs_is_seen(tmp_path: Path) -> None:
    inner = onnx.load_from_string(with_location("inner.bin")).graph
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([branch], "g", [], []), opset_imports=OPSET)
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == ["inner.bin"]


def test_a_probe_is_plain_data() -> None:
    assert msgspec.json.decode(msgspec.json.encode(MATRIX), type=Probe) == MATRIX
