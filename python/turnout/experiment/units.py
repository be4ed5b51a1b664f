"""One entity in one test: when which arm answered it first, and what came of it. Plain records, no database."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from turnout.plans import Metric

FAILED, REPLACED, INVALID = range(3)
"""Places of bad events in `Unit.marks` and in the counts; behind them stand the six latency thresholds."""
SLOW = 3
LEVELS = 6
BAD = SLOW + LEVELS
NEVER = 2**62


class Show(msgspec.Struct, array_like=True, gc=False):
    """The first time that an arm answered the entity in one segment (revision) of the test: an exposure.

    `ms` is in Unix milliseconds. `score` and `predicted` are what the version said, `champion` what the baseline says of
    the entity, where known. `apart` is how far, in milliseconds, the nearest exposure to another arm is.
    """

    segment: int
    arm: str
    ms: int
    answered: bool = True
    score: float | None = None
    predicted: int = 0
    champion: float | None = None
    apart: int = NEVER


class Cell(msgspec.Struct, array_like=True, gc=False):
    """What was observed of one metric after one exposure: the value so far, and the number of outcomes."""

    value: float = 0.0
    count: int = 0


class Unit(msgspec.Struct, array_like=True):
    """An entity in a test. `marks` has a bit for each kind of bad event that happened to it."""

    shows: list[Show] = []
    marks: int = 0
    cells: dict[str, dict[int, Cell]] = {}

    def show(self, segment: int) -> Show | None:
        """The exposure in a segment."""
        for show in self.shows:
            if show.segment == segment:
                return show
        return None

    def shown_at(self, ms: int) -> Show | None:
        """The last exposure that was not later than this."""
        found = None
        for show in self.shows:
            if show.ms <= ms and (found is None or show.ms >= found.ms):
                found = show
        return found

    def add(self, show: Show) -> None:
        """Add an exposure, and note how near it is to those of other arms."""
        for other in self.shows:
            if other.arm != show.arm:
                apart = abs(show.ms - other.ms)
                other.apart = min(other.apart, apart)
                show.apart = min(show.apart, apart)
        self.shows.append(show)

    @property
    def crossed(self) -> bool:
        """Whether more than one arm has answered it."""
        return any(show.apart < NEVER for show in self.shows)

    def observe(self, metric: Metric, segment: int, value: float) -> None:
        """Take an outcome in."""
        cells = self.cells.setdefault(metric.name, {})
        cell = cells.get(segment)
        if cell is None:
            cell = cells[segment] = Cell()
        if metric.kind == "binary":
            cell.value = max(cell.value, value)
        elif metric.kind == "label":
            cell.value = value
        else:
            cell.value += value
        cell.count += 1

    def observed(self, metric: Metric, show: Show) -> tuple[float, float | None] | None:
        """What this exposure counts for a metric: its value, and the champion's score; None where it does not count.

        It does not where another arm answered the entity within the window, or where its label is not known.
        """
        if not show.answered or show.apart < metric.window_ms:
            return None
        cell = self.cells.get(metric.name, {}).get(show.segment)
        if cell is None:
            return None if metric.kind == "label" else (0.0, show.champion)
        return cell.value, show.champion


def levels(level: int) -> Iterator[int]:
    """The bad events that an answer above so many thresholds is."""
    yield from range(SLOW, SLOW + level)


def finite(value: float | None) -> float | None:
    """A number that can be computed with, or None."""
    return value if value is not None and math.isfinite(value) else None
