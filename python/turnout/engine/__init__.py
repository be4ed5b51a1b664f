"""ONNX sessions: load, warm up, run, let go. The only importer of onnxruntime."""

from turnout.engine.devices import (
    available_providers,
    cuda_status,
    resolve_device,
    runtime_version,
    tensorrt_status,
)
from turnout.engine.loading import Engine
from turnout.engine.memory import release_memory
from turnout.engine.opening import open_session, signature_parts
from turnout.engine.rows import NUMPY_TYPES, has_known_rows, rows_of
from turnout.engine.sessions import Session, flatten, run_failure

__all__ = [
    "NUMPY_TYPES",
    "Engine",
    "Session",
    "available_providers",
    "cuda_status",
    "flatten",
    "has_known_rows",
    "open_session",
    "release_memory",
    "resolve_device",
    "rows_of",
    "run_failure",
    "runtime_version",
    "signature_parts",
    "tensorrt_status",
]
