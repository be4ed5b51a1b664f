"""Many rows at once: each is answered as it would be alone, whatever it comes in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import turnout
from models import cast_to, columns_model, constant_label, failing_model, linear_matrix, sklearn_pair
from turnout import batch
from turnout.domain import Feature
from turnout.errors import (
    InvalidFeatures,
    InvalidRequest,
    NoActiveVersion,
    PayloadTooLarge,
    PredictionFailed,
    VersionNotFound,
)
from turnout.service import Turnout

ARMS = ("v1", "v2", "v3", "v4", "v5")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    """Model `split` has five versions of different features and outputs; `trees` two that were really trained."""
    folder = tmp_path_factory.mktemp("batch")
    with turnout.open(folder / "data") as opened:

        def register(model: str, version: str, content: bytes, **words: Any) -> None:
            path = folder / "model.onnx"
            path.write_bytes(content)
            opened.register_version(model, version, path, **words)

        register("split", "v1", linear_matrix([1, 2]), features=["a", "b"])
        register("split", "v2", linear_matrix([3, 5]), features=["b", "a"])
        register("split", "v3", constant_label(7), features=[Feature("a", nullable=True), "b"])
        register("split", "v4", linear_matrix([1]), features=["b"])
        register("split", "v5", linear_matrix([2, 1]), features=[Feature("c", default=4.0), "a"])
        register("mixed", "v1", columns_model())
        opened.activate_version("split", "v1")
        opened.activate_version("mixed", "v1")
        logistic, boosting, *_ = sklearn_pair()
        register("trees", "v1", logistic)
        register("trees", "v2", boosting)
        opened.activate_version("trees", "v1")
        opened.configure_test("trees", {"v1": 0.5, "v2": 0.5})
        yield opened


def arms(hub: Turnout, count: int) -> None:
    if hub.get_test("split"):
        hub.stop_test("split")
    if count:
        hub.configure_test("split", dict.fromkeys(ARMS[:count], 1 / count))


def alone(hub: Turnout, model: str, row: Any, entity: Any, version: str | None) -> Any:
    """Version and outputs of one row, or the code and the feature of its error."""
    try:
        found = hub.predict(model, row, entity_id=entity, version=version)
    except turnout.TurnoutError as error:
        return error.code, error.feature
    return found.version, found.outputs


def same(found: Any, expected: Any) -> bool:
    """Equal but for the last digits; JSON has null for what is NaN."""
    return np.allclose(np.asarray(found, float), np.asarray(expected, float), rtol=1e-6, equal_nan=True)


def check(
    hub: Turnout, model: str, result: turnout.BatchPrediction, rows: list[Any], ids: Any, **words: Any
) -> None:
    """Every row of a batch is what `predict` says of it."""
    errors = {error.row: error for error in result.errors}
    assert len(result) == len(rows) == len(result.version_index)
    for index, row in enumerate(rows):
        expected = alone(hub, model, row, None if ids is None else ids[index], words.get("version"))
        if index in errors:
            assert (errors[index].code, errors[index].feature) == expected
            continue
        assert result.versions[result.version_index[index]] == expected[0]
        for name, column in result.outputs.items():
            value = column[index]
            if name in expected[1]:
                assert same(value, expected[1][name]), name
            else:
                assert value is None or np.isnan(value).all()


VALUES = st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6, width=32), st.just(None), st.just("text"))
ROWS = st.one_of(
    st.lists(VALUES, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["a", "b", "c", "nobody"]), VALUES, max_size=4),
    st.fixed_dictionaries({"a": st.integers(-9, 9), "b": st.integers(-9, 9)}),
)
IDS = st.one_of(st.integers(-(10**20), 10**20), st.text(max_size=8))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(ROWS, IDS), max_size=25), st.integers(0, 5))
def test_rows_are_what_each_is_alone(hub: Turnout, pairs: list[tuple[Any, Any]], count: int) -> None:
    arms(hub, count)
    rows, ids = [row for row, _ in pairs], [entity for _, entity in pairs]
    check(hub, "split", hub.predict_batch("split", rows, entity_ids=ids, on_error="skip"), rows, ids)
    for version in ("v3", "v4"):
        words = {"version": version, "on_error": "skip"}
        check(hub, "split", hub.predict_batch("split", rows, **words), rows, None, version=version)


TABLES: dict[str, Callable[[np.ndarray], Any]] = {
    "a list of lists": lambda rows: rows.tolist(),
    "a list of objects": lambda rows: [dict(zip("ab", row, strict=True)) for row in rows.tolist()],
    "columns": lambda rows: {"b": rows[:, 1], "a": rows[:, 0].tolist()},
    "float32": lambda rows: rows.astype(np.float32),
    "float64": lambda rows: rows,
    "float16": lambda rows: rows.astype(np.float16),
    "big-endian": lambda rows: rows.astype(">f8"),
    "Fortran order": np.asfortranarray,
    "every second row": lambda rows: np.repeat(rows, 2, axis=0)[::2],
    "int16": lambda rows: rows.astype(np.int16),
    "uint64": lambda rows: np.abs(rows).astype(np.uint64),
    "Arrow": lambda rows: pa.table({"b": rows[:, 1], "a": rows[:, 0]}),
    "Arrow in uneven chunks": lambda rows: pa.table(
        {
            "b": pa.chunked_array([rows[:1, 1], rows[1:, 1]]),
            "a": pa.chunked_array([rows[:5, 0].astype(np.float32), rows[5:, 0].astype(np.float32)]),
        }
    ),
    "a slice of Arrow": lambda rows: pa.table(
        {"a": np.r_[9.0, rows[:, 0]], "b": pa.array([None, *rows[:, 1].astype(int).tolist()], pa.int8())}
    ).slice(1),
    "a record batch": lambda rows: pa.record_batch({"a": rows[:, 0], "b": rows[:, 1]}),
}


@pytest.mark.parametrize("form", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("count", [0, 1, 2, 4])
@pytest.mark.parametrize("height", [1, 6, 40])
def test_every_form_of_the_same_rows_is_answered_alike(
    hub: Turnout, form: Any, count: int, height: int
) -> None:
    arms(hub, count)
    rows = np.random.default_rng(height).integers(0, 100, (height, 2)).astype(np.float64)
    ids = [f"user-{index}" if index % 2 else index for index in range(height)]
    given_rows = form(rows)
    # Without names the columns are those of the version's own schema, which not all of these have.
    named = not isinstance(given_rows, list | np.ndarray) or isinstance(given_rows[0], dict)
    version = None if named or count < 3 else "v1"
    result = hub.predict_batch("split", given_rows, entity_ids=ids, version=version)
    expected = [dict(zip("ab", row, strict=True)) for row in rows.tolist()] if named else rows.tolist()
    check(hub, "split", result, expected, ids, version=version)


def test_columns_of_every_type(hub: Turnout) -> None:
    table = pa.table(
        {
            "plan": pa.array(["basic", "gold", "basic", "é"]).dictionary_encode(),
            "age": pa.array([1, 2, 3, 4], pa.decimal128(5, 1)),
            "visits": pa.array([10, 20, 30, 40], pa.uint8()),
            "entity_id": pa.array(["a", None, "c", "d"]),
        }
    )
    result = hub.predict_batch("mixed", table)
    assert result.outputs["echo"][:, 0].tolist() == ["basic", "gold", "basic", "é"]
    assert result.outputs["score"][:, 0].tolist() == [11, 22, 33, 44]
    for kind in (pa.large_string(), pa.string_view(), pa.string()):
        again = table.set_column(0, "plan", table["plan"].cast(pa.string()).cast(kind))
        assert hub.predict_batch("mixed", again).outputs["echo"].tolist() == result.outputs["echo"].tolist()


def test_chunks_and_threads_change_nothing(hub: Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, rows, _ = sklearn_pair()
    ids = np.arange(len(rows))
    whole = hub.predict_batch("trees", rows, entity_ids=ids)
    assert whole.versions == ("v1", "v2")
    for size, threads in ((1, 1), (7, 1), (7, 3), (len(rows) - 1, 2)):
        monkeypatch.setattr(batch, "CHUNK_ROWS", size)
        part = hub.predict_batch("trees", rows, entity_ids=ids, threads=threads)
        assert (part.version_index == whole.version_index).all()
        for name, values in whole.outputs.items():
            assert np.allclose(part.outputs[name], values, rtol=1e-5, atol=1e-6), name
    names = hub.assign_many("trees", ids)
    assert [whole.versions[i] for i in whole.version_index] == [names[1][i] for i in names[0]]


def test_tables_of_pandas_and_polars_are_what_their_rows_are(hub: Turnout) -> None:
    arms(hub, 5)
    columns = {"a": [1.5, None, 3.0, -4.0], "b": [1, 2, 3, 4]}
    ids = ["x", "y", "z", "w"]
    expected = hub.predict_batch("split", pa.table(columns), entity_ids=ids, on_error="skip")
    assert len(expected.errors) < len(ids)
    frames = [
        pd.DataFrame({**columns, "entity_id": ids}, index=[7, 3, 3, 1]),
        pd.DataFrame({"entity_id": pd.Categorical(ids), **columns}).astype({"b": "Int64", "a": "float32"}),
        pl.DataFrame({**columns, "entity_id": ids}),
        pl.DataFrame({**columns, "entity_id": ids}).cast({"entity_id": pl.Categorical, "b": pl.UInt8}),
    ]
    for frame in frames:
        found = hub.predict_batch("split", frame, on_error="skip")
        assert str(found.to_arrow().to_pylist()) == str(expected.to_arrow().to_pylist())  # NaN is not itself
    mixed = {
        "amount": [1.5, 2.5],
        "count": [3, 4],
        "kind": ["a", "b"],
    }
    names = [feature.name for feature in hub.get_version("mixed", "v1").features]
    rows = dict(zip(names, mixed.values(), strict=True))
    whole = hub.predict_batch("mixed", rows).to_arrow()
    for frame in (pd.DataFrame(rows), pd.DataFrame(rows).astype({names[2]: "category"}), pl.DataFrame(rows)):
        assert hub.predict_batch("mixed", frame).to_arrow() == whole


def test_a_column_of_nulls_is_missing_in_every_row(hub: Turnout) -> None:
    for rows in (1, 8, 9, 1000):
        table = pa.table({"a": pa.nulls(rows), "b": np.ones(rows)})
        found = hub.predict_batch("split", table, version="v3")
        assert np.isnan(found.outputs["probabilities"]).all()  # nullable there, and NaN to the model
        assert len(hub.predict_batch("split", table, version="v1", on_error="skip").errors) == rows


def test_a_batch_without_rows(hub: Turnout) -> None:
    for rows in (
        [],
        np.zeros((0, 2)),
        pa.table({"a": pa.array([], pa.float32()), "b": pa.array([], pa.float32())}),
    ):
        result = hub.predict_batch("split", rows)
        assert (len(result), result.versions, dict(result.outputs), result.errors) == (0, (), {}, ())
        assert result.to_arrow().num_rows == 0


def test_a_table_of_answers_has_one_schema_whichever_versions_answered(hub: Turnout) -> None:
    arms(hub, 5)
    rows = np.arange(40.0).reshape(20, 2)
    whole = hub.predict_batch("split", {"a": rows[:, 0], "b": rows[:, 1]}, entity_ids=list(range(20)))
    table = whole.to_arrow()
    assert table.schema.names == ["version", "score", "label", "probabilities"]
    assert table.schema.field("probabilities").type == pa.list_(pa.float32(), 2)
    for entity in range(20):
        row = {"a": rows[entity : entity + 1, 0], "b": rows[entity : entity + 1, 1]}
        single = hub.predict_batch("split", row, entity_ids=[entity]).to_arrow()
        assert single.schema == table.schema
        assert single.to_pylist() == table.slice(entity, 1).to_pylist()
    assert whole.to_arrow().column("version").to_pylist() == [whole.versions[i] for i in whole.version_index]


def test_a_table_of_answers_holds_outputs_of_other_types_shapes_and_names(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data") as hub:
        path = tmp_path / "model.onnx"
        for label, (kind, shape, name) in {
            "int": ("INT64", [2], "y"),
            "float": ("FLOAT", [2], "y"),
            "text": ("STRING", [2], "y"),
            "long": ("INT64", [3], "y"),
            "flat": ("INT64", [], "y"),
            "named": ("INT64", [], "version"),
        }.items():
            path.write_bytes(cast_to(kind, shape, name))
            hub.register_version("m", label, path, features=["a"])
        hub.activate_version("m", "int")
        rows, ids = [[float(row)] for row in range(64)], list(range(64))

        def table(*labels: str, **words: Any) -> Any:
            hub.configure_test("m", dict.fromkeys(labels, 1 / len(labels)))
            return hub.predict_batch("m", rows, entity_ids=ids, **words).to_arrow()

        numbers = table("int", "float")
        assert numbers.schema.field("y").type == pa.list_(pa.float64(), 2)
        assert numbers["y"].to_pylist() == [[row, row] for row in range(64)]
        texts = table("int", "text")
        assert texts["y"].to_pylist() == [[str(row)] * 2 for row in range(64)]
        lists = table("int", "long")
        assert lists.schema.field("y").type == pa.list_(pa.int64())
        assert lists["y"].to_pylist() == [
            [row] * (3 if version == "long" else 2)
            for row, version in enumerate(lists["version"].to_pylist())
        ]
        hub.stop_test("m")
        hub.activate_version("m", "flat")
        named = table("named", "flat")
        assert named.schema.names == ["version", "y", "output_version"]
        assert [(row["y"] is None, row["output_version"] is None) for row in named.to_pylist()] == [
            (row["version"] == "named", row["version"] == "flat") for row in named.to_pylist()
        ]
        with pytest.raises(InvalidRequest, match="name a version"):
            table("int", "flat")
        rows[3] = rows[9] = ["x"]
        hub.stop_test("m")
        hub.activate_version("m", "int")
        skipped = table("int", "long", on_error="skip")
        assert skipped["y"].to_pylist()[3] is None
        assert {row: error["code"] for row, error in enumerate(skipped["error"].to_pylist()) if error} == {
            3: "invalid_features",
            9: "invalid_features",
        }


def test_the_first_bad_row_is_named(hub: Turnout) -> None:
    arms(hub, 0)
    rows = np.ones((20, 2))
    rows[13, 1], rows[17, 0] = np.nan, np.inf
    with pytest.raises(InvalidFeatures, match=r"b.*NaN") as raised:
        hub.predict_batch("split", rows)
    assert (raised.value.row, raised.value.feature) == (13, "b")
    result = hub.predict_batch("split", rows, on_error="skip")
    assert [(error.row, error.feature) for error in result.errors] == [(13, "b"), (17, "a")]
    assert np.isnan(result.outputs["score"][[13, 17]]).all()
    arrow = result.to_arrow()
    assert [arrow["score"][index].as_py() for index in (12, 13, 17)] == [[3.0], None, None]
    assert arrow["version"].to_pylist() == ["v1"] * 20


def test_errors_of_later_pieces_of_a_table_have_the_row_of_the_table(hub: Turnout) -> None:
    arms(hub, 0)
    pieces = [pa.record_batch({"a": [1.0, 2.0], "b": [1.0, last]}) for last in (2.0, None, 3.0)]
    result = hub.predict_batch("split", pa.Table.from_batches(pieces), on_error="skip")
    assert [error.row for error in result.errors] == [3]
    assert len(result) == 6
    with pytest.raises(InvalidFeatures) as raised:
        hub.predict_batch("split", pa.Table.from_batches(pieces))
    assert raised.value.row == 3


@pytest.mark.parametrize(
    ("rows", "words", "error"),
    [
        ("text", {}, InvalidRequest),
        (7, {}, InvalidRequest),
        (np.zeros(3), {}, InvalidRequest),
        (np.zeros((2, 3)), {}, InvalidFeatures),
        (np.array([["a", "b"]]), {}, InvalidRequest),
        ([[1, 2]], {"entity_ids": [1, 2]}, InvalidRequest),
        (np.ones((1, 2)), {"entity_ids": [1, 2]}, InvalidRequest),
        (np.ones((1, 2)), {"entity_ids": [1.5]}, InvalidRequest),
        ([[1, object()]], {}, InvalidRequest),
        ({"a": [1], "b": [1, 2]}, {}, InvalidRequest),
        ({"a": [1]}, {}, InvalidFeatures),
        (pa.table({"a": [1]}), {}, InvalidFeatures),
        (pa.table({"a": [1], "bb": [1]}), {}, InvalidFeatures),
        (pa.table({"a": [1], "b": [[1]]}), {}, InvalidRequest),
        (pa.table({"a": [1], "b": [1], "entity_id": [1]}), {"entity_ids": [1]}, InvalidRequest),
        ([[1, 2]], {"version": "v9"}, VersionNotFound),
        ([[1, 2]], {"on_error": "ignore"}, InvalidRequest),
    ],
)
def test_what_cannot_be_answered(
    hub: Turnout, rows: Any, words: dict[str, Any], error: type[Exception]
) -> None:
    arms(hub, 0)
    with pytest.raises(error):
        hub.predict_batch("split", rows, **words)


# --- versions that fail ---------------------------------------------------------------------------------------------


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Turnout]:
    """v1 is active; v2, which has all traffic, fails where the first feature is above 0."""
    with turnout.open(tmp_path / "data") as opened:
        for version, content in (("v1", constant_label(1)), ("v2", failing_model(2))):
            path = tmp_path / "model.onnx"
            path.write_bytes(content)
            opened.register_version("churn", version, path)
        opened.activate_version("churn", "v1")
        opened.configure_test("churn", {"v1": 0.0, "v2": 1.0})
        yield opened


FIRST = np.array([0, 0, 5, 0, 6, 0, 0], np.float32)
SOME_FAIL = np.stack([FIRST, FIRST], axis=1)


@pytest.mark.parametrize("rows", [SOME_FAIL, SOME_FAIL.tolist()], ids=["NumPy", "JSON"])
def test_the_active_version_answers_the_rows_on_which_an_arm_fails(failing: Turnout, rows: Any) -> None:
    result = failing.predict_batch("churn", rows, entity_ids=range(7))
    assert [result.versions[index] for index in result.version_index] == ["v1" if x else "v2" for x in FIRST]
    assert result.outputs["label"].tolist() == [1 if x else 2 for x in FIRST]
    assert np.isnan(result.outputs["probabilities"]).all(axis=1).tolist() == [not x for x in FIRST]
    metrics = failing.metrics().decode()
    assert 'turnout_errors_total{model="churn",reason="batch",version="v2"} 2.0' in metrics
    assert 'turnout_requests_total{model="churn",reason="batch",version="v2"} 7.0' in metrics
    assert failing.statistics().live("churn", "v2").requests == 0


def test_without_anyone_to_answer_a_row_it_is_an_error(failing: Turnout) -> None:
    with pytest.raises(PredictionFailed, match="version v2 of model churn") as raised:
        failing.predict_batch("churn", SOME_FAIL, version="v2")
    assert raised.value.row == 2
    result = failing.predict_batch("churn", SOME_FAIL, version="v2", on_error="skip")
    assert [(error.row, error.code) for error in result.errors] == [
        (2, "prediction_failed"),
        (4, "prediction_failed"),
    ]
    assert [value is None for value in result.outputs["label"].tolist()] == [bool(x) for x in FIRST]


def test_where_the_active_version_cannot_take_the_rows_the_failure_is_that_of_the_arm(
    failing: Turnout, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(failing_model(3))
    failing.register_version("churn", "v3", path, features=["a", "b"])
    path.write_bytes(linear_matrix([1, 1, 1]))
    failing.register_version("churn", "v4", path, features=["a", "b", "c"])
    failing.stop_test("churn")
    failing.activate_version("churn", "v4")
    failing.configure_test("churn", {"v4": 0.0, "v3": 1.0})
    for rows in (pa.table({"a": FIRST, "b": FIRST}), {"a": FIRST, "b": FIRST}):
        with pytest.raises(PredictionFailed, match="version v3 of model churn"):
            failing.predict_batch("churn", rows, entity_ids=list(range(7)))
        result = failing.predict_batch("churn", rows, entity_ids=list(range(7)), on_error="skip")
        assert [error.row for error in result.errors] == [2, 4]


def test_rows_of_an_arm_that_cannot_be_loaded_go_to_the_active_version(failing: Turnout) -> None:
    version = failing.get_version("churn", "v2")
    assert version is not None
    (stored,) = (
        path for path in failing.data.rglob("*") if path.is_file() and version.artifact.sha256 in str(path)
    )
    stored.chmod(0o644)
    stored.write_bytes(b"cut")
    result = failing.predict_batch("churn", SOME_FAIL, entity_ids=range(7))
    assert (result.versions, result.outputs["label"].tolist()) == (("v1",), [1] * 7)
    with pytest.raises(turnout.TurnoutError, match="version v2 of model churn"):
        failing.predict_batch("churn", SOME_FAIL, version="v2")


def test_no_version(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data") as opened:
        path = tmp_path / "model.onnx"
        path.write_bytes(linear_matrix([1, 2]))
        opened.register_version("churn", "v1", path)
        for rows in ([[1, 2]], np.ones((1, 2)), {"columns": [1]}):
            with pytest.raises(NoActiveVersion):
                opened.predict_batch("churn", rows)


# --- over HTTP, without the network ---------------------------------------------------------------------------------


def test_more_rows_than_the_setting_allows(hub: Turnout) -> None:
    small = batch.BatchPredictor(hub.live, hub.telemetry, fallback=True, most=2)
    with pytest.raises(PayloadTooLarge, match="at most 2 rows"):
        small.answer("split", None, b'{"rows":[[1,2],[1,2],[1,2]]}', "fail")
    assert msgspec.json.decode(small.answer("split", None, b'{"rows":[[1,2],[1,2]]}', "fail"))["count"] == 2


def test_a_batch_that_nobody_waits_for_ends_at_the_next_chunk(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms(hub, 0)
    monkeypatch.setattr(batch, "CHUNK_ROWS", 2)
    asked = threading.Semaphore(3)
    body = msgspec.json.encode({"rows": [[1, 2]] * 20})
    with pytest.raises(InvalidRequest, match="nobody waits"):
        hub.batches.answer("split", None, body, "fail", lambda: asked.acquire(blocking=False))


# --- where memory begins --------------------------------------------------------------------------------------------


def unaligned(values: np.ndarray) -> np.ndarray:
    """The same values, beginning at an odd address, as arrays that were unpickled from a message may."""
    memory = np.zeros(values.nbytes + 1, np.uint8)
    memory[1:] = np.frombuffer(values.tobytes(), np.uint8)
    found = np.frombuffer(memory[1:].data, values.dtype).reshape(values.shape)
    assert not found.flags.aligned
    return found


def unaligned_arrow(values: list) -> pa.Array:
    array = pa.array(values)
    buffers = [buffer and pa.py_buffer(b" " + buffer.to_pybytes()).slice(1) for buffer in array.buffers()]
    return pa.Array.from_buffers(array.type, len(array), buffers)


@pytest.mark.parametrize("version", [None, "v2"])
def test_values_may_begin_at_any_address(hub: Turnout, version: str | None) -> None:
    arms(hub, 2)
    numbers, rows = np.arange(100), np.arange(200.0).reshape(100, 2)
    texts = [f"user-{number}" for number in numbers]
    expected = hub.predict_batch("split", rows, entity_ids=numbers, version=version).to_arrow()
    for ids in (unaligned(numbers), unaligned(numbers.astype(np.uint64)), unaligned_arrow(numbers.tolist())):
        for given_rows in (unaligned(rows), unaligned(np.asfortranarray(rows).T).T):
            found = hub.predict_batch("split", given_rows, entity_ids=ids, version=version)
            assert found.to_arrow() == expected
        assert (hub.assign_many("split", ids)[0] == hub.assign_many("split", numbers)[0]).all()
    table = {"a": rows[:, 0].tolist(), "b": rows[:, 1].tolist(), "entity_id": texts}
    moved = pa.table({name: unaligned_arrow(values) for name, values in table.items()})
    found = hub.predict_batch("split", moved, version=version)
    assert found.to_arrow() == hub.predict_batch("split", pa.table(table), version=version).to_arrow()
    given_texts = unaligned_arrow(texts)
    assert (hub.assign_many("split", given_texts)[0] == hub.assign_many("split", texts)[0]).all()
