"""The results of a test as a figure, and as a table in text for a notebook. plotly is optional: the extra `plot`."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from turnout.errors import InvalidRequest
from turnout.experiment.report import ALPHA
from turnout.experiment.results import (
    ArmLatency,
    BadEvents,
    Interval,
    MetricEffect,
    MetricResult,
    Results,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_METRICS = 4
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Those of Okabe and Ito, which colour-blind people tell apart."""
BASELINE = "#555555"
BAND = 0.18
ROOM = 4
"""By which factor the axes of latencies and ratios go beyond what is known: bounds that are not stay outside."""
TITLE_COLUMNS = 100
TOP_PIXELS, ROW_PIXELS = 150, 250


class Row(NamedTuple):
    """One row of the figure: what it is called, and what draws it."""

    title: str
    kind: str
    metric: MetricResult | None = None


def figure(results: Results) -> Figure:
    """Effects with their intervals over time, bad events, shares over time, latency by arm, under the recommendation.

    The primary metric is drawn first, then guardrails, then others, four at most. Intervals hold at every look. The
    trail of a test is kept at alpha 0.05; results at another alpha have their present interval as a bar of its own.
    Raises InvalidRequest where plotly is not installed.
    """
    try:
        from plotly.subplots import make_subplots  # noqa: PLC0415 - plotly is optional
    except ImportError as error:
        raise InvalidRequest(
            "a figure needs plotly, which is not installed: pip install 'turnout[plot]'"
        ) from error
    rows = list(_rows(results))
    drawn: Figure = make_subplots(
        rows=len(rows),
        cols=1,
        subplot_titles=[html.escape(row.title) for row in rows],
        vertical_spacing=0.32 / len(rows),
    )
    for number, row in enumerate(rows, 1):
        if row.metric is not None:
            _draw_metric(drawn, number, results, row.metric)
        elif row.kind == "events":
            _draw_events(drawn, number, results)
        elif row.kind == "shares":
            _draw_shares(drawn, number, results)
        else:
            _draw_latency(drawn, number, results)
    height = TOP_PIXELS + ROW_PIXELS * len(rows)
    drawn.update_layout(
        title={
            "text": html.escape(_headline(results)),
            "subtitle": {"text": "<br>".join(html.escape(line) for line in _wrapped(results.reason))},
            "y": 1 - 30 / height,
            "yanchor": "top",
        },
        height=height,
        margin={"t": TOP_PIXELS},
        template="plotly_white",
        scattermode="group",
        hovermode="closest",
    )
    return drawn


def mimebundle(results: Results, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a notebook shows: a table in text, and where plotly is installed also what plotly shows of the figure."""
    bundle: dict[str, Any] = {"text/plain": summary(results)}
    try:
        drawn: Any = figure(results)
    except InvalidRequest:
        return bundle
    # Empty where plotly shows its figures elsewhere, in a browser say.
    bundle |= drawn._repr_mimebundle_(**options) or {}
    if "text/html" not in bundle:
        bundle["text/html"] = drawn.to_html(full_html=False)
    bundle["text/plain"] = summary(results)
    return bundle


# --- the rows of the figure -----------------------------------------------------------------------------------------


def _rows(results: Results) -> Iterator[Row]:
    ranks = {"primary": 0, "guardrail": 1}
    metrics = sorted(results.metrics, key=lambda metric: ranks.get(metric.role, 2))
    for metric in metrics[:MOST_METRICS]:
        if metric.effects:
            better = "more" if metric.direction == "up" else "less"
            yield Row(f"{metric.metric}: difference to {results.baseline} ({better} is better)", "", metric)
    if results.bad_events:
        yield Row(f"bad events: how often, beside {results.baseline}", "events")
    yield Row("shares of the traffic", "shares")
    yield Row("latency", "latency")


def _draw_metric(drawn: Figure, row: int, results: Results, metric: MetricResult) -> None:
    for effect in metric.effects:
        _draw_effect(drawn, row, results, metric, effect)
        tolerated = _tolerated(metric, effect)
        if tolerated is not None:
            drawn.add_hline(
                y=tolerated,
                **_at(row),
                line={"dash": "dash", "color": _color(results, effect.version)},
                annotation_text="margin",
            )
    drawn.add_hline(y=0, **_at(row), line={"color": BASELINE, "width": 1})
    drawn.update_xaxes(type="date", **_at(row))


def _draw_effect(
    drawn: Figure, row: int, results: Results, metric: MetricResult, effect: MetricEffect
) -> None:
    """The difference with its band, as the trail has it and as it is now."""
    points = [
        (_moment(point.ms), *point.effects[metric.metric][effect.version])
        for point in results.trail
        if effect.version in point.effects.get(metric.metric, {})
    ]
    low, high = effect.interval
    name, color = html.escape(effect.version), _color(results, effect.version)
    if effect.difference is not None:
        now = _present(results, metric)
        if low is not None and high is not None and results.alpha == ALPHA:
            points.append((now, effect.difference, low, high))
        drawn.add_scatter(
            x=[now],
            y=[effect.difference],
            error_y=_bars([effect.difference], [effect.interval]) if results.alpha != ALPHA else None,
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=False,
            marker={"color": color, "size": 9},
            text=[_hover(effect)],
            hovertemplate="%{text}<extra></extra>",
            **_at(row),
        )
    times = [point[0] for point in points]
    drawn.add_scatter(
        x=[*times, *reversed(times)],
        y=[*(point[3] for point in points), *(point[2] for point in reversed(points))],
        fill="toself",
        fillcolor=_faint(color),
        line={"width": 0},
        mode="lines",
        name=f"{name} interval",
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
        **_at(row),
    )
    drawn.add_scatter(
        x=times,
        y=[point[1] for point in points],
        mode="lines",
        name=name,
        legendgroup=name,
        showlegend=False,
        line={"color": color},
        **_at(row),
    )


def _draw_events(drawn: Figure, row: int, results: Results) -> None:
    """Where the ratio of the rates lies, and the margin beyond which it is harm."""
    finite = [bound for found in results.bad_events for bound in (*found.ratio, 1 + found.margin) if bound]
    left, right = min([*finite, 0.5]) / ROOM, max([*finite, 2]) * ROOM
    for found in results.bad_events:
        low, high = found.ratio
        name = html.escape(found.version)
        drawn.add_scatter(
            x=[low or left / ROOM, right * ROOM if high is None else high],
            y=[html.escape(found.metric)] * 2,
            mode="lines",
            name=name,
            legendgroup=name,
            showlegend=False,
            offsetgroup=name,
            line={"color": _color(results, found.version), "width": 6},
            text=[_counted(found)] * 2,
            hovertemplate="%{text}<extra></extra>",
            **_at(row),
        )
        drawn.add_scatter(
            x=[1 + found.margin],
            y=[html.escape(found.metric)],
            mode="markers",
            name="margin",
            showlegend=False,
            marker={"symbol": "line-ns-open", "size": 18, "color": BASELINE, "line": {"width": 2}},
            hovertemplate=f"margin {found.margin:.1%}<extra></extra>",
            **_at(row),
        )
    drawn.add_vline(x=1, **_at(row), line={"color": BASELINE, "width": 1})
    drawn.update_xaxes(type="log", range=_decades(left, right), ticksuffix=" times", **_at(row))


def _draw_shares(drawn: Figure, row: int, results: Results) -> None:
    """Steps of the shares: those of each segment from when it began, and the present ones until now."""
    end = results.ended_at or results.at
    shares = [
        (max(segment.started_at, results.started_at), segment.shares)
        for segment in results.segments
        if segment.shares
    ]
    shares = [*(shares or [(results.started_at, results.shares)]), (end, results.shares)]
    for arm in results.arms:
        name = html.escape(arm)
        drawn.add_scatter(
            x=[moment for moment, _ in shares],
            y=[found.get(arm, 0.0) for _, found in shares],
            mode="lines",
            line={"shape": "hv", "color": _color(results, arm)},
            name=name,
            legendgroup=name,
            **_at(row),
        )
    drawn.update_xaxes(type="date", **_at(row))
    drawn.update_yaxes(tickformat=".0%", range=[-0.03, 1.03], **_at(row))


def _draw_latency(drawn: Figure, row: int, results: Results) -> None:
    known = [quantile.seconds for arm in results.latency for quantile in arm.quantiles if quantile.seconds]
    for arm in results.latency:
        found = [quantile for quantile in arm.quantiles if quantile.seconds is not None]
        seconds = [quantile.seconds or 0.0 for quantile in found]
        name = html.escape(arm.version)
        drawn.add_scatter(
            x=[f"p{quantile.quantile * 100:g}" for quantile in found],
            y=seconds,
            error_y=_bars(seconds, [quantile.interval for quantile in found]),
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=False,
            offsetgroup=name,
            marker={"color": _color(results, arm.version), "size": 9},
            **_at(row),
        )
    bounds = _decades(min(known) / ROOM, max(known) * ROOM) if known else None
    drawn.update_xaxes(type="category", **_at(row))
    drawn.update_yaxes(type="log", range=bounds, tickformat="~s", ticksuffix="s", **_at(row))


def _at(row: int) -> dict[str, Any]:
    """Where something is drawn, as plotly wants to be told."""
    return {"row": row, "col": 1}


def _tolerated(metric: MetricResult, effect: MetricEffect) -> float | None:
    """The difference beyond which a guardrail is broken: so much of the baseline, on the worse side."""
    margin = metric.margin
    if margin is None:
        return None
    if effect.lift and effect.difference is not None:
        baseline = effect.difference / effect.lift
    else:
        baseline = next((arm.estimate for arm in metric.arms if arm.version == effect.baseline), None)
    if not baseline:
        return None
    return (-1 if metric.direction == "up" else 1) * margin * abs(baseline)


def _bars(values: Sequence[float], intervals: Sequence[Interval]) -> dict[str, Any]:
    """Error bars from bounds; none on a side that has no bound."""
    pairs = list(zip(values, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if high is None else max(high - value, 0.0) for value, (_, high) in pairs],
        "arrayminus": [None if low is None else max(value - low, 0.0) for value, (low, _) in pairs],
    }


def _present(results: Results, metric: MetricResult) -> datetime:
    """Up to when the metric is observed: now, or for a test that ended until its last window was over."""
    if results.ended_at is None:
        return results.at
    return min(results.at, results.ended_at + timedelta(seconds=metric.window_seconds))


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _decades(low: float, high: float) -> list[float]:
    """The range of a logarithmic axis."""
    return [math.log10(low), math.log10(high)]


def _color(results: Results, arm: str) -> str:
    if arm == results.baseline:
        return BASELINE
    others = [name for name in results.arms if name != results.baseline]
    return COLORS[others.index(arm) % len(COLORS)] if arm in others else COLORS[0]


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND})"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, TITLE_COLUMNS)


def _headline(results: Results) -> str:
    step = (
        "" if results.step is None or not results.steps else f", step {results.step + 1} of {results.steps}"
    )
    paused = ", paused" if results.paused else ""
    said = results.recommendation.replace("_", " ")
    return f"Test {results.test_id} of {results.model} ({results.status}{step}{paused}): {said}"


def _hover(effect: MetricEffect) -> str:
    return html.escape(
        f"{effect.version}: {_number(effect.difference)}, {_between(effect.interval)}, {_word(effect.effect)}"
    )


# --- the table in text ----------------------------------------------------------------------------------------------


def summary(results: Results) -> str:
    """The results as a table in text."""
    parts = [_headline(results), *(f"  {line}" for line in _wrapped(results.reason))]
    if results.metrics:
        head = ("metric", "arm", "matured", "mean", "interval", "difference", "interval", "")
        parts += ["", *_table([head, *(row for metric in results.metrics for row in _metric_rows(metric))])]
    if results.bad_events:
        head = ("bad events", "arm", "events", "of", "times those of the baseline", "")
        parts += ["", *_table([head, *map(_event_row, results.bad_events)])]
    if any(arm.requests for arm in results.latency):
        parts += [
            "",
            *_table([("latency", "requests", "p50", "p95", "p99"), *map(_latency_row, results.latency)]),
        ]
    parts += ["", *(f"waits for {wanted}" for wanted in results.waiting_for)]
    return "\n".join(parts).rstrip() + "\n"


def _metric_rows(metric: MetricResult) -> Iterator[tuple[str, ...]]:
    effects = {effect.version: effect for effect in metric.effects}
    for arm in metric.arms:
        effect = effects.get(arm.version)
        said = (
            ("", "", "")
            if effect is None
            else (_number(effect.difference, "+"), _between(effect.interval, "+"), _word(effect.effect))
        )
        mean = (_number(arm.estimate), _between(arm.interval))
        yield (metric.metric, arm.version, f"{arm.matured:,}", *mean, *said)


def _event_row(found: BadEvents) -> tuple[str, ...]:
    verdict = "worse" if found.worse else "harm excluded" if found.harm_excluded else ""
    events, requests = (f"{counted.get(found.version, 0):,}" for counted in (found.events, found.requests))
    return found.metric, found.version, events, requests, _between(found.ratio), verdict


def _latency_row(arm: ArmLatency) -> tuple[str, ...]:
    return arm.version, f"{arm.requests:,}", *(_milliseconds(quantile.seconds) for quantile in arm.quantiles)


def _counted(found: BadEvents) -> str:
    both = ", ".join(
        f"{arm} {count:,} of {found.requests.get(arm, 0):,}" for arm, count in found.events.items()
    )
    return html.escape(f"{found.metric}: {both}; {_between(found.ratio)} times")


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _between(bounds: Interval, sign: str = "") -> str:
    low, high = bounds
    if low is None and high is None:
        return "unknown"
    return f"{_number(low, sign)} to {_number(high, sign)}"


def _number(value: float | None, sign: str = "") -> str:
    return "?" if value is None else f"{value:{sign}.4g}"


def _milliseconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1e3:.3g} ms"


def _word(effect: str) -> str:
    return effect.replace("_", " ")
