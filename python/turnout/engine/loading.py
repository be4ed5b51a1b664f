"""Loading a version: open it, warm it up, find out how it runs best."""

from __future__ import annotations

import functools
import time
from pathlib import Path

from turnout.domain import Version
from turnout.engine.opening import open_session
from turnout.engine.rows import rows_of
from turnout.engine.sessions import Session
from turnout.errors import InvalidModel
from turnout.warmup import batch_of, warm


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
        """Load a graph and warm it up with rows of the version's own shapes.

        Raises InvalidModel for a file that does not load, DeviceUnavailable, PredictionFailed for one that cannot run.
        """
        options = version.options
        started = time.perf_counter()
        session = open_session(
            path,
            device=options.device or self._device,
            threads=options.intra_op_threads or self._threads,
            spinning=self._spinning if options.spinning is None else options.spinning,
        )
        loaded = time.perf_counter()
        session.load_seconds = loaded - started
        if version.signature.layout != "tensors":
            session.run_seconds = warm(
                session.run, rows_of(version.signature, 1, width=len(version.features))
            )
        session.inline = session.run_seconds <= self._inline_seconds
        if self._batches:
            self._batch(session, version)
        session.warmup_seconds = time.perf_counter() - loaded
        return session

    def _batch(self, session: Session, version: Version) -> None:
        """Decide how many rows of requests run together: as many as the version says, or as the warm-up finds to pay."""
        wanted = version.options.max_batch_rows
        session.max_delay_us = version.options.max_delay_us or 0
        session.max_queue_rows = version.options.max_queue_rows
        signature = version.signature
        free = signature.layout != "tensors" and all(t.shape and t.shape[0] is None for t in signature.inputs)
        if wanted == 1 or not free:
            if wanted is not None and wanted > 1:
                raise InvalidModel(
                    f"max_batch_rows {wanted}: expected inputs whose first dimension is free, found "
                    + ", ".join(f"{t.name} {list(t.shape)}" for t in signature.inputs)
                )
            return
        rows = functools.partial(rows_of, signature, width=len(version.features), random=True)
        longest = self._inline_seconds if session.inline else None
        found = batch_of(session.run, rows, session.run_seconds, wanted=wanted, longest=longest)
        session.max_batch_rows, session.batch_seconds = found
