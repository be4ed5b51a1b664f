"""What RSGI leaves out and the bridge to ASGI makes up for, over real sockets: see turnout.api.rsgi."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from models import linear_matrix
from servers import Server, path, wait_for

FLAGS = f"flags:\t0{os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC:o}"
LINE = b'{"entity_id": "user-%d", "features": [1, 2]}\n'


@pytest.fixture(scope="module")
def rsgi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("rsgi") / "data", workers=1, interface="rsgi") as running:
        running.release("m", "v1", linear_matrix([1, 1]), features=["a", "b"])
        yield running


def opened(server: Server, head: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(f"{head}\r\nHost: x\r\n".encode())
    return connection


def streamed(server: Server, parts: Iterator[bytes]) -> socket.socket:
    """A batch of lines, sent in chunks until the server takes no more, or there are none."""
    connection = opened(
        server,
        f"POST {path('m', 'batch')} HTTP/1.1\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked",
    )
    connection.sendall(b"\r\n")
    for part in parts:
        connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
    return connection


def worker(server: Server) -> psutil.Process:
    (found,) = [
        child
        for child in psutil.Process(server.process.pid).children()
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    return found


def test_a_client_that_does_not_read_is_waited_for_in_little_memory(rsgi: Server) -> None:
    before, open_before = worker(rsgi).memory_info().rss, pipes(rsgi)
    lines = b"".join(LINE % number for number in range(5000))
    connection = streamed(rsgi, iter(()))
    connection.settimeout(2)
    sent = 0
    with suppress(TimeoutError):
        while sent < 1000:
            connection.sendall(b"%x\r\n%s\r\n" % (len(lines), lines))
            sent += 1
    grown = worker(rsgi).memory_info().rss - before
    assert sent < 100
    assert grown < 48 * 1024**2
    assert pipes(rsgi) == open_before + 1
    connection.close()
    wait_for(lambda: pipes(rsgi) == open_before, 10, "the pipe of an answer that nobody takes to be closed")


def pipes(server: Server) -> int:
    """Ends of pipes for writing without blocking: those of answers, and some of the event loop."""
    found = 0
    for link in Path(f"/proc/{worker(server).pid}/fd").iterdir():
        try:
            found += "pipe:" in str(link.readlink()) and FLAGS in fdinfo(link)
        except OSError:
            continue
    return found


def fdinfo(link: Path) -> str:
    return (link.parent.parent / "fdinfo" / link.name).read_text()


@pytest.mark.parametrize("end", [b"", b"zz\r\n"])
def test_a_body_that_is_cut_off_is_no_body(rsgi: Server, end: bytes) -> None:
    def requests() -> float:
        return sum(
            float(line.rpartition(" ")[2])
            for line in rsgi.client.get("/metrics").text.splitlines()
            if line.startswith("turnout_requests_total")
        )

    before = requests()
    document = b'{"entity_id": "u", "features": [1, 2]}'
    connection = opened(rsgi, f"POST {path('m', 'predict')} HTTP/1.1\r\nTransfer-Encoding: chunked")
    connection.sendall(b"\r\n%x\r\n%s\r\n%s" % (len(document), document, end))
    connection.shutdown(socket.SHUT_WR)
    assert b" 200 " not in connection.recv(1000)
    connection.close()
    assert requests() == before


def test_a_body_in_chunks_is_answered(rsgi: Server) -> None:
    answer = rsgi.client.post(
        path("m", "predict"), content=iter([b'{"entity_id": "u",', b' "features": [1, 2]}'])
    )
    assert (answer.status_code, answer.json()["outputs"]) == (200, {"score": [3.0]})


def test_a_header_that_cannot_be_read_is_refused_where_it_counts(rsgi: Server) -> None:
    answer = rsgi.client.post(
        path("m", "activate"), json={"version": "v1"}, headers={"X-Actor": "Jürgen".encode()}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    named = {"X-Request-Id": "Jürgen".encode(), "User-Agent": "ü".encode()}
    assert rsgi.client.get("/livez", headers=named).status_code == 200


def test_head_is_get_without_a_body(rsgi: Server) -> None:
    for target in ("/v1/status", "/metrics", "/v1/registry/export?artifacts=true"):
        head = rsgi.client.head(target)
        assert (head.status_code, head.content) == (200, b"")


def test_answers_in_parts_come_while_they_are_made(rsgi: Server) -> None:
    connection = streamed(rsgi, iter([b"".join(LINE % number for number in range(2000))] * 8))
    connection.settimeout(10)
    assert b" 200 " in connection.recv(100), "before the body has ended"
    connection.sendall(b"0\r\n\r\n")
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        part = connection.recv(1 << 20)
        assert part
        received += part
    whole = re.sub(rb"\r\n[0-9A-Fa-f]+\r\n", b"", received)  # a part may begin anywhere
    assert whole.count(b'"version":"v1"') == 16000
    connection.close()


def test_an_answer_of_many_parts_is_whole_and_its_pipe_is_closed(rsgi: Server) -> None:
    before = pipes(rsgi)
    for _ in range(20):
        answer = rsgi.client.get("/v1/registry/export", params={"artifacts": "true"})
        assert answer.content[257:262] == b"ustar"
    assert pipes(rsgi) == before


def test_a_client_that_goes_leaves_the_others_their_answers(rsgi: Server) -> None:
    for _ in range(50):
        connection = opened(rsgi, f"POST {path('m', 'predict')} HTTP/1.1\r\nContent-Length: 100")
        connection.sendall(b"\r\n{")
        connection.close()
    body = {"entity_id": "u", "features": [1, 2]}
    assert json.loads(rsgi.client.post(path("m", "predict"), json=body).content)["version"] == "v1"
    assert [event for event in rsgi.events() if event["level"] == "error"] == []
