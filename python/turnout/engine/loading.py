"""Loading a version: open it, warm it up, find out how it runs best."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path

from turnout.domain import Signature, Version
from turnout.engine.bfloat16 import ELEMENT
from turnout.engine.cuda import CudaSession, Unfit, has_free_rows, obstacle, sizes_of
from turnout.engine.devices import resolve_device
from turnout.engine.opening import open_session
from turnout.engine.rows import has_known_rows, rows_of
from turnout.engine.sessions import Session
from turnout.errors import InvalidModel, OutOfDeviceMemory, PredictionFailed
from turnout.warmup import SIZES, batch_of, measure, warm

LOOP_RUNS = 10
"""How much longer than one request may take on an event loop a run of many may: one by one they would take longer."""
LOADING = threading.Lock()
"""Held while a session is opened on CUDA: what that allocates would spoil what another one records meanwhile."""


class Engine:
    """Loads versions with the settings of a process; what a version says of itself wins.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        intra_op_threads: threads of one run.
        spinning: whether idle threads of a session spin.
        inline_seconds: what a warm run may take to be called on an event loop.
        batches: whether to find out how many rows of requests should run together.
    """

    def __init__(
        self,
        device: str,
        intra_op_threads: int,
        spinning: bool,
        inline_seconds: float,
        *,
        batches: bool = False,
    ) -> None:
        self._batches = batches
        self._device = device
        self._threads = intra_op_threads
        self._spinning = spinning
        self._inline_seconds = inline_seconds

    def load(self, path: Path, version: Version) -> Session:
        """Load a graph and warm it up with rows of the version's own shapes, where it has such.

        Raises InvalidModel for a file that does not load, DeviceUnavailable, OutOfDeviceMemory, PredictionFailed for one
        that cannot run.
        """
        started = time.perf_counter()
        session = self._open(path, version)
        loaded = time.perf_counter()
        session.load_seconds = loaded - started
        self._warm(session, version)
        if self._batches:
            self._batch(session, version)
        session.warmup_seconds = time.perf_counter() - loaded
        return session

    def _open(self, path: Path, version: Version) -> Session:
        options = version.options
        device = options.device or self._device
        opened = functools.partial(
            open_session,
            path,
            device=device,
            threads=options.intra_op_threads or self._threads,
            spinning=self._spinning if options.spinning is None else options.spinning,
            options=options,
        )
        if resolve_device(device) == "cpu":
            return opened()
        with LOADING:
            return open_on_cuda(opened, version)

    def _warm(self, session: Session, version: Version) -> None:
        """Measure a run of one row. What cannot be measured may take long, so it is none for an event loop."""
        signature = version.signature
        rows = functools.partial(rows_of, signature, 1, width=len(version.features))
        if signature.layout != "tensors":
            session.run_seconds = warm(session.run, rows())
        elif has_known_rows(signature):
            try:
                session.run_seconds = measure(session.run, rows())
            except OutOfDeviceMemory:
                raise
            except PredictionFailed as error:
                remark(session, f"not warmed up: it does not run with made-up numbers: {error.detail}")
        else:
            remark(session, "not warmed up: of its inputs more is free than the rows")
        session.inline = 0 < session.run_seconds <= self._inline_seconds

    def _batch(self, session: Session, version: Version) -> None:
        """Decide how many rows of requests run together: as many as the version says, or as the warm-up finds to pay.

        Whether rows of free tensors are independent, only the version can say; it is checked where the warm-up can.
        """
        wanted = version.options.max_batch_rows
        session.max_delay_us = version.options.max_delay_us or 0
        session.max_queue_rows = version.options.max_queue_rows
        signature = version.signature
        problem = fixed_rows(signature)
        if problem and wanted is not None and wanted > 1:
            raise InvalidModel(f"max_batch_rows {wanted}: {problem}")
        if problem or wanted == 1:
            return
        if signature.layout == "tensors" and (wanted is None or not can_compare(session, signature)):
            session.max_batch_rows = wanted or 1
            return
        rows = functools.partial(rows_of, signature, width=len(version.features), random=True)
        longest = LOOP_RUNS * self._inline_seconds if session.inline else None
        found = batch_of(session.run, rows, session.run_seconds, wanted=wanted, longest=longest)
        session.max_batch_rows, session.batch_seconds = found


def remark(session: Session, text: str) -> None:
    """Add to what shows of a session in the status."""
    session.note = f"{session.note}; {text}" if session.note else text


def fixed_rows(signature: Signature) -> str:
    """Why requests cannot be joined by their first dimension, or nothing. The outputs of rows are found by running them."""
    alike, kinds = signature.inputs, "inputs"
    if signature.layout == "tensors":
        alike, kinds = (*signature.inputs, *signature.outputs), "inputs and outputs"
    if all(tensor.shape[:1] == (None,) for tensor in alike):
        return ""
    found = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in alike)
    return f"expected {kinds} whose first dimension is free, found {found}"


def can_compare(session: Session, signature: Signature) -> bool:
    """Whether it can be found out what rows answer beside others: made-up rows run, and their answers are no bits."""
    return session.run_seconds > 0 and all(tensor.dtype != ELEMENT for tensor in signature.outputs)


def open_on_cuda(opened: Callable[..., Session], version: Version) -> Session:
    """A session with CUDA graphs where the model and its options allow them, else with buffers, else without."""
    options = version.options
    shapes = obstacle(version.signature)
    reason = shapes
    if options.cuda_graphs is False:
        reason = "the option cuda_graphs is false"
    elif options.tensorrt:
        reason = "TensorRT runs it"
    if not reason:
        try:
            return prepared(opened(graphs=True), version)
        except Unfit as error:
            reason = str(error)
    session = opened()
    if options.cuda_graphs:
        raise InvalidModel(f"cuda_graphs was asked for, but there can be none: {reason}")
    if session.device == "cpu":
        return session
    session.note = f"no CUDA graphs: {reason}"
    if not shapes:
        try:
            return prepared(session, version)
        except Unfit as error:
            session.note += f"; no buffers held ready: {error}"
    return session


def prepared(session: Session, version: Version) -> Session:
    """The same session with its buffers; one that has come to be on the CPU as it is. Raises Unfit."""
    if isinstance(session, CudaSession):
        signature, width, most = version.signature, len(version.features), version.options.max_batch_rows
        session.prepare(
            lambda rows, random: rows_of(signature, rows, width=width, random=random),
            sizes_of(signature, most or SIZES[-1]),
            free=has_free_rows(signature),
            insist=most is not None,
        )
    return session
