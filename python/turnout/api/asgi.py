"""What the ASGI callables in front of Litestar share: bodies, answers, refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from turnout.api.paths import Target
from turnout.api.patience import BODY_SECONDS
from turnout.api.problems import MEDIA_TYPE, plain, unexpected
from turnout.errors import PayloadTooLarge, TurnoutError, problem
from turnout.service import Turnout

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
PROBLEM: Final = (b"content-type", MEDIA_TYPE.encode())
RETRY: Final = (b"retry-after", b"1")
CLOSE: Final = (b"connection", b"close")
"""For an answer to a request that is not read to its end: the connection is of no use to another (HTTP/2 ignores it)."""


class Gone(Exception):
    """The client went away before its request was complete."""


# --- bodies ---------------------------------------------------------------------------------------------------------


def announced_length(headers: dict[bytes, bytes]) -> int:
    """Bytes of the body, -1 where the request does not say."""
    announced = headers.get(b"content-length")
    return int(announced) if announced is not None and announced.isdigit() else -1


async def whole_body(headers: dict[bytes, bytes], receive: Receive, most: int, setting: str) -> bytes:
    """The whole body, as `body_parts` reads it."""
    parts = await body_parts(headers, receive, most, setting)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def body_parts(headers: dict[bytes, bytes], receive: Receive, most: int, setting: str) -> list[bytes]:
    """The whole body. Nothing is read of one that says it is too large; of a chunked one, not past the limit."""
    length = announced_length(headers)
    if length > most:
        raise too_large(most, length, setting)
    message = await received(receive)
    body: bytes = message["body"]
    # The announced length spares the wait for the empty message that says that no more comes.
    if len(body) == length or not message.get("more_body"):
        return [body]
    parts, size = [body], len(body)
    while size != length:
        if size > most:
            raise too_large(most, None, setting)
        message = await received(receive)
        parts.append(message["body"])
        size += len(parts[-1])
        if not message.get("more_body"):
            break
    if size > most:
        raise too_large(most, None, setting)
    return parts


async def received(receive: Receive) -> Message:
    """The next part of the body. Raises Gone."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    return message


async def until_gone(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def too_large(limit: int, length: int | None, setting: str) -> PayloadTooLarge:
    """The error for a body of so many bytes (None: more than the limit, nobody knows how many)."""
    found = "more" if length is None else f"{length} bytes"
    return PayloadTooLarge(
        f"expected a body of at most {limit} bytes, found {found}; see the setting {setting}"
    )


# --- answers --------------------------------------------------------------------------------------------------------


def start(status: int, headers: Headers) -> Message:
    """The message that begins an answer."""
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(content: bytes, *, more: bool = False) -> Message:
    """A message with a part of an answer."""
    return {"type": "http.response.body", "body": content, "more_body": more}


async def refuse(
    hub: Turnout, error: Exception, target: Target, identity: bytes, send: Send, *headers: tuple[bytes, bytes]
) -> None:
    """Answer with a problem document, and count it. What is still to come of the body is not read."""
    found = problem_of(error, target, identity)
    hub.telemetry.reject(found["code"])
    await send(start(found["status"], [PROBLEM, (b"x-request-id", identity), *headers]))
    await send(body(msgspec.json.encode(found)))


def problem_of(error: Exception, target: Target, identity: bytes) -> dict[str, Any]:
    """What went wrong on the way of a prediction or a batch, as a problem document."""
    if isinstance(error, TurnoutError):
        return problem(error)
    if isinstance(error, TimeoutError):
        late = str(error) or f"expected the whole body within {BODY_SECONDS:g} seconds"
        return msgspec.to_builtins(plain(408, late))
    return msgspec.to_builtins(unexpected(error, request_id=identity.decode(), model=target[0]))
