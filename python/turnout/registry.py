"""Models, versions, tests and the audit log, in LMDB: each change is one durable transaction.

A change writes the new state, an event of the audit log and the next generation number together, or nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from turnout import records
from turnout._core import Ledger
from turnout.domain import (
    Arm,
    AuditEvent,
    Deployment,
    History,
    LedgerRevision,
    Model,
    Runs,
    Test,
    TestStatus,
    Version,
    check_name,
    utc_now,
)
from turnout.errors import (
    Conflict,
    InvalidRequest,
    InvalidSplit,
    RevisionConflict,
    StorageError,
    TestNotFound,
    VersionExists,
    VersionInUse,
    VersionNotFound,
)
from turnout.records import Author, Committed, Records
from turnout.router import ModelRecord
from turnout.store import Beacon, Store

MAX_OVERRIDES = 10_000
MAX_OVERRIDE_ID_BYTES = 256
KEPT_FORMER = 2


class RegistrySnapshot(NamedTuple):
    """One consistent state: its generation, the models that differ from what the reader knew, all names."""

    generation: int
    records: list[ModelRecord]
    names: frozenset[str]


class Registry:
    """The registry of a data directory; any number of processes may have it open at once."""

    def __init__(self, data: Path, *, map_size: int) -> None:
        data.mkdir(parents=True, exist_ok=True)
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
            heads = r.models()
            changed = [r.record(head) for head in heads if known.get(head.name) != head.revision]
            return RegistrySnapshot(r.generation, changed, frozenset(head.name for head in heads))

        return self._read(read)

    # --- versions -----------------------------------------------------------------------------------------------

    def register(self, version: Version, place: Callable[[], None], author: Author) -> Committed:
        """Add a version; `place` puts its files in their place, under the write lock.

        The same label with the same content gives the version that is there, without an event.
        Raises VersionExists for other content.
        """
        check_name("model", version.model)
        check_name("version", version.version)

        def change(r: Records) -> Committed:
            head = r.find(version.model) or Model(
                name=version.model, revision=0, created_at=version.created_at
            )
            found = r.version(version.model, version.version)
            if found is not None:
                return Committed(_same(found, version), head, r.generation)
            check_revision(head, author)
            added = replace(version, ordinal=head.versions_registered + 1)
            place()
            r.put_version(added)
            after = replace(head, versions_registered=added.ordinal)
            return r.commit("register", author, head, after, added, label=added.version)

        return self._change(change)

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

        Raises Conflict where no version was active before.
        """

        def change(r: Records) -> Committed:
            target = label if label is not None else (*r.model(model).former, None)[0]
            if target is None:
                raise Conflict(
                    f"model {model} has no formerly active version to roll back to; name a version"
                )
            head, version = checked(r, model, target, author)
            after = deploy(r, end_test(r, head, "rolled_back"), target, "rollback", author)
            return r.commit("rollback", author, head, after, version, label=target)

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
            return r.commit("delete", author, head, after, version, label=label)

        committed = self._change(change)
        if committed.value is not None:
            self.collect(committed.value.artifact.sha256, collect)
        return committed._replace(value=committed.value is not None)

    def collect(self, digest: str, remove: Callable[[str], None]) -> None:
        """Remove the files of a digest unless a version refers to it; under the write lock, so that none can come."""

        def check(r: Records) -> None:
            if not r.refers_to(digest):
                remove(digest)

        self._change(check)

    # --- tests --------------------------------------------------------------------------------------------------

    def configure_test(
        self, model: str, weights: dict[str, float], salt: str | None, author: Author
    ) -> Committed:
        """Start a test, or give the running one new weights: same id, same salt, the fewest slots moved.

        Raises InvalidSplit for weights that are no split, VersionNotFound for an arm that is not registered,
        Conflict for another salt than the running test has.
        """

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            for label in weights:
                existing(r, model, label)
            running = r.running(head)
            if running is None:
                after, test, runs = start_test(head, weights, salt)
            else:
                after, test, runs = step_test(r, head, running, weights, salt)
            r.put_test(test)
            r.put_ledger(model, LedgerRevision(test.id, test.revision, test.changed_at, test.weights, runs))
            facts = {"test": test.id, "weights": test.weights}
            was = {} if running is None else {"test": running.id, "weights": running.weights}
            return r.commit("configure_test", author, head, after, test, before=was, facts=facts)

        return self._change(change)

    def promote(self, model: str, label: str, author: Author) -> Committed:
        """End the running test and activate one of its arms. Raises TestNotFound; VersionNotFound for no arm."""

        def change(r: Records) -> Committed:
            head, version = checked(r, model, label, author)
            test = running(r, head)
            if label not in test.weights:
                raise VersionNotFound(
                    f"Version {label} is no arm of the running test {test.id} of model {model}"
                )
            after = deploy(r, end_test(r, head, "promoted", label), label, "promote", author)
            return r.commit("promote", author, head, after, version, label=label, facts={"test": test.id})

        return self._change(change)

    def stop_test(self, model: str, author: Author) -> Committed:
        """End the running test; the active version takes all traffic. Raises TestNotFound."""

        def change(r: Records) -> Committed:
            head = r.model(model)
            check_revision(head, author)
            test = running(r, head)
            after = end_test(r, head, "stopped")
            return r.commit("stop_test", author, head, after, r.test(model, test.id), facts={"test": test.id})

        return self._change(change)

    # --- overrides ----------------------------------------------------------------------------------------------

    def set_override(self, model: str, entity: str, label: str, author: Author) -> Committed:
        """Send one entity to one version. Raises Conflict past 10,000 overrides a model."""
        if len(entity.encode()) > MAX_OVERRIDE_ID_BYTES or "\0" in entity:
            raise InvalidRequest(
                f"the entity id of an override has at most {MAX_OVERRIDE_ID_BYTES} bytes and no NUL"
            )

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
            self.beacon.raise_to(Beacon.GENERATION, result.generation)
        return result


def check_revision(head: Model, author: Author) -> None:
    """Raise RevisionConflict if the author has read another revision than the present one."""
    if author.revision is not None and author.revision != head.revision:
        raise RevisionConflict(
            f"model {head.name} is at revision {head.revision}, not {author.revision}: "
            "somebody else changed it; read it again and decide anew"
        )


def existing(r: Records, model: str, label: str) -> Version:
    """A version that must be there. Raises VersionNotFound."""
    version = r.version(model, label)
    if version is None:
        raise VersionNotFound(f"Version {label} not found for model {model}")
    return version


def checked(r: Records, model: str, label: str, author: Author) -> tuple[Model, Version]:
    """The head and a version, both there and at the revision that the author has read."""
    head = r.model(model)
    version = existing(r, model, label)
    check_revision(head, author)
    return head, version


def check_unused(r: Records, head: Model, label: str) -> None:
    """Raise VersionInUse for a version that answers requests."""
    if head.active == label:
        raise VersionInUse(
            f"Version {label} is the active version of model {head.name}; activate another one first"
        )
    test = r.running(head)
    if test is not None and label in test.weights:
        raise VersionInUse(
            f"Version {label} is an arm of the running test {test.id} of model {head.name}; end it first"
        )
    held = [entity for entity, version in r.overrides(head.name).items() if version == label]
    if held:
        raise VersionInUse(
            f"Version {label} is the target of {len(held)} overrides, such as the one of {held[0]!r}"
        )


def running(r: Records, head: Model) -> Test:
    """The running test. Raises TestNotFound."""
    test = r.running(head)
    if test is None:
        raise TestNotFound(f"no test runs on model {head.name}")
    return test


def deploy(r: Records, head: Model, label: str, action: str, author: Author) -> Model:
    """The head with another active version; notes the end of the old stay and the beginning of the new one."""
    if head.active == label:
        return head
    now = utc_now()
    r.end_deployment(head.name, now)
    r.put_deployment(head.name, Deployment(label, now, action, author.actor, author.reason))
    left = () if head.active is None else (head.active,)
    former = (*left, *(name for name in head.former if name not in {label, head.active}))[:KEPT_FORMER]
    return replace(head, active=label, former=former)


def end_test(r: Records, head: Model, status: TestStatus, winner: str | None = None) -> Model:
    """The head without its running test, if it has one."""
    test = r.running(head)
    if test is None:
        return head
    r.put_test(replace(test, status=status, winner=winner, ended_at=utc_now()))
    return replace(head, test_id=None)


def start_test(head: Model, weights: dict[str, float], salt: str | None) -> tuple[Model, Test, Runs]:
    """A new test: the baseline owns every slot, then the weights are applied."""
    number = head.tests_started + 1
    baseline = head.active if head.active in weights else _heaviest(weights)
    now = utc_now()
    ledger, _ = Ledger.start(baseline).apply(weights)
    test = Test(
        id=str(number),
        model=head.name,
        salt=f"{head.name}/{number}" if salt is None else salt,
        arms=_arms(ledger, weights),
        revision=1,
        status="running",
        started_at=now,
        changed_at=now,
    )
    return replace(head, test_id=test.id, tests_started=number), test, ledger.runs()


def step_test(
    r: Records, head: Model, test: Test, weights: dict[str, float], salt: str | None
) -> tuple[Model, Test, Runs]:
    """The running test with new weights."""
    if salt is not None and salt != test.salt:
        raise Conflict(
            f"test {test.id} of model {head.name} runs with salt {test.salt!r}; stop it to use another one"
        )
    present = r.ledger(head.name, test.id, test.revision)
    if present is None:
        raise StorageError(
            f"test {test.id} of model {head.name} has lost the ledger of revision {test.revision}"
        )
    ledger, _ = Ledger.from_runs(present.runs).apply(weights)
    stepped = replace(
        test, arms=_arms(ledger, weights), revision=test.revision + 1, changed_at=_after(test.changed_at)
    )
    return head, stepped, ledger.runs()


def _after(earlier: datetime) -> datetime:
    """The present time, or the earlier one where the clock has been set back, so that revisions stay in order."""
    return max(utc_now(), earlier)


def _heaviest(weights: Mapping[str, float]) -> str:
    """The arm with the largest weight, ties to the bytewise smallest name."""
    if not weights:
        raise InvalidSplit("a split has 1 to 256 arms, found 0")
    return min(weights, key=lambda arm: (-weights[arm], arm.encode()))


def _arms(ledger: Ledger, weights: Mapping[str, float]) -> tuple[Arm, ...]:
    total = sum(weights.values())
    counts = ledger.counts()
    return tuple(Arm(version=arm, weight=weights[arm] / total, slots=counts[arm]) for arm in ledger.arms)


def _same(found: Version, offered: Version) -> Version:
    """The version that is there, if the offered one says the same. Raises VersionExists."""
    present = replace(offered, created_at=found.created_at, ordinal=found.ordinal)
    if found == present:
        return found
    fields = [name for name in Version.__struct_fields__ if getattr(found, name) != getattr(present, name)]
    raise VersionExists(
        f"Version {found.version} of model {found.model} is registered with other content ({', '.join(fields)}); "
        "versions are immutable, choose another label"
    )
