"""Batches over HTTP in every form: documents, lines and Arrow, packed and plain, whole and while they arrive."""

from __future__ import annotations

import gzip
import io
import json
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from models import constant_label, linear_matrix
from servers import JSON, Server, assert_problem, path, wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
KINDS = ("application/json", LINES, ARROW)
NAMES = ["a", "b"]
COUNT = 400
IDS = [f"user-{row}" for row in range(COUNT)]
ROWS = [[float(row), row % 7] for row in range(COUNT)]
PACKERS = {
    "identity": (lambda content: content, lambda content: content),
    "gzip": (gzip.compress, gzip.decompress),
    "zstd": (zstd.compress, zstd.decompress),
}


@pytest.fixture(scope="module")
def server(server: Server) -> Server:
    server.release("split", "v1", linear_matrix([2, -0.5]), features=NAMES)
    server.put("split", "v2", linear_matrix([1, 1]), features=["b", "a"])
    server.put("split", "v3", constant_label(7), features=NAMES)
    weights = {"splits": {"v1": 0.5, "v2": 0.25, "v3": 0.25}}
    assert server.client.put(path("split", "test"), json=weights).status_code == 200
    return server


@pytest.fixture(scope="module")
def expected(server: Server) -> list[dict[str, Any]]:
    """What each row is answered alone: version, reason and outputs."""
    answers = [server.predict("split", row, entity).json() for row, entity in zip(ROWS, IDS, strict=True)]
    return [{key: answer[key] for key in ("version", "reason", "outputs")} for answer in answers]


def written(kind: str, rows: list[Any] = ROWS, ids: list[Any] = IDS) -> bytes:
    """A batch in this form."""
    if kind == LINES:
        lines = [{"entity_id": entity, "features": row} for row, entity in zip(rows, ids, strict=True)]
        return "\n".join(map(json.dumps, lines)).encode()
    if kind == ARROW:
        columns = {"entity_id": ids, "a": [row[0] for row in rows], "b": [row[1] for row in rows]}
        return stream(pa.table(columns), 64)
    return json.dumps({"entity_ids": ids, "rows": rows}).encode()


def stream(table: pa.Table, rows: int, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def read(kind: str, content: bytes) -> list[dict[str, Any]]:
    """The answers of a body of this form, row by row; those that a form does not tell are left out."""
    if kind == LINES:
        return [json.loads(line) for line in content.splitlines()]
    if kind == ARROW:
        rows = pa.ipc.open_stream(content).read_all().to_pylist()
        return [
            {"version": row.pop("version"), "entity_id": row.pop("entity_id", None), "outputs": row}
            for row in rows
        ]
    document = json.loads(content)
    return [
        {
            "version": document["versions"][index],
            "outputs": {name: values[row] for name, values in document["outputs"].items()},
        }
        for row, index in enumerate(document["version_index"])
    ]


def same(found: dict[str, Any], single: dict[str, Any]) -> bool:
    outputs = {name: value for name, value in found["outputs"].items() if value is not None}
    return found["version"] == single["version"] and outputs == single["outputs"]


def in_pieces(content: bytes, size: int = 1000) -> Iterator[bytes]:
    """A body of which the length is not known before."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


def post(
    server: Server, model: str, content: Any, kind: str, accept: str = "*/*", **words: Any
) -> httpx.Response:
    """A batch, with an answer that is plain unless the test asks for another."""
    headers = {
        "Content-Type": kind,
        "Accept": accept,
        "Accept-Encoding": "identity",
        **words.pop("headers", {}),
    }
    return server.client.post(path(model, "batch"), content=content, headers=headers, **words)


@pytest.mark.parametrize("arriving", [False, True])
@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize(
    ("given", "wanted"),
    [(given, wanted) for given in KINDS for wanted in KINDS if wanted != KINDS[0] or given == wanted],
)
def test_every_form_has_the_answers_of_single_predictions(
    server: Server, expected: list[dict[str, Any]], given: str, wanted: str, coding: str, arriving: bool
) -> None:
    pack, unpack = PACKERS[coding]
    content = pack(written(given))
    headers = {"Content-Encoding": coding, "Accept-Encoding": coding}
    with server.client.stream(
        "POST",
        path("split", "batch"),
        content=in_pieces(content) if arriving else content,
        headers={"Content-Type": given, "Accept": wanted, **headers},
    ) as answer:
        raw = b"".join(answer.iter_raw())
    assert (answer.status_code, answer.headers["content-type"]) == (200, wanted)
    assert answer.headers.get("content-encoding", "identity") == coding
    found = read(wanted, unpack(raw))
    assert len(found) == COUNT
    assert all(map(same, found, expected))
    if wanted == LINES:
        assert [row["reason"] for row in found] == [row["reason"] for row in expected]
        assert len({row["prediction_id"] for row in found}) == COUNT
    if given == wanted == ARROW:
        assert [row["entity_id"] for row in found] == IDS


def test_the_answer_has_the_form_of_the_rows_unless_another_is_asked_for(server: Server) -> None:
    for kind in KINDS:
        assert post(server, "split", written(kind), kind).headers["content-type"] == kind
    wanted = f"text/html, {ARROW};q=0.5, application/*;q=0.1, {LINES};q=0"
    assert post(server, "split", written(LINES), LINES, wanted).headers["content-type"] == ARROW
    for given, wanted in (
        (LINES, KINDS[0]),
        (ARROW, KINDS[0]),
        (KINDS[0], "text/csv"),
        (LINES, f"{LINES};q=0"),
    ):
        assert_problem(post(server, "split", written(given), given, wanted), 406, "not_acceptable")
    assert_problem(post(server, "split", b"a,b", "text/csv"), 415, "unsupported_media_type")
    refused = post(server, "split", b"", LINES, headers={"Content-Encoding": "br"})
    assert_problem(refused, 415, "unsupported_media_type")
    assert refused.headers["accept-encoding"] == "gzip, deflate, zstd"


def test_lines_are_answered_before_the_next_ones_come(server: Server) -> None:
    head = (
        f"POST {path('split', 'batch')} HTTP/1.1\r\nHost: x\r\nContent-Type: {LINES}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode())
        taken = connection.makefile("rb")
        for row in range(5):
            line = json.dumps({"entity_id": row, "features": [row, 1]}).encode() + b"\n"
            connection.sendall(b"%x\r\n%s\r\n" % (len(line), line))
            if row == 0:
                assert b"200 OK" in taken.readline()
                while taken.readline() != b"\r\n":
                    pass
            length = int(taken.readline(), 16)
            assert json.loads(taken.read(length + 2))["model"] == "split"
        connection.sendall(b"0\r\n\r\n")
        assert taken.readline() == b"0\r\n"


def test_a_bad_row_of_a_small_batch_is_an_error_of_the_request(server: Server) -> None:
    bad = [*ROWS[:300], [1.0, None], *ROWS[300:]]
    ids = list(range(len(bad)))
    for kind in KINDS:
        refused = post(server, "split", written(kind, bad, ids), kind)
        assert_problem(refused, 400, "invalid_features")
        assert (refused.json()["row"], refused.json()["feature"]) == (300, "b")


def test_bad_rows_are_passed_over_and_named(server: Server) -> None:
    bad = [[1.0, 2.0], [1.0, None], [3.0, 4.0]] * 50
    ids = list(range(len(bad)))
    for arriving in (False, True):
        content = written(LINES, bad, ids) + b'\n\n{"features": [1, 2], "x": 1}\nnonsense\n'
        lines = read(
            LINES,
            post(
                server,
                "split",
                in_pieces(content) if arriving else content,
                LINES,
                params={"on_error": "skip"},
            ).content,
        )
        problems = {row: line["code"] for row, line in enumerate(lines) if "code" in line}
        assert problems == {
            **dict.fromkeys(range(1, 150, 3), "invalid_features"),
            150: "invalid_request",
            151: "invalid_request",
        }
        assert [line["row"] for line in lines if "code" in line] == list(problems)
        assert {line["status"] for line in lines if "code" in line} == {400}
        content = written(ARROW, bad, ids)
        table = pa.ipc.open_stream(
            post(
                server,
                "split",
                in_pieces(content) if arriving else content,
                ARROW,
                params={"on_error": "skip"},
            ).content
        ).read_all()
        assert [row for row, error in enumerate(table["error"].to_pylist()) if error] == list(
            range(1, 150, 3)
        )
        assert table["error"][1].as_py()["feature"] == "b"
        assert table["entity_id"].to_pylist() == ids


def test_an_answer_that_has_begun_is_broken_off_at_a_bad_row(server: Server) -> None:
    def lines() -> Iterator[bytes]:
        for _ in range(10):
            yield written(LINES) + b"\n"
            time.sleep(0.05)
        yield b"nonsense\n" + written(LINES)

    found: list[bytes] = []
    headers = {"Content-Type": LINES, "Accept-Encoding": "identity"}
    with server.client.stream("POST", path("split", "batch"), content=lines(), headers=headers) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            found.extend(answer.iter_raw())
    last = json.loads(b"".join(found).splitlines()[-1])
    assert (last["code"], last["row"]) == ("invalid_request", 10 * COUNT)
    assert server.predict("split", [1, 2]).status_code == 200

    def batches() -> Iterator[bytes]:
        sink = io.BytesIO()
        good = pa.record_batch({"a": [1.0, 2.0], "b": [1.0, 2.0]})
        with pa.ipc.new_stream(sink, good.schema) as writer:
            writer.write(good)
            yield sink.getvalue()
            time.sleep(0.2)
            sink.seek(0)
            sink.truncate()
            writer.write(pa.record_batch({"a": [1.0, 2.0], "b": [1.0, None]}))
            yield sink.getvalue()

    with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
        post(server, "split", batches(), ARROW)


def test_a_stream_goes_on_with_the_versions_of_the_moment(server: Server) -> None:
    server.release("turn", "v1", linear_matrix([1, 0]), features=NAMES)
    server.put("turn", "v2", linear_matrix([0, 1]), features=NAMES)
    line = b'{"features": [1, 2]}\n'

    def lines() -> Iterator[bytes]:
        yield line
        time.sleep(0.2)
        changed = httpx.post(server.url + path("turn", "activate"), json={"version": "v2"})
        assert changed.status_code == 200
        yield line

    answer = post(server, "turn", lines(), LINES)
    assert [row["version"] for row in read(LINES, answer.content)] == ["v1", "v2"]


def hostile() -> Iterator[tuple[str, str, bytes, dict[str, str], int]]:
    """Name, media type, body, headers, status."""
    yield from hostile_json()
    yield from hostile_packing()
    yield from hostile_arrow()


def hostile_json() -> Iterator[tuple[str, str, bytes, dict[str, str], int]]:
    yield "deep", KINDS[0], b'{"rows":' + b"[" * 100_000, {}, 400
    yield "deep line", LINES, b'{"features":' + b"[" * 100_000, {}, 400
    yield "infinite", LINES, b'{"features":[1e999,1]}', {}, 400
    yield "twice", LINES, b'{"features":[1,1],"features":[1,1]}', {}, 400
    yield "twice in a row", LINES, b'{"features":{"a":1,"a":1,"b":1}}', {}, 400
    yield "unequal columns", KINDS[0], b'{"columns":{"a":[1,2],"b":[1]}}', {}, 400


def hostile_packing() -> Iterator[tuple[str, str, bytes, dict[str, str], int]]:
    packed = gzip.compress(written(LINES))
    yield "not gzip", LINES, b"nonsense", {"Content-Encoding": "gzip"}, 400
    yield "broken gzip", LINES, packed[: len(packed) // 2], {"Content-Encoding": "gzip"}, 400
    yield "false sum", LINES, packed[:-8] + bytes(8), {"Content-Encoding": "gzip"}, 400
    yield "not zstd", LINES, b"nonsense", {"Content-Encoding": "zstd"}, 400
    broken = zstd.compress(written(LINES))
    yield "broken zstd", LINES, broken[: len(broken) // 2], {"Content-Encoding": "zstd"}, 400
    wide = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=wide)
    wide_frame = packer.compress(written(LINES)) + packer.flush()
    yield "wide zstd", LINES, wide_frame, {"Content-Encoding": "zstd"}, 400
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    for kind in KINDS:
        yield f"bomb {kind}", kind, bomb, {"Content-Encoding": "gzip"}, 400 if kind == ARROW else 413


def hostile_arrow() -> Iterator[tuple[str, str, bytes, dict[str, str], int]]:
    table = pa.table({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    good = stream(table, 10)
    yield "not Arrow", ARROW, b"nonsense" * 100, {}, 413
    yield "empty", ARROW, b"", {}, 400
    for size in (3, 7, 50, len(good) - 20):
        yield f"Arrow of {size} bytes", ARROW, good[:size], {}, 400
    yield "Arrow with a huge head", ARROW, b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100), {}, 413
    yield "Arrow with a negative head", ARROW, b"\xff\xff\xff\xff\xff\xff\xff\x80" + bytes(100), {}, 413
    yield "Arrow of zeros", ARROW, b"\xff\xff\xff\xff" + struct.pack("<I", 64) + bytes(64), {}, 400
    yield "texts", ARROW, stream(pa.table({"a": ["x", "y"], "b": [1.0, 2.0]}), 10), {}, 400
    yield "lists", ARROW, stream(pa.table({"a": [[1.0], [2.0]], "b": [1.0, 2.0]}), 10), {}, 400
    yield "a column twice", ARROW, stream(pa.table([[1.0], [2.0]], names=["a", "a"]), 10), {}, 400
    yield "a column too few", ARROW, stream(table.drop(["b"]), 10), {}, 400
    texts = stream(pa.table({"entity_id": ["ab", "cd"], "a": [1.0, 2.0], "b": [1.0, 2.0]}), 10)
    offsets = struct.pack("<iii", 0, 2, 4)
    assert offsets in texts
    yield "offsets", ARROW, texts.replace(offsets, struct.pack("<iii", 0, 2**30, 2**31 - 1)), {}, 400
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
    )
    yield "not UTF-8", ARROW, stream(pa.table({"entity_id": text, "a": [1.0], "b": [1.0]}), 10), {}, 400
    often = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 1_000_000]))
    yield "one text often", ARROW, stream(pa.table({"a": often, "b": [1.0] * 1000}), 1000), {}, 413
    nulls = pa.nulls(1)
    many = pa.table([nulls] * 10_001, names=[f"n{column}" for column in range(10_001)])
    yield "many columns", ARROW, stream(many, 10), {}, 413
    yield "nulls", ARROW, stream(pa.table({"a": pa.nulls(900_000), "b": pa.nulls(900_000)}), 900_000), {}, 400
    few = stream(pa.table({"a": pa.nulls(77_777)}), 77_777)
    many_rows = few.replace(struct.pack("<q", 77_777), struct.pack("<q", 2**40))
    yield "more rows than may be", ARROW, many_rows, {}, 413
    small = stream(table, 10, compression="zstd")
    sizes = struct.pack("<q", 16)
    assert sizes in small
    yield "false size", ARROW, small.replace(sizes, struct.pack("<q", 2**40)), {}, 413
    yield "negative size", ARROW, small.replace(sizes, struct.pack("<q", -2)), {}, 413


HOSTILE = list(hostile())


@pytest.mark.parametrize("arriving", [False, True])
@pytest.mark.parametrize(
    ("kind", "content", "headers", "status"),
    [case[1:] for case in HOSTILE],
    ids=[case[0] for case in HOSTILE],
)
def test_a_hostile_body_ends_in_a_problem_and_a_living_worker(
    server: Server, kind: str, content: bytes, headers: dict[str, str], status: int, arriving: bool
) -> None:
    try:
        answer = post(
            server, "split", in_pieces(content, 50_000) if arriving else content, kind, headers=headers
        )
    except httpx.RemoteProtocolError as error:  # good rows came before, and were answered
        if not arriving or "incomplete" not in str(error):
            raise
    else:
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert answer.json()["code"] != "internal"
    assert server.predict("split", [1, 2]).status_code == 200


def test_compressed_record_batches_are_read(server: Server, expected: list[dict[str, Any]]) -> None:
    table = pa.ipc.open_stream(written(ARROW)).read_all()
    names = pa.array(["x", "y"] * (COUNT // 2)).dictionary_encode()
    for compression in ("lz4", "zstd"):
        content = stream(table, 100, compression=compression)
        assert all(map(same, read(ARROW, post(server, "split", content, ARROW).content), expected))
    unknown = post(server, "split", stream(table.append_column("n", names), 100, compression="zstd"), ARROW)
    assert_problem(unknown, 400, "invalid_features")


def test_nothing_goes_on_for_a_client_that_is_gone(tmp_path: Path) -> None:
    with Server(tmp_path / "data", workers=1, max_batches=1, stop_seconds=2) as small:
        small.release("m", "v1", linear_matrix([1, 1]), features=NAMES)
        line = b'{"features": [1, 2]}\n' * 2000

        def begun(kind: str) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", small.port), timeout=10)
            head = (
                f"POST {path('m', 'batch')} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
                "Content-Length: 1000000000\r\n\r\n"
            )
            connection.sendall(head.encode())
            return connection

        def free() -> bool:
            return small.client.post(path("m", "batch"), json={"rows": []}).status_code == 200

        for kind, content in ((LINES, line), (LINES, b""), (ARROW, b"\xff\xff\xff\xff")):
            with begun(kind) as connection:
                connection.sendall(content)
                if content == line:
                    assert b"200 OK" in connection.recv(100)
                else:
                    time.sleep(0.3)  # should it come later than what follows, it is refused itself
                assert not free()
            wait_for(free, 5, "a worker that is free again")
        with begun(LINES) as deaf:  # sends, and takes no answer
            deaf.settimeout(1)
            with pytest.raises(TimeoutError):
                deaf.sendall(line * 2000)
            assert small.predict("m", [1, 2]).status_code == 200
            (worker,) = small.family()
            assert worker.memory_info().rss < 600 * 2**20
        wait_for(free, 5, "a worker that is free again")
        with begun(LINES) as late:
            late.sendall(line)
            assert b"200 OK" in late.recv(100)
            begin = time.monotonic()
            small.stop()
            assert time.monotonic() - begin < 10


def test_streams_are_bounded_in_rows_and_bytes(tmp_path: Path) -> None:
    limits = {
        "max_stream_rows": 1000,
        "max_stream_bytes": 100_000,
        "max_batch_rows": 500,
        "max_body_bytes": 5000,
    }
    with Server(tmp_path / "data", workers=1, **limits) as small:
        small.release("m", "v1", linear_matrix([1, 1]), features=NAMES)
        line = b'{"features": [1, 2]}\n'
        assert_problem(post(small, "m", line * 501, LINES), 413, "payload_too_large")
        assert_problem(post(small, "m", in_pieces(b" " * 6000), LINES), 413, "payload_too_large")
        head = f"POST {path('m', 'batch')} HTTP/1.1\r\nHost: x\r\nContent-Type: {LINES}\r\n"
        with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
            connection.sendall(f"{head}Content-Length: 10000000\r\n\r\n".encode())
            assert b" 413 " in connection.recv(100)

        def slowly(content: bytes, count: int) -> Iterator[bytes]:
            for _ in range(count):
                yield content
                time.sleep(0.02)

        for parts in (slowly(line * 100, 11), slowly(b" " * 2000 + b"\n", 60)):
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                post(small, "m", parts, LINES)
        assert len(read(LINES, post(small, "m", slowly(line * 100, 10), LINES).content)) == 1000


def test_no_rows_are_no_answers(server: Server) -> None:
    for arriving in (False, True):
        for content in (b"", b"\n \n"):
            sent = in_pieces(content) if arriving else content
            answer = post(server, "split", sent, LINES)
            assert (answer.status_code, answer.content) == (200, b"")
        none = pa.table({"a": pa.array([], pa.float32()), "b": pa.array([], pa.float32())})
        for table in (none, none.schema.empty_table()):
            sent = in_pieces(stream(table, 1)) if arriving else stream(table, 1)
            found = pa.ipc.open_stream(post(server, "split", sent, ARROW).content).read_all()
            assert (found.num_rows, found.schema.names) == (0, ["version", "score", "label", "probabilities"])
    assert json.loads(post(server, "split", b'{"rows":[]}', JSON["Content-Type"]).content)["count"] == 0
