"""Scoring: every row of the input answered once, by the versions that the model had when the run began."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from turnout import _core
from turnout.engine import runtime_version
from turnout.errors import Conflict, InvalidRequest
from turnout.score.answering import Answered
from turnout.score.inputs import SUFFIXES, TEXT, Format, Input, find, format_of
from turnout.score.plan import Request, begin, differences
from turnout.score.rows import COMPRESSIONS
from turnout.score.running import Options, Report, Run, Tick
from turnout.score.work import Counts, Work, empty, encoded
from turnout.service import Turnout

STANDARD_OUTPUT = "-"


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
        run = Run(hub, manifest, options, tick)
        encoded(
            empty(run.answering.schema), request.format, header=True
        )  # raises where the format cannot hold it
        work.begin(manifest)
    else:
        changed = differences(manifest.request, request)
        if changed:
            raise Conflict(f"this is not the run that has ended early: {'; '.join(changed)}")
        run = Run(hub, manifest, options, tick)
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
    run = Run(hub, begin(hub, request), options, tick)
    output = _Output(sys.stdout.buffer, request.format)
    sys.stdout.buffer.write(encoded(empty(run.answering.schema), request.format, header=True))
    parts = run.run(output)
    sys.stdout.buffer.flush()
    return run.report(output.counted, parts)
