"""The answers to many rows: columns of NumPy, and of Arrow with a schema that does not depend on who answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from turnout.domain import RowError, Tensor
from turnout.errors import InvalidRequest, PredictionFailed
from turnout.router import NUMPY_TYPES, Serving
from turnout.tables import load_pyarrow

Rows = NDArray[np.int64]
Arrays = list[NDArray[Any]]
Piece = tuple[Rows, NDArray[Any]]
"""Rows, and the values of an output for them."""


class Job(NamedTuple):
    """What a caller wants of many rows: a model as it is now, the version that is named, whether to skip bad rows."""

    serving: Serving
    pinned: int | None
    skip: bool

    @property
    def reachable(self) -> tuple[int, ...]:
        """The versions that may answer."""
        if self.pinned is not None:
            return (self.pinned,)
        return tuple(sorted(self.serving.index[label] for label in self.serving.routable))


class Part(NamedTuple):
    """What one version answered: its index, its rows (ascending) and its outputs, each of shape `[rows, ...]`."""

    version: int
    rows: Rows
    outputs: Arrays


class Outcome(NamedTuple):
    """Everything about a batch that was run."""

    rows: int
    assigned: NDArray[np.int32]
    """Index of the version of each row; that of its part where another one answered, -1 where there is none."""
    reasons: NDArray[np.uint8]
    """Why that version answered: indices of `turnout.domain.REASONS`."""
    part_of: NDArray[np.int32]
    """Index of the part of each row; -1 where it has no answer."""
    parts: list[Part]
    errors: list[RowError]
    entities: NDArray[np.uint8] | None = None
    """The hash of the entity of each row, shape `[N, 16]`, where answers are signed."""

    def to_json(self, job: Job) -> NDArray[np.uint8]:
        """The bytes of the answer by columns."""
        used, index = indexed(self.assigned)
        parts = [(part.version, part.outputs) for part in self.parts]
        errors = msgspec.json.encode(self.errors)
        return job.serving.route.encode_batch(used, index, self.part_of, parts, errors)


def distinct(versions: NDArray[np.int32]) -> list[int]:
    """The versions that occur, ascending, without -1. Counting them is ten times faster than sorting."""
    return np.flatnonzero(np.bincount(versions + 1, minlength=1)[1:]).tolist()


def indexed(versions: NDArray[np.int32]) -> tuple[list[int], NDArray[np.int32]]:
    """The versions that occur, and for each row an index into them; -1 stays."""
    used = distinct(versions)
    places = np.full(max(used, default=-1) + 2, -1, np.int32)  # the last one is that of -1
    places[used] = np.arange(len(used))
    return used, places[versions]


class BatchPrediction:
    """The answers to many rows, in their order, by columns.

    Attributes:
        model: the model.
        versions: labels of the versions that the rows were given to.
        version_index: for each row an index into `versions` (int32, shape [N]); -1 where there is none.
        outputs: every output by its name, shape [N, ...]. Rows without an answer, and rows of a version that has no
            such output, are NaN in outputs of floats; other outputs, and those whose shapes or types differ between
            versions, are arrays of objects then, with None for them.
        errors: why rows have no answer, ascending; empty unless they were to be skipped.
    """

    def __init__(self, job: Job, found: list[Outcome]) -> None:
        self._job = job
        self._found = found
        self.model = job.serving.name
        self.errors: tuple[RowError, ...] = tuple(_counted(found))
        self._count = sum(outcome.rows for outcome in found)
        assigned = [outcome.assigned for outcome in found]
        used, index = indexed(np.concatenate(assigned) if assigned else np.zeros(0, np.int32))
        self.versions: tuple[str, ...] = tuple(job.serving.labels[version] for version in used)
        self.version_index: NDArray[np.int32] = index
        self.outputs: Mapping[str, NDArray[Any]] = {
            name: _merged(pieces, self._count) for name, pieces in self._pieces().items()
        }

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return (
            f"<{self._count} predictions of {self.model} by {', '.join(self.versions) or 'no version'}: "
            f"{', '.join(self.outputs)}; {len(self.errors)} errors>"
        )

    def to_arrow(self) -> Any:  # noqa: ANN401
        """A `pyarrow.Table`: `version`, a column for each output, and `error` where bad rows were to be skipped.

        Its schema is the same whichever versions answered. A row without an answer is null. An output that is called
        as another column is prefixed with `output_`.

        Raises InvalidRequest where pyarrow is not installed, or where an output of two versions that may answer has
        not the same number of dimensions.
        """
        columns = ArrowAnswers(self._job)
        return load_pyarrow().Table.from_batches(
            [columns.batch(found) for found in self._found], columns.schema
        )

    def _pieces(self) -> dict[str, list[Piece]]:
        pieces: dict[str, list[Piece]] = {}
        start = 0
        for outcome in self._found:
            for part in outcome.parts:
                for tensor, values in zip(
                    _outputs(self._job.serving, part.version), part.outputs, strict=True
                ):
                    pieces.setdefault(tensor.name, []).append((part.rows + start, values))
            start += outcome.rows
        return pieces


def _counted(found: list[Outcome]) -> Iterator[RowError]:
    start = 0
    for outcome in found:
        yield from (error.behind(start) for error in outcome.errors)
        start += outcome.rows


def _outputs(serving: Serving, version: int) -> Sequence[Tensor]:
    return serving.lanes[version].version.signature.outputs


def _merged(pieces: list[Piece], count: int) -> NDArray[Any]:
    first = pieces[0][1]
    if len(pieces) == 1 and len(first) == count:
        return first
    missing = np.ones(count, np.bool_)
    for rows, _ in pieces:
        missing[rows] = False
    alike = all(values.dtype == first.dtype and values.shape[1:] == first.shape[1:] for _, values in pieces)
    if alike and (first.dtype.kind == "f" or not missing.any()):
        merged = np.empty((count, *first.shape[1:]), first.dtype)
        if missing.any():
            merged[missing] = np.nan
        for rows, values in pieces:
            merged[rows] = values
        return merged
    merged = np.full(count, None, np.object_)
    for rows, values in pieces:
        column = np.empty(len(values), np.object_)
        column[:] = list(values) if values.ndim > 1 else values.tolist()
        merged[rows] = column
    return merged


# --- Arrow ----------------------------------------------------------------------------------------------------------


class ArrowAnswers:
    """Turns outcomes of a job into record batches of one schema.

    Args:
        job: what was asked.
        kept: fields of the columns that are handed through before the others.
    """

    def __init__(self, job: Job, kept: Sequence[Any] = ()) -> None:
        self._pa = pa = load_pyarrow()
        self._serving = job.serving
        self._skip = job.skip
        taken = {field.name for field in kept}
        if "version" in taken or (job.skip and "error" in taken):
            raise InvalidRequest(
                "expected other columns than version and error to be kept: the answer has those"
            )
        taken |= {"version", "error"}
        self._outputs = _output_columns(pa, job, taken)
        fields = [*kept, pa.field("version", pa.string())]
        fields += [pa.field(column.name, column.type) for column in self._outputs]
        if job.skip:
            fields.append(pa.field("error", pa.struct([(name, pa.string()) for name in ERROR_FIELDS])))
        self.schema = pa.schema(fields)

    def batch(self, found: Outcome, kept: Sequence[Any] = ()) -> Any:  # noqa: ANN401
        """A `pyarrow.RecordBatch`; `kept` are arrays of as many rows."""
        pa = self._pa
        columns = [*kept, self._chosen(self._serving.labels, pa.string(), found.assigned)]
        columns += [
            column.filled(pa, list(self._pieces(found, column.output)), found.rows)
            for column in self._outputs
        ]
        if self._skip:
            index = np.full(found.rows, -1, np.int32)
            index[[error.row for error in found.errors]] = np.arange(len(found.errors))
            said = [{name: getattr(error, name) for name in ERROR_FIELDS} for error in found.errors]
            columns.append(self._chosen(said, self.schema.field("error").type, index))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _pieces(self, found: Outcome, name: str) -> Iterator[Piece]:
        for part in found.parts:
            for tensor, values in zip(_outputs(self._serving, part.version), part.outputs, strict=True):
                if tensor.name == name:
                    yield part.rows, values

    def _chosen(self, values: Sequence[Any], kind: Any, index: NDArray[np.int32]) -> Any:  # noqa: ANN401
        """For each row one of few values; null for a negative index."""
        return self._pa.array(values, kind).take(self._pa.array(index, mask=index < 0))


ERROR_FIELDS = ("code", "feature", "detail")


class OutputColumn(NamedTuple):
    """An output, whichever of the versions answers: its name in the models and in the table, and its type."""

    output: str
    name: str
    element: str
    inner: tuple[int, ...] | None
    """Shape of one row's value; None where it is not the same in all rows."""
    type: Any

    def filled(self, pa: Any, pieces: list[Piece], count: int) -> Any:  # noqa: ANN401
        """The column: values in their rows, and null in the others."""
        if self.inner is None:
            return self._taken(pa, pieces, count)
        missing = np.ones(count, np.bool_)
        empty = None if self.element == "object" else 0
        values: NDArray[Any] = np.full((count, *self.inner), empty, self.element)
        for rows, found in pieces:
            if found.shape[1:] != self.inner:
                raise PredictionFailed(
                    f"the model failed: expected values of shape {self.inner} in output {self.output!r}, found "
                    f"{found.shape[1:]}"
                )
            missing[rows] = False
            if len(rows) == count and found.dtype == values.dtype:
                values = found
            else:
                values[rows] = self._converted(found)
        if not self.inner:
            return pa.array(values, self.type, mask=missing)
        return _nested(pa, values, self.type, missing)

    def _converted(self, found: NDArray[Any]) -> NDArray[Any]:
        """As the type of the column; where another version answers with texts, numbers are their texts."""
        if self.element == "object" and found.dtype != np.object_:
            found = found.astype(np.str_)
        return found.astype(self.element, copy=False)

    def _taken(self, pa: Any, pieces: list[Piece], count: int) -> Any:  # noqa: ANN401
        """Lists of different lengths: those of all pieces behind each other, and picked from there."""
        index = np.full(count, -1, np.int64)
        parts: list[Any] = []
        start = 0
        for rows, found in pieces:
            index[rows] = np.arange(start, start + len(rows))
            start += len(rows)
            parts.append(_nested(pa, self._converted(found), self.type, None))
        whole = pa.concat_arrays(parts) if parts else pa.array([], self.type)
        return whole.take(pa.array(index, mask=index < 0))


def _output_columns(pa: Any, job: Job, taken: Iterable[str]) -> list[OutputColumn]:  # noqa: ANN401
    by_name: dict[str, list[Tensor]] = {}
    for version in job.reachable:
        for tensor in _outputs(job.serving, version):
            by_name.setdefault(tensor.name, []).append(tensor)
    names = set(taken)
    columns: list[OutputColumn] = []
    for output, tensors in by_name.items():
        name = output
        while name in names or (name != output and name in by_name):
            name = f"output_{name}"
        names.add(name)
        columns.append(_output_column(pa, output, name, tensors))
    return columns


def _output_column(pa: Any, output: str, name: str, tensors: list[Tensor]) -> OutputColumn:  # noqa: ANN401
    elements = {NUMPY_TYPES.get(tensor.dtype, tensor.dtype) for tensor in tensors}
    element = "object" if "object" in elements else str(np.result_type(*elements))
    kind = pa.string() if element == "object" else pa.from_numpy_dtype(element)
    shapes = {tensor.shape[1:] for tensor in tensors}
    if len({len(shape) for shape in shapes}) > 1:
        raise InvalidRequest(
            f"a row of output {output!r} has shape {' or '.join(sorted(str(list(shape)) for shape in shapes))}, "
            "depending on the version: a table cannot hold both; name a version"
        )
    shape = next(iter(shapes))
    fixed = tuple(size for size in shape if size)
    if len(shapes) == 1 and len(fixed) == len(shape):
        for size in reversed(fixed):
            kind = pa.list_(kind, size)
        return OutputColumn(output, name, element, fixed, kind)
    for _ in shape:
        kind = pa.list_(kind)
    return OutputColumn(output, name, element, None, kind)


def _nested(pa: Any, values: NDArray[Any], kind: Any, missing: NDArray[np.bool_] | None) -> Any:  # noqa: ANN401
    """Values of shape `[rows, ...]` as lists in lists. Source: Arrow columnar format, "List layout"."""
    kinds: list[Any] = []
    while pa.types.is_nested(kind):
        kinds.append(kind)
        kind = kind.value_type
    flat = pa.array(values.reshape(-1), kind)
    for depth in range(len(kinds), 0, -1):
        mask = pa.array(missing) if depth == 1 and missing is not None else None
        size = values.shape[depth]
        if pa.types.is_fixed_size_list(kinds[depth - 1]):
            flat = pa.FixedSizeListArray.from_arrays(flat, type=kinds[depth - 1], mask=mask)
        else:
            count = int(np.prod(values.shape[:depth]))
            flat = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * size, flat, mask=mask)
    return flat
