"""What every kind of input file offers: its columns, and its rows in parts that do not depend on who reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from turnout.domain import RowError
from turnout.errors import InvalidRequest
from turnout.tables import Given

Kind = Literal["float", "int", "bool", "text"]
"""How the values of a feature are read where a file does not say it."""


class Wanted(NamedTuple):
    """What is read of every file.

    Attributes:
        features: names of features that some version takes, and how they are read.
        entity: the column of entity ids; None where they make no difference, or where there is none.
        kept: `pyarrow.Field`s of the columns that are handed through.
    """

    features: dict[str, Kind]
    entity: str | None
    kept: tuple[Any, ...]

    @property
    def columns(self) -> list[str]:
        """All of them, each once."""
        named = [*self.features, *(field.name for field in self.kept)]
        return list(dict.fromkeys(named if self.entity is None else [*named, self.entity]))


class Part(NamedTuple):
    """Contiguous rows of one file. `rows` is None where somebody has answered them already."""

    first: int
    size: int
    rows: list[Any] | None


class Loaded(NamedTuple):
    """The rows of a part, ready to be answered.

    Attributes:
        size: rows of the part.
        given: those that can be answered; None where none can.
        good: which rows those are; None for all.
        kept: an array of `size` values for each field to keep.
        bad: why the others cannot be answered, ascending.
    """

    size: int
    given: Given | None
    good: NDArray[np.int64] | None
    kept: list[Any]
    bad: list[RowError]


class Source(Protocol):
    """One input file."""

    path: Path

    @property
    def names(self) -> list[str] | None:
        """Its columns, or None where each row says for itself."""
        ...

    @property
    def place(self) -> int:
        """Bytes of the file that were read so far."""
        ...

    def stream(self, wanted: Wanted, part_rows: int, done: Callable[[int], bool]) -> Iterator[Any]:
        """Its rows in pieces of any size, in their order; a number stands for rows of parts that are done."""
        ...

    def field(self, name: str, features: dict[str, Kind]) -> Any:  # noqa: ANN401
        """The `pyarrow.Field` of a column to keep."""
        ...

    def load(self, pieces: list[Any], first: int, wanted: Wanted, *, skip: bool) -> Loaded:
        """Make the pieces of one part ready; `first` is the number of its first row. Called by many threads."""
        ...

    def where(self, pieces: list[Any], first: int, row: int) -> str:
        """What people call a row of a part."""
        ...


def parts(source: Source, wanted: Wanted, part_rows: int, done: Callable[[int], bool]) -> Iterator[Part]:
    """The rows of a file in parts of `part_rows`, the last of which may be smaller."""
    held: list[Any] = []
    index = first = size = 0
    for piece in source.stream(wanted, part_rows, done):
        rows: int = piece if isinstance(piece, int) else piece.num_rows
        offset = 0
        while offset < rows:
            taken = min(part_rows - size, rows - offset)
            finished = done(index)
            if not finished and not isinstance(piece, int):
                held.append(piece.slice(offset, taken))
            offset += taken
            size += taken
            if size == part_rows:
                yield Part(first, size, None if finished else held)
                held, index, first, size = [], index + 1, first + size, 0
    if size:
        yield Part(first, size, None if done(index) else held)


def numbered(file: int, first: int, count: int) -> NDArray[np.uint64]:
    """Ids for rows that have none: a test draws their versions, in each run the same ones.

    They are beyond the signed integers, where real ids hardly are.
    """
    return np.arange(count, dtype=np.uint64) + np.uint64(2**63 + (file << 40) + first)


def column_index(path: Path, names: Sequence[str], name: str) -> int:
    """Where a column is. Raises InvalidRequest where it is not there, or twice."""
    if names.count(name) != 1:
        raise InvalidRequest(
            f"{path}: expected one column {name!r}, found {'none' if name not in names else names.count(name)}; "
            f"its columns are {', '.join(names)}"
        )
    return names.index(name)
