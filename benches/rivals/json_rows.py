"""The body of a batch by msgspec, for those rivals that leave JSON to their user."""

from __future__ import annotations

import msgspec


class Body(msgspec.Struct):
    rows: list[list[float]]


decode = msgspec.json.Decoder(Body).decode
encode = msgspec.json.encode
