"""Which core the threads of a worker run on that hand each request to one another, and who goes before whom.

A request goes through three threads, one after the other. Spread over cores, each step wakes a core, which costs more
than the request itself. On one core, and without preempting each other, each thread finishes what it has, and the next
one finds several requests that it can answer together: see benches/README.md.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")

Mode = Literal["auto", "on", "off"]

NICENESS = 10
"""Beside a batch on two full cores it halves the p99 of single predictions (benches/stream.py)."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")

_everywhere: frozenset[int] = frozenset()
_reserved: socket.socket | None = None


def settle(index: int, workers: int, mode: Mode) -> int | None:
    """Keep the calling thread, and those that it starts from now on, on one core; returns which.

    With `auto`, on one that no other worker of this machine has taken, or, where there are as many workers as cores, on
    that of its number; and nowhere where a container has a share of the machine's time instead of cores.
    """
    global _everywhere  # noqa: PLW0603 - the threads of a process have it in common
    if mode == "off" or not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    own = cores[index % len(cores)]
    core = own if mode == "on" or workers >= len(cores) else _free(cores, own)
    if core is None:
        return None
    _everywhere = frozenset(cores)
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    return core


def cores() -> int:
    """How many cores this process may use, settled or not."""
    if _everywhere:
        return len(_everywhere)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def roam() -> None:
    """Let the calling thread, which a settled one has started, run on every core again."""
    if _everywhere:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, _everywhere)


def step_back() -> None:
    """Let threads that answer single predictions go before the calling one, where the system can tell them apart.

    It cannot be taken back, and goes on to threads that the calling one starts.
    """
    roam()
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def aside(work: Callable[[], T]) -> T:
    """Wait for work in a thread that has stepped back. Raises what it raises."""
    with ThreadPoolExecutor(1, thread_name_prefix="turnout-aside", initializer=step_back) as thread:
        return thread.submit(work).result()


def _free(cores: list[int], first: int) -> int | None:
    """A core that no process has reserved, for as long as this one lives: it holds a name that the kernel gives once."""
    global _reserved  # noqa: PLW0603
    if _limited():
        return None
    start = cores.index(first)
    for core in [*cores[start:], *cores[:start]]:
        reserved = socket.socket(socket.AF_UNIX)
        try:
            reserved.bind(f"\0turnout-core-{core}")
        except OSError:
            reserved.close()
        else:
            _reserved = reserved
            return core
    return None


def _limited() -> bool:
    """Whether a control group limits the time of this process on all cores together."""
    try:
        return not QUOTA.read_text().startswith("max")
    except OSError:
        return False
