"""Routes about the tests of a model, and the overrides that go before them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Response, delete, get, post, put
from litestar.params import Body

from turnout.api.examples import OVERRIDE, PENDING, PROMOTION, READ, SPLITS, WRITE, also
from turnout.api.threads import threaded
from turnout.api.writes import Author, Deleted, Reason, changed, read
from turnout.domain import Test, Version
from turnout.errors import NotFound, TestNotFound
from turnout.service import Turnout


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Share of the traffic by version: each at least 0, together 1. `salt` only for a new test.

    With a `plan`, which has the fields of the schema Plan, the splits only name the arms.
    """

    splits: dict[str, float]
    salt: str | None = None
    plan: dict[str, Any] | None = None
    reason: str = ""


class Promotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arm that won, and why."""

    version: str
    reason: str = ""


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version that answers this entity, whatever the split says."""

    version: str
    reason: str = ""


TEST = "/v1/models/{model:str}/test"
OVERRIDE_PATH = "/v1/models/{model:str}/overrides/{entity_id:str}"


@put(
    TEST,
    operation_id="configureTest",
    summary="Start a test, or ramp it",
    tags=["tests"],
    responses={**also(202, Test, PENDING), **WRITE},
)
@threaded
def configure_test(
    hub: Turnout, model: str, author: Author, data: Annotated[Split, Body(examples=SPLITS)]
) -> Response[Test]:
    """Split the traffic. On a running test this is a ramp step, in which the fewest entities change their arm.

    With a `plan` the test goes on by itself: forward through its steps, back where a guardrail breaks. New splits
    without a plan pause the plan that the test has.
    """
    started = hub.configure_test(model, data.splits, data.salt, plan=data.plan, reason=data.reason, **author)
    return changed(hub, started)


@get(TEST, operation_id="getTest", summary="The running test", tags=["tests"], responses=READ)
@threaded
def get_test(hub: Turnout, model: str) -> Response[Test]:
    """The running test; 404 where none runs."""
    revision = hub.model(model).revision
    test = hub.get_test(model)
    if test is None:
        raise TestNotFound(f"no test runs on model {model}")
    return read(hub, model, test, revision)


@delete(
    TEST,
    status_code=200,
    operation_id="stopTest",
    summary="Stop the test",
    tags=["tests"],
    responses={**also(202, Test, PENDING), **WRITE},
)
@threaded
def stop_test(hub: Turnout, model: str, author: Author, reason: Reason = "") -> Response[Test]:
    """End the test; the active version takes all traffic."""
    return changed(hub, hub.stop_test(model, reason=reason, **author))


@post(
    f"{TEST}/promote",
    status_code=200,
    operation_id="promoteWinner",
    summary="Promote the winner",
    tags=["tests"],
    responses={**also(202, Version, PENDING), **WRITE},
)
@threaded
def promote(
    hub: Turnout, model: str, author: Author, data: Annotated[Promotion, Body(examples=PROMOTION)]
) -> Response[Version]:
    """End the test and activate one of its arms."""
    return changed(hub, hub.promote_winner(model, data.version, reason=data.reason, **author))


@get(
    "/v1/models/{model:str}/tests",
    operation_id="listTests",
    summary="Every test so far",
    tags=["tests"],
    responses=READ,
)
@threaded
def list_tests(hub: Turnout, model: str) -> Response[list[Test]]:
    """Every test that the model has had, oldest first."""
    revision = hub.model(model).revision
    return read(hub, model, hub.list_tests(model), revision)


@get(
    "/v1/models/{model:str}/overrides",
    operation_id="listOverrides",
    summary="All overrides",
    tags=["overrides"],
    responses=READ,
)
@threaded
def list_overrides(hub: Turnout, model: str) -> Response[dict[str, str]]:
    """Version by entity id."""
    revision = hub.model(model).revision
    return read(hub, model, hub.overrides(model), revision)


@put(
    OVERRIDE_PATH,
    operation_id="setOverride",
    summary="Send an entity to a version",
    tags=["overrides"],
    responses={**also(202, Override, PENDING), **WRITE},
)
@threaded
def set_override(
    hub: Turnout,
    model: str,
    entity_id: str,
    author: Author,
    data: Annotated[Override, Body(examples=OVERRIDE)],
) -> Response[Override]:
    """This version answers the entity from now on, whatever the split says; for QA and support."""
    hub.set_override(model, entity_id, data.version, reason=data.reason, **author)
    return changed(hub, data)


@delete(
    OVERRIDE_PATH,
    status_code=200,
    operation_id="deleteOverride",
    summary="Let the split decide again",
    tags=["overrides"],
    responses={**also(202, Deleted, PENDING), **WRITE},
)
@threaded
def delete_override(
    hub: Turnout, model: str, entity_id: str, author: Author, reason: Reason = ""
) -> Response[Deleted]:
    """Take the override of an entity away; 404 where there is none."""
    if not hub.delete_override(model, entity_id, reason=reason, **author):
        raise NotFound(f"model {model} has no override for entity {entity_id!r}")
    return changed(hub, Deleted(deleted=True))


ROUTES = [
    configure_test,
    get_test,
    stop_test,
    promote,
    list_tests,
    list_overrides,
    set_override,
    delete_override,
]
