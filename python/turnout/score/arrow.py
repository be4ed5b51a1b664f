"""The parts of pyarrow that scoring uses, as `Any`: it has no stubs."""

from __future__ import annotations

from typing import Any

from turnout.errors import InvalidRequest

try:
    import pyarrow
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.ipc
    import pyarrow.parquet
except ImportError as error:
    raise InvalidRequest("reading and writing files needs pyarrow: install turnout[arrow]") from error

pa: Any = pyarrow
pc: Any = pyarrow.compute
csv: Any = pyarrow.csv
ipc: Any = pyarrow.ipc
parquet: Any = pyarrow.parquet
