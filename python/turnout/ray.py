"""Predictions with Ray Data: `dataset.map_batches(turnout.ray.Predictor, ...)`. Needs `turnout[ray]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnout.bundle import Bundle
from turnout.cluster import TableOptions, TablePredictor, as_table
from turnout.domain import OnError
from turnout.tables import load_pyarrow


class Predictor:
    """A callable class for `map_batches`: an actor makes one, which loads the versions, and calls it with batches.

    Args:
        bundle: the model. Ray puts it into its object store once, from where every node takes it.
        entity: the column that holds the entity ids; None where there is none.
        version: the version that answers all rows.
        on_error: `fail` raises the first error of a row, `skip` notes it in the column `error` and answers the others.
        keep: columns that come back before the answers. Those that are no features are not given to the model.
        threads: chunks of rows that an actor runs at once.

    Raises InvalidDocument where the bundle or a model file is not what its digest says.
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
        self._keep = list(keep)
        self._predictor = TablePredictor(bundle, TableOptions(entity, version, on_error, keep, threads))
        self._predictor.load()

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401
        """A `pyarrow.Table` for a batch in any format of Ray: the kept columns, `version`, and the outputs."""
        table = as_table(batch)
        answers = self._predictor.answers(table.select(self._predictor.taken(table.schema.names)))
        kept = table.select(self._keep)
        schema = load_pyarrow().schema([*kept.schema, *answers.schema])
        return load_pyarrow().Table.from_arrays([*kept.columns, *answers.columns], schema=schema)
