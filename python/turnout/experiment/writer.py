"""One transaction that changes exposures and outcomes: units, counts and log together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from turnout.experiment.counts import SegmentCounts, ShadowCounts, Tally
from turnout.experiment.statistics.quality import LabelCounts
from turnout.experiment.units import Show, Unit
from turnout.plans import Metric
from turnout.store import Transaction, key

MATURE_AT_ONCE = 20_000
"""Exposures that one transaction lets mature, so that others are not kept waiting."""

ONCE, OUTCOME, GONE = key("once", b""), key("outcome", b""), key("gone", b"")
pack = msgspec.msgpack.Encoder().encode
UNIT = msgspec.msgpack.Decoder(Unit)
SEGMENT = msgspec.msgpack.Decoder(SegmentCounts)
TALLY = msgspec.msgpack.Decoder(Tally)
QUALITY = msgspec.msgpack.Decoder(LabelCounts)
SHADOW = msgspec.msgpack.Decoder(ShadowCounts)


class Place(NamedTuple):
    """One entity in one test."""

    model: str
    test: int
    entity: bytes


class Logged(msgspec.Struct, array_like=True, gc=False):
    """An outcome as it came, and what became of it."""

    ms: int
    received_ms: int
    model: str
    test: int
    entity: bytes
    metric: str
    value: float | str
    state: str
    segment: int = 0
    arm: str = ""
    once: bytes = b""


LOGGED = msgspec.msgpack.Decoder(Logged)


class Writer:
    """What one transaction changes. Records are decoded once, changed in memory, and written when it ends."""

    def __init__(self, transaction: Transaction) -> None:
        self._t = transaction
        self._units: dict[Place, Unit] = {}
        self._segments: dict[tuple[str, int, int], SegmentCounts] = {}
        self._tallies: dict[tuple[str, int], Tally] = {}
        self._qualities: dict[tuple[str, int, int], LabelCounts] = {}
        self._cursors: dict[tuple[str, int, str], int] = {}
        self._floors: dict[tuple[str, int, str], int] = {}
        self._heads: dict[tuple[str, int], bytes] = {}
        self._log: list[Logged] = []

    # --- records ------------------------------------------------------------------------------------------------

    def find(self, place: Place) -> Unit | None:
        """The unit of an entity, if it was ever seen; changes to it are kept."""
        unit = self._units.get(place)
        if unit is None:
            found = self._t.get(self._unit_key(place))
            if found is None:
                return None
            unit = self._units[place] = UNIT.decode(found)
        return unit

    def _unit_key(self, place: Place) -> bytes:
        """The key of a unit. Of many in one test the beginning is the same, and made once."""
        at = (place.model, place.test)
        head = self._heads.get(at)
        if head is None:
            head = self._heads[at] = key("unit", *at, b"")
        return head + place.entity

    def unit(self, place: Place) -> Unit:
        """The unit of an entity, made if it was never seen."""
        unit = self.find(place)
        if unit is None:
            unit = self._units[place] = Unit(shows=[], cells={})
            self.tally(place.model, place.test).entities += 1
        return unit

    def segment(
        self, model: str, test: int, revision: int, began: Callable[[], SegmentCounts] | None = None
    ) -> SegmentCounts:
        """The counts of a segment, made if they are not there."""
        at = (model, test, revision)
        found = self._segments.get(at)
        if found is None:
            stored = self._t.get(key("counts", *at))
            if stored is not None:
                found = SEGMENT.decode(stored)
            else:
                found = SegmentCounts(revision, 0) if began is None else began()
            self._segments[at] = found
        if began is not None and not found.shares:
            first = began()
            found.shares, found.started_ms = first.shares, first.started_ms
        return found

    def tally(self, model: str, test: int) -> Tally:
        """The tally of a test."""
        found = self._tallies.get((model, test))
        if found is None:
            stored = self._t.get(key("tally", model, test))
            found = self._tallies[model, test] = Tally() if stored is None else TALLY.decode(stored)
        return found

    def quality(self, model: str, version: int, test: int) -> LabelCounts:
        """What labels say of a version in a test, 0 for none."""
        at = (model, version, test)
        found = self._qualities.get(at)
        if found is None:
            stored = self._t.get(key("quality", *at))
            found = self._qualities[at] = LabelCounts() if stored is None else QUALITY.decode(stored)
        return found

    def cursor(self, model: str, test: int, metric: str) -> int:
        """Up to which time exposures are matured for a metric."""
        at = (model, test, metric)
        found = self._cursors.get(at)
        if found is None:
            stored = self._t.get(key("cursor", *at))
            found = self._cursors[at] = -1 if stored is None else int.from_bytes(stored, "big")
        return found

    def floor(self, model: str, test: int, metric: str) -> int:
        """Up to which time exposures do not count for a metric: it was not declared yet."""
        at = (model, test, metric)
        found = self._floors.get(at)
        if found is None:
            stored = self._t.get(key("floor", *at))
            found = self._floors[at] = -1 if stored is None else int.from_bytes(stored, "big")
        return found

    def raise_floor(self, model: str, test: int, metric: str, ms: int) -> None:
        """Count only exposures after a time for a metric that is declared now."""
        self._t.put(key("floor", model, test, metric), ms.to_bytes(8, "big"))

    # --- changes ------------------------------------------------------------------------------------------------

    def change(
        self, place: Place, unit: Unit, metrics: Iterable[Metric], work: Callable[[Unit], None]
    ) -> None:
        """Change a unit, and with it the sums of what is matured of it."""
        matured = [
            (metric, show)
            for metric in metrics
            for show in unit.shows
            if show.ms <= self.cursor(place.model, place.test, metric.name)
        ]
        for metric, show in matured:
            self._count(place, unit, metric, show, -1)
        crossed = unit.crossed
        work(unit)
        for metric, show in matured:
            self._count(place, unit, metric, show, 1)
        if unit.crossed and not crossed:
            self.tally(place.model, place.test).crossed += 1

    def observe(self, place: Place, unit: Unit, show: Show, metric: Metric, value: float) -> None:
        """Take an outcome of an exposure in: what `change` would do, for one metric of one exposure."""
        counted = show.ms <= self.cursor(place.model, place.test, metric.name)
        if counted:
            self._count(place, unit, metric, show, -1)
        unit.observe(metric, show.segment, value)
        if counted:
            self._count(place, unit, metric, show, 1)

    def expose(self, place: Place, unit: Unit, show: Show, metrics: Iterable[Metric]) -> None:
        """Add an exposure to a unit."""
        metrics = tuple(metrics)
        self.change(place, unit, metrics, lambda unit: unit.add(show))
        self._t.put(key("shown", place.model, place.test, show.ms, place.entity, show.segment), b"")
        arm = self.segment(place.model, place.test, show.segment).arm(show.arm)
        arm.assigned += 1
        arm.answered += show.answered
        if show.score is not None:
            arm.scores.add(show.score)
        for metric in metrics:
            if show.ms <= self.cursor(place.model, place.test, metric.name):  # it comes late
                self._count(place, unit, metric, show, 1)

    def _count(self, place: Place, unit: Unit, metric: Metric, show: Show, sign: int) -> None:
        found = unit.observed(metric, show)
        if found is not None and show.ms > self.floor(place.model, place.test, metric.name):
            arm = self.segment(place.model, place.test, show.segment).arm(show.arm)
            arm.metric(metric.name).add(*found, sign)

    def mature(self, model: str, test: int, metric: Metric, until_ms: int) -> int:
        """Count the exposures that are older than the metric's window; how many these were."""
        cursor = self.cursor(model, test, metric.name)
        if until_ms <= cursor:
            return 0
        after = None if cursor < 0 else cursor.to_bytes(8, "big") + b"\1"
        count, reached = 0, until_ms
        due: list[tuple[bytes, int]] = []
        for rest, _ in self._t.scan("shown", model, test, after=after):
            ms = int.from_bytes(rest[:8], "big")
            if ms > until_ms:
                break
            if count >= MATURE_AT_ONCE and ms > reached:
                break
            due.append((rest[9:25], int.from_bytes(rest[26:34], "big")))
            count += 1
            if count >= MATURE_AT_ONCE:
                reached = ms
        for entity, segment in due:
            place = Place(model, test, entity)
            unit = self.find(place)
            show = None if unit is None else unit.show(segment)
            if unit is not None and show is not None:
                self._count(place, unit, metric, show, 1)
        self._cursors[model, test, metric.name] = reached
        return count

    def gone(self, entity: bytes) -> int:
        """Up to which time, in Unix milliseconds, an entity is forgotten; -1 for one that is not."""
        stored = self._t.get(GONE + entity)
        return -1 if stored is None else int.from_bytes(stored, "big")

    def log(self, logged: Logged) -> None:
        """Add an outcome to the log."""
        if logged.once:
            self._t.put(ONCE + logged.once, b"")
        self._log.append(logged)

    def seen(self, once: bytes) -> bool:
        """Whether an outcome of this id has come before."""
        return self._t.get(ONCE + once) is not None

    def shadow(self, model: str, test: int, counts: ShadowCounts) -> None:
        """Add what shadows did."""
        at = key("shadow", model, test)
        stored = self._t.get(at)
        self._t.put(at, pack(counts if stored is None else counts.plus(SHADOW.decode(stored))))

    def finish(self) -> None:
        """Write everything."""
        put = self._t.put
        for place, unit in self._units.items():
            put(self._unit_key(place), pack(unit))
        for at, segment in self._segments.items():
            put(key("counts", *at), pack(segment))
        for at, tally in self._tallies.items():
            put(key("tally", *at), pack(tally))
        for at, quality in self._qualities.items():
            put(key("quality", *at), pack(quality))
        for at, cursor in self._cursors.items():
            if cursor >= 0:
                put(key("cursor", *at), cursor.to_bytes(8, "big"))
        if self._log:
            last = self._t.last("outcome")
            number = 0 if last is None else int.from_bytes(last[0], "big")
            for place, logged in enumerate(self._log, number + 1):
                put(OUTCOME + place.to_bytes(8, "big"), pack(logged))
