"""CUDA as onnxruntime shows it, on a machine without: real sessions on the CPU behind the real classes.

What a device would do is done by the CPU, so that answers are right or wrong as they would be; what CUDA and its graphs
demand is checked, and broken rules fail as they do there. `tests/unit/test_cuda.py` holds it against the real classes.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest

from turnout.engine import cuda, cudart, devices, gate

CAPTURING = "CUDA failure 900: operation not permitted when stream is capturing"
NO_CAPTURE = (
    "This session cannot use the graph capture feature as requested by the user as all the graph nodes have not "
    "been assigned to CUDAExecutionProvider"
)
NO_MEMORY = "Failed to allocate memory for requested buffer of size 1048576"


class Device:
    """What is there to be seen of the device, and what it is told to do. One for each test."""

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.on_cpu: set[str] = set()
        self.tensorrt = False
        self.rows_that_fit = 1_000_000
        self.loads = True
        self.uncapturable = False
        self.wrong = False
        self.broken = False
        self.recording = False
        self.users = 0
        self.pins = True
        self.pinned = 0
        self.selected: set[int] = set()
        self.lock = threading.Lock()

    @contextmanager
    def busy(self, *, records: bool = False, seconds: float = 0.0) -> Iterator[None]:
        """Use the device. Nobody else may while one records."""
        with self.lock:
            if self.recording or (records and self.users):
                raise RuntimeError(CAPTURING)
            self.recording = records
            self.users += 1
        try:
            time.sleep(seconds)
            yield
        finally:
            with self.lock:
                self.users -= 1
                self.recording = False


class FakeSession(ort.InferenceSession):
    """A session that says that it runs on CUDA. Methods that are here are those that CUDA would answer otherwise."""

    device: ClassVar[Device]

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Any = None,
        provider_options: Any = None,
        **kwargs: Any,
    ) -> None:
        assert kwargs == {"enable_fallback": 0}, "it would print, and go on with the CPU"
        self.asked: list[tuple[str, dict[str, str]]] = list(providers)
        names = [name for name, _ in self.asked]
        cuda = dict(self.asked).get(devices.CUDA)
        if devices.TENSORRT in names and not self.device.tensorrt:
            raise RuntimeError("Please install TensorRT libraries")
        self.given = [name for name in names if name != devices.CUDA or cuda is not None]
        self.plain: list[int] = []
        self.graphs: dict[int, tuple[int, Any]] = {}
        self.graph_runs: list[tuple[int, str]] = []
        self._running = threading.Lock()
        super().__init__(path_or_bytes, sess_options, [(devices.CPU, {})], None, enable_fallback=0)
        if cuda is None:
            return
        with self.device.busy():
            if not self.device.loads:
                raise RuntimeError(NO_MEMORY)
            self.captures = cuda.get("enable_cuda_graph") == "1"
            if self.captures and self.left():
                raise RuntimeError(NO_CAPTURE)
            if isinstance(path_or_bytes, str):  # and not the one that asks what works here
                self.device.sessions.append(self)

    def left(self) -> list[str]:
        """Operators that are left to the CPU."""
        parts = super().get_provider_graph_assignment_info()
        return [n.op_type for part in parts for n in part.get_nodes() if n.op_type in self.device.on_cpu]

    def get_providers(self) -> Any:
        return self.given

    def get_provider_graph_assignment_info(self) -> Any:
        nodes = [node for part in super().get_provider_graph_assignment_info() for node in part.get_nodes()]
        left = [node for node in nodes if node.op_type in self.device.on_cpu]
        taken = [node for node in nodes if node.op_type not in self.device.on_cpu]
        parts = ((devices.CUDA, taken), (devices.CPU, left))
        return [SimpleNamespace(ep_name=name, get_nodes=lambda of=of: of) for name, of in parts if of]

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        if self.given[0] == devices.CPU:
            return super().run(output_names, input_feed, run_options)
        assert not self.captures or graph_of(run_options) == -1, (
            "it would record memory that is gone after the run"
        )
        arrays = [array for array in input_feed.values() if isinstance(array, np.ndarray)]
        rows = max((len(array) for array in arrays if array.ndim), default=1)
        with self.device.busy():
            if rows > self.device.rows_that_fit:
                raise RuntimeError(NO_MEMORY)
            self.plain.append(rows)
            return super().run(output_names, input_feed, run_options)

    def create_ortvalue_from_shape_and_type(
        self, shape: Any, element_type: Any, device_type: str, device_id: int = 0, vendor_id: Any = -1
    ) -> Any:
        assert (device_type, device_id) == ("cuda", int(dict(self.asked)[devices.CUDA]["device_id"]))
        return super().create_ortvalue_from_shape_and_type(shape, element_type, "cpu")

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        graph = graph_of(run_options)
        if self.device.broken:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        if not self.captures:
            with self.device.busy(seconds=0.0005):
                super().run_with_iobinding(iobinding, run_options)
                return
        assert graph > 0, "0 is onnxruntime's own"
        assert self._running.acquire(blocking=False), "two runs of one session with graphs overlap"
        try:
            me = threading.get_ident()
            if graph not in self.graphs:
                if self.device.uncapturable:
                    raise RuntimeError(CAPTURING)
                with self.device.busy(records=True, seconds=0.005):
                    self.graphs[graph] = (me, iobinding)
            assert self.graphs[graph] == (me, iobinding), "recorded by another thread, or for other buffers"
            with self.device.busy(seconds=0.0005):
                self.graph_runs.append((graph, threading.current_thread().name))
                if not self.device.wrong or len(self.graph_runs) % 2:
                    super().run_with_iobinding(iobinding, run_options)
        finally:
            self._running.release()


def graph_of(run_options: Any) -> int:
    """The number of the graph of a run; 0 where none is said."""
    if run_options is None:
        return 0
    try:
        return int(run_options.get_run_config_entry("gpu_graph_id"))
    except RuntimeError:
        return 0


class Call:
    """A function on which `argtypes` and `restype` can be set, as on one of ctypes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class FakeRuntime:
    """libcudart with the memory of the host, as ctypes would load it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: dict[int, Any] = {}
        self.cudaSetDevice = Call(self._select)
        self.cudaHostAlloc = Call(self._allocate)
        self.cudaFreeHost = Call(self._free)
        self.cudaMemcpy = Call(self._copy)
        self.cudaGetErrorString = Call({2: b"out of memory"}.get)

    def _select(self, device: int) -> int:
        self._device.selected.add(device)
        return 0

    def _allocate(self, pointer: Any, size: int, flags: int) -> int:
        assert flags == cudart.PORTABLE
        if not self._device.pins:
            return 2
        memory = (ctypes.c_ubyte * size)()
        pointer._obj.value = ctypes.addressof(memory)
        self._memory[ctypes.addressof(memory)] = memory
        self._device.pinned += 1
        return 0

    def _free(self, address: int) -> int:
        with self._device.busy():
            del self._memory[address]
            self._device.pinned -= 1
        return 0

    def _copy(self, target: int, source: int, size: int, kind: int) -> int:
        host = source if kind == cudart.TO_DEVICE else target
        assert size <= len(self._memory[host]), "not pinned, or too long"
        with self._device.busy():
            ctypes.memmove(target, source, size)
        return 0


def machine(patch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A machine with a device: `yield from` it in a fixture."""
    found = Device()
    runtime = cudart.Cudart(FakeRuntime(found))
    patch.setattr(FakeSession, "device", found, raising=False)
    patch.setattr(ort, "InferenceSession", FakeSession)
    patch.setattr(ort, "get_available_providers", lambda: [devices.TENSORRT, devices.CUDA, devices.CPU])
    patch.setattr(cuda, "cudart", lambda: runtime)
    patch.setattr(cuda, "GATE", gate.Gate())
    for status in (devices.cuda_status, devices.tensorrt_status):
        status.cache_clear()
    yield found
    for status in (devices.cuda_status, devices.tensorrt_status):
        status.cache_clear()
