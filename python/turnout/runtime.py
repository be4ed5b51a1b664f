"""What the processes of a data directory tell each other: who is alive, who serves what, what is being staged.

Everything here may vanish at any time; it is made again. Who is alive is known from file locks, which the kernel
frees when a process dies, so a dead worker is never waited for.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from turnout.beacon import Beacon
from turnout.domain import VersionStatus, WorkerStatus, utc_now
from turnout.errors import StorageError
from turnout.forks import ForkLock
from turnout.locks import Lock, Locks
from turnout.renewable import Renewable
from turnout.store import DamagedError, Store, Transaction, key

T = TypeVar("T")
Fold = Callable[[list[bytes]], bytes]
TABLES = ("worker", "statistics", "stage", "answer")
POLL_SECONDS = 0.001
RETIRED = "retired"
UNKNOWN = "unknown"
"""Stands for workers that cannot be listed."""


class StageRequest(msgspec.Struct, frozen=True):
    """A version that a change is about to make routable: every worker loads it first."""

    token: str
    owner: str
    model: str
    version: str


class _Progress(msgspec.Struct, frozen=True):
    """The part of a WorkerStatus that a waiting process asks for a thousand times a second."""

    generation: int
    reached: int = 0
    held_back: tuple[str, ...] = ()

    def of(self, model: str | None) -> int:
        """The generation that is served of a model; with None, of all of them."""
        return (
            self.generation
            if model is None or model in self.held_back
            else max(self.generation, self.reached)
        )


class Membership:
    """This process as one of the workers."""

    def __init__(self, runtime: Runtime, lock: Lock) -> None:
        self._runtime = runtime
        self._lock = lock
        self._started = utc_now()

    @property
    def id(self) -> str:
        """The worker's id."""
        return self._lock.id

    def publish(
        self,
        *,
        generation: int,
        ready: bool,
        draining: bool,
        versions: tuple[VersionStatus, ...],
        reached: int = 0,
        held_back: tuple[str, ...] = (),
    ) -> None:
        """Tell the others how far this worker is; from the first time on they wait for it."""
        status = WorkerStatus(
            id=self.id,
            pid=os.getpid(),
            started_at=self._started,
            heartbeat_at=utc_now(),
            generation=generation,
            ready=ready,
            draining=draining,
            versions=versions,
            reached=reached,
            held_back=held_back,
        )
        self._runtime.put_worker(status)
        self._lock.mark()

    def leave(self) -> None:
        """Be no worker any more; what it counted stays. Idempotent."""
        self._lock.release()
        self._runtime.forget_worker(self.id)


class Runtime:
    """The shared runtime state of a data directory.

    Whoever finds the database gone or damaged makes a new one, and every process writes its own part into it again.

    Args:
        fold: adds up dumped statistics; those of dead workers are kept as one sum.
    """

    def __init__(self, data: Path, beacon: Beacon, *, map_size: int, fold: Fold) -> None:
        self._locks = Locks(data / "run")
        self._beacon = beacon
        self._fold = fold
        self._file = Renewable(data / "runtime.lmdb", self._locks, map_size)
        self._owner: Lock | None = None
        self._owning = ForkLock()
        self._mine: dict[bytes, bytes] = {}
        self._unwanted: set[str] = set()

    def close(self) -> None:
        """Let go of the database, and of what this process has staged. Idempotent."""
        if self._owner is not None:
            self._owner.release()
        self._file.close()

    # --- workers ------------------------------------------------------------------------------------------------

    def join(self) -> Membership:
        """Become a worker."""
        return Membership(self, self._locks.acquire())

    def workers(self) -> list[WorkerStatus]:
        """Every live worker that has published, by age."""
        found = self._read(lambda t: _decoded(WorkerStatus, (value for _, value in t.scan("worker"))))
        live = [worker for worker in found if self._locks.held(worker.id)]
        return sorted(live, key=lambda worker: worker.started_at)

    def put_worker(self, status: WorkerStatus) -> None:
        """Set the record of a worker of this process."""
        self._put(key("worker", status.id), msgspec.json.encode(status))

    def forget_worker(self, worker: str) -> None:
        """Remove what a worker of this process has left behind."""
        self._mine.pop(key("worker", worker), None)
        with suppress(StorageError):  # whoever asks next does it
            self.retire()

    def all_loaded(self, model: str, version: str) -> bool:
        """Whether every live worker has this version loaded."""
        loaded = {
            worker.id
            for worker in self.workers()
            if any(v.model == model and v.version == version and v.error is None for v in worker.versions)
        }
        return loaded.issuperset(self._locks.marked())

    def wait_generation(self, generation: int, seconds: float, model: str | None = None) -> tuple[str, ...]:
        """Wait until all live workers serve a generation of a model (of all, with None); the ids of those that do not.

        Raises nothing: the change that is waited for has been made already. A worker of which nothing can be read
        counts as one that does not serve it.
        """
        deadline = time.monotonic() + seconds
        while True:
            served = self._served(model)
            try:
                live = self._locks.marked()
            except StorageError:  # too many open files, say; those that were seen are waited for
                live = list(served) or [UNKNOWN]
            pending = tuple(worker for worker in live if served.get(worker, -1) < generation)
            if not pending or time.monotonic() >= deadline:
                return pending
            time.sleep(POLL_SECONDS)

    def _served(self, model: str | None) -> dict[str, int]:
        def read(t: Transaction) -> dict[str, int]:
            return {
                _text(rest): progress.of(model)
                for rest, value in t.scan("worker")
                for progress in _decoded(_Progress, [value])
            }

        try:
            return self._read(read)
        except StorageError:
            return {}

    # --- load before switch -------------------------------------------------------------------------------------

    def stage(self, model: str, version: str) -> str:
        """Ask every worker to load a version; the token of the request."""
        request = StageRequest(uuid.uuid4().hex, self._owner_id(), model, version)
        self._put(key("stage", request.token), msgspec.json.encode(request))
        self._beacon.step(Beacon.STAGE)
        return request.token

    def staged_requests(self) -> list[StageRequest]:
        """What live processes ask the workers to load."""
        live = self._requests()
        self._forget_answers({request.token for request in live})
        return live

    def staging(self) -> frozenset[tuple[str, str]]:
        """Model and version of what live processes ask the workers to load."""
        return frozenset((request.model, request.version) for request in self._requests())

    def _requests(self) -> list[StageRequest]:
        found = self._read(lambda t: _decoded(StageRequest, (value for _, value in t.scan("stage"))))
        return [request for request in found if self._locks.held(request.owner)]

    def answer_stage(self, token: str, worker: str, error: str | None) -> None:
        """Say that a worker has loaded the version, or why it cannot; nobody hears it when the stage is over."""
        at, value = key("answer", token, worker), msgspec.json.encode(error)

        def change(t: Transaction) -> None:
            if t.get(key("stage", token)) is not None:
                t.put(at, value)

        self._mine[at] = value
        self._change(change)

    def wait_staged(self, token: str, seconds: float) -> dict[str, str | None]:
        """Wait until all live workers have answered; what went wrong, by worker, None where nothing did."""
        deadline = time.monotonic() + seconds
        while True:
            said = self._read(
                lambda t: {_text(rest): msgspec.json.decode(value) for rest, value in t.scan("answer", token)}
            )
            live = self._locks.marked()
            answers = {worker: said[worker] for worker in live if worker in said}
            waiting = [worker for worker in live if worker not in said]
            if not waiting:
                return answers
            if time.monotonic() >= deadline:
                late = f"has not loaded it within {seconds:g} s"
                return {**answers, **dict.fromkeys(waiting, late)}
            time.sleep(POLL_SECONDS)

    def unstage(self, token: str) -> None:
        """The change has been made or given up.

        Raises nothing, since a change that was made must not look as if it had failed: what cannot be removed now,
        on a full disk say, is removed with the next one.
        """
        self._unwanted.add(token)
        self._mine.pop(key("stage", token), None)
        tokens = self._unwanted.copy()
        try:
            self._change(lambda t: _drop_stages(t, tokens))
        except StorageError:
            return
        self._unwanted -= tokens
        self._beacon.step(Beacon.STAGE)

    def _owner_id(self) -> str:
        """The lock by which others see that the process that has staged something is alive."""
        with self._owning:
            if self._owner is None or not self._owner.held:
                self._owner = self._locks.acquire()
            return self._owner.id

    def _forget_answers(self, tokens: set[str]) -> None:
        for at in list(self._mine):
            table, *rest = at.split(b"\0")
            if table == b"answer" and _text(rest[0]) not in tokens:
                self._mine.pop(at, None)

    # --- statistics ---------------------------------------------------------------------------------------------

    def put_statistics(self, worker: str, dump: Callable[[], bytes]) -> None:
        """Publish what a worker has counted so far.

        `dump` is asked inside the transaction, so that of two threads the later one writes the higher count. A worker
        that has left is not heard: its counts are in the sum of the dead already.
        """

        def change(t: Transaction) -> None:
            if self._locks.held(worker):
                t.put(key("statistics", worker), dump())

        self._change(change)

    def statistics(self) -> dict[str, bytes]:
        """What was counted, by worker; what dead ones counted under `retired`."""
        self.retire()
        return self._read(lambda t: {_text(rest): value for rest, value in t.scan("statistics")})

    def retire(self) -> None:
        """Remove what dead processes left behind, and add what dead workers counted to one sum."""
        self._locks.marked()  # removes the files of the dead
        if self._read(lambda t: self._dead(t) | self._abandoned(t)):
            self._change(self._bury)
            self._beacon.step(Beacon.STAGE)  # who has loaded a version for a dead process may let go of it

    def _bury(self, t: Transaction) -> None:
        dead = self._dead(t)
        dumps = [t.get(key("statistics", worker)) for worker in (RETIRED, *sorted(dead))]
        for worker in dead:
            t.delete(key("statistics", worker))
            t.delete(key("worker", worker))
        t.put(key("statistics", RETIRED), self._fold([dump for dump in dumps if dump is not None]))
        _drop_stages(t, self._abandoned(t))

    def _dead(self, t: Transaction) -> set[str]:
        known = {_text(rest) for table in ("statistics", "worker") for rest, _ in t.scan(table)} - {RETIRED}
        return {worker for worker in known if not self._locks.held(worker)}

    def _abandoned(self, t: Transaction) -> set[str]:
        """Stages that nobody waits for any more, and those of which only answers are left."""
        requests = _decoded(StageRequest, (value for _, value in t.scan("stage")))
        live = {request.token for request in requests if self._locks.held(request.owner)}
        stages = {_text(rest) for rest, _ in t.scan("stage")}
        return (stages | {_text(rest.split(b"\0")[0]) for rest, _ in t.scan("answer")}) - live

    # --- the database -------------------------------------------------------------------------------------------

    def _put(self, at: bytes, value: bytes) -> None:
        """Set a record of this process, to be set again should the database be lost."""
        self._mine[at] = value
        self._change(lambda t: t.put(at, value))

    def _read(self, work: Callable[[Transaction], T]) -> T:
        store = self._sound()
        try:
            return store.read(work)
        except StorageError as error:
            if not self._lost(store, error):
                raise
            return self._renewed(store).read(work)

    def _change(self, work: Callable[[Transaction], T]) -> T:
        store = self._sound()
        try:
            return store.change(work)
        except StorageError as error:
            if not self._lost(store, error):
                raise
            return self._renewed(store).change(work)

    def _lost(self, store: Store, error: StorageError) -> bool:
        """Whether the database is broken or gone. A full disk or too many open files pass, and it holds all counts."""
        return isinstance(error, DamagedError) or not self._file.sound(self._file.opened) or _damaged(store)

    def _sound(self) -> Store:
        opened = self._file.opened
        return opened.store if self._file.sound(opened) else self._renewed(opened.store)

    def _renewed(self, broken: Store) -> Store:
        """Another database instead of a broken one, with the records of this process; the others then do the same."""
        store = self._file.renew(broken)
        if store is not broken:
            mine = list(self._mine.items())
            store.change(lambda t: [t.put(at, value) for at, value in mine])
            self._beacon.step(Beacon.STAGE)
        return store


def _damaged(store: Store) -> bool:
    """Whether something of a database cannot be read because it is broken."""
    try:
        store.read(lambda t: [None for table in TABLES for _ in t.scan(table)])
    except DamagedError:
        return True
    except StorageError:
        return False
    return False


def _drop_stages(t: Transaction, tokens: Iterable[str]) -> None:
    for token in tokens:
        t.delete(key("stage", token))
        for rest in [rest for rest, _ in t.scan("answer", token)]:
            t.delete(key("answer", token, rest))


def _decoded(kind: type[T], values: Iterable[bytes]) -> list[T]:
    """The records that can be read; another release may write others, and its worker is waited for all the same."""
    found: list[T] = []
    for value in values:
        try:
            found.append(msgspec.json.decode(value, type=kind))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
