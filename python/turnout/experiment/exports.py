"""Exposures and outcomes as Parquet files, whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from turnout.errors import StorageError
from turnout.experiment.events import Events
from turnout.tables import load_pyarrow

GROUP = 50_000
"""Rows of a row group that is written."""


def export_exposures(events: Events, model: str, tests: Sequence[int], path: Path) -> int:
    """Write the exposures of tests to a Parquet file, whole or not at all; how many these were. Raises StorageError."""
    pa = load_pyarrow()
    columns = {
        "model": pa.string(),
        "test": pa.string(),
        "segment": pa.int64(),
        "version": pa.string(),
        "entity": pa.string(),
        "time": pa.timestamp("ms", tz="UTC"),
        "answered": pa.bool_(),
        "score": pa.float64(),
        "champion": pa.float64(),
    }
    rows = (
        (
            model,
            str(test),
            show.segment,
            show.arm,
            entity.hex(),
            show.ms,
            show.answered,
            show.score,
            show.champion,
        )
        for test, entity, show in events.exposures(model, tests)
    )
    return _write(pa, path, columns, rows)


def export_outcomes(events: Events, model: str, path: Path) -> int:
    """Write the outcomes of a model to a Parquet file, whole or not at all; how many these were. Raises StorageError.

    What belongs to no test, version or entity is null there; a `value` is a number, or a `label` is a text.
    """
    pa = load_pyarrow()
    columns = {
        "model": pa.string(),
        "test": pa.string(),
        "segment": pa.int64(),
        "version": pa.string(),
        "entity": pa.string(),
        "metric": pa.string(),
        "value": pa.float64(),
        "label": pa.string(),
        "time": pa.timestamp("ms", tz="UTC"),
        "received": pa.timestamp("ms", tz="UTC"),
        "state": pa.string(),
    }
    rows = (
        (
            logged.model,
            str(logged.test) if logged.test else None,
            logged.segment or None,
            logged.arm or None,
            logged.entity.hex() or None,
            logged.metric,
            None if isinstance(logged.value, str) else logged.value,
            logged.value if isinstance(logged.value, str) else None,
            logged.ms,
            logged.received_ms,
            logged.state,
        )
        for logged in events.outcomes(model)
    )
    return _write(pa, path, columns, rows)


def _write(pa: Any, path: Path, columns: dict[str, Any], rows: Iterator[tuple[Any, ...]]) -> int:  # noqa: ANN401
    """Write rows aside, in groups, and rename; how many these were."""
    from pyarrow import parquet  # noqa: PLC0415 - pyarrow is optional

    schema, count = pa.schema(list(columns.items())), 0
    with _aside(path) as file, parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, GROUP)):
            arrays = [
                pa.array(column, kind)
                for column, kind in zip(zip(*group, strict=True), columns.values(), strict=True)
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            count += len(group)
    return count


@contextmanager
def _aside(path: Path) -> Generator[IO[bytes]]:
    """A file that takes its place when all of it is on the disk; of one that is broken nothing is left."""
    half = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        try:
            with half.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
            _sync(path.parent)
        finally:
            with suppress(OSError):
                half.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def _sync(folder: Path) -> None:
    """Have the disk know the names in a folder, where it can."""
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
