"""Commands about what was observed: outcomes in and out of files, metrics, receipts, and what is known of one entity."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
import msgspec

from turnout.cli.context import Context, reason
from turnout.cli.score import INTERRUPTED
from turnout.cli.show import answer, duration, facts, table
from turnout.experiment.files import Imported, import_outcomes
from turnout.plans import Metric
from turnout.service import Turnout


@click.group()
def outcomes() -> None:
    """Read outcomes from a file, or write them to one."""


@outcomes.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="The model of rows that do not name it.")
@click.option("--metric", metavar="NAME", help="The metric of rows that do not name it.")
@click.pass_obj
def read_outcomes(context: Context, file: Path, model: str | None, metric: str | None) -> None:
    """Record the outcomes of FILE: Parquet, CSV, NDJSON or Arrow, by its name.

    Columns or keys: model, metric, value, entity_id or prediction_id, and perhaps time and id. Rows that carry an id can
    be imported again. A row that is invalid is told and does not hold up the others.
    """
    with context.backend() as backend, _rows(context) as told:
        try:
            found = import_outcomes(file, backend.record_outcomes, model=model, metric=metric, progress=told)
        except KeyboardInterrupt:
            click.echo("turnout: interrupted; rows that carry an id can be imported again", err=True)
            sys.exit(INTERRUPTED)
    counts = {state: f"{count:,}" for state, count in found.counts.items()}
    answer(
        context,
        found,
        facts(f"{file}", {"rows": f"{found.rows:,}", **counts}),
        *_problems(found),
    )


def _problems(found: Imported) -> list[Any]:
    if not found.problems:
        return []
    rows = [(problem.row, problem.code, problem.detail) for problem in found.problems]
    more = found.counts["invalid"] - len(rows)
    title = f"invalid{f', the first {len(rows)} and {more:,} more' if more else ''}"
    return [table(title, ("row", "code", "what is wrong"), rows)]


@contextmanager
def _rows(context: Context) -> Generator[Callable[[int], None] | None]:
    """The number of rows so far, on a terminal."""
    if not context.errors.is_terminal or context.json:
        yield None
        return
    with context.errors.status("recording outcomes …") as status:

        def told(rows: int) -> None:
            status.update(f"recording outcomes: {rows:,} rows")

        yield told


@outcomes.command("export")
@click.argument("model")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def write_outcomes(context: Context, model: str, file: Path) -> None:
    """Write the outcomes of MODEL that are kept to FILE, as Parquet. Entities are hashes."""
    context.local("outcomes export")
    with context.backend("exporting outcomes") as backend:
        assert isinstance(backend, Turnout)  # noqa: S101 - `local` has refused servers
        rows = backend.export_outcomes(model, file)
    answer(context, {"file": str(file), "rows": rows}, f"{rows:,} outcomes are in {file}")


@click.group()
def exposures() -> None:
    """Write to a file which entities a test showed which version."""


@exposures.command("export")
@click.argument("model")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def write_exposures(context: Context, model: str, file: Path) -> None:
    """Write the exposures of the tests of MODEL to FILE, as Parquet. Entities are hashes."""
    context.local("exposures export")
    with context.backend("exporting exposures") as backend:
        assert isinstance(backend, Turnout)  # noqa: S101 - `local` has refused servers
        rows = backend.export_exposures(model, file)
    answer(context, {"file": str(file), "rows": rows}, f"{rows:,} exposures are in {file}")


@click.command()
@click.argument("model")
@click.option(
    "--set",
    "declared",
    type=click.File("rb"),
    metavar="FILE|-",
    help="Declare these metrics, a JSON list; - is the input. They replace all that were declared before.",
)
@reason
@click.pass_obj
def metrics(context: Context, model: str, declared: IO[bytes] | None, reason: str) -> None:
    """Show what is measured of MODEL, or declare it."""
    with context.backend() as backend:
        if declared is None:
            found = backend.declared_metrics(model)
        else:
            given = _metrics(declared)
            found = backend.declare_metrics(model, given, actor=context.actor, reason=reason)
    columns = ("metric", "kind", "better", "role", "window", "margin", "classes")
    answer(context, found, table(f"metrics of {model}", columns, map(_metric, found)))


def _metrics(file: IO[bytes]) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(file.read(), type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--set: expected a JSON list of metrics: {error}") from error


def _metric(metric: Metric) -> tuple[Any, ...]:
    return (
        metric.name,
        metric.kind,
        metric.direction,
        metric.role,
        duration(metric.window_seconds),
        metric.margin,
        metric.classes,
    )


@click.command()
@click.argument("model")
@click.argument("prediction_id")
@click.pass_obj
def receipt(context: Context, model: str, prediction_id: str) -> None:
    """Show what PREDICTION_ID says of its prediction. The entity is a hash, as in exports."""
    with context.backend() as backend:
        found = backend.read_receipt(model, prediction_id)
        versions = backend.list_versions(model)
    label = next((version.version for version in versions if version.ordinal == found.version), None)
    said = {
        "model": found.model,
        "version": label,
        "version_number": found.version,
        "time": found.time,
        "reason": found.reason,
        "entity": None if found.entity is None else found.entity.hex(),
        "test": found.test,
        "segment": found.segment,
        "score": found.score,
        "predicted": found.predicted,
    }
    answer(context, said, facts("", said))


@click.command()
@click.argument("entity")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def forget(context: Context, entity: str, yes: bool) -> None:
    """Delete the exposures and outcomes of ENTITY, in all tests of all models. Counts, which name nobody, stay."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is here to be asked: say --yes")
        click.confirm(
            f"Delete all exposures and outcomes of {entity!r}? This cannot be undone", abort=True, err=True
        )
    with context.backend() as backend:
        deleted = backend.forget_entity(entity)
    answer(context, {"deleted": deleted}, f"{deleted:,} records of {entity} are deleted")


COMMANDS = (outcomes, exposures, metrics, receipt, forget)
