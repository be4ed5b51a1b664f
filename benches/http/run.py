"""One prediction over HTTP: CPU per request, requests a second and latency, beside the bare handlers.

Needs `wrk` on the PATH. Servers run one at a time, on loopback; rounds are interleaved and medians printed.

    python benches/http/run.py --rounds 5 --seconds 4 --connections 16 --workers 2
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
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier

HERE = Path(__file__).parent
HANDLERS = {
    "ordinary Litestar handler": ("ordinary_litestar", "asgi"),
    "raw ASGI route in Litestar": ("raw_in_litestar", "asgi"),
    "raw ASGI function": ("raw_asgi", "asgi"),
    "bare RSGI handler": ("bare_rsgi", "rsgi"),
}


def train(folder: Path) -> tuple[Path, list[str]]:
    """A gradient boosting of 100 trees of depth 4 on 20 features, and 100 distinct request bodies."""
    x, y = make_classification(2000, 20, n_informative=12, random_state=0)
    model = GradientBoostingClassifier(n_estimators=100, max_depth=4, random_state=0).fit(x, y)
    path = folder / "model.onnx"
    onnx = to_onnx(model, x[:1].astype(np.float32), options={id(model): {"zipmap": False}})
    path.write_bytes(onnx.SerializeToString())
    bodies = [
        json.dumps(
            {"entity_id": f"user-{row}", "features": {f"f{i}": round(v, 6) for i, v in enumerate(x[row])}}
        )
        for row in range(100)
    ]
    return path, bodies


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
    """A server process and its children, started on a free port and ended with the block."""

    def __init__(self, command: list[str], path: str, environment: dict[str, str], body: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{path}"
        self.command = [part.replace("{port}", str(self.port)) for part in command]
        self.environment = {**os.environ, **environment}
        self.body = body.encode()

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            self.command, env=self.environment, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                request = urllib.request.Request(self.url, self.body, {"Content-Type": "application/json"})
                answer = json.load(urllib.request.urlopen(request, timeout=2))
                assert "label" in answer or "outputs" in answer, answer
                return self
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.__exit__()
                    raise
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def cpu_seconds(self) -> float:
        """User and system time of the process and its descendants so far."""
        pids, ticks = [self.process.pid], 0
        while pids:
            pid = pids.pop()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return ticks / os.sysconf("SC_CLK_TCK")


def load(server: Server, script: Path, connections: int, seconds: int) -> dict[str, float]:
    before = server.cpu_seconds()
    threads = min(2, connections)
    output = subprocess.run(
        ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), server.url],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    cpu = server.cpu_seconds() - before
    assert "Non-2xx" not in output, output
    requests = int(re.search(r"(\d+) requests in", output)[1])
    return {
        "cpu_us": cpu / requests * 1e6,
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),
        "p50_us": microseconds(re.search(r"50%\s+(\S+)", output)[1]),
        "p99_us": microseconds(re.search(r"99%\s+(\S+)", output)[1]),
    }


def microseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def servers(folder: Path, model: Path, bodies: list[str], workers: int) -> dict[str, Server]:
    found = {
        name: Server(
            [sys.executable, "-m", "granian", "--interface", interface, "--host", "127.0.0.1", "--port", "{port}",
             "--workers", str(workers), "--no-ws", "--log-level", "error", f"handlers:{target}"],
            "/predict", {"MODEL": str(model)}, bodies[0],
        )
        for name, (target, interface) in HANDLERS.items()
    }  # fmt: skip
    data = folder / "data"
    import turnout

    with turnout.open(data) as hub:
        for version in ("v1", "v2"):
            hub.register_version("bench", version, model, features=[f"f{i}" for i in range(20)])
        hub.activate_version("bench", "v1")
        hub.configure_test("bench", {"v1": 0.8, "v2": 0.2})
    command = [sys.executable, "-m", "turnout", "--data", str(data), "serve", "--port", "{port}"]
    found["Turnout"] = Server(
        [*command, "--workers", str(workers)], "/v1/models/bench/predict", {}, bodies[0]
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("this bench needs wrk (Debian: apt-get install wrk)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, bodies = train(folder)
        script = wrk_script(folder, bodies)
        runs: dict[str, list[dict[str, float]]] = {}
        contenders = servers(folder, model, bodies, options.workers)
        for _ in range(options.rounds):
            for label, server in contenders.items():
                with server:
                    load(server, script, options.connections, 1)
                    runs.setdefault(label, []).append(
                        load(server, script, options.connections, options.seconds)
                    )
    print(f"{options.connections} connections, {options.workers} workers, medians of {options.rounds} rounds")
    print("| handler | CPU us a request | requests a second | p50 us | p99 us |\n|---|---|---|---|---|")
    for label, rows in runs.items():
        median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(
            f"| {label} | {median['cpu_us']:.0f} | {median['rps']:.0f} | {median['p50_us']:.0f} | {median['p99_us']:.0f} |"
        )


if __name__ == "__main__":
    main()
