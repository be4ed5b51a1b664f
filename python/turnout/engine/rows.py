"""Inputs made up for a signature: what a session is warmed up and measured with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnout.domain import Signature, Tensor
from turnout.engine import bfloat16

NUMPY_TYPES: dict[str, type[np.generic]] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
    bfloat16.ELEMENT: np.uint16,
}
"""NumPy's type for each ONNX element type that Turnout carries; of bfloat16 it is that of the bits."""


def has_known_rows(signature: Signature) -> bool:
    """Whether the graph says what a row is: of free tensors only the first dimension may be open."""
    return signature.layout != "tensors" or not any(None in tensor.shape[1:] for tensor in signature.inputs)


def rows_of(signature: Signature, rows: int, *, width: int, random: bool = False) -> list[NDArray[Any]]:
    """Inputs of `rows` rows for a signature: zeros (or small numbers, always the same), and empty strings.

    They have `width` features where the graph leaves that open.
    """
    numbers = np.random.default_rng(rows) if random else None
    return [_rows(tensor, rows, width, numbers) for tensor in signature.inputs]


def _rows(tensor: Tensor, rows: int, width: int, numbers: np.random.Generator | None) -> NDArray[Any]:
    dimensions = tensor.shape
    shape = [1 if size is None else size for size in dimensions]
    if dimensions and dimensions[0] is None:
        shape[0] = rows
    if len(dimensions) == 2 and dimensions[1] is None:
        shape[1] = width
    kind = NUMPY_TYPES[tensor.dtype]
    if kind is np.object_:
        return np.full(shape, "", np.object_)
    if numbers is None:
        return np.zeros(shape, kind)
    found = numbers.integers(0, 2, shape)
    return (found * bfloat16.ONE if tensor.dtype == bfloat16.ELEMENT else found).astype(kind)
