"""The few calls of the CUDA runtime that onnxruntime does not offer: pinned memory, and copies into and out of it."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

PORTABLE = 1  # cudaHostAllocPortable: pinned for every device
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
CALLS: dict[str, list[Any]] = {
    "cudaSetDevice": [INT],
    "cudaHostAlloc": [ctypes.POINTER(POINTER), SIZE, ctypes.c_uint],
    "cudaFreeHost": [POINTER],
    "cudaMemcpy": [POINTER, POINTER, SIZE, INT],
}


class Cudart:
    """The CUDA runtime. Copies are done when they return, and other threads of Python run meanwhile."""

    def __init__(self, library: Any) -> None:  # noqa: ANN401
        self._library = library
        for name, kinds in CALLS.items():
            call = getattr(library, name)
            call.argtypes, call.restype = kinds, INT
        library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = [INT], ctypes.c_char_p

    def select(self, device: int) -> None:
        """Let the calling thread use a device."""
        self._check("cudaSetDevice", self._library.cudaSetDevice(device))

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array in memory that the device reads and writes by itself; given back with the last view of it."""
        kind = np.dtype(dtype)
        size = max(1, int(np.prod(shape)) * kind.itemsize)
        address = POINTER()
        self._check("cudaHostAlloc", self._library.cudaHostAlloc(ctypes.byref(address), size, PORTABLE))
        memory = (ctypes.c_ubyte * size).from_address(address.value or 0)
        weakref.finalize(memory, self._library.cudaFreeHost, address.value).atexit = False
        return np.frombuffer(memoryview(memory), kind, int(np.prod(shape))).reshape(shape)

    def to_device(self, address: int, host: NDArray[Any]) -> None:
        """Copy an array to the device."""
        self._copy(address, host.ctypes.data, host.nbytes, TO_DEVICE)

    def to_host(self, host: NDArray[Any], address: int) -> None:
        """Fill an array from the device."""
        self._copy(host.ctypes.data, address, host.nbytes, TO_HOST)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self._check("cudaMemcpy", self._library.cudaMemcpy(target, source, size, kind))

    def _check(self, call: str, code: int) -> None:
        if code:
            raise CudaError(f"{call}: CUDA failure {code}: {self._library.cudaGetErrorString(code).decode()}")


class CudaError(Exception):
    """What the CUDA runtime answers; like those of onnxruntime it becomes an error of ours where the run is."""


@functools.cache
def cudart() -> Cudart:
    """The CUDA runtime that onnxruntime has loaded into this process, whatever its version.

    Raises CudaError where there is none.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text("utf-8").splitlines() if maps.exists() else []
    paths = {line[line.index("/") :] for line in lines if "/libcudart.so" in line}
    if not paths:
        raise CudaError("onnxruntime has loaded no CUDA runtime (libcudart) of its own")
    return Cudart(ctypes.CDLL(min(paths)))
