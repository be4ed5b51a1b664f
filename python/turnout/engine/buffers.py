"""Inputs and outputs of one size, held ready: in pinned memory of the host, on the device, and bound to a session."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from turnout.engine.cudart import Cudart
from turnout.engine.sessions import Arrays

GRAPH = "gpu_graph_id"
NO_GRAPH = "-1"  # of a session that records: neither record this run nor answer it from a recording


class Buffer(NamedTuple):
    """An input or output: its array in pinned memory, its value on the device, and where that begins."""

    host: NDArray[Any]
    value: Any
    address: int


class Bucket:
    """What a session needs to run one number of rows, or with `rows` None inputs of exactly these shapes.

    Only one may `run` it at a time: who holds `free`. With a `graph` the first run records and the later ones replay,
    which onnxruntime keeps to itself for each thread: all of them have to be made by the same one.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: int,
        runtime: Cudart,
        *,
        inputs: Arrays,
        outputs: Arrays,
        rows: int | None,
        graph: int | None,
    ) -> None:
        self.rows = rows
        self.free = threading.Lock()
        self._session: Any = session
        self._device = device
        self._runtime = runtime
        runtime.select(device)
        self._inputs = [self._buffer(array) for array in inputs]
        self._outputs = [self._buffer(array) for array in outputs]
        self._binding: Any = session.io_binding()
        for node, buffer in zip(session.get_inputs(), self._inputs, strict=True):
            self._binding.bind_ortvalue_input(node.name, buffer.value)
        for node, buffer in zip(session.get_outputs(), self._outputs, strict=True):
            self._binding.bind_ortvalue_output(node.name, buffer.value)
        self._options = None if graph is None else run_options(str(graph))

    def _buffer(self, array: NDArray[Any]) -> Buffer:
        value: Any = self._session.create_ortvalue_from_shape_and_type(
            array.shape, array.dtype.type, "cuda", self._device
        )
        return Buffer(self._runtime.pinned(array.shape, array.dtype), value, value.data_ptr())

    def fits(self, arrays: Arrays) -> bool:
        """Whether inputs have the shapes and types of this bucket; of fewer rows where it counts rows."""
        return len(arrays) == len(self._inputs) and all(
            array.dtype == host.dtype
            and array.shape[1:] == host.shape[1:]
            and array.ndim == host.ndim
            and (array.shape == host.shape if self.rows is None else len(array) == len(arrays[0]))
            for array, (host, _, _) in zip(arrays, self._inputs, strict=True)
        )

    def run(self, arrays: Arrays) -> list[NDArray[Any]]:
        """Outputs for inputs that fit. Rows that lack are filled up with the first one, which is known to be fit to run."""
        self._runtime.select(self._device)
        rows = self.rows if self.rows is None else len(arrays[0])
        for (host, _, address), array in zip(self._inputs, arrays, strict=True):
            if rows is None or rows == self.rows:
                np.copyto(host, array)
            else:
                host[:rows] = array
                host[rows:] = array[:1]
            self._runtime.to_device(address, host)
        self._session.run_with_iobinding(self._binding, self._options)
        found: list[NDArray[Any]] = []
        for host, _, address in self._outputs:
            self._runtime.to_host(host, address)
            found.append((host if rows is None or rows == self.rows else host[:rows]).copy())
        return found


def run_options(graph: str) -> Any:  # noqa: ANN401
    """Options of a run with the number of its CUDA graph."""
    options = ort.RunOptions()
    options.add_run_config_entry(GRAPH, graph)
    return options
