"""What a warm-up measures: how long a run takes, and whether rows of several requests may and should run together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnout.errors import InvalidModel, PredictionFailed, TurnoutError

Arrays = Sequence[NDArray[Any]]
Run = Callable[[Arrays], list[NDArray[Any]]]
RowsOf = Callable[[int], Arrays]

RUNS = 7
SECONDS = 0.25
SIZES = (2, 4, 8, 16, 32, 64)
"""Rows that run together by default: powers of two, up to where more would keep a request too long from its answer."""
PAYS = 0.5
"""What a row may cost in a batch, as a part of what it costs alone, so that it pays to put them together."""
SLOWEST_SECONDS = 0.05
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""How far the same row may come out differently in a batch: kernels add up in another order there."""
ROUNDINGS = 4
"""By how many last digits, if that is more."""


def warm(run: Run, rows: Arrays) -> float:
    """The median time of a warm run, in seconds. Raises PredictionFailed, with words for a model, where it does not run."""
    try:
        return measure(run, rows)
    except PredictionFailed as error:
        raise type(error)(f"the model loads but does not run: {error}") from error


def measure(run: Run, rows: Arrays) -> float:
    """The median time of a warm run, in seconds. Raises what the run raises."""
    times: list[float] = []
    deadline = time.perf_counter() + SECONDS
    while len(times) < RUNS and (len(times) < 2 or time.perf_counter() < deadline):
        started = time.perf_counter()
        run(rows)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def batch_of(
    run: Run, rows_of: RowsOf, alone: float, *, wanted: int | None, longest: float | None
) -> tuple[int, float]:
    """How many rows of requests to run together (1: none), and how long that takes in seconds.

    Args:
        run: the session.
        rows_of: inputs of so many rows.
        alone: the time of a run of one row, in seconds.
        wanted: what the version asks for; None where the measurement decides.
        longest: how long a batch may take, in seconds; None where it does not run on an event loop.

    Raises InvalidModel where batches are wanted of a model whose rows cannot be told apart in its outputs.
    """
    problem = dependence(run, rows_of)
    if problem:
        if wanted is not None:
            raise InvalidModel(f"max_batch_rows {wanted}: {problem}")
        return 1, alone
    if wanted is not None:
        return wanted, warm(run, rows_of(wanted))
    longest = SLOWEST_SECONDS if longest is None else longest
    best, best_seconds = 1, alone
    deadline = time.perf_counter() + SECONDS
    for size in SIZES:
        seconds = warm(run, rows_of(size))
        if seconds > longest or time.perf_counter() > deadline:
            break
        if seconds <= PAYS * size * alone:
            best, best_seconds = size, seconds
    return best, best_seconds


def dependence(run: Run, rows_of: RowsOf) -> str:
    """Why rows cannot run together, or nothing: each output must have a row for each, the same as without the others."""
    inputs = rows_of(3)
    try:
        together = run(inputs)
        alone = [run([column[row : row + 1] for column in inputs]) for row in range(3)]
    except TurnoutError as error:
        return f"three rows at once do not run: {error.detail}"
    for number, output in enumerate(together):
        if output.ndim == 0 or len(output) != 3:
            return f"expected three rows in output {number} for three, found shape {list(output.shape)}"
        if not all(same(output[row : row + 1], alone[row][number]) for row in range(3)):
            return f"a row of output {number} depends on the rows beside it"
    return ""


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two outputs are the same but for the rounding of floats, which is coarse for float16."""
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    relative = max(RELATIVE, ROUNDINGS * float(np.finfo(one.dtype).eps))
    return bool(np.allclose(one, other, rtol=relative, atol=ABSOLUTE, equal_nan=True))
