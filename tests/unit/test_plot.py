"""Results as a figure: what is drawn are the numbers of the results, whatever there is of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import turnout
from models import constant_label
from turnout.errors import InvalidRequest
from turnout.experiment.events import Point
from turnout.experiment.plot import figure, mimebundle, summary
from turnout.experiment.report import point_of
from turnout.experiment.results import MetricResult
from turnout.service import Turnout

METRICS = [
    {"name": "clicks", "kind": "count", "window_seconds": 0.1},
    {"name": "stayed", "kind": "binary", "window_seconds": 0.1, "role": "primary"},
    {
        "name": "spent",
        "kind": "mean",
        "window_seconds": 0.1,
        "role": "guardrail",
        "margin": 0.05,
        "direction": "down",
    },
]
ENTITIES = [f"user-{number}" for number in range(800)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    """A hub with a test in which v2.0 keeps 60 % of its entities, and v1.0 every third."""
    folder = tmp_path_factory.mktemp("plot")
    with turnout.open(folder / "data", device="cpu") as opened:
        for number, label in enumerate(("v1.0", "v2.0", "v3.0")):
            (folder / f"{label}.onnx").write_bytes(constant_label(number))
            opened.register_version("churn", label, folder / f"{label}.onnx")
        opened.activate_version("churn", "v1.0")
        opened.declare_metrics("churn", METRICS)
        opened.configure_test("churn", {"v1.0": 0.6, "v2.0": 0.4})
        answer(opened, ENTITIES[:200])
        opened.configure_test("churn", {"v1.0": 0.5, "v2.0": 0.5})
        answer(opened, ENTITIES[200:])
        mature(opened, 800)
        yield opened


def answer(hub: Turnout, entities: list[str]) -> None:
    """Predict for entities, and say what became of them."""
    hub.predict_batch("churn", np.zeros((len(entities), 2), np.float32), entity_ids=entities)
    outcomes = [
        {"model": "churn", "metric": metric, "value": value, "entity_id": entity}
        for number, entity in enumerate(entities)
        for metric, value in {
            "stayed": int(
                number % 5 < 3 if hub.select_version("churn", entity) == "v2.0" else number % 3 == 0
            ),
            "spent": 10.0 + number % 7,
            "clicks": number % 4,
        }.items()
    ]
    states = {one.state for one in hub.record_outcomes(outcomes)}
    assert states == {"attributed"}


def mature(hub: Turnout, entities: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        found = hub.results("churn").metrics
        if all(sum(arm.matured for arm in metric.arms) >= entities for metric in found):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.fixture(scope="module")
def results(hub: Turnout) -> turnout.Results:
    """The results, with two points before the present one."""
    for _ in range(2):
        hub.desk.events.follow("churn", 1, point_of(hub.results("churn")))
    found = hub.results("churn")
    assert len(found.trail) == 2
    assert found.metrics[1].effects[0].difference is not None
    return found


def traces(drawn: Any, row: int, **wanted: Any) -> list[Any]:
    """The traces of a row."""
    axis = "x" if row == 1 else f"x{row}"
    return [trace for trace in drawn.select_traces(wanted) if (trace.xaxis or "x") == axis]


def titles(drawn: Any) -> list[str]:
    return [note.text for note in drawn.layout.annotations if note.text != "margin"]


def test_the_primary_metric_comes_first_with_its_effect_over_time(results: turnout.Results) -> None:
    drawn = figure(results)
    assert [title.partition(":")[0] for title in titles(drawn)] == [
        *("stayed", "spent", "clicks"),
        *("bad events", "shares of the traffic", "latency"),
    ]
    stayed = results.metrics[1].effects[0]
    low, high = stayed.interval
    past = [point.effects["stayed"]["v2.0"] for point in results.trail]
    (line,) = [trace for trace in traces(drawn, 1, mode="lines") if trace.fill is None]
    assert list(line.y) == [*(point[0] for point in past), stayed.difference]
    assert [int(moment.timestamp() * 1000) for moment in line.x[:2]] == [point.ms for point in results.trail]
    assert line.x[2] == results.at
    (band,) = traces(drawn, 1, fill="toself")
    highs, lows = [*(point[2] for point in past), high], [*(point[1] for point in past), low]
    assert list(band.y) == [*highs, *reversed(lows)]


def test_the_zero_line_is_drawn_and_of_a_guardrail_the_margin(results: turnout.Results) -> None:
    lines = [shape for shape in figure(results).layout.shapes if shape.y0 == 0 and shape.y1 == 0]
    assert len(lines) == 3

    class Guarded(MetricResult, frozen=True):
        margin: float | None = None

    spent = results.metrics[2]
    fields = {name: getattr(spent, name) for name in spent.__struct_fields__ if name != "margin"}
    guarded = msgspec.structs.replace(results, metrics=(Guarded(**fields, margin=0.05),))
    (margin,) = [shape for shape in figure(guarded).layout.shapes if shape.line.dash == "dash"]
    effect = spent.effects[0]
    assert effect.difference is not None
    assert effect.lift
    # Less is better, so that harm is above, by a twentieth of the baseline.
    assert margin.y0 == pytest.approx(0.05 * effect.difference / effect.lift)


def test_shares_are_steps_from_when_each_segment_began(results: turnout.Results) -> None:
    one, two = traces(figure(results), 5)
    assert (one.line.shape, one.name, two.name) == ("hv", "v1.0", "v2.0")
    # Segments are known to a millisecond; none begins before its test.
    began = [max(segment.started_at, results.started_at) for segment in results.segments]
    assert list(two.x) == [*began, results.at]
    assert list(one.y) == [0.6, 0.5, 0.5]
    assert list(two.y) == [0.4, 0.5, 0.5]


def test_latencies_have_their_bounds(results: turnout.Results) -> None:
    drawn = traces(figure(results), 6)
    assert [trace.name for trace in drawn] == ["v1.0", "v2.0"]
    known = msgspec.structs.replace(
        results,
        latency=tuple(
            msgspec.structs.replace(
                arm,
                quantiles=tuple(
                    msgspec.structs.replace(quantile, seconds=0.01 * number, interval=(0.005, upper))
                    for number, (quantile, upper) in enumerate(
                        zip(arm.quantiles, (0.02, 0.04, None), strict=True), 1
                    )
                ),
            )
            for arm in results.latency
        ),
    )
    trace = traces(figure(known), 6)[0]
    assert list(trace.x) == ["p50", "p95", "p99"]
    assert list(trace.y) == [0.01, 0.02, 0.03]
    assert list(trace.error_y.arrayminus) == pytest.approx([0.005, 0.015, 0.025])
    assert list(trace.error_y.array)[:2] == pytest.approx([0.01, 0.02])
    assert trace.error_y.array[2] is None or np.isnan(trace.error_y.array[2])


def test_bad_events_show_where_the_ratio_lies_and_the_margin(results: turnout.Results) -> None:
    drawn = figure(results)
    known = {found.metric: found for found in results.bad_events}
    lines = traces(drawn, 4, mode="lines")
    assert {trace.y[0] for trace in lines} == set(known) >= {"errors"}
    margins = traces(drawn, 4, mode="markers")
    assert [trace.x[0] for trace in margins] == [1 + found.margin for found in results.bad_events]
    some = msgspec.structs.replace(known["errors"], ratio=(0.5, 3.0))
    (line,) = traces(figure(msgspec.structs.replace(results, bad_events=(some,))), 4, mode="lines")
    assert list(line.x) == [0.5, 3.0]


def test_another_alpha_is_not_mixed_with_the_trail(hub: Turnout, results: turnout.Results) -> None:
    other = hub.results("churn", alpha=0.2)
    drawn = figure(other)
    (line,) = [trace for trace in traces(drawn, 1, mode="lines") if trace.fill is None]
    assert len(line.y) == len(results.trail)
    effect = other.metrics[1].effects[0]
    (now,) = traces(drawn, 1, mode="markers")
    assert now.error_y.array[0] == pytest.approx(effect.interval[1] - effect.difference)
    assert now.error_y.arrayminus[0] == pytest.approx(effect.difference - effect.interval[0])


def test_the_title_says_what_to_do_and_why(results: turnout.Results) -> None:
    title = figure(results).layout.title
    assert title.text == f"Test 1 of churn (running): {results.recommendation.replace('_', ' ')}"
    assert title.subtitle.text.replace("<br>", " ") == results.reason


def test_names_are_text_and_no_html(results: turnout.Results) -> None:
    evil = msgspec.structs.replace(results, model="</script><b>x", reason="<img src=x>")
    title = figure(evil).layout.title
    assert "<b>" not in title.text
    assert title.subtitle.text == "&lt;img src=x&gt;"
    assert "</script><b>x" not in figure(evil).to_html(include_plotlyjs=False)


def test_it_is_a_page_without_a_network(results: turnout.Results) -> None:
    page = figure(results).to_html(include_plotlyjs=True)
    assert "Plotly.newPlot" in page
    assert "<script src=" not in page


@pytest.mark.parametrize(
    "change",
    [
        {"trail": ()},
        {"metrics": ()},
        {"metrics": (), "bad_events": (), "arms": ("v1.0",), "shares": {"v1.0": 1.0}, "latency": ()},
        {"segments": ()},
        {"trail": (Point(1, {"spent": {"v9": (0.0, -1.0, 1.0)}}),)},
    ],
    ids=["no trail", "no metrics", "one arm", "no segments", "a trail of others"],
)
def test_whatever_is_missing_is_not_drawn(results: turnout.Results, change: dict[str, Any]) -> None:
    some = msgspec.structs.replace(results, **change)
    assert "Plotly.newPlot" in figure(some).to_html(include_plotlyjs=False)
    assert some.model in summary(some)


def test_unknown_bounds_are_not_drawn(results: turnout.Results) -> None:
    metrics = tuple(
        msgspec.structs.replace(
            metric,
            effects=tuple(
                msgspec.structs.replace(
                    effect, difference=difference, interval=(None, None), lift=None, effect="undecided"
                )
                for effect in metric.effects
            ),
        )
        for metric, difference in zip(results.metrics, (None, 0.1, 0.0), strict=True)
    )
    some = msgspec.structs.replace(results, metrics=metrics, trail=())
    drawn = figure(some)
    assert [list(trace.y) for trace in traces(drawn, 1, fill="toself")] == [[]]
    assert [list(trace.y) for trace in traces(drawn, 1, mode="markers")] == [[0.1]]
    assert traces(drawn, 3, mode="markers") == []
    assert "unknown" in summary(some)


def test_a_test_that_has_not_begun_and_one_that_ended(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(constant_label(1))
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        hub.register_version("m", "<a>", tmp_path / "model.onnx")
        hub.register_version("m", "b", tmp_path / "model.onnx")
        hub.activate_version("m", "<a>")
        hub.configure_test("m", {"<a>": 0.5, "b": 0.5}, plan={"steps": [{"share": 0.5}]})
        begun = hub.results("m")
        assert "step 1 of 1" in figure(begun).layout.title.text
        assert "waits for" in summary(begun)
        hub.predict("m", [0.0, 0.0], entity_id="u")
        hub.stop_test("m")
        ended = hub.results("m", begun.test_id)
    assert ended.ended_at is not None
    later = msgspec.structs.replace(ended, at=datetime.now(UTC) + timedelta(days=30))
    drawn = later.plot()
    assert "(stopped" in drawn.layout.title.text
    assert [trace.name for trace in traces(drawn, 2)] == ["&lt;a&gt;", "b"]
    assert traces(drawn, 2)[0].x[-1] == ended.ended_at


def test_an_ended_test_is_drawn_until_its_last_window_was_over(results: turnout.Results) -> None:
    end = results.at
    ended = msgspec.structs.replace(results, ended_at=end, at=end + timedelta(days=30), status="promoted")
    (now,) = traces(figure(ended), 1, mode="markers")
    assert now.x[0] == end + timedelta(seconds=0.1)


def test_a_notebook_gets_a_table_and_the_figure(results: turnout.Results) -> None:
    bundle = results._repr_mimebundle_(include=None, exclude=None)
    assert "Plotly.newPlot" in bundle["text/html"]
    table = bundle["text/plain"]
    assert table == summary(results)
    assert table.startswith("Test 1 of churn (running): ")
    (row,) = [line for line in table.splitlines() if line.startswith("stayed") and "v2.0" in line]
    arm, effect = results.metrics[1].arms[1], results.metrics[1].effects[0]
    assert f" {arm.matured} " in row
    assert f"{effect.difference:+.4g}" in row
    assert f"{effect.interval[0]:+.4g} to {effect.interval[1]:+.4g}" in row
    assert any(line.startswith("errors") and "v2.0" in line for line in table.splitlines())


def test_without_plotly_there_is_the_table(results: turnout.Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'turnout\[plot\]'"):
        figure(results)
    assert set(mimebundle(results)) == {"text/plain"}
