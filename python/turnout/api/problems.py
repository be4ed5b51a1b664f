"""Errors as problem documents (RFC 9457): ours, Litestar's own, and what nobody expected."""

from __future__ import annotations

import traceback
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from turnout.errors import TurnoutError, problem
from turnout.log import log

MEDIA_TYPE = "application/problem+json"

CODES = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A problem document, RFC 9457 section 3.1. `row`, `feature` and `position` (a byte offset) where they apply."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    row: int | None = None
    feature: str | None = None
    position: int | None = None


NO_BODY = "'data'"
"""What Litestar says of a body that did not come: it has looked for its own argument."""

DECODER = "decode_json"
"""The function of Litestar that reads bodies; it lets these two errors of msgspec pass."""


def plain(status: int, detail: str) -> Problem:
    """A problem that is about HTTP itself and has no exception of ours."""
    code = CODES.get(status, "internal" if status >= 500 else "invalid_request")
    title = code.replace("_", " ").capitalize()
    return Problem(f"urn:turnout:error:{code}", title, status, detail, code)


def unexpected(error: BaseException, **fields: Any) -> Problem:  # noqa: ANN401
    """Log an error that nobody raised on purpose, with its trace; the answer says only that it happened."""
    log(
        "error",
        "unexpected_error",
        detail=repr(error),
        trace="".join(traceback.format_exception(error)),
        **fields,
    )
    return plain(
        500, "an unexpected error happened in Turnout; it is in the server's log under this request's id"
    )


def of_turnout(request: Request[Any, Any, Any], error: TurnoutError) -> Response[bytes]:
    """Answer one of our own errors."""
    if error.status >= 500:
        log("error", error.code, detail=error.detail, **seen(request))
    headers = {"Retry-After": "1"} if error.status in {429, 503} else None
    return _response(msgspec.json.encode(problem(error)), error.status, headers)


def of_litestar(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer an error that Litestar found: no such route, a method that is not allowed, a body that does not fit."""
    if error.status_code >= 500:
        return of_anything(request, error)
    document = plain(error.status_code, told(request, error))
    return _response(msgspec.json.encode(document), document.status, dict(error.headers or {}))


def of_unreadable(
    request: Request[Any, Any, Any], error: RecursionError | UnicodeDecodeError
) -> Response[bytes]:
    """Answer a body that is nested deeper than can be read, or no UTF-8; anywhere else the same error is unexpected."""
    if traceback.extract_tb(error.__traceback__)[-1].name != DECODER:
        return of_anything(request, error)
    found = "one that is nested too deeply" if isinstance(error, RecursionError) else str(error)
    document = plain(400, f"expected a JSON body in UTF-8, found {found}")
    return _response(msgspec.json.encode(document), document.status)


def of_anything(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer an error that nobody raised on purpose."""
    return _response(msgspec.json.encode(unexpected(error, **seen(request))), 500)


def seen(request: Request[Any, Any, Any]) -> dict[str, str]:
    """What a log line says about the request that it belongs to."""
    identity = request.scope["state"].get("request_id", "")
    return {"request_id": identity, "method": request.method, "path": request.scope["path"]}


def told(request: Request[Any, Any, Any], error: HTTPException) -> str:
    """One sentence from what Litestar knows, naming each place that is wrong."""
    if error.status_code == 404:
        return f"there is no {request.scope['path']} here; GET / lists what there is"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow", "")
        return f"{request.method} is not possible here, only {allowed}"
    if error.status_code == 413:
        return "expected a smaller body; see the setting max_body_bytes"
    extra = error.extra if isinstance(error.extra, list) else []
    if any(item.get("message") == NO_BODY for item in extra):
        return "expected a JSON body, found none"
    places = [f"{_place(item)}: {item['message']}" for item in extra if "message" in item]
    cause = error.__cause__
    return (
        "; ".join(places) or (str(cause) if isinstance(cause, msgspec.MsgspecError) else "") or error.detail
    )


def _place(item: dict[str, Any]) -> str:
    place = str(item.get("key") or item.get("source") or "request")
    return "body" if place == "data" else place


def _response(body: bytes, status: int, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)
