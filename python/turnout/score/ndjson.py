"""NDJSON files: an object on each line, read as a request would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from turnout.domain import RowError
from turnout.errors import InvalidRequest
from turnout.score.arrow import pa
from turnout.score.rows import Rows, TextFile, joined, line_ends, place_of
from turnout.score.source import Kind, Loaded, Wanted, numbered

SLICE = 4096
"""Lines that are objects of Python at a time."""


class NdjsonFile:
    """A file of JSON objects, one a line; fields that nobody wants are passed over.

    Args:
        path: the file.
        number: its position among the inputs.
        verbatim: whether columns to keep stay JSON, because the output is JSON too.
    """

    names: list[str] | None = None

    def __init__(self, path: Path, number: int, *, verbatim: bool) -> None:
        self.path = path
        self._number = number
        self._verbatim = verbatim
        self._text = TextFile(path, line_ends)

    @property
    def place(self) -> int:
        """Bytes that were read."""
        return self._text.place

    def stream(self, wanted: Wanted, part_rows: int, done: Callable[[int], bool]) -> Iterator[Rows]:
        """Its lines."""
        del wanted, part_rows, done
        return self._text.rows()

    def field(self, name: str, features: dict[str, Kind]) -> Any:  # noqa: ANN401
        """Text: the lines may have any type, each another one."""
        del features
        return pa.field(name, pa.string(), metadata={"turnout": "json"} if self._verbatim else None)

    def where(self, pieces: list[Rows], first: int, row: int) -> str:
        """Its line, from 1."""
        del first
        return place_of(pieces, row)

    def load(self, pieces: list[Rows], first: int, wanted: Wanted, *, skip: bool) -> Loaded:
        """A JSON body of the lines that can be read, and why the others cannot."""
        rows = joined(pieces)
        lines = _Lines(rows, wanted)
        for start in range(0, rows.num_rows, SLICE):
            if not lines.read(start, min(start + SLICE, rows.num_rows), skip=skip):
                break
        good = np.array(lines.good, np.int64)
        kept = [
            self._kept(field, values, good, rows.num_rows)
            for field, values in zip(wanted.kept, lines.kept, strict=True)
        ]
        if not len(good):
            return Loaded(rows.num_rows, None, good, kept, lines.bad)
        ids = b""
        if wanted.entity is not None:
            spare = numbered(self._number, first, rows.num_rows)[good].tolist()
            named = [there if there is not None else own for there, own in zip(lines.ids, spare, strict=True)]
            ids = b'"entity_ids":' + msgspec.json.encode(named) + b","
        body = b"{" + ids + b'"rows":[' + b",".join(lines.features) + b"]}"
        return Loaded(rows.num_rows, (body, None), good, kept, lines.bad)

    def _kept(self, field: Any, values: list[msgspec.Raw | None], good: Any, count: int) -> Any:  # noqa: ANN401
        column: list[str | None] = [None] * count
        for row, value in zip(good.tolist(), values, strict=True):
            if value is not None:
                column[row] = bytes(value).decode() if self._verbatim else _text(bytes(value))
        try:
            return pa.array(column, pa.string()).cast(field.type)
        except pa.ArrowInvalid as error:
            raise InvalidRequest(
                f"column {field.name!r}: expected {field.type} as in the first file: {error}"
            ) from error


class _Lines:
    """What was read of some lines: JSON of their features, ids, columns to keep, and what is wrong with others."""

    def __init__(self, rows: Rows, wanted: Wanted) -> None:
        self._rows = rows
        self._feature_rows = _decoder(list(wanted.features))
        kept = [field.name for field in wanted.kept]
        others = list(dict.fromkeys(kept if wanted.entity is None else [*kept, wanted.entity]))
        self._other_rows = _decoder(others) if others else None
        self._kept_fields = [f"c{others.index(name)}" for name in kept]
        self._entity_field = None if wanted.entity is None else f"c{others.index(wanted.entity)}"
        self.features: list[bytes] = []
        self.ids: list[msgspec.Raw | None] = []
        self.kept: list[list[msgspec.Raw | None]] = [[] for _ in wanted.kept]
        self.good: list[int] = []
        self.bad: list[RowError] = []

    def read(self, start: int, stop: int, *, skip: bool) -> bool:
        """Some of the lines; False where one of them is bad and that ends it."""
        if self._take(start, stop) is None:
            return True
        for row in range(start, stop):
            why = self._take(row, row + 1)
            if why is not None:
                detail = f"expected a JSON object on the line: {why}"
                self.bad.append(RowError(row=row, code="invalid_request", detail=detail))
                if not skip:
                    return False
        return True

    def _take(self, start: int, stop: int) -> str | None:
        """Read lines, all of them or none; why not."""
        data = self._rows.data[int(self._rows.starts[start]) : int(self._rows.ends[stop - 1])]
        try:
            data.decode("utf-8")  # what is only passed on is not looked at
            features = _decoded(self._feature_rows, data, stop - start)
            others = [] if self._other_rows is None else _decoded(self._other_rows, data, stop - start)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return str(error)
        if len(features) != stop - start:
            return f"found {len(features)} values"
        self.good += range(start, stop)
        self.features.append(msgspec.json.encode(features)[1:-1])
        if self._entity_field is not None:
            self.ids += _values(others, self._entity_field)
        for values, field in zip(self.kept, self._kept_fields, strict=True):
            values.extend(_values(others, field))
        return None


def _decoder(names: Sequence[str]) -> msgspec.json.Decoder[Any]:
    """Takes these fields of an object as they are written, without reading them."""
    fields = [(f"c{index}", msgspec.Raw, msgspec.UNSET) for index in range(len(names))]
    rename = {f"c{index}": name for index, name in enumerate(names)}
    return msgspec.json.Decoder(msgspec.defstruct("Line", fields, rename=rename))


def _decoded(decoder: msgspec.json.Decoder[Any], data: bytes, lines: int) -> list[Any]:
    """Alone, a line is told what is wrong with it, by its own bytes."""
    return [decoder.decode(data)] if lines == 1 else decoder.decode_lines(data)


def _values(lines: list[Any], field: str) -> list[msgspec.Raw | None]:
    """What the lines have in a field; None for null and for nothing."""
    found = [getattr(line, field) for line in lines]
    return [None if value is msgspec.UNSET or bytes(value) == b"null" else value for value in found]


def _text(value: bytes) -> str:
    """A text as it is, and anything else as its JSON."""
    return msgspec.json.decode(value, type=str) if value.startswith(b'"') else value.decode()
