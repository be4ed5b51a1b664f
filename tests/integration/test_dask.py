"""Dask on a local cluster: two million rows, answered by worker processes as the registry would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster
from distributed.protocol import pickle

import clusters
from turnout import Bundle
from turnout.errors import InvalidDocument
from turnout.service import Turnout

pytestmark = [pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    with clusters.opened(tmp_path_factory.mktemp("dask") / "data") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Two worker processes of two threads each, on loopback."""
    folder = tmp_path_factory.mktemp("workers")
    with (
        dask.config.set({"temporary-directory": str(folder)}),
        LocalCluster(
            n_workers=2, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as opened,
    ):
        yield opened


def answered(table: pa.Table, folder: Path, bundle: Bundle) -> pa.Table:
    files = [folder / f"{number:02}.parquet" for number in range(clusters.BLOCKS + 1)]
    for file, block in zip(files, clusters.blocks(table), strict=True):
        pq.write_table(block, file)
    rows = dd.from_map(pd.read_parquet, files)
    predictor = clusters.OnDask(bundle, keep=["row"])
    answers = rows.map_partitions(predictor, predictor.bundle, meta=predictor.meta(rows))
    found = answers.compute()
    assert found.dtypes.equals(answers.dtypes)
    return pa.Table.from_pandas(found, preserve_index=False)


@pytest.mark.parametrize("stored", ["in memory", "in a file"])
def test_two_million_rows_are_answered_as_the_registry_would(
    client: Client, hub: Turnout, tmp_path: Path, stored: str
) -> None:
    table = clusters.rows()
    path = None if stored == "in memory" else tmp_path / "churn.bundle"
    answers = answered(table, tmp_path, hub.bundle("churn", path=path))
    clusters.check(hub, table, answers)
    # The second time as well: whatever way it came, it is the same bundle.
    clusters.check_workers(answers)


def test_the_bundle_comes_to_a_worker_once_and_not_with_each_partition(client: Client, hub: Turnout) -> None:
    rows = dd.from_pandas(
        pd.DataFrame({"entity_id": range(100), **dict.fromkeys(clusters.FEATURES, 1.0)}), 50
    )
    made = hub.bundle("churn")
    predictor = clusters.OnDask(made)
    answers = rows.map_partitions(predictor, predictor.bundle, meta=predictor.meta(rows))
    graph = answers.optimize().__dask_graph__()
    assert len(graph) > 50
    assert sum(made.content[:100] in pickle.dumps(task) for task in graph.values()) == 1
    scattered = client.scatter(made, broadcast=True)
    answers = rows.map_partitions(predictor, scattered, meta=predictor.meta(rows)).compute()
    indices, names = hub.assign_many("churn", np.arange(100))
    assert answers["version"].tolist() == [names[index] for index in indices]


def test_a_bundle_that_has_changed_is_refused(client: Client, hub: Turnout, tmp_path: Path) -> None:
    hub.set_override("churn", "somebody", "v3")  # else the workers have it open already, verified
    saved = hub.bundle("churn", path=tmp_path / "churn.bundle")
    rows = dd.from_pandas(pd.DataFrame({"entity_id": range(10), **dict.fromkeys(clusters.FEATURES, 1.0)}), 2)
    predictor = clusters.OnDask(saved)
    answers = rows.map_partitions(predictor, predictor.bundle, meta=predictor.meta(rows))
    content = bytearray(Path(saved.path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(saved.path).write_bytes(content)
    with pytest.raises(InvalidDocument, match=f"expected SHA-256 {saved.digest}"):
        answers.compute()
