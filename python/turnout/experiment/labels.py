"""The true class or value of a prediction beside what the version said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from turnout.domain import Version
from turnout.errors import InvalidOutcome
from turnout.experiment.statistics.quality import LabelCounts, add, add_class, add_value
from turnout.plans import Metric
from turnout.router import score_output

Label = str | int | float | bool
MAX_ERROR = 1e30
"""Of a score from its true value; the square of a larger one could not be added up."""


class Scheme(NamedTuple):
    """How labels of a version are read: as one of so many `classes` (by name, or 0 to n - 1), or as a value.

    `columns` is the number of probabilities of its score, 1 where the score is that of the second class alone.
    """

    classes: tuple[str | int | bool, ...] | None
    columns: int | None

    @property
    def is_classifier(self) -> bool:
        """Whether labels are classes."""
        return self.columns != 1 or self.classes is not None

    def truth(self, value: Label) -> int | float:
        """The index of a class, or a value. Raises InvalidOutcome."""
        if not self.is_classifier:
            if isinstance(value, str | bool):
                raise InvalidOutcome(
                    f"expected the true value as a number, found {value!r:.100}: this version answers with a value"
                )
            try:
                return float(value)
            except OverflowError as error:
                raise InvalidOutcome("expected the true value as a number that a double can be") from error
        if self.classes is not None:
            return _index_in(self.classes, value)
        whole = isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer())
        if not whole or not 0 <= int(value) < (self.columns or 65536):
            raise InvalidOutcome(
                f"expected the true class as its index, 0 to {(self.columns or 65536) - 1}, found {value!r:.100}; a metric "
                "of kind label can list its classes"
            )
        return int(value)


def scheme_of(version: Version, metric: Metric) -> Scheme:
    """How labels of a version are read for a metric."""
    index = score_output(version)
    tensor = None if index is None else version.signature.outputs[index]
    classes = metric.classes or (None if tensor is None else tensor.classes) or None
    columns = None
    if tensor is not None:
        columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    return Scheme(classes, columns or (len(classes) if classes and columns is None else columns))


def judge(
    scheme: Scheme, truth: float, score: float | None, predicted: int, counts: LabelCounts
) -> float | None:
    """Count a label in, and say how right the version was: 1 or 0 for a class, the absolute error of a value."""
    if score is None:
        return None
    if not scheme.is_classifier:
        error = abs(score - truth)
        if not error <= MAX_ERROR:
            return None
        add_value(counts, float(truth), score)
        return error
    if scheme.columns in {1, 2} and 0 <= score <= 1:
        chosen = predicted if scheme.columns == 2 else int(score >= 0.5)
        add(counts, truth == 1, score, chosen == truth)
    else:
        chosen = predicted
        add_class(counts, chosen == truth, score if scheme.columns != 1 else None)
    return float(chosen == truth)


def _index_in(classes: Sequence[str | int | bool], value: Label) -> int:
    for index, name in enumerate(classes):
        if name == value and isinstance(name, str) == isinstance(value, str):
            return index
    shown = ", ".join(map(repr, classes[:10]))
    raise InvalidOutcome(f"expected the true class, one of {shown}, found {value!r:.100}")
