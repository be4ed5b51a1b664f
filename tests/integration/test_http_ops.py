"""What operators ask a server, and what happens to its processes."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from servers import START_SECONDS, Server, assert_problem, wait_for


def test_the_probes_and_the_index(server: Server) -> None:
    assert server.client.get("/livez").json() == {"live": True}
    assert server.client.get("/readyz").json() == {"ready": True}
    index = server.client.get("/").json()
    for name, route in index.items():
        assert name == "turnout" or server.client.get(route).status_code == 200


def test_metrics_are_prometheus_text(server: Server) -> None:
    response = server.client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "turnout_generation" in response.text
    assert "turnout_workers 2.0" in response.text


def test_status_shows_all_workers(server: Server) -> None:
    status = server.client.get("/v1/status").json()
    assert {worker["pid"] for worker in status["workers"]} == {child.pid for child in server.family()}
    assert all(worker["ready"] and not worker["draining"] for worker in status["workers"])


def test_head_and_options(server: Server) -> None:
    head = server.client.head("/v1/status")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    options = server.client.options("/v1/models/x/activate")
    assert options.status_code == 204
    assert "POST" in options.headers["allow"]


@pytest.mark.parametrize(
    "route", ["/nothing", "/v1", "/v1/models/a/b/c/d", "/v1/models/%ff", "/v1//", "/%2e%2e/etc/passwd"]
)
def test_unknown_paths(server: Server, route: str) -> None:
    response = server.client.get(route)
    assert response.status_code in {400, 404}
    assert_problem(response, response.status_code, response.json()["code"])


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "PUT", "POST", "BREW"])
def test_methods_that_are_not_allowed(server: Server, method: str) -> None:
    response = server.client.request(method, "/v1/status")
    assert_problem(response, 405, "method_not_allowed")
    assert "GET" in response.headers["allow"]


def test_every_route_of_the_openapi_document_describes_its_problems(server: Server) -> None:
    document = server.client.get("/schema/openapi.json").json()
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len(operations) > 25
    for operation in operations:
        assert operation["summary"]
        assert operation["tags"]
    assert (
        "multipart/form-data"
        in document["paths"]["/v1/models/{model}/versions/{version}"]["put"]["requestBody"]["content"]
    )


def test_every_line_of_the_log_is_json_with_time_level_and_event(server: Server) -> None:
    events = server.events()
    assert len(events) == len(server.log_text().splitlines())
    assert {"start", "ready"} <= {event["event"] for event in events}
    assert all({"time", "level", "event"} <= event.keys() for event in events)


def test_killed_workers_come_back_again_and_again(tmp_path: Path) -> None:
    with Server(tmp_path / "data", workers=2) as server:
        for _ in range(4):
            before = {child.pid for child in server.family()}
            for child in server.family():
                child.kill()
            wait_for(lambda old=before: _replaced(server, old), START_SECONDS, "two new workers")
        assert server.stop() == 0


def _replaced(server: Server, before: set[int]) -> bool:
    serving = {event["pid"] for event in server.events("ready")}
    now = {child.pid for child in server.family()}
    return len(now - before) == 2 and now <= serving


def test_a_port_in_use_is_an_error_that_says_so(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        second = Server(tmp_path / "data", port=taken.getsockname()[1])
        second.launch()
        try:
            assert second.wait(START_SECONDS) != 0
            assert "cannot listen on 127.0.0.1" in second.log_text()
        finally:
            second.close()


def test_a_data_directory_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    server = Server(tmp_path / "data")
    server.launch()
    try:
        assert server.wait(START_SECONDS) == 1
        (line,) = server.log_text().splitlines()
        assert "cannot be made" in line
    finally:
        server.close()


@pytest.mark.parametrize(("device", "status"), [("tpu", 1), ("cuda:", 1), ("cuda:99", 1)])
def test_a_device_that_is_none_is_an_error_before_anything_is_served(
    tmp_path: Path, device: str, status: int
) -> None:
    server = Server(tmp_path / "data", device=device)
    server.launch()
    try:
        assert server.wait(START_SECONDS) == status
        (line,) = server.log_text().splitlines()
        assert device in line
        assert not server.events("ready")
    finally:
        server.close()


def test_the_server_listens_on_loopback_only(server: Server) -> None:
    (started,) = server.events("start")
    assert started["host"] == "127.0.0.1"
    assert not server.events("open_to_network")


def test_a_hangup_replaces_the_workers(tmp_path: Path) -> None:
    with Server(tmp_path / "data", workers=1) as server:
        before = {child.pid for child in server.family()}
        server.send(signal.SIGHUP)
        wait_for(
            lambda: len(server.events("ready")) > 1 and not before & {c.pid for c in server.family()},
            START_SECONDS,
            "a new worker",
        )
        assert server.client.get("/livez").status_code == 200
