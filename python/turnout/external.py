"""Which external data files a model refers to, read from the bytes of the .onnx file without loading it.

Source: the protobuf encoding, and onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from turnout.errors import InvalidModel

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 100

# Where tensors lie: for each kind of message, its fields that hold other messages.
CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_files(graph: Path) -> list[str]:
    """The names of the external data files, relative to the graph's folder, sorted, each once.

    Raises InvalidModel for a file that is not even protobuf.
    """
    try:
        with graph.open("rb") as file:
            if not graph.stat().st_size:
                raise InvalidModel(f"{graph.name} is empty")
            # Not closed by hand: while an error is on its way, its trace still holds views into the map.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return sorted(set(_locations(memoryview(mapped), "model", 0)))
    except OSError as error:
        raise InvalidModel(f"{graph} cannot be read: {error}") from error


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise InvalidModel(f"the graph nests deeper than {MAX_DEPTH} levels")
    children = CHILDREN[kind]
    for field, value in _fields(message):
        child = children.get(field)
        if child is None or value is None:
            continue
        if child == "entry":
            entry = {number: part for number, part in _fields(value) if part is not None}
            if bytes(entry.get(1, b"")) == b"location":
                yield bytes(entry.get(2, b"")).decode(errors="replace")
        else:
            yield from _locations(value, child, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Number and, where it has a length, content of each field."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(message, at)
            yield tag >> 3, None
        elif kind == BYTES:
            length, at = _varint(message, at)
            if length > end - at:
                raise InvalidModel("the file is no ONNX model, or it is truncated")
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind in {FIXED32, FIXED64}:
            at += 4 if kind == FIXED32 else 8
            yield tag >> 3, None
        else:
            raise InvalidModel("the file is no ONNX model, or it is damaged")
    if at != end:
        raise InvalidModel("the file is no ONNX model, or it is truncated")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise InvalidModel("the file is no ONNX model, or it is truncated")
