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


class Asked(msgspec.Struct, frozen=True):
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
    """Answers tables with a bundle, in the process that makes it; a version is loaded once, however many make one."""

    def __init__(self, bundle: Bundle, asked: Asked) -> None:
        self._asked = asked
        self._open = open_bundle(bundle)
        self._job = self._open.job(asked.version, asked.on_error)
        versions = self._open.serving.record.versions.values()
        features = {feature.name for version in versions for feature in version.features}
        self._left_out = {*asked.keep, asked.entity} - features

    def load(self) -> None:
        """Load every version that may answer; else it is done when the first table comes."""
        self._open.load(self._job)

    def schema(self, kept: Sequence[Any] = ()) -> Any:  # noqa: ANN401
        """The schema of the answers, whichever versions give them; `kept` are the fields before them."""
        return ArrowAnswers(self._job, kept).schema

    def answer(self, table: Any) -> Any:  # noqa: ANN401
        """For a `pyarrow.Table` one of as many rows: the kept columns, `version`, and the outputs.

        Raises what `Turnout.predict_batch` raises, and InvalidRequest where a column is not there.
        """
        self.load()
        asked = self._asked
        for name in (*asked.keep, *((asked.entity,) if self._needs_ids else ())):
            if table.schema.get_all_field_indices(name)[1:] or name not in table.schema.names:
                raise InvalidRequest(
                    f"expected one column {name!r}, found the columns {', '.join(table.schema.names)}"
                )
        ids = table.column(asked.entity) if self._needs_ids else None
        rows = table.drop_columns([name for name in table.schema.names if name in self._left_out])
        if not rows.num_columns:
            raise InvalidRequest("expected columns of features, found none")
        found = self._open.batches.predict(self._job, rows, ids, threads=max(asked.threads, 1)).to_arrow()
        kept = [table.schema.field(name) for name in asked.keep]
        columns = [*(table.column(name) for name in asked.keep), *found.columns]
        return load_pyarrow().Table.from_arrays(columns, schema=self.schema(kept))

    @property
    def _needs_ids(self) -> bool:
        return self._asked.entity is not None and self._asked.version is None


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
