"""Batches that are answered while they arrive: rows a second, memory of the worker, and single predictions beside them.

    python benches/stream.py [--rows 10000000] [--beside 1000000]

One worker, gradient boosting and logistic regression on 20 features. Each client is a process of its own: one sends
lines over one connection and reads the answers, one asks single predictions, one after the other.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from server import Server
from trained import FEATURES, fill

import turnout

BLOCK = 10_000
LINES = "application/x-ndjson"


def block() -> bytes:
    """Lines of a batch."""
    values = np.random.default_rng(0).normal(size=(BLOCK, FEATURES)).round(4).tolist()
    return b"".join(
        json.dumps({"entity_id": row, "features": found}, separators=(",", ":")).encode() + b"\n"
        for row, found in enumerate(values)
    )


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def send_lines(url: str, model: str, rows: int) -> None:
    """Send so many rows, and read as many answers."""
    lines = block()
    head = (
        f"POST /v1/models/{model}/batch HTTP/1.1\r\nHost: x\r\nContent-Type: {LINES}\r\n"
        f"Content-Length: {len(lines) * (rows // BLOCK)}\r\n\r\n"
    )
    with connected(url) as connection:
        begin = time.perf_counter()
        sending = threading.Thread(
            target=lambda: [connection.sendall(part) for part in [head.encode(), *[lines] * (rows // BLOCK)]]
        )
        sending.start()
        count, last = 0, b""
        while not last.endswith(b"0\r\n\r\n"):
            part = connection.recv(1 << 18)
            assert part, "the answer breaks off"
            count += part.count(b"\n") - part.count(b"\r\n")
            last = (last + part)[-8:]
        sending.join()
        end = time.perf_counter()
    print(json.dumps({"rows": count, "begin": begin, "end": end}))


def ask(url: str, model: str, seconds: float) -> None:
    """Single predictions, one after the other; prints when each began, and its latency in microseconds."""
    body = json.dumps({"entity_id": "user", "features": [0.5] * FEATURES}).encode()
    request = (
        f"POST /v1/models/{model}/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    found: list[tuple[float, float]] = []
    with connected(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            connection.sendall(request)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            found.append((begin, (time.perf_counter() - begin) * 1e6))
            time.sleep(0.001)
    print(json.dumps(found))


def client(what: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A client in a process of its own. One that sends lines yields its core to all others: it stands for another machine."""
    command = [sys.executable, __file__, "--client", what, *map(str, arguments)]
    return subprocess.Popen((["chrt", "-i", "0"] if what != "ask" else []) + command, stdout=subprocess.PIPE)


def compute(seconds: float) -> None:
    """Take a core for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    print("null")


def result(process: subprocess.Popen[bytes]) -> Any:
    output, _ = process.communicate(timeout=900)
    return json.loads(output)


def memory(server: Server, model: str, rows: int) -> float:
    """Print how fast lines are answered, and what they add to the worker's memory; seconds for a million."""
    (worker,) = psutil.Process(server.process.pid).children()
    result(client("lines", server.url, model, 200_000))
    idle = peak = worker.memory_info().rss
    sending = client("lines", server.url, model, rows)
    while sending.poll() is None:
        peak = max(peak, worker.memory_info().rss)
        time.sleep(0.05)
    found = result(sending)
    speed = found["rows"] / (found["end"] - found["begin"])
    print(
        f"{model:<10} {found['rows']:>10,} lines: {speed:>9,.0f} rows a second, "
        f"{(peak - idle) / 2**20:.0f} MiB above {idle / 2**20:.0f} MiB"
    )
    return 1e6 / speed


def beside(server: Server, model: str, rows: int, rounds: int, seconds: float) -> None:
    """p50 and p99 of single predictions alone, beside a batch, and beside two processes that only compute, in turn."""
    found: dict[str, list[Any]] = {"alone": [], "beside a batch": [], "beside two busy processes": []}
    for _ in range(rounds):
        taken = {"alone": result(client("ask", server.url, model, seconds))}
        asking = client("ask", server.url, model, seconds + 2)
        time.sleep(0.5)
        batch = result(client("lines", server.url, model, rows))
        during = [pair for pair in result(asking) if batch["begin"] < pair[0] < batch["end"]]
        taken["beside a batch"] = during
        busy = [client("compute", "", "", seconds + 1) for _ in range(2)]
        time.sleep(0.5)
        taken["beside two busy processes"] = result(client("ask", server.url, model, seconds))
        for process in busy:
            result(process)
        for name, pairs in taken.items():
            found[name].append(np.percentile([latency for _, latency in pairs], [50, 99, 99.9]))
    shown = {name: np.median(rounds, axis=0) for name, rounds in found.items()}
    for name, (p50, p99, p999) in shown.items():
        ratio = p99 / shown["alone"][1]
        print(f"{model:<9} {name:<26} p50 {p50:5.0f}  p99 {p99:5.0f} ({ratio:.1f} x)  p99.9 {p999:5.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--beside", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", nargs=4)
    arguments = parser.parse_args()
    if arguments.client:
        what, url, model, amount = arguments.client
        if what == "compute":
            compute(float(amount))
        elif what == "lines":
            send_lines(url, model, int(amount))
        else:
            ask(url, model, float(amount))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with turnout.open(data) as hub:
            fill(hub)
        with Server(data, workers=1) as server:
            for model in ("logistic", "trees"):
                seconds = memory(server, model, arguments.rows) * arguments.beside / 1e6
                beside(server, model, arguments.beside, arguments.rounds, seconds)


if __name__ == "__main__":
    main()
