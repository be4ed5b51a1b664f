"""examples/canary.py, examples/experiment.py, examples/inference.py and the commands of the quickstart, against real servers."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from models import constant_label, failing_model
from servers import Server

ROOT = Path(__file__).parents[2]
CANARY = ROOT / "examples" / "canary.py"
CURL = shutil.which("curl")


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


def test_a_canary_that_is_broken_off_is_rolled_back(server: Server) -> None:
    server.release("left canary", "v1.0", constant_label(1))
    assert server.put("left canary", "v2.0", constant_label(2)).status_code == 201
    command = [sys.executable, "-u", str(CANARY), server.url, "left canary", "v2.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert "has 5% of the traffic" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) != 0
    history = server.client.get("/v1/models/left%20canary/history").json()
    assert (history["current_version"], history["tests"][0]["status"]) == ("v1.0", "rolled_back")
    assert "broken off" in history["events"][-1]["reason"]


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


def test_a_test_judges_itself() -> None:
    command = [sys.executable, str(ROOT / "examples" / "experiment.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=28, check=False)
    assert done.returncode == 0, done.stderr
    assert "v2.0" in done.stdout
    assert "v3.0" in done.stdout


def knows_json() -> bool:
    """Whether there is a curl that has --json, since 7.82."""
    if CURL is None:
        return False
    version = subprocess.run([CURL, "--version"], capture_output=True, text=True, check=True).stdout.split()[
        1
    ]
    return tuple(map(int, version.split(".")[:2])) >= (7, 82)


@pytest.mark.skipif(not knows_json(), reason="needs curl 7.82 or newer")
def test_the_commands_of_the_quickstart_work(server: Server, tmp_path: Path) -> None:
    for label, model in {"v1.0": constant_label(1), "v2.0": constant_label(2)}.items():
        (tmp_path / f"churn-{label}.onnx").write_bytes(model)
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "curl" in block]
    assert len(blocks) == 3
    script = "\n".join(blocks).replace("http://127.0.0.1:8000", server.url).replace("seq 1 100", "seq 1 10")
    script = f'set -e\ncurl() {{ command curl -sS --fail-with-body "$@"; }}\n{script}'
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    history = server.client.get("/v1/models/churn/history").json()
    actions = ["register", "register", "activate", "configure_test", "promote", "rollback"]
    assert [event["action"] for event in history["events"]] == actions


def test_a_client_of_the_open_inference_protocol_asks_for_two_customers(server: Server) -> None:
    server.release("asked", "v1.0", constant_label(1))
    command = [sys.executable, ROOT / "examples" / "inference.py", server.url, "asked", "a", "b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(?m)(^[ab]: v1\.0 \(active\): label 1.*\n){2}", done.stdout)
