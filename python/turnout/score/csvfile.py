"""CSV files: text whose types are those of the features, whatever the first rows look like."""

from __future__ import annotations

import csv as plain_csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from turnout.domain import RowError
from turnout.errors import InvalidRequest
from turnout.score.arrow import csv, pa, pc
from turnout.score.rows import Rows, TextFile, csv_ends, joined, place_of
from turnout.score.source import Kind, Loaded, Wanted, column_index, numbered
from turnout.tables import sources

TYPES = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "text": pa.string()}
WORDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "text": "text"}
EXACT = 2**53
"""Beyond it, doubles do not hold every integer."""
SHOWN = 40


class _Read(NamedTuple):
    """Rows from `first` on, or the one row there that cannot be read."""

    first: int
    batch: Any = None
    error: RowError | None = None


class CsvFile:
    """A CSV file with a header, as RFC 4180 has it.

    Args:
        path: the file.
        number: its position among the inputs.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self._number = number
        self._text = TextFile(path, csv_ends)
        header = next(self._text.rows(), None)
        if header is None:
            raise InvalidRequest(f"{path} is empty: expected a header with the names of the columns")
        self.names: list[str] = _fields(header.row(0), path)

    @property
    def place(self) -> int:
        """Bytes that were read."""
        return self._text.place

    def stream(self, wanted: Wanted, part_rows: int, done: Callable[[int], bool]) -> Iterator[Rows]:
        """Its rows behind the header."""
        del wanted, part_rows, done
        found = self._text.rows()
        first = next(found)
        yield first.slice(1, first.num_rows - 1)
        yield from found

    def field(self, name: str, features: dict[str, Kind]) -> Any:  # noqa: ANN401
        """Text, unless it is a feature: nothing else says what it is."""
        column_index(self.path, self.names, name)
        return pa.field(name, TYPES[features.get(name, "text")])

    def where(self, pieces: list[Rows], first: int, row: int) -> str:
        """Its line, from 1."""
        del first
        return place_of(pieces, row)

    def load(self, pieces: list[Rows], first: int, wanted: Wanted, *, skip: bool) -> Loaded:
        """One record batch of the rows that can be read, and why the others cannot."""
        rows = joined(pieces)
        reader = _Reader(self.names, wanted)
        batches: list[Any] = []
        bad: list[RowError] = []
        for found in reader.read(rows, 0, rows.num_rows):
            if found.error is None:
                batches.append(found.batch)
                continue
            bad.append(found.error)
            if not skip:
                break
        lost = {error.row for error in bad}
        end = rows.num_rows if skip or not bad else bad[0].row
        good = np.array([row for row in range(end) if row not in lost], np.int64) if bad else None
        raises = bool(bad) and not skip
        kept = [] if raises else [reader.kept(rows, field, batches, good) for field in wanted.kept]
        if not batches:
            return Loaded(rows.num_rows, None, good, kept, bad)
        batch = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
        features = batch.select([name for name in wanted.features if name in self.names])
        ids = None if wanted.entity is None else self._ids(batch.column(wanted.entity), first, good)
        return Loaded(rows.num_rows, next(sources(features, ids)), good, kept, bad)

    def _ids(self, column: Any, first: int, good: Any) -> list[Any]:  # noqa: ANN401
        """An empty text is no id."""
        found = column.to_pylist()
        if "" in found or None in found:
            rows = range(len(found)) if good is None else good.tolist()
            spare = numbered(self._number, first, rows[-1] + 1).tolist()
            found = [
                spare[row] if entity in {"", None} else entity
                for row, entity in zip(rows, found, strict=True)
            ]
        return found


class _Reader:
    """Reads rows with pyarrow; what it refuses is found by halving, so that the other rows are read the same way."""

    def __init__(self, names: list[str], wanted: Wanted) -> None:
        self._names = names
        self._wanted = wanted
        self._types: dict[str, Any] = {field.name: field.type for field in wanted.kept}
        if wanted.entity is not None:
            self._types[wanted.entity] = pa.string()
        self._types |= {name: TYPES[kind] for name, kind in wanted.features.items() if name in names}
        self._whole_numbers = {
            name for name, kind in wanted.features.items() if kind == "int" and name in names
        }

    def read(self, rows: Rows, first: int, stop: int) -> Iterator[_Read]:
        """Rows from `first` to `stop`, in their order."""
        if first == stop:
            return
        data = rows.data[int(rows.starts[first]) : int(rows.ends[stop - 1])]
        batch = self._batch(data, stop - first, self._types)
        if batch is not None:
            yield _Read(first, batch)
        elif stop - first == 1:
            yield _Read(first, error=self._why(data, first))
        else:
            half = (first + stop) // 2
            yield from self.read(rows, first, half)
            yield from self.read(rows, half, stop)

    def kept(self, rows: Rows, field: Any, batches: list[Any], good: Any) -> Any:  # noqa: ANN401
        """A column to keep: of rows that cannot be answered too, where they have it."""
        values = pa.concat_arrays(
            [batch.column(field.name) for batch in batches] or [pa.array([], self._types[field.name])]
        )
        values = values.cast(field.type)
        if good is None:
            return values
        index = np.full(rows.num_rows, -1, np.int64)
        index[good] = np.arange(len(good))
        column = values.take(pa.array(index, mask=index < 0)).to_pylist()
        for row in np.flatnonzero(index < 0).tolist():
            found = self._parsed(rows.row(row), {field.name: field.type}, 1)
            column[row] = None if found is None else found.column(0)[0].as_py()
        return pa.array(column, field.type)

    def _batch(self, data: bytes, count: int, types: dict[str, Any]) -> Any:  # noqa: ANN401
        """The rows, or None where one of them cannot be read."""
        batch = self._parsed(data, types, count)
        whole = self._whole_numbers & types.keys()
        if batch is None and whole:
            # Others write whole numbers with a point, pandas where one is missing.
            batch = self._parsed(data, {**types, **dict.fromkeys(whole, pa.float64())}, count)
            return None if batch is None else _as(types, batch)
        return batch

    def _parsed(self, data: bytes, types: dict[str, Any], count: int) -> Any:  # noqa: ANN401
        # By position, because a file may have a name twice among the columns that nobody wants.
        places = {str(self._names.index(name)): kind for name, kind in types.items()}
        try:
            table = csv.read_csv(
                pa.BufferReader(data),
                read_options=csv.ReadOptions(
                    column_names=[str(place) for place in range(len(self._names))],
                    use_threads=False,
                    block_size=len(data) + 1,
                ),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    column_types=places, include_columns=list(places), strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid:
            return None
        if table.num_rows != count:
            return None
        return pa.RecordBatch.from_arrays(
            [column.combine_chunks() for column in table.columns], names=list(types)
        )

    def _why(self, data: bytes, row: int) -> RowError:
        """What is wrong with one row."""
        found = _cells(data)
        if found is None or len(found) != len(self._names):
            said = "text in UTF-8" if found is None else f"{len(self._names)} columns, found {len(found)}"
            return RowError(row=row, code="invalid_request", detail=f"expected {said}")
        for name, kind in self._types.items():
            if self._batch(data, 1, {name: kind}) is None:
                return self._mismatch(row, name, found[self._names.index(name)])
        return RowError(row=row, code="invalid_request", detail="the row cannot be read")

    def _mismatch(self, row: int, name: str, text: str) -> RowError:
        shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
        kind = self._wanted.features.get(name)
        what = str(self._types[name]) if kind is None else WORDS[kind]
        detail = f'"{name}": expected {what}, found the string "{shown}"'
        if kind is None:
            return RowError(row=row, code="invalid_request", detail=f"column {detail}")
        return RowError(row=row, code="invalid_features", detail=f"feature {detail}", feature=name)


def _as(types: dict[str, Any], batch: Any) -> Any:  # noqa: ANN401
    """Doubles that stand for integers as integers; None where one of them is none."""
    columns: list[Any] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.type != types[name] and (pc.max(pc.abs(column)).as_py() or 0) >= EXACT:
            return None
        try:
            columns.append(column.cast(types[name]))
        except pa.ArrowInvalid:
            return None
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _cells(data: bytes) -> list[str] | None:
    """The fields of one row; None where they are no UTF-8."""
    try:
        return next(plain_csv.reader([data.decode("utf-8")]), None)
    except (UnicodeDecodeError, plain_csv.Error):
        return None


def _fields(header: bytes, path: Path) -> list[str]:
    found = _cells(header)
    if not found:
        raise InvalidRequest(f"{path}: expected a header with the names of the columns in UTF-8")
    return found
