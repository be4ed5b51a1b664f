"""The Litestar application of every route, and the front that stands before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp, LifespanHook, Receive, Scope, Send

from turnout.affinity import roam
from turnout.api import experiments, models, ops, predict, registry, tests, versions
from turnout.api.front import Front
from turnout.api.predictions import check_json
from turnout.api.problems import of_anything, of_litestar, of_turnout, of_unreadable
from turnout.api.v2 import errors, routes
from turnout.api.writes import author
from turnout.errors import InvalidRequest, TurnoutError, UnsupportedMediaType
from turnout.service import Turnout

Handler = Callable[[Request[Any, Any, Any], Any], Response[bytes]]

ADMIN_THREADS = 32
"""A change may wait for a minute until all workers have loaded a version; this many wait beside each other."""

DESCRIPTION = (
    "Serves versioned ONNX models and decides, for every prediction, which version answers it. Errors are problem "
    "documents (RFC 9457). Names in paths are percent-encoded; a slash in one is %2F. Every request may carry an "
    "X-Request-Id, which comes back on the answer."
)


def front(
    hub: Turnout,
    on_startup: Callable[[], None] | None = None,
    on_shutdown: Callable[[], None] | None = None,
) -> Front:
    """The application of a server, for RSGI and ASGI, around an opened service; it starts and closes the service."""

    async def start() -> None:
        executor = ThreadPoolExecutor(ADMIN_THREADS, thread_name_prefix="turnout-admin", initializer=roam)
        asyncio.get_running_loop().set_default_executor(executor)
        await asyncio.to_thread(hub.start_worker)
        if on_startup is not None:
            on_startup()

    async def stop() -> None:
        hub.drain()
        await asyncio.to_thread(hub.close)
        if on_shutdown is not None:
            on_shutdown()

    return Front(application(hub, [start], [stop]), hub)


def application(
    hub: Turnout, on_startup: list[LifespanHook] | None = None, on_shutdown: list[LifespanHook] | None = None
) -> Litestar:
    """Every route, around an opened service."""
    return Litestar(
        [
            *predict.ROUTES,
            *models.ROUTES,
            *versions.ROUTES,
            *tests.ROUTES,
            *experiments.ROUTES,
            *registry.ROUTES,
            *ops.ROUTES,
            *routes.ROUTES,
        ],
        dependencies={
            "hub": Provide(lambda: hub, use_cache=True, sync_to_thread=False),
            "author": Provide(author, sync_to_thread=False),
        },
        middleware=[named, json_only],
        exception_handlers={
            TurnoutError: in_dialect(of_turnout, errors.of_turnout),
            HTTPException: in_dialect(of_litestar, errors.of_litestar),
            RecursionError: of_unreadable,
            UnicodeDecodeError: of_unreadable,
            Exception: in_dialect(of_anything, errors.of_anything),
        },
        on_startup=on_startup,
        on_shutdown=on_shutdown,
        openapi_config=OpenAPIConfig(
            title="Turnout",
            version=hub.status().turnout,
            description=DESCRIPTION,
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
            use_handler_docstrings=True,
        ),
        request_max_body_size=hub.settings.max_body_bytes,
        logging_config=None,
    )


def in_dialect(ours: Handler, protocols: Handler) -> Handler:
    """How an error is answered: in our form, and in its own where the Open Inference Protocol is spoken."""

    def answer(request: Request[Any, Any, Any], error: Any) -> Response[bytes]:  # noqa: ANN401
        path = request.scope["path"]
        spoken = path == "/v2" or path.startswith("/v2/")
        return (protocols if spoken else ours)(request, error)

    return answer


def named(app: ASGIApp) -> ASGIApp:
    """Middleware: the parameters of a path, which came percent-encoded, as the names that they are."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        given: dict[str, Any] = scope["path_params"]
        try:
            # A new dictionary: Litestar caches the one that it hands out.
            scope["path_params"] = {name: unquote(value, errors="strict") for name, value in given.items()}
        except UnicodeDecodeError as error:
            raise InvalidRequest("expected percent-encoded UTF-8 in the path") from error
        await app(scope, receive, send)

    return call


def json_only(app: ASGIApp) -> ASGIApp:
    """Middleware: a body that says it is no JSON is refused, except where a route reads other types itself.

    It also keeps web pages out: a page may send a plain text or a form to a server on loopback without asking it,
    but not JSON.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and not scope["path"].startswith(("/v1/registry/", "/v2/"))
        ):
            headers = dict(scope["headers"])
            kind = headers.get(b"content-type")
            if kind is not None:
                check_json(kind.decode("latin-1"))
            elif scope["path"].rpartition("/")[2] not in {"predict", "batch"} and _has_body(headers):
                raise UnsupportedMediaType("expected Content-Type application/json, found none")
        await app(scope, receive, send)

    return call


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
