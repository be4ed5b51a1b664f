"""Single predictions, once the body is here: whatever interface it came by."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from turnout.api.asgi import Gone
from turnout.api.paths import Target
from turnout.api.patience import Patience
from turnout.errors import TooManyRequests, UnsupportedMediaType
from turnout.log import log
from turnout.service import Turnout

Disconnect = Callable[[], Awaitable[object]]
"""What can be awaited until the client is gone."""


class Predictions:
    """The predictions in flight on this event loop, at most `max_in_flight` of them."""

    def __init__(self, hub: Turnout) -> None:
        settings = hub.settings
        self.in_flight = 0
        self.limit = settings.max_in_flight
        self.logged = settings.log_predictions
        self.patience = Patience()
        self._hub = hub

    async def answer(
        self, target: Target, content: bytes, kind: str | None, disconnect: Disconnect
    ) -> tuple[int, bytes]:
        """Status and body of the answer to a body of this media type. Raises Gone where nobody waits for it."""
        if kind is not None and kind != "application/json":
            check_json(kind)
        if self._hub.needs_pool(*target):
            return await self._in_pool(target, content, disconnect)
        return self._hub.predict_bytes(*target, content)

    async def _in_pool(self, target: Target, content: bytes, disconnect: Disconnect) -> tuple[int, bytes]:
        """Run a slow model in a thread. If the client goes while the job waits for one, the job is dropped."""
        job = self._hub.pool.submit(self._hub.predict_bytes, *target, content)
        answer = asyncio.wrap_future(job)
        gone = asyncio.ensure_future(_end_of(disconnect))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and job.cancel():
                raise Gone
            # A job that runs can not be stopped: it keeps its place until it ends, whether somebody listens or not.
            return await answer
        finally:
            gone.cancel()

    def busy(self) -> TooManyRequests:
        """The error for one request too many."""
        return TooManyRequests(
            f"{self.limit} requests are in flight on this worker, as many as may be; try again in a second"
        )

    @staticmethod
    def log(target: Target, identity: str, status: int, answer: bytes, seconds: float) -> None:
        """Write a line about a prediction."""
        said: dict[str, Any] = msgspec.json.decode(answer)
        shown = ("version", "reason", "prediction_id") if status < 400 else ("code", "detail")
        log(
            "info",
            "predict",
            model=target[0],
            pinned=target[1],
            status=status,
            seconds=round(seconds, 6),
            request_id=identity,
            **{name: said[name] for name in shown},
        )


def check_json(kind: str) -> None:
    """Raise UnsupportedMediaType unless a Content-Type is that of JSON, with or without parameters."""
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(f"expected Content-Type application/json, found {kind!r}")


async def _end_of(disconnect: Disconnect) -> None:
    await disconnect()
