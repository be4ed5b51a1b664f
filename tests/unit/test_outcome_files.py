"""Outcomes from files of every kind, sound and hostile, and exposures and outcomes to files."""

from __future__ import annotations

import gzip
import json
import resource
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

import turnout
from models import constant_label
from turnout.errors import InvalidRequest, ModelNotFound, StorageError
from turnout.experiment import exports
from turnout.experiment.exports import export_outcomes
from turnout.experiment.files import Imported, import_outcomes
from turnout.experiment.outcomes import Attributed, Outcome, read_outcome
from turnout.experiment.writer import Logged

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {"model": "m", "metric": "bought", "value": 1, "entity_id": "u1", "time": NOON, "id": "a"},
    {"model": "m", "metric": "spent", "value": -2.5, "entity_id": "ü\n2", "id": "b"},
    {"model": "m", "metric": "liked", "value": True, "prediction_id": "p.1", "time": NOON},
    {"model": "m", "metric": "truth", "value": 'yes, "really"', "entity_id": "u3"},
]


class Recorder:
    """Takes outcomes as `Turnout.record_outcomes` does."""

    def __init__(self) -> None:
        self.calls: list[list[Outcome]] = []

    def __call__(self, given: list[Any]) -> list[Attributed]:
        self.calls.append(given)
        return [Attributed("attributed", version="v1") for _ in given]

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for call in self.calls for outcome in call]


def texts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: part.isoformat() if isinstance(part, datetime) else part for name, part in row.items()}


def ndjson(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(texts(row)).encode() + b"\n" for row in rows)


def csv(rows: list[dict[str, Any]], names: tuple[str, ...] = Outcome.__struct_fields__) -> bytes:
    def cell(part: Any) -> str:
        text = str(part).lower() if isinstance(part, bool) else str(part)
        return '"' + text.replace('"', '""') + '"' if {",", '"', "\n"} & set(text) else text

    lines = [",".join(cell(texts(row).get(name, "")) for name in names) for row in rows]
    return "\r\n".join([",".join(names), *lines, ""]).encode()


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """A table whose values are text, since a column has one type."""
    return pa.Table.from_pylist(
        [{**row, "value": str(row["value"])} for row in rows],
        pa.schema(
            [
                (name, pa.timestamp("us", "UTC") if name == "time" else pa.string())
                for name in Outcome.__struct_fields__
            ]
        ),
    )


def write(path: Path, content: pa.Table | bytes) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    elif path.suffix == ".parquet":
        parquet.write_table(content, path, row_group_size=max(3, content.num_rows // 2))
    else:
        with ipc.new_file(path, content.schema) as writer:
            writer.write_table(content, max_chunksize=max(3, content.num_rows // 2))
    return path


def taken(path: Path, **options: Any) -> tuple[list[Outcome], Imported]:
    record = Recorder()
    found = import_outcomes(path, record, **options)
    return record.outcomes, found


# --- every format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["o.ndjson", "o.jsonl", "o.NDJSON", "o.ndjson.gz", "o.jsonl.gz"])
def test_ndjson_says_what_it_says(name: str, tmp_path: Path) -> None:
    outcomes, found = taken(write(tmp_path / name, ndjson(ROWS)))
    assert outcomes == [read_outcome(row) for row in ROWS]
    assert found == Imported(4, dict.fromkeys(found.counts, 0) | {"attributed": 4})
    assert set(found.counts) == {"attributed", "late", "duplicate", "unexposed", "invalid"}


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz"])
@pytest.mark.parametrize("front", [b"", b"\xef\xbb\xbf"])
def test_csv_says_the_same(name: str, front: bytes, tmp_path: Path) -> None:
    outcomes, found = taken(write(tmp_path / name, front + csv(ROWS)))
    assert outcomes == [read_outcome(row) for row in ROWS]
    assert found.counts["attributed"] == found.rows == 4


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow"])
def test_tables_say_the_same(name: str, tmp_path: Path) -> None:
    outcomes, _ = taken(write(tmp_path / name, table(ROWS)))
    assert outcomes == [read_outcome({**row, "value": str(row["value"])}) for row in ROWS]


def test_a_stream_of_arrow_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "o.arrow"
    with ipc.new_stream(path, table(ROWS).schema) as writer:
        writer.write_table(table(ROWS), max_chunksize=3)
    assert len(taken(path)[0]) == 4
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidRequest, match="cut off"):
        taken(path)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("7", 7), ("-7", -7), ("+7", 7), ("0", 0), ("2.5", 2.5), (".5", 0.5), ("1e3", 1000.0), ("3.", 3.0),
        ("true", True), ("False", False), ("TRUE", True), ("yes", "yes"), ("007", "007"), ("1_000", "1_000"),
        (" 1", " 1"), ("nan", "nan"), ("inf", "inf"), ("٣", "٣"), ("0x10", "0x10"), ("1,5", "1,5"),
        ("123456789012345678", 123456789012345678),
    ],
)  # fmt: skip
def test_a_value_in_csv_is_what_it_looks_like(cell: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "o.csv", f'entity_id,value\nu1,"{cell}"\n'.encode())
    [outcome], _ = taken(path, model="m", metric="x")
    assert (outcome.value, type(outcome.value)) == (value, type(value))


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (pa.array([1, 0], pa.int8()), [1, 0]),
        (pa.array([1.5, 2.0], pa.float32()), [1.5, 2.0]),
        (pa.array([1.5, 2.0], pa.float16()), [1.5, 2.0]),
        (pa.array([True, False]), [True, False]),
        (pa.array([Decimal("1.25"), Decimal(2)], pa.decimal128(10, 2)), [1.25, 2.0]),
        (pa.array(["no", "yes"], pa.large_string()), ["no", "yes"]),
        (pa.array(["no", "yes"], pa.string_view()), ["no", "yes"]),
        (pa.array(["no", "yes"]).dictionary_encode(), ["no", "yes"]),
    ],
    ids=lambda part: str(part.type) if isinstance(part, pa.Array) else "",
)
def test_values_of_arrow_keep_their_types(array: pa.Array, values: list[Any], tmp_path: Path) -> None:
    content = pa.table({"entity_id": ["u1", "u2"], "value": array})
    for name in ("o.parquet", "o.arrow"):
        if name == "o.parquet" and array.type in {pa.float16(), pa.string_view()}:
            continue
        outcomes, _ = taken(write(tmp_path / name, content), model="m", metric="x")
        assert [outcome.value for outcome in outcomes] == values


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_a_timestamp_without_a_zone_is_in_utc(unit: str, zone: str | None, tmp_path: Path) -> None:
    times = pa.array([NOON.replace(tzinfo=None), None], pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    content = pa.table({"entity_id": ["u1", "u2"], "value": [1, 1], "time": times})
    outcomes, _ = taken(write(tmp_path / "o.arrow", content), model="m", metric="x")
    assert [outcome.time for outcome in outcomes] == [NOON, None]


def test_a_timestamp_that_python_does_not_have_is_one_invalid_row(tmp_path: Path) -> None:
    times = pa.array([2**62, 0], pa.int64()).cast(pa.timestamp("s"))
    content = pa.table({"entity_id": ["u1", "u2"], "value": [1, 1], "time": times})
    outcomes, found = taken(write(tmp_path / "o.arrow", content), model="m", metric="x")
    assert [outcome.entity_id for outcome in outcomes] == ["u2"]
    assert (found.problems[0].row, found.counts["invalid"]) == (1, 1)
    assert "time" in found.problems[0].detail


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    """Integers of which some are missing are doubles there, and what is left of a table keeps its index."""
    import pandas as pd

    frame = pd.DataFrame({"entity_id": [7, None, 9], "value": [1.0, 2.0, 3.0], "id": [1, 2, 3]})
    frame = frame.iloc[[2, 0, 1]]
    frame.to_parquet(tmp_path / "o.parquet")
    assert "__index_level_0__" in parquet.read_schema(tmp_path / "o.parquet").names
    outcomes, found = taken(tmp_path / "o.parquet", model="m", metric="x")
    assert [(outcome.entity_id, outcome.id) for outcome in outcomes] == [(9, "3"), (7, "1"), (None, "2")]
    assert found.rows == 3


def test_a_row_that_names_its_model_keeps_it(tmp_path: Path) -> None:
    path = write(tmp_path / "o.csv", b"model,metric,entity_id,value\n,,u1,1\nother,clicks,u2,2\n\n")
    outcomes, _ = taken(path, model="m", metric="x")
    assert [(o.model, o.metric) for o in outcomes] == [("m", "x"), ("other", "clicks")]


# --- piece by piece -------------------------------------------------------------------------------------------------


def test_rows_are_recorded_in_pieces(tmp_path: Path) -> None:
    rows = [{"entity_id": f"u{number}", "value": 1} for number in range(25)]
    path, record, told = write(tmp_path / "o.ndjson", ndjson(rows)), Recorder(), []
    import_outcomes(path, record, model="m", metric="x", chunk=10, progress=told.append)
    assert list(map(len, record.calls)) == [10, 10, 5]
    assert told == [10, 20, 25]
    for chunk in (0, 10_001):
        with pytest.raises(InvalidRequest, match="chunk"):
            import_outcomes(path, record, model="m", metric="x", chunk=chunk)


def test_long_texts_make_the_pieces_smaller(tmp_path: Path) -> None:
    rows = [{"entity_id": "u" * 60_000 + str(number), "value": 1} for number in range(100)]
    record = Recorder()
    import_outcomes(write(tmp_path / "o.ndjson", ndjson(rows)), record, model="m", metric="x")
    assert len(record.calls) == 2
    assert len(record.outcomes) == 100


@pytest.mark.parametrize("name", ["o.ndjson.gz", "o.csv.gz", "o.parquet", "o.arrow"])
def test_a_file_is_never_in_memory_as_a_whole(name: str, tmp_path: Path) -> None:
    count = 20_000
    rows = [{"entity_id": "u" * 600, "value": 1}] * count
    names = ("entity_id", "value")
    if "ndjson" in name or "csv" in name:
        content: Any = ndjson(rows) if "ndjson" in name else csv(rows, names)
    else:
        content = pa.Table.from_pylist(rows)
    path = write(tmp_path / name, content)
    seen = 0

    def record(given: list[Any]) -> list[Attributed]:
        nonlocal seen
        seen += len(given)
        return [Attributed("unexposed")] * len(given)

    del rows, content
    import_outcomes(write(tmp_path / "o.csv", b"entity_id,value\n"), record, model="m", metric="x")
    tracemalloc.start()
    try:
        import_outcomes(path, record, model="m", metric="x", chunk=1000)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == count
    assert most < 8 * 2**20  # the texts alone are 12 MB


# --- hostile files --------------------------------------------------------------------------------------------------


def test_a_bad_line_does_not_hold_up_the_others(tmp_path: Path) -> None:
    lines = [
        b'{"entity_id": "u1", "value": 1}',
        b"{",
        b"[1]",
        b"",
        b'{"entity_id": "u2", "value": 2, "entity": "u2"}',
        b'{"entity_id": "u3"}',
        b'{"entity_id": "\xff", "value": 1}',
        b'{"entity_id": "\\ud800", "value": 1}',
        b'{"entity_id": "u4", "value": 1e999}',
        b'{"entity_id": "u5", "value": ' + b"9" * 400 + b"}",
        b'{"entity_id": "u6", "value": 1, "time": "yesterday"}',
        b'{"entity_id": "u7", "value": 1} {}',
        b"[" * 50_000,
        b'{"entity_id": "u8", "value": {"a": 1}}',
        b'{"entity_id": "u9", "value": null}',
        b'{"entity_id": "u10", "value": 3, "time": null}',
    ]
    outcomes, found = taken(write(tmp_path / "o.ndjson", b"\n".join(lines)), model="m", metric="x")
    assert [outcome.entity_id for outcome in outcomes] == ["u1", "u10"]
    assert [problem.row for problem in found.problems] == [2, 3, *range(5, 16)]
    assert {problem.code for problem in found.problems} == {"invalid_outcome"}
    assert (found.rows, found.counts["invalid"], found.counts["attributed"]) == (15, 13, 2)


def test_bad_rows_of_csv_are_told_by_the_line_they_begin_on(tmp_path: Path) -> None:
    lines = [
        b"entity_id,value,time",
        b'"u\n1",1,',
        b"u2,1",
        b"u3,1,,",
        b"\xff,1,",
        b'"u4"x,1,',
        b"u5,,",
        b"u6,1,2026-01-01 00:00:00Z",
        b'u7,"1',
    ]
    outcomes, found = taken(write(tmp_path / "o.csv", b"\n".join(lines)), model="m", metric="x")
    assert [outcome.entity_id for outcome in outcomes] == ["u\n1", "u6"]
    assert [problem.row for problem in found.problems] == [4, 5, 6, 7, 8, 10]
    assert "expected 3 cells, found 2" in found.problems[0].detail
    assert "UTF-8" in found.problems[2].detail


def test_only_the_first_problems_are_told_and_all_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "o.ndjson", b'x\n{"entity_id": "u", "value": 1}\n' * 50)

    def record(given: list[Any]) -> list[Attributed]:
        return [Attributed("invalid", code="invalid_metric", detail="no such metric")] * len(given)

    found = import_outcomes(path, record, model="m", metric="x", chunk=7)
    assert [problem.row for problem in found.problems] == list(range(1, 21))
    assert [problem.code for problem in found.problems[:2]] == ["invalid_outcome", "invalid_metric"]
    assert found.counts["invalid"] == found.rows == 100


@pytest.mark.parametrize("name", ["o.ndjson", "o.ndjson.gz", "o.csv", "o.csv.gz"])
def test_a_line_of_any_length_is_passed_over_in_little_memory(name: str, tmp_path: Path) -> None:
    """What comes out of a few kilobytes may be a line of gigabytes; here 64 MB stand for them."""
    heads = {"ndjson": b"", "csv": b"entity_id,value\n"}[name.split(".")[1]]
    row = {"ndjson": b'{"entity_id": "u", "value": 1}\n', "csv": b"u,1\n"}[name.split(".")[1]]
    path, block = tmp_path / name, b"x" * 2**20
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as file:
        file.write(heads + row)
        for _ in range(64):
            file.write(block)
        file.write(b"\n" + row)
    tracemalloc.start()
    try:
        outcomes, found = taken(path, model="m", metric="x")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(outcomes) == 2
    assert [problem.row for problem in found.problems] == [3 if heads else 2]
    assert "longer than" in found.problems[0].detail
    assert most < 4 * 2**20


def test_a_quote_that_is_never_closed_ends_somewhere(tmp_path: Path) -> None:
    rows = b"".join(b"u%d,1\n" % number for number in range(100_000))
    outcomes, found = taken(
        write(tmp_path / "o.csv", b'entity_id,value\nu,"1\n' + rows), model="m", metric="x"
    )
    assert found.problems[0].row == 2
    assert found.counts["invalid"] == 1
    assert outcomes[-1].entity_id == "u99999"
    assert len(outcomes) > 80_000


@pytest.mark.parametrize(
    "header",
    [
        "",
        "\n",
        "entity_id",
        "entity_id;value",
        "value",
        "entity,value",
        "entity_id,value,timestamp",
        "entity_id,value,value",
        "Entity_Id,Value",
        '"entity_id,value',
        "x" * 100_000,
    ],
)
def test_other_columns_are_refused_before_anything_is_recorded(header: str, tmp_path: Path) -> None:
    record = Recorder()
    path = write(tmp_path / "o.csv", header.encode() + b"\nu1,1,2026-01-01T00:00:00Z\n")
    with pytest.raises(InvalidRequest) as caught:
        import_outcomes(path, record, model="m", metric="x")
    assert "column" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert record.calls == []


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow"])
@pytest.mark.parametrize(
    "columns",
    [
        {"entity_id": ["u"]},
        {"value": [1]},
        {"entity_id": ["u"], "value": [1], "timestamp": ["2026-01-01T00:00:00Z"]},
        {"entity_id": ["u"], "value": [[1]]},
        {"entity_id": ["u"], "value": [{"a": 1}]},
        {"entity_id": [b"u"], "value": [1]},
        {"entity_id": ["u"], "value": [1], "time": [1767355200]},
        {"entity_id": ["u"], "value": [1], "time": pa.array([20_000], pa.date32())},
        {"prediction_id": [7], "value": [1]},
        {"entity_id": ["u"], "value": [NOON]},
    ],
    ids=str,
)
def test_tables_of_other_columns_are_refused(name: str, columns: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / name, pa.table(columns))
    with pytest.raises(InvalidRequest, match="column"):
        taken(path, model="m", metric="x")


def test_model_and_metric_come_from_somewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "o.csv", b"entity_id,value\nu,1\n")
    for options in ({}, {"model": "m"}, {"metric": "x"}):
        with pytest.raises(InvalidRequest, match="metric"):
            taken(path, **options)
    path = write(tmp_path / "o.ndjson", b'{"entity_id": "u", "value": 1}')
    assert taken(path)[1].counts["invalid"] == 1


def test_a_file_that_is_not_there_or_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, said in (
        ("no.csv", "no such file"),
        ("folder.csv", "folder"),
        ("o.xlsx", "ends with"),
        ("o", "ends with"),
        ("o.parquet.gz", "ends with"),
        ("\udcff.csv", "no such file"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            taken(tmp_path / name)


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow", "o.ndjson.gz", "o.csv.gz"])
def test_a_file_that_was_cut_off_is_damaged(name: str, tmp_path: Path) -> None:
    rows = [{**row, "id": str(number)} for number, row in enumerate(ROWS * 50)]
    content = {"ndjson": ndjson, "csv": csv}.get(name.split(".")[1], table)(rows)
    path = write(tmp_path / name, content)
    whole = path.read_bytes()
    for size in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        if size == 0 and name.endswith(".gz"):
            continue  # no bytes at all are an empty text, which the header of CSV is told of
        with pytest.raises(InvalidRequest):
            taken(path)


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow", "o.csv.gz"])
def test_no_damage_is_worse_than_an_error(name: str, tmp_path: Path) -> None:
    content = csv(ROWS) if "csv" in name else table(ROWS)
    path = write(tmp_path / name, content)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            taken(path)
        except InvalidRequest:
            refused += 1
    assert refused > 10


def test_text_that_is_none_in_a_table_is_an_invalid_row(tmp_path: Path) -> None:
    """Parquet does not look at its texts."""
    bad = pa.array([b"\xff", b"u2"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 2, bad.buffers())
    path = write(tmp_path / "o.parquet", pa.table({"entity_id": bad, "value": [1, 1]}))
    outcomes, found = taken(path, model="m", metric="x")
    assert [outcome.entity_id for outcome in outcomes] == ["u2"]
    assert "UTF-8" in found.problems[0].detail


def test_an_import_that_breaks_off_says_how_far_it_came(tmp_path: Path) -> None:
    path = write(tmp_path / "o.ndjson", ndjson([{"entity_id": "u", "value": 1}] * 5))
    calls = 0

    def record(given: list[Any]) -> list[Attributed]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StorageError("the disk is full")
        return [Attributed("attributed")] * len(given)

    with pytest.raises(StorageError, match=r"the disk is full \(4 outcomes before it are recorded") as caught:
        import_outcomes(path, record, model="m", metric="x", chunk=2)
    assert caught.value.detail == str(caught.value)


# --- with a real directory ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[turnout.Turnout]:
    """A model with a test of two versions that have answered ten entities, and an eleventh without entity."""
    with turnout.open(tmp_path / "data", device="cpu") as opened:
        for label in range(2):
            (tmp_path / f"{label}.onnx").write_bytes(constant_label(label))
            opened.register_version("m", f"v{label}", tmp_path / f"{label}.onnx", features=["a", "b"])
        opened.activate_version("m", "v0")
        opened.declare_metrics(
            "m", [{"name": "bought", "kind": "binary"}, {"name": "truth", "kind": "label"}]
        )
        opened.configure_test("m", {"v0": 0.5, "v1": 0.5})
        for number in range(10):
            opened.predict("m", [1, 2], entity_id=f"u{number}")
        yield opened


def versions(hub: turnout.Turnout) -> dict[str, str | None]:
    return {f"u{number}": hub.select_version("m", f"u{number}") for number in range(10)}


def test_an_import_is_repeated_where_rows_carry_an_id(hub: turnout.Turnout, tmp_path: Path) -> None:
    rows = [
        *({"entity_id": f"u{number}", "value": number % 2, "id": str(number)} for number in range(10)),
        {"entity_id": "stranger", "value": 1, "id": "10"},
        {"entity_id": "u1", "value": 5, "id": "11"},
    ]
    path = write(tmp_path / "o.ndjson", ndjson(rows))
    first = import_outcomes(path, hub.record_outcomes, model="m", metric="bought")
    assert first.counts == {"attributed": 10, "late": 0, "duplicate": 0, "unexposed": 1, "invalid": 1}
    assert (first.problems[0].row, first.problems[0].code) == (12, "invalid_outcome")
    again = import_outcomes(path, hub.record_outcomes, model="m", metric="bought")
    assert (again.counts["duplicate"], again.counts["unexposed"]) == (10, 1)  # who counts, counts once
    counted = hub.results("m").counts.tally.outcomes["bought"]
    assert counted == {"attributed": 10, "unexposed": 2, "duplicate": 10}


def test_what_is_exported_is_what_was_recorded(hub: turnout.Turnout, tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(seconds=60)
    prediction = hub.predict("m", [1, 2], entity_id="u3")
    given = [
        {"model": "m", "metric": "bought", "value": 1, "entity_id": "u2"},
        {"model": "m", "metric": "bought", "value": 0, "entity_id": "stranger"},
        {"model": "m", "metric": "truth", "value": 0, "prediction_id": prediction.prediction_id},
    ]
    told = hub.record_outcomes(given)
    assert [one.state for one in told] == ["attributed", "unexposed", "attributed"]

    assert hub.export_exposures("m", tmp_path / "e.parquet") == 10
    exposures = parquet.read_table(tmp_path / "e.parquet")
    assert exposures.schema.names == [
        "model", "test", "segment", "version", "entity", "time", "answered", "score", "champion",
    ]  # fmt: skip
    assert exposures.schema.field("time").type == pa.timestamp("ms", "UTC")
    expected = {hub.desk.signers.entity(name).hex(): version for name, version in versions(hub).items()}
    found = exposures.to_pylist()
    assert {row["entity"]: row["version"] for row in found} == expected
    assert {(row["model"], row["test"], row["segment"], row["answered"]) for row in found} == {
        ("m", "1", 1, True)
    }
    assert all(before < row["time"] < datetime.now(UTC) for row in found)
    assert {row["score"] for row in found} == {0.75}
    assert {row["champion"] for row in found if row["version"] == "v0"} == {0.75}

    assert hub.export_outcomes("m", str(tmp_path / "o.parquet")) == 3
    outcomes = parquet.read_table(tmp_path / "o.parquet")
    assert outcomes.schema.field("value").type == pa.float64()
    # Those whose exposure was not there at first are stored last.
    stranger, bought, truth = sorted(outcomes.to_pylist(), key=lambda row: (row["metric"], row["value"]))
    entity = hub.desk.signers.entity
    assert (bought["entity"], bought["version"]) == (entity("u2").hex(), versions(hub)["u2"])
    assert [
        (row["metric"], row["value"], row["label"], row["state"]) for row in (bought, stranger, truth)
    ] == [
        ("bought", 1.0, None, "attributed"),
        ("bought", 0.0, None, "unexposed"),
        ("truth", None, "0", "attributed"),
    ]
    assert (stranger["version"], stranger["segment"]) == (None, None)
    assert {row["entity"] for row in (bought, truth)} <= set(expected)
    assert all(before < row["received"] < datetime.now(UTC) for row in (bought, stranger, truth))
    with pytest.raises(ModelNotFound):
        hub.export_outcomes("nowhere", tmp_path / "n.parquet")
    with pytest.raises(ModelNotFound):
        hub.export_exposures("nowhere", tmp_path / "n.parquet")
    assert not (tmp_path / "n.parquet").exists()


class Many:
    """Stands for the events of a directory: outcomes by the number."""

    def __init__(self, count: int, then: Callable[[], None] = lambda: None) -> None:
        self._count = count
        self._then = then

    def outcomes(self, model: str) -> Iterator[Logged]:
        for number in range(self._count):
            yield Logged(number, number, model, 1, number.to_bytes(16, "big"), "x", float(number), "late")
        self._then()


def test_many_rows_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "GROUP", 100)
    events: Any = Many(250)
    assert export_outcomes(events, "m", tmp_path / "o.parquet") == 250
    with parquet.ParquetFile(tmp_path / "o.parquet") as file:
        assert file.metadata.num_row_groups == 3
        assert file.read().column("value").to_pylist() == list(map(float, range(250)))


def test_nothing_is_a_whole_file_too(tmp_path: Path) -> None:
    events: Any = Many(0)
    assert export_outcomes(events, "m", tmp_path / "o.parquet") == 0
    assert parquet.read_table(tmp_path / "o.parquet").num_rows == 0


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit of the process on the size of files stands for it."""
    path = tmp_path / "o.parquet"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    events: Any = Many(20_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"o\.parquet cannot be written"):
            export_outcomes(events, "m", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [file.name for file in tmp_path.iterdir()] == ["o.parquet"]
    assert path.read_bytes() == b"before"


def test_an_export_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> None:
        raise KeyboardInterrupt

    events: Any = Many(10, broken)
    with pytest.raises(KeyboardInterrupt):
        export_outcomes(events, "m", tmp_path / "o.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["nowhere/o.parquet", "."])
def test_a_place_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    events: Any = Many(1)
    with pytest.raises(StorageError, match="cannot be written"):
        export_outcomes(events, "m", tmp_path / place)
    assert list(tmp_path.iterdir()) == []
