"""Media types and codings of batches: which the request has, which the answer may have (RFC 9110, section 12.5)."""

from __future__ import annotations

import gzip
import sys
import zlib
from typing import Protocol

from turnout.errors import InvalidRequest, NotAcceptable, UnsupportedMediaType
from turnout.ipc import Body
from turnout.streams import ARROW, JSON, LINES, Buffer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ANSWERS = {JSON: (JSON, LINES, ARROW), LINES: (LINES, ARROW), ARROW: (ARROW, LINES)}
"""For each media type of a request those that its answer may have, the usual one first."""
CODINGS = (b"zstd", b"gzip", b"deflate")
WINDOW_LOG = 23
"""8 MiB: what a decoder of the content coding has to support at least and may refuse beyond (RFC 9659, section 3)."""
GZIP_WINDOW = 31
FAST = 1
READ_BYTES = 1 << 16


def kind_of(header: bytes | None) -> str:
    """The media type of a batch. Raises UnsupportedMediaType for one that cannot be read."""
    kind = (header or JSON.encode()).partition(b";")[0].strip().lower().decode("latin-1")
    if kind not in ANSWERS:
        raise UnsupportedMediaType(f"expected Content-Type {', '.join(ANSWERS)}, found {kind[:60]!r}")
    return kind


def answer_kind(given: str, header: bytes | None) -> str:
    """The media type of the answer to rows that came as `given`. Raises NotAcceptable."""
    wanted = _preferences(header or b"*/*")
    possible = ANSWERS[given]
    best = max(possible, key=lambda kind: _quality(kind, wanted))  # of equal ones the first
    if _quality(best, wanted) <= 0:
        shown = (header or b"").decode("latin-1")[:60]
        raise NotAcceptable(
            f"the answer to {given} is {' or '.join(possible)}, the request accepts {shown!r}"
        )
    return best


def answer_coding(header: bytes | None, codings: tuple[bytes, ...] = CODINGS) -> bytes | None:
    """The coding of the answer: of these the one that the client likes best, and none unless it names one."""
    wanted = dict(_preferences(header or b""))
    found = [coding for coding in codings if wanted.get(coding, 0.0) > 0]
    best = max(found, key=lambda coding: wanted[coding], default=None)
    return best if best is not None and wanted[best] >= wanted.get(b"identity", 0.0) else None


def _preferences(header: bytes) -> list[tuple[bytes, float]]:
    return [_preference(part) for part in header.lower().split(b",")]


def _preference(part: bytes) -> tuple[bytes, float]:
    name, *parameters = (piece.strip() for piece in part.split(b";"))
    for parameter in parameters:
        if parameter.startswith(b"q="):
            try:
                return name, float(parameter[2:])
            except ValueError:
                return name, 0.0
    return name, 1.0


def _quality(kind: str, wanted: list[tuple[bytes, float]]) -> float:
    """How much a media type is liked, by the most precise of the ranges that it is in."""
    name = kind.encode()
    liked = dict(wanted)
    for pattern in (name, name.partition(b"/")[0] + b"/*", b"*/*"):
        if pattern in liked:
            return liked[pattern]
    return 0.0


# --- codings --------------------------------------------------------------------------------------------------------


def decoded(body: Body, header: bytes | None) -> Body:
    """The body without its coding. No more of it is unpacked than is read. Raises UnsupportedMediaType."""
    coding = (header or b"identity").strip().lower()
    if coding == b"identity":
        return body
    if coding in {b"gzip", b"x-gzip"}:
        return _Decoded(gzip.GzipFile(fileobj=_File(body)), "gzip")  # type: ignore[arg-type]
    if coding == b"deflate":
        return _Decoded(_Inflated(body), "deflate")
    if coding == b"zstd":
        options = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
        return _Decoded(zstd.ZstdFile(_File(body), options=options), "zstd")  # type: ignore[arg-type]
    shown = coding.decode("latin-1")[:60]
    raise UnsupportedMediaType(f"expected Content-Encoding gzip, deflate, zstd or identity, found {shown!r}")


class _File:
    """A body as the file that decoders want to read."""

    def __init__(self, body: Body) -> None:
        self.read = body.read1


class _Inflated:
    """The content coding `deflate`, which is the format of zlib (RFC 9110, section 8.4.1.2)."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._inner = zlib.decompressobj()

    def read1(self, size: int = -1, /) -> bytes:
        """At most `size` bytes. Raises EOFError where the body ends before its coding does."""
        most = size if size > 0 else READ_BYTES
        while not self._inner.eof:
            content = self._inner.unconsumed_tail or self._body.read1(most)
            if part := self._inner.decompress(content, most):
                return part
            if not content and not self._inner.eof:
                raise EOFError("it ends too early")
        if self._inner.unused_data or self._body.read1(1):
            raise EOFError("more follows behind its end")
        return b""


class _Decoded:
    """A decoder whose errors are ours."""

    def __init__(self, inner: Body, coding: str) -> None:
        self._inner = inner
        self._coding = coding

    def read1(self, size: int = -1, /) -> bytes:
        """As the decoder does."""
        try:
            return self._inner.read1(size)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise InvalidRequest(f"the body is not {self._coding}: {error}") from error


class Encoder(Protocol):
    """Packs an answer part by part."""

    def add(self, part: Buffer) -> Buffer:
        """What has to be sent so that the client can read this part."""
        ...

    def end(self) -> bytes:
        """What comes last."""
        ...


def encoder(coding: bytes | None) -> Encoder:
    """The encoder of a coding; quick ones, as a batch is large and its client near."""
    if coding in {b"gzip", b"deflate"}:
        return _Deflated(GZIP_WINDOW if coding == b"gzip" else zlib.MAX_WBITS)
    return _Zstd() if coding == b"zstd" else _Identity()


class _Identity:
    def add(self, part: Buffer) -> Buffer:
        return part

    def end(self) -> bytes:
        return b""


class _Deflated:
    def __init__(self, window: int) -> None:
        self._inner = zlib.compressobj(FAST, wbits=window)

    def add(self, part: Buffer) -> Buffer:
        return self._inner.compress(part) + self._inner.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._inner.flush()


class _Zstd:
    def __init__(self) -> None:
        self._inner = zstd.ZstdCompressor(FAST)

    def add(self, part: Buffer) -> Buffer:
        return self._inner.compress(part, zstd.ZstdCompressor.FLUSH_BLOCK)

    def end(self) -> bytes:
        return self._inner.flush()
