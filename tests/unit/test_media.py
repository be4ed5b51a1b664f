"""What a batch may look like, and what its answer may: by the headers alone."""

from __future__ import annotations

import io
from functools import partial

import pytest

from turnout.api.media import answer_coding, answer_kind, decoded, encoder, kind_of
from turnout.errors import InvalidRequest, NotAcceptable, UnsupportedMediaType
from turnout.streams import ARROW, JSON, LINES


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (None, JSON),
        (b"application/json; charset=utf-8", JSON),
        (b"Application/X-NDJSON", LINES),
        (ARROW.encode(), ARROW),
    ],
)
def test_the_media_type_of_rows(header: bytes | None, kind: str) -> None:
    assert kind_of(header) == kind


@pytest.mark.parametrize("header", [b"", b"text/csv", b"application/json, text/html", b"\xff"])
def test_a_media_type_that_cannot_be_read(header: bytes) -> None:
    if header:
        with pytest.raises(UnsupportedMediaType, match="expected Content-Type"):
            kind_of(header)
    else:
        assert kind_of(header) == JSON


@pytest.mark.parametrize(
    ("given", "header", "kind"),
    [
        (JSON, None, JSON),
        (LINES, b"*/*", LINES),
        (ARROW, b"application/*", ARROW),
        (JSON, LINES.encode(), LINES),
        (JSON, b"application/json;q=0.1, " + ARROW.encode(), ARROW),
        (LINES, b"*/*;q=0.5, " + ARROW.encode() + b";q=0.4", LINES),
        (LINES, b"*/*, " + LINES.encode() + b";q=0", ARROW),
        (ARROW, b"application/*;q=0, " + LINES.encode() + b" ; q=0.001", LINES),
    ],
)
def test_the_media_type_of_the_answer(given: str, header: bytes | None, kind: str) -> None:
    assert answer_kind(given, header) == kind


@pytest.mark.parametrize(
    ("given", "header"),
    [(JSON, b"text/*"), (LINES, JSON.encode()), (ARROW, b"*/*;q=0"), (JSON, b"*/*;q=x"), (JSON, b",")],
)
def test_an_answer_that_cannot_be_had(given: str, header: bytes) -> None:
    with pytest.raises(NotAcceptable, match=f"the answer to {given} is"):
        answer_kind(given, header)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, None),
        (b"br", None),
        (b"*", None),
        (b"gzip, deflate, br, zstd", b"zstd"),
        (b"gzip;q=1, zstd;q=0.5", b"gzip"),
        (b"zstd;q=0, gzip", b"gzip"),
        (b"identity, gzip;q=0.5", None),
        (b"GZIP;Q=0.5", b"gzip"),
    ],
)
def test_the_coding_of_the_answer(header: bytes | None, coding: bytes | None) -> None:
    assert answer_coding(header) == coding


@pytest.mark.parametrize("coding", [b"gzip", b"zstd"])
def test_each_part_can_be_read_when_it_has_come(coding: bytes) -> None:
    packer = encoder(coding)
    sent = bytearray()
    for part in (b"one\n", b"two\n" * 1000, b""):
        sent += packer.add(part)
        body = decoded(io.BytesIO(bytes(sent)), coding)
        found: list[bytes] = []
        with pytest.raises(InvalidRequest, match=f"the body is not {coding.decode()}"):
            found.extend(iter(partial(body.read1, 100), b""))
        assert b"".join(found).endswith(part)
    sent += packer.end()
    body = decoded(io.BytesIO(bytes(sent)), coding)
    parts = list(iter(partial(body.read1, 100), b""))
    assert max(map(len, parts)) <= 100
    assert b"".join(parts) == b"one\n" + b"two\n" * 1000
