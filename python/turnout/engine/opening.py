"""Opening a model file, on the device that was asked for."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import onnxruntime as ort

from turnout.domain import SessionOptions
from turnout.engine.cuda import CudaSession, Unfit
from turnout.engine.devices import CPU, create, is_out_of_memory, providers_of, quiet, resolve_device
from turnout.engine.sessions import Session
from turnout.errors import DeviceUnavailable, InvalidModel, OutOfDeviceMemory, TurnoutError

DEFAULT = SessionOptions()
NAMED = 10
"""How many nodes an error names."""


def open_session(
    path: Path,
    *,
    device: str,
    threads: int = 1,
    spinning: bool = False,
    options: SessionOptions = DEFAULT,
    graphs: bool = False,
) -> Session:
    """A session on the device that was asked for, or an error: never silently on another one.

    `auto` may leave nodes to the CPU, and takes the CPU alone where CUDA could run none of them. With `graphs` the
    session records CUDA graphs.

    Raises:
        InvalidModel: the file does not load, or nodes would run on the CPU though CUDA was asked for by name.
        DeviceUnavailable: the device, or TensorRT, cannot be had.
        OutOfDeviceMemory: the device has not enough memory left.
        Unfit: CUDA cannot record this model.
    """
    where = resolve_device(device)
    inner = _create(path, where, threads, spinning, options, graphs=graphs)
    if where == "cpu":
        return Session(inner, where, threads)
    if inner.get_providers()[0] == CPU:
        raise DeviceUnavailable(f"device {device} was asked for, but onnxruntime gave {CPU}")
    left, taken = nodes_left(inner)
    if device != "auto" and left and not options.allow_cpu_nodes:
        more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
        raise InvalidModel(
            f"device {device} was asked for, but these nodes would run on the CPU: {', '.join(left[:NAMED])}{more}; "
            "let them with the option allow_cpu_nodes, or take the device auto"
        )
    if device == "auto" and not taken and not options.tensorrt:
        return open_session(path, device="cpu", threads=threads, spinning=spinning, options=options)
    return CudaSession(inner, where, threads, cpu_nodes=left, graphs=graphs)


def _create(
    path: Path, where: str, threads: int, spinning: bool, options: SessionOptions, *, graphs: bool
) -> ort.InferenceSession:
    settings = quiet()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if where == "cpu":
        share_memory()
        settings.add_session_config_entry("session.use_env_allocators", "1")
    else:
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        return create(os.fspath(path), settings, providers_of(where, options, graphs=graphs))
    except TurnoutError:
        raise
    except Exception as error:
        if graphs and "graph capture" in str(error):
            raise Unfit(str(error)) from error
        if is_out_of_memory(error, where):
            raise OutOfDeviceMemory(f"device {where} has not enough memory to load it: {error}") from error
        raise InvalidModel(f"onnxruntime cannot load it: {error}") from error


@functools.cache
def share_memory() -> None:
    """Let all sessions of this process take memory of the CPU from one arena; each would begin one of its own."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, None)


def nodes_left(inner: Any) -> tuple[tuple[str, ...], int]:  # noqa: ANN401
    """The nodes of a session that run on the CPU, as operator and name, and how many run elsewhere."""
    left: list[str] = []
    taken = 0
    for part in inner.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        if part.ep_name == CPU:
            left += [f"{node.op_type} {node.name!r}" if node.name else node.op_type for node in nodes]
        else:
            taken += len(nodes)
    return tuple(left), taken


def signature_parts(session: Session) -> tuple[list[Any], list[Any], dict[str, str]]:
    """The graph's inputs, its outputs, and its own metadata, as onnxruntime describes them."""
    inner: Any = session.inner
    return inner.get_inputs(), inner.get_outputs(), dict(inner.get_modelmeta().custom_metadata_map)
