"""How a server ends: not ready first, then what is in flight, then the process; and nothing of it is left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from models import linear_matrix
from servers import START_SECONDS, STOP_SECONDS, Server, wait_for

GRAPH = linear_matrix([2.0, -0.5], bias=1.0)


def ready(server: Server) -> int:
    """The status of readyz, over a new connection."""
    return httpx.get(f"{server.url}/readyz", timeout=5).status_code


def gone(family: list[psutil.Process]) -> bool:
    return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_ends_before_the_server_does(tmp_path: Path, number: signal.Signals) -> None:
    with Server(tmp_path / "data", workers=2, drain_seconds=1.0) as server:
        server.release("churn", "v1", GRAPH)
        family = server.family()
        begun = server.begin("churn")
        server.send(number)
        wait_for(lambda: ready(server) == 503, 1.0, "readyz to turn 503")
        assert server.predict("churn", [1, 2]).status_code == 200, "requests are answered while it drains"
        wait_for(lambda: _refuses(server), 5, "the server to stop listening")
        assert begun.complete().startswith(b"HTTP/1.1 200")
        assert server.wait() == 0
        assert gone(family)
        assert [event["event"] for event in server.events() if event["event"] in {"drain", "stop"}] == [
            "drain",
            "stop",
        ]


def _refuses(server: Server) -> bool:
    try:
        return ready(server) == 0
    except httpx.TransportError:
        return True


def test_a_signal_to_every_process_at_once_still_drains(tmp_path: Path) -> None:
    with Server(tmp_path / "data", workers=2, drain_seconds=1.0) as server:
        server.release("churn", "v1", GRAPH)
        family = server.family()
        for pid in [*(child.pid for child in family), server.process.pid]:
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: ready(server) == 503, 0.9, "readyz to turn 503")
        assert server.wait() == 0
        assert gone(family)


def test_the_end_is_bounded_though_a_request_never_ends(tmp_path: Path) -> None:
    with Server(tmp_path / "data", drain_seconds=0.1, stop_seconds=1) as server:
        server.release("churn", "v1", GRAPH)
        begun = server.begin("churn")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 6
        begun.close()


def test_idle_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with Server(tmp_path / "data", drain_seconds=0.1, stop_seconds=20) as server:
        assert server.client.get("/livez").status_code == 200
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 5


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with Server(tmp_path / "data", workers=2, drain_seconds=20) as server:
        family = server.family()
        server.send(signal.SIGTERM)
        wait_for(lambda: server.events("drain"), 5, "the drain")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 3
        assert gone(family)


def test_a_killed_server_leaves_no_workers_and_starts_again(tmp_path: Path) -> None:
    with Server(tmp_path / "data", workers=2) as first:
        first.release("churn", "v1", GRAPH)
        family, port = first.family(), first.port
        first.process.kill()
        first.wait()
        with Server(tmp_path / "data", workers=2, port=port) as second:
            assert second.predict("churn", [1, 2]).json()["outputs"] is not None
            assert ready(second) == 200
        wait_for(lambda: gone(family), STOP_SECONDS, "the orphans to end")


def test_draining_is_forgotten_by_the_next_start(tmp_path: Path) -> None:
    for _ in range(2):
        with Server(tmp_path / "data") as server:
            assert ready(server) == 200
            server.send(signal.SIGTERM)
            wait_for(lambda running=server: ready(running) == 503, START_SECONDS, "readyz to turn 503")
            assert server.wait() == 0


def test_one_server_draining_leaves_another_on_the_same_data_ready(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as staying, Server(tmp_path / "data", drain_seconds=1.0) as going:
        going.send(signal.SIGTERM)
        wait_for(lambda: ready(going) == 503, 1.0, "readyz to turn 503")
        assert ready(staying) == 200
        assert going.wait() == 0
