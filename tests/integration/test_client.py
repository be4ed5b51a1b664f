"""The clients of a running server do what `Turnout` does: the same arguments, results and errors."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import turnout
from clients import CLIENTS
from models import constant_label, linear_matrix
from servers import Server
from turnout.client import Client, ServerUnreachable
from turnout.errors import InvalidModel, InvalidRequest, TurnoutError

FEATURES = ["a", "b"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two model files, and a folder with one."""
    folder = tmp_path_factory.mktemp("files")
    for number in (1.0, 3.0):
        (folder / f"{number:.0f}.onnx").write_bytes(linear_matrix([number, 2.0], names=FEATURES))
    (folder / "folder").mkdir()
    (folder / "folder" / "m.onnx").write_bytes((folder / "1.onnx").read_bytes())
    return folder


@pytest.fixture(scope="module")
def served(files: Path) -> Iterator[tuple[turnout.Turnout, str]]:
    """A data directory, and the URL of a server, with the same model in both."""
    with (
        Server(files / "served") as server,
        turnout.open(files / "local", device="cpu") as hub,
        Client(server.url, actor="ann") as client,
    ):
        for place in (hub, client):
            for number in ("1", "3"):
                place.register_version("m", f"v{number}", files / f"{number}.onnx", features=FEATURES)
            place.activate_version("m", "v1", reason="first")
            place.register_version("idle", "v1", files / "1.onnx", features=FEATURES)
        yield hub, server.url


@pytest.fixture(params=CLIENTS, ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=CLIENTS, ids=["sync", "async"])
def both(request: pytest.FixtureRequest, served: tuple[turnout.Turnout, str]) -> Iterator[tuple[Any, Any]]:
    """The data directory, and a client of the server."""
    hub, url = served
    with request.param(url, actor="ann") as client:
        yield hub, client


def outcome(call: Callable[[Any], Any], place: Any) -> Any:
    """What a call returns, or the class and the text of its error."""
    try:
        return call(place)
    except TurnoutError as error:
        return type(error), str(error)


def plain(found: Any) -> Any:
    """A batch as plain data."""
    outputs = {name: np.nan_to_num(values, nan=-1.0).tolist() for name, values in found.outputs.items()}
    return found.model, found.versions, found.version_index.tolist(), outputs, found.errors


TABLE = {"b": [2.0, 4.0, 6.0], "a": [1.0, 3.0, 5.0], "entity_id": ["x", "y", "z"]}

SAME: dict[str, Callable[[Any], Any]] = {
    "a row": lambda p: p.predict("m", {"a": 1, "b": 2}, entity_id="x").outputs,
    "a NumPy row": lambda p: p.predict("m", np.array([1.0, 2.0], np.float32)).outputs,
    "NumPy numbers": lambda p: p.predict("m", {"a": np.float32(1), "b": np.int64(2)}).outputs,
    "NaN": lambda p: p.predict("m", [float("nan"), 2]),
    "a pinned row": lambda p: p.predict("m", [1, 2], version="v3").reason,
    "a label that is not there": lambda p: p.get_version("m", "v9"),
    "a model that is not there": lambda p: p.get_version("nowhere", "v1"),
    "no test": lambda p: p.get_test("m"),
    "deleting nothing": lambda p: p.delete_version("m", "v9"),
    "deleting the active version": lambda p: p.delete_version("m", "v1"),
    "an entity with a slash": lambda p: p.assign("m", "a/b?c#d e%"),
    "an entity of two dots": lambda p: p.assign("m", ".."),
    "an integer": lambda p: p.assign("m", 17),
    "an override of two dots": lambda p: (
        p.set_override("m", "..", "v3"),
        p.overrides("m"),
        p.delete_override("m", ".."),
        p.delete_override("m", ".."),
    ),
    "a model named two dots": lambda p: p.model(".."),
    "a name with a slash": lambda p: p.model("a/b"),
    "weights that do not fit": lambda p: p.configure_test("m", {"v1": 0.5}),
    "a version compared with nothing": lambda p: p.compare_versions("m", "v1", "v9"),
    "the version of an entity": lambda p: p.select_version("m", "x"),
    "no version for anybody": lambda p: p.select_version("idle", "x"),
    "a model that is nowhere for anybody": lambda p: p.select_version("nowhere", "x"),
    "the versions of many": lambda p: [
        part.tolist() for part in map(np.array, p.assign_many("m", ["x", 7, "x"]))
    ],
    "one string for many": lambda p: p.assign_many("m", "x"),
    "rows": lambda p: plain(p.predict_batch("m", [[1, 2], {"a": 3, "b": 4}], entity_ids=["x", None])),
    "columns": lambda p: plain(p.predict_batch("m", {"a": [1, 3], "b": [2, 4]}, entity_ids=np.arange(2))),
    "a NumPy batch": lambda p: plain(p.predict_batch("m", np.ones((3, 2), np.float32), version="v3")),
    "a table of pyarrow": lambda p: plain(p.predict_batch("m", pa.table(TABLE))),
    "a table of pandas": lambda p: plain(p.predict_batch("m", pd.DataFrame(TABLE))),
    "a table of polars": lambda p: plain(p.predict_batch("m", pl.DataFrame(TABLE))),
    "ids twice": lambda p: p.predict_batch("m", pa.table(TABLE), entity_ids=["x", "y", "z"]),
    "a row of pandas": lambda p: p.predict("m", pd.Series({"b": 2.0, "a": 1.0})).outputs,
    "too few ids": lambda p: p.predict_batch("m", [[1, 2], [3, 4]], entity_ids=["x"]),
    "a bad row": lambda p: p.predict_batch("m", [[1, 2], [3]]),
    "a bad row that is skipped": lambda p: plain(p.predict_batch("m", [[1, 2], [3]], on_error="skip")),
    "nothing but bad rows": lambda p: p.predict_batch("m", [[1]], on_error="skip").version_index.tolist(),
    "an infinite row": lambda p: p.predict_batch("m", [[1, float("inf")]]),
    "an infinite feature": lambda p: p.predict("m", [1, float("inf")]),
    "no rows": lambda p: p.predict_batch("m", 7),
    "a batch by nobody": lambda p: p.predict_batch("m", [[1, 2]], version="v9"),
    "an export into nothing": lambda p: p.export_registry([]),
    "an import of nothing": lambda p: p.import_registry([]),
    "an import of text": lambda p: p.import_registry(io.StringIO("{}")),
    "a file that is not there": lambda p: p.register_version("m", "v4", "/nowhere/m.onnx"),
}


@pytest.mark.parametrize("what", SAME)
def test_the_same_as_on_a_directory(what: str, both: tuple[Any, Any]) -> None:
    hub, client = both
    assert outcome(SAME[what], client) == outcome(SAME[what], hub)


def test_a_release(both: tuple[Any, Any]) -> None:
    for place in both:
        started = place.configure_test("m", {"v1": 0.5, "v3": 0.5}, reason="half")
        assert (started.weights, started.revision) == ({"v1": 0.5, "v3": 0.5}, 1)
        assert place.promote_winner("m", "v3", reason="won").version == "v3"
        assert place.rollback("m", actor="Zoë 日本", reason="é").version == "v1"
        assert place.last_change is not None
        assert place.last_change.pending == ()
        event = place.audit(model="m")[-1]
        assert (event.action, event.actor, event.reason) == ("rollback", "Zoë 日本", "é")


def test_an_archive_carries_the_state_that_is_returned(both: tuple[Any, Any], tmp_path: Path) -> None:
    for number, place in enumerate(both):
        archive = io.BytesIO()
        document = place.export_registry(archive)
        archive.seek(0)
        with turnout.open(tmp_path / str(number)) as restored:
            restored.import_registry(archive)
            assert restored.export_registry() == document == place.export_registry()


def test_entities_of_a_test(both: tuple[Any, Any]) -> None:
    _, client = both
    client.configure_test("m", {"v1": 0.5, "v3": 0.5}, reason="half")
    try:
        people = [f"user-{number}" for number in range(40)]
        indices, names = client.assign_many("m", np.array(people))
        found = client.predict_batch("m", [[1, 2]] * 40, entity_ids=people)
        assert set(names) == {"v1", "v3"}
        assert [names[index] for index in indices] == [found.versions[index] for index in found.version_index]
        assert client.select_version("m", "user-7") == names[indices[7]]
    finally:
        client.stop_test("m")


def test_a_stream_of_rows(both: tuple[Any, Any]) -> None:
    hub, client = both
    rows = [[number, 2] for number in range(50)]
    answers = list(client.predict_stream("m", iter(rows), entity_ids=range(50), size=20))
    assert [len(found) for found in answers] == [20, 20, 10]
    scores = np.concatenate([found.outputs["score"] for found in answers])
    np.testing.assert_array_equal(scores, hub.predict_batch("m", rows).outputs["score"])


def test_how_it_goes(both: tuple[Any, Any]) -> None:
    _, client = both
    assert (client.alive(), client.ready()) == (True, True)
    assert b"turnout_requests_total{" in client.metrics()
    with pytest.raises(InvalidRequest, match="X-Timeout-Ms"):
        client.predict("m", [1, 2], timeout_ms=0)
    answer = client.predict("m", [1, 2], priority=7, timeout_ms=5000, request_id="mine")
    assert answer.outputs == {"score": [5.0]}


def test_many_threads_share_a_client(served: tuple[turnout.Turnout, str]) -> None:
    with Client(served[1], max_connections=2) as client, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda number: client.predict("m", [number, 2]).outputs["score"], range(100))
        assert list(found) == [[number + 4.0] for number in range(100)]


def test_a_folder_is_no_upload(both: tuple[Any, Any], files: Path) -> None:
    hub, client = both
    assert hub.register_version("folders", "v1", files / "folder").version == "v1"
    with pytest.raises(InvalidModel, match="is a folder, and an upload is one file"):
        client.register_version("folders", "v1", files / "folder")


@pytest.mark.parametrize("actor", ["a\r\nX-Evil: 1", "a\x1b[31m", "\udcff"])
def test_an_actor_prints(actor: str, both: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidRequest, match="printable"):
        both[1].rollback("m", actor=actor)


@pytest.mark.parametrize("name", ["", "\udcff"])
def test_what_has_no_address_is_refused(name: str, both: tuple[Any, Any]) -> None:
    for call in (both[1].model, lambda name: both[1].assign("m", name)):
        with pytest.raises(InvalidRequest):
            call(name)


def test_what_json_cannot_write_is_refused(both: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidRequest, match="found object"):
        both[1].predict("m", [object(), 1])


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:9/a path"])
def test_a_server_that_is_not_there(url: str, kind: Any) -> None:
    with kind(url, timeout=5, retries=1) as client:
        with pytest.raises(ServerUnreachable, match="did not answer"):
            client.models()
        assert (client.alive(), client.ready()) == (False, False)


def test_the_page_about_clients_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, label in (("v1.0", 0), ("v2.0", 1)):
        (tmp_path / f"churn-{version}.onnx").write_bytes(constant_label(label))
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text("utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    assert code.count("hub.") > 10
    monkeypatch.chdir(tmp_path)
    with Server(tmp_path / "data") as server:
        exec(compile(code.replace("http://127.0.0.1:8000", server.url), "docs/client.md", "exec"), {})
