"""The verbs of a running server, over HTTP: the same names, arguments, results and errors as those of `Turnout`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import httpx
import msgspec

from turnout.client.wire import (
    JSON,
    TAR,
    Forgotten,
    ReceiptDocument,
    Recorded,
    ServerUnreachable,
    Tee,
    change_of,
    decode,
    document_of,
    encode,
    entity_path,
    error_of,
    headers_of,
    model_file,
    path_of,
)
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
from turnout.errors import (
    InvalidMetric,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    TestNotFound,
    VersionNotFound,
)
from turnout.experiment.outcomes import MAX_OUTCOMES, Attributed, Outcome
from turnout.experiment.receipts import Receipt
from turnout.experiment.results import Results, VersionQuality
from turnout.plans import Metric, Plan

__all__ = ["Client", "ServerUnreachable"]

T = TypeVar("T")


class Client:
    """One server. Nothing is retried: an error means that the caller must look.

    Args:
        url: such as `http://127.0.0.1:8000`.
        timeout: seconds without a sign of the server; registering a version runs it first.
        actor: who makes changes, for the audit log.
    """

    def __init__(self, url: str, *, timeout: float = 120.0, actor: str | None = None) -> None:
        try:
            self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers_of(actor, None))
        except httpx.InvalidURL as error:
            raise InvalidRequest(
                f"expected a URL such as http://127.0.0.1:8000, found {url}: {error}"
            ) from error
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
        """Upload a model file, which the server stores, probes and registers.

        Raises InvalidModel for a folder as well: an upload is one file.
        """
        spec = {
            "features": None if features is None else list(features),
            "accuracy": accuracy,
            "metrics": dict(metrics or {}),
            "metadata": dict(metadata or {}),
            "options": options or SessionOptions(),
        }
        with model_file(Path(path)) as file:
            parts = {
                "spec": (None, encode(spec), "application/json"),
                "artifact": ("model.onnx", file),
            }
            answer = self._send(
                "PUT",
                path_of(model, "versions", version),
                files=parts,
                params={"reason": reason},
                headers=headers_of(actor, revision),
            )
        return decode(answer, Version)

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
            self._delete(path_of(model, "versions", version), reason, actor, revision)
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
            return self._get(path_of(model, "versions", version), Version)
        except VersionNotFound:
            return None

    def list_versions(self, model: str) -> list[Version]:
        """All versions, in order of registration."""
        return self._get(path_of(model, "versions"), list[Version])

    def compare_versions(self, model: str, a: str, b: str) -> Comparison:
        """Two versions side by side."""
        return self._get(path_of(model, "compare"), Comparison, a=a, b=b)

    def version_history(self, model: str) -> History:
        """What happened to a model, and why."""
        return self._get(path_of(model, "history"), History)

    def model(self, model: str) -> Model:
        """The head of a model."""
        return self._get(path_of(model), Model)

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
        plan: Plan | Mapping[str, Any] | None = None,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Test:
        """Start a test, or move a running one to new weights; with a `plan` it goes on by itself."""
        body = {"splits": dict(weights), "salt": salt, "plan": plan, "reason": reason}
        answer = self._send("PUT", path_of(model, "test"), body, headers=headers_of(actor, revision))
        return decode(answer, Test)

    def get_test(self, model: str) -> Test | None:
        """The running test, or None."""
        try:
            return self._get(path_of(model, "test"), Test)
        except TestNotFound:
            return None

    def list_tests(self, model: str) -> list[Test]:
        """Every test that the model has had, oldest first."""
        return self._get(path_of(model, "tests"), list[Test])

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
        return decode(self._delete(path_of(model, "test"), reason, actor, revision), Test)

    def pause_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Keep a planned test at its step until it is resumed; guardrails go on to be watched."""
        return self._post(model, ["test", "pause"], {"reason": reason}, Test, actor, revision)

    def resume_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Let a paused test go on; the dwell time of its step begins anew."""
        return self._post(model, ["test", "resume"], {"reason": reason}, Test, actor, revision)

    def approve_step(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Say that a planned test may leave its step once all else allows it."""
        return self._post(model, ["test", "approve"], {"reason": reason}, Test, actor, revision)

    def skip_step(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Take a planned test to its next step now, whatever it still waits for."""
        return self._post(model, ["test", "skip"], {"reason": reason}, Test, actor, revision)

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
            path_of(model, "overrides", str(entity_id)),
            {"version": version, "reason": reason},
            headers=headers_of(actor, revision),
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
            self._delete(path_of(model, "overrides", str(entity_id)), reason, actor, revision)
        except ModelNotFound:
            raise
        except NotFound:
            return False
        return True

    def overrides(self, model: str) -> dict[str, str]:
        """Version by entity id."""
        return self._get(path_of(model, "overrides"), dict[str, str])

    # --- what became of it --------------------------------------------------------------------------------------

    def declare_metrics(
        self,
        model: str,
        metrics: Sequence[Metric | Mapping[str, Any]],
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> tuple[Metric, ...]:
        """Say what is measured of a model; replaces what was said before."""
        if isinstance(metrics, Mapping | str):
            raise InvalidMetric(f"expected a list of metrics, found {type(metrics).__name__}")
        body = {"metrics": list(metrics), "reason": reason}
        answer = self._send("PUT", path_of(model, "metrics"), body, headers=headers_of(actor, revision))
        return decode(answer, tuple[Metric, ...])

    def declared_metrics(self, model: str) -> tuple[Metric, ...]:
        """What is measured of a model."""
        return self._get(path_of(model, "metrics"), tuple[Metric, ...])

    def record_outcomes(self, outcomes: Iterable[Outcome | Mapping[str, Any]]) -> list[Attributed]:
        """Store what was observed, any number of it, 10,000 at a time; what became of each.

        Where it raises, those of the 10,000 before are stored: give outcomes an `id`, and they can be sent again.
        """
        if isinstance(outcomes, Mapping | str | bytes | Outcome):
            raise InvalidRequest(f"expected a list of outcomes, found {type(outcomes).__name__}")
        given = list(outcomes)
        found: list[Attributed] = []
        for start in range(0, len(given), MAX_OUTCOMES):
            answer = self._send("POST", "/v1/outcomes", given[start : start + MAX_OUTCOMES])
            found += decode(answer, Recorded).results
        return found

    def results(self, model: str, test_id: str | None = None, *, alpha: float = 0.05) -> Results:
        """What a test has shown, what is recommended, and why: the running one, else the last, or that of an id."""
        chosen = {} if test_id is None else {"test": test_id}
        return self._get(path_of(model, "test", "results"), Results, alpha=alpha, **chosen)

    def live_quality(self, model: str) -> list[VersionQuality]:
        """What labels say of each version, in tests and outside of them, beside its offline metrics."""
        return self._get(path_of(model, "quality"), list[VersionQuality])

    def read_receipt(self, model: str, prediction_id: str) -> Receipt:
        """What a prediction id says of its prediction. Raises InvalidReceipt for one that was not given there."""
        return self._get(path_of(model, "receipts", prediction_id), ReceiptDocument).receipt()

    def forget_entity(self, entity_id: str | int) -> int:
        """Remove the exposures and outcomes of one entity everywhere; how many records that were. Counts stay."""
        return decode(self._send("DELETE", entity_path(str(entity_id))), Forgotten).deleted

    # --- assignment and prediction ------------------------------------------------------------------------------

    def assign(self, model: str, entity_id: str | int, *, at: datetime | None = None) -> Assignment:
        """The version that answers this entity, and why; with `at` the one that did then."""
        moment = {} if at is None else {"at": at.isoformat()}
        return self._get(path_of(model, "assignments", str(entity_id)), Assignment, **moment)

    def distribution(self, model: str) -> Distribution:
        """The split as configured, on a million synthetic ids, and in the requests so far."""
        return self._get(path_of(model, "distribution"), Distribution)

    def predict(
        self,
        model: str,
        features: Mapping[str, Any] | Sequence[Any],
        *,
        entity_id: str | int | None = None,
        version: str | None = None,
    ) -> Prediction:
        """Route and answer one row."""
        path = (
            path_of(model, "predict") if version is None else path_of(model, "versions", version, "predict")
        )
        return decode(self._send("POST", path, {"entity_id": entity_id, "features": features}), Prediction)

    # --- the whole ----------------------------------------------------------------------------------------------

    def export_registry(self, artifacts: IO[bytes] | None = None) -> dict[str, Any]:
        """The registry as plain JSON data; with a file, also written there as a tar that carries the model files."""
        if artifacts is None:
            return self._get("/v1/registry/export", dict[str, Any])
        try:
            with self._http.stream("GET", "/v1/registry/export", params={"artifacts": True}) as answer:
                if answer.is_error:
                    answer.read()
                    raise error_of(answer)
                return document_of(Tee(answer.iter_bytes(), artifacts))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (tarfile.TarError, msgspec.DecodeError) as error:
            raise self._strange(error) from error

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
            content=encode(source) if document else source,
            headers={b"Content-Type": JSON if document else TAR, **headers_of(actor, None)},
        )
        return decode(answer, dict[str, list[str]])["models"]

    def audit(self, *, model: str | None = None, after: int = 0, limit: int = 1000) -> list[AuditEvent]:
        """Changes in their order."""
        chosen = {} if model is None else {"model": model}
        return self._get("/v1/audit", list[AuditEvent], after=after, limit=limit, **chosen)

    def status(self) -> Status:
        """Generation, live workers, and what each of them has loaded on which device."""
        return self._get("/v1/status", Status)

    # --- the parts ----------------------------------------------------------------------------------------------

    def _get(self, path: str, kind: type[T], **parameters: Any) -> T:  # noqa: ANN401
        return decode(self._send("GET", path, params=parameters), kind)

    def _post(
        self,
        model: str,
        rest: list[str],
        body: dict[str, Any],
        kind: type[T],
        actor: str | None,
        revision: int | None,
    ) -> T:
        return decode(
            self._send("POST", path_of(model, *rest), body, headers=headers_of(actor, revision)), kind
        )

    def _delete(self, path: str, reason: str, actor: str | None, revision: int | None) -> httpx.Response:
        return self._send("DELETE", path, params={"reason": reason}, headers=headers_of(actor, revision))

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401
        *,
        headers: Mapping[bytes, bytes] | None = None,
        **arguments: Any,  # noqa: ANN401
    ) -> httpx.Response:
        if body is not None:
            headers = {**(headers or {}), b"Content-Type": JSON}
            arguments["content"] = encode(body)
        try:
            answer = self._http.request(method, path, headers=headers, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidRequest(f"this cannot be asked of a server: {error}") from error
        if answer.is_error:
            raise error_of(answer)
        if "turnout-generation" in answer.headers:
            self.last_change = change_of(answer.headers)
        return answer

    def _unreachable(self, error: httpx.HTTPError) -> ServerUnreachable:
        return ServerUnreachable(f"{self._http.base_url} did not answer: {error or type(error).__name__}")

    def _strange(self, error: Exception) -> ServerUnreachable:
        return ServerUnreachable(f"{self._http.base_url} answered something else than Turnout would: {error}")
