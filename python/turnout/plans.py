"""What is measured of a model, and how a new version is to take over: metrics, steps, guardrails. Frozen structs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from turnout.errors import InvalidMetric, InvalidPlan

MetricKind = Literal["binary", "mean", "count", "label"]
Direction = Literal["up", "down"]
Role = Literal["primary", "secondary", "guardrail"]
AtEnd = Literal["promote", "hold"]

BUILT_IN = ("errors", "fallbacks", "invalid", "latency")
"""Bad events that every test counts without a word: failures, answers by another version, scores that are no number,
slow answers."""
MAX_METRICS = 50
MAX_STEPS = 50
MAX_CLASSES = 1000
MAX_SECONDS = 366 * 86400.0
MAX_HOOKS = 10

Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Metric(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is observed of an entity after it was exposed.

    Kinds: `binary`, whether it happened (0 or 1); `mean`, an amount, whose sum for an entity counts; `count`, how often
    (a whole number, summed); `label`, the true class or value of a prediction. `direction` says which way is better.
    Outcomes count within `window_seconds` of the exposure. A `guardrail` has a `margin`: by how much of the baseline the
    candidate may be worse. `classes` are those of a `label`, in the order of the model's probabilities, where they are
    not 0, 1, 2 ...
    """

    name: Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.\-]+$")]
    kind: MetricKind
    direction: Direction = "up"
    window_seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] = 86400.0
    role: Role = "secondary"
    margin: Annotated[float, Meta(ge=0, le=10)] | None = None
    classes: tuple[str | int | bool, ...] = ()

    @property
    def window_ms(self) -> int:
        """The window in milliseconds."""
        return round(self.window_seconds * 1000)


class Step(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One step of a ramp: the candidate's share, and what it takes to leave it.

    `dwell_seconds` and `min_entities` (matured entities of each arm) must both be reached; with `approval` somebody must
    say so as well. With `shadow` the candidate runs on a copy of that share of the requests and answers none of them.
    """

    share: Share = 0.0
    dwell_seconds: Seconds = 0.0
    min_entities: Count = 0
    approval: bool = False
    shadow: Share = 0.0


class Guardrail(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What ends a test: the candidate is worse by more than `margin` (a fraction of the baseline), or past a hard limit.

    `metric` is `errors`, `fallbacks`, `invalid`, `latency` or a declared one. `hard_limit` is a share of the candidate's
    requests that may be bad events, judged from `hard_requests` requests on; bad events only.
    """

    metric: str
    margin: Annotated[float, Meta(ge=0, le=10)] | None = None
    hard_limit: Annotated[float, Meta(gt=0, le=1)] | None = None
    hard_requests: Annotated[int, Meta(ge=1)] = 50


class Allocation(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Thompson sampling instead of a ramp: shares follow the probability that an arm is the best on `metric`.

    No arm gets less than `floor`. Shares move every `every_seconds`, as steps of the test.
    """

    metric: str
    floor: Annotated[float, Meta(gt=0, le=0.5)] = 0.05
    every_seconds: Annotated[float, Meta(ge=1, le=MAX_SECONDS)] = 3600.0


class Plan(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a test goes on by itself: forward through `steps`, back when a guardrail breaks.

    `alpha` is the rate of false rollbacks of a whole test. A step is left only when each guardrail excludes harm beyond
    its margin, at the same `alpha`, or its bad events are shown to be rarer than `negligible`. At the end the candidate
    is promoted, or held at the last share. `tightest_at` is the number of entities at which intervals of means are
    tightest. `webhooks` are told of each decision. `covariate` runs the baseline on the candidate's entities too, off the
    way of their answers, so that its score can take variance out of the comparison (CUPED).
    """

    steps: tuple[Step, ...] = ()
    guardrails: tuple[Guardrail, ...] = (Guardrail("errors", margin=0.1, hard_limit=0.5),)
    alpha: Annotated[float, Meta(gt=0, lt=0.5)] = 0.01
    at_end: AtEnd = "promote"
    negligible: Annotated[float, Meta(gt=0, lt=1)] = 0.005
    tightest_at: Annotated[int, Meta(ge=100)] = 5000
    webhooks: tuple[str, ...] = ()
    allocation: Allocation | None = None
    covariate: bool = False


def check_metrics(given: Sequence[Any]) -> tuple[Metric, ...]:
    """Metrics from structs or plain data. Raises InvalidMetric, which says what would be accepted."""
    metrics = tuple(_converted(item, Metric, InvalidMetric) for item in given)
    if len(metrics) > MAX_METRICS:
        raise InvalidMetric(f"expected at most {MAX_METRICS} metrics, found {len(metrics)}")
    names = [metric.name for metric in metrics]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidMetric(f"metric {twice[0]!r} is declared twice")
    if sum(metric.role == "primary" for metric in metrics) > 1:
        raise InvalidMetric("expected at most one metric with role primary")
    for metric in metrics:
        _check_metric(metric)
    return metrics


def _check_metric(metric: Metric) -> None:
    if metric.name in BUILT_IN:
        raise InvalidMetric(f"metric {metric.name!r} is built in and counted already; choose another name")
    if metric.role == "guardrail" and metric.margin is None:
        raise InvalidMetric(
            f"metric {metric.name!r} is a guardrail without margin: say by which fraction of the baseline the "
            'candidate may be worse, such as "margin": 0.02'
        )
    if metric.classes and (metric.kind != "label" or len(set(metric.classes)) < len(metric.classes)):
        raise InvalidMetric(f"metric {metric.name!r}: classes are those of a label, each of them once")
    if len(metric.classes) > MAX_CLASSES:
        raise InvalidMetric(f"metric {metric.name!r}: expected at most {MAX_CLASSES} classes")


def check_plan(given: Any, metrics: Sequence[Metric]) -> Plan:  # noqa: ANN401
    """A plan from a struct or plain data, fit for these metrics. Raises InvalidPlan."""
    plan = _converted(given, Plan, InvalidPlan)
    if plan.allocation is None:
        _check_steps(plan.steps)
    elif plan.steps:
        raise InvalidPlan(
            "expected steps or an allocation, found both: an allocation chooses the shares itself"
        )
    known = {metric.name: metric for metric in metrics}
    for guardrail in plan.guardrails:
        _check_guardrail(guardrail, known)
    named = [guardrail.metric for guardrail in plan.guardrails]
    if len(set(named)) < len(named):
        raise InvalidPlan("a metric is guarded twice")
    if plan.allocation is not None:
        _check_allocation(plan.allocation, known)
    if len(plan.webhooks) > MAX_HOOKS:
        raise InvalidPlan(f"expected at most {MAX_HOOKS} webhooks, found {len(plan.webhooks)}")
    return plan


def _check_steps(steps: Sequence[Step]) -> None:
    if not 1 <= len(steps) <= MAX_STEPS:
        raise InvalidPlan(f"expected 1 to {MAX_STEPS} steps, found {len(steps)}")
    for number, (before, after) in enumerate(pairwise(steps), 2):
        if after.share < before.share or (after.share == before.share and not before.shadow):
            raise InvalidPlan(
                f"step {number}: expected a share above {before.share:g}, that of the step before, found {after.share:g}"
            )
        if after.min_entities < before.min_entities and not before.shadow:
            raise InvalidPlan(
                f"step {number}: expected min_entities of at least {before.min_entities}, as many as the step before, "
                f"found {after.min_entities}: minimums do not fall"
            )
    for number, step in enumerate(steps, 1):
        if step.shadow and step.share:
            raise InvalidPlan(
                f"step {number}: a shadow answers nothing, so its share is 0, found {step.share:g}"
            )
        if not step.share and not step.shadow:
            raise InvalidPlan(f"step {number}: expected a share above 0, or a shadow")


def _check_guardrail(guardrail: Guardrail, known: dict[str, Metric]) -> None:
    name = guardrail.metric
    if name not in BUILT_IN and name not in known:
        raise InvalidPlan(
            f"guardrail {name!r} is no metric: expected one of {', '.join([*BUILT_IN, *known])}"
        )
    if guardrail.margin is None and (name in BUILT_IN or known[name].margin is None):
        raise InvalidPlan(
            f"guardrail {name!r} has no margin: say by which fraction of the baseline the candidate may be worse, such "
            'as "margin": 0.1'
        )
    if guardrail.hard_limit is not None and name not in BUILT_IN:
        raise InvalidPlan(f"guardrail {name!r}: hard_limit is for {', '.join(BUILT_IN[:3])}")


def _check_allocation(allocation: Allocation, known: dict[str, Metric]) -> None:
    if allocation.metric not in known or known[allocation.metric].kind == "label":
        fitting = [name for name, metric in known.items() if metric.kind != "label"]
        raise InvalidPlan(
            f"allocation by {allocation.metric!r}: expected a declared metric that is no label, one of "
            f"{', '.join(fitting) or '(none is declared)'}"
        )


def guardrails_of(plan: Plan, metrics: Sequence[Metric]) -> tuple[Guardrail, ...]:
    """The guardrails of a plan and those that metrics are by their role, each with its margin."""
    named = {guardrail.metric: guardrail for guardrail in plan.guardrails}
    for metric in metrics:
        if metric.name in named and named[metric.name].margin is None:
            named[metric.name] = msgspec.structs.replace(named[metric.name], margin=metric.margin)
        elif metric.role == "guardrail" and metric.name not in named:
            named[metric.name] = Guardrail(metric.name, margin=metric.margin)
    return tuple(named.values())


def _converted(given: Any, kind: type[Any], error: type[InvalidMetric | InvalidPlan]) -> Any:  # noqa: ANN401
    try:
        return msgspec.convert(msgspec.to_builtins(given), kind)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as failure:
        raise error(f"{kind.__name__.lower()}: {failure}") from failure
