"""The client of a running server does what `Turnout` does: the same arguments, results and errors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import turnout
from models import linear_matrix
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
def both(files: Path) -> Iterator[tuple[turnout.Turnout, Client]]:
    """A data directory and a server, with the same model in both."""
    with (
        Server(files / "served") as server,
        turnout.open(files / "local", device="cpu") as hub,
        Client(server.url, actor="ann") as client,
    ):
        for place in (hub, client):
            for number in ("1", "3"):
                place.register_version("m", f"v{number}", files / f"{number}.onnx", features=FEATURES)
            place.activate_version("m", "v1", reason="first")
        yield hub, client


def outcome(call: Callable[[Any], Any], place: Any) -> Any:
    """What a call returns, or the class and the text of its error."""
    try:
        return call(place)
    except TurnoutError as error:
        return type(error), str(error)


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
    "a file that is not there": lambda p: p.register_version("m", "v4", "/nowhere/m.onnx"),
}


@pytest.mark.parametrize("what", SAME)
def test_the_same_as_on_a_directory(what: str, both: tuple[turnout.Turnout, Client]) -> None:
    hub, client = both
    assert outcome(SAME[what], client) == outcome(SAME[what], hub)


def test_a_release(both: tuple[turnout.Turnout, Client]) -> None:
    for place in both:
        started = place.configure_test("m", {"v1": 0.5, "v3": 0.5}, reason="half")
        assert (started.weights, started.revision) == ({"v1": 0.5, "v3": 0.5}, 1)
        assert place.promote_winner("m", "v3", reason="won").version == "v3"
        assert place.rollback("m", actor="Zoë 日本", reason="é").version == "v1"
        assert place.last_change is not None
        assert place.last_change.pending == ()
        event = place.audit(model="m")[-1]
        assert (event.action, event.actor, event.reason) == ("rollback", "Zoë 日本", "é")


def test_an_archive_carries_the_state_that_is_returned(
    both: tuple[turnout.Turnout, Client], tmp_path: Path
) -> None:
    for number, place in enumerate(both):
        archive = io.BytesIO()
        document = place.export_registry(archive)
        archive.seek(0)
        with turnout.open(tmp_path / str(number)) as restored:
            restored.import_registry(archive)
            assert restored.export_registry() == document == place.export_registry()


def test_a_folder_is_no_upload(both: tuple[turnout.Turnout, Client], files: Path) -> None:
    hub, client = both
    assert hub.register_version("folders", "v1", files / "folder").version == "v1"
    with pytest.raises(InvalidModel, match="is a folder, and an upload is one file"):
        client.register_version("folders", "v1", files / "folder")


@pytest.mark.parametrize("actor", ["a\r\nX-Evil: 1", "a\x1b[31m", "\udcff"])
def test_an_actor_prints(actor: str, both: tuple[turnout.Turnout, Client]) -> None:
    with pytest.raises(InvalidRequest, match="printable"):
        both[1].rollback("m", actor=actor)


@pytest.mark.parametrize("name", ["", "\udcff"])
def test_what_has_no_address_is_refused(name: str, both: tuple[turnout.Turnout, Client]) -> None:
    for call in (both[1].model, lambda name: both[1].assign("m", name)):
        with pytest.raises(InvalidRequest):
            call(name)


def test_what_json_cannot_write_is_refused(both: tuple[turnout.Turnout, Client]) -> None:
    with pytest.raises(InvalidRequest, match="found object"):
        both[1].predict("m", [object(), 1])


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://127.0.0.1:9/a path"])
def test_a_server_that_is_not_there(url: str) -> None:
    with Client(url, timeout=5) as client, pytest.raises(ServerUnreachable, match="did not answer"):
        client.models()
