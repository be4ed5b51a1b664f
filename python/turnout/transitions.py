"""What a change does to the records of one model: the checks before it and the next state of head and tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from turnout import records
from turnout._core import Ledger
from turnout.domain import (
    Arm,
    Deployment,
    Model,
    Runs,
    Test,
    TestStatus,
    Version,
    utc_now,
)
from turnout.errors import (
    Conflict,
    InvalidPlan,
    InvalidRequest,
    InvalidSplit,
    RevisionConflict,
    StorageError,
    TestNotFound,
    VersionExists,
    VersionInUse,
    VersionNotFound,
)
from turnout.plans import Metric, Plan
from turnout.records import Author, Records

KEPT_FORMER = 2
MAX_OVERRIDES = 10_000
MAX_OVERRIDE_ID_BYTES = 256
MAX_SALT_BYTES = 256


def check_text(what: str, text: object, limit: int) -> None:
    """Raise InvalidRequest unless this is UTF-8 of at most `limit` bytes without NUL."""
    if not isinstance(text, str):  # a caller in Python may hand over anything
        raise InvalidRequest(f"{what} must be a string, found {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{what} must be text: {error}") from error
    if size > limit or "\0" in text:
        raise InvalidRequest(f"{what} has at most {limit} bytes and no NUL, found {size} bytes")


def normal(version: Version) -> Version:
    """The version as it is read back from the store. Raises InvalidRequest for what JSON cannot carry exactly."""
    what = f"version {version.version} of model {version.model} cannot be stored"
    try:
        if not _finite(msgspec.to_builtins(version, str_keys=True)):
            raise InvalidRequest(f"{what}: expected finite numbers, found NaN or an infinity")
        return records.VERSION.decode(records.encode(version))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidRequest(f"{what}: {error}") from error


def _finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


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
    r.put_test(replace(test, status=status, winner=winner, ended_at=utc_now(), metrics=head.metrics))
    return replace(head, test_id=None)


class Ramp(NamedTuple):
    """A plan and where it begins: the arm that is to take over, and the time on a clock that does not jump."""

    plan: Plan
    candidate: str
    since: float


def planned(
    head: Model, weights: Mapping[str, float] | None, plan: Plan, baseline: str | None
) -> tuple[str, dict[str, float]]:
    """The candidate of a plan, and the shares that it begins with. `weights` name the arms. Raises InvalidPlan."""
    champion = baseline or head.active
    if weights is None:
        raise InvalidPlan("expected two splits, those of the baseline and of the candidate")
    if champion is None or champion not in weights:
        raise InvalidPlan(
            f"a plan compares with the active version, which is {champion or '(none)'}: expected it among the splits "
            f"{', '.join(weights)}"
        )
    others = [arm for arm in weights if arm != champion]
    if plan.allocation is not None:
        if not others or len(weights) * plan.allocation.floor > 1:
            raise InvalidPlan(
                f"{len(weights)} arms with at least {plan.allocation.floor:g} each: expected two arms or more, and "
                "floors that sum to at most 1"
            )
        return others[0], dict(weights)
    if len(others) != 1:
        raise InvalidPlan(
            f"a ramp has two arms, the active version {champion} and one other, found {len(weights)}"
        )
    return others[0], shares_of(plan, 0, champion, others[0])


def shares_of(plan: Plan, step: int, baseline: str, candidate: str) -> dict[str, float]:
    """The weights of a step of a ramp."""
    share = plan.steps[step].share
    return {baseline: 1.0 - share, candidate: share}


def start_test(
    head: Model, weights: dict[str, float], salt: str | None, ramp: Ramp | None = None
) -> tuple[Model, Test, Runs]:
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
        baseline=baseline,
    )
    if ramp is not None:
        test = replace(test, plan=ramp.plan, candidate=ramp.candidate, since=ramp.since)
    return replace(head, test_id=test.id, tests_started=number), test, ledger.runs()


def step_test(
    r: Records,
    head: Model,
    test: Test,
    weights: dict[str, float],
    salt: str | None,
    ramp: Ramp | None = None,
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
        test, arms=_arms(ledger, weights), revision=test.revision + 1, changed_at=later(test.changed_at)
    )
    if ramp is not None:
        baseline = test.baseline or head.active
        fresh = {"baseline": baseline, "step": 0, "paused": False, "approved": False}
        stepped = replace(stepped, plan=ramp.plan, candidate=ramp.candidate, since=ramp.since, **fresh)
    elif stepped.plan is not None and test.weights != stepped.weights:
        stepped = replace(stepped, paused=True)  # a hand on the wheel: the plan waits until it is resumed
    return head, stepped, ledger.runs()


def later(earlier: datetime) -> datetime:
    """The present time, or the earlier one where the clock has been set back, so that revisions stay in order."""
    return max(utc_now(), earlier)


def check_arms(test: Test, first: Mapping[str, float] | None, split: Mapping[str, float]) -> None:
    """Raise Conflict where a plan would compare arms that have not been in a test from its beginning.

    The first bad event of an entity counts, and many have had theirs before such an arm came.
    """
    late = sorted(split.keys() - (first or {}).keys())
    if late:
        raise Conflict(
            f"test {test.id} of model {test.model} began without {late[0]}: stop it, and start another with the plan"
        )


def check_counted(before: Sequence[Metric], after: Sequence[Metric], test: Test) -> None:
    """Raise Conflict where a metric that a running test counts would count something else, or no more."""
    wanted = {metric.name: metric for metric in after}
    for metric in before:
        other = wanted.get(metric.name)
        if other is None or any(
            getattr(metric, field) != getattr(other, field) for field in ("kind", "window_seconds", "classes")
        ):
            raise Conflict(
                f"test {test.id} counts metric {metric.name!r}: stop it before you change the kind, the window or the "
                "classes of that metric, or remove it"
            )


def _heaviest(weights: Mapping[str, float]) -> str:
    """The arm with the largest weight, ties to the bytewise smallest name."""
    if not weights:
        raise InvalidSplit("a split has 1 to 256 arms, found 0")
    return min(weights, key=lambda arm: (-weights[arm], arm.encode()))


def _arms(ledger: Ledger, weights: Mapping[str, float]) -> tuple[Arm, ...]:
    total = math.fsum(weights.values())
    counts = ledger.counts()
    return tuple(Arm(version=arm, weight=weights[arm] / total, slots=counts[arm]) for arm in ledger.arms)


def same(found: Version, offered: Version) -> Version:
    """The version that is there, if the offered one says the same. Raises VersionExists."""
    present = replace(offered, created_at=found.created_at, ordinal=found.ordinal)
    if found == present:
        return found
    fields = [name for name in Version.__struct_fields__ if getattr(found, name) != getattr(present, name)]
    raise VersionExists(
        f"Version {found.version} of model {found.model} is registered with other content ({', '.join(fields)}); "
        "versions are immutable, choose another label"
    )
