"""The verbs of a running server, over HTTP: the same names, arguments, results and errors as those of `Turnout`."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from turnout.client.aio.trials import AsyncTrials
from turnout.client.batches import ROWS, BatchAnswer, BatchDocument, batch_body, chunks
from turnout.client.retry import ONCE, PREDICTION, READ
from turnout.client.wire import (
    JSON,
    TAR,
    Archive,
    archive_file,
    decode,
    entity_of,
    headers_of,
    ids_of,
    indices_of,
    model_file,
    path_of,
    predict_path,
    row_body,
    strange,
    unreachable,
    version_spec,
    wishes_of,
)
from turnout.domain import (
    Assignment,
    AuditEvent,
    Comparison,
    Distribution,
    Feature,
    History,
    Model,
    OnError,
    Prediction,
    SessionOptions,
    Status,
    Version,
)
from turnout.errors import NoActiveVersion, TurnoutError, VersionNotFound
from turnout.plain import to_json


class AsyncClient(AsyncTrials):
    """One server. `Client` may be used by many threads at once, `AsyncClient` by the tasks of one event loop.

    Connections are kept open and used again. A request is sent again only where that is safe, at most `retries` times,
    with growing waits that `Retry-After` makes longer, and within `timeout` seconds in all:

    - reads, and outcomes that all have an `id`: after a connection that failed or was closed, 429, 502, 503, 504;
    - predictions and batches: the same failures, 429, and 503 with `Retry-After`;
    - everything that changes something, with a `revision` or without: only where no connection could be made, so
      that nothing was sent.

    Anything else is raised at once: ServerUnreachable says that nobody answered, and whether a change was made is not
    known then.
    """

    # --- versions -----------------------------------------------------------------------------------------------

    async def register_version(
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
        spec = version_spec(features, accuracy, metrics, metadata, options)
        with model_file(Path(path)) as file:
            parts = {
                "spec": (None, spec, "application/json"),
                "artifact": ("model.onnx", file),
            }
            answer = await self._change(
                "PUT",
                path_of(model, "versions", version),
                files=parts,
                params={"reason": reason},
                headers=headers_of(actor, revision),
            )
        return decode(answer, Version)

    async def activate_version(
        self,
        model: str,
        version: str,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Make a version the one that answers when no test runs."""
        return await self._post(
            model, ["activate"], {"version": version, "reason": reason}, Version, actor, revision
        )

    async def rollback(
        self,
        model: str,
        version: str | None = None,
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> Version:
        """Go back to a version, by default to the one that was active before; a running test ends."""
        return await self._post(
            model, ["rollback"], {"version": version, "reason": reason}, Version, actor, revision
        )

    async def delete_version(
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
            await self._delete(path_of(model, "versions", version), reason, actor, revision)
        except VersionNotFound:
            return False
        return True

    async def active_version(self, model: str) -> Version | None:
        """The version that answers when no test runs."""
        active = (await self.model(model)).active
        return None if active is None else await self.get_version(model, active)

    async def get_version(self, model: str, version: str) -> Version | None:
        """The version with this label, or None."""
        try:
            return await self._get(path_of(model, "versions", version), Version)
        except VersionNotFound:
            return None

    async def list_versions(self, model: str) -> list[Version]:
        """All versions, in order of registration."""
        return await self._get(path_of(model, "versions"), list[Version])

    async def compare_versions(self, model: str, a: str, b: str) -> Comparison:
        """Two versions side by side."""
        return await self._get(path_of(model, "compare"), Comparison, a=a, b=b)

    async def version_history(self, model: str) -> History:
        """What happened to a model, and why."""
        return await self._get(path_of(model, "history"), History)

    async def model(self, model: str) -> Model:
        """The head of a model."""
        return await self._get(path_of(model), Model)

    async def models(self) -> list[Model]:
        """The heads of all models, by name."""
        return await self._get("/v1/models", list[Model])

    # --- assignment and prediction ------------------------------------------------------------------------------

    async def select_version(self, model: str, entity_id: str | int) -> str | None:
        """The version that answers this entity; None where no version is active and no test runs."""
        try:
            return (await self.assign(model, entity_id)).version
        except NoActiveVersion:
            return None

    async def assign(self, model: str, entity_id: str | int, *, at: datetime | None = None) -> Assignment:
        """The version that answers this entity, and why; with `at` the one that did then."""
        moment = {} if at is None else {"at": at.isoformat()}
        return await self._get(path_of(model, "assignments", str(entity_of(entity_id))), Assignment, **moment)

    async def assign_many(
        self, model: str, ids: Iterable[str | int]
    ) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """For each id an index (uint8, shape [N]) into the version names that are returned beside.

        One request for each different id, one after the other: for more than some hundred, open the data directory,
        where a million take a moment. A change that is made meanwhile shows in those that are asked behind it.
        The names are those of the versions that occur, so there are none without ids.
        """
        given = [entity_of(entity) for entity in ids_of(ids)]
        found = {entity: await self.assign(model, entity) for entity in dict.fromkeys(given)}
        return indices_of([found[entity] for entity in given])

    async def distribution(self, model: str) -> Distribution:
        """The split as configured, on a million synthetic ids, and in the requests so far."""
        return await self._get(path_of(model, "distribution"), Distribution)

    async def predict(
        self,
        model: str,
        features: Mapping[str, Any] | Sequence[Any] | NDArray[Any],
        *,
        entity_id: str | int | None = None,
        version: str | None = None,
        priority: int | None = None,
        timeout_ms: int | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Route and answer one row: a mapping by feature name, or values in the order of the schema.

        It is sent again where the connection failed, after 429, and after 503 with `Retry-After`: the exposure of an
        entity is noted once however often it is served, and a request without one is only counted once more.

        Args:
            model: the model.
            features: one row.
            entity_id: whom or what it is about.
            version: the version that answers, whatever routing says.
            priority: from 0, the most urgent, to 7, by default 3: who goes first where some wait for a version.
            timeout_ms: how long it may wait for its turn, 1 to 600,000 ms; DeadlineExceeded after that.
            request_id: what the log of the server calls it, 1 to 128 printable ASCII characters.

        Raises InvalidFeatures, NoActiveVersion, PredictionFailed, DeadlineExceeded, TooManyRequests, and
        VersionNotFound for an unknown `version`.
        """
        answer = await self._send(
            "POST",
            predict_path(model, version, "predict"),
            row_body(features, entity_id),
            rule=PREDICTION,
            headers=wishes_of(request_id, priority, timeout_ms),
        )
        return decode(answer, Prediction)

    async def predict_batch(
        self,
        model: str,
        rows: Any,  # noqa: ANN401
        *,
        entity_ids: Any = None,  # noqa: ANN401
        version: str | None = None,
        on_error: OnError = "fail",
        request_id: str | None = None,
    ) -> BatchAnswer:
        """Route and answer many rows at once, each as `predict` would; sent again as that is.

        Args:
            model: the model.
            rows: a list of mappings or lists, a mapping of columns, a two-dimensional NumPy array, or a table: pandas,
                polars, pyarrow (needs `turnout[arrow]`). They go as one JSON document.
            entity_ids: one for each row, None for none; a table may have them in its column `entity_id`.
            version: the version that answers all of them.
            on_error: `fail` raises the first error of a row, `skip` notes it and answers the others.
            request_id: what the log of the server calls it.

        Raises what `predict` raises, with `row`, and PayloadTooLarge for more than `max_batch_rows` rows or
        `max_batch_bytes`: `predict_stream` takes any number.
        """
        answer = await self._send(
            "POST",
            predict_path(model, version, "batch"),
            batch_body(rows, entity_ids),
            rule=PREDICTION,
            params={"on_error": on_error},
            headers=wishes_of(request_id, None, None),
        )
        return decode(answer, BatchDocument).answer()

    async def predict_stream(
        self,
        model: str,
        rows: Iterable[Mapping[str, Any] | Sequence[Any] | NDArray[Any]],
        *,
        entity_ids: Iterable[str | int | None] | None = None,
        version: str | None = None,
        on_error: OnError = "fail",
        size: int = ROWS,
    ) -> AsyncIterator[BatchAnswer]:
        """Route and answer any number of rows, taken from `rows` as they are needed, so many (`size`) at a time.

        Each of the answers is that of a batch, and each batch is sent again as `predict_batch` is. Rows in `errors`, and
        the `row` of an error that is raised, are counted from the first of all.
        Tables and columns are for `predict_batch`.
        """
        done = 0
        for some, ids in chunks(rows, entity_ids, size):
            try:
                found = await self.predict_batch(
                    model, some, entity_ids=ids, version=version, on_error=on_error
                )
            except TurnoutError as error:
                if error.row is not None:
                    error.row += done
                raise
            yield found.behind(done)
            done += len(found)

    # --- the whole ----------------------------------------------------------------------------------------------

    async def export_registry(self, artifacts: IO[bytes] | None = None) -> dict[str, Any]:
        """The registry as plain JSON data; with a file, also written there as a tar that carries the model files."""
        if artifacts is None:
            return await self._get("/v1/registry/export", dict[str, Any])
        archive = Archive(artifacts)
        answer = await self._send(
            "GET", "/v1/registry/export", rule=READ, stream=True, params={"artifacts": True}
        )
        try:
            async for block in answer.aiter_bytes():
                await asyncio.to_thread(archive.write, block)
            return archive.document()
        except httpx.HTTPError as error:
            raise unreachable(error, answer.url, 1) from error
        except (tarfile.TarError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise strange(error, answer.url) from error
        finally:
            await answer.aclose()

    async def import_registry(
        self,
        source: Mapping[str, Any] | IO[bytes],
        *,
        replace: bool = False,
        actor: str | None = None,
        reason: str = "",
    ) -> list[str]:
        """Take an export, as plain JSON data or as a tar with the model files; the names of the models."""
        document = isinstance(source, Mapping)
        answer = await self._change(
            "POST",
            "/v1/registry/import",
            params={"replace": replace, "reason": reason},
            content=to_json(source) if document else archive_file(source),
            headers={b"Content-Type": JSON if document else TAR, **headers_of(actor, None)},
        )
        return decode(answer, dict[str, list[str]])["models"]

    async def audit(self, *, model: str | None = None, after: int = 0, limit: int = 1000) -> list[AuditEvent]:
        """Changes in their order."""
        chosen = {} if model is None else {"model": model}
        return await self._get("/v1/audit", list[AuditEvent], after=after, limit=limit, **chosen)

    async def status(self) -> Status:
        """Generation, live workers, and what each of them has loaded on which device."""
        return await self._get("/v1/status", Status)

    async def metrics(self) -> bytes:
        """The statistics and the state of all workers in Prometheus's text format."""
        answer = await self._send("GET", "/metrics", rule=READ)
        kind = answer.headers.get("content-type", "")
        if not (kind.startswith("text/plain") and "version=" in kind):
            raise strange(f"content of the type {kind!r}", answer.url)
        return answer.content

    async def ready(self) -> bool:
        """Whether the worker that answers serves the present generation and is not about to stop.

        False where nobody answers, or something else than Turnout. It asks once.
        """
        return await self._is("/readyz", "ready")

    async def alive(self) -> bool:
        """Whether a process of Turnout answers at all. It asks once."""
        return await self._is("/livez", "live")

    async def _is(self, path: str, word: str) -> bool:
        try:
            found = decode(await self._send("GET", path, rule=ONCE), dict[str, Any])
        except TurnoutError:
            if self._turns.closed:
                raise
            return False
        return found.get(word) is True
