"""The shared vectors of assignment, through the extension; tests/rust/vectors.rs runs the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turnout import _core

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "assignment.json").read_text(encoding="utf-8")
)


def replay(case: dict[str, Any]) -> list[tuple[dict[str, Any], _core.Ledger, int]]:
    """Each step of a case beside the ledger and the number of moved slots that it leads to."""
    ledger, found = _core.Ledger.start(case["baseline"]), []
    for step in case["steps"]:
        ledger, moved = ledger.apply(step["weights"])
        found.append((step, ledger, moved))
    return found


STEPS = [(case["salt"], *found) for case in VECTORS["ledgers"] for found in replay(case)]


def test_there_is_something_to_look_at() -> None:
    assert VECTORS["slots"]
    assert VECTORS["ledgers"]
    assert all(case["steps"] for case in VECTORS["ledgers"])
    assert all(step["assigned"] for _, step, _, _ in STEPS)


def test_slots() -> None:
    assert VECTORS["slots_per_split"] == _core.SLOTS
    for case in VECTORS["slots"]:
        salt, entity = case["salt"], case["entity"]
        assert f"{_core.hash_entity(salt, entity):016x}" == case["xxh3_64"], case
        assert _core.slot(salt, entity) == case["slot"], case


def test_ledgers() -> None:
    for _, step, ledger, moved in STEPS:
        assert moved == step["moved"]
        assert ledger.table_digest() == step["table_xxh3_64"]
        assert ledger.counts() == step["counts"]
        assert ledger.arms == sorted(step["weights"], key=str.encode)


def test_ledgers_are_read_back_from_their_runs() -> None:
    for _, step, ledger, _ in STEPS:
        again = _core.Ledger.from_runs(json.loads(json.dumps(ledger.runs()), object_hook=as_runs))
        assert again.table_digest() == step["table_xxh3_64"]
        assert again.runs() == ledger.runs()


def as_runs(document: dict[str, list[list[int]]]) -> dict[str, list[tuple[int, ...]]]:
    return {arm: [tuple(run) for run in runs] for arm, runs in document.items()}


@pytest.mark.parametrize("bulk", [False, True], ids=["one by one", "in bulk"])
def test_assigned(bulk: bool) -> None:
    for salt, step, ledger, _ in STEPS:
        split = _core.Split(ledger, salt)
        entities, expected = list(step["assigned"]), list(step["assigned"].values())
        indices = split.assign_strings(entities) if bulk else [split.assign(entity)[0] for entity in entities]
        assert [split.arms[index] for index in indices] == expected


def test_assigned_from_arrow() -> None:
    for salt, step, ledger, _ in STEPS:
        split = _core.Split(ledger, salt)
        texts = [entity.encode() for entity in step["assigned"]]
        offsets = np.cumsum([0, *map(len, texts)])
        data = np.frombuffer(b"".join(texts), np.uint8)
        for width in (np.int32, np.int64):
            indices = split.assign_utf8(offsets.astype(width), data)
            assert [split.arms[index] for index in indices] == list(step["assigned"].values())
