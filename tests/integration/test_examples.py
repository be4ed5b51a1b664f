"""examples/canary.py against a real server, with traffic beside it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from models import constant_label, failing_model
from servers import Server

CANARY = Path(__file__).parents[2] / "examples" / "canary.py"


@contextmanager
def traffic(server: Server, model: str, features: list[float]) -> Iterator[None]:
    """Predictions about ever new entities, from a thread, while the block runs."""
    stop = threading.Event()

    def send() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            assert server.predict(model, features, f"user-{number}").status_code == 200

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def canary(server: Server, model: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CANARY, server.url, model, "v2.0", "--requests", "10", "--slower", "100"]
    return subprocess.run(
        [*command, "--seconds", "20"], capture_output=True, text=True, timeout=25, check=False
    )


def test_a_good_version_is_promoted(server: Server) -> None:
    server.release("good canary", "v1.0", constant_label(1))
    assert server.put("good canary", "v2.0", constant_label(2)).status_code == 201
    with traffic(server, "good canary", [1.0, 2.0]):
        done = canary(server, "good canary")
    assert done.returncode == 0, done.stderr
    assert "v2.0 is active" in done.stdout
    history = server.client.get("/v1/models/good%20canary/history").json()
    assert history["current_version"] == "v2.0"
    assert history["tests"][0]["status"] == "promoted"
    assert history["tests"][0]["revision"] == 4


def test_a_failing_version_is_rolled_back(server: Server) -> None:
    server.release("bad canary", "v1.0", constant_label(1))
    assert server.put("bad canary", "v2.0", failing_model()).status_code == 201
    with traffic(server, "bad canary", [1.0, 2.0]):
        done = canary(server, "bad canary")
    assert done.returncode == 1
    assert "rolled back to v1.0" in done.stderr
    history = server.client.get("/v1/models/bad%20canary/history").json()
    assert history["current_version"] == "v1.0"
    assert history["tests"][0]["status"] == "rolled_back"


def test_a_version_that_is_active_already_is_refused(server: Server) -> None:
    server.release("no canary", "v2.0", constant_label(1))
    done = canary(server, "no canary")
    assert done.returncode == 1
    assert "expected another active version than v2.0" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_it_says_how_it_is_used(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, CANARY, *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    assert "usage: canary.py" in done.stdout + done.stderr
