"""Batches as bytes without HTTP: however the bytes are cut, the answers are those of single predictions."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import turnout
from models import columns_model, constant_label, failing_model, linear_matrix
from turnout import answers as answers_module
from turnout.domain import Feature
from turnout.errors import Conflict, InvalidFeatures, InvalidRequest, PayloadTooLarge
from turnout.service import Turnout
from turnout.streams import ARROW, JSON, LINES, Asked, Limits, answers, pieces_of, writer_of

ARMS = ("v1", "v2", "v3", "v4", "v5")
LIMITS = Limits(rows=10_000, document=1 << 20, line=1 << 16)


class Cut:
    """A body that comes in parts of these sizes, again and again."""

    def __init__(self, content: bytes, sizes: list[int]) -> None:
        self._rest = content
        self._sizes = sizes
        self._turn = 0

    def read1(self, size: int = -1, /) -> bytes:
        self._turn += 1
        wanted = self._sizes[self._turn % len(self._sizes)]
        taken = wanted if size < 0 else min(size, wanted)
        part, self._rest = self._rest[:taken], self._rest[taken:]
        return part


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    folder = tmp_path_factory.mktemp("streams")
    with turnout.open(folder / "data") as opened:

        def register(model: str, version: str, content: bytes, **words: Any) -> None:
            path = folder / "model.onnx"
            path.write_bytes(content)
            opened.register_version(model, version, path, **words)

        register("split", "v1", linear_matrix([1, 2]), features=["a", "b"])
        register("split", "v2", linear_matrix([3, 5]), features=["b", "a"])
        register("split", "v3", constant_label(7), features=[Feature("a", nullable=True), "b"])
        register("split", "v4", failing_model(), features=["b", "a"])
        register("split", "v5", linear_matrix([2, 1]), features=[Feature("c", default=4.0), "a"])
        register("mixed", "v1", columns_model())
        opened.activate_version("split", "v1")
        opened.activate_version("mixed", "v1")
        yield opened


def arms(hub: Turnout, count: int) -> None:
    if hub.get_test("split"):
        hub.stop_test("split")
    if count:
        hub.configure_test("split", dict.fromkeys(ARMS[:count], 1 / count))


def answered(
    hub: Turnout,
    kinds: tuple[str, str],
    content: bytes,
    sizes: list[int] | None = None,
    on_error: Any = "skip",
    model: str = "split",
    most: int = 10_000,
) -> list[bytes]:
    """The parts of the answer."""
    pieces = pieces_of(kinds[0], Cut(content, sizes or [1 << 20]), LIMITS)
    asked = Asked(model, None, on_error)
    return [
        bytes(part)
        for part in answers(hub.batches, asked, pieces, writer_of(kinds[1]), most=most)
        if len(part)
    ]


def alone(hub: Turnout, row: Any, entity: Any, model: str = "split") -> Any:
    try:
        found = hub.predict(model, row, entity_id=entity)
    except turnout.TurnoutError as error:
        return error.code, error.feature
    return found.version, found.reason, found.outputs


def stream(batches: list[Any], schema: Any = None) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema or batches[0].schema) as writer:
        for batch in batches:
            writer.write(batch)
    return sink.getvalue()


VALUES = st.one_of(
    st.integers(-1000, 1000),
    st.integers(2 * 10**6, 10**7),
    st.floats(-1e6, 1e6, width=32),
    st.just(None),
    st.just("é"),
)
ROWS = st.one_of(
    st.lists(VALUES, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["a", "b", "c", "nobody"]), VALUES, max_size=4),
    st.fixed_dictionaries({"a": st.integers(-9, 9), "b": st.integers(-9, 9)}),
)
SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=4)
FAIR = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FAIR
@given(st.lists(st.tuples(ROWS, st.text(max_size=5)), max_size=20), SIZES, st.integers(0, 5), st.booleans())
def test_lines_are_what_each_is_alone_however_they_are_cut(
    hub: Turnout, pairs: list[tuple[Any, str]], sizes: list[int], count: int, last: bool
) -> None:
    arms(hub, count)
    text = "\n".join(json.dumps({"entity_id": entity, "features": row}) for row, entity in pairs)
    content = text.encode() + b"\n" * last
    lines = b"".join(answered(hub, (LINES, LINES), content, sizes)).splitlines()
    assert len(lines) == len(pairs)
    for number, (line, (row, entity)) in enumerate(zip(map(json.loads, lines), pairs, strict=True)):
        expected = alone(hub, row, entity)
        if "code" in line:
            assert (line["code"], line.get("feature"), line["row"]) == (*expected, number)
        else:
            assert (line["version"], line["reason"]) == expected[:2]
            assert line["outputs"].keys() == expected[2].keys()
            for name, value in expected[2].items():
                assert np.allclose(
                    np.array(line["outputs"][name], float), np.array(value, float), rtol=1e-6, equal_nan=True
                )


@FAIR
@given(
    st.lists(
        st.lists(st.tuples(VALUES.filter(lambda v: v != "é"), st.integers(-9, 9)), max_size=6), min_size=1
    ),
    SIZES,
    st.integers(0, 5),
)
def test_record_batches_are_what_each_row_is_alone(
    hub: Turnout, chunks: list[list[tuple[Any, int]]], sizes: list[int], count: int
) -> None:
    arms(hub, count)
    number = iter(range(10_000))
    batches = [
        pa.record_batch(
            {
                "a": pa.array([a for a, _ in chunk], pa.float64()),
                "b": pa.array([b for _, b in chunk], pa.int16()),
                "entity_id": pa.array([next(number) for _ in chunk], pa.int64()),
            }
        )
        for chunk in chunks
    ]
    if count == 0:
        batches = [batch for batch in batches if batch.num_rows]
    schema = pa.schema([("a", pa.float64()), ("b", pa.int16()), ("entity_id", pa.int64())])
    rows = pa.Table.from_batches(batches, schema).to_pylist()
    found = pa.ipc.open_stream(
        b"".join(answered(hub, (ARROW, ARROW), stream(batches, schema), sizes))
    ).read_all()
    assert found.schema.names[:2] == ["entity_id", "version"]
    assert found.num_rows == len(rows)
    for row, answer in zip(rows, found.to_pylist(), strict=True):
        entity = row.pop("entity_id")
        assert answer.pop("entity_id") == entity
        error = answer.pop("error")
        expected = alone(hub, row, entity)
        if error:
            assert (error["code"], error["feature"]) == expected
            continue
        assert answer.pop("version") == expected[0]
        outputs = {name: value for name, value in answer.items() if value is not None}
        assert outputs.keys() == expected[2].keys()
        for name, value in expected[2].items():
            assert np.allclose(
                np.array(outputs[name], float), np.array(value, float), rtol=1e-6, equal_nan=True
            )


def test_categories_and_strings_come_through_every_form(hub: Turnout) -> None:
    names = [feature.name for feature in hub.get_version("mixed", "v1").features]  # type: ignore[union-attr]
    values = [[1.5, 3, "basic"], [2.5, 4, "gold"]]
    rows = [dict(zip(names, row, strict=True)) for row in values]
    expected = [alone(hub, row, None, "mixed")[2] for row in rows]
    lines = b"\n".join(json.dumps({"features": row}).encode() for row in rows)
    columns = {name: [row[name] for row in rows] for name in names}
    table = pa.table(columns)
    coded = table.set_column(2, names[2], table[names[2]].dictionary_encode())
    forms = {
        LINES: [lines],
        JSON: [json.dumps({"rows": rows}).encode(), json.dumps({"columns": columns}).encode()],
        ARROW: [stream(table.to_batches()), stream(coded.to_batches())],
    }
    for kind, contents in forms.items():
        for content in contents:
            found = b"".join(answered(hub, (kind, LINES), content, model="mixed")).splitlines()
            assert [json.loads(line)["outputs"] for line in found] == expected


def test_answers_come_with_the_rows_and_not_at_the_end(hub: Turnout) -> None:
    arms(hub, 2)
    line = b'{"features": {"a": 1, "b": 2}}\n'
    assert len(answered(hub, (LINES, LINES), line * 7, [len(line)])) == 7
    batch = pa.record_batch({"a": [1.0], "b": [2.0]})
    assert len(answered(hub, (ARROW, ARROW), stream([batch] * 7))) == 7 + 1  # and the end


def test_the_first_bad_row_ends_it_and_is_counted_from_the_first_of_all(hub: Turnout) -> None:
    arms(hub, 0)
    line = b'{"features": [1, 2]}\n'
    for sizes in ([len(line)], [1 << 20]):
        with pytest.raises(InvalidFeatures) as raised:
            answered(hub, (LINES, LINES), line * 5 + b'{"features": [1]}\n' + line, sizes, "fail")
        assert raised.value.row == 5
    batches = [pa.record_batch({"a": [1.0, last], "b": [1.0, 2.0]}) for last in (1.0, 2.0, np.nan)]
    with pytest.raises(InvalidFeatures) as raised:
        answered(hub, (ARROW, LINES), stream(batches), None, "fail")
    assert raised.value.row == 5


def test_rows_lines_and_documents_are_bounded(hub: Turnout) -> None:
    arms(hub, 0)
    line = b'{"features": [1, 2]}\n'
    with pytest.raises(PayloadTooLarge, match="at most 5 rows"):
        answered(hub, (LINES, LINES), line * 6, [len(line)], most=5)
    with pytest.raises(PayloadTooLarge, match="a longer one"):
        answered(hub, (LINES, LINES), b" " * (LIMITS.line + 2), [1000])
    with pytest.raises(PayloadTooLarge, match="max_batch_bytes"):
        answered(hub, (JSON, JSON), b" " * (LIMITS.document + 1), [1000])
    wide = pa.record_batch({"a": np.zeros(200_000), "b": np.zeros(200_000)})
    with pytest.raises(PayloadTooLarge, match="messages of at most"):
        answered(hub, (ARROW, ARROW), stream([wide]))
    tall = pa.record_batch({"a": pa.nulls(10_001), "b": pa.nulls(10_001)})
    with pytest.raises(PayloadTooLarge, match="at most 10000 rows"):
        answered(hub, (ARROW, ARROW), stream([tall]))


def test_a_stream_of_arrow_ends_where_its_columns_would_change(hub: Turnout) -> None:
    arms(hub, 0)
    batch = pa.record_batch({"a": [1.0], "b": [2.0]})
    pieces = pieces_of(ARROW, Cut(stream([batch] * 3), [1 << 20]), LIMITS)
    going = answers(hub.batches, Asked("split", None, "fail"), pieces, writer_of(ARROW), most=10)
    next(going)
    hub.activate_version("split", "v2")  # outputs alike
    next(going)
    hub.activate_version("split", "v3")
    with pytest.raises(Conflict, match="send the rows that are left again"):
        next(going)
    hub.activate_version("split", "v1")


def test_without_pyarrow_arrow_is_refused_and_the_rest_goes_on(
    hub: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise InvalidRequest("tables need pyarrow: install turnout[arrow]")

    arms(hub, 0)
    monkeypatch.setattr(answers_module, "load_pyarrow", missing)
    monkeypatch.setattr("turnout.streams.load_pyarrow", missing)
    with pytest.raises(InvalidRequest, match=r"turnout\[arrow\]"):
        answered(hub, (ARROW, LINES), b"")
    with pytest.raises(InvalidRequest, match=r"turnout\[arrow\]"):
        answered(hub, (LINES, ARROW), b'{"features": [1, 2]}')
    assert answered(hub, (LINES, LINES), b'{"features": [1, 2]}')
