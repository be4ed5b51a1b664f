"""Sessions on CUDA, on a machine that may have none: buffers, graphs, options, refusals. See `fakecuda`."""

from __future__ import annotations

import gc
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import turnout
from fakecuda import Device, FakeRuntime, FakeSession, machine
from models import (
    columns_model,
    constant_label,
    failing_model,
    floats,
    identity_model,
    linear_matrix,
    model_bytes,
    zipmap_model,
)
from turnout.config import Settings
from turnout.domain import Artifact, Feature, SessionOptions, Signature, Tensor, Version, utc_now
from turnout.engine import Engine, Session, cuda_status, open_session, resolve_device, tensorrt_status
from turnout.engine import cuda as cuda_module
from turnout.engine.cuda import obstacle
from turnout.engine.cudart import CudaError, Cudart, cudart
from turnout.engine.devices import is_out_of_memory
from turnout.engine.gate import Gate
from turnout.errors import DeviceUnavailable, InvalidModel, NotReady, OutOfDeviceMemory, PredictionFailed
from turnout.probe import examine
from turnout.service import Turnout

REAL = ort.InferenceSession
MIXED = model_bytes(
    [
        helper.make_node("Gemm", ["x", "weights", "bias"], ["sum"]),
        helper.make_node("Abs", ["sum"], ["score"], name="size"),
    ],
    [floats("x", None, 2)],
    [floats("score", None, 1)],
    {"weights": np.array([[2], [3]], np.float32), "bias": np.array([1], np.float32)},
)
"""The same, of two nodes that the optimiser leaves alone."""
LINEAR = linear_matrix([2.0, 3.0], bias=1.0)
SCORE = Tensor("score", "float", (None, 1))
MATRIX = Signature((Tensor("x", "float", (None, 2)),), (SCORE,), "matrix")
ALL = (1, 2, 4, 8, 16, 32, 64)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    yield from machine(monkeypatch)


def load(
    tmp_path: Path, graph: bytes = LINEAR, signature: Signature = MATRIX, asks: str = "cuda", **options: Any
) -> Session:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph)
    width = {"columns": len(signature.inputs), "tensors": 0, "matrix": 2}[signature.layout]
    version = Version(
        model="m",
        version="v1",
        artifact=Artifact("0" * 64, ()),
        signature=signature,
        features=(Feature(""),) * width,
        created_at=utc_now(),
        ordinal=1,
        options=SessionOptions(**options),
    )
    return Engine(asks, intra_op_threads=1, spinning=False, inline_seconds=0.001).load(path, version)


def ask(session: Session, count: int, first: int = 0) -> None:
    """Run `count` rows and check every answer."""
    x = np.arange(first, first + 2 * count, dtype=np.float32).reshape(count, 2)
    (score,) = session.run([x])
    assert score.tolist() == (x @ [[2.0], [3.0]] + 1.0).tolist()


def together(count: int, work: Callable[[int], None]) -> None:
    """Do work on many threads at once; what one of them raises is raised here."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- buffers and graphs ---------------------------------------------------------------------------------------------


def test_a_version_has_a_graph_for_each_power_of_two(device: Device, tmp_path: Path) -> None:
    session = load(tmp_path)
    (inner,) = device.sessions
    assert (session.device, session.graphs, session.note, session.cpu_nodes) == ("cuda:0", ALL, "", ())
    assert tuple(inner.graphs) == ALL, "recorded by the warm-up, before any request"


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (33, 64), (64, 64)], ids=str
)
def test_rows_are_filled_up_to_the_next_graph_and_cut_off_again(
    device: Device, tmp_path: Path, rows: int, bucket: int
) -> None:
    session = load(tmp_path)
    (inner,) = device.sessions
    inner.graph_runs.clear()
    ask(session, rows)
    ask(session, rows, first=500)
    assert [graph for graph, _ in inner.graph_runs] == [bucket, bucket]


def test_what_rows_are_filled_up_with_is_one_of_them(device: Device, tmp_path: Path) -> None:
    """Zeros, or what was there before, could be what a model fails on or is slow with."""
    session = load(tmp_path)
    ask(session, 8, first=900)
    ask(session, 5, first=100)
    (bucket,) = [b for b in session._buckets if b.rows == 8]  # pyright: ignore
    assert bucket._inputs[0].host[4:].tolist() == [[108, 109], [100, 101], [100, 101], [100, 101]]


def test_an_answer_stays_what_it_was_when_the_buffer_is_used_again(device: Device, tmp_path: Path) -> None:
    session = load(tmp_path)
    (before,) = session.run([np.array([[1, 1]], np.float32)])
    session.run([np.array([[9, 9]], np.float32)])
    assert before.tolist() == [[6.0]]


def test_more_rows_than_any_graph_has_run_plainly(device: Device, tmp_path: Path) -> None:
    session = load(tmp_path)
    (inner,) = device.sessions
    inner.graph_runs.clear()
    ask(session, 65)
    ask(session, 1000)
    assert (inner.graph_runs, inner.plain[-2:]) == ([], [65, 1000])


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 8)), (8, (1, 2, 4, 8))])
def test_the_largest_graph_takes_max_batch_rows(
    device: Device, tmp_path: Path, most: int, sizes: tuple[int, ...]
) -> None:
    assert load(tmp_path, max_batch_rows=most).graphs == sizes


def test_all_runs_of_a_session_that_records_are_made_by_one_thread(device: Device, tmp_path: Path) -> None:
    """The fake fails where two runs overlap, or where another thread than the one that recorded replays."""
    session = load(tmp_path)
    together(8, lambda number: [ask(session, 1 + (number + turn) % 70) for turn in range(25)] and None)
    (inner,) = device.sessions
    assert len({thread for _, thread in inner.graph_runs}) == 1
    assert tuple(inner.graphs) == ALL


def test_without_graphs_a_second_run_does_not_wait_for_the_buffers(device: Device, tmp_path: Path) -> None:
    session = load(tmp_path, cuda_graphs=False)
    (inner,) = device.sessions
    inner.plain.clear()
    (bucket,) = [b for b in session._buckets if b.rows == 4]  # pyright: ignore
    with bucket.free:
        ask(session, 3)
    assert inner.plain == [3]
    ask(session, 3)
    assert inner.plain == [3], "with the buffers, now that they are free"
    together(8, lambda number: [ask(session, 4, first=number) for _ in range(25)] and None)


def test_a_session_that_does_not_fit_the_buffers_hears_it_from_onnxruntime(
    device: Device, tmp_path: Path
) -> None:
    session = load(tmp_path)
    for wrong in (np.zeros((1, 3), np.float32), np.zeros((1, 2)), np.zeros(2, np.float32)):
        with pytest.raises(PredictionFailed, match=r"the model failed: .*INVALID_ARGUMENT"):
            session.run([wrong])
    ask(session, 1)


@pytest.mark.parametrize("graphs", [None, False], ids=["graphs", "buffers"])
def test_a_run_that_fails_on_the_device_says_so_and_lets_the_buffers_go(
    device: Device, tmp_path: Path, graphs: bool | None
) -> None:
    session = load(tmp_path, cuda_graphs=graphs)
    device.broken = True
    with pytest.raises(PredictionFailed, match="the model failed: CUDA failure 700"):
        ask(session, 3)
    device.broken = False
    device.sessions[-1].plain.clear()
    ask(session, 3)
    assert device.sessions[-1].plain == []


def test_a_fixed_shape_has_one_graph(device: Device, tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["image"], ["total"], keepdims=0)]
    graph = model_bytes(nodes, [floats("image", 3, 4, 4)], [floats("total")])
    signature = Signature((Tensor("image", "float", (3, 4, 4)),), (Tensor("total", "float", ()),), "tensors")
    session = load(tmp_path, graph, signature)
    (inner,) = device.sessions
    inner.graph_runs.clear()
    (total,) = session.run([np.ones((3, 4, 4), np.float32)])
    assert (float(total), session.graphs, len(inner.graph_runs)) == (48.0, (1,), 1)


def test_rows_that_depend_on_each_other_are_never_filled_up(device: Device, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=1),
        helper.make_node("Add", ["x", "total"], ["score"]),
    ]
    signature = Signature(
        (Tensor("x", "float", (None, 2)),), (Tensor("score", "float", (None, 2)),), "matrix"
    )
    graph = model_bytes(nodes, [floats("x", None, 2)], [floats("score", None, 2)])
    session = load(tmp_path, graph, signature)
    (inner,) = device.sessions
    for rows, graphs in ((3, 0), (4, 1)):
        inner.graph_runs.clear()
        (score,) = session.run([np.ones((rows, 2), np.float32)])
        assert score.tolist() == [[2 * rows + 1] * 2] * rows
        assert len(inner.graph_runs) == graphs


# --- where there can be no graphs -----------------------------------------------------------------------------------


def test_what_cannot_be_recorded_runs_with_buffers_and_says_why(device: Device, tmp_path: Path) -> None:
    device.uncapturable = True
    session = load(tmp_path)
    assert session.graphs == ()
    assert session.note.startswith("no CUDA graphs: CUDA failure 900")
    assert "enable_cuda_graph" not in dict(device.sessions[-1].asked)["CUDAExecutionProvider"]
    device.sessions[-1].plain.clear()
    ask(session, 3)
    assert device.sessions[-1].plain == [], "it ran with buffers"


def test_a_model_that_fails_with_made_up_numbers_runs_plainly(device: Device, tmp_path: Path) -> None:
    signature = Signature(MATRIX.inputs, (Tensor("label", "int64", (None,)),), "matrix")
    session = load(tmp_path, failing_model(), signature)
    assert session.note.startswith("no CUDA graphs: it does not run with made-up numbers")
    assert session.run([np.zeros((1, 2), np.float32)])[0].tolist() == [1]


def test_a_recording_that_answers_wrongly_is_not_used(device: Device, tmp_path: Path) -> None:
    device.wrong = True
    session = load(tmp_path)
    assert session.note == "no CUDA graphs: 1 rows are answered otherwise than by a plain run"
    ask(session, 3)


def test_without_a_cuda_runtime_there_are_no_buffers(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_module, "cudart", cudart.__wrapped__)
    session = load(tmp_path)
    assert "no buffers held ready: onnxruntime has loaded no CUDA runtime" in session.note
    ask(session, 3)


STRINGS = Signature(
    (
        Tensor("age", "float", (None, 1)),
        Tensor("visits", "int64", (None, 1)),
        Tensor("plan", "string", (None, 1)),
    ),
    (SCORE, Tensor("echo", "string", (None, 1))),
    "columns",
)
MAPS = Signature(
    (Tensor("x", "float", (None, 2)),), (Tensor("probabilities", "float", (None, 2), ("a", "b")),), "matrix"
)
FREE = Signature((Tensor("x", "float", (None, None)),), (Tensor("y", "float", (None, None)),), "tensors")
BITS = Signature(
    tuple(Tensor(f"input{n}", dtype, (None, 2)) for n, dtype in enumerate(("bfloat16", "float"))),
    tuple(Tensor(f"output{n}", dtype, (None, 2)) for n, dtype in enumerate(("bfloat16", "float"))),
    "tensors",
)
ECHO = model_bytes(
    [helper.make_node("Neg", ["x"], ["y"])], [floats("x", None, None)], [floats("y", None, None)]
)


@pytest.mark.parametrize(
    ("inputs", "output", "said"),
    [
        ([(None, 3), (2, 3)], (None, 3), "the first dimension of some inputs is free, that of others is not"),
        ([(2, 3)], (None, 3), "the shape of an output depends on more than the shapes of the inputs"),
        ([(None, 3)], (None, None), "'y' has the shape [None, None], of which more than the rows is free"),
        ([(None, 3), (None, 1)], (None, 3), ""),
        ([(2, 3), (1,)], (), ""),
    ],
    ids=str,
)
def test_which_shapes_can_be_held_ready(inputs: Any, output: Any, said: str) -> None:
    tensors = tuple(Tensor(f"x{number}", "float", shape) for number, shape in enumerate(inputs))
    assert obstacle(Signature(tensors, (Tensor("y", "float", output),), "tensors")) == said


@pytest.mark.parametrize(
    ("graph", "signature", "said"),
    [
        (columns_model(), STRINGS, "'plan' is a tensor of strings"),
        (zipmap_model(), MAPS, "'probabilities' is a sequence of maps"),
        (identity_model(["bfloat16", "float"], [None, 2]), BITS, "'input0' is a tensor of bfloat16"),
        (ECHO, FREE, "'x' has the shape [None, None], of which more than the rows is free"),
    ],
)
def test_shapes_that_are_not_fixed_run_plainly(
    device: Device, tmp_path: Path, graph: bytes, signature: Signature, said: str
) -> None:
    session = load(tmp_path, graph, signature)
    assert session.note.split("; ")[0] == f"no CUDA graphs: {said}"
    assert (session.run_seconds > 0) == (signature is not FREE)
    assert device.pinned == 0
    with pytest.raises(InvalidModel, match="cuda_graphs was asked for, but there can be none"):
        load(tmp_path, graph, signature, cuda_graphs=True)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {"device_id": "0", "enable_cuda_graph": "1"}),
        ({"device": "cuda:3"}, {"device_id": "3", "enable_cuda_graph": "1"}),
        ({"cuda_graphs": False}, {"device_id": "0"}),
        (
            {"cuda_graphs": False, "gpu_memory_limit": 2**31, "arena_extend": "same_as_requested"},
            {"device_id": "0", "gpu_mem_limit": "2147483648", "arena_extend_strategy": "kSameAsRequested"},
        ),
        (
            {"cuda_graphs": False, "tf32": False, "conv_search": "heuristic"},
            {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
        ),
        (
            {"cuda_graphs": False, "tf32": True, "arena_extend": "next_power_of_two"},
            {"device_id": "0", "use_tf32": "1", "arena_extend_strategy": "kNextPowerOfTwo"},
        ),
    ],
)
def test_options_reach_onnxruntime_under_its_own_names(
    device: Device, tmp_path: Path, options: dict[str, Any], asked: dict[str, str]
) -> None:
    ask(load(tmp_path, **options), 3)
    (inner,) = device.sessions
    assert inner.asked == [("CUDAExecutionProvider", asked), ("CPUExecutionProvider", {})]


def test_a_device_is_selected_by_the_thread_that_copies(device: Device, tmp_path: Path) -> None:
    load(tmp_path, device="cuda:3")
    assert device.selected == {3}


def test_tensorrt_runs_before_cuda_without_graphs(device: Device, tmp_path: Path) -> None:
    device.tensorrt = True
    session = load(tmp_path, tensorrt=True)
    assert [name for name, _ in device.sessions[-1].asked] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert session.note == "no CUDA graphs: TensorRT runs it"
    with pytest.raises(InvalidModel, match="there can be none: TensorRT runs it"):
        load(tmp_path, tensorrt=True, cuda_graphs=True)


@pytest.mark.parametrize(
    ("asks", "said"),
    [("cuda", "Please install TensorRT"), ("auto", "Please"), ("cpu", "the device is the CPU")],
)
def test_tensorrt_that_is_not_installed_is_refused(
    device: Device, tmp_path: Path, asks: str, said: str
) -> None:
    with pytest.raises(DeviceUnavailable, match=f"tensorrt was asked for, but .*{said}"):
        load(tmp_path, asks=asks, tensorrt=True)


# --- nodes on the CPU -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "options"), [("cuda", {}), ("auto", {"device": "cuda:0"})])
def test_cuda_by_name_refuses_nodes_on_the_cpu_and_names_them(
    device: Device, tmp_path: Path, process: str, options: dict[str, Any]
) -> None:
    device.on_cpu = {"Abs"}
    with pytest.raises(InvalidModel, match="these nodes would run on the CPU: Abs 'size'; let them"):
        load(tmp_path, MIXED, asks=process, **options)


def test_many_nodes_on_the_cpu_are_counted(device: Device, tmp_path: Path) -> None:
    device.on_cpu = {"Neg"}
    names = ["x", *(f"n{number}" for number in range(13)), "score"]
    nodes = [
        helper.make_node("Neg", [one], [other], name=f"turn_{other}")
        for one, other in itertools.pairwise(names)
    ]
    nodes[5] = helper.make_node("Abs", nodes[5].input, nodes[5].output)
    graph = model_bytes(nodes, [floats("x", None, 2)], [floats("score", None, 2)])
    with pytest.raises(InvalidModel, match=r"CPU: Neg 'turn_n0', Neg 'turn_n1', .* and 3 more; let them"):
        load(tmp_path, graph)


@pytest.mark.parametrize(("process", "options"), [("cuda", {"allow_cpu_nodes": True}), ("auto", {})])
def test_where_they_are_allowed_the_status_has_them(
    device: Device, tmp_path: Path, process: str, options: dict[str, Any]
) -> None:
    device.on_cpu = {"Abs"}
    session = load(tmp_path, MIXED, asks=process, **options)
    assert (session.device, session.cpu_nodes) == ("cuda:0", ("Abs 'size'",))
    assert session.note.startswith("no CUDA graphs: This session cannot use the graph capture feature")
    ask(session, 3)


def test_auto_takes_the_cpu_where_cuda_could_run_nothing(device: Device, tmp_path: Path) -> None:
    device.on_cpu = {"Gemm", "Abs"}
    session = load(tmp_path, MIXED, asks="auto")
    assert (session.device, session.providers, session.note) == ("cpu", ("CPUExecutionProvider",), "")
    ask(session, 3)


def test_a_registration_hears_of_the_nodes(device: Device, tmp_path: Path) -> None:
    device.on_cpu = {"Abs"}
    path = tmp_path / "mixed.onnx"
    path.write_bytes(MIXED)
    with pytest.raises(InvalidModel, match="these nodes would run on the CPU: Abs 'size'"):
        examine(path, "cuda", 2)
    found = examine(path, "cuda", 2, SessionOptions(allow_cpu_nodes=True))
    assert found.signature.outputs == (SCORE,)
    device.rows_that_fit = 2
    with pytest.raises(OutOfDeviceMemory, match="device cuda:0 ran out of memory"):
        examine(path, "auto", 2)


@pytest.mark.parametrize(
    ("words", "full"),
    [
        ("Failed to allocate memory for requested buffer of size 4096", True),
        ("Available memory of 100 is smaller than requested bytes of 4096", True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("split attention exceeds the CUDA shared-memory limit", False),
        ("CUDA failure 900: operation not permitted when stream is capturing", False),
    ],
)
def test_how_a_full_device_says_so(words: str, full: bool) -> None:
    assert is_out_of_memory(RuntimeError(words), "cuda:0") is full
    assert not is_out_of_memory(RuntimeError(words), "cpu")


# --- memory ---------------------------------------------------------------------------------------------------------


def test_no_memory_to_load_a_version_is_an_error_of_its_own(device: Device, tmp_path: Path) -> None:
    ask(load(tmp_path), 1)
    device.loads = False
    with pytest.raises(
        OutOfDeviceMemory, match="cuda:0 has not enough memory to load it: Failed to allocate"
    ):
        load(tmp_path)


def test_a_device_that_is_full_is_a_device(device: Device) -> None:
    device.loads = False
    works, reason = cuda_status()
    assert works
    assert "Failed to allocate memory" in reason
    assert resolve_device("auto") == "cuda:0"


def test_no_memory_to_run_is_an_error_and_the_session_goes_on(device: Device, tmp_path: Path) -> None:
    session = load(tmp_path)
    device.rows_that_fit = 100
    with pytest.raises(OutOfDeviceMemory, match="cuda:0 ran out of memory: Failed to allocate memory"):
        ask(session, 101)
    ask(session, 100)


def test_graphs_for_which_there_is_no_memory_are_left_out(device: Device, tmp_path: Path) -> None:
    device.rows_that_fit = 10
    assert load(tmp_path).graphs == (1, 2, 4, 8)
    with pytest.raises(OutOfDeviceMemory):
        load(tmp_path, max_batch_rows=16)


def test_no_pinned_memory_is_no_memory(device: Device, tmp_path: Path) -> None:
    device.pins = False
    with pytest.raises(
        OutOfDeviceMemory, match="buffers of 1 rows: cudaHostAlloc: CUDA failure 2: out of memory"
    ):
        load(tmp_path)


def test_a_session_gives_its_memory_back(device: Device, tmp_path: Path) -> None:
    session = load(tmp_path)
    device.sessions.clear()
    assert device.pinned == 2 * len(ALL)
    del session
    gc.collect()
    assert device.pinned == 0


def test_no_memory_is_given_back_while_another_session_records(device: Device, tmp_path: Path) -> None:
    session = load(tmp_path)
    device.sessions.clear()
    with cuda_module.GATE.record():
        del session
        gc.collect()
        assert device.pinned == 2 * len(ALL)
    deadline = time.monotonic() + 10
    while device.pinned and time.monotonic() < deadline:
        time.sleep(0.001)
    assert device.pinned == 0


def test_a_version_without_memory_is_not_activated_and_the_active_one_answers(
    device: Device, tmp_path: Path
) -> None:
    with turnout.open(tmp_path / "data") as hub:
        register(hub, tmp_path, 2)
        device.loads = False
        hub.activate_version("churn", "v1")
        with pytest.raises(OutOfDeviceMemory):
            hub.predict("churn", [0.0, 1.0], version="v1")
        device.loads = True
        assert hub.predict("churn", [0.0, 1.0]).outputs["label"] == 1
        hub.configure_test("churn", {"v1": 0.0, "v2": 1.0})
        device.loads = False
        answer = hub.predict("churn", [0.0, 1.0], entity_id="someone")
    assert (answer.version, answer.reason) == ("v1", "fallback")


def test_a_server_does_not_switch_to_a_version_without_memory(device: Device, tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path / "data"), load_seconds=10)
    with Turnout(settings, server=True) as hub:
        hub.start_worker()
        register(hub, tmp_path, 2)
        hub.activate_version("churn", "v1")
        device.loads = False
        with pytest.raises(NotReady, match="has not enough memory to load it"):
            hub.activate_version("churn", "v2")
        assert hub.predict("churn", [0.0, 1.0]).version == "v1"
        (status,) = [found for found in hub.live.statuses() if found.version == "v1"]
    assert (status.device, status.graphs, status.error) == ("cuda:0", ALL, None)


def register(hub: Turnout, folder: Path, count: int) -> None:
    for number in range(1, count + 1):
        path = folder / f"{number}.onnx"
        path.write_bytes(constant_label(number))
        hub.register_version("churn", f"v{number}", path)


# --- recording beside others ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [None, False], ids=["graphs", "buffers"])
def test_predictions_go_on_while_other_versions_record(
    device: Device, tmp_path: Path, graphs: bool | None
) -> None:
    """The fake fails any use of the device beside a recording, as CUDA does."""
    (tmp_path / "served").mkdir()
    serving, done = load(tmp_path / "served", cuda_graphs=graphs), threading.Event()
    answered: list[int] = []

    def serve() -> None:
        while not done.is_set():
            ask(serving, 1 + len(answered) % 80)
            answered.append(1)

    def work(number: int) -> None:
        if number:
            serve()
            return
        try:
            for turn in range(3):
                (tmp_path / str(turn)).mkdir()
                loaded = load(tmp_path / str(turn))
                assert loaded.graphs == ALL
                ask(loaded, 3)
        finally:
            done.set()

    together(4, work)
    assert answered


def test_who_records_waits_for_all_and_none_enters_meanwhile() -> None:
    gate, steps = Gate(), []
    used = threading.Event()

    def record() -> None:
        used.wait(10)
        with gate.record():
            steps.append("recorded")

    def work(number: int) -> None:
        if number == 0:
            record()
            return
        with gate.use():
            used.set()
            while not gate._waiting:  # pyright: ignore
                time.sleep(0.001)
            assert not gate.enter(), "who waits to record goes first"
            steps.append("used")
        with gate.use():
            steps.append("used again")

    together(2, work)
    assert steps == ["used", "recorded", "used again"]
    assert gate.enter()
    gate.leave()


# --- the fake -------------------------------------------------------------------------------------------------------


def test_the_fake_has_the_methods_of_onnxruntime() -> None:
    own = {name for name, value in vars(FakeSession).items() if inspect.isfunction(value)} - {"left"}
    assert own == {
        "__init__",
        "get_providers",
        "get_provider_graph_assignment_info",
        "run",
        "create_ortvalue_from_shape_and_type",
        "run_with_iobinding",
    }
    for name in own:
        real, fake = (inspect.signature(getattr(kind, name)).parameters for kind in (REAL, FakeSession))
        assert [(p.name, p.kind, p.default) for p in fake.values()] == [
            (p.name, p.kind, p.default) for p in real.values()
        ], name


def test_what_we_call_on_cuda_is_there_in_onnxruntime() -> None:
    """The classes of the binding, the values and the options are the real ones in the tests above."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "7")
    assert options.get_run_config_entry("gpu_graph_id") == "7"
    session = REAL(LINEAR, providers=["CPUExecutionProvider"])
    value = session.create_ortvalue_from_shape_and_type((2, 3), np.float32, "cpu", 0)
    assert (value.shape(), value.data_type()) == ([2, 3], "tensor(float)")
    assert value.data_ptr() > 0
    with pytest.raises(RuntimeError, match="No session allocator found for Device"):
        session.create_ortvalue_from_shape_and_type((2, 3), np.float32, "cuda", 0)


def test_nodes_have_their_operator_and_their_name() -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    nodes = [helper.make_node("Neg", ["x"], ["y"], name="turn"), helper.make_node("Abs", ["y"], ["z"])]
    graph = model_bytes(nodes, [floats("x", None, 2)], [floats("z", None, 2)])
    session = REAL(graph, options, providers=["CPUExecutionProvider"])
    parts = session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {"CPUExecutionProvider"}
    nodes = [(node.op_type, node.name) for part in parts for node in part.get_nodes()]
    assert sorted(nodes) == [("Abs", ""), ("Neg", "turn")]


def test_copies_go_through_the_runtime_and_failures_have_its_words(device: Device) -> None:
    runtime = Cudart(FakeRuntime(device))
    one, other = runtime.pinned((2, 3), np.float32), runtime.pinned((2, 3), np.float32)
    one[:] = np.arange(6).reshape(2, 3)
    runtime.to_device(other.ctypes.data, one)
    assert other.tolist() == one.tolist()
    runtime.to_host(one, other.ctypes.data)
    device.pins = False
    with pytest.raises(CudaError, match="cudaHostAlloc: CUDA failure 2: out of memory"):
        runtime.pinned((1,), np.float32)
    assert device.pinned == 2
    view = one[1]
    del one, other
    assert device.pinned == 1, "a view keeps the memory"
    assert view.tolist() == [3, 4, 5]
    del view
    assert device.pinned == 0


# --- with a device --------------------------------------------------------------------------------------------------


@pytest.fixture
def really() -> None:
    works, reason = cuda_status()
    if not works:
        pytest.skip(f"needs a CUDA device: {reason}")


@pytest.mark.gpu
@pytest.mark.usefixtures("really")
class TestOnADevice:
    def test_graphs_answer_as_the_cpu_does(self, tmp_path: Path) -> None:
        session = load(tmp_path)
        assert (session.graphs, session.note) == (ALL, "")
        for rows in (1, 2, 3, 17, 64, 65, 1000):
            ask(session, rows)

    def test_many_threads_share_a_session(self, tmp_path: Path) -> None:
        session = load(tmp_path)
        together(8, lambda number: [ask(session, 1 + (number + turn) % 70) for turn in range(50)] and None)

    def test_buffers_without_graphs_answer_as_the_cpu_does(self, tmp_path: Path) -> None:
        session = load(tmp_path, cuda_graphs=False)
        assert session.note == "no CUDA graphs: the option cuda_graphs is false"
        together(8, lambda number: [ask(session, 1 + (number + turn) % 70) for turn in range(50)] and None)

    def test_predictions_go_on_while_other_versions_record(self, tmp_path: Path) -> None:
        (tmp_path / "served").mkdir()
        serving, done = load(tmp_path / "served"), threading.Event()

        def work(number: int) -> None:
            if number:
                while not done.is_set():
                    ask(serving, number)
                return
            try:
                for turn in range(5):
                    (tmp_path / str(turn)).mkdir()
                    ask(load(tmp_path / str(turn)), 3)
            finally:
                done.set()

        together(4, work)

    def test_every_option_is_taken(self, tmp_path: Path) -> None:
        session = load(
            tmp_path,
            gpu_memory_limit=2**30,
            arena_extend="same_as_requested",
            tf32=False,
            conv_search="heuristic",
        )
        given = session.inner.get_provider_options()["CUDAExecutionProvider"]
        assert given["gpu_mem_limit"] == str(2**30)
        assert given["arena_extend_strategy"] == "kSameAsRequested"
        assert (given["use_tf32"], given["cudnn_conv_algo_search"]) == ("0", "HEURISTIC")
        ask(session, 3)

    def test_nodes_that_cuda_has_not_are_named(self, tmp_path: Path) -> None:
        signature = Signature(
            (Tensor("x", "float", (None, 2)),), (Tensor("y", "float", (None, 2)),), "matrix"
        )
        nodes = [
            helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING, name="write"),
            helper.make_node("Cast", ["text"], ["y"], to=TensorProto.FLOAT, name="read"),
        ]
        graph = model_bytes(nodes, [floats("x", None, 2)], [floats("y", None, 2)])
        with pytest.raises(InvalidModel, match="CPU: Cast 'write', Cast 'read'"):
            load(tmp_path, graph, signature)
        assert load(tmp_path, graph, signature, asks="auto").device == "cpu"

    def test_a_limit_that_is_too_small_is_out_of_memory(self, tmp_path: Path) -> None:
        with pytest.raises(OutOfDeviceMemory):
            load(tmp_path, gpu_memory_limit=1)

    def test_tensorrt_is_taken_or_refused(self, tmp_path: Path) -> None:
        works, reason = tensorrt_status()
        if works:
            ask(load(tmp_path, tensorrt=True), 3)
            return
        with pytest.raises(DeviceUnavailable) as raised:
            open_session(tmp_path / "any.onnx", device="cuda", options=SessionOptions(tensorrt=True))
        assert reason in raised.value.detail
        assert resolve_device("auto") == "cuda:0"
