"""Batches as bytes: documents and lines of JSON and streams of Arrow, in and out, answered while they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from turnout.answers import ArrowAnswers, Job, Outcome
from turnout.batch import BatchPredictor, Document, Text, Work, work_of
from turnout.domain import OnError, RowError
from turnout.errors import Conflict, InvalidRequest, PayloadTooLarge, TurnoutError, problem, problem_of
from turnout.ipc import END, Body, Guard
from turnout.tables import load_pyarrow, no_rows, sources

JSON = "application/json"
LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
ENTITY = "entity_id"
MOST_COLUMNS = 10_000
"""Columns of a stream of Arrow: without values they cost its sender a few bytes each, and us much more."""
PIECE_BYTES = 1 << 18
"""Bytes of lines that are answered together at most: some thousand rows."""


Buffer = bytes | memoryview


class Limits(NamedTuple):
    """How much is taken: rows in all, and bytes of a document or a message of Arrow, and of a line."""

    rows: int
    document: int
    line: int


class Asked(NamedTuple):
    """Which model, by which version, and what is done about bad rows."""

    model: str
    version: str | None
    on_error: OnError


class Piece(NamedTuple):
    """Rows that came together: how they are routed for a job, and their entity column, if it is one of Arrow."""

    work: Callable[[Job], Work]
    ids: Any = None


class Writer(Protocol):
    """Turns outcomes into bytes of a media type."""

    def write(self, job: Job, found: Outcome, ids: Any, start: int) -> Buffer:  # noqa: ANN401
        """The answers to the rows from `start` on."""
        ...

    def end(self, job: Callable[[], Job]) -> bytes:
        """What comes behind the last rows."""
        ...

    def failed(self, error: TurnoutError) -> bytes:
        """What comes instead of the rows that are left."""
        ...


def answers(
    batches: BatchPredictor,
    asked: Asked,
    pieces: Iterator[Piece],
    writer: Writer,
    *,
    most: int,
    going: Callable[[], bool] = lambda: True,
) -> Iterator[Buffer]:
    """Answer pieces in their order, each by the versions that serve when it is its turn.

    Raises what the rows raise, with `row` counted from the first of all, and PayloadTooLarge past `most` rows.
    """

    def job() -> Job:
        return batches.job(*asked)

    rows = 0
    job()  # a model that is not there is an error before anything is read
    for piece in pieces:
        now = job()
        try:
            found = batches.run(now, piece.work(now), going=going)
            if rows + found.rows > most:
                raise PayloadTooLarge(f"expected at most {most} rows, found more")
        except TurnoutError as error:
            if error.row is not None:
                error.row += rows
            raise
        yield writer.write(now, found, piece.ids, rows)
        rows += found.rows
    yield writer.end(job)


# --- what comes in --------------------------------------------------------------------------------------------------


def pieces_of(kind: str, body: Body, limits: Limits) -> Iterator[Piece]:
    """The rows of a body of this media type."""
    if kind == LINES:
        return _lines(body, limits)
    return _batches(body, limits) if kind == ARROW else _document(body, limits)


def whole(body: Body, most: int) -> Text:
    """All of a body, put together without the GIL. Raises PayloadTooLarge past so many bytes."""
    parts: list[bytes] = []
    size = 0
    while part := body.read1(PIECE_BYTES):
        parts.append(part)
        size += len(part)
        if size > most:
            raise PayloadTooLarge(
                f"expected a body of at most {most} bytes, found more; see the setting max_batch_bytes"
            )
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.frombuffer(part, np.uint8) for part in parts] or [np.zeros(0, np.uint8)])


def _document(body: Body, limits: Limits) -> Iterator[Piece]:
    text = whole(body, limits.document)
    yield Piece(partial(_read_document, text, limits.rows))


def _lines(body: Body, limits: Limits) -> Iterator[Piece]:
    rest: list[bytes] = []
    size = 0
    while part := body.read1(PIECE_BYTES):
        cut = part.rfind(b"\n") + 1
        if cut:
            yield _of_lines(b"".join([*rest, part[:cut]]), limits)
            rest, size = [], 0
        rest.append(part[cut:])
        size += len(part) - cut
        if size > limits.line:
            raise PayloadTooLarge(
                f"expected lines of at most {limits.line} bytes, found a longer one; see the setting max_body_bytes"
            )
    last = b"".join(rest)
    if last.strip():
        yield _of_lines(last, limits)


def _of_lines(text: bytes, limits: Limits) -> Piece:
    return Piece(partial(_read_lines, text, limits.rows))


def _read_document(text: Text, most: int, job: Job) -> Work:
    return Document(job.serving.route.prepare_batch, text, job, most)


def _read_lines(text: bytes, most: int, job: Job) -> Work:
    return Document(job.serving.route.prepare_lines, text, job, most)


def _batches(body: Body, limits: Limits) -> Iterator[Piece]:
    pa = load_pyarrow()
    try:
        reader = pa.ipc.open_stream(pa.PythonFile(Guard(body, limits.document), "r"))
        if len(reader.schema) > MOST_COLUMNS:
            raise PayloadTooLarge(f"expected at most {MOST_COLUMNS} columns, found {len(reader.schema)}")
        empty = True
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            empty = False
            if batch.num_rows > limits.rows:
                raise PayloadTooLarge(f"expected at most {limits.rows} rows, found {batch.num_rows}")
            batch.validate(full=True)
            _check_expanded(pa, batch, limits.document)
            yield from _of_batch(batch)
        if empty:
            yield from _of_batch(no_rows(reader.schema))
    except (pa.ArrowException, OSError) as error:
        raise InvalidRequest(f"the Arrow stream cannot be read: {error}") from error


def _of_batch(batch: Any) -> Iterator[Piece]:  # noqa: ANN401
    for given in sources(batch, None):
        ids = batch.column(ENTITY) if ENTITY in batch.schema.names else None
        yield Piece(partial(work_of, given), ids)


def _check_expanded(pa: Any, batch: Any, most: int) -> None:  # noqa: ANN401
    """Texts that stand once and are referred to often become large where they are copied out."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        lengths = None
        if pa.types.is_string_view(column.type):
            lengths = pa.compute.binary_length(column)
        elif pa.types.is_dictionary(column.type) and _is_text(pa, column.type.value_type):
            lengths = pa.compute.binary_length(column.dictionary).take(column.indices)
        if lengths is not None and (pa.compute.sum(lengths.cast(pa.int64())).as_py() or 0) > most:
            raise PayloadTooLarge(f"expected at most {most} bytes of text in column {name}, found more")


def _is_text(pa: Any, kind: Any) -> bool:  # noqa: ANN401
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


# --- what goes out --------------------------------------------------------------------------------------------------


def writer_of(kind: str) -> Writer:
    """What writes this media type."""
    if kind == LINES:
        return LineWriter()
    return ArrowWriter() if kind == ARROW else DocumentWriter()


class DocumentWriter:
    """One JSON document, by columns, for rows that came in one piece."""

    def write(self, job: Job, found: Outcome, ids: Any, start: int) -> Buffer:  # noqa: ANN401, ARG002
        """The whole document."""
        return found.to_json(job).data

    def end(self, job: Callable[[], Job]) -> bytes:
        """Nothing."""
        del job
        return b""

    def failed(self, error: TurnoutError) -> bytes:
        """Nothing: the error is the answer."""
        del error
        return b""


class LineWriter:
    """A line for each row: the answer of a single prediction, or a problem document."""

    def write(self, job: Job, found: Outcome, ids: Any, start: int) -> Buffer:  # noqa: ANN401, ARG002
        """The lines of these rows."""
        parts = [(part.version, part.outputs) for part in found.parts]
        problems = [_line_of(error.behind(start)) for error in found.errors]
        route = job.serving.route
        return route.encode_lines(found.part_of, found.reasons, parts, problems, found.entities).data

    def end(self, job: Callable[[], Job]) -> bytes:
        """Nothing."""
        del job
        return b""

    def failed(self, error: TurnoutError) -> bytes:
        """The last line is the problem."""
        return msgspec.json.encode(problem(error)) + b"\n"


def _line_of(error: RowError) -> bytes:
    return msgspec.json.encode(problem_of(error.code, error.detail, error.row, error.feature, error.position))


class ArrowWriter:
    """A stream of record batches: the entity column, if the rows had one, `version`, and a column for each output."""

    def __init__(self) -> None:
        self._columns: ArrowAnswers | None = None
        self._job: Job | None = None

    def write(self, job: Job, found: Outcome, ids: Any, start: int) -> bytes:  # noqa: ANN401
        """A record batch, behind the schema where it is the first."""
        del start
        first, columns = self._columns_of(job, ids)
        return first + columns.batch(found, [] if ids is None else [ids]).serialize().to_pybytes()

    def end(self, job: Callable[[], Job]) -> bytes:
        """The end of the stream."""
        first = b"" if self._columns is not None else self._columns_of(job(), None)[0]
        return first + END

    def failed(self, error: TurnoutError) -> bytes:
        """Nothing: Arrow has no word for it."""
        del error
        return b""

    def _columns_of(self, job: Job, ids: Any) -> tuple[bytes, ArrowAnswers]:  # noqa: ANN401
        """The columns, and the schema if it has to be written."""
        if self._columns is not None and self._job is not None and self._job.serving is job.serving:
            return b"", self._columns
        pa = load_pyarrow()
        columns = ArrowAnswers(job, [] if ids is None else [pa.field(ENTITY, ids.type)])
        before, self._columns, self._job = self._columns, columns, job
        if before is None:
            return columns.schema.serialize().to_pybytes(), columns
        if columns.schema != before.schema:
            raise Conflict(
                f"the versions of model {job.serving.name} were changed while the stream was answered, and their "
                "outputs are not those that the stream began with; send the rows that are left again"
            )
        return b"", columns
