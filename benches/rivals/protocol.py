"""How the servers that speak the Open Inference Protocol are installed and started, each with one worker.

The rest of this folder runs in their environments; this runs in ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort
from endpoint import environment, free_port

HERE = Path(__file__).parent
DATATYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}
MOST_ROWS = 1024
"""Rows that tritonserver puts together at most."""
Command = tuple[list[str | Path], dict[str, str]]


class Contender(NamedTuple):
    """How to start a server: from its environment, the folder of the models and a port to command and variables."""

    start: Callable[[Path, Path, int], Command]
    needs: tuple[str, ...] | None = None
    binary: bool = True
    models: tuple[str, ...] | None = None
    """Those that it is asked, where it is not all."""


def start_turnout(_: Path, folder: Path, port: int) -> Command:
    command = [sys.executable, "-m", "turnout", "--data", folder / "data", "serve", "--port", str(port)]
    return [*command, "--workers", "1", "--drain-seconds", "0"], {}


def start_mlserver(place: Path, folder: Path, port: int) -> Command:
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    (folder / "settings.json").write_text(json.dumps(settings))
    for path in folder.glob("*.onnx"):
        (folder / path.stem).mkdir(exist_ok=True)
        settings = {"name": path.stem, "implementation": "mlserver_app.Predictor"}
        (folder / path.stem / "model-settings.json").write_text(json.dumps(settings))
    return [place / "bin" / "mlserver", "start", folder], {}


def start_kserve(place: Path, _: Path, port: int) -> Command:
    return [place / "bin" / "python", "kserve_app.py"], {"PORT": str(port)}


def start_tritonserver(place: Path, folder: Path, port: int, *, batching: bool = False) -> Command:
    packages = next(place.glob("lib/python*/site-packages"))
    wheel, backends = packages / "pytriton" / "tritonserver", folder / "backends"
    repository = folder / ("batching" if batching else "repository")
    if not backends.exists():
        shutil.copytree(wheel / "backends", backends)
        version = packages.parent.name.removeprefix("python")
        shutil.copy(
            wheel / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python"
        )
    for path in folder.glob("*.onnx"):
        home = repository / path.stem
        (home / "1").mkdir(parents=True, exist_ok=True)
        (home / "config.pbtxt").write_text(description(path, batching=batching))
        shutil.copy(HERE / "tritonserver_app.py", home / "1" / "model.py")
        shutil.copy(HERE / "common.py", home / "1")
    flags = {"model-repository": repository, "backend-directory": backends, "http-port": port}
    flags |= {"http-address": "127.0.0.1", "allow-grpc": "false", "allow-metrics": "false"}
    paths = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}"}  # its Python finds its packages by this alone
    return (
        [wheel / "bin" / "tritonserver", *(f"--{name}={value}" for name, value in flags.items())],
        paths | {"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")},
    )


def start_batching(place: Path, folder: Path, port: int) -> Command:
    return start_tritonserver(place, folder, port, batching=True)


def description(model: Path, *, batching: bool) -> str:
    """The configuration of a model in tritonserver: one instance; requests as they come, or those that wait together."""
    inner = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    lines = ['backend: "python"', "instance_group { count: 1 kind: KIND_CPU }"]
    if batching:  # rows are no longer of the shape then, but there is no shape without a dimension
        lines += [f"max_batch_size: {MOST_ROWS}", "dynamic_batching { }"]
    for kind, tensors in (("input", inner.get_inputs()), ("output", inner.get_outputs())):
        for tensor in tensors:
            sizes = [str(size) if isinstance(size, int) else "-1" for size in tensor.shape[batching:]]
            shape = f"dims: [{', '.join(sizes)}]" if sizes else "dims: [1] reshape: { shape: [] }"
            words = f'name: "{tensor.name}" data_type: TYPE_{DATATYPES[tensor.type]} {shape}'
            lines.append(f"{kind} {{ {words} }}")
    return "\n".join(lines)


OURS, TRITON = "Turnout", ("nvidia-pytriton==0.7.0",)
CONTENDERS = {
    OURS: Contender(start_turnout),
    "tritonserver": Contender(start_tritonserver, TRITON),
    "tritonserver, batching": Contender(start_batching, TRITON, models=("logistic",)),
    "MLServer": Contender(start_mlserver, ("mlserver==1.7.1", "uvloop<0.22", "httptools"), binary=False),
    "KServe": Contender(start_kserve, ("kserve==0.21.0",)),
}


def home(folder: Path, name: str) -> Path:
    """The environment of a server; a comma begins a variant."""
    return environment(folder, name.partition(",")[0])


def install(folder: Path, name: str) -> None:
    place, needs = home(folder, name), CONTENDERS[name].needs
    if needs is not None and not place.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        command = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "onnxruntime", "numpy", *needs], check=True)
