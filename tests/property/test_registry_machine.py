"""The registry against a plain dict: any sequence of verbs leaves both in the same state, or both refuse."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from registries import ME, nothing, opened, version
from turnout._core import Ledger
from turnout.domain import Model
from turnout.errors import TurnoutError

MODELS = st.sampled_from(["churn", "ü/fraud"])
LABELS = st.sampled_from(["v1", "v2", "v3", "v 4"])
ENTITIES = st.sampled_from(["", "user-1", "ü"])
CONTENTS = st.sampled_from(["x", "y"])
SPLITS = st.dictionaries(LABELS, st.integers(0, 4), max_size=4)


class Plain:
    """What a model is, without a database."""

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self.active: str | None = None
        self.former: list[str] = []
        self.ledger: Ledger | None = None
        self.tests: list[str] = []
        self.overrides: dict[str, str] = {}
        self.stays: list[str] = []
        self.changes = 0

    def deploy(self, label: str) -> None:
        if label == self.active:
            return
        left = [] if self.active is None else [self.active]
        self.former = (left + [name for name in self.former if name not in {label, self.active}])[:2]
        self.active = label
        self.stays.append(label)

    def end(self, status: str) -> None:
        if self.ledger is not None:
            self.tests[-1] = status
            self.ledger = None


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.registry = opened(Path(self.folder.name))
        self.plain: dict[str, Plain] = {}
        self.known: dict[str, int] = {}
        self.mirror: dict[str, Any] = {}

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    def expect(self, allowed: bool, verb, model: str, change=lambda plain: None) -> None:
        """The registry does it exactly if it is allowed; then the plain model changes too."""
        try:
            committed = verb()
        except TurnoutError:
            assert not allowed
            return
        assert allowed
        plain = self.plain[model]
        change(plain)
        plain.changes += 1
        assert committed.model.revision == plain.changes

    def has(self, model: str, label: str) -> bool:
        return model in self.plain and label in self.plain[model].versions

    @rule(model=MODELS, label=LABELS, content=CONTENTS)
    def register(self, model, label, content):
        plain = self.plain.get(model, Plain())
        offered = version(model, label, content)
        if plain.versions.get(label) == content:
            assert self.registry.register(offered, nothing, ME).model.revision == plain.changes
            return
        allowed = label not in plain.versions
        if allowed:
            self.plain[model] = plain

        def change(plain):
            plain.versions[label] = content

        self.expect(allowed, lambda: self.registry.register(offered, nothing, ME), model, change)

    @rule(model=MODELS, label=LABELS)
    def activate(self, model, label):
        verb = lambda: self.registry.activate(model, label, ME)  # noqa: E731
        self.expect(self.has(model, label), verb, model, lambda plain: plain.deploy(label))

    @rule(model=MODELS, label=st.none() | LABELS)
    def rollback(self, model, label):
        target = label
        if label is None and model in self.plain:
            plain = self.plain[model]
            target = next(iter(plain.former), plain.active if plain.ledger else None)

        def change(plain):
            plain.end("rolled_back")
            plain.deploy(target)

        allowed = target is not None and self.has(model, target)
        self.expect(allowed, lambda: self.registry.rollback(model, label, ME), model, change)

    @rule(model=MODELS, label=LABELS)
    def delete(self, model, label):
        if model in self.plain and label not in self.plain[model].versions:
            assert self.registry.delete(model, label, ME, nothing).value is False
            return

        def change(plain):
            del plain.versions[label]
            plain.former = [name for name in plain.former if name != label]

        allowed = self.has(model, label) and not self.used(self.plain[model], label)
        self.expect(allowed, lambda: self.registry.delete(model, label, ME, nothing), model, change)

    @staticmethod
    def used(plain: Plain, label: str) -> bool:
        arms = plain.ledger.arms if plain.ledger else []
        return label == plain.active or label in arms or label in plain.overrides.values()

    @rule(model=MODELS, parts=SPLITS)
    def configure_test(self, model, parts):
        total = sum(parts.values())
        weights = {label: part / total for label, part in parts.items()} if total else {}
        allowed = model in self.plain and bool(weights) and all(self.has(model, label) for label in weights)

        def change(plain):
            if plain.ledger is None:
                heaviest = min(weights, key=lambda arm: (-weights[arm], arm))
                plain.ledger = Ledger.start(plain.active if plain.active in weights else heaviest)
                plain.tests.append("running")
            plain.ledger, _ = plain.ledger.apply(weights)

        verb = lambda: self.registry.configure_test(model, weights, None, ME)  # noqa: E731
        self.expect(allowed, verb, model, change)

    @rule(model=MODELS, label=LABELS)
    def promote(self, model, label):
        def change(plain):
            plain.end("promoted")
            plain.deploy(label)

        ledger = self.plain[model].ledger if model in self.plain else None
        allowed = ledger is not None and label in ledger.arms
        self.expect(allowed, lambda: self.registry.promote(model, label, ME), model, change)

    @rule(model=MODELS)
    def stop_test(self, model):
        allowed = model in self.plain and self.plain[model].ledger is not None
        self.expect(
            allowed, lambda: self.registry.stop_test(model, ME), model, lambda plain: plain.end("stopped")
        )

    @rule(model=MODELS, entity=ENTITIES, label=LABELS)
    def set_override(self, model, entity, label):
        def change(plain):
            plain.overrides[entity] = label

        verb = lambda: self.registry.set_override(model, entity, label, ME)  # noqa: E731
        self.expect(self.has(model, label), verb, model, change)

    @rule(model=MODELS, entity=ENTITIES)
    def delete_override(self, model, entity):
        if model in self.plain and entity not in self.plain[model].overrides:
            assert self.registry.delete_override(model, entity, ME).value is False
            return
        verb = lambda: self.registry.delete_override(model, entity, ME)  # noqa: E731
        self.expect(model in self.plain, verb, model, lambda plain: plain.overrides.pop(entity))

    @rule()
    def reopen(self):
        self.registry.close()
        self.registry = opened(Path(self.folder.name))

    @rule()
    def follow(self):
        """What a worker does: it keeps records and reads only those that changed."""
        fresh = self.registry.snapshot(self.known)
        for record in fresh.records:
            self.known[record.model.name] = record.model.revision
            self.mirror[record.model.name] = record
        assert self.mirror.keys() == fresh.names == self.plain.keys()
        for name, plain in self.plain.items():
            self.same(plain, self.mirror[name])

    @staticmethod
    def same(plain: Plain, record: Any) -> None:
        assert set(record.versions) == set(plain.versions)
        assert record.overrides == plain.overrides
        assert (record.runs is None) == (plain.ledger is None)
        if plain.ledger is not None:
            assert record.runs == plain.ledger.runs()
            assert [arm.version for arm in record.test.arms] == plain.ledger.arms

    @invariant()
    def heads_agree(self):
        heads = {head.name: head for head in self.registry.models()}
        assert heads.keys() == self.plain.keys()
        for name, plain in self.plain.items():
            head: Model = heads[name]
            assert (head.active, list(head.former)) == (plain.active, plain.former)
            assert head.overrides == len(plain.overrides)
            assert [test.status for test in self.registry.tests(name)] == plain.tests
            assert [stay.version for stay in self.registry.deployments(name)] == plain.stays
        total = sum(plain.changes for plain in self.plain.values())
        assert self.registry.generation() == total
        assert [e.sequence for e in self.registry.audit(after=total - 3)] == list(
            range(max(total - 2, 1), total + 1)
        )


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
