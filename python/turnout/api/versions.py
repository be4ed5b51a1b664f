"""Routes about the versions of a model: upload one, look at it, delete it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from litestar import Request, Response, delete, get, put
from litestar.openapi.spec import Example, OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema

from turnout.api.examples import PENDING, READ, WRITE, also, problems
from turnout.api.threads import threaded
from turnout.api.upload import Upload, body_of, boundary_of
from turnout.api.writes import Author, Deleted, Reason, changed, read
from turnout.domain import Version, check_name
from turnout.errors import ModelNotFound, VersionNotFound
from turnout.service import Turnout

VERSION = "/v1/models/{model:str}/versions/{version:str}"
SPEC = {
    "features": ["totalSpent", "accountAge"],
    "accuracy": 0.82,
    "metrics": {"precision": 0.79},
    "metadata": {"algorithm": "RandomForest"},
}


@dataclass
class UploadOperation(Operation):
    """The operation of an upload: Litestar does not read the body itself, so it is described here."""

    def __post_init__(self) -> None:
        """Describe the multipart form."""
        artifact = Schema(type=OpenAPIType.STRING, description="The .onnx file.")
        # The format of a file in a form; Litestar's list of formats does not have it.
        artifact.format = cast("Any", "binary")
        spec = Schema(
            type=OpenAPIType.OBJECT,
            description="All of it may be left out: features (names, or objects with name, type, values, default, "
            "nullable), accuracy, metrics, metadata, options (see the SessionOptions of docs/python.md).",
            examples=[SPEC],
        )
        form = Schema(
            type=OpenAPIType.OBJECT, properties={"artifact": artifact, "spec": spec}, required=["artifact"]
        )
        example = Example(
            summary="A model file and what is known of it", value={"artifact": "(bytes)", "spec": SPEC}
        )
        content = {"multipart/form-data": OpenAPIMediaType(schema=form, examples={"version": example})}
        self.request_body = RequestBody(content=content, required=True)


@put(
    VERSION,
    status_code=201,
    operation_id="registerVersion",
    operation_class=UploadOperation,
    summary="Register a version",
    tags=["versions"],
    responses={
        **also(200, Version, "The same content was registered under this label before; nothing changed."),
        **also(202, Version, PENDING),
        **WRITE,
        **problems(422),
    },
)
async def put_version(
    hub: Turnout,
    request: Request[Any, Any, Any],
    model: str,
    version: str,
    author: Author,
    reason: Reason = "",
) -> Response[Version]:
    """Upload a model file; it is stored, probed and, if it can run, registered. Versions are immutable."""
    check_name("model", model)
    check_name("version", version)
    limit = hub.settings.max_artifact_bytes
    boundary = boundary_of(request, limit)
    async with Upload(await asyncio.to_thread(hub.artifacts.stage_stream, limit)) as upload:
        await upload.read(boundary, body_of(request))
        spec = upload.spec()
        staged = await upload.staged()

    def register() -> Response[Version]:
        known = _is_known(hub, model, version)
        registered = hub.register_staged(model, version, staged, spec=spec, reason=reason, **author)
        return changed(hub, registered, created=not known)

    return await asyncio.to_thread(register)


@get(
    "/v1/models/{model:str}/versions",
    operation_id="listVersions",
    summary="All versions",
    tags=["versions"],
    responses=READ,
)
@threaded
def list_versions(hub: Turnout, model: str) -> Response[list[Version]]:
    """All versions of a model, in order of registration."""
    revision = hub.model(model).revision
    return read(hub, model, hub.list_versions(model), revision)


@get(
    VERSION,
    operation_id="getVersion",
    summary="A version",
    tags=["versions"],
    responses=READ,
)
@threaded
def get_version(hub: Turnout, model: str, version: str) -> Response[Version]:
    """A version: its files, signature, features, offline metrics and metadata."""
    revision = hub.model(model).revision
    return read(hub, model, _found(hub, model, version), revision)


@delete(
    VERSION,
    status_code=200,
    operation_id="deleteVersion",
    summary="Delete a version",
    tags=["versions"],
    responses={**also(202, Deleted, PENDING), **WRITE},
)
@threaded
def delete_version(
    hub: Turnout, model: str, version: str, author: Author, reason: Reason = ""
) -> Response[Deleted]:
    """Delete a version and its files. Refused for the active version, arms of a running test and override targets."""
    if not hub.delete_version(model, version, reason=reason, **author):
        raise _missing(model, version)
    return changed(hub, Deleted(deleted=True))


def _is_known(hub: Turnout, model: str, version: str) -> bool:
    try:
        return hub.get_version(model, version) is not None
    except ModelNotFound:
        return False


def _found(hub: Turnout, model: str, version: str) -> Version:
    found = hub.get_version(model, version)
    if found is None:
        raise _missing(model, version)
    return found


def _missing(model: str, version: str) -> VersionNotFound:
    return VersionNotFound(f"Version {version} not found for model {model}")


ROUTES = [put_version, list_versions, get_version, delete_version]
