"""Uploads: bodies of any size to disk as they come, a megabyte at a time, without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import ClientException
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from turnout.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from turnout.service import VersionSpec

BLOCK: Final = 1024**2
MAX_SPEC_BYTES: Final = 1024**2
PARTS: Final = ("artifact", "spec")
SLACK: Final = 2 * MAX_SPEC_BYTES
"""What a multipart body may be longer than its artifact: the specification, the boundaries and the headers."""


S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class Writer(Protocol[S_co]):
    """Where an upload goes: what `Artifacts.stage_stream` returns."""

    def write(self, chunk: bytes, /) -> object:
        """Append; raises PayloadTooLarge past the limit."""
        ...

    def finish(self) -> S_co:
        """Sync to disk and hand over what was stored."""
        ...

    def abort(self) -> None:
        """Remove what was written."""
        ...


class Upload(Generic[S]):
    """A new version on its way in: the part `artifact` goes through `writer` to disk, `spec` is kept.

    An async context manager: what was written is gone when it is left, unless `staged` was taken.
    """

    def __init__(self, writer: Writer[S]) -> None:
        self._writer = writer
        self._part: str | None = None
        self._seen: set[str] = set()
        self._spec = bytearray()
        self._block = bytearray()
        self._taken = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._taken:
            await asyncio.to_thread(self._writer.abort)

    async def read(self, boundary: str, chunks: AsyncIterator[bytes]) -> None:
        """Take the whole body. Raises InvalidRequest for what is no such form, PayloadTooLarge past the limits."""
        try:
            with PushMultipartParser(boundary, max_segment_count=len(PARTS)) as parser:
                async for chunk in chunks:
                    for event in parser.parse(chunk):
                        await self._take(event)
        except MultipartError as error:
            raise InvalidRequest(f"expected a multipart form with the parts {_named()}: {error}") from error
        if "artifact" not in self._seen:
            found = ", ".join(sorted(self._seen)) or "none"
            raise InvalidRequest(f"expected a multipart form with the parts {_named()}, found {found}")
        await self._flush()

    async def staged(self) -> S:
        """The stored artifact, synced to disk; the caller registers or discards it."""
        staged = await asyncio.to_thread(self._writer.finish)
        self._taken = True
        return staged

    def spec(self) -> VersionSpec:
        """What the caller says about the version. Raises InvalidRequest, naming the field."""
        try:
            return msgspec.json.decode(bytes(self._spec) or b"{}", type=VersionSpec)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"part 'spec': {error}") from error

    async def _take(self, event: MultipartSegment | bytearray | bytes | None) -> None:
        if isinstance(event, MultipartSegment):
            self._begin(event.name or "")
        elif event is None:
            self._part = None
        elif self._part == "spec":
            self._spec += event
            if len(self._spec) > MAX_SPEC_BYTES:
                raise PayloadTooLarge(f"part 'spec': expected at most {MAX_SPEC_BYTES} bytes, found more")
        else:
            self._block += event
            if len(self._block) >= BLOCK:
                await self._flush()

    def _begin(self, name: str) -> None:
        if name not in PARTS or name in self._seen:
            again = "a second part" if name in self._seen else "a part"
            raise InvalidRequest(
                f"expected the parts {_named()}, each once, found {again} named {name[:60]!r}"
            )
        self._part = name
        self._seen.add(name)

    async def _flush(self) -> None:
        block, self._block = bytes(self._block), bytearray()
        if block:
            await asyncio.to_thread(self._writer.write, block)


def boundary_of(request: Request[Any, Any, Any], limit: int) -> str:
    """The boundary of a multipart form. Raises before anything is read: not such a form, or announced too large."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary or len(boundary) > 200 or not boundary.isascii():
        raise UnsupportedMediaType(
            f"expected Content-Type multipart/form-data with a boundary and the parts {_named()}, found {kind!r}"
        )
    check_announced(request, limit + SLACK)
    return boundary


def check_announced(request: Request[Any, Any, Any], limit: int) -> None:
    """Raise PayloadTooLarge where the body says that it is larger than `limit`."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise PayloadTooLarge(
            f"expected at most {limit} bytes, found {announced}; see the setting max_artifact_bytes"
        )


async def in_blocks(chunks: AsyncIterator[bytes], write: Callable[[bytes], object], limit: int) -> int:
    """Hand a body to a blocking `write`, a megabyte at a time in a thread; returns its size in bytes."""
    total, block = 0, bytearray()
    async for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise PayloadTooLarge(
                f"expected at most {limit} bytes, found more; see the setting max_artifact_bytes"
            )
        block += chunk
        if len(block) >= BLOCK:
            await asyncio.to_thread(write, bytes(block))
            block.clear()
    await asyncio.to_thread(write, bytes(block))
    return total


async def body_of(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """The chunks of a body as they come. Raises ClientException where the client goes away before its end."""
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientException("the client went away before its body was complete")
        more = bool(message.get("more_body"))
        if chunk := message.get("body"):
            yield chunk


def _named() -> str:
    return " and ".join(f"'{part}'" for part in PARTS)
