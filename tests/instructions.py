"""Instructions of the hot path in Rust, counted by callgrind: no clock, so the same on a busy machine.

`make instructions` runs this file: it counts anew, writes benches/instructions.json, and prints what changed.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "benches" / "instructions.json"
RENEW = "make instructions"
TIMES = 1000
TOLERANCE = 0.05


def output(*command: str | Path) -> str:
    """What a command prints, on both streams."""
    both = subprocess.run(
        command, check=False, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert both.returncode == 0, f"{command} ended with {both.returncode}:\n{both.stdout}"
    return both.stdout


def build() -> Path:
    """The binary that walks a path, built as the released extension is."""
    command = ["cargo", "bench", "--locked", "--no-run", "--bench", "instructions"]
    lines = output(*command, "--quiet", "--message-format=json").splitlines()
    messages = [json.loads(line) for line in lines if line.startswith("{")]
    (found,) = [message["executable"] for message in messages if message.get("executable")]
    return Path(found)


def paths(binary: Path) -> list[str]:
    """The names of the paths that a binary knows."""
    return output(binary, "--list").split()


def count(binary: Path, path: str) -> int:
    """Instructions of one walk: the start-up is in both runs, and their difference is without it."""

    def collected(times: int) -> int:
        callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        printed = output(*callgrind, binary, path, str(times))
        (found,) = re.findall(r"Collected : (\d+)", printed)
        return int(found)

    return round((collected(2 * TIMES) - collected(TIMES)) / TIMES)


def tools() -> dict[str, str]:
    """All that turns the same source into another number of instructions."""
    return {
        "rustc": output("rustc", "--version").strip(),
        "valgrind": output("valgrind", "--version").strip(),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
    }


def read() -> dict[str, Any]:
    """The committed figures, and the tools that they were counted with."""
    return json.loads(FIGURES.read_text("utf-8"))


def renew() -> None:
    """Count every path and commit to it."""
    before = read()["instructions"] if FIGURES.exists() else {}
    binary = build()
    counts = {path: count(binary, path) for path in paths(binary)}
    document = json.dumps({"tools": tools(), "instructions": counts}, indent=2)
    FIGURES.write_text(f"{document}\n", "utf-8")
    for path, found in counts.items():
        print(f"{path:16} {before.get(path, 0):6,} -> {found:6,}")


if __name__ == "__main__":
    renew()
