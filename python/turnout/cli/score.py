"""The command that scores files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from turnout.cli.context import Context
from turnout.cli.show import answer, facts
from turnout.service import Turnout

if TYPE_CHECKING:
    from turnout.score.running import Tick

FORMATS = click.Choice(["parquet", "csv", "ndjson", "arrow"])
INTERRUPTED = 130
"""What shells make of SIGINT: 128 and its number."""


@click.command()
@click.argument("model")
@click.argument("inputs", metavar="IN...", nargs=-1, required=True)
@click.argument("out")
@click.option(
    "--entity", metavar="COLUMN", help="The column of entity ids.  [default: entity_id, where there is one]"
)
@click.option("--keep", metavar="COLUMN[,COLUMN...]", multiple=True, help="Columns to write too; repeat it.")
@click.option("--version", metavar="VERSION", help="Ask this version, whatever the split says.")
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="At a row that cannot be answered: end, or write why and go on.",
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Parts at once.  [default: one a processor]"
)
@click.option(
    "--part-rows",
    type=click.IntRange(1),
    default=65_536,
    show_default=True,
    metavar="N",
    help="Rows of a part: what is in memory for each thread, and what a kill can lose.",
)
@click.option("--from", "read", type=FORMATS, help="Format of IN, where no suffix says it.")
@click.option("--to", "write", type=FORMATS, help="Format of OUT, where no suffix says it.")
@click.option("--resume", is_flag=True, help="Go on with a run that was ended; start it where there is none.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, and forget a run that was ended.")
@click.pass_obj
def score(
    context: Context,
    model: str,
    inputs: tuple[str, ...],
    out: str,
    keep: tuple[str, ...],
    **options: Any,  # noqa: ANN401
) -> None:
    """Answer every row of the files IN, and write OUT.

    IN is a file, a folder or a pattern of Parquet, CSV, NDJSON or Arrow. OUT is a file of one of them, a folder (it
    ends with a slash), or `-`. Beside it, OUT.json says which versions answered how many rows.
    """
    context.local("score")
    from turnout.score.run import STANDARD_OUTPUT  # noqa: PLC0415 - pyarrow, which no other command needs
    from turnout.score.run import score as run  # noqa: PLC0415
    from turnout.score.running import Options  # noqa: PLC0415

    columns = tuple(name for names in keep for name in names.split(","))
    with context.backend() as backend, _progress(context) as tick:
        assert isinstance(backend, Turnout)  # noqa: S101 - `local` has refused servers
        try:
            report = run(backend, model, inputs, out, Options(keep=columns, **options), tick)
        except KeyboardInterrupt:
            resumes = "" if out == STANDARD_OUTPUT else "; --resume goes on with it"
            click.echo(f"turnout: interrupted{resumes}", err=True)
            sys.exit(INTERRUPTED)
    if out != STANDARD_OUTPUT:
        rate = report.scored / max(report.seconds, 1e-9)
        shown = {
            "rows": f"{report.rows:,}",
            "in error": f"{report.errors:,}",
            **{f"by {version}": f"{rows:,}" for version, rows in report.counts.items()},
            "parts": report.parts,
            "seconds": report.seconds,
            "rows a second": f"{rate:,.0f}",
        }
        answer(context, report, facts(f"{model} has answered {out}", shown))


# --- progress -------------------------------------------------------------------------------------------------------


class _Rows(ProgressColumn):
    """Rows, rows a second and the time that is left, of what this process does: others may have begun."""

    def render(self, task: Task) -> Text:
        """One line."""
        tick: Tick | None = task.fields["tick"]
        if tick is None:
            return Text("reading")
        seconds = max(time.monotonic() - task.fields["began"], 1e-9)
        share = (tick.place - tick.passed) / max(tick.total - tick.passed, 1)
        left = seconds / share - seconds if share > 0 else 0.0
        minutes, rest = divmod(round(left), 60)
        return Text(f"{tick.rows:,} rows, {tick.scored / seconds:,.0f} a second, {minutes}:{rest:02} left")


@contextmanager
def _progress(context: Context) -> Generator[Callable[[Tick], None]]:
    """A bar on a terminal, nothing anywhere else."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or context.json:
        yield lambda _: None
        return
    columns = (TextColumn("scoring", markup=False), BarColumn(), _Rows())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0, tick=None, began=time.monotonic())

        def tick(now: Tick) -> None:
            bar.update(task, completed=now.place / max(now.total, 1), tick=now)

        yield tick


COMMANDS = (score,)
