"""Clients of a running server: what they send, when they send it again, and what they make of answers."""

from __future__ import annotations

import asyncio
import inspect
import io
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from litestar.routes import HTTPRoute

import turnout
from clients import CLIENTS
from turnout.api.app import application
from turnout.client import AsyncClient, BatchAnswer, Client, ServerUnreachable, retry, unasync, wire
from turnout.client.aio import connection as aio_connection
from turnout.client.batches import batch_body, chunks, column
from turnout.client.sync import connection as sync_connection
from turnout.client.turns import AsyncTurns, Turns
from turnout.errors import (
    InvalidFeatures,
    InvalidRequest,
    PayloadTooLarge,
    TooManyRequests,
    TurnoutError,
    problem,
)

ROOT = Path(__file__).parents[2]
URL = "http://turnout.test"
PREDICTION = b'{"model":"m","version":"v1","prediction_id":"p","reason":"active","outputs":{"score":1.5}}'
BATCH: dict[str, Any] = {"model": "m", "count": 2, "versions": ["v1"], "errors": []}
TWO = BATCH | {"version_index": [0, 0], "outputs": {"score": [1.5, 2.5]}}

Handler = Callable[[httpx.Request], httpx.Response]


class Clock:
    """A clock that sleeping moves on, at once. `slept` are the seconds of each sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time as clients see it; the jitter of their waits is always half of the longest."""
    found = Clock()
    monkeypatch.setattr(retry, "monotonic", lambda: found.now)
    monkeypatch.setattr(retry, "random", lambda: 0.5)
    monkeypatch.setattr(sync_connection, "blocking", SimpleNamespace(sleep=found.sleep))
    monkeypatch.setattr(aio_connection, "asyncio", SimpleNamespace(sleep=found.sleep_async))
    return found


@pytest.fixture(params=CLIENTS, ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def served(kind: Any, handler: Handler, **settings: Any) -> Any:
    """A client whose requests a function answers."""
    return kind(URL, transport=httpx.MockTransport(handler), **settings)


# --- one is made of the other ---------------------------------------------------------------------------------------


def test_the_client_of_threads_is_made_of_the_one_of_event_loops() -> None:
    made = unasync.made()
    assert len(made) >= 3
    assert {path.name for path in made} == {path.name for path in unasync.TARGET.glob("*.py")}
    for path, text in made.items():
        assert path.read_text("utf-8") == text, "run `python -m turnout.client.unasync`"


def test_it_is_written_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {path.name: path.read_text("utf-8") for path in unasync.TARGET.glob("*.py")}
    monkeypatch.setattr(unasync, "_ruff", lambda text, name, *words: wanted[name])
    monkeypatch.setattr(unasync, "TARGET", tmp_path)
    unasync.main()
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == wanted


# --- the verbs ------------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[Any], Any]] = {
    "register_version": lambda c: c.register_version("m", "v1", __file__, features=["a"]),
    "activate_version": lambda c: c.activate_version("m", "v1"),
    "rollback": lambda c: c.rollback("m"),
    "delete_version": lambda c: c.delete_version("m", "v1"),
    "active_version": lambda c: c.active_version("m"),
    "get_version": lambda c: c.get_version("m", "v1"),
    "list_versions": lambda c: c.list_versions("m"),
    "compare_versions": lambda c: c.compare_versions("m", "v1", "v2"),
    "version_history": lambda c: c.version_history("m"),
    "model": lambda c: c.model("m"),
    "models": lambda c: c.models(),
    "configure_test": lambda c: c.configure_test("m", {"v1": 1.0}),
    "get_test": lambda c: c.get_test("m"),
    "list_tests": lambda c: c.list_tests("m"),
    "promote_winner": lambda c: c.promote_winner("m", "v1"),
    "stop_test": lambda c: c.stop_test("m"),
    "pause_test": lambda c: c.pause_test("m"),
    "resume_test": lambda c: c.resume_test("m"),
    "approve_step": lambda c: c.approve_step("m"),
    "skip_step": lambda c: c.skip_step("m"),
    "set_override": lambda c: c.set_override("m", "e", "v1"),
    "delete_override": lambda c: c.delete_override("m", "e"),
    "overrides": lambda c: c.overrides("m"),
    "declare_metrics": lambda c: c.declare_metrics("m", []),
    "declared_metrics": lambda c: c.declared_metrics("m"),
    "record_outcomes": lambda c: c.record_outcomes([{"model": "m"}]),
    "results": lambda c: c.results("m", "1"),
    "live_quality": lambda c: c.live_quality("m"),
    "read_receipt": lambda c: c.read_receipt("m", "p"),
    "forget_entity": lambda c: c.forget_entity("e"),
    "select_version": lambda c: c.select_version("m", "e"),
    "assign": lambda c: c.assign("m", "e", at=datetime.now(UTC)),
    "assign_many": lambda c: c.assign_many("m", ["e"]),
    "distribution": lambda c: c.distribution("m"),
    "predict": lambda c: (c.predict("m", [1]), c.predict("m", [1], version="v1")),
    "predict_batch": lambda c: (c.predict_batch("m", [[1]]), c.predict_batch("m", [[1]], version="v1")),
    "predict_stream": lambda c: list(c.predict_stream("m", [[1]])),
    "export_registry": lambda c: c.export_registry(),
    "import_registry": lambda c: c.import_registry({}),
    "audit": lambda c: c.audit(model="m"),
    "status": lambda c: c.status(),
    "metrics": lambda c: c.metrics(),
    "ready": lambda c: c.ready(),
    "alive": lambda c: c.alive(),
}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_both_have_the_same_verbs() -> None:
    assert public(Client) == set(VERBS) | {"close", "last_change"}
    assert public(AsyncClient) == set(VERBS) | {"aclose", "last_change"}
    for verb in VERBS:
        ours, other = (inspect.signature(getattr(kind, verb)) for kind in (Client, AsyncClient))
        assert ours.parameters == other.parameters


def test_verbs_take_what_those_of_the_service_take() -> None:
    common = [verb for verb in VERBS if hasattr(turnout.Turnout, verb)]
    assert len(common) > 35
    for verb in common:
        theirs = inspect.signature(getattr(turnout.Turnout, verb)).parameters
        ours = inspect.signature(getattr(Client, verb)).parameters
        # How many threads run a batch is the server's to say.
        assert [name for name in ours if name in theirs] == [name for name in theirs if name != "threads"]


# Litestar 2 asks to mark dependencies for its version 3; how the routes are declared is not what is checked here.
@pytest.mark.filterwarnings("ignore::litestar.exceptions.base_exceptions.LitestarDeprecationWarning")
def test_every_route_has_a_verb(tmp_path: Path, kind: Any) -> None:
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        routes = {
            f"{method} {route.path_format}"
            for route in application(hub).routes
            if isinstance(route, HTTPRoute)
            and route.path.startswith(("/v1/", "/metrics", "/livez", "/readyz"))
            for method in set(route.methods) & {"GET", "POST", "PUT", "DELETE"}
        }
    assert len(routes) > 35
    asked: set[str] = set()

    def note(request: httpx.Request) -> httpx.Response:
        asked.add(f"{request.method} {request.url.path}")
        active = {"name": "m", "revision": 1, "created_at": "2026-01-01T00:00:00Z", "active": "v1"}
        if request.url.path == "/v1/models/m":
            return httpx.Response(200, json=active)
        return httpx.Response(404, json={"code": "not_found", "detail": "no"})

    with served(kind, note) as client:
        for call in VERBS.values():
            with suppress(TurnoutError):
                call(client)
        with suppress(TurnoutError):
            client.predict("m", [1], version="v1")
        with suppress(TurnoutError):
            client.predict_batch("m", [[1]], version="v1")
    unmet = {
        route for route in routes if not any(re.fullmatch(_pattern(route), request) for request in asked)
    }
    assert unmet == set(), "a route that no verb asks for: add the verb to turnout/client/aio"


def _pattern(route: str) -> str:
    return re.sub(r"\{[^}]*\}", "[^/]+", route)


def test_every_verb_is_documented() -> None:
    pages = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("client.md", "python.md"))
    words = set(re.findall(r"\w+", "".join(re.findall(r"```.*?```|`[^`\n]+`", pages, re.DOTALL))))
    assert public(Client) | public(AsyncClient) <= words


# --- what is sent again ---------------------------------------------------------------------------------------------

SOON = {"Retry-After": "1"}
OUTCOME = {"model": "m", "metric": "kept", "value": 1, "entity_id": "e"}
REQUESTS: dict[str, Callable[[Any], Any]] = {
    "read": lambda c: c.models(),
    "outcomes with ids": lambda c: c.record_outcomes([OUTCOME | {"id": "1"}, OUTCOME | {"id": "2"}]),
    "prediction": lambda c: c.predict("m", [1], entity_id="e"),
    "batch": lambda c: c.predict_batch("m", [[1], [2]]),
    "outcomes without ids": lambda c: c.record_outcomes([OUTCOME | {"id": "1"}, OUTCOME]),
    "write": lambda c: c.rollback("m"),
    "write with a revision": lambda c: c.rollback("m", revision=7),
    "upload": lambda c: c.register_version("m", "v1", __file__),
    "deletion": lambda c: c.forget_entity("e"),
    "question": lambda c: c.ready(),
}
IDEMPOTENT = ["read", "outcomes with ids"]
PREDICTIONS = ["prediction", "batch"]
ALL = [name for name in REQUESTS if name != "question"]

FAILURES: dict[str, tuple[type[httpx.TransportError], list[str]]] = {
    "no connection": (httpx.ConnectError, ALL),
    "no connection in time": (httpx.ConnectTimeout, ALL),
    "no free connection": (httpx.PoolTimeout, ALL),
    "closed before an answer": (httpx.RemoteProtocolError, IDEMPOTENT + PREDICTIONS),
    "broken while reading": (httpx.ReadError, IDEMPOTENT + PREDICTIONS),
    "broken while writing": (httpx.WriteError, IDEMPOTENT + PREDICTIONS),
    "no answer in time": (httpx.ReadTimeout, []),
    "not sent in time": (httpx.WriteTimeout, []),
    "no protocol of ours": (httpx.UnsupportedProtocol, []),
}
ANSWERS: dict[str, tuple[int, dict[str, str], list[str]]] = {
    "429": (429, {}, IDEMPOTENT + PREDICTIONS),
    "429 and when": (429, SOON, IDEMPOTENT + PREDICTIONS),
    "502": (502, {}, IDEMPOTENT),
    "503": (503, {}, IDEMPOTENT),
    "503 and when": (503, SOON, IDEMPOTENT + PREDICTIONS),
    "504": (504, {}, IDEMPOTENT),
    **{str(status): (status, SOON, []) for status in (400, 404, 408, 409, 412, 413, 422, 500, 507)},
}


@pytest.mark.parametrize("what", REQUESTS)
def test_after_which_failures(what: str, kind: Any, clock: Clock) -> None:
    asked: list[httpx.Request] = []
    found: dict[str, int] = {}

    def fail(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise FAILURES[failure][0]("so it is", request=request)

    with served(kind, fail) as client:
        for failure in FAILURES:
            asked.clear()
            if what == "question":
                assert REQUESTS[what](client) is False
            else:
                with pytest.raises(ServerUnreachable, match=r"did not answer.*: so it is"):
                    REQUESTS[what](client)
            found[failure] = len(asked)
    assert found == {failure: 3 if what in again else 1 for failure, (_, again) in FAILURES.items()}


@pytest.mark.parametrize("what", REQUESTS)
def test_after_which_answers(what: str, kind: Any, clock: Clock) -> None:
    asked: list[httpx.Request] = []
    found: dict[str, int] = {}

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        status, headers, _ = ANSWERS[answer]
        return httpx.Response(status, headers=headers)

    with served(kind, refuse) as client:
        for answer in ANSWERS:
            asked.clear()
            with suppress(TurnoutError):
                REQUESTS[what](client)
            found[answer] = len(asked)
            assert len({request.content for request in asked}) == 1
    assert found == {answer: 3 if what in again else 1 for answer, (_, _, again) in ANSWERS.items()}


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_how_often(retries: int, kind: Any, clock: Clock) -> None:
    asked: list[float] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(clock.now)
        return httpx.Response(429, json=problem(TooManyRequests("later")))

    with served(kind, refuse, retries=retries) as client, pytest.raises(TooManyRequests, match="later"):
        client.predict("m", [1])
    assert len(asked) == retries + 1


def test_it_goes_on_once_the_server_answers(kind: Any, clock: Clock) -> None:
    answers = iter([httpx.ConnectError("no"), httpx.Response(429, headers=SOON), PREDICTION])

    def answer(request: httpx.Request) -> httpx.Response:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, httpx.Response) else httpx.Response(200, content=found)

    with served(kind, answer) as client:
        assert client.predict("m", [1]).outputs == {"score": 1.5}
    # Half of 0.1 s, and then what was asked for and half of 0.2 s.
    assert clock.slept == pytest.approx([0.05, 1.1])


def test_waits_grow_up_to_five_seconds(kind: Any, clock: Clock) -> None:
    with served(kind, lambda _: httpx.Response(429), retries=8) as client, pytest.raises(TooManyRequests):
        client.models()
    assert clock.slept == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5])


def test_no_try_begins_after_the_time_that_there_is(kind: Any, clock: Clock) -> None:
    seconds: list[float] = []

    def slow(request: httpx.Request) -> httpx.Response:
        seconds.append(request.extensions["timeout"]["read"])
        clock.now += 2
        raise httpx.ReadError("gone")

    with (
        served(kind, slow, timeout=5, retries=9) as client,
        pytest.raises(ServerUnreachable, match="in 3 tries"),
    ):
        client.models()
    assert seconds == pytest.approx([5, 2.95, 0.85])


def test_a_server_that_asks_for_more_time_than_there_is_gets_no_second_try(kind: Any, clock: Clock) -> None:
    refused = httpx.Response(429, headers={"Retry-After": "60"})
    with served(kind, lambda _: refused, timeout=30) as client, pytest.raises(TooManyRequests):
        client.predict("m", [1])
    assert clock.slept == []


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        (" 3 ", 3),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("Fri, 01 Jan 2027 00:00:00 +99999999999999", None),
    ],
)
def test_when_a_server_asks_to_come_again(told: str, seconds: float | None) -> None:
    assert retry.retry_after({"retry-after": told}) == seconds
    assert retry.retry_after({}) is None


@pytest.mark.parametrize(("ahead", "seconds"), [(3600, 3600), (-3600, 0)])
def test_when_a_server_names_a_moment(ahead: float, seconds: float) -> None:
    told = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
    assert retry.retry_after({"retry-after": told}) == pytest.approx(seconds, abs=60)


def test_a_try_is_written_to_the_log(kind: Any, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "turnout.client")
    with served(kind, lambda _: httpx.Response(429), retries=1) as client, suppress(TooManyRequests):
        client.models()
    lines = [record.getMessage() for record in caplog.records if record.name == "turnout.client"]
    assert lines == ["GET /v1/models: 429; it is sent again in 0.050 s"]


def test_the_wait_for_a_turn_is_part_of_the_time(clock: Clock) -> None:
    seconds: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seconds.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, json=[])

    with served(Client, answer, timeout=5) as client:
        turns: Any = client._turns
        run = turns.run

        def late(seconds: float, call: Callable[[], Any]) -> Any:
            clock.now += 2
            return run(seconds, call)

        turns.run = late
        assert client.models() == []
    assert seconds == pytest.approx([3])


@pytest.mark.parametrize("retries", [0, 1])
def test_as_many_are_under_way_as_there_are_connections(retries: int) -> None:
    under_way: list[int] = []
    most: list[int] = []
    two = threading.Barrier(2)

    def answer(request: httpx.Request) -> httpx.Response:
        under_way.append(1)
        most.append(len(under_way))
        two.wait(5)
        under_way.pop()
        return httpx.Response(200, json=[])

    with served(Client, answer, max_connections=2, retries=retries) as client, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: client.models(), range(20))) == [[]] * 20
    assert max(most) == 2


def test_as_many_tasks_are_under_way_as_there_are_connections() -> None:
    under_way: list[int] = []
    most: list[int] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        under_way.append(1)
        most.append(len(under_way))
        await asyncio.sleep(0)
        under_way.pop()
        return httpx.Response(200, json=[])

    async def ask() -> list[Any]:
        async with AsyncClient(URL, max_connections=2, transport=httpx.MockTransport(answer)) as client:
            return await asyncio.gather(*(client.models() for _ in range(20)))

    assert asyncio.run(ask()) == [[]] * 20
    assert max(most) == 2


def test_a_turn_that_does_not_come() -> None:
    turns = Turns(1)

    def wait() -> None:
        turns.run(0.01, list)

    with pytest.raises(httpx.PoolTimeout, match="all of its 1 connections were in use"):
        turns.run(1, wait)
    assert turns.run(1, lambda: 7) == 7

    async def inner() -> Any:
        await loops.run(0.01, inner)

    loops = AsyncTurns(1)
    with pytest.raises(httpx.PoolTimeout, match="all of its 1 connections were in use"):
        asyncio.run(loops.run(1, inner))


@pytest.mark.parametrize("closed_at_once", [False, True])
def test_requests_that_are_cancelled_lose_no_connection(closed_at_once: bool) -> None:
    async def cancel() -> tuple[int, list[Any]]:
        asked, go = asyncio.Semaphore(0), asyncio.Event()
        most, open_now = 0, set[Any]()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal most
            open_now.add(writer)
            most = max(most, len(open_now))
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await reader.readuntil(b"\r\n\r\n"):
                    asked.release()
                    await go.wait()
                    writer.write(whole(b"[]").replace(b"Connection: close\r\n", b""))
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            open_now.discard(writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client: Any = AsyncClient(url, max_connections=2, timeout=5)
        for _ in range(2):
            tasks = [asyncio.create_task(client.models()) for _ in range(6)]
            await asked.acquire()
            await asked.acquire()
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(e, asyncio.CancelledError)
                for e in await asyncio.gather(*tasks, return_exceptions=True)
            )
            if closed_at_once:
                break
            go.set()
            assert await client.models() == []
            await asked.acquire()
            go.clear()
            while client._turns._left:
                await asyncio.sleep(0)
        pool: Any = client._http._transport
        busy = [c for c in pool._pool.connections if not c.is_idle()]
        if closed_at_once:
            assert len(busy) == 2
        await client.aclose()
        assert pool._pool.connections == []
        assert not client._turns._left
        go.set()
        server.close()
        while open_now:
            await asyncio.sleep(0)
        return most, [] if closed_at_once else busy

    assert asyncio.run(cancel()) == (2, [])


@contextmanager
def dropping(answers: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that closes each connection after one request, with or without an answer; the requests."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    requests.append(connection.recv(65536))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
        thread.join(5)


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("broken", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_a_connection_that_is_closed(broken: bytes, kind: Any, clock: Clock) -> None:
    with dropping([broken, whole(PREDICTION), broken]) as (url, requests), kind(url, timeout=5) as client:
        assert client.predict("m", [1]).version == "v1"
        with pytest.raises(ServerUnreachable):
            client.rollback("m")
    assert len(requests) == 3


# --- what is sent ---------------------------------------------------------------------------------------------------


def test_a_prediction_says_how_urgent_it_is(kind: Any) -> None:
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, content=PREDICTION)

    with served(kind, answer) as client:
        client.predict("m", [1])
        client.predict("m", {"a": 1}, entity_id=7, priority=0, timeout_ms=250, request_id="order-7")
    plain, wished = (request.headers for request in sent)
    assert not {"priority", "x-timeout-ms", "x-request-id"} & set(plain)
    assert (wished["priority"], wished["x-timeout-ms"], wished["x-request-id"]) == ("u=0", "250", "order-7")
    assert msgspec.json.decode(sent[1].content) == {"entity_id": 7, "features": {"a": 1}}


@pytest.mark.parametrize(
    "wish",
    [{"priority": 8}, {"priority": -1}, {"request_id": ""}, {"request_id": "é"}, {"request_id": "x" * 129}],
)
def test_a_wish_that_no_server_would_understand(wish: dict[str, Any], kind: Any) -> None:
    with (
        served(kind, lambda _: httpx.Response(200)) as client,
        pytest.raises(InvalidRequest, match="expected"),
    ):
        client.predict("m", [1], **wish)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), None, True, 1e9, "5"])
def test_a_timeout_that_is_none(timeout: Any, kind: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout: expected"):
        kind(URL, timeout=timeout)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "ftp://host",
        "http://",
        "http://host?a=b",
        "http://host/#top",
        "http://u:secret@host:port",
        7,
    ],
)
def test_a_url_of_no_server(url: Any, kind: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected a URL") as raised:
        kind(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("status", [None, 200, 307, 502])
def test_a_password_is_not_shown(status: int | None, kind: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if status is None:
            raise httpx.ReadError("gone")
        return httpx.Response(status, text="<html>")

    transport = httpx.MockTransport(answer)
    with (
        kind("http://ann:secret@turnout.test", transport=transport, retries=0) as client,
        pytest.raises(ServerUnreachable, match=r"turnout\.test") as raised,
    ):
        client.models()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("entity", [None, True, 1.5, b"e"])
def test_what_is_no_entity_id(entity: Any, kind: Any) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda c: c.assign("m", entity),
        lambda c: c.select_version("m", entity),
        lambda c: c.assign_many("m", [entity]),
        lambda c: c.set_override("m", entity, "v1"),
        lambda c: c.delete_override("m", entity),
        lambda c: c.forget_entity(entity),
    ]
    if entity is not None:
        calls.append(lambda c: c.predict("m", [1], entity_id=entity))
    found = f"an entity id is a string or an integer, found {type(entity).__name__}"
    with served(kind, lambda _: httpx.Response(500)) as client:
        for call in calls:
            with pytest.raises(InvalidRequest, match=found):
                call(client)


def test_a_revision_is_an_integer(kind: Any) -> None:
    with (
        served(kind, lambda _: httpx.Response(500)) as client,
        pytest.raises(InvalidRequest, match="revision: expected an integer, found bool"),
    ):
        client.rollback("m", revision=True)


def test_a_client_that_is_closed() -> None:
    calls: list[Callable[[Any], Any]] = [lambda c: c.models(), lambda c: c.ready(), lambda c: c.rollback("m")]
    with served(Client, lambda _: httpx.Response(200, json=[])) as client:
        assert client.models() == []
    for call in calls:
        with pytest.raises(InvalidRequest, match="the client is closed"):
            call(client)

    async def late() -> None:
        async with served(AsyncClient, lambda _: httpx.Response(200)) as client:
            pass
        await client.models()

    with pytest.raises(InvalidRequest, match="the client is closed"):
        asyncio.run(late())


@pytest.mark.parametrize("settings", [{"retries": -1}, {"max_connections": 0}])
def test_settings_that_make_no_client(settings: dict[str, Any], kind: Any) -> None:
    with pytest.raises(InvalidRequest, match="at least"):
        kind(URL, **settings)


def test_no_url(kind: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected a URL"):
        kind("http://127.0.0.1:port")


# --- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (413, PayloadTooLarge),
        (429, TooManyRequests),
        (502, ServerUnreachable),
        (503, ServerUnreachable),
        (418, TurnoutError),
    ],
)
def test_an_answer_of_something_between(status: int, error: type[TurnoutError], kind: Any) -> None:
    with (
        served(kind, lambda _: httpx.Response(status, text="<html>"), retries=0) as client,
        pytest.raises(error, match=str(status)) as raised,
    ):
        client.models()
    assert type(raised.value) is error


def test_a_failure_without_words(kind: Any) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("")

    with served(kind, fail) as client, pytest.raises(ServerUnreachable, match="answer: ReadTimeout"):
        client.models()


def test_an_answer_of_something_else(kind: Any) -> None:
    with (
        served(kind, lambda _: httpx.Response(200, text="<html>")) as client,
        pytest.raises(ServerUnreachable, match="something else"),
    ):
        client.models()


@pytest.mark.parametrize("status", [200, 204, 302, 307])
def test_an_answer_of_something_else_is_no_change(status: int, kind: Any) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda c: c.delete_version("m", "v1"),
        lambda c: c.set_override("m", "e", "v1"),
        lambda c: c.delete_override("m", "e"),
        lambda c: c.rollback("m"),
        lambda c: c.metrics(),
        lambda c: c.export_registry(io.BytesIO()),
    ]
    headers = {"Location": "/login", "Content-Type": "text/html"}
    with served(kind, lambda _: httpx.Response(status, text="<html>", headers=headers)) as client:
        for call in calls:
            with pytest.raises(ServerUnreachable, match="something else than Turnout"):
                call(client)
        assert (client.ready(), client.alive(), client.last_change) == (False, False, None)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_a_question_is_answered_whatever_the_status(status: int, kind: Any) -> None:
    with served(kind, lambda _: httpx.Response(status, json={"ready": True, "live": True})) as client:
        assert (client.ready(), client.alive()) == (False, False)


@pytest.mark.parametrize(
    ("generation", "etag", "found"),
    [
        ("5", '"3"', (5, 3)),
        ("5", 'W/"3"', (5, 3)),
        ("5", '"3-gzip"', (5, 3)),
        ("5", "x", (5, 0)),
        ("five", '"3"', None),
    ],
)
def test_headers_that_a_proxy_has_rewritten(generation: str, etag: str, found: Any, kind: Any) -> None:
    headers = {"Turnout-Generation": generation, "ETag": etag}
    with served(kind, lambda _: httpx.Response(200, json={}, headers=headers)) as client:
        assert client.delete_version("m", "v1") is True
        change = client.last_change
    assert (change and (change.generation, change.revision)) == found


@pytest.mark.parametrize("status", [200, 500, 503])
def test_bodies_that_are_no_utf_8(status: int, kind: Any) -> None:
    body = b'{"detail":"\xff"}'
    with (
        served(kind, lambda _: httpx.Response(status, content=body), retries=0) as client,
        pytest.raises(TurnoutError),
    ):
        client.models()


def test_a_class_without_a_code_of_its_own_is_no_other_error() -> None:
    odd = type("Odd", (InvalidRequest,), {})
    assert issubclass(odd, InvalidRequest)
    assert wire.by_code(TurnoutError)["invalid_request"] is InvalidRequest


def test_each_task_has_its_own_last_change() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        number = request.url.path.rpartition("/")[2]
        return httpx.Response(200, content=b'{"deleted":1}', headers={"Turnout-Generation": number})

    async def forget(client: AsyncClient, number: int, both: asyncio.Barrier) -> Any:
        await client.forget_entity(number)
        await both.wait()
        return client.last_change and client.last_change.generation

    async def two() -> None:
        both = asyncio.Barrier(2)
        async with served(AsyncClient, answer) as client, served(AsyncClient, answer) as other:
            assert await asyncio.gather(*(forget(client, number, both) for number in (7, 8))) == [7, 8]
            assert (client.last_change, other.last_change) == (None, None)

    asyncio.run(two())


@pytest.mark.parametrize("archive", [b"", b"no tar at all", b"x" * 2000])
def test_an_archive_that_is_none(archive: bytes, kind: Any, tmp_path: Path) -> None:
    with (
        (tmp_path / "archive").open("wb") as file,
        served(kind, lambda _: httpx.Response(200, content=archive)) as client,
        pytest.raises(ServerUnreachable, match="something else"),
    ):
        client.export_registry(file)


def test_each_thread_has_its_own_last_change() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        number = request.url.path.rpartition("/")[2]
        return httpx.Response(200, content=b'{"deleted":1}', headers={"Turnout-Generation": number})

    with served(Client, answer) as client:
        client.forget_entity("7")
        seen: list[Any] = []

        def other() -> None:
            seen.append(client.last_change)
            client.forget_entity("8")
            seen.append(client.last_change.generation)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(5)
        assert seen == [None, 8]
        assert client.last_change is not None
        assert client.last_change.generation == 7


# --- many rows ------------------------------------------------------------------------------------------------------


def test_a_batch_is_columns_of_numpy(kind: Any) -> None:
    document = BATCH | {
        "count": 3,
        "version_index": [0, None, 0],
        "outputs": {"label": [1, None, 0], "score": [0.5, None, 1.5], "p": [[0.1, 0.9], None, [0.7, None]]},
        "errors": [{"row": 1, "code": "invalid_features", "detail": "no"}],
    }
    with served(kind, lambda _: httpx.Response(200, json=document)) as client:
        found = client.predict_batch("m", [[1], [2], [3]], on_error="skip")
    assert isinstance(found, BatchAnswer)
    assert (len(found), found.versions, found.version_index.tolist()) == (3, ("v1",), [0, -1, 0])
    assert found.outputs["label"].tolist() == [1, None, 0]
    np.testing.assert_array_equal(found.outputs["score"], [0.5, np.nan, 1.5])
    np.testing.assert_array_equal(found.outputs["p"], [[0.1, 0.9], [np.nan, np.nan], [0.7, np.nan]])
    assert [error.row for error in found.errors] == [1]


@pytest.mark.parametrize(
    ("values", "dtype", "shape"),
    [
        ([], "float64", (0,)),
        ([None, None], "float64", (2,)),
        ([1, 2], "int64", (2,)),
        ([1, 2.5], "float64", (2,)),
        ([True, False], "bool", (2,)),
        (["yes", "no"], "object", (2,)),
        ([["a"], ["b"]], "object", (2, 1)),
        ([["a", None], ["b", "c"]], "object", (2,)),
        ([[1, 2], [3]], "object", (2,)),
        ([[1, 2], None], "object", (2,)),
        ([[1.5, 2], None], "float64", (2, 2)),
    ],
)
def test_the_array_of_an_output(values: list[Any], dtype: str, shape: tuple[int, ...]) -> None:
    found = column(values)
    assert (found.dtype, found.shape) == (dtype, shape)


@pytest.mark.parametrize("rows", ["abc", 7, {1, 2}, np.zeros(3), np.zeros((1, 2, 3)), [object()]])
def test_what_is_no_rows(rows: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"expected|cannot"):
        batch_body(rows, None)


def test_strings_keep_their_zeros_and_integers_their_size() -> None:
    assert column(["a\0", "b"]).tolist() == ["a\0", "b"]
    for values in ([2**63 + 1, 1], [2**64 - 1], [[2**63 + 1, 1], [0, 2]]):
        found = column(values)
        assert (found.dtype, found.tolist()) == (np.uint64, values)
    assert column([2**63 + 1, -1]).tolist() == [2**63 + 1, -1]
    assert column([2.0**63, 1]).dtype == np.float64


def test_two_columns_of_one_name() -> None:
    twice = pa.table([[1], [2]], names=["a", "a"])
    for table in (twice, pd.DataFrame([[1, 2]], columns=["a", "a"])):
        with pytest.raises(InvalidRequest, match="duplicate key 'a'"):
            batch_body(table, None)


async def asynchronous() -> AsyncIterator[list[int]]:
    yield [1]


@pytest.mark.parametrize(
    "rows", [{"a": [1]}, pd.DataFrame({"a": [1]}), pa.table({"a": [1]}), asynchronous(), "abc", 7]
)
def test_a_stream_takes_rows_one_by_one(rows: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected rows one by one"):
        list(chunks(rows, None, 2))


@pytest.mark.parametrize("ids", ["abc", b"abc"])
def test_ids_of_a_stream_are_no_string(ids: Any) -> None:
    with pytest.raises(InvalidRequest, match="one string"):
        list(chunks([[1], [2], [3]], ids, 2))


def test_ids_are_no_string() -> None:
    with pytest.raises(InvalidRequest, match="one string"):
        batch_body([[1]], "a")


def test_a_stream_is_batches(kind: Any) -> None:
    taken: list[int] = []

    def rows() -> Iterator[list[int]]:
        for number in range(5):
            taken.append(number)
            yield [number]

    def answer(request: httpx.Request) -> httpx.Response:
        sent = msgspec.json.decode(request.content)
        count = len(sent["rows"])
        assert sent["entity_ids"] == [f"u{number}" for (number,) in sent["rows"]]
        errors = [{"row": 0, "code": "invalid_features", "detail": "no"}]
        scores = [float(number) for (number,) in sent["rows"]]
        document = {"version_index": [0] * count, "outputs": {"score": scores}, "errors": errors}
        return httpx.Response(200, json=BATCH | document)

    with served(kind, answer) as client:
        answers = client.predict_stream("m", rows(), entity_ids=(f"u{n}" for n in range(5)), size=2)
        first = next(answers)
        assert (taken, first.outputs["score"].tolist()) == ([0, 1], [0, 1])
        rest = list(answers)
    assert [len(found) for found in rest] == [2, 1]
    assert [error.row for found in (first, *rest) for error in found.errors] == [0, 2, 4]


def test_an_error_in_a_stream_says_which_row(kind: Any) -> None:
    bad = InvalidFeatures("no", row=1)

    def answer(request: httpx.Request) -> httpx.Response:
        if b"3" in request.content:
            return httpx.Response(400, json=problem(bad))
        return httpx.Response(200, json=TWO)

    with served(kind, answer) as client:
        answers = client.predict_stream("m", [[0], [1], [2], [3]], size=2)
        assert len(next(answers)) == 2
        with pytest.raises(InvalidFeatures) as raised:
            next(answers)
    assert raised.value.row == 3


@pytest.mark.parametrize(
    ("ids", "found"), [(["a"], "1 for 2"), (["a", "b", "c"], "more than 2"), (np.arange(3), "more than 2")]
)
def test_a_stream_wants_an_id_for_each_row(ids: Any, found: str) -> None:
    with pytest.raises(InvalidRequest, match=found):
        list(chunks([[1], [2]], ids, 2))
    with pytest.raises(InvalidRequest, match="at least 1"):
        list(chunks([[1]], None, 0))
