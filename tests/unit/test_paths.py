"""Paths that came decoded, and the names in them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.routes import HTTPRoute

import turnout
from turnout.api.app import application
from turnout.api.paths import encoded, target_of
from turnout.domain import PATH_WORDS, check_name
from turnout.errors import InvalidName

NAMES = [
    "m",
    "a/b",
    "org/model/x",
    "predict",
    "versions",
    "versions/v",
    "%2F",
    "ü x",
    "..a/../b",
    "a?b#c",
    "日本",
    "50%",
]
SHAPES = [
    "/v1/models/{m}",
    *(
        f"/v1/models/{{m}}/{verb}"
        for verb in ("activate", "predict", "batch", "test", "test/promote", "tests")
    ),
    *(f"/v1/models/{{m}}/{verb}" for verb in ("overrides", "versions", "history", "compare", "rollback")),
    *(f"/v1/models/{{m}}/{verb}" for verb in ("metrics", "quality", "distribution")),
    *(f"/v1/models/{{m}}/test/{verb}" for verb in ("results", "pause", "resume", "approve", "skip")),
    "/v1/models/{m}/assignments/{e}",
    "/v1/models/{m}/receipts/{e}",
    "/v1/models/{m}/overrides/{e}",
    "/v1/models/{m}/versions/{v}",
    "/v1/models/{m}/versions/{v}/predict",
    "/v1/models/{m}/versions/{v}/batch",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model", NAMES)
def test_a_decoded_path_is_encoded_as_it_was(shape: str, model: str) -> None:
    for version in ("v1", "v/1", "predict", "%", "ü"):
        names = {"m": model, "v": version, "e": "user/predict/7"}
        path = shape.format(**{key: quote(name, safe="") for key, name in names.items()})
        assert encoded(unquote(path)) == path.encode()


@pytest.mark.parametrize("entity", [*NAMES, "a/", "/a", "/", "v1/models/m/predict", "a\nb"])
def test_a_decoded_path_of_an_entity_is_encoded_as_it_was(entity: str) -> None:
    path = f"/v1/entities/{quote(entity, safe='')}"
    assert encoded(unquote(path)) == path.encode()


def test_paths_without_names_and_of_no_route_stay_as_they_are() -> None:
    for path in (
        "/",
        "/livez",
        "/v1/models",
        "/v1/status",
        "/schema/openapi.json",
        "/v1/outcomes",
        "/v1/entities/",
        "/v1/models//predict",
        "//x",
        "",
    ):
        assert encoded(path) == path.encode()
    assert encoded("/v1/models/m/") == b"/v1/models/m/"
    assert encoded("/ü") == b"/%C3%BC"


def test_bytes_that_were_no_utf8_are_none_again() -> None:
    path = encoded("/v1/models/a\ufffdb/predict")
    assert path == b"/v1/models/a%FFb/predict"
    assert target_of(path, b"predict") is None


@given(st.text(max_size=40), st.text(max_size=20))
def test_every_name_that_is_one_comes_back(model: str, version: str) -> None:
    try:
        check_name("model", model)
        check_name("version", version)
    except InvalidName:
        return
    path = f"/v1/models/{quote(model, safe='')}/versions/{quote(version, safe='')}/predict"
    assert target_of(encoded(unquote(path)), b"predict") == (model, version)


@pytest.mark.parametrize(
    "name", ["a/versions", "a/versions/b", "a/b/predict", "/a", "a/", "x/test", "a\ufffd"]
)
def test_a_name_that_a_decoded_path_would_hide_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name("model", name)


# Litestar 2 asks to mark dependencies for its version 3; how the routes are declared is not what is checked here.
@pytest.mark.filterwarnings("ignore::litestar.exceptions.base_exceptions.LitestarDeprecationWarning")
def test_the_words_are_those_of_the_routes(tmp_path: Path) -> None:
    with turnout.open(tmp_path / "data") as hub:
        routes = [route.path for route in application(hub).routes if isinstance(route, HTTPRoute)]
    begun = ("/v1/models/{", "/v2/models/{", "/v2/repository/models/{")
    behind = [path.partition("}")[2].split("/") for path in routes if path.startswith(begun)]
    assert {part for parts in behind for part in parts if not part.startswith("{")} - {""} == PATH_WORDS
