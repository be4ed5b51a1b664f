"""Sessions on CUDA, on a machine without: buffers, graphs, options, refusals. `tests/gpu` has what needs a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fakecuda import Device, device
from models import linear_matrix
from turnout.domain import Artifact, Feature, SessionOptions, Signature, Tensor, Version, utc_now
from turnout.engine import Engine, Session

__all__ = ["device"]

MATRIX = Signature((Tensor("x", "float", (None, 2)),), (Tensor("score", "float", (None, 1)),), "matrix")
LINEAR = linear_matrix([2.0, 3.0], bias=1.0)


def load(
    tmp_path: Path, graph: bytes = LINEAR, signature: Signature = MATRIX, asks: str = "cuda", **options: Any
) -> Session:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph)
    width = len(signature.inputs) if signature.layout == "columns" else 2
    version = Version(
        model="m",
        version="v1",
        artifact=Artifact("0" * 64, ()),
        signature=signature,
        features=(Feature(""),) * (0 if signature.layout == "tensors" else width),
        created_at=utc_now(),
        ordinal=1,
        options=SessionOptions(**options),
    )
    return Engine(asks, intra_op_threads=1, spinning=False, inline_seconds=0.001).load(path, version)


def rows(*values: tuple[float, float]) -> list[np.ndarray]:
    return [np.array(values, np.float32)]


def test_first(device: Device, tmp_path: Path) -> None:
    session = load(tmp_path)
    print(session.note, session.graphs, session.cpu_nodes, device.sessions)
    assert session.run(rows((1, 2), (3, 4), (5, 6)))[0].tolist() == [[9.0], [19.0], [29.0]]
    assert session.graphs == (1, 2, 4, 8, 16, 32, 64)
