"""What a caller in Python hands over, as plain JSON: NumPy's values, infinities, and what JSON has no word for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from turnout.errors import InvalidRequest

BEYOND = {math.inf: msgspec.Raw(b"1e999"), -math.inf: msgspec.Raw(b"-1e999")}
"""Infinities as numbers that no double holds, so that they are refused where they stand and not taken for null."""


def plain(value: Any) -> Any:  # noqa: ANN401
    """The `enc_hook` of msgspec: NumPy's arrays and scalars. Raises InvalidRequest for anything else."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise InvalidRequest(
        f"expected numbers, strings, booleans, null, lists and mappings, found {type(value).__name__}"
    )


def to_json(document: Any) -> bytes:  # noqa: ANN401
    """A request as the bytes of its JSON; NaN is null.

    Raises InvalidRequest for what JSON cannot say: other objects, lone surrogates, structures that contain themselves.
    """
    try:
        body = msgspec.json.encode(document, enc_hook=plain)
        # An infinity is written as null too; only where there is one does anybody have to look.
        return msgspec.json.encode(_marked(document), enc_hook=plain) if b"null" in body else body
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from error


def _marked(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return BEYOND.get(float(value), value)
    if isinstance(value, Mapping):
        return {name: _marked(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _marked(value.tolist())
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return value
