"""The ASGI callable in front of Litestar: it answers predictions itself, hands batches to `Bulk`, and passes the rest on.

Measured for the issue on 2 cores with a boosted-tree model: 284 us of CPU a request through a Litestar handler, 145 us
through a plain ASGI function. So this way has no middleware, no dependency injection and no response object.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from time import perf_counter
from typing import Any

import msgspec

from turnout.api.asgi import (
    CLOSE,
    JSON,
    PROBLEM,
    RETRY,
    App,
    Gone,
    Message,
    Receive,
    Send,
    Target,
    body,
    refuse,
    start,
    target_of,
    until_gone,
    whole_body,
)
from turnout.api.bulk import Bulk
from turnout.api.patience import Patience
from turnout.errors import PayloadTooLarge, TooManyRequests, UnsupportedMediaType
from turnout.log import log
from turnout.service import Turnout

KNOWN_PATHS = 4096
KNOWN_PATH_BYTES = (
    1500  # two percent-encoded names of the greatest length; longer ones would only fill memory
)
MAX_ID_BYTES = 128


class Front:
    """Predictions inline, the rest through `app`.

    Args:
        app: the Litestar application; it gets paths as they came, still percent-encoded, so that `%2F` inside a
            model's name separates nothing.
    """

    def __init__(self, app: App, hub: Turnout) -> None:
        settings = hub.settings
        self.in_flight = 0
        self.bulk = Bulk(hub)
        self._app = app
        self._hub = hub
        self._limit = settings.max_in_flight
        self._max_body = settings.max_body_bytes
        self._log_predictions = settings.log_predictions
        self._targets: dict[bytes, Target] = {}
        self._ids = itertools.count(1)
        self._id_prefix = os.urandom(6).hex()
        self._patience = Patience()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3.0)."""
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
            return
        headers = dict(scope["headers"])
        identity = self._identity(headers.get(b"x-request-id"))
        if scope["method"] == "POST":
            path = scope["raw_path"]
            target = self._targets.get(path) or self._target(path)
            if target is not None:
                await self._predict(target, headers, identity, receive, send)
                return
            target = target_of(path, b"batch")
            if target is not None:
                await self.bulk.answer(target, scope["query_string"], headers, identity, receive, send)
                return
        await self._pass_on(scope, identity, receive, send)

    # --- predictions --------------------------------------------------------------------------------------------

    async def _predict(
        self, target: Target, headers: dict[bytes, bytes], identity: bytes, receive: Receive, send: Send
    ) -> None:
        if self.in_flight >= self._limit:
            await refuse(self._hub, _busy(self._limit), target, identity, send, RETRY)
            return
        self.in_flight += 1
        started = perf_counter() if self._log_predictions else 0.0
        try:
            content = await self._patience.wait(
                whole_body(headers, receive, self._max_body, "max_body_bytes")
            )
            # After the body: an HTTP/2 client may take an answer to what it still sends for a broken stream.
            kind = headers.get(b"content-type")
            if kind is not None and kind != b"application/json":
                check_json(kind)
            if self._hub.needs_pool(*target):
                status, answer = await self._in_pool(target, content, receive)
            else:
                status, answer = self._hub.predict_bytes(*target, content)
        except Gone:
            return
        except Exception as error:  # noqa: BLE001
            unread = isinstance(error, PayloadTooLarge | TimeoutError)
            await refuse(self._hub, error, target, identity, send, *([CLOSE] if unread else []))
            return
        finally:
            self.in_flight -= 1
        if self._log_predictions:
            self._log(target, identity, status, answer, perf_counter() - started)
        kind = JSON if status < 400 else PROBLEM
        await send(start(status, [kind, (b"x-request-id", identity)]))
        await send(body(answer))

    async def _in_pool(self, target: Target, content: bytes, receive: Receive) -> tuple[int, bytes]:
        """Run a slow model in a thread. If the client goes while the job waits for one, the job is dropped."""
        job = self._hub.pool.submit(self._hub.predict_bytes, *target, content)
        answer = asyncio.wrap_future(job)
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and job.cancel():
                raise Gone
            # A job that runs can not be stopped: it keeps its place until it ends, whether somebody listens or not.
            return await answer
        finally:
            gone.cancel()

    def _target(self, path: bytes) -> Target | None:
        """Model and version of a prediction's path, remembered by its bytes; None for any other path."""
        target = target_of(path, b"predict")
        if target is not None and len(path) <= KNOWN_PATH_BYTES:
            if len(self._targets) >= KNOWN_PATHS:
                self._targets.clear()
            self._targets[path] = target
        return target

    def _log(self, target: Target, identity: bytes, status: int, answer: bytes, seconds: float) -> None:
        said: dict[str, Any] = msgspec.json.decode(answer)
        shown = ("version", "reason", "prediction_id") if status < 400 else ("code", "detail")
        log(
            "info",
            "predict",
            model=target[0],
            pinned=target[1],
            status=status,
            seconds=round(seconds, 6),
            request_id=identity.decode(),
            **{name: said[name] for name in shown},
        )

    # --- everything else ----------------------------------------------------------------------------------------

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
            sweeping = asyncio.ensure_future(self._patience.sweep_for_ever())
            try:
                await self._app(scope, receive, send)
            finally:
                sweeping.cancel()
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _identity(self, given: bytes | None) -> bytes:
        """The caller's request id where it is one (1 to 128 printable ASCII characters), else a new one."""
        if given and len(given) <= MAX_ID_BYTES and given.isascii() and given.decode("ascii").isprintable():
            return given
        return b"%s-%x" % (self._id_prefix.encode(), next(self._ids))


def check_json(kind: bytes) -> None:
    """Raise UnsupportedMediaType unless a Content-Type is that of JSON, with or without parameters."""
    if kind.partition(b";")[0].strip().lower() != b"application/json":
        shown = kind.decode("latin-1")
        raise UnsupportedMediaType(f"expected Content-Type application/json, found {shown!r}")


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


def _busy(limit: int) -> TooManyRequests:
    return TooManyRequests(
        f"{limit} requests are in flight on this worker, as many as may be; try again in a second"
    )
