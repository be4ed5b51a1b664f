"""A request and its answer for a thread that works on them while they are on their way, with little of them in memory."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress

from turnout.api.asgi import Gone, Headers, Message, Receive, Send, body, received, start, until_gone
from turnout.streams import Buffer

AHEAD_BYTES = 1 << 18
"""Bytes that are read before the thread asks for them."""
DRAIN_SECONDS = 1.0
FLUSH_SECONDS = 0.05
IDLE_SECONDS = 60.0
"""How long a client may neither send what is missing nor take what is ready."""


async def patient(receive: Receive) -> Message:
    """The next part of a body. Raises TimeoutError where it does not come, Gone where the client is."""
    try:
        return await asyncio.wait_for(received(receive), IDLE_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"expected the next part of the body within {IDLE_SECONDS:g} seconds") from None


class Parts:
    """A body that is here already."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts: deque[bytes | memoryview] = deque(parts)

    def read1(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""
        part = self._parts.popleft() if self._parts else b""
        if 0 <= size < len(part):
            rest = memoryview(part)
            self._parts.appendleft(rest[size:])
            part = rest[:size]
        return bytes(part)


class Intake:
    """The body of a request. `pump` fills it on the event loop, `read1` empties it in a thread."""

    def __init__(self) -> None:
        self.gone = False
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._change = threading.Condition()
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: Exception | None = None

    async def pump(self, receive: Receive) -> None:
        """Read the body, never further ahead than AHEAD_BYTES; then wait for the client to go."""
        try:
            more = True
            while more:
                message = await patient(receive)
                more = message.get("more_body", False)
                self._put(message["body"], ended=not more)
                while self._size >= AHEAD_BYTES:
                    self._room.clear()
                    await self._room.wait()
            await until_gone(receive)
            self.abandon(Gone())
        except (Gone, TimeoutError) as error:
            self.abandon(error)

    def abandon(self, error: Exception) -> None:
        """Nobody wants the answer any more: reading raises this, `gone` is true."""
        self.gone = True
        with self._change:
            self._error = error
            self._change.notify()

    async def drain(self, receive: Receive) -> None:
        """Read on for a moment what nobody needs any more, so that the client gets to read what it was sent last.

        A connection that is closed with unread bytes is reset, and what was on its way is lost.
        """
        with suppress(Gone, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._ended and (await received(receive)).get("more_body"):
                    pass
                await asyncio.sleep(FLUSH_SECONDS)

    def read1(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, after waiting for one; none at the end. Raises Gone and TimeoutError."""
        with self._change:
            while not self._parts and not self._ended and self._error is None:
                self._change.wait()
            if self._error is not None:
                raise self._error
            if not self._parts:
                return b""
            part = self._taken(size)
            self._size -= len(part)
            if self._size < AHEAD_BYTES <= self._size + len(part):
                self._loop.call_soon_threadsafe(self._room.set)
            return part

    def _taken(self, size: int) -> bytes:
        """All that fits, in one piece."""
        taken = [self._parts.popleft()]
        left = size - len(taken[0])
        while self._parts and len(self._parts[0]) <= left:
            left -= len(self._parts[0])
            taken.append(self._parts.popleft())
        if size >= 0 and left < 0:
            first = taken[0]
            self._parts.appendleft(first[size:])
            return first[:size]
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _put(self, part: bytes, *, ended: bool) -> None:
        with self._change:
            if part:
                self._parts.append(part)
                self._size += len(part)
            self._ended = ended
            self._change.notify()


class Outlet:
    """The answer to a request; each part waits until the client takes it."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self.begun = False
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._headers = headers

    def write(self, content: Buffer) -> None:
        """Send a part from a thread. Raises Gone where nobody takes it."""
        asyncio.run_coroutine_threadsafe(self.send(content), self._loop).result()

    async def send(self, content: Buffer, *, more: bool = True) -> None:
        """Send a part, and before the first one the head."""
        try:
            if not self.begun:
                self.begun = True
                await asyncio.wait_for(self._send(start(200, self._headers)), IDLE_SECONDS)
            if len(content) or not more:
                await asyncio.wait_for(self._send(body(bytes(content), more=more)), IDLE_SECONDS)
        except TimeoutError:
            raise Gone from None
