"""Commands that look: models, history, comparison, assignment, distribution, status, and a prediction by hand."""

from __future__ import annotations

from datetime import datetime

import click
import msgspec

from turnout.cli.context import Context
from turnout.cli.show import answer, facts, seconds, table
from turnout.client import Client
from turnout.domain import History, VersionStatus, WorkerStatus


@click.command()
@click.pass_obj
def models(context: Context) -> None:
    """List the models."""
    with context.backend() as backend:
        found = backend.models()
    rows = [(m.name, m.active, m.former, m.test_id, m.versions_registered, m.revision) for m in found]
    answer(context, found, table("", ("model", "active", "before", "test", "registered", "revision"), rows))


@click.command()
@click.argument("model")
@click.argument("a")
@click.argument("b")
@click.pass_obj
def compare(context: Context, model: str, a: str, b: str) -> None:
    """Compare versions A and B: offline metrics (B minus A) and what they have answered."""
    with context.backend() as backend:
        found = backend.compare_versions(model, a, b)
    offline = {"accuracy": found.accuracy_diff, **found.metrics_diff}
    rows = [
        (
            label,
            live.requests,
            live.errors,
            live.error_rate,
            seconds(live.p50),
            seconds(live.p95),
            seconds(live.p99),
        )
        for label, live in found.live.items()
    ]
    columns = ("version", "requests", "errors", "error rate", "p50", "p95", "p99")
    answer(context, found, facts(f"{b} minus {a}", offline), table("answered so far", columns, rows))


@click.command()
@click.argument("model")
@click.pass_obj
def history(context: Context, model: str) -> None:
    """Show every version, deployment and change of MODEL, and why."""
    with context.backend() as backend:
        found = backend.version_history(model)
    versions = [
        (
            v.version,
            "active" if v.version == found.current_version else "",
            v.created_at,
            v.accuracy,
            v.metrics,
        )
        for v in found.versions
    ]
    stays = [(d.version, d.since, d.until, d.action, d.actor, d.reason) for d in found.deployments]
    answer(
        context,
        found,
        table(
            f"versions of {model}, newest first",
            ("version", "", "registered", "accuracy", "metrics"),
            versions,
        ),
        table("deployments", ("version", "since", "until", "by", "actor", "reason"), stays),
        _events(found),
    )


def _events(found: History):  # noqa: ANN202
    rows = [(e.sequence, e.time, e.actor, e.action, e.version, e.reason) for e in found.events]
    return table("changes", ("#", "time", "actor", "action", "version", "reason"), rows)


@click.command()
@click.argument("model")
@click.argument("entity")
@click.option("--at", metavar="TIME", help="Which version it was then: an ISO time with a zone.")
@click.pass_obj
def assign(context: Context, model: str, entity: str, at: str | None) -> None:
    """Show which version answers ENTITY, and why."""
    try:
        moment = None if at is None else datetime.fromisoformat(at)
    except ValueError as error:
        raise click.UsageError(f"--at: {error}") from error
    with context.backend() as backend:
        found = backend.assign(model, entity, at=moment)
    answer(context, found, facts("", msgspec.structs.asdict(found)))


@click.command()
@click.argument("model")
@click.pass_obj
def distribution(context: Context, model: str) -> None:
    """Show the split as configured, on a million synthetic ids, and in the requests so far."""
    with context.backend() as backend:
        found = backend.distribution(model)
    rows = [
        (
            s.version,
            f"{s.configured:.2%}",
            f"{s.synthetic:.2%}",
            s.requests,
            "-" if s.observed is None else f"{s.observed:.2%}",
        )
        for s in found.shares
    ]
    columns = ("version", "configured", "synthetic", "requests", "observed")
    answer(context, found, table(f"{model}, {found.requests} requests so far", columns, rows))


@click.command()
@click.argument("model")
@click.argument("features")
@click.option("--entity", metavar="ID", help="Whom the prediction is about; decides which version answers.")
@click.option("--version", metavar="VERSION", help="Ask this version, whatever the split says.")
@click.pass_obj
def predict(context: Context, model: str, features: str, entity: str | None, version: str | None) -> None:
    """Predict from FEATURES: a JSON object by name, or a JSON list in the order of the schema."""
    try:
        row = msgspec.json.decode(features, type=dict[str, object] | list[object])
    except msgspec.DecodeError as error:
        raise click.UsageError(f"FEATURES: {error}") from error
    with context.backend("predicting") as backend:
        found = backend.predict(model, row, entity_id=entity, version=version)
    answer(context, found, facts("", msgspec.structs.asdict(found)))


@click.command()
@click.pass_obj
def status(context: Context) -> None:
    """Show the generation, the live workers, and what each of them has loaded on which device."""
    with context.backend() as backend:
        found = backend.status()
    heads = {
        "generation": found.generation,
        "models": found.models,
        "data": found.data,
        "turnout": found.turnout,
    }
    if isinstance(backend, Client):
        heads["server"] = str(context.url)
    rows = [(w.id, w.pid, w.started_at, w.generation, w.ready, w.draining) for w in found.workers]
    loaded = [row for worker in found.workers for row in _loaded(worker)]
    answer(
        context,
        found,
        facts("", heads),
        table("workers", ("id", "pid", "started", "generation", "ready", "stopping"), rows),
        table(
            "loaded",
            ("worker", "model", "version", "device", "runs", "loaded in", "run", "together", "remarks"),
            loaded,
        ),
    )


def _loaded(worker: WorkerStatus) -> list[tuple[object, ...]]:
    return [
        (
            worker.id,
            version.model,
            version.version,
            version.device,
            "on the loop" if version.inline else "in a thread",
            seconds(version.load_seconds),
            seconds(version.run_seconds),
            _together(version),
            _remarks(version),
        )
        for version in worker.versions
    ]


def _together(version: VersionStatus) -> str:
    """How many rows of requests run together, and how long that takes."""
    if version.max_batch_rows == 1:
        return "no"
    return f"{version.max_batch_rows} in {seconds(version.batch_seconds)}"


def _remarks(version: VersionStatus) -> str:
    """What is worth knowing of a version: why it is not loaded, or what of it does not run as CUDA could."""
    left = f"on the CPU: {', '.join(version.cpu_nodes)}" if version.cpu_nodes else ""
    return "; ".join(filter(None, (version.error, left, version.note)))


COMMANDS = (models, predict, assign, distribution, compare, history, status)
