"""What must hold of a data directory after a process was killed: nothing is torn, nothing acknowledged is lost."""

from __future__ import annotations

from typing import Any

import msgspec

import turnout
from turnout._core import SLOTS, Ledger
from turnout.domain import AuditEvent, Model


def check(hub: turnout.Turnout) -> list[AuditEvent]:
    """Check the whole directory; its events."""
    events = hub.audit(limit=1_000_000)
    numbers = list(range(1, len(events) + 1))
    assert [event.sequence for event in events] == numbers
    assert [event.generation for event in events] == numbers
    assert hub.registry.generation() == len(events)
    assert {event.model for event in events} == {head.name for head in hub.models()}
    for head in hub.models():
        _check_model(hub, head.name, [event for event in events if event.model == head.name])
    return events


def check_acknowledged(
    hub: turnout.Turnout, events: list[AuditEvent], acknowledged: list[dict[str, Any]]
) -> int:
    """Check what one writer of a model was told, in order; how many changes it had made without hearing so."""
    model = acknowledged[-1]["head"]["name"]
    changes = [event for event in events if event.model == model]
    for line in acknowledged:
        event = changes[line["head"]["revision"] - 1]
        assert head_of(event.after) == line["head"]
        assert event.generation <= line["generation"]
    return len(changes) - acknowledged[-1]["head"]["revision"]


def head_of(state: dict[str, Any] | None) -> dict[str, Any]:
    """The head of a model in what an event says of before or after."""
    return {field: value for field, value in (state or {}).items() if field in Model.__struct_fields__}


def _check_model(hub: turnout.Turnout, model: str, events: list[AuditEvent]) -> None:
    """The state of a model is what its events add up to."""
    head = hub.model(model)
    assert head.revision == len(events)
    heads = [head_of(event.after) for event in events]
    assert [head_of(event.before) for event in events] == [{}, *heads[:-1]]
    assert msgspec.convert(heads[-1], Model) == head
    _check_versions(hub, model, events)
    _check_overrides(hub, model, events)
    _check_tests(hub, model)
    _check_deployments(hub, model, events)


def _check_versions(hub: turnout.Turnout, model: str, events: list[AuditEvent]) -> None:
    labels = [event.version for event in events if event.action == "register"]
    gone = [event.version for event in events if event.action == "delete"]
    versions = hub.list_versions(model)
    assert sorted(version.version for version in versions) == sorted(set(labels) - set(gone))
    for version in versions:
        hub.artifacts.verify(version.artifact)


def _check_overrides(hub: turnout.Turnout, model: str, events: list[AuditEvent]) -> None:
    expected: dict[str, str] = {}
    for event in events:
        if event.action == "set_override":
            expected[(event.after or {})["entity_id"]] = (event.after or {})["version"]
        elif event.action == "delete_override":
            del expected[(event.before or {})["entity_id"]]
    assert hub.overrides(model) == expected


def _check_tests(hub: turnout.Turnout, model: str) -> None:
    head, tests = hub.model(model), hub.list_tests(model)
    assert [test.id for test in tests] == [str(number + 1) for number in range(head.tests_started)]
    assert [test.id for test in tests if test.status == "running"] == [head.test_id] * (
        head.test_id is not None
    )
    for test in tests:
        ledgers = hub.registry.ledgers(model, test.id)
        assert [ledger.revision for ledger in ledgers] == list(range(1, test.revision + 1))
        counts = Ledger.from_runs(ledgers[-1].runs).counts()
        assert counts == {arm.version: arm.slots for arm in test.arms}
        assert all(sum(Ledger.from_runs(ledger.runs).counts().values()) == SLOTS for ledger in ledgers)


def _check_deployments(hub: turnout.Turnout, model: str, events: list[AuditEvent]) -> None:
    """Each stay ends where the next begins, and there is one for each change of the active version."""
    stays = hub.registry.deployments(model)
    actives = [(head_of(e.before).get("active"), head_of(e.after).get("active")) for e in events]
    changes = [after for before, after in actives if before != after]
    assert [stay.version for stay in stays] == changes
    assert [stay.until for stay in stays] == [stay.since for stay in stays[1:]] + [None] * bool(stays)
