"""Clients of a running server: `Client` for threads, `AsyncClient` for an event loop. See docs/client.md.

`aio` is written by hand, `unasync` makes `sync` of it; what needs no I/O is in `wire`, `batches` and `retry`.
"""

from __future__ import annotations

from turnout.client.aio.client import AsyncClient
from turnout.client.batches import BatchAnswer
from turnout.client.sync.client import Client
from turnout.client.wire import ServerUnreachable

__all__ = ["AsyncClient", "BatchAnswer", "Client", "ServerUnreachable"]
