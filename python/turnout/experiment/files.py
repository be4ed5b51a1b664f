"""Outcomes from files: Parquet, CSV, lines of JSON and Arrow, never the whole of one in memory."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from turnout.errors import InvalidOutcome, InvalidRequest, TurnoutError
from turnout.experiment.outcomes import MAX_OUTCOMES, Attributed, Outcome, State, read_outcome
from turnout.tables import load_pyarrow

Kind = Literal["parquet", "csv", "ndjson", "arrow"]
Fields = dict[str, Any]
Row = tuple[int, Fields | str]
"""Its number, and what it says; or why it cannot be read."""

SUFFIXES: dict[str, Kind] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".ndjson": "ndjson",
    ".ndjson.gz": "ndjson",
    ".jsonl": "ndjson",
    ".jsonl.gz": "ndjson",
    ".arrow": "arrow",
}
COLUMNS = Outcome.__struct_fields__
WHOM = ("entity_id", "prediction_id")
SHOWN = 20
"""Problems that are told; all of them are counted."""
LONGEST = 64 * 1024
"""Characters of the longest line, much more than an outcome needs."""
MOST_TEXT = 4 * 2**20
"""Characters of text that are recorded at once, so that long ones do not fill the memory."""
BATCH = 2048
BUFFER = 2**20
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
FILE_MAGIC = b"ARROW1"
INDEX_OF_PANDAS = "__index_level_"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
A_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
WORDS = {"true": True, "false": False}


class Problem(msgspec.Struct, frozen=True):
    """A row that is invalid, counted from 1: of a text its line, of a table its row."""

    row: int
    code: str
    detail: str


class Imported(msgspec.Struct, frozen=True):
    """What became of the rows of a file: how many there were, how many in each state, and the first that are invalid."""

    rows: int
    counts: dict[str, int]
    problems: tuple[Problem, ...] = ()


def import_outcomes(
    path: str | Path,
    record: Callable[[list[Any]], Sequence[Attributed]],
    *,
    model: str | None = None,
    metric: str | None = None,
    chunk: int = MAX_OUTCOMES,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Record the outcomes of a Parquet, CSV, NDJSON or Arrow file, piece by piece.

    Columns or keys are those of `Outcome`; others are refused, a misspelt `time` above all. A time is RFC 3339 text or a
    timestamp of Arrow, where one without a zone is in UTC. In CSV an empty cell is missing, and a value is an integer, a
    number, true or false, or else a label. A row that cannot be read is invalid and does not hold up the others. What
    comes twice counts twice, unless rows carry an `id`: with one, an import that was broken off can be repeated.

    Args:
        path: the file; its name says the format, and text may be compressed (`.gz`).
        record: takes at most `chunk` outcomes, such as `Turnout.record_outcomes` or that of a client.
        model: of rows that do not name it.
        metric: of rows that do not name it.
        chunk: outcomes that are recorded at once, at most 10,000.
        progress: is told the number of rows so far.

    Raises InvalidRequest where the file is not there, is damaged, or has other columns; what `record` raises.
    """
    if not 1 <= chunk <= MAX_OUTCOMES:
        raise InvalidRequest(f"chunk: expected 1 to {MAX_OUTCOMES} outcomes at once, found {chunk}")
    given = {name: text for name, text in (("model", model), ("metric", metric)) if text is not None}
    importing = _Import(record, given)
    try:
        for row, found in _rows(Path(path), given.keys()):
            importing.take(row, found)
            if importing.is_full(chunk):
                importing.commit()
                if progress is not None:
                    progress(importing.rows)
        importing.commit()
    except TurnoutError as error:
        if importing.recorded:
            # The same error, for those who look at its class, with what the caller has to know.
            error.detail += (
                f" ({importing.recorded:,} outcomes before it are recorded, and would count twice in another import, unless "
                "they carry an id)"
            )
            error.args = (error.detail,)
        raise
    if progress is not None:
        progress(importing.rows)
    return Imported(importing.rows, importing.counts, tuple(importing.problems))


class _Import:
    """Rows that are read and not yet recorded, and what became of all before them."""

    def __init__(self, record: Callable[[list[Any]], Sequence[Attributed]], given: Fields) -> None:
        self._record = record
        self._given = given
        self._held: list[tuple[int, Outcome]] = []
        self._bad: list[Problem] = []
        self._text = 0
        self.rows = 0
        self.recorded = 0
        self.counts: dict[str, int] = dict.fromkeys(get_args(State), 0)
        self.problems: list[Problem] = []

    def take(self, row: int, found: Fields | str) -> None:
        """Hold one row until the others are there."""
        self.rows += 1
        try:
            outcome = _outcome({**self._given, **found} if isinstance(found, dict) else found)
        except InvalidOutcome as error:
            self.counts["invalid"] += 1
            if len(self._bad) < SHOWN:
                self._bad.append(Problem(row, error.code, error.detail))
            return
        self._held.append((row, outcome))
        texts = (outcome.entity_id, outcome.prediction_id, outcome.value, outcome.id)
        self._text += sum(len(text) for text in texts if isinstance(text, str))

    def is_full(self, chunk: int) -> bool:
        """Whether it is time to record."""
        return len(self._held) >= chunk or self._text >= MOST_TEXT

    def commit(self) -> None:
        """Record what is held."""
        bad = self._bad
        if self._held:
            for (row, _), became in zip(
                self._held, self._record([outcome for _, outcome in self._held]), strict=True
            ):
                self.counts[became.state] += 1
                if became.state == "invalid":
                    bad.append(Problem(row, became.code or "", became.detail or ""))
            self.recorded += len(self._held)
        room = SHOWN - len(self.problems)
        self.problems += sorted(bad, key=lambda problem: problem.row)[:room]
        self._held, self._bad, self._text = [], [], 0


def _outcome(found: Fields | str) -> Outcome:
    if isinstance(found, str):
        raise InvalidOutcome(found)
    if not _is_text("".join(part for part in found.values() if isinstance(part, str))):
        raise InvalidOutcome("expected text in UTF-8")
    value = found.get("value")
    # What is not finite does not go over the wire, and no metric takes what is beyond.
    if isinstance(value, float | int) and not abs(value) < 2**63:
        raise InvalidOutcome("value: expected a number between -1e15 and 1e15")
    return read_outcome(found)


def _is_text(text: str) -> bool:
    """Whether it has no bytes that were no UTF-8, nor other lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- reading --------------------------------------------------------------------------------------------------------


def _rows(path: Path, given: Collection[str]) -> Iterator[Row]:
    kind = _kind(path)
    if not path.exists():
        raise InvalidRequest(f"{path}: no such file")
    if path.is_dir():
        raise InvalidRequest(f"{path} is a folder: expected a file")
    try:
        match kind:
            case "csv":
                yield from _csv_rows(path, given)
            case "ndjson":
                yield from _ndjson_rows(path)
            case _:
                yield from _table_rows(path, kind, given)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error


def _kind(path: Path) -> Kind:
    name = path.name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    raise InvalidRequest(f"{path}: expected a name that ends with {', '.join(SUFFIXES)}")


def _check_columns(path: Path, names: Sequence[str], given: Collection[str]) -> None:
    """Raises InvalidRequest for columns that are missing, named twice, or none of an outcome: a `timestamp`, say."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"{path}: column {twice!r} is there twice")
    missing = [name for name in ("model", "metric", "value") if name not in names and name not in given]
    strange = [name for name in names if name not in COLUMNS and not str(name).startswith(INDEX_OF_PANDAS)]
    if missing or strange or not set(WHOM) & set(names):
        said = ", ".join(map(_short, names)) or "none"
        raise InvalidRequest(
            f"{path}: expected columns model, metric (or options instead), value, {' or '.join(WHOM)}, and perhaps time "
            f"and id, found {said}"
        )


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:40] + "…")


@contextmanager
def _text(path: Path, newline: str) -> Generator[io.TextIOWrapper]:
    """A text, compressed or not. Bytes that are no UTF-8 become lone surrogates, which the row is told of."""
    compressed = path.name.lower().endswith(".gz")
    with (
        gzip.open(path) if compressed else path.open("rb") as opened,
        io.TextIOWrapper(opened, "utf-8-sig", "surrogateescape", newline=newline) as text,
    ):
        yield text


class _Lines:
    """The lines of a text. One that is longer than an outcome can be is empty, and `passed` is set."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.number = 0
        self.passed = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(LONGEST)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) < LONGEST or _ends(line):
            return line
        self.passed = True
        while (rest := self._text.readline(LONGEST)) and not _ends(rest):
            pass
        return "\n"


def _ends(line: str) -> bool:
    return line[-1] in "\r\n"


TOO_LONG = f"the line is longer than {LONGEST} characters"


def _ndjson_rows(path: Path) -> Iterator[Row]:
    with _text(path, "\n") as text:
        lines = _Lines(text)
        for line in lines:
            if lines.passed:
                lines.passed = False
                yield lines.number, TOO_LONG
            elif line.strip():
                yield lines.number, _object(line)


def _object(line: str) -> Fields | str:
    if not _is_text(line):
        return "expected text in UTF-8"
    try:
        found = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        return f"expected a JSON object on the line: {error}"
    return {name: value for name, value in found.items() if value is not None}


def _csv_rows(path: Path, given: Collection[str]) -> Iterator[Row]:
    with _text(path, "") as text:
        lines = _Lines(text)
        cells = csv.reader(lines, strict=True)
        try:
            names = next(cells, [])
        except csv.Error as error:
            raise InvalidRequest(
                f"{path}: expected a header with the names of the columns: {error}"
            ) from error
        _check_columns(path, names, given)
        lines.passed = False
        while True:
            number = lines.number + 1
            try:
                found = next(cells, None)
            except csv.Error as error:
                yield number, f"expected a row of CSV: {error}"
                continue
            if found is None:
                return
            if lines.passed:
                lines.passed = False
                yield number, TOO_LONG
            elif found:
                yield number, _fields(names, found)


def _fields(names: Sequence[str], cells: Sequence[str]) -> Fields | str:
    if len(cells) != len(names):
        return f"expected {len(names)} cells, found {len(cells)}"
    found: Fields = {name: cell for name, cell in zip(names, cells, strict=True) if cell and name in COLUMNS}
    if "value" in found:
        found["value"] = _value(found["value"])
    return found


def _value(cell: str) -> int | float | bool | str:
    """What a cell says: `007` and `nan` are no numbers."""
    if INTEGER.fullmatch(cell):
        return int(cell)
    if NUMBER.fullmatch(cell):
        return float(cell)
    return WORDS.get(cell.lower(), cell)


# --- tables ---------------------------------------------------------------------------------------------------------


def _table_rows(path: Path, kind: Kind, given: Collection[str]) -> Iterator[Row]:
    pa = load_pyarrow()
    try:
        with _parquet(path) if kind == "parquet" else _arrow(pa, path) as (schema, batches):
            _check_columns(path, schema.names, given)
            names = [name for name in schema.names if name in COLUMNS]
            for name in names:
                _check_type(pa, path, name, schema.field(name).type)
            row = 0
            for batch in batches:
                columns = [_plain(pa, name, batch.column(batch.schema.names.index(name))) for name in names]
                for cells in zip(*columns, strict=True):
                    row += 1
                    yield row, {n: cell for n, cell in zip(names, cells, strict=True) if cell is not None}
    except (pa.ArrowException, UnicodeDecodeError) as error:  # names of columns are not looked at either
        raise InvalidRequest(f"{path} cannot be read as {kind}: {error}") from error


@contextmanager
def _parquet(path: Path) -> Generator[tuple[Any, Iterator[Any]]]:
    """The schema, and batches of rows."""
    from pyarrow import parquet  # noqa: PLC0415 - pyarrow is optional

    # Without a buffer pyarrow takes all that a row group has of a column, which may be the file.
    with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False, memory_map=False) as file:
        names = [name for name in file.schema_arrow.names if name in COLUMNS]
        yield file.schema_arrow, file.iter_batches(BATCH, columns=names)


@contextmanager
def _arrow(pa: Any, path: Path) -> Generator[tuple[Any, Iterator[Any]]]:  # noqa: ANN401
    """The schema, and batches of rows, of a file or a whole stream."""
    from pyarrow import ipc  # noqa: PLC0415 - pyarrow is optional

    with path.open("rb") as file:
        is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        # A stream may be cut off between two batches, and reads well until there.
        file.seek(max(file.seek(0, os.SEEK_END) - len(END_OF_STREAM), 0))
        if not is_file and file.read() != END_OF_STREAM:
            raise InvalidRequest(
                f"{path} cannot be read as arrow: neither a file nor a whole stream; was it cut off?"
            )
    with pa.memory_map(str(path)) if is_file else pa.OSFile(str(path)) as opened:
        reader = ipc.open_file(opened) if is_file else ipc.open_stream(opened)
        found = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
        yield reader.schema, _slices(found)


def _slices(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)  # nothing else has looked at what its offsets point at
        for start in range(0, batch.num_rows, BATCH):
            yield batch.slice(start, BATCH)


def _check_type(pa: Any, path: Path, name: str, kind: Any) -> None:  # noqa: ANN401
    """Raises InvalidRequest for a column that cannot be what its name says."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    number = types.is_integer(kind) or types.is_floating(kind)
    fits = types.is_null(kind) or types.is_string(kind) or types.is_large_string(kind)
    fits = fits or types.is_string_view(kind)
    if name == "time":
        expected, fits = "timestamps or text", fits or types.is_timestamp(kind)
    elif name == "value":
        expected = "numbers, booleans or text"
        fits = fits or number or types.is_boolean(kind) or types.is_decimal(kind)
    elif name == "entity_id":
        expected, fits = "text or integers", fits or number
    elif name == "id":
        expected, fits = "text or integers", fits or types.is_integer(kind)
    else:
        expected = "text"
    if not fits:
        raise InvalidRequest(f"{path}: column {name!r}: expected {expected}, found {kind}")


def _plain(pa: Any, name: str, column: Any) -> list[Any]:  # noqa: ANN401
    """The values of a column; None where one is missing."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_timestamp(kind):
        return [_moment(ticks, A_SECOND[kind.unit]) for ticks in column.cast(pa.int64()).to_pylist()]
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "surrogateescape") for text in texts]
    found = column.to_pylist()
    if name == "id":
        return [None if number is None else str(number) for number in found]
    if name == "entity_id" and pa.types.is_floating(kind):
        # So pandas writes integers of which some are missing.
        return [_whole(number) for number in found]
    return found


def _moment(ticks: int | None, a_second: int) -> datetime | str | None:
    """A time from its number; one that Python does not have becomes text, which is no time."""
    if ticks is None:
        return None
    try:
        return EPOCH + timedelta(microseconds=ticks * 10**6 // a_second)
    except OverflowError:
        return str(ticks)


def _whole(number: float | None) -> float | int | None:
    if number is None or math.isnan(number):
        return None
    return int(number) if number.is_integer() else number
