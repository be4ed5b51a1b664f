"""Requests of one version that run together where that pays.

A run takes what waits when its turn comes, up to `max_batch_rows`. A `Burst` is for models that the event loop runs: it
takes what arrived while the loop was busy, and so does a `Joint`, of what was read and routed already. A `Queue` is for
those that run in threads, or wait for more: it takes what arrived while they were, in the order of its urgency. Nothing
waits where nothing else is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from operator import attrgetter
from time import perf_counter_ns

from turnout.api.asgi import Gone
from turnout.engine import Session
from turnout.errors import DeadlineExceeded, TooManyRequests
from turnout.prediction import Answer, Predictor, Ticket
from turnout.router import Serving

URGENCY = 3
"""Of a request that does not say: the middle of RFC 9218, where 0 is the most urgent and 7 the least."""


Reply = Callable[[int, bytes], None]
"""Sends an answer: status and body."""


class Burst:
    """What arrived for one model since the event loop last came round; it answers all of that at once.

    To hand the answers over one after the other, with nothing between, matters as much as the model: the thread of the
    server that sends them is woken once for all of them.

    Args:
        most: how many run together.
    """

    def __init__(self, serving: Serving, predictor: Predictor, most: int) -> None:
        self._serving = serving
        self._predictor = predictor
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._begin()

    def _begin(self) -> None:
        self._bodies: list[bytes] = []
        self._started: list[int] = []
        self._replies: list[Reply] = []
        self._done: asyncio.Future[None] | None = None

    def put(self, body: bytes, reply: Reply) -> asyncio.Future[None]:
        """Let a request be answered with the others; done when it is. The future is that of all of them."""
        done = self._done
        if done is None:
            done = self._done = self._loop.create_future()
            self._loop.call_soon(self._run, done)
        self._bodies.append(body)
        self._started.append(perf_counter_ns())
        self._replies.append(reply)
        return done

    def _run(self, done: asyncio.Future[None]) -> None:
        bodies, started, replies, most = self._bodies, self._started, self._replies, self._most
        self._begin()
        try:
            for start in range(0, len(bodies), most):
                end = start + most
                answers = self._predictor.respond_each(self._serving, bodies[start:end], started[start:end])
                for reply, (status, answer) in zip(replies[start:end], answers, strict=True):
                    reply(status, answer)
        except BaseException as error:
            if not done.done():
                done.set_exception(error)
            raise
        if not done.done():
            done.set_result(None)


class Joint:
    """What arrived for one session since the event loop last came round, in any dialect; it answers all of that at once."""

    def __init__(self, session: Session, predictor: Predictor) -> None:
        self._session = session
        self._predictor = predictor
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Ticket, asyncio.Future[Answer]]] = []

    def put(self, ticket: Ticket) -> asyncio.Future[Answer]:
        """Let a request be answered with the others."""
        if not self._waiting:
            self._loop.call_soon(self._run)
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.append((ticket, answer))
        return answer

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            rows, count = 0, 0
            for ticket, _ in waiting:
                rows += ticket.request.rows
                if count and rows > self._session.max_batch_rows:
                    break
                count += 1
            taken, waiting = waiting[:count], waiting[count:]
            try:
                answers = self._predictor.respond_together(self._session, [ticket for ticket, _ in taken])
            except Exception as error:  # noqa: BLE001 - each of them hears of it
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), found in zip(taken, answers, strict=True):
                if not answer.done():
                    answer.set_result(found)


class Waiting:
    """A request in a queue. `answer` is set when it has run, or is not to run any more."""

    __slots__ = ("answer", "rows", "since", "ticket", "timer", "urgency")

    def __init__(self, ticket: Ticket, urgency: int, answer: asyncio.Future[Answer]) -> None:
        self.ticket = ticket
        self.urgency = urgency
        self.answer = answer
        self.rows = ticket.request.rows
        self.since = perf_counter_ns()
        self.timer: asyncio.TimerHandle | None = None


class Queue:
    """What waits for one session, on one event loop.

    Args:
        session: what to run.
        pool: the threads that run it.
        slots: runs at once.
        others: how many requests are under way in this process, waiting ones included; where all of them wait here
            already, there is nobody to wait for.
    """

    def __init__(
        self,
        session: Session,
        predictor: Predictor,
        pool: Executor,
        *,
        slots: int,
        others: Callable[[], int],
    ) -> None:
        self._session = session
        self._predictor = predictor
        self._pool = pool
        self._slots = slots
        self._others = others
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Waiting] = []
        self._rows = 0
        self._running = 0
        self._mixed = False
        self._armed: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, ticket: Ticket, urgency: int = URGENCY, seconds: float | None = None) -> Waiting:
        """Let a request wait for its turn, at most so many seconds. Raises TooManyRequests where the queue is full."""
        most = self._session.max_queue_rows
        waiting = Waiting(ticket, urgency, self._loop.create_future())
        if most is not None and self._rows + waiting.rows > most:
            raise TooManyRequests(
                f"{self._rows} rows wait for this version, as many as may be; try again in a second"
            )
        self._mixed = self._mixed or urgency != URGENCY
        self._waiting.append(waiting)
        self._rows += waiting.rows
        if seconds is not None:
            waiting.timer = self._loop.call_later(seconds, self._late, waiting, seconds)
        if self._armed is None:
            self._armed = self._loop.call_soon(self._run)
        return waiting

    def leave(self, waiting: Waiting, reason: BaseException) -> bool:
        """Take a request out that is not to be answered any more; False where it runs already."""
        if waiting.answer.done() or waiting not in self._waiting:
            return False
        self._waiting.remove(waiting)
        self._rows -= waiting.rows
        self._end(waiting, reason)
        return True

    def _late(self, waiting: Waiting, seconds: float) -> None:
        self.leave(
            waiting, DeadlineExceeded(f"the request waited for its turn longer than its {seconds * 1e3:g} ms")
        )

    def _run(self) -> None:
        self._armed = None
        while self._waiting and self._running < self._slots:
            delay = self._delay()
            if delay > 0:
                self._armed = self._loop.call_later(delay, self._run)
                return
            taken = self._take()
            self._running += 1
            tickets = [waiting.ticket for waiting in taken]
            respond = self._predictor.respond_together
            job = self._loop.run_in_executor(self._pool, respond, self._session, tickets)
            job.add_done_callback(lambda job, taken=taken: self._ended(taken, job))

    def _delay(self) -> float:
        """For how many seconds a run that is not full waits for more."""
        session = self._session
        if not session.max_delay_us or self._rows >= session.max_batch_rows:
            return 0.0
        if len(self._waiting) >= self._others():
            return 0.0
        since = min(map(attrgetter("since"), self._waiting))
        return session.max_delay_us * 1e-6 - (perf_counter_ns() - since) * 1e-9

    def _take(self) -> list[Waiting]:
        """The next run: the most urgent first, as many as have room; one that is larger by itself."""
        if self._mixed:
            self._waiting.sort(key=attrgetter("urgency"))
            self._mixed = False
        most, rows, count = self._session.max_batch_rows, 0, 0
        for waiting in self._waiting:
            if count and rows + waiting.rows > most:
                break
            rows += waiting.rows
            count += 1
        taken = self._waiting[:count]
        del self._waiting[:count]
        self._rows -= rows
        now = perf_counter_ns()
        for waiting in taken:
            if waiting.timer is not None:
                waiting.timer.cancel()
            self._predictor.waited(waiting.ticket, now - waiting.since)
        return taken

    def _ended(self, taken: Sequence[Waiting], job: asyncio.Future[list[Answer]]) -> None:
        self._running -= 1
        error = None if job.cancelled() else job.exception()
        if job.cancelled() or error is not None:
            for waiting in taken:
                self._end(waiting, error or Gone())
        else:
            self._answer(taken, job.result())
        if self._armed is None:
            self._run()

    @staticmethod
    def _answer(taken: Sequence[Waiting], answers: Sequence[Answer]) -> None:
        for waiting, answer in zip(taken, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)

    @staticmethod
    def _end(waiting: Waiting, reason: BaseException) -> None:
        if waiting.timer is not None:
            waiting.timer.cancel()
        if not waiting.answer.done():
            waiting.answer.set_exception(reason)
