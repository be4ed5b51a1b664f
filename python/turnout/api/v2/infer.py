"""Inference over the Open Inference Protocol: heads and bodies in JSON and binary, packed or not, and their answers."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from granian.rsgi import ProtocolClosed  # pyright: ignore[reportPrivateImportUsage]

from turnout import _core
from turnout.api.asgi import (
    Gone,
    Receive,
    Send,
    announced_length,
    body,
    start,
    too_large,
    until_gone,
    whole_body,
)
from turnout.api.bulk import Bulk, Slot
from turnout.api.media import answer_coding, decoded, encoder
from turnout.api.paths import Target
from turnout.api.patience import BODY_SECONDS
from turnout.api.predictions import (
    INLINE_BYTES,
    MAX_TIMEOUT_MS,
    PLAIN,
    Disconnect,
    Predictions,
    Wishes,
    until,
    wishes_of,
)
from turnout.api.v2.errors import refusal
from turnout.errors import DeadlineExceeded, InvalidRequest
from turnout.inference import RawTensor, Tensors
from turnout.log import log
from turnout.prediction import Answer
from turnout.service import Turnout

INLINE_JSON = 1 << 16
"""Longer JSON is read in a thread."""
WORTH_PACKING = 1024
LEAST_BYTES_A_SECOND = 1_000_000
"""How fast a large body must come at least."""
LAST_URGENCY = 7
JSON_LENGTH = "inference-header-content-length"
READ_BYTES = 1 << 20
CODINGS = (b"gzip", b"deflate")
"""Those of the protocol's clients; some let their HTTP library accept more than they read."""


class Head(NamedTuple):
    """What the headers of a request say.

    `json_bytes` is the length of the JSON in front of the tensors: None where there is nothing else, 0 where there is
    none. `coding` is that of the body, `packing` that of the answer.
    """

    json_bytes: int | None
    entity: str | None
    wishes: Wishes
    coding: bytes | None
    packing: bytes | None


NOTHING = (None,) * 6
PLAIN_HEAD = Head(None, None, PLAIN, None, None)
MOST_DIGITS = 18


class Reply(NamedTuple):
    """An answer as it is sent."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes


class Inferences:
    """Answers inference requests. Large bodies, and packed ones, take one of the places of batches."""

    def __init__(self, hub: Turnout, predictions: Predictions, bulk: Bulk) -> None:
        settings = hub.settings
        self._hub = hub
        self._predictions = predictions
        self._bulk = bulk
        self._small = settings.max_body_bytes
        self.most = max(settings.max_batch_bytes, settings.max_body_bytes)

    # --- the two interfaces -------------------------------------------------------------------------------------

    async def rsgi(self, target: Target, headers: Any, length: int, protocol: Any, identity: str) -> None:  # noqa: ANN401
        """Answer one request whose length is known, and allowed (RSGI)."""
        get = headers.get  # RSGI keeps back what is not ASCII
        reply = await self._reply(
            target,
            lambda name: "\xff" if (value := get(name)) is None and name in headers else value,
            length,
            lambda large: self._from_rsgi(protocol, length, large=large),
            protocol.client_disconnect,
            identity,
        )
        if reply is not None:
            protocol.response_bytes(*reply)

    async def asgi(
        self, target: Target, headers: dict[bytes, bytes], identity: bytes, receive: Receive, send: Send
    ) -> None:
        """Answer one request (ASGI)."""

        def get(name: str) -> str | None:
            value = headers.get(name.encode())
            return None if value is None else value.decode("latin-1")

        reply = await self._reply(
            target,
            get,
            announced_length(headers),
            lambda large: self._from_asgi(headers, receive, large=large),
            lambda: until_gone(receive),
            identity.decode(),
        )
        if reply is not None:
            sent = [(name.encode(), value.encode()) for name, value in reply.headers]
            await send(start(reply.status, sent))
            await send(body(reply.content))

    def _from_rsgi(self, protocol: Any, length: int, *, large: bool) -> Awaitable[bytes]:  # noqa: ANN401
        if not large:
            return self._predictions.patience.wait(protocol())
        return _in_time(protocol(), length)

    def _from_asgi(self, headers: dict[bytes, bytes], receive: Receive, *, large: bool) -> Awaitable[bytes]:
        if not large:
            return self._predictions.patience.wait(whole_body(headers, receive, self.most, "max_batch_bytes"))
        length = announced_length(headers)
        return _in_time(
            whole_body(headers, receive, self.most, "max_batch_bytes"), self.most if length < 0 else length
        )

    # --- what they have in common -------------------------------------------------------------------------------

    async def _reply(
        self,
        target: Target,
        get: Callable[[str], str | None],
        length: int,
        read: Callable[[bool], Awaitable[bytes]],
        disconnect: Disconnect,
        identity: str,
    ) -> Reply | None:
        """The reply to a request; None where nobody waits for one."""
        predictions = self._predictions
        if predictions.in_flight >= predictions.limit:
            return self._refused(predictions.busy(), target, identity)
        slot: Slot | None = None
        began = perf_counter() if predictions.logged else 0.0
        predictions.in_flight += 1
        try:
            large = length < 0 or length > self._small
            if large:
                slot = self._bulk.slot()
            content = await read(large)
            # After the body: an HTTP/2 client may take an answer to what it still sends for a broken stream.
            head = head_of(get)
            if head.coding is not None and slot is None:
                slot = self._bulk.slot()
            request, wishes = self._request(target, head, content) or await self._in_thread(
                lambda: request_of(self._hub, target, head, unpacked(content, head.coding, self.most))
            )
            if request.entity_ids is None:
                status, answer = await predictions.answer_request(target, request, wishes, disconnect)
            else:
                status, answer = await self._rows(target, request, wishes, disconnect)
            packing = head.packing if len(answer) >= WORTH_PACKING and status < 400 else None
            if packing is not None:
                answer = await self._coded(answer, packing)
            if predictions.logged:
                _log(target, identity, status, answer, perf_counter() - began)
            return Reply(status, _headers(request.json_bytes, packing, identity), answer)
        except (Gone, ProtocolClosed):
            return None
        except Exception as error:  # noqa: BLE001
            return self._refused(error, target, identity)
        finally:
            predictions.in_flight -= 1
            if slot is not None:
                slot.free()

    def _refused(self, error: Exception, target: Target, identity: str) -> Reply:
        status, headers, answer = refusal(self._hub, error, target, identity)
        return Reply(status, [*headers, ("x-request-id", identity)], answer)

    def _request(self, target: Target, head: Head, content: bytes) -> tuple[Tensors, Wishes] | None:
        """The request in a body that takes no time to read; None for one that a thread has to read."""
        if head.coding is not None or len(content) > INLINE_BYTES:
            return None
        if (len(content) if head.json_bytes is None else head.json_bytes) > INLINE_JSON:
            return None
        return request_of(self._hub, target, head, content)

    async def _rows(self, target: Target, request: Tensors, wishes: Wishes, disconnect: Disconnect) -> Answer:
        """Answer rows in a thread, which ends after the chunk that it is at when the client goes."""
        latest = None if wishes.seconds is None else perf_counter() + wishes.seconds
        abandoned = threading.Event()
        gone = asyncio.ensure_future(until(disconnect))
        gone.add_done_callback(lambda _: abandoned.set())

        def work() -> Answer:
            if latest is not None and perf_counter() > latest:
                raise DeadlineExceeded(f"the request waited for its turn longer than its {wishes.seconds} s")
            return answer_rows(self._hub, target, request, going=lambda: not abandoned.is_set())

        try:
            return await self._in_thread(work)
        finally:
            gone.cancel()

    @staticmethod
    async def _coded(content: bytes, packing: bytes) -> bytes:
        """An answer in its coding: a small one now, a large one in a thread that runs no model."""
        if len(content) <= INLINE_JSON:
            return _packed(content, packing)
        return await asyncio.to_thread(_packed, content, packing)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401
        return await asyncio.wrap_future(self._hub.batch_pool.submit(work))


def head_of(get: Callable[[str], str | None]) -> Head:
    """What headers say. Raises InvalidRequest and UnsupportedMediaType."""
    said = (
        get(JSON_LENGTH),
        get("x-entity-id"),
        get("priority"),
        get("x-timeout-ms"),
        get("content-encoding"),
        get("accept-encoding"),
    )
    if said == NOTHING:
        return PLAIN_HEAD
    length, entity, priority, timeout, coding, accepted = said
    if length is not None and not (length.isascii() and length.isdigit() and len(length) <= MOST_DIGITS):
        raise InvalidRequest(
            f"Inference-Header-Content-Length: expected a number of bytes, found {length[:20]!r}"
        )
    if coding is not None and coding.strip().lower() in {"", "identity"}:
        coding = None
    return Head(
        None if length is None else int(length),
        None if entity is None else _entity(entity),
        wishes_of("application/json", priority, timeout),
        None if coding is None else coding.encode("latin-1"),
        None if accepted is None else answer_coding(accepted.encode("latin-1"), CODINGS),
    )


def request_of(hub: Turnout, target: Target, head: Head, content: bytes) -> tuple[Tensors, Wishes]:
    """The request in a body, and what it and its headers wish. Raises what is wrong with it."""
    serving, most_rows = hub.current().serving(target[0]), hub.settings.max_batch_rows
    if head.json_bytes == 0:
        return RawTensor(content, head.entity, most_rows), head.wishes
    json_bytes = len(content) if head.json_bytes is None else head.json_bytes
    if hub.settings.max_body_bytes < json_bytes <= len(content):
        raise too_large(hub.settings.max_body_bytes, json_bytes, "max_body_bytes, and send tensors in binary")
    asked = _core.InferRequest.read(content, head.json_bytes)
    return Tensors.of(asked, serving, len(content), head.entity, most_rows), _wishes(asked, head.wishes)


def answer_rows(
    hub: Turnout, target: Target, request: Tensors, going: Callable[[], bool] = lambda: True
) -> Answer:
    """Answer rows that are about several entities, while `going` says so. Raises what is wrong with them."""
    job = hub.batches.job(*target)
    outcome = hub.batches.run(job, request.work(job), going=going)
    return 200, request.write_rows(job, outcome)


def unpacked(content: bytes, coding: bytes | None, most: int) -> bytes:
    """A body without its coding, if it has one. Raises PayloadTooLarge before more than so many bytes are unpacked."""
    if coding is None:
        return content
    packed = decoded(io.BytesIO(content), coding)
    parts: list[bytes] = []
    size = 0
    while part := packed.read1(READ_BYTES):
        parts.append(part)
        size += len(part)
        if size > most:
            raise too_large(most, None, "max_batch_bytes")
    return b"".join(parts)


def _entity(header: str) -> str:
    """The entity of a header, whose other characters than ASCII are percent-encoded."""
    if not header.isascii():
        raise InvalidRequest("X-Entity-Id: expected ASCII, with other characters percent-encoded")
    try:
        return unquote(header, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidRequest("X-Entity-Id: expected percent-encoded UTF-8") from error


def _wishes(asked: _core.InferRequest, header: Wishes) -> Wishes:
    """What the parameters say, and where they say nothing the headers. The most urgent priority is 1, and 0 is none."""
    urgency = min(asked.priority - 1, LAST_URGENCY) if asked.priority else header.urgency
    seconds = header.seconds
    if asked.timeout_us:
        seconds = min(asked.timeout_us / 1e6, MAX_TIMEOUT_MS / 1e3)
    return Wishes(header.kind, urgency, seconds)


def _headers(json_bytes: int, packing: bytes | None, identity: str) -> list[tuple[str, str]]:
    headers = [("content-type", "application/octet-stream" if json_bytes else "application/json")]
    if json_bytes:
        headers.append((JSON_LENGTH, str(json_bytes)))
    if packing is not None:
        headers.append(("content-encoding", packing.decode()))
    return [*headers, ("x-request-id", identity)]


async def _in_time(body: Awaitable[bytes], length: int) -> bytes:
    """A large body. Raises TimeoutError where it comes too slowly."""
    seconds = BODY_SECONDS + length / LEAST_BYTES_A_SECOND
    try:
        return await asyncio.wait_for(body, seconds)
    except TimeoutError:
        raise TimeoutError(f"expected the whole body within {seconds:.0f} seconds") from None


def _packed(content: bytes, packing: bytes) -> bytes:
    packer = encoder(packing)
    return bytes(packer.add(content)) + packer.end()


def _log(target: Target, identity: str, status: int, answer: bytes, seconds: float) -> None:
    log(
        "info",
        "infer",
        model=target[0],
        pinned=target[1],
        status=status,
        seconds=round(seconds, 6),
        request_id=identity,
        detail=msgspec.json.decode(answer)["error"] if status >= 400 else None,
    )
