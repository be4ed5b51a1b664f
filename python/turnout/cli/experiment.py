"""Commands about tests that go on by themselves: how long one would take, and the steps of its plan."""

from __future__ import annotations

from typing import Any, get_args

import click

from turnout.cli.context import Context, reason
from turnout.cli.show import answer, facts, table_of_test
from turnout.domain import Test
from turnout.experiment.sizing import SizeKind, size_test


class Lift(click.ParamType[float]):
    """A relative change: `0.02`, or `2%`."""

    name = "lift"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """The number."""
        text = str(value)
        try:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"expected a relative change such as 0.02 or 2%, found {text!r}", param, ctx)


# An effect may be negative, and is no option then.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("base", type=float)
@click.argument("effect", type=Lift())
@click.option(
    "--kind",
    type=click.Choice(get_args(SizeKind)),
    default="binary",
    show_default=True,
    help="What is compared: rates, means, counts, or rates of bad events.",
)
@click.option(
    "--deviation",
    type=float,
    metavar="NUMBER",
    help="Standard deviation of one entity; of a mean, and of a count where it is not the root of BASE.",
)
@click.option("--share", type=float, default=0.5, show_default=True, help="The candidate's, of both arms.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Rate of false alarms.")
@click.option(
    "--power", type=float, default=0.8, show_default=True, help="Probability that the effect is found."
)
@click.option("--per-day", type=float, metavar="NUMBER", help="New entities a day, in both arms.")
@click.option(
    "--window-days", type=float, default=0.0, metavar="NUMBER", help="How long each entity is observed."
)
@click.option(
    "--tightest-at",
    type=float,
    default=5000.0,
    show_default=True,
    metavar="NUMBER",
    help="That of the plan: at how many entities intervals are tightest.",
)
@click.pass_obj
def plan(
    context: Context,
    base: float,
    effect: float,
    kind: SizeKind,
    per_day: float | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Show how many entities, and days, a test needs to find EFFECT, a relative change of BASE.

    \b
        turnout plan 0.1 2% --per-day 5000             from 10 % to 10.2 %
        turnout plan 25 -1% --kind mean --deviation 40
        turnout plan 0.001 50% --kind errors           half as many errors again
    """  # noqa: D301 - the mark that keeps click from wrapping
    found = size_test(kind, base, effect, entities_per_day=per_day, **options)
    shown: dict[str, Any] = {
        "entities": f"{found.entities:,}",
        "of the baseline": f"{found.baseline:,}",
        "of the candidate": f"{found.candidate:,}",
    }
    if found.days is not None:
        shown["days"] = f"{found.days:,.1f}"
    answer(context, found, found.sentence, facts("", shown))


@click.command()
@click.argument("model")
@reason
@click.pass_obj
def pause(context: Context, model: str, reason: str) -> None:
    """Keep the planned test of MODEL at its step until it is resumed. Its guardrails go on to be watched."""
    with context.backend() as backend:
        _say(context, backend.pause_test(model, actor=context.actor, reason=reason))


@click.command()
@click.argument("model")
@reason
@click.pass_obj
def resume(context: Context, model: str, reason: str) -> None:
    """Let the paused test of MODEL go on. The dwell time of its step begins anew."""
    with context.backend() as backend:
        _say(context, backend.resume_test(model, actor=context.actor, reason=reason))


@click.command()
@click.argument("model")
@reason
@click.pass_obj
def approve(context: Context, model: str, reason: str) -> None:
    """Say that the planned test of MODEL may leave its step once all else allows it."""
    with context.backend() as backend:
        _say(context, backend.approve_step(model, actor=context.actor, reason=reason))


@click.command()
@click.argument("model")
@reason
@click.pass_obj
def skip(context: Context, model: str, reason: str) -> None:
    """Take the planned test of MODEL to its next step now, whatever it still waits for."""
    with context.backend(f"taking the test of {model} to its next step") as backend:
        _say(context, backend.skip_step(model, actor=context.actor, reason=reason))


def _say(context: Context, test: Test) -> None:
    answer(context, test, table_of_test(test))


COMMANDS = (plan, pause, resume, approve, skip)
