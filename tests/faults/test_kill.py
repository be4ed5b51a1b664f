"""`kill -9` at random points, 100 rounds: what was acknowledged is there, nothing is torn, nothing needs repair."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import turnout
from faults.killing import check, check_acknowledged
from models import linear_matrix

WRITER = Path(__file__).parent / "writer.py"
WRITER_ROUNDS = 30  # of two writers each


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
            assert sum(1 for entry in (data / "uploads").iterdir() if entry.is_dir()) == 1  # our own
    with capsys.disabled():
        print(
            f"\n{2 * WRITER_ROUNDS} writers killed: {told} acknowledged changes are there, "
            f"{unheard} more were made before the writer heard of it"
        )
