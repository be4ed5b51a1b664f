"""Giving memory back to the system."""

from __future__ import annotations

import ctypes
import functools


def release_memory() -> None:
    """Give what freed sessions held back to the system; the C library would keep it."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
