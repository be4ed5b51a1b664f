"""Sessions on CUDA: buffers held ready for a few numbers of rows, and a CUDA graph for each where the model allows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from turnout.domain import Signature
from turnout.engine.bfloat16 import ELEMENT
from turnout.engine.buffers import NO_GRAPH, Bucket, run_options
from turnout.engine.cudart import CudaError, Cudart, cudart
from turnout.engine.devices import device_number, is_out_of_memory
from turnout.engine.gate import GATE
from turnout.engine.sessions import Arrays, Session, run_failure
from turnout.errors import OutOfDeviceMemory, PredictionFailed
from turnout.warmup import dependence, same

Make = Callable[[int, bool], Arrays]
"""Inputs of so many rows; of numbers that differ, or zeros."""
UNHELD = {"string": "strings", ELEMENT: ELEMENT}
"""Elements that NumPy has no memory for."""


class Unfit(Exception):
    """A model that runs, but not with CUDA graphs, or not with buffers of ours; says why."""


class CudaSession(Session):
    """A version on CUDA. Runs with the buffers of the next larger number of rows, plainly where there are none.

    A session that records runs everything on one thread of its own. onnxruntime keeps a recording for the thread that
    made it, so that any other would record anew in the middle of a request; and the memory between the nodes of a
    recording belongs to the arena, so that a plain run beside a replay would share it.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        threads: int = 1,
        *,
        cpu_nodes: Sequence[str] = (),
        graphs: bool = False,
    ) -> None:
        super().__init__(session, device, threads)
        self.cpu_nodes = tuple(cpu_nodes)
        self._thread = ThreadPoolExecutor(1, "turnout-cuda") if graphs else None
        self._options = run_options(NO_GRAPH) if graphs else None
        self._buckets: list[Bucket] = []
        self._pads = False

    def __del__(self) -> None:
        """Give the device its memory back when nobody records: freeing it then would spoil the recording."""
        held = list(self.__dict__.values())
        self.__dict__.clear()
        let_go(held)

    def run(self, arrays: Arrays, *, shrink: bool = False) -> list[NDArray[Any]]:
        """The outputs for inputs in the order of the graph; memory of the device stays with the session.

        Raises OutOfDeviceMemory, or PredictionFailed with the runtime's words.
        """
        del shrink
        if self._thread is None:
            return self._run(arrays)
        return self._thread.submit(self._run, arrays).result()

    def prepare(self, make: Make, sizes: Sequence[int], *, free: bool, insist: bool) -> None:
        """Make buffers for so many rows each, or if they are not `free` for the one shape that the model takes.

        Unless the caller must `insist`, sizes for which the device has not enough memory are left out, but the first.

        What they answer is compared with a plain run, since a recording can be wrong without an error: onnxruntime
        records what ran on the device, and nothing of what a node did on the host.

        Raises:
            Unfit: it cannot be done, and why; the session then runs plainly, but for one that records.
            OutOfDeviceMemory: the device has not enough memory left.
        """
        try:
            if self._thread is None:
                self._prepare(make, sizes, free, insist)
            else:
                self._thread.submit(self._prepare, make, sizes, free, insist).result()
        except BaseException:
            held, self._buckets = self._buckets, []
            let_go(held)
            raise
        if self._thread is not None:
            self.graphs = tuple(sizes[: len(self._buckets)])

    def _prepare(self, make: Make, sizes: Sequence[int], free: bool, insist: bool) -> None:
        try:
            runtime = cudart()
            self._pads = free and not dependence(self._alone, lambda rows: make(rows, True))
            for size in sizes:
                numbers = make(size, True)
                try:
                    wanted = self._alone(numbers)
                except OutOfDeviceMemory:
                    if insist or not self._buckets:
                        raise
                    break
                self._buckets.append(
                    self._bucket(runtime, make(size, False), numbers, wanted, size, free=free)
                )
        except OutOfDeviceMemory:
            raise
        except PredictionFailed as error:
            raise Unfit(f"it does not run with made-up numbers: {error.detail}") from error
        except (CudaError, OSError) as error:
            raise Unfit(str(error)) from error

    def _bucket(
        self, runtime: Cudart, zeros: Arrays, numbers: Arrays, wanted: Arrays, size: int, *, free: bool
    ) -> Bucket:
        records = self._thread is not None
        try:
            with GATE.record() if records else GATE.use():
                bucket = Bucket(
                    self.inner,
                    device_number(self.device),
                    runtime,
                    inputs=numbers,
                    outputs=wanted,
                    rows=size if free else None,
                    graph=size if records else None,
                )
                bucket.run(zeros)
            with GATE.use():
                found = bucket.run(numbers)
        except Exception as error:
            if is_out_of_memory(error, self.device):
                raise OutOfDeviceMemory(f"no memory for buffers of {size} rows: {error}") from error
            raise Unfit(str(error)) from error
        if not all(same(one, other) for one, other in zip(found, wanted, strict=True)):
            raise Unfit(f"{size} rows are answered otherwise than by a plain run")
        return bucket

    def _run(self, arrays: Arrays) -> list[NDArray[Any]]:
        bucket = self._fitting(arrays)
        if bucket is None or not bucket.free.acquire(blocking=False):
            return self._alone(arrays)
        try:
            with GATE.use():
                return bucket.run(arrays)
        except Exception as error:
            raise run_failure(error, self.device) from error
        finally:
            bucket.free.release()

    def _alone(self, arrays: Arrays) -> list[NDArray[Any]]:
        """A plain run; onnxruntime finds the memory."""
        with GATE.use():
            return super().run(arrays)

    def _fitting(self, arrays: Arrays) -> Bucket | None:
        """The smallest bucket that takes inputs, if one does; some models do not allow rows beside others."""
        rows = len(arrays[0]) if arrays and arrays[0].ndim else 0
        for bucket in self._buckets:
            if bucket.rows is None or rows == bucket.rows or (self._pads and 0 < rows < bucket.rows):
                return bucket if bucket.fits(arrays) else None
        return None


def let_go(held: list[Any]) -> None:
    """Drop what holds memory of the device, now or on a thread that waits until nobody records."""
    if not held:
        return
    if GATE.enter():
        try:
            held.clear()
        finally:
            GATE.leave()
        return
    with suppress(RuntimeError):  # the interpreter is on its way out, and all memory with it
        threading.Thread(target=_drop, args=(held,), name="turnout-cuda-free", daemon=True).start()


def _drop(held: list[Any]) -> None:
    with GATE.use():
        held.clear()


def obstacle(signature: Signature) -> str:
    """Why inputs and outputs cannot be held ready in buffers of fixed shapes, or nothing."""
    inputs, outputs = signature.inputs, signature.outputs
    for tensor in (*inputs, *outputs):
        if tensor.dtype in UNHELD:
            return f"{tensor.name!r} is a tensor of {UNHELD[tensor.dtype]}"
        if tensor.classes:
            return f"{tensor.name!r} is a sequence of maps"
    free = [tensor for tensor in inputs if tensor.shape[:1] == (None,)]
    if free and len(free) < len(inputs):
        return "the first dimension of some inputs is free, that of others is not"
    inner = () if signature.layout == "matrix" else inputs  # how wide a matrix is, its features say
    for tensor in (*inner, *outputs):
        if None in tensor.shape[1:]:
            return f"{tensor.name!r} has the shape {list(tensor.shape)}, of which more than the rows is free"
    if not free and any(None in tensor.shape for tensor in outputs):
        return "the shape of an output depends on more than the shapes of the inputs"
    return ""


def sizes_of(signature: Signature, most: int) -> list[int]:
    """The numbers of rows to hold buffers for: powers of two that reach `most`; one where the first dimension is fixed."""
    if not has_free_rows(signature):
        return [1]
    return [1 << power for power in range((most - 1).bit_length() + 1)]


def has_free_rows(signature: Signature) -> bool:
    """Whether the first dimension of the inputs is free."""
    return bool(signature.inputs) and signature.inputs[0].shape[:1] == (None,)
