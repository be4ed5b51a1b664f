"""A loaded version, and how it runs."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from turnout.engine.bfloat16 import call_of
from turnout.engine.devices import is_out_of_memory
from turnout.errors import OutOfDeviceMemory, PredictionFailed

Arrays = Sequence[NDArray[Any]]
REFUSALS = re.compile(
    r"invalid dimensions for input|invalid rank for input|unexpected input data type", re.IGNORECASE
)
"""How onnxruntime says that inputs do not fit the graph. It has an error class for that, but not for all ways to run."""


class Session:
    """A loaded version. `run` may be called by many threads at once; the last one to let go frees it.

    `inner` is the session of onnxruntime, `call` its `run`, `threads` what one run of it may use. A server keeps in
    `queue` what waits for it. `inline` says whether an event loop may run it: not if a run of one row takes long, or if
    nobody knows how long. `graphs`, `cpu_nodes` and `note` are for what shows in the status; see VersionStatus.
    """

    def __init__(self, session: ort.InferenceSession, device: str, threads: int = 1) -> None:
        self.inner = session
        self.call = call_of(session)
        self.threads = threads
        self.queue: Any = None
        self.joint: Any = None
        self.device = device
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.inputs: tuple[str, ...] = tuple(node.name for node in session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(node.name for node in session.get_outputs())
        self._options: Any = None
        self._names = list(self.outputs)
        self._maps = any(not node.type.startswith("tensor(") for node in session.get_outputs())
        self.load_seconds = self.warmup_seconds = self.run_seconds = self.batch_seconds = 0.0
        self.inline = True
        self.max_batch_rows = 1
        self.max_delay_us = 0
        self.max_queue_rows: int | None = None
        self.graphs: tuple[int, ...] = ()
        self.cpu_nodes: tuple[str, ...] = ()
        self.note = ""

    def seconds(self, rows: int) -> float:
        """What a run of so many rows takes, as far as the warm-up can tell."""
        if rows <= 1:
            return self.run_seconds
        known = self.max_batch_rows > 1 and self.batch_seconds
        each = self.batch_seconds / self.max_batch_rows if known else self.run_seconds
        return max(self.run_seconds, each * rows)

    def run(self, arrays: Arrays, *, shrink: bool = False) -> list[NDArray[Any]]:
        """The outputs for inputs in the order of the graph. Raises PredictionFailed with the runtime's words.

        Bfloat16 is uint16 that holds the bits, strings are objects. Arrays must be in the byte order of the machine:
        onnxruntime does not look at theirs. It reads one that is contiguous where it lies, be it read-only or unaligned,
        and makes a copy of another.

        With `shrink` the memory that a large run has taken on the CPU goes back to the system, at the cost of taking it
        again the next time.
        """
        options = shrinking() if shrink and self.device == "cpu" else self._options
        try:
            feed = dict(zip(self.inputs, arrays, strict=True))
            outputs: Any = self.call(self._names, feed, options)
        except Exception as error:
            raise run_failure(error, self.device) from error
        return [flatten(output)[0] for output in outputs] if self._maps else outputs


@functools.cache
def shrinking() -> Any:  # noqa: ANN401 - the stubs of onnxruntime do not know their own class
    """Options of a run after which the arena keeps nothing that is not in use."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def run_failure(error: Exception, device: str) -> PredictionFailed:
    """What a run that raised in onnxruntime means."""
    if is_out_of_memory(error, device):
        return OutOfDeviceMemory(f"device {device} ran out of memory: {error}")
    failure = PredictionFailed(f"the model failed: {error}")
    failure.refused = is_refusal(error)
    return failure


def is_refusal(error: Exception) -> bool:
    """Whether no node has run, because the inputs do not fit the graph, or have text that is none."""
    return isinstance(error, UnicodeEncodeError) or REFUSALS.search(str(error)) is not None


def flatten(output: Any) -> tuple[NDArray[Any], tuple[Any, ...]]:  # noqa: ANN401
    """An output as an array; a sequence of maps (ZipMap) as one row a map, with its keys."""
    if isinstance(output, np.ndarray):
        return output, ()
    if isinstance(output, list) and not output:
        return np.zeros((0, 0), np.float32), ()  # of no rows nobody knows the keys
    if isinstance(output, list) and all(isinstance(row, dict) for row in output):
        keys = tuple(output[0])
        if all(tuple(row) == keys for row in output):
            return np.array([list(row.values()) for row in output], np.float32), keys
    raise PredictionFailed(
        f"expected a tensor or a sequence of maps with the same keys, found {type(output).__name__}"
    )
