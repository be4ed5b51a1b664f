"""The way of a batch: routed and packed in Rust, run per version in chunks, put back into the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns, time_ns
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from turnout import _core
from turnout.answers import BatchPrediction, Job, Outcome, Part, Rows, distinct
from turnout.domain import REASONS, OnError, RowError, Version
from turnout.engine import Session
from turnout.errors import InvalidRequest, PredictionFailed, TurnoutError
from turnout.log import log
from turnout.router import Lane, Snapshot, as_list, check_entity
from turnout.tables import Given, sources
from turnout.telemetry import BATCH, Telemetry

CHUNK_ROWS = 8192
"""Rows of one run: enough that its fixed cost is nothing, few enough that what it takes stays in the caches."""
SHRINK_ROWS = 4096
ALL_ROWS = 2**62
MILLISECOND = 1_000_000
HTTP_ERRORS = 500
"""Statuses from here on say that a version has failed; those below that the request is to blame."""
FALLBACK = REASONS.index("fallback")
PINNED = REASONS.index("pinned")


Text = bytes | NDArray[np.uint8]
Prepare = Callable[[Text, int | None, bool, int], Any]


class Work(Protocol):
    """Rows that were routed, and can be packed for their versions."""

    versions: NDArray[np.int32]
    reasons: NDArray[np.uint8]
    entities: NDArray[np.uint8] | None
    faults: list[TurnoutError]

    def take(
        self, version: int, rows: Rows, start: int, stop: int
    ) -> tuple[Sequence[NDArray[Any]], list[Any]]:
        """The inputs for some of a version's rows, without bad ones, and what is wrong with those."""
        ...

    def pinned(self, version: int) -> Work:
        """The same rows, all of them for one version."""
        ...

    def blames(self, version: int, error: TurnoutError) -> TurnoutError:
        """What the caller is told where a version failed: that error, or another one where the request is to blame."""
        ...


class Served(Protocol):
    """What answers come from: models as they are now, and the sessions of their versions."""

    def current(self) -> Snapshot:
        """The models."""
        ...

    def session(self, lane: Lane) -> Session:
        """The session of a version."""
        ...


class Document:
    """Rows that came as JSON: packed whole when they were read.

    Args:
        prepare: `prepare_batch` or `prepare_lines` of the job's route.
    """

    def __init__(self, prepare: Prepare, body: Text, job: Job, most: int) -> None:
        self._prepare = prepare
        self._body = body
        self._job = job
        self._most = most
        self.versions, self.reasons, self.entities, groups, self.faults = prepare(
            body, job.pinned, job.skip, most
        )
        if self.faults and not job.skip:
            raise self.faults[0]
        self._inputs = dict(groups)

    def take(
        self, version: int, rows: Rows, start: int, stop: int
    ) -> tuple[Sequence[NDArray[Any]], list[Any]]:
        """Slices: bad rows are not among them."""
        del rows
        return [array[start:stop] for array in self._inputs[version]], []

    def pinned(self, version: int) -> Document:
        """Read once more, for one version."""
        return Document(self._prepare, self._body, self._job._replace(pinned=version, skip=True), self._most)

    def blames(self, version: int, error: TurnoutError) -> TurnoutError:
        """The version: what a row holds was checked against its features."""
        del version
        return error


class Columns:
    """Rows of a table: packed chunk by chunk, when they are run."""

    def __init__(
        self,
        route: _core.Route,
        table: _core.Table,
        ids: Any,  # noqa: ANN401
        pinned: int | None,
        skip: bool,
    ) -> None:
        self._route = route
        self._table = table
        self._skip = skip
        self.faults: list[TurnoutError] = []
        count = table.rows
        if ids is not None and len(ids) != count:
            raise InvalidRequest(f"expected {count} entity ids, found {len(ids)}")
        if pinned is None:
            self.versions, self.reasons, self.entities = route.assign_each(
                count if ids is None else _routable(ids)
            )
        else:
            self.entities = None
            self.versions = np.full(count, pinned, np.int32)
            self.reasons = np.full(count, PINNED, np.uint8)
        self._bound: dict[int, list[int | None]] = {}

    def take(
        self, version: int, rows: Rows, start: int, stop: int
    ) -> tuple[Sequence[NDArray[Any]], list[Any]]:
        """Pack them now."""
        bound = self._bound.get(version)
        if bound is None:
            bound = self._bound[version] = self._route.bind(version, self._table)
        whole = len(rows) == self._table.rows
        chosen = None if whole else rows[start:stop]
        return self._route.pack(version, self._table, bound, chosen, start, stop - start, self._skip)

    def pinned(self, version: int) -> Columns:
        """The same table for one version."""
        return Columns(self._route, self._table, None, version, skip=True)

    def blames(self, version: int, error: TurnoutError) -> TurnoutError:
        """The version: what a row holds was checked against its features."""
        del version
        return error


class BatchPredictor:
    """Answers batches from the live snapshot.

    Args:
        most: rows of one batch that came as JSON over HTTP.
    """

    def __init__(self, live: Served, telemetry: Telemetry, *, fallback: bool, most: int) -> None:
        self._live = live
        self._telemetry = telemetry
        self._fallback = fallback
        self._most = most

    def answer(
        self,
        model: str,
        version: str | None,
        body: bytes,
        on_error: OnError,
        going: Callable[[], bool] = lambda: True,
    ) -> bytes:
        """Answer `{"entity_ids"?, "rows" | "columns"}` with the JSON of the outputs by columns.

        `going` is asked between chunks; InvalidRequest is raised when it says no.
        """
        job = self.job(model, version, on_error)
        route = job.serving.route
        return (
            self.run(job, Document(route.prepare_batch, body, job, self._most), going=going)
            .to_json(job)
            .tobytes()
        )

    def predict(self, job: Job, rows: Any, entity_ids: Any = None, *, threads: int = 1) -> BatchPrediction:  # noqa: ANN401
        """Answer rows in any of the forms that `tables.sources` takes, piece by piece."""
        found: list[Outcome] = []
        start = 0
        for given in sources(rows, entity_ids):
            try:
                outcome = self.run(job, work_of(given, job), threads=threads)
            except TurnoutError as error:
                if error.row is not None:
                    error.row += start
                raise
            start += outcome.rows
            found.append(outcome)
        return BatchPrediction(job, found)

    def job(self, model: str, version: str | None = None, on_error: OnError = "fail") -> Job:
        """What is asked of a model as it is now. Raises ModelNotFound and VersionNotFound."""
        if on_error not in {"fail", "skip"}:
            raise InvalidRequest(f"expected on_error fail or skip, found {on_error!r}")
        serving = self._live.current().serving(model)
        return Job(serving, None if version is None else serving.position(version), on_error == "skip")

    def run(
        self, job: Job, work: Work, *, threads: int = 1, going: Callable[[], bool] = lambda: True
    ) -> Outcome:
        """Answer rows that were routed, chunk by chunk."""
        run = _Run(self._live, self._telemetry, job, work, fallback=self._fallback)
        chunks = list(run.chunks())
        parts: list[Part] = []
        if threads > 1 and len(chunks) > 1:
            with ThreadPoolExecutor(min(threads, len(chunks)), thread_name_prefix="turnout-batch") as pool:
                for answered in [pool.submit(run.chunk, *chunk) for chunk in chunks]:
                    parts += answered.result()
        else:
            for chunk in chunks:
                if not going():
                    raise InvalidRequest("nobody waits for the answer any more")
                parts += run.chunk(*chunk)
        return run.outcome(parts)


class _Run:
    """One batch while it is run; chunks may be run by several threads."""

    def __init__(
        self,
        live: Served,
        telemetry: Telemetry,
        job: Job,
        work: Work,
        *,
        fallback: bool,
    ) -> None:
        self._live = live
        self._telemetry = telemetry
        self._serving = job.serving
        self._work = work
        self._skip = job.skip
        self._fallback = fallback
        self._errors = [_row_error(fault, fault.row or 0) for fault in work.faults]
        self._rows: dict[int, Rows] = {}

    def chunks(self) -> Iterator[tuple[int, int, int]]:
        """Version, first and last of its rows, for every run."""
        work = self._work
        good = work.versions >= 0
        good[[error.row for error in self._errors]] = False
        for version in distinct(work.versions):
            rows = np.flatnonzero(good & (work.versions == version))
            self._rows[version] = rows
            size = _most_rows(self._serving.lanes[version].version)
            for start in range(0, len(rows), size):
                yield version, start, min(start + size, len(rows))

    def chunk(self, version: int, start: int, stop: int) -> list[Part]:
        """Run rows of a version; those on which it fails are answered by the active version, where that is wanted."""
        rows = self._rows[version]
        inputs, faults = self._work.take(version, rows, start, stop)
        rows = rows[start:stop]
        if faults:
            if not self._skip:
                fault = faults[0]
                fault.row = int(rows[fault.row])
                raise fault
            bad = [fault.row for fault in faults]
            self._errors += [_row_error(fault, int(rows[fault.row])) for fault in faults]
            rows = np.delete(rows, bad)
        # What a large run has taken is given back after the last one; to take it again costs some hundredths of a run.
        last = stop == len(self._rows[version]) >= SHRINK_ROWS
        parts, failed = self._answered(version, rows, inputs, shrink=last)
        if self._serving.lanes[version].watched:
            for part in parts:
                self._see(version, part.rows, part.outputs)
        return parts + self._instead(version, failed) if failed else parts

    def _answered(
        self, version: int, rows: Rows, inputs: Sequence[NDArray[Any]], *, shrink: bool = False
    ) -> tuple[list[Part], list[tuple[int, TurnoutError]]]:
        """What a version answers, and the rows on which it fails, found by halving."""
        if not len(rows):
            return [], []
        lane = self._serving.lanes[version]
        series = self._telemetry.series(self._serving.name, lane.label, BATCH, "")
        started = perf_counter_ns()
        try:
            session = self._live.session(lane)
            before = perf_counter_ns()
            outputs = session.run(inputs, shrink=True) if shrink else session.run(inputs)
            after = perf_counter_ns()
            part = Part(version, rows, [_by_row(output, len(rows)) for output in outputs])
        except TurnoutError as error:
            blamed = self._work.blames(version, error)
            asked = blamed.status < HTTP_ERRORS
            if asked or len(rows) == 1 or not isinstance(error, PredictionFailed):
                if not asked:
                    self._count_failures(version, len(rows), perf_counter_ns() - started)
                said = f"version {lane.label} of model {self._serving.name}: {blamed.detail}"
                return [], [(row, type(blamed)(said, row=row)) for row in rows.tolist()]
            half = len(rows) // 2
            first = self._answered(version, rows[:half], [array[:half] for array in inputs])
            second = self._answered(version, rows[half:], [array[half:] for array in inputs])
            return first[0] + second[0], first[1] + second[1]
        now = perf_counter_ns()
        series.record_rows(len(rows), now - started, after - before)
        runs = self._telemetry.runs(self._serving.name, lane.label)
        runs.record(len(rows), before - started, after - before, now - after, time_ns() // MILLISECOND)
        return [part], []

    def _count_failures(self, version: int, rows: int, nanoseconds: int) -> None:
        name, label = self._serving.name, self._serving.lanes[version].label
        self._telemetry.series(name, label, BATCH, "").record_errors(rows)
        self._telemetry.runs(name, label).fail(nanoseconds)

    def _see(
        self, version: int, rows: Rows, outputs: Sequence[NDArray[Any]] | None, *, replaced: bool = False
    ) -> None:
        """Note what became of rows of a running test; without outputs the version failed on them."""
        work = self._work
        entities = None if work.entities is None else work.entities[rows]
        self._serving.route.see_rows(version, work.reasons[rows], entities, outputs, replaced)

    def _instead(self, version: int, failed: list[tuple[int, TurnoutError]]) -> list[Part]:
        """The active version's answers to rows on which another one failed."""
        serving = self._serving
        active = serving.active_lane
        first = failed[0][1]
        log("error", "batch_failed", model=serving.name, version=serving.labels[version], detail=first.detail)
        index = -1 if active is None else serving.index[active.label]
        rows = np.array([row for row, _ in failed], np.int64)
        reasons = self._work.reasons[rows]
        parts: list[Part] = []
        if self._fallback and index not in {-1, version} and not (reasons == PINNED).all():
            try:
                parts = self._by_active(index, rows)
            except TurnoutError as error:  # the caller hears of the version that the rows were routed to
                log("error", "fallback_failed", model=serving.name, detail=error.detail)
        answered = {row for part in parts for row in part.rows.tolist()}
        instead = np.isin(rows, list(answered))
        asked = (
            first.status < HTTP_ERRORS
        )  # the request is to blame, but for rows that another version can answer
        if asked and instead.any():
            self._count_failures(version, int(instead.sum()), 0)
        if serving.lanes[version].watched:
            self._see(version, rows[instead], None, replaced=True)
            if not asked:
                self._see(version, rows[~instead], None)
        left = [(row, error) for row, error in failed if row not in answered]
        if left and not self._skip:
            raise left[0][1]
        self._errors += [_row_error(error, row) for row, error in left]
        return parts

    def _by_active(self, index: int, rows: Rows) -> list[Part]:
        work = self._work.pinned(index)
        bad = {fault.row for fault in work.faults}
        good = np.array([row for row in range(len(work.versions)) if row not in bad], np.int64)
        wanted = np.isin(good, rows)
        inputs, faults = work.take(index, good, 0, len(good))
        if faults:
            wrong = [fault.row for fault in faults]
            good, wanted = np.delete(good, wrong), np.delete(wanted, wrong)
        return self._answered(index, good[wanted], [array[wanted] for array in inputs])[0]

    def outcome(self, parts: list[Part]) -> Outcome:
        """Join the chunks of each version, and note for every row where its answer is."""
        count = len(self._work.versions)
        part_of = np.full(count, -1, np.int32)
        assigned, reasons = self._work.versions.copy(), self._work.reasons.copy()
        joined: list[Part] = []
        for version in sorted({part.version for part in parts}):
            mine = sorted((part for part in parts if part.version == version), key=lambda part: part.rows[0])
            joined.append(_joined(mine))
            part_of[joined[-1].rows] = len(joined) - 1
            assigned[joined[-1].rows] = version
        reasons[assigned != self._work.versions] = FALLBACK
        errors = sorted(self._errors, key=lambda error: error.row)
        return Outcome(count, assigned, reasons, part_of, joined, errors, self._work.entities)


def work_of(given: Given, job: Job) -> Work:
    """Route what `tables.sources` yields."""
    what, ids = given
    if isinstance(what, bytes):
        return Document(job.serving.route.prepare_batch, what, job, ALL_ROWS)
    return Columns(job.serving.route, what, ids, job.pinned, job.skip)


def _routable(ids: Any) -> Any:  # noqa: ANN401
    """Ids as `Route.assign_each` takes them."""
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind in "iu":
            return np.require(ids, np.int64 if ids.dtype.kind == "i" else np.uint64, ["C", "A"])
        return ids.tolist()
    return [
        entity if type(entity) in {str, int, type(None)} else check_entity(entity) for entity in as_list(ids)
    ]


def _row_error(fault: TurnoutError, row: int) -> RowError:
    return RowError(
        row=row, code=fault.code, detail=fault.detail, feature=fault.feature, position=fault.position
    )


def _most_rows(version: Version) -> int:
    """Rows of one run: a graph may have been exported for a certain number of them."""
    fixed = [tensor.shape[0] for tensor in version.signature.inputs if tensor.shape]
    return next((size for size in fixed if size), CHUNK_ROWS)


def _by_row(output: NDArray[Any], rows: int) -> NDArray[Any]:
    """An output with a value for each row; a scalar is the same for all of them."""
    if output.ndim == 0:
        return np.full(rows, output)
    if output.shape[0] != rows:
        raise PredictionFailed(
            f"the model failed: expected an output of {rows} rows, found shape {output.shape}"
        )
    return np.ascontiguousarray(output)


def _joined(parts: list[Part]) -> Part:
    """Parts of one version as one, their rows ascending."""
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part.rows for part in parts])
    outputs = [np.concatenate(arrays) for arrays in zip(*(part.outputs for part in parts), strict=True)]
    if (np.diff(rows) < 0).any():  # rows on which another version failed lie between
        order = np.argsort(rows)
        rows, outputs = rows[order], [array[order] for array in outputs]
    return Part(parts[0].version, rows, outputs)
