"""What the processes of a data directory tell each other: who is alive, who serves what, what is being staged.

Everything here may vanish at any time; it is made again. Who is alive is known from file locks, which the kernel
frees when a process dies, so a dead worker is never waited for.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from turnout.domain import VersionStatus, WorkerStatus, utc_now
from turnout.errors import StorageError
from turnout.store import Beacon, Store, Transaction, key

T = TypeVar("T")
Fold = Callable[[list[bytes]], bytes]
POLL_SECONDS = 0.001
RETIRED = "retired"


class StageRequest(msgspec.Struct, frozen=True):
    """A version that a change is about to make routable: every worker loads it first."""

    token: str
    owner: str
    model: str
    version: str


class Lock:
    """A file that is locked as long as this process lives, or until it is let go of."""

    def __init__(self, folder: Path) -> None:
        self.id = uuid.uuid4().hex[:12]
        self._path = folder / self.id
        self._file = self._path.open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def release(self) -> None:
        """Let go of it."""
        self._path.unlink(missing_ok=True)
        self._file.close()


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
        self, *, generation: int, ready: bool, draining: bool, versions: tuple[VersionStatus, ...]
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
        )
        self._runtime.put_worker(status)

    def leave(self) -> None:
        """Be no worker any more; what it counted stays."""
        self._lock.release()
        self._runtime.retire()


class Runtime:
    """The shared runtime state of a data directory.

    Args:
        fold: adds up dumped statistics; those of dead workers are kept as one sum.
    """

    def __init__(self, data: Path, beacon: Beacon, *, map_size: int, fold: Fold) -> None:
        self._path = data / "runtime.lmdb"
        self._locks = data / "run"
        self._locks.mkdir(exist_ok=True)
        self._beacon = beacon
        self._map_size = map_size
        self._fold = fold
        self._store = self._open()
        self._owner: Lock | None = None

    def close(self) -> None:
        """Let go of the database, and of what this process has staged."""
        if self._owner is not None:
            self._owner.release()
        self._store.close()

    # --- workers ------------------------------------------------------------------------------------------------

    def join(self) -> Membership:
        """Become a worker."""
        return Membership(self, Lock(self._locks))

    def workers(self) -> list[WorkerStatus]:
        """Every live worker that has published, by age."""
        found = self._read(
            lambda t: [msgspec.json.decode(value, type=WorkerStatus) for _, value in t.scan("worker")]
        )
        return sorted(
            (worker for worker in found if self._alive(worker.id)), key=lambda worker: worker.started_at
        )

    def put_worker(self, status: WorkerStatus) -> None:
        """Set the record of a worker."""
        if self._store.replaced():
            self._store.close()
            self._store = self._open()
        self._change(lambda t: t.put(key("worker", status.id), msgspec.json.encode(status)))

    def all_loaded(self, model: str, version: str) -> bool:
        """Whether every live worker has this version loaded."""
        return all(
            any(v.model == model and v.version == version and v.error is None for v in worker.versions)
            for worker in self.workers()
        )

    def wait_generation(self, generation: int, seconds: float) -> tuple[str, ...]:
        """Wait until all live workers serve a generation; the ids of those that do not in time."""
        deadline = time.monotonic() + seconds
        while True:
            pending = tuple(worker.id for worker in self.workers() if worker.generation < generation)
            if not pending or time.monotonic() >= deadline:
                return pending
            time.sleep(POLL_SECONDS)

    # --- load before switch -------------------------------------------------------------------------------------

    def stage(self, model: str, version: str) -> str:
        """Ask every worker to load a version; the token of the request."""
        if self._owner is None:
            self._owner = Lock(self._locks)
        request = StageRequest(uuid.uuid4().hex, self._owner.id, model, version)
        self._change(lambda t: t.put(key("stage", request.token), msgspec.json.encode(request)))
        self._beacon.step(Beacon.STAGE)
        return request.token

    def staged_requests(self) -> list[StageRequest]:
        """What live processes ask the workers to load."""
        found = self._read(
            lambda t: [msgspec.json.decode(value, type=StageRequest) for _, value in t.scan("stage")]
        )
        return [request for request in found if self._alive(request.owner)]

    def answer_stage(self, token: str, worker: str, error: str | None) -> None:
        """Say that a worker has loaded the version, or why it cannot."""
        self._change(lambda t: t.put(key("answer", token, worker), msgspec.json.encode(error)))

    def wait_staged(self, token: str, seconds: float) -> dict[str, str | None]:
        """Wait until all live workers have answered; what went wrong, by worker, None where nothing did."""
        deadline = time.monotonic() + seconds
        while True:
            answers = self._read(
                lambda t: {
                    rest.decode(): msgspec.json.decode(value) for rest, value in t.scan("answer", token)
                }
            )
            waiting = [worker.id for worker in self.workers() if worker.id not in answers]
            if not waiting:
                return answers
            if time.monotonic() >= deadline:
                late = f"has not loaded it within {seconds:g} s"
                return {**answers, **dict.fromkeys(waiting, late)}
            time.sleep(POLL_SECONDS)

    def unstage(self, token: str) -> None:
        """The change has been made or given up."""

        def change(t: Transaction) -> None:
            t.delete(key("stage", token))
            for rest in [rest for rest, _ in t.scan("answer", token)]:
                t.delete(key("answer", token, rest))

        self._change(change)
        self._beacon.step(Beacon.STAGE)

    # --- statistics ---------------------------------------------------------------------------------------------

    def put_statistics(self, worker: str, dump: bytes) -> None:
        """Publish what a worker has counted so far."""
        self._change(lambda t: t.put(key("statistics", worker), dump))

    def statistics(self) -> dict[str, bytes]:
        """What was counted, by worker; what dead ones counted under `retired`."""
        self.retire()
        return self._read(lambda t: {rest.decode(): value for rest, value in t.scan("statistics")})

    def retire(self) -> None:
        """Remove what dead processes left behind, and add what dead workers counted to one sum."""

        def change(t: Transaction) -> None:
            known = {rest.decode() for table in ("statistics", "worker") for rest, _ in t.scan(table)} - {
                RETIRED
            }
            dead = [worker for worker in known if not self._alive(worker)]
            dumps = [t.get(key("statistics", worker)) for worker in [RETIRED, *dead]]
            for worker in dead:
                t.delete(key("statistics", worker))
                t.delete(key("worker", worker))
            t.put(key("statistics", RETIRED), self._fold([dump for dump in dumps if dump is not None]))

        names = self._read(
            lambda t: [rest.decode() for table in ("statistics", "worker") for rest, _ in t.scan(table)]
        )
        if not all(name == RETIRED or self._alive(name) for name in names):
            self._change(change)

    # --- the parts ----------------------------------------------------------------------------------------------

    def _alive(self, member: str) -> bool:
        """Whether the process with this id still holds its lock."""
        path = self._locks / member
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def _open(self) -> Store:
        try:
            return Store(self._path, map_size=self._map_size, sync=False)
        except StorageError:
            # Damaged, after a power cut say. It holds nothing that cannot be made again.
            for path in (self._path, self._path.with_name(self._path.name + "-lock")):
                path.unlink(missing_ok=True)
            return Store(self._path, map_size=self._map_size, sync=False)

    def _read(self, work: Callable[[Transaction], T]) -> T:
        return self._store.read(work)

    def _change(self, work: Callable[[Transaction], T]) -> T:
        return self._store.change(work)
