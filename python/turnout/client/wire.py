"""What goes over the wire and what comes back: paths, headers, bodies, and errors that become exceptions again."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from turnout.domain import Change, Reason
from turnout.errors import InvalidModel, InvalidRequest, TurnoutError
from turnout.experiment.outcomes import Attributed
from turnout.experiment.receipts import Receipt

T = TypeVar("T")
JSON, TAR = b"application/json", b"application/x-tar"


class ServerUnreachable(TurnoutError):
    """The server did not answer; whether a change was made is not known then."""

    status = 503
    code = "server_unreachable"


class Recorded(msgspec.Struct):
    """What became of each of a list of outcomes."""

    results: list[Attributed]


class Forgotten(msgspec.Struct):
    """How many records of an entity are gone."""

    deleted: int


class ReceiptDocument(msgspec.Struct):
    """A receipt as JSON writes it."""

    model: str
    version_number: int
    time: datetime
    reason: Reason
    entity: str | None
    test: int
    segment: int
    score: float | None
    predicted: int

    def receipt(self) -> Receipt:
        """The receipt."""
        return Receipt(
            model=self.model,
            version=self.version_number,
            time=self.time,
            reason=self.reason,
            entity=None if self.entity is None else bytes.fromhex(self.entity),
            test=self.test,
            segment=self.segment,
            score=self.score,
            predicted=self.predicted,
        )


def _by_code(root: type[TurnoutError]) -> dict[str, type[TurnoutError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found |= _by_code(kind)
    return found


CLASSES = _by_code(TurnoutError)


class Tee:
    """What is read from the blocks is written to the file as well."""

    def __init__(self, blocks: Iterator[bytes], file: IO[bytes]) -> None:
        self._blocks, self._file = blocks, file

    def read(self, size: int = -1) -> bytes:  # noqa: ARG002 - tarfile takes blocks of any size
        """The next block, empty at the end."""
        block = next(self._blocks, b"")
        self._file.write(block)
        return block


def document_of(tee: Tee) -> dict[str, Any]:
    """The registry of an archive, all of which is read: one state, which a second request need not see."""
    with tarfile.open(fileobj=tee, mode="r|") as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
        first = tar.next()
        file = None if first is None else tar.extractfile(first)
        document = b"" if file is None else file.read()
    while tee.read():
        pass
    return msgspec.json.decode(document, type=dict[str, Any])


def model_file(path: Path) -> IO[bytes]:
    """The file that an upload carries. Raises InvalidModel where there is none."""
    try:
        return path.open("rb")
    except IsADirectoryError as error:
        raise InvalidModel(
            f"{path} is a folder, and an upload is one file: save the model as one, or register the folder "
            "in the data directory, on the server's machine"
        ) from error
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error}") from error


def path_of(model: str, *rest: str) -> str:
    """The path of a model, or of something of it."""
    return "/v1/models/" + "/".join(map(_segment, (model, *rest)))


def entity_path(entity: str) -> str:
    """The path of an entity, whatever model it met."""
    return f"/v1/entities/{_segment(entity)}"


def _segment(text: str) -> str:
    """A segment of a path. Dots alone are escaped too: they would climb out of it."""
    if not text:
        raise InvalidRequest("an empty name or entity id has no address on a server")
    try:
        return text.replace(".", "%2E") if text in {".", ".."} else quote(text, safe="")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{text!a} is no text that UTF-8 could write") from error


PRINTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What a header takes as it is; the rest of an actor's name is percent-encoded."""


def headers_of(actor: str | None, revision: int | None) -> dict[bytes, bytes]:
    """Who changes something, and which revision of it that person has read."""
    found: dict[bytes, bytes] = {}
    if actor is not None:
        if not actor.isprintable():
            raise InvalidRequest(f"actor: expected printable characters, found {actor!a}")
        found[b"X-Actor"] = quote(actor, safe=PRINTED).encode()
    if revision is not None:
        found[b"If-Match"] = f'"{revision}"'.encode()
    return found


def encode(value: Any) -> bytes:  # noqa: ANN401
    """JSON, of NumPy's numbers too."""
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, UnicodeError) as error:
        raise InvalidRequest(f"this cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:  # noqa: ANN401
    """NumPy's arrays and scalars as what JSON has; a client needs no NumPy."""
    if callable(plain := getattr(value, "tolist", None)):
        return plain()
    raise InvalidRequest(f"expected what JSON can write, found {type(value).__name__}")


def change_of(headers: httpx.Headers) -> Change:
    """Where a change has arrived."""
    pending = tuple(part.strip() for part in headers.get("turnout-pending", "").split(",") if part.strip())
    revision = headers.get("etag", '"0"').strip('"')
    return Change(generation=int(headers["turnout-generation"]), revision=int(revision), pending=pending)


def decode(answer: httpx.Response, kind: type[T]) -> T:
    """The body as what it should be. Raises ServerUnreachable for anything else: that is no server of ours."""
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as error:
        raise ServerUnreachable(
            f"{answer.url} answered something else than Turnout would: {error}"
        ) from error


def error_of(answer: httpx.Response) -> TurnoutError:
    """The exception that a problem document (RFC 9457) means."""
    try:
        document = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError:
        document = {}
    detail = str(document.get("detail") or f"{answer.status_code} {answer.reason_phrase} from {answer.url}")
    place = {key: document.get(key) for key in ("row", "feature", "position")}
    return CLASSES.get(str(document.get("code")), TurnoutError)(detail, **place)
