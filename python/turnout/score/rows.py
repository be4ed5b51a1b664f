"""Text cut into rows: where each of them begins and ends, found without reading what is in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turnout.errors import InvalidRequest
from turnout.score.arrow import pa

BLOCK = 4 * 2**20
LONGEST = 64 * 2**20
"""Bytes of the longest row; only a quote that is never closed makes a longer one."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
LINE_FEED, RETURN, QUOTE, COMMA = b'\n\r",'
QUOTED = re.compile(rb'(?:\A|[,\r\n])"(?:[^"]+|"")*+(?:"|\Z)')
"""A field in quotes: they have a meaning only at the start of a field, and a quote in it is written twice."""

Positions = NDArray[np.int64]


class Rows(NamedTuple):
    """Rows that lie behind each other in `data`, and the number of lines in front of them."""

    data: bytes
    starts: Positions
    ends: Positions
    line: int

    @property
    def num_rows(self) -> int:
        """How many."""
        return len(self.starts)

    def slice(self, offset: int, length: int) -> Rows:
        """Some of them."""
        if length == self.num_rows:
            return self
        starts, ends = self.starts[offset : offset + length], self.ends[offset : offset + length]
        if not len(starts):
            return Rows(b"", starts, ends, self.line)
        begin = int(starts[0])
        line = self.line + self.data.count(b"\n", 0, begin)
        return Rows(self.data[begin : int(ends[-1])], starts - begin, ends - begin, line)

    def row(self, index: int) -> bytes:
        """The bytes of one."""
        return self.data[int(self.starts[index]) : int(self.ends[index])]

    def line_of(self, index: int) -> int:
        """The line of the file on which a row begins, from 1."""
        return self.line + self.data.count(b"\n", 0, int(self.starts[index])) + 1


def joined(pieces: list[Rows]) -> Rows:
    """Pieces that follow on each other as one; the lines of a piece behind the first are no longer known."""
    if len(pieces) == 1:
        return pieces[0]
    offsets = np.cumsum([0, *(len(piece.data) for piece in pieces)])
    starts = [piece.starts + offset for piece, offset in zip(pieces, offsets, strict=False)]
    ends = [piece.ends + offset for piece, offset in zip(pieces, offsets, strict=False)]
    data = b"".join(piece.data for piece in pieces)
    return Rows(data, np.concatenate(starts), np.concatenate(ends), pieces[0].line)


def place_of(pieces: list[Rows], row: int) -> str:
    """The line of a row among the pieces of a part."""
    for piece in pieces:
        if row < piece.num_rows:
            return f"line {piece.line_of(row)}"
        row -= piece.num_rows
    raise IndexError(row)


class TextFile:
    """A file of text, perhaps compressed.

    Attributes:
        place: bytes of the file that were read so far.
    """

    def __init__(self, path: Path, ends_of: Callable[[bytes, bool], Positions]) -> None:
        self.path = path
        self.place = 0
        self._ends_of = ends_of

    @contextmanager
    def _opened(self) -> Generator[tuple[Any, Any]]:
        """The file, and what comes out of it."""
        compression = COMPRESSIONS.get(self.path.suffix.lower())
        with pa.OSFile(str(self.path)) as raw:
            if compression is None:
                yield raw, raw
                return
            with pa.CompressedInputStream(raw, compression) as stream:
                yield raw, stream

    def rows(self) -> Iterator[Rows]:
        """Its rows without empty lines, in pieces of some megabytes. Raises InvalidRequest where it cannot be read."""
        try:
            with self._opened() as (raw, stream):
                yield from self._cut(raw, stream)
        except (pa.ArrowException, OSError) as error:
            raise InvalidRequest(f"{self.path} cannot be read: {error}") from error

    def _cut(self, raw: Any, stream: Any) -> Iterator[Rows]:  # noqa: ANN401
        rest, line = stream.read(BLOCK).removeprefix(BYTE_ORDER_MARK), 0
        last = not rest
        while True:
            try:
                ends = self._ends_of(rest, last)
            except ValueError as error:
                raise InvalidRequest(f"{self.path}: behind line {line}: {error}") from error
            if len(ends):
                cut = int(ends[-1])
                self.place = raw.tell()
                yield _without_empty(rest[:cut], ends, line)
                line += rest.count(b"\n", 0, cut)
                rest = rest[cut:]
            if last:
                return
            if len(rest) > LONGEST:
                raise InvalidRequest(
                    f"{self.path}: the row behind line {line} is longer than {LONGEST} bytes; is a quote left open?"
                )
            block = stream.read(BLOCK)
            last = not block
            rest += block


def _without_empty(data: bytes, ends: Positions, line: int) -> Rows:
    starts = np.concatenate([[0], ends[:-1]])
    size = ends - starts
    first = np.frombuffer(data, np.uint8)[starts]
    empty = ((size == 1) & ((first == LINE_FEED) | (first == RETURN))) | ((size == 2) & (first == RETURN))
    return Rows(data, starts[~empty], ends[~empty], line)


def line_ends(data: bytes, last: bool) -> Positions:
    """Behind each line feed, and at the end of the file."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == LINE_FEED) + 1
    return _closed(ends, data) if last else ends


def _closed(ends: Positions, data: bytes) -> Positions:
    if data and (not len(ends) or ends[-1] != len(data)):
        return np.append(ends, len(data))
    return ends


def csv_ends(data: bytes, last: bool) -> Positions:
    """Behind each line end that is in no quotes. Raises ValueError where the file ends within them.

    Line ends are those of pyarrow: line feed, carriage return, or both. Source of the quotes: RFC 4180, section 2.
    """
    found = np.frombuffer(data, np.uint8)
    feeds = found == LINE_FEED
    if b"\r" in data:
        alone = found == RETURN
        alone[:-1] &= ~feeds[1:]
        if not last and len(alone):
            alone[-1] = False  # a line feed may follow
        feeds |= alone
    ends = np.flatnonzero(feeds) + 1
    if b'"' in data:
        ends = _outside(data, found, ends, last=last)
    return _closed(ends, data) if last else ends


def _outside(data: bytes, found: NDArray[np.uint8], ends: Positions, *, last: bool) -> Positions:
    """The ends that are in no quotes."""
    quotes = np.flatnonzero(found == QUOTE)
    opening = quotes[::2]
    before = found[opening[opening > 0] - 1]
    if np.isin(before, (COMMA, LINE_FEED, RETURN, QUOTE)).all():
        # Each quote that opens stands where one may: then counting them is enough, and much faster.
        if last and len(quotes) % 2:
            raise ValueError("the file ends within quotes")
        return ends[np.searchsorted(quotes, ends) % 2 == 0]
    inside = np.zeros(len(data) + 1, np.bool_)
    for match in QUOTED.finditer(data):
        still_open = match[0].count(b'"') % 2
        if last and still_open:
            raise ValueError("the file ends within quotes")
        inside[match.start() + 2 : match.end() + still_open] = True
    return ends[~inside[ends]]
