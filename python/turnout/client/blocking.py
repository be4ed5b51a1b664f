"""What `Client` has in the place of `asyncio`: the thread itself sleeps, reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import ParamSpec, TypeVar

__all__ = ["sleep", "to_thread"]

P = ParamSpec("P")
T = TypeVar("T")


def to_thread(call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it here: a thread of its own already waits for the server."""
    return call(*args, **kwargs)
