"""Exposures and outcomes of a data directory, in LMDB. One transaction writes units, counts and log together.

unit     / model / test / entity                 Unit
shown    / model / test / ms / entity / segment  (nothing: exposures in order of time)
cursor   / model / test / metric                 ms up to which exposures are matured and counted
floor    / model / test / metric                 ms up to which exposures do not count
counts   / model / test / segment                SegmentCounts
tally    / model / test                          Tally
quality  / model / version / test                LabelCounts
shadow   / model / test                          ShadowCounts
outcome  / number                                Logged
once     / hash                                  (nothing: an outcome of this id has come)
latency  / model / test                          histograms by version, kept when a test ends
trail    / model / test                          Trail
gone     / entity                                ms up to which it is forgotten
clock                                            Anchor
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from turnout.experiment.counts import (
    Tally,
    TestCounts,
)
from turnout.experiment.statistics.quality import LabelCounts
from turnout.experiment.units import Show
from turnout.experiment.writer import (
    GONE,
    LOGGED,
    MATURE_AT_ONCE,
    QUALITY,
    SEGMENT,
    SHADOW,
    TALLY,
    UNIT,
    Logged,
    Writer,
    pack,
)
from turnout.log import log
from turnout.plans import Metric
from turnout.store import DamagedError, Store, Transaction, key

T = TypeVar("T")
LATENCY = msgspec.msgpack.Decoder(dict[str, list[bytes]])


class Point(msgspec.Struct, array_like=True):
    """What was known at a time: by metric and candidate the difference, its interval, and the shares."""

    ms: int
    effects: dict[str, dict[str, tuple[float, float, float]]] = {}
    shares: dict[str, float] = {}


MOST_POINTS = 400


class Trail(msgspec.Struct):
    """Points in the order of time; when there are too many, every second one goes, and the next ones are rarer."""

    points: list[Point] = []
    every_ms: int = 1000

    def due(self, ms: int) -> bool:
        """Whether it is time for another point."""
        return not self.points or ms - self.points[-1].ms >= self.every_ms

    def add(self, point: Point) -> None:
        """Add a point."""
        self.points.append(point)
        if len(self.points) > MOST_POINTS:
            self.points = self.points[::2]
            self.every_ms *= 2


TRAIL = msgspec.msgpack.Decoder(Trail)


class Anchor(msgspec.Struct, array_like=True):
    """The wall clock beside the clock of this boot of the machine, when they were first compared."""

    boot: str
    wall: float
    steady: float


ANCHOR = msgspec.msgpack.Decoder(Anchor)


class Events:
    """The events of a data directory; any number of processes may have them open at once."""

    def __init__(self, data: Path, *, map_size: int) -> None:
        path = data / "events.lmdb"
        try:
            self._store = Store(path, map_size=map_size)
        except DamagedError as error:  # predictions need nothing of it, and go on
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside)
            log("error", "events_damaged", detail=error.detail, kept_as=str(aside))
            self._store = Store(path, map_size=map_size)

    def close(self) -> None:
        """Let go of the database."""
        self._store.close()

    def write(self, work: Callable[[Writer], T]) -> T:
        """Change what is stored, durably; all of `work` or nothing. It may be run again."""

        def change(transaction: Transaction) -> T:
            writer = Writer(transaction)
            result = work(writer)
            writer.finish()
            return result

        return self._store.change(change)

    def counts(self, model: str, test: int) -> TestCounts:
        """The counts of a test, those of arms in all of its segments."""

        def read(t: Transaction) -> TestCounts:
            tally, shadow = t.get(key("tally", model, test)), t.get(key("shadow", model, test))
            latency = t.get(key("latency", model, test))
            return TestCounts(
                segments=[SEGMENT.decode(value) for _, value in t.scan("counts", model, test)],
                tally=Tally() if tally is None else TALLY.decode(tally),
                shadow=None if shadow is None else SHADOW.decode(shadow),
                latency={} if latency is None else LATENCY.decode(latency),
            )

        return self._store.read(read)

    def mature(self, model: str, test: int, metric: Metric, until_ms: int) -> None:
        """Count the exposures of a test up to a time. Writes only where there are any that are not counted yet."""

        def due(t: Transaction) -> bool:
            stored = t.get(key("cursor", model, test, metric.name))
            cursor = -1 if stored is None else int.from_bytes(stored, "big")
            after = None if cursor < 0 else cursor.to_bytes(8, "big") + b"\1"
            first = next(t.scan("shown", model, test, after=after), None)
            return first is not None and int.from_bytes(first[0][:8], "big") <= until_ms

        while self._store.read(due):
            if self.write(lambda writer: writer.mature(model, test, metric, until_ms)) < MATURE_AT_ONCE:
                return

    def qualities(self, model: str) -> dict[int, dict[int, LabelCounts]]:
        """What labels say: by number of the version, and of the test."""

        def read(t: Transaction) -> dict[int, dict[int, LabelCounts]]:
            found: dict[int, dict[int, LabelCounts]] = {}
            for rest, value in t.scan("quality", model):
                version, test = int.from_bytes(rest[:8], "big"), int.from_bytes(rest[9:17], "big")
                found.setdefault(version, {})[test] = QUALITY.decode(value)
            return found

        return self._store.read(read)

    def keep_latency(self, model: str, test: int, latency: dict[str, list[bytes]]) -> None:
        """Keep the latencies of a test that ends."""
        self._store.change(lambda t: t.put(key("latency", model, test), pack(latency)))

    def trail(self, model: str, test: int) -> Trail:
        """How the numbers of a test went."""
        found = self._store.read(lambda t: t.get(key("trail", model, test)))
        return Trail() if found is None else TRAIL.decode(found)

    def follow(self, model: str, test: int, point: Point) -> None:
        """Add a point to the trail of a test."""

        def change(t: Transaction) -> None:
            stored = t.get(at := key("trail", model, test))
            trail = Trail() if stored is None else TRAIL.decode(stored)
            trail.add(point)
            t.put(at, pack(trail))

        self._store.change(change)

    def anchor(self, boot: str, wall: float, steady: float) -> Anchor:
        """The anchor of this boot of the machine, set by whoever asks first."""

        def read(t: Transaction) -> Anchor | None:
            stored = t.get(b"clock")
            found = None if stored is None else ANCHOR.decode(stored)
            return found if found is not None and found.boot == boot else None

        def change(t: Transaction) -> Anchor:
            found = read(t)
            if found is None:
                found = Anchor(boot, wall, steady)
                t.put(b"clock", pack(found))
            return found

        return self._store.read(read) or self._store.change(change)

    # --- single entities ------------------------------------------------------------------------------------------

    def exposures(self, model: str, tests: Sequence[int]) -> Iterator[tuple[int, bytes, Show]]:
        """Every exposure of these tests: test, entity, and what was shown. Read in portions, each consistent."""
        for test in tests:
            for entity, value in self._portions("unit", model, test):
                for show in UNIT.decode(value).shows:
                    yield test, entity, show

    def outcomes(self, model: str | None) -> Iterator[Logged]:
        """Every outcome that is kept, oldest first."""
        for _, value in self._portions("outcome"):
            logged = LOGGED.decode(value)
            if model is None or logged.model == model:
                yield logged

    def _portions(self, *prefix: str | int, size: int = 5000) -> Iterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        while True:
            found = self._store.read(lambda t, after=after: _first(t.scan(*prefix, after=after), size))
            yield from found
            if len(found) < size:
                return
            after = found[-1][0]

    def mark_gone(self, entity: bytes, ms: int) -> None:
        """Take nothing in any more of what an entity did up to a time: other processes may not have written it yet."""
        self._store.change(lambda t: t.put(GONE + entity, ms.to_bytes(8, "big")))

    def drop_marks(self, before_ms: int) -> None:
        """Forget of whom there is nothing left to come."""

        def change(t: Transaction) -> None:
            old = [rest for rest, value in t.scan("gone") if int.from_bytes(value, "big") < before_ms]
            for rest in old:
                t.delete(GONE + rest)

        if self._store.read(lambda t: _first(t.scan("gone"), 1)):
            self._store.change(change)

    def forget(self, model: str, tests: Sequence[int], entity: bytes) -> int:
        """Remove what is stored of one entity in tests of a model; how many records that were. Counts stay."""

        def change(t: Transaction) -> int:
            gone = 0
            for test in tests:
                stored = t.get(at := key("unit", model, test, entity))
                if stored is not None:
                    for show in UNIT.decode(stored).shows:
                        t.delete(key("shown", model, test, show.ms, entity, show.segment))
                    t.delete(at)
                    gone += 1
            return gone

        return self._store.change(change)

    def forget_outcomes(self, entity: bytes) -> int:
        """Remove every outcome of one entity from the log; how many these were."""
        numbers = [rest for rest, value in self._portions("outcome") if LOGGED.decode(value).entity == entity]

        def change(t: Transaction) -> int:
            return sum(_drop_outcome(t, rest) for rest in numbers)

        return self._store.change(change) if numbers else 0

    def prune(self, before_ms: int, size: int = 5000) -> int:
        """Remove outcomes that came before a time, at most `size` of them; how many these were."""

        def change(t: Transaction) -> int:
            old: list[bytes] = []
            for rest, value in _first(t.scan("outcome"), size):
                if LOGGED.decode(value).received_ms >= before_ms:
                    break
                old.append(rest)
            return sum(_drop_outcome(t, rest) for rest in old)

        first = self._store.read(lambda t: _first(t.scan("outcome"), 1))
        if not first or LOGGED.decode(first[0][1]).received_ms >= before_ms:
            return 0
        return self._store.change(change)

    def forget_test(self, model: str, test: int, size: int = 5000) -> int:
        """Remove what is stored of single entities of a test, at most `size` of them; its counts stay."""

        def change(t: Transaction) -> int:
            gone = 0
            for table in ("unit", "shown"):
                for rest, _ in _first(t.scan(table, model, test), size):
                    gone += t.delete(key(table, model, test, rest))
            return gone

        tables = ("unit", "shown")
        if not self._store.read(lambda t: any(_first(t.scan(table, model, test), 1) for table in tables)):
            return 0
        return self._store.change(change)


def _first(found: Iterator[tuple[bytes, bytes]], size: int) -> list[tuple[bytes, bytes]]:
    return [entry for entry, _ in zip(found, range(size), strict=False)]


def _drop_outcome(t: Transaction, rest: bytes) -> bool:
    at = key("outcome", rest)
    stored = t.get(at)
    if stored is None:
        return False
    once = LOGGED.decode(stored).once
    if once:
        t.delete(key("once", once))
    return t.delete(at)
