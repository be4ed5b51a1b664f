"""Text of others on a terminal: reasons, actors and names come from whoever could reach the server."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text in one line, with everything that a terminal would obey instead of showing escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
