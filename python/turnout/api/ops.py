"""Routes for those who run it: is it alive, is it ready, what does it do, who changed what."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from turnout.api.examples import READ
from turnout.api.threads import threaded
from turnout.domain import AuditEvent, Status
from turnout.service import Turnout

METRICS = "text/plain; version=0.0.4"


class Live(msgspec.Struct, frozen=True):
    """That this process answers."""

    live: bool = True


class Ready(msgspec.Struct, frozen=True):
    """Whether this worker serves the present generation and is not about to stop."""

    ready: bool


class Index(msgspec.Struct, frozen=True):
    """Where to go from here."""

    turnout: str
    models: str = "/v1/models"
    status: str = "/v1/status"
    openapi: str = "/schema/openapi.json"
    metrics: str = "/metrics"
    live: str = "/livez"
    ready: str = "/readyz"


@get("/", operation_id="index", summary="Where to go from here", tags=["operations"])
@threaded
def index(hub: Turnout) -> Index:
    """The version of Turnout and the main routes."""
    return Index(turnout=hub.status().turnout)


@get("/livez", operation_id="live", summary="Alive?", tags=["operations"], sync_to_thread=False)
def live() -> Live:
    """200 as long as the process can answer at all."""
    return Live()


@get(
    "/readyz",
    operation_id="ready",
    summary="Ready?",
    tags=["operations"],
    responses={503: ResponseSpec(Ready, generate_examples=False, description="Not (yet, or any more).")},
    sync_to_thread=False,
)
def ready(hub: Turnout) -> Response[Ready]:
    """200 when this worker serves the present generation; 503 while it loads, and from the signal to stop on."""
    state = hub.ready()
    return Response(Ready(state), status_code=200 if state else 503)


@get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics of all workers",
    tags=["operations"],
    media_type=METRICS,
)
@threaded
def metrics(hub: Turnout) -> bytes:
    """Prometheus text format 0.0.4, merged over all workers, whichever of them is asked."""
    return hub.metrics()


@get("/v1/status", operation_id="status", summary="Workers", tags=["operations"])
@threaded
def status(hub: Turnout) -> Status:
    """Generation, live workers, and what each has loaded on which device."""
    return hub.status()


@get(
    "/v1/audit",
    operation_id="audit",
    summary="Who changed what",
    tags=["registry"],
    responses=READ,
)
@threaded
def audit(
    hub: Turnout,
    model: Annotated[str | None, QueryParameter(description="Only the changes of this model.")] = None,
    after: Annotated[
        int, QueryParameter(ge=0, le=2**53, description="Only events with a greater sequence number.")
    ] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=10_000, description="At most this many events.")] = 1000,
) -> list[AuditEvent]:
    """Changes in their order, oldest first."""
    return hub.audit(model=model, after=after, limit=limit)


ROUTES = [index, live, ready, metrics, status, audit]
