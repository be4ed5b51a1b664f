"""What stands before Litestar: it answers predictions and inferences itself, hands batches to `Bulk`, and the rest on.

It speaks RSGI, by which `turnout serve` runs it on Granian, and ASGI, for other servers and for tests. A prediction has
a way of its own through either, without middleware, dependency injection or a response object: see benches/README.md.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable
from functools import partial
from time import perf_counter
from typing import Any, Final, NamedTuple

from granian.rsgi import ProtocolClosed  # pyright: ignore[reportPrivateImportUsage]

from turnout.api.asgi import (
    CLOSE,
    JSON,
    PROBLEM,
    RETRY,
    App,
    Gone,
    Headers,
    Message,
    Receive,
    Send,
    body,
    refuse,
    start,
    until_gone,
    whole_body,
)
from turnout.api.bulk import Bulk
from turnout.api.paths import Target, encoded, target_of
from turnout.api.predictions import Predictions, wishes_of
from turnout.api.rsgi import Exchange, Lifespan
from turnout.api.v2.errors import refusal
from turnout.api.v2.infer import Inferences
from turnout.errors import InvalidRequest, PayloadTooLarge, TooManyRequests
from turnout.log import log
from turnout.service import Turnout

KNOWN_PATHS = 4096
KNOWN_PATH_BYTES = (
    1500  # two percent-encoded names of the greatest length; longer ones would only fill memory
)
MAX_ID_BYTES = 128
RSGI_JSON: Final = (JSON[0].decode(), JSON[1].decode())
RSGI_PROBLEM: Final = (PROBLEM[0].decode(), PROBLEM[1].decode())


class Place(NamedTuple):
    """Where a path leads: to which model and version, in which dialect, and the bytes that a body may have."""

    target: Target
    infers: bool
    most: int


class Front:
    """Predictions inline, the rest through `app`.

    Args:
        app: the Litestar application; it gets paths as they came, still percent-encoded, so that `%2F` inside a
            model's name separates nothing.
    """

    def __init__(self, app: App, hub: Turnout) -> None:
        self.predictions = Predictions(hub)
        self.bulk = Bulk(hub)
        self.inferences = Inferences(hub, self.predictions, self.bulk)
        self._app = app
        self._hub = hub
        self._max_body = hub.settings.max_body_bytes
        self._places: dict[str | bytes, Place] = {}
        self._ids = itertools.count(1)
        self._id_prefix = os.urandom(6).hex()
        self._lifespan = Lifespan(self)

    # --- RSGI ---------------------------------------------------------------------------------------------------

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the service, before the server takes connections."""
        loop.run_until_complete(self._lifespan.startup())

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop the service, after the last request."""
        loop.run_until_complete(self._lifespan.shutdown())

    def __rsgi__(self, scope: Any, protocol: Any) -> Awaitable[None]:  # noqa: ANN401
        """Answer one request (RSGI 1.6)."""
        if scope.method == "POST":
            path = scope.path
            place = self._places.get(path) or self._place(path, encoded(path))
            if place is not None:
                headers = scope.headers
                length = headers.get("content-length")
                # What is too long, or of unknown length, or one too many goes a way with more care for its body.
                if (
                    length is not None
                    and length.isdigit()
                    and int(length) <= place.most
                    and self.predictions.in_flight < self.predictions.limit
                ):
                    if place.infers:
                        identity = self._identity(headers.get("x-request-id"))
                        return self.inferences.rsgi(place.target, headers, int(length), protocol, identity)
                    return self._predict_rsgi(place.target, scope, headers, protocol)
        return self._bridge(scope, protocol)

    async def _predict_rsgi(self, target: Target, scope: Any, headers: Any, protocol: Any) -> None:  # noqa: ANN401
        predictions = self.predictions
        predictions.in_flight += 1
        identity = self._identity(headers.get("x-request-id"))
        began = perf_counter() if predictions.logged else 0.0
        try:
            content = await predictions.patience.wait(protocol())
            get = headers.get
            kind = get("content-type")
            if kind is None and "content-type" in headers:
                kind = "\xff"  # RSGI keeps back what is not ASCII
            wishes = wishes_of(kind, get("priority"), get("x-timeout-ms"))
            reply = partial(_reply, protocol, identity)
            answer = await predictions.answer(target, content, wishes, protocol.client_disconnect, reply)
        except (Gone, ProtocolClosed):
            return
        except Exception as error:  # noqa: BLE001
            send = Exchange(scope, protocol, headers).send
            await refuse(self._hub, error, target, identity.encode(), send, *_about(error))
            return
        finally:
            predictions.in_flight -= 1
        if answer is not None:
            if predictions.logged:
                predictions.log(target, identity, *answer, perf_counter() - began)
            reply(*answer)

    async def _bridge(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401
        """Answer by way of ASGI."""
        headers = scope.headers
        exchange = Exchange(scope, protocol, headers)
        try:
            if "x-actor" in headers and headers.get("x-actor") is None:
                error = InvalidRequest("X-Actor: expected ASCII, with other characters percent-encoded")
                identity = self._identity(headers.get("x-request-id"))
                if scope.path.startswith("/v2/"):
                    status, sent, answer = refusal(self._hub, error, ("", None), identity)
                    protocol.response_bytes(status, [*sent, ("x-request-id", identity)], answer)
                else:
                    await refuse(self._hub, error, ("", None), identity.encode(), exchange.send)
            else:
                await self(exchange.scope, exchange.receive, exchange.send)
        except Gone:
            return
        finally:
            exchange.close()

    # --- ASGI ---------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3.0)."""
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        identity = self._identity(None if given is None else given.decode("latin-1")).encode()
        if scope["method"] == "POST":
            path = scope["raw_path"]
            place = self._places.get(path) or self._place(path, path)
            if place is not None:
                answer = self.inferences.asgi if place.infers else self._predict
                await answer(place.target, headers, identity, receive, send)
                return
            target = target_of(path, b"batch")
            if target is not None:
                await self.bulk.answer(target, scope["query_string"], headers, identity, receive, send)
                return
        await self._pass_on(scope, identity, receive, send)

    async def _predict(
        self, target: Target, headers: dict[bytes, bytes], identity: bytes, receive: Receive, send: Send
    ) -> None:
        predictions = self.predictions
        if predictions.in_flight >= predictions.limit:
            await refuse(self._hub, predictions.busy(), target, identity, send, RETRY)
            return
        predictions.in_flight += 1
        began = perf_counter() if predictions.logged else 0.0
        try:
            content = await predictions.patience.wait(
                whole_body(headers, receive, self._max_body, "max_body_bytes")
            )
            # After the body: an HTTP/2 client may take an answer to what it still sends for a broken stream.
            named = (b"content-type", b"priority", b"x-timeout-ms")
            found = (
                None if (value := headers.get(name)) is None else value.decode("latin-1") for name in named
            )
            answers: list[tuple[int, bytes]] = []
            answer = await predictions.answer(
                target,
                content,
                wishes_of(*found),
                lambda: until_gone(receive),
                lambda status, answer: answers.append((status, answer)),
            )
            status, content = answers[0] if answer is None else answer
        except Gone:
            return
        except Exception as error:  # noqa: BLE001
            await refuse(self._hub, error, target, identity, send, *_about(error))
            return
        finally:
            predictions.in_flight -= 1
        if predictions.logged:
            predictions.log(target, identity.decode(), status, content, perf_counter() - began)
        await send(start(status, [JSON if status < 400 else PROBLEM, (b"x-request-id", identity)]))
        await send(body(content))

    # --- both ---------------------------------------------------------------------------------------------------

    def _place(self, key: str | bytes, path: bytes) -> Place | None:
        """Where a prediction's path leads, remembered under the path as it came; None for any other path."""
        target = target_of(path, b"predict")
        place = None if target is None else Place(target, infers=False, most=self._max_body)
        if place is None and (target := target_of(path.removesuffix(b"/"), b"infer", b"v2")) is not None:
            place = Place(target, infers=True, most=self.inferences.most)
        if place is not None and len(path) <= KNOWN_PATH_BYTES:
            if len(self._places) >= KNOWN_PATHS:
                self._places.clear()
            self._places[key] = place
        return place

    async def _pass_on(self, scope: Message, identity: bytes, receive: Receive, send: Send) -> None:
        """Let Litestar answer, with the path as it came, and our request id on the answer."""
        method = scope["method"]
        head = method == "HEAD"
        scope["path"] = scope["raw_path"].decode("latin-1")
        scope["method"] = "GET" if head else method
        scope.setdefault("state", {})["request_id"] = identity.decode()

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                _log_change(scope, message)
                message["headers"] = [*message["headers"], (b"x-request-id", identity)]
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app(scope, receive, stamped)

    async def _not_http(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            sweeping = asyncio.ensure_future(self.predictions.patience.sweep_for_ever())
            try:
                await self._app(scope, receive, send)
            finally:
                sweeping.cancel()
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _identity(self, given: str | None) -> str:
        """The caller's request id where it is one (1 to 128 printable ASCII characters), else a new one."""
        if given and len(given) <= MAX_ID_BYTES and given.isascii() and given.isprintable():
            return given
        return f"{self._id_prefix}-{next(self._ids):x}"


def _reply(protocol: Any, identity: str, status: int, answer: bytes) -> None:  # noqa: ANN401
    kind = RSGI_JSON if status < 400 else RSGI_PROBLEM
    protocol.response_bytes(status, [kind, ("x-request-id", identity)], answer)


def _about(error: Exception) -> Headers:
    """The headers of a refusal: after a body that was not read to its end the connection is of no more use."""
    if isinstance(error, TooManyRequests):
        return [RETRY]
    return [CLOSE] if isinstance(error, PayloadTooLarge | TimeoutError) else []


def _log_change(scope: Message, answer: Message) -> None:
    """One line for each change that was made; the audit log has what it changed, under its generation."""
    generation = dict(answer["headers"]).get(b"turnout-generation")
    if generation is not None:
        state = scope["state"]
        log(
            "info",
            "change",
            method=scope["method"],
            path=scope["path"],
            actor=state.get("actor"),
            generation=int(generation),
            status=answer["status"],
            request_id=state["request_id"],
        )
