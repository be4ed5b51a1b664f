"""Copies of requests that another version runs after the answer has gone: shadows, and the champion's score of an entity."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict, deque
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turnout.affinity import step_back
from turnout.dialects import Request
from turnout.domain import REASONS
from turnout.errors import TurnoutError
from turnout.experiment.counts import ShadowCounts
from turnout.experiment.desk import Desk
from turnout.experiment.units import finite
from turnout.experiment.writer import Place
from turnout.forks import ForkLock, in_child
from turnout.live import Live
from turnout.log import log
from turnout.router import Serving, score_output

WAITING = 256
WAITING_BYTES = 64 * 1024**2
"""Copies that wait, and what they hold; what comes on top is dropped, and counted."""
REMEMBERED = 1 << 16
CLOSE_ENOUGH = 1e-5
"""Values that differ by less, relative to the larger one, agree."""
TEST = REASONS.index("test")


class Copying(NamedTuple):
    """What is copied of a model's requests.

    A `share` of all for the version at `position` to shadow; with a share of 0 those of other arms, which the baseline at
    `position` is to score for their entity's sake.
    """

    position: int
    share: float


class Score(NamedTuple):
    """What a version said in one row."""

    value: float
    likeliest: int
    columns: int


class Copy(NamedTuple):
    """One request that was answered, and is to be run once more."""

    serving: Serving
    copying: Copying
    request: Request
    position: int
    outputs: list[NDArray[Any]]
    row: int
    entity: bytes | None
    nanoseconds: int


def copying_of(serving: Serving) -> Copying | None:
    """What is to be copied of a model's requests now."""
    test = serving.record.test
    if test is None or test.plan is None or test.baseline is None or test.candidate is None:
        return None
    plan = test.plan
    if plan.steps and plan.steps[test.step].shadow:
        return Copying(serving.index[test.candidate], plan.steps[test.step].shadow)
    return Copying(serving.index[test.baseline], 0.0) if plan.covariate else None


class Copies:
    """A bounded queue of copies and the thread, behind all others, that runs them. It starts with the first copy."""

    def __init__(self, live: Live, desk: Desk) -> None:
        self._live = live
        self._desk = desk
        self._queue: deque[Copy] = deque()
        self._held = 0
        self._ready = threading.Event()
        self._lock = ForkLock()
        self._counts: dict[tuple[str, int], ShadowCounts] = {}
        self._scores: dict[tuple[Place, int], float] = {}
        self._scored: OrderedDict[tuple[Serving, bytes], None] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._closed = False
        in_child(self, Copies.begin_anew)

    def begin_anew(self) -> None:
        """In a forked child: what waits, and what was found, is its parent's; its thread is not here."""
        self._queue.clear()
        self._held = 0
        self._counts, self._scores, self._thread = {}, {}, None

    def offer(
        self,
        request: Request,
        serving: Serving,
        position: int,
        reason: int,
        outputs: list[NDArray[Any]],
        row: int,
        entity: bytes | None,
        nanoseconds: int,
    ) -> None:
        """Copy a request that was answered, if it is among those that are to be copied. Never waits."""
        copying = serving.copying
        if copying is None or position == copying.position:
            return
        if copying.share:
            if random.random() >= copying.share:  # noqa: S311 - a sample, not a secret
                return
        elif reason != TEST or entity is None or (serving, entity) in self._scored:
            return
        if len(self._queue) >= WAITING or self._held + request.size > WAITING_BYTES:
            with self._lock:
                self._of(serving).dropped += bool(copying.share)
            return
        with self._lock:
            self._held += request.size
        self._queue.append(Copy(serving, copying, request, position, outputs, row, entity, nanoseconds))
        if self._thread is None:
            self._start()
        self._ready.set()

    def close(self) -> None:
        """Stop; what waits is dropped."""
        self._closed = True
        self._ready.set()
        if self._thread is not None:
            self._thread.join(5)
        self.flush()

    def flush(self) -> None:
        """Write down what was found. What cannot be written now is kept for the next time."""
        with self._lock:
            counts, self._counts = self._counts, {}
            scores, self._scores = self._scores, {}
        if not counts and not scores:
            return
        try:
            if scores:
                self._desk.exposures.flush()  # a score belongs to a unit, which its exposure makes
            self._desk.keep_copies(counts, scores)
        except TurnoutError:
            with self._lock:
                for at, found in counts.items():
                    self._counts[at] = found.plus(self._counts.get(at, ShadowCounts()))
                self._scores = {**scores, **self._scores}

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="turnout-copies", daemon=True)
                self._thread.start()

    def _of(self, serving: Serving) -> ShadowCounts:
        test = serving.record.test
        number = 0 if test is None else int(test.id)
        return self._counts.setdefault((serving.name, number), ShadowCounts())

    def _run(self) -> None:
        step_back()
        while not self._closed:
            self._ready.wait(1.0)
            self._ready.clear()
            while self._queue and not self._closed:
                copy = self._queue.popleft()
                try:
                    self._one(copy)
                except Exception as error:  # noqa: BLE001 - a copy may not end the thread
                    log("error", "copy_failed", model=copy.serving.name, detail=repr(error))
                with self._lock:
                    self._held -= copy.request.size

    def _one(self, copy: Copy) -> None:
        serving, lane = copy.serving, copy.serving.lanes[copy.copying.position]
        started = perf_counter_ns()
        try:
            _, _, inputs, _ = copy.request.read(serving, copy.copying.position)
            session = self._live.session(lane)
            started = perf_counter_ns()
            outputs = session.run(inputs)
        except TurnoutError as error:
            if copy.copying.share:
                with self._lock:
                    self._of(serving).failed += 1
                log("debug", "shadow_failed", model=serving.name, version=lane.label, detail=error.detail)
            return
        spent = perf_counter_ns() - started
        found = score_at(serving, copy.copying.position, outputs, 0)
        if copy.copying.share:
            said = score_at(serving, copy.position, copy.outputs, copy.row)
            with self._lock:
                _compare(self._of(serving), said, found, copy.nanoseconds, spent)
        elif found is not None and finite(found.value) is not None:
            self._keep_score(copy, found.value)

    def _keep_score(self, copy: Copy, value: float) -> None:
        test, entity = copy.serving.record.test, copy.entity
        if test is None or entity is None:
            return
        with self._lock:
            self._scores[Place(copy.serving.name, int(test.id), entity), test.revision] = value
            self._scored[copy.serving, entity] = None
            if len(self._scored) > REMEMBERED:
                self._scored.popitem(last=False)


def score_at(serving: Serving, position: int, outputs: list[NDArray[Any]], row: int) -> Score | None:
    """What a version said in a row: a value, the probability of the second of two classes, or of the likeliest."""
    index = score_output(serving.lanes[position].version)
    if index is None:
        return None
    output = outputs[index]
    if output.ndim and row >= len(output):
        return None
    values = np.atleast_1d(output[row] if output.ndim else output)
    if values.ndim != 1 or not values.size:
        return None
    likeliest = int(np.argmax(values))
    return Score(float(values[{1: 0, 2: 1}.get(values.size, likeliest)]), likeliest, values.size)


def _compare(
    counts: ShadowCounts, said: Score | None, shadow: Score | None, nanoseconds: int, spent: int
) -> None:
    """Count a pair of answers: do both say the same class, or a value that differs by nothing to speak of?"""
    counts.pairs += 1
    counts.seconds += nanoseconds * 1e-9
    counts.shadow_seconds += spent * 1e-9
    if said is None or shadow is None:
        return
    apart = abs(shadow.value - said.value)
    if finite(apart) is None:
        return
    counts.difference += shadow.value - said.value
    counts.squares += apart * apart
    counts.largest = max(counts.largest, apart)
    if said.columns > 1 and shadow.columns > 1:
        counts.agreed += said.likeliest == shadow.likeliest
    else:
        counts.agreed += apart <= CLOSE_ENOUGH * max(abs(said.value), abs(shadow.value), 1e-12)
