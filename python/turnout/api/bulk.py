"""Batches over HTTP: what comes and goes in which form, and the thread that answers it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from urllib.parse import parse_qs

from turnout.api.asgi import (
    RETRY,
    Gone,
    Headers,
    Receive,
    Send,
    Target,
    announced_length,
    body,
    refuse,
    start,
    too_large,
    until_gone,
    whole_body,
)
from turnout.api.intake import Intake, Outlet, patient
from turnout.api.media import answer_coding, answer_kind, decoded, encoder, kind_of, packed
from turnout.api.problems import unexpected
from turnout.domain import OnError
from turnout.errors import InvalidRequest, TooManyRequests, TurnoutError, UnsupportedMediaType
from turnout.ipc import Body
from turnout.log import log
from turnout.service import Turnout
from turnout.streams import JSON, Asked, Limits, answers, pieces_of, writer_of

SMALL_BYTES = 1 << 20
"""Bodies up to here are answered in one piece whatever they hold: an error of any row is an error of the request then."""
WORTH_PACKING = 1024


class Order:
    """What the head of a request asks for. Raises what is wrong with it."""

    def __init__(self, target: Target, query: bytes, headers: dict[bytes, bytes]) -> None:
        self.asked = Asked(*target, on_error_of(query))
        self.kind = kind_of(headers.get(b"content-type"))
        self.answer = answer_kind(self.kind, headers.get(b"accept"))
        self.coding = headers.get(b"content-encoding")
        decoded(io.BytesIO(), self.coding)
        self.packing = answer_coding(headers.get(b"accept-encoding"))
        self.length = announced_length(headers)

    def headers(self, identity: bytes, packing: bytes | None) -> Headers:
        """The headers of the answer."""
        found = [(b"content-type", self.answer.encode()), (b"x-request-id", identity)]
        return [*found, (b"content-encoding", packing)] if packing else found


class Bulk:
    """Answers batches. A document is read whole, and lines and record batches are answered while they arrive."""

    def __init__(self, hub: Turnout) -> None:
        settings = hub.settings
        self.in_flight = 0
        self._hub = hub
        self._most = settings.max_batches
        self._document = Limits(settings.max_batch_rows, settings.max_batch_bytes, settings.max_body_bytes)
        self._stream_rows = settings.max_stream_rows
        self._stream_bytes = settings.max_stream_bytes

    async def answer(
        self,
        target: Target,
        query: bytes,
        headers: dict[bytes, bytes],
        identity: bytes,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a batch (ASGI)."""
        if self.in_flight >= self._most:
            full = f"{self._most} batches are being answered on this worker, as many as may be; try again"
            await refuse(self._hub, TooManyRequests(full), target, identity, send, RETRY)
            return
        self.in_flight += 1
        try:
            order = Order(target, query, headers)
            if order.kind == JSON or 0 <= order.length <= SMALL_BYTES:
                await self._whole(order, headers, identity, receive, send)
            else:
                await self._stream(order, identity, receive, send)
        except Gone:
            return
        except UnsupportedMediaType as error:
            await refuse(self._hub, error, target, identity, send, (b"accept-encoding", b"gzip, zstd"))
        except Exception as error:  # noqa: BLE001
            await refuse(self._hub, error, target, identity, send)
        finally:
            self.in_flight -= 1

    # --- in one piece -------------------------------------------------------------------------------------------

    async def _whole(
        self, order: Order, headers: dict[bytes, bytes], identity: bytes, receive: Receive, send: Send
    ) -> None:
        content = await whole_body(
            headers, lambda: patient(receive), self._document.document, "max_batch_bytes"
        )
        answer, packing = await self._in_thread(
            lambda going: self._document_of(order, io.BytesIO(content), going), receive
        )
        await send(start(200, order.headers(identity, packing)))
        await send(body(answer))

    def _document_of(
        self, order: Order, content: Body, going: Callable[[], bool]
    ) -> tuple[bytes, bytes | None]:
        """The answer, and its coding."""
        pieces = pieces_of(order.kind, decoded(content, order.coding), self._document)
        writer = writer_of(order.answer)
        found = answers(self._hub.batches, order.asked, pieces, writer, most=self._document.rows, going=going)
        answer = b"".join(found)
        if order.packing is None or len(answer) < WORTH_PACKING:
            return answer, None
        return packed(order.packing, answer), order.packing

    async def _in_thread(
        self, work: Callable[[Callable[[], bool]], tuple[bytes, bytes | None]], receive: Receive
    ) -> tuple[bytes, bytes | None]:
        """Run a batch in a thread, which ends after the chunk that it is at when the client goes."""
        abandoned = threading.Event()
        answer = asyncio.wrap_future(self._hub.batch_pool.submit(work, lambda: not abandoned.is_set()))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                abandoned.set()
                await asyncio.wait({answer})
                answer.exception()
                raise Gone
            return await answer
        finally:
            abandoned.set()
            gone.cancel()

    # --- while it arrives ---------------------------------------------------------------------------------------

    async def _stream(self, order: Order, identity: bytes, receive: Receive, send: Send) -> None:
        if order.length > self._stream_bytes:
            raise too_large(self._stream_bytes, order.length, "max_stream_bytes")
        intake = Intake()
        outlet = Outlet(send, order.headers(identity, order.packing))
        pump = asyncio.ensure_future(intake.pump(receive))
        working = asyncio.wrap_future(self._hub.batch_pool.submit(self._flow, order, intake, outlet))
        try:
            await asyncio.wait({working})
        finally:
            intake.abandon(Gone())
            pump.cancel()
        error = working.exception()
        if error is not None and (not outlet.begun or isinstance(error, Gone)):
            raise error
        if error is not None:
            self._broken_off(error, order, identity)

    def _broken_off(self, error: BaseException, order: Order, identity: bytes) -> None:
        """The answer was begun and is not ended, so that nobody takes what has come for all of it."""
        about = {"request_id": identity.decode(), "model": order.asked.model}
        if isinstance(error, TurnoutError):
            self._hub.telemetry.reject(error.code)
            log("warning", "batch_broken_off", code=error.code, detail=error.detail, row=error.row, **about)
        else:
            self._hub.telemetry.reject("internal")
            unexpected(error, **about)

    def _flow(self, order: Order, intake: Intake, outlet: Outlet) -> None:
        """Answer piece by piece (in a thread)."""
        packer = encoder(order.packing)
        writer = writer_of(order.answer)
        content = Counted(decoded(intake, order.coding), self._stream_bytes)
        pieces = pieces_of(order.kind, content, self._document)
        try:
            for part in answers(
                self._hub.batches,
                order.asked,
                pieces,
                writer,
                most=self._stream_rows,
                going=lambda: not intake.gone,
            ):
                outlet.write(packer.add(part))
            outlet.write(packer.end(), more=False)
        except TurnoutError as error:
            last = writer.failed(error) if outlet.begun else b""
            if last:
                outlet.write(packer.add(last))
            raise


class Counted:
    """A body of which no more than so many bytes are read."""

    def __init__(self, inner: Body, most: int) -> None:
        self._inner = inner
        self._most = most
        self._size = 0

    def read1(self, size: int = -1, /) -> bytes:
        """As the body does. Raises PayloadTooLarge."""
        part = self._inner.read1(size)
        self._size += len(part)
        if self._size > self._most:
            raise too_large(self._most, None, "max_stream_bytes")
        return part


def on_error_of(query: bytes) -> OnError:
    """The query parameter. Raises InvalidRequest."""
    found = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("on_error", ["fail"])
    if found == ["fail"]:
        return "fail"
    if found == ["skip"]:
        return "skip"
    raise InvalidRequest(f"expected on_error fail or skip, found {', '.join(found)[:60]!r}")
