"""Record batches as bytes of the formats that are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from turnout.errors import InvalidRequest
from turnout.score.arrow import csv, ipc, pa, parquet, pc

VERBATIM = {b"turnout": b"json"}
ESCAPED = r'["\\\x00-\x1f]'
"""What JSON does not have as it is in its texts."""


def arrow_bytes(batch: Any) -> Any:  # noqa: ANN401
    """One file of Arrow's interprocess format."""
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def parquet_bytes(batch: Any) -> Any:  # noqa: ANN401
    """One Parquet file of one row group."""
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_batches([batch]), sink, row_group_size=max(batch.num_rows, 1))
    return sink.getvalue()


# --- CSV ------------------------------------------------------------------------------------------------------------


def csv_bytes(batch: Any, *, header: bool) -> Any:  # noqa: ANN401
    """Lines of CSV. Values of several numbers have a column for each of them, `name_0`, `name_1` and so on.

    Raises InvalidRequest where two columns would have one name, or CSV has no way to write a type.
    """
    columns = [
        flat
        for name, array in zip(batch.schema.names, batch.columns, strict=True)
        for flat in _flat(name, array)
    ]
    names = [name for name, _ in columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(
            f"CSV would have two columns {twice!r}: keep another column, or write another format"
        )
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays([array for _, array in columns], names)
    try:
        csv.write_csv(table, sink, csv.WriteOptions(include_header=header))
    except (pa.ArrowException, NotImplementedError) as error:
        raise InvalidRequest(f"CSV cannot hold a column: {error}; write another format") from error
    return sink.getvalue()


def _flat(name: str, array: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        rows = np.arange(len(array)) * size
        missing = array.is_null().to_numpy(zero_copy_only=False)
        values = array.values.slice(array.offset * size, len(array) * size)
        for index in range(size):
            yield from _flat(f"{name}_{index}", values.take(pa.array(rows + index, mask=missing)))
    elif pa.types.is_struct(kind):
        for field, column in zip(kind, array.flatten(), strict=True):
            yield from _flat(f"{name}_{field.name}", column)
    elif pa.types.is_nested(kind):
        yield name, pc.if_else(array.is_valid(), json_texts(array), None)
    else:
        yield name, array


# --- NDJSON ---------------------------------------------------------------------------------------------------------


def ndjson_bytes(batch: Any) -> Any:  # noqa: ANN401
    """A JSON object a line, floats as the shortest text that reads back the same."""
    if not batch.num_rows:
        return pa.py_buffer(b"")
    pieces: list[Any] = []
    for index, field in enumerate(batch.schema):
        key = msgspec.json.encode(field.name).decode()
        verbatim = (field.metadata or {}).items() >= VERBATIM.items()
        column = batch.column(index)
        pieces += [
            f"{',' if index else '{'}{key}:",
            column.fill_null("null") if verbatim else json_texts(column),
        ]
    lines = pc.binary_join_element_wise(*pieces, "}\n", "")
    return pa.py_buffer(lines.cast(pa.large_string()).buffers()[2])


def json_texts(array: Any) -> Any:  # noqa: ANN401
    """The JSON of each value, as an array of strings."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        kind = pa.list_(kind.value_type)
        array = array.cast(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        texts = type(array).from_arrays(array.offsets, json_texts(array.values), mask=_mask(array))
        inner = pc.binary_join(texts, ",")
        found = pc.binary_join_element_wise("[", inner, "]", "")
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        found = array.cast(pa.string())
    elif pa.types.is_floating(kind):
        finite = pc.is_finite(array.cast(pa.float64()))
        found = pc.if_else(finite, array.cast(pa.string()), None)
    else:
        return _texts_one_by_one(array)
    return found.fill_null("null")


def _mask(array: Any) -> Any:  # noqa: ANN401
    return array.is_null() if array.null_count else None


def _texts_one_by_one(array: Any) -> Any:  # noqa: ANN401
    """Texts, times, structs and whatever else there is; equal texts are written once."""
    if pa.types.is_string(array.type):
        if not pc.any(pc.match_substring_regex(array, ESCAPED)).as_py():
            return pc.binary_join_element_wise('"', array, '"', "").fill_null("null")
        coded = array.dictionary_encode()
        words = pa.array([_json(word) for word in coded.dictionary.to_pylist()], pa.string())
        return words.take(coded.indices).fill_null("null")
    return pa.array([_json(value) for value in array.to_pylist()], pa.string())


def _json(value: Any) -> str:  # noqa: ANN401
    return msgspec.json.encode(value, enc_hook=str).decode()
