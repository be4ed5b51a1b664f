"""The command line on a data directory, and the same verbs on a running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from models import constant_label, linear_matrix
from servers import Server
from turnout.cli import Context, turnout
from turnout.config import declared

Run = Callable[..., Any]


@pytest.fixture(scope="module", params=["local", "server"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a command and decode its JSON: once on a directory of its own, once on a server."""
    folder = tmp_path_factory.mktemp("cli")
    for label in range(3):
        (folder / f"{label}.onnx").write_bytes(constant_label(label))

    def runner(where: list[str]) -> Run:
        def call(*arguments: str, fails: str | None = None) -> Any:
            done = CliRunner().invoke(turnout, [*where, "--json", *arguments], obj=Context())
            if fails is not None:
                assert done.exception is not None
                assert fails in str(done.exception) + done.output
                return None
            assert done.exit_code == 0, (done.output, done.exception)
            return json.loads(done.stdout)

        call.folder = folder
        call.where = where
        return call

    if request.param == "local":
        yield runner(["--data", str(folder / "data"), "--actor", "ann"])
    else:
        with Server(folder / "server") as server:
            yield runner(["--url", server.url, "--actor", "ann"])


def test_a_release_from_its_first_to_its_last_day(run: Run) -> None:
    for label in ("0", "1", "2"):
        path = str(run.folder / f"{label}.onnx")
        options = ["-f", "a", "-f", "b", "--accuracy", f"0.{label}5", "--metric", f"f1=0.{label}"]
        found = run(
            "register", "churn", f"v{label}", path, *options, "--metadata", '{"by": "test"}', "-m", "new"
        )
        assert [feature["name"] for feature in found["features"]] == ["a", "b"]
    assert run("activate", "churn", "v0", "-m", "first")["version"] == "v0"
    assert run("predict", "churn", '{"a": 1, "b": 2}')["outputs"]["label"] == 0
    assert run("test", "churn", "v0=0.8", "v1=0.2")["arms"][1] == {
        "version": "v1",
        "weight": 0.2,
        "slots": 20000,
    }
    assert run("test", "churn")["revision"] == 1
    assert run("assign", "churn", "user-123")["reason"] == "test"
    shares = run("distribution", "churn")["shares"]
    assert [share["configured"] for share in shares] == [0.8, 0.2]
    assert run("override", "churn", "qa", "v2") == {"qa": "v2"}
    assert run("predict", "churn", "[1, 2]", "--entity", "qa")["version"] == "v2"
    run("override", "churn", "qa", fails="name the version, or say --remove")
    run("override", "churn", "qa", "v1", "--remove", fails="name the version, or say --remove")
    run("override", "churn", "--remove", fails="--remove needs the entity")
    assert run("override", "churn", "qa", "--remove") == {}
    run("override", "churn", "qa", "--remove", fails="has no override of 'qa'")
    assert run("promote", "churn", "v1", "-m", "won")["version"] == "v1"
    assert run("rollback", "churn", "-m", "no")["version"] == "v0"
    assert run("test", "churn", "v0=0.5", "v2=0.5")["revision"] == 1
    assert run("test", "churn", "--stop")["status"] == "stopped"
    assert run("test", "churn") is None
    compared = run("compare", "churn", "v0", "v1")
    assert compared["accuracy_diff"] == pytest.approx(0.1)
    assert compared["metrics_diff"] == {"f1": pytest.approx(0.1)}
    assert run("delete", "churn", "v2") == {"deleted": True}
    assert run("delete", "churn", "v2") == {"deleted": False}
    history = run("history", "churn")
    assert history["current_version"] == "v0"
    assert {event["actor"] for event in history["events"]} == {"ann"}
    assert [model["name"] for model in run("models")] == ["churn"]
    assert run("status")["models"] == 1


def test_export_and_import(run: Run) -> None:
    run("register", "copied", "v1", str(run.folder / "0.onnx"))
    for name in ("all.json", "all.tar"):
        file = run.folder / name
        assert "copied" in run("export", str(file))["models"]
        assert "copied" in run("import", str(file))["models"]
    target = CliRunner().invoke(
        turnout,
        ["--data", str(run.folder / f"copy-{id(run)}"), "--json", "import", str(run.folder / "all.tar")],
        obj=Context(),
    )
    assert target.exit_code == 0, target.output


def test_errors_say_what_to_do(run: Run) -> None:
    run("register", "errors", "v1", str(run.folder / "0.onnx"))
    run("activate", "errors", "v1")
    run("activate", "errors", "v9", fails="Version v9 not found for model errors")
    run("delete", "errors", "v1", fails="is the active version")
    run("test", "errors", "v1=0.5", fails="Traffic splits must sum to 1.0")
    run("test", "errors", "v1", fails="NAME=NUMBER")
    run("predict", "errors", "{", fails="FEATURES")
    run("history", "nowhere", fails="Model nowhere not found")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metadata", "[1]"), "--metadata"),
        (("--metadata", '"s"'), "--metadata"),
        (("--metric", "p=1", "--metric", "p=2"), "twice"),
        (("--schema", "object.json"), "--schema"),
        (("--schema", "text.json"), "--schema"),
        (("--schema", "number.json"), "--schema"),
        (("--schema", "list.json", "-f", "a"), "the same"),
        (("--threads", "0"), "--threads"),
        (("-o", "tf32"), "NAME=VALUE"),
        (("-o", "tf32=true", "-o", "tf32=false"), "each name once"),
        (("--device", "cpu", "-o", "device=cuda"), "each name once"),
        (("-o", "tf32=perhaps"), "tf32"),
        (("-o", "gpu_memory_limit=0"), "gpu_memory_limit"),
        (("-o", "arena_extend=slowly"), "arena_extend"),
        (("-o", "convsearch=default"), "convsearch"),
    ],
)
def test_a_registration_that_is_described_badly_is_no_command(run: Run, options: Any, said: str) -> None:
    for name, text in (("object", '{"a": 1}'), ("text", '"ab"'), ("number", "5"), ("list", '["a", "b"]')):
        (run.folder / f"{name}.json").write_text(text)
    given = [str(run.folder / word) if word.endswith(".json") else word for word in options]
    run("register", "badly", "v1", str(run.folder / "0.onnx"), *given, fails=said)


def test_a_version_is_registered_with_its_options(run: Run) -> None:
    given = ["spinning=true", "gpu_memory_limit=2147483648", "conv_search=heuristic", "cuda_graphs=false"]
    options = [word for text in given for word in ("-o", text)]
    found = run("register", "optional", "v1", str(run.folder / "0.onnx"), "--device", "cpu", *options)
    assert found["options"] == {
        "device": "cpu",
        "spinning": True,
        "gpu_memory_limit": 2**31,
        "conv_search": "heuristic",
        "cuda_graphs": False,
    }
    run(
        "register",
        "optional",
        "v2",
        str(run.folder / "0.onnx"),
        "-o",
        "tensorrt=true",
        fails="TensorRT does not work",
    )


def test_an_export_comes_in_through_the_input(run: Run, tmp_path: Path) -> None:
    run("register", "piped", "v1", str(run.folder / "0.onnx"))
    text = CliRunner().invoke(turnout, [*run.where, "export", "-"], obj=Context()).stdout
    done = CliRunner().invoke(turnout, [*run.where, "--json", "import", "-"], input=text, obj=Context())
    assert "piped" in json.loads(done.stdout)["models"], done.output


@pytest.mark.parametrize(
    "arguments",
    [["models"], ["status"], ["export", "-"], ["activate", "m", "v1"], ["override", "m"]],
    ids=str,
)
def test_a_mistyped_directory_is_not_made(tmp_path: Path, arguments: list[str]) -> None:
    done = command("--data", str(tmp_path / "no" / "such"), *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no data directory" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "variables"), [(["--url", ""], {}), ([], {"TURNOUT_DATA": ""})])
def test_an_empty_place_is_none(options: list[str], variables: dict[str, str]) -> None:
    assert command(*options, "models", **variables).returncode != 0


def test_errors_are_one_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    command = [sys.executable, "-m", "turnout", "--data", str(tmp_path / "data"), "history", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert done.stderr == "turnout: Model nowhere not found\n"
    assert done.stdout == ""


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(turnout, ["--url", "http://127.0.0.1:9", "models"], obj=Context())
    assert "did not answer" in str(done.exception)


def test_people_see_tables(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_matrix([1.0], names=["a"]))
    data = ["--data", str(tmp_path / "data")]
    for arguments in (
        ["register", "m", "v1", str(tmp_path / "m.onnx")],
        ["activate", "m", "v1"],
        ["test", "m", "v1=1"],
        ["models"], ["history", "m"], ["compare", "m", "v1", "v1"], ["distribution", "m"], ["assign", "m", "7"],
        ["predict", "m", "[2]"], ["status"], ["doctor"], ["override", "m"],
    ):  # fmt: skip
        done = CliRunner().invoke(turnout, [*data, *arguments], obj=Context())
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        assert done.stdout.strip()


def test_every_setting_is_a_flag_of_serve() -> None:
    done = CliRunner().invoke(turnout, ["serve", "--help"], obj=Context())
    assert len(declared()) > 10
    for setting in declared():
        assert setting.flag in done.stdout


# --- what people and machines read ----------------------------------------------------------------------------------

HOSTILE = ":bug: [JIRA-1] [bold]x[/bold] [/red] \x1b[31mred\x07\nsecond line"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A directory whose model and audit log try to be markup, emoji and terminal commands."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "m.onnx").write_bytes(linear_matrix([1.0], names=["a"]))
    data = ["--data", str(folder / "data")]
    register = ["register", "a[bold]b[/x]", "v[red]1", str(folder / "m.onnx"), "-m", HOSTILE]
    assert CliRunner().invoke(turnout, [*data, *register], obj=Context()).exit_code == 0
    return data


def test_json_has_every_character_as_it_was_written(hostile: list[str]) -> None:
    done = CliRunner().invoke(turnout, [*hostile, "--json", "history", "a[bold]b[/x]"], obj=Context())
    assert json.loads(done.stdout)["events"][0]["reason"] == HOSTILE


def test_no_text_of_others_commands_the_terminal(hostile: list[str]) -> None:
    done = CliRunner().invoke(turnout, [*hostile, "history", "a[bold]b[/x]"], obj=Context(), color=True)
    assert "versions of a[bold]b[/x], newest first" in done.stdout
    assert "v[red]1" in done.stdout
    words = "".join(done.stdout.replace("│", " ").split())
    assert "".join(HOSTILE.encode("unicode_escape").decode().split()) in words
    assert not {"\x1b", "\x07"} & set(done.stdout)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "turnout", *arguments],
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("name", ["registry.json", "registry.tar"])
def test_an_export_that_cannot_be_written_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done = command("--data", str(tmp_path / "data"), "export", str(tmp_path / "nowhere" / name))
    assert done.returncode == 1
    assert done.stderr.startswith("turnout: ")
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize("word", ["\x1b[31m", "two\nlines", "\udcff"])
def test_an_error_is_one_line_whatever_it_is_about(word: str, tmp_path: Path) -> None:
    for where in (["--data", str(tmp_path / "data")], ["--url", "http://127.0.0.1:9"]):
        done = command(*where, "history", word)
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("turnout: ")
        assert done.stderr.count("\n") == 1
        assert "\x1b" not in done.stderr


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert Context().actor == f"uid {os.getuid()}"
