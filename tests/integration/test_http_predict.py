"""Predictions over HTTP, against a real server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from models import linear_matrix
from servers import JSON, Server, assert_problem, path, wait_for

NAMES = ["totalSpent", "accountAge"]
WEIGHTS = [2.0, -0.5]
BIAS = 1.0
GRAPH = linear_matrix(WEIGHTS, bias=BIAS)


@pytest.fixture(scope="module")
def server(server: Server) -> Server:
    server.release("churn", "v1.0", GRAPH, features=NAMES)
    return server


def score(answer: dict[str, Any]) -> float:
    value = answer["outputs"]["score"]
    return value[0] if isinstance(value, list) else value


def test_answers_features_by_name_and_in_order(server: Server) -> None:
    by_name = server.predict("churn", {"accountAge": 90, "totalSpent": 12.5}, "user-123")
    assert by_name.status_code == 200, by_name.text
    answer = by_name.json()
    assert by_name.headers["content-type"] == "application/json"
    assert set(answer) == {"model", "version", "prediction_id", "reason", "outputs"}
    assert (answer["model"], answer["version"], answer["reason"]) == ("churn", "v1.0", "active")
    assert score(answer) == 2.0 * 12.5 - 0.5 * 90 + 1.0
    in_order = server.predict("churn", [12.5, 90]).json()
    assert in_order["outputs"] == answer["outputs"]
    assert in_order["prediction_id"] != answer["prediction_id"]


def test_a_pinned_version_answers_whatever_is_active(server: Server) -> None:
    assert (
        server.put("churn", "v/2 ü.", linear_matrix([0.0, 0.0], bias=7.0), features=NAMES).status_code == 201
    )
    pinned = server.client.post(path("churn", "versions", "v/2 ü.", "predict"), json={"features": [1, 2]})
    assert pinned.status_code == 200, pinned.text
    assert (pinned.json()["version"], pinned.json()["reason"], score(pinned.json())) == (
        "v/2 ü.",
        "pinned",
        7.0,
    )


@pytest.mark.parametrize("name", ["a/b", "..a/../b", "ü x", "predict", "versions", "%2F", "a?b#c", "日本"])
def test_names_with_slashes_dots_and_other_characters(server: Server, name: str) -> None:
    server.release(name, "v1", GRAPH, features=NAMES)
    assert server.predict(name, [1, 2]).json()["model"] == name
    assert server.client.get(path(name)).json()["active"] == "v1"


def test_what_is_not_there(server: Server) -> None:
    assert_problem(server.predict("nobody", [1, 2]), 404, "model_not_found")
    response = server.client.post(path("churn", "versions", "v9", "predict"), json={"features": [1, 2]})
    assert (
        assert_problem(response, 404, "version_not_found")["detail"] == "Version v9 not found for model churn"
    )
    assert server.put("idle", "v1", GRAPH, features=NAMES).status_code == 201
    assert_problem(server.predict("idle", [1, 2]), 404, "no_active_version")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"features": }',
        b'{"features": {}}',
        b'{"features": null}',
        b'{"features": [1]}',
        b'{"features": [1, 2, 3]}',
        b'{"features": [1, NaN]}',
        b'{"features": [1, Infinity]}',
        b'{"features": [1, 1e999]}',
        b'{"features": ["1", 2]}',
        b'{"features": [1, 2], "features": [3, 4]}',
        b'{"features": {"totalSpent": 1, "totalSpent": 2, "accountAge": 3}}',
        b'{"features": {"totalSpent": 1, "accountAgee": 3}}',
        b'{"features": [1, 2], "entity_id": 1.5}',
        b'{"features": [1, 2], "entity_id": {}}',
        b'{"features": [1, 2], "entity": "x"}',
        b'{"features": [1, 2]} x',
        b'\xff\xfe{"features": [1, 2]}',
        b'{"features": {"\xff": 1}}',
        b'{"features": [1, 2], "entity_id": "\\ud800"}',
        b'{"features": ' + b"[" * 100_000,
        b'{"features": ' + b'{"a":' * 100_000,
        json.dumps({"features": {f"f{n}": n for n in range(100_000)}}).encode(),
        json.dumps({"features": list(range(100_000))}).encode(),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_bad_body_is_the_clients_mistake(server: Server, body: bytes) -> None:
    response = server.client.post(path("churn", "predict"), content=body, headers=JSON)
    assert response.status_code == 400, response.text
    assert_problem(response, 400, response.json()["code"])
    assert response.json()["code"] in {"invalid_request", "invalid_features"}


def test_an_unknown_feature_is_named_with_its_nearest(server: Server) -> None:
    document = assert_problem(
        server.predict("churn", {"totalSpend": 1, "accountAge": 2}), 400, "invalid_features"
    )
    assert document["feature"] == "totalSpend"
    assert "totalSpent" in document["detail"]


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON", None]
)
def test_content_types_that_are_read(server: Server, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = server.client.post(path("churn", "predict"), content=b'{"features":[1,2]}', headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_content_types_that_are_not(server: Server, kind: str) -> None:
    headers = {"Content-Type": kind}
    response = server.client.post(path("churn", "predict"), content=b'{"features":[1,2]}', headers=headers)
    assert_problem(response, 415, "unsupported_media_type")


def test_request_ids_come_back_or_are_made(server: Server) -> None:
    given = server.predict("churn", [1, 2], **{"X-Request-Id": "abc-1 ~"})
    assert given.headers["x-request-id"] == "abc-1 ~"
    made = [server.predict("churn", [1, 2]).headers["x-request-id"] for _ in range(20)]
    assert len(set(made)) == 20
    for bad in ["x" * 129, "a\tb", "ü"]:
        headers = {"X-Request-Id": bad.encode("latin-1")}
        answered = server.client.post(path("churn", "predict"), json={"features": [1, 2]}, headers=headers)
        assert answered.headers["x-request-id"].encode("latin-1") != bad.encode("latin-1")
    failed = server.client.get("/nothing", headers={"X-Request-Id": "lost"})
    assert failed.headers["x-request-id"] == "lost"


def test_a_wrong_method_says_which_are_right(server: Server) -> None:
    response = server.client.get(path("churn", "predict"))
    assert_problem(response, 405, "method_not_allowed")
    assert "POST" in response.headers["allow"]


def test_the_openapi_document_shows_predictions_with_examples(server: Server) -> None:
    document = server.client.get("/schema/openapi.json").json()
    operation = document["paths"]["/v1/models/{model}/predict"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["examples"]
    assert operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert "application/problem+json" in operation["responses"]["400"]["content"]
    assert "/v1/models/{model}/versions/{version}/predict" in document["paths"]


def test_a_body_past_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with Server(tmp_path / "data", max_body_bytes=10_000) as server:
        server.release("churn", "v1", GRAPH, features=NAMES)
        large = b'{"features":[1,2]}' + b" " * 10_000
        assert_problem(
            server.client.post(path("churn", "predict"), content=large, headers=JSON),
            413,
            "payload_too_large",
        )
        chunks = iter([b"{", b" " * 9_000, b" " * 9_000, b"}"])
        chunked = server.client.post(path("churn", "predict"), content=chunks, headers=JSON)
        assert_problem(chunked, 413, "payload_too_large")
        assert_problem(
            server.client.post(path("churn", "activate"), content=large, headers=JSON),
            413,
            "payload_too_large",
        )
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            head = f"POST {path('churn', 'predict')} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
            raw.sendall(head.encode())
            assert raw.recv(1000).startswith(b"HTTP/1.1 413")
        assert server.predict("churn", [1, 2]).status_code == 200


def test_more_in_flight_than_may_be_is_429_until_a_client_goes(tmp_path: Path) -> None:
    with Server(tmp_path / "data", max_in_flight=2) as server:
        server.release("churn", "v1", GRAPH, features=NAMES)
        first, second = server.begin("churn"), server.begin("churn")
        refused = server.predict("churn", [1, 2])
        assert_problem(refused, 429, "too_many_requests")
        assert refused.headers["retry-after"] == "1"
        assert server.client.get("/readyz").status_code == 200, "the bound is on predictions"
        first.close()
        wait_for(
            lambda: server.predict("churn", [1, 2]).status_code == 200, 5, "the place of the client that went"
        )
        assert second.complete().startswith(b"HTTP/1.1 200")


def test_a_slow_model_runs_in_the_pool(tmp_path: Path) -> None:
    with Server(tmp_path / "data", inline_seconds=0) as server:
        server.release("churn", "v1", GRAPH, features=NAMES)
        (version,) = server.client.get("/v1/status").json()["workers"][0]["versions"]
        assert version["inline"] is False
        assert score(server.predict("churn", [12.5, 90]).json()) == -19.0


def test_single_predictions_are_logged_only_when_asked(tmp_path: Path) -> None:
    with Server(tmp_path / "data", log_predictions=True) as server:
        server.release("churn", "v1", GRAPH, features=NAMES)
        server.predict("churn", [1, 2], **{"X-Request-Id": "seen"})
        wait_for(lambda: server.events("predict"), 5, "the line of a prediction")
        (line,) = server.events("predict")
        assert (line["request_id"], line["version"], line["status"]) == ("seen", "v1", 200)
    with Server(tmp_path / "data") as server:
        server.predict("churn", [1, 2], **{"X-Request-Id": "unseen"})
        assert server.events("predict") == []


def test_http_2_without_tls(server: Server) -> None:
    """The front answers both versions of HTTP, refusals too, which must carry no header of HTTP/1."""
    command = [
        "curl",
        "-s",
        "--http2-prior-knowledge",
        "-w",
        "%{http_version} %{http_code}",
        "-o",
        "/dev/null",
        "-d",
        "{}",
    ]
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    url = server.url + path("churn", "predict")
    for headers, expected in [([], "2 415"), (["-H", "Content-Type: application/json"], "2 400")]:
        done = subprocess.run([*command, *headers, url], capture_output=True, check=True, timeout=20)
        assert done.stdout.decode() == expected


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_what_its_rows_are_alone(server: Server) -> None:
    server.release("bulk", "v1", GRAPH, features=NAMES)
    server.put("bulk", "v2", linear_matrix([0.0, 1.0]), features=NAMES)
    splits = {"splits": {"v1": 0.5, "v2": 0.5}}
    assert server.client.put(path("bulk", "test"), json=splits).status_code == 200
    rows = [{"totalSpent": float(i), "accountAge": i % 7} if i % 2 else [float(i), i % 7] for i in range(50)]
    ids = [i if i % 3 else f"user-{i}" for i in range(50)]
    answer = server.client.post(path("bulk", "batch"), json={"entity_ids": ids, "rows": rows})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["model"], found["count"], found["versions"], found["errors"]) == (
        "bulk",
        50,
        ["v1", "v2"],
        [],
    )
    for index, (row, entity) in enumerate(zip(rows, ids, strict=True)):
        single = server.predict("bulk", row, entity).json()
        assert found["versions"][found["version_index"][index]] == single["version"]
        assert found["outputs"]["score"][index] == single["outputs"]["score"]
    pinned = server.client.post(path("bulk", "versions", "v2", "batch"), json={"rows": [[1, 5]]}).json()
    assert (pinned["versions"], pinned["outputs"]) == (["v2"], {"score": [[5.0]]})


def test_bad_rows_are_named_or_skipped(server: Server) -> None:
    body = {"rows": [[1, 2], [1, "x"], [3, 4]]}
    refused = server.client.post(path("churn", "batch"), json=body)
    assert_problem(refused, 400, "invalid_features")
    assert (refused.json()["row"], refused.json()["feature"]) == (1, "accountAge")
    skipped = server.client.post(path("churn", "batch"), params={"on_error": "skip"}, json=body)
    assert [error["row"] for error in skipped.json()["errors"]] == [1]
    assert [value is None for value in skipped.json()["outputs"]["score"]] == [False, True, False]
    for query in ({"on_error": "no"}, {"on_error": ["fail", "skip"]}):
        assert_problem(
            server.client.post(path("churn", "batch"), params=query, json=body), 400, "invalid_request"
        )


def test_a_batch_that_cannot_be_answered(server: Server) -> None:
    url = path("churn", "batch")
    for content in (
        b"",
        b"[]",
        b"{}",
        b"{" * 100_000,
        b'{"rows":[[1e999,1]]}',
        b'{"rows":[[1,2],[1]]',
        b"\xff",
    ):
        answer = server.client.post(url, content=content, headers=JSON)
        assert answer.status_code == 400, content[:20]
    assert_problem(
        server.client.post(url, content=b"x", headers={"Content-Type": "text/csv"}),
        415,
        "unsupported_media_type",
    )
    wanted = {**JSON, "Accept": "text/csv"}
    assert_problem(server.client.post(url, content=b'{"rows":[]}', headers=wanted), 406, "not_acceptable")
    assert_problem(server.client.post(path("nobody", "batch"), json={"rows": []}), 404, "model_not_found")
    assert_problem(server.client.get(url), 405, "method_not_allowed")


def test_more_batches_than_may_be_are_429_and_more_bytes_413(tmp_path: Path) -> None:
    settings = {"max_batches": 1, "max_batch_bytes": 1000}
    with Server(tmp_path / "data", workers=1, **settings) as small:
        small.release("churn", "v1.0", GRAPH, features=NAMES)
        url = path("churn", "batch")
        assert_problem(small.client.post(url, content=b" " * 1001, headers=JSON), 413, "payload_too_large")
        head = f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n".encode()

        def status() -> int:
            return small.client.post(url, json={"rows": []}).status_code

        def full_behind_a_slow_one() -> bool:
            with socket.create_connection(("127.0.0.1", small.port)) as slow:
                slow.sendall(head)
                time.sleep(
                    0.05
                )  # should it come later than what follows, it is refused itself, and tried again
                full = status() == 429
                assert small.predict("churn", [1, 2]).status_code == 200
                return full

        wait_for(full_behind_a_slow_one, 10, "a full worker")
        wait_for(lambda: status() == 200, 5, "a free worker")
