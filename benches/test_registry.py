"""What a request pays to know that nothing has changed, and what a change costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import turnout


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[turnout.Turnout]:
    folder = tmp_path_factory.mktemp("bench")
    weights = numpy_helper.from_array(np.ones((20, 1), np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [None, 20])],
        [value("y", TensorProto.FLOAT, [None, 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(folder / "m.onnx")
    path.write_bytes(model.SerializeToString())
    with turnout.open(folder / "data") as opened:
        for version in ("v1", "v2"):
            opened.register_version("m", version, path, features=[f"f{i}" for i in range(20)])
        opened.activate_version("m", "v1")
        opened.configure_test("m", {"v1": 0.8, "v2": 0.2})
        yield opened


def test_registry_read_on_the_hot_path(benchmark, hub: turnout.Turnout) -> None:
    """The target is 1 us: is the snapshot the newest, and which model is it?"""
    live = hub.live
    assert benchmark(lambda: live.current().serving("m")).name == "m"


def test_registry_read_from_the_database(benchmark, hub: turnout.Turnout) -> None:
    """What the hot path would pay if it asked LMDB for the generation on each request."""
    assert benchmark(hub.registry.generation) > 0


def test_one_durable_change(benchmark, hub: turnout.Turnout) -> None:
    """One transaction with its event, on disk; without workers to wait for."""
    versions = iter(range(10**9))
    benchmark(lambda: hub.activate_version("m", ("v1", "v2")[next(versions) % 2]))


def test_predict_in_process(benchmark, hub: turnout.Turnout) -> None:
    """Bytes in, bytes out, 20 features, a linear model: routing, packing, session, encoding, statistics."""
    features = ",".join(f'"f{i}":{i}.25' for i in range(20))
    body = f'{{"entity_id":"user-123","features":{{{features}}}}}'.encode()
    status, _ = benchmark(hub.predict_bytes, "m", None, body)
    assert status == 200
