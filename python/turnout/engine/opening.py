"""Opening a model file, on the device that was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnxruntime as ort

from turnout.engine.devices import quiet, resolve_device
from turnout.engine.sessions import Session
from turnout.errors import DeviceUnavailable, InvalidModel


def open_session(path: Path, *, device: str, threads: int = 1, spinning: bool = False) -> Session:
    """A session on the device that was asked for, or an error: never silently on another one."""
    where = resolve_device(device)
    options = quiet()
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
