"""One prediction over HTTP: CPU a request, requests a second and latency, beside bare handlers and other servers.

Needs `wrk` on the PATH. Servers run one at a time, on loopback; rounds are interleaved, and medians printed with the
least and the most. Each peer has a virtual environment of its own under DIR, which `--install` makes; without DIR only
the bare handlers run beside Turnout. Each server's answers are compared with those of the session before it is measured.

    python benches/http/run.py --environments DIR --install --rounds 5 --seconds 3
    python benches/http/run.py --environments DIR --model network --workers 1 --connections 16 64 --only Turnout mosec LitServe
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import psutil
from network import save
from skl2onnx import to_onnx
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier

HERE = Path(__file__).parent
FEATURES = [f"f{i}" for i in range(20)]
START_SECONDS = 60
GRANIAN = ("{python}", "-m", "granian", "--host", "127.0.0.1", "--port", "{port}", "--workers", "{workers}", "--no-ws",
           "--log-level", "error")  # fmt: skip
LONE = {"max_batch_rows": 1}
TOGETHER = {"max_batch_rows": 32}
FIELDS = {"cpu_us": "CPU us a request", "rps": "requests a second", "p50_us": "p50 us", "p99_us": "p99 us"}


class Contender(NamedTuple):
    """How to start a server, and what it takes.

    `needs` is what its environment has beside onnxruntime; None for one that runs in ours. `batch` requests run together.
    """

    command: tuple[str, ...]
    needs: tuple[str, ...] | None = None
    route: str = "/predict"
    batch: int = 1
    options: dict[str, int] | None = None


CONTENDERS = {
    "ordinary Litestar handler": Contender((*GRANIAN, "--interface", "asgi", "handlers:ordinary_litestar")),
    "raw ASGI function": Contender((*GRANIAN, "--interface", "asgi", "handlers:raw_asgi")),
    "bare RSGI handler": Contender((*GRANIAN, "--interface", "rsgi", "handlers:bare_rsgi")),
    "mosec": Contender(
        ("{python}", "mosec_app.py", "--port", "{port}", "--address", "127.0.0.1", "--log-level", "error"),
        ("mosec", "msgspec"),
    ),
    "mosec, batching": Contender(
        ("{python}", "mosec_app.py", "--port", "{port}", "--address", "127.0.0.1", "--log-level", "error"),
        ("mosec", "msgspec"),
        batch=32,
    ),
    "LitServe": Contender(("{python}", "litserve_app.py"), ("litserve",)),
    "LitServe, batching": Contender(("{python}", "litserve_app.py"), ("litserve",), batch=32),
    "BentoML": Contender(
        ("{bin}/bentoml", "serve", "bentoml_app:Predictor", "--port", "{port}", "--host", "127.0.0.1", "-q"),
        ("bentoml",),
    ),
    "MLServer": Contender(
        ("{bin}/mlserver", "start", "{folder}"), ("mlserver", "uvloop<0.22"), "/v2/models/m/infer"
    ),
    "KServe": Contender(("{python}", "kserve_app.py"), ("kserve",), "/v1/models/m:predict"),
    "Ray Serve": Contender(("{python}", "ray_app.py"), ("ray[serve]", "msgspec")),
    "FastAPI": Contender(
        (
            "{bin}/uvicorn",
            "fastapi_app:app",
            "--port",
            "{port}",
            "--workers",
            "{workers}",
            "--no-access-log",
            "--log-level",
            "error",
        ),
        ("fastapi", "uvicorn[standard]", "msgspec"),
    ),
    "Turnout": Contender(
        (
            "{python}",
            "-m",
            "turnout",
            "--data",
            "{folder}/data",
            "serve",
            "--port",
            "{port}",
            "--workers",
            "{workers}",
            "--drain-seconds",
            "0",
        ),
        route="/v1/models/bench/predict",
    ),
    "Turnout, each by itself": Contender(
        (
            "{python}",
            "-m",
            "turnout",
            "--data",
            "{folder}/lone",
            "serve",
            "--port",
            "{port}",
            "--workers",
            "{workers}",
            "--drain-seconds",
            "0",
        ),
        route="/v1/models/bench/predict",
        options=LONE,
    ),
}
"""In the order of the table. The server's own environment names: a comma begins a variant."""


def train(path: Path) -> None:
    """A gradient boosting of 100 trees of depth 4 on 20 features."""
    x, y = make_classification(2000, 20, n_informative=12, random_state=0)
    model = GradientBoostingClassifier(n_estimators=100, max_depth=4, random_state=0).fit(x, y)
    onnx = to_onnx(model, x[:1].astype(np.float32), options={id(model): {"zipmap": False}})
    path.write_bytes(onnx.SerializeToString())


MODELS: dict[str, Callable[[Path], None]] = {"trees": train, "network": save}


def rows() -> list[dict[str, float]]:
    """The features of 100 distinct requests."""
    x, _ = make_classification(2000, 20, n_informative=12, random_state=0)
    return [
        {name: round(value, 6) for name, value in zip(FEATURES, row, strict=True)} for row in x[:100].tolist()
    ]


def body_of(name: str, number: int, features: dict[str, float]) -> str:
    if name == "MLServer":
        taken = {"name": "x", "shape": [1, 20], "datatype": "FP64", "data": list(features.values())}
        return json.dumps({"inputs": [taken]})
    if name == "KServe":
        return json.dumps({"instances": [features]})
    return json.dumps({"entity_id": f"user-{number}", "features": features})


def probabilities_of(name: str, answer: dict[str, Any]) -> list[float]:
    if name == "MLServer":
        return next(output["data"] for output in answer["outputs"] if output["name"] == "probabilities")
    if name == "KServe":
        return answer["predictions"][0]["probabilities"]
    return (answer["outputs"] if name.startswith("Turnout") else answer)["probabilities"]


def wrk_script(folder: Path, bodies: list[str]) -> Path:
    script = folder / "bodies.lua"
    listed = ",".join(f"[=[{body}]=]" for body in bodies)
    script.write_text(
        f"local bodies = {{{listed}}}\nlocal i = 0\nwrk.method = 'POST'\n"
        "wrk.headers['Content-Type'] = 'application/json'\n"
        "request = function() i = i % #bodies + 1; return wrk.format(nil, nil, nil, bodies[i]) end\n"
    )
    return script


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A contender that runs on a free port, and ends with the block."""

    def __init__(self, name: str, folder: Path, environments: Path | None, workers: int) -> None:
        found = CONTENDERS[name]
        self.name, self.port = name, free_port()
        self.url = f"http://127.0.0.1:{self.port}{found.route}"
        place = Path(sys.prefix) if found.needs is None else environment(environments, name)
        words = {
            "python": place / "bin" / "python",
            "bin": place / "bin",
            "port": self.port,
            "workers": workers,
        }
        self.command = [part.format(folder=folder, **words) for part in found.command]
        self.home = HERE if found.needs is None else HERE / "peers"
        self.environment = {**os.environ, "MODEL": str(folder / "model.onnx"), "PORT": str(self.port)}
        self.environment |= {"WORKERS": str(workers), "BATCH": str(found.batch), "OMP_NUM_THREADS": "1"}
        self.environment |= {
            "PYTHONPATH": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "BENTOML_DO_NOT_TRACK": "1",
        }
        if name == "MLServer":
            ports = {"http_port": self.port, "grpc_port": free_port(), "metrics_port": free_port()}
            settings = {"host": "127.0.0.1", "parallel_workers": workers if workers > 1 else 0, **ports}
            (folder / "settings.json").write_text(json.dumps(settings))
            settings = {"name": "m", "implementation": "mlserver_app.Predictor"}
            (folder / "model-settings.json").write_text(json.dumps(settings))

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            self.command, env=self.environment, cwd=self.home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        members = self.family()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(members, 5)
        for member in alive:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """User and system time of the process and its descendants so far."""
        total = 0.0
        for member in self.family():
            with suppress(psutil.NoSuchProcess):
                total += sum(member.cpu_times()[:2])
        return total

    def check(self, bodies: list[str], expected: list[list[float]]) -> None:
        """Wait until it answers, and compare what it says with what the session does."""
        deadline = time.monotonic() + START_SECONDS
        for body, probabilities in zip(bodies[:20], expected, strict=False):
            while True:
                try:
                    request = urllib.request.Request(
                        self.url, body.encode(), {"Content-Type": "application/json"}
                    )
                    with urllib.request.urlopen(request, timeout=5) as answer:
                        found = probabilities_of(self.name, json.load(answer))
                    break
                except OSError:
                    if time.monotonic() > deadline or self.process.poll() is not None:
                        raise
                    time.sleep(0.2)
            assert np.allclose(found, probabilities, atol=1e-5), (
                f"{self.name}: {found}, expected {probabilities}"
            )


def environment(folder: Path | None, name: str) -> Path:
    assert folder is not None
    return folder / name.partition(",")[0].lower().replace(" ", "-")


def install(folder: Path, name: str) -> None:
    place = environment(folder, name)
    if not place.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        wanted = ["onnxruntime", "numpy", *(CONTENDERS[name].needs or ())]
        subprocess.run([place / "bin" / "pip", "install", "--quiet", *wanted], check=True)


def load(server: Server, script: Path, connections: int, seconds: int) -> dict[str, float]:
    before = server.cpu_seconds()
    output = subprocess.run(
        ["wrk", f"-t{min(2, connections)}", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), server.url],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    cpu = server.cpu_seconds() - before
    assert "Non-2xx" not in output, output
    return {
        "cpu_us": cpu / int(re.search(r"(\d+) requests in", output)[1]) * 1e6,
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),
        "p50_us": microseconds(re.search(r"50%\s+(\S+)", output)[1]),
        "p99_us": microseconds(re.search(r"99%\s+(\S+)", output)[1]),
    }


def microseconds(text: str) -> float:
    """A time as wrk prints it; not a number where it has lost count, as it does now and then."""
    found = re.fullmatch(r"([\d.]+)(us|ms|s)", text)
    return float(found[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[found[2]] if found else float("nan")


def fill(folder: Path) -> None:
    """Data directories: two versions, split four to one."""
    import turnout

    for name, options in (("data", {}), ("lone", LONE)):
        with turnout.open(folder / name) as hub:
            for version in ("v1", "v2"):
                hub.register_version(
                    "bench", version, folder / "model.onnx", features=FEATURES, options=options
                )
            hub.activate_version("bench", "v1")
            hub.configure_test("bench", {"v1": 0.8, "v2": 0.2})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--model", choices=list(MODELS), default="trees")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="names, or what stands before their comma")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("this bench needs wrk (Debian: apt-get install wrk)")
    chosen = {*options.only}
    names = [
        name
        for name, found in CONTENDERS.items()
        if (not chosen or chosen & {name, name.partition(",")[0]})
        and (found.needs is None or options.environments)
    ]
    for name in names if options.install else []:
        if CONTENDERS[name].needs is not None:
            install(options.environments, name)
    found: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        MODELS[options.model](folder / "model.onnx")
        fill(folder)
        features = rows()
        inner = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        matrix = np.array([list(row.values()) for row in features], np.float32)
        expected = inner.run(["probabilities"], {inner.get_inputs()[0].name: matrix})[0].tolist()
        for number in range(options.rounds):
            for workers in options.workers:
                for name in names:
                    bodies = [body_of(name, row, values) for row, values in enumerate(features)]
                    script = wrk_script(folder, bodies)
                    try:
                        with Server(name, folder, options.environments, workers) as server:
                            server.check(bodies, expected)
                            load(server, script, 16, 1)
                            for connections in options.connections:
                                taken = load(server, script, connections, options.seconds)
                                found.setdefault((workers, connections, name), []).append(taken)
                    except (OSError, AssertionError, subprocess.SubprocessError) as error:
                        print(f"{name}, {workers} workers: {error!r}", file=sys.stderr, flush=True)
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    show(found)


def show(found: dict[tuple[int, int, str], list[dict[str, float]]]) -> None:
    """Medians, with the least and the most, as one table of Markdown."""
    print(
        f"| workers | connections | server | {' | '.join(FIELDS.values())} |\n|---|---|---|{'---|' * len(FIELDS)}"
    )
    for (workers, connections, name), rounds in sorted(found.items(), key=lambda pair: pair[0][:2]):
        cells = []
        for field in FIELDS:
            values = sorted(taken[field] for taken in rounds if taken[field] == taken[field])
            middle = statistics.median(values) if values else float("nan")
            spread = f" ({values[0]:,.0f} to {values[-1]:,.0f})" if len(values) > 1 else ""
            cells.append(f"{middle:,.0f}{spread}")
        print(f"| {workers} | {connections} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
