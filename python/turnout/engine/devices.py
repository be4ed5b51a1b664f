"""Where sessions run: what works here, what a device that is asked for means, and the options of the providers."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

import onnxruntime as ort

from turnout.domain import SessionOptions
from turnout.errors import DeviceUnavailable, InvalidModel

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

FATAL = 4  # severity: what goes wrong reaches the caller as an exception, not as lines on standard error

# One Identity node on a float, as an ONNX file: the smallest session that shows which provider really runs.
TINY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)

ARENA = {"next_power_of_two": "kNextPowerOfTwo", "same_as_requested": "kSameAsRequested"}
"""onnxruntime's names for how an arena grows."""

OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|is smaller than requested bytes|ALLOC\w*_FAILED", re.IGNORECASE
)
"""How the arena, CUDA, cuBLAS and cuDNN say that the device has no memory left; they have no error class for it."""

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
    return _status(CUDA, "CUDA", "libonnxruntime_providers_cuda.so")


@functools.cache
def tensorrt_status() -> tuple[bool, str]:
    """The same for TensorRT, which runs beside CUDA."""
    works, reason = cuda_status()
    if not works:
        return False, reason
    return _status(TENSORRT, "TensorRT", "libonnxruntime_providers_tensorrt.so")


def _status(provider: str, name: str, file: str) -> tuple[bool, str]:
    if provider not in ort.get_available_providers():
        return False, f"this build of onnxruntime has no {name} provider"
    try:
        session = create(TINY, quiet(), [(provider, {}), (CPU, {})])
    except Exception as error:  # noqa: BLE001 - whatever the driver raises means no
        full = is_out_of_memory(error, name)  # of a device that is there, and may have memory again
        return full, str(error).strip()
    if session.get_providers()[0] == provider:
        return True, f"{name} works"
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / file))
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


def device_number(where: str) -> int:
    """N of `cuda:N`."""
    return int(where.partition(":")[2])


def providers_of(where: str, options: SessionOptions, *, graphs: bool) -> list[tuple[str, dict[str, str]]]:
    """The execution providers for a device, in order, with their options as onnxruntime names them.

    Raises DeviceUnavailable where TensorRT is asked for and does not work.
    """
    if options.tensorrt:
        _check_tensorrt(where)
    if where == "cpu":
        return [(CPU, {})]
    number = str(device_number(where))
    wanted = {
        "gpu_mem_limit": options.gpu_memory_limit,
        "arena_extend_strategy": None if options.arena_extend is None else ARENA[options.arena_extend],
        "use_tf32": None if options.tf32 is None else int(options.tf32),
        "cudnn_conv_algo_search": None if options.conv_search is None else options.conv_search.upper(),
        "enable_cuda_graph": 1 if graphs else None,
    }
    cuda = {"device_id": number} | {name: str(value) for name, value in wanted.items() if value is not None}
    beside = [(TENSORRT, {"device_id": number})] if options.tensorrt else []
    return [*beside, (CUDA, cuda), (CPU, {})]


def _check_tensorrt(where: str) -> None:
    works, reason = (False, "the device is the CPU") if where == "cpu" else tensorrt_status()
    if not works:
        raise DeviceUnavailable(f"tensorrt was asked for, but TensorRT does not work here: {reason}")


def create(
    model: str | bytes,
    options: Any,  # noqa: ANN401 - as that of `quiet`
    providers: list[tuple[str, dict[str, str]]],
) -> ort.InferenceSession:
    """A session of onnxruntime that raises what it cannot do, instead of printing it and going on with less."""
    session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    session.disable_fallback()
    return session


def is_out_of_memory(error: Exception, where: str) -> bool:
    """Whether an error of onnxruntime means that a device has no memory left; the CPU's is none of its own."""
    return where != "cpu" and OUT_OF_MEMORY.search(str(error)) is not None


def quiet() -> Any:  # noqa: ANN401 - the stubs of onnxruntime do not know their own class
    """Options of a session that prints nothing: what goes wrong is raised."""
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    return options
