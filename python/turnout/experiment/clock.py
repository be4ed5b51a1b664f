"""A clock that does not jump: the wall clock as it went when this boot of the machine first looked, and steady since."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

BOOT = Path("/proc/sys/kernel/random/boot_id")


class Anchored(Protocol):
    """What the processes of a data directory agree on."""

    wall: float
    steady: float


class Clock:
    """Steady time in Unix seconds, the same in all processes of a machine.

    Setting the wall clock forward does not make time pass: neither a step of a ramp nor an exposure gets older by it.
    After a restart of the machine it begins from the wall clock again.

    Args:
        anchor: takes the boot, wall time and steady time, and gives those that were stored first in this boot.
    """

    def __init__(self, anchor: Callable[[str, float, float], Anchored]) -> None:
        found = anchor(_boot(), time.time(), _steady())
        self._ahead = found.wall - found.steady

    def now(self) -> float:
        """The present steady time."""
        return _steady() + self._ahead

    def matured_ms(self) -> int:
        """The present steady time in Unix milliseconds."""
        return int(self.now() * 1000)

    def ahead_ms(self) -> int:
        """By how many milliseconds the wall clock is behind: what makes its times those of this clock."""
        return round((self.now() - time.time()) * 1000)


def _boot() -> str:
    try:
        return BOOT.read_text("ascii").strip()
    except OSError:
        return "unknown"


def _steady() -> float:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
