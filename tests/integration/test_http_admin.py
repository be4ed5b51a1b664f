"""The registry over HTTP: a model's whole life, with who, why, and against which revision."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from models import linear_matrix
from servers import JSON, Server, assert_problem, path

ONE = linear_matrix([1.0, 0.0], bias=1.0)
TWO = linear_matrix([1.0, 0.0], bias=2.0)
NAMES = ["a", "b"]


def etag(server: Server, model: str) -> str:
    return server.client.get(path(model)).headers["etag"]


def registered(server: Server, model: str) -> None:
    """Two versions, the first active."""
    server.release(model, "v1", ONE, features=NAMES, accuracy=0.8, metrics={"precision": 0.7, "recall": 0.5})
    assert (
        server.put(model, "v2", TWO, features=NAMES, accuracy=0.9, metrics={"precision": 0.8}).status_code
        == 201
    )


def split(server: Server, model: str, splits: dict[str, float], **more: Any) -> httpx.Response:
    return server.client.put(path(model, "test"), json={"splits": splits, **more})


def test_a_version_is_registered_once_and_never_changed(server: Server) -> None:
    first = server.put("put", "v1", ONE, features=NAMES, accuracy=0.8, metadata={"algorithm": "linear"})
    assert first.status_code == 201, first.text
    version = first.json()
    assert (version["model"], version["version"], version["accuracy"]) == ("put", "v1", 0.8)
    assert [feature["name"] for feature in version["features"]] == NAMES
    assert int(first.headers["turnout-generation"]) > 0
    again = server.put("put", "v1", ONE, features=NAMES, accuracy=0.8, metadata={"algorithm": "linear"})
    assert again.status_code == 200
    assert again.json() == version
    assert_problem(server.put("put", "v1", TWO, features=NAMES), 409, "version_exists")
    assert server.client.get(path("put", "versions", "v1")).json() == version
    assert server.client.get(path("put", "versions")).json() == [version]


def test_the_parts_of_an_upload_come_in_any_order(server: Server) -> None:
    files = {"spec": (None, json.dumps({"features": NAMES})), "artifact": ("m.onnx", ONE)}
    assert server.client.put(path("order", "versions", "v1"), files=files).status_code == 201
    bare = server.client.put(path("order", "versions", "v2"), files={"artifact": ("m.onnx", ONE)})
    assert bare.status_code == 201, bare.text
    assert [feature["name"] for feature in bare.json()["features"]] == ["", ""]


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        ({"spec": (None, "{}")}, 400, "invalid_request"),
        ({"artifact": ("m", ONE), "more": ("m", b"x")}, 400, "invalid_request"),
        ({"artifact": ("m", ONE), "spec": (None, "{")}, 400, "invalid_request"),
        ({"artifact": ("m", ONE), "spec": (None, '{"path": "/etc/passwd"}')}, 400, "invalid_request"),
        ({"artifact": ("m", ONE), "spec": (None, '{"accuracy": "high"}')}, 400, "invalid_request"),
        ({"artifact": ("m", ONE), "spec": (None, " " * 1_100_000)}, 413, "payload_too_large"),
        ({"artifact": ("m", ONE), "spec": (None, '{"features": ["a"]}')}, 422, "invalid_model"),
        ({"artifact": ("m", b"")}, 422, "invalid_model"),
        ({"artifact": ("m", b"not a model")}, 422, "invalid_model"),
        ({"artifact": ("m", ONE[: len(ONE) // 2])}, 422, "invalid_model"),
        ({"artifact": ("m", b"\x3a\xff\x01\x2a" + bytes(range(256)) * 10)}, 422, "invalid_model"),
        ({"artifact": ("m", b"\x3a\x05\x2a\x03\x0a\x7f\x00")}, 422, "invalid_model"),
    ],
)
def test_bad_uploads_are_refused(server: Server, files: Any, status: int, code: str) -> None:
    assert_problem(server.client.put(path("bad", "versions", "v1"), files=files), status, code)
    assert_problem(server.client.get(path("bad")), 404, "model_not_found")


def test_an_upload_that_is_no_form_is_refused(server: Server) -> None:
    plain = server.client.put(path("bad", "versions", "v1"), content=ONE)
    assert_problem(plain, 415, "unsupported_media_type")
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    torn = server.client.put(path("bad", "versions", "v1"), content=b"--x\r\nnothing", headers=headers)
    assert_problem(torn, 400, "invalid_request")


def test_an_artifact_past_the_limit_leaves_nothing(tmp_path: Path) -> None:
    with Server(tmp_path / "data", max_artifact_bytes=1000) as server:
        large = b"x" * 1001
        assert_problem(server.put("m", "v1", large), 413, "payload_too_large")
        assert_problem(server.put("m", "v1", b"x" * 5_000_000), 413, "payload_too_large")
        left = [
            file
            for file in (tmp_path / "data" / "uploads").rglob("*")
            if file.is_file() and file.stat().st_size
        ]
        assert left == []


def test_a_change_says_who_why_and_where_it_has_arrived(server: Server) -> None:
    registered(server, "life")
    body = {"version": "v2", "reason": "passed the review"}
    activated = server.client.post(path("life", "activate"), json=body, headers={"X-Actor": quote("Jürgen")})
    assert activated.status_code == 200
    assert activated.json()["version"] == "v2"
    assert "turnout-pending" not in activated.headers
    assert activated.headers["etag"] == etag(server, "life")
    event = server.client.get("/v1/audit", params={"model": "life"}).json()[-1]
    assert (event["actor"], event["reason"], event["version"]) == ("Jürgen", "passed the review", "v2")
    assert event["generation"] == int(activated.headers["turnout-generation"])
    assert server.predict("life", [0, 0]).json()["version"] == "v2"
    back = server.client.post(path("life", "rollback"), json={"reason": "errors"})
    assert back.json()["version"] == "v1"
    assert server.predict("life", [0, 0]).json()["version"] == "v1"
    changes = [event for event in server.events("change") if event["actor"] == "Jürgen"]
    assert changes[0]["generation"] == event["generation"]


def test_of_two_writers_with_one_revision_one_is_refused(server: Server) -> None:
    registered(server, "race")
    seen = etag(server, "race")
    assert server.activate("race", "v2", **{"If-Match": seen}).status_code == 200
    assert_problem(server.activate("race", "v1", **{"If-Match": seen}), 412, "revision_conflict")
    assert server.client.get(path("race")).json()["active"] == "v2"
    assert server.activate("race", "v1", **{"If-Match": "*"}).status_code == 200
    for malformed in ['W/"3"', "3", '"x"', '"1", "2"', ""]:
        assert_problem(server.activate("race", "v1", **{"If-Match": malformed}), 400, "invalid_request")


def test_a_test_from_start_to_promotion(server: Server) -> None:
    registered(server, "ab")
    assert_problem(server.client.get(path("ab", "test")), 404, "test_not_found")
    started = split(server, "ab", {"v1": 0.8, "v2": 0.2}, salt="s")
    assert started.status_code == 200, started.text
    assert {arm["version"]: arm["weight"] for arm in started.json()["arms"]} == {"v1": 0.8, "v2": 0.2}
    before = {f"user-{n}": server.predict("ab", [0, 0], f"user-{n}").json()["version"] for n in range(200)}
    ramped = split(server, "ab", {"v1": 0.5, "v2": 0.5})
    assert (ramped.json()["id"], ramped.json()["revision"]) == (started.json()["id"], 2)
    after = {entity: server.predict("ab", [0, 0], entity).json()["version"] for entity in before}
    assert set(before.values()) == {"v1", "v2"}
    assert all(after[entity] == "v2" for entity, version in before.items() if version == "v2")
    assigned = server.client.get(path("ab", "assignments", "user-7")).json()
    assert (assigned["version"], assigned["reason"]) == (after["user-7"], "test")
    shares = server.client.get(path("ab", "distribution")).json()["shares"]
    assert [round(share["synthetic"], 2) for share in shares] == [0.5, 0.5]
    assert_problem(server.client.delete(path("ab", "versions", "v2")), 409, "version_in_use")
    promoted = server.client.post(path("ab", "test", "promote"), json={"version": "v2"})
    assert promoted.json()["version"] == "v2"
    assert_problem(server.client.get(path("ab", "test")), 404, "test_not_found")
    assert {server.predict("ab", [0, 0], entity).json()["version"] for entity in before} == {"v2"}
    (test,) = server.client.get(path("ab", "tests")).json()
    assert (test["status"], test["winner"]) == ("promoted", "v2")


def test_a_stopped_test_gives_all_traffic_to_the_active_version(server: Server) -> None:
    registered(server, "stop")
    split(server, "stop", {"v1": 0.0, "v2": 1.0})
    assert server.predict("stop", [0, 0], "x").json()["version"] == "v2"
    stopped = server.client.delete(path("stop", "test"), params={"reason": "enough"})
    assert stopped.status_code == 200
    assert stopped.json()["status"] == "stopped"
    assert server.predict("stop", [0, 0], "x").json()["version"] == "v1"
    assert_problem(server.client.delete(path("stop", "test")), 404, "test_not_found")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"splits": {"v1": 0.5, "v2": 0.4}}, 400, "invalid_split"),
        ({"splits": {"v1": 1.5, "v2": -0.5}}, 400, "invalid_split"),
        ({"splits": {}}, 400, "invalid_split"),
        ({"splits": {"v1": 0.5, "v9": 0.5}}, 404, "version_not_found"),
        ({"splits": {"v1": "half"}}, 400, "invalid_request"),
        ({"splits": [1]}, 400, "invalid_request"),
        ({"weights": {"v1": 1}}, 400, "invalid_request"),
    ],
)
def test_bad_splits(server: Server, body: Any, status: int, code: str) -> None:
    registered_once(server, "splits")
    assert_problem(server.client.put(path("splits", "test"), json=body), status, code)


def registered_once(server: Server, model: str) -> None:
    if server.client.get(path(model)).status_code == 404:
        registered(server, model)


def test_a_look_back_at_an_assignment(server: Server) -> None:
    registered(server, "past")
    at = datetime.now(UTC).isoformat()
    assert server.activate("past", "v2").status_code == 200
    then = server.client.get(path("past", "assignments", "u/1 ü"), params={"at": at}).json()
    assert (then["version"], then["entity_id"]) == ("v1", "u/1 ü")
    assert server.client.get(path("past", "assignments", "u/1 ü")).json()["version"] == "v2"
    never = server.client.get(path("past", "assignments", "u"), params={"at": "2020-01-01T00:00:00Z"})
    assert_problem(never, 404, "no_active_version")
    for bad in ["yesterday", "2020-01-01T00:00:00"]:
        response = server.client.get(path("past", "assignments", "u"), params={"at": bad})
        assert_problem(response, 400, "invalid_request")


def test_overrides(server: Server) -> None:
    registered(server, "qa")
    entity = path("qa", "overrides", "user/1 ü")
    put = server.client.put(entity, json={"version": "v2"})
    assert put.status_code == 200, put.text
    assert server.client.get(path("qa", "overrides")).json() == {"user/1 ü": "v2"}
    answer = server.predict("qa", [0, 0], "user/1 ü").json()
    assert (answer["version"], answer["reason"]) == ("v2", "override")
    assert server.predict("qa", [0, 0], "user-2").json()["version"] == "v1"
    assert_problem(server.client.delete(path("qa", "versions", "v2")), 409, "version_in_use")
    assert_problem(server.client.put(entity, json={"version": "v9"}), 404, "version_not_found")
    assert server.client.delete(entity).json() == {"deleted": True}
    assert_problem(server.client.delete(entity), 404, "not_found")
    assert server.predict("qa", [0, 0], "user/1 ü").json()["version"] == "v1"


def test_compare_and_history(server: Server) -> None:
    registered(server, "report")
    server.activate("report", "v2")
    compared = server.client.get(path("report", "compare"), params={"a": "v1", "b": "v2"}).json()
    assert compared["accuracy_diff"] == pytest.approx(0.1)
    assert compared["metrics_diff"] == {"precision": pytest.approx(0.1)}
    missing = server.client.get(path("report", "compare"), params={"a": "v1"})
    assert_problem(missing, 400, "invalid_request")
    history = server.client.get(path("report", "history")).json()
    assert history["current_version"] == "v2"
    assert [version["version"] for version in history["versions"]] == ["v2", "v1"]
    assert [stay["version"] for stay in history["deployments"]] == ["v1", "v2"]


def test_deletion(server: Server) -> None:
    registered(server, "tidy")
    assert_problem(server.client.delete(path("tidy", "versions", "v1")), 409, "version_in_use")
    deleted = server.client.delete(path("tidy", "versions", "v2"), params={"reason": "old"})
    assert deleted.status_code == 200
    assert deleted.json() == {"deleted": True}
    assert_problem(server.client.delete(path("tidy", "versions", "v2")), 404, "version_not_found")
    assert_problem(server.client.get(path("tidy", "versions", "v2")), 404, "version_not_found")


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("GET", path("ghost")),
        ("GET", path("ghost", "versions")),
        ("GET", path("ghost", "test")),
        ("GET", path("ghost", "tests")),
        ("GET", path("ghost", "history")),
        ("GET", path("ghost", "distribution")),
        ("GET", path("ghost", "overrides")),
        ("GET", path("ghost", "assignments", "x")),
        ("GET", path("ghost", "compare") + "?a=1&b=2"),
        ("POST", path("ghost", "rollback")),
        ("DELETE", path("ghost", "test")),
    ],
)
def test_a_model_that_is_not_there(server: Server, method: str, route: str) -> None:
    content = b"{}" if method == "POST" else None
    headers = JSON if method == "POST" else {}
    response = server.client.request(method, route, content=content, headers=headers)
    assert assert_problem(response, 404, "model_not_found")["detail"] == "Model ghost not found"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": "v1", "x": 1}', b"\xff"]
)
def test_a_bad_body_of_a_write(server: Server, content: bytes) -> None:
    response = server.client.post(path("ghost", "activate"), content=content, headers=JSON)
    assert_problem(response, 400, "invalid_request")


@pytest.mark.parametrize("kind", [{"Content-Type": "text/plain"}, {}])
def test_a_write_that_a_web_page_could_send_is_refused(server: Server, kind: dict[str, str]) -> None:
    response = server.client.post(path("ghost", "activate"), content=b'{"version": "v1"}', headers=kind)
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("name", [".", "..", " x", "x ", "a\nb", "x" * 201, "\x00"])
def test_names_that_can_not_be(server: Server, name: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    url = f"{server.url}/v1/models/{encoded}/versions/v1"
    response = httpx.put(url, files={"artifact": ("m", ONE)})
    assert_problem(response, 400, "invalid_name") if name not in {".", ".."} else assert_refused(response)


def assert_refused(response: httpx.Response) -> None:
    """Clients resolve dots in paths before they send them, so these may not even arrive."""
    assert response.status_code in {400, 404, 405}


def test_the_audit_log_comes_in_pages(server: Server) -> None:
    registered(server, "pages")
    first = server.client.get("/v1/audit", params={"limit": 2}).json()
    rest = server.client.get("/v1/audit", params={"after": first[-1]["sequence"]}).json()
    everything = server.client.get("/v1/audit").json()
    assert first + rest == everything
    assert [event["sequence"] for event in everything] == sorted({event["sequence"] for event in everything})
    assert_problem(server.client.get("/v1/audit", params={"limit": 0}), 400, "invalid_request")


def test_a_registry_moves_to_another_server(server: Server, tmp_path: Path) -> None:
    with Server(tmp_path / "first") as first, Server(tmp_path / "second") as second:
        registered(first, "moved")
        split(first, "moved", {"v1": 0.7, "v2": 0.3})
        document = first.client.get("/v1/registry/export").json()
        without_files = second.client.post("/v1/registry/import", json=document)
        assert without_files.status_code in {400, 409}
        archive = first.client.get("/v1/registry/export", params={"artifacts": "true"})
        assert archive.headers["content-type"] == "application/x-tar"
        with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
            assert "registry.json" in tar.getnames()
        headers = {"Content-Type": "application/x-tar"}
        imported = second.client.post("/v1/registry/import", content=archive.content, headers=headers)
        assert imported.status_code == 200, imported.text
        assert imported.json() == {"models": ["moved"]}
        assert second.client.get("/v1/registry/export").json() == document
        for n in range(20):
            there = second.predict("moved", [0, 0], f"u{n}").json()
            assert there["version"] == first.predict("moved", [0, 0], f"u{n}").json()["version"]


def test_an_import_with_paths_is_refused(server: Server) -> None:
    document = {"churn": [{"version": "v1", "modelPath": "/etc/passwd", "createdAt": "2024-01-01T00:00:00Z"}]}
    refused = server.client.post("/v1/registry/import", json=document)
    assert "modelPath" in assert_problem(refused, 400, "invalid_document")["detail"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"format": "else"}'])
def test_bad_imports(server: Server, content: bytes) -> None:
    assert_problem(
        server.client.post("/v1/registry/import", content=content, headers=JSON), 400, "invalid_document"
    )
    headers = {"Content-Type": "application/x-tar"}
    assert_problem(
        server.client.post("/v1/registry/import", content=content, headers=headers), 400, "invalid_document"
    )
    assert_problem(server.client.post("/v1/registry/import", content=content), 415, "unsupported_media_type")


def test_a_rollback_needs_no_body(server: Server) -> None:
    server.release("calm", "v1", linear_matrix([1]))
    server.release("calm", "v2", linear_matrix([2]))
    answer = server.client.post(path("calm", "rollback"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == "v1"
    empty = server.client.post(path("calm", "activate"))
    assert_problem(empty, 400, "invalid_request")
    assert empty.json()["detail"] == "expected a JSON body, found none"


def test_the_options_of_a_version_are_bounded(server: Server) -> None:
    for options in (
        {"intra_op_threads": 0},
        {"intra_op_threads": 100_000},
        {"gpu_memory_limit": 0},
        {"arena_extend": "slowly"},
        {"cuda_graph": True},
    ):
        answer = server.put("bounds", "v1", linear_matrix([1]), options=options)
        assert answer.status_code in {400, 422}, answer.text
