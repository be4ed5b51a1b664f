"""ONNX sessions: load, warm up, run, let go. The only importer of onnxruntime."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from turnout.domain import Signature, Tensor, Version
from turnout.errors import DeviceUnavailable, InvalidModel, PredictionFailed
from turnout.warmup import batch_of, warm

FATAL = 4  # severity: what goes wrong reaches the caller as an exception, not as lines on standard error

# One Identity node on a float, as an ONNX file: the smallest session that shows which provider really runs.
TINY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)

NUMPY_TYPES: dict[str, type[np.generic]] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
}
"""NumPy's type for each ONNX element type that Turnout carries."""

ort.set_default_logger_severity(FATAL)


def runtime_version() -> str:
    """The version of onnxruntime."""
    return str(ort.__version__)


def available_providers() -> list[str]:
    """The execution providers that this build lists; being listed does not mean that one works."""
    return list(ort.get_available_providers())


@functools.cache
def cuda_status() -> tuple[bool, str]:
    """Whether a CUDA session really runs on CUDA here, and why not. Asked once a process, of a tiny session."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False, "this build of onnxruntime has no CUDA provider"
    try:
        session = ort.InferenceSession(
            TINY, _quiet(), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001 - whatever the driver raises means no
        return False, str(error)
    if session.get_providers()[0] == "CUDAExecutionProvider":
        return True, "CUDA works"
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return False, str(error)
    return False, "onnxruntime fell back to the CPU without a reason; is there a device?"


def resolve_device(device: str) -> str:
    """What `auto`, `cpu`, `cuda` or `cuda:N` means here: `cpu` or `cuda:N`.

    Raises DeviceUnavailable where CUDA is asked for by name and does not work.
    """
    if device == "cpu" or (device == "auto" and not cuda_status()[0]):
        return "cpu"
    if device == "auto":
        return "cuda:0"
    if re.fullmatch(r"cuda(:[0-9]{1,3})?", device) is None:
        raise InvalidModel(f"expected a device auto, cpu, cuda or cuda:N, found {device!r}")
    works, reason = cuda_status()
    if not works:
        raise DeviceUnavailable(f"device {device} was asked for, but CUDA does not work here: {reason}")
    return device if ":" in device else "cuda:0"


class Session:
    """A loaded version. `run` may be called by many threads at once; the last one to let go frees it.

    `inner` is the session of onnxruntime, `threads` what one run of it may use. A server keeps in `queue` what waits
    for it.
    """

    def __init__(self, session: ort.InferenceSession, device: str, threads: int = 1) -> None:
        self.inner = session
        self.threads = threads
        self.queue: Any = None
        self.device = device
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.inputs: tuple[str, ...] = tuple(node.name for node in session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(node.name for node in session.get_outputs())
        self._names = list(self.outputs)
        self._maps = any(not node.type.startswith("tensor(") for node in session.get_outputs())
        self.load_seconds = self.warmup_seconds = self.run_seconds = self.batch_seconds = 0.0
        self.inline = True
        self.max_batch_rows = 1
        self.max_delay_us = 0
        self.max_queue_rows: int | None = None

    def run(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs for inputs in the order of the graph. Raises PredictionFailed with the runtime's words."""
        try:
            outputs: Any = self.inner.run(self._names, dict(zip(self.inputs, arrays, strict=True)))
        except Exception as error:
            raise PredictionFailed(f"the model failed: {error}") from error
        return [flatten(output)[0] for output in outputs] if self._maps else outputs


class Engine:
    """Loads versions with the settings of a process; what a version says of itself wins.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        intra_op_threads: threads of one run.
        spinning: whether idle threads of a session spin.
        inline_seconds: what a warm run may take to be called on an event loop.
        batches: whether to find out how many rows of requests should run together.
    """

    def __init__(
        self,
        device: str,
        intra_op_threads: int,
        spinning: bool,
        inline_seconds: float,
        *,
        batches: bool = False,
    ) -> None:
        self._batches = batches
        self._device = device
        self._threads = intra_op_threads
        self._spinning = spinning
        self._inline_seconds = inline_seconds

    def load(self, path: Path, version: Version) -> Session:
        """Load a graph and warm it up with rows of the version's own shapes.

        Raises InvalidModel for a file that does not load, DeviceUnavailable, PredictionFailed for one that cannot run.
        """
        options = version.options
        started = time.perf_counter()
        session = open_session(
            path,
            device=options.device or self._device,
            threads=options.intra_op_threads or self._threads,
            spinning=self._spinning if options.spinning is None else options.spinning,
        )
        loaded = time.perf_counter()
        session.load_seconds = loaded - started
        if version.signature.layout != "tensors":
            session.run_seconds = warm(
                session.run, rows_of(version.signature, 1, width=len(version.features))
            )
        session.inline = session.run_seconds <= self._inline_seconds
        if self._batches:
            self._batch(session, version)
        session.warmup_seconds = time.perf_counter() - loaded
        return session

    def _batch(self, session: Session, version: Version) -> None:
        """Decide how many rows of requests run together: as many as the version says, or as the warm-up finds to pay."""
        wanted = version.options.max_batch_rows
        session.max_delay_us = version.options.max_delay_us or 0
        session.max_queue_rows = version.options.max_queue_rows
        signature = version.signature
        free = signature.layout != "tensors" and all(t.shape and t.shape[0] is None for t in signature.inputs)
        if wanted == 1 or not free:
            if wanted is not None and wanted > 1:
                raise InvalidModel(
                    f"max_batch_rows {wanted}: expected inputs whose first dimension is free, found "
                    + ", ".join(f"{t.name} {list(t.shape)}" for t in signature.inputs)
                )
            return
        rows = functools.partial(rows_of, signature, width=len(version.features), random=True)
        longest = self._inline_seconds if session.inline else None
        found = batch_of(session.run, rows, session.run_seconds, wanted=wanted, longest=longest)
        session.max_batch_rows, session.batch_seconds = found


def open_session(path: Path, *, device: str, threads: int = 1, spinning: bool = False) -> Session:
    """A session on the device that was asked for, or an error: never silently on another one."""
    where = resolve_device(device)
    options = _quiet()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if where != "cpu":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(where.partition(":")[2])}))
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=providers)
    except Exception as error:
        raise InvalidModel(f"onnxruntime cannot load it: {error}") from error
    session.disable_fallback()
    if where != "cpu" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceUnavailable(
            f"device {device} was asked for, but onnxruntime gave {session.get_providers()[0]}"
        )
    return Session(session, where, threads)


def signature_parts(session: Session) -> tuple[list[Any], list[Any], dict[str, str]]:
    """The graph's inputs, its outputs, and its own metadata, as onnxruntime describes them."""
    inner: Any = session.inner
    return inner.get_inputs(), inner.get_outputs(), dict(inner.get_modelmeta().custom_metadata_map)


def rows_of(signature: Signature, rows: int, *, width: int, random: bool = False) -> list[NDArray[Any]]:
    """Inputs of `rows` rows for a signature: zeros (or small numbers, always the same), and empty strings.

    They have `width` features where the graph leaves that open.
    """
    numbers = np.random.default_rng(rows) if random else None
    return [_rows(tensor, rows, width, numbers) for tensor in signature.inputs]


def _rows(tensor: Tensor, rows: int, width: int, numbers: np.random.Generator | None) -> NDArray[Any]:
    dimensions = tensor.shape
    shape = [1 if size is None else size for size in dimensions]
    if dimensions and dimensions[0] is None:
        shape[0] = rows
    if len(dimensions) == 2 and dimensions[1] is None:
        shape[1] = width
    kind = NUMPY_TYPES[tensor.dtype]
    if kind is np.object_:
        return np.full(shape, "", np.object_)
    return np.zeros(shape, kind) if numbers is None else numbers.integers(0, 2, shape).astype(kind)


def flatten(output: Any) -> tuple[NDArray[Any], tuple[Any, ...]]:  # noqa: ANN401
    """An output as an array; a sequence of maps (ZipMap) as one row a map, with its keys."""
    if isinstance(output, np.ndarray):
        return output, ()
    if isinstance(output, list) and output and all(isinstance(row, dict) for row in output):
        keys = tuple(output[0])
        if all(tuple(row) == keys for row in output):
            return np.array([list(row.values()) for row in output], np.float32), keys
    raise PredictionFailed(
        f"expected a tensor or a sequence of maps with the same keys, found {type(output).__name__}"
    )


def release_memory() -> None:
    """Give what freed sessions held back to the system; the C library would keep it."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _quiet() -> Any:  # noqa: ANN401 - the stubs of onnxruntime do not know their own class
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    return options
