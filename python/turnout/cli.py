"""The command line."""

from __future__ import annotations

import sys

from turnout.config import resolve


def main() -> None:
    """Serve, with the settings of the environment."""
    from turnout.serve import run  # noqa: PLC0415

    if sys.argv[1:] == ["serve"]:
        sys.exit(run(resolve().settings))


