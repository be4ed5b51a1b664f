"""Routes that carry a whole registry out and in, with or without its model files."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import IO, Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
)
from litestar.params import QueryParameter
from litestar.response import Stream

from turnout.api.examples import WRITE, problems
from turnout.api.upload import body_of, check_announced, in_blocks
from turnout.api.writes import Author, Reason, changed
from turnout.errors import InvalidDocument, StorageError, UnsupportedMediaType
from turnout.service import Turnout

TAR = "application/x-tar"
PIPE_BLOCK = 256 * 1024


ANY_OBJECT = Schema(type=OpenAPIType.OBJECT, description="An export of Turnout.")
ARCHIVE = Schema(type=OpenAPIType.STRING, description="An export of Turnout that carries its model files.")


@dataclass
class ImportOperation(Operation):
    """The operation of an import: Litestar does not read the body itself, so it is described here."""

    def __post_init__(self) -> None:
        """Describe both forms of the body."""
        content = {
            "application/json": OpenAPIMediaType(schema=ANY_OBJECT),
            TAR: OpenAPIMediaType(schema=ARCHIVE),
        }
        self.request_body = RequestBody(content=content, required=True)


@dataclass
class ExportOperation(Operation):
    """The operation of an export, which answers in one of two types."""

    def __post_init__(self) -> None:
        """Describe both forms of the answer."""
        content = {
            "application/json": OpenAPIMediaType(schema=ANY_OBJECT),
            TAR: OpenAPIMediaType(schema=ARCHIVE),
        }
        described = OpenAPIResponse(description="The registry, as JSON or as a tar.", content=content)
        self.responses = {**(self.responses or {}), "200": described}


class Imported(msgspec.Struct, frozen=True):
    """What an import brought: the names of the models."""

    models: tuple[str, ...]


@get(
    "/v1/registry/export",
    operation_id="exportRegistry",
    summary="Export the registry",
    tags=["registry"],
    operation_class=ExportOperation,
    responses=problems(400, 507),
)
async def export_registry(
    hub: Turnout,
    artifacts: Annotated[
        bool, QueryParameter(description="A tar that also carries the model files.")
    ] = False,
) -> Response[Any]:
    """Models, versions, tests, ledgers and overrides as one JSON document, which an import reads back exactly."""
    if not artifacts:
        return Response(await asyncio.to_thread(hub.export_registry))
    stream = _piped(hub)
    # The first block is awaited here, so that a fault at the start is still answered as a problem document.
    first = await anext(stream)
    headers = {"Content-Disposition": 'attachment; filename="turnout-registry.tar"'}
    return Stream(_after(first, stream), media_type=TAR, headers=headers)


@post(
    "/v1/registry/import",
    status_code=200,
    operation_id="importRegistry",
    summary="Import a registry",
    tags=["registry"],
    operation_class=ImportOperation,
    responses=WRITE,
)
async def import_registry(
    hub: Turnout,
    request: Request[Any, Any, Any],
    author: Author,
    replace: Annotated[
        bool, QueryParameter(description="Even where it breaks a running test or changes a version.")
    ] = False,
    reason: Reason = "",
) -> Response[Imported]:
    """Take an export (application/json, or application/x-tar with the model files). All of it, or nothing."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {"application/json", TAR}:
        raise UnsupportedMediaType(f"expected Content-Type application/json or {TAR}, found {kind!r}")
    limit = hub.settings.max_artifact_bytes if kind == TAR else hub.settings.max_body_bytes
    check_announced(request, limit)
    folder = await asyncio.to_thread(hub.artifacts.aside)
    try:
        with (folder / "import").open("w+b") as file:
            await in_blocks(body_of(request), file.write, limit)
            return await asyncio.to_thread(_import, hub, file, kind == TAR, replace, author, reason)
    except OSError as error:
        raise StorageError(f"the import cannot be stored: {error}") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _import(
    hub: Turnout, file: IO[bytes], archive: bool, replace: bool, author: Author, reason: str
) -> Response[Imported]:
    file.seek(0)
    source = file if archive else _document(file.read())
    models = hub.import_registry(source, replace=replace, actor=author["actor"], reason=reason)
    return changed(hub, Imported(tuple(models)))


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidDocument(f"expected a JSON document: {error}") from error
    if not isinstance(document, dict):
        raise InvalidDocument(f"expected a JSON object, found {type(document).__name__}")
    if "format" not in document:
        # Only an export of PrisML has no format, and its model files are paths: none is ever followed from here.
        raise InvalidDocument(
            "expected an export of Turnout, which says so in `format`. An export of PrisML names files of a machine "
            "(modelPath), and a path is never taken over HTTP: run `turnout import` on the machine of the files, or "
            "upload each with PUT /v1/models/{model}/versions/{version}"
        )
    return document


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in rest:
        yield block


async def _piped(hub: Turnout) -> AsyncIterator[bytes]:
    """The archive, block by block, from a thread that writes it into a pipe; a client that goes away breaks the pipe."""
    reading, writing = os.pipe()
    work = asyncio.get_running_loop().run_in_executor(None, _write, hub, writing)
    try:
        while block := await asyncio.to_thread(os.read, reading, PIPE_BLOCK):
            yield block
        await work
    finally:
        os.close(reading)


def _write(hub: Turnout, writing: int) -> None:
    with os.fdopen(writing, "wb") as file:
        hub.export_registry(artifacts=file)


ROUTES = [export_registry, import_registry]
