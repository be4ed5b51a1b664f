"""Scoring: every row of the input answered once, by the versions that the model had when the run began."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import msgspec

from turnout import _core
from turnout.domain import OnError, utc_now
from turnout.engine import runtime_version
from turnout.errors import Conflict, InvalidRequest
from turnout.score.answering import Answered, Answering
from turnout.score.inputs import SUFFIXES, TEXT, Format, Input, find, format_of, open_source
from turnout.score.plan import Manifest, Request, answering, begin, describe, differences, job_of, wanted_of
from turnout.score.rows import COMPRESSIONS
from turnout.score.source import Part, Source, parts
from turnout.score.work import Counts, Work, empty, encoded
from turnout.service import Turnout

PART_ROWS = 65_536
STANDARD_OUTPUT = "-"


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


def score(
    hub: Turnout,
    model: str,
    inputs: Sequence[str],
    out: str,
    options: Options,
    tick: Callable[[Tick], None] = lambda _: None,
) -> Report:
    """Answer every row of the inputs, and write the output and its sidecar `OUT.json`.

    Args:
        hub: the data directory.
        model: the model.
        inputs: files, folders and patterns.
        out: a file; a folder, where it ends with a slash or is one; or `-`, the standard output.
        options: how.
        tick: called as the run goes on.

    Raises:
        InvalidRequest: a file cannot be read, or a row is bad; with the file and the row.
        InvalidFeatures: a feature is missing, or a value is none of it.
        Conflict: the output is there, or a run that was ended is another one.
        StorageError: the disk is full; the run can be resumed.
    """
    found = find(inputs, options.read)
    if out == STANDARD_OUTPUT:
        return _to_output(
            hub, _request(hub, model, found, options, options.write or "ndjson", folder=False), options, tick
        )
    folder = out.endswith(("/", os.sep)) or Path(out).is_dir()
    target = Path(out).absolute()
    request = _request(hub, model, found, options, _written(target, options, folder=folder), folder=folder)
    _check_place(target, inputs, found)
    work = Work(target, request.format, folder=folder)
    with work.alone():
        return _to_disk(hub, work, request, options, tick)


def _request(
    hub: Turnout, model: str, found: list[Input], options: Options, write: Format, *, folder: bool
) -> Request:
    if options.part_rows < 1:
        raise InvalidRequest(f"expected at least one row a part, found {options.part_rows}")
    if len(set(options.keep)) != len(options.keep):
        raise InvalidRequest("a column to keep is named twice")
    settings = hub.settings
    return Request(
        model=model,
        inputs=tuple(found),
        version=options.version,
        entity=options.entity,
        keep=options.keep,
        on_error=options.on_error,
        part_rows=options.part_rows,
        format=write,
        folder=folder,
        turnout=_core.__version__,
        onnxruntime=runtime_version(),
        device=settings.device,
        intra_op_threads=settings.intra_op_threads,
        fallback=settings.fallback,
    )


def _written(target: Path, options: Options, *, folder: bool) -> Format:
    if options.write is not None:
        return options.write
    if folder:
        return "parquet"
    found = format_of(target)
    if found is None or target.suffix.lower() in COMPRESSIONS:
        raise InvalidRequest(
            f"{target}: expected a name that ends with {', '.join(SUFFIXES)}; say the format with --to"
        )
    return found


def _check_place(target: Path, inputs: Sequence[str], found: list[Input]) -> None:
    """The output, and what lies beside it while it is made, must not become an input of the run that goes on."""
    for name in inputs:
        folder = Path(name).absolute()
        if folder.is_dir() and folder in target.parents:
            raise InvalidRequest(
                f"{target} is in the folder {folder}, which is read: write it somewhere else"
            )
    if any(Path(given.path) == target or target in Path(given.path).parents for given in found):
        raise InvalidRequest(f"{target} is an input, too")


# --- to the disk ----------------------------------------------------------------------------------------------------


def _to_disk(
    hub: Turnout, work: Work, request: Request, options: Options, tick: Callable[[Tick], None]
) -> Report:
    manifest = work.manifest() if options.resume and work.finished else None
    if manifest is None:
        report = _finished(work, request) if options.resume else None
        if report is not None:
            return report
        _check_free(work, options)
        manifest = begin(hub, request)
        run = _Run(hub, manifest, options, tick)
        encoded(
            empty(run.answering.schema), request.format, header=True
        )  # raises where the format cannot hold it
        work.begin(manifest)
    else:
        changed = differences(manifest.request, request)
        if changed:
            raise Conflict(f"this is not the run that has ended early: {'; '.join(changed)}")
        run = _Run(hub, manifest, options, tick)
    parts = run.run(work)
    _check_unchanged(request)
    work.place(run.answering.schema, parts)
    report = run.report(work.counts(parts), parts)
    work.close(report)
    return report


def _finished(work: Work, request: Request) -> Report | None:
    """The report of the same run, where it has come to its end already."""
    if not work.out.exists() or not work.sidecar.exists():
        return None
    try:
        report = msgspec.json.decode(work.sidecar.read_bytes(), type=Report)
    except msgspec.DecodeError:
        return None
    return report if report.request == request else None


def _check_free(work: Work, options: Options) -> None:
    if not work.is_ours():
        raise Conflict(f"{work.out} has files that are no parts of an output: name another folder")
    if options.overwrite:
        return
    if work.finished:
        raise Conflict(
            f"a run that writes {work.out} has ended early: --resume goes on with it, --overwrite starts anew"
        )
    if work.out.exists() and not (work.out.is_dir() and not any(work.out.iterdir())):
        raise Conflict(f"{work.out} is there already: --overwrite replaces it")


def _check_unchanged(request: Request) -> None:
    for given in request.inputs:
        status = Path(given.path).stat()
        if (status.st_size, status.st_mtime_ns) != (given.size, given.modified):
            raise Conflict(f"{given.path} has changed while it was read: start anew with --overwrite")


# --- to the standard output -----------------------------------------------------------------------------------------


class _Output:
    """Parts that go to the standard output, in their order."""

    def __init__(self, stream: IO[bytes], kind: Format) -> None:
        self._stream = stream
        self._kind: Format = kind
        self.counted = Counts(0, 0, {}, 0)

    def done(self, number: int) -> bool:
        """Nothing is kept."""
        del number
        return False

    def write(self, number: int, answered: Answered) -> tuple[Answered, Any]:
        """Encode it."""
        del number
        return answered, encoded(answered.batch, self._kind, header=False)

    def pass_on(self, written: tuple[Answered, Any]) -> None:
        """Write it."""
        answered, content = written
        self._stream.write(content)
        was = self.counted
        versions = dict(sorted((Counter(was.versions) + Counter(answered.versions)).items()))
        self.counted = Counts(was.rows + answered.rows, was.errors + answered.errors, versions, 0)


def _to_output(hub: Turnout, request: Request, options: Options, tick: Callable[[Tick], None]) -> Report:
    if options.resume:
        raise InvalidRequest("the standard output cannot be resumed: name a file")
    if request.format not in TEXT:
        raise InvalidRequest(f"expected csv or ndjson for the standard output, found {request.format}")
    run = _Run(hub, begin(hub, request), options, tick)
    output = _Output(sys.stdout.buffer, request.format)
    sys.stdout.buffer.write(encoded(empty(run.answering.schema), request.format, header=True))
    parts = run.run(output)
    sys.stdout.buffer.flush()
    return run.report(output.counted, parts)


# --- the parts ------------------------------------------------------------------------------------------------------


class _Run:
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
