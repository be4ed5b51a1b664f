"""Routes about a model as a whole: look at it, activate, roll back, compare, explain."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from litestar import Response, get, post
from litestar.params import Body, QueryParameter

from turnout.api.examples import ACTIVATION, PENDING, READ, ROLLBACK, WRITE, also
from turnout.api.threads import threaded
from turnout.api.writes import Author, changed, read
from turnout.domain import Assignment, Comparison, Distribution, History, Model, Version
from turnout.service import Turnout


class Activation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which version, and why."""

    version: str
    reason: str = ""


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to, and why; without a version, to the one that was active before."""

    version: str | None = None
    reason: str = ""


Moment = Annotated[
    datetime | None,
    QueryParameter(name="at", description="A time with its zone: who was answered by which version then?"),
]


@get("/v1/models", operation_id="listModels", summary="All models", tags=["models"])
@threaded
def list_models(hub: Turnout) -> list[Model]:
    """The heads of all models, by name."""
    return hub.models()


@get(
    "/v1/models/{model:str}",
    operation_id="getModel",
    summary="A model",
    tags=["models"],
    responses=READ,
)
@threaded
def get_model(hub: Turnout, model: str) -> Response[Model]:
    """The head of a model. Its revision is the ETag that writes take as If-Match."""
    head = hub.model(model)
    return read(hub, model, head, head.revision)


@post(
    "/v1/models/{model:str}/activate",
    status_code=200,
    operation_id="activateVersion",
    summary="Activate a version",
    tags=["models"],
    responses={**also(202, Version, PENDING), **WRITE},
)
@threaded
def activate(
    hub: Turnout, model: str, author: Author, data: Annotated[Activation, Body(examples=ACTIVATION)]
) -> Response[Version]:
    """Make a version the one that answers when no test runs. Every live worker loads it first; a test goes on."""
    return changed(hub, hub.activate_version(model, data.version, reason=data.reason, **author))


@post(
    "/v1/models/{model:str}/rollback",
    status_code=200,
    operation_id="rollback",
    summary="Roll back",
    tags=["models"],
    responses={**also(202, Version, PENDING), **WRITE},
)
@threaded
def rollback(
    hub: Turnout,
    model: str,
    author: Author,
    data: Annotated[Rollback | None, Body(examples=ROLLBACK)] = None,
) -> Response[Version]:
    """Go back to a version, by default to the one that was active before. A running test ends.

    The body may be left out. Twice without a version goes there and back again: name it, or send If-Match.
    """
    said = data or Rollback()
    return changed(hub, hub.rollback(model, said.version, reason=said.reason, **author))


@get(
    "/v1/models/{model:str}/compare",
    operation_id="compareVersions",
    summary="Compare two versions",
    tags=["models"],
    responses=READ,
)
@threaded
def compare(
    hub: Turnout,
    model: str,
    a: Annotated[str, QueryParameter(description="A version.")],
    b: Annotated[str, QueryParameter(description="Another; differences are b minus a.")],
) -> Comparison:
    """Offline metrics of b minus those of a, and what both have answered so far."""
    return hub.compare_versions(model, a, b)


@get(
    "/v1/models/{model:str}/history",
    operation_id="history",
    summary="History of a model",
    tags=["models"],
    responses=READ,
)
@threaded
def history(hub: Turnout, model: str) -> Response[History]:
    """Versions newest first, deployments, tests and audit events, oldest first."""
    revision = hub.model(model).revision
    return read(hub, model, hub.version_history(model), revision)


@get(
    "/v1/models/{model:str}/assignments/{entity_id:str}",
    operation_id="assign",
    summary="Which version answers an entity",
    tags=["models"],
    responses=READ,
)
@threaded
def assign(hub: Turnout, model: str, entity_id: str, at: Moment = None) -> Assignment:
    """The version that answers this entity, and why; with `at`, the one that did then."""
    return hub.assign(model, entity_id, at=at)


@get(
    "/v1/models/{model:str}/distribution",
    operation_id="distribution",
    summary="How the traffic is split",
    tags=["models"],
    responses=READ,
)
@threaded
def distribution(hub: Turnout, model: str) -> Distribution:
    """Shares as configured, on a million synthetic ids, and in the requests so far."""
    return hub.distribution(model)


ROUTES = [list_models, get_model, activate, rollback, compare, history, assign, distribution]
