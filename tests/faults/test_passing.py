"""Faults that pass: a full disk, too many open files, a write that fails once, a model that cannot be read or loaded."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

import turnout
from models import constant_label
from turnout import log as log_module
from turnout import runtime as runtime_module
from turnout import store as store_module
from turnout import worker as worker_module
from turnout.artifacts import Artifacts
from turnout.beacon import Beacon
from turnout.config import Settings
from turnout.errors import NotReady, StorageError
from turnout.live import Live
from turnout.runtime import Runtime
from turnout.serve import _collect
from turnout.service import Turnout
from turnout.store import Store, key
from turnout.telemetry import fold


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.005)


def server(data: Path, **settings: Any) -> Turnout:
    given = {"device": "cpu", "change_seconds": 0.3, "load_seconds": 2.0, **settings}
    return Turnout(msgspec.structs.replace(Settings(), data=str(data), **given), server=True)


def register(hub: Turnout, folder: Path, model: str, *labels: int) -> None:
    for label in labels:
        path = folder / "model.onnx"
        path.write_bytes(constant_label(10 * label + ord(model)))  # equal content would be one session
        hub.register_version(model, f"v{label}", path)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Turnout]:
    """A worker of a server with two models."""
    with server(tmp_path / "data") as opened:
        opened.start_worker()
        for model in ("a", "b"):
            register(opened, tmp_path, model, 1, 2)
            opened.activate_version(model, "v1")
        yield opened


def version(hub: Turnout, model: str) -> str:
    return hub.predict(model, [1.0, 2.0]).version


# --- what processes tell each other -----------------------------------------------------------------------------------


def test_too_many_open_files_do_not_cost_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(tmp_path, Beacon(tmp_path / "beacon"), map_size=1024**2, fold=fold)
    runtime._put(key("worker", "x"), b"1")
    before = (tmp_path / "runtime.lmdb").stat().st_ino
    opening = os.open

    def too_many(path: Any, *words: Any, **more: Any) -> int:
        if str(path).endswith("runtime.lmdb"):
            raise OSError(errno.EMFILE, "Too many open files")
        return opening(path, *words, **more)

    with monkeypatch.context() as patched:
        patched.setattr(runtime_module.os, "open", too_many)
        with pytest.raises(StorageError, match="Too many open files"):
            runtime.workers()
    runtime.workers()
    assert (tmp_path / "runtime.lmdb").stat().st_ino == before
    runtime.close()


def test_full_reader_slots_do_not_cost_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(tmp_path, Beacon(tmp_path / "beacon"), map_size=1024**2, fold=fold)
    before = (tmp_path / "runtime.lmdb").stat().st_ino

    def busy(*_: Any, **__: Any) -> Any:
        raise StorageError("too many processes read it at once")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "read", busy)
        patched.setattr(Store, "change", busy)
        with pytest.raises(StorageError, match="at once"):
            runtime.workers()
        with pytest.raises(StorageError, match="at once"):
            runtime.stage("m", "v")
    assert (tmp_path / "runtime.lmdb").stat().st_ino == before
    runtime.close()


def test_a_change_that_was_made_does_not_raise_because_workers_cannot_be_listed(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> Any:
        raise StorageError("Too many open files")

    monkeypatch.setattr(hub.runtime._locks, "marked", fails)
    assert hub.runtime.wait_generation(10**9, 0.05) != ()


def test_workers_let_go_of_what_a_dead_process_has_staged(tmp_path: Path) -> None:
    beacon = Beacon(tmp_path / "beacon")
    runtime = Runtime(tmp_path, beacon, map_size=1024**2, fold=fold)
    other = Runtime(tmp_path, beacon, map_size=1024**2, fold=fold)
    other.stage("m", "v")
    assert other._owner is not None
    other._owner.abandon()  # as if it had died
    before = beacon[Beacon.STAGE]
    runtime.retire()
    assert beacon[Beacon.STAGE] > before
    assert runtime.staged_requests() == []
    runtime.close()
    other.close()


# --- a worker -------------------------------------------------------------------------------------------------------------


def test_a_fault_does_not_end_the_thread_that_keeps_a_worker_current(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def broken() -> bool:
        asked.set()
        raise StorageError("an input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(hub.live, "stale", broken)
        assert asked.wait(5)
    assert hub._worker is not None
    assert hub._worker._thread.is_alive()
    hub.activate_version("a", "v2")
    assert hub.last_change is not None
    assert hub.last_change.pending == ()


def test_a_request_to_stage_that_could_not_be_read_is_read_again(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, failed = hub.runtime.staged_requests, []

    def once() -> Any:
        if not failed:
            failed.append(True)
            raise StorageError("Too many open files")
        return reading()

    monkeypatch.setattr(hub.runtime, "staged_requests", once)
    hub.activate_version("a", "v2")
    assert failed
    assert version(hub, "a") == "v2"


def test_a_worker_that_starts_serves_what_was_changed_while_it_loaded(
    hub: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preload, calls = Live.preload, []

    def meanwhile(self: Live) -> None:
        preload(self)
        if not calls and threading.current_thread() is threading.main_thread():
            calls.append(True)
            hub.activate_version("a", "v2")

    with server(tmp_path / "data") as late:
        monkeypatch.setattr(Live, "preload", meanwhile)
        late.start_worker()
        assert calls
        assert version(late, "a") == "v2"


def test_a_session_is_let_go_of_when_its_change_is_given_up_while_it_loads(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = hub.live.sessions._load

    def given_up(found: Any) -> Any:
        hub.live.unstage("token")
        return loading(found)

    monkeypatch.setattr(hub.live.sessions, "_load", given_up)
    hub.live.expect("token")
    hub.live.stage("token", "a", "v2")
    assert hub.live._staged == {}
    assert hub.live.sessions._staged == {}


def test_nothing_is_loaded_for_a_change_that_was_given_up_before_the_loading_began(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub._worker is not None
    begun: list[Callable[[], None]] = []
    monkeypatch.setattr(hub._worker, "_in_background", begun.append)
    token = hub.runtime.stage("a", "v2")
    until(lambda: begun)
    hub.runtime.unstage(token)
    until(lambda: hub._worker is not None and hub._worker._stages == set())
    begun[0]()
    assert hub.live._staged == {}
    assert hub.live.sessions._staged == {}
    assert [status.version for status in hub.live.statuses() if status.model == "a"] == ["v1"]


@pytest.mark.parametrize("fault", [StorageError("the file has changed"), MemoryError()])
def test_nothing_is_held_for_a_change_that_a_worker_could_not_load(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fails(_: Any) -> Any:
        raise fault

    monkeypatch.setattr(hub.live.sessions, "_load", fails)
    with pytest.raises(NotReady):
        hub.activate_version("a", "v2")
    until(lambda: hub.live._staged == {})
    assert hub.live.sessions._staged == {}


def test_what_a_change_has_loaded_stays_loaded_when_the_change_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(tmp_path / "data", on_demand_versions=1) as hub:
        hub.start_worker()
        register(hub, tmp_path, "a", 1, 2, 3, 4)
        hub.activate_version("a", "v1")
        worker = hub._worker
        assert worker is not None
        loads: list[str] = []
        loading = hub.live.sessions._load
        monkeypatch.setattr(
            hub.live.sessions, "_load", lambda found: (loads.append(found.version), loading(found))[1]
        )
        hub.configure_test("a", {"v2": 0.5, "v3": 0.25, "v4": 0.25})
        until(lambda: worker._stages == set() and hub.live._staged == {})
        hub.live.trim()
        assert sorted(loads) == ["v2", "v3", "v4"]
        assert len(hub.live.statuses()) == 4


def test_what_cannot_load_holds_up_no_other_model(hub: Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    loading = hub.live.sessions._load

    def slow(found: Any) -> Any:
        if found.model == "a":
            assert release.wait(20)
        return loading(found)

    monkeypatch.setattr(hub.live.sessions, "_load", slow)
    # Not by activate_version, which stages first: an import, say, or a file that was damaged meanwhile.
    hub.registry.activate("a", "v2", hub._author(None, "", None))
    hub.live.sessions.load(hub.registry.version("b", "v2"))  # type: ignore[arg-type]
    hub.registry.activate("b", "v2", hub._author(None, "", None))
    until(lambda: version(hub, "b") == "v2")
    assert version(hub, "a") == "v1"
    release.set()
    until(lambda: version(hub, "a") == "v2")


def test_what_loads_first_is_served_first(hub: Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that change at once load one after the other; the first does not wait for the second."""
    release = threading.Event()
    loading = hub.live.sessions._load

    def slow(found: Any) -> Any:
        if found.model == "b":
            assert release.wait(20)
        else:
            hub.live.refresh()  # as another thread does that has noticed the same change
        return loading(found)

    monkeypatch.setattr(hub.live.sessions, "_load", slow)
    with hub.live._refreshing:  # both are made before either is noticed
        hub.registry.activate("a", "v2", hub._author(None, "", None))
        hub.registry.activate("b", "v2", hub._author(None, "", None))
    until(lambda: version(hub, "a") == "v2")
    assert version(hub, "b") == "v1"
    release.set()
    until(lambda: version(hub, "b") == "v2")


def test_the_answer_to_a_change_waits_for_no_other_model(
    hub: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while another one loads nor after it has failed to, in a worker or where the change is made."""
    release = threading.Event()
    loading = hub.live.sessions._load

    def fails(found: Any) -> Any:
        if found.model == "a":
            assert release.wait(20)
            raise StorageError("the file has changed")
        return loading(found)

    monkeypatch.setattr(hub.live.sessions, "_load", fails)
    before = hub.live.served_generation
    hub.registry.activate("a", "v2", hub._author(None, "", None))  # not staged, as an import is not
    with turnout.open(tmp_path / "data", device="cpu", change_seconds=20) as other:
        for label in ("v2", "v1"):
            other.activate_version("b", label)
            assert other.last_change is not None
            assert other.last_change.pending == ()
            assert version(hub, "b") == label
        release.set()
        until(lambda: hub.live.failing)
        other.rollback("b")
        assert other.last_change.pending == ()
        assert (version(hub, "a"), version(hub, "b")) == ("v1", "v2")
        (status,) = other.status().workers
        assert (status.held_back, status.ready) == (("a",), False)
        assert status.generation == before < status.reached == other.last_change.generation
        assert other.runtime.wait_generation(status.reached, 0, "a") == (status.id,)
        assert other.runtime.wait_generation(status.reached, 0) == (status.id,)
        other.rollback("a")
        assert other.last_change.pending == ()
        until(hub.ready)


def test_failures_are_noted_under_the_lock_under_which_they_are_sorted_out(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a thread that drops those of versions that are gone meets a dictionary that grows."""
    sessions, noted = hub.live.sessions, []

    class Noted(dict[str, Any]):
        def __setitem__(self, at: str, error: Any) -> None:
            noted.append(sessions._lock._inner.locked())
            super().__setitem__(at, error)

    def fails(_: Any) -> Any:
        raise StorageError("the file has changed")

    monkeypatch.setattr(sessions, "_load", fails)
    monkeypatch.setattr(sessions, "failures", Noted())
    found = hub.get_version("a", "v2")
    assert found is not None
    with pytest.raises(StorageError, match="has changed"):
        sessions.load(found)
    assert noted == [True]


def test_a_fault_that_stays_is_one_line_until_it_changes_or_a_while_has_passed(
    hub: Turnout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module._Threshold, "level", log_module.ORDER["error"])
    worker = hub._worker
    assert worker is not None

    def step(fault: Exception | None, times: int) -> int:
        def probe() -> None:
            if fault is not None:
                raise fault

        for _ in range(times):
            assert worker._guard(probe) is (fault is None)
        return capsys.readouterr().err.count("worker_step_failed")

    assert step(StorageError("the disk is full"), 100) == 1
    assert step(StorageError("too many open files"), 100) == 1
    assert step(None, 1) == 0
    assert step(StorageError("too many open files"), 100) == 1
    monkeypatch.setattr(worker_module, "REPORT_SECONDS", 0.0)
    assert step(StorageError("the disk is full"), 100) == 100


def test_a_load_that_fails_in_an_unforeseen_way_is_tried_again(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(hub.live._engine, "load", exhausted)
        hub.registry.activate("a", "v2", hub._author(None, "", None))
        until(lambda: hub.live.failing)
        assert version(hub, "a") == "v1"
    hub.live.preload()
    assert version(hub, "a") == "v2"
    assert hub.ready()


def test_whoever_sees_a_generation_serves_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        register(hub, tmp_path, "a", 1, 2)
        hub.activate_version("a", "v1")
        hub.predict("a", [1.0, 2.0])
        install, seen = hub.live._install, []

        def watched(*words: Any) -> None:
            seen.append(hub.live._noticed == hub.registry.beacon[0])
            install(*words)

        monkeypatch.setattr(hub.live, "_install", watched)
        hub.registry.activate("a", "v2", hub._author(None, "", None))
        assert version(hub, "a") == "v2"
        assert seen == [False]


def later_layout(t: Any) -> None:
    at = key("version", "a", "v1")
    record = msgspec.json.decode(t.get(at))
    record["signature"]["layout"] = "of another release"
    t.put(at, msgspec.json.encode(record))


def later_head(t: Any) -> None:
    t.put(key("model", "a"), b'{"of": "another release"}')


def missing_active(t: Any) -> None:
    t.delete(key("version", "a", "v1"))
    head = msgspec.json.decode(t.get(key("model", "a")))
    t.put(key("model", "a"), msgspec.json.encode({**head, "revision": head["revision"] + 1}))


@pytest.mark.parametrize("damage", [later_layout, later_head, missing_active])
def test_a_record_that_cannot_be_read_concerns_its_model_alone(
    hub: Turnout,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Any], None],
) -> None:
    monkeypatch.setattr(log_module._Threshold, "level", log_module.ORDER["error"])
    hub.registry._store.change(damage)
    if damage is later_layout:
        hub.registry.activate("a", "v2", hub._author(None, "", None))
    for label in ("v2", "v1"):
        hub.activate_version("b", label)
        assert version(hub, "b") == label
        assert hub.last_change is not None
        assert hub.last_change.pending == ()
    assert version(hub, "a") == "v1"
    assert not hub.ready()
    assert hub.live.progress.held == {"a"}
    assert capsys.readouterr().err.count("model_unreadable") == 1
    with turnout.open(tmp_path / "data", device="cpu") as fresh:
        assert version(fresh, "b") == "v1"
        with pytest.raises(StorageError, match="records of model a cannot be read"):
            version(fresh, "a")


def test_a_server_that_cannot_read_its_registry_goes_on_with_what_it_serves(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def fails(*_: Any) -> Any:
        tried.append(True)
        raise StorageError("an input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(hub.live, "_read", fails)
        hub.registry.beacon.step(Beacon.GENERATION)
        assert [version(hub, "a") for _ in range(50)] == ["v1"] * 50
        assert len(tried) <= 2


# --- the database -----------------------------------------------------------------------------------------------------


def test_a_database_that_has_given_up_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "file.lmdb", map_size=1024**2)
    store.change(lambda t: t.put(b"a", b"1"))
    before = store._environment.lmdb

    class GivenUp:
        def begin(self, **_: Any) -> Any:
            raise lmdb.PanicError("Update of meta page failed or environment had fatal error")

        def close(self) -> None:
            before.close()

    monkeypatch.setattr(store._environment, "lmdb", GivenUp())
    with pytest.raises(StorageError, match="the last committed state stands"):
        store.read(lambda t: t.get(b"a"))
    assert store.read(lambda t: t.get(b"a")) == b"1"
    store.change(lambda t: t.put(b"a", b"2"))
    store.close()


def test_a_database_that_cannot_be_opened_again_at_once_is_opened_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "file.lmdb", map_size=1024**2)
    store.change(lambda t: t.put(b"a", b"1"))

    def gives_up(_: Any) -> Any:
        raise lmdb.PanicError("Update of meta page failed or environment had fatal error")

    with monkeypatch.context() as patched:
        patched.setattr(store_module.lmdb, "open", full)
        for work in (gives_up, lambda t: t.get(b"a")):
            with pytest.raises(StorageError, match=r"cannot be opened.*No space left"):
                store.read(work)
    assert store.read(lambda t: t.get(b"a")) == b"1"
    store.close()


@pytest.mark.parametrize("at_opening", [True, False])
def test_two_processes_of_one_number_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_opening: bool
) -> None:
    """As in containers that share a directory, but not their process numbers."""

    def taken(*_: Any, **__: Any) -> Any:
        raise lmdb.Error("mdb_txn_begin: Resource temporarily unavailable")

    store = None if at_opening else Store(tmp_path / "file.lmdb", map_size=1024**2)
    monkeypatch.setattr(store_module.lmdb, "open", taken)
    with pytest.raises(StorageError, match="common process namespace"):
        (store or Store(tmp_path / "file.lmdb", map_size=1024**2)).read(taken)
    if store is not None:
        store.close()


@pytest.mark.parametrize("what", ["the beacon", "the lock file"])
def test_shared_memory_has_room_on_the_disk_before_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(store_module.os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        Beacon(tmp_path / "beacon") if what == "the beacon" else Store(tmp_path / "x.lmdb", map_size=1024**2)


def test_a_full_disk_keeps_nobody_from_reading(
    hub: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", full)
    monkeypatch.setattr("turnout.artifacts._remove_if_dead", full)
    artifacts = Artifacts(tmp_path / "data")
    found = hub.get_version("a", "v1")
    assert found is not None
    assert artifacts.verify(found.artifact).is_file()
    with pytest.raises(StorageError, match="cannot be written"):
        artifacts.aside()
    artifacts.close()


def test_a_version_is_deleted_though_its_files_stay_and_a_start_removes_them(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", full)
        assert hub.delete_version("a", "v2") is True
        assert hub.delete_version("b", "v2") is True
    assert hub.get_version("a", "v2") is None
    assert len(hub.artifacts.digests()) == 4
    _collect(hub)
    assert len(hub.artifacts.digests()) == 2
    assert all(hub.artifacts.has(found.artifact) for model in "ab" for found in hub.list_versions(model))


def test_an_import_that_was_made_does_not_raise_because_files_stay(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = hub.export_registry()
    (model,) = (model for model in document["models"] if model["model"]["name"] == "a")
    model["versions"] = [found for found in model["versions"] if found["version"] == "v1"]
    monkeypatch.setattr(hub.artifacts, "remove", no_removal)
    assert hub.import_registry(document, replace=True) == ["a", "b"]
    assert [found.version for found in hub.list_versions("a")] == ["v1"]


def no_removal(_: str) -> None:
    raise StorageError("the files cannot be removed")


def test_a_failed_registration_says_why_though_its_files_cannot_be_removed(
    hub: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise StorageError("the disk is full")

    monkeypatch.setattr(hub.artifacts, "remove", no_removal)
    monkeypatch.setattr("turnout.records.Records.commit", fails)
    with pytest.raises(StorageError, match="the disk is full"):
        register(hub, tmp_path, "a", 3)


def test_a_start_removes_files_of_artifacts_alone_and_none_while_a_record_cannot_be_read(
    hub: Turnout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub.artifacts.home / "notes").mkdir()
    (hub.artifacts.home / ("0" * 64)).mkdir()
    monkeypatch.setattr(log_module._Threshold, "level", log_module.ORDER["error"])
    at = key("version", "a", "v1")
    before = hub.registry._store.read(lambda t: t.get(at))
    hub.registry._store.change(lambda t: t.put(at, b"{}"))
    _collect(hub)
    assert len(hub.artifacts.digests()) == 5
    assert "files_left" in capsys.readouterr().err
    hub.registry._store.change(lambda t: t.put(at, before))
    _collect(hub)
    assert len(hub.artifacts.digests()) == 4
    assert (hub.artifacts.home / "notes").is_dir()


def test_a_start_goes_on_where_the_files_cannot_be_listed(
    hub: Turnout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module._Threshold, "level", log_module.ORDER["error"])
    monkeypatch.setattr(Path, "iterdir", full)
    _collect(hub)
    assert "files_left" in capsys.readouterr().err


# --- forks --------------------------------------------------------------------------------------------------------------

FORK = """
import os, sys, threading
sys.path.insert(0, sys.argv[2])
import turnout
from pathlib import Path
from models import constant_label

hub = turnout.open(sys.argv[1], device="cpu")
path = Path(sys.argv[1]).parent / "model.onnx"
for label in (1, 2):
    path.write_bytes(constant_label(label))
    hub.register_version("m", f"v{label}", path)
hub.activate_version("m", "v1")
held, loading, go = threading.Event(), threading.Event(), threading.Event()
def hold():
    with hub.registry.beacon._lock, hub.live._refreshing, hub.telemetry._lock, hub.artifacts._owning:
        held.set()
        go.wait()
load = hub.live.sessions._load
def slow(version):
    if threading.current_thread() is loader:
        loading.set()
        go.wait()
    return load(version)
hub.live.sessions._load = slow
loader = threading.Thread(target=hub.predict, args=("m", [1, 2]), kwargs={"version": "v2"}, daemon=True)
loader.start()
loading.wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    hub.activate_version("m", "v2")
    assert hub.predict("m", [1, 2]).version == "v2"
    hub.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
go.set()
assert status == 0, status
path.write_bytes(constant_label(3))
hub.register_version("m", "v3", path)
assert hub.delete_version("m", "v1") and len(hub.artifacts.digests()) == 2
hub.close()
"""


def test_a_forked_child_waits_for_nobody_and_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path / "data"), str(root / "tests")],
        env={**os.environ, "PYTHONPATH": str(root / "python")},
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stderr
