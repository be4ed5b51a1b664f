"""Refusals in the form of the Open Inference Protocol: `{"error": "<text>"}`."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException

from turnout.api.asgi import problem_of
from turnout.api.paths import Target
from turnout.api.problems import seen, told, unexpected
from turnout.errors import ModelNotFound, PayloadTooLarge, TooManyRequests, TurnoutError
from turnout.inference import said
from turnout.service import Turnout

JSON = ("content-type", "application/json")


def refusal(
    hub: Turnout, error: Exception, target: Target, identity: str
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body for an error on the way of an inference, which is counted."""
    found = problem_of(error, target, identity.encode())
    hub.telemetry.reject(found["code"])
    headers: list[tuple[str, str]] = [JSON]
    if isinstance(error, TooManyRequests):
        headers.append(("retry-after", "1"))
    if isinstance(error, PayloadTooLarge | TimeoutError):
        headers.append(("connection", "close"))
    detail = unknown(target[0]) if isinstance(error, ModelNotFound) else found["detail"]
    return found["status"], headers, said(detail)


def unknown(model: str) -> str:
    """What clients of other servers look for."""
    return f"Request for unknown model: '{model}' is not found"


def of_turnout(request: Request[Any, Any, Any], error: TurnoutError) -> Response[bytes]:
    """Answer one of our own errors."""
    detail = error.detail
    if isinstance(error, ModelNotFound):
        detail = unknown(str(request.path_params.get("model", "")))
    headers = {"Retry-After": "1"} if error.status in {429, 503} else None
    return Response(said(detail), status_code=error.status, media_type=JSON[1], headers=headers)


def of_litestar(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer an error that Litestar found."""
    return Response(
        said(told(request, error)),
        status_code=error.status_code,
        media_type=JSON[1],
        headers=dict(error.headers or {}),
    )


def of_anything(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer an error that nobody raised on purpose."""
    document = unexpected(error, **seen(request))
    return Response(said(document.detail), status_code=500, media_type=JSON[1])
