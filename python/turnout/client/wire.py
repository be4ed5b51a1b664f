"""What goes over the wire and what comes back: paths, headers, bodies, and errors that become exceptions again."""

from __future__ import annotations

import asyncio
import math
import re
import tarfile
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from io import TextIOBase
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from turnout.domain import Assignment, Change, Reason, SessionOptions
from turnout.errors import (
    InvalidMetric,
    InvalidModel,
    InvalidRequest,
    PayloadTooLarge,
    TooManyRequests,
    TurnoutError,
)
from turnout.experiment.outcomes import MAX_OUTCOMES, Attributed, Outcome
from turnout.experiment.receipts import Receipt
from turnout.plain import to_json

T = TypeVar("T")
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
JSON, TAR = b"application/json", b"application/x-tar"
MAX_ID_BYTES = 128
MOST_SECONDS = 86_400
LEAST_URGENT = 7


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


def by_code(root: type[TurnoutError]) -> dict[str, type[TurnoutError]]:
    """Classes of errors by their codes."""
    found = {root.code: root}
    for kind in root.__subclasses__():
        for code, below in by_code(kind).items():
            found.setdefault(
                code, below
            )  # a class without a code of its own is no other error than its parent
    return found


CLASSES = by_code(TurnoutError)
GATEWAY: dict[int, type[TurnoutError]] = {
    413: PayloadTooLarge,
    429: TooManyRequests,
    502: ServerUnreachable,
    503: ServerUnreachable,
    504: ServerUnreachable,
}
"""What an answer means that is no problem document of ours: something between us and the server gave it."""


# --- files ----------------------------------------------------------------------------------------------------------


class Archive:
    """An archive as it arrives, block by block, written to a file; its first member is the registry.

    Raises InvalidRequest for what is no file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        if not hasattr(file, "write"):
            raise InvalidRequest(f"expected a file opened for writing bytes, found {type(file).__name__}")
        self._file = file
        self._head = bytearray()
        self._end = tarfile.BLOCKSIZE
        self._size: int | None = None

    def write(self, block: bytes) -> None:
        """Take the next block. Raises tarfile.TarError for what is no archive."""
        self._file.write(block)
        if len(self._head) < self._end:
            self._head += block
        if self._size is None and len(self._head) >= tarfile.BLOCKSIZE:
            header = bytes(self._head[: tarfile.BLOCKSIZE])
            self._size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
            self._end += self._size

    def document(self) -> dict[str, Any]:
        """The registry, once all is here: one state, which a second request need not see. Raises DecodeError."""
        document = bytes(self._head[tarfile.BLOCKSIZE : self._end])
        return msgspec.json.decode(document, type=dict[str, Any])


class Upload(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that is read from a file, block by block; on an event loop in a thread beside it."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._blocks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        blocks = iter(self._blocks)
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            yield block


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


def archive_file(file: IO[bytes]) -> IO[bytes]:
    """The file of an archive. Raises InvalidRequest for what is none."""
    if not hasattr(file, "read") or isinstance(file, TextIOBase):
        raise InvalidRequest(
            f"expected an export as a mapping, or a file opened for reading bytes, found {type(file).__name__}"
        )
    return file


# --- requests -------------------------------------------------------------------------------------------------------


def seconds_of(timeout: Any) -> float:  # noqa: ANN401
    """A time to wait. Raises InvalidRequest for one that is none."""
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not math.isfinite(timeout) or not 0 < timeout <= MOST_SECONDS:
        raise InvalidRequest(f"timeout: expected more than 0 and at most {MOST_SECONDS} s, found {timeout!r}")
    return float(timeout)


def url_of(url: Any) -> httpx.URL:  # noqa: ANN401
    """The URL of a server. Raises InvalidRequest for anything else; passwords are not shown."""
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, UnicodeError):
        found = httpx.URL()
    if found.scheme not in {"http", "https"} or not found.host or found.query or found.fragment:
        told = re.sub(r"(//|^).*@", r"\1***@", str(url), flags=re.DOTALL)
        raise InvalidRequest(f"expected a URL such as http://127.0.0.1:8000, found {told!a}")
    return found


def entity_of(entity: Any) -> str | int:  # noqa: ANN401
    """An entity id as the server takes it. Raises InvalidRequest for what is none, as `Turnout` does."""
    if isinstance(entity, np.integer):
        return int(entity)
    if isinstance(entity, str | int) and not isinstance(entity, bool):
        return entity
    raise InvalidRequest(f"an entity id is a string or an integer, found {type(entity).__name__}")


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


def predict_path(model: str, version: str | None, verb: str) -> str:
    """The path of predictions (`predict`) or batches (`batch`), by a certain version or by the one that routing finds."""
    return path_of(model, verb) if version is None else path_of(model, "versions", version, verb)


PRINTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What a header takes as it is; the rest of an actor's name is percent-encoded."""


def headers_of(actor: str | None, revision: Any) -> dict[bytes, bytes]:  # noqa: ANN401
    """Who changes something, and which revision of it that person has read."""
    found: dict[bytes, bytes] = {}
    if actor is not None:
        if not actor.isprintable():
            raise InvalidRequest(f"actor: expected printable characters, found {actor!a}")
        found[b"X-Actor"] = quote(actor, safe=PRINTED).encode()
    if revision is not None:
        if isinstance(revision, bool) or not isinstance(revision, int | np.integer):
            raise InvalidRequest(f"revision: expected an integer, found {type(revision).__name__}")
        found[b"If-Match"] = f'"{revision}"'.encode()
    return found


def wishes_of(request_id: str | None, priority: int | None, timeout_ms: int | None) -> dict[bytes, bytes]:
    """What a prediction asks for beside its answer. Raises InvalidRequest for what the server would not understand."""
    found: dict[bytes, bytes] = {}
    if request_id is not None:
        if not (1 <= len(request_id) <= MAX_ID_BYTES and request_id.isascii() and request_id.isprintable()):
            raise InvalidRequest(
                f"request_id: expected 1 to {MAX_ID_BYTES} printable ASCII characters, found {request_id[:60]!a}"
            )
        found[b"X-Request-Id"] = request_id.encode()
    if priority is not None:
        if not 0 <= priority <= LEAST_URGENT:
            raise InvalidRequest(f"priority: expected 0 to {LEAST_URGENT}, found {priority}")
        found[b"Priority"] = f"u={priority}".encode()
    if timeout_ms is not None:
        found[b"X-Timeout-Ms"] = str(timeout_ms).encode()
    return found


def version_spec(
    features: Iterable[Any] | None,
    accuracy: float | None,
    metrics: Mapping[str, float] | None,
    metadata: Mapping[str, Any] | None,
    options: SessionOptions | None,
) -> bytes:
    """What is said of a version, as the part `spec` of an upload."""
    return to_json(
        {
            "features": None if features is None else list(features),
            "accuracy": accuracy,
            "metrics": dict(metrics or {}),
            "metadata": dict(metadata or {}),
            "options": options or SessionOptions(),
        }
    )


def row_body(features: Any, entity_id: str | int | None) -> dict[str, Any]:  # noqa: ANN401
    """One row to predict. A row of pandas knows the names of its values."""
    entity = None if entity_id is None else entity_of(entity_id)
    return {"entity_id": entity, "features": getattr(features, "to_dict", lambda: features)()}


def metrics_of(metrics: Any) -> list[Any]:  # noqa: ANN401
    """Metrics as a list. Raises InvalidMetric for what is none."""
    if isinstance(metrics, Mapping | str):
        raise InvalidMetric(f"expected a list of metrics, found {type(metrics).__name__}")
    return list(metrics)


def outcomes_of(outcomes: Any) -> list[list[Any]]:  # noqa: ANN401
    """Outcomes, as many at a time as a server takes. Raises InvalidRequest for what is no list."""
    if isinstance(outcomes, Mapping | str | bytes | Outcome):
        raise InvalidRequest(f"expected a list of outcomes, found {type(outcomes).__name__}")
    given = list(outcomes)
    return [given[start : start + MAX_OUTCOMES] for start in range(0, len(given), MAX_OUTCOMES)]


def count_once(outcomes: Sequence[Any]) -> bool:
    """Whether each of these outcomes has an `id`, so that it counts once however often it is sent."""
    return all(
        (one.get("id") if isinstance(one, Mapping) else getattr(one, "id", None)) is not None
        for one in outcomes
    )


def ids_of(ids: Any) -> list[str | int]:  # noqa: ANN401
    """Entity ids as a list. Raises InvalidRequest for one string."""
    if isinstance(ids, str | bytes):
        raise InvalidRequest("entity ids must be a sequence of ids, not one string")
    convert = getattr(ids, "to_pylist", None) or getattr(ids, "tolist", None)
    return convert() if convert else list(ids)


# --- answers --------------------------------------------------------------------------------------------------------


class Made(threading.local):
    """The last change that this thread made."""

    change: Change | None = None


class AsyncMade:
    """The last change that this task of an event loop made."""

    @property
    def change(self) -> Change | None:
        """The change."""
        return (LAST.get() or {}).get(self)

    @change.setter
    def change(self, change: Change | None) -> None:
        # A copy: the tasks that this one has started share the dictionary.
        LAST.set(WeakKeyDictionary({**(LAST.get() or {}), self: change}))


LAST: ContextVar[WeakKeyDictionary[AsyncMade, Change | None] | None] = ContextVar("last", default=None)
GENERATION = re.compile(r"[0-9]{1,18}")
ETAG = re.compile(r'(?:W/)?"([0-9]{1,18})(?:-[^"]*)?"')
"""Also as proxies rewrite it that compress: `W/"3"`, `"3-gzip"`."""


def indices_of(found: Sequence[Assignment]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """For each assignment an index into the names of the versions, in the order in which they first occur."""
    names = {label: place for place, label in enumerate(dict.fromkeys(one.version for one in found))}
    return np.array([names[one.version] for one in found], np.uint8), tuple(names)


def change_of(headers: httpx.Headers) -> Change | None:
    """Where a change has arrived, None where that cannot be read: it was made nevertheless."""
    generation = headers["turnout-generation"].strip()
    if not GENERATION.fullmatch(generation):
        return None
    revision = ETAG.fullmatch(headers.get("etag", "").strip())
    pending = tuple(part.strip() for part in headers.get("turnout-pending", "").split(",") if part.strip())
    return Change(int(generation), 0 if revision is None else int(revision[1]), pending)


def decode(answer: httpx.Response, kind: type[T]) -> T:
    """The body as what it should be. Raises ServerUnreachable for anything else: that is no server of ours."""
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except UNREADABLE as error:
        raise strange(error, answer.url) from error


def error_of(answer: httpx.Response) -> TurnoutError:
    """The exception that a problem document (RFC 9457) means."""
    try:
        document = msgspec.json.decode(answer.content, type=dict[str, Any])
    except UNREADABLE:
        document = {}
    detail = str(
        document.get("detail") or f"{answer.status_code} {answer.reason_phrase} from {shown(answer.url)}"
    )
    place: dict[str, Any] = {
        key: document[key]
        for key, of in (("row", int), ("feature", str), ("position", int))
        if isinstance(document.get(key), of)
    }
    kind = CLASSES.get(str(document.get("code")), GATEWAY.get(answer.status_code, TurnoutError))
    return kind(detail, **place)


def shown(url: httpx.URL) -> httpx.URL:
    """A URL without the name and the password in it."""
    return url.copy_with(userinfo=b"")


def unreachable(error: Exception, url: httpx.URL, tries: int) -> ServerUnreachable:
    """The exception for no answer, after so many tries."""
    after = f" in {tries} tries" if tries > 1 else ""
    return ServerUnreachable(f"{shown(url)} did not answer{after}: {str(error) or type(error).__name__}")


def strange(error: Exception | str, url: httpx.URL) -> ServerUnreachable:
    """The exception for an answer that is none of ours."""
    return ServerUnreachable(f"{shown(url)} answered something else than Turnout would: {error}")
