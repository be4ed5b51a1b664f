"""What a version takes and gives in the words of the Open Inference Protocol, version 2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from turnout.domain import Signature, Tensor, Version
from turnout.errors import InvalidTensors

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}
"""The protocol's datatype for each element type of ONNX that Turnout carries."""
VARIABLE = -1
"""What stands in a shape for a dimension that is free."""
SHOWN = 60
MOST_EMPTY = 1_000_000
"""A tensor without elements costs no bytes, yet its shape may ask for outputs of any size."""


class Described(NamedTuple):
    """A tensor that a version takes or gives."""

    name: str
    datatype: str
    shape: tuple[int, ...]


Given = Mapping[str, tuple[str, NDArray[Any]]]
"""Tensors that came, by name: their datatype, and their values."""
Wanted = list[tuple[int, bool]]
"""Outputs of an answer in their order: the index of each, and whether it goes in binary."""


class Contract:
    """Inputs and outputs of one version.

    Attributes:
        inputs: in the order of the graph.
        outputs: in the order of the graph.
        batched: whether the first dimension of all of them counts rows that are answered one by one.
        growing: the inputs whose first dimension is free.
        open: whether shapes have free dimensions of which only the model knows which sizes it can take.
    """

    def __init__(self, version: Version) -> None:
        signature = version.signature
        width = len(version.features) if signature.layout == "matrix" else None
        self.inputs = tuple(_described(tensor, width) for tensor in signature.inputs)
        self.outputs = tuple(_described(tensor, None) for tensor in signature.outputs)
        self.batched = _batched(signature)
        self.open = any(VARIABLE in tensor.shape[self.batched :] for tensor in self.inputs)
        self.growing = tuple(
            place for place, tensor in enumerate(self.inputs) if tensor.shape[:1] == (VARIABLE,)
        )
        self._whose = f"version {version.version} of model {version.model}"
        self._outputs = {tensor.name: index for index, tensor in enumerate(self.outputs)}
        self._all: dict[bool, Wanted] = {
            binary: [(index, binary) for index in range(len(self.outputs))] for binary in (False, True)
        }
        self._only_binary = {index for index, tensor in enumerate(self.outputs) if tensor.datatype == "BF16"}
        self._checks = [(tensor, len(tensor.shape), _fixed(tensor)) for tensor in self.inputs]

    def take(self, given: Given) -> tuple[NDArray[Any], ...]:
        """The inputs in the order of the graph. Raises InvalidTensors for what is missing, unknown or does not fit."""
        taken: list[NDArray[Any]] = []
        for tensor, rank, fixed in self._checks:
            found = given.get(tensor.name)
            if found is None:
                raise self._mistaken(given)
            datatype, array = found
            shape = array.shape
            fits = len(shape) == rank and all(shape[axis] == size for axis, size in fixed)
            if not fits or datatype != tensor.datatype or not array.size:
                _check(tensor, datatype, array)
            taken.append(array)
        if len(given) != len(taken):
            raise self._mistaken(given)
        if self.batched and len(taken) > 1 and len({len(array) for array in taken}) > 1:
            counts = ", ".join(
                f"{tensor.name} {len(array)}" for tensor, array in zip(self.inputs, taken, strict=True)
            )
            raise InvalidTensors(f"expected as many rows in each input, found {counts}")
        return tuple(taken)

    def wanted(self, outputs: Sequence[tuple[str, bool | None]] | None, *, binary: bool) -> Wanted:
        """The outputs of an answer, all of them unless some are named. Raises InvalidTensors for unknown ones."""
        if outputs is None:
            wanted = self._all[binary]
        else:
            wanted = [(self.output(name), binary if chosen is None else chosen) for name, chosen in outputs]
        if self._only_binary:
            self._check_binary(wanted)
        return wanted

    def _check_binary(self, wanted: Wanted) -> None:
        for index, binary in wanted:
            if not binary and index in self._only_binary:
                name = self.outputs[index].name
                raise InvalidTensors(f"output {_shown(name)}: BF16 can only be sent in binary", feature=name)

    def output(self, name: str) -> int:
        """The index of an output. Raises InvalidTensors."""
        index = self._outputs.get(name)
        if index is None:
            raise InvalidTensors(
                f"unknown output {_shown(name)}: {self._whose} gives {_listed(self._outputs)}", feature=name
            )
        return index

    def _mistaken(self, given: Given) -> InvalidTensors:
        known = [tensor.name for tensor in self.inputs]
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            said = f"unknown input {_shown(unknown)}: {self._whose} takes {_listed(known)}"
            return InvalidTensors(said, feature=unknown)
        missing = [name for name in known if name not in given]
        return InvalidTensors(f"missing input {_listed(missing)} of {self._whose}", feature=missing[0])


def _described(tensor: Tensor, width: int | None) -> Described:
    shape = [VARIABLE if size is None else size for size in tensor.shape]
    if width is not None and shape[1] == VARIABLE:
        shape[1] = width
    return Described(tensor.name, DATATYPES[tensor.dtype], tuple(shape))


def _batched(signature: Signature) -> bool:
    """Features are rows always, and were probed as such; free tensors where all of them say so."""
    tensors: Iterable[Tensor] = signature.inputs
    if signature.layout == "tensors":
        tensors = (*signature.inputs, *signature.outputs)
    return all(tensor.shape[:1] == (None,) for tensor in tensors)


def _fixed(tensor: Described) -> list[tuple[int, int]]:
    """The dimensions that are not free: which, and their sizes."""
    return [(axis, size) for axis, size in enumerate(tensor.shape) if size != VARIABLE]


def _check(tensor: Described, datatype: str, array: NDArray[Any]) -> None:
    """Raise InvalidTensors for what does not fit."""
    if datatype != tensor.datatype:
        raise InvalidTensors(
            f"input {_shown(tensor.name)}: expected datatype {tensor.datatype}, found {datatype}",
            feature=tensor.name,
        )
    shape = array.shape
    if len(shape) != len(tensor.shape) or any(shape[axis] != size for axis, size in _fixed(tensor)):
        raise InvalidTensors(
            f"input {_shown(tensor.name)}: expected shape {list(tensor.shape)}, found {list(shape)}",
            feature=tensor.name,
        )
    if not array.size and math.prod(size for size in shape if size) > MOST_EMPTY:
        raise InvalidTensors(
            f"input {_shown(tensor.name)}: shape {list(shape)} has no elements, and dimensions of more than "
            f"{MOST_EMPTY} in all",
            feature=tensor.name,
        )


def _shown(name: str) -> str:
    return f'"{name if len(name) <= SHOWN else name[:SHOWN] + "…"}"'


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_shown, names))
