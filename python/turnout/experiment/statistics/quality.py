"""How good a version's predictions turned out to be, from counts that add up over workers and over time.

Scores are kept in bins by true class. The bins are finer near 0 and 1, because models of rare events keep all of their
scores there, and the ten tenths that a calibration curve shows are unions of bins.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from typing import NamedTuple

import msgspec

BINS = 200
FINE, COARSE, TINIEST = 60, 10, 1e-5
"""Bins in the first and last tenth, bins in each tenth between, and the end of the first bin."""
TENTHS = (FINE, *[COARSE] * 8, FINE)


def _edges() -> tuple[float, ...]:
    """The starts of the bins: geometric up to 0.1, even up to 0.9, and the mirror of the first tenth."""
    ratio = (0.1 / TINIEST) ** (1 / (FINE - 1))
    low = [0.0, *(TINIEST * ratio**step for step in range(FINE - 1))]
    middle = [0.1 + 0.8 * step / (8 * COARSE) for step in range(8 * COARSE + 1)]
    return (*low, *middle, *sorted(1 - edge for edge in low[2:]), 1 - TINIEST)


EDGES = _edges()
SMALLEST = sys.float_info.epsilon
"""The least probability that log loss takes for true, as scikit-learn has it."""


def _zeros() -> list[int]:
    return [0] * BINS


def _no_sums() -> list[float]:
    return [0.0] * BINS


class LabelCounts(msgspec.Struct):
    """Sums over labelled predictions of one version.

    `labelled` classes, `scored` of them with a probability of class 1, `valued` numbers, `unusable` scores and numbers.
    `negative` and `positive` count scores by bin and true class, and `scores` sums them by bin; of a classifier of many
    classes, scores of the answered class by whether it was wrong or right.
    """

    labelled: int = 0
    correct: int = 0
    scored: int = 0
    log_loss: float = 0.0
    brier: float = 0.0
    valued: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    unusable: int = 0
    negative: list[int] = msgspec.field(default_factory=_zeros)
    positive: list[int] = msgspec.field(default_factory=_zeros)
    scores: list[float] = msgspec.field(default_factory=_no_sums)


class CalibrationBin(NamedTuple):
    """One tenth of the scores: what the version said on average, and what came true."""

    score: float
    rate: float
    labels: int


def empty() -> LabelCounts:
    """Counts of nothing, to add to."""
    return LabelCounts()


def add(counts: LabelCounts, label: bool, score: float, correct: bool | None = None, sign: int = 1) -> None:
    """Count one label of a binary classifier that gave the positive class the probability `score`.

    `correct` says whether the class that was answered is the true one; left out, the threshold is 0.5. With `sign` -1 it
    is taken back. A score that is no probability counts as `unusable`, and else for the accuracy only.
    """
    add_class(counts, (score >= 0.5) == label if correct is None else correct, sign=sign)
    if not 0 <= score <= 1:
        counts.unusable += sign
        return
    counts.scored += sign
    counts.log_loss -= sign * math.log(max(SMALLEST, score if label else 1 - score))
    counts.brier += sign * (score - label) ** 2
    _bin(counts, label, score, sign)


def add_class(counts: LabelCounts, correct: bool, score: float | None = None, sign: int = 1) -> None:
    """Count one label of a classifier: whether the class that it answered was `correct`.

    With the probability `score` that it gave to what it answered, its calibration is counted too: how often it is right
    when it is that sure (Guo, Pleiss, Sun & Weinberger, ICML 2017).
    """
    counts.labelled += sign
    counts.correct += sign * correct
    if score is None:
        return
    if 0 <= score <= 1:
        _bin(counts, correct, score, sign)
    else:
        counts.unusable += sign


def _bin(counts: LabelCounts, positive: bool, score: float, sign: int) -> None:
    place = bisect_right(EDGES, score) - 1
    (counts.positive if positive else counts.negative)[place] += sign
    counts.scores[place] += sign * score


def add_value(counts: LabelCounts, truth: float, predicted: float, sign: int = 1) -> None:
    """Count one true value of a regressor; `unusable` where the distance is not finite."""
    error = predicted - truth
    if not math.isfinite(error * error):
        counts.unusable += sign
        return
    counts.valued += sign
    counts.absolute += sign * abs(error)
    counts.squared += sign * error * error


def merge(one: LabelCounts, other: LabelCounts) -> LabelCounts:
    """The counts of both together; neither is changed."""
    merged = LabelCounts()
    for name in LabelCounts.__struct_fields__:
        mine, others = getattr(one, name), getattr(other, name)
        both = [a + b for a, b in zip(mine, others, strict=True)] if isinstance(mine, list) else mine + others
        setattr(merged, name, both)
    return merged


def accuracy(counts: LabelCounts) -> float | None:
    """The share of answered classes that were true; None without labels, as in all that follow."""
    return counts.correct / counts.labelled if counts.labelled else None


def log_loss(counts: LabelCounts) -> float | None:
    """The mean of -ln of the probability given to the true class, in nats."""
    return counts.log_loss / counts.scored if counts.scored else None


def brier(counts: LabelCounts) -> float | None:
    """The mean squared distance of the score from 0 or 1."""
    return counts.brier / counts.scored if counts.scored else None


def auc(counts: LabelCounts) -> float | None:
    """The probability that a positive scores higher than a negative (Mann-Whitney), half of ties, and bins are ties.

    None unless both classes were seen, and for classifiers of many classes.
    """
    positives, negatives = sum(counts.positive), sum(counts.negative)
    if not counts.scored or not positives or not negatives:
        return None
    below = 0
    halves = 0
    for positive, negative in zip(counts.positive, counts.negative, strict=True):
        halves += positive * (2 * below + negative)
        below += negative
    return halves / (2 * positives * negatives)


def calibration(counts: LabelCounts) -> list[CalibrationBin]:
    """The tenths of the scores from 0 to 1 that are not empty."""
    found: list[CalibrationBin] = []
    start = 0
    for width in TENTHS:
        end = start + width
        positives = sum(counts.positive[start:end])
        count = positives + sum(counts.negative[start:end])
        if count > 0:
            found.append(CalibrationBin(sum(counts.scores[start:end]) / count, positives / count, count))
        start = end
    return found


def calibration_error(counts: LabelCounts) -> float | None:
    """The expected calibration error: the mean distance of said and seen over ten bins (Naeini et al., AAAI 2015)."""
    bins = calibration(counts)
    total = sum(each.labels for each in bins)
    return sum(each.labels * abs(each.score - each.rate) for each in bins) / total if total else None


def mean_absolute_error(counts: LabelCounts) -> float | None:
    """The mean absolute error of a regressor, in the unit of its values."""
    return counts.absolute / counts.valued if counts.valued else None


def root_mean_squared_error(counts: LabelCounts) -> float | None:
    """The root of the mean squared error of a regressor, in the unit of its values."""
    return math.sqrt(max(0.0, counts.squared) / counts.valued) if counts.valued else None
