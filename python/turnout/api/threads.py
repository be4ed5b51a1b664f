"""Routes that wait for the disk or for workers, run in a thread beside the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def threaded(work: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """Make a plain function one that is awaited and runs in a thread.

    Litestar's own `sync_to_thread=True` (2.25) wraps a function twice where several routes share a path, and then
    answers with a coroutine that nobody awaits.
    """

    @functools.wraps(work)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(work, *args, **kwargs)

    return run
