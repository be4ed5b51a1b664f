"""Turnout inside a Python program: two small models, a test between them, predictions and assignments.

python examples/embedded.py
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

import turnout

FEATURES = ["totalSpent", "accountAge"]


def write_model(path: Path, weights: list[float]) -> None:
    """A linear model as an ONNX file: `score = features @ weights`. Use your own file instead."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weights"], ["score"])],
        "linear",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(weights)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(np.array(weights, np.float32).reshape(-1, 1), "weights")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main(folder: Path) -> None:
    """Register, test, predict, assign, promote."""
    for label, weights in {"v1.0": [0.01, 0.002], "v2.0": [0.02, 0.001]}.items():
        write_model(folder / f"{label}.onnx", weights)
    with turnout.open(folder / "data", device="cpu") as hub:
        for label in ("v1.0", "v2.0"):
            hub.register_version("churn", label, folder / f"{label}.onnx", features=FEATURES)
        hub.activate_version("churn", "v1.0", reason="first release")
        hub.configure_test("churn", {"v1.0": 0.8, "v2.0": 0.2}, reason="is v2.0 better?")

        for entity in (f"user-{number}" for number in range(1, 11)):
            answer = hub.predict("churn", {"totalSpent": 12.5, "accountAge": 90}, entity_id=entity)
            print(entity, answer.version, answer.reason, answer.outputs)

        indices, names = hub.assign_many("churn", [f"user-{number}" for number in range(100_000)])
        print({names[index]: count / 100_000 for index, count in sorted(Counter(indices.tolist()).items())})

        hub.promote_winner("churn", "v2.0", reason="it is")
        print([(stay.version, stay.action, stay.reason) for stay in hub.version_history("churn").deployments])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
