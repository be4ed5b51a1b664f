"""Sessions: what they say of themselves, run, fail with, and give back."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from models import (
    columns_model,
    failing_model,
    heavy_model,
    image_model,
    linear_matrix,
    slow_model,
    zipmap_model,
)
from turnout.domain import Artifact, Feature, SessionOptions, Signature, Tensor, Version, utc_now
from turnout.engine import Engine, Session, cuda_status, flatten, open_session, release_memory, resolve_device
from turnout.errors import DeviceUnavailable, InvalidModel, PredictionFailed

MATRIX = Signature((Tensor("x", "float", (None, 2)),), (), "matrix")
without_cuda = pytest.mark.skipif(cuda_status()[0], reason="CUDA works here")


def version(signature: Signature = MATRIX, features: int = 2, **options: object) -> Version:
    return Version(
        model="m",
        version="v1",
        artifact=Artifact("0" * 64, ()),
        signature=signature,
        features=(Feature(""),) * features,
        created_at=utc_now(),
        ordinal=1,
        options=msgspec.convert(options, SessionOptions),
    )


def load(
    tmp_path: Path, graph: bytes, signature: Signature = MATRIX, features: int = 2, **options: object
) -> Session:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph)
    engine = Engine("auto", intra_op_threads=1, spinning=False, inline_seconds=0.001)
    return engine.load(path, version(signature, features, **options))


def test_a_session_answers_what_the_model_says(tmp_path: Path) -> None:
    session = load(tmp_path, linear_matrix([2.0, 3.0], bias=1.0))
    assert (session.inputs, session.outputs) == (("x",), ("score",))
    (score,) = session.run([np.array([[10, 100], [1, 1]], np.float32)])
    assert score.tolist() == [[321.0], [6.0]]


def test_a_session_says_how_it_was_loaded(tmp_path: Path) -> None:
    session = load(tmp_path, linear_matrix([2.0, 3.0]), device="cpu")
    assert (session.device, session.providers) == ("cpu", ("CPUExecutionProvider",))
    assert session.load_seconds > 0
    assert session.warmup_seconds > session.run_seconds > 0


def test_a_model_that_takes_long_is_not_for_the_event_loop(tmp_path: Path) -> None:
    assert load(tmp_path, linear_matrix([2.0, 3.0])).inline
    assert not load(tmp_path, slow_model()).inline


def test_columns_are_warmed_with_their_own_types(tmp_path: Path) -> None:
    inputs = tuple(
        Tensor(n, d, (None, 1)) for n, d in (("age", "float"), ("visits", "int64"), ("plan", "string"))
    )
    session = load(tmp_path, columns_model(), Signature(inputs, (), "columns"), 3)
    row = [np.array([[1.5]], np.float32), np.array([[2]], np.int64), np.array([["basic"]], object)]
    score, echo = session.run(row)
    assert (score.tolist(), echo.tolist()) == ([[3.5]], [["basic"]])


def test_free_tensors_are_not_warmed(tmp_path: Path) -> None:
    session = load(
        tmp_path, image_model(), Signature((Tensor("image", "float", (None, 3, 8, 8)),), (), "tensors"), 0
    )
    assert session.run_seconds == 0
    assert session.run([np.ones((1, 3, 8, 8), np.float32)])[0].tolist() == [1.0]


def test_maps_become_arrays(tmp_path: Path) -> None:
    (probabilities,) = load(tmp_path, zipmap_model()).run([np.zeros((2, 2), np.float32)])
    assert probabilities.dtype == np.float32
    assert probabilities.tolist() == [[0.25, 0.75], [0.25, 0.75]]


def test_flatten_gives_the_keys_of_maps_and_refuses_the_rest() -> None:
    array, keys = flatten([{"no": 0.25, "yes": 0.75}])
    assert (array.tolist(), keys) == ([[0.25, 0.75]], ("no", "yes"))
    for odd in ([], [np.zeros(1)], [{"a": 1.0}, {"b": 1.0}], {"a": 1.0}, None):
        with pytest.raises(PredictionFailed, match="expected a tensor"):
            flatten(odd)


def test_a_run_that_fails_says_so_in_the_words_of_the_runtime(tmp_path: Path) -> None:
    session = load(tmp_path, failing_model())
    assert session.run([np.zeros((1, 2), np.float32)])[0].tolist() == [1]
    with pytest.raises(PredictionFailed, match=r"the model failed: .*(index|indices)"):
        session.run([np.array([[5, 0]], np.float32)])
    with pytest.raises(PredictionFailed, match=r"the model failed: .*INVALID_ARGUMENT"):
        session.run([np.zeros((1, 3), np.float32)])
    assert session.run([np.zeros((1, 2), np.float32)])[0].tolist() == [1], "it goes on"


def test_a_model_that_cannot_be_warmed_is_no_version(tmp_path: Path) -> None:
    wrong = Signature((Tensor("x", "float", (None, 3)),), (), "matrix")
    with pytest.raises(PredictionFailed, match="loads but does not run"):
        load(tmp_path, linear_matrix([2.0, 3.0]), wrong, 3)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    for content in (b"", b"nothing", linear_matrix([2.0, 3.0])[:60], os.urandom(1000)):
        with pytest.raises(InvalidModel, match="onnxruntime cannot load it"):
            load(tmp_path, content)
    with pytest.raises(InvalidModel, match="cannot load"):
        open_session(tmp_path / "missing.onnx", device="cpu")


def test_many_threads_share_a_session(tmp_path: Path) -> None:
    session, wrong = load(tmp_path, linear_matrix([1.0, 1.0])), []

    def ask(number: int) -> None:
        for row in range(200):
            answer = session.run([np.array([[number, row]], np.float32)])[0].tolist()
            if answer != [[float(number + row)]]:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "device", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu ", "cpu:0", "cuda:" + "9" * 5000]
)
def test_devices_that_are_none(device: str) -> None:
    with pytest.raises(InvalidModel, match="expected a device auto, cpu, cuda or cuda:N"):
        resolve_device(device)


@without_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_strict_device_is_had_or_refused_with_the_reason(device: str) -> None:
    reason = cuda_status()[1]
    assert reason
    with pytest.raises(DeviceUnavailable) as raised:
        resolve_device(device)
    assert reason in raised.value.detail
    assert resolve_device("auto") == "cpu"


@pytest.mark.timeout(60)
def test_memory_comes_back(tmp_path: Path) -> None:
    """30 sessions of 8 MB each, one after the other: what a session held is given back to the system."""
    signature = Signature((Tensor("x", "float", (None, 256)),), (), "matrix")
    process, graph = psutil.Process(), heavy_model(8)

    def use() -> int:
        session = load(tmp_path, graph, signature, 256)
        session.run([np.ones((1, 256), np.float32)])
        held = process.memory_info().rss
        del session
        gc.collect()
        release_memory()
        return held

    use()
    before = process.memory_info().rss
    held = max(use() for _ in range(30))
    assert held - before > 4 * 1024**2, "a loaded session is seen"
    assert process.memory_info().rss - before < 12 * 1024**2
