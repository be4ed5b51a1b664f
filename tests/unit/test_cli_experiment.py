"""The commands about experiments, on a data directory and on a running server."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from pyarrow import parquet
from rich.console import Console

import turnout as package
from models import constant_label
from servers import Server
from turnout.cli import Context, turnout
from turnout.cli.outcomes import forget
from turnout.experiment.counts import ShadowCounts
from turnout.experiment.results import Results, ShadowResult
from turnout.plans import check_plan

Run = Callable[..., Any]

METRICS = [
    {"name": "bought", "kind": "binary", "role": "primary", "window_seconds": 3600},
    {"name": "spent", "kind": "mean", "role": "guardrail", "margin": 0.05, "window_seconds": 86400},
    {"name": "truth", "kind": "label", "window_seconds": 7200},
]
PLAN_TOML = """
alpha = 0.02
[[steps]]
share = 0.1
dwell_seconds = 86400
min_entities = 100
[[steps]]
share = 0.5
dwell_seconds = 86400
min_entities = 1000
approval = true
[[guardrails]]
metric = "errors"
margin = 0.1
"""


@pytest.fixture(scope="module", params=["local", "server"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a command and decode its JSON: once on a directory of its own, once on a server."""
    folder = tmp_path_factory.mktemp("experiment")
    for label in range(2):
        (folder / f"{label}.onnx").write_bytes(constant_label(label))

    def runner(where: list[str]) -> Run:
        def call(*arguments: str, fails: str | None = None, human: bool = False) -> Any:
            words = [*where, *([] if human else ["--json"]), *arguments]
            done = CliRunner().invoke(turnout, words, obj=Context())
            if fails is not None:
                assert done.exception is not None
                assert fails in str(done.exception) + done.output
                return None
            assert done.exit_code == 0, (done.output, done.exception)
            return done.stdout if human else json.loads(done.stdout)

        call.folder = folder
        call.where = where
        return call

    if request.param == "local":
        yield runner(["--data", str(folder / "data"), "--actor", "ann"])
    else:
        with Server(folder / "server") as server:
            yield runner(["--url", server.url, "--actor", "ann"])


def released(run: Run, model: str) -> None:
    """Two versions of a model, the first of them active, and metrics."""
    for label in range(2):
        run("register", model, f"v{label}", str(run.folder / f"{label}.onnx"), "-f", "a", "-f", "b")
    run("activate", model, "v0")
    file = run.folder / "metrics.json"
    file.write_text(json.dumps(METRICS))
    run("metrics", model, "--set", str(file), "-m", "what we look at")


def test_an_experiment_from_its_metrics_to_its_results(run: Run) -> None:
    released(run, "whole")
    assert [metric["name"] for metric in run("metrics", "whole")] == ["bought", "spent", "truth"]
    run("results", "whole", fails="has had no test")
    run("test", "whole", "v0=0.5", "v1=0.5")
    given = [run("predict", "whole", "[1, 2]", "--entity", f"u{number}") for number in range(8)]
    receipt = run("receipt", "whole", given[3]["prediction_id"])
    assert (receipt["version"], receipt["reason"], receipt["test"]) == (given[3]["version"], "test", 1)
    assert re.fullmatch("[0-9a-f]{32}", receipt["entity"])
    run("receipt", "whole", given[3]["prediction_id"][:-2] + "AA", fails="prediction id")

    rows = [
        *({"entity_id": f"u{number}", "value": number % 2, "id": f"o{number}"} for number in range(8)),
        {"entity_id": "nobody", "value": 1},
        {"entity_id": "u1", "value": 7},
    ]
    file = run.folder / "bought.ndjson"
    file.write_text("\n".join(map(json.dumps, rows)))
    words = ["outcomes", "import", str(file), "--model", "whole", "--metric", "bought"]
    found = run(*words)
    assert (found["rows"], found["counts"]["attributed"], found["counts"]["unexposed"]) == (10, 8, 1)
    assert [(problem["row"], problem["code"]) for problem in found["problems"]] == [(10, "invalid_outcome")]
    assert run(*words)["counts"]["duplicate"] == 8
    label = run.folder / "truth.csv"
    label.write_text(f"model,metric,value,prediction_id\nwhole,truth,0,{given[0]['prediction_id']}\n")
    assert run("outcomes", "import", str(label))["counts"]["attributed"] == 1

    results = run("results", "whole")
    assert results["outcomes"]["bought"] == {"attributed": 8, "unexposed": 2, "duplicate": 8}
    assert (results["entities"], results["recommendation"]) == (8, "keep_running")
    assert run("results", "whole", "--test", "1", "--alpha", "0.2")["alpha"] == 0.2
    run("results", "whole", "--test", "9", fails="has no test 9")
    run("results", "whole", "--alpha", "2", fails="alpha")

    assert run("forget", "u1", "--yes")["deleted"] >= 2
    assert run("forget", "u1", "--yes") == {"deleted": 0}
    assert run("results", "whole")["entities"] == 8


def test_a_plan_is_followed_held_and_hurried(run: Run) -> None:
    released(run, "planned")
    (run.folder / "ramp.toml").write_text(PLAN_TOML)
    weights = ["v0=0.9", "v1=0.1"]
    started = run("test", "planned", *weights, "--plan", str(run.folder / "ramp.toml"))
    assert (started["baseline"], started["candidate"], started["step"]) == ("v0", "v1", 0)
    assert started["plan"]["alpha"] == 0.02
    assert [arm["weight"] for arm in started["arms"]] == [0.9, 0.1]
    assert run("pause", "planned", "-m", "holidays")["paused"] is True
    assert "paused" in run("test", "planned", human=True)
    assert run("resume", "planned", "-m", "back")["paused"] is False
    assert run("approve", "planned", "--reason", "looks well")["approved"] is True
    skipped = run("skip", "planned", "-m", "in a hurry")
    assert (skipped["step"], skipped["revision"]) == (1, 2)
    assert [arm["weight"] for arm in skipped["arms"]] == [0.5, 0.5]
    said = run("results", "planned", human=True)
    assert "2 of 2" in said
    assert "approval" in said
    events = run("history", "planned")["events"]
    reasons = {event["action"]: event["reason"] for event in events if event["actor"] == "ann"}
    assert reasons.items() >= {"pause": "holidays", "approve": "looks well", "skip": "in a hurry"}.items()

    run("test", "planned", "--stop")
    (run.folder / "ramp.json").write_text(json.dumps({"steps": [{"share": 0.3}]}))
    again = run("test", "planned", *weights, "--plan", str(run.folder / "ramp.json"))
    assert [arm["weight"] for arm in again["arms"]] == [0.7, 0.3]


@pytest.mark.parametrize("command", ["pause", "resume", "approve", "skip"])
def test_a_model_without_a_test_has_no_steps(run: Run, command: str) -> None:
    run("register", "idle", "v0", str(run.folder / "0.onnx"))
    run(command, "idle", fails="no test runs on model idle")
    run(command, "nowhere", fails="Model nowhere not found")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("bad.toml", "steps = [", "--plan"),
        ("bad.json", "[1]", "--plan"),
        ("bytes.json", b"\xff", "--plan"),
        ("bytes.toml", b"\xff", "--plan"),
        ("none.json", '{"steps": []}', "steps"),
        ("typo.json", '{"step": []}', "unknown field"),
        ("metric.json", '{"steps": [{"share": 1}], "guardrails": [{"metric": "nps"}]}', "nps"),
    ],
)
def test_a_plan_that_is_none(run: Run, name: str, text: str | bytes, said: str) -> None:
    if "planless" not in {model["name"] for model in run("models")}:
        released(run, "planless")
    file = run.folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    run("test", "planless", "v0=0.9", "v1=0.1", "--plan", str(file), fails=said)
    run("test", "planless", "--plan", str(file), fails="--plan needs the versions")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "--set"),
        ("[1]", "--set"),
        ("[", "--set"),
        ('[{"name": "x"}]', "kind"),
        ('[{"name": "errors", "kind": "count"}]', "built in"),
    ],
)
def test_metrics_that_are_none(run: Run, text: str, said: str) -> None:
    run("register", "measured", "v0", str(run.folder / "0.onnx"))
    file = run.folder / "bad.json"
    file.write_text(text)
    run("metrics", "measured", "--set", str(file), fails=said)
    assert run("metrics", "measured") == []


def test_metrics_come_in_through_the_input(run: Run) -> None:
    run("register", "piped", "v0", str(run.folder / "0.onnx"))
    words = [*run.where, "--json", "metrics", "piped", "--set", "-"]
    done = CliRunner().invoke(turnout, words, input=json.dumps(METRICS[:1]), obj=Context())
    assert done.exit_code == 0, done.output
    assert [metric["name"] for metric in run("metrics", "piped")] == ["bought"]


def test_a_file_that_cannot_be_imported(run: Run) -> None:
    released(run, "unread")
    run("outcomes", "import", str(run.folder / "no.csv"), fails="no such file")
    run("outcomes", "import", str(run.folder), fails="ends with")
    (run.folder / "cut.parquet").write_bytes(b"PAR1")
    run("outcomes", "import", str(run.folder / "cut.parquet"), fails="cannot be read as parquet")
    (run.folder / "wrong.csv").write_text("a,b\n1,2\n")
    run("outcomes", "import", str(run.folder / "wrong.csv"), fails="expected columns")
    (run.folder / "few.csv").write_text("entity_id,value\n")
    empty = run("outcomes", "import", str(run.folder / "few.csv"), "--model", "unread", "--metric", "bought")
    assert empty["rows"] == 0


def test_exports_are_of_this_machine(run: Run) -> None:
    released(run, "exported")
    run("test", "exported", "v0=0.5", "v1=0.5")
    run("predict", "exported", "[1, 2]", "--entity", "u1")
    file = run.folder / "out.parquet"
    for what in ("outcomes", "exposures"):
        if "--url" in run.where:
            run(what, "export", "exported", str(file), fails="works on this machine")
        else:
            found = run(what, "export", "exported", str(file))
            assert found == {"file": str(file), "rows": int(what == "exposures")}
            assert parquet.read_table(file).num_rows == found["rows"]
            run(what, "export", "nowhere", str(file), fails="Model nowhere not found")
            run(what, "export", "exported", str(run.folder / "no" / "o.parquet"), fails="cannot be written")


def test_nobody_is_forgotten_by_mistake(run: Run) -> None:
    run("forget", "u1", fails="say --yes")


def test_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    context = Context()
    context.data = str(tmp_path / "data")
    runner = CliRunner()
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    done = runner.invoke(forget, ["\x1b[31mu1"], input="n\n", obj=context)
    assert (done.exit_code, "cannot be undone" in done.stderr, "\x1b" in done.stderr) == (1, True, False)
    done = runner.invoke(forget, ["u1"], input="y\n", obj=context)
    assert (done.exit_code, done.stdout) == (0, "0 records of u1 are deleted\n")


# --- the size of a test ---------------------------------------------------------------------------------------------


def plan(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(turnout, ["--json", "plan", *words], obj=Context())
    assert done.exit_code == code or done.exception is not None, done.output
    return json.loads(done.stdout) if done.exit_code == 0 else done.output + str(done.exception)


def test_the_size_of_a_test_is_computed() -> None:
    found = plan("0.1", "2%", "--per-day", "5000", "--window-days", "7")
    assert found == msgspec.to_builtins(
        package.size_test("binary", 0.1, 0.02, entities_per_day=5000, window_days=7)
    )
    assert plan("0.1", "0.02")["entities"] == found["entities"]
    options = ["--share", "0.2", "--alpha", "0.01", "--power", "0.9", "--tightest-at", "20000"]
    assert plan("25", "-1%", "--kind", "mean", "--deviation", "40", *options) == msgspec.to_builtins(
        package.size_test(
            "mean", 25, -0.01, deviation=40, share=0.2, alpha=0.01, power=0.9, tightest_at=20000
        )
    )
    assert plan("--kind", "errors", "0.001", "50%")["days"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0.1"], "EFFECT"),
        (["0.1", "much"], "relative change"),
        (["0.1", "%"], "relative change"),
        (["0.1", "0.1", "--kind", "median"], "--kind"),
        (["0.1", "0.1", "--kint", "mean"], "unexpected extra"),
        (["2", "0.1"], "rates"),
        (["25", "1%", "--kind", "mean"], "deviation"),
    ],
)
def test_a_size_that_cannot_be_computed(words: list[str], said: str) -> None:
    assert said in plan(*words, code=2)


def test_people_read_a_sentence_and_no_directory_is_needed(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        turnout, ["--data", str(tmp_path / "no"), "plan", "0.1", "10%", "--per-day", "1000"], obj=Context()
    )
    assert done.exit_code == 0, done.output
    assert "instead of 0.1" in done.stdout
    assert "days" in done.stdout


# --- what people see ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Results]:
    """A directory with a test whose candidate is better, and its results."""
    folder = tmp_path_factory.mktemp("shown")
    with package.open(folder / "data", device="cpu") as hub:
        for label in range(2):
            (folder / f"{label}.onnx").write_bytes(constant_label(label))
            hub.register_version(
                "m", f"v{label}", folder / f"{label}.onnx", features=["a", "b"], accuracy=0.5
            )
        hub.activate_version("m", "v0")
        hub.declare_metrics("m", [{**METRICS[0], "window_seconds": 0.05}, *METRICS[1:]])
        hub.configure_test("m", {"v0": 0.5, "v1": 0.5})
        ids = [f"u{number}" for number in range(3000)]
        answers = hub.predict_batch("m", [[1.0, 2.0]] * len(ids), entity_ids=ids)
        chosen = [hub.select_version("m", entity) for entity in ids]
        hub.record_outcomes(
            {
                "model": "m",
                "metric": "bought",
                "value": int(number % 10 < (3 if version == "v0" else 6)),
                "entity_id": entity,
            }
            for number, (entity, version) in enumerate(zip(ids, chosen, strict=True))
        )
        assert len(answers.version_index) == len(ids)
        one = hub.predict("m", [1, 2], entity_id="u1")
        hub.record_outcomes(
            [{"model": "m", "metric": "truth", "value": 0, "prediction_id": one.prediction_id}]
        )
        deadline = time.monotonic() + 20
        while not hub.results("m").metrics[0].effects[0].decided:
            assert time.monotonic() < deadline, hub.results("m").metrics[0]
            time.sleep(0.1)
        return ["--data", str(folder / "data")], hub.results("m")


def people(results: Results | None, monkeypatch: pytest.MonkeyPatch, where: list[str], *words: str) -> str:
    if results is not None:
        monkeypatch.setattr("turnout.service.Turnout.results", lambda self, *args, **options: results)
    context = Context()
    context.console.width = 200
    done = CliRunner().invoke(turnout, [*where, "results", "m", *words], obj=context)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def squeezed(text: str) -> str:
    return re.sub(r"[\s│┃]+", " ", text)


def test_the_recommendation_comes_first(
    shown: tuple[list[str], Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, results = shown
    said = people(results, monkeypatch, where)
    assert said.startswith(f"PROMOTE: {results.reason}"[:60])
    text = squeezed(said)
    effect = results.metrics[0].effects[0]
    assert effect.lift is not None
    for part in (
        "test 1 of m, revision 1",
        "primary, up",
        f"{effect.lift:+.2%} [",
        "better",
        "bad events",
        "harm",
        "assigned",
        "joined to bought",
        "fits",
        "p99",
        "accuracy",
        "segments of the ramp",
        "attributed",
    ):
        assert part in text, part
    assert "OFF" not in text
    assert " us [" in text or " ms [" in text


def test_what_is_wrong_catches_the_eye(
    shown: tuple[list[str], Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, results = shown
    bad, ratio = results.bad_events[0], results.sample_ratio[0]
    replace = msgspec.structs.replace
    broken = replace(
        results,
        recommendation="roll_back",
        reason="\x1b[31mv1\x07 is worse",
        crossed=0.25,
        crossed_warning=True,
        seconds_left=200_000.0,
        step=0,
        steps=3,
        paused=True,
        waiting_for=("the dwell time", "approval"),
        decision="wait",
        bad_events=(replace(bad, worse=True, ratio=(1.5, None)),),
        sample_ratio=(replace(ratio, mismatch=True, log_bayes_factor=25.0), *results.sample_ratio[1:]),
        shadow=ShadowResult(
            version="v1",
            counts=ShadowCounts(pairs=10, agreed=9),
            agreement=0.9,
            mean_difference=0.1,
            largest_difference=0.5,
            mean_seconds=0.001,
            mean_shadow_seconds=None,
        ),
    )
    said = people(broken, monkeypatch, where)
    assert said.startswith("ROLL BACK: \\x1b[31mv1\\x07 is worse")
    text = squeezed(said)
    for part in (
        "sample ratio, OFF",
        "<<< OFF",
        "25.00%, TOO MANY",
        "2.31 days",
        "1 of 3, paused",
        "the dwell time, approval",
        "WORSE",
        "[1.5, ?]",
        "v1 as a shadow",
        "90.00%",
    ):
        assert part in text, part


def test_a_test_that_has_shown_nothing_yet_is_shown(run: Run) -> None:
    released(run, "young")
    run("test", "young", "v0=0.5", "v1=0.5")
    said = run("results", "young", human=True)
    assert said.startswith("KEEP RUNNING: ")
    assert "nan" not in said
    assert "inf" not in said.replace("information", "")


def test_people_see_tables(run: Run) -> None:
    released(run, "tables")
    run("test", "tables", "v0=0.5", "v1=0.5")
    one = run("predict", "tables", "[1, 2]", "--entity", "u1")
    file = run.folder / "some.csv"
    file.write_text("entity_id,value\nu1,1\n\x1b[31mu2,x\nu3\n")
    told = run("outcomes", "import", str(file), "--model", "tables", "--metric", "bought", human=True)
    assert "expected 2 cells" in squeezed(told)
    assert "\x1b" not in told
    for words in (
        ["metrics", "tables"],
        ["receipt", "tables", one["prediction_id"]],
        ["forget", "u1", "--yes"],
    ):
        assert run(*words, human=True).strip()
    assert "24 h" in run("metrics", "tables", human=True) or "1 days" in run("metrics", "tables", human=True)


def test_a_figure_is_written(
    shown: tuple[list[str], Results], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Figure:
        def to_html(self) -> str:
            return "<html>a figure</html>"

    monkeypatch.setattr("turnout.experiment.plot.figure", lambda results: Figure())
    people(shown[1], monkeypatch, shown[0], "--plot", str(tmp_path / "f.html"))
    assert (tmp_path / "f.html").read_text() == "<html>a figure</html>"
    words = [*shown[0], "results", "m", "--plot", str(tmp_path / "no" / "f.html")]
    done = CliRunner().invoke(turnout, words, obj=Context())
    assert "cannot be written" in str(done.exception)


def test_an_error_of_an_import_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "o\n.csv").write_text("a,b\n")
    words = ["--data", str(tmp_path / "data"), "outcomes", "import", str(tmp_path / "o\n.csv")]
    done = subprocess.run(
        [sys.executable, "-m", "turnout", *words], capture_output=True, text=True, timeout=25, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "expected columns" in done.stderr


def test_a_terminal_sees_how_far_an_import_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "o.csv").write_text("entity_id,value\n" + "u1,1\n" * 3)
    context = Context()
    context.errors = Console(file=io.StringIO(), force_terminal=True, width=100)
    words = ["--data", str(tmp_path / "data"), "outcomes", "import", str(tmp_path / "o.csv")]
    done = CliRunner().invoke(turnout, [*words, "--model", "m", "--metric", "x"], obj=context)
    assert done.exit_code == 0, done.output
    assert "recording outcomes" in context.errors.file.getvalue()  # type: ignore[attr-defined]
    assert "Model m not found" in done.stdout


def test_an_import_can_be_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "data").mkdir()
    monkeypatch.setattr("turnout.cli.outcomes.import_outcomes", interrupted)
    words = ["--data", str(tmp_path / "data"), "outcomes", "import", "o.csv"]
    done = CliRunner().invoke(turnout, words, obj=Context())
    assert done.exit_code == 130
    assert "carry an id" in done.stderr


# --- the page -------------------------------------------------------------------------------------------------------


def test_every_command_below_a_group_and_its_options_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text("utf-8")
    groups = {name: group for name, group in turnout.commands.items() if isinstance(group, click.Group)}
    assert groups.keys() == {"outcomes", "exposures"}
    for name, group in groups.items():
        assert group.commands
        for below, command in group.commands.items():
            assert f"`turnout {name} {below}" in page
            for option in command.params:
                assert option.param_type_name == "argument" or option.opts[0] in page, (below, option.opts)


def test_the_plan_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text("utf-8")
    [text] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(check_plan(tomllib.loads(text), []).steps) == 2
