"""Where sessions run: what works here, and what a device that is asked for means."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

import onnxruntime as ort

from turnout.errors import DeviceUnavailable, InvalidModel

FATAL = 4  # severity: what goes wrong reaches the caller as an exception, not as lines on standard error

# One Identity node on a float, as an ONNX file: the smallest session that shows which provider really runs.
TINY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)

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
            TINY, quiet(), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
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


def quiet() -> Any:  # noqa: ANN401 - the stubs of onnxruntime do not know their own class
    """Options of a session that prints nothing: what goes wrong is raised."""
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    return options
