from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

import pytest

from servers import wait_for
from turnout.errors import InvalidRequest
from turnout.experiment import webhooks
from turnout.experiment.signing import signature, verify
from turnout.experiment.webhooks import Webhooks, check_url, pause_before

SECRET = b"0123456789abcdef0123456789abcdef"
EVENT = {"id": "evt_1", "type": "test.rolled_back", "data": {"model": "churn"}}

Answer = Callable[[BaseHTTPRequestHandler, threading.Event], None]
"""Answers a request; the event lets go of those that hang."""


def status(code: int, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("content-length", "0")
        request.end_headers()

    return answer


def hang(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    over.wait(20)
    request.close_connection = True


def drip(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    """Never silent for long, never done."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
    while not over.wait(0.01):
        request.wfile.write(b"x")


def drip_body(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while not over.wait(0.01):
        request.wfile.write(b"x")


def pour(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    """An answer without end, as fast as it goes."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not over.is_set():
        request.wfile.write(b"x" * 65536)


def cut(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
    request.close_connection = True


class Receiver:
    """A real server on loopback that gives its answers in turn, the last of them from then on."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[tuple[Mapping[str, str], bytes]] = []
        self.over = threading.Event()
        left = list(answers or (status(204),))
        lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    receiver.requests.append((dict(self.headers.items()), body))
                    answer = left.pop(0) if len(left) > 1 else left[0]
                with contextlib.suppress(OSError):  # the sender hung up, as it should
                    answer(self, receiver.over)

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in list(self.requests)]

    def events(self) -> list[object]:
        return [json.loads(body) for _, body in list(self.requests)]

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    with contextlib.ExitStack() as stack:

        def make(*answers: Answer) -> Receiver:
            receiver = Receiver(*answers)
            stack.callback(receiver.close)
            return receiver

        yield make


@pytest.fixture
def sender() -> Iterator[Callable[..., Webhooks]]:
    with contextlib.ExitStack() as stack:

        def make(*urls: str, **options: float) -> Webhooks:
            hooks = Webhooks(urls, SECRET, **{"backoff": 0.01, **options})
            stack.callback(hooks.close, 0.5)
            return hooks

        yield make


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict]]:
    lines: list[tuple[str, str, dict]] = []
    monkeypatch.setattr(webhooks, "log", lambda level, event, **fields: lines.append((level, event, fields)))
    return lines


def counters(hooks: Webhooks) -> tuple[int, int, int]:
    return hooks.sent, hooks.failed, hooks.dropped


# What is signed, and how


def test_the_signature_is_that_of_the_specification() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")  # the example of the reference libraries
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_delivery_can_be_verified(receivers, sender) -> None:
    receiver = receivers()
    hooks = sender(receiver.url)
    hooks.send(EVENT)
    wait_for(lambda: hooks.sent == 1, 5, "the delivery")
    [(headers, body)] = receiver.requests
    assert json.loads(body) == EVENT
    assert headers["webhook-id"] == "evt_1"
    assert headers["content-type"] == "application/json"
    assert verify(SECRET, headers, body)
    assert not verify(SECRET, headers, body.replace(b"churn", b"fraud"))
    assert not verify(b"another secret", headers, body)
    assert not verify(SECRET, {**headers, "webhook-id": "evt_2"}, body)
    assert not verify(SECRET, {**headers, "webhook-timestamp": str(int(time.time()) + 1)}, body)


def signed(at: float, identity: str = "evt_1", body: bytes = b"{}") -> dict[str, str]:
    return {
        "Webhook-Id": identity,
        "Webhook-Timestamp": str(int(at)),
        "Webhook-Signature": signature(SECRET, identity, int(at), body),
    }


@pytest.mark.parametrize(
    ("age", "taken"), [(0, True), (290, True), (310, False), (-290, True), (-310, False)]
)
def test_an_old_signature_is_refused(age: int, taken: bool) -> None:
    assert verify(SECRET, signed(time.time() - age), b"{}") is taken


def test_one_of_several_signatures_is_enough() -> None:
    headers = signed(time.time())
    headers["Webhook-Signature"] = f"v1,bm8= v1a,bm8= {headers['Webhook-Signature']}"
    assert verify(SECRET, headers, b"{}")


@pytest.mark.parametrize(
    "changed",
    [
        {"Webhook-Signature": ""},
        {"Webhook-Signature": "v1,"},
        {"Webhook-Signature": "v1,é\ud800"},
        {"Webhook-Timestamp": ""},
        {"Webhook-Timestamp": "now"},
        {"Webhook-Timestamp": "-1"},
        {"Webhook-Timestamp": "١٢٣"},
        {"Webhook-Id": ""},
        {"Webhook-Id": "\ud800"},
    ],
    ids=ascii,
)
def test_what_cannot_be_read_is_refused(changed: dict[str, str]) -> None:
    assert not verify(SECRET, {**signed(time.time()), **changed}, b"{}")


@pytest.mark.parametrize("missing", ["Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"])
def test_every_header_is_needed(missing: str) -> None:
    headers = signed(time.time())
    del headers[missing]
    assert not verify(SECRET, headers, b"{}")


def test_the_border_between_id_and_body_cannot_be_moved() -> None:
    now = int(time.time())
    headers = signed(now, f"evt_1.{now}", b"{}")
    assert not verify(SECRET, headers, b"{}")


def test_an_empty_secret_signs_nothing() -> None:
    with pytest.raises(InvalidRequest, match="secret"):
        Webhooks(["http://h/"], b"")
    with pytest.raises(InvalidRequest, match="secret"):
        verify(b"", {}, b"")


# Ids


def test_an_event_without_an_id_gets_one(receivers, sender) -> None:
    receiver = receivers()
    hooks = sender(receiver.url)
    hooks.send({"n": 1})
    hooks.send({"n": 2})
    wait_for(lambda: hooks.sent == 2, 5, "both deliveries")
    assert len(set(receiver.ids())) == 2
    assert receiver.events() == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("own", ["with.stop", "two\r\nlines", "é", "x" * 500, "\ud800"], ids=ascii)
def test_an_id_that_no_header_can_hold_is_replaced_by_the_same_each_time(own: str) -> None:
    made = webhooks._identity(own)
    assert webhooks.IDENTITY.fullmatch(made)
    assert made == webhooks._identity(own)
    assert made != webhooks._identity(own + "x")


# Trying again


@pytest.mark.parametrize("code", [503, 500, 429, 408])
def test_a_fault_that_passes_is_tried_again_under_the_same_id(receivers, sender, code: int) -> None:
    receiver = receivers(status(code), status(code), status(200))
    hooks = sender(receiver.url)
    hooks.send(EVENT)
    wait_for(lambda: hooks.sent == 1, 5, "the delivery")
    assert receiver.ids() == ["evt_1"] * 3
    assert all(verify(SECRET, headers, body) for headers, body in receiver.requests)
    assert counters(hooks) == (1, 0, 0)


@pytest.mark.parametrize("code", [400, 404, 410, 302])
def test_a_refusal_is_not_tried_again(receivers, sender, logged, code: int) -> None:
    elsewhere = receivers()
    receiver = receivers(status(code, location=elsewhere.url))
    hooks = sender(receiver.url)
    hooks.send(EVENT)
    wait_for(lambda: hooks.failed == 1, 5, "the refusal")
    hooks.close(2)
    assert len(receiver.requests) == 1
    assert elsewhere.requests == []
    [(level, event, fields)] = logged
    assert (level, event) == ("error", "webhook_failed")
    assert fields == {
        "receiver": receiver.url.removesuffix("/hook"),
        "id": "evt_1",
        "detail": f"answered {code}",
        "attempts": 1,
    }


def test_after_the_last_attempt_it_is_given_up(receivers, sender, logged) -> None:
    receiver = receivers(status(503))
    hooks = sender(receiver.url, attempts=3)
    hooks.send(EVENT)
    wait_for(lambda: hooks.failed == 1, 5, "the end of the attempts")
    hooks.close(2)
    assert len(receiver.requests) == 3
    assert [(event, fields.get("attempts")) for level, event, fields in logged if level == "error"] == [
        ("webhook_failed", 3)
    ]
    assert counters(hooks) == (0, 1, 0)


def test_nobody_there_is_tried_again(sender, logged) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hooks = sender(f"http://127.0.0.1:{port}/", attempts=2)
    hooks.send(EVENT)
    wait_for(lambda: hooks.failed == 1, 5, "the end of the attempts")
    wait_for(lambda: logged and logged[-1][0] == "error", 5, "the line in the log")
    assert "Connect" in logged[-1][2]["detail"]


def test_a_receiver_says_when_to_come_again(receivers, sender) -> None:
    receiver = receivers(status(503, retry_after="3600"), status(200))
    hooks = sender(receiver.url)
    hooks.send(EVENT)
    wait_for(lambda: receiver.requests and hooks._receivers[0].waiting, 5, "the first attempt")
    due = hooks._receivers[0].waiting[0].due - time.monotonic()
    assert 50 < due <= webhooks.LONGEST_PAUSE
    hooks.send({"id": "evt_2"})  # does not wait for the first
    wait_for(lambda: hooks.sent == 1, 5, "the second event")
    began = time.monotonic()
    hooks.close(10)  # nor does the end, where the time is too short for it
    assert time.monotonic() - began < 5
    assert counters(hooks) == (1, 0, 1)


def test_what_retry_after_can_say() -> None:
    assert webhooks._retry_after("7") == 7
    assert 50 < webhooks._retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert webhooks._retry_after(formatdate(time.time() - 60, usegmt=True)) == 0
    for nonsense in ("", "soon", "-1", "1e9", "Mon, 99 Foo 99999999999999 99:99:99 GMT"):
        assert webhooks._retry_after(nonsense) == 0


def test_pauses_grow_up_to_a_bound() -> None:
    assert [pause_before(0.5, attempt, 0, 0) for attempt in (1, 2, 3, 4)] == [0.5, 1, 2, 4]
    assert pause_before(0.5, 2, 0, 1) == 0.5
    assert pause_before(0.5, 10**6, 0, 0) == webhooks.LONGEST_PAUSE
    assert pause_before(0.5, 1, 20, 0) == 20
    assert pause_before(0.5, 1, 10**9, 0) == webhooks.LONGEST_PAUSE


# Receivers that misbehave


def test_a_receiver_that_hangs_delays_nobody_else(receivers, sender) -> None:
    slow, quick = receivers(hang), receivers()
    hooks = sender(slow.url, quick.url, timeout=30)
    for n in range(5):
        hooks.send({"id": f"evt_{n}"})
    wait_for(lambda: hooks.sent == 5, 5, "the quick receiver")
    assert quick.ids() == [f"evt_{n}" for n in range(5)]
    wait_for(lambda: len(slow.requests) == 1, 5, "the slow receiver")
    began = time.monotonic()
    hooks.close(0.4)
    assert time.monotonic() - began < 1
    assert not hooks._thread.is_alive()
    assert counters(hooks) == (5, 0, 5)


@pytest.mark.parametrize("answer", [hang, drip, cut])
def test_an_attempt_has_an_end(receivers, sender, answer: Answer) -> None:
    receiver = receivers(answer, answer, status(200))
    hooks = sender(receiver.url, timeout=0.15)
    hooks.send(EVENT)
    wait_for(lambda: hooks.sent == 1, 3, "the attempt after those that came to nothing")
    assert len(receiver.requests) >= 3
    assert set(receiver.ids()) == {"evt_1"}


@pytest.mark.parametrize(("answer", "timeout"), [(drip_body, 0.15), (pour, 30)])
def test_of_an_answer_the_status_is_enough(receivers, sender, answer: Answer, timeout: float) -> None:
    receiver = receivers(answer)
    hooks = sender(receiver.url, timeout=timeout)
    hooks.send(EVENT)
    wait_for(lambda: hooks.sent == 1, 3, "the delivery")
    assert len(receiver.requests) == 1


def test_a_lookup_that_hangs_delays_nobody(receivers, sender, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    found = socket.getaddrinfo

    def slow(host, *rest):
        if host in {"hangs.test", b"hangs.test"}:
            over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return found(host, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    receiver = receivers()
    hooks = sender("http://hangs.test/", receiver.url.replace("127.0.0.1", "localhost"), timeout=30)
    hooks.send(EVENT)
    wait_for(lambda: hooks.sent == 1, 5, "the other receiver")
    began = time.monotonic()
    hooks.close(0.4)
    assert time.monotonic() - began < 1
    assert not hooks._thread.is_alive()
    lookups = [thread for thread in threading.enumerate() if thread.name == "turnout-lookup"]
    assert lookups
    assert all(thread.daemon for thread in lookups)
    over.set()
    for thread in lookups:
        thread.join(5)


def test_a_cookie_is_not_kept(receivers, sender) -> None:
    receiver = receivers(status(200, set_cookie="a=b; Path=/"))
    hooks = sender(receiver.url)
    hooks.send(EVENT)
    hooks.send(EVENT)
    wait_for(lambda: hooks.sent == 2, 5, "both deliveries")
    assert not any("cookie" in map(str.lower, headers) for headers, _ in receiver.requests)


# What waits


def test_when_too_many_wait_the_oldest_goes(receivers, sender, logged) -> None:
    slow, quick = receivers(hang, status(200)), receivers()
    hooks = sender(slow.url, quick.url, waiting=3, timeout=30)
    hooks.send({"id": "evt_0"})
    wait_for(lambda: len(slow.requests) == 1, 5, "the first at the slow receiver")
    for n in range(1, 7):
        hooks.send({"id": f"evt_{n}"})
        wait_for(lambda n=n: hooks.sent == n + 1, 5, "each at the quick receiver")
    assert hooks.dropped == 3
    assert [event for _, event, _ in logged] == ["webhooks_dropped"] * 3
    assert {fields["receiver"] for _, _, fields in logged} == {slow.url.removesuffix("/hook")}
    slow.over.set()  # the first comes to nothing, and it is the oldest now
    wait_for(lambda: hooks.sent == 10, 5, "the rest")
    assert slow.ids() == ["evt_0", "evt_4", "evt_5", "evt_6"]
    assert counters(hooks) == (10, 0, 4)


def test_what_waits_is_delivered_before_the_end(receivers, sender) -> None:
    receiver = receivers()
    hooks = sender(receiver.url)
    for n in range(20):
        hooks.send({"id": f"evt_{n}"})
    hooks.close(5)
    assert receiver.ids() == [f"evt_{n}" for n in range(20)]
    assert counters(hooks) == (20, 0, 0)
    hooks.send(EVENT)
    hooks.close(5)
    assert counters(hooks) == (20, 0, 1)


def test_an_event_is_sent_as_it_was(receivers, sender) -> None:
    receiver = receivers(hang, status(200))
    hooks = sender(receiver.url, timeout=0.1)
    event = {"id": "evt_1", "state": "before"}
    hooks.send(event)
    event["state"] = "after"
    wait_for(lambda: hooks.sent == 1, 5, "the delivery")
    assert len(receiver.requests) >= 2
    assert all(event == {"id": "evt_1", "state": "before"} for event in receiver.events())


def test_any_mapping_is_sent_and_what_is_no_json_as_text(receivers, sender) -> None:
    receiver = receivers()
    hooks = sender(receiver.url)
    hooks.send(MappingProxyType({"id": 7, "data": MappingProxyType({"error": ValueError("no")})}))
    wait_for(lambda: hooks.sent == 1, 5, "the delivery")
    assert receiver.ids() == ["7"]
    assert receiver.events() == [{"id": 7, "data": {"error": "no"}}]


def test_what_cannot_be_sent_raises_nothing(sender, logged) -> None:
    hooks = sender("http://127.0.0.1:1/", "http://127.0.0.1:2/")
    endless: dict[str, object] = {}
    endless["self"] = endless
    hooks.send(endless)
    assert counters(hooks) == (0, 2, 0)
    assert [event for _, event, _ in logged] == ["webhook_failed"]
    assert hooks._thread is None


# Beginning and end


def test_nothing_begins_before_the_first_event(receivers, sender) -> None:
    receiver = receivers()
    hooks = sender(receiver.url, receiver.url)
    assert hooks._thread is None
    hooks.send(EVENT)
    assert hooks._thread.daemon
    wait_for(lambda: hooks.sent == 1, 5, "the delivery; a url named twice is one receiver")


def test_start_can_be_called_twice(receivers, sender) -> None:
    hooks = sender(receivers().url)
    hooks.start()
    thread = hooks._thread
    hooks.start()
    assert hooks._thread is thread
    hooks.close(5)
    assert not thread.is_alive()
    hooks.start()
    assert hooks._thread is thread


def test_without_receivers_nothing_happens(sender) -> None:
    hooks = sender()
    hooks.send(EVENT)
    hooks.close(0)
    assert hooks._thread is None
    assert counters(hooks) == (0, 0, 0)


def test_a_thread_that_ended_is_replaced(receivers, sender, logged, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = receivers()
    hooks = sender(receiver.url)
    with monkeypatch.context() as broken:
        broken.setattr(webhooks.httpx, "AsyncClient", lambda **_: 1 / 0)
        hooks.send({"id": "evt_1"})
        hooks._thread.join(5)
    assert [event for _, event, _ in logged] == ["webhooks_stopped"]
    hooks.send({"id": "evt_2"})
    wait_for(lambda: hooks.sent == 2, 5, "both deliveries")
    assert receiver.ids() == ["evt_1", "evt_2"]


# What can be a receiver


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/hook",
        "https://example.com",
        "https://example.com/a/b?token=c%20d",
        "HTTPS://[::1]:443/",
        "https://example.com/user@team",
        "https://example.com/" + "a" * (2000 - 20),
    ],
)
def test_a_url(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "http://"),
        ("example.com/hook", "http://"),
        ("ftp://example.com/", "http://"),
        ("file:///etc/passwd", "http://"),
        ("//example.com/", "http://"),
        ("http:///hook", "host"),
        ("http://", "host"),
        ("http:\\\\example.com", "host"),
        ("http://user:pass@example.com/", "credentials"),
        ("http://user@example.com/", "credentials"),
        ("http://example.com/#top", "fragment"),
        ("http://example.com/#", "fragment"),
        ("http://example.com:0/", "port"),
        ("http://example.com:65536/", "port"),
        ("http://example.com:x/", "like"),
        ("http://999.1.1.1/", "like"),
        ("http://[::1/", "like"),
        (" http://example.com/", "spaces"),
        ("http://exa mple.com/", "spaces"),
        ("http://example.com/\r\nx: y", "control"),
        ("http://example.com/\ud800", "control"),
        ("https://example.com/" + "a" * (2001 - 20), "2000 characters, found 2001"),
    ],
    ids=ascii,
)
def test_no_url(url: str, expected: str) -> None:
    with pytest.raises(InvalidRequest, match=expected) as refused:
        check_url(url)
    assert "pass" not in refused.value.detail
    with pytest.raises(InvalidRequest):
        Webhooks([url], SECRET)


@pytest.mark.parametrize("options", [{"attempts": 0}, {"waiting": 0}, {"timeout": 0}, {"backoff": -1}])
def test_numbers_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match="at least"):
        Webhooks(["http://h/"], SECRET, **options)
