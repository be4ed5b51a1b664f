"""`turnout score` is killed, and goes on: the output is that of a run that nobody disturbed, and no part is done twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import turnout
from models import linear_matrix
from turnout.score.run import score
from turnout.score.running import Options
from turnout.service import Turnout

SCORER = Path(__file__).parent / "scorer.py"
ROWS = 12_000
PART_ROWS = 40
ROUNDS = 4
KILLS = 3  # of each round


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    folder = tmp_path_factory.mktemp("score-kill")
    with turnout.open(folder / "data") as opened:
        for bias, label in enumerate(("v1", "v2")):
            (folder / "m.onnx").write_bytes(linear_matrix([1.0, 2.0], bias=bias))
            opened.register_version("m", label, folder / "m.onnx", features=["a", "b"])
        opened.activate_version("m", "v1")
        opened.configure_test("m", {"v1": 0.5, "v2": 0.5})
        yield opened


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    values = np.random.default_rng(0).normal(size=(2, ROWS))
    return pa.table(
        {"row": range(ROWS), "a": values[0], "b": values[1], "entity_id": [f"u{row}" for row in range(ROWS)]}
    )


def start(hub: Turnout, source: Path, out: str, log: Path, *more: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(SCORER), str(hub.data), "m", str(source), out, str(log), *more]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answered(log: Path) -> list[int]:
    """The parts that processes have answered, in their order; one that was killed may have cut its last line."""
    return (
        [int(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if log.exists()
        else []
    )


def finished(out: Path) -> set[int]:
    """The parts that are there."""
    return {
        int(path.stem.removeprefix("part-"))
        for path in out.with_name(f"{out.name}.parts").glob("data/part-*")
    }


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_killed_at_random(
    hub: Turnout, rows: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `kill -9`, several times, from one process to the next."""
    chance, parts = random.Random(5), ROWS // PART_ROWS
    kills = lost = 0
    for number in range(ROUNDS):
        kind, to = ("parquet", "csv", "parquet", "csv")[number], ("csv", "parquet", "ndjson", "arrow")[number]
        source, out, log = (
            tmp_path / f"in-{number}.{kind}",
            tmp_path / f"{number}.{to}",
            tmp_path / f"{number}.log",
        )
        (pq.write_table if kind == "parquet" else pa.csv.write_csv)(rows, source)
        whole = tmp_path / f"whole-{number}.{to}"
        options = Options(part_rows=PART_ROWS, keep=("row",))
        report = score(hub, "m", [str(source)], str(whole), options)
        for at in sorted(chance.sample(range(10, parts - 30), KILLS)):
            before, already = finished(out), len(answered(log))
            process = start(hub, source, str(out), log, str(PART_ROWS))
            deadline = time.monotonic() + 20
            while len(finished(out)) <= at:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.001)
            process.kill()
            process.communicate()
            assert not before & set(answered(log)[already:])
            kills += 1
        before, already = finished(out), len(answered(log))
        assert 0 < len(before) < parts
        last = start(hub, source, str(out), log, str(PART_ROWS))
        assert last.communicate(timeout=30)[1] == ""
        assert not before & set(answered(log)[already:])
        assert len(answered(log)) - already == parts - len(before)
        lost += len(answered(log)) - parts
        assert set(answered(log)) == set(range(parts))
        assert out.read_bytes() == whole.read_bytes()
        # Two of a thread, at most, were answered and not yet there when a process was killed.
        assert len(answered(log)) <= parts + 2 * KILLS
        assert f'"v1": {report.counts["v1"]}' in out.with_name(f"{out.name}.json").read_text()
        assert not out.with_name(f"{out.name}.parts").exists()
    with capsys.disabled():
        print(
            f"\n{kills} processes killed while scoring: outputs the same; {lost} parts that were not finished done again"
        )


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_interrupted(hub: Turnout, rows: pa.Table, tmp_path: Path) -> None:
    """Ctrl-C ends it with the status of an interrupt, and says how to go on; so it does."""
    source, out, whole = tmp_path / "in.parquet", tmp_path / "out.ndjson", tmp_path / "whole.ndjson"
    pq.write_table(rows, source)
    score(hub, "m", [str(source)], str(whole), Options(part_rows=PART_ROWS))
    command = [sys.executable, "-m", "turnout", "--data", str(hub.data), "score", "m", str(source), str(out)]
    command += ["--part-rows", str(PART_ROWS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while len(finished(out)) < 20:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "turnout: interrupted; --resume goes on with it\n")
    assert process.returncode == 130
    assert not out.exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("to", "step"), [("csv", 1), ("parquet", 3), ("folder/", 1)])
def test_killed_at_every_call(hub: Turnout, rows: pa.Table, tmp_path: Path, to: str, step: int) -> None:
    """At each change that it makes to the disk: to the manifest, a part, the output, the sidecar, and when it tidies up."""
    source = tmp_path / "in.parquet"
    pq.write_table(rows.slice(0, 100), source)
    folder = to.endswith("/")
    name = "out/" if folder else f"out.{to}"
    process = start(hub, source, f"{tmp_path}/{name}", tmp_path / "log", "40", "1", str(step))
    printed, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    calls = int(printed)
    assert calls > 25
    whole = tmp_path / f"out-{calls}{Path(name).suffix}"  # the last one was not killed
    for call in range(1, calls, step):
        out = tmp_path / f"out-{call}{Path(name).suffix}"
        assert content(out) == content(whole)
        assert out.with_name(f"{out.name}.json").exists()
        assert not out.with_name(f"{out.name}.parts").exists()


def content(out: Path) -> dict[str, bytes]:
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    return {file.name if out.is_dir() else "": file.read_bytes() for file in files}
