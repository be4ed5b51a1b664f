"""The verbs of a running server, over HTTP: the same names, arguments, results and errors as those of `Turnout`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from turnout import errors
from turnout.domain import (
    Assignment,
    AuditEvent,
    Change,
    Comparison,
    Distribution,
    Feature,
    History,
    Model,
    Prediction,
    SessionOptions,
    Status,
    Test,
    Version,
)
from turnout.errors import ModelNotFound, TestNotFound, TurnoutError, VersionNotFound

T = TypeVar("T")
TAR = "application/x-tar"


class ServerUnreachable(TurnoutError):
    """The server did not answer; whether a change was made is not known then."""

    status = 503
    code = "server_unreachable"


def _by_code(root: type[TurnoutError]) -> dict[str, type[TurnoutError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found |= _by_code(kind)
    return found


CLASSES = _by_code(errors.TurnoutError)


class Client:
    """One server. Nothing is retried: an error means that the caller must look.

    Args:
        url: such as `http://127.0.0.1:8000`.
        timeout: seconds that one call may take; registering a version runs it first.
        actor: who makes changes, for the audit log.
    """

    def __init__(self, url: str, *, timeout: float = 120.0, actor: str | None = None) -> None:
        headers = {} if actor is None else {"X-Actor": actor.encode("utf-8").decode("latin-1")}
        self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers)
        self.last_change: Change | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- versions -----------------------------------------------------------------------------------------------

    def register_version(
        self,
        model: str,
        version: str,
        path: str | Path,
        *,
        features: Sequence[str | Feature | Mapping[str, Any]] | None = None,
        accuracy: float | None = None,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        options: SessionOptions | None = None,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Upload a model file, which the server stores, probes and registers."""
        spec = {
            "features": None if features is None else list(features),
            "accuracy": accuracy,
            "metrics": dict(metrics or {}),
            "metadata": dict(metadata or {}),
            "options": options or SessionOptions(),
        }
        with Path(path).open("rb") as file:
            parts = {
                "spec": (None, msgspec.json.encode(spec), "application/json"),
                "artifact": ("model.onnx", file),
            }
            answer = self._send(
                "PUT",
                _path(model, "versions", version),
                files=parts,
                params={"reason": reason},
                headers=_headers(actor, revision),
            )
        return _decode(answer, Version)

    def activate_version(
        self,
        model: str,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Make a version the one that answers when no test runs."""
        return self._post(
            model, ["activate"], {"version": version, "reason": reason}, Version, actor, revision
        )

    def rollback(
        self,
        model: str,
        version: str | None = None,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Go back to a version, by default to the one that was active before; a running test ends."""
        return self._post(
            model, ["rollback"], {"version": version, "reason": reason}, Version, actor, revision
        )

    def delete_version(
        self,
        model: str,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> bool:
        """Delete a version. False if it is not there."""
        try:
            self._delete(_path(model, "versions", version), reason, actor, revision)
        except VersionNotFound:
            return False
        return True

    def active_version(self, model: str) -> Version | None:
        """The version that answers when no test runs."""
        active = self.model(model).active
        return None if active is None else self.get_version(model, active)

    def get_version(self, model: str, version: str) -> Version | None:
        """The version with this label, or None."""
        try:
            return self._get(_path(model, "versions", version), Version)
        except VersionNotFound:
            return None

    def list_versions(self, model: str) -> list[Version]:
        """All versions, in order of registration."""
        return self._get(_path(model, "versions"), list[Version])

    def compare_versions(self, model: str, a: str, b: str) -> Comparison:
        """Two versions side by side."""
        return self._get(_path(model, "compare"), Comparison, a=a, b=b)

    def version_history(self, model: str) -> History:
        """What happened to a model, and why."""
        return self._get(_path(model, "history"), History)

    def model(self, model: str) -> Model:
        """The head of a model."""
        return self._get(_path(model), Model)

    def models(self) -> list[Model]:
        """The heads of all models, by name."""
        return self._get("/v1/models", list[Model])

    # --- tests --------------------------------------------------------------------------------------------------

    def configure_test(
        self,
        model: str,
        weights: Mapping[str, float],
        salt: str | None = None,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Test:
        """Start a test, or move a running one to new weights."""
        body = {"splits": dict(weights), "salt": salt, "reason": reason}
        answer = self._send("PUT", _path(model, "test"), json=body, headers=_headers(actor, revision))
        return _decode(answer, Test)

    def get_test(self, model: str) -> Test | None:
        """The running test, or None."""
        try:
            return self._get(_path(model, "test"), Test)
        except TestNotFound:
            return None

    def list_tests(self, model: str) -> list[Test]:
        """Every test that the model has had, oldest first."""
        return self._get(_path(model, "tests"), list[Test])

    def promote_winner(
        self,
        model: str,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """End the test and activate one of its arms."""
        body = {"version": version, "reason": reason}
        return self._post(model, ["test", "promote"], body, Version, actor, revision)

    def stop_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """End the test; the active version takes all traffic."""
        return _decode(self._delete(_path(model, "test"), reason, actor, revision), Test)

    def set_override(
        self,
        model: str,
        entity_id: str | int,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> None:
        """Send one entity to one version, whatever the split says."""
        self._send(
            "PUT",
            _path(model, "overrides", str(entity_id)),
            json={"version": version, "reason": reason},
            headers=_headers(actor, revision),
        )

    def delete_override(
        self,
        model: str,
        entity_id: str | int,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> bool:
        """Let the split decide for this entity again. False if there was no override."""
        try:
            self._delete(_path(model, "overrides", str(entity_id)), reason, actor, revision)
        except ModelNotFound:
            raise
        except errors.NotFound:
            return False
        return True

    def overrides(self, model: str) -> dict[str, str]:
        """Version by entity id."""
        return self._get(_path(model, "overrides"), dict[str, str])

    # --- assignment and prediction ------------------------------------------------------------------------------

    def assign(self, model: str, entity_id: str | int, *, at: datetime | None = None) -> Assignment:
        """The version that answers this entity, and why; with `at` the one that did then."""
        moment = {} if at is None else {"at": at.isoformat()}
        return self._get(_path(model, "assignments", str(entity_id)), Assignment, **moment)

    def distribution(self, model: str) -> Distribution:
        """The split as configured, on a million synthetic ids, and in the requests so far."""
        return self._get(_path(model, "distribution"), Distribution)

    def predict(
        self,
        model: str,
        features: Mapping[str, Any] | Sequence[Any],
        *,
        entity_id: str | int | None = None,
        version: str | None = None,
    ) -> Prediction:
        """Route and answer one row."""
        path = _path(model, "predict") if version is None else _path(model, "versions", version, "predict")
        return _decode(
            self._send("POST", path, json={"entity_id": entity_id, "features": features}), Prediction
        )

    # --- the whole ----------------------------------------------------------------------------------------------

    def export_registry(self, artifacts: IO[bytes] | None = None) -> dict[str, Any]:
        """The registry as plain JSON data; with a file, also written there as a tar that carries the model files."""
        if artifacts is not None:
            try:
                with self._http.stream("GET", "/v1/registry/export", params={"artifacts": True}) as answer:
                    if answer.is_error:
                        answer.read()
                        raise _error(answer)
                    for block in answer.iter_bytes():
                        artifacts.write(block)
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
        return self._get("/v1/registry/export", dict[str, Any])

    def import_registry(
        self,
        source: Mapping[str, Any] | IO[bytes],
        *,
        replace: bool = False,
        actor: str | None = None,
        reason: str = "",
    ) -> list[str]:
        """Take an export, as plain JSON data or as a tar with the model files; the names of the models."""
        document = isinstance(source, Mapping)
        answer = self._send(
            "POST",
            "/v1/registry/import",
            params={"replace": replace, "reason": reason},
            content=msgspec.json.encode(source) if document else source,
            headers={"Content-Type": "application/json" if document else TAR, **_headers(actor, None)},
        )
        return _decode(answer, dict[str, list[str]])["models"]

    def audit(self, *, model: str | None = None, after: int = 0, limit: int = 1000) -> list[AuditEvent]:
        """Changes in their order."""
        chosen = {} if model is None else {"model": model}
        return self._get("/v1/audit", list[AuditEvent], after=after, limit=limit, **chosen)

    def status(self) -> Status:
        """Generation, live workers, and what each of them has loaded on which device."""
        return self._get("/v1/status", Status)

    # --- the parts ----------------------------------------------------------------------------------------------

    def _get(self, path: str, kind: type[T], **parameters: Any) -> T:  # noqa: ANN401
        return _decode(self._send("GET", path, params=parameters), kind)

    def _post(
        self,
        model: str,
        rest: list[str],
        body: dict[str, Any],
        kind: type[T],
        actor: str | None,
        revision: int | None,
    ) -> T:
        return _decode(
            self._send("POST", _path(model, *rest), json=body, headers=_headers(actor, revision)), kind
        )

    def _delete(self, path: str, reason: str, actor: str | None, revision: int | None) -> httpx.Response:
        return self._send("DELETE", path, params={"reason": reason}, headers=_headers(actor, revision))

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:  # noqa: ANN401
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _error(answer)
        if "turnout-generation" in answer.headers:
            self.last_change = _change(answer.headers)
        return answer

    def _unreachable(self, error: httpx.HTTPError) -> ServerUnreachable:
        return ServerUnreachable(f"{self._http.base_url} did not answer: {error or type(error).__name__}")


def _path(model: str, *rest: str) -> str:
    return "/v1/models/" + "/".join(quote(part, safe="") for part in (model, *rest))


def _headers(actor: str | None, revision: int | None) -> dict[str, str]:
    found = {} if actor is None else {"X-Actor": actor.encode("utf-8").decode("latin-1")}
    return found if revision is None else {**found, "If-Match": f'"{revision}"'}


def _change(headers: httpx.Headers) -> Change:
    pending = tuple(part.strip() for part in headers.get("turnout-pending", "").split(",") if part.strip())
    revision = headers.get("etag", '"0"').strip('"')
    return Change(generation=int(headers["turnout-generation"]), revision=int(revision), pending=pending)


def _decode(answer: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as error:
        raise ServerUnreachable(
            f"{answer.url} answered something else than Turnout would: {error}"
        ) from error


def _error(answer: httpx.Response) -> TurnoutError:
    """The exception that a problem document (RFC 9457) means."""
    try:
        document = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError:
        document = {}
    detail = str(document.get("detail") or f"{answer.status_code} {answer.reason_phrase} from {answer.url}")
    place = {key: document.get(key) for key in ("row", "feature", "position")}
    return CLASSES.get(str(document.get("code")), TurnoutError)(detail, **place)
