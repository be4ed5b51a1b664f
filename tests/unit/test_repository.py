"""What stays loaded because somebody said so, and what can be said of it: in a notebook, and over two workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

import turnout
from models import constant_label
from registries import version as described
from turnout.domain import Model, VersionState, VersionStatus, utc_now
from turnout.errors import ModelNotFound, NotReady, RevisionConflict, StorageError, VersionNotFound
from turnout.repository import NOT_LOADED, index_of
from turnout.router import ModelRecord, Serving, plan_of
from turnout.service import Turnout
from turnout.sessions import key_of


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Turnout]:
    """A notebook with three versions; v1 is active."""
    with turnout.open(tmp_path / "data", device="cpu") as opened:
        for label in (1, 2, 3):
            register(opened, label)
        opened.activate_version("churn", "v1")
        yield opened


@pytest.fixture
def start(hub: Turnout) -> Iterator[Callable[[], Turnout]]:
    """Starts a worker of the notebook's directory, as each process of `turnout serve` is one."""
    with ExitStack() as stack:

        def begin() -> Turnout:
            settings = msgspec.structs.replace(hub.settings, load_seconds=20.0, change_seconds=20.0)
            worker = stack.enter_context(Turnout(settings, server=True))
            worker.start_worker()
            return worker

        yield begin


def register(hub: Turnout, label: int) -> None:
    path = hub.data.parent / "model.onnx"
    path.write_bytes(constant_label(label))
    hub.register_version("churn", f"v{label}", path)


def loaded(hub: Turnout) -> list[str]:
    return [status.version for status in hub.live.statuses() if status.error is None]


def states(hub: Turnout) -> dict[str, str]:
    return {found.version: found.state for found in hub.repository_index()}


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.005)


def broken(hub: Turnout, label: str, patch: pytest.MonkeyPatch) -> None:
    loading = hub.live.sessions._load

    def fails(version: Any) -> Any:
        if version.version == label:
            raise StorageError("the file has changed")
        return loading(version)

    patch.setattr(hub.live.sessions, "_load", fails)


# --- a notebook -----------------------------------------------------------------------------------------------------


def test_a_notebook_loads_every_version_and_notes_who_wanted_it(hub: Turnout) -> None:
    before = hub.model("churn")
    kept = hub.load_model("churn", actor="ada", reason="a demo", revision=before.revision)
    assert kept == hub.model("churn")
    assert (kept.kept, kept.revision) == (True, before.revision + 1)
    assert loaded(hub) == ["v1", "v2", "v3"]
    event = hub.audit(model="churn")[-1]
    assert (event.action, event.actor, event.reason, event.version) == ("load", "ada", "a demo", None)
    assert event.before is not None
    assert event.after is not None
    assert (event.before["kept"], event.after["kept"]) == (False, True)
    assert hub.live.sessions._staged == {}


def test_loading_again_loads_what_is_missing_and_is_no_change(hub: Turnout) -> None:
    kept = hub.load_model("churn")
    register(hub, 4)
    head, events = hub.model("churn"), len(hub.audit())
    assert head.kept
    assert not hub.version_ready("churn", "v4")
    assert hub.load_model("churn") == head
    assert hub.version_ready("churn", "v4")
    assert (head.revision, len(hub.audit())) == (kept.revision + 1, events)


def test_what_is_kept_does_not_count_among_the_last_used(hub: Turnout, tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data", device="cpu", on_demand_versions=1) as small:
        small.load_model("churn")
        register(small, 4)
        assert small.predict("churn", [0.0, 1.0], version="v4").version == "v4"
        small.live.trim()
        assert loaded(small) == ["v1", "v2", "v3", "v4"]


def test_unloading_lets_go_of_what_no_traffic_needs(hub: Turnout) -> None:
    hub.load_model("churn")
    hub.set_override("churn", "user-1", "v3")
    before = hub.model("churn").revision
    released = hub.unload_model("churn", actor="ada", reason="the demo is over")
    assert (released.kept, released.revision) == (False, before + 1)
    assert loaded(hub) == ["v1", "v3"]
    assert (hub.audit()[-1].action, hub.audit()[-1].actor) == ("unload", "ada")
    assert hub.predict("churn", [0.0, 1.0], version="v2").version == "v2"
    assert loaded(hub) == ["v1", "v2", "v3"]
    assert hub.unload_model("churn") == released == hub.model("churn")
    assert loaded(hub) == ["v1", "v2", "v3"]


def test_a_model_that_cannot_load_is_left_as_it_is(hub: Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(hub, "v2", monkeypatch)
    before, events = hub.model("churn"), len(hub.audit())
    with pytest.raises(NotReady, match=r"v2 of model churn.*nothing was changed: .*has changed"):
        hub.load_model("churn")
    assert (hub.model("churn"), len(hub.audit())) == (before, events)
    assert hub.live.sessions._staged == {}


def test_somebody_was_faster(hub: Turnout) -> None:
    for verb in (hub.load_model, hub.unload_model):
        with pytest.raises(RevisionConflict):
            verb("churn", revision=1)
    assert not hub.model("churn").kept


def test_no_such_model(hub: Turnout) -> None:
    for verb in (hub.load_model, hub.unload_model, hub.version_ready):
        with pytest.raises(ModelNotFound, match="Model nope not found"):
            verb("nope")
    with pytest.raises(VersionNotFound, match="Version v9 not found"):
        hub.version_ready("churn", "v9")


def test_ready_is_what_answers_without_loading(hub: Turnout, tmp_path: Path) -> None:
    assert not hub.version_ready("churn")
    hub.predict("churn", [0.0, 1.0])
    assert hub.version_ready("churn")
    assert hub.version_ready("churn", "v1")
    hub.configure_test("churn", {"v1": 0.5, "v2": 0.5})
    assert not hub.version_ready("churn")
    hub.predict("churn", [0.0, 1.0], version="v2")
    assert hub.version_ready("churn")
    hub.register_version("new", "v1", tmp_path / "model.onnx")
    hub.load_model("new")
    assert hub.version_ready("new", "v1")
    assert not hub.version_ready("new")


def test_the_index_of_a_notebook_is_what_it_has_loaded_itself(hub: Turnout) -> None:
    hub.predict("churn", [0.0, 1.0])
    assert hub.repository_index() == [
        VersionState("churn", "v1", "READY"),
        VersionState("churn", "v2", "UNAVAILABLE", NOT_LOADED),
        VersionState("churn", "v3", "UNAVAILABLE", NOT_LOADED),
    ]
    hub.load_model("churn")
    register(hub, 4)
    assert states(hub) == {"v1": "READY", "v2": "READY", "v3": "READY", "v4": "UNAVAILABLE"}
    assert [found.version for found in hub.repository_index(ready_only=True)] == ["v1", "v2", "v3"]


# --- a server -------------------------------------------------------------------------------------------------------


def test_every_worker_loads_all_versions_and_those_that_come_later(
    hub: Turnout, start: Callable[[], Turnout]
) -> None:
    workers = [start(), start()]
    assert states(hub) == {"v1": "READY", "v2": "UNAVAILABLE", "v3": "UNAVAILABLE"}
    hub.load_model("churn")
    assert hub.last_change is not None
    assert hub.last_change.pending == ()
    assert [loaded(worker) for worker in workers] == [["v1", "v2", "v3"]] * 2
    assert loaded(hub) == []
    assert all(worker.version_ready("churn", "v3") for worker in workers)
    assert states(workers[0]) == {"v1": "READY", "v2": "READY", "v3": "READY"}
    register(hub, 4)
    until(lambda: states(hub)["v4"] == "READY")
    hub.unload_model("churn")
    assert [worker.ready() for worker in workers] == [True, True]
    until(lambda: states(hub) == {"v1": "READY", **dict.fromkeys(("v2", "v3", "v4"), "UNAVAILABLE")})
    assert [loaded(worker) for worker in workers] == [["v1"], ["v1"]]


def test_a_worker_that_starts_loads_what_is_kept(hub: Turnout, start: Callable[[], Turnout]) -> None:
    hub.load_model("churn")
    assert loaded(start()) == ["v1", "v2", "v3"]
    assert states(hub) == {"v1": "READY", "v2": "READY", "v3": "READY"}


def test_a_version_that_one_worker_cannot_load_is_kept_by_none(
    hub: Turnout, start: Callable[[], Turnout], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = start(), start()
    broken(bad, "v2", monkeypatch)
    with pytest.raises(NotReady, match=r"v2 of model churn, nothing was changed: the file has changed"):
        hub.load_model("churn")
    assert not hub.model("churn").kept
    assert (good.ready(), bad.ready()) == (True, True)
    assert hub.runtime.staging() == frozenset()


def test_a_kept_version_that_cannot_load_is_named_and_holds_up_nothing(
    hub: Turnout, start: Callable[[], Turnout], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start()
    hub.load_model("churn")
    broken(worker, "v4", monkeypatch)
    register(hub, 4)
    until(lambda: "v4" in {found.version for found in hub.repository_index() if found.state != "LOADING"})
    assert hub.repository_index()[-1] == VersionState("churn", "v4", "UNAVAILABLE", "the file has changed")
    assert worker.ready()
    monkeypatch.undo()
    hub.load_model("churn")
    until(lambda: states(hub)["v4"] == "READY")


def test_a_kept_version_that_cannot_load_is_not_tried_at_every_change(
    hub: Turnout, start: Callable[[], Turnout], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start()
    hub.load_model("churn")
    tried: list[str] = []
    loading = worker.live.sessions._load

    def fails(version: Any) -> Any:
        tried.append(version.version)
        if version.version == "v4":
            raise StorageError("the file has changed")
        return loading(version)

    monkeypatch.setattr(worker.live.sessions, "_load", fails)
    register(hub, 4)
    until(lambda: "v4" in {found.version for found in hub.repository_index() if found.state != "LOADING"})
    for number in range(20):
        hub.set_override("churn", f"user-{number}", "v1")
    until(lambda: worker.live.served_generation == hub.registry.generation())
    assert tried == ["v4"]


# --- the index ------------------------------------------------------------------------------------------------------


def serving(*, kept: bool = False) -> Serving:
    """A model with three versions; v1 is active."""
    versions = {label: described("churn", label) for label in ("v1", "v2", "v3")}
    head = Model("churn", 1, utc_now(), active="v1", kept=kept)
    return Serving(ModelRecord(head, versions, None, None, {}), plan_of, key_of)


def of(*labels: str, **errors: str) -> list[VersionStatus]:
    """What a process says."""
    found = [VersionStatus("churn", label) for label in labels]
    return [*found, *(VersionStatus("churn", label, error=error) for label, error in errors.items())]


SOME = NOT_LOADED.replace("not loaded", "loaded by 1 of 2 workers")


@pytest.mark.parametrize(
    ("processes", "staging", "words", "expected"),
    [
        ([of("v1", "v2"), of("v1")], (), {}, [("READY", ""), ("UNAVAILABLE", SOME), ("UNAVAILABLE", NOT_LOADED)]),
        (
            [of("v1"), of()],
            [("churn", "v2")],
            {},
            [
                ("LOADING", "loaded by 1 of 2 workers"),
                ("LOADING", "loaded by 0 of 2 workers"),
                ("UNAVAILABLE", NOT_LOADED),
            ],
        ),
        (
            [of("v1", "v2"), of("v1", v2="no room")],
            [],
            {"kept": True},
            [("READY", ""), ("UNAVAILABLE", "no room"), ("LOADING", "loaded by 0 of 2 workers")],
        ),
        ([of()], [], {"kept": True, "lazy": True}, [("UNAVAILABLE", NOT_LOADED)] * 3),
    ],
)  # fmt: skip
def test_states(
    processes: Any, staging: Any, words: dict[str, bool], expected: list[tuple[str, str]]
) -> None:
    found = index_of(
        [serving(kept=words.get("kept", False))], processes, staging, lazy=words.get("lazy", False)
    )
    assert [state.version for state in found] == ["v1", "v2", "v3"]
    assert [(state.state, state.reason) for state in found] == expected
