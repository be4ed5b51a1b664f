"""The routes of the Open Inference Protocol. In a server `front` answers inferences itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body

from turnout.api.threads import threaded
from turnout.api.v2.documents import (
    EXTENSIONS,
    Health,
    IndexEntry,
    IndexRequest,
    InferenceRequest,
    InferenceResponse,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    RepositoryParameters,
    ServerMetadata,
    Statistics,
    config_of,
    metadata_of,
    statistics_of,
)
from turnout.api.v2.examples import INFERENCE_ANSWERS, INFERENCES, refusals
from turnout.api.v2.infer import JSON_LENGTH, answer_rows, head_of, request_of, unpacked
from turnout.api.writes import Author
from turnout.errors import InvalidRequest, ModelNotFound, TurnoutError, VersionNotLoaded
from turnout.router import Lane, Serving, contract_of
from turnout.service import Turnout

T = TypeVar("T")
Call = Request[Any, Any, Any]
TAGS = ["open inference protocol"]
MODEL = "/v2/models/{model:str}"
VERSION = MODEL + "/versions/{version:str}"
OVERRIDES = ("config", "file:")
"""Parameters of a load that other servers take: a model file is registered here, and what runs is what was registered."""


def named(name: str) -> Callable[[Any, Any, Any], str]:
    """The operation ids of a handler with a path for any version, and one for a certain version."""

    def made(handler: object, method: object, components: list[Any]) -> str:
        del handler, method
        return name + "Version" * any(getattr(part, "name", "") == "version" for part in components)

    return made


@get("/v2", operation_id="v2Server", summary="This server", tags=TAGS)
@threaded
def server(hub: Turnout) -> ServerMetadata:
    """Name, version, and the extensions of the protocol that are served."""
    return ServerMetadata("turnout", hub.status().turnout, EXTENSIONS)


@get("/v2/health/live", operation_id="v2Live", summary="Alive?", tags=TAGS, sync_to_thread=False)
def live(hub: Turnout) -> Health:
    """200 as long as the process can answer at all."""
    return Health(live=True, ready=hub.ready())


@get(
    "/v2/health/ready",
    operation_id="v2Ready",
    summary="Ready?",
    tags=TAGS,
    responses={503: ResponseSpec(Health, generate_examples=False, description="Not (yet, or any more).")},
    sync_to_thread=False,
)
def ready(hub: Turnout) -> Response[Health]:
    """200 when this worker serves the present generation."""
    state = hub.ready()
    return Response(Health(live=True, ready=state), status_code=200 if state else 503)


@get([MODEL, VERSION], operation_id=named("v2Model"), summary="A model", tags=TAGS, responses=refusals(404))
@threaded
def model_metadata(hub: Turnout, model: str, version: str | None = None) -> ModelMetadata:
    """Inputs and outputs of a version: by default of the active one, or where there is none of the newest."""
    serving, lane = _lane(hub, model, version)
    return metadata_of(model, serving.labels, contract_of(lane))


@get(
    [MODEL + "/ready", VERSION + "/ready"],
    operation_id=named("v2ModelReady"),
    summary="A model that is ready?",
    tags=TAGS,
    responses=refusals(404, 503),
)
@threaded
def model_ready(hub: Turnout, model: str, version: str | None = None) -> ModelReady:
    """200 where this worker has loaded what it needs to answer: the version, or all versions that requests may reach."""
    if not hub.version_ready(model, version):
        which = "what its requests may reach" if version is None else f"version {version}"
        raise VersionNotLoaded(f"model {model} is not ready: {which} is not loaded on this worker")
    return ModelReady(model, ready=True)


@get(
    [MODEL + "/config", VERSION + "/config"],
    operation_id=named("v2Config"),
    summary="A model's configuration",
    tags=TAGS,
    responses=refusals(404),
)
@threaded
def model_config(hub: Turnout, model: str, version: str | None = None) -> ModelConfig:
    """What load generators read before they begin."""
    _, lane = _lane(hub, model, version)
    return config_of(lane.version, contract_of(lane), hub.settings.max_batch_rows)


@get("/v2/models/stats", operation_id="v2AllStatistics", summary="Statistics of all models", tags=TAGS)
@threaded
def all_statistics(hub: Turnout) -> Statistics:
    """Of every version, merged over all workers."""
    return Statistics(tuple(map(statistics_of, hub.inference_statistics())))


@get(
    [MODEL + "/stats", VERSION + "/stats"],
    operation_id=named("v2Statistics"),
    summary="Statistics of a model",
    tags=TAGS,
    responses=refusals(404),
)
@threaded
def model_statistics(hub: Turnout, model: str, version: str | None = None) -> Statistics:
    """Of every version of a model, or of one, merged over all workers."""
    return Statistics(tuple(map(statistics_of, hub.inference_statistics(model, version))))


@post(
    [MODEL + "/infer", VERSION + "/infer"],
    status_code=200,
    operation_id=named("v2Infer"),
    summary="Infer",
    tags=TAGS,
    responses={
        200: ResponseSpec(
            InferenceResponse,
            generate_examples=False,
            description="The outputs, and which version gave them.",
            examples=INFERENCE_ANSWERS,
        ),
        **refusals(400, 404, 408, 413, 415, 429, 500, 503, 504),
    },
)
async def infer(
    hub: Turnout,
    request: Call,
    model: str,
    data: Annotated[InferenceRequest, Body(title="Tensors", examples=INFERENCES)],  # noqa: ARG001 - for the document
    version: str | None = None,
) -> Response[bytes]:
    """Tensors in, tensors out, by the version that the entity is routed to, or the one that is named.

    With the header `Inference-Header-Content-Length` tensors follow in binary behind so many bytes of JSON.
    """
    head, content, target = head_of(request.headers.get), await request.body(), (model, version)
    content = await asyncio.to_thread(unpacked, content, head.coding, hub.settings.max_batch_bytes)
    asked, _ = await asyncio.to_thread(request_of, hub, target, head, content)
    if asked.entity_ids is None:
        status, answer = await asyncio.to_thread(hub.predictor.answer_request, *target, asked)
    else:
        status, answer = await asyncio.to_thread(answer_rows, hub, target, asked)
    kind = "application/octet-stream" if asked.json_bytes else "application/json"
    headers = {JSON_LENGTH: str(asked.json_bytes)} if asked.json_bytes else None
    return Response(answer, status_code=status, media_type=kind, headers=headers)


@post(
    "/v2/repository/index",
    status_code=200,
    operation_id="v2RepositoryIndex",
    summary="All versions",
    tags=TAGS,
    responses=refusals(400),
)
async def repository_index(hub: Turnout, request: Call) -> list[IndexEntry]:
    """Every version of every model, and whether the workers have loaded it; `{"ready": true}` lists only those."""
    wanted = _decoded(await request.body(), IndexRequest)
    found = await asyncio.to_thread(hub.repository_index, ready_only=wanted.ready)
    return [IndexEntry(one.model, one.version, one.state, one.reason) for one in found]


@post(
    "/v2/repository/models/{model:str}/load",
    status_code=200,
    operation_id="v2Load",
    summary="Keep a model loaded",
    tags=TAGS,
    responses=refusals(400, 409),
)
async def load_model(hub: Turnout, request: Call, model: str, author: Author) -> Response[bytes]:
    """Load all versions of a model on every worker, and keep them loaded."""
    said = _decoded(await request.body(), RepositoryParameters)
    for name in said.parameters:
        if name.startswith(OVERRIDES):
            raise InvalidRequest(
                f"failed to load '{model}': parameter {name[:60]!r} is not possible here, register a version instead"
            )
    await _changed(model, "load", lambda: hub.load_model(model, **author))
    return Response(b"", media_type="application/json")


@post(
    "/v2/repository/models/{model:str}/unload",
    status_code=200,
    operation_id="v2Unload",
    summary="Let go of a model",
    tags=TAGS,
    responses=refusals(400, 409),
)
async def unload_model(hub: Turnout, request: Call, model: str, author: Author) -> Response[bytes]:
    """Let go of the versions that no traffic needs; the others stay loaded, and go on to answer."""
    _decoded(await request.body(), RepositoryParameters)
    try:
        await _changed(model, "unload", lambda: hub.unload_model(model, **author))
    except InvalidRequest as error:
        if not isinstance(error.__cause__, ModelNotFound):
            raise
    return Response(b"", media_type="application/json")


async def _changed(model: str, verb: str, change: Callable[[], object]) -> None:
    """Make a change of the repository; of an unknown model it is the request that is wrong."""
    try:
        await asyncio.to_thread(change)
    except ModelNotFound as error:
        raise InvalidRequest(f"failed to {verb} '{model}': {error.detail}") from error
    except TurnoutError as error:
        error.detail = f"failed to {verb} '{model}': {error.detail}"
        raise


def _lane(hub: Turnout, model: str, version: str | None) -> tuple[Serving, Lane]:
    serving = hub.current().serving(model)
    if version is not None:
        return serving, serving.lanes[serving.position(version)]
    return serving, serving.active_lane or serving.lanes[-1]


def _decoded(body: bytes, kind: type[T]) -> T:
    """A body that may be empty. Raises InvalidRequest."""
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"expected a JSON object: {error}") from error


ROUTES = [
    server,
    live,
    ready,
    all_statistics,
    model_metadata,
    model_ready,
    model_config,
    model_statistics,
    infer,
    repository_index,
    load_model,
    unload_model,
]
