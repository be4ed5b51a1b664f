"""What processes tell each other, with real processes that are killed, and with a database that vanishes."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from turnout.beacon import Beacon
from turnout.domain import VersionStatus
from turnout.errors import StorageError
from turnout.locks import Locks
from turnout.runtime import TABLES, Runtime
from turnout.store import Store, key
from turnout.telemetry import Merged, Telemetry, fold

SPAWN = multiprocessing.get_context("spawn")
SMALL = 1024**2
V1 = VersionStatus(model="churn", version="v1", device="cpu")


def opened(data: Path) -> Runtime:
    return Runtime(data, Beacon(data / "beacon"), map_size=SMALL, fold=fold)


@pytest.fixture
def runtime(tmp_path):
    one = opened(tmp_path)
    yield one
    one.close()


def publish(member, generation=1, versions=()):
    member.publish(generation=generation, ready=True, draining=False, versions=versions)


def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
    return found


class Worker:
    """A serving process: it follows the beacon as a real one does, answers stages, and counts."""

    def __init__(self, data: Path, role=None, *args) -> None:
        here, there = SPAWN.Pipe()
        self.process = SPAWN.Process(target=role or follow, args=(data, there, *args), daemon=True)
        self.process.start()
        there.close()
        self.pipe = here
        self.id = self.hear()

    def hear(self):
        assert self.pipe.poll(20), "the worker says nothing"
        return self.pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)
        assert self.process.exitcode == -signal.SIGKILL
        self.pipe.close()


@pytest.fixture
def start(tmp_path):
    workers: list[Worker] = []

    def begin(role=None, *args) -> Worker:
        workers.append(Worker(tmp_path, role, *args))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.process.kill()
        worker.process.join(10)
        worker.pipe.close()


def follow(data: Path, pipe, error: str | None = None) -> None:
    """Serve what the beacon says, load what is staged (or fail to), record a request each round."""
    runtime, beacon, telemetry = opened(data), Beacon(data / "beacon"), Telemetry()
    member = runtime.join()
    publish(member, beacon[0])
    pipe.send(member.id)
    answered: set[str] = set()
    seen = (0, 0)
    while os.getppid() != 1:
        telemetry.series("churn", "v1", "active", "").record(1000, 10)
        if (words := (beacon[0], beacon[1])) != seen:
            seen = words
            publish(member, words[0], (V1,))
            requests = {request.token for request in runtime.staged_requests()}
            for token in requests - answered:
                runtime.answer_stage(token, member.id, error)
            answered = requests
        runtime.put_statistics(member.id, telemetry.dump)
        time.sleep(0.002)


def stay(data: Path, pipe) -> None:
    """Publish once, and then nothing more."""
    member = opened(data).join()
    publish(member, 1)
    pipe.send(member.id)
    time.sleep(60)


def contents(data: Path) -> dict[str, list[bytes]]:
    store = Store(data / "runtime.lmdb", map_size=SMALL, sync=False)
    found = store.read(lambda t: {table: [rest for rest, _ in t.scan(table)] for table in TABLES})
    store.close()
    return found


# --- who is alive ---------------------------------------------------------------------------------------------------


def test_a_worker_is_one_from_its_first_publication_until_it_leaves(runtime):
    member = runtime.join()
    assert runtime.workers() == []
    assert runtime.wait_generation(5, 0) == ()
    publish(member, 4, (V1,))
    (status,) = runtime.workers()
    assert (status.id, status.pid, status.generation) == (member.id, os.getpid(), 4)
    assert status.versions == (V1,)
    assert runtime.wait_generation(4, 0) == ()
    assert runtime.wait_generation(5, 0) == (member.id,)
    member.leave()
    member.leave()
    assert runtime.workers() == []
    assert runtime.wait_generation(5, 0) == ()


def test_workers_are_listed_by_age(runtime):
    members = [runtime.join() for _ in range(3)]
    for member in reversed(members):
        publish(member)
    assert [worker.id for worker in runtime.workers()] == [member.id for member in members]


def test_a_killed_worker_is_not_waited_for(runtime, start):
    worker = start(stay)
    waited: list[tuple[str, ...]] = []
    waiting = threading.Thread(target=lambda: waited.append(runtime.wait_generation(2, 20)))
    waiting.start()
    assert runtime.wait_generation(2, 0.05) == (worker.id,)
    killed = time.monotonic()
    worker.kill()
    waiting.join(10)
    assert waited == [()]
    assert time.monotonic() - killed < 5
    assert runtime.workers() == []


def test_a_stopped_worker_is_waited_for_and_named(runtime, start):
    worker = start()
    os.kill(worker.process.pid, signal.SIGSTOP)
    assert runtime.wait_generation(10**9, 0.1) == (worker.id,)


def test_a_wait_ends_soon_after_the_last_acknowledgement(runtime):
    member = runtime.join()
    publish(member, 0)
    late: list[float] = []
    for generation in range(1, 21):
        ended: list[float] = []
        waiting = threading.Thread(
            target=lambda g=generation, e=ended: e.append(
                (runtime.wait_generation(g, 10), time.monotonic())[1]
            )
        )
        waiting.start()
        time.sleep(0.005)
        publish(member, generation)
        acknowledged = time.monotonic()
        waiting.join(10)
        late.append(ended[0] - acknowledged)
    assert sorted(late)[10] < 0.02  # the machine of a test run may be busy; alone it is 1 ms


def test_a_forked_child_does_not_keep_its_parent_alive(runtime, start):
    worker = start(fork_and_stay)
    child = worker.hear()
    try:
        worker.kill()
        assert runtime.wait_generation(2, 0) == ()
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def fork_and_stay(data: Path, pipe) -> None:
    member = opened(data).join()
    publish(member, 1)
    pipe.send(member.id)
    child = os.fork()
    if child == 0:
        signal.alarm(25)
        signal.pause()
    pipe.send(child)
    time.sleep(60)


def test_a_lock_is_never_taken_for_a_leftover(tmp_path):
    locks = Locks(tmp_path / "run")
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            locks.marked()

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    held = [locks.acquire() for _ in range(150)]
    stop.set()
    for sweeper in sweepers:
        sweeper.join()
    assert all(locks.held(lock.id) for lock in held)
    for lock in held:
        lock.release()
    assert list((tmp_path / "run").iterdir()) == []


def test_an_id_is_never_a_path(runtime, tmp_path):
    precious = tmp_path / "registry.lmdb"
    precious.write_bytes(b"precious")
    runtime._change(lambda t: t.put(key("statistics", "../registry.lmdb"), fold([])))
    runtime._change(lambda t: t.put(key("worker", b"\xff/\xfe"), b"{"))
    runtime.statistics()
    assert precious.read_bytes() == b"precious"
    assert contents(tmp_path)["statistics"] == [b"retired"]


# --- load before switch ---------------------------------------------------------------------------------------------


def test_every_worker_answers_a_stage(runtime, start):
    good, bad = start(), start(follow, "no such operator")
    token = runtime.stage("churn", "v2")
    assert runtime.wait_staged(token, 20) == {good.id: None, bad.id: "no such operator"}
    runtime.unstage(token)
    assert runtime.staged_requests() == []


def test_a_worker_that_dies_while_it_loads_is_dropped_and_a_late_one_named(runtime, start, tmp_path):
    dying, late = start(stay), runtime.join()
    publish(late)
    token = runtime.stage("churn", "v2")
    (request,) = runtime.staged_requests()
    assert (request.token, request.model, request.version) == (token, "churn", "v2")
    assert set(runtime.wait_staged(token, 0)) == {dying.id, late.id}
    dying.kill()
    assert runtime.wait_staged(token, 0.01) == {late.id: "has not loaded it within 0.01 s"}
    runtime.unstage(token)
    runtime.answer_stage(token, late.id, None)
    assert contents(tmp_path)["answer"] == []


def test_the_stages_of_a_dead_process_are_removed(runtime, start, tmp_path):
    worker = start(stage_and_stay)
    (request,) = runtime.staged_requests()
    runtime.answer_stage(request.token, "0123456789ab", None)
    worker.kill()
    assert runtime.staged_requests() == []
    runtime.retire()
    assert contents(tmp_path) == {"worker": [], "statistics": [b"retired"], "stage": [], "answer": []}


def stage_and_stay(data: Path, pipe) -> None:
    pipe.send(opened(data).stage("churn", "v2"))
    time.sleep(60)


def test_threads_that_stage_at_once_share_one_lock(runtime):
    tokens: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: tokens.append(runtime.stage("churn", f"v{n}"))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {request.token for request in runtime.staged_requests()} == set(tokens)
    assert len({request.owner for request in runtime.staged_requests()}) == 1


def test_all_loaded_asks_every_worker(runtime):
    assert runtime.all_loaded("churn", "v1")  # there is nobody who could lack it
    first, second = runtime.join(), runtime.join()
    publish(first, 1, (V1,))
    publish(second, 1)
    assert not runtime.all_loaded("churn", "v1")
    publish(second, 1, (V1,))
    assert runtime.all_loaded("churn", "v1")
    publish(second, 1, (VersionStatus(model="churn", version="v1", error="broken"),))
    assert not runtime.all_loaded("churn", "v1")


def test_a_stage_that_cannot_be_removed_now_is_removed_later(runtime, monkeypatch):
    token = runtime.stage("churn", "v2")

    def fail(work):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(runtime, "_change", fail)
        runtime.unstage(token)
    assert [request.token for request in runtime.staged_requests()] == [token]
    runtime.unstage(runtime.stage("churn", "v3"))
    assert runtime.staged_requests() == []


# --- statistics -----------------------------------------------------------------------------------------------------


def total(runtime: Runtime) -> int:
    return Merged.from_dumps(runtime.statistics().values()).live("churn", "v1").requests


def test_counts_never_fall_when_workers_die_or_leave(runtime, start, tmp_path):
    other, stop, seen = opened(tmp_path), threading.Event(), []

    def watch() -> None:
        before = 0
        while not stop.is_set():
            now = total(other)
            seen.append(now - before)
            before = now

    watching = threading.Thread(target=watch)
    watching.start()
    for _ in range(3):
        workers = [start(), start()]
        until(lambda: len(runtime.workers()) == 2)
        before = total(runtime)
        until(lambda before=before: total(runtime) > before + 20)
        before = total(runtime)
        for worker in workers:
            worker.kill()
        assert total(runtime) >= before
    stop.set()
    watching.join()
    assert len(seen) > 10
    assert min(seen) >= 0
    assert set(runtime.statistics()) == {"retired"}
    assert list((tmp_path / "run").iterdir()) == []
    other.close()


def test_a_worker_that_has_left_is_not_counted_twice(runtime):
    telemetry, member = Telemetry(), runtime.join()
    telemetry.series("churn", "v1", "active", "").record(1000, 10)
    runtime.put_statistics(member.id, telemetry.dump)
    publish(member)
    member.leave()
    assert set(runtime.statistics()) == {"retired"}
    runtime.put_statistics(member.id, telemetry.dump)
    assert total(runtime) == 1


def test_of_two_threads_the_later_one_writes_the_higher_count(runtime):
    telemetry, member = Telemetry(), runtime.join()
    publish(member)
    seen: list[int] = []

    def flush() -> None:
        for _ in range(100):
            telemetry.series("churn", "v1", "active", "").record(1000, 10)
            runtime.put_statistics(member.id, telemetry.dump)

    threads = [threading.Thread(target=flush) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(total(runtime))
    for thread in threads:
        thread.join()
    assert seen == sorted(seen)
    assert total(runtime) == 200


def busy(data: Path, pipe, seed: int) -> None:
    """Everything that a process may be doing when it is killed."""
    pipe.send("begun")
    chance, telemetry = random.Random(seed), Telemetry()
    while True:
        runtime = opened(data)
        member = runtime.join()
        for generation in range(chance.randrange(1, 6)):
            publish(member, generation, (V1,))
            telemetry.series("churn", "v1", "active", "").record(1000, 10)
            runtime.put_statistics(member.id, telemetry.dump)
            token = runtime.stage("churn", "v2")
            for request in runtime.staged_requests():
                runtime.answer_stage(request.token, member.id, None)
            runtime.wait_staged(token, 0.002)
            runtime.wait_generation(generation, 0.002)
            runtime.statistics()
            if chance.random() < 0.7:
                runtime.unstage(token)
        if chance.random() < 0.7:
            member.leave()
        runtime.close()


def test_nothing_is_left_of_processes_killed_at_random_points(runtime, start, tmp_path):
    chance = random.Random(7)
    for round_ in range(12):
        workers = [start(busy, round_ * 2 + n) for n in range(2)]
        time.sleep(chance.uniform(0, 0.15))
        for worker in workers:
            worker.kill()
        began = time.monotonic()
        assert runtime.wait_generation(10**9, 10) == ()
        assert runtime.workers() == runtime.staged_requests() == []
        assert time.monotonic() - began < 5
    assert set(runtime.statistics()) <= {"retired"}
    assert {table: rest for table, rest in contents(tmp_path).items() if rest} == {"statistics": [b"retired"]}
    assert list((tmp_path / "run").iterdir()) == []


# --- the database vanishes ------------------------------------------------------------------------------------------


def delete(*names: str):
    def damage(data: Path) -> None:
        for name in names:
            (data / name).unlink()

    return damage


def overwrite_head(data: Path) -> None:
    with (data / "runtime.lmdb").open("r+b") as file:
        file.write(os.urandom(64))


def cut(data: Path) -> None:
    os.truncate(data / "runtime.lmdb", 0)


def replace(data: Path) -> None:
    (data / "garbage").write_bytes(os.urandom(100_000))
    (data / "garbage").replace(data / "runtime.lmdb")


DAMAGES = {
    "the file is deleted": delete("runtime.lmdb"),
    "the lock file is deleted": delete("runtime.lmdb-lock"),
    "both are deleted": delete("runtime.lmdb", "runtime.lmdb-lock"),
    "the head is overwritten": overwrite_head,
    "it is cut": cut,
    "another file takes its place": replace,
}


ENDED = {-signal.SIGABRT, -signal.SIGBUS}
"""How LMDB ends a process whose file is overwritten in the middle of its transaction; a server starts another one."""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_lost_database_is_made_again_while_processes_run(runtime, start, tmp_path, damage):
    mine = runtime.join()
    publish(mine, 10)
    others = [start(), start()]
    in_place = damage in {overwrite_head, cut}

    def ids():
        return {mine.id, *(worker.id for worker in others)}

    def living():
        gone = [worker for worker in others if not worker.process.is_alive()]
        assert all(in_place and worker.process.exitcode in ENDED for worker in gone)
        return ids() - {worker.id for worker in gone}

    def are_there(found):
        assert set(found) <= ids()
        until(lambda: living() <= set(found))

    until(lambda: {worker.id for worker in runtime.workers()} == ids())
    for round_ in range(3):
        damage(tmp_path)
        generation = 11 + round_
        are_there(runtime.wait_generation(generation, 0))
        Beacon(tmp_path / "beacon").raise_to(0, generation)
        publish(mine, generation)
        assert runtime.wait_generation(generation, 20) == ()
        token = runtime.stage("churn", "v2")
        runtime.answer_stage(token, mine.id, None)
        found = runtime.wait_staged(token, 20)
        assert set(found.values()) == {None}
        are_there(found)
        runtime.unstage(token)
        are_there([worker.id for worker in runtime.workers()])
        assert until(lambda: total(runtime)) > 0
        others = [worker if worker.process.is_alive() else start() for worker in others]
        until(lambda: {worker.id for worker in runtime.workers()} == ids())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_stage_outlives_the_database(runtime, start, tmp_path, damage):
    worker, mine = start(), runtime.join()
    publish(mine)
    token = runtime.stage("churn", "v2")
    until(lambda: list(runtime.wait_staged(token, 0).values()).count(None))
    damage(tmp_path)
    runtime.answer_stage(token, mine.id, None)
    found = runtime.wait_staged(token, 20)
    if worker.id not in found:
        until(lambda: not worker.process.is_alive())
        assert damage in {overwrite_head, cut}
        assert worker.process.exitcode in ENDED
    assert {**found, worker.id: None} == {worker.id: None, mine.id: None}


@pytest.mark.parametrize("content", [b"", b"x", os.urandom(5000), bytes(100_000)], ids=len)
def test_a_damaged_database_is_made_again_when_opened(tmp_path, content):
    (tmp_path / "runtime.lmdb").write_bytes(content)
    runtime = opened(tmp_path)
    publish(runtime.join())
    assert len(runtime.workers()) == 1
    runtime.close()


def test_what_was_written_before_the_system_started_is_not_trusted(tmp_path):
    first = opened(tmp_path)
    first._change(lambda t: t.put(key("statistics", "retired"), b"torn"))
    first.close()
    os.utime(tmp_path / "runtime.lmdb", (1, 1))
    second = opened(tmp_path)
    assert second.statistics() == {}
    second.close()


def test_many_processes_and_threads_agree_on_the_new_database(runtime, start, tmp_path):
    others = [start() for _ in range(3)]
    mine = runtime.join()
    publish(mine)
    stop, failures = threading.Event(), []

    def use() -> None:
        try:
            while not stop.is_set():
                publish(mine)
                runtime.statistics()
                runtime.wait_generation(0, 0)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        (tmp_path / "runtime.lmdb").unlink(missing_ok=True)
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(worker.process.is_alive() for worker in others)
    until(lambda: len(runtime.workers()) == 4)


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path):
    process = SPAWN.Process(target=fill_the_disk, args=(tmp_path,))
    process.start()
    process.join(20)
    assert process.exitcode == 0


def fill_the_disk(data: Path) -> None:
    runtime = opened(data)
    member = runtime.join()
    publish(member, 3)
    runtime.put_statistics(member.id, Telemetry().dump)
    file = (data / "runtime.lmdb").stat()
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.st_size + 64 * 1024, resource.RLIM_INFINITY))
    with pytest.raises(StorageError):
        runtime.put_statistics(member.id, lambda: bytes(300_000))
    assert (data / "runtime.lmdb").stat().st_ino == file.st_ino
    assert runtime.wait_generation(3, 0) == ()
    assert len(runtime.workers()) == 1
    runtime.close()


def test_records_of_another_release_are_passed_over_and_their_worker_is_waited_for(runtime):
    member = runtime.join()
    publish(member, 7)
    runtime._change(lambda t: t.put(key("worker", member.id), b'{"words": "of another release"}'))
    assert runtime.workers() == []
    assert runtime.wait_generation(7, 0) == (member.id,)


def test_a_closed_runtime_says_so(tmp_path):
    runtime = opened(tmp_path)
    runtime.close()
    runtime.close()
    with pytest.raises(StorageError, match="closed"):
        runtime.workers()
    assert (tmp_path / "runtime.lmdb").exists()
