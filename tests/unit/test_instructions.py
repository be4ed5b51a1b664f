"""The hot path in Rust takes the instructions that benches/instructions.json says, within 5 %."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from instructions import RENEW, TOLERANCE, build, count, paths, read, tools

FIGURES = read()

pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not here to count instructions"),
    pytest.mark.timeout(300),  # the first time, the bench is compiled
]


@pytest.fixture(scope="module")
def binary() -> Path:
    return build()


def test_every_path_has_a_figure(binary: Path) -> None:
    assert paths(binary) == list(FIGURES["instructions"]), f"renew the figures: {RENEW}"


@pytest.mark.parametrize(("path", "was"), FIGURES["instructions"].items())
def test_a_path_takes_as_many_instructions_as_before(binary: Path, path: str, was: int) -> None:
    found = count(binary, path)
    if abs(found - was) <= TOLERANCE * was:
        return
    problem = f"{path} took {was:,} instructions and takes {found:,} ({found / was - 1:+.1%})"
    now = tools()
    others = [f"{known}, not {now[tool]}" for tool, known in FIGURES["tools"].items() if known != now[tool]]
    if others:
        pytest.skip(f"{problem}, which may be the tools: counted with {'; '.join(others)}")
    pytest.fail(f"{problem}; where that is meant, renew the figures: {RENEW}", pytrace=False)
