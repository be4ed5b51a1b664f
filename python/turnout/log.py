"""Structured logs: one JSON object a line on standard error, for events; silent until a server turns it on."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

Level = Literal["debug", "info", "warning", "error"]
ORDER: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

SILENT = 100


class _Threshold:
    """The least severe level that is written; above every level in a program that only embeds Turnout."""

    level = SILENT


def enable(level: Level) -> None:
    """Write events of this level and above from now on, in this process."""
    _Threshold.level = ORDER[level]


def log(level: Level, event: str, **fields: Any) -> None:  # noqa: ANN401
    """Write one event. Values that are no JSON are written as their text."""
    if ORDER[level] < _Threshold.level:
        return
    line = {"time": datetime.now(UTC), "level": level, "event": event, **fields}
    try:
        sys.stderr.buffer.write(msgspec.json.encode(line, enc_hook=str) + b"\n")
        sys.stderr.flush()
    except OSError:
        # Nobody reads any more, or the disk of the log is full: serving goes on without it.
        _Threshold.level = SILENT
