"""What a test has shown, for people: what to do and why first, then all that this rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from turnout.cli.context import Context
from turnout.cli.show import answer, duration, facts, seconds, table
from turnout.errors import StorageError
from turnout.experiment.results import BadEvents, Interval, MetricEffect, Results

EFFECTS = {"better": "better", "worse": "WORSE", "no_difference": "no difference", "undecided": "no"}


@click.command()
@click.argument("model")
@click.option("--test", "test_id", metavar="ID", help="A test that was; else the running one, or the last.")
@click.option(
    "--alpha",
    type=float,
    default=0.05,
    show_default=True,
    help="Rate of false alarms of each interval and p-value.",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.html", help="Write a figure too."
)
@click.pass_obj
def results(context: Context, model: str, test_id: str | None, alpha: float, plot: Path | None) -> None:
    """Show what a test of MODEL has shown, what is recommended, and why.

    Intervals and p-values hold at every look, so that one may look as often as one likes.
    """
    with context.backend() as backend:
        found = backend.results(model, test_id, alpha=alpha)
    if plot is not None:
        _plot(found, plot)
    answer(context, found, *_views(found))


def _plot(results: Results, file: Path) -> None:
    page: str = results.plot().to_html()
    try:
        file.write_text(page, "utf-8")
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error}") from error


def _views(results: Results) -> Iterator[Table | str]:
    yield f"{results.recommendation.upper().replace('_', ' ')}: {results.reason}"
    views: tuple[Callable[[Results], Table | None], ...] = (
        _test,
        _metrics,
        _effects,
        _bad_events,
        _sample_ratio,
        _scores,
        _latency,
        _quality,
        _shadow,
        _segments,
        _outcomes,
    )
    for view in views:
        shown = view(results)
        if shown is not None:
            yield ""
            yield shown


def _test(results: Results) -> Table:
    crossed = f"{results.crossed:.2%}"
    if results.crossed_warning:
        crossed += ", TOO MANY: arms answered the same entities, whose outcomes do not count"
    left = (
        "unknown"
        if results.seconds_left is None
        else duration(results.seconds_left)
        if results.seconds_left
        else "none"
    )
    shown: dict[str, Any] = {
        "status": results.status,
        "since": results.started_at,
        "ended": results.ended_at,
        "baseline": results.baseline,
        "shares": {version: f"{share:.1%}" for version, share in results.shares.items()},
        "entities": f"{results.entities:,}",
        "by more than one arm": crossed,
        "time left": left if results.status == "running" else None,
    }
    if results.step is not None:
        shown["step"] = f"{results.step + 1} of {results.steps}" + (", paused" if results.paused else "")
        shown["waits for"] = results.waiting_for
        shown["the plan would"] = results.decision
    given = {name: value for name, value in shown.items() if value is not None and value != ()}
    return facts(f"test {results.test_id} of {results.model}, revision {results.revision}", given)


# --- metrics ----------------------------------------------------------------------------------------------------------


def _metrics(results: Results) -> Table | None:
    rows = [
        (
            metric.metric if place == 0 else "",
            arm.version,
            f"{arm.exposed:,}",
            f"{arm.matured:,}",
            arm.estimate,
            _bounds(arm.interval, _short),
        )
        for metric in results.metrics
        for place, arm in enumerate(metric.arms)
    ]
    columns = ("metric", "arm", "entities", "matured", "estimate", "interval")
    return table("metrics by arm", columns, rows) if rows else None


def _effects(results: Results) -> Table | None:
    rows = [
        (
            metric.metric if place == 0 else "",
            f"{metric.role}, {metric.direction}" if place == 0 else "",
            effect.version,
            None if effect.lift is None else _percent(effect.lift),
            _bounds(effect.lift_interval, _percent),
            f"{effect.p_value:.2g}",
            _decided(effect),
        )
        for metric in results.metrics
        for place, effect in enumerate(metric.effects)
    ]
    title = f"effects beside {results.baseline}; intervals hold at every look, with {1 - results.alpha:.4g}"
    columns = ("metric", "role, better", "arm", "lift", "interval", "p", "decided")
    return table(title, columns, rows) if rows else None


def _decided(effect: MetricEffect) -> str:
    word = EFFECTS[effect.effect]
    if not effect.decided and effect.entities_needed is not None:
        word += f", of {effect.entities:,} needs {effect.entities_needed:,}"
    elif not effect.enough:
        word += ", too few"
    return f"{word} (CUPED)" if effect.variance_reduced else word


# --- what harms, and what can be trusted ------------------------------------------------------------------------------


def _bad_events(results: Results) -> Table | None:
    rows = [
        (
            bad.metric,
            bad.version,
            _of(bad, bad.version),
            f"{bad.baseline}: {_of(bad, bad.baseline)}",
            _bounds(bad.ratio, _short),
            f"{bad.margin:.4g}",
            "WORSE" if bad.worse else "excluded" if bad.harm_excluded else "open",
        )
        for bad in results.bad_events
    ]
    columns = ("event", "arm", "of requests", "baseline", "ratio", "margin", "harm")
    return table("bad events", columns, rows) if rows else None


def _of(bad: BadEvents, version: str) -> str:
    return f"{bad.events.get(version, 0):,} of {bad.requests.get(version, 0):,}"


def _sample_ratio(results: Results) -> Table | None:
    rows = [
        (
            ratio.stage,
            {version: f"{count:,}" for version, count in ratio.counted.items()},
            {version: f"{count:,.0f}" for version, count in ratio.expected.items()},
            f"{ratio.log_bayes_factor:.2f}",
            "<<< OFF" if ratio.mismatch else "fits",
        )
        for ratio in results.sample_ratio
    ]
    off = any(ratio.mismatch for ratio in results.sample_ratio)
    title = f"sample ratio{', OFF: no comparison can be trusted before it is known why' if off else ''}"
    return table(title, ("stage", "entities", "expected", "log Bayes factor", ""), rows) if rows else None


def _scores(results: Results) -> Table | None:
    rows = [
        (
            arm.version,
            arm.entities,
            *(
                "" if number is None else f"{number:.4g}"
                for number in (arm.mean, arm.deviation, arm.least, arm.greatest, arm.stability)
            ),
        )
        for arm in results.scores
        if arm.entities
    ]
    names = ("arm", "entities", "mean", "deviation", "least", "greatest", "stability index")
    return table("scores", names, rows) if rows else None


def _latency(results: Results) -> Table | None:
    rows = [
        (
            arm.version,
            f"{arm.requests:,}",
            *(_between(one.seconds, one.interval, seconds) for one in arm.quantiles),
        )
        for arm in results.latency
        if arm.requests
    ]
    names = [f"p{quantile.quantile * 100:g}" for arm in results.latency[:1] for quantile in arm.quantiles]
    return table("latency", ("arm", "requests", *names), rows) if rows else None


def _quality(results: Results) -> Table | None:
    rows = [
        (
            quality.version,
            f"{quality.labels:,}",
            name,
            value,
            _offline(quality.gap, name, value),
            f"{quality.gap[name]:+.4g}" if name in quality.gap else None,
        )
        for quality in results.quality
        for name, value in quality.live.items()
    ]
    columns = ("version", "labels", "measure", "live", "offline", "gap")
    return table("quality by labels", columns, rows) if rows else None


def _offline(gap: dict[str, float], name: str, live: float) -> float | None:
    """What it was when the version was registered, under whatever name people had for it."""
    return live - gap[name] if name in gap else None


def _shadow(results: Results) -> Table | None:
    shadow = results.shadow
    if shadow is None:
        return None
    shown = {
        "pairs of answers": f"{shadow.counts.pairs:,}",
        "that agree": None if shadow.agreement is None else f"{shadow.agreement:.2%}",
        "mean difference": shadow.mean_difference,
        "largest difference": shadow.largest_difference,
        "failed": f"{shadow.counts.failed:,}",
        "not copied": f"{shadow.counts.dropped:,}",
        "mean time of the version that answered": seconds(shadow.mean_seconds),
        "mean time of the shadow": seconds(shadow.mean_shadow_seconds),
    }
    return facts(f"{shadow.version} as a shadow, which answered nothing", shown)


# --- the ramp ---------------------------------------------------------------------------------------------------------


def _segments(results: Results) -> Table | None:
    dropped = any(segment.dropped for segment in results.segments)
    rows = [
        (
            segment.revision if place == 0 else "",
            segment.started_at if place == 0 else "",
            f"{version} {share:.1%}",
            f"{segment.assigned.get(version, 0):,}",
            f"{segment.answered.get(version, 0):,}",
            f"{segment.failed.get(version, 0):,}",
            f"{segment.requests.get(version, 0):,}",
            *((f"{segment.dropped:,}" if place == 0 else "",) if dropped else ()),
        )
        for segment in results.segments
        for place, (version, share) in enumerate(segment.shares.items())
    ]
    columns = ("#", "since", "arm", "assigned", "answered", "failed", "requests")
    found = (*columns, "not noted") if dropped else columns
    return table("segments of the ramp, entities by arm", found, rows) if rows else None


def _outcomes(results: Results) -> Table | None:
    states = list(dict.fromkeys(state for counts in results.outcomes.values() for state in counts))
    rows = [
        (metric, *(f"{counts.get(state, 0):,}" for state in states))
        for metric, counts in results.outcomes.items()
    ]
    return table("outcomes that came", ("metric", *states), rows) if rows else None


# --- numbers ----------------------------------------------------------------------------------------------------------


def _short(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{value:+.2%}"


def _between(value: float | None, interval: Interval, shown: Callable[[float], str]) -> str:
    """An estimate, and where it surely lies."""
    return "-" if value is None else " ".join(filter(None, (shown(value), _bounds(interval, shown))))


def _bounds(interval: Interval, shown: Callable[[float], str]) -> str:
    low, high = ("?" if bound is None else shown(bound) for bound in interval)
    return "" if (low, high) == ("?", "?") else f"[{low}, {high}]"
