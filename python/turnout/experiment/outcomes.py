"""Outcomes: read, joined to their exposures, and stored durably; each is told what became of it."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import structs

from turnout.domain import Test, Version
from turnout.errors import (
    InvalidMetric,
    InvalidOutcome,
    InvalidRequest,
    NotFound,
    TestNotFound,
    TurnoutError,
    VersionNotFound,
)
from turnout.experiment.counts import SegmentCounts
from turnout.experiment.events import Events
from turnout.experiment.labels import Scheme, judge, scheme_of
from turnout.experiment.receipts import Receipt, Signers
from turnout.experiment.units import Show, Unit, finite
from turnout.experiment.writer import Logged, Place, Writer
from turnout.forks import ForkLock
from turnout.plans import Metric
from turnout.router import ModelRecord, check_entity

State = Literal["attributed", "late", "duplicate", "unexposed", "invalid"]
Value = float | int | bool | str
MAX_OUTCOMES = 10_000
MAX_ID_BYTES = 256
MAX_AMOUNT = 1e15
MAX_COUNT = 10**9
FUTURE_SECONDS = 5.0
"""How far the clock of whoever sends an outcome may be ahead of ours."""
MOST_PATIENT = 8
"""Threads that wait for exposures at once; the others answer, and serve, without."""
FRESH_SECONDS = 1.0
SETTLE_SECONDS = 0.3
"""How long an outcome that came before its exposure was written waits for it: a little more than workers take."""


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Something observed about an entity, or about one prediction. With an `id` it counts once, however often it comes."""

    model: str
    metric: str
    value: Value
    entity_id: str | int | None = None
    prediction_id: str | None = None
    time: datetime | None = None
    id: str | None = None


class Attributed(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What became of an outcome: to which version and segment of which test it belongs, or why it is invalid."""

    state: State
    version: str | None = None
    test: str | None = None
    segment: int | None = None
    code: str | None = None
    detail: str | None = None


class Known:
    """What is known of a model: its records, the tests whose outcomes may still come, newest first, its metrics by name.

    `began` gives the counts of a revision of a test before anything was counted.
    """

    def __init__(
        self, record: ModelRecord, tests: Sequence[Test], began: Callable[[Test, int], SegmentCounts]
    ) -> None:
        self.record = record
        self.tests = tests
        self.began = began
        self.metrics = {metric.name: metric for metric in record.model.metrics}


class Item(msgspec.Struct, gc=False):
    """An outcome that can be stored."""

    outcome: Outcome
    known: Known
    metric: Metric
    value: float
    ms: int
    entity: bytes
    place: Place | None
    receipt: Receipt | None
    version: Version | None
    scheme: Scheme | None
    once: bytes
    fresh: bool


class Outcomes:
    """Stores outcomes. Those that come at the same time, from any number of threads, share one commit.

    Args:
        known: what is known of a model; raises ModelNotFound.
        settle: has this process write down the exposures that it has seen.
        ahead_ms: how far the steady clock, which exposures are stamped by, is ahead of the wall clock.
    """

    def __init__(
        self,
        events: Events,
        signers: Signers,
        known: Callable[[str], Known],
        settle: Callable[[], object],
        ahead_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self._events = events
        self._signers = signers
        self._known = known
        self._settle = settle
        self._ahead_ms = ahead_ms
        self._patient = threading.BoundedSemaphore(MOST_PATIENT)
        self._waiting: list[_Entry] = []
        self._queue = ForkLock()
        self._writing = ForkLock()

    def record(self, given: Sequence[Any]) -> list[Attributed]:
        """Store outcomes, durably when this returns; for each of them what became of it.

        Raises InvalidRequest for more than 10,000, or what is no outcome at all.
        """
        if len(given) > MAX_OUTCOMES:
            raise InvalidRequest(f"expected at most {MAX_OUTCOMES} outcomes, found {len(given)}")
        known: dict[str, Known] = {}
        schemes: dict[tuple[str, int, str], tuple[Version, Scheme]] = {}
        results: list[Attributed | None] = []
        items: list[tuple[int, Item]] = []
        now = time.time()
        for row, one in enumerate(given):
            try:
                outcome = one if isinstance(one, Outcome) else read_outcome(one)
                items.append((row, self._item(outcome, now, known, schemes)))
                results.append(None)
            except TurnoutError as error:
                results.append(Attributed("invalid", code=error.code, detail=error.detail))
        # An exposure may not have been written yet, by this process or, in the third attempt, by another one.
        for attempt, before in enumerate((_nothing, self._settle, self._wait_for_others)):
            pending = [(row, item) for row, item in items if results[row] is None]
            if not pending:
                break
            before()
            found = self._commit([item for _, item in pending], final=attempt == 2)
            for (row, _), result in zip(pending, found, strict=True):
                results[row] = result
        return [result for result in results if result is not None]

    def _wait_for_others(self) -> None:
        """Wait a little; where many do already, the answer comes at once, and may be that nobody was exposed."""
        if self._patient.acquire(blocking=False):
            try:
                time.sleep(SETTLE_SECONDS)
            finally:
                self._patient.release()

    def _item(
        self,
        outcome: Outcome,
        now: float,
        cache: dict[str, Known],
        schemes: dict[tuple[str, int, str], tuple[Version, Scheme]],
    ) -> Item:
        known = cache.get(outcome.model)
        if known is None:
            known = cache[outcome.model] = self._known(outcome.model)
        metric = known.metrics.get(outcome.metric)
        if metric is None:
            names = ", ".join(known.metrics) or "(none is declared)"
            raise InvalidMetric(
                f"model {outcome.model} has no metric {outcome.metric[:100]!r}: expected one of {names}"
            )
        ms = _time_ms(outcome, now)
        receipt, version, scheme, place = None, None, None, None
        if (outcome.entity_id is None) == (outcome.prediction_id is None):
            raise InvalidOutcome("expected either entity_id or prediction_id")
        if outcome.prediction_id is not None:
            receipt = self._signers.read(outcome.model, outcome.prediction_id)
            entity = receipt.entity or b""
            if entity and receipt.test:
                place = Place(outcome.model, receipt.test, entity)
            at = (outcome.model, receipt.version, metric.name)
            if at not in schemes:
                version = _numbered(known.record, receipt.version)
                schemes[at] = version, scheme_of(version, metric)
            version, scheme = schemes[at]
            ms = max(ms, receipt.ms)
            if receipt.score is not None and finite(receipt.score) is None:
                receipt = structs.replace(receipt, score=None)
        else:
            entity = self._signers.entity(check_entity(outcome.entity_id))
            if not known.tests:
                raise TestNotFound(
                    f"no test runs on model {outcome.model}, so that nothing is known of its entities: start one, or "
                    "name the prediction by its prediction_id"
                )
            place = Place(outcome.model, int(known.tests[0].id), entity)
        value = _checked(metric, outcome.value)
        if metric.kind == "label":
            value = 0.0 if scheme is None else float(scheme.truth(outcome.value))
        fresh = receipt is None and now * 1000 - ms < FRESH_SECONDS * 1000
        return Item(
            outcome,
            known,
            metric,
            value,
            ms + self._ahead_ms(),
            entity,
            place,
            None if receipt is None else structs.replace(receipt, time=receipt.time + self._ahead()),
            version,
            scheme,
            _once(outcome, metric),
            fresh,
        )

    def _ahead(self) -> timedelta:
        return timedelta(milliseconds=self._ahead_ms())

    def _commit(self, items: list[Item], *, final: bool) -> list[Attributed | None]:
        """Store items together with those of other threads; None for what may yet find its exposure."""
        entry = _Entry(items, final)
        with self._queue:
            self._waiting.append(entry)
        with self._writing:
            if entry.results is None and entry.error is None:
                with self._queue:
                    together, self._waiting = self._waiting, []
                try:
                    found = self._events.write(
                        lambda writer: _apply_all(writer, [(e.items, e.final) for e in together])
                    )
                    for other, results in zip(together, found, strict=True):
                        other.results = results
                except BaseException as error:  # each of those who wait is told
                    for other in together:
                        other.error = error
                    if not isinstance(error, Exception):
                        raise
        if entry.error is not None:
            raise entry.error
        return entry.results or []


class _Entry:
    """What one thread wants stored, and what came of it."""

    def __init__(self, items: list[Item], final: bool) -> None:
        self.items = items
        self.final = final
        self.results: list[Attributed | None] | None = None
        self.error: BaseException | None = None


def _nothing() -> None:
    """The first attempt waits for nothing."""


def read_outcome(given: Any) -> Outcome:  # noqa: ANN401
    """An outcome from plain data. Raises InvalidOutcome, which says what would be accepted."""
    try:
        return msgspec.convert(given, Outcome)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidOutcome(
            f"an outcome is model, metric, value, entity_id or prediction_id, and optionally time and id: {error}"
        ) from error


def _time_ms(outcome: Outcome, now: float) -> int:
    if outcome.id is not None and not 0 < len(outcome.id.encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES:
        raise InvalidOutcome(f"id: expected 1 to {MAX_ID_BYTES} bytes")
    if outcome.time is None:
        return int(now * 1000)
    if outcome.time.tzinfo is None:
        raise InvalidOutcome(
            f"time: expected a time with a zone, such as {outcome.time.isoformat()}Z, found none"
        )
    moment = outcome.time.timestamp()
    if moment > now + FUTURE_SECONDS:
        raise InvalidOutcome(
            f"time: expected a time that has been, found {outcome.time.isoformat()}, {moment - now:.0f} seconds ahead"
        )
    if moment < 0:
        raise InvalidOutcome(f"time: expected a time since 1970, found {outcome.time.isoformat()}")
    return int(moment * 1000)


def _checked(metric: Metric, value: Value) -> float:
    """The value as a number. Raises InvalidOutcome for one outside of the metric's kind."""
    if metric.kind == "label":
        if isinstance(value, str) and len(value) > 1000:
            raise InvalidOutcome(f"metric {metric.name!r}: expected a label of at most 1,000 characters")
        if not isinstance(value, str) and not abs(value) <= MAX_AMOUNT:
            raise InvalidOutcome(f"metric {metric.name!r}: expected a label between -1e15 and 1e15")
        return 0.0
    what = f"metric {metric.name!r} is of kind {metric.kind}"
    if isinstance(value, str) or (isinstance(value, bool) and metric.kind != "binary"):
        raise InvalidOutcome(f"{what}: expected a number, found {value!r:.100}")
    if isinstance(value, int) and abs(value) > MAX_AMOUNT:  # too large for a float, perhaps
        raise InvalidOutcome(f"{what}: expected a number between -1e15 and 1e15, found a larger one")
    if metric.kind == "binary" and value not in {0, 1}:
        raise InvalidOutcome(f"{what}: expected 0, 1, true or false, found {value}")
    if metric.kind == "count" and not (float(value).is_integer() and 0 <= value <= MAX_COUNT):
        raise InvalidOutcome(f"{what}: expected a whole number of 0 to {MAX_COUNT}, found {value}")
    if not math.isfinite(value) or abs(value) > MAX_AMOUNT:
        raise InvalidOutcome(f"{what}: expected a number between -1e15 and 1e15, found {value}")
    return float(value)


def _once(outcome: Outcome, metric: Metric) -> bytes:
    """What is the same for the same outcome: its id, or the prediction that a label is of."""
    if metric.kind == "label" and outcome.prediction_id is not None:
        name = f"prediction\0{outcome.prediction_id}"  # has one label, whatever ids it comes with
    elif outcome.id is not None:
        name = f"id\0{outcome.id}"
    else:
        return b""
    text = "\0".join((outcome.model, outcome.metric, name)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def _numbered(record: ModelRecord, number: int) -> Version:
    for version in record.versions.values():
        if version.ordinal == number:
            return version
    raise VersionNotFound(
        f"the version that gave this prediction, number {number} of model {record.model.name}, is deleted"
    )


def _apply_all(writer: Writer, together: list[tuple[list[Item], bool]]) -> list[list[Attributed | None]]:
    received = int(time.time() * 1000)
    seen: set[bytes] = set()
    return [[_apply(writer, item, seen, received, final) for item in items] for items, final in together]


def _apply(writer: Writer, item: Item, seen: set[bytes], received: int, final: bool) -> Attributed | None:
    """Store one outcome; None where it is too early to say that it was not exposed."""
    if item.once and (item.once in seen or writer.seen(item.once)):
        _tally(writer, item, "duplicate")
        return Attributed("duplicate")
    unit, show = _exposure(writer, item)
    if show is None and item.fresh and not final:
        return None
    if _gone(writer, item, unit):
        return Attributed("unexposed")
    try:
        state, value = _join(writer, item, unit, show)
    except InvalidOutcome as error:  # a label can be read only when it is known whose it is
        return Attributed("invalid", code=error.code, detail=error.detail)
    once = item.once if state == "attributed" else b""  # what does not count yet may come again
    if once:
        seen.add(once)
    _tally(writer, item, state)
    writer.log(
        Logged(
            ms=item.ms,
            received_ms=received,
            model=item.outcome.model,
            test=0 if item.place is None else item.place.test,
            entity=item.entity,
            metric=item.metric.name,
            value=value if isinstance(value, float) else str(value),
            state=state,
            segment=0 if show is None else show.segment,
            arm="" if show is None else show.arm,
            once=once,
        )
    )
    version = show.arm if show is not None else None if item.version is None else item.version.version
    return Attributed(
        state,
        version=version,
        test=str(item.place.test) if item.place is not None and show is not None else None,
        segment=None if show is None else show.segment,
    )


def _gone(writer: Writer, item: Item, unit: Unit | None) -> bool:
    """Whether the entity was forgotten after the prediction that this outcome is of."""
    return unit is None and item.receipt is not None and writer.gone(item.entity) >= item.receipt.ms


def _exposure(writer: Writer, item: Item) -> tuple[Unit | None, Show | None]:
    """The exposure that an outcome belongs to. A receipt of one that is not stored (yet) stands for it."""
    place, receipt = item.place, item.receipt
    if place is None:
        return None, None
    unit = writer.find(place)
    if receipt is None:
        found = None if unit is None else unit.shown_at(item.ms)
        return unit, found if found is not None and found.answered else None
    show = None if unit is None else unit.show(receipt.segment)
    test = next((test for test in item.known.tests if int(test.id) == place.test), None)
    label = "" if item.version is None else item.version.version
    if _gone(writer, item, unit):
        return None, None
    if show is None and receipt.reason == "test" and test is not None and label in test.weights:
        show = Show(
            segment=receipt.segment,
            arm=label,
            ms=receipt.ms,
            score=receipt.score,
            predicted=receipt.predicted,
            champion=receipt.score if label == test.baseline else None,
        )
        began, segment = item.known.began, receipt.segment
        writer.segment(place.model, place.test, segment, lambda: began(test, segment))
        unit = writer.unit(place)
        writer.expose(place, unit, show, item.known.record.model.metrics)
    return unit, show


def _join(writer: Writer, item: Item, unit: Unit | None, show: Show | None) -> tuple[State, float | Value]:
    """Add the outcome to what it belongs to."""
    metric = item.metric
    if show is not None and item.ms - show.ms > metric.window_ms:
        return "late", item.outcome.value if metric.kind == "label" else item.value
    if metric.kind == "label":
        return _join_label(writer, item, unit, show)
    if show is None or unit is None or item.place is None:
        return "unexposed", item.value
    _observe(writer, item, item.place, unit, show, item.value)
    return "attributed", item.value


def _join_label(writer: Writer, item: Item, unit: Unit | None, show: Show | None) -> tuple[State, Value]:
    """A label is joined to the prediction that the receipt is of, else to what the entity was first told."""
    said = item.outcome.value
    version, scheme = item.version, item.scheme
    labelled = unit is not None and show is not None and show.segment in unit.cells.get(item.metric.name, {})
    if item.receipt is not None:
        test, score, predicted = item.receipt.test, item.receipt.score, item.receipt.predicted
    elif show is not None and item.place is not None:
        if labelled:
            return "duplicate", said
        version = item.known.record.versions.get(show.arm)
        scheme = None if version is None else scheme_of(version, item.metric)
        test, score, predicted = item.place.test, show.score, show.predicted
    else:
        return "unexposed", said
    if version is None or scheme is None:
        return "unexposed", said
    truth = scheme.truth(said)
    counts = writer.quality(item.outcome.model, version.ordinal, test)
    right = judge(scheme, truth, score, predicted, counts)
    if right is None:
        return "unexposed", said
    if show is not None and unit is not None and item.place is not None and not labelled:
        _observe(writer, item, item.place, unit, show, right)
    return "attributed", said


def _observe(writer: Writer, item: Item, place: Place, unit: Unit, show: Show, value: float) -> None:
    metric = item.metric
    if show.segment not in unit.cells.get(metric.name, {}):
        writer.segment(place.model, place.test, show.segment).arm(show.arm).metric(metric.name).joined += 1
    writer.observe(place, unit, show, metric, value)


def _tally(writer: Writer, item: Item, state: State) -> None:
    if item.place is not None:
        writer.tally(item.place.model, item.place.test).count(item.metric.name, state)


def single(results: Sequence[Attributed]) -> Attributed:
    """What became of the only one. Raises what an invalid one is refused with."""
    result = results[0]
    if result.state == "invalid":
        kinds: Mapping[str | None, type[TurnoutError]] = {kind.code: kind for kind in _kinds(TurnoutError)}
        raise kinds.get(result.code, NotFound)(result.detail or "")
    return result


def _kinds(kind: type[TurnoutError]) -> list[type[TurnoutError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]
