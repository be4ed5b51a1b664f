"""One part of the input: answered, and put into a record batch beside the columns that are kept."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import msgspec
import numpy as np

from turnout.answers import ArrowAnswers, Job, Outcome, Rows
from turnout.batch import BatchPredictor, work_of
from turnout.domain import RowError
from turnout.errors import InvalidFeatures, InvalidRequest, TurnoutError
from turnout.score.source import Loaded, Part, Source, Wanted


class Answered(NamedTuple):
    """A part as it is written, and what there is to count in it."""

    batch: Any
    rows: int
    errors: int
    versions: dict[str, int]


class Answering:
    """Answers parts, from any number of threads. All of them have one schema.

    Args:
        batches: what runs the versions.
        job: what is asked, for all parts alike.
        wanted: what is read of the files.
    """

    def __init__(self, batches: BatchPredictor, job: Job, wanted: Wanted) -> None:
        self._batches = batches
        self._job = job
        self._wanted = wanted
        self._answers = ArrowAnswers(job, wanted.kept)
        self.schema = self._answers.schema

    def answer(self, source: Source, part: Part) -> Answered:
        """Answer one part. An error names the file and the row."""
        pieces = part.rows or []
        try:
            loaded = source.load(pieces, part.first, self._wanted, skip=self._job.skip)
            found = self._outcome(loaded)
        except TurnoutError as error:
            raise _placed(error, source, part) from error
        counts = Counter[str]()
        for answered in found.parts:
            counts[self._job.serving.labels[answered.version]] += len(answered.rows)
        batch = self._answers.batch(found, loaded.kept)
        return Answered(batch, found.rows, len(found.errors), dict(counts))

    def _outcome(self, loaded: Loaded) -> Outcome:
        if loaded.given is None:
            found = _nothing(0)
        else:
            found = self._batches.run(self._job, work_of(loaded.given, self._job))
        if loaded.bad and not self._job.skip:
            raise _raisable(loaded.bad[0])
        found = found._replace(errors=[_without_position(error) for error in found.errors])
        if loaded.good is None or len(loaded.good) == loaded.size:
            return found
        return _spread(found, loaded.good, loaded)


def _nothing(rows: int) -> Outcome:
    nowhere = np.full(rows, -1, np.int32)
    return Outcome(rows, nowhere, np.zeros(rows, np.uint8), nowhere.copy(), [], [])


def _spread(found: Outcome, good: Rows, loaded: Loaded) -> Outcome:
    """The outcome of all rows, of those that could be read and those that could not."""
    whole = _nothing(loaded.size)
    for column, part in zip(whole[1:4], found[1:4], strict=True):
        column[good] = part
    moved = [msgspec.structs.replace(error, row=int(good[error.row])) for error in found.errors]
    errors = sorted([*moved, *loaded.bad], key=lambda error: error.row)
    parts = [part._replace(rows=good[part.rows]) for part in found.parts]
    return whole._replace(parts=parts, errors=errors)


def _raisable(error: RowError) -> TurnoutError:
    kind = InvalidFeatures if error.code == InvalidFeatures.code else InvalidRequest
    return kind(error.detail, row=error.row, feature=error.feature)


def _without_position(error: RowError) -> RowError:
    """A position counts in a body that nobody has seen."""
    said = error.detail.removesuffix(f" (byte {error.position})")
    return msgspec.structs.replace(error, detail=said, position=None)


def _placed(error: TurnoutError, source: Source, part: Part) -> TurnoutError:
    """The error with the file and, where there is one, the row in it."""
    said = error.detail.removesuffix(f" (byte {error.position})")
    if error.row is None:
        return type(error)(f"{source.path}: {said}", feature=error.feature)
    where = source.where(part.rows or [], part.first, error.row)
    return type(error)(f"{source.path}, {where}: {said}", row=part.first + error.row, feature=error.feature)
