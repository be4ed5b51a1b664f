"""The parts of the server's first process that can be looked at without starting one."""

from __future__ import annotations

import json
import logging
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from turnout import log, serve
from turnout.config import Settings
from turnout.errors import StorageError, TurnoutError
from turnout.serve import CRASH_SECONDS, CRASHES, Handler, Respawns, Server


def test_a_worker_may_die_a_few_times_but_not_for_ever() -> None:
    respawns = Respawns()
    for death in range(CRASHES):
        assert respawns.get(0, 0) == 0, "long ago, as far as Granian knows"
        respawns.clear()  # Granian forgets all others with each restart
        respawns[0] = float(death)
    assert respawns.get(0, 0) == CRASHES - 1
    assert respawns.get(1, 0) == 0


def test_a_worker_that_cannot_start_now_waits_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So rarely it never counts as crashing, and the healthy workers live on."""
    slept: list[float] = []
    monkeypatch.setattr(serve, "time", SimpleNamespace(sleep=slept.append))

    def full() -> None:
        raise StorageError("No space left on device")

    with serve.Patient(Settings(data=str(tmp_path)), server=True) as hub:
        monkeypatch.setattr(hub.runtime, "join", full)
        with pytest.raises(StorageError):
            hub.start_worker()
    (seconds,) = slept
    assert CRASHES * seconds > CRASH_SECONDS


def test_deaths_of_long_ago_do_not_count() -> None:
    respawns = Respawns()
    for death in range(3 * CRASHES):
        respawns[0] = death * CRASH_SECONDS
    assert respawns.get(0, 0) == 0


def test_a_dead_worker_that_was_missed_is_reported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "WATCH_SECONDS", 0.01)
    server = Server.__new__(Server)
    server.stopping = False
    server.interrupt_children = []
    server.main_loop_interrupt = threading.Event()
    server.wrks = [_child(0, alive=True), _child(1, alive=False), _child(2, alive=False, by_parent=True)]
    watch = threading.Thread(target=server._watch_workers)
    watch.start()
    try:
        assert server.main_loop_interrupt.wait(5)
    finally:
        server.stopping = True
        watch.join(5)
    assert set(server.interrupt_children) == {1}


def _child(index: int, *, alive: bool, by_parent: bool = False) -> SimpleNamespace:
    return SimpleNamespace(idx=index, is_alive=lambda: alive, interrupt_by_parent=by_parent)


def test_a_port_in_use_is_refused_though_workers_share_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PORT_SECONDS", 0.0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(TurnoutError, match="cannot listen on 127"):
            serve._reserve(Settings(port=other.getsockname()[1]))


def test_port_0_is_a_free_port_that_workers_can_share() -> None:
    with serve._reserve(Settings(port=0)) as reserved, socket.socket() as worker:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(reserved.getsockname())
        worker.listen()
        assert reserved.getsockname()[1] > 0


def test_the_lines_of_granian_become_events(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(log._Threshold, "level", log.ORDER["info"])
    for level in (logging.INFO, logging.WARNING):
        Handler().emit(logging.LogRecord("_granian", level, __file__, 1, "worker-%d", (1,), None))
    (line,) = capfdbinary.readouterr().err.splitlines()
    event = json.loads(line)
    assert (event["level"], event["event"], event["detail"]) == ("warning", "server", "worker-1")
