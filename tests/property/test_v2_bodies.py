"""Whatever the body of an inference is, the answer is 200 or a refusal that says why: never a 5xx, never a hang."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import math
import socket
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import turnout
from models import identity_model, linear_matrix, marked_model, token_model
from protocol import LENGTH, assert_error, head_of, register, target, tensors_of
from servers import Server
from turnout.api.front import Front
from turnout.api.media import zstd

MODELS: dict[str, Callable[[], bytes]] = {
    "rows": lambda: linear_matrix([2.0, -0.5]),
    "mixed": lambda: identity_model(["float16", "string", "bool"], [None, 2]),
    "tokens": token_model,
    "text": marked_model,
}
MIB = 2**20
MOST_BYTES = 2 * MIB
SECONDS = 10.0
"""An answer that takes longer is a hang."""
GOOD = json.dumps(
    {
        "id": "1",
        "parameters": {"entity_id": "u", "binary_data_output": False},
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [12.5, 90.0]}],
        "outputs": [{"name": "score", "parameters": {"binary_data": True}}],
    }
).encode()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the front answers inferences itself")


class Asker:
    """Asks the front of an opened service by ASGI, on an event loop of its own."""

    def __init__(self, hub: turnout.Turnout) -> None:
        self._front = Front(nothing, hub)
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._runner.close()

    def __call__(
        self, model: str, chunks: list[bytes], headers: dict[str, str], *, length: int | None = None
    ) -> Answer:
        """The answer to a body that comes in these chunks; `length` is what it says of itself."""
        named = {name.lower(): value for name, value in headers.items()}
        if length is not None:
            named["content-length"] = str(length)
        return self._runner.run(asyncio.wait_for(self._ask(model, chunks, named), SECONDS))

    async def _ask(self, model: str, chunks: list[bytes], headers: dict[str, str]) -> Answer:
        where = target(model)
        scope = {
            "type": "http",
            "method": "POST",
            "path": where,
            "raw_path": where.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
        coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for place, chunk in enumerate(chunks or [b""], 1):
            coming.put_nowait({"type": "http.request", "body": chunk, "more_body": place < len(chunks)})
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await self._front(scope, coming.get, send)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], found, sent[1]["body"])


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    folder = tmp_path_factory.mktemp("inferences")
    register(folder / "data", {(model, "v1"): graph() for model, graph in MODELS.items()})
    with turnout.open(folder / "data", max_batch_bytes=MOST_BYTES, max_body_bytes=MOST_BYTES) as hub:
        asker = Asker(hub)
        yield asker
        good = asker("rows", [GOOD], {}, length=len(GOOD))
        assert tensors_of(good.content, good.headers)["score"].tolist() == [[-20.0]]
        asker.close()


def check(answer: Answer) -> dict[str, Any]:
    """It is an inference, or a refusal of the protocol's form that is no longer than a person reads; its JSON."""
    if answer.status == 200:
        tensors_of(answer.content, answer.headers)
        return head_of(answer.content, answer.headers)
    assert 400 <= answer.status < 500, answer
    document = json.loads(answer.content)
    assert set(document) == {"error"}
    assert document["error"]
    assert len(document["error"]) < 1000
    assert "Traceback" not in document["error"]
    return document


# --- bodies ---------------------------------------------------------------------------------------------------------

NAMES = ["x", "input0", "input1", "input2", "ids", "mask", "text", "entity_id", "", "y"]
TYPES = ["FP32", "FP16", "BYTES", "BOOL", "INT64", "BF16", "FP64", "UINT8", "FP33", ""]
OUTPUTS = ["score", "output0", "total", "marked", "turnout.version", "turnout.prediction_id", "x"]
dimensions: st.SearchStrategy[Any] = st.one_of(
    st.integers(0, 3),
    st.sampled_from([-1, -(2**63), 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**6, 10**12, 10**400]),
    st.sampled_from([1.5, 2.0, "1", None, True, []]),
)
shapes = st.lists(st.integers(0, 3), max_size=3) | st.lists(dimensions, max_size=40)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.sampled_from([0, 1, True, "a", 1e39, 2**64, 10**400]),
)
data = (
    st.recursive(st.lists(scalars, max_size=6), lambda inner: st.lists(inner, max_size=4), max_leaves=8)
    | scalars
)
sizes: st.SearchStrategy[Any] = st.one_of(
    st.integers(0, 40), st.sampled_from([-1, 2**31, 2**63, 2**64, 1.5, "8", None])
)
entities = st.one_of(scalars, st.lists(scalars, max_size=4))
parameters = st.dictionaries(
    st.sampled_from(
        ["entity_id", "entity_ids", "priority", "timeout", "binary_data_output", "triton_a", "tenant"]
    ),
    entities,
    max_size=4,
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Any]:
    """An input; most of it is possible, and some of it not there."""
    found: dict[str, Any] = {
        "name": draw(st.sampled_from(NAMES)),
        "shape": draw(shapes),
        "datatype": draw(st.sampled_from(TYPES)),
    }
    if draw(st.booleans()):
        found["parameters"] = {"binary_data_size": draw(sizes)}
    else:
        found["data"] = draw(data)
    for key in draw(st.lists(st.sampled_from(list(found)), max_size=1)):
        del found[key]
    return dict(draw(st.permutations(list(found.items()))))


@st.composite
def fitting(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]], bytes]:
    """A model, inputs that it takes, in JSON and in binary, and the tensors in binary."""
    model = draw(st.sampled_from(list(MODELS)))
    rows, width = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    inputs = {
        "rows": [("x", "FP32", [rows, 2], 4)],
        "mixed": [
            ("input0", "FP16", [rows, 2], 2),
            ("input1", "BYTES", [rows, 2], 4),
            ("input2", "BOOL", [rows, 2], 1),
        ],
        "tokens": [("ids", "INT64", [rows, width], 8), ("mask", "INT64", [rows, width], 8)],
        "text": [("text", "BYTES", [rows], 4)],
    }[model]
    described: list[dict[str, Any]] = []
    behind = b""
    for name, datatype, shape, each in draw(st.permutations(inputs)):
        count = math.prod(shape)
        tensor: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
        if draw(st.booleans()):
            tensor["parameters"] = {"binary_data_size": count * each}
            behind += bytes(count * each)
        else:
            value: Any = {"BYTES": "a", "BOOL": True}.get(datatype, 1)
            tensor["data"] = [value] * count
        described.append(tensor)
    return model, described, behind


@st.composite
def spoilt(draw: st.DrawFn, body: bytes) -> bytes:
    """A body with some bytes replaced by others, or the end cut off."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]
    return body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 3)) == 0 else body


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    """A body in chunks."""
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(places)]


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}
lengths: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 3).map(lambda step: ("about", step)),
    st.integers(-1, 10**20).map(lambda number: ("is", str(number))),
    st.sampled_from(["", "0", "00", "x", "1e1", "-0", "+1", " 1", "\xff", "\u00b2"]).map(
        lambda text: ("is", text)
    ),
    st.none(),
)


def header_of(chosen: tuple[str, Any] | None, json_bytes: int) -> dict[str, str]:
    """The header that says how much JSON there is: what it should be and a little more, anything else, or none."""
    if chosen is None:
        return {}
    kind, value = chosen
    return {LENGTH: str(json_bytes + value) if kind == "about" else value}


@pytest.mark.timeout(60)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=fitting(), fields=st.fixed_dictionaries({}, optional={"id": st.text(max_size=3)}))
def test_inputs_that_fit_are_answered(ask: Asker, request: Any, fields: dict[str, str]) -> None:
    model, inputs, behind = request
    head = json.dumps({**fields, "inputs": inputs}).encode()
    headers = {LENGTH: str(len(head))} if behind or any("data" not in tensor for tensor in inputs) else {}
    answer = ask(model, [head + behind], headers, length=len(head + behind))
    assert answer.status == 200, (answer, head)
    assert check(answer).get("id") == fields.get("id")


@pytest.mark.timeout(60)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.sampled_from(list(MODELS)),
    inputs=st.lists(tensors(), max_size=3) | data,
    fields=st.fixed_dictionaries(
        {},
        optional={
            "id": scalars,
            "parameters": parameters | data,
            "outputs": st.lists(
                st.fixed_dictionaries(
                    {"name": st.sampled_from(OUTPUTS)},
                    optional={
                        "parameters": st.dictionaries(st.sampled_from(["binary_data", "more"]), scalars)
                    },
                ),
                max_size=3,
            )
            | data,
        },
    ),
    behind=st.binary(max_size=40),
    length=lengths,
)
def test_any_json(ask: Asker, model: str, inputs: Any, fields: Any, behind: bytes, length: Any) -> None:
    head = json.dumps({**fields, "inputs": inputs}).encode()
    body = head + behind
    check(ask(model, [body], header_of(length, len(head)), length=len(body)))


@pytest.mark.timeout(60)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    request=fitting(),
    length=lengths,
    coding=st.sampled_from([None, None, *PACKERS]),
    cuts=st.lists(st.integers(0, 10**4), max_size=4),
    announced=st.booleans(),
    more=st.data(),
)
def test_any_bytes(
    ask: Asker,
    request: Any,
    length: Any,
    coding: str | None,
    cuts: list[int],
    announced: bool,
    more: st.DataObject,
) -> None:
    """Mutations of bodies that fit, in chunks or whole, packed before or after they were spoilt."""
    model, inputs, behind = request
    head = json.dumps({"inputs": inputs}).encode()
    body = more.draw(spoilt(head + behind))
    headers = header_of(length, len(head))
    if coding is not None:
        headers["Content-Encoding"] = coding
        body = PACKERS[coding](body)
        if more.draw(st.booleans()):
            body = more.draw(spoilt(body))
    check(ask(model, pieces(body, cuts), headers, length=len(body) if announced else None))


@pytest.mark.timeout(60)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=st.sampled_from([*MODELS, "nobody"]), body=st.binary(max_size=64), length=lengths)
def test_any_bytes_at_all(ask: Asker, model: str, body: bytes, length: Any) -> None:
    check(ask(model, [body], header_of(length, len(body)), length=len(body)))


# --- bodies that want too much --------------------------------------------------------------------------------------


def empty(name: str, rows: int, *inner: int, datatype: str = "INT64") -> dict[str, Any]:
    """A tensor without elements, whose shape promises many."""
    return {"name": name, "shape": [rows, *inner], "datatype": datatype, "data": []}


def inputs_of(*tensors: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({**fields, "inputs": tensors}).encode()


ROW: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
DEEP = 100_000
GREEDY: dict[str, tuple[str, bytes, int]] = {
    "rows without end": ("tokens", inputs_of(empty("ids", 10**12, 0), empty("mask", 10**12, 0)), 400),
    "rows past memory": ("tokens", inputs_of(empty("ids", 10**9, 0), empty("mask", 10**9, 0)), 400),
    "rows past the limit": (
        "tokens",
        inputs_of(empty("ids", 2_000_000, 0), empty("mask", 2_000_000, 0)),
        400,
    ),
    "columns without end": ("tokens", inputs_of(empty("ids", 0, 10**12), empty("mask", 0, 10**12)), 400),
    "rows that are none": ("mixed", inputs_of(empty("input0", 10**12, 0, datatype="FP16")), 400),
    "a product past 64 bits": ("rows", inputs_of({**ROW, "shape": [2**40, 2**40]}), 400),
    "a product of 0 past 64 bits": ("rows", inputs_of({**ROW, "shape": [2**40, 0, 2**40], "data": []}), 400),
    "a shape that is not there": ("rows", inputs_of({**ROW, "shape": [10**9, 2]}), 400),
    "dimensions without end": ("rows", inputs_of({**ROW, "shape": [1] * 500_000}), 400),
    "deep data": (
        "rows",
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":' + b"[" * DEEP,
        400,
    ),
    "deep data before its shape": ("rows", b'{"inputs":[{"data":' + b"[" * DEEP, 400),
    "deep objects": ("rows", b'{"more":' + b'{"a":' * DEEP, 400),
    "inputs without end": ("rows", b'{"inputs":[' + b"{}," * 500_000, 400),
    "inputs of one name": ("rows", inputs_of(*[ROW] * 10_000), 400),
    "outputs without end": ("rows", inputs_of(ROW, outputs=[{"name": f"{n}"} for n in range(50_000)]), 400),
    "a long name": ("rows", inputs_of({**ROW, "name": "x" * 1_900_000}), 400),
    "a long id": ("rows", inputs_of(ROW, id="x" * 1_900_000), 200),
    "a long entity": ("rows", inputs_of(ROW, parameters={"entity_id": "x" * 1_900_000}), 200),
    "entities without rows": ("rows", inputs_of(ROW, parameters={"entity_ids": [1] * 600_000}), 400),
    "numbers without shape": ("rows", inputs_of({**ROW, "data": [1] * 600_000}), 400),
    "strings": (
        "text",
        inputs_of({"name": "text", "shape": [1], "datatype": "BYTES", "data": ["ab"] * 300_000}),
        400,
    ),
    "a number of many digits": (
        "rows",
        inputs_of(ROW).replace(b"[1, 2]}", b"[1, " + b"1" * 1_900_000 + b"]}"),
        400,
    ),
}


@pytest.mark.parametrize(("model", "body", "status"), GREEDY.values(), ids=GREEDY)
def test_bodies_that_want_too_much(ask: Asker, model: str, body: bytes, status: int) -> None:
    answer = ask(model, [body], {}, length=len(body))
    assert check(answer)
    assert answer.status == status, answer.content[:200]


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("announced", [False, True])
def test_bombs_are_413(ask: Asker, coding: str, announced: bool) -> None:
    for plain in (bytes(50 * MIB), b" " * (50 * MIB), b'{"inputs":[' + b"[" * (50 * MIB)):
        bomb = PACKERS[coding](plain)
        assert len(bomb) < MIB
        answer = ask("rows", [bomb], {"Content-Encoding": coding}, length=len(bomb) if announced else None)
        assert answer.status == 413
        assert "max_batch_bytes" in check(answer)["error"]


# --- the memory that they take --------------------------------------------------------------------------------------

LIMIT = 8 * MIB
"""`max_batch_bytes` of the server, and `max_body_bytes`."""
SPACE = 1024 * MIB
"""By how much the address space of its worker may grow: what wanted more would end it."""
SMALL_CHUNKS = 100_000


def peak(worker: psutil.Process) -> int:
    """The most memory that a process ever had, in bytes (`VmHWM`)."""
    status = Path(f"/proc/{worker.pid}/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def chunked(server: Server, pieces: Iterator[bytes]) -> bytes:
    """The answer to a body in chunks, sent as they are; what the server no longer takes is not sent."""
    head = f"POST {target('rows')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(head.encode())
        try:
            for piece in pieces:
                raw.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            return b"".join(iter(lambda: raw.recv(65536), b""))
        except ConnectionResetError:
            return b""


def small_chunks(body: bytes, size: int) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# name: model, body, status, and how many times LIMIT its memory may be: measured, and half of it more.
LARGE: dict[str, tuple[str, Callable[[], bytes], int, int]] = {
    "white space": ("rows", lambda: b" " * (LIMIT - len(GOOD)) + GOOD, 200, 4),
    "numbers": ("rows", lambda: inputs_of({**ROW, "data": [1, 2]})[:-4] + b",1" * (LIMIT // 2 - 100), 400, 4),
    "strings": ("text", lambda: strings(["ab"] * 10**6), 200, 60),
    "empty strings": ("text", lambda: strings([""] * 10**6), 200, 40),
    "too many strings": ("text", lambda: strings(["ab"] * (LIMIT // 6)), 400, 4),
    "lists": ("rows", lambda: b'{"more":[' + b"[]," * (LIMIT // 3 - 100), 400, 4),
    "keys": ("rows", lambda: b"{" + b'"a":1,' * (LIMIT // 6 - 100), 400, 4),
    "entities": (
        "rows",
        lambda: b'{"parameters":{"entity_ids":[1' + b",1" * (LIMIT // 2 - 100) + b"]}}",
        400,
        12,
    ),
    "inputs": ("rows", lambda: b'{"inputs":[' + b"{}," * (LIMIT // 3 - 100), 400, 4),
    "deep": ("rows", lambda: b'{"more":' + b"[" * (LIMIT - 100), 400, 4),
}


def strings(texts: list[str]) -> bytes:
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


@contextmanager
def within(worker: psutil.Process, most: int, what: str) -> Generator[None]:
    """Meanwhile a process takes at most so many bytes more than before, at any time."""
    Path(f"/proc/{worker.pid}/clear_refs").write_text("5", "ascii")  # its peak is what it has now
    before = worker.memory_info().rss
    yield
    grown = peak(worker) - before
    assert grown < most, f"{what}: {grown / MIB:.0f} MiB more, expected less than {most / MIB:.0f}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_no_body_takes_more_memory_than_is_bounded(tmp_path: Path, interface: str) -> None:
    settings: dict[str, Any] = {"interface": interface, "max_batch_bytes": LIMIT, "max_body_bytes": LIMIT}
    with Server(tmp_path / "data", **settings) as server:
        register(server.data, {(model, "v1"): graph() for model, graph in MODELS.items()})
        worker = max(server.family(), key=lambda child: child.memory_info().rss)

        def post(model: str, content: bytes, coding: str | None = None) -> httpx.Response:
            headers = {} if coding is None else {"Content-Encoding": coding}
            return server.client.post(target(model), content=content, headers=headers)

        assert post("rows", GOOD).status_code == 200
        space = worker.memory_info().vms + SPACE
        worker.rlimit(psutil.RLIMIT_AS, (space, space))
        for coding, pack in PACKERS.items():
            bomb = pack(bytes(200 * MIB))
            with within(worker, 4 * LIMIT, coding):
                assert_error(post("rows", bomb, coding), 413, "max_batch_bytes")
        for what, (model, body, status) in GREEDY.items():
            with within(worker, 16 * LIMIT, what):
                assert post(model, body).status_code == status, what
        for what, (model, body_of, status, times) in LARGE.items():
            body = body_of()
            assert len(body) <= LIMIT
            for coding in (None, "gzip"):
                content = body if coding is None else gzip.compress(body, 1)
                with within(worker, times * LIMIT, f"{what} {coding}"):
                    answer = post(model, content, coding)
                    assert answer.status_code == status, (what, answer.text[:200])
        padded = b" " * (2 * SMALL_CHUNKS - len(GOOD)) + GOOD
        chunks = small_chunks(padded, 2)
        with within(worker, 4 * LIMIT, "small chunks"):
            assert b" 200 " in chunked(server, iter([chunks]))[:20]
        endless = (b"10000\r\n" + b" " * 65536 + b"\r\n" for _ in range(4 * LIMIT // 65536))
        with within(worker, 4 * LIMIT, "a body without end"):
            assert chunked(server, endless)[:12] in {b"HTTP/1.1 413", b""}
        assert post("rows", GOOD).status_code == 200
        assert worker.is_running()
        assert server.events("unexpected_error") == []
