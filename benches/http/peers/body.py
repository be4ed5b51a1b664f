"""The body of a request by msgspec, for those peers that leave JSON to their user."""

from __future__ import annotations

import msgspec


class Request(msgspec.Struct):
    features: dict[str, float]
    entity_id: str | None = None


decode = msgspec.json.Decoder(Request).decode
encode = msgspec.json.encode
