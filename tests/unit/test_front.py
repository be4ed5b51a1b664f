"""The front by itself, over a service that does what a test needs: what a slow model and a lost client do to it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from turnout.api import intake
from turnout.api.front import Front
from turnout.config import Settings
from turnout.dialects import Row

Messages = list[dict[str, Any]]


class Hub:
    """A service with one model, `slow`, that runs in the pool until `release` is set; others answer at once."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.pool = ThreadPoolExecutor(1)
        self.release = threading.Event()
        self.running = threading.Event()
        self.rejected: list[str] = []
        self.calls: list[tuple[str, str | None, bytes]] = []

    @property
    def telemetry(self) -> Hub:
        return self

    @property
    def predictor(self) -> Hub:
        return self

    def reject(self, code: str) -> None:
        self.rejected.append(code)

    def serving(self, model: str) -> None:
        return None

    def admit(self, model: str, version: str | None, request: Row) -> Ticket:
        return Ticket(
            (model, version, request.body),
            None if model == "slow" else SimpleNamespace(inline=True, max_delay_us=0, max_batch_rows=1),
        )

    def respond(self, ticket: Ticket) -> tuple[int, bytes]:
        self.calls.append(ticket.call)
        model, _, _ = ticket.call
        if model == "broken":
            raise ZeroDivisionError("secret")
        if model == "slow":
            self.running.set()
            assert self.release.wait(10)
        return 200, b"{}"


class Ticket(NamedTuple):
    call: tuple[str, str | None, bytes]
    session: Any


class Client:
    """One request: its messages to the front, and what came back."""

    def __init__(
        self, path: str, *chunks: bytes, headers: dict[str, str] | None = None, method: str = "POST"
    ) -> None:
        self.scope = {
            "type": "http",
            "method": method,
            "raw_path": path.encode(),
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        last = len(chunks) - 1
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for number, chunk in enumerate(chunks):
            self.incoming.put_nowait({"type": "http.request", "body": chunk, "more_body": number < last})
        self.sent: Messages = []

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def go(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    def problem(self) -> dict[str, Any]:
        assert dict(self.sent[0]["headers"])[b"content-type"] == b"application/problem+json"
        return json.loads(self.sent[1]["body"])


async def other(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def run(test: Callable[[Hub, Front], Awaitable[None]], **settings: Any) -> None:
    hub = Hub(**settings)
    try:
        asyncio.run(test(hub, Front(other, hub)))  # type: ignore[arg-type]
    finally:
        hub.release.set()
        hub.pool.shutdown()


def served(front: Front, client: Client) -> Awaitable[None]:
    return asyncio.ensure_future(front(client.scope, client.incoming.get, client.send))


@pytest.mark.parametrize(
    ("path", "model", "version"),
    [
        ("/v1/models/m/predict", "m", None),
        ("/v1/models/a%2Fb/predict", "a/b", None),
        ("/v1/models/%C3%BC/versions/v%2F1/predict", "ü", "v/1"),
        ("/v1/models/predict/predict", "predict", None),
        ("/v1/models/versions/versions/predict/predict", "versions", "predict"),
    ],
)
def test_the_path_of_a_prediction_names_model_and_version(path: str, model: str, version: str | None) -> None:
    async def test(hub: Hub, front: Front) -> None:
        for _ in range(2):
            client = Client(path, b"{}")
            await served(front, client)
            assert client.status == 200
        assert hub.calls == [(model, version, b"{}")] * 2

    run(test)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models//predict",
        "/v1/models/m/predict/",
        "/v1/models/m/x/v/predict",
        "/v1/models/m/versions//predict",
        "/v1/models/%FF/predict",
        "/v2/models/m/predict",
        "//v1/models/m/predict",
    ],
)
def test_any_other_path_goes_on_as_it_came(path: str) -> None:
    async def test(hub: Hub, front: Front) -> None:
        client = Client(path, b"{}")
        await served(front, client)
        assert (client.status, client.sent[1]["body"]) == (299, path.encode())
        assert hub.calls == []

    run(test)


def test_a_body_in_chunks_is_put_together() -> None:
    async def test(hub: Hub, front: Front) -> None:
        await served(front, Client("/v1/models/m/predict", b"{", b"  ", b"}"))
        await served(front, Client("/v1/models/m/predict", b"{", b"}", headers={"content-length": "2"}))
        assert [body for _, _, body in hub.calls] == [b"{  }", b"{}"]

    run(test)


def test_a_chunked_body_is_not_read_past_the_limit() -> None:
    async def test(hub: Hub, front: Front) -> None:
        client = Client("/v1/models/m/predict", *[b"x" * 60] * 10)
        await served(front, client)
        assert client.problem()["code"] == "payload_too_large"
        assert client.incoming.qsize() >= 8
        announced = Client("/v1/models/m/predict", b"x", headers={"content-length": "101"})
        await served(front, announced)
        assert announced.status == 413
        assert announced.incoming.qsize() == 1
        assert hub.calls == []

    run(test, max_body_bytes=100)


def test_an_unexpected_error_is_logged_and_not_told() -> None:
    async def test(hub: Hub, front: Front) -> None:
        client = Client("/v1/models/broken/predict", b"{}")
        await served(front, client)
        assert client.status == 500
        assert client.problem()["code"] == "internal"
        assert "secret" not in client.sent[1]["body"].decode()
        assert front.predictions.in_flight == 0

    run(test)


def test_a_queued_job_of_a_client_that_goes_is_dropped_and_frees_its_place() -> None:
    async def test(hub: Hub, front: Front) -> None:
        first, second, third = (Client("/v1/models/slow/predict", b"{}") for _ in range(3))
        running = served(front, first)
        await asyncio.to_thread(hub.running.wait, 5)
        queued = served(front, second)
        await until(lambda: front.predictions.in_flight == 2)
        await served(front, third)
        assert third.problem()["code"] == "too_many_requests"
        assert (b"retry-after", b"1") in third.sent[0]["headers"]
        second.go()
        await queued
        assert (front.predictions.in_flight, second.sent) == (1, [])
        hub.release.set()
        await running
        assert (first.status, len(hub.calls), front.predictions.in_flight) == (200, 1, 0)

    run(test, max_in_flight=2)


def test_a_running_job_keeps_its_place_until_it_ends() -> None:
    async def test(hub: Hub, front: Front) -> None:
        client = Client("/v1/models/slow/predict", b"{}")
        running = served(front, client)
        await asyncio.to_thread(hub.running.wait, 5)
        client.go()
        await asyncio.sleep(0.05)
        assert front.predictions.in_flight == 1
        hub.release.set()
        await running
        assert front.predictions.in_flight == 0

    run(test)


def test_a_client_that_goes_while_it_sends_frees_its_place() -> None:
    async def test(hub: Hub, front: Front) -> None:
        client = Client("/v1/models/m/predict", headers={"content-length": "2"})
        client.incoming.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        sending = served(front, client)
        await until(lambda: front.predictions.in_flight == 1)
        client.go()
        await sending
        assert (front.predictions.in_flight, client.sent, hub.calls) == (0, [], [])

    run(test)


def test_a_body_that_does_not_come_is_not_waited_for_without_end() -> None:
    async def test(hub: Hub, front: Front) -> None:
        late = Client("/v1/models/m/predict", headers={"content-length": "2"})
        waiting = served(front, late)
        await until(lambda: front.predictions.in_flight == 1)
        front.predictions.patience.sweep()
        await asyncio.sleep(0)
        assert late.sent == [], "it is given the time until the next sweep"
        front.predictions.patience.sweep()
        await waiting
        assert late.problem()["code"] == "request_timeout"
        assert (late.status, front.predictions.in_flight, hub.calls) == (408, 0, [])
        in_time = Client("/v1/models/m/predict", b"{}")
        await served(front, in_time)
        assert in_time.status == 200

    run(test)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_stream_that_stops_to_come_is_late_and_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "IDLE_SECONDS", 0.05)

    async def test(hub: Hub, front: Front) -> None:
        hub.batch_pool = ThreadPoolExecutor(1)
        hub.batches = Batches()
        headers = {"content-type": "application/x-ndjson"}
        silent = Client("/v1/models/m/batch", headers=headers)
        silent.scope["query_string"] = b""
        await served(front, silent)
        assert (silent.status, silent.problem()["code"], front.bulk.in_flight) == (408, "request_timeout", 0)
        assert (b"connection", b"close") in silent.sent[0]["headers"]
        hub.batch_pool.shutdown()

    run(test)


class Batches:
    """No model is asked for before the first rows come."""

    def job(self, *_: object) -> None: ...
