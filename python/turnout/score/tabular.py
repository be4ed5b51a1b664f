"""Parquet and Arrow files: columns that have types already."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from turnout.errors import InvalidRequest
from turnout.score.arrow import ipc, pa, parquet
from turnout.score.source import Kind, Loaded, Wanted, column_index, numbered
from turnout.tables import sources

BUFFER = 2**20
"""Bytes read at once of a column in Parquet: else pyarrow takes all that a row group has of it, which may be the file."""
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
FILE_MAGIC = b"ARROW1"


class Tabular:
    """What both have in common.

    Args:
        path: the file.
        number: its position among the inputs.
    """

    kind = ""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.place = 0
        self._number = number
        with self._reading():
            self.schema = self._schema()
        self.names: list[str] = list(self.schema.names)

    def _schema(self) -> Any:  # noqa: ANN401
        raise NotImplementedError

    def _batches(self, columns: list[int], part_rows: int, done: Callable[[int], bool]) -> Iterator[Any]:
        raise NotImplementedError

    @contextmanager
    def _reading(self) -> Generator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise InvalidRequest(f"{self.path} cannot be read as {self.kind}: {error}") from error

    def field(self, name: str, features: dict[str, Kind]) -> Any:  # noqa: ANN401
        """Of the type that the file has."""
        del features
        return pa.field(name, self.schema.field(column_index(self.path, self.names, name)).type)

    def stream(self, wanted: Wanted, part_rows: int, done: Callable[[int], bool]) -> Iterator[Any]:
        """Record batches of the columns that are wanted."""
        columns = [index for index, name in enumerate(self.schema.names) if name in wanted.columns]
        with self._reading():
            yield from self._batches(columns, part_rows, done)

    def load(self, pieces: list[Any], first: int, wanted: Wanted, *, skip: bool) -> Loaded:
        """One record batch; what a version has against its values is found when they are packed."""
        del skip
        batch = pa.Table.from_batches(pieces).combine_chunks().to_batches()[0]
        features = batch.select([name for name in batch.schema.names if name in wanted.features])
        ids = None if wanted.entity is None else self._ids(batch.column(wanted.entity), first)
        kept: list[Any] = []
        for field in wanted.kept:
            try:
                kept.append(batch.column(field.name).cast(field.type))
            except pa.ArrowException as error:
                raise InvalidRequest(
                    f"column {field.name!r}: expected {field.type} as in the first file, found "
                    f"{batch.column(field.name).type}: {error}"
                ) from error
        return Loaded(batch.num_rows, next(sources(features, ids)), None, kept, [])

    def _ids(self, column: Any, first: int) -> Any:  # noqa: ANN401
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_integer(column.type) and not column.null_count:
            return column.to_numpy(zero_copy_only=False)
        found = column.to_pylist()
        if column.null_count:
            spare = numbered(self._number, first, len(found)).tolist()
            found = [spare[row] if entity is None else entity for row, entity in enumerate(found)]
        return found

    def where(self, pieces: list[Any], first: int, row: int) -> str:
        """Its number, from 0."""
        del pieces
        return f"row {first + row}"


class ParquetFile(Tabular):
    """A Parquet file; row groups that have only finished parts are not read."""

    kind = "Parquet"

    def _open(self) -> Any:  # noqa: ANN401
        return parquet.ParquetFile(self.path, buffer_size=BUFFER, pre_buffer=False, memory_map=False)

    def _schema(self) -> Any:  # noqa: ANN401
        with self._open() as file:
            return file.schema_arrow

    def _batches(self, columns: list[int], part_rows: int, done: Callable[[int], bool]) -> Iterator[Any]:
        size, start = self.path.stat().st_size, 0
        names = [self.schema.names[index] for index in columns]
        with self._open() as file:
            total = max(file.metadata.num_rows, 1)
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if all(done(index) for index in range(start // part_rows, -(-(start + rows) // part_rows))):
                    found: Iterator[Any] = iter([rows])
                else:
                    # A name with a point asks for part of a struct too: only what was meant is taken.
                    read = file.iter_batches(part_rows, row_groups=[group], columns=names)
                    found = (batch.select(names) for batch in read)
                for piece in found:
                    start += piece if isinstance(piece, int) else piece.num_rows
                    self.place = size * start // total
                    yield piece


class ArrowFile(Tabular):
    """A file of Arrow's interprocess format, or its stream.

    A batch may be the whole file: of a file it is mapped, so that the kernel holds what fits; of a stream it is read.
    """

    kind = "Arrow"

    def _is_stream(self) -> bool:
        with self.path.open("rb") as file:
            if file.read(len(FILE_MAGIC)) == FILE_MAGIC:
                return False
            # A stream may be cut off between two batches, and reads well until there.
            file.seek(0, 2)
            file.seek(max(file.tell() - len(END_OF_STREAM), 0))
            if file.read() != END_OF_STREAM:
                raise InvalidRequest(
                    f"{self.path} cannot be read as Arrow: neither a file nor a whole stream; was it cut off?"
                )
        return True

    def _schema(self) -> Any:  # noqa: ANN401
        opened = ipc.open_stream if self._is_stream() else ipc.open_file
        with pa.OSFile(str(self.path)) as file:
            return opened(file).schema

    def _batches(self, columns: list[int], part_rows: int, done: Callable[[int], bool]) -> Iterator[Any]:
        del part_rows, done
        # All columns of a batch: pyarrow copies the file's bytes when it is told which ones.
        if self._is_stream():
            with pa.OSFile(str(self.path)) as file:
                for batch in ipc.open_stream(file):
                    self.place = file.tell()
                    yield batch.select(columns)
            return
        with pa.memory_map(str(self.path)) as file:
            reader = ipc.open_file(file)
            for index in range(reader.num_record_batches):
                self.place = file.size() * (index + 1) // reader.num_record_batches
                yield reader.get_batch(index).select(columns)
