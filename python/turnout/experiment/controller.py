"""Who acts at three in the morning: one live worker follows the plans of all running tests."""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from turnout.domain import Test
from turnout.errors import RevisionConflict, StorageError, TestNotFound, TurnoutError
from turnout.experiment.clock import Clock
from turnout.experiment.counts import SegmentCounts, TestCounts
from turnout.experiment.decisions import ENOUGH_FOR_THRESHOLDS, Decision, decide
from turnout.experiment.evidence import moments
from turnout.experiment.exposures import Flusher
from turnout.experiment.statistics.bandit import allocate, unbiased_mean
from turnout.experiment.statistics.means import Moments
from turnout.log import log
from turnout.plans import Metric
from turnout.records import Author
from turnout.router import ModelRecord

ACTOR = "controller"
TAKE_OVER_SECONDS = 0.5
"""How often those who are not the controller ask whether there is one."""
DRAWS = 4000
PRUNE_SECONDS = 60.0
CALIBRATE_SECONDS = 1.0
"""How often the latencies of a baseline are asked for, until enough of them are known."""


class Acting(Protocol):
    """What the controller needs of the service: to look at tests, and to change them as anybody else would."""

    clock: Clock

    def running_tests(self) -> Sequence[tuple[int, ModelRecord]]:
        """The revision and the records of each model with a running test, as they are in the registry."""
        ...

    def counts_of(self, test: Test) -> TestCounts:
        """The counts of a test."""
        ...

    def errors_of(self, record: ModelRecord, test: Test) -> frozenset[str]:
        """The label metrics whose values are errors."""
        ...

    def mature(self, record: ModelRecord, test: Test) -> None:
        """Count what has matured."""
        ...

    def latencies(self, model: str, version: str) -> tuple[int, tuple[float, ...]]:
        """How many answers of a version are known, and their p50, p75, p90, p95, p99, p99.9 in seconds."""
        ...

    def act(
        self, test: Test, action: str, author: Author, evidence: dict[str, Any], **change: object
    ) -> None:
        """Advance, allocate, finish, roll back or calibrate."""
        ...

    def follow(self, record: ModelRecord, test: Test) -> None:
        """Note how the numbers go."""
        ...

    def tidy(self) -> None:
        """Remove what is older than the settings say."""
        ...


class Leadership:
    """A file that one live process has locked; the kernel frees it when that process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._pid = 0

    def held(self) -> bool:
        """Whether this process is the one, trying to become it. A forked child is not what its parent is."""
        if self._file >= 0 and self._pid == os.getpid():
            return True
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be opened: {error}") from error
        try:
            # Of the process, not of the descriptor: a forked worker that inherits it does not hold the lock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._file, self._pid = file, os.getpid()
        os.truncate(file, 0)
        os.pwrite(file, f"{self._pid}\n".encode(), 0)
        log("info", "controller_here", pid=self._pid)
        return True

    def release(self) -> None:
        """Let another one take over. Idempotent."""
        if self._file >= 0 and self._pid == os.getpid():
            os.close(self._file)
        self._file = -1


class Controller:
    """Looks at every running test in a fixed beat, and does what its plan says.

    A decision is one change of the registry, made against the revision of the model that it was computed from: whoever
    comes too late changes nothing, and what was decided once is not decided again after a crash.
    """

    def __init__(self, acting: Acting, leadership: Leadership, seconds: float) -> None:
        self._acting = acting
        self._leadership = leadership
        self._flusher = Flusher("turnout-controller", seconds, self.tick)
        self._asked_at = -math.inf
        self._led = False
        self._tidied_at = time.monotonic()
        self._allocated: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._calibrated: dict[str, float] = {}

    def start(self) -> None:
        """Begin."""
        self._flusher.start()

    def wake(self) -> None:
        """Look now: something bad was seen."""
        self._flusher.wake()

    def stop(self) -> None:
        """End. Idempotent."""
        self._flusher.stop()
        self._leadership.release()

    def tick(self) -> None:
        """Look at every running test, if this process is the one to do so."""
        now = time.monotonic()
        if not self._leads(now):
            return
        for revision, record in self._acting.running_tests():
            test = record.test
            if test is None:
                continue
            try:
                self._look(revision, record, test)
            except (RevisionConflict, TestNotFound):
                continue  # somebody else was faster: look again at what there is now
            except TurnoutError as error:
                self._say(test, f"{error.code}: {error.detail}")
            except Exception as error:  # noqa: BLE001 - what is wrong with one test may not stop the others
                self._say(test, repr(error))
        if now - self._tidied_at > PRUNE_SECONDS:
            self._tidied_at = now
            self._acting.tidy()

    def _leads(self, now: float) -> bool:
        if now - self._asked_at < TAKE_OVER_SECONDS and not self._led:
            return False
        self._asked_at = now
        self._led = self._leadership.held()
        return self._led

    def _look(self, revision: int, record: ModelRecord, test: Test) -> None:
        acting = self._acting
        acting.mature(record, test)
        author = Author(ACTOR, "", revision)
        if test.plan is not None and not test.thresholds and self._calibrate(test, author):
            return
        if test.plan is not None:
            counts = acting.counts_of(test)
            errors = acting.errors_of(record, test)
            decision = decide(
                test, record.model.metrics, counts.segments, acting.clock.now(), errors, counts.shadow
            )
            if decision.action != "hold":
                self._act(test, decision, author)
                return
            if test.plan.allocation is not None and not test.paused:
                self._allocate(test, record.model.metrics, counts.segments, author)
        acting.follow(record, test)

    def _act(self, test: Test, decision: Decision, author: Author) -> None:
        author = author._replace(reason=decision.reason)
        if decision.action == "advance":
            self._acting.act(test, "advance", author, decision.evidence, step=test.step + 1)
        else:
            self._acting.act(test, decision.action, author, decision.evidence)
        log(
            "warning" if decision.action == "roll_back" else "info",
            "decided",
            model=test.model,
            test=test.id,
            action=decision.action,
            detail=decision.reason,
        )

    def _calibrate(self, test: Test, author: Author) -> bool:
        """Set the latencies above which an answer is slow, once enough of the baseline's are known."""
        now = time.monotonic()
        if now - self._calibrated.get(test.model, -math.inf) < CALIBRATE_SECONDS:
            return False
        self._calibrated[test.model] = now
        answers, quantiles = self._acting.latencies(test.model, str(test.baseline))
        rising = all(a < b for a, b in pairwise(quantiles))
        if answers < ENOUGH_FOR_THRESHOLDS or not rising:
            return False
        reason = f"latencies of {answers} answers of {test.baseline}"
        self._acting.act(test, "calibrate", author._replace(reason=reason), {}, thresholds=quantiles)
        return True

    def _allocate(
        self, test: Test, metrics: Sequence[Metric], segments: Sequence[SegmentCounts], author: Author
    ) -> None:
        allocation = None if test.plan is None else test.plan.allocation
        now = self._acting.clock.now()
        since = max(test.since, self._allocated.get(test.model, 0.0))
        if allocation is None or now - since < allocation.every_seconds:
            return
        metric = next(metric for metric in metrics if metric.name == allocation.metric)
        arms = {arm: _learnt(segments, arm, metric) for arm in test.weights}
        self._allocated[test.model] = now
        if not all(found.n for found in arms.values()):
            return
        seed = round(now * 1000) % 2**32
        shares = allocate(arms, allocation.floor, DRAWS, seed, metric.direction == "down")
        total = math.fsum(shares.values())
        weights = {arm: share / total for arm, share in shares.items()}
        if max(abs(weights[arm] - test.weights[arm]) for arm in weights) < 0.001:
            return
        evidence = {
            "metric": metric.name,
            "seed": seed,
            "arms": {arm: {"n": found.n, "sum": found.y, "squares": found.yy} for arm, found in arms.items()},
        }
        reason = "shares by the probability of being the best in " + metric.name
        self._acting.act(test, "allocate", author._replace(reason=reason), evidence, step=0, weights=weights)

    def _say(self, test: Test, detail: str) -> None:
        if self._told.get(test.model) != detail:
            self._told[test.model] = detail
            log("error", "controller_failed", model=test.model, test=test.id, detail=detail)


def _learnt(segments: Sequence[SegmentCounts], arm: str, metric: Metric) -> Moments:
    """What is known of an arm's mean, as sums over so many entities as would tell as much.

    Each entity weighs the inverse of its arm's share when it came: rates that drift while shares move would mislead.
    """
    found = [
        (
            segment.shares.get(arm, 0.0),
            moments(segment.arms[arm].metrics[metric.name])._replace(x=0, xx=0, xy=0),
        )
        for segment in segments
        if arm in segment.arms and metric.name in segment.arms[arm].metrics
    ]
    estimate = unbiased_mean(found)
    if estimate is None:
        return Moments()
    mean, se = estimate
    total = Moments()
    for _, one in found:
        total = total.plus(one)
    n = max(1, round(min(float(total.n), total.variance / se**2))) if se > 0 and total.n > 1 else total.n
    variance = total.variance if total.n > 1 else 0.0
    return Moments(n, mean * n, variance * max(n - 1, 0) + mean * mean * n)
