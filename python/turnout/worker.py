"""A serving process's part in a change: load before the switch, notice it, acknowledge it, publish statistics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from turnout.config import Settings
from turnout.errors import TurnoutError
from turnout.live import Live, Progress
from turnout.log import log
from turnout.registry import Registry
from turnout.runtime import Runtime, StageRequest
from turnout.telemetry import Telemetry

POLL_SECONDS = 0.004
RETRY_SECONDS = 5.0
FAULT_SECONDS = 0.25
REPORT_SECONDS = 60.0
"""How often a fault that stays is a line in the log, which may lie on the disk that is full."""
ANSWER_ATTEMPTS = 8


class Worker:
    """A background thread beside the front end. It looks at two words of shared memory a few hundred times a second.

    The front end notices a new generation by itself before it answers a request; this thread does so for a worker
    without requests, loads what a change needs, and tells the other processes how far this one is.
    """

    def __init__(
        self, live: Live, runtime: Runtime, registry: Registry, telemetry: Telemetry, settings: Settings
    ) -> None:
        self._live = live
        self._runtime = runtime
        self._registry = registry
        self._telemetry = telemetry
        self._flush_seconds = settings.flush_seconds
        self._membership = runtime.join()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._stages: set[str] = set()
        self._seen_stage = -1
        self._published: Progress | None = None
        self._flush_at = self._retry_at = 0.0
        self._draining = False
        self._faults: dict[str, tuple[str, float]] = {}
        self._thread = threading.Thread(target=self._run, name="turnout-worker", daemon=True)

    @property
    def id(self) -> str:
        """The worker's id, as `status` shows it."""
        return self._membership.id

    def start(self) -> None:
        """Load and warm what the present generation needs, then tell the others that this worker serves it."""
        self._live.preload()
        self._guard(self._publish)
        # From the first publication on changes wait for this worker; what was changed before, it catches up with now.
        while self._behind():
            self._live.preload()
            self._guard(self._publish)
        self._thread.start()

    def _behind(self) -> bool:
        """Whether there was something newer to read."""
        before = self._live.latest.generation
        return self._guard(self._refresh_if_stale) and self._live.latest.generation != before

    def _refresh_if_stale(self) -> None:
        if self._live.stale():
            self._live.refresh()

    def ready(self) -> bool:
        """Whether this worker serves the present generation and is not about to stop."""
        live = self._live
        return (
            not self._draining and not live.failing and live.served_generation == self._registry.generation()
        )

    def drain(self) -> None:
        """Tell the others that this worker is about to stop."""
        self._draining = True
        self._wake.set()

    def flush(self) -> None:
        """Publish the statistics now, so that no other worker shows less than this one is about to show."""
        self._guard(self._put_statistics)

    def stop(self) -> None:
        """Publish the last statistics and leave. Idempotent."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._guard(self._flush)
        self._membership.leave()

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause = POLL_SECONDS if self._guard(self._step) else FAULT_SECONDS
            self._stopped.wait(pause) if pause == FAULT_SECONDS else self._wake.wait(pause)

    def _step(self) -> None:
        live, now = self._live, time.monotonic()
        self._follow()
        if self._registry.beacon[1] != self._seen_stage:
            self._guard(self._stage)
        if live.failing and now >= self._retry_at:
            self._retry_at = now + RETRY_SECONDS
            self._in_background(live.preload)
        if self._wake.is_set() or live.progress != self._published:
            self._wake.clear()
            if not self._guard(self._publish):
                self._stopped.wait(FAULT_SECONDS)
            self._guard(self._trim)
        if now >= self._flush_at:
            self._flush_at = now + self._flush_seconds
            self._guard(self._flush)

    def _follow(self) -> None:
        if self._live.stale():
            self._live.catch_up()

    def _trim(self) -> None:
        if self._live.trim():
            self._wake.set()  # others shall see soon that it is gone

    def _stage(self) -> None:
        seen = self._registry.beacon[1]
        requests = {request.token: request for request in self._runtime.staged_requests()}
        over = self._stages - requests.keys()
        if over:
            # First what these changes have made is wanted for itself; else it would be dropped, and loaded again.
            self._follow()
            self._trim()
        for token in over:
            self._live.unstage(token)
        for token in requests.keys() - self._stages:
            self._live.expect(token)
            self._in_background(lambda request=requests[token]: self._load(request))
        self._stages = set(requests)
        self._seen_stage = seen  # last: what could not be read is read again

    def _load(self, request: StageRequest) -> None:
        error = None
        try:
            self._live.stage(request.token, request.model, request.version)
        except Exception as failure:  # noqa: BLE001 - somebody waits for the answer
            error = str(failure) if isinstance(failure, TurnoutError) else repr(failure)
            log("error", "stage_failed", model=request.model, version=request.version, detail=error)
        for _ in range(ANSWER_ATTEMPTS):
            try:
                self._runtime.answer_stage(request.token, self.id, error)
            except TurnoutError:
                time.sleep(FAULT_SECONDS)
            else:
                return
        log("error", "stage_not_answered", model=request.model, version=request.version)

    def _publish(self) -> None:
        progress = self._live.progress  # taken first: what changes meanwhile is published next
        self._membership.publish(
            generation=progress.generation,
            reached=progress.reached,
            held_back=tuple(sorted(progress.held)),
            ready=self.ready(),
            draining=self._draining,
            versions=self._live.statuses(),
        )
        self._published = progress

    def _flush(self) -> None:
        self._publish()
        self._put_statistics()

    def _put_statistics(self) -> None:
        self._runtime.put_statistics(self.id, self._telemetry.dump)

    def _in_background(self, work: Callable[[], None]) -> None:
        threading.Thread(target=self._guard, args=(work,), name="turnout-load", daemon=True).start()

    def _guard(self, work: Callable[[], None]) -> bool:
        """Run one step; a fault in it is logged and must not end the thread that keeps this worker current."""
        step = getattr(work, "__name__", "load")
        try:
            work()
        except Exception as error:  # noqa: BLE001
            self._report(step, repr(error))
            return False
        self._faults.pop(step, None)
        return True

    def _report(self, step: str, detail: str) -> None:
        known, again_at = self._faults.get(step, ("", 0.0))
        now = time.monotonic()
        if detail != known or now >= again_at:
            self._faults[step] = detail, now + REPORT_SECONDS
            log("error", "worker_step_failed", step=step, detail=detail)
