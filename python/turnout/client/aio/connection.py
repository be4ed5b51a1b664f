"""One server over HTTP: its connections, and requests that are sent again where that is safe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from turnout.client.retry import READ, WRITE, Attempts, Rule
from turnout.client.turns import AsyncTurns
from turnout.client.wire import (
    JSON,
    AsyncMade,
    Upload,
    change_of,
    decode,
    error_of,
    headers_of,
    path_of,
    seconds_of,
    strange,
    unreachable,
    url_of,
)
from turnout.domain import Change
from turnout.errors import InvalidRequest
from turnout.plain import to_json

T = TypeVar("T")
LOG = logging.getLogger("turnout.client")


class AsyncConnection:
    """What the verbs have in common: a pool of connections to one server, who asks, and how often.

    Args:
        url: such as `http://127.0.0.1:8000`.
        timeout: seconds without a sign of the server, and for all tries of a request: registering a version runs it
            first, and a change waits until all workers serve it.
        actor: who makes changes, for the audit log.
        retries: how often a request is sent again where that is safe (`turnout.client.retry` has the rule).
        max_connections: requests under way at once, each on a connection of its own; others wait. An export with
            model files is not counted once it has begun to arrive.
        keep_alive: seconds for which a connection that nobody uses stays open.
        transport: what sends requests in place of the pool, such as an `httpx.MockTransport` in tests.

    Raises InvalidRequest for what is no URL of a server, and for a number that is too small or too large.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 120.0,
        actor: str | None = None,
        retries: int = 2,
        max_connections: int = 100,
        keep_alive: float = 5.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if retries < 0 or max_connections < 1:
            raise InvalidRequest(
                f"expected retries of at least 0 and max_connections of at least 1, found {retries} and "
                f"{max_connections}"
            )
        self._timeout = seconds_of(timeout)
        self._http = httpx.AsyncClient(
            base_url=url_of(url),
            timeout=timeout,
            headers=headers_of(actor, None),
            # As many as there are turns; see there why this is no limit of the pool.
            limits=httpx.Limits(keepalive_expiry=keep_alive),
            transport=transport,
        )
        self._turns = AsyncTurns(max_connections)
        self._retries = retries
        self._made = AsyncMade()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; what is asked later is refused."""
        await self._turns.aclose()
        await self._http.aclose()

    @property
    def last_change(self) -> Change | None:
        """Where the last change has arrived that this thread, or task of an event loop, made through this client."""
        return self._made.change

    # --- requests -----------------------------------------------------------------------------------------------

    async def _get(self, path: str, kind: type[T], **parameters: Any) -> T:  # noqa: ANN401
        return decode(await self._send("GET", path, rule=READ, params=parameters), kind)

    async def _post(
        self,
        model: str,
        rest: list[str],
        body: dict[str, Any],
        kind: type[T],
        actor: str | None,
        revision: int | None,
    ) -> T:
        answer = await self._change("POST", path_of(model, *rest), body, headers=headers_of(actor, revision))
        return decode(answer, kind)

    async def _put(
        self, path: str, body: dict[str, Any], kind: type[T], actor: str | None, revision: int | None
    ) -> T:
        return decode(await self._change("PUT", path, body, headers=headers_of(actor, revision)), kind)

    async def _delete(
        self, path: str, reason: str, actor: str | None, revision: int | None
    ) -> httpx.Response:
        headers = headers_of(actor, revision)
        return await self._change("DELETE", path, params={"reason": reason}, headers=headers)

    async def _change(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401
        **arguments: Any,  # noqa: ANN401
    ) -> httpx.Response:
        """Send a change. Raises ServerUnreachable where the answer does not say which generation has it."""
        answer = await self._send(method, path, body, **arguments)
        if "turnout-generation" not in answer.headers:
            raise strange(f"{answer.status_code} without Turnout-Generation", answer.url)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401
        *,
        rule: Rule = WRITE,
        stream: bool = False,
        headers: Mapping[bytes, bytes] | None = None,
        **arguments: Any,  # noqa: ANN401
    ) -> httpx.Response:
        """Send a request as often as the rule allows; a stream is to be read and closed by who asks for it."""
        if body is not None:
            headers = {**(headers or {}), b"Content-Type": JSON}
            arguments["content"] = body if isinstance(body, bytes) else to_json(body)
        attempts = Attempts(rule, self._retries, self._timeout)
        while True:
            try:
                answer = await self._turns.run(
                    attempts.seconds_left,
                    lambda: self._answer(method, path, headers, attempts, arguments, stream=stream),
                )
            except httpx.HTTPError as error:
                wait = attempts.after_failure(error)
                if wait is None:
                    raise unreachable(error, self._http.base_url, attempts.number) from error
                why = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    break
                if not answer.is_error:
                    raise strange(f"{answer.status_code} {answer.reason_phrase}", answer.url)
                wait = attempts.after_answer(answer.status_code, answer.headers)
                if wait is None:
                    raise error_of(answer)
                why = str(answer.status_code)
            LOG.info("%s %s: %s; it is sent again in %.3f s", method, path, why, wait)
            await asyncio.sleep(wait)
        if "turnout-generation" in answer.headers:
            self._made.change = change_of(answer.headers)
        return answer

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[bytes, bytes] | None,
        seconds: float,
        arguments: Mapping[str, Any],
    ) -> httpx.Request:
        try:
            request = self._http.build_request(method, path, headers=headers, timeout=seconds, **arguments)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidRequest(f"this cannot be asked of a server: {error}") from error
        body = request.stream
        if isinstance(body, httpx.SyncByteStream) and not isinstance(body, httpx.ByteStream):
            request.stream = Upload(body)
        return request

    async def _answer(
        self,
        method: str,
        path: str,
        headers: Mapping[bytes, bytes] | None,
        attempts: Attempts,
        arguments: Mapping[str, Any],
        *,
        stream: bool,
    ) -> httpx.Response:
        # Built once it is its turn: the time that it waited for that is gone.
        request = self._request(method, path, headers, attempts.seconds_left, arguments)
        answer = await self._http.send(request, stream=stream)
        if stream and not answer.is_success:
            await answer.aread()
        return answer
