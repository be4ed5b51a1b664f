"""Live quality from counts, against scikit-learn."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    roc_auc_score,
    root_mean_squared_error,
)

from turnout.experiment.statistics import quality
from turnout.experiment.statistics.quality import LabelCounts, add, add_class, add_value, empty, merge


def scores_and_labels(base: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a calibrated model of events that are that frequent."""
    rng = np.random.default_rng(6)
    scores = 1 / (1 + np.exp(-(math.log(base / (1 - base)) + 1.2 * rng.normal(size=20_000))))
    return scores, rng.random(20_000) < scores


def counted(labels: np.ndarray, scores: np.ndarray) -> LabelCounts:
    counts = empty()
    for label, score in zip(labels.tolist(), scores.tolist(), strict=True):
        add(counts, label, score)
    return counts


@pytest.mark.parametrize("base", [0.5, 0.1, 0.005])
def test_binary_scores_against_scikit_learn(base: float) -> None:
    scores, labels = scores_and_labels(base)
    counts = counted(labels, scores)
    assert quality.accuracy(counts) == pytest.approx(accuracy_score(labels, scores >= 0.5))
    assert quality.log_loss(counts) == pytest.approx(log_loss(labels, scores))
    assert quality.brier(counts) == pytest.approx(brier_score_loss(labels, scores))
    assert quality.auc(counts) == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    error = quality.calibration_error(counts)
    assert error is not None
    assert error < 0.01


def test_calibration_shows_who_exaggerates() -> None:
    counts = counted(np.arange(1000) % 2 == 0, np.full(1000, 0.85))
    assert quality.calibration(counts) == [(pytest.approx(0.85), 0.5, 1000)]
    assert quality.calibration_error(counts) == pytest.approx(0.35)


def test_the_tenths_are_unions_of_bins() -> None:
    assert len(quality.EDGES) == quality.BINS == sum(quality.TENTHS)
    assert list(quality.EDGES) == sorted(set(quality.EDGES))
    starts = np.cumsum([0, *quality.TENTHS[:-1]])
    assert [quality.EDGES[start] for start in starts] == pytest.approx([tenth / 10 for tenth in range(10)])


def test_certain_scores_that_were_right_and_wrong() -> None:
    counts = counted(np.array([True, False, True]), np.array([1.0, 0.0, 0.0]))
    assert quality.log_loss(counts) == pytest.approx(log_loss([1, 0, 1], [1.0, 0.0, 0.0]))
    assert quality.auc(counts) == 0.75


def test_counts_add_up_and_can_be_taken_back() -> None:
    scores, labels = scores_and_labels(0.3)
    whole, half = counted(labels[:2000], scores[:2000]), counted(labels[:1000], scores[:1000])
    merged = merge(half, counted(labels[1000:2000], scores[1000:2000]))
    assert merged.positive == whole.positive
    assert quality.log_loss(merged) == pytest.approx(quality.log_loss(whole))
    assert half.labelled == 1000
    for label, score in zip(labels[1000:2000].tolist(), scores[1000:2000].tolist(), strict=True):
        add(whole, label, score, sign=-1)
    assert (whole.negative, whole.labelled, whole.correct) == (half.negative, half.labelled, half.correct)


def test_counts_travel_as_a_document() -> None:
    counts = counted(np.array([True, False]), np.array([0.9, 0.2]))
    assert msgspec.json.decode(msgspec.json.encode(counts), type=LabelCounts) == counts


def test_the_answered_class_need_not_be_that_of_the_threshold() -> None:
    counts = empty()
    add(counts, True, 0.3, correct=True)
    assert quality.accuracy(counts) == 1


def test_many_classes_have_an_accuracy_and_a_calibration() -> None:
    counts = empty()
    for right in (True, True, True, False):
        add_class(counts, right, 0.75)
    assert quality.accuracy(counts) == 0.75
    assert quality.calibration(counts) == [(0.75, 0.75, 4)]
    assert quality.calibration_error(counts) == 0
    assert quality.auc(counts) is quality.log_loss(counts) is quality.brier(counts) is None


def test_what_is_no_probability_is_counted_apart() -> None:
    counts = empty()
    add(counts, True, math.nan)
    add(counts, True, 2.5)
    add_class(counts, True, math.nan)
    add_value(counts, 1.0, math.inf)
    assert (counts.unusable, counts.labelled, counts.correct, counts.scored, counts.valued) == (4, 3, 2, 0, 0)


def test_regressors_against_scikit_learn() -> None:
    rng = np.random.default_rng(7)
    truth = rng.normal(size=500)
    predicted = truth + rng.normal(size=500)
    counts = empty()
    for one, other in zip(truth.tolist(), predicted.tolist(), strict=True):
        add_value(counts, one, other)
    assert quality.mean_absolute_error(counts) == pytest.approx(mean_absolute_error(truth, predicted))
    assert quality.root_mean_squared_error(counts) == pytest.approx(root_mean_squared_error(truth, predicted))


def test_nothing_says_nothing() -> None:
    counts = empty()
    for measure in (
        *(quality.accuracy, quality.log_loss, quality.brier, quality.auc, quality.calibration_error),
        *(quality.mean_absolute_error, quality.root_mean_squared_error),
    ):
        assert measure(counts) is None
    assert quality.calibration(counts) == []
