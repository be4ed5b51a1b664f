"""Batches over HTTP: what comes and goes in which form, and the thread that answers it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from urllib.parse import parse_qs

from turnout.api.asgi import (
    CLOSE,
    RETRY,
    Gone,
    Headers,
    Receive,
    Send,
    announced_length,
    body_parts,
    refuse,
    too_large,
    until_gone,
)
from turnout.api.intake import Intake, Outlet, Parts, patient
from turnout.api.media import answer_coding, answer_kind, decoded, encoder, kind_of
from turnout.api.paths import Target
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
PART_BYTES = 1 << 18


class Order:
    """What the head of a request asks for. Raises what is wrong with it."""

    def __init__(self, target: Target, query: bytes, headers: dict[bytes, bytes]) -> None:
        self.asked = Asked(*target, on_error_of(query))
        self.kind = kind_of(headers.get(b"content-type"))
        self.answer = answer_kind(self.kind, headers.get(b"accept"))
        self.coding = headers.get(b"content-encoding")
        decoded(Parts([]), self.coding)
        self.packing = answer_coding(headers.get(b"accept-encoding"))
        self.length = announced_length(headers)

    def headers(self, identity: bytes, packing: bytes | None) -> Headers:
        """The headers of the answer."""
        found = [(b"content-type", self.answer.encode()), (b"x-request-id", identity)]
        return [*found, (b"content-encoding", packing)] if packing else found


class Slot:
    """The place of a batch, or of a large body, among those that are answered at once; free when the last of its answer is on its way.

    `read` says whether the whole body was read.
    """

    def __init__(self, bulk: Bulk) -> None:
        self._bulk: Bulk | None = bulk
        bulk.in_flight += 1
        self.read = False

    def free(self) -> None:
        """Idempotent."""
        if self._bulk is not None:
            self._bulk.in_flight -= 1
            self._bulk = None


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
        try:
            slot = self.slot()
        except TooManyRequests as error:
            await refuse(self._hub, error, target, identity, send, RETRY, CLOSE)
            return
        try:
            order = Order(target, query, headers)
            if order.kind == JSON or 0 <= order.length <= SMALL_BYTES:
                await self._whole(order, headers, identity, slot, receive, send)
            else:
                await self._stream(order, identity, slot, receive, send)
        except Gone:
            return
        except Exception as error:  # noqa: BLE001
            slot.free()
            more: Headers = [] if slot.read else [CLOSE]
            if isinstance(error, UnsupportedMediaType):
                more.append((b"accept-encoding", b"gzip, deflate, zstd"))
            await refuse(self._hub, error, target, identity, send, *more)
        finally:
            slot.free()

    def slot(self) -> Slot:
        """A place among those that are answered at once. Raises TooManyRequests."""
        if self.in_flight >= self._most:
            raise TooManyRequests(
                f"{self._most} batches are being answered on this worker, as many as may be; try again"
            )
        return Slot(self)

    # --- in one piece -------------------------------------------------------------------------------------------

    async def _whole(
        self,
        order: Order,
        headers: dict[bytes, bytes],
        identity: bytes,
        slot: Slot,
        receive: Receive,
        send: Send,
    ) -> None:
        content = Parts(
            await body_parts(headers, lambda: patient(receive), self._document.document, "max_batch_bytes")
        )
        slot.read = True
        answer, packing = await self._in_thread(
            lambda going: self._document_of(order, content, going), receive
        )
        outlet = Outlet(send, order.headers(identity, packing))
        while len(answer) > PART_BYTES:
            await outlet.send(answer[:PART_BYTES])
            answer = answer[PART_BYTES:]
        slot.free()
        await outlet.send(answer, more=False)

    def _document_of(
        self, order: Order, content: Body, going: Callable[[], bool]
    ) -> tuple[memoryview, bytes | None]:
        """The answer, and its coding."""
        pieces = pieces_of(order.kind, decoded(content, order.coding), self._document)
        writer = writer_of(order.answer)
        found = list(
            answers(self._hub.batches, order.asked, pieces, writer, most=self._document.rows, going=going)
        )
        packing = order.packing if sum(map(len, found)) >= WORTH_PACKING else None
        if packing is not None:
            packer = encoder(packing)
            found = [*map(packer.add, found), packer.end()]
        found = [part for part in found if len(part)]
        return memoryview(found[0] if len(found) == 1 else b"".join(found)), packing

    async def _in_thread(
        self, work: Callable[[Callable[[], bool]], tuple[memoryview, bytes | None]], receive: Receive
    ) -> tuple[memoryview, bytes | None]:
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

    async def _stream(self, order: Order, identity: bytes, slot: Slot, receive: Receive, send: Send) -> None:
        if order.length > self._stream_bytes:
            raise too_large(self._stream_bytes, order.length, "max_stream_bytes")
        intake = Intake()
        outlet = Outlet(send, order.headers(identity, order.packing))
        pump = asyncio.ensure_future(intake.pump(receive))
        working = asyncio.wrap_future(self._hub.batch_pool.submit(self._flow, order, intake, outlet))
        try:
            await asyncio.wait({working})
        finally:
            gone = intake.gone
            intake.abandon(Gone())
            pump.cancel()
        error = working.exception()
        if error is None:
            slot.free()
            await outlet.send(b"", more=False)
            return
        late = isinstance(error, TimeoutError)
        if gone and not late:
            raise Gone
        if not outlet.begun or isinstance(error, Gone):
            raise error
        if late:
            error = InvalidRequest(str(error))
        self._broken_off(error, order, identity)
        await intake.drain(receive)

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
            outlet.write(packer.end())
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
