"""How answers look: one JSON document for machines, tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
import msgspec
from rich.table import Table

from turnout.cli.context import Context
from turnout.cli.text import plain
from turnout.domain import Test

MARKS = str.maketrans("", "", "%+-,")
"""What numbers have beside digits and a point."""


def answer(context: Context, value: Any, *tables: Table | str) -> None:  # noqa: ANN401
    """Print the value as JSON, or what was made of it for people."""
    if context.json:
        # Past rich, which would change the text: ":bug:" into an emoji.
        click.echo(msgspec.json.encode(value))
        return
    for table in tables:
        context.console.print(plain(table) if isinstance(table, str) else table)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table with a title; numbers to the right."""
    listed = [[text(cell) for cell in row] for row in rows]
    found = Table(title=plain(title) or None, title_justify="left", header_style="bold")
    for position, column in enumerate(columns):
        numbers = bool(listed) and all(_is_number(row[position]) for row in listed)
        found.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        found.add_row(*row)
    return found


def facts(title: str, pairs: Mapping[str, Any]) -> Table:
    """A table of names and values."""
    found = table(title, ("name", "value"), pairs.items())
    found.show_header = False
    return found


def text(value: Any) -> str:  # noqa: ANN401, PLR0911 - one line a type
    """One value for people."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case datetime():
            return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case Mapping():
            return ", ".join(f"{plain(str(name))}={text(part)}" for name, part in value.items()) or "-"
        case list() | tuple():
            return ", ".join(map(text, value)) or "-"
        case _:
            return plain(str(value))


def seconds(value: float | None) -> str:
    """A time that people can read."""
    if value is None:
        return "-"
    return (
        f"{value * 1e6:.0f} us"
        if value < 1e-3
        else f"{value * 1e3:.1f} ms"
        if value < 1
        else f"{value:.1f} s"
    )


def duration(value: float) -> str:
    """A longer time, in the unit that fits."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"


def table_of_test(test: Test) -> Table:
    """A test, and where its plan is."""
    rows = [(arm.version, f"{arm.weight:.1%}", arm.slots) for arm in test.arms]
    title = f"test {test.id} of {test.model}, revision {test.revision}, {test.status}, salt {test.salt}"
    return table(f"{title}{_step(test)}", ("arm", "weight", "slots"), rows)


def _step(test: Test) -> str:
    if test.plan is None:
        return ""
    steps = f"step {test.step + 1} of {len(test.plan.steps)}" if test.plan.steps else "by allocation"
    return f", {steps}{', paused' if test.paused else ''}{', approved' if test.approved else ''}"


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).translate(MARKS).isdigit()
