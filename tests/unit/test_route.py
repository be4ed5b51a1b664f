"""`VersionPlan` and `Route`: bytes of a request to arrays, arrays to bytes of an answer."""

from __future__ import annotations

import json
import re
import uuid

import numpy as np
import pytest

from turnout import _core
from turnout.domain import REASONS
from turnout.errors import InvalidFeatures, InvalidModel, InvalidRequest, NoActiveVersion, PredictionFailed

FLOATS = [("a", "float", (), None, False), ("b", "float", (), None, False)]


def plan(
    features=FLOATS, layout="matrix", dtypes=("float32",), outputs=("label", "probabilities"), version="v1"
):
    return _core.VersionPlan(version, layout, list(dtypes), list(features), list(outputs))


def route(*plans, active=0, split=None, arms=(), overrides=None, known=("a", "b"), model="churn"):
    plans = plans or (plan(),)
    versions = [f"v{number + 1}" for number in range(len(plans))]
    return _core.Route(model, plans, versions, active, split, list(arms), overrides or {}, list(known))


def half_split() -> _core.Split:
    ledger, _ = _core.Ledger.start("v1").apply({"v1": 0.5, "v2": 0.5})
    return _core.Split(ledger, "churn/1")


def test_a_row_becomes_a_matrix_of_one_row():
    index, reason, (matrix,), entity = route().prepare(b'{"features": {"b": 2.5, "a": -1}}')
    assert entity is None
    assert (index, REASONS[reason]) == (0, "active")
    assert (matrix.dtype, matrix.shape, matrix.flags.c_contiguous) == (np.float32, (1, 2), True)
    assert matrix.tolist() == [[-1.0, 2.5]]
    assert route().prepare(b'{"features": [-1, 2.5]}')[2][0].tolist() == [[-1.0, 2.5]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_a_matrix_has_the_type_of_its_input(dtype):
    features = [
        ("a", "int", (), None, False),
        ("b", "bool", (), None, False),
        ("c", "category", ("x", "y"), "y", False),
    ]
    (matrix,) = route(plan(features, dtypes=[dtype])).prepare(b'{"features": {"b": true, "a": 7.0}}')[2]
    assert matrix.dtype == dtype
    assert matrix.tolist() == [[7, 1, 1]]


def test_columns_keep_their_types_and_strings_stay_strings():
    features = [
        ("f", "float", (), None, True),
        ("d", "float", (), None, False),
        ("i", "int", (), 3, False),
        ("j", "int", (), None, False),
        ("t", "bool", (), None, False),
        ("s", "string", (), None, False),
        ("c", "category", ("red", "blue"), None, False),
    ]
    dtypes = ["float32", "float64", "int32", "int64", "bool", "object", "object"]
    body = (
        '{"features": {"f": null, "d": 0.1, "j": -5, "t": true, "s": "gr\\u00fcn 😀", "c": "red"}}'.encode()
    )
    inputs = route(plan(features, "columns", dtypes)).prepare(body)[2]
    assert [array.dtype for array in inputs] == dtypes
    assert {array.shape for array in inputs} == {(1, 1)}
    assert np.isnan(inputs[0][0, 0])
    assert [array[0, 0] for array in inputs[1:]] == [0.1, 3, -5, True, "grün 😀", "red"]
    assert type(inputs[5][0, 0]) is str


def test_a_version_without_features_takes_an_empty_row():
    (matrix,) = route(plan([]), known=()).prepare(b'{"features": {}}')[2]
    assert matrix.shape == (1, 0)


def test_pinned_then_override_then_test_then_active():
    split = half_split()
    router = route(plan(), plan(), split=split, arms=[0, 1], overrides={"qa": 1, "7": 0})
    body = b'{"features": [1, 2], "entity_id": "qa"}'
    assert router.prepare(body, 0)[:2] == (0, REASONS.index("pinned"))
    assert router.prepare(body)[:2] == (1, REASONS.index("override"))
    assert router.assign("qa") == (1, REASONS.index("override"), None)
    assert router.assign(7) == (0, REASONS.index("override"), None)
    arm, slot = split.assign("user-1")
    assert router.assign("user-1") == (arm, REASONS.index("test"), slot)
    index, reason, slot = router.assign(None)
    assert (index in {0, 1}, REASONS[reason], 0 <= slot < _core.SLOTS) == (True, "random", True)
    assert route(plan(), plan(), active=1).assign("user-1") == (1, REASONS.index("active"), None)
    with pytest.raises(NoActiveVersion, match="model churn has no active version"):
        route(active=None).prepare(b'{"features": [1, 2]}')


def test_requests_without_entity_are_drawn_by_the_weights():
    router = route(plan(), plan(), split=half_split(), arms=[0, 1])
    draws = [router.prepare(b'{"features": [1, 2]}')[0] for _ in range(2000)]
    assert 850 < sum(draws) < 1150  # 6.7 standard deviations


def test_free_tensors_have_no_row():
    with pytest.raises(InvalidFeatures, match="version v1 takes free tensors"):
        route(None).prepare(b'{"features": [1]}')


@pytest.mark.parametrize(
    ("body", "error", "feature", "position"),
    [
        (b"", InvalidRequest, None, 0),
        (b"null", InvalidRequest, None, 0),
        (b'{"features": [1, 2]', InvalidRequest, None, 19),
        (b'{"features": [1, 2], "features": [1, 2]}', InvalidRequest, None, 21),
        (b'{"feature": [1, 2]}', InvalidRequest, None, 1),
        (b'{"features": [1, 2], "entity_id": 1.5}', InvalidRequest, None, 34),
        (b'{"features": {"a": 1, "\xff": 2}}', InvalidRequest, None, 23),
        (b'{"features": {"a": "x", "b": 1}}', InvalidFeatures, "a", 19),
        (b'{"features": {"a": NaN, "b": 1}}', InvalidFeatures, "a", 19),
        (b'{"features": {"a": 1e39, "b": 1}}', InvalidFeatures, "a", 19),
        (b'{"features": {"a": 1}}', InvalidFeatures, "b", 13),
        (b'{"features": {"a": 1, "bb": 1}}', InvalidFeatures, "bb", 22),
        (b'{"features": [1]}', InvalidFeatures, None, 13),
    ],
)
def test_errors_name_the_feature_and_the_byte(body, error, feature, position):
    with pytest.raises(InvalidRequest) as caught:
        route().prepare(body)
    assert type(caught.value) is error
    assert (caught.value.feature, caught.value.position) == (feature, position)
    assert f"(byte {position})" in str(caught.value)


def test_the_nearest_known_name_is_offered():
    with pytest.raises(InvalidFeatures, match='did you mean "totalSpent"'):
        route(known=("a", "b", "totalSpent")).prepare(b'{"features": {"totalspend": 1}}')


def test_bodies_are_bytes_and_indices_stay_inside():
    with pytest.raises(TypeError):
        route().prepare('{"features": [1, 2]}')
    with pytest.raises(InvalidRequest):
        route().assign(1.5)
    with pytest.raises(IndexError):
        route().prepare(b'{"features": [1, 2]}', 1)
    with pytest.raises(IndexError):
        route().encode(1, 0, [])
    with pytest.raises(ValueError, match="no element type"):
        plan(dtypes=["float128"])
    with pytest.raises(ValueError, match="layout"):
        plan(layout="rows")
    with pytest.raises(ValueError, match="not one of 1 versions"):
        route(active=1)


def test_features_that_do_not_fit_the_inputs_are_refused():
    with pytest.raises(
        InvalidModel, match='version v1: feature "a" of type string does not fit an input of float32'
    ):
        plan([("a", "string", (), None, False)])
    with pytest.raises(InvalidModel, match="default of feature"):
        plan([("a", "float", (), 1e300, False)])
    with pytest.raises(InvalidModel, match="expected 1 element types, found 2"):
        plan(dtypes=["float32", "float32"])


def outputs_of(answer: bytes) -> dict:
    return json.loads(answer)["outputs"]


def test_an_answer_names_model_version_reason_and_a_new_id():
    router = route(plan(), plan(), model='chu"rn')
    arrays = [np.array([1]), np.array([[0.1, 0.9]], np.float32)]
    first, second = (router.encode(1, REASONS.index("fallback"), arrays) for _ in range(2))
    answer = json.loads(first)
    assert list(answer) == ["model", "version", "prediction_id", "reason", "outputs"]
    assert (answer["model"], answer["version"], answer["reason"]) == ('chu"rn', "v2", "fallback")
    assert first.endswith(b'"outputs":{"label":1,"probabilities":[0.1,0.9]}}')
    assert uuid.UUID(answer["prediction_id"]).version == 7
    assert json.loads(second)["prediction_id"] != answer["prediction_id"]


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "longlong", "ulonglong"]
)
def test_every_type_is_written_contiguous_or_not(dtype):
    router = route(plan(outputs=["out"]))
    values = np.arange(24).astype(dtype).reshape(1, 4, 6)
    for array in (values, values[:, ::2, ::-1], np.asfortranarray(values), values.transpose(0, 2, 1)):
        assert outputs_of(router.encode(0, 0, [array])) == {"out": array[0].tolist()}
    assert outputs_of(router.encode(0, 0, [values[0, 0, :1]])) == {"out": values[0, 0, 0].tolist()}
    assert outputs_of(router.encode(0, 0, [np.array(values[0, 0, 1])])) == {"out": values[0, 0, 1].tolist()}


def test_floats_are_the_shortest_that_read_back():
    router = route(plan(outputs=["out"]))
    singles = np.random.default_rng(0).integers(0, 2**32, 2000, np.uint32).view(np.float32)
    singles = singles[np.isfinite(singles)]
    answer = outputs_of(router.encode(0, 0, [singles[None]]))["out"]
    assert np.array_equal(np.array(answer).astype(np.float32), singles)
    assert b'"out":[0.1,null,null,null,1.0]' in router.encode(
        0, 0, [np.array([[0.1, np.nan, np.inf, -np.inf, 1.0]], np.float32)]
    )
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    assert np.array_equal(
        np.array(outputs_of(router.encode(0, 0, [halves[None]]))["out"], np.float16), halves
    )


def test_strings_and_bytes_are_written_as_strings():
    router = route(plan(outputs=["out"]))
    array = np.array([['a\n"', "é😀".encode()]], object)
    assert outputs_of(router.encode(0, 0, [array])) == {"out": ['a\n"', "é😀"]}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ([np.zeros(2)], 'output "out": expected one row, found shape [2]'),
        ([np.zeros((0, 2))], 'output "out": expected one row, found shape [0, 2]'),
        ([], 'output "out": missing'),
        ([np.zeros(1), np.zeros(1)], "expected 1 outputs, found more"),
        ([np.array([1j])], "cannot write elements of type complex128"),
        ([np.array([None])], "expected strings, found NoneType"),
        ([np.array([b"\xff"], object)], "expected strings, found bytes"),
        ([np.zeros((1, 10**9, 0))], "too many empty lists"),
    ],
)
def test_outputs_that_cannot_be_written_say_which_and_why(arrays, text):
    with pytest.raises(PredictionFailed, match=re.escape(text)):
        route(plan(outputs=["out"])).encode(0, 0, arrays)
