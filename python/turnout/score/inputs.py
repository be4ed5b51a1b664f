"""Which files are read, and of what format each of them is."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from turnout.errors import InvalidRequest
from turnout.score.csvfile import CsvFile
from turnout.score.ndjson import NdjsonFile
from turnout.score.rows import COMPRESSIONS
from turnout.score.source import Source
from turnout.score.tabular import ArrowFile, ParquetFile

Format = Literal["parquet", "csv", "ndjson", "arrow"]
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
TEXT: frozenset[Format] = frozenset({"csv", "ndjson"})


class Input(msgspec.Struct, frozen=True):
    """One file, as it was when it was found: size in bytes, and when it was last changed, in nanoseconds."""

    path: str
    format: Format
    size: int
    modified: int


def format_of(path: Path) -> Format | None:
    """What the name of a file says; text may be compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        found = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        return found if found in TEXT else None
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def find(names: Sequence[str], given: Format | None) -> list[Input]:
    """The files that files, folders and patterns name, in their order; those of a folder sorted by their paths.

    Raises InvalidRequest where there is none, where one is named twice, or where nothing says its format.
    """
    found: list[Input] = []
    seen: set[Path] = set()
    for name in names:
        for path in _paths(name, given):
            if path in seen:
                raise InvalidRequest(f"{path} is named twice among the inputs")
            seen.add(path)
            found.append(_input(path, given))
    return found


def _paths(name: str, given: Format | None) -> list[Path]:
    path = Path(name).absolute()
    if path.is_dir():
        files = [file for file in _inside(path) if given is not None or format_of(file) is not None]
        if not files:
            raise InvalidRequest(f"{path}: expected files that end with {', '.join(SUFFIXES)}, found none")
        return files
    if path.is_file():
        return [path]
    files = [Path(match).absolute() for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207
    files = [file for file in files if file.is_file()]
    if not files:
        raise InvalidRequest(f"{path}: no such file or folder, and no file is called so")
    return files


def _inside(folder: Path) -> list[Path]:
    """All files below a folder but the hidden ones, and those that others leave there to mark something."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )


def _input(path: Path, given: Format | None) -> Input:
    kind = given or format_of(path)
    if kind is None:
        raise InvalidRequest(
            f"{path}: expected a name that ends with {', '.join(SUFFIXES)}; say the format with --from"
        )
    status = path.stat()
    return Input(path=str(path), format=kind, size=status.st_size, modified=status.st_mtime_ns)


def open_source(given: Input, number: int, *, verbatim: bool) -> Source:
    """The file, opened far enough to know its columns. Raises InvalidRequest where it cannot be read."""
    path = Path(given.path)
    match given.format:
        case "parquet":
            return ParquetFile(path, number)
        case "arrow":
            return ArrowFile(path, number)
        case "csv":
            return CsvFile(path, number)
        case "ndjson":
            return NdjsonFile(path, number, verbatim=verbatim)
