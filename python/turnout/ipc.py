"""Reads a stream of Arrow's IPC format far enough to refuse messages that would take too much memory, and no further.

A message says itself how large it is, and how large its compressed buffers become; whoever sends it may say anything.
Source: Arrow columnar format, "Encapsulated message format"; `Message.fbs`; FlatBuffers, "Internals".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from turnout.errors import InvalidRequest, PayloadTooLarge

CONTINUATION = b"\xff\xff\xff\xff"
END = CONTINUATION + bytes(4)
"""The end of a stream."""
DICTIONARY, RECORDS = 2, 3
NOT_COMPRESSED = -1
READ_BYTES = 1 << 20


class Body(Protocol):
    """Bytes that may still be on their way."""

    def read1(self, size: int = -1, /) -> bytes:
        """At most `size` of those that are here, after waiting for one; none at the end."""
        ...


class Guard:
    """A stream of messages as a file for pyarrow: each is read whole, and looked at, before any of it is passed on.

    Args:
        body: the stream.
        most: bytes that a message may be, and become.
    """

    closed = False

    def __init__(self, body: Body, most: int) -> None:
        self._body = body
        self._most = most
        self._parts: list[bytes] = []
        self._ended = False

    def close(self) -> None:
        """Nothing to be done; whoever made the body closes it."""

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """As many bytes; fewer only at the end."""
        if size < 0:
            size = self._most
        parts: list[bytes] = []
        while size and (self._parts or self._message()):
            part = self._parts.pop(0)
            if len(part) > size:
                self._parts.insert(0, part[size:])
                part = part[:size]
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _message(self) -> bool:
        """Read the next one, if there is one."""
        if self._ended:
            return False
        prefix = self._exactly(4, at_end=True)
        if prefix == CONTINUATION:
            prefix += self._exactly(4)
        if not prefix or prefix[-4:] == bytes(4):
            self._ended = True
            self._parts = [prefix] if prefix else []
            return bool(prefix)
        metadata = self._exactly(self._bounded(int.from_bytes(prefix[-4:], "little")))
        try:
            message = _Table.root(metadata)
            body = self._exactly(self._bounded(message.number(3, "<q")))
            self._bounded(_whole_size(message, body))
        except struct.error as error:
            raise InvalidRequest("expected a stream of Arrow messages, found something else") from error
        self._parts = [prefix, metadata, body] if body else [prefix, metadata]
        return True

    def _bounded(self, size: int) -> int:
        if not 0 <= size <= self._most:
            raise PayloadTooLarge(
                f"expected messages of at most {self._most} bytes, found one of {size}; see the setting max_batch_bytes"
            )
        return size

    def _exactly(self, size: int, *, at_end: bool = False) -> bytes:
        """So many bytes; none where the stream may end here, and does."""
        parts: list[bytes] = []
        missing = size
        while missing:
            part = self._body.read1(min(missing, READ_BYTES))
            if not part:
                if at_end and missing == size:
                    return b""
                raise InvalidRequest(f"the Arrow stream breaks off: {missing} of {size} bytes are missing")
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Table(NamedTuple):
    """A table of a FlatBuffer. Raises struct.error where it lies outside of it."""

    content: bytes
    position: int

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, *struct.unpack_from("<I", content))

    def number(self, field: int, form: str) -> int:
        """The value of a field; 0 where it has none."""
        place = self._place(field)
        return struct.unpack_from(form, self.content, place)[0] if place else 0

    def table(self, field: int) -> _Table | None:
        place = self._place(field)
        return _Table(self.content, place + self._at("<I", place)) if place else None

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two 64-bit integers."""
        place = self._place(field)
        if place:
            start = place + self._at("<I", place)
            count = self._at("<I", start)
            yield from struct.iter_unpack("<qq", self.content[start + 4 : start + 4 + 16 * count])

    def _place(self, field: int) -> int:
        vtable = self.position - self._at("<i", self.position)
        offset = 4 + 2 * field
        found = self._at("<H", vtable + offset) if offset < self._at("<H", vtable) else 0
        return self.position + found if found else 0

    def _at(self, form: str, place: int) -> int:
        return struct.unpack_from(form, self.content, place)[0]


def _whole_size(message: _Table, body: bytes) -> int:
    """Bytes of the buffers of a message when they are no longer compressed."""
    kind = message.number(1, "<B")
    records = message.table(2) if kind in {DICTIONARY, RECORDS} else None
    if records is not None and kind == DICTIONARY:
        records = records.table(1)
    if records is None or records.table(3) is None:
        return len(body)
    whole = 0
    for offset, length in records.pairs(2):
        if length:
            size = struct.unpack_from("<q", body, offset)[0]
            whole += length if size == NOT_COMPRESSED else size if size >= 0 else 1 << 63
    return whole
