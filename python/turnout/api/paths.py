"""Paths: the names in them, and how they were written where a server hands them over decoded."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

Target = tuple[str, str | None]
"""Model, and the version that is asked for."""

REPLACEMENT = "\ufffd"
"""What a decoder puts for bytes that are no UTF-8; no name has it."""
NAMED = re.compile(
    "/v1/models/(?P<model>[^/].*?)("
    "(/activate|/batch|/compare|/distribution|/history|/metrics|/overrides|/predict|/quality|/rollback|/tests?"
    "|/test/(approve|pause|promote|results|resume|skip)|/versions)?"
    "|/(assignments|overrides|receipts)/(?P<entity>.+)"
    "|/versions/(?P<version>[^/].*?)(/batch|/predict)?"
    ")/?"
    "|/v1/entities/(?P<whom>.+)"
    "|/v2/models/(?P<served>[^/].*?)(/versions/(?P<label>[^/].*?))?(/config|/infer|/ready|/stats)?/?"
    "|/v2/repository/models/(?P<stored>[^/].*?)/(load|unload)/?",
    re.DOTALL,
)
"""The paths with names. A name may have slashes but no word of these between them (`turnout.domain.check_name`), so
that the shortest model which leaves one of these behind it is the one that was meant."""


def target_of(path: bytes, verb: bytes, api: bytes = b"v1") -> Target | None:
    """Model and version of a path that ends in a verb, percent-encoded as it came; None for any other path."""
    parts = path.split(b"/")
    if len(parts) not in {5, 7} or parts[:3] != [b"", api, b"models"] or parts[-1] != verb:
        return None
    if len(parts) == 7 and parts[4] != b"versions":
        return None
    try:
        model = unquote(parts[3].decode("ascii"), errors="strict")
        version = unquote(parts[5].decode("ascii"), errors="strict") if len(parts) == 7 else None
    except UnicodeDecodeError:
        return None
    return (model, version) if model and version != "" else None


def encoded(path: str) -> bytes:
    """A decoded path with its names percent-encoded again, each as one segment; what was no UTF-8 is none again."""
    match = NAMED.fullmatch(path)
    if match is None:
        return _quoted(path, safe="/")
    written = bytearray()
    end = 0
    for name in NAMED.groupindex:
        if match[name] is not None:
            written += path[end : match.start(name)].encode() + _quoted(match[name], safe="")
            end = match.end(name)
    return bytes(written) + path[end:].encode()


def _quoted(text: str, *, safe: str) -> bytes:
    return b"%FF".join(quote(part, safe=safe).encode() for part in text.split(REPLACEMENT))
