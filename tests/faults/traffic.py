"""Traffic for the fault tests: many connections, each answer checked against what was allowed when it began."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote


@dataclass
class Timeline:
    """Which versions may answer, over time: a change is in force from its answer on, and possible from its call on."""

    steps: list[tuple[float, float, frozenset[str]]] = field(default_factory=list)

    def start(self, allowed: set[str]) -> None:
        now = time.perf_counter()
        self.steps.append((now, now, frozenset(allowed)))

    def change(self, call: Callable[[], object], allowed: set[str]) -> None:
        """Make a change by calling `call`, and note from when to when it was under way."""
        called = time.perf_counter()
        # Noted before the call returns, so that a request that ends meanwhile may already have seen it.
        self.steps.append((called, float("inf"), frozenset(allowed)))
        call()
        self.steps[-1] = (called, time.perf_counter(), frozenset(allowed))

    def allowed(self, began: float, ended: float) -> frozenset[str]:
        """Versions that may answer a request: those in force when it began, and of changes under way since."""
        in_force = max(index for index, (_, done, _) in enumerate(self.steps) if done <= began)
        seen = [step[2] for step in self.steps[in_force:] if step[0] <= ended]
        return frozenset().union(*seen)


@dataclass
class Request:
    began: float
    ended: float
    row: int
    status: int
    answer: dict


@dataclass
class Failure:
    """A request without an answer; `opened` and `port` are of the connection that it was sent on."""

    began: float
    opened: float
    port: int
    error: str


class Traffic:
    """`connections` threads, each with one keep-alive connection, sending rows as predictions until stopped."""

    def __init__(self, port: int, model: str, rows: list[list[float]], connections: int = 16) -> None:
        self.port, self.model, self.rows = port, model, rows
        self.requests: list[Request] = []
        self.failures: list[Failure] = []
        self.ports = [0] * connections
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(n, connections)) for n in range(connections)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def wait(self) -> None:
        """Let some time pass."""
        self._stop.wait(0.02)

    def _run(self, first: int, step: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        path = f"/v1/models/{quote(self.model, safe='')}/predict"
        number, opened, port = first, 0.0, 0
        while not self._stop.is_set():
            row = number % len(self.rows)
            body = json.dumps({"entity_id": f"user-{row}", "features": self.rows[row]})
            began = time.perf_counter()
            try:
                if connection.sock is None:
                    opened, port = began, 0
                    connection.connect()
                    port = self.ports[first] = connection.sock.getsockname()[1]
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(Failure(began, opened, port, repr(error)))
                connection.close()
                continue
            self.requests.append(Request(began, time.perf_counter(), row, response.status, answer))
            number += step
        connection.close()


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
