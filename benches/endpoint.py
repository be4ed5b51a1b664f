"""The batch endpoint against other model servers: 1,000 JSON rows a request, 4 connections, 2 workers.

    python benches/endpoint.py --environments DIR [--install] [--rounds 3] [--seconds 4]

Each rival lives in a virtual environment of its own under DIR, which `--install` makes. Needs `wrk` on the PATH. Servers
run one at a time, on loopback; rounds are interleaved and medians printed. Every answer is compared with the session's
once, before it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import psutil
from trained import FEATURES, VERSIONS, fill, graphs

import turnout

HERE = Path(__file__).parent / "rivals"
ROWS = 1000
MODELS = ("trees", "logistic")
START_SECONDS = 60


class Rival(NamedTuple):
    """What to install, how to start it, and where it answers."""

    needs: tuple[str, ...]
    command: tuple[str, ...]
    route: str = "/{model}"
    one_model: bool = False
    """Whether it is started for one model, which it is told by the environment."""


PYTHON, BIN, PORT = "{python}", "{bin}", "{port}"
RIVALS = {
    "FastAPI": Rival(
        ("fastapi", "uvicorn[standard]", "msgspec"),
        (
            f"{BIN}/uvicorn",
            "fastapi_app:app",
            "--port",
            PORT,
            "--workers",
            "2",
            "--no-access-log",
            "--log-level",
            "error",
        ),
    ),
    "mosec": Rival(
        ("mosec", "msgspec"),
        (
            PYTHON,
            "mosec_app.py",
            "--port",
            PORT,
            "--address",
            "127.0.0.1",
            "--timeout",
            "60000",
            "--log-level",
            "error",
        ),
    ),
    "LitServe": Rival(("litserve",), (PYTHON, "litserve_app.py"), one_model=True),
    "BentoML": Rival(
        ("bentoml",),
        (f"{BIN}/bentoml", "serve", "bentoml_app:Predictor", "--port", PORT, "--host", "127.0.0.1", "-q"),
    ),
    "MLServer": Rival(
        ("mlserver", "uvloop<0.22"), (f"{BIN}/mlserver", "start", "{folder}"), "/v2/models/{model}/infer"
    ),
    "Ray Serve": Rival(("ray[serve]", "msgspec"), (PYTHON, "ray_app.py")),
}


def environment(folder: Path, name: str) -> Path:
    return folder / name.lower().replace(" ", "-")


def install(folder: Path, name: str) -> None:
    place = environment(folder, name)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run(
        [
            place / "bin" / "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "onnxruntime",
            "numpy",
            *RIVALS[name].needs,
        ],
        check=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def body_of(name: str, rows: list[list[float]]) -> str:
    if name != "MLServer":
        return json.dumps({"rows": rows})
    flat = [value for row in rows for value in row]
    taken = {"name": "x", "shape": [len(rows), FEATURES], "datatype": "FP64", "data": flat}
    return json.dumps({"inputs": [taken]})


def labels_of(name: str, answer: dict[str, Any]) -> list[int]:
    if name == "MLServer":
        return next(output["data"] for output in answer["outputs"] if output["name"] == "label")
    return answer["outputs"]["label"] if name.startswith("Turnout") else answer["label"]


@contextmanager
def rival(name: str, place: Path, folder: Path, model: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A rival that runs, and its address."""
    found, port = RIVALS[name], free_port()
    words = {"python": place / "bin" / "python", "bin": place / "bin", "port": port, "folder": folder}
    if name == "MLServer":
        ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        settings = {"host": "127.0.0.1", "parallel_workers": 2, **ports}
        (folder / "settings.json").write_text(json.dumps(settings))
        for each in MODELS:
            (folder / each).mkdir(exist_ok=True)
            settings = {"name": each, "implementation": "mlserver_app.Predictor"}
            (folder / each / "model-settings.json").write_text(json.dumps(settings))
    process = subprocess.Popen(
        [part.format(**words) for part in found.command],
        cwd=HERE,
        env={**os.environ, "MODELS": str(folder), "MODEL": model, "PORT": str(port), "PYTHONPATH": str(HERE)}
        | {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        end(process)


@contextmanager
def ours(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "turnout",
            "--data",
            str(folder / "data"),
            "serve",
            "--port",
            str(port),
            "--workers",
            "2",
            "--drain-seconds",
            "0",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        end(process)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it has started."""
    members = family(process)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(members, 5)
    for member in alive:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def ask(url: str, body: str) -> dict[str, Any]:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    total = 0.0
    for member in family(process):
        with suppress(psutil.NoSuchProcess):
            total += sum(member.cpu_times()[:2])
    return total


def measure(
    name: str,
    url: str,
    process: subprocess.Popen[bytes],
    body: str,
    labels: list[int],
    script: Path,
    seconds: float,
) -> tuple[float, float, float]:
    """Rows a second, CPU seconds for a million rows, p50 in milliseconds."""
    end_at = time.monotonic() + START_SECONDS
    while True:
        try:
            assert labels_of(name, ask(url, body)) == labels, "other answers than the session's"
            break
        except OSError:
            if time.monotonic() > end_at or process.poll() is not None:
                raise
            time.sleep(0.2)
    script.write_text(
        f"wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = [==[{body}]==]\n"
    )
    command = ["wrk", "-t1", "-c4", "--latency", "--timeout", "20s", "-s", str(script), url]
    subprocess.run([*command, "-d1s"], capture_output=True, check=True)
    before = cpu_seconds(process)
    said = subprocess.run([*command, f"-d{seconds:g}s"], capture_output=True, check=True, text=True).stdout
    cpu = cpu_seconds(process) - before
    assert "Non-2xx" not in said, said
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    value, unit = re.findall(r"50%\s+([\d.]+)(us|ms|s)", said)[0]
    p50 = float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    return rate * ROWS, cpu / (rate * seconds * ROWS) * 1e6, p50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("this needs wrk")
    names = [name for name in RIVALS if not arguments.only or name in arguments.only]
    for name in names if arguments.install else []:
        install(arguments.environments, name)
    values = np.round(np.random.default_rng(1).normal(size=(ROWS, FEATURES)) * 100, 3)
    rows = values.tolist()
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        labels: dict[str, list[int]] = {}
        for model, versions in graphs().items():
            (folder / f"{model}.onnx").write_bytes(versions[VERSIONS[0]])
            inner = ort.InferenceSession(folder / f"{model}.onnx", providers=["CPUExecutionProvider"])
            labels[model] = inner.run(None, {inner.get_inputs()[0].name: values.astype(np.float32)})[
                0
            ].tolist()
        with turnout.open(folder / "data") as hub:
            fill(hub)
        for _ in range(arguments.rounds):
            for model in MODELS:
                for name in names:
                    with rival(name, environment(arguments.environments, name), folder, model) as (
                        url,
                        process,
                    ):
                        route = url + RIVALS[name].route.format(model=model)
                        try:
                            taken = measure(
                                name,
                                route,
                                process,
                                body_of(name, rows),
                                labels[model],
                                folder / "wrk.lua",
                                arguments.seconds,
                            )
                        except (OSError, AssertionError, subprocess.SubprocessError) as error:
                            print(f"{name}, {model}: {error}", file=sys.stderr)
                            continue
                        found.setdefault((model, name), []).append(taken)
                with ours(folder) as (url, process):
                    for name, route in {
                        "Turnout": f"/v1/models/{model}/versions/{VERSIONS[0]}/batch",
                        "Turnout, a test of two": f"/v1/models/{model}/batch",
                    }.items():
                        taken = measure(
                            name,
                            url + route,
                            process,
                            body_of(name, rows),
                            labels[model],
                            folder / "wrk.lua",
                            arguments.seconds,
                        )
                        found.setdefault((model, name), []).append(taken)
    show(found)


def show(found: dict[tuple[str, str], list[tuple[float, float, float]]]) -> None:
    """Medians, best first, as a table of Markdown."""
    for model in MODELS:
        medians = {
            name: [statistics.median(column) for column in zip(*rounds, strict=True)]
            for (of, name), rounds in found.items()
            if of == model
        }
        best = max((taken[0] for name, taken in medians.items() if not name.startswith("Turnout")), default=1)
        print(
            f"\n| {model} | rows a second | against the best rival | CPU s a million rows | p50 ms |\n|---|---|---|---|---|"
        )
        for name, (rate, cpu, p50) in sorted(medians.items(), key=lambda pair: -pair[1][0]):
            print(f"| {name} | {rate:,.0f} | {rate / best:.2f} x | {cpu:.2f} | {p50:.1f} |")


if __name__ == "__main__":
    main()
