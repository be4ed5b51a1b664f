"""RSGI, which Granian speaks natively, as ASGI: requests and answers in both directions, and the lifespan.

What RSGI 1.6 leaves out is made up for here. It decodes paths (`turnout.api.paths` encodes them again), it sends an
answer in parts without ever waiting for a client that reads slowly, and it can neither tell that the client of such an
answer is gone nor break it off. So an answer in parts is a file for Granian: the end of a pipe, which holds a megabyte.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import stat
import struct
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from granian.rsgi import ProtocolClosed  # pyright: ignore[reportPrivateImportUsage]

from turnout.api.asgi import App, Gone, Message
from turnout.api.paths import encoded
from turnout.log import log

WHOLE_BYTES = 1 << 20
"""Bodies up to here come in one piece."""
PIPE_BYTES: Final = 1 << 20
SET_PIPE_SIZE: Final = 1031  # F_SETPIPE_SZ of linux/fcntl.h
TAKE_SECONDS = 60.0
"""How long a client may leave what is ready for it."""
OPEN_SECONDS = 0.001


class Exchange:
    """A request and its answer: the scope, `receive` and `send` of ASGI. `close` it when the application is done."""

    def __init__(self, scope: Any, protocol: Any, headers: Any) -> None:  # noqa: ANN401
        self._protocol = protocol
        self._peer: str = scope.client
        self.headers = headers_of(headers)
        self.scope = scope_of(scope, self.headers)
        given = dict(self.headers)
        length = given.get(b"content-length", b"")
        self._length = int(length) if length.isdigit() else -1
        self._framed = scope.http_version != "2"
        chunked = b"transfer-encoding" in given or (not self._framed and scope.method not in {"GET", "HEAD"})
        self._more = self._length > 0 or (self._length < 0 and chunked)
        self._taken = 0
        self._parts: Any = None
        self._start: Message | None = None
        self._pipe: Pipe | None = None
        self._ended = False
        self._over = asyncio.Event()

    async def receive(self) -> Message:
        """The next part of the body; behind the last one, that the client is gone."""
        if not self._more:
            if self._taken == 0 and self._parts is None:
                self._parts = ()
                return _part(b"", more=False)
            if self._start is None:
                await self._protocol.client_disconnect()
            else:
                await self._over.wait()
            return {"type": "http.disconnect"}
        try:
            if 0 <= self._length <= WHOLE_BYTES:
                content: bytes = await self._protocol()
                self._taken, self._more = len(content), False
                return _part(content, more=False)
            return await self._next()
        except ProtocolClosed:
            self._more = False
            return {"type": "http.disconnect"}

    async def _next(self) -> Message:
        """The next part of a long body. Where a body is cut off RSGI sends an empty part, and then another one."""
        if self._parts is None:
            self._parts = aiter(self._protocol)
        part = await self._anext()
        cut = part == b""
        if part == b"" and self._length < 0:
            part = await self._anext()
            # HTTP/2 may end a whole body in the same way; then what is read has to tell by itself that it is whole.
            cut = part == b"" and self._framed
        part = part or b""
        self._taken += len(part)
        self._more = bool(part) and self._taken != self._length
        return {"type": "http.disconnect"} if cut else _part(part, more=self._more)

    async def _anext(self) -> bytes | None:
        try:
            return await anext(self._parts)
        except StopAsyncIteration:
            return None

    async def send(self, message: Message) -> None:
        """Send the head of an answer, or a part of it. Raises Gone where nobody takes it."""
        if message["type"] == "http.response.start":
            if self._start is None:
                self._start = message
            return
        if self._start is None or self._ended:
            return
        content = message.get("body", b"")
        more = message.get("more_body", False)
        if self._pipe is None:
            status = self._start["status"]
            headers = [(name.decode(), value.decode("ascii")) for name, value in self._start["headers"]]
            if not more:
                self._end()
                self._protocol.response_bytes(status, headers, bytes(content))
                return
            if not content:
                return
            self._pipe = Pipe()
            self._protocol.response_file(status, headers, self._pipe.path)
        try:
            await self._pipe.write(content)
            if not more:
                await self._pipe.finish()
        except Gone:
            self._over.set()
            raise
        if not more:
            self._end()

    def close(self) -> None:
        """Let go of the answer; one that was begun and is not ended is broken off, so that nobody takes it for whole."""
        if self._pipe is not None:
            if not self._ended:
                sever(self._peer)
            self._pipe.close()
        self._over.set()

    def _end(self) -> None:
        self._ended = True
        self._over.set()


class Pipe:
    """Bytes for a reader that opens `path` in this process, and takes them at its own speed."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        if sys.platform == "linux":
            with suppress(OSError):  # more than this user may have: then it stays as it is
                fcntl.fcntl(self._write, SET_PIPE_SIZE, PIPE_BYTES)
        self.path = f"/dev/fd/{self._read}"
        self._written = 0

    async def write(self, content: bytes) -> None:
        """Write, and wait for room. Raises Gone where the reader is gone, or takes nothing for too long."""
        view = memoryview(content)
        while view:
            try:
                count = os.write(self._write, view)
            except BlockingIOError:
                await self._room()
            except BrokenPipeError:
                raise Gone from None
            else:
                self._written += count
                view = view[count:]
            self._opened()

    async def finish(self) -> None:
        """Wait until the reader has opened its end; it reads what is left when ours is closed. Raises Gone."""
        try:
            async with asyncio.timeout(TAKE_SECONDS):
                while not self._opened():
                    await asyncio.sleep(OPEN_SECONDS)
        except TimeoutError:
            raise Gone from None

    def close(self) -> None:
        """Close what is open. Idempotent."""
        for end in (self._read, self._write):
            if end >= 0:
                os.close(end)
        self._read = self._write = -1

    def _opened(self) -> bool:
        """Whether the reader has an end of its own, as it shows by reading. Ours would keep the pipe alive without it."""
        if self._read >= 0 and self._written:
            (left,) = struct.unpack("i", fcntl.ioctl(self._read, termios.FIONREAD, bytes(4)))
            if left < self._written:
                os.close(self._read)
                self._read = -1
        return self._read < 0

    async def _room(self) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        loop.add_writer(self._write, room.set)
        try:
            async with asyncio.timeout(TAKE_SECONDS):
                await room.wait()
        except TimeoutError:
            raise Gone from None
        finally:
            loop.remove_writer(self._write)


class Lifespan:
    """Starts and stops an ASGI application on an event loop that does not run yet, or no more."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._to: asyncio.Queue[Message] = asyncio.Queue()
        self._from: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Start the application. Raises what it raises, or says."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._task = asyncio.ensure_future(self._run(scope))
        await self._step("startup")

    async def shutdown(self) -> None:
        """Stop it. Raises what it raises, or says."""
        await self._step("shutdown")
        if self._task is not None:
            await self._task

    async def _run(self, scope: Message) -> None:
        await self._app(scope, self._to.get, self._from.put)

    async def _step(self, step: str) -> None:
        task = self._task
        if task is None:
            raise RuntimeError("the application was not started")
        self._to.put_nowait({"type": f"lifespan.{step}"})
        said = asyncio.ensure_future(self._from.get())
        await asyncio.wait({said, task}, return_when=asyncio.FIRST_COMPLETED)
        if not said.done():
            said.cancel()
            await task
            raise RuntimeError(f"the application ended at its {step}")
        message = said.result()
        if message["type"] != f"lifespan.{step}.complete":
            raise RuntimeError(f"{step} failed: {message.get('message', '')}")


def headers_of(headers: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401
    """The headers of a request. RSGI keeps back what is not ASCII: instead of it, a byte that is not either."""
    found = [(name.encode(), value.encode()) for name, value in headers.items()]
    kept_back = {name.encode() for name in headers.keys()} - {name for name, _ in found}  # noqa: SIM118
    return found + [(name, b"\xff") for name in kept_back]


def scope_of(scope: Any, headers: list[tuple[bytes, bytes]]) -> Message:  # noqa: ANN401
    """The scope of ASGI for one of RSGI."""
    path = encoded(scope.path)
    authority = scope.authority
    if authority is not None and all(name != b"host" for name, _ in headers):
        headers.append((b"host", authority.encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": scope.http_version,
        "server": _address(scope.server),
        "client": _address(scope.client),
        "scheme": scope.scheme,
        "method": scope.method,
        "root_path": "",
        "path": scope.path,
        "raw_path": path,
        "query_string": scope.query_string.encode("latin-1"),
        "headers": headers,
        "state": {},
        "extensions": {},
    }


def sever(peer: str) -> None:
    """Cut the connection of this process to a peer, `host:port`: the only way to break an answer off.

    Over HTTP/2 the other requests on that connection end with it.
    """
    for path in Path("/dev/fd").iterdir():
        try:
            number = int(path.name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as found:
                if found.family in {socket.AF_INET, socket.AF_INET6} and _shown(found.getpeername()) == peer:
                    found.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in {errno.EBADF, errno.ENOTCONN, errno.ENOTSOCK}:
                log("warning", "not_severed", peer=peer, detail=str(error))


def _shown(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(text: str) -> tuple[str, int] | None:
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdigit() else None


def _part(content: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}
