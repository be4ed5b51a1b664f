"""What a worker of a cluster does with its part of the rows, whichever library brings them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import force_setattr

from turnout.answers import ArrowAnswers
from turnout.bundle import Bundle, open_bundle
from turnout.domain import OnError
from turnout.errors import InvalidRequest
from turnout.tables import load_pyarrow


class TableOptions(msgspec.Struct, frozen=True):
    """What to predict with a bundle.

    Attributes:
        entity: the column that holds the entity ids; None where there is none.
        version: the version that answers all rows.
        on_error: `fail` raises the first error of a row, `skip` notes it and answers the others.
        keep: columns that come back before the answers. Those that are no features are not given to the model.
        threads: chunks of rows that a worker runs at once.
    """

    entity: str | None = "entity_id"
    version: str | None = None
    on_error: OnError = "fail"
    keep: Sequence[str] = ()
    threads: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            raise InvalidRequest("expected keep as a list of columns, found one string")
        force_setattr(self, "keep", tuple(self.keep))


class TablePredictor:
    """Answers tables with a bundle, in the process that makes it; a version is loaded once, however many make one.

    Attributes:
        schema: the schema of the answers, whichever versions give them; no name in it is that of a kept column.
    """

    def __init__(self, bundle: Bundle, options: TableOptions) -> None:
        pa = load_pyarrow()
        self._open = open_bundle(bundle)
        self._job = self._open.job(options.version, options.on_error)
        self._keep = options.keep
        self._entity = None if options.version is not None else options.entity
        self._threads = max(options.threads, 1)
        versions = self._open.serving.record.versions.values()
        features = {feature.name for version in versions for feature in version.features}
        self._no_features = {*options.keep, options.entity} - features
        kept = [pa.field(name, pa.null()) for name in options.keep]
        self.schema = pa.schema(list(ArrowAnswers(self._job, kept).schema)[len(kept) :])

    def load(self) -> None:
        """Load every version that may answer; else it is done when the first table comes."""
        self._open.load(self._job)

    def taken(self, columns: Sequence[str]) -> list[str]:
        """Those columns of a table that `answers` wants: the features, and the entity ids.

        Raises InvalidRequest where a column is missing that was named.
        """
        named = [*self._keep, *([] if self._entity is None else [self._entity])]
        for name in named:
            if columns.count(name) != 1:
                raise InvalidRequest(f"expected one column {name!r}, found the columns {', '.join(columns)}")
        features = [name for name in columns if name not in self._no_features]
        if not features:
            raise InvalidRequest(f"expected columns of features, found the columns {', '.join(columns)}")
        return [name for name in columns if name not in self._no_features or name == self._entity]

    def answers(self, table: Any) -> Any:  # noqa: ANN401
        """For a `pyarrow.Table` of the columns `taken` one of as many rows: `version`, and the outputs.

        Raises what `Turnout.predict_batch` raises.
        """
        self.load()
        ids = None if self._entity is None else table.column(self._entity)
        rows = table.drop_columns([name for name in table.schema.names if name in self._no_features])
        found = self._open.batches.predict(self._job, rows, ids, threads=self._threads)
        return load_pyarrow().Table.from_arrays(found.to_arrow().columns, schema=self.schema)


def as_table(batch: Any) -> Any:  # noqa: ANN401
    """A `pyarrow.Table` of one, of a frame of pandas, or of a mapping of one-dimensional arrays of NumPy."""
    pa = load_pyarrow()
    if isinstance(batch, pa.Table):
        return batch
    try:
        if isinstance(batch, Mapping):
            return pa.table({name: np.asarray(values) for name, values in batch.items()})
        return pa.Table.from_pandas(batch, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"the rows cannot be read as a table: {error}") from error
