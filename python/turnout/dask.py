"""Predictions with Dask: `frame.map_partitions(predictor, predictor.bundle, meta=predictor.meta(frame))`.

Needs `turnout[dask]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pandas as pd
from dask.dataframe.dispatch import make_meta
from dask.delayed import Delayed, delayed

from turnout.bundle import Bundle
from turnout.cluster import TableOptions, TablePredictor, as_table
from turnout.domain import OnError


class Predictor:
    """A callable for `map_partitions`.

    What travels with the task of each partition is the digest; the bundle is an argument of its own, `bundle`, which
    Dask brings to each worker once.

    Args:
        bundle: the model. Where it holds many megabytes, `save` it to a file that all workers see.
        entity: the column that holds the entity ids; None where there is none.
        version: the version that answers all rows.
        on_error: `fail` raises the first error of a row, `skip` notes it in the column `error` and answers the others.
        keep: columns that come back before the answers. Those that are no features are not given to the model.
        threads: chunks of rows that a task runs at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        entity: str | None = "entity_id",
        version: str | None = None,
        on_error: OnError = "fail",
        keep: Sequence[str] = (),
        threads: int = 1,
    ) -> None:
        self._options = TableOptions(entity, version, on_error, keep, threads)
        self._bundle = bundle
        TablePredictor(bundle, self._options)  # refuses here what every task would refuse

    @property
    def bundle(self) -> Delayed:
        """The bundle as the second argument of `map_partitions`."""
        return delayed(self._bundle, name=f"turnout-bundle-{self._bundle.digest}", traverse=False)

    def meta(self, frame: Any) -> pd.DataFrame:  # noqa: ANN401
        """The answers to no rows of a frame, of Dask or of pandas: their columns and types."""
        return self._joined(
            make_meta(frame), TablePredictor(self._bundle, self._options).schema.empty_table()
        )

    def __call__(self, frame: pd.DataFrame, bundle: Bundle) -> pd.DataFrame:
        """The answers to a partition, under its index: the kept columns, `version`, and the outputs in types of Arrow."""
        predictor = TablePredictor(bundle, self._options)
        taken = predictor.taken(list(frame.columns))
        return self._joined(frame, predictor.answers(as_table(frame[taken])))

    def __getstate__(self) -> dict[str, Any]:
        return {"_options": self._options}

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """By what Dask names the tasks."""
        return ("turnout.dask.Predictor", *msgspec.structs.astuple(self._options))

    def _joined(self, frame: pd.DataFrame, answers: Any) -> pd.DataFrame:  # noqa: ANN401
        # Types of Arrow hold a null in any column, so that all partitions have the same.
        found = answers.to_pandas(types_mapper=pd.ArrowDtype)
        return frame[list(self._options.keep)].assign(**{name: found[name].array for name in found.columns})
