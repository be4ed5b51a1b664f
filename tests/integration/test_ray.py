"""Ray Data on a local cluster: two million rows, answered by actors as the registry would."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from msgspec.structs import replace

import clusters
from turnout import Bundle
from turnout.service import Turnout

WORKERS = 2

pytestmark = [
    pytest.mark.timeout(180),
    # What Ray deprecates of itself, and files that it leaves to the garbage collector.
    pytest.mark.filterwarnings(r"ignore:::ray\..*", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    with clusters.opened(tmp_path_factory.mktemp("ray") / "data") as opened:
        yield opened


@pytest.fixture(scope="module")
def ray() -> Iterator[object]:
    """A cluster on this machine that listens on loopback only, tells nobody anything, and leaves nothing behind."""
    # Paths of sockets are at most 107 bytes long, so pytest's folders are too deep.
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home of the user
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's way to say: loopback
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers import what the tests import
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=WORKERS + 2,  # so that no step waits for what the actors of another one hold
                object_store_memory=512 * 1024**2,
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=folder,
            )
            assert ray.util.get_node_ip_address() == "127.0.0.1"
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield ray
        finally:
            ray.shutdown()


def answered(ray, table: pa.Table, bundle: Bundle) -> pa.Table:
    answers = ray.data.from_arrow(clusters.blocks(table)).map_batches(
        clusters.OnRay,
        fn_constructor_args=(bundle,),
        fn_constructor_kwargs={"keep": ["row"]},
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
    )
    return pa.concat_tables(answers.iter_batches(batch_size=None, batch_format="pyarrow"))


def test_two_million_rows_are_answered_as_the_registry_would(ray, hub: Turnout) -> None:
    table = clusters.rows()
    answers = answered(ray, table, hub.bundle("churn"))
    clusters.check(hub, table, answers)
    clusters.check_workers(answers)


def test_a_bundle_in_a_file_that_has_changed_is_refused(ray, hub: Turnout, tmp_path: Path) -> None:
    saved = hub.bundle("churn", path=tmp_path / "churn.bundle")
    content = bytearray(Path(saved.path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(saved.path).write_bytes(content)
    with pytest.raises(Exception, match=f"expected SHA-256 {saved.digest}"):
        ray.data.range(10).map_batches(
            clusters.OnRay, fn_constructor_args=(saved,), batch_format="pyarrow", concurrency=1
        ).materialize()


def test_a_bundle_with_another_content_than_its_digest_is_refused(ray, hub: Turnout) -> None:
    made = hub.bundle("churn")
    with pytest.raises(Exception, match="has changed: expected SHA-256"):
        ray.data.range(10).map_batches(
            clusters.OnRay,
            fn_constructor_args=(replace(made, content=made.content + b"!"),),
            batch_format="pyarrow",
            concurrency=1,
        ).materialize()
