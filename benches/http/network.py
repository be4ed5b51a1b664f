"""A dense network of 20 inputs and 3.2 million weights, built node by node: where many rows cost little more than one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (20, 1024, 1024, 1024, 1024, 2)


def network(seed: int = 0) -> bytes:
    """The ONNX file."""
    numbers = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for layer, (inner, outer) in enumerate(pairwise(WIDTHS)):
        matrix = (numbers.standard_normal((inner, outer)) / np.sqrt(inner)).astype(np.float32)
        weights += [
            numpy_helper.from_array(matrix, f"w{layer}"),
            numpy_helper.from_array(np.zeros(outer, np.float32), f"b{layer}"),
        ]
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"h{layer}"]))
        last = f"h{layer}"
        if outer != WIDTHS[-1]:
            nodes.append(helper.make_node("Relu", [last], [f"r{layer}"]))
            last = f"r{layer}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [value("x", TensorProto.FLOAT, [None, WIDTHS[0]])],
        [value("probabilities", TensorProto.FLOAT, [None, WIDTHS[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def save(path) -> None:
    path.write_bytes(network())
    onnx.checker.check_model(str(path))
