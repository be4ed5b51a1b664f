"""The registry: each verb, what it refuses, what it leaves in the log, and two processes at once."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from registries import ME, add, artifact, nothing, opened, version
from turnout._core import Ledger
from turnout.domain import Feature
from turnout.errors import (
    Conflict,
    InvalidName,
    InvalidRequest,
    InvalidSplit,
    ModelNotFound,
    RevisionConflict,
    StorageError,
    TestNotFound,
    TurnoutError,
    VersionExists,
    VersionInUse,
    VersionNotFound,
)
from turnout.records import Author
from turnout.registry import Registry
from turnout.store import key
from turnout.transitions import MAX_OVERRIDES

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def registry(tmp_path):
    found = opened(tmp_path)
    yield found
    found.close()


@pytest.fixture
def churn(registry):
    """A model with three versions; v1 is active."""
    add(registry, "churn", "v1", "v2", "v3")
    registry.activate("churn", "v1", ME)
    return registry


# --- versions -------------------------------------------------------------------------------------------------------


def test_versions_come_in_the_order_of_registration(registry):
    add(registry, "churn", "z", "a", "m")
    assert [v.version for v in registry.versions("churn")] == ["z", "a", "m"]
    assert [v.ordinal for v in registry.versions("churn")] == [1, 2, 3]
    assert registry.version("churn", "a").artifact == artifact("churn/a")
    assert registry.version("churn", "b") is None
    assert [model.name for model in registry.models()] == ["churn"]


def test_the_same_content_again_is_the_same_version_and_no_event(churn):
    before = churn.model("churn")
    again = churn.register(version("churn", "v1"), nothing, ME)
    assert again.value == churn.version("churn", "v1")
    assert again.model == before == churn.model("churn")
    assert len(churn.audit()) == 4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"content": "other"}, "artifact"),
        ({"accuracy": 0.5}, "accuracy"),
        ({"metrics": {"f1": 0.5}}, "metrics"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
def test_a_version_is_immutable(churn, change, field):
    with pytest.raises(VersionExists, match=rf"other content \({field}\)"):
        churn.register(version("churn", "v1", **change), nothing, ME)


def test_what_json_turns_into_something_else_is_stored_as_it_reads_back(registry):
    facts = {"metadata": {"shape": (1, 2), "deep": {1: "one"}}}
    first = registry.register(version("m", "v1", **facts), nothing, ME).value
    assert first.metadata == {"shape": [1, 2], "deep": {"1": "one"}}
    assert registry.register(version("m", "v1", **facts), nothing, ME).value == first


@pytest.mark.parametrize(
    "facts",
    [
        {"accuracy": math.nan},
        {"metrics": {"f1": math.inf}},
        {"metadata": {"deep": [{"x": math.nan}]}},
        {"metadata": {"x": object()}},
        {"metadata": {"x": "\ud800"}},
    ],
    ids=str,
)
def test_what_json_cannot_carry_is_refused(registry, facts):
    with pytest.raises(InvalidRequest, match="version v1 of model m cannot be stored"):
        registry.register(version("m", "v1", **facts), nothing, ME)
    with pytest.raises(InvalidRequest):
        registry.register(version("m", "v1"), nothing, Author("\ud800"))
    assert registry.models() == []
    assert registry.generation() == 0


@pytest.mark.parametrize("name", ["", ".", "..", " v1", "a\0b", "a\nb", "x" * 201, "\ud800", None])
def test_names_that_cannot_be_one(registry, name):
    for field in ("model", "version"):
        with pytest.raises(InvalidName):
            registry.register(replace(version("m", "v1"), **{field: name}), nothing, ME)
    assert registry.models() == []


@pytest.mark.parametrize("name", ["a/b", "ü", "v 1.0", "模型", "x" * 200, "%2F", "a.b"])
def test_names_that_can(registry, name):
    add(registry, name, name)
    registry.activate(name, name, ME)
    registry.set_override(name, "e" * 256, name, ME)
    assert registry.snapshot({}).records[0].versions.keys() == {name}


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800", "", "a\0b"])
def test_looking_for_names_that_cannot_be_finds_nothing(churn, name):
    for look in (churn.model, churn.versions, churn.test, churn.history, churn.overrides):
        with pytest.raises(ModelNotFound):
            look(name)
    assert churn.version("churn", name) is None
    with pytest.raises(VersionNotFound):
        churn.activate("churn", name, ME)
    assert churn.delete("churn", name, ME, nothing).value is False
    assert churn.ledger("churn", name, 1) is None
    assert churn.ledgers("churn", name) == []
    assert churn.audit(model=name) == []


def test_place_runs_before_the_commit_and_stops_it(registry):
    def fail():
        raise StorageError("no space")

    removed = []
    with pytest.raises(StorageError):
        registry.register(version("m", "v1"), fail, ME, removed.append)
    assert registry.models() == []
    assert removed == [artifact("m/v1").sha256]


# --- activation and rollback ----------------------------------------------------------------------------------------


def test_the_exact_texts_of_what_is_not_there(churn):
    with pytest.raises(VersionNotFound, match=r"^Version v9 not found for model churn$"):
        churn.activate("churn", "v9", ME)
    with pytest.raises(VersionNotFound, match=r"^Version v9 not found for model churn$"):
        churn.configure_test("churn", {"v1": 0.5, "v9": 0.5}, None, ME)
    with pytest.raises(ModelNotFound, match=r"^Model none not found$"):
        churn.activate("none", "v9", ME)


def test_activation_remembers_the_last_two_that_were_active(churn):
    for label in ("v2", "v3", "v2"):
        churn.activate("churn", label, ME)
    assert churn.model("churn").active == "v2"
    assert churn.model("churn").former == ("v3", "v1")


def test_activating_the_active_version_is_an_event_but_no_deployment(churn):
    before = churn.model("churn")
    after = churn.activate("churn", "v1", ME).model
    assert (after.active, after.former, after.revision) == ("v1", (), before.revision + 1)
    assert len(churn.deployments("churn")) == 1


def test_rollback_goes_back_and_ends_the_test(churn):
    churn.activate("churn", "v2", ME)
    churn.configure_test("churn", {"v1": 0.5, "v2": 0.5}, None, ME)
    churn.activate("churn", "v3", ME)
    assert churn.test("churn").status == "running"
    assert churn.rollback("churn", None, Author("ann", "it burns")).value.version == "v2"
    assert churn.test("churn") is None
    assert churn.tests("churn")[0].status == "rolled_back"
    assert churn.rollback("churn", "v1", ME).model.former == ("v2", "v3")
    stays = churn.deployments("churn")
    assert [stay.version for stay in stays] == ["v1", "v2", "v3", "v2", "v1"]
    assert next((s.actor, s.reason) for s in stays if s.action == "rollback") == ("ann", "it burns")
    assert all(a.until == b.since for a, b in itertools.pairwise(stays))
    assert stays[-1].until is None


def test_rollback_passes_over_versions_that_were_deleted(churn):
    churn.activate("churn", "v2", ME)
    churn.activate("churn", "v3", ME)
    churn.delete("churn", "v2", ME, nothing)
    assert churn.rollback("churn", None, ME).value.version == "v1"
    churn.delete("churn", "v3", ME, nothing)
    with pytest.raises(Conflict, match="no formerly active version"):
        churn.rollback("churn", None, ME)


# --- deletion -------------------------------------------------------------------------------------------------------


def test_versions_in_use_are_not_deleted(churn):
    churn.configure_test("churn", {"v2": 0.0, "v1": 1.0}, None, ME)
    churn.set_override("churn", "tester", "v3", ME)
    for label, why in (("v1", "active"), ("v2", "arm of the running test 1"), ("v3", "'tester'")):
        with pytest.raises(VersionInUse, match=why):
            churn.delete("churn", label, ME, nothing)
    churn.stop_test("churn", ME)
    assert churn.delete("churn", "v2", ME, nothing).value is True
    assert churn.delete("churn", "v2", ME, nothing).value is False
    assert [v.version for v in churn.versions("churn")] == ["v1", "v3"]


def test_files_go_with_the_last_version_that_has_them(registry):
    for model, label in (("a", "v1"), ("a", "v2"), ("b", "v1")):
        registry.register(version(model, label, "same"), nothing, ME)
    removed = []
    registry.delete("a", "v1", ME, removed.append)
    registry.delete("b", "v1", ME, removed.append)
    assert removed == []
    registry.delete("a", "v2", ME, removed.append)
    assert removed == [artifact("same").sha256]


def test_a_label_may_be_registered_again_after_its_deletion(churn):
    churn.delete("churn", "v3", ME, nothing)
    again = churn.register(version("churn", "v3", "new content"), nothing, ME).value
    assert again.ordinal == 4
    assert churn.history("churn").versions[0] == again


def test_collect_takes_only_what_nothing_refers_to(churn):
    removed = []
    used = artifact("churn/v1").sha256
    churn.collect([used, "0" * 64], removed.append)
    assert removed == ["0" * 64]


# --- tests ----------------------------------------------------------------------------------------------------------


def test_a_test_starts_from_the_active_version(churn):
    churn.activate("churn", "v2", ME)
    test = churn.configure_test("churn", {"v1": 0.8, "v2": 0.2}, None, ME).value
    assert (test.id, test.salt, test.revision, test.status) == ("1", "churn/1", 1, "running")
    assert [(arm.version, arm.weight, arm.slots) for arm in test.arms] == [
        ("v1", 0.8, 80_000),
        ("v2", 0.2, 20_000),
    ]
    ledger, _ = Ledger.start("v2").apply({"v1": 0.8, "v2": 0.2})
    assert churn.ledger("churn", "1", 1).runs == ledger.runs()


def test_without_an_active_arm_the_heaviest_is_the_baseline(registry):
    add(registry, "m", "b", "a", "c")
    registry.configure_test("m", {"b": 0.4, "a": 0.4, "c": 0.2}, None, ME)
    ledger, _ = Ledger.start("a").apply({"b": 0.4, "a": 0.4, "c": 0.2})
    assert registry.ledger("m", "1", 1).runs == ledger.runs()


def test_a_ramp_keeps_id_and_salt_and_every_ledger(churn):
    churn.configure_test("churn", {"v1": 0.9, "v2": 0.1}, "salt", ME)
    first = churn.ledger("churn", "1", 1)
    second = churn.configure_test("churn", {"v1": 0.5, "v2": 0.5}, None, ME).value
    third = churn.configure_test("churn", {"v1": 0.9, "v2": 0.1}, "salt", ME).value
    assert (third.id, third.salt, third.revision, second.revision) == ("1", "salt", 3, 2)
    assert churn.test("churn") == third
    ledgers = churn.ledgers("churn", "1")
    assert [ledger.revision for ledger in ledgers] == [1, 2, 3]
    assert ledgers[0] == first
    assert ledgers[2].runs == first.runs
    moved, _ = Ledger.from_runs(first.runs).apply({"v1": 0.5, "v2": 0.5})
    assert ledgers[1].runs == moved.runs()
    assert ledgers[1].created_at - ledgers[0].created_at >= timedelta(0)


def test_an_arm_may_join_and_leave_a_running_test(churn):
    churn.configure_test("churn", {"v1": 1.0}, None, ME)
    test = churn.configure_test("churn", {"v1": 0.5, "v3": 0.25, "v2": 0.25}, None, ME).value
    assert [arm.version for arm in test.arms] == ["v1", "v2", "v3"]
    test = churn.configure_test("churn", {"v2": 0.5, "v3": 0.5}, None, ME).value
    assert [arm.slots for arm in test.arms] == [50_000, 50_000]


def test_the_salt_of_a_running_test_stays(churn):
    churn.configure_test("churn", {"v1": 1.0}, "a", ME)
    with pytest.raises(Conflict, match="runs with salt 'a'"):
        churn.configure_test("churn", {"v1": 1.0}, "b", ME)
    for salt in ("\ud800", "\0", "x" * 257):
        with pytest.raises(InvalidRequest, match="the salt of a test"):
            churn.configure_test("churn", {"v1": 1.0}, salt, ME)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    "weights",
    [{}, {"v1": 0.5}, {"v1": -0.5, "v2": 1.5}, {"v1": math.nan, "v2": 1.0}, {"v1": math.inf}, {"v1": 0.0}],
)
def test_weights_that_are_no_split(churn, weights, running):
    if running:
        churn.configure_test("churn", {"v1": 1.0}, None, ME)
    before = churn.model("churn")
    with pytest.raises(InvalidSplit):
        churn.configure_test("churn", weights, None, ME)
    assert churn.model("churn") == before


def test_weights_are_normalised(churn):
    test = churn.configure_test("churn", {"v1": 0.8004, "v2": 0.2}, None, ME).value
    assert sum(test.weights.values()) == pytest.approx(1, abs=1e-12)
    with pytest.raises(InvalidSplit, match=r"Traffic splits must sum to 1\.0"):
        churn.configure_test("churn", {"v1": 0.9, "v2": 0.2}, None, ME)


def test_promotion_ends_the_test_and_activates_the_winner(churn):
    with pytest.raises(TestNotFound):
        churn.promote("churn", "v2", ME)
    churn.configure_test("churn", {"v1": 0.5, "v2": 0.5}, None, ME)
    with pytest.raises(VersionNotFound, match="v3 is no arm of the running test 1"):
        churn.promote("churn", "v3", ME)
    head = churn.promote("churn", "v2", ME).model
    assert (head.active, head.test_id, head.former) == ("v2", None, ("v1",))
    test = churn.tests("churn")[0]
    assert (test.status, test.winner, test.ended_at is None) == ("promoted", "v2", False)


def test_a_stopped_test_and_its_successor(churn):
    churn.configure_test("churn", {"v1": 0.5, "v2": 0.5}, None, ME)
    assert churn.stop_test("churn", ME).value.status == "stopped"
    with pytest.raises(TestNotFound):
        churn.stop_test("churn", ME)
    test = churn.configure_test("churn", {"v1": 0.5, "v2": 0.5}, None, ME).value
    assert (test.id, test.salt) == ("2", "churn/2")
    assert [t.id for t in churn.tests("churn")] == ["1", "2"]


# --- overrides ------------------------------------------------------------------------------------------------------


def test_overrides_come_and_go(churn):
    churn.set_override("churn", "", "v2", ME)
    churn.set_override("churn", "ü/1", "v2", ME)
    assert churn.set_override("churn", "ü/1", "v3", ME).model.overrides == 2
    assert churn.overrides("churn") == {"": "v2", "ü/1": "v3"}
    assert churn.snapshot({}).records[0].overrides == {"": "v2", "ü/1": "v3"}
    assert churn.delete_override("churn", "ü/1", ME).value is True
    assert churn.delete_override("churn", "ü/1", ME).value is False
    assert churn.model("churn").overrides == 1


@pytest.mark.parametrize("entity", ["x" * 257, "ü" * 129, "\0", "\ud800"])
def test_entities_that_cannot_be_overridden(churn, entity):
    with pytest.raises(InvalidRequest, match="the entity id of an override"):
        churn.set_override("churn", entity, "v1", ME)
    assert churn.delete_override("churn", entity, ME).value is False


def test_overrides_are_bounded(churn):
    def fill(r):
        for number in range(MAX_OVERRIDES):
            r.put_override("churn", str(number), "v1")
        head = r.model("churn")
        return r.commit("fill", ME, head, replace(head, overrides=MAX_OVERRIDES), None)

    churn.rewrite(fill)
    with pytest.raises(Conflict, match="10000 overrides"):
        churn.set_override("churn", "one more", "v1", ME)
    churn.set_override("churn", "7", "v2", ME)


# --- revisions, events, snapshots -----------------------------------------------------------------------------------

VERBS = {
    "register": lambda r, a: r.register(version("churn", "v9"), nothing, a),
    "activate": lambda r, a: r.activate("churn", "v2", a),
    "rollback": lambda r, a: r.rollback("churn", "v2", a),
    "delete": lambda r, a: r.delete("churn", "v3", a, nothing),
    "configure_test": lambda r, a: r.configure_test("churn", {"v1": 1.0}, None, a),
    "promote": lambda r, a: r.promote("churn", "v2", a),
    "stop_test": lambda r, a: r.stop_test("churn", a),
    "set_override": lambda r, a: r.set_override("churn", "e", "v2", a),
    "delete_override": lambda r, a: r.delete_override("churn", "held", a),
    "load": lambda r, a: r.keep("churn", a, kept=True),
}


@pytest.mark.parametrize("action", VERBS)
def test_every_change_is_one_event_one_generation_and_one_revision(churn, action):
    churn.configure_test("churn", {"v1": 0.5, "v2": 0.5}, None, ME)
    churn.set_override("churn", "held", "v2", ME)
    before, generation = churn.model("churn"), churn.generation()
    with pytest.raises(RevisionConflict, match=f"at revision {before.revision}, not {before.revision - 1}"):
        VERBS[action](churn, Author("bob", "old news", before.revision - 1))
    assert churn.model("churn") == before
    assert churn.generation() == generation
    committed = VERBS[action](churn, Author("bob", "good reasons", before.revision))
    assert committed.model == churn.model("churn")
    assert committed.model.revision == before.revision + 1
    assert committed.generation == churn.generation() == generation + 1
    assert churn.beacon[0] == generation + 1
    (event,) = churn.audit(after=generation)
    assert (event.sequence, event.generation) == (generation + 1, generation + 1)
    assert (event.actor, event.action, event.model, event.reason) == ("bob", action, "churn", "good reasons")
    assert event.before["revision"] == before.revision
    assert event.after["revision"] == before.revision + 1


def test_what_is_kept_is_said_once_and_unsaid_once(churn):
    before = churn.model("churn")
    assert not before.kept
    assert churn.keep("churn", ME, kept=False).value == before
    kept = churn.keep("churn", ME, kept=True).value
    assert kept == churn.model("churn") == replace(before, kept=True, revision=before.revision + 1)
    assert churn.keep("churn", ME, kept=True).value == kept
    assert churn.keep("churn", ME, kept=False).value == replace(before, revision=before.revision + 2)
    assert [event.action for event in churn.audit(after=4)] == ["load", "unload"]
    with pytest.raises(ModelNotFound):
        churn.keep("nope", ME, kept=True)


def test_a_model_of_an_older_release_is_not_kept(churn):
    def older(r):
        record = msgspec.to_builtins(r.model("churn"))
        assert record.pop("kept") is False
        r._t.put(key("model", "churn"), msgspec.json.encode(record))

    before = churn.model("churn")
    churn.rewrite(older)
    assert churn.model("churn") == before


def test_the_log_is_read_in_parts_and_by_model(churn):
    add(churn, "other", "v1")
    assert [e.sequence for e in churn.audit()] == [1, 2, 3, 4, 5]
    assert [e.sequence for e in churn.audit(after=2, limit=2)] == [3, 4]
    assert [e.sequence for e in churn.audit(model="churn", after=1, limit=10)] == [2, 3, 4]
    assert [e.action for e in churn.audit(model="other")] == ["register"]
    assert churn.audit(after=-5) == churn.audit()
    assert churn.audit(after=2**70) == []
    first, last = churn.audit()[0], churn.audit(model="churn")[-1]
    assert first.before is None
    assert first.after["artifact"] == artifact("churn/v1").sha256
    assert (last.before["active"], last.after["active"]) == (None, "v1")


def test_history_tells_everything(churn):
    churn.configure_test("churn", {"v1": 0.5, "v2": 0.5}, None, ME)
    churn.promote("churn", "v2", ME)
    history = churn.history("churn")
    assert history.current_version == "v2"
    assert [v.version for v in history.versions] == ["v3", "v2", "v1"]
    assert [stay.version for stay in history.deployments] == ["v1", "v2"]
    assert [test.status for test in history.tests] == ["promoted"]
    assert [e.action for e in history.events] == ["register"] * 3 + ["activate", "configure_test", "promote"]


def test_a_snapshot_reads_only_what_changed(churn):
    add(churn, "other", "v1")
    full = churn.snapshot({})
    assert full.names == {"churn", "other"}
    assert full.generation == 5
    known = {record.model.name: record.model.revision for record in full.records}
    assert churn.snapshot(known).records == []
    churn.configure_test("churn", {"v1": 0.5, "v2": 0.5}, None, ME)
    (record,) = churn.snapshot(known).records
    assert record.model == churn.model("churn")
    assert list(record.versions) == ["v1", "v2", "v3"]
    assert record.test == churn.test("churn")
    assert record.runs == churn.ledger("churn", "1", 1).runs


def test_a_lost_beacon_is_made_again_and_a_high_one_still_moves(tmp_path):
    registry = opened(tmp_path)
    add(registry, "m", "v1", "v2")
    registry.close()
    (tmp_path / "runtime.beacon").unlink()
    registry = opened(tmp_path)
    assert registry.beacon[0] == 2
    registry.beacon.raise_to(0, 50)  # as beside a registry that was restored from a backup
    registry.activate("m", "v1", ME)
    assert registry.beacon[0] == 51
    registry.close()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be made"):
        opened(tmp_path / "file" / "data")


# --- many processes -------------------------------------------------------------------------------------------------


def race(data: Path, name: str, rounds: int) -> None:
    """Read the revision, change at that revision; on a conflict read again. Each success is acknowledged in a file."""
    registry = Registry(data, map_size=64 * 1024)
    with (data / f"{name}.log").open("a") as log:
        done = 0
        while done < rounds:
            revision = registry.model("churn").revision
            try:
                registry.set_override("churn", f"{name}-{done}", "v1", Author(name, revision=revision))
            except RevisionConflict:
                continue
            log.write(f"{revision}\n")
            done += 1
    registry.close()


def test_of_two_writers_with_the_same_revision_one_wins(churn, tmp_path):
    """Also grows the map of the other process while it writes."""
    start = churn.model("churn").revision
    writers = [SPAWN.Process(target=race, args=(tmp_path, name, 60)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=25)
        assert writer.exitcode == 0
    seen = [int(line) for name in ("a", "b") for line in (tmp_path / f"{name}.log").read_text().split()]
    assert sorted(seen) == list(range(start, start + 120))
    head = churn.model("churn")
    assert (head.revision, head.overrides, len(churn.overrides("churn"))) == (start + 120, 120, 120)
    assert [e.sequence for e in churn.audit(limit=10_000)] == list(range(1, churn.generation() + 1))


def write_until_killed(data: Path, ready) -> None:
    registry = Registry(data, map_size=64 * 1024)
    with (data / "acknowledged").open("a", buffering=1) as log:
        ready.set()
        number = 0
        while True:
            try:
                label = f"{os.getpid()}-{number}"
                registry.register(version("churn", label), nothing, ME)
                registry.activate("churn", label, ME)
                registry.configure_test("churn", {label: 0.5, "v1": 0.5}, None, ME)
                registry.stop_test("churn", ME)
                log.write(f"{label}\n")
            except TurnoutError as error:
                log.write(f"!{error}\n")
            number += 1


def test_killing_a_writer_loses_nothing_and_tears_nothing(churn, tmp_path):
    for wait in (0.01, 0.03, 0.1, 0.2):
        ready = SPAWN.Event()
        writer = SPAWN.Process(target=write_until_killed, args=(tmp_path, ready))
        writer.start()
        assert ready.wait(20)
        time.sleep(wait)  # a random point of its work
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        acknowledged = (tmp_path / "acknowledged").read_text().split("\n")[:-1]
        assert not [line for line in acknowledged if line.startswith("!")]
        assert set(acknowledged) <= {v.version for v in churn.versions("churn")}
        check_whole(churn)


def check_whole(registry: Registry) -> None:
    """The parts of the state fit together."""
    head = registry.model("churn")
    events = registry.audit(limit=100_000)
    assert [e.sequence for e in events] == list(range(1, len(events) + 1)) == [e.generation for e in events]
    assert events[-1].after["revision"] == head.revision
    assert registry.generation() == len(events)
    assert registry.deployments("churn")[-1].version == head.active
    assert [v.ordinal for v in registry.versions("churn")] == list(range(1, head.versions_registered + 1))
    assert len(registry.tests("churn")) == head.tests_started
    running = [test.id for test in registry.tests("churn") if test.status == "running"]
    assert running == ([] if head.test_id is None else [head.test_id])
    registry.snapshot({})


def test_schemas_keep_every_type_of_default(registry):
    features = (
        Feature("i", "int", default=2**53),
        Feature("f", "float", default=0.5, nullable=True),
        Feature("b", "bool", default=False),
        Feature("c", "category", ("a", "b"), "b"),
    )
    registry.register(replace(version("m", "v1"), features=features), nothing, ME)
    stored = registry.version("m", "v1").features
    assert stored == features
    assert [type(feature.default) for feature in stored] == [int, float, bool, str]
