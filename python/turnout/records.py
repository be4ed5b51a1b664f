"""The records of the registry: what lies under which key of a transaction. JSON of the structs of `domain`.

generation                      how many changes there have been
model     / name                Model
version   / model / label       Version
test      / model / number      Test
ledger    / model / number / n  LedgerRevision
override  / model / entity      label
deployed  / model / number      Deployment
audit     / number              AuditEvent
audited   / model / number      (nothing: an index into audit)
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from turnout.domain import Artifact, AuditEvent, Deployment, LedgerRevision, Model, Test, Version, utc_now
from turnout.errors import InvalidRequest, ModelNotFound
from turnout.router import ModelRecord
from turnout.store import Transaction, key

T = TypeVar("T")
GENERATION = b"generation"
encode = msgspec.json.Encoder().encode


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)


MODEL, VERSION, TEST = _decoder(Model), _decoder(Version), _decoder(Test)
LEDGER, DEPLOYMENT, EVENT = _decoder(LedgerRevision), _decoder(Deployment), _decoder(AuditEvent)
DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    decoder.type: decoder for decoder in (MODEL, VERSION, TEST, LEDGER, DEPLOYMENT, EVENT)
}
MAX_NUMBER = 2**63 - 1


class _Reference(msgspec.Struct):
    """The part of a version that says which files it has; decodes several times faster than the whole."""

    artifact: Artifact


REFERENCE = _decoder(_Reference)


def generation(transaction: Transaction) -> int:
    """How many changes there have been."""
    return int.from_bytes(transaction.get(GENERATION) or b"", "big")


class Author(NamedTuple):
    """Who changes something and why; `revision` is the one of the model that they have read, None for any."""

    actor: str
    reason: str = ""
    revision: int | None = None


class Committed(NamedTuple):
    """What a change gave: its result, the head of the model after it, and the generation that has it."""

    value: Any
    model: Model | None
    generation: int


class Records:
    """The records, read and written in one transaction."""

    def __init__(self, transaction: Transaction) -> None:
        self._t = transaction

    @property
    def generation(self) -> int:
        """How many changes there have been."""
        return generation(self._t)

    # --- reading ------------------------------------------------------------------------------------------------

    def models(self) -> list[Model]:
        """All heads, by name."""
        return [MODEL.decode(value) for _, value in self._t.scan("model")]

    def names(self) -> list[str]:
        """The names of all models, also of those whose records cannot be read."""
        return [rest.decode() for rest, _ in self._t.scan("model")]

    def find(self, name: str) -> Model | None:
        """A head, if there is one."""
        return self._get(MODEL, "model", name)

    def model(self, name: str) -> Model:
        """A head. Raises ModelNotFound."""
        found = self.find(name)
        if found is None:
            raise ModelNotFound(f"Model {name} not found")
        return found

    def versions(self, model: str) -> list[Version]:
        """All versions, in order of registration."""
        found = [VERSION.decode(value) for _, value in self._t.scan("version", model)]
        return sorted(found, key=lambda version: version.ordinal)

    def version(self, model: str, label: str) -> Version | None:
        """A version, if it is there."""
        return self._get(VERSION, "version", model, label)

    def refers_to(self, digest: str) -> bool:
        """Whether any version of any model has these files."""
        return digest in self.digests()

    def digests(self) -> set[str]:
        """What the versions of all models refer to."""
        return {REFERENCE.decode(value).artifact.sha256 for _, value in self._t.scan("version")}

    def tests(self, model: str) -> list[Test]:
        """All tests, oldest first."""
        return [TEST.decode(value) for _, value in self._t.scan("test", model)]

    def test(self, model: str, test_id: str) -> Test | None:
        """A test, if it is there."""
        number = test_number(test_id)
        return None if number is None else self._get(TEST, "test", model, number)

    def running(self, head: Model) -> Test | None:
        """The running test, if there is one."""
        return None if head.test_id is None else self.test(head.name, head.test_id)

    def ledger(self, model: str, test_id: str, revision: int) -> LedgerRevision | None:
        """A ledger, if it is there."""
        number = test_number(test_id)
        if number is None or not 0 <= revision <= MAX_NUMBER:
            return None
        return self._get(LEDGER, "ledger", model, number, revision)

    def ledgers(self, model: str, test_id: str) -> list[LedgerRevision]:
        """The ledgers of a test, oldest first."""
        number = test_number(test_id)
        if number is None:
            return []
        return [LEDGER.decode(value) for _, value in self._t.scan("ledger", model, number)]

    def override(self, model: str, entity: str) -> str | None:
        """The version that an entity is sent to."""
        found = self._t.get(key("override", model, entity))
        return None if found is None else found.decode()

    def overrides(self, model: str) -> dict[str, str]:
        """Version by entity id."""
        return {rest.decode(): value.decode() for rest, value in self._t.scan("override", model)}

    def deployments(self, model: str) -> list[Deployment]:
        """Stays of versions as the active one, oldest first."""
        return [DEPLOYMENT.decode(value) for _, value in self._t.scan("deployed", model)]

    def audit(self, model: str | None, after: int, limit: int | None) -> list[AuditEvent]:
        """Events behind a sequence number."""
        table = ("audit",) if model is None else ("audited", model)
        events: list[AuditEvent] = []
        for rest, value in self._t.scan(*table, after=min(max(after, 0), MAX_NUMBER).to_bytes(8, "big")):
            if limit is not None and len(events) >= limit:
                break
            events.append(EVENT.decode(value if model is None else self._t.get(b"audit\0" + rest) or b""))
        return events

    def record(self, head: Model) -> ModelRecord:
        """All that routing needs of a model."""
        test = self.running(head)
        ledger = None if test is None else self.ledger(head.name, test.id, test.revision)
        return ModelRecord(
            model=head,
            versions={version.version: version for version in self.versions(head.name)},
            test=test,
            runs=None if ledger is None else ledger.runs,
            overrides=self.overrides(head.name) if head.overrides else {},
        )

    # --- writing ------------------------------------------------------------------------------------------------

    def put_model(self, head: Model) -> None:
        """Set a head as it is; `commit` does so with the next revision."""
        self._put(head, "model", head.name)

    def put_version(self, version: Version) -> None:
        """Set a version."""
        self._put(version, "version", version.model, version.version)

    def delete_version(self, model: str, label: str) -> None:
        """Remove a version."""
        self._t.delete(key("version", model, label))

    def put_test(self, test: Test) -> None:
        """Set a test."""
        self._put(test, "test", test.model, int(test.id))

    def put_ledger(self, model: str, ledger: LedgerRevision) -> None:
        """Set the ledger of a revision."""
        self._put(ledger, "ledger", model, int(ledger.test_id), ledger.revision)

    def put_override(self, model: str, entity: str, label: str) -> None:
        """Send an entity to a version."""
        self._t.put(key("override", model, entity), label.encode())

    def delete_override(self, model: str, entity: str) -> None:
        """Let the split decide again."""
        self._t.delete(key("override", model, entity))

    def put_deployment(self, model: str, stay: Deployment) -> None:
        """Add a stay."""
        last = self._t.last("deployed", model)
        number = 0 if last is None else int.from_bytes(last[0], "big") + 1
        self._put(stay, "deployed", model, number)

    def end_deployment(self, model: str, now: datetime) -> None:
        """Note the end of the present stay, if there is one."""
        last = self._t.last("deployed", model)
        if last is not None and (stay := DEPLOYMENT.decode(last[1])).until is None:
            self._put(
                replace(stay, until=max(now, stay.since)), "deployed", model, int.from_bytes(last[0], "big")
            )

    def erase(self, model: str) -> None:
        """Remove everything that is stored of a model but its events."""
        self._t.delete(key("model", model))
        for table in ("version", "test", "ledger", "override", "deployed"):
            for rest in [rest for rest, _ in self._t.scan(table, model)]:
                self._t.delete(key(table, model, rest))

    def commit(
        self,
        action: str,
        author: Author,
        head: Model | None,
        after: Model | None,
        value: Any,  # noqa: ANN401
        *,
        label: str | None = None,
        before: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        revision: int | None = None,
    ) -> Committed:
        """Write the head with its next revision (or the one given), the event, and the next generation."""
        number = self.generation + 1
        if after is not None:
            after = replace(after, revision=revision or (0 if head is None else head.revision) + 1)
            self.put_model(after)
        known = after or head
        name = "" if known is None else known.name
        last = self._t.last("audit")
        event = AuditEvent(
            sequence=1 if last is None else int.from_bytes(last[0], "big") + 1,
            generation=number,
            time=utc_now(),
            actor=author.actor,
            action=action,
            model=name,
            version=label,
            reason=author.reason,
            before=_facts(head if head is not None and head.revision else None, before),
            after=_facts(after, facts),
        )
        self._put(event, "audit", event.sequence)
        if name:
            self._t.put(key("audited", name, event.sequence), b"")
        self._t.put(GENERATION, number.to_bytes(8, "big"))
        return Committed(value, after, number)

    def _get(self, decoder: msgspec.json.Decoder[T], *at: str | int) -> T | None:
        found = self._t.get(key(*at))
        return None if found is None else decoder.decode(found)

    def _put(self, value: msgspec.Struct, *at: str | int) -> None:
        """Set a record. Raises InvalidRequest for one that could not be read back: it would block the model for good."""
        try:
            text = encode(value)
            DECODERS[type(value)].decode(text)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            what = type(value).__name__
            raise InvalidRequest(f"the {what} that this change makes cannot be stored: {error}") from error
        self._t.put(key(*at), text)


def test_number(test_id: str) -> int | None:
    """The number that a test's id is made of; None for what cannot be one."""
    if not test_id.isascii() or not test_id.isdigit() or len(test_id) > 18 or str(int(test_id)) != test_id:
        return None
    return int(test_id)


def _facts(head: Model | None, facts: dict[str, Any] | None) -> dict[str, Any] | None:
    if head is None and not facts:
        return None
    return {**({} if head is None else msgspec.to_builtins(head)), **(facts or {})}
