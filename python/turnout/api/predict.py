"""The prediction routes as the OpenAPI document shows them. In a server `front` answers these paths itself."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body

from turnout.api.examples import ANSWERS, PREDICTIONS, problems
from turnout.api.problems import MEDIA_TYPE
from turnout.domain import Prediction
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


ROUTES = [predict, predict_version]
