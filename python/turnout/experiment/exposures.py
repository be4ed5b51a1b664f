"""From what the arms of running tests were seen to do to what is stored of it, off the way of a prediction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from turnout import _core
from turnout.domain import Test
from turnout.errors import TurnoutError
from turnout.experiment.counts import ArmCounts, SegmentCounts
from turnout.experiment.events import Events
from turnout.experiment.receipts import Signers
from turnout.experiment.units import FAILED, INVALID, REPLACED, Show, Unit, finite, levels
from turnout.experiment.writer import Place, Writer
from turnout.forks import ForkLock, in_child
from turnout.log import log
from turnout.plans import Metric
from turnout.router import ModelRecord, Witness

ENTRY = np.dtype(
    [
        ("entity", "V16"),
        ("ms", "<u8"),
        ("arm", "u1"),
        ("kind", "u1"),
        ("level", "u1"),
        ("scored", "u1"),
        ("score", "<f4"),
        ("predicted", "<u2"),
        ("padding", "<u2"),
    ]
)
"""An entry of `_core.Watch.drain`."""
ANSWERED, INVALID_KIND, FAILED_KIND, REPLACED_KIND = range(4)
NANOSECONDS = 1e9
MOST_LEFT = 2_000_000
"""Entries that are kept while they cannot be written."""
KEPT_SECONDS = 60.0
"""How long a revision that is over is watched: until what was in flight then has surely been noted."""


class Scope(NamedTuple):
    """A revision of a test, as it is being watched."""

    test: Test
    metrics: tuple[Metric, ...]
    watch: _core.Watch

    @property
    def key(self) -> tuple[str, int, int]:
        """Model, test, revision."""
        return self.test.model, int(self.test.id), self.test.revision


class Batch(NamedTuple):
    """What was drained of one scope and waits to be written."""

    scope: Scope
    entries: Any
    counters: list[list[int]]
    dropped: int


class Exposures:
    """Watches the running tests of this process, and writes down what was seen.

    Args:
        seen: called after something was written, with whether there was a bad event among it.
    """

    def __init__(
        self,
        events: Events,
        signers: Signers,
        seen: Callable[[bool], None] = lambda _: None,
        ahead_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self._events = events
        self._signers = signers
        self._seen = seen
        self._ahead_ms = ahead_ms
        self._scopes: dict[tuple[str, int, int], Scope] = {}
        self._over: dict[tuple[str, int, int], float] = {}
        self._left: list[Batch] = []
        self._lock = ForkLock()
        self._flushing = ForkLock()
        self._failing = False
        in_child(self, Exposures.forget)

    def forget(self) -> None:
        """In a forked child: what was seen is its parent's to write down. Watches go on empty."""
        self._left = []
        for scope in self._scopes.values():
            scope.watch.drain()

    def witness(self, record: ModelRecord) -> Witness:
        """Who signs the answers of a model, and watches its running test."""
        name, test = record.model.name, record.test
        signer = self._signers.signer(name)
        at = None if test is None else (name, int(test.id), test.revision)
        with self._lock:
            for other in self._scopes:
                if other[0] == name and other != at:
                    self._over.setdefault(other, time.monotonic())
            if test is None or at is None:
                return Witness(signer, None)
            scope = self._scopes.get(at)
            watch = _watch_of(test) if scope is None else scope.watch
            self._scopes[at] = Scope(test, record.model.metrics, watch)
            self._over.pop(at, None)
        return Witness(signer, watch)

    def flush(self) -> int:
        """Write down what was seen; how many entries that were. What cannot be written now is kept for the next time."""
        with self._flushing:
            batches = [*self._left, *self._drained()]
            self._left = []
            if not batches:
                return 0
            try:
                self._write_all(batches)
            except TurnoutError as error:
                if not self._failing:
                    log("error", "exposures_not_written", detail=error.detail)
                self._failing = True
                self._left = _bounded(batches)
                return 0
            self._failing = False
        self._seen(any(sum(counters[1:4]) for batch in batches for counters in batch.counters))
        return sum(len(batch.entries) for batch in batches)

    def _drained(self) -> list[Batch]:
        """What was seen since the last time; watches of revisions that have long been over go."""
        with self._lock:
            found = _drained(list(self._scopes.values()), self._ahead_ms())
            oldest = time.monotonic() - KEPT_SECONDS
            for at in [at for at, since in self._over.items() if since < oldest]:
                del self._over[at]
                self._scopes.pop(at, None)
        return found

    def _write_all(self, batches: list[Batch]) -> None:
        """Write batches in one transaction; if one of them cannot be, each by itself, and that one is given up."""
        try:
            self._events.write(lambda writer: [_write(writer, batch) for batch in batches])
        except TurnoutError:
            raise
        except Exception:  # noqa: BLE001 - a record of one model that cannot be read, say
            for batch in batches:
                try:
                    self._events.write(lambda writer, batch=batch: _write(writer, batch))
                except TurnoutError:
                    raise
                except Exception as error:  # noqa: BLE001
                    log("error", "exposures_lost", model=batch.scope.test.model, detail=repr(error))


def _bounded(batches: list[Batch]) -> list[Batch]:
    """What is kept while it cannot be written: the oldest entries; of others it is only known how many there were."""
    room, kept = MOST_LEFT, []
    for batch in batches:
        entries = batch.entries[:room]
        lost = len(batch.entries) - len(entries)
        room -= len(entries)
        kept.append(batch._replace(entries=entries, dropped=batch.dropped + lost))
    return kept


def _watch_of(test: Test) -> _core.Watch:
    thresholds = [round(seconds * NANOSECONDS) for seconds in test.thresholds] or None
    return _core.Watch(len(test.arms), thresholds)


def _drained(scopes: list[Scope], ahead_ms: int) -> list[Batch]:
    """What watches have seen; times become those of the steady clock, which is so far ahead of the wall clock."""
    found: list[Batch] = []
    for scope in scopes:
        drained, counters, dropped = scope.watch.drain()
        if drained or dropped or any(map(any, counters)):
            entries = np.frombuffer(drained, ENTRY).copy()
            entries["ms"] = (entries["ms"].astype(np.int64) + ahead_ms).astype(np.uint64)
            found.append(Batch(scope, entries, counters, dropped))
    return found


def began(test: Test) -> SegmentCounts:
    """The counts of a revision of a test, before anything was counted."""
    slots = sum(arm.slots for arm in test.arms) or 1
    return SegmentCounts(
        revision=test.revision,
        started_ms=round(test.changed_at.timestamp() * 1000),
        shares={arm.version: arm.slots / slots for arm in test.arms},
        arms={arm.version: ArmCounts() for arm in test.arms},
    )


def _write(writer: Writer, batch: Batch) -> None:
    test, metrics = batch.scope.test, batch.scope.metrics
    model, number, revision = batch.scope.key
    segment = writer.segment(model, number, revision, lambda: began(test))
    segment.dropped += batch.dropped
    names = [arm.version for arm in test.arms]
    for name, counters in zip(names, batch.counters, strict=True):
        arm = segment.arm(name)
        arm.requests = [a + b for a, b in zip(arm.requests, counters[:4], strict=True)]
        arm.anonymous += sum(counters[4:8])
        _add_loose(arm, counters[4:8], counters[8:])
    for entity, ms, arm, kind, level, scored, score, predicted, _ in batch.entries.tolist():
        said = finite(score) if scored else None
        show = Show(
            segment=revision,
            arm=names[arm],
            ms=ms,
            answered=kind <= INVALID_KIND,
            score=said,
            predicted=predicted,
        )
        if said is not None and names[arm] == test.baseline:
            show.champion = said
        note(writer, Place(model, number, entity), show, metrics, kind, level)


def note(
    writer: Writer, place: Place, show: Show, metrics: tuple[Metric, ...], kind: int, level: int
) -> None:
    """Take in what an arm did for an entity: an exposure where it is the first in its segment, and bad events."""
    unit = writer.find(place)
    if unit is None:
        if writer.gone(place.entity) >= show.ms:
            return  # forgotten since: what another process had not written down yet
        unit = writer.unit(place)
    known = unit.show(show.segment)
    if known is None:
        writer.expose(place, unit, show, metrics)
    else:
        _merge(writer, place, unit, known, show, metrics)
    marks = _marks(kind, level) & ~unit.marks
    if marks:
        unit.marks |= marks
        arm = writer.segment(place.model, place.test, show.segment).arm(show.arm)
        for bad in range(marks.bit_length()):
            arm.bad[bad] += marks >> bad & 1


def _merge(
    writer: Writer, place: Place, unit: Unit, known: Show, show: Show, metrics: tuple[Metric, ...]
) -> None:
    """The same exposure, seen once more: by another worker, or answered after it had failed."""
    better = known.score is None and show.score is not None
    if known.arm != show.arm or (known.answered >= show.answered and not better):
        return
    if show.answered and not known.answered:
        writer.segment(place.model, place.test, known.segment).arm(known.arm).answered += 1

    def work(_: Unit) -> None:
        known.answered = known.answered or show.answered
        if better:
            known.score, known.predicted = show.score, show.predicted
            known.champion = show.champion if known.champion is None else known.champion

    writer.change(place, unit, metrics, work)


def _marks(kind: int, level: int) -> int:
    """The bad events that an entry is, as bits."""
    found = sum(1 << bad for bad in levels(level))
    if kind == INVALID_KIND:
        found |= 1 << INVALID
    elif kind in {FAILED_KIND, REPLACED_KIND}:
        found |= 1 << FAILED
        found |= (kind == REPLACED_KIND) << REPLACED
    return found


def _add_loose(arm: ArmCounts, kinds: list[int], slow: list[int]) -> None:
    """Requests without entity: each bad one counts."""
    _, invalid, failed, replaced = kinds
    found = [failed + replaced, replaced, invalid, *slow]
    arm.loose = [a + b for a, b in zip(arm.loose, found, strict=True)]


class Flusher:
    """A thread that calls something every so often, and at once when it is woken."""

    def __init__(self, name: str, seconds: float, work: Callable[[], Any]) -> None:
        self._seconds = seconds
        self._work = work
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Do it now."""
        self._wake.set()

    def stop(self) -> None:
        """End after what is being done. Idempotent."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(self._seconds)
            self._wake.clear()
            try:
                self._work()
            except Exception as error:  # noqa: BLE001 - the thread must go on
                log("error", "worker_step_failed", step=self._thread.name, detail=repr(error))
