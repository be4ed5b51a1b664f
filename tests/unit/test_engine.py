"""Sessions: what they say of themselves, run, fail with, and give back."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper

from models import (
    columns_model,
    failing_model,
    heavy_model,
    identity_model,
    image_model,
    joined_model,
    linear_matrix,
    marked_model,
    model_bytes,
    parsed_model,
    pooled_model,
    slow_model,
    tensor,
    token_model,
    zipmap_model,
)
from turnout.domain import Artifact, Feature, SessionOptions, Signature, Tensor, Version, utc_now
from turnout.engine import (
    NUMPY_TYPES,
    Engine,
    Session,
    cuda_status,
    flatten,
    open_session,
    release_memory,
    resolve_device,
    rows_of,
)
from turnout.errors import DeviceUnavailable, InvalidModel, PredictionFailed
from turnout.probe import examine
from turnout.warmup import same

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


def test_maps_become_arrays(tmp_path: Path) -> None:
    (probabilities,) = load(tmp_path, zipmap_model()).run([np.zeros((2, 2), np.float32)])
    assert probabilities.dtype == np.float32
    assert probabilities.tolist() == [[0.25, 0.75], [0.25, 0.75]]


def test_flatten_gives_the_keys_of_maps_and_refuses_the_rest() -> None:
    array, keys = flatten([{"no": 0.25, "yes": 0.75}])
    assert (array.tolist(), keys) == ([[0.25, 0.75]], ("no", "yes"))
    assert flatten([])[0].shape == (0, 0)
    for odd in ([np.zeros(1)], [{"a": 1.0}, {"b": 1.0}], {"a": 1.0}, None):
        with pytest.raises(PredictionFailed, match="expected a tensor"):
            flatten(odd)


def test_a_run_that_fails_says_so_in_the_words_of_the_runtime(tmp_path: Path) -> None:
    session = load(tmp_path, failing_model())
    assert session.run([np.zeros((1, 2), np.float32)])[0].tolist() == [1]
    with pytest.raises(PredictionFailed, match=r"the model failed: .*(index|indices)") as raised:
        session.run([np.array([[5, 0]], np.float32)])
    assert not raised.value.refused
    for wrong in (np.zeros((1, 3), np.float32), np.zeros(2, np.float32), np.zeros((1, 2))):
        with pytest.raises(PredictionFailed, match=r"the model failed: .*INVALID_ARGUMENT") as raised:
            session.run([wrong])
        assert raised.value.refused, "the inputs are at fault"
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


# --- free tensors ---------------------------------------------------------------------------------------------------

NUMBERS = [dtype for dtype in NUMPY_TYPES if dtype != "string"]
IMAGE = Signature(
    (Tensor("image", "float", (None, 3, 8, 8)),), (Tensor("mean", "float", (None,)),), "tensors"
)
STRINGS = "tensor(string), which onnxruntime cannot run beside an output of bfloat16"


def load_tensors(tmp_path: Path, graph: bytes, **options: object) -> Session:
    """Load a model as its probe describes it, as free tensors, the way a server does."""
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph)
    found = examine(path, "cpu", 0).signature
    signature = msgspec.structs.replace(found, layout="tensors")
    engine = Engine("cpu", intra_op_threads=1, spinning=False, inline_seconds=0.001, batches=True)
    return engine.load(path, version(signature, 0, **options))


def bits(*values: float) -> Any:
    """Numbers as bfloat16; they must need no rounding."""
    wide = np.array(values, np.float32).view(np.uint32)
    assert not (wide & 0xFFFF).any()
    return (wide >> 16).astype(np.uint16)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3), (2, 1, 3)], ids=str)
def test_every_type_comes_back_in_every_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    free: list[str | None] = [None] * len(shape)
    for dtypes in (NUMBERS, [dtype for dtype in NUMPY_TYPES if dtype != "bfloat16"]):
        session = load_tensors(tmp_path, identity_model(dtypes, free))
        given = [np.full(shape, 1).astype(NUMPY_TYPES[dtype]) for dtype in dtypes]
        given = [array.astype(str).astype(object) if array.dtype == object else array for array in given]
        for one, other in zip(session.run(given), given, strict=True):
            assert (one.dtype, one.shape, one.tolist()) == (other.dtype, other.shape, other.tolist())


def test_numbers_of_every_type_are_counted_with(tmp_path: Path) -> None:
    dtypes = [dtype for dtype in NUMBERS if dtype not in {"bool", "bfloat16"}]
    session = load_tensors(tmp_path, identity_model(dtypes, [None, 2], bias=3))
    given = [np.array([[1, 2]], NUMPY_TYPES[dtype]) for dtype in dtypes]
    assert [output.tolist() for output in session.run(given)] == [[[4, 5]]] * len(dtypes)


def test_several_inputs_feed_one_output_and_one_input_feeds_several(tmp_path: Path) -> None:
    session = load_tensors(
        tmp_path, joined_model({"ids": ("int64", 1), "x": ("float", 2), "b": ("bfloat16", 1)})
    )
    (joined,) = session.run([np.array([[7]]), np.array([[0.5, 1.5]], np.float32), bits(2.5).reshape(1, 1)])
    assert joined.tolist() == [[7, 0.5, 1.5, 2.5]]
    session = load_tensors(tmp_path, pooled_model())
    image = np.stack([np.full((8, 8), value, np.float32) for value in (1, 3, 2)])[None]
    label, means = session.run([image])
    assert (label.tolist(), means.tolist(), label.dtype) == ([1], [[1, 3, 2]], np.int64)


def test_strings_are_text(tmp_path: Path) -> None:
    session = load_tensors(tmp_path, marked_model("?"))
    texts = np.array(["a", "", "\u00e9\u4e16", "nul \0 inside"], object)
    assert session.run([texts])[0].tolist() == [f"{text}?" for text in texts]
    with pytest.raises(PredictionFailed, match="surrogates not allowed") as raised:
        session.run([np.array(["\ud800"], object)])
    assert raised.value.refused


def test_a_contiguous_array_is_read_where_it_lies(tmp_path: Path) -> None:
    """A read-only file of a gigabyte, of which the model takes one number: a copy would show as memory."""
    nodes = [helper.make_node("Slice", ["x", "from", "to", "axis"], ["first"])]
    constants = {"from": np.array([0]), "to": np.array([1]), "axis": np.array([0])}
    graph = model_bytes(nodes, [tensor("x", "float", [None])], [tensor("first", "float", [None])], constants)
    session = load_tensors(tmp_path, graph)
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1024**3)
    x = np.memmap(path, np.float32, "r")
    assert not x.flags.writeable
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = psutil.Process().memory_info().rss
    assert session.run([x])[0].tolist() == [0.0]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    assert int(status["VmHWM"].split()[0]) * 1024 - before < 100 * 1024**2


@pytest.mark.parametrize("dtype", ["float", "bfloat16", "int64"])
def test_arrays_are_taken_as_they_lie(tmp_path: Path, dtype: str) -> None:
    session = load_tensors(tmp_path, identity_model([dtype], [None, 4]))
    kind = np.dtype(NUMPY_TYPES[dtype])
    wanted = np.arange(8).reshape(2, 4).astype(kind)
    raw = b"." + wanted.tobytes()
    unaligned = np.frombuffer(raw, kind, 8, offset=1).reshape(2, 4)
    assert (unaligned.flags.aligned, unaligned.flags.writeable) == (False, False)
    strided = np.repeat(wanted, 3, axis=1)[:, ::3]
    assert not strided.flags.c_contiguous
    for array in (
        np.frombuffer(wanted.tobytes(), kind).reshape(2, 4),
        unaligned,
        strided,
        np.asfortranarray(wanted),
    ):
        assert session.run([array])[0].tolist() == wanted.tolist()


# --- bfloat16 -------------------------------------------------------------------------------------------------------


def test_bfloat16_is_counted_with_as_its_bits(tmp_path: Path) -> None:
    session = load_tensors(tmp_path, identity_model(["bfloat16", "float"], [None, 2], bias=2))
    whole, other = session.run([bits(1.0, -0.5).reshape(1, 2), np.array([[1, 2]], np.float32)], shrink=True)
    assert (whole.tolist(), other.tolist()) == (bits(3.0, 1.5).reshape(1, 2).tolist(), [[3, 4]])
    assert whole.dtype == np.uint16


def test_an_output_of_bfloat16_stays_what_it_was(tmp_path: Path) -> None:
    session, wrong = load_tensors(tmp_path, identity_model(["bfloat16"], [None, 50])), []

    def ask(number: int) -> None:
        given = [np.full((20, 50), number * 100 + turn, np.uint16) for turn in range(50)]
        for before, (after,) in zip(given, [session.run([array]) for array in given], strict=True):
            if not np.array_equal(before, after):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_not_the_bits_of_bfloat16_is_refused(tmp_path: Path) -> None:
    session = load_tensors(tmp_path, identity_model(["bfloat16"], [None, 2]))
    with pytest.raises(PredictionFailed, match=r"expected its bits as an array of uint16, found float32"):
        session.run([np.zeros((1, 2), np.float32)])
    for wrong in (bits(1.0).reshape(1, 1), bits(1.0)):
        with pytest.raises(PredictionFailed, match=r"(?i)invalid (dimensions|rank) for input") as raised:
            session.run([wrong])
        assert raised.value.refused


def test_strings_go_into_graphs_with_bfloat16_unless_that_comes_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["text"], ["echo"]),
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
    ]
    taken = [tensor("text", "string", [None]), tensor("x", "bfloat16", [None])]
    given = [tensor("echo", "string", [None]), tensor("y", "float", [None])]
    session = load_tensors(tmp_path, model_bytes(nodes, taken, given))
    echo, y = session.run([np.array(["a"], object), bits(1.5)])
    assert (echo.tolist(), y.tolist()) == (["a"], [1.5])
    with pytest.raises(InvalidModel) as raised:
        load_tensors(tmp_path, identity_model(["string", "bfloat16"], [None]))
    assert raised.value.detail == f"'input0' is a {STRINGS}"


def test_made_up_numbers_of_bfloat16_are_none_and_one() -> None:
    (array,) = rows_of(
        Signature((Tensor("x", "bfloat16", (None, 9)),), (), "tensors"), 4, width=0, random=True
    )
    assert set(array.ravel().tolist()) == set(bits(0.0, 1.0).tolist())


# --- the warm-up of free tensors ------------------------------------------------------------------------------------


def test_free_tensors_with_rows_are_warmed(tmp_path: Path) -> None:
    session = load_tensors(tmp_path, image_model())
    assert (session.inline, session.note, session.max_batch_rows) == (True, "", 1)
    assert session.run_seconds > 0
    assert session.run([np.ones((1, 3, 8, 8), np.float32)])[0].tolist() == [1.0]
    assert not load_tensors(tmp_path, slow_model()).inline


def test_free_tensors_that_nobody_can_make_up_are_not_for_the_event_loop(tmp_path: Path) -> None:
    session = load_tensors(tmp_path, token_model())
    assert (session.inline, session.run_seconds) == (False, 0)
    assert session.note == "not warmed up: of its inputs more is free than the rows"
    assert session.run([np.array([[5, 6, 7]]), np.array([[1, 1, 0]])])[0].tolist() == [11]


def test_a_model_that_fails_with_made_up_tensors_is_loaded(tmp_path: Path) -> None:
    session = load_tensors(tmp_path, parsed_model())
    assert (session.inline, session.run_seconds) == (False, 0)
    assert session.note.startswith("not warmed up: it does not run with made-up numbers: the model failed: ")
    assert session.run([np.array(["1.5"], object)])[0].tolist() == [1.5]


def test_requests_of_tensors_are_joined_where_the_version_says_so(tmp_path: Path) -> None:
    session = load_tensors(tmp_path, image_model(), max_batch_rows=8, max_delay_us=5)
    assert (session.max_batch_rows, session.max_delay_us) == (8, 5)
    assert session.batch_seconds > 0
    assert load_tensors(tmp_path, image_model(), max_batch_rows=1).max_batch_rows == 1


@pytest.mark.parametrize(
    "graph",
    [token_model(), parsed_model(), identity_model(["bfloat16"], [None, 2])],
    ids=["free", "fails", "bits"],
)
def test_where_the_warm_up_cannot_tell_the_version_is_believed(tmp_path: Path, graph: bytes) -> None:
    session = load_tensors(tmp_path, graph, max_batch_rows=8)
    assert (session.max_batch_rows, session.batch_seconds) == (8, 0)


def one_of(kind: str, shape: list[int | None], given: list[int | None], **attributes: Any) -> bytes:
    """One node from `x` to `y`."""
    node = helper.make_node(kind, ["x"], ["y"], **attributes)
    return model_bytes([node], [tensor("x", "float", shape)], [tensor("y", "float", given)])


FIXED = one_of("Relu", [2, 2, 2], [2, 2, 2])
SCALAR = one_of("ReduceSum", [None, 2, 2], [], keepdims=0)
OVER_ROWS = one_of("Softmax", [None, 2, 2], [None, 2, 2], axis=0)
FIRST = "expected inputs and outputs whose first dimension is free, found"


@pytest.mark.parametrize(
    ("graph", "detail"),
    [
        (FIXED, f"{FIRST} x [2, 2, 2], y [2, 2, 2]"),
        (SCALAR, f"{FIRST} x [None, 2, 2], y []"),
        (OVER_ROWS, "a row of output 0 depends on the rows beside it"),
    ],
    ids=["fixed", "scalar", "over rows"],
)
def test_what_has_no_rows_cannot_be_joined(tmp_path: Path, graph: bytes, detail: str) -> None:
    with pytest.raises(InvalidModel) as raised:
        load_tensors(tmp_path, graph, max_batch_rows=8)
    assert raised.value.detail == f"max_batch_rows 8: {detail}"
    assert load_tensors(tmp_path, graph).max_batch_rows == 1


def test_how_far_floats_may_differ_is_a_matter_of_their_digits() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        one = np.array([100.0], dtype)
        assert same(one, np.nextafter(one, np.inf, dtype=dtype))
        assert not same(one, one + 2)


# --- devices and memory ---------------------------------------------------------------------------------------------


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
