"""The counts of a test, by segment and arm: all that a verdict is computed from, and all that is kept of a test that ended."""

from __future__ import annotations

import msgspec

from turnout.experiment.statistics.quality import LabelCounts
from turnout.experiment.units import BAD

KINDS = 4
"""Kinds of requests: answered, answered with a score that is no number, failed, replaced by another version."""


class MetricCounts(msgspec.Struct, omit_defaults=True):
    """Sums over the matured entities of an arm: of the value y, its square, the champion's score x, and both together.

    `n` entities, `events` of them with a value that is not 0, `known` of them with a score x.
    """

    n: int = 0
    events: int = 0
    y: float = 0.0
    yy: float = 0.0
    known: int = 0
    x: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    joined: int = 0
    """Entities with an outcome, matured or not."""

    def add(self, value: float, score: float | None, sign: int) -> None:
        """Take an entity in, or with -1 out."""
        self.n += sign
        self.events += sign * (value != 0)
        self.y += sign * value
        self.yy += sign * value * value
        if score is not None:
            self.known += sign
            self.x += sign * score
            self.xx += sign * score * score
            self.xy += sign * score * value


SCORE_BINS = 20


class ScoreCounts(msgspec.Struct, omit_defaults=True):
    """The scores of entities' first answers: how many, their sum, their squares, the least, the greatest.

    `bins` counts those from 0 to 1 by twentieths, as probabilities are.
    """

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    least: float = 0.0
    greatest: float = 0.0
    bins: list[int] = msgspec.field(default_factory=lambda: [0] * SCORE_BINS)

    def add(self, score: float) -> None:
        """Take a score in."""
        self.least = min(self.least, score) if self.n else score
        self.greatest = max(self.greatest, score) if self.n else score
        self.n += 1
        self.total += score
        self.squares += score * score
        if 0 <= score <= 1:
            self.bins[min(SCORE_BINS - 1, int(score * SCORE_BINS))] += 1


class ArmCounts(msgspec.Struct, omit_defaults=True):
    """What one arm did in one segment.

    `requests` are all requests by kind, `anonymous` those without entity, `loose` the bad events of these, each counted. Of entities:
    how many were `assigned` to the arm, `answered` by it, `crossed` from another one, and how many had their first bad
    event of each sort here (`bad`: failed, replaced, no number, slower than each threshold).
    """

    requests: list[int] = msgspec.field(default_factory=lambda: [0] * KINDS)
    anonymous: int = 0
    loose: list[int] = msgspec.field(default_factory=lambda: [0] * BAD)
    assigned: int = 0
    answered: int = 0
    crossed: int = 0
    bad: list[int] = msgspec.field(default_factory=lambda: [0] * BAD)
    metrics: dict[str, MetricCounts] = {}
    scores: ScoreCounts = msgspec.field(default_factory=ScoreCounts)

    def metric(self, name: str) -> MetricCounts:
        """The sums of a metric."""
        found = self.metrics.get(name)
        if found is None:
            found = self.metrics[name] = MetricCounts()
        return found

    def events(self, bad: int) -> int:
        """Bad events of a sort: the first of each entity, and every one without entity."""
        return self.bad[bad] + self.loose[bad]


class SegmentCounts(msgspec.Struct, omit_defaults=True):
    """One revision of a test: its shares by slots, when it began, and what each arm did."""

    revision: int
    started_ms: int
    shares: dict[str, float] = {}
    arms: dict[str, ArmCounts] = {}
    dropped: int = 0

    def arm(self, name: str) -> ArmCounts:
        """The counts of an arm."""
        found = self.arms.get(name)
        if found is None:
            found = self.arms[name] = ArmCounts()
        return found


class Tally(msgspec.Struct, omit_defaults=True):
    """Over all segments: entities, those that more than one arm answered, and what became of outcomes by metric."""

    entities: int = 0
    crossed: int = 0
    outcomes: dict[str, dict[str, int]] = {}

    def count(self, metric: str, state: str) -> None:
        """Count an outcome."""
        states = self.outcomes.setdefault(metric, {})
        states[state] = states.get(state, 0) + 1


class ShadowCounts(msgspec.Struct, omit_defaults=True):
    """A version that ran beside another one: pairs of answers, how many agree, and by how much the others differ.

    `latency` has sums of seconds: of the version that answered, and of the shadow. `dropped` copies found the queue full.
    """

    pairs: int = 0
    agreed: int = 0
    failed: int = 0
    dropped: int = 0
    difference: float = 0.0
    squares: float = 0.0
    largest: float = 0.0
    seconds: float = 0.0
    shadow_seconds: float = 0.0

    def plus(self, other: ShadowCounts) -> ShadowCounts:
        """Both together."""
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__struct_fields__
            if name != "largest"
        }
        return ShadowCounts(**sums, largest=max(self.largest, other.largest))


class TestCounts(msgspec.Struct, omit_defaults=True):
    """All counts of a test; every number of its results is computed from these.

    `quality` and `latency` are by version: what labels say, and dumps of histograms (`_core.Totals`).
    """

    __test__ = False  # pytest would collect a class of this name

    segments: list[SegmentCounts] = []
    tally: Tally = msgspec.field(default_factory=Tally)
    quality: dict[str, LabelCounts] = {}
    latency: dict[str, list[bytes]] = {}
    shadow: ShadowCounts | None = None
