"""Signatures of webhooks, for both sides. Source: Standard Webhooks, "Signature scheme"."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping

from turnout.errors import InvalidRequest

IDENTITY = re.compile(r"[!-\-/-~]{1,128}")
"""Visible ASCII without the full stop, which would make it unclear where id, timestamp and body are divided."""
TIMESTAMP = re.compile(r"[0-9]{1,12}")


def signature(secret: bytes, identity: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 of the HMAC-SHA256 of `identity.timestamp.body` (section "Signature scheme").

    Args:
        secret: the key itself: the bytes whose base64 follows `whsec_` in the written form of the specification.
        identity: the header `webhook-id`.
        timestamp: seconds since 1970, of this attempt.
        body: exactly as sent.

    Raises:
        InvalidRequest: for an empty secret, with which anybody could sign.
    """
    if not secret:
        raise InvalidRequest("the secret of webhooks is empty; 24 to 64 random bytes are expected")
    content = f"{identity}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode()


def verify(secret: bytes, headers: Mapping[str, str], body: bytes, tolerance_seconds: float = 300) -> bool:
    """Whether this request was signed with the secret, at most so long ago; for receivers written in Python.

    Repeats are not found here: a receiver remembers the `webhook-id`s of `tolerance_seconds`.

    Args:
        secret: the same as the sender's.
        headers: of the request, in whatever case.
        body: as it came, before it was parsed.
        tolerance_seconds: how far the clocks may differ, either way, delivery included.

    Raises:
        InvalidRequest: for an empty secret.
    """
    found = {name.lower(): value for name, value in headers.items()}
    identity, timestamp = found.get("webhook-id", ""), found.get("webhook-timestamp", "")
    known = IDENTITY.fullmatch(identity) is not None and TIMESTAMP.fullmatch(timestamp) is not None
    expected = signature(secret, identity if known else "", int(timestamp) if known else 0, body).encode()
    if not known or abs(time.time() - int(timestamp)) > tolerance_seconds:
        return False
    # Several: while a secret is replaced, a sender signs with the old one and the new one.
    given = found.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(expected, one.encode("utf-8", "replace")) for one in given)
