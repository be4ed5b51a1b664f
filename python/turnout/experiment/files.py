"""Outcomes from files, and exposures and outcomes to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from turnout.experiment.events import Events


def export_exposures(events: Events, model: str, tests: Sequence[int], path: Path) -> int:
    """Being written."""
    raise NotImplementedError


def export_outcomes(events: Events, model: str, path: Path) -> int:
    """Being written."""
    raise NotImplementedError
