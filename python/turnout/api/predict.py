"""The prediction routes as the OpenAPI document shows them. In a server `front` answers these paths itself."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body, QueryParameter

from turnout.api.examples import ANSWERS, BATCH_ANSWERS, BATCHES, PREDICTIONS, problems
from turnout.api.problems import MEDIA_TYPE
from turnout.domain import OnError, Prediction, RowError
from turnout.service import Turnout

Value = float | int | bool | str | None


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row: features by name, or as a list in the order of the schema; and whom or what it is about."""

    features: dict[str, Value] | list[Value]
    entity_id: str | int | None = None


PredictBody = Annotated[PredictRequest, Body(title="A row to predict", examples=PREDICTIONS)]
RESPONSES = {
    200: ResponseSpec(
        Prediction,
        generate_examples=False,
        description="The answer, and which version gave it.",
        examples=ANSWERS,
    ),
    **problems(400, 404, 413, 415, 429, 500, 503),
}
Call = Request[Any, Any, Any]


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rows, or the same by columns; `entity_ids` has one id for each row, null for none."""

    rows: list[dict[str, Value] | list[Value]] | msgspec.UnsetType = msgspec.UNSET
    columns: dict[str, list[Value]] | msgspec.UnsetType = msgspec.UNSET
    entity_ids: list[str | int | None] | msgspec.UnsetType = msgspec.UNSET


class BatchAnswer(msgspec.Struct, frozen=True):
    """Answers in the order of the rows: `version_index` has indices into `versions`, `outputs` one list by output."""

    model: str
    count: int
    versions: list[str]
    version_index: list[int | None]
    outputs: dict[str, list[Any]]
    errors: list[RowError]


BatchBody = Annotated[BatchRequest, Body(title="Rows to predict", examples=BATCHES)]
OnErrorParameter = Annotated[
    OnError,
    QueryParameter(
        name="on_error",
        description="`fail`: the first bad row is the answer. `skip`: it is listed in `errors`, its outputs are null.",
    ),
]
BATCH_RESPONSES = {
    200: ResponseSpec(
        BatchAnswer,
        generate_examples=False,
        description="The answers by columns.",
        examples=BATCH_ANSWERS,
    ),
    **problems(400, 404, 406, 413, 415, 429, 500, 503),
}


@post(
    "/v1/models/{model:str}/predict",
    status_code=200,
    operation_id="predict",
    summary="Predict one row",
    tags=["predictions"],
    responses=RESPONSES,
)
async def predict(
    hub: Turnout,
    request: Call,
    model: str,
    data: PredictBody,  # noqa: ARG001 - it is for the document, the service reads the bytes
) -> Response[bytes]:
    """Route the entity to a version and answer with that version's outputs, each by its name, the row unwrapped."""
    return await _answer(hub, request, model, None)


@post(
    "/v1/models/{model:str}/versions/{version:str}/predict",
    status_code=200,
    operation_id="predictVersion",
    summary="Predict one row with a certain version",
    tags=["predictions"],
    responses=RESPONSES,
)
async def predict_version(
    hub: Turnout,
    request: Call,
    model: str,
    version: str,
    data: PredictBody,  # noqa: ARG001
) -> Response[bytes]:
    """The same, by this version, whatever is active and whatever test runs (`reason` is `pinned`)."""
    return await _answer(hub, request, model, version)


async def _answer(hub: Turnout, request: Call, model: str, version: str | None) -> Response[bytes]:
    status, body = hub.predict_bytes(model, version, await request.body())
    return Response(body, status_code=status, media_type="application/json" if status < 400 else MEDIA_TYPE)


@post(
    "/v1/models/{model:str}/batch",
    status_code=200,
    operation_id="predictBatch",
    summary="Predict many rows",
    tags=["predictions"],
    responses=BATCH_RESPONSES,
)
async def batch(
    hub: Turnout,
    request: Call,
    model: str,
    data: BatchBody,  # noqa: ARG001
    on_error: OnErrorParameter = "fail",
) -> Response[bytes]:
    """Route each row to a version and answer all of them by columns, in their order.

    Takes and gives lines (`application/x-ndjson`) and Arrow (`application/vnd.apache.arrow.stream`) as well, by
    `Content-Type` and `Accept`; a line is the body of a single prediction, and its answer.
    """
    return await _answer_batch(hub, request, model, None, on_error)


@post(
    "/v1/models/{model:str}/versions/{version:str}/batch",
    status_code=200,
    operation_id="predictVersionBatch",
    summary="Predict many rows with a certain version",
    tags=["predictions"],
    responses=BATCH_RESPONSES,
)
async def batch_version(
    hub: Turnout,
    request: Call,
    model: str,
    version: str,
    data: BatchBody,  # noqa: ARG001
    on_error: OnErrorParameter = "fail",
) -> Response[bytes]:
    """The same, by this version."""
    return await _answer_batch(hub, request, model, version, on_error)


async def _answer_batch(
    hub: Turnout, request: Call, model: str, version: str | None, on_error: OnError
) -> Response[bytes]:
    body = await request.body()
    return Response(hub.batches.answer(model, version, body, on_error), media_type="application/json")


ROUTES = [predict, predict_version, batch, batch_version]
