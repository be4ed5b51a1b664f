"""Models, versions, tests and the audit log, in LMDB: each change is one durable transaction.

A change writes the new state, an event of the audit log and the next generation number together, or nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from turnout import records
from turnout.beacon import Beacon
from turnout.domain import (
    AuditEvent,
    Deployment,
    History,
    LedgerRevision,
    Model,
    Test,
    TestStatus,
    Version,
    check_name,
)
from turnout.errors import Conflict, StorageError, VersionNotFound
from turnout.log import log
from turnout.plans import Metric, Plan, check_plan
from turnout.records import Author, Committed, Records
from turnout.router import ModelRecord
from turnout.store import Store
from turnout.transitions import (
    MAX_OVERRIDE_ID_BYTES,
    MAX_OVERRIDES,
    MAX_SALT_BYTES,
    Ramp,
    check_arms,
    check_counted,
    check_revision,
    check_text,
    check_unused,
    checked,
    deploy,
    end_test,
    existing,
    later,
    normal,
    planned,
    running,
    same,
    shares_of,
    start_test,
    step_test,
)


class RegistrySnapshot(NamedTuple):
    """One consistent state: its generation, the models that differ from what the reader knew, all names."""

    generation: int
    records: list[ModelRecord]
    names: frozenset[str]
    unreadable: Mapping[str, str] = {}
    """What is wrong with those that cannot be read, by name."""


class Registry:
    """The registry of a data directory; any number of processes may have it open at once."""

    def __init__(self, data: Path, *, map_size: int) -> None:
        try:
            data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the data directory {data} cannot be made: {error}") from error
        self._store = Store(data / "registry.lmdb", map_size=map_size)
        self.beacon = Beacon(data / "runtime.beacon")
        self.beacon.raise_to(Beacon.GENERATION, self.generation())

    def close(self) -> None:
        """Let go of the database."""
        self._store.close()
        self.beacon.close()

    # --- reading ------------------------------------------------------------------------------------------------

    def generation(self) -> int:
        """How many changes there have been."""
        return self._store.read(records.generation)

    def models(self) -> list[Model]:
        """The heads of all models, by name."""
        return self._read(lambda r: r.models())

    def model(self, name: str) -> Model:
        """The head of a model. Raises ModelNotFound."""
        return self._read(lambda r: r.model(name))

    def versions(self, model: str) -> list[Version]:
        """All versions, in order of registration. Raises ModelNotFound."""
        return self._read(lambda r: r.versions(r.model(model).name))

    def version(self, model: str, label: str) -> Version | None:
        """A version. Raises ModelNotFound."""
        return self._read(lambda r: r.version(r.model(model).name, label))

    def test(self, model: str) -> Test | None:
        """The running test. Raises ModelNotFound."""
        return self._read(lambda r: r.running(r.model(model)))

    def tests(self, model: str) -> list[Test]:
        """Every test, oldest first. Raises ModelNotFound."""
        return self._read(lambda r: r.tests(r.model(model).name))

    def ledger(self, model: str, test_id: str, revision: int) -> LedgerRevision | None:
        """A ledger as it stood at a revision of a test."""
        return self._read(lambda r: r.ledger(model, test_id, revision))

    def ledgers(self, model: str, test_id: str) -> list[LedgerRevision]:
        """The ledgers of all revisions of a test, oldest first."""
        return self._read(lambda r: r.ledgers(model, test_id))

    def overrides(self, model: str) -> dict[str, str]:
        """Version by entity id. Raises ModelNotFound."""
        return self._read(lambda r: r.overrides(r.model(model).name))

    def deployments(self, model: str) -> list[Deployment]:
        """Every stay of a version as the active one, oldest first. Raises ModelNotFound."""
        return self._read(lambda r: r.deployments(r.model(model).name))

    def audit(self, *, model: str | None = None, after: int = 0, limit: int = 1000) -> list[AuditEvent]:
        """Events with a sequence number greater than `after`, oldest first, at most `limit`."""
        return self._read(lambda r: r.audit(model, after, limit))

    def history(self, model: str) -> History:
        """What happened to a model. Raises ModelNotFound."""

        def read(r: Records) -> History:
            head = r.model(model)
            return History(
                model=model,
                current_version=head.active,
                versions=tuple(reversed(r.versions(model))),
                deployments=tuple(r.deployments(model)),
                tests=tuple(r.tests(model)),
                events=tuple(r.audit(model, 0, None)),
            )

        return self._read(read)

    def snapshot(self, known: Mapping[str, int]) -> RegistrySnapshot:
        """One consistent state, with only those models read whose revision differs from the known one."""

        def read(r: Records) -> RegistrySnapshot:
            changed: list[ModelRecord] = []
            unreadable: dict[str, str] = {}
            for name in (names := r.names()):
                try:
                    head = r.model(name)
                    if known.get(name) != head.revision:
                        changed.append(r.record(head))
                except (
                    msgspec.MsgspecError,
                    ValueError,
                ) as error:  # of another release, say; the others go on
                    unreadable[name] = str(error)
            return RegistrySnapshot(r.generation, changed, frozenset(names), unreadable)

        return self._read(read)

    # --- versions -----------------------------------------------------------------------------------------------

    def register(
        self,
        version: Version,
        place: Callable[[], None],
        author: Author,
        collect: Callable[[str], None] | None = None,
    ) -> Committed:
        """Add a version; `place` puts its files in their place, under the write lock.

        The same label with the same content gives the version that is there, without an event. `collect` removes
        the files of a digest again if the version cannot be committed and nothing else uses them.
        Raises VersionExists for other content.
        """
        check_name("model", version.model)
        check_name("version", version.version)
        version = normal(version)

        def change(r: Records) -> Committed:
            head = r.find(version.model) or Model(
                name=version.model, revision=0, created_at=version.created_at
            )
            found = r.version(version.model, version.version)
            if found is not None:
                return Committed(same(found, version), head, r.generation)
            check_revision(head, author)
            added = replace(version, ordinal=head.versions_registered + 1)
            place()
            r.put_version(added)
            after = replace(head, versions_registered=added.ordinal)
            facts = {"artifact": added.artifact.sha256}
            return r.commit("register", author, head, after, added, label=added.version, facts=facts)

        try:
            return self._change(change)
        except StorageError:
            if collect is not None:
                self.collect([version.artifact.sha256], collect)
            raise

    def activate(self, model: str, label: str, author: Author) -> Committed:
        """Make a version the active one. A running test goes on; only rollback, promotion and stop end it."""

        def change(r: Records) -> Committed:
            head, version = checked(r, model, label, author)
            return r.commit(
                "activate", author, head, deploy(r, head, label, "activate", author), version, label=label
            )

        return self._change(change)

    def rollback(self, model: str, label: str | None, author: Author) -> Committed:
        """Activate a version, by default the one that was active before, and end a running test.

        Where none was, a running test ends all the same: its traffic goes back to the active version.
        Raises Conflict where there is nothing to go back from either.
        """

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            target = label if label is not None else next(iter(head.former), None)
            if target is None and head.test_id is not None:
                target = head.active
            if target is None:
                raise Conflict(
                    f"model {model} has no formerly active version to roll back to; name a version"
                )
            version = existing(r, model, target)
            after = deploy(r, end_test(r, head, "rolled_back"), target, "rollback", author)
            return r.commit("rollback", author, head, after, version, label=target)

        return self._change(change)

    def keep(self, model: str, author: Author, *, kept: bool) -> Committed:
        """Say whether all versions of a model stay loaded; the value is its head. No change where it is so already."""

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            if head.kept == kept:
                return Committed(head, head, r.generation)
            committed = r.commit("load" if kept else "unload", author, head, replace(head, kept=kept), None)
            return committed._replace(value=committed.model)

        return self._change(change)

    def delete(self, model: str, label: str, author: Author, collect: Callable[[str], None]) -> Committed:
        """Delete a version; False if it is not there. `collect` removes the files of a digest that nothing uses.

        Raises VersionInUse for the active version, an arm of a running test and the target of an override.
        """

        def change(r: Records) -> Committed:
            head = r.model(model)
            version = r.version(model, label)
            if version is None:
                return Committed(None, head, r.generation)
            check_revision(head, author)
            check_unused(r, head, label)
            r.delete_version(model, label)
            after = replace(head, former=tuple(former for former in head.former if former != label))
            was = {"artifact": version.artifact.sha256}
            return r.commit("delete", author, head, after, version, label=label, before=was)

        committed = self._change(change)
        if committed.value is not None:
            self.collect([committed.value.artifact.sha256], collect)
        return committed._replace(value=committed.value is not None)

    def collect(self, digests: Iterable[str], remove: Callable[[str], None]) -> None:
        """Remove the files of those digests that no version refers to.

        Happens under the write lock, so that no version can come to refer to them meanwhile. With the digests of all
        stored files this removes what a process that was killed has left. Raises nothing, since it follows a change
        that was made, or failed for a reason of its own: what stays is removed when a server starts.
        """
        offered = set(digests)

        def check(r: Records) -> None:
            for digest in sorted(offered - r.digests()):
                remove(digest)

        try:
            if offered - self._read(lambda r: r.digests()):
                self._change(check)
        except (StorageError, msgspec.MsgspecError) as error:
            log("error", "files_left", detail=str(error))

    # --- tests --------------------------------------------------------------------------------------------------

    def configure_test(
        self,
        model: str,
        weights: dict[str, float],
        salt: str | None,
        author: Author,
        plan: Plan | None = None,
        since: float = 0.0,
    ) -> Committed:
        """Start a test, or give the running one new weights: same id, same salt, the fewest slots moved.

        With a plan the weights only name the arms: it begins with its first step, at `since`.
        Raises InvalidPlan for one that does not fit the model's metrics or the arms, InvalidSplit for weights that are no split, VersionNotFound for an arm that is not registered,
        Conflict for another salt than the running test has.
        """
        if salt is not None:
            check_text("the salt of a test", salt, MAX_SALT_BYTES)

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            for label in weights:
                existing(r, model, label)
            running = r.running(head)
            split, ramp = weights, None
            if plan is not None:
                baseline = None if running is None else running.baseline
                candidate, split = planned(head, weights, check_plan(plan, head.metrics), baseline)
                if running is not None:
                    first = r.ledger(model, running.id, 1)
                    check_arms(running, None if first is None else first.weights, split)
                ramp = Ramp(plan, candidate, since)
            if running is None:
                after, test, runs = start_test(head, split, salt, ramp)
            else:
                after, test, runs = step_test(r, head, running, split, salt, ramp)
            r.put_test(test)
            r.put_ledger(model, LedgerRevision(test.id, test.revision, test.changed_at, test.weights, runs))
            facts = {"test": test.id, "weights": test.weights}
            if plan is not None:
                facts["plan"] = msgspec.to_builtins(plan)
            was = {} if running is None else {"test": running.id, "weights": running.weights}
            return r.commit("configure_test", author, head, after, test, before=was, facts=facts)

        return self._change(change)

    def advance(
        self,
        model: str,
        author: Author,
        *,
        step: int,
        since: float,
        weights: dict[str, float] | None = None,
        evidence: Mapping[str, Any] | None = None,
        action: str = "advance",
    ) -> Committed:
        """Take a planned test to a step, at `since`. Raises TestNotFound, Conflict where there is no such step."""

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            test, plan = self._planned(r, head)
            if plan.allocation is None and not 0 <= step < len(plan.steps):
                raise Conflict(
                    f"the plan of model {model} has {len(plan.steps)} steps; it is at the last one"
                )
            if plan.allocation is not None and weights is None:
                raise Conflict(f"the plan of model {model} has no steps: its shares follow what is learnt")
            split = weights or shares_of(plan, step, str(test.baseline), str(test.candidate))
            after, moved, runs = step_test(r, head, test, split, None, Ramp(plan, str(test.candidate), since))
            moved = replace(moved, step=step)
            r.put_test(moved)
            r.put_ledger(
                model, LedgerRevision(moved.id, moved.revision, moved.changed_at, moved.weights, runs)
            )
            facts = {
                "test": test.id,
                "step": step,
                "weights": moved.weights,
                "evidence": dict(evidence or {}),
            }
            was = {"test": test.id, "step": test.step, "weights": test.weights}
            return r.commit(action, author, head, after, moved, label=test.candidate, before=was, facts=facts)

        return self._change(change)

    def mark_test(self, model: str, action: str, author: Author, **fields: Any) -> Committed:  # noqa: ANN401
        """Pause, resume or approve a planned test: set fields that leave the split as it is."""

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            test, _ = self._planned(r, head)
            marked = replace(test, **fields)
            if marked == test:
                return Committed(test, head, r.generation)
            r.put_test(marked)
            return r.commit(action, author, head, head, marked, facts={"test": test.id, **fields})

        return self._change(change)

    def calibrate(self, model: str, thresholds: tuple[float, ...], author: Author) -> Committed:
        """Count answers above these latencies (seconds) as slow, from a new revision of the running test on."""

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            test = running(r, head)
            present = r.ledger(model, test.id, test.revision)
            if present is None:
                raise StorageError(f"test {test.id} of model {model} has lost its ledger")
            after = replace(
                test, thresholds=thresholds, revision=test.revision + 1, changed_at=later(test.changed_at)
            )
            r.put_test(after)
            r.put_ledger(model, replace(present, revision=after.revision, created_at=after.changed_at))
            facts = {"test": test.id, "thresholds": list(thresholds)}
            return r.commit("calibrate", author, head, head, after, facts=facts)

        return self._change(change)

    def _planned(self, r: Records, head: Model) -> tuple[Test, Plan]:
        test = running(r, head)
        if test.plan is None:
            raise Conflict(f"test {test.id} of model {head.name} has no plan; configure it with one")
        return test, test.plan

    def declare_metrics(self, model: str, metrics: tuple[Metric, ...], author: Author) -> Committed:
        """Set what is measured of a model.

        Raises Conflict for a change to a metric that a running test counts: what it has counted would mean something
        else then.
        """

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            if head.metrics == metrics:
                return Committed(metrics, head, r.generation)
            test = r.running(head)
            if test is not None:
                check_counted(head.metrics, metrics, test)
            after = replace(head, metrics=metrics)
            return r.commit("declare_metrics", author, head, after, metrics)

        return self._change(change)

    def promote(
        self, model: str, label: str, author: Author, evidence: Mapping[str, Any] | None = None
    ) -> Committed:
        """End the running test and activate one of its arms. Raises TestNotFound; VersionNotFound for no arm."""

        def change(r: Records) -> Committed:
            head, version = checked(r, model, label, author)
            test = running(r, head)
            if label not in test.weights:
                raise VersionNotFound(
                    f"Version {label} is no arm of the running test {test.id} of model {model}"
                )
            after = deploy(r, end_test(r, head, "promoted", label), label, "promote", author)
            facts = {"test": test.id, **({} if evidence is None else {"evidence": dict(evidence)})}
            return r.commit("promote", author, head, after, version, label=label, facts=facts)

        return self._change(change)

    def stop_test(
        self,
        model: str,
        author: Author,
        status: TestStatus = "stopped",
        evidence: Mapping[str, Any] | None = None,
    ) -> Committed:
        """End the running test; the active version takes all traffic. Raises TestNotFound."""

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            test = running(r, head)
            after = end_test(r, head, status)
            if status == "rolled_back" and test.baseline and head.active in {None, test.candidate}:
                # Somebody has activated the candidate meanwhile, or nothing ever was: the baseline is what was good.
                after = deploy(r, after, test.baseline, "rollback", author)
            action = "stop_test" if status == "stopped" else "roll_back"
            facts = {"test": test.id, **({} if evidence is None else {"evidence": dict(evidence)})}
            return r.commit(action, author, head, after, r.test(model, test.id), facts=facts)

        return self._change(change)

    # --- overrides ----------------------------------------------------------------------------------------------

    def set_override(self, model: str, entity: str, label: str, author: Author) -> Committed:
        """Send one entity to one version. Raises Conflict past 10,000 overrides a model."""
        check_text("the entity id of an override", entity, MAX_OVERRIDE_ID_BYTES)

        def change(r: Records) -> Committed:
            head, _ = checked(r, model, label, author)
            old = r.override(model, entity)
            if old is None and head.overrides >= MAX_OVERRIDES:
                raise Conflict(
                    f"model {model} has {MAX_OVERRIDES} overrides, which is the most; delete some first"
                )
            r.put_override(model, entity, label)
            after = replace(head, overrides=head.overrides + (old is None))
            facts = {"entity_id": entity, "version": label}
            return r.commit("set_override", author, head, after, None, label=label, facts=facts)

        return self._change(change)

    def delete_override(self, model: str, entity: str, author: Author) -> Committed:
        """Let the split decide again; False if there was no override."""

        def change(r: Records) -> Committed:
            head = r.model(model)
            old = r.override(model, entity)
            if old is None:
                return Committed(False, head, r.generation)
            check_revision(head, author)
            r.delete_override(model, entity)
            after = replace(head, overrides=head.overrides - 1)
            was = {"entity_id": entity, "version": old}
            return r.commit("delete_override", author, head, after, True, label=old, before=was)

        return self._change(change)

    # --- the whole ----------------------------------------------------------------------------------------------

    def rewrite(self, work: Callable[[Records], Any]) -> Any:  # noqa: ANN401
        """Run `work`, which writes and commits records, as one change; for the import of documents."""
        return self._change(work)

    def read(self, work: Callable[[Records], Any]) -> Any:  # noqa: ANN401
        """Run `work` on one consistent state; for the export of documents."""
        return self._read(work)

    def _read(self, work: Callable[[Records], Any]) -> Any:  # noqa: ANN401
        return self._store.read(lambda transaction: work(Records(transaction)))

    def _change(self, work: Callable[[Records], Any]) -> Any:  # noqa: ANN401
        result = self._store.change(lambda transaction: work(Records(transaction)))
        if isinstance(result, Committed):
            self.beacon.advance(Beacon.GENERATION, result.generation)
        return result
