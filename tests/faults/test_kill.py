"""`kill -9` at random points, 100 rounds: what was acknowledged is there, nothing is torn, nothing needs repair."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

import turnout
from faults.killing import check, check_acknowledged
from faults.traffic import Timeline, Traffic
from models import constant_label, linear_matrix
from servers import Server, path, wait_for

WRITER = Path(__file__).parent / "writer.py"
WRITER_ROUNDS = 30  # of two writers each
COMMANDS = 6
WORKERS = 4
WORKER_ROUNDS = (
    15  # of each of two servers: one that loses the same worker five times in 30 s gives up, as it should
)
SERVER_ROUNDS = 10
CHANGE_SECONDS = 10.0  # how long a change would wait for a worker that lives but does not follow
LABELS = {"v1": 1, "v2": 2}


class WriterProcess:
    """A writer at work on a model, and the lines that it has said."""

    def __init__(self, data: Path, model: str, seed: int) -> None:
        self._out = data.parent / f"writer-{model}-{seed}.jsonl"
        self._errors = self._out.with_suffix(".err")
        paths = os.pathsep.join([str(WRITER.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._out.open("wb") as out, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(WRITER), str(data), model, str(seed)],
                env={**os.environ, "PYTHONPATH": paths},
                stdout=out,
                stderr=errors,
            )

    def acknowledged(self) -> list[dict]:
        """Its complete lines, without the first, which says that it has begun."""
        lines = self._out.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines[1:] if line.endswith("\n")]

    def await_more(self, seconds: float = 20.0) -> None:
        """Wait until it is told of one more change."""
        before, deadline = len(self.acknowledged()), time.monotonic() + seconds
        while len(self.acknowledged()) <= before:
            assert self._process.poll() is None, self._errors.read_text()
            assert time.monotonic() < deadline, f"no change within {seconds} s"
            time.sleep(0.002)

    def kill(self) -> list[dict]:
        """SIGKILL; what it was told by then."""
        assert self._process.poll() is None, self._errors.read_text()
        self.end()
        return self.acknowledged()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_writers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes change two models; one is killed, the other goes on, then it is killed too."""
    data, chance = tmp_path / "data", random.Random(1)
    graph = tmp_path / "graph.onnx"
    with turnout.open(data) as hub:
        for bias, label in enumerate(("v1", "v2")):
            graph.write_bytes(linear_matrix([1.0, 2.0], bias=bias))
            for model in ("a", "b"):
                hub.register_version(model, label, graph)
    told = unheard = 0
    for number in range(WRITER_ROUNDS):
        with ExitStack() as stack:
            writers = [WriterProcess(data, model, number) for model in chance.sample("ab", 2)]
            for writer in writers:
                stack.callback(writer.end)
            for writer in writers:
                writer.await_more()
            time.sleep(chance.uniform(0, 0.25))
            lines = [writers[0].kill()]
            writers[1].await_more()
            time.sleep(chance.uniform(0, 0.1))
            lines.append(writers[1].kill())
        with turnout.open(data) as hub:
            events = check(hub)
            for acknowledged in lines:
                later = check_acknowledged(hub, events, acknowledged)
                assert later in {0, 1}
                unheard += later
                told += len(acknowledged)
            assert not any(entry.is_dir() for entry in (data / "uploads").iterdir())
    with capsys.disabled():
        print(
            f"\n{2 * WRITER_ROUNDS} writers killed: {told} acknowledged changes are there, "
            f"{unheard} more were made before the writer heard of it"
        )


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_commands(tmp_path: Path) -> None:
    """A command that is killed has made its change or not; one that has ended well has made it."""
    data, chance = tmp_path / "data", random.Random(2)
    graph = tmp_path / "graph.onnx"
    with turnout.open(data) as hub:
        for bias, label in enumerate(LABELS):
            graph.write_bytes(linear_matrix([1.0, 2.0], bias=bias))
            hub.register_version("a", label, graph)
        made = len(hub.audit())
        for number in range(COMMANDS):
            label = chance.choice(list(LABELS))
            command = ["-m", "turnout", "--data", str(data), "activate", "a", label, "--reason", str(number)]
            process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
            time.sleep(chance.uniform(0.1, 0.9))
            process.kill()
            ended_well = process.wait() == 0
            events = check(hub)
            assert len(events) - made in ({1} if ended_well else {0, 1})
            if len(events) > made:
                assert (events[-1].reason, hub.model("a").active) == (str(number), label)
            made = len(events)


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("seed", [1, 2])
def test_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int) -> None:
    """Workers are killed while versions change under traffic: only requests that they had are lost, nothing waits."""
    chance, timeline, slowest = random.Random(seed), Timeline(), 0.0
    settings = {"workers": WORKERS, "change_seconds": CHANGE_SECONDS}
    with Server(tmp_path / "data", **settings) as server, turnout.open(server.data) as hub:
        for label, answer in LABELS.items():
            server.put("m", label, constant_label(answer)).raise_for_status()
        hub.activate_version("m", "v1")
        timeline.start({"v1"})
        victims: list[int] = []
        with (
            Traffic(server.port, "m", [[1.0, 2.0]] * 50, connections=8) as traffic,
            ThreadPoolExecutor() as pool,
        ):
            for _ in range(WORKER_ROUNDS):
                if not victims:
                    victims = [worker.pid for worker in hub.status().workers]
                    chance.shuffle(victims)
                victim = psutil.Process(victims.pop())
                settled, ports = settle(traffic, hub)
                failed, answered = len(traffic.failures), len(traffic.requests)

                change = pool.submit(switch, hub, timeline)
                time.sleep(chance.uniform(0, 0.01))
                victim.kill()
                end_of(victim)
                gone = time.perf_counter()
                took = [change.result(), switch(hub, timeline)]
                slowest = max(slowest, *took)
                await_new_worker(server, hub, victim.pid)

                for failure in traffic.failures[failed:]:
                    # On a connection of that worker, or on one made before the kernel had taken it down.
                    assert failure.port in ports[victim.pid] or settled <= failure.opened <= gone, failure
                assert len(traffic.requests) > answered
        check(hub)
        assert server.process.poll() is None
        events = hub.audit()

    assert slowest < CHANGE_SECONDS / 2
    assert len(events) == 2 + len(timeline.steps)
    for request in traffic.requests:
        assert request.status == 200, request
        version = request.answer["version"]
        assert version in timeline.allowed(request.began, request.ended), request
        assert request.answer["outputs"]["label"] == LABELS[version]
    with capsys.disabled():
        print(
            f"\n{WORKER_ROUNDS} workers killed: {len(traffic.failures)} requests were lost with them, {len(traffic.requests)} answered; "
            f"the slowest of {len(timeline.steps) - 1} changes took {slowest * 1e3:.0f} ms"
        )


def settle(traffic: Traffic, hub: turnout.Turnout) -> tuple[float, dict[int, set[int]]]:
    """Wait until a worker has taken each connection on; since when it is so, and the clients' ports by worker."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        now, ports = (
            time.perf_counter(),
            {worker.pid: ports_of(worker.pid) for worker in hub.status().workers},
        )
        if set(traffic.ports) <= set().union(*ports.values()):
            return now, ports
    raise AssertionError("connections that no worker takes on")


def ports_of(worker: int) -> set[int]:
    return {c.raddr.port for c in psutil.Process(worker).net_connections("tcp") if c.raddr}


def end_of(process: psutil.Process) -> None:
    """Wait until it has ended and its parent knows; all of its connections are closed then."""
    wait_for(lambda: not process.is_running(), 5, "the end of a process")


def switch(hub: turnout.Turnout, timeline: Timeline) -> float:
    """Activate the other version; seconds until it is acknowledged by all live workers."""
    label = "v2" if hub.model("m").active == "v1" else "v1"
    timeline.change(lambda: hub.activate_version("m", label), {label})
    called, done, _ = timeline.steps[-1]
    assert hub.last_change is not None
    assert hub.last_change.pending == ()
    return done - called


def await_new_worker(server: Server, hub: turnout.Turnout, killed: int) -> None:
    """Wait until all workers are there, without the one that was killed, and are ready."""

    def healthy() -> bool:
        workers = hub.status().workers
        pids = {worker.pid for worker in workers}
        return len(pids) == WORKERS and killed not in pids and all(worker.ready for worker in workers)

    wait_for(healthy, 20, lambda: f"a new worker; the log:\n{server.log_text()}")


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole server is killed in the middle of changes, and starts on the same port and directory."""
    data, chance, port, starts = tmp_path / "data", random.Random(3), 0, []
    told: list[tuple[str, int, int]] = []
    for number in range(SERVER_ROUNDS + 1):
        began = time.monotonic()
        with Server(data, workers=2, port=port) as server, turnout.open(data) as hub:
            starts.append(time.monotonic() - began)
            port = server.port
            if number == 0:
                for label, answer in LABELS.items():
                    server.put("m", label, constant_label(answer)).raise_for_status()
                server.activate("m", "v1").raise_for_status()
            events = check(hub)
            assert len(events) - told[-1][2] in {0, 1} if told else True
            for reason, revision, generation in told:
                assert (events[revision - 1].reason, events[revision - 1].generation) == (reason, generation)
            answer = server.predict("m", [1.0, 2.0], entity="somebody").json()
            assert answer["version"] == hub.select_version("m", "somebody")
            assert answer["outputs"]["label"] == LABELS[answer["version"]]
            if number < SERVER_ROUNDS:
                told += changes_until_killed(server, number, chance)
    with capsys.disabled():
        print(
            f"\n{SERVER_ROUNDS} servers killed: {len(told)} acknowledged changes are there; "
            f"a start took {max(starts):.1f} s at most"
        )


def changes_until_killed(server: Server, number: int, chance: random.Random) -> list[tuple[str, int, int]]:
    """Change things over HTTP and kill every process at once; reason, revision and generation of what was answered."""
    told: list[tuple[str, int, int]] = []

    def change() -> None:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while True:
                reason = f"{number}/{len(told)}"
                version, share = chance.choice(list(LABELS)), chance.random()
                method, rest, body = chance.choice(
                    [
                        ("POST", "activate", {"version": version}),
                        ("POST", "rollback", {"version": version}),
                        ("PUT", "test", {"splits": {"v1": share, "v2": 1 - share}}),
                    ]
                )
                try:
                    answer = client.request(method, path("m", rest), json={**body, "reason": reason})
                except httpx.TransportError:
                    return
                answer.raise_for_status()
                revision = int(answer.headers["ETag"].strip('"'))
                told.append((reason, revision, int(answer.headers["Turnout-Generation"])))

    family = [server.process, *server.family()]
    thread = threading.Thread(target=change)
    thread.start()
    wait_for(lambda: told or not thread.is_alive(), 10, "a first change")
    time.sleep(chance.uniform(0, 0.3))
    for process in random.Random(number).sample(family, len(family)):
        process.kill()
    thread.join(30)
    assert told
    return told
