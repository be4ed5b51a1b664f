"""What the tests of clusters share: a model under test, two million rows, and workers that say what they have done.

Workers import this module, so it imports neither Ray nor pytest.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import turnout
from models import linear_matrix
from turnout import dask, ray
from turnout.engine import Engine
from turnout.service import Turnout

ROWS = 2_000_000
BLOCKS = 16
FEATURES = ["age", "spent", "visits"]
OVERRIDDEN = 1234


def opened(data: Path) -> Turnout:
    """A registry in which a 70/30 test of `churn` has had a smaller step before, and one entity is sent to v3."""
    hub = turnout.open(data, device="cpu")
    for version, weights in {"v1": [1, 2, 3], "v2": [5, 7, 11], "v3": [13, 17, 19]}.items():
        path = data / f"{version}.onnx"
        path.write_bytes(linear_matrix(weights))
        hub.register_version("churn", version, path, features=FEATURES)
    hub.activate_version("churn", "v1")
    hub.configure_test("churn", {"v1": 0.9, "v2": 0.1})
    test = hub.configure_test("churn", {"v1": 0.7, "v2": 0.3})
    assert test.revision == 2
    hub.set_override("churn", entity(OVERRIDDEN), "v3")
    return hub


def entity(row: int) -> str:
    return f"customer-{row:07}"


def rows() -> pa.Table:
    rng = np.random.default_rng(0)
    features = {name: rng.random(ROWS, np.float32) for name in FEATURES}
    return pa.table({"row": np.arange(ROWS), "entity_id": [entity(row) for row in range(ROWS)], **features})


def blocks(table: pa.Table) -> list[pa.Table]:
    """The rows in parts of the same size, with a last one in which there are none."""
    size = ROWS // BLOCKS
    return [table.slice(start, size) for start in range(0, ROWS + 1, size)]


def check(hub: Turnout, table: pa.Table, answers: pa.Table) -> None:
    """Every row was answered by the version that the registry gives its entity, with that version's answer."""
    answers = answers.sort_by("row")
    assert answers["row"].to_numpy().tolist() == list(range(ROWS))
    indices, names = hub.assign_many("churn", table["entity_id"])
    assert answers["version"].combine_chunks().equals(pa.array(names).take(pa.array(indices)))
    assert names[indices[OVERRIDDEN]] == "v3"
    expected = hub.predict_batch("churn", table.drop_columns(["row"])).to_arrow()
    assert answers["score"].combine_chunks().equals(expected["score"].combine_chunks())
    shares = np.bincount(indices, minlength=3) / ROWS
    assert np.allclose(shares, [0.7, 0.3, 0], atol=0.002)


def check_workers(answers: pa.Table) -> None:
    """At least two processes worked, none of them this one, and each loaded each version once."""
    told = answers.group_by(["process", "loads"]).aggregate([("row", "count")]).to_pylist()
    processes = {entry["process"] for entry in told}
    assert len(processes) >= 2
    assert os.getpid() not in processes
    assert {entry["loads"] for entry in told} == {"v1 v2 v3"}
    assert all(entry["row_count"] > ROWS // BLOCKS for entry in told)


# --- in the workers -------------------------------------------------------------------------------------------------

LOADS: Counter[str] = Counter()
_load = Engine.load


def _counted(engine: Engine, path: Path, version: turnout.Version) -> Any:
    LOADS[version.version] += 1
    return _load(engine, path, version)


Engine.load = _counted


def _loads() -> str:
    return " ".join(sorted(LOADS.elements()))


class OnRay(ray.Predictor):
    """Says beside each answer which process gave it, and what that process has loaded so far."""

    def __call__(self, batch: Any) -> pa.Table:
        answers = super().__call__(batch)
        process = pa.array(np.full(len(answers), os.getpid()))
        loads = pa.array([_loads()] * len(answers))
        return answers.append_column("process", process).append_column("loads", loads)


class OnDask(dask.Predictor):
    """The same for Dask."""

    def _joined(self, frame: Any, answers: Any) -> Any:
        found = super()._joined(frame, answers)
        return found.assign(process=np.full(len(found), os.getpid()), loads=np.full(len(found), _loads()))
