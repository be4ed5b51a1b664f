"""Rows that a caller has already, as NumPy arrays or as columns of Arrow, seen by Rust without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnout import _core
from turnout.errors import InvalidRequest
from turnout.plain import to_json
from turnout.router import as_list

Column = tuple[int, int | None, int, int, int | None, int, bool]
"""Buffer, buffer of the text, first value, stride, buffer of the validity and its first bit, whether bits."""

Given = tuple[bytes | _core.Table, Any]
"""A JSON body, or a table and its entity ids (None, a list, or an array of NumPy)."""


def sources(rows: Any, entity_ids: Any) -> Iterator[Given]:  # noqa: ANN401
    """What to predict, in pieces: a JSON body, or a table with the ids of its rows.

    Takes a two-dimensional NumPy array; a mapping of columns; a list of mappings and lists; anything that speaks
    Arrow's C interface (pyarrow, polars), and pandas. A column `entity_id` of a table holds the ids.
    """
    if isinstance(rows, np.ndarray):
        yield _of_matrix(rows), entity_ids
    elif _is_arrow(rows):
        yield from _of_arrow(rows, entity_ids)
    elif isinstance(rows, Mapping):
        yield _json("columns", rows, entity_ids), None
    elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        yield _json("rows", rows, entity_ids), None
    else:
        raise InvalidRequest(
            "expected rows as a list, a mapping of columns, a NumPy array or a table, found "
            f"{type(rows).__name__}"
        )


def _json(field: str, rows: Any, entity_ids: Any) -> bytes:  # noqa: ANN401
    if not {set, frozenset}.isdisjoint(map(type, rows.values() if isinstance(rows, Mapping) else rows)):
        raise InvalidRequest("expected rows and columns in an order, found a set")
    document = {} if entity_ids is None else {"entity_ids": as_list(entity_ids)}
    return to_json({**document, field: rows})


# --- NumPy ----------------------------------------------------------------------------------------------------------


def _of_matrix(rows: NDArray[Any]) -> _core.Table:
    if rows.ndim != 2 or rows.dtype.kind not in "fiub":
        raise InvalidRequest(
            f"expected a two-dimensional array of numbers, found shape {rows.shape} of {rows.dtype}"
        )
    if rows.dtype == np.float16 or rows.dtype.itemsize > 8 or not rows.dtype.isnative:
        rows = rows.astype(np.float64)
    height, width = rows.shape
    rows = np.require(rows, requirements=["A"])
    if rows.flags.f_contiguous and not rows.flags.c_contiguous:
        columns: list[Column] = [(0, None, index * height, 1, None, 0, False) for index in range(width)]
        return _core.Table(height, None, [rows.T], columns)
    columns = [(0, None, index, width, None, 0, False) for index in range(width)]
    return _core.Table(height, None, [np.ascontiguousarray(rows)], columns)


# --- Arrow ----------------------------------------------------------------------------------------------------------


def _is_arrow(rows: Any) -> bool:  # noqa: ANN401
    return hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__")


def load_pyarrow() -> Any:  # noqa: ANN401
    """The module, which only those who use tables need. Raises InvalidRequest where it is not installed."""
    try:
        import pyarrow  # noqa: PLC0415
    except ImportError as error:
        raise InvalidRequest("tables need pyarrow: install turnout[arrow]") from error
    return pyarrow


def _of_arrow(rows: Any, entity_ids: Any) -> Iterator[Given]:  # noqa: ANN401
    pa = load_pyarrow()
    if type(rows).__module__.partition(".")[0] == "pandas":
        table = pa.Table.from_pandas(rows, preserve_index=False)
    elif hasattr(rows, "__arrow_c_stream__"):
        table = pa.table(rows)
    else:
        table = pa.Table.from_batches([pa.record_batch(rows)])
    named = table.schema.get_all_field_indices("entity_id")
    if named and entity_ids is not None:
        raise InvalidRequest("expected entity ids in the argument or in the column entity_id, found both")
    if entity_ids is not None and len(entity_ids) != table.num_rows:
        raise InvalidRequest(f"expected {table.num_rows} entity ids, found {len(entity_ids)}")
    start = 0
    for batch in table.to_batches() or [no_rows(table.schema)]:
        ids = None if entity_ids is None else entity_ids[start : start + batch.num_rows]
        if named:
            ids = batch.column(named[0])
            batch = batch.remove_column(named[0])  # noqa: PLW2901
        start += batch.num_rows
        yield _of_batch(pa, batch), ids if ids is None else _ids_of(pa, ids)


def no_rows(schema: Any) -> Any:  # noqa: ANN401
    """A record batch of a schema that has no rows."""
    return load_pyarrow().RecordBatch.from_arrays([[]] * len(schema), schema=schema)


def _ids_of(pa: Any, ids: Any) -> Any:  # noqa: ANN401
    """Ids as integers of NumPy where they are integers without nulls, else as a list."""
    if not isinstance(ids, pa.Array | pa.ChunkedArray):
        return ids
    if pa.types.is_integer(ids.type) and not ids.null_count:
        return ids.to_numpy(zero_copy_only=False)
    return ids.to_pylist()


def _of_batch(pa: Any, batch: Any) -> _core.Table:  # noqa: ANN401
    buffers: list[NDArray[Any]] = []
    columns = [
        _column(pa, name, array, buffers)
        for name, array in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return _core.Table(batch.num_rows, list(batch.schema.names), buffers, columns)


def _column(pa: Any, name: str, array: Any, buffers: list[NDArray[Any]]) -> Column:  # noqa: ANN401
    """One column of Arrow. Source: Arrow columnar format, "Physical memory layout"."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_string_view(kind):
        array = array.cast(pa.large_string())
    elif pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        array = array.cast(pa.float64())
    kind = array.type
    parts = array.buffers()

    def hold(buffer: Any, dtype: Any) -> int:  # noqa: ANN401
        buffers.append(
            np.zeros(0, dtype)
            if buffer is None
            # Copied where a buffer came in a message and does not begin where its type may.
            else np.require(
                np.frombuffer(buffer, dtype, buffer.size // np.dtype(dtype).itemsize), requirements=["A"]
            )
        )
        return len(buffers) - 1

    if pa.types.is_null(kind):  # one value that stands for all rows, and is none
        buffers += [np.zeros(1, np.float32), np.zeros(-(-len(array) // 8), np.uint8)]
        return (len(buffers) - 2, None, 0, 0, len(buffers) - 1, 0, False)
    valid = hold(parts[0], np.uint8) if array.null_count else None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        offsets = hold(parts[1], np.int64 if pa.types.is_large_string(kind) else np.int32)
        return (offsets, hold(parts[2], np.uint8), array.offset, 1, valid, array.offset, False)
    if pa.types.is_boolean(kind):
        return (hold(parts[1], np.uint8), None, array.offset, 1, valid, array.offset, True)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return (hold(parts[1], kind.to_pandas_dtype()), None, array.offset, 1, valid, array.offset, False)
    raise InvalidRequest(f"column {name}: expected numbers, booleans or strings, found {kind}")
