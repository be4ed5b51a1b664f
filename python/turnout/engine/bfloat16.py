"""Runs of graphs that take or give bfloat16. NumPy has no such type: arrays are uint16, and hold the bits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from turnout.errors import InvalidModel

ELEMENT = "bfloat16"
TENSOR = f"tensor({ELEMENT})"
NUMBER = 16  # TensorProto.BFLOAT16
ONE = 0x3F80  # the bits of 1.0


class Call(Protocol):
    """What `run` of onnxruntime is."""

    def __call__(self, names: Sequence[str], feed: dict[str, NDArray[Any]], options: Any, /) -> Any:  # noqa: ANN401
        """The outputs of these names as they come, for inputs by name and options of the run."""
        ...


def call_of(session: ort.InferenceSession) -> Call:
    """`run` of a session; another one where a graph takes or gives bfloat16, which that refuses."""
    taken, given = session.get_inputs(), session.get_outputs()
    if not any(node.type == TENSOR for node in (*taken, *given)):
        return session.run
    runs = BitsCall(session, [node.name for node in taken if node.type == TENSOR])
    if not any(node.type == TENSOR for node in given):
        return runs.plain
    unfit = [node for node in taken if node.type == "tensor(string)"]
    unfit += [node for node in given if not node.type.startswith("tensor(")]
    for node in unfit:
        raise InvalidModel(
            f"{node.name!r} is a {node.type}, which onnxruntime cannot run beside an output of {ELEMENT}"
        )
    return runs.bound


class BitsCall:
    """Two ways to run a session whose inputs `bits` are bfloat16."""

    def __init__(self, session: ort.InferenceSession, bits: Sequence[str]) -> None:
        self._session: Any = session
        self._bits = frozenset(bits)

    def plain(self, names: Sequence[str], feed: dict[str, NDArray[Any]], options: Any) -> list[Any]:  # noqa: ANN401
        """Where no output is bfloat16: onnxruntime takes values of its own beside arrays."""
        inputs = {name: value_of(name, feed[name]) if name in self._bits else feed[name] for name in feed}
        return self._session.run(names, inputs, options)

    def bound(self, names: Sequence[str], feed: dict[str, NDArray[Any]], options: Any) -> list[Any]:  # noqa: ANN401
        """Where some are: inputs and outputs bound to memory of the host.

        `run_with_ort_values` would do as well, but takes 40 us for what a binding does in 8 (onnxruntime 1.31).
        """
        binding: Any = self._session.io_binding()
        for name, array in feed.items():
            if name in self._bits:
                binding.bind_ortvalue_input(name, value_of(name, array))
            else:
                binding.bind_cpu_input(name, np.asarray(array, order="C"))
        for name in names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, options)
        return [array_of(value) for value in binding.get_outputs()]


def value_of(name: str, array: NDArray[Any]) -> Any:  # noqa: ANN401 - a value of onnxruntime
    """Bits as bfloat16, in the memory of the array where that is contiguous.

    Raises TypeError for what is no bits.
    """
    if array.dtype != np.uint16:
        raise TypeError(
            f"input {name!r} is a {TENSOR}: expected its bits as an array of uint16, found {array.dtype}"
        )
    # onnxruntime takes any array for a contiguous one here, other than in `run`.
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.asarray(array, order="C"), NUMBER)


def array_of(value: Any) -> NDArray[Any]:  # noqa: ANN401 - a value of onnxruntime
    """An output on the host as an array; a copy where it is bfloat16."""
    if value.data_type() != TENSOR:
        return value.numpy()
    bits = np.empty(value.shape(), np.uint16)
    ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits
