"""What the documentation says is so: every name is in it, and its Python runs. Each check first sees that it looks at something."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import msgspec
import pyarrow as pa
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute
from pyarrow import csv, parquet

import turnout
from turnout import settings_page
from turnout.api.app import application
from turnout.cli import turnout as commands
from turnout.config import declared

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
METHODS = {"GET", "POST", "PUT", "DELETE"}


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def words(name: str) -> set[str]:
    """Every name in code font, as a word."""
    code = re.findall(r"```.*?```|`[^`\n]+`", text(name), re.DOTALL)
    return {word for part in code for word in re.findall(r"\w+", part)}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    with turnout.open(tmp_path_factory.mktemp("docs") / "data") as opened:
        yield opened


# --- every name -----------------------------------------------------------------------------------------------------


def test_every_setting_is_documented() -> None:
    page = text("docs/settings.md")
    assert len(declared()) > 20
    assert all(f"`{setting.name}`" in page and f"`{setting.variable}`" in page for setting in declared())


def test_the_page_of_settings_is_up_to_date() -> None:
    assert text("docs/settings.md") == settings_page.page(), (
        "run `python -m turnout.settings_page docs/settings.md`"
    )


def test_the_page_of_settings_is_written_to_a_file(tmp_path: Path) -> None:
    settings_page.main(tmp_path / "settings.md")
    assert (tmp_path / "settings.md").read_text("utf-8") == settings_page.page()


def routes(app: Litestar) -> set[str]:
    """Method and path of every route of ours."""
    return {
        f"{method} {route.path_format}"
        for route in app.routes
        if isinstance(route, HTTPRoute) and not route.path.startswith("/schema")
        for method in METHODS & set(route.methods)
    }


# Litestar 2 asks to mark dependencies for its version 3; how the routes are declared is not what is checked here.
@pytest.mark.filterwarnings("ignore::litestar.exceptions.base_exceptions.LitestarDeprecationWarning")
def test_every_route_is_documented(hub: turnout.Turnout) -> None:
    found = routes(application(hub))
    assert {"POST /v1/models/{model}/predict", "DELETE /v1/models/{model}/test", "GET /metrics"} <= found
    pages = text("docs/http.md") + text("docs/inference.md")
    documented = set(re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`\s]*)`", pages))
    assert documented - {"GET /schema/openapi.json"} == found


def test_every_error_is_documented() -> None:
    def codes(kind: type[turnout.TurnoutError]) -> set[str]:
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    # Only those of turnout.errors: a client has one for a server that it cannot reach.
    found = {
        kind.code
        for kind in vars(turnout.errors).values()
        if isinstance(kind, type) and hasattr(kind, "code")
    }
    assert len(found) > 15
    assert found <= codes(turnout.TurnoutError)
    assert found <= words("docs/http.md")


def test_every_public_name_is_documented() -> None:
    methods = {name for name in dir(turnout.Turnout) if not name.startswith("_")}
    assert {"register_version", "predict", "assign_many"} <= methods
    assert {"Turnout", "open", "Feature"} <= set(turnout.__all__)
    assert (methods | set(turnout.__all__)) - words("docs/python.md") == set()


def test_every_metric_is_documented(hub: turnout.Turnout) -> None:
    found = set(re.findall(r"^# TYPE (\w+) ", hub.metrics().decode(), re.MULTILINE))
    assert {"turnout_requests_total", "turnout_latency_seconds", "turnout_workers"} <= found
    documented = set(re.findall(r"^\| `(turnout_\w+)` \|", text("docs/operations.md"), re.MULTILINE))
    assert documented == found


def test_every_command_and_option_is_documented() -> None:
    page = text("docs/command-line.md")
    found = dict(commands.commands)
    for group, below in commands.commands.items():
        if isinstance(below, click.Group):
            del found[group]
            found |= {f"{group} {name}": command for name, command in below.commands.items()}
    assert {"serve", "register", "rollback", "outcomes import"} <= set(found)
    for name, command in found.items():
        assert f"`turnout {name}" in page
        # `serve` takes every setting, and those have a page of their own.
        options = [] if name == "serve" else command.params
        assert name == "serve" or options or name in {"models", "status", "doctor"}, name
        for option in (*options, *commands.params):
            said = page + text("docs/score.md") if name == "score" else page
            assert option.param_type_name == "argument" or option.opts[0] in said, (name, option.opts)


# --- links ----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
        if not target.startswith(("http:", "https:"))
    ]
    assert len(links) > 10
    for page, target in links:
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def test_every_decision_says_what_a_decision_says() -> None:
    decisions = sorted((DOCS / "decisions").glob("*.md"))
    assert len(decisions) >= 5
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    for page in decisions:
        headings = re.findall(r"^## (.+)$", page.read_text("utf-8"), re.MULTILINE)
        assert headings == ["Status", "Context", "Decision", "Consequences"], page.name


# --- the code runs --------------------------------------------------------------------------------------------------


def python_of(page: str) -> str:
    """The Python of a page, in the order of the page."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE))


def run(code: str | Path, folder: Path, *arguments: str, seconds: float = 25, **environment: str) -> str:
    """Run Python in a process and a folder of its own; what it printed."""
    argument = [str(code)] if isinstance(code, Path) else ["-c", code]
    path = str(ROOT / "python")
    done = subprocess.run(
        [sys.executable, *argument, *arguments],
        cwd=folder,
        env={"PYTHONPATH": path, "PATH": "", "HOME": str(folder), "LOGNAME": "reader", **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two models that the quickstart trains."""
    folder = tmp_path_factory.mktemp("quickstart")
    assert "v2.0 accuracy" in run(python_of("docs/quickstart.md"), folder)
    return folder


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/experiments.md"])
def test_the_python_of_a_page_runs(page: str, models: Path, tmp_path: Path) -> None:
    for model in models.glob("*.onnx"):
        (tmp_path / model.name).write_bytes(model.read_bytes())
    code = python_of(page)
    assert code.count("hub.") > 10
    run(code, tmp_path)


def test_the_commands_that_score_files_run(models: Path, tmp_path: Path) -> None:
    table = pa.table(
        {"entity_id": ["u1", "u2"], "totalSpent": [12.5, 3.0], "accountAge": [90, 7], "region": [1, 2]}
    )
    for folder in ("customers", "exports"):
        (tmp_path / folder).mkdir()
    for place in ("customers/1.parquet", "customers.parquet"):
        parquet.write_table(table, tmp_path / place)
    csv.write_csv(table, pa.CompressedOutputStream(str(tmp_path / "exports" / "2026-01.csv.gz"), "gzip"))
    (tmp_path / "last.ndjson").write_bytes(b"\n".join(map(msgspec.json.encode, table.to_pylist())))
    with turnout.open(tmp_path / "data", device="cpu") as hub:
        for version in ("v1.0", "v2.0"):
            path = models / f"churn-{version}.onnx"
            hub.register_version("churn", version, path, features=["totalSpent", "accountAge"])
        hub.activate_version("churn", "v1.0")
    shown = re.findall(r"^turnout (score .+)$", text("docs/score.md"), re.MULTILINE)
    assert len(shown) == 3
    for number, line in enumerate(shown):
        # The last one resumes what has come to an end under other words, so it writes somewhere else.
        words = shlex.split(
            line.replace("customers.parquet scores.parquet", "customers.parquet again.parquet")
        )
        done = subprocess.run(
            [sys.executable, "-m", "turnout", *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT / "python"), "PATH": "", "LOGNAME": "reader", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
        )
        assert done.returncode == 0, (number, done.stderr)
    found = parquet.read_table(tmp_path / "scores.parquet")
    assert found.schema.names[:3] == ["region", "entity_id", "version"]
    sidecar = msgspec.json.decode((tmp_path / "scores.parquet.json").read_bytes())
    assert (sidecar["rows"], sidecar["counts"]) == (2, {"v1.0": 2})
    assert len(list((tmp_path / "scores").glob("*.parquet"))) == 2
    pinned = msgspec.json.decode((tmp_path / "again.parquet.json").read_bytes())
    assert pinned["counts"] == {"v2.0": 2}


def test_the_example_of_a_benchmark_runs_and_plots(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "benchmark.py", tmp_path, "latency.png")
    assert "million ids a second" in printed
    assert printed.count("ns a row") == 3
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.timeout(120)
def test_the_recipes_for_clusters_run(models: Path, tmp_path: Path) -> None:
    for model in models.glob("*.onnx"):
        (tmp_path / model.name).write_bytes(model.read_bytes())
    code = python_of("docs/cluster.md")
    assert {"turnout.ray.Predictor", "turnout.dask.Predictor"} <= set(
        re.findall(r"turnout\.\w+\.Predictor", code)
    )
    # Ray's sockets need a short path. Nobody is told of its use, and it listens on loopback.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        words = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_TMPDIR": folder,
        }
        printed = run(code, tmp_path, seconds=100, **words)
    assert len(re.findall(r"^v[12].0 +\d+$", printed, re.MULTILINE)) == 4
    assert "version" in printed


def test_the_example_of_embedding_runs(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "embedded.py", tmp_path)
    assert "user-8 v2.0 test" in printed
    assert "'promote'" in printed
