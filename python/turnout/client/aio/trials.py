"""What people do with experiments: split, measure, look, hold, let go. A part of `AsyncClient`, which has the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from turnout.client.aio.connection import AsyncConnection
from turnout.client.retry import READ, WRITE
from turnout.client.wire import (
    Forgotten,
    ReceiptDocument,
    Recorded,
    count_once,
    decode,
    entity_of,
    entity_path,
    headers_of,
    metrics_of,
    outcomes_of,
    path_of,
)
from turnout.domain import Test, Version
from turnout.errors import ModelNotFound, NotFound, TestNotFound
from turnout.experiment.outcomes import Attributed, Outcome
from turnout.experiment.receipts import Receipt
from turnout.experiment.results import Results, VersionQuality
from turnout.plans import Metric, Plan


class AsyncTrials(AsyncConnection):
    """The verbs about experiments."""

    async def configure_test(
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
        return await self._put(path_of(model, "test"), body, Test, actor, revision)

    async def get_test(self, model: str) -> Test | None:
        """The running test, or None."""
        try:
            return await self._get(path_of(model, "test"), Test)
        except TestNotFound:
            return None

    async def list_tests(self, model: str) -> list[Test]:
        """Every test that the model has had, oldest first."""
        return await self._get(path_of(model, "tests"), list[Test])

    async def promote_winner(
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
        return await self._post(model, ["test", "promote"], body, Version, actor, revision)

    async def stop_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """End the test; the active version takes all traffic."""
        return decode(await self._delete(path_of(model, "test"), reason, actor, revision), Test)

    async def pause_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Keep a planned test at its step until it is resumed; guardrails go on to be watched."""
        return await self._post(model, ["test", "pause"], {"reason": reason}, Test, actor, revision)

    async def resume_test(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Let a paused test go on; the dwell time of its step begins anew."""
        return await self._post(model, ["test", "resume"], {"reason": reason}, Test, actor, revision)

    async def approve_step(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Say that a planned test may leave its step once all else allows it."""
        return await self._post(model, ["test", "approve"], {"reason": reason}, Test, actor, revision)

    async def skip_step(
        self, model: str, *, actor: str | None = None, reason: str = "", revision: int | None = None
    ) -> Test:
        """Take a planned test to its next step now, whatever it still waits for."""
        return await self._post(model, ["test", "skip"], {"reason": reason}, Test, actor, revision)

    async def set_override(
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
        await self._change(
            "PUT",
            path_of(model, "overrides", str(entity_of(entity_id))),
            {"version": version, "reason": reason},
            headers=headers_of(actor, revision),
        )

    async def delete_override(
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
            await self._delete(
                path_of(model, "overrides", str(entity_of(entity_id))), reason, actor, revision
            )
        except ModelNotFound:
            raise
        except NotFound:
            return False
        return True

    async def overrides(self, model: str) -> dict[str, str]:
        """Version by entity id."""
        return await self._get(path_of(model, "overrides"), dict[str, str])

    # --- what became of it --------------------------------------------------------------------------------------

    async def declare_metrics(
        self,
        model: str,
        metrics: Sequence[Metric | Mapping[str, Any]],
        *,
        actor: str | None = None,
        reason: str = "",
        revision: int | None = None,
    ) -> tuple[Metric, ...]:
        """Say what is measured of a model; replaces what was said before."""
        body = {"metrics": metrics_of(metrics), "reason": reason}
        return await self._put(path_of(model, "metrics"), body, tuple[Metric, ...], actor, revision)

    async def declared_metrics(self, model: str) -> tuple[Metric, ...]:
        """What is measured of a model."""
        return await self._get(path_of(model, "metrics"), tuple[Metric, ...])

    async def record_outcomes(self, outcomes: Iterable[Outcome | Mapping[str, Any]]) -> list[Attributed]:
        """Store what was observed, any number of it, 10,000 at a time; what became of each.

        Give outcomes an `id`: only a list in which each has one is sent again by itself where the answer was lost, and
        those that were stored the first time are `duplicate` then. Where it raises, the 10,000s before are stored.
        """
        found: list[Attributed] = []
        for some in outcomes_of(outcomes):
            rule = READ if count_once(some) else WRITE
            found += decode(await self._send("POST", "/v1/outcomes", some, rule=rule), Recorded).results
        return found

    async def results(self, model: str, test_id: str | None = None, *, alpha: float = 0.05) -> Results:
        """What a test has shown, what is recommended, and why: the running one, else the last, or that of an id."""
        chosen = {} if test_id is None else {"test": test_id}
        return await self._get(path_of(model, "test", "results"), Results, alpha=alpha, **chosen)

    async def live_quality(self, model: str) -> list[VersionQuality]:
        """What labels say of each version, in tests and outside of them, beside its offline metrics."""
        return await self._get(path_of(model, "quality"), list[VersionQuality])

    async def read_receipt(self, model: str, prediction_id: str) -> Receipt:
        """What a prediction id says of its prediction. Raises InvalidReceipt for one that was not given there."""
        document = await self._get(path_of(model, "receipts", prediction_id), ReceiptDocument)
        return document.receipt()

    async def forget_entity(self, entity_id: str | int) -> int:
        """Remove the exposures and outcomes of one entity everywhere; how many records that were. Counts stay."""
        return decode(await self._send("DELETE", entity_path(str(entity_of(entity_id)))), Forgotten).deleted
