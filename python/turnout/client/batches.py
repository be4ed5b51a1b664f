"""Many rows on their way to a server, and its answers as columns of NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from turnout.client.wire import ids_of
from turnout.domain import RowError
from turnout.errors import InvalidRequest
from turnout.plain import to_json

BEYOND_INT64 = 2.0**63
ROWS = 8192
"""Rows of a stream that are sent together: as many as a server runs at once."""


class BatchAnswer(msgspec.Struct, frozen=True, eq=False):
    """The answers to many rows, in their order, by columns: what `BatchPrediction` is on a data directory.

    Attributes:
        model: the model.
        versions: labels of the versions that the rows were given to.
        version_index: for each row an index into `versions` (int32, shape [N]); -1 where there is none.
        outputs: every output by its name, shape [N, ...]: float64, int64, bool, or objects for strings and for rows of
            different shapes; uint64 where int64 is too small. A row without an answer is NaN among floats, and else None in an array of objects.
        errors: why rows have no answer, ascending; empty unless they were to be skipped.
    """

    model: str
    versions: tuple[str, ...]
    version_index: NDArray[np.int32]
    outputs: dict[str, NDArray[Any]]
    errors: tuple[RowError, ...] = ()

    def __len__(self) -> int:
        return len(self.version_index)

    def behind(self, rows: int) -> BatchAnswer:
        """The same where so many rows came before: the errors say so."""
        errors = tuple(error.behind(rows) for error in self.errors)
        return msgspec.structs.replace(self, errors=errors)


class BatchDocument(msgspec.Struct):
    """A batch as the server answers it."""

    model: str
    versions: tuple[str, ...]
    version_index: list[int | None]
    outputs: dict[str, list[Any]]
    errors: tuple[RowError, ...]

    def answer(self) -> BatchAnswer:
        """The same with arrays."""
        index = [-1 if version is None else version for version in self.version_index]
        outputs = {name: column(values) for name, values in self.outputs.items()}
        return BatchAnswer(self.model, self.versions, np.array(index, np.int32), outputs, self.errors)


# --- what comes back ------------------------------------------------------------------------------------------------


def column(values: list[Any]) -> NDArray[Any]:
    """The values of an output, None for a row that has none, as an array."""
    present = [row for row, value in enumerate(values) if value is not None]
    if not present:
        return np.full(len(values), np.nan)
    found = _array([values[row] for row in present])
    if len(present) == len(values):
        return found
    if found.dtype.kind == "f":
        whole = np.full((len(values), *found.shape[1:]), np.nan)
        whole[present] = found
        return whole
    whole = np.full(len(values), None, np.object_)
    whole[present] = _objects(list(found) if found.ndim > 1 else found.tolist())
    return whole


def _array(values: list[Any]) -> NDArray[Any]:
    try:
        found = np.array(values)
        if found.dtype.kind == "U":
            return np.array(values, np.object_)  # not of U, which has no zeros at the end of a string
        if found.dtype.kind == "f" and np.abs(found).max(initial=0.0) >= BEYOND_INT64:
            return _unsigned(values, found)
        # A null inside of a row is a NaN that JSON could not write.
        return found.astype(np.float64) if found.dtype.kind == "O" else found
    except (TypeError, ValueError):
        return _objects(values)


def _unsigned(values: list[Any], found: NDArray[Any]) -> NDArray[Any]:
    """Integers of which some are too large for int64, and so became floats; what is none stays as it is."""
    whole: NDArray[Any] = np.array(values, np.object_)
    if not all(isinstance(value, int) for value in whole.flat):
        return found
    return whole.astype(np.uint64) if whole.min() >= 0 else whole


def _objects(values: list[Any]) -> NDArray[Any]:
    found = np.empty(len(values), np.object_)
    for row, value in enumerate(values):
        found[row] = value  # at once, lists of one length would become a matrix
    return found


# --- what goes out --------------------------------------------------------------------------------------------------


def batch_body(rows: Any, entity_ids: Any) -> bytes:  # noqa: ANN401
    """Rows and their ids as JSON: a list of mappings or lists, a mapping of columns, a NumPy array, or a table.

    Raises InvalidRequest for anything else.
    """
    if is_table(rows):
        rows, entity_ids = _of_table(rows, entity_ids)
    if isinstance(rows, np.ndarray) and rows.ndim != 2:
        raise InvalidRequest(f"expected a two-dimensional array, found shape {rows.shape}")
    if not isinstance(rows, Mapping | Sequence | np.ndarray) or isinstance(rows, str | bytes):
        raise InvalidRequest(
            "expected rows as a list, a mapping of columns, a NumPy array or a table, found "
            f"{type(rows).__name__}"
        )
    ids = {} if entity_ids is None else {"entity_ids": ids_of(entity_ids)}
    return to_json({**ids, "columns" if isinstance(rows, Mapping) else "rows": rows})


def is_table(rows: Any) -> bool:  # noqa: ANN401
    """Whether it is a table of pandas, polars, pyarrow or of whoever else speaks Arrow."""
    return hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__")


def _of_table(rows: Any, entity_ids: Any) -> tuple[dict[str, list[Any]], Any]:  # noqa: ANN401
    """The columns of a table of pandas, polars or pyarrow, and the ids, which may be one of them."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - only tables need it
    except ImportError as error:
        raise InvalidRequest("tables need pyarrow: install turnout[arrow]") from error
    if type(rows).__module__.partition(".")[0] == "pandas":
        _refuse_twice(list(rows.columns))
        table = pa.Table.from_pandas(rows, preserve_index=False)
    else:
        table = pa.table(rows) if hasattr(rows, "__arrow_c_stream__") else pa.record_batch(rows)
    _refuse_twice(table.schema.names)
    columns: dict[str, list[Any]] = table.to_pydict()
    named = columns.pop("entity_id", None)
    if named is not None and entity_ids is not None:
        raise InvalidRequest("expected entity ids in the argument or in the column entity_id, found both")
    return columns, entity_ids if named is None else named


def _refuse_twice(names: list[Any]) -> None:
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise InvalidRequest(f"duplicate key {twice[0]!r}: expected columns of different names")


def chunks(
    rows: Any,  # noqa: ANN401
    entity_ids: Iterable[Any] | None,
    size: int,
) -> Iterator[tuple[list[Any], list[Any] | None]]:
    """Rows and their ids, so many at a time. Raises InvalidRequest where there is not one id for each row."""
    if size < 1:
        raise InvalidRequest(f"expected a size of at least 1 row, found {size}")
    if isinstance(rows, Mapping | str | bytes) or is_table(rows) or not isinstance(rows, Iterable):
        raise InvalidRequest(
            f"expected rows one by one, as a list or a generator, found {type(rows).__name__}: columns and tables are "
            "for predict_batch, and asynchronous generators have to be gathered first"
        )
    if isinstance(entity_ids, str | bytes):
        entity_ids = ids_of(entity_ids)
    left = iter(rows)
    ids = None if entity_ids is None else iter(ids_of(entity_ids) if _is_array(entity_ids) else entity_ids)
    done = 0
    while chunk := list(islice(left, size)):
        named = None if ids is None else list(islice(ids, len(chunk)))
        done += len(chunk)
        if named is not None and len(named) < len(chunk):
            raise InvalidRequest(
                f"expected an entity id for each row, found {done - len(chunk) + len(named)} for {done} rows"
            )
        yield chunk, named
    if ids is not None and list(islice(ids, 1)):
        raise InvalidRequest(f"expected an entity id for each row, found more than {done}")


def _is_array(ids: Any) -> bool:  # noqa: ANN401
    return hasattr(ids, "tolist") or hasattr(ids, "to_pylist")
