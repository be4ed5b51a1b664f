"""Single predictions, once the body is here: whatever interface it came by."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from turnout.affinity import cores
from turnout.api.asgi import Gone
from turnout.api.paths import Target
from turnout.api.patience import Patience
from turnout.api.queues import URGENCY, Burst, Joint, Queue, Reply, Waiting
from turnout.dialects import Request, Row
from turnout.engine import Session
from turnout.errors import InvalidRequest, TooManyRequests, TurnoutError, UnsupportedMediaType
from turnout.log import log
from turnout.prediction import Answer
from turnout.service import Turnout

BURST_BYTES = 1 << 16
INLINE_BYTES = 1 << 20
"""Longer bodies are read in a thread."""
MAX_TIMEOUT_MS = 600_000
URGENCY_OF = re.compile(r"(?:^|[,\s])u=([0-7])(?=$|[,;\s])")

Disconnect = Callable[[], Awaitable[object]]
"""What can be awaited until the client is gone."""


class Wishes(NamedTuple):
    """What the headers of a request say: media type, urgency (0 to 7), and how long it may wait for its turn."""

    kind: str | None
    urgency: int
    seconds: float | None


PLAIN = Wishes("application/json", URGENCY, None)


class Predictions:
    """The predictions in flight on this event loop, at most `max_in_flight` of them."""

    def __init__(self, hub: Turnout) -> None:
        settings = hub.settings
        self.in_flight = 0
        self.limit = settings.max_in_flight
        self.logged = settings.log_predictions
        self.patience = Patience()
        self._hub = hub
        self._predictor = hub.predictor

    async def answer(
        self, target: Target, content: bytes, wishes: Wishes, disconnect: Disconnect, reply: Reply
    ) -> Answer | None:
        """Status and body of the answer to a body; None where `reply` has sent it. Raises Gone where nobody waits."""
        kind = wishes.kind
        if kind is not None and kind != "application/json":
            check_json(kind)
        predictor = self._predictor
        if self.in_flight > 1 and wishes is PLAIN and target[1] is None and len(content) <= BURST_BYTES:
            burst = self._burst(target[0])
            if burst:
                await burst.put(content, reply)
                return None
        if len(content) > INLINE_BYTES:
            return await self.in_pool(lambda: predictor.predict_bytes(*target, content), disconnect)
        return await self.answer_request(target, Row(content), wishes, disconnect)

    async def answer_request(
        self, target: Target, request: Request, wishes: Wishes, disconnect: Disconnect
    ) -> Answer:
        """Status and body of the answer to a request that is here: now, in a thread, or when its turn comes."""
        predictor = self._predictor
        try:
            ticket = predictor.admit(*target, request)
        except TurnoutError as error:
            return predictor.refusal(request, error)
        session = ticket.session
        if session is None:
            return await self.in_pool(lambda: predictor.respond(ticket), disconnect)
        if session.inline and not session.max_delay_us and self._short(session, request):
            if self.in_flight > 1 and request.rows < session.max_batch_rows:
                joint = session.joint or self._joint(session)
                return await joint.put(ticket)
            return predictor.respond(ticket)
        queue = session.queue or self._queue(session)
        return await self._until_gone(queue, queue.put(ticket, wishes.urgency, wishes.seconds), disconnect)

    async def _until_gone(self, queue: Queue, waiting: Waiting, disconnect: Disconnect) -> Answer:
        """Wait for an answer. If the client goes before its turn comes, the request leaves the queue."""
        gone = asyncio.ensure_future(until(disconnect))
        gone.add_done_callback(lambda _: queue.leave(waiting, Gone()))
        try:
            # One that runs can not be stopped: it keeps its place until it ends, whether somebody listens or not.
            return await waiting.answer
        finally:
            gone.cancel()

    def _burst(self, model: str) -> Burst | None:
        """Where requests of this model run together on the event loop; None where they do not."""
        serving = self._predictor.serving(model)
        if serving is None:
            return None
        if serving.burst is None:
            most = 1 if self.logged else self._predictor.together(serving)
            serving.burst = Burst(serving, self._predictor, most) if most > 1 else False
        return serving.burst or None

    def _short(self, session: Session, request: Request) -> bool:
        """Whether a request may hold up the event loop while it is run and its answer written."""
        if request.size > INLINE_BYTES:
            return False
        return request.weight <= 1 or session.seconds(request.weight) <= self._hub.settings.inline_seconds

    def _joint(self, session: Session) -> Joint:
        session.joint = Joint(session, self._predictor)
        return session.joint

    def _queue(self, session: Session) -> Queue:
        settings = self._hub.settings
        slots = settings.pool_threads
        if session.max_batch_rows > 1:
            # More runs at once than there are cores for them would only make each of them smaller.
            fair = cores() // (settings.workers * session.threads)
            slots = max(1, min(slots, fair)) if session.device == "cpu" else 1
        session.queue = Queue(
            session, self._predictor, self._hub.pool, slots=slots, others=lambda: self.in_flight
        )
        return session.queue

    async def in_pool(self, work: Callable[[], Answer], disconnect: Disconnect) -> Answer:
        """Run in a thread. If the client goes while the job waits for one, the job is dropped."""
        job = self._hub.pool.submit(work)
        answer = asyncio.wrap_future(job)
        gone = asyncio.ensure_future(until(disconnect))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and job.cancel():
                raise Gone
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


def wishes_of(kind: str | None, priority: str | None, timeout: str | None) -> Wishes:
    """The headers Content-Type, Priority (RFC 9218) and X-Timeout-Ms. Raises InvalidRequest for no time."""
    if priority is None and timeout is None:
        return PLAIN if kind == "application/json" else Wishes(kind, URGENCY, None)
    urgency = URGENCY
    if priority is not None:
        found = URGENCY_OF.search(priority)
        urgency = int(found[1]) if found else URGENCY
    seconds = None
    if timeout is not None:
        if not (timeout.isascii() and timeout.isdigit()) or not 1 <= int(timeout[:10]) <= MAX_TIMEOUT_MS:
            raise InvalidRequest(f"X-Timeout-Ms: expected 1 to {MAX_TIMEOUT_MS}, found {timeout[:20]!r}")
        seconds = int(timeout) / 1000
    return Wishes(kind, urgency, seconds)


async def until(disconnect: Disconnect) -> None:
    """Wait until a client is gone."""
    await disconnect()
