"""The registry as a document: plain JSON that round-trips exactly, and every check that one from outside must pass.

The audit log is no part of it: it tells what happened in one data directory, and an import is an event of its own.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from turnout._core import Ledger
from turnout.artifacts import GRAPH, artifact_of, relative
from turnout.domain import Artifact, Deployment, LedgerRevision, Model, Test, Version, check_name
from turnout.errors import InvalidDocument, TurnoutError
from turnout.plans import check_metrics, check_plan
from turnout.records import MAX_NUMBER, Records, test_number
from turnout.router import ModelRecord
from turnout.transitions import (
    KEPT_FORMER,
    MAX_OVERRIDE_ID_BYTES,
    MAX_OVERRIDES,
    MAX_SALT_BYTES,
    check_text,
    normal,
)

FORMAT = "turnout-registry"
DIGEST = re.compile(r"[0-9a-f]{64}")
SPLIT_TOLERANCE = 0.001


class ModelDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that is stored of one model."""

    model: Model
    versions: tuple[Version, ...]
    tests: tuple[Test, ...]
    ledgers: tuple[LedgerRevision, ...]
    overrides: dict[str, str]
    deployments: tuple[Deployment, ...]

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts of its versions by digest."""
        return {version.artifact.sha256: version.artifact for version in self.versions}


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A registry, or a part of one."""

    models: tuple[ModelDocument, ...]
    format: Literal["turnout-registry"] = FORMAT
    format_version: Literal[1] = 1

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """All artifacts by digest."""
        return {digest: artifact for model in self.models for digest, artifact in model.artifacts.items()}


def document_of(r: Records) -> Document:
    """The registry as one document, from one consistent state."""
    return Document(models=tuple(model_of(r, head) for head in r.models()))


def record_of(document: ModelDocument) -> ModelRecord:
    """What routing needs of a model, as `Records.record` reads it of a registry."""
    test = next((test for test in document.tests if test.id == document.model.test_id), None)
    runs = {(ledger.test_id, ledger.revision): ledger.runs for ledger in document.ledgers}
    return ModelRecord(
        model=document.model,
        versions={version.version: version for version in document.versions},
        test=test,
        runs=None if test is None else runs[test.id, test.revision],
        overrides=document.overrides,
    )


def model_of(r: Records, head: Model) -> ModelDocument:
    """Everything that is stored of one model."""
    tests = r.tests(head.name)
    return ModelDocument(
        model=head,
        versions=tuple(r.versions(head.name)),
        tests=tuple(tests),
        ledgers=tuple(ledger for test in tests for ledger in r.ledgers(head.name, test.id)),
        overrides=r.overrides(head.name),
        deployments=tuple(r.deployments(head.name)),
    )


def plain(document: Document) -> dict[str, Any]:
    """The document as what JSON has: dicts, lists, strings, numbers."""
    return msgspec.json.decode(msgspec.json.encode(document))


def parse(data: Any) -> Document:  # noqa: ANN401
    """Check a document of plain JSON data. Raises InvalidDocument, which says where it is wrong."""
    try:
        document = msgspec.convert(data, Document)
        # Text that is no text, nesting without end: what cannot be stored is refused here.
        msgspec.json.encode(document)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidDocument(f"the document is no export of Turnout: {error}") from error
    names = [model.model.name for model in document.models]
    if len(set(names)) < len(names):
        raise InvalidDocument("the document has the same model twice")
    for model in document.models:
        try:
            check(model)
        except TurnoutError as error:
            raise InvalidDocument(f"model {model.model.name!r} of the document: {error.detail}") from error
    return document


def check(document: ModelDocument) -> None:
    """Check that the parts of a model fit together. Raises InvalidDocument or what the part itself raises."""
    head = document.model
    check_name("model", head.name)
    labels = {check_name("version", version.version) for version in document.versions}
    _demand(len(labels) == len(document.versions), "versions must have different labels")
    for version in document.versions:
        _demand(version.model == head.name, f"version {version.version!r} is of model {version.model!r}")
        check_artifact(version.artifact)
        normal(version)
    ordinals = [version.ordinal for version in document.versions]
    _demand(ordinals == sorted(set(ordinals)), "versions must be in the order of their ordinals")
    _demand(
        all(0 < n <= head.versions_registered for n in ordinals), "an ordinal is past the number of versions"
    )
    named = {head.active, *head.former, *document.overrides.values()} - {None}
    missing = sorted(str(label) for label in named - labels)
    _demand(not missing, f"version {missing[:1]} is named but not there")
    former = [*head.former, head.active]
    _demand(
        len(set(former)) == len(former) <= KEPT_FORMER + 1, "formerly active versions are at most two others"
    )
    _demand(1 <= head.revision <= MAX_NUMBER, f"revision {head.revision} of the head cannot be")
    check_metrics(head.metrics)
    _check_overrides(document)
    _check_times(document)
    _check_deployments(document)
    _check_tests(document, labels)


def check_artifact(artifact: Artifact) -> None:
    """Check that digests and paths are what they must be, so that they can name files. Raises InvalidDocument."""
    for digest in [artifact.sha256, *(file.sha256 for file in artifact.files)]:
        _demand(
            DIGEST.fullmatch(digest) is not None, f"expected a SHA-256 digest in hex, found {digest[:80]!r}"
        )
    paths = [file.path for file in artifact.files]
    _demand(paths[:1] == [GRAPH], f"the first file of an artifact is {GRAPH}, found {paths[:1]}")
    for path in paths:
        _demand(relative(path).as_posix() == path, f"expected a plain relative path, found {path!r}")
    _demand(len(set(paths)) == len(paths), "two files of an artifact have the same path")
    _demand(all(file.size >= 0 for file in artifact.files), "a file has a size below zero")
    whole = artifact_of(list(artifact.files)) == artifact
    _demand(whole, f"the files of artifact {artifact.sha256} do not add up to its digest")


def _check_overrides(document: ModelDocument) -> None:
    count = len(document.overrides)
    _demand(document.model.overrides == count <= MAX_OVERRIDES, f"{count} overrides do not fit the head")
    for entity in document.overrides:
        check_text("the entity id of an override", entity, MAX_OVERRIDE_ID_BYTES)


def _check_times(document: ModelDocument) -> None:
    times = [document.model.created_at, *(version.created_at for version in document.versions)]
    for test in document.tests:
        times += [test.started_at, test.changed_at, test.ended_at or test.started_at]
    times += [ledger.created_at for ledger in document.ledgers]
    for stay in document.deployments:
        times += [stay.since, stay.until or stay.since]
    _demand(
        all(time.tzinfo is not None for time in times), "every time must have a zone, such as a Z at its end"
    )


def _check_deployments(document: ModelDocument) -> None:
    present = [stay.version for stay in document.deployments if stay.until is None]
    active = document.model.active
    _demand(
        present == ([] if active is None else [active]), "the present deployment is not the active version"
    )
    _demand(
        not present or document.deployments[-1].until is None, "the present deployment is not the last one"
    )


def _check_tests(document: ModelDocument, labels: set[str]) -> None:
    head = document.model
    running = [test.id for test in document.tests if test.status == "running"]
    said = [] if head.test_id is None else [head.test_id]
    _demand(running == said, f"the head says that tests {said} run, the tests say {running}")
    numbers = [test_number(test.id) or 0 for test in document.tests]
    _demand(numbers == sorted(set(numbers)), "tests must be in the order of their ids")
    _demand(
        all(0 < n <= head.tests_started <= MAX_NUMBER for n in numbers),
        "a test id is past the number of tests",
    )
    ledgers = [(ledger.test_id, ledger.revision) for ledger in document.ledgers]
    _demand(all(test.revision > 0 for test in document.tests), "the revisions of a test begin with 1")
    steps = sum(test.revision for test in document.tests)
    _demand(
        steps == len(ledgers),
        f"expected {steps} ledgers, one for each revision of a test, found {len(ledgers)}",
    )
    expected = [(test.id, step + 1) for test in document.tests for step in range(test.revision)]
    _demand(ledgers == expected, "ledgers must be in the order of tests and revisions")
    for ledger in document.ledgers:
        _check_weights(ledger)
    last = {ledger.test_id: ledger for ledger in document.ledgers}
    for test in document.tests:
        if test.plan is not None:
            plan = check_plan(test.plan, head.metrics)
            _demand(test.step < max(1, len(plan.steps)), f"test {test.id} is past the steps of its plan")
            arms = {test.baseline, test.candidate} <= set(test.weights)
            _demand(arms, f"baseline or candidate of test {test.id} is no arm of it")
        check_text("the salt of a test", test.salt, MAX_SALT_BYTES)
        _demand(test.model == head.name, f"test {test.id} is of model {test.model!r}")
        _demand(
            test.status != "running" or labels >= set(test.weights),
            f"test {test.id} has an arm that is not there",
        )
        _demand(
            last[test.id].weights == test.weights, f"test {test.id} and its last ledger differ in weights"
        )
        slots = {arm.version: arm.slots for arm in test.arms}
        _demand(
            list(slots) == Ledger.from_runs(last[test.id].runs).arms,
            f"the arms of test {test.id} are no set in order",
        )
        _demand(
            slots == _slots(last[test.id]), f"the slots of test {test.id} are not those of its last ledger"
        )


def _check_weights(ledger: LedgerRevision) -> None:
    what = f"revision {ledger.revision} of test {ledger.test_id}"
    weights = ledger.weights.values()
    split = all(0 <= weight <= 1 for weight in weights) and abs(sum(weights) - 1) <= SPLIT_TOLERANCE
    _demand(split, f"the weights of {what} are no split")
    _demand(
        _slots(ledger).keys() == ledger.weights.keys(),
        f"the ledger of {what} has other arms than its weights",
    )


def _slots(ledger: LedgerRevision) -> dict[str, int]:
    return Ledger.from_runs(ledger.runs).counts()


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidDocument(otherwise)
