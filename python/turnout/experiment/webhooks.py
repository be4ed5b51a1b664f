"""Tell receivers over HTTP what a controller decided, signed as of the Standard Webhooks specification.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md, its sections
"Signature scheme", "Webhook headers" and "Deliverability and reliability".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import random
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NoReturn

import httpx
import msgspec

from turnout.errors import InvalidRequest
from turnout.experiment.signing import IDENTITY, TIMESTAMP, signature
from turnout.log import log

MAX_URL = 2000
RETRIED = frozenset({408, 429})
"""Statuses below 500 that promise another answer later."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts at most, whatever the backoff has grown to or `Retry-After` asks for."""
READ_BYTES = 16 * 1024
"""How much of an answer is read: enough that a usual one ends properly; its content means nothing to us."""


def check_url(url: str) -> str:
    """The url, if webhooks can go there.

    Raises:
        InvalidRequest: says what is expected. What was found is not repeated where it may hold a secret.
    """
    if len(url) > MAX_URL:
        raise InvalidRequest(f"a webhook url has at most {MAX_URL} characters, found {len(url)}")
    if not url.isprintable() or " " in url:
        raise InvalidRequest("a webhook url has neither spaces nor control characters; percent-encode them")
    try:
        parsed = httpx.URL(url)  # what sends it reads it: no two parsers can differ
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidRequest(f"a webhook url is expected to be like https://host/path: {error}") from error
    if parsed.scheme not in {"http", "https"}:
        raise InvalidRequest(f"a webhook url begins with http:// or https://, found {parsed.scheme!r}")
    if not parsed.host:
        raise InvalidRequest("a webhook url names a host, as in https://host/path; found none")
    if parsed.userinfo:
        raise InvalidRequest("a webhook url holds no credentials; receivers check the signature instead")
    if "#" in url:
        raise InvalidRequest(
            "a webhook url has no fragment, as it is never sent; leave out '#' and what follows"
        )
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise InvalidRequest(f"the port of a webhook url is 1 to 65535, found {parsed.port}")
    return url


class _Delivery(msgspec.Struct, frozen=True, order=True):
    """One event on its way to one receiver. Ordered by `due`, then by age; no two of a receiver share a number."""

    due: float
    number: int
    identity: str
    body: bytes
    attempt: int = 1


class _Outcome(msgspec.Struct, frozen=True):
    """What came of an attempt; `after` is how many seconds the receiver wants to be left alone."""

    delivered: bool
    retry: bool
    detail: str
    after: float = 0.0


class _Receiver:
    """One url and what waits for it: a heap of its own, so that a dead receiver pushes out nobody else's events."""

    def __init__(self, url: str) -> None:
        self.url = url
        parsed = httpx.URL(url)
        self.name = (
            f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"  # paths and queries often hold a token
        )
        self.waiting: list[_Delivery] = []
        self.busy: _Delivery | None = None
        self.wake = asyncio.Event()


class Webhooks:
    """Sends events to every url, from one background thread that begins with the first event.

    A receiver gets one request at a time, and none waits for another. Order is not kept: an event that is tried again
    may come after later ones, and one may come twice, with the same `webhook-id`.

    Args:
        urls: the receivers; see `check_url`. One named twice is one.
        secret: the key that signs, 24 to 64 random bytes as of the specification.
        attempts: how often an event is tried for each receiver, the first time included.
        timeout: seconds that one attempt may take in all.
        waiting: events that wait for each receiver; when there is one more, the oldest is dropped.
        backoff: seconds before the second attempt; each further pause is twice as long, less up to half by chance.

    Raises:
        InvalidRequest: for a url or a number that cannot be, or an empty secret.
    """

    def __init__(
        self,
        urls: Sequence[str],
        secret: bytes,
        *,
        attempts: int = 5,
        timeout: float = 5.0,
        waiting: int = 256,
        backoff: float = 0.5,
    ) -> None:
        if attempts < 1 or waiting < 1 or timeout <= 0 or backoff < 0:
            raise InvalidRequest(
                "webhooks want at least 1 attempt, 1 place to wait, a timeout above 0 and a backoff of 0 or more; "
                f"found {attempts}, {waiting}, {timeout} and {backoff}"
            )
        signature(secret, "", 0, b"")  # refuses now what could not sign later
        self._receivers = tuple(_Receiver(url) for url in dict.fromkeys(map(check_url, urls)))
        self._secret = secret
        self._attempts = attempts
        self._timeout = timeout
        self._bound = waiting
        self._backoff = backoff
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        # What follows changes under that lock only, and so does the state of the receivers.
        self._thread: threading.Thread | None = None
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._closed = self._stopping = False
        self._sent = self._failed = self._dropped = 0

    @property
    def sent(self) -> int:
        """Deliveries that a receiver took; an event for two receivers is two deliveries."""
        with self._changed:
            return self._sent

    @property
    def failed(self) -> int:
        """Deliveries that were given up: refused, or tried as often as allowed."""
        with self._changed:
            return self._failed

    @property
    def dropped(self) -> int:
        """Deliveries that were not tried to the end, as too many waited or `close` came first."""
        with self._changed:
            return self._dropped

    def start(self) -> None:
        """Begin to deliver. `send` does so by itself; here a thread that cannot be had raises. Idempotent."""
        with self._changed:
            self._start()

    def send(self, event: Mapping[str, Any]) -> None:
        """Deliver the event, as it is now, to every receiver some time soon. Never blocks and never raises.

        Its `id`, where it has one, tells repeats apart from new events; else it gets one, in the header only.
        """
        try:
            body = msgspec.json.encode(dict(event), enc_hook=_plain)
            identity = _identity(event.get("id"))
            with self._changed:
                lost = self._enqueue(identity, body)
        except Exception as error:  # noqa: BLE001 - a decision stands, whether or not somebody can be told
            with self._changed:
                self._failed += len(self._receivers)
            log("error", "webhook_failed", attempts=0, detail=repr(error))
            return
        for receiver in lost:
            log("warning", "webhooks_dropped", receiver=receiver, waiting=self._bound)

    def close(self, timeout: float) -> None:
        """Deliver what can still be delivered in so many seconds, and end; the rest is dropped. Idempotent."""
        end = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            thread = self._thread
            if thread is not None and thread.is_alive():
                # A part of the time is kept to take the connections down.
                last = end - min(0.25, timeout / 4)
                self._changed.wait_for(lambda: self._idle_until(last), max(0.0, last - time.monotonic()))
            self._stopping = True
            if self._running is not None:
                loop, task = self._running
                loop.call_soon_threadsafe(task.cancel)
        if thread is not None:
            thread.join(max(0.0, end - time.monotonic()))
        self._abandon()

    def _abandon(self) -> None:
        """Count what nobody will deliver any more."""
        with self._changed:
            left = sum(len(each.waiting) + (each.busy is not None) for each in self._receivers)
            for receiver in self._receivers:
                receiver.waiting, receiver.busy = [], None
            self._dropped += left
        if left:
            log("warning", "webhooks_abandoned", deliveries=left)

    def _idle_until(self, moment: float) -> bool:
        """Whether nothing is on its way and nothing is due before that moment."""
        return all(
            each.busy is None and not (each.waiting and each.waiting[0].due < moment)
            for each in self._receivers
        )

    def _start(self) -> None:
        # A thread that ended, by a fault or in the parent of a fork, is replaced.
        if self._closed or not self._receivers or (self._thread is not None and self._thread.is_alive()):
            return
        thread = threading.Thread(target=self._run, name="turnout-webhooks", daemon=True)
        thread.start()
        self._thread = thread

    def _enqueue(self, identity: str, body: bytes) -> list[str]:
        """Let it wait for each receiver; the receivers that lost their oldest event for it."""
        if self._closed:
            self._dropped += len(self._receivers)
            return []
        self._start()
        delivery = _Delivery(time.monotonic(), next(self._numbers), identity, body)
        lost = [each.name for each in self._receivers if self._push(each, delivery)]
        if self._running is not None:
            loop, _ = self._running
            loop.call_soon_threadsafe(self._wake)
        return lost

    def _push(self, receiver: _Receiver, delivery: _Delivery) -> bool:
        """Let it wait; whether the oldest had to go for it."""
        heapq.heappush(receiver.waiting, delivery)
        if len(receiver.waiting) <= self._bound:
            return False
        receiver.waiting.remove(min(receiver.waiting, key=lambda each: each.number))
        heapq.heapify(receiver.waiting)
        self._dropped += 1
        return True

    def _wake(self) -> None:
        for receiver in self._receivers:
            receiver.wake.set()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner, contextlib.suppress(asyncio.CancelledError):
                runner.run(self._deliver())
        except Exception as error:  # noqa: BLE001 - the next event tries anew
            log("error", "webhooks_stopped", detail=repr(error))

    async def _deliver(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: this is a coroutine
        trusted = httpx.create_ssl_context(trust_env=False)
        trusted.load_default_certs()  # those of this machine too: receivers are often in-house
        client = httpx.AsyncClient(
            verify=trusted,
            timeout=self._timeout,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=len(self._receivers)),
            # Receivers get to keep nothing here.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers={"content-type": "application/json", "user-agent": "turnout"},
        )
        async with client:
            with self._changed:
                if self._stopping:
                    return
                for receiver in self._receivers:
                    receiver.wake = asyncio.Event()
                    if receiver.busy is not None:  # the thread before this one ended meanwhile
                        self._push(receiver, receiver.busy)
                        receiver.busy = None
                self._running = asyncio.get_running_loop(), task
            try:
                async with asyncio.TaskGroup() as tasks:
                    for receiver in self._receivers:
                        tasks.create_task(self._serve(client, receiver))
            finally:
                with self._changed:
                    self._running = None

    async def _serve(self, client: httpx.AsyncClient, receiver: _Receiver) -> NoReturn:
        while True:
            receiver.wake.clear()
            delivery, pause = self._take(receiver)
            if delivery is not None:
                self._settle(receiver, delivery, await self._attempt(client, receiver.url, delivery))
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await receiver.wake.wait()

    def _take(self, receiver: _Receiver) -> tuple[_Delivery | None, float | None]:
        """What is due; else how long nothing will be, None for until there is more."""
        with self._changed:
            if not receiver.waiting:
                return None, None
            pause = receiver.waiting[0].due - time.monotonic()
            if pause > 0:
                return None, pause
            receiver.busy = heapq.heappop(receiver.waiting)
            return receiver.busy, None

    async def _attempt(self, client: httpx.AsyncClient, url: str, delivery: _Delivery) -> _Outcome:
        now = int(time.time())
        headers = {
            "webhook-id": delivery.identity,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._secret, delivery.identity, now, delivery.body),
        }
        outcome = None
        try:
            # The client's own timeout is for each read, which a receiver that drips bytes would renew for ever.
            async with (
                asyncio.timeout(self._timeout),
                client.stream("POST", url, content=delivery.body, headers=headers) as response,
            ):
                outcome = _judge(response)
                await _read_some(response)
        except (TimeoutError, httpx.TimeoutException):
            # Where there is an outcome, only the rest of an answer is missing, whose status is known.
            return outcome or _Outcome(False, True, f"no answer within {self._timeout:g} s")
        except (httpx.TransportError, OSError) as error:
            return outcome or _Outcome(False, True, f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - what is wrong with one event must not end the thread
            return outcome or _Outcome(False, False, repr(error))
        return outcome

    def _settle(self, receiver: _Receiver, delivery: _Delivery, outcome: _Outcome) -> None:
        again = outcome.retry and delivery.attempt < self._attempts
        lost = False
        with self._changed:
            if receiver.busy is not delivery:
                return  # `close` has counted it
            receiver.busy = None
            if outcome.delivered:
                self._sent += 1
            elif again:
                # Fairly random is enough: nobody gains by guessing when we come again.
                wait = pause_before(self._backoff, delivery.attempt, outcome.after, random.random())  # noqa: S311
                due, attempt = time.monotonic() + wait, delivery.attempt + 1
                lost = self._push(receiver, msgspec.structs.replace(delivery, due=due, attempt=attempt))
            else:
                self._failed += 1
            self._changed.notify_all()
        facts = {"receiver": receiver.name, "id": delivery.identity, "detail": outcome.detail}
        if lost:
            log("warning", "webhooks_dropped", receiver=receiver.name, waiting=self._bound)
        elif again:
            log("debug", "webhook_retried", attempt=delivery.attempt, **facts)
        elif not outcome.delivered:
            log("error", "webhook_failed", attempts=delivery.attempt, **facts)


def pause_before(backoff: float, attempt: int, after: float, chance: float) -> float:
    """Seconds from a failed attempt, counted from 1, to the next; `chance`, from 0 to 1, takes away up to half.

    A receiver that asked for a longer pause gets it, up to `LONGEST_PAUSE`.
    """
    grown = min(LONGEST_PAUSE, backoff * 2.0 ** min(attempt - 1, 32))
    return max(grown * (1 - chance / 2), min(after, LONGEST_PAUSE))


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _identity(own: object) -> str:
    """What can stand in the header for the event's own id; the same for the same id."""
    if own is None or own == "":
        return f"msg_{uuid.uuid4().hex}"
    text = str(own)
    if IDENTITY.fullmatch(text):
        return text
    return f"msg_{hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()[:32]}"


def _judge(response: httpx.Response) -> _Outcome:
    status = response.status_code
    retry = status in RETRIED or status >= 500
    after = _retry_after(response.headers.get("retry-after", "")) if retry else 0.0
    return _Outcome(response.is_success, retry, f"answered {status}", after)


def _retry_after(value: str) -> float:
    """Seconds from now (RFC 9110, section 10.2.3: a number, or a date); 0 for what is neither."""
    if TIMESTAMP.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())


async def _read_some(response: httpx.Response) -> None:
    read = 0
    async for chunk in response.aiter_raw():
        read += len(chunk)
        if read >= READ_BYTES:
            return


class _Loop(asyncio.SelectorEventLoop):
    """Looks names up in daemon threads: a process that ends waits for those of asyncio, however long a lookup hangs."""

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the name of the method that this replaces
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        answer: asyncio.Future[list[Any]] = self.create_future()

        def settle(found: list[Any] | Exception) -> None:
            if not answer.done():
                answer.set_exception(found) if isinstance(found, Exception) else answer.set_result(found)

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(host, port, family, type, proto, flags)
            except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                found = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.call_soon_threadsafe(settle, found)

        threading.Thread(target=look_up, name="turnout-lookup", daemon=True).start()
        return await answer
