"""Commands of the person who releases: register, activate, test, promote, roll back, delete."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from turnout.cli.context import Context, reason
from turnout.cli.show import answer, facts, table, table_of_test
from turnout.client import Client
from turnout.domain import SessionOptions, Version
from turnout.errors import InvalidSplit, NotFound

T = TypeVar("T")


@click.command()
@click.argument("model")
@click.argument("version")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--feature", "-f", "features", multiple=True, help="Name of a feature, in order; repeat it.")
@click.option("--schema", type=click.File("rb"), help="A JSON list of features with types and defaults.")
@click.option("--accuracy", type=float, help="Offline accuracy.")
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME=VALUE", help="An offline metric; repeat it."
)
@click.option(
    "--metadata", default="{}", metavar="JSON", help="Anything else worth keeping, as a JSON object."
)
@click.option("--device", help="Where this version runs: auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="Threads of one run of this version.")
@click.option(
    "--option", "-o", "options", multiple=True, metavar="NAME=VALUE", help="How it is run; repeat it."
)
@reason
@click.pass_obj
def register(
    context: Context,
    model: str,
    version: str,
    path: Path,
    features: tuple[str, ...],
    schema: Any,  # noqa: ANN401
    accuracy: float | None,
    metrics: tuple[str, ...],
    metadata: str,
    device: str | None,
    threads: int | None,
    options: tuple[str, ...],
    reason: str,
) -> None:
    """Register the model file PATH (or a folder with external data) as VERSION of MODEL."""
    if schema and features:
        raise click.UsageError("--schema and --feature say the same; leave one of them out")
    described = _json(schema.read(), "--schema", list) if schema else list(features) or None
    offline = dict(_pair(metric, "--metric") for metric in metrics)
    if len(offline) < len(metrics):
        raise click.UsageError("--metric names a metric twice")
    with context.backend(f"registering {model} {version}", makes=True) as backend:
        found = backend.register_version(
            model,
            version,
            path,
            features=described,
            accuracy=accuracy,
            metrics=offline,
            metadata=_json(metadata, "--metadata", dict),
            options=_options(options, device=device, intra_op_threads=threads),
            actor=context.actor,
            reason=reason,
        )
    answer(context, found, _version(found))


def _options(given: tuple[str, ...], **named: object) -> SessionOptions:
    """The options of a version; values are JSON, or text where they are none."""
    found = {name: value for name, value in named.items() if value is not None}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name in found:
            raise click.UsageError(f"--option: expected NAME=VALUE, each name once, found {text!r}")
        try:
            found[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            found[name] = value
    try:
        return msgspec.convert(found, SessionOptions)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"--option: {error}") from error


@click.command()
@click.argument("model")
@click.argument("version")
@reason
@click.pass_obj
def activate(context: Context, model: str, version: str, reason: str) -> None:
    """Make VERSION the one that answers when no test runs."""
    with context.backend(f"activating {model} {version}") as backend:
        found = backend.activate_version(model, version, actor=context.actor, reason=reason)
        answer(context, found, f"{found.version} is the active version of {model}", _arrived(backend))


@click.command()
@click.argument("model")
@click.argument("version", required=False)
@reason
@click.pass_obj
def rollback(context: Context, model: str, version: str | None, reason: str) -> None:
    """Go back to VERSION, or to the one that was active before. A running test ends.

    Twice without VERSION goes there and back again: to be sure, name it.
    """
    with context.backend(f"rolling {model} back") as backend:
        found = backend.rollback(model, version, actor=context.actor, reason=reason)
        answer(context, found, f"{found.version} is the active version of {model} again", _arrived(backend))


@click.command()
@click.argument("model")
@click.argument("weights", nargs=-1, metavar="[VERSION=WEIGHT]...")
@click.option("--salt", help="Hashed in front of the entity id; by default one of its own for each test.")
@click.option(
    "--plan",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="How the test goes on by itself: JSON, or TOML where the name ends with .toml.",
)
@click.option("--stop", is_flag=True, help="End the test; the active version takes all traffic.")
@reason
@click.pass_obj
def test(
    context: Context,
    model: str,
    weights: tuple[str, ...],
    salt: str | None,
    plan: Path | None,
    stop: bool,
    reason: str,
) -> None:
    """Start a test or change its weights, show it, or stop it.

    \b
        turnout test churn v1=0.8 v2=0.2    start, or a step of a ramp
        turnout test churn v1=0.9 v2=0.1 --plan ramp.toml
        turnout test churn                  show
        turnout test churn --stop           end
    """  # noqa: D301 - the mark that keeps click from wrapping
    if stop and weights:
        raise click.UsageError("--stop takes no weights")
    if plan is not None and not weights:
        raise click.UsageError("--plan needs the versions and their weights, such as v1=0.9 v2=0.1")
    planned = None if plan is None else _plan(plan)
    with context.backend(f"changing the test of {model}" if weights or stop else "") as backend:
        if stop:
            found = backend.stop_test(model, actor=context.actor, reason=reason)
        elif weights:
            split = dict(_pair(weight, "a weight") for weight in weights)
            if len(split) < len(weights):
                raise InvalidSplit("a version is named twice")
            found = backend.configure_test(
                model, split, salt, plan=planned, actor=context.actor, reason=reason
            )
        else:
            found = backend.get_test(model)
    answer(context, found, f"no test runs on {model}" if found is None else table_of_test(found))


@click.command()
@click.argument("model")
@click.argument("version")
@reason
@click.pass_obj
def promote(context: Context, model: str, version: str, reason: str) -> None:
    """End the test and make VERSION, one of its arms, the active version."""
    with context.backend(f"promoting {model} {version}") as backend:
        found = backend.promote_winner(model, version, actor=context.actor, reason=reason)
        answer(context, found, f"{found.version} won and is the active version of {model}", _arrived(backend))


@click.command()
@click.argument("model")
@click.argument("version")
@reason
@click.pass_obj
def delete(context: Context, model: str, version: str, reason: str) -> None:
    """Delete VERSION, and its files if nothing else uses them."""
    with context.backend(f"deleting {model} {version}") as backend:
        deleted = backend.delete_version(model, version, actor=context.actor, reason=reason)
    answer(context, {"deleted": deleted}, f"{version} {'is deleted' if deleted else 'was not there'}")


@click.command()
@click.argument("model")
@click.argument("entity", required=False)
@click.argument("version", required=False)
@click.option("--remove", is_flag=True, help="Let the split decide for ENTITY again.")
@reason
@click.pass_obj
def override(
    context: Context, model: str, entity: str | None, version: str | None, remove: bool, reason: str
) -> None:
    """Send ENTITY to VERSION whatever the split says; without them list the overrides."""
    if entity is None and remove:
        raise click.UsageError("--remove needs the entity")
    if entity is not None and (version is None) != remove:
        raise click.UsageError("name the version, or say --remove")
    with context.backend() as backend:
        if entity is not None and version is None:
            if not backend.delete_override(model, entity, actor=context.actor, reason=reason):
                raise NotFound(f"model {model} has no override of {entity!r}")
        elif entity is not None and version is not None:
            backend.set_override(model, entity, version, actor=context.actor, reason=reason)
        found = backend.overrides(model)
    answer(context, found, table(f"overrides of {model}", ("entity", "version"), found.items()))


def _version(version: Version) -> Any:  # noqa: ANN401
    return facts(
        f"{version.model} {version.version}",
        {
            "registered": version.created_at,
            "accuracy": version.accuracy,
            "metrics": version.metrics,
            "features": [feature.name or "(unnamed)" for feature in version.features],
            "layout": version.signature.layout,
            "sha256": version.artifact.sha256,
            "size": f"{version.artifact.size} bytes",
        },
    )


def _plan(file: Path) -> dict[str, Any]:
    try:
        if file.suffix.lower() == ".toml":
            return tomllib.loads(file.read_text("utf-8"))
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--plan: {file}: {error}") from error


def _arrived(backend: Any) -> str:  # noqa: ANN401
    change = backend.last_change
    if change is None or not change.pending:
        return "every live worker serves it" if isinstance(backend, Client) else ""
    return f"not there yet: {', '.join(change.pending)}; see turnout status"


def _pair(text: str, what: str) -> tuple[str, float]:
    name, separator, number = text.rpartition("=")
    try:
        if separator and name:
            return name, float(number)
    except ValueError:
        pass
    raise click.UsageError(f"{what} looks like NAME=NUMBER, not {text!r}")


def _json(text: str | bytes, what: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"{what}: {error}") from error


COMMANDS = (register, activate, test, promote, rollback, delete, override)
