"""How many requests of a client are under way at once: one for each connection.

Not left to the pool of httpx: where threads wait for one of its connections, it may close one that another thread has
just been given, which then waits for its answer until its time is over (encode/httpcore, issue 1110; in one of 2,000
requests of 8 threads on 2 connections, measured with httpcore 1.0.9).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import httpx

from turnout.errors import InvalidRequest


class Closable(Protocol):
    """What a request of an event loop ends with."""

    async def aclose(self) -> None:
        """Give its connection back."""
        ...


T = TypeVar("T")
C = TypeVar("C", bound=Closable)


class Turns:
    """Turns for threads, so many at once."""

    def __init__(self, most: int) -> None:
        self.closed = False
        self._most = most
        self._free = threading.Semaphore(most)

    def run(self, seconds: float, call: Callable[[], T]) -> T:
        """Wait for a turn and call it then. Raises PoolTimeout after so many seconds, InvalidRequest once closed."""
        refuse_closed(self.closed)
        if not self._free.acquire(timeout=seconds):
            raise none_free(self._most)
        try:
            return call()
        finally:
            self._free.release()

    def close(self) -> None:
        """Give no more turns."""
        self.closed = True


class AsyncTurns:
    """Turns for the tasks of an event loop, so many at once.

    A request whose task is cancelled goes on to its end, which its timeout bounds, and keeps its turn until then:
    httpcore 1.0.9 loses the connection of a request that is cancelled, and never closes it.
    """

    def __init__(self, most: int) -> None:
        self.closed = False
        self._most = most
        self._free = asyncio.Semaphore(most)
        self._left: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float, call: Callable[[], Awaitable[C]]) -> C:
        """Wait for a turn and call it then. Raises PoolTimeout after so many seconds, InvalidRequest once closed."""
        refuse_closed(self.closed)
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError:
            raise none_free(self._most) from None
        task = asyncio.create_task(self._called(call))
        task.add_done_callback(lambda _: self._free.release())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            left = asyncio.create_task(_ended(task))
            self._left.add(left)
            left.add_done_callback(self._left.discard)
            raise

    async def aclose(self) -> None:
        """Give no more turns, and end what goes on though nobody waits for it."""
        self.closed = True
        left = list(self._left)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    @staticmethod
    async def _called(call: Callable[[], Awaitable[C]]) -> C:
        return await call()


async def _ended(task: asyncio.Task[C]) -> None:
    """Wait for an answer that nobody wants any more."""
    with suppress(Exception):
        await (await task).aclose()


def refuse_closed(closed: bool) -> None:
    """Raise InvalidRequest for a client that was closed."""
    if closed:
        raise InvalidRequest("the client is closed")


def none_free(most: int) -> httpx.PoolTimeout:
    """The error for a turn that did not come in time; nothing was sent."""
    return httpx.PoolTimeout(f"all of its {most} connections were in use, see max_connections")
