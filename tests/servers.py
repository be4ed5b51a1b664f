"""Real servers for tests: a `turnout serve` process on a free port, with its own data directory, ended at the end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import psutil

START_SECONDS = 25.0
STOP_SECONDS = 15.0
NUMBERS = itertools.count(1)
JSON = {"Content-Type": "application/json"}


class Server:
    """A context manager around `turnout serve`. `settings` are those of `turnout.config.Settings`."""

    def __init__(self, data: Path, *, workers: int = 1, port: int = 0, **settings: Any) -> None:
        self.data = data
        self.workers = workers
        self.log = data.parent / f"{data.name}-{next(NUMBERS)}.log"
        given = {"host": "127.0.0.1", "drain_seconds": 0.2, "change_seconds": 10.0, **settings}
        given |= {"data": data, "workers": workers, "port": port}
        self._environment = {f"TURNOUT_{name.upper()}": str(value) for name, value in given.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the process --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, and wait until every worker is ready."""
        self.launch()
        try:
            wait_for(self._all_ready, START_SECONDS, lambda: f"a ready server; its log:\n{self.log_text()}")
        except BaseException:
            self.close()
            raise

    def launch(self) -> None:
        """Start the process without waiting for it."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "turnout", "serve"],
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the first process of the server."""
        self.process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit status, once the process has ended."""
        return self.process.wait(seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.send(number)
        return self.wait()

    def close(self) -> None:
        """End the server, hard if it must be; nothing of it is left."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is None:
            return
        family = self.family()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in family:
            if child.is_running():
                child.kill()
        psutil.wait_procs(family, STOP_SECONDS)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    def family(self) -> list[psutil.Process]:
        """The workers of the server."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    # --- its log ------------------------------------------------------------------------------------------------

    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The lines of its log, each a JSON object; of one event, or all."""
        lines = self.log_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in events if name is None or event["event"] == name]

    # --- its HTTP -----------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port that it has chosen."""
        started = self.events("start")
        assert started, f"the server has not started; its log:\n{self.log_text()}"
        return started[0]["port"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> httpx.Client:
        if self._client is None:
            self._client = httpx.Client(base_url=self.url, timeout=20)
        return self._client

    def _all_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(
                f"the server ended with {self.process.returncode}; its log:\n{self.log_text()}"
            )
        if len(self.events("ready")) < self.workers:
            return False
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    # --- what tests do with it ----------------------------------------------------------------------------------

    def put(
        self, model: str, version: str, graph: bytes, headers: dict[str, str] | None = None, **spec: Any
    ) -> httpx.Response:
        """Register a version."""
        files = {"artifact": ("model.onnx", graph), "spec": (None, json.dumps(spec), "application/json")}
        return self.client.put(path(model, "versions", version), files=files, headers=headers)

    def activate(self, model: str, version: str, **headers: str) -> httpx.Response:
        return self.client.post(path(model, "activate"), json={"version": version}, headers=headers)

    def release(self, model: str, version: str, graph: bytes, **spec: Any) -> None:
        """Register a version and activate it."""
        registered = self.put(model, version, graph, **spec)
        assert registered.status_code == 201, registered.text
        activated = self.activate(model, version)
        assert activated.status_code == 200, activated.text

    def begin(self, model: str, features: Any = (1, 2)) -> Unfinished:
        """Begin a prediction, to `complete` it later."""
        return Unfinished(self.port, model, json.dumps({"features": features}).encode())

    def predict(
        self, model: str, features: Any, entity: str | int | None = None, **headers: str
    ) -> httpx.Response:
        body = {"features": features} if entity is None else {"features": features, "entity_id": entity}
        return self.client.post(path(model, "predict"), json=body, headers=headers)


class Unfinished:
    """A prediction that the server has begun to read: it is in flight for as long as we like."""

    def __init__(self, port: int, model: str, body: bytes) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=STOP_SECONDS)
        head = (
            f"POST {path(model, 'predict')} HTTP/1.1\r\nHost: localhost\r\n"
            f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode())
        # A server says this when it begins to read the body.
        assert self._socket.recv(64).startswith(b"HTTP/1.1 100")
        self._socket.sendall(body[:3])
        self._rest = body[3:]

    def complete(self) -> bytes:
        """Send the rest; the answer up to the end of the connection or 64 KiB, whichever is first."""
        self._socket.sendall(self._rest)
        with self._socket:
            return self._socket.recv(65536)

    def close(self) -> None:
        """Go away."""
        self._socket.close()


def path(model: str, *rest: str) -> str:
    """The path of something of a model, each name percent-encoded."""
    return "/v1/models/" + "/".join(quote(part, safe="") for part in (model, *rest))


def wait_for(condition: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Wait until a condition holds; fails, saying what was waited for, after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is a problem document (RFC 9457) with this status and code; its content."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["type"] == f"urn:turnout:error:{code}"
    assert document["title"]
    assert document["detail"]
    assert "Traceback" not in response.text
    return document
