"""Whatever the body of a prediction is, the answer is 200 or a problem document that says where; never a 5xx."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import turnout
from models import columns_model, linear_matrix
from servers import JSON, Server

MATRIX, COLUMNS = "matrix", "columns"
NAMES = ["a", "b"]
GOOD = b'{"entity_id": "u", "features": {"a": 1, "b": 2.5}}'
DEEP = 100_000
LONG = b"1" + b"0" * 400

# name: body, and whether it is one that is answered.
LISTED: dict[str, tuple[bytes, bool]] = {
    "good": (GOOD, True),
    "empty": (b"", False),
    "space": (b" \t\r\n", False),
    "nul": (b"\x00", False),
    "mark": (b"\xef\xbb\xbf" + GOOD, False),
    "utf-16": (GOOD.decode().encode("utf-16"), False),
    "nan": (b'{"features": [NaN, 1]}', False),
    "infinity": (b'{"features": [Infinity, 1]}', False),
    "minus infinity": (b'{"features": [1, -Infinity]}', False),
    "1e999": (b'{"features": [1e999, 1]}', False),
    "-1e999": (b'{"features": [-1e999, 1]}', False),
    "1e39, past a float32": (b'{"features": [1e39, 1]}', False),
    "1e-999": (b'{"features": [1e-999, 1]}', True),
    "an integer of 401 digits": (b'{"features": [' + LONG + b", 1]}", False),
    "a fraction of 401 digits": (b'{"features": [0.' + LONG + b", 1]}", True),
    "an exponent of 401 digits": (b'{"features": [1e' + LONG + b", 1]}", False),
    "an entity of 401 digits": (b'{"entity_id": ' + LONG + b', "features": [1, 1]}', True),
    "a fraction as entity": (b'{"entity_id": 1.5, "features": [1, 1]}', False),
    "deep lists": (b'{"features": ' + b"[" * DEEP + b"]" * DEEP + b"}", False),
    "deep lists without end": (b"[" * DEEP, False),
    "deep objects": (b'{"features": ' + b'{"a": ' * DEEP + b"1" + b"}" * DEEP + b"}", False),
    "deep objects in an unknown key": (b'{"x": ' + b'{"a": ' * DEEP, False),
    "a feature twice": (b'{"features": {"a": 1, "b": 2, "a": 3}}', False),
    "a feature twice, once escaped": (b'{"features": {"a": 1, "b": 2, "\\u0061": 3}}', False),
    "features twice": (b'{"features": [1, 2], "features": [1, 2]}', False),
    "entity twice": (b'{"entity_id": "a", "entity_id": "b", "features": [1, 2]}', False),
    "invalid utf-8 in a name": (b'{"features": {"\xc3\x28": 1}}', False),
    "invalid utf-8 in an entity": (b'{"entity_id": "\xff", "features": [1, 2]}', False),
    "an encoded surrogate": (b'{"entity_id": "\xed\xa0\x80", "features": [1, 2]}', False),
    "a lone surrogate": (b'{"entity_id": "\\ud800", "features": [1, 2]}', False),
    "a lone surrogate in a name": (b'{"features": {"\\udfff": 1, "a": 1, "b": 2}}', False),
    "a pair of surrogates": (b'{"entity_id": "\\ud83d\\ude00", "features": [1, 2]}', True),
    "an escaped nul": (b'{"entity_id": "\\u0000", "features": [1, 2]}', True),
    "100,000 features": (json.dumps({"features": {f"f{n}": n for n in range(100_000)}}).encode(), False),
    "100,000 numbers": (json.dumps({"features": [1] * 100_000}).encode(), False),
    "a long name": (b'{"features": {"' + b"x" * 1_000_000 + b'": 1}}', False),
    "a long entity": (b'{"entity_id": "' + b"x" * 1_000_000 + b'", "features": [1, 2]}', True),
    "a comma too many": (b'{"features": [1, 2,]}', False),
    "more behind it": (GOOD + b"{}", False),
    "cut off": (GOOD[:-1], False),
    "a leading zero": (b'{"features": [01, 2]}', False),
    "hexadecimal": (b'{"features": [0x1, 2]}', False),
    "single quotes": (b"{'features': [1, 2]}", False),
    "a comment": (b'{"features": [1, 2] /* x */}', False),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[turnout.Turnout]:
    folder = tmp_path_factory.mktemp("bodies")
    with turnout.open(folder / "data") as opened:
        for model, graph, names in (
            (MATRIX, linear_matrix([1.0, 2.0]), NAMES),
            (COLUMNS, columns_model(), None),
        ):
            (folder / "graph.onnx").write_bytes(graph)
            opened.register_version(model, "v1", folder / "graph.onnx", features=names)
            opened.activate_version(model, "v1")
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("bodies") / "data", workers=2) as running:
        running.release(MATRIX, "v1", linear_matrix([1.0, 2.0]), features=NAMES)
        running.release(COLUMNS, "v1", columns_model())
        workers = running.family()
        yield running
        assert running.client.get("/livez").status_code == 200
        assert running.client.post(f"/v1/models/{MATRIX}/predict", content=GOOD).status_code == 200
        assert all(worker.is_running() for worker in workers)
        assert {worker.pid for worker in running.family()} == {worker.pid for worker in workers}
        assert running.events("unexpected") == []


def check(status: int, answer: bytes, body: bytes, shown: int = 1000) -> dict[str, Any]:
    """The answer is a prediction or a valid problem document with a place inside the body; its content."""
    document = msgspec.json.decode(answer)
    if status == 200:
        assert set(document) == {"model", "version", "prediction_id", "reason", "outputs"}
        return document
    assert 400 <= status < 500, (status, answer)
    assert set(document) <= {"type", "title", "status", "detail", "code", "row", "feature", "position"}
    assert document["status"] == status
    assert document["type"] == f"urn:turnout:error:{document['code']}"
    assert document["title"]
    assert document["detail"]
    assert len(document["detail"]) < shown, "an answer does not repeat the body"
    if "position" in document:
        assert 0 <= document["position"] <= len(body)
    return document


numbers = st.one_of(
    st.floats(allow_nan=False).map(repr),
    st.integers().map(str),
    st.sampled_from(["1e999", "-1e999", "NaN", "Infinity", "1" * 400, "-0", "1E+2", "1.", ".5", "+1", "1e"]),
)
strings = st.text(max_size=8).map(json.dumps) | st.sampled_from(
    ['"a"', '"b"', '"age"', '"visits"', '"plan"', '"\\ud800"']
)
leaves = numbers | strings | st.sampled_from(["null", "true", "false", "", "nul", "{", "["])


def joined(parts: st.SearchStrategy[str], opening: str, closing: str) -> st.SearchStrategy[str]:
    return st.lists(parts, max_size=4).map(lambda found: opening + ",".join(found) + closing)


def members(
    values: st.SearchStrategy[str], names: st.SearchStrategy[str] = strings
) -> st.SearchStrategy[str]:
    return joined(st.builds("{}:{}".format, names, values), "{", "}")


values = st.recursive(leaves, lambda inner: joined(inner, "[", "]") | members(inner), max_leaves=8)
keys = st.sampled_from(['"features"', '"entity_id"', '"features"', '"Features"', '"entity"'])
near = st.one_of(
    members(values, keys),
    st.builds('{{"features":{}}}'.format, values),
    st.builds('{{"entity_id":{},"features":[1,2]}}'.format, leaves),
    st.builds('{{"features":{{"a":{},"b":{}}}}}'.format, leaves, leaves),
    st.builds('{{"features":{{"age":{},"visits":{},"plan":{}}}}}'.format, leaves, leaves, leaves),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A good body with some bytes replaced by others."""
    body = draw(st.sampled_from([GOOD, b'{"features":{"age":1.5,"visits":3,"plan":"basic"},"entity_id":7}']))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]
    return body


bodies = st.one_of(st.binary(max_size=200), near, spoilt())
models = st.sampled_from([MATRIX, COLUMNS])


@pytest.mark.timeout(60)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=models, body=bodies)
def test_any_body(hub: turnout.Turnout, model: str, body: bytes) -> None:
    check(*hub.predict_bytes(model, None, body), body)


@pytest.mark.timeout(60)
@settings(max_examples=60, deadline=None)
@given(model=models, body=bodies)
def test_any_body_over_http(server: Server, model: str, body: bytes) -> None:
    answer = server.client.post(f"/v1/models/{model}/predict", content=body, headers=JSON)
    check(answer.status_code, answer.content, body)


@pytest.mark.parametrize(("body", "good"), LISTED.values(), ids=LISTED)
def test_listed_bodies(hub: turnout.Turnout, server: Server, body: bytes, good: bool) -> None:
    status, answer = hub.predict_bytes(MATRIX, None, body)
    document = check(status, answer, body)
    assert (status == 200) == good, document
    over_http = server.client.post(f"/v1/models/{MATRIX}/predict", content=body, headers=JSON)
    assert over_http.status_code == status
    if not good:
        assert over_http.json() == document


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "application/jsonx", "multipart/form-data", "", ";", "\xff"]
)
def test_content_types(server: Server, kind: str) -> None:
    headers = {"Content-Type": kind.encode("latin-1")}
    answer = server.client.post(f"/v1/models/{MATRIX}/predict", content=GOOD, headers=headers)
    assert answer.status_code == 415
    check(answer.status_code, answer.content, GOOD)


NAMED = [
    "a/b",
    "..",
    ".",
    "../../etc/passwd",
    "a%2Fb",
    "%",
    "%00",
    "\x00",
    "\u202e",
    "ü" * 150,
    "x" * 5000,
    " ",
    "?",
    "#",
]
RAW = [
    "",
    "%",
    "%zz",
    "%ff",
    "%c3%28",
    "%ed%a0%80",
    "..%2f..%2fetc",
    "%2e%2e",
    "%00",
    "a%2Fb",
    "a//b",
    ";x=1",
    "*",
]


@pytest.mark.parametrize(
    "name", [*(quote(name, safe="") for name in NAMED), *RAW], ids=lambda name: name[:20]
)
def test_names_of_models(server: Server, name: str) -> None:
    """As the path has them: nothing but 4xx, wherever the name stands."""
    calls = [
        ("POST", f"/v1/models/{name}/predict", {"features": [1, 2]}),
        ("POST", f"/v1/models/{MATRIX}/versions/{name}/predict", {"features": [1, 2]}),
        ("GET", f"/v1/models/{name}", None),
        ("GET", f"/v1/models/{name}/versions/v1", None),
        ("POST", f"/v1/models/{name}/activate", {"version": name}),
        ("PUT", f"/v1/models/{name}/test", {"splits": {name: 1.0}}),
        ("DELETE", f"/v1/models/{name}/versions/{name}", None),
    ]
    for method, path, body in calls:
        status, kind, answer = send(server, method, path, body)
        if (method, name) == ("GET", "") and status == 200:
            continue  # the list of models, with a slash behind it
        assert 400 <= status < 500, (method, path, answer)
        assert kind == "application/problem+json"
        check(status, answer, path.encode(), shown=len(path) + 1000)


def send(server: Server, method: str, path: str, body: object) -> tuple[int, str | None, bytes]:
    """A request whose path is sent as it is; httpx would quote it and resolve its dots."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body), JSON)
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type"), answer.read()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_wrong_methods(server: Server, method: str) -> None:
    answer = server.client.request(method, f"/v1/models/{MATRIX}/predict", content=GOOD, headers=JSON)
    assert answer.status_code in {200, 204, 405} if method == "OPTIONS" else answer.status_code in {405, 501}


@pytest.mark.timeout(60)
def test_long_paths_do_not_stay_in_memory(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with closing(connection):

        def ask(number: int) -> None:
            connection.request("POST", f"/v1/models/{number}{'x' * 60_000}/predict", GOOD, JSON)
            answer = connection.getresponse()
            assert answer.status == 404
            answer.read()

        ask(0)
        before = sum(worker.memory_info().rss for worker in server.family())
        for number in range(1000):
            ask(number)
        assert sum(worker.memory_info().rss for worker in server.family()) < before + 30 * 1024**2
