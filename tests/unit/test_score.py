"""Files scored offline: each row as `predict_batch` answers it, whatever it comes from and is written to."""

from __future__ import annotations

import contextlib
import csv
import errno
import gzip
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import turnout
from models import columns_model, constant_label, failing_model, image_model, linear_matrix
from turnout.cli import Context
from turnout.cli import turnout as commands
from turnout.domain import Feature
from turnout.errors import (
    Conflict,
    InvalidFeatures,
    InvalidRequest,
    NoActiveVersion,
    StorageError,
    VersionNotFound,
)
from turnout.score import run as scoring
from turnout.score import running
from turnout.score.inputs import Input, open_source
from turnout.score.rows import csv_ends
from turnout.score.run import score
from turnout.score.running import Options, Report
from turnout.score.source import Wanted, parts
from turnout.service import Turnout

READ = ("parquet", "csv", "ndjson", "arrow")
ARMS = ("v1", "v2", "v3", "v4", "v5")
ROWS = 500


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    """`split` has five versions of different features, `mixed` takes columns of text and numbers."""
    folder = tmp_path_factory.mktemp("score")
    with turnout.open(folder / "data") as opened:

        def register(model: str, version: str, content: bytes, **words: Any) -> None:
            path = folder / "model.onnx"
            path.write_bytes(content)
            opened.register_version(model, version, path, **words)

        register("split", "v1", linear_matrix([1, 2]), features=["a", "b"])
        register("split", "v2", linear_matrix([3, 5]), features=["b", "a"])
        register("split", "v3", linear_matrix([2, 0]), features=[Feature("a", nullable=True), "b"])
        register("split", "v4", linear_matrix([1]), features=["b"])
        register("split", "v5", linear_matrix([2, 1]), features=[Feature("c", default=4.0), "a"])
        register("mixed", "v1", columns_model())
        register(
            "whole",
            "v1",
            linear_matrix([1, 2]),
            features=[Feature("n", type="int"), Feature("t", type="bool")],
        )
        register("plain", "v1", linear_matrix([1, 2]), features=["a", "b"])
        register("plain", "v2", linear_matrix([5, 2]), features=["a", "b"])
        register("idle", "v1", linear_matrix([1, 2]), features=["a", "b"])
        register("unnamed", "v1", linear_matrix([1, 2]))
        register("image", "v1", image_model())
        register("fails", "v1", failing_model())
        register("label", "v1", constant_label(3), features=["a", "version"])
        for model in ("split", "mixed", "whole", "plain", "unnamed", "image", "fails", "label"):
            opened.activate_version(model, "v1")
        yield opened


@pytest.fixture
def table() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "note": [f'é "{row}",\n\t\\' if row % 3 else "007" for row in range(ROWS)],
            "a": np.round(random.normal(size=ROWS), 4),
            "entity_id": [f"user-{row}" for row in range(ROWS)],
            "b": random.integers(-9, 9, ROWS),
            "other": [None if row % 2 else 1.5 for row in range(ROWS)],
        }
    )


def arms(hub: Turnout, count: int, model: str = "split") -> None:
    if hub.get_test(model):
        hub.stop_test(model)
    if count:
        hub.configure_test(model, dict.fromkeys(ARMS[:count], 1 / count))


def write(table: pa.Table, path: Path, kind: str = "") -> Path:
    match kind or path.suffix[1:]:
        case "parquet":
            pq.write_table(table, path, row_group_size=90)
        case "csv":
            pa.csv.write_csv(table, path)
        case "ndjson":
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
        case "arrow":
            pa.feather.write_feather(table, path, chunksize=70)
        case "stream":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=33)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output, with lists for the values of a row; CSV as it is."""
    match path.suffix[1:]:
        case "parquet":
            return pq.read_table(path).to_pylist()
        case "csv":
            with path.open(newline="") as file:
                return list(csv.DictReader(file))
        case "ndjson":
            return [json.loads(line) for line in path.read_text().splitlines()]
        case _:
            return pa.feather.read_table(path).to_pylist()


def scored(hub: Turnout, model: str, inputs: Any, out: Path | str, **options: Any) -> Report:
    named = [str(name) for name in (inputs if isinstance(inputs, list) else [inputs])]
    return score(hub, model, named, str(out), Options(**{"part_rows": 64, "threads": 2, **options}))


def lines(path: Path, *rows: str) -> Path:
    path.write_bytes("".join(f"{row}\n" for row in rows).encode("utf-8", "surrogateescape"))
    return path


# --- every format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*READ, "stream"])
@pytest.mark.parametrize("to", READ)
def test_rows_are_answered_as_in_a_batch(
    hub: Turnout, tmp_path: Path, table: pa.Table, kind: str, to: str
) -> None:
    arms(hub, 4)
    suffix = "arrow" if kind == "stream" else kind
    report = scored(
        hub,
        "split",
        write(table, tmp_path / f"in.{suffix}", kind),
        tmp_path / f"out.{to}",
        keep=("note", "entity_id"),
    )
    expected = hub.predict_batch("split", table.select(["a", "b", "entity_id"]))
    labels = [expected.versions[index] for index in expected.version_index]
    found = read(tmp_path / f"out.{to}")
    assert [row["version"] for row in found] == labels
    assert [row["note"] for row in found] == table["note"].to_pylist()
    assert [row["entity_id"] for row in found] == table["entity_id"].to_pylist()
    answers = [row["score_0"] if to == "csv" else row["score"][0] for row in found]
    assert np.array(answers, np.float32).tolist() == expected.outputs["score"][:, 0].tolist()
    assert report.counts == {label: labels.count(label) for label in sorted(set(labels))}
    assert (report.rows, report.errors, report.parts, report.scored) == (ROWS, 0, 8, ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"in.{suffix}", f"out.{to}", f"out.{to}.json"]
    )


@pytest.mark.parametrize("count", range(6))
def test_splits_follow_the_entity_column(hub: Turnout, tmp_path: Path, table: pa.Table, count: int) -> None:
    arms(hub, count)
    ids = table["entity_id"].to_pylist()
    renamed = table.rename_columns(["note", "a", "who", "b", "other"])
    for kind in READ:
        source, out = write(renamed, tmp_path / f"in.{kind}"), tmp_path / f"{kind}.ndjson"
        scored(hub, "split", source, out, entity="who")
        assert [row["version"] for row in read(out)] == [
            hub.select_version("split", entity) for entity in ids
        ]
    pinned = scored(hub, "split", source, tmp_path / "pinned.csv", entity="who", version="v2")
    assert (pinned.counts, pinned.test, list(pinned.versions)) == ({"v2": ROWS}, None, ["v2"])


def test_integers_are_entities_too(hub: Turnout, tmp_path: Path) -> None:
    arms(hub, 3)
    ids = list(range(-50, 50))
    table = pa.table({"a": [1.0] * 100, "b": [2.0] * 100, "entity_id": ids})
    for kind in READ:
        scored(hub, "split", write(table, tmp_path / f"in.{kind}"), tmp_path / f"{kind}.ndjson")
        found = [row["version"] for row in read(tmp_path / f"{kind}.ndjson")]
        assert found == [hub.select_version("split", entity) for entity in ids]


def test_rows_without_entities_are_drawn_alike_in_each_run(
    hub: Turnout, tmp_path: Path, table: pa.Table
) -> None:
    arms(hub, 2)
    ids = [None if row % 2 else f"user-{row}" for row in range(ROWS)]
    some = table.set_column(2, "entity_id", pa.array(ids))
    coded = some.set_column(2, "entity_id", some["entity_id"].dictionary_encode())
    outputs = set()
    for number, (name, rows) in enumerate(
        [("a.parquet", some), ("b.csv", some), ("c.ndjson", some), ("d.arrow", coded)]
    ):
        for part_rows in (64, 7):
            out = tmp_path / f"{number}-{part_rows}.ndjson"
            scored(hub, "split", write(rows, tmp_path / name), out, part_rows=part_rows)
            outputs.add(out.read_bytes())
    assert len(outputs) == 1
    found = [row["version"] for row in read(out)]
    named = [hub.select_version("split", entity) for entity in ids if entity is not None]
    assert found[::2] == named
    assert 80 < found[1::2].count("v2") < 170
    bare = write(table.drop_columns("entity_id"), tmp_path / "bare.parquet")
    assert min(scored(hub, "split", bare, tmp_path / "bare.csv").counts.values()) > 190


def test_files_folders_and_patterns_are_read_in_their_order(
    hub: Turnout, tmp_path: Path, table: pa.Table
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "_hidden").mkdir()
    (folder / "_SUCCESS").touch()
    (folder / "readme.txt").write_text("no data")
    write(table.slice(0, 9), folder / "_hidden" / "x.csv")
    for start, name in [(100, "b.csv"), (0, "a.parquet"), (200, "sub/c.ndjson"), (300, "sub/d.arrow")]:
        write(table.slice(start, 100), folder / name)
    write(table.slice(400, 50), tmp_path / "z1.CSV", "csv")
    (tmp_path / "z2.csv.gz").write_bytes(
        gzip.compress(write(table.slice(450, 50), tmp_path / "tail.csv").read_bytes())
    )
    out = tmp_path / "out.ndjson"
    report = scored(
        hub,
        "plain",
        [
            folder,
            str(tmp_path / "z*"),
        ],
        out,
        keep=("note",),
        part_rows=30,
    )
    assert [row["note"] for row in read(out)] == table["note"].to_pylist()
    assert report.parts == 4 * 4 + 2 * 2
    assert [Path(given.path).name for given in report.request.inputs] == [
        "a.parquet", "b.csv", "c.ndjson", "d.arrow", "z1.CSV", "z2.csv.gz",
    ]  # fmt: skip
    with pytest.raises(InvalidRequest, match="named twice"):
        scored(hub, "plain", [folder / "a.parquet", str(folder / "*.parquet")], tmp_path / "twice.csv")
    with pytest.raises(InvalidRequest, match="no such file"):
        scored(hub, "plain", str(tmp_path / "nothing*"), tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="found none"):
        scored(hub, "plain", tmp_path / "empty", tmp_path / "none.csv")


def test_formats_are_said_where_names_do_not_say_them(hub: Turnout, tmp_path: Path, table: pa.Table) -> None:
    write(table, tmp_path / "data", "csv")
    with pytest.raises(InvalidRequest, match="--from"):
        scored(hub, "plain", tmp_path / "data", tmp_path / "out.csv")
    with pytest.raises(InvalidRequest, match="--to"):
        scored(hub, "plain", tmp_path / "data", tmp_path / "out", read="csv")
    with pytest.raises(InvalidRequest, match="--to"):
        scored(hub, "plain", tmp_path / "data", tmp_path / "out.csv.gz", read="csv")
    assert scored(hub, "plain", tmp_path / "data", tmp_path / "out", read="csv", write="ndjson").rows == ROWS
    assert len((tmp_path / "out").read_text().splitlines()) == ROWS


@pytest.mark.parametrize("to", READ)
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_keeps_the_parts(
    hub: Turnout, tmp_path: Path, table: pa.Table, to: str, exists: bool
) -> None:
    source = write(table, tmp_path / "in.parquet")
    if exists:
        (tmp_path / "out").mkdir()
    out = f"{tmp_path / 'out'}" if exists else f"{tmp_path / 'out'}/"
    for overwrite in (False, True):
        scored(hub, "plain", source, out, keep=("note",), write=to, overwrite=overwrite)
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == [f"part-{number:06}.{to}" for number in range(8)]
    rows = [row for name in names for row in read(tmp_path / "out" / name)]
    assert [row["note"] for row in rows] == table["note"].to_pylist()
    assert (tmp_path / "out.json").exists()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(Conflict, match="no parts"):
        scored(hub, "plain", source, out, write=to, overwrite=True)


@pytest.mark.parametrize("kind", READ)
def test_no_rows_are_no_rows(hub: Turnout, tmp_path: Path, table: pa.Table, kind: str) -> None:
    source = write(table.slice(0, 0), tmp_path / f"in.{kind}")
    whole = write(table, tmp_path / "whole.parquet")
    for to in READ:
        empty, full = tmp_path / f"out.{to}", tmp_path / f"full.{to}"
        assert scored(hub, "plain", source, empty, keep=("note",)).rows == 0
        scored(hub, "plain", whole, full, keep=("note",))
        assert read(empty) == []
        if to in {"parquet", "arrow"}:
            load = pq.read_table if to == "parquet" else pa.feather.read_table
            assert load(empty).schema == load(full).schema
    assert scored(hub, "plain", source, f"{tmp_path}/folder/", keep=("note",)).rows == 0
    assert pq.read_table(tmp_path / "folder").num_rows == 0


# --- types ----------------------------------------------------------------------------------------------------------


def test_types_are_those_of_the_features(hub: Turnout, tmp_path: Path) -> None:
    """A category that looks like a number stays a text, in every block; a number is one however it is written."""
    version = hub.active_version("mixed")
    assert version is not None
    kinds = {feature.name: feature.type for feature in version.features}
    assert set(kinds.values()) >= {"string", "float"}
    row = {name: "007" if kind == "string" else "1" for name, kind in kinds.items()}
    source = lines(tmp_path / "in.csv", ",".join(row), *[",".join(row.values())] * 100)
    scored(hub, "mixed", source, tmp_path / "out.parquet", keep=tuple(row))
    typed = {name: "007" if kind == "string" else 1 for name, kind in kinds.items()}
    expected = hub.predict("mixed", typed).outputs
    found = read(tmp_path / "out.parquet")
    assert len(found) == 100
    for name, value in expected.items():
        assert np.ravel(found[-1][name]).tolist() == pytest.approx(np.ravel(value).tolist())
    assert {name: found[0][name] for name in typed} == typed


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("7.0", 7), (" 7 ", 7), ("9007199254740993", 9007199254740993)]
)
def test_whole_numbers_may_have_a_point(hub: Turnout, tmp_path: Path, text: str, value: int) -> None:
    source = lines(tmp_path / "in.csv", "n,t", f"{text},true", "1,False", "2,0")
    scored(hub, "whole", source, tmp_path / "out.ndjson", keep=("n", "t"))
    assert [row["n"] for row in read(tmp_path / "out.ndjson")] == [value, 1, 2]
    assert [row["score"][0] for row in read(tmp_path / "out.ndjson")[1:]] == [1, 2]


def test_a_csv_is_read_as_its_rules_say(hub: Turnout, tmp_path: Path) -> None:
    text = '\ufeff"a",b,note\r\n1,2,"x\r\ny"\r\n\r\n3,4,5"pipe\r\n5,6,"q""q"\r7,8,last'
    (tmp_path / "in.csv").write_bytes(text.encode())
    for part_rows in (1, 2, 100):
        out = tmp_path / f"{part_rows}.ndjson"
        scored(hub, "plain", tmp_path / "in.csv", out, keep=("note",), part_rows=part_rows)
        assert [row["note"] for row in read(out)] == ["x\r\ny", '5"pipe', 'q"q', "last"]
        assert [row["score"][0] for row in read(out)] == [5, 11, 17, 23]


def cell(text: str) -> str:
    quoted = any(character in text for character in ",\r\n") or text.startswith('"')
    return '"' + text.replace('"', '""') + '"' if quoted else text


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.text('a",\r\n', max_size=5), min_size=2, max_size=2), max_size=8), st.data())
def test_rows_of_a_csv_end_where_pyarrow_says(rows: list[list[str]], data: st.DataObject) -> None:
    """However a file is cut into blocks, an end that is found is one."""
    ends = [data.draw(st.sampled_from(["\n", "\r\n"])) for _ in rows]
    written = [",".join(map(cell, row)) + end for row, end in zip(rows, ends, strict=True)]
    text = "".join(written).encode()
    expected = np.cumsum([len(row.encode()) for row in written]).tolist() if rows else []
    assert csv_ends(text, True).tolist() == expected
    cut = data.draw(st.integers(0, len(text)))
    found = csv_ends(text[:cut], False).tolist()
    assert found == [end for end in expected if end <= cut]


def test_kept_columns_of_json_are_what_they_were(hub: Turnout, tmp_path: Path) -> None:
    values = ["12", "1.50", '"x\\u00e9"', '[1, {"a": null}]', "null", "true", None]
    rows = [
        f'{{"a": 1, "b": 2{"" if value is None else f", {chr(34)}v{chr(34)}: {value}"}}}' for value in values
    ]
    source = lines(tmp_path / "in.ndjson", *rows)
    scored(hub, "plain", source, tmp_path / "out.ndjson", keep=("v",), part_rows=2)
    said = (tmp_path / "out.ndjson").read_text().splitlines()
    assert [line.split(',"version"')[0] for line in said] == [f'{{"v":{value or "null"}' for value in values]
    scored(hub, "plain", source, tmp_path / "out.parquet", keep=("v",))
    texts = [row["v"] for row in read(tmp_path / "out.parquet")]
    assert texts == ["12", "1.50", "xé", '[1, {"a": null}]', None, "true", None]


def test_kept_columns_have_the_type_of_the_first_file(hub: Turnout, tmp_path: Path) -> None:
    one = write(pa.table({"a": [1.0], "b": [1.0], "k": pa.array([1], pa.int16())}), tmp_path / "1.parquet")
    two = write(pa.table({"a": [1.0], "b": [1.0], "k": [2]}), tmp_path / "2.arrow")
    three, four = (
        lines(tmp_path / "3.csv", "k,a,b", "3,1,1"),
        lines(tmp_path / "4.ndjson", '{"k":4,"a":1,"b":1}'),
    )
    scored(hub, "plain", [one, two, three, four], tmp_path / "out.parquet", keep=("k",))
    found = pq.read_table(tmp_path / "out.parquet")
    assert (found["k"].to_pylist(), found["k"].type) == ([1, 2, 3, 4], pa.int16())
    bad = lines(tmp_path / "5.csv", "k,a,b", "x,1,1")
    with pytest.raises(InvalidRequest, match=r'5.csv, line 2: column "k": expected int16'):
        scored(hub, "plain", [one, bad], tmp_path / "bad.csv", keep=("k",))
    large = write(pa.table({"a": [1.0], "b": [1.0], "k": [70000]}), tmp_path / "6.parquet")
    with pytest.raises(InvalidRequest, match=r"6.parquet: column 'k': expected int16 as in the first file"):
        scored(hub, "plain", [one, large], tmp_path / "large.csv", keep=("k",))


@pytest.mark.parametrize("to", READ)
def test_every_type_can_be_kept(hub: Turnout, tmp_path: Path, to: str) -> None:
    columns = {
        "day": pa.array([0, None], pa.date32()), "time": pa.array([0, None], pa.timestamp("us")),
        "number": pa.array([1, None], pa.decimal128(9, 2)), "flag": pa.array([True, None]),
        "lists": pa.array([[[1.5], []], None]), "struct": pa.array([{"x": 1, "y": ["é"]}, None]),
        "pair": pa.array([[1.0, None], None], pa.list_(pa.float32(), 2)), "code": pa.array(["x", None]).dictionary_encode(),
        "far": pa.array([float("inf"), None]),
    }  # fmt: skip
    source = write(pa.table({"a": [1.0, 2.0], "b": [1.0, 2.0], **columns}), tmp_path / "in.parquet")
    scored(hub, "plain", source, tmp_path / f"out.{to}", keep=tuple(columns))
    found = read(tmp_path / f"out.{to}")
    if to in {"parquet", "arrow"}:
        assert [{name: row[name] for name in columns} for row in found] == pa.table(columns).to_pylist()
    elif to == "ndjson":
        assert found[1] == {**dict.fromkeys(columns), "version": "v1", "score": [6.0]}
        assert found[0]["lists"] == [[1.5], []]
        assert found[0]["struct"] == {"x": 1, "y": ["é"]}
        assert (found[0]["pair"], found[0]["far"], found[0]["day"]) == ([1.0, None], None, "1970-01-01")
    else:
        assert (found[0]["lists"], found[0]["pair_0"], found[0]["pair_1"], found[0]["struct_x"]) == (
            "[[1.5],[]]",
            "1",
            "",
            "1",
        )
        assert {found[1][name] for name in ("day", "lists", "pair_0", "struct_x", "flag")} == {""}


# --- what is wrong --------------------------------------------------------------------------------------------------

HOSTILE = {
    "ragged.csv": ("a,b\n1,2\n3\n5,6\n", "line 3: expected 2 columns, found 1"),
    "long.csv": ("a,b\n1,2\n3,4,5\n", "line 3: expected 2 columns, found 3"),
    "type.csv": ("a,b\n1,2\n\n3,x\n", 'line 4: feature "b": expected a number, found the string "x"'),
    "huge.csv": ("a,b\n1,2\n3,1e999\n", 'line 3: feature "b": expected a number that fits float32, found inf'),
    "null.csv": ("a,b\n1,2\n3,\n", 'line 3: feature "b": expected a number that fits float32, found null'),
    "utf.csv": ("a,b\n1,2\n\udcff,4\n", "line 3: expected text in UTF-8"),
    "line.ndjson": ('{"a":1,"b":2}\nnonsense\n', "line 2: expected a JSON object"),
    "list.ndjson": ('{"a":1,"b":2}\n\n[1,2]\n', "line 3: expected a JSON object"),
    "two.ndjson": ('{"a":1,"b":2}\n{"a":1,"b":2} {"a":1,"b":2}\n', "line 2: expected a JSON object"),
    "cut.ndjson": ('{"a":1,"b":2}\n{"a":1,"b', "line 2: expected a JSON object"),
    "utf.ndjson": ('{"a":1,"b":2}\n{"a":1,"b":2,"\udcff":1}\n', "line 2: expected a JSON object"),
    "lone.ndjson": ('{"a":1,"b":2}\n{"a":1,"b":"\\ud800x"}\n', "line 2: "),
    "type.ndjson": ('{"a":1,"b":2}\n{"a":1,"b":"x"}\n', 'line 2: feature "b": expected a number that fits float32, found the string "x"'),
    "less.ndjson": ('{"a":1,"b":2}\n{"a":1}\n', 'line 2: feature "b" is missing and has no default'),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_row_is_named_or_skipped(hub: Turnout, tmp_path: Path, name: str) -> None:
    text, said = HOSTILE[name]
    source = tmp_path / name
    source.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidRequest) as caught:
        scored(hub, "plain", source, tmp_path / "out.parquet")
    assert f"{source}, {said}" in str(caught.value)
    assert "(byte" not in str(caught.value) or "on the line" in str(caught.value)
    assert caught.value.row == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for to in READ:
        report = scored(hub, "plain", source, tmp_path / f"out.{to}", on_error="skip")
        assert report.errors == 1
        assert sum(report.counts.values()) == report.rows - 1
    rows = read(tmp_path / "out.ndjson")
    assert [row["error"] is None for row in rows] == [number != 1 for number in range(len(rows))]
    assert rows[1]["score"] is None
    assert str(caught.value).endswith(f": {rows[1]['error']['detail']}")
    assert read(tmp_path / "out.csv")[1]["error_detail"] == rows[1]["error"]["detail"]


def test_what_is_kept_of_bad_rows_is_kept(hub: Turnout, tmp_path: Path) -> None:
    arms(hub, 2)
    source = lines(tmp_path / "in.csv", "k,a,b,entity_id", "p,1,2,u1", "q,x,2,u2", "r", "s,1,2,u4", "t,1,,u5")
    scored(hub, "split", source, tmp_path / "out.ndjson", keep=("k",), on_error="skip")
    rows = read(tmp_path / "out.ndjson")
    assert [row["k"] for row in rows] == ["p", "q", None, "s", "t"]
    assert [row["error"] is None for row in rows] == [True, False, False, True, False]
    assert [rows[0]["version"], rows[3]["version"]] == [
        hub.select_version("split", entity) for entity in ("u1", "u4")
    ]


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_many_bad_rows(hub: Turnout, tmp_path: Path, share: float) -> None:
    random = np.random.default_rng(1)
    bad = random.random(2000) < share
    source = lines(
        tmp_path / "in.csv", "a,b", *["1,x" if wrong else f"{row},2" for row, wrong in enumerate(bad)]
    )
    assert (
        scored(hub, "plain", source, tmp_path / "out.ndjson", on_error="skip", part_rows=1500).errors
        == bad.sum()
    )
    for row, (wrong, found) in enumerate(zip(bad, read(tmp_path / "out.ndjson"), strict=True)):
        assert found["score"] == (None if wrong else [row + 4])


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "csv.gz"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named(
    hub: Turnout, tmp_path: Path, table: pa.Table, kind: str, share: float
) -> None:
    source = tmp_path / f"in.{'arrow' if kind == 'stream' else kind}"
    if kind == "csv.gz":
        source.write_bytes(gzip.compress(write(table, tmp_path / "in.csv").read_bytes()))
    else:
        write(table, source, kind)
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InvalidRequest, match=r"/in\.\S+ (cannot be read|is empty)"):
        scored(hub, "plain", source, tmp_path / "out.csv")
    assert not list(tmp_path.glob("out*"))


def test_an_empty_csv_has_no_header(hub: Turnout, tmp_path: Path) -> None:
    source = lines(tmp_path / "in.csv")
    with pytest.raises(InvalidRequest, match="is empty: expected a header"):
        scored(hub, "plain", source, tmp_path / "out.csv")


@pytest.mark.parametrize("text", ['a,b\n1,2\n3,"4\n', 'a,b\n1,2\n5"",2\n3,"4\n'])
def test_a_csv_that_ends_within_quotes_was_cut_off(hub: Turnout, tmp_path: Path, text: str) -> None:
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(InvalidRequest, match="ends within quotes"):
        scored(hub, "plain", tmp_path / "in.csv", tmp_path / "out.csv")


def test_a_quote_that_is_never_closed_does_not_take_all_memory(
    hub: Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.score.rows.LONGEST", 1000)
    monkeypatch.setattr("turnout.score.rows.BLOCK", 100)
    source = lines(tmp_path / "in.csv", "a,b", "1,2", '3,"4', *["5,6"] * 1000)
    with pytest.raises(InvalidRequest, match="behind line 2 is longer than 1000 bytes; is a quote left open"):
        scored(hub, "plain", source, tmp_path / "out.csv")
    lines(tmp_path / "in.csv", "a,b", *["5,6"] * 1000)
    assert scored(hub, "plain", source, tmp_path / "out.csv").rows == 1000


@pytest.mark.parametrize(
    ("model", "columns", "options", "said"),
    [
        ("plain", {"a": [1.0]}, {}, "feature 'b' of version v1 is missing"),
        ("plain", {"a": [1.0]}, {"on_error": "skip"}, "feature 'b' of version v1 is missing"),
        ("plain", {"a": [1.0], "b": [[1.0]]}, {}, "column b: expected numbers, booleans or strings"),
        ("plain", {"x": [1.0]}, {"version": "v1"}, "feature 'a' of version v1 is missing"),
        ("plain", {"a": [1.0], "b": [1.0]}, {"keep": ("k",)}, "expected one column 'k', found none"),
        ("plain", {"a": [1.0], "b": [1.0]}, {"entity": "who"}, "expected one column 'who', found none"),
        ("plain", {"a": [1.0], "b": [1.0]}, {"keep": ("a", "a")}, "named twice"),
        ("plain", {"a": [1.0], "b": [1.0], "version": ["x"]}, {"keep": ("version",)}, "version and error"),
        ("plain", {"a": [1.0], "b": [1.0], "error": ["x"]}, {"keep": ("error",), "on_error": "skip"}, "version and error"),
        ("plain", {"a": [1.0], "b": [1.0]}, {"part_rows": 0}, "at least one row"),
        ("plain", {"a": [1.0], "b": [1.0]}, {"on_error": "no"}, "on_error"),
        ("unnamed", {"a": [1.0], "b": [1.0]}, {}, "features without names"),
        ("image", {"a": [1.0]}, {}, "tensors"),
        ("split", {"a": [1.0], "b": [1.0], "entity_id": [1.5]}, {}, "an entity id is a string or an integer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_what_cannot_be_scored_is_refused(
    hub: Turnout, tmp_path: Path, model: str, columns: Any, options: Any, said: str, kind: str
) -> None:
    arms(hub, 2)
    source = write(pa.table(columns), tmp_path / f"in.{kind}")
    with pytest.raises(InvalidRequest, match=said):
        scored(hub, model, source, tmp_path / "out.parquet", **options)
    assert len(list(tmp_path.iterdir())) == 1


def test_models_that_cannot_answer(hub: Turnout, tmp_path: Path, table: pa.Table) -> None:
    source = write(table, tmp_path / "in.parquet")
    with pytest.raises(NoActiveVersion, match="idle has no active version"):
        scored(hub, "idle", source, tmp_path / "out.csv")
    with pytest.raises(VersionNotFound):
        scored(hub, "plain", source, tmp_path / "out.csv", version="v9")
    assert scored(hub, "idle", source, tmp_path / "out.csv", version="v1").rows == ROWS


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_columns_that_come_twice(hub: Turnout, tmp_path: Path, kind: str) -> None:
    """It matters only for those that are read."""
    column = pa.array([1.0])
    unread = write(pa.Table.from_arrays([column] * 4, ["a", "x", "x", "b"]), tmp_path / f"1.{kind}")
    assert scored(hub, "plain", unread, tmp_path / "out.csv").rows == 1
    feature = write(pa.Table.from_arrays([column] * 3, ["a", "a", "b"]), tmp_path / f"2.{kind}")
    with pytest.raises(InvalidRequest, match="expected one column 'a', found 2"):
        scored(hub, "plain", feature, tmp_path / "2.ndjson")
    with pytest.raises(InvalidRequest, match="expected one column 'x', found 2"):
        scored(hub, "plain", unread, tmp_path / "3.ndjson", keep=("x",))


def test_a_kept_column_may_be_called_as_an_output(hub: Turnout, tmp_path: Path) -> None:
    source = write(
        pa.table({"a": [1.0], "b": [1.0], "score": ["mine"], "score_0": ["too"]}), tmp_path / "in.parquet"
    )
    scored(hub, "plain", source, tmp_path / "out.ndjson", keep=("score",))
    assert read(tmp_path / "out.ndjson") == [{"score": "mine", "version": "v1", "output_score": [3.0]}]
    clash = write(pa.table({"a": [1.0], "b": [1.0], "score_0": ["x"]}), tmp_path / "clash.parquet")
    with pytest.raises(InvalidRequest, match="two columns 'score_0'"):
        scored(hub, "plain", clash, tmp_path / "out.csv", keep=("score_0",))


def test_the_first_bad_row_is_the_one_that_is_named(hub: Turnout, tmp_path: Path) -> None:
    """Whichever part is answered first, and whoever finds it: the reader or the version."""
    rows = ["1,2"] * 300
    rows[150], rows[140], rows[299] = "x,2", "1,", "1"
    source = lines(tmp_path / "in.csv", "a,b", *rows)
    for part_rows in (7, 100, 1000):
        with pytest.raises(InvalidFeatures, match=r"line 142: .* found null"):
            scored(hub, "plain", source, tmp_path / "out.csv", part_rows=part_rows, overwrite=True)


# --- what is there already ------------------------------------------------------------------------------------------


def test_an_output_is_not_replaced_unasked(hub: Turnout, tmp_path: Path, table: pa.Table) -> None:
    source, out = write(table, tmp_path / "in.parquet"), tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(Conflict, match="is there already: --overwrite"):
        scored(hub, "plain", source, out)
    with pytest.raises(Conflict, match="is there already: --overwrite"):
        scored(hub, "plain", source, out, resume=True)
    assert out.read_text() == "mine"
    scored(hub, "plain", source, out, overwrite=True)
    assert len(read(out)) == ROWS
    with pytest.raises(InvalidRequest, match="in the folder"):
        scored(hub, "plain", tmp_path, tmp_path / "sub" / "out.csv")
    with pytest.raises(InvalidRequest, match="is an input, too"):
        scored(hub, "plain", source, source, overwrite=True)
    with pytest.raises(StorageError, match="cannot be written"):
        scored(hub, "plain", source, tmp_path / "nowhere" / "out.csv")


class Stop(BaseException):
    """What a kill is to these tests."""


def stopped(
    hub: Turnout, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int = 3, **options: Any
) -> None:
    """Begin a run and end it after some parts."""
    begun = scoring.Work.write
    with monkeypatch.context() as patched:

        def write(self: Any, number: int, answered: Any) -> None:
            if number >= after:
                raise Stop
            begun(self, number, answered)

        patched.setattr(scoring.Work, "write", write)
        with pytest.raises(Stop):
            scored(hub, "split", source, out, threads=1, **options)


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("to", [*READ, "folder"])
def test_a_run_goes_on(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch, kind: str, to: str
) -> None:
    """With the versions and the ledger that it began with, and without answering a part again."""
    arms(hub, 2)
    source = write(table, tmp_path / f"in.{kind}")
    name = "folder" if to == "folder" else f"out.{to}"
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    out, whole = f"{tmp_path}/1/{name}", f"{tmp_path}/2/{name}"
    if to == "folder":
        out, whole = f"{out}/", f"{whole}/"
    first = scored(hub, "split", source, whole, keep=("note",))
    stopped(hub, source, out, monkeypatch, keep=("note",))  # pyright: ignore
    arms(hub, 4)
    try:
        with pytest.raises(Conflict, match="--resume goes on with it"):
            scored(hub, "split", source, out, keep=("note",))
        again = scored(hub, "split", source, out, keep=("note",), resume=True)
    finally:
        arms(hub, 0)
    assert (again.rows, again.scored, first.scored) == (ROWS, ROWS - 3 * 64, ROWS)
    assert (again.counts, again.test, again.ledger_revision) == (first.counts, first.test, 1)
    files = [
        path.relative_to(tmp_path / "1") for path in sorted((tmp_path / "1").rglob("*")) if path.is_file()
    ]
    assert files == [
        path.relative_to(tmp_path / "2") for path in sorted((tmp_path / "2").rglob("*")) if path.is_file()
    ]
    for path in files:
        if path.name != f"{name}.json":
            assert (tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes()
    assert scored(hub, "split", source, out, keep=("note",), resume=True) == again  # nothing is left to do


def test_another_run_does_not_go_on(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms(hub, 2)
    source, out = write(table, tmp_path / "in.parquet"), tmp_path / "out.csv"
    stopped(hub, source, out, monkeypatch)
    for options, said in (
        ({"part_rows": 65}, "part_rows was 64 and is 65"),
        ({"on_error": "skip"}, "on_error was 'fail' and is 'skip'"),
        ({"keep": ("note",)}, r"keep was \(\) and is \('note',\)"),
        ({"version": "v1"}, "version was None and is 'v1'"),
    ):
        with pytest.raises(Conflict, match=said):
            scored(hub, "split", source, out, resume=True, **options)
    with pytest.raises(Conflict, match="model was 'split' and is 'plain'"):
        scored(hub, "plain", source, out, resume=True)
    copy = write(table, tmp_path / "in2.parquet")
    with pytest.raises(Conflict, match=r"in2.parquet was not among the inputs"):
        scored(hub, "split", [source, copy], out, resume=True)
    os.utime(source, ns=(1, 1))
    with pytest.raises(Conflict, match=r"in.parquet has changed"):
        scored(hub, "split", source, out, resume=True)
    assert scored(hub, "split", source, out, overwrite=True).scored == ROWS


def test_a_run_whose_version_is_gone_does_not_go_on(
    tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    with turnout.open(tmp_path / "data") as hub:
        (tmp_path / "m.onnx").write_bytes(linear_matrix([1, 2]))
        for version in ("v1", "v2"):
            hub.register_version("split", version, tmp_path / "m.onnx", features=["a", "b"])
        hub.activate_version("split", "v1")
        source, out = write(table, tmp_path / "in.parquet"), tmp_path / "out.csv"
        stopped(hub, source, out, monkeypatch)
        hub.activate_version("split", "v2")
        hub.delete_version("split", "v1")
        with pytest.raises(Conflict, match="version v1 of model split is not what it was"):
            scored(hub, "split", source, out, resume=True)


def test_the_model_may_change_while_it_answers(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms(hub, 0)
    written = scoring.Work.write

    def write_and_release(self: Any, number: int, answered: Any) -> None:
        if number == 2:
            hub.activate_version("plain", "v2")
            hub.predict("plain", [1, 2])
        written(self, number, answered)

    monkeypatch.setattr(scoring.Work, "write", write_and_release)
    try:
        report = scored(hub, "plain", write(table, tmp_path / "in.csv"), tmp_path / "out.csv", threads=1)
    finally:
        hub.rollback("plain")
    assert report.counts == {"v1": ROWS}


def test_an_input_that_changes_while_it_is_read(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(table, tmp_path / "in.parquet"), tmp_path / "out.csv"
    written = scoring.Work.write

    def write_and_touch(self: Any, number: int, answered: Any) -> None:
        os.utime(source, ns=(1, 1))
        written(self, number, answered)

    monkeypatch.setattr(scoring.Work, "write", write_and_touch)
    with pytest.raises(Conflict, match=r"in.parquet has changed while it was read"):
        scored(hub, "plain", source, out)
    assert not out.exists()


def test_a_full_disk_loses_nothing(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(table, tmp_path / "in.parquet"), tmp_path / "out.csv"
    synced = os.fsync
    left = iter(range(100))

    def full(file: int) -> None:
        if next(left) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(file)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left on device; --resume goes on"):
            scored(hub, "plain", source, out, threads=1)
    assert not out.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    report = scored(hub, "plain", source, out, resume=True)
    assert 0 < report.scored < report.rows == ROWS
    scored(hub, "plain", source, tmp_path / "whole.csv")
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_two_processes_do_not_write_one_output(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(table, tmp_path / "in.parquet"), tmp_path / "out.csv"
    begun = scoring.Work.write
    refused: list[str] = []

    def write_twice(self: Any, number: int, answered: Any) -> None:
        with pytest.raises(Conflict) as caught:
            scored(hub, "plain", source, out, resume=True)
        refused.append(str(caught.value))
        begun(self, number, answered)

    monkeypatch.setattr(scoring.Work, "write", write_twice)
    scored(hub, "plain", source, out)
    assert refused == [f"another process is writing {out}"] * 8


def test_no_more_parts_are_in_memory_than_can_be_answered(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(table, tmp_path / "in.csv")
    read, written = 0, 0
    most = 0
    begun, cut = scoring.Work.write, running.parts

    def counted(*arguments: Any) -> Any:
        nonlocal read, most
        for part in cut(*arguments):
            read += 1
            most = max(most, read - written)
            yield part

    def write_part(self: Any, number: int, answered: Any) -> None:
        nonlocal written
        begun(self, number, answered)
        written += 1

    monkeypatch.setattr(running, "parts", counted)
    monkeypatch.setattr(scoring.Work, "write", write_part)
    scored(hub, "plain", source, tmp_path / "out.csv", part_rows=5, threads=2)
    assert read == written == 100
    assert most <= 2 + 2 + 1  # at work or waiting, and the one that is being read


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "ndjson"])
def test_a_file_is_not_read_whole(tmp_path: Path, kind: str) -> None:
    """Even where it is one row group, or one batch."""
    rows = 500_000 if kind in {"parquet", "arrow"} else 100_000
    source, columns = tmp_path / f"in.{kind}", {"a": np.random.default_rng(0).normal(size=rows)}
    if kind == "parquet":
        pq.write_table(
            pa.table({**columns, "b": columns["a"]}), source, row_group_size=rows, use_dictionary=False
        )
    elif kind == "arrow":
        pa.feather.write_feather(
            pa.table({**columns, "b": columns["a"]}), source, chunksize=rows, compression="uncompressed"
        )
    else:
        write(pa.table({**columns, "b": columns["a"]}), source)
    before = pa.total_allocated_bytes()
    opened = open_source(
        Input(path=str(source), format=kind, size=source.stat().st_size, modified=0), 0, verbatim=False
    )
    wanted = Wanted({"a": "float", "b": "float"}, None, ())
    most = read = 0
    for part in parts(opened, wanted, 4096, lambda _: False):
        loaded = opened.load(part.rows, part.first, wanted, skip=False)
        read += loaded.size
        most = max(most, pa.total_allocated_bytes() - before)
        assert part.size == loaded.size <= 4096
    assert read == rows
    assert most < source.stat().st_size / 2


# --- the command ----------------------------------------------------------------------------------------------------


def command(hub: Turnout, *arguments: str, fails: int = 0) -> Any:
    done = CliRunner().invoke(commands, ["--data", str(hub.data), *arguments], obj=Context())
    assert done.exit_code == fails, (done.output, done.exception)
    return done


def test_the_command(hub: Turnout, tmp_path: Path, table: pa.Table) -> None:
    arms(hub, 2)
    source, out = write(table, tmp_path / "in.csv"), tmp_path / "out.parquet"
    options = ["--keep", "note,entity_id", "--keep", "other", "--part-rows", "100", "--threads", "2"]
    done = command(hub, "--json", "score", "split", str(source), str(out), *options)
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out.parquet.json").read_text())
    assert (report["rows"], report["parts"], report["ledger_revision"]) == (ROWS, 5, 1)
    assert report["versions"] == {v.version: v.artifact.sha256 for v in hub.list_versions("split")[:2]}
    assert report["request"]["inputs"][0]["path"] == str(source)
    assert pq.read_schema(out).names == ["note", "entity_id", "other", "version", "score"]
    assert "is there already" in str(command(hub, "score", "split", str(source), str(out), fails=1).exception)
    people = command(hub, "score", "split", str(source), str(out), "--overwrite", "--version", "v2")
    assert "by v2" in people.stdout
    assert "500" in people.stdout
    refused = CliRunner().invoke(commands, ["--url", "http://x", "score", "m", "a", "b"], obj=Context())
    assert "works on this machine" in refused.output


@pytest.mark.parametrize("to", ["ndjson", "csv"])
def test_the_standard_output(hub: Turnout, tmp_path: Path, table: pa.Table, to: str) -> None:
    arms(hub, 2)
    source, out = write(table, tmp_path / "in.csv"), tmp_path / f"out.{to}"
    command(hub, "score", "split", str(source), str(out), "--keep", "note", "--part-rows", "70")
    piped = command(
        hub, "score", "split", str(source), "-", "--keep", "note", "--part-rows", "70", "--to", to
    )
    assert piped.stdout_bytes == out.read_bytes()
    for wrong, said in (
        (("--resume",), "cannot be resumed"),
        (("--to", "parquet"), "expected csv or ndjson"),
    ):
        done = command(hub, "score", "split", str(source), "-", *wrong, fails=1)
        assert said in str(done.exception)


def test_an_interrupt_says_how_to_go_on(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "score", interrupted)
    source = write(table, tmp_path / "in.csv")
    done = command(hub, "score", "plain", str(source), str(tmp_path / "out.csv"), fails=130)
    assert done.stderr == "turnout: interrupted; --resume goes on with it\n"


def test_a_terminal_shows_how_far_it_is(hub: Turnout, tmp_path: Path, table: pa.Table) -> None:
    """Rows, rows a second and the time that is left; and what a run that goes on has left."""
    source, out = write(table, tmp_path / "in.csv"), str(tmp_path / "out.csv")
    main, sub = pty.openpty()
    arguments = ["--data", str(hub.data), "score", "plain", str(source), out, "--part-rows", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "turnout", *arguments],
        stdout=subprocess.PIPE,
        stderr=sub,
        env={**os.environ, "COLUMNS": "120"},
    )
    os.close(sub)
    said = b""
    with contextlib.suppress(OSError):  # what the kernel says when the other end is closed
        while block := os.read(main, 4096):
            said += block
    os.close(main)
    assert process.wait(20) == 0
    assert process.stdout is not None
    assert b"500" in process.stdout.read()
    process.stdout.close()
    assert re.search(rb"scoring .*\d+ rows, [\d,]+ a second, \d+:\d\d left", said), said
