"""Small ONNX models for tests, as bytes. Graphs are built node by node, so that what they answer is known exactly."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]


def model_bytes(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
    names: Sequence[object] | None = None,
    opsets: Sequence[onnx.OperatorSetIdProto] = OPSET,
) -> bytes:
    """A graph as the bytes of a model; `names` becomes its metadata `turnout.features`."""
    initializers = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    if names is not None:
        helper.set_model_props(model, {"turnout.features": json.dumps(list(names))})
    return model.SerializeToString()


def floats(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def tensor(name: str, dtype: str, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    """An input or output of any element type, as ONNX names it: `float`, `double`, `int64`, `bfloat16`, `string` ..."""
    return helper.make_tensor_value_info(name, getattr(TensorProto, dtype.upper()), shape)


def linear_matrix(weights: Sequence[float], bias: float = 0.0, names: Sequence[str] | None = None) -> bytes:
    """`score [N, 1] = x [N, F] @ weights + bias`."""
    constants = {
        "weights": np.array(weights, np.float32).reshape(-1, 1),
        "bias": np.array([bias], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["score"]),
    ]
    return model_bytes(nodes, [floats("x", None, len(weights))], [floats("score", None, 1)], constants, names)


def cast_to(kind: str, inner: Sequence[int], name: str) -> bytes:
    """Output `name` of shape `[N, *inner]`, at most one dimension: the integer of the one feature, as another type."""
    nodes = [
        helper.make_node("Cast", ["x"], ["integer"], to=TensorProto.INT64),
        helper.make_node("Tile", ["integer", "repeats"], ["many"])
        if inner
        else helper.make_node("Squeeze", ["integer", "axis"], ["many"]),
        helper.make_node("Cast", ["many"], [name], to=getattr(TensorProto, kind)),
    ]
    constants = {"repeats": np.array([1, *inner], np.int64)} if inner else {"axis": np.array([1], np.int64)}
    output = helper.make_tensor_value_info(name, getattr(TensorProto, kind), [None, *inner])
    return model_bytes(nodes, [floats("x", None, 1)], [output], constants)


def constant_label(label: int, features: int = 2) -> bytes:
    """`label [N]` is always the same, so that an answer tells which version gave it; `probabilities [N, 2]`."""
    constants = {
        "zeros": np.zeros((features, 2), np.float32),
        "bias": np.array([0.25, 0.75], np.float32),
        "column": np.zeros((features, 1), np.float32),
        "zero": np.array([0], np.int64),
        "constant": np.array([label], np.int64),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "zeros"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["probabilities"]),
        helper.make_node("MatMul", ["x", "column"], ["none"]),
        helper.make_node("Squeeze", ["none", "axis"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["integers"], to=TensorProto.INT64),
        helper.make_node("Mul", ["integers", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "constant"], ["label"]),
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
        floats("probabilities", None, 2),
    ]
    return model_bytes(nodes, [floats("x", None, features)], outputs, constants)


def columns_model() -> bytes:
    """Three `[N, 1]` inputs: float `age`, int64 `visits`, string `plan`; `score` is age + visits, `plan` comes back."""
    inputs = [
        floats("age", None, 1),
        helper.make_tensor_value_info("visits", TensorProto.INT64, [None, 1]),
        helper.make_tensor_value_info("plan", TensorProto.STRING, [None, 1]),
    ]
    nodes = [
        helper.make_node("Cast", ["visits"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["age", "count"], ["score"]),
        helper.make_node("Identity", ["plan"], ["echo"]),
    ]
    outputs = [floats("score", None, 1), helper.make_tensor_value_info("echo", TensorProto.STRING, [None, 1])]
    return model_bytes(nodes, inputs, outputs)


def failing_model(label: int = 1) -> bytes:
    """Answers as long as the first feature is 0, and fails at run time for any greater one: an index out of range."""
    constants = {"table": np.array([label], np.int64), "first": np.array([0], np.int64)}
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["column"], axis=1),
        helper.make_node("Cast", ["column"], ["index"], to=TensorProto.INT64),
        helper.make_node("GatherND", ["table", "index"], ["label"]),
    ]
    outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, [None])]
    return model_bytes(nodes, [floats("x", None, 2)], outputs, constants)


def slow_model(size: int = 700, layers: int = 4, label: float = 1.0) -> bytes:
    """`score [N, 1]` is `label`, after `layers` multiplications of matrices of `size` x `size`: milliseconds a row."""
    # Multiplying by what arrives keeps the optimiser from folding the work into a constant.
    constants = {
        "widen": np.zeros((2, size * size), np.float32),
        "shape": np.array([-1, size, size], np.int64),
        "label": np.array([label], np.float32),
        "axes": np.array([1, 2], np.int64),
        "column": np.array([-1, 1], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "widen"], ["wide"]),
        helper.make_node("Reshape", ["wide", "shape"], ["m0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(layers)]
    nodes += [
        helper.make_node("ReduceSum", [f"m{layers}", "axes"], ["sum"], keepdims=0),
        helper.make_node("Reshape", ["sum", "column"], ["total"]),
        helper.make_node("Add", ["total", "label"], ["score"]),
    ]
    return model_bytes(nodes, [floats("x", None, 2)], [floats("score", None, 1)], constants)


def heavy_model(megabytes: int, seed: int = 0) -> bytes:
    """A linear model with that many megabytes of weights."""
    width = megabytes * 1024 * 1024 // 4 // 256
    weights = np.random.default_rng(seed).standard_normal((256, width), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["score"], axes=[1], keepdims=1),
    ]
    return model_bytes(nodes, [floats("x", None, 256)], [floats("score", None, 1)], {"weights": weights})


def image_model() -> bytes:
    """A free tensor `[N, 3, 8, 8]` to its mean: nothing that a row of features could carry."""
    nodes = [helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0)]
    return model_bytes(nodes, [floats("image", None, 3, 8, 8)], [floats("mean", None)])


def identity_model(dtypes: Sequence[str], shape: Sequence[int | str | None], *, bias: int = 0) -> bytes:
    """Inputs `input0`, `input1` ... of these element types come back as `output0`, `output1` ..., all of one shape.

    `bias` is added to numbers; strings and bools come back as they are.
    """
    nodes: list[onnx.NodeProto] = []
    for number, dtype in enumerate(dtypes):
        given, wanted = f"input{number}", f"output{number}"
        if not bias or dtype in {"string", "bool"}:
            nodes.append(helper.make_node("Identity", [given], [wanted]))
            continue
        # There is no kernel of Add for bfloat16 on the CPU.
        wide = {"bfloat16": "float"}.get(dtype, dtype)
        nodes += [
            helper.make_node("Cast", [given], [f"{given}_wide"], to=getattr(TensorProto, wide.upper())),
            helper.make_node("Cast", ["bias"], [f"{given}_bias"], to=getattr(TensorProto, wide.upper())),
            helper.make_node("Add", [f"{given}_wide", f"{given}_bias"], [f"{wanted}_wide"]),
            helper.make_node("Cast", [f"{wanted}_wide"], [wanted], to=getattr(TensorProto, dtype.upper())),
        ]
    return model_bytes(
        nodes,
        [tensor(f"input{number}", dtype, shape) for number, dtype in enumerate(dtypes)],
        [tensor(f"output{number}", dtype, shape) for number, dtype in enumerate(dtypes)],
        {"bias": np.array(bias, np.int64)},
    )


def joined_model(inputs: dict[str, tuple[str, int]]) -> bytes:
    """Inputs `[N, width]`, by name with element type and width, side by side as floats: `joined [N, sum of widths]`."""
    nodes = [helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT) for name in inputs]
    nodes.append(helper.make_node("Concat", [f"{name}_float" for name in inputs], ["joined"], axis=1))
    taken = [tensor(name, dtype, [None, width]) for name, (dtype, width) in inputs.items()]
    return model_bytes(nodes, taken, [floats("joined", None, sum(width for _, width in inputs.values()))])


def pooled_model() -> bytes:
    """`image [N, 3, 8, 8]` to two outputs: `label [N]` (int64), the brightest channel, and `means [N, 3]` (float)."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("ArgMax", ["means"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [tensor("label", "int64", [None]), floats("means", None, 3)]
    return model_bytes(nodes, [floats("image", None, 3, 8, 8)], outputs)


def marked_model(mark: str = "!") -> bytes:
    """Strings `text [N]` with a mark behind each: `marked [N]`."""
    nodes = [helper.make_node("StringConcat", ["text", "mark"], ["marked"])]
    return model_bytes(
        nodes,
        [tensor("text", "string", [None])],
        [tensor("marked", "string", [None])],
        {"mark": np.array([mark], np.object_)},
        opsets=[helper.make_opsetid("", 20)],
    )


def parsed_model() -> bytes:
    """Strings `text [N]` as floats `number [N]`; fails with text that is no number, so with all that can be made up."""
    nodes = [helper.make_node("Cast", ["text"], ["number"], to=TensorProto.FLOAT)]
    return model_bytes(nodes, [tensor("text", "string", [None])], [floats("number", None)])


def token_model(*, broken: bool = False) -> bytes:
    """`ids` and `mask`, int64 of free length `[N, S]`, to the sum of the ids that the mask leaves: `total [N]` (int64).

    A `broken` one takes the same and fails on all of it.
    """
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["kept"]),
        helper.make_node("Gather", ["kept", "far"], ["found"], axis=1),
        helper.make_node("ReduceSum", ["found" if broken else "kept", "axes"], ["total"], keepdims=0),
    ]
    taken = [tensor(name, "int64", ["N", "S"]) for name in ("ids", "mask")]
    constants = {"axes": np.array([1], np.int64), "far": np.array([1_000_000], np.int64)}
    nodes = nodes if broken else [nodes[0], nodes[2]]
    return model_bytes(nodes, taken, [tensor("total", "int64", ["N"])], constants)


def zipmap_model(classes: Sequence[str] = ("no", "yes")) -> bytes:
    """Probabilities `[0.25, 0.75]` wrapped into maps, as converters of scikit-learn do by default."""
    constants = {"zeros": np.zeros((2, 2), np.float32), "bias": np.array([0.25, 0.75], np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "zeros"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["raw"]),
        helper.make_node(
            "ZipMap", ["raw"], ["probabilities"], domain="ai.onnx.ml", classlabels_strings=list(classes)
        ),
    ]
    entry = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    output = helper.make_value_info("probabilities", helper.make_sequence_type_proto(entry))
    return model_bytes(nodes, [floats("x", None, 2)], [output], constants)


def external_data_model(folder: Path, location: str = "weights.bin") -> Path:
    """A linear model whose weights, 1 and 2, lie in a file beside it."""
    model = onnx.load_from_string(linear_matrix([1.0, 2.0]))
    path = folder / "graph.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@functools.cache
def sklearn_pair() -> tuple[bytes, bytes, np.ndarray, np.ndarray]:
    """A logistic regression and a gradient boosting on breast cancer; held-out rows (float32) and their labels."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    train, held_out, labels, true = train_test_split(x.astype(np.float32), y, test_size=0.3, random_state=0)
    found = []
    for estimator in (
        make_pipeline(StandardScaler(), LogisticRegression()),
        GradientBoostingClassifier(n_estimators=30, random_state=0),
    ):
        estimator.fit(train, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter's own use of deprecated NumPy
            converted = to_onnx(estimator, train[:1], options={"zipmap": False})
        found.append(converted.SerializeToString())
    return found[0], found[1], held_out, true
