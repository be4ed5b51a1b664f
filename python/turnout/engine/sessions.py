"""A loaded version, and how it runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from turnout.engine.devices import is_out_of_memory
from turnout.errors import OutOfDeviceMemory, PredictionFailed

Arrays = Sequence[NDArray[Any]]


class Session:
    """A loaded version. `run` may be called by many threads at once; the last one to let go frees it.

    `inner` is the session of onnxruntime, `threads` what one run of it may use. A server keeps in `queue` what waits
    for it. `graphs`, `cpu_nodes` and `note` are for sessions on CUDA; see VersionStatus.
    """

    def __init__(self, session: ort.InferenceSession, device: str, threads: int = 1) -> None:
        self.inner = session
        self.threads = threads
        self.queue: Any = None
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

    def run(self, arrays: Arrays, *, shrink: bool = False) -> list[NDArray[Any]]:
        """The outputs for inputs in the order of the graph. Raises PredictionFailed with the runtime's words.

        With `shrink` the memory that a large run has taken on the CPU goes back to the system, at the cost of taking it
        again the next time.
        """
        options = shrinking() if shrink and self.device == "cpu" else self._options
        try:
            feed = dict(zip(self.inputs, arrays, strict=True))
            outputs: Any = self.inner.run(self._names, feed, options)
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
    return PredictionFailed(f"the model failed: {error}")


def flatten(output: Any) -> tuple[NDArray[Any], tuple[Any, ...]]:  # noqa: ANN401
    """An output as an array; a sequence of maps (ZipMap) as one row a map, with its keys."""
    if isinstance(output, np.ndarray):
        return output, ()
    if isinstance(output, list) and output and all(isinstance(row, dict) for row in output):
        keys = tuple(output[0])
        if all(tuple(row) == keys for row in output):
            return np.array([list(row.values()) for row in output], np.float32), keys
    raise PredictionFailed(
        f"expected a tensor or a sequence of maps with the same keys, found {type(output).__name__}"
    )
