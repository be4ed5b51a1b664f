"""All parts of a run: read by one thread, answered and encoded by the others, a few of them at a time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from turnout.domain import OnError, utc_now
from turnout.score.answering import Answered, Answering
from turnout.score.inputs import Format, open_source
from turnout.score.plan import Manifest, Request, answering, describe, job_of, wanted_of
from turnout.score.source import Part, Source, parts
from turnout.score.work import Counts
from turnout.service import Turnout

PART_ROWS = 65_536


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to score.

    Attributes:
        version: the version that answers all rows; None for whichever the model routes each to.
        entity: the column of entity ids; None for `entity_id`, where there is one.
        keep: columns of the input that are written in front of the answers.
        on_error: `fail` ends at the first bad row; `skip` writes why it has no answer.
        threads: parts that are answered at once; None for one on each processor.
        part_rows: rows of a part.
        read: format of the inputs, where their names do not say it.
        write: format of the output, where its name does not say it.
        resume: go on with a run that was ended.
        overwrite: replace an output that is there, and forget a run that was ended.
    """

    version: str | None = None
    entity: str | None = None
    keep: tuple[str, ...] = ()
    on_error: OnError = "fail"
    threads: int | None = None
    part_rows: int = PART_ROWS
    read: Format | None = None
    write: Format | None = None
    resume: bool = False
    overwrite: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was done; the sidecar of the output.

    `rows` and all other counts are of the whole run; `scored` are the rows that the last process answered, in
    `seconds`.
    """

    model: str
    model_revision: int
    active: str | None
    versions: dict[str, str]
    test: dict[str, Any] | None
    ledger_revision: int | None
    rows: int
    errors: int
    counts: dict[str, int]
    parts: int
    scored: int
    seconds: float
    started_at: datetime
    finished_at: datetime
    request: Request


class Tick(NamedTuple):
    """How far a run is.

    Attributes:
        rows: rows that have answers.
        scored: those that this process gave.
        place: bytes of the inputs behind them.
        passed: those of them that an earlier process has answered.
        total: bytes of the inputs.
    """

    rows: int
    scored: int
    place: int
    passed: int
    total: int


class Sink(Protocol):
    """Where answered parts go."""

    def done(self, number: int) -> bool:
        """Whether the part was answered by an earlier process."""
        ...

    def write(self, number: int, answered: Answered) -> Any:  # noqa: ANN401
        """Keep a part; by any thread."""
        ...

    def pass_on(self, written: Any) -> None:  # noqa: ANN401
        """What `write` returned, in the order of the parts."""
        ...


class Run:
    """All parts of a run: read by one thread, answered and encoded by the others, a few of them at a time."""

    def __init__(
        self, hub: Turnout, manifest: Manifest, options: Options, tick: Callable[[Tick], None]
    ) -> None:
        self._manifest = manifest
        self._tick = tick
        self._threads = options.threads or len(os.sched_getaffinity(0))
        self._began = time.monotonic()
        request = manifest.request
        verbatim = {request.format, *(given.format for given in request.inputs)} == {"ndjson"}
        self._sources = [
            open_source(given, number, verbatim=verbatim) for number, given in enumerate(request.inputs)
        ]
        job = job_of(hub, manifest)
        self._wanted = wanted_of(job, self._sources, request)
        for version in answering(
            job
        ):  # one that cannot be loaded is better known before than after some hours
            hub.live.session(job.serving.lanes[job.serving.index[version.version]])
        self.answering = Answering(hub.batches, job, self._wanted)
        self._rows = self._scored = self._passed = 0

    def run(self, sink: Sink) -> int:
        """Answer what the sink does not have; how many parts there are."""
        waiting: deque[tuple[Part, int, Future[Any]]] = deque()
        count = 0
        with ThreadPoolExecutor(self._threads, thread_name_prefix="turnout-score") as pool:
            try:
                for number, (source, part, place) in enumerate(self._parts(sink)):
                    count += 1
                    if part.rows is None:
                        continue
                    waiting.append((part, place, pool.submit(self._answer, sink, number, source, part)))
                    while len(waiting) > self._threads + 1:
                        self._settle(sink, *waiting.popleft())
                while waiting:
                    self._settle(sink, *waiting.popleft())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return count

    def report(self, counts: Counts, parts: int) -> Report:
        """What was done."""
        return Report(
            **describe(self._manifest),
            rows=counts.rows,
            errors=counts.errors,
            counts=counts.versions,
            parts=parts,
            scored=self._scored,
            seconds=round(time.monotonic() - self._began, 3),
            started_at=self._manifest.started_at,
            finished_at=utc_now(),
            request=self._manifest.request,
        )

    def _parts(self, sink: Sink) -> Iterator[tuple[Source, Part, int]]:
        """Every part, with its file and the bytes of all files that lie behind."""
        number = behind = before = 0
        for source, given in zip(self._sources, self._manifest.request.inputs, strict=True):
            first = number

            def done(index: int, first: int = first) -> bool:
                return sink.done(first + index)

            for part in parts(source, self._wanted, self._manifest.request.part_rows, done):
                place = behind + source.place
                if part.rows is None:
                    self._rows += part.size
                    self._passed += place - before
                yield source, part, place
                number, before = number + 1, place
            behind += given.size

    def _answer(self, sink: Sink, number: int, source: Source, part: Part) -> Any:  # noqa: ANN401
        return sink.write(number, self.answering.answer(source, part))

    def _settle(self, sink: Sink, part: Part, place: int, answered: Future[Any]) -> None:
        sink.pass_on(answered.result())
        self._rows += part.size
        self._scored += part.size
        total = sum(given.size for given in self._manifest.request.inputs)
        self._tick(Tick(self._rows, self._scored, place, self._passed, total))
