"""What a test has shown, as frozen structs; every number is computed from the counts that come along."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from turnout.experiment.counts import ShadowCounts, TestCounts
from turnout.experiment.events import Point

Recommendation = Literal["promote", "roll_back", "keep_running", "no_difference"]
Effect = Literal["better", "worse", "no_difference", "undecided"]
Interval = tuple[float | None, float | None]
"""Lower and upper bound; None where there is none."""


class MetricArm(msgspec.Struct, frozen=True):
    """A metric in one arm: entities exposed, of them matured (observed for the whole window), with an event, the mean."""

    version: str
    exposed: int
    matured: int
    events: int
    estimate: float | None
    interval: Interval


class MetricEffect(msgspec.Struct, frozen=True):
    """The candidate less the baseline, over all segments of the ramp, each compared within itself.

    `interval` and `p_value` hold at every look. `lift` is relative to the baseline. `entities_needed` is at how many
    matured entities it would be decided, if all goes on as it is.
    """

    version: str
    baseline: str
    difference: float | None
    interval: Interval
    lift: float | None
    lift_interval: Interval
    p_value: float
    decided: bool
    effect: Effect
    entities: int
    entities_needed: int | None
    enough: bool
    variance_reduced: bool = False


class MetricResult(msgspec.Struct, frozen=True):
    """A declared metric."""

    metric: str
    kind: str
    direction: str
    role: str
    window_seconds: float
    arms: tuple[MetricArm, ...]
    effects: tuple[MetricEffect, ...]
    margin: float | None = None
    """By which fraction of the baseline the candidate may be worse."""


class BadEvents(msgspec.Struct, frozen=True):
    """Errors, fallbacks, scores that are no number, slow answers: each entity's first, and all of requests without one.

    `ratio` is where the ratio of the rates lies, at every look; `log_e` the evidence (natural logarithm) that the
    candidate is worse by more than `margin`.
    """

    metric: str
    version: str
    baseline: str
    margin: float
    events: dict[str, int]
    requests: dict[str, int]
    ratio: Interval
    log_e: float
    worse: bool
    harm_excluded: bool


class SampleRatio(msgspec.Struct, frozen=True):
    """Whether entities came in the shares that were configured, at a stage: assigned, answered, outcome joined."""

    stage: str
    expected: dict[str, float]
    counted: dict[str, int]
    log_bayes_factor: float
    mismatch: bool


class Quantile(msgspec.Struct, frozen=True):
    """A quantile of the latency in seconds, and where it lies at every look, if requests are independent."""

    quantile: float
    seconds: float | None
    interval: Interval


class ArmScores(msgspec.Struct, frozen=True):
    """What an arm says of the entities it meets first: the distribution of its scores.

    `histogram` counts scores from 0 to 1 by twentieths. `stability` is the population stability index against the
    baseline's histogram (below 0.1 they hardly differ, above 0.25 they do); None where scores are no probabilities.
    """

    version: str
    entities: int
    mean: float | None
    deviation: float | None
    least: float | None
    greatest: float | None
    histogram: tuple[int, ...]
    stability: float | None


class ArmLatency(msgspec.Struct, frozen=True):
    """How long an arm took to answer."""

    version: str
    requests: int
    quantiles: tuple[Quantile, ...]


class CalibrationBin(msgspec.Struct, frozen=True):
    """Scores of a tenth: their mean, how often the second class was true, how many."""

    mean_score: float
    observed_rate: float
    count: int


class VersionQuality(msgspec.Struct, frozen=True):
    """What labels say of a version beside what was known when it was registered; `gap` is live less offline."""

    version: str
    labels: int
    live: dict[str, float]
    offline: dict[str, float]
    gap: dict[str, float]
    calibration: tuple[CalibrationBin, ...] = ()


class SegmentResult(msgspec.Struct, frozen=True):
    """One revision of the test: its shares, and what each arm did."""

    revision: int
    started_at: datetime
    shares: dict[str, float]
    assigned: dict[str, int]
    answered: dict[str, int]
    failed: dict[str, int]
    requests: dict[str, int]
    dropped: int = 0


class ShadowResult(msgspec.Struct, frozen=True):
    """A version that answered nothing and was run beside the one that did."""

    version: str
    counts: ShadowCounts
    agreement: float | None
    mean_difference: float | None
    largest_difference: float
    mean_seconds: float | None
    mean_shadow_seconds: float | None


class Results(msgspec.Struct, frozen=True):
    """What a test has shown so far, what is recommended, and why.

    `alpha` is the rate of false alarms of each interval and p-value. `seconds_left` estimates how long the primary metric
    needs to be decided, at the present traffic. `crossed` is the share of entities that more than one arm answered.
    `decision` is what the controller would do now, for a test with a plan.
    """

    model: str
    test_id: str
    status: str
    revision: int
    at: datetime
    started_at: datetime
    ended_at: datetime | None
    baseline: str
    arms: tuple[str, ...]
    shares: dict[str, float]
    alpha: float
    recommendation: Recommendation
    reason: str
    metrics: tuple[MetricResult, ...]
    bad_events: tuple[BadEvents, ...]
    sample_ratio: tuple[SampleRatio, ...]
    scores: tuple[ArmScores, ...]
    latency: tuple[ArmLatency, ...]
    quality: tuple[VersionQuality, ...]
    segments: tuple[SegmentResult, ...]
    outcomes: dict[str, dict[str, int]]
    entities: int
    crossed: float
    crossed_warning: bool
    seconds_left: float | None
    step: int | None = None
    steps: int | None = None
    paused: bool = False
    waiting_for: tuple[str, ...] = ()
    decision: str | None = None
    shadow: ShadowResult | None = None
    trail: tuple[Point, ...] = ()
    counts: TestCounts = msgspec.field(default_factory=TestCounts)

    def plot(self) -> Any:  # noqa: ANN401
        """A plotly figure: effect and interval over time, shares, latency by arm.

        Raises InvalidRequest where plotly is not installed.
        """
        from turnout.experiment.plot import figure  # noqa: PLC0415 - plotly is optional

        return figure(self)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """What a notebook shows: the figure, where plotly is installed."""
        from turnout.experiment.plot import mimebundle  # noqa: PLC0415

        return mimebundle(self, **options)
