"""Finished parts beside the output, from which a run that was killed goes on, and the output that is made of them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from turnout.errors import Conflict, StorageError
from turnout.score.answering import Answered
from turnout.score.arrow import ipc, pa, parquet
from turnout.score.encoding import arrow_bytes, csv_bytes, ndjson_bytes, parquet_bytes
from turnout.score.inputs import Format
from turnout.score.plan import Manifest

COPIED = 2**20
PART = re.compile(r"part-(\d{6,})\.(\w+)")


class Counts(msgspec.Struct, frozen=True):
    """What there is to count in a part: rows, those in error, rows by the version that answered, bytes."""

    rows: int
    errors: int
    versions: dict[str, int]
    size: int


class Work:
    """The folder `OUT.parts`: `manifest.json`, then for each part its counts and, once it is whole, the part.

    A part that is there is finished: everything is written aside, synced and renamed, the counts before the part.

    Args:
        out: the output, a file or a folder.
        kind: its format.
        folder: whether the parts stay as the files of a folder.
    """

    def __init__(self, out: Path, kind: Format, *, folder: bool) -> None:
        self.out = out
        self.sidecar = out.with_name(f"{out.name}.json")
        self._kind: Format = kind
        self._folder = folder
        # A Parquet file is made of record batches in the end; the others are put together as they are.
        self._part_kind: Format = "arrow" if kind == "parquet" and not folder else kind
        self._place = out.with_name(f"{out.name}.parts")
        self._manifest, self._old = self._place / "manifest.json", self._place / "old"
        self._data, self._counts = self._place / "data", self._place / "counts"
        self._finished: frozenset[int] = frozenset()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Hold the folder, made if it is not there, so that no other process writes the same output.

        Without a finished part it is gone afterwards.
        """
        with storage(self._place):
            self._place.mkdir(exist_ok=True)
            held = os.open(self._place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"another process is writing {self.out}") from None
            if not os.fstat(held).st_nlink:
                raise Conflict(f"another process has just written {self.out}")
            try:
                self._finished = frozenset(self._whole_parts())
                yield
            finally:
                if not self._whole_parts():
                    self.discard()
        finally:
            os.close(held)

    @property
    def finished(self) -> int:
        """How many parts were there when this process began."""
        return len(self._finished)

    def done(self, number: int) -> bool:
        """Whether a part was there when this process began."""
        return number in self._finished

    def manifest(self) -> Manifest | None:
        """Of the run that was begun here and is not finished."""
        if not self._manifest.exists():
            return None
        try:
            return msgspec.json.decode(self._manifest.read_bytes(), type=Manifest)
        except msgspec.DecodeError as error:
            raise Conflict(
                f"{self._manifest} is of another release: --overwrite starts the run anew ({error})"
            ) from error

    def begin(self, manifest: Manifest) -> None:
        """Forget what is here, and write the manifest."""
        with storage(self._place):
            for entry in self._place.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self._counts.mkdir()
            self._data.mkdir()
        self._finished = frozenset()
        self._write(self._manifest, _pretty(manifest))

    def write(self, number: int, answered: Answered) -> None:
        """Finish a part; by any thread."""
        content = encoded(answered.batch, self._part_kind, header=self._folder)
        counts = Counts(answered.rows, answered.errors, answered.versions, len(content))
        self._write(self._count_of(number), msgspec.json.encode(counts))
        self._write(self._part_of(number), content)

    def pass_on(self, written: None) -> None:
        """Nothing is left to do."""

    def counts(self, parts: int) -> Counts:
        """Of all parts together."""
        versions = Counter[str]()
        rows = errors = size = 0
        for number in range(parts):
            found = msgspec.json.decode(self._count_of(number).read_bytes(), type=Counts)
            rows, errors, size = rows + found.rows, errors + found.errors, size + found.size
            versions.update(found.versions)
        return Counts(rows, errors, dict(sorted(versions.items())), size)

    def place(self, schema: Any, parts: int) -> None:  # noqa: ANN401
        """Make the output of the finished parts; whole or not at all."""
        with storage(self.out):
            if self._folder:
                self._place_folder(schema, parts)
            else:
                whole = self._place / "whole"
                self._join(whole, schema, parts)
                _sync(whole)
                self.sidecar.unlink(missing_ok=True)  # it describes what was there before
                whole.replace(self.out)
            _sync(self.out.parent)

    def is_ours(self) -> bool:
        """Whether what is in the place of the output may be replaced: a file, or a folder of nothing but parts."""
        return not self.out.is_dir() or all(PART.fullmatch(entry.name) for entry in self.out.iterdir())

    def close(self, report: Any) -> None:  # noqa: ANN401
        """Write the sidecar, and remove what is not needed any more."""
        self._write(self.sidecar, _pretty(report))
        self.discard()

    def discard(self) -> None:
        """Remove the folder; first the manifest, so that what is left of it means nothing."""
        with suppress(OSError):
            self._manifest.unlink(missing_ok=True)
        shutil.rmtree(self._place, ignore_errors=True)

    # --- within the folder --------------------------------------------------------------------------------------

    def _part_of(self, number: int) -> Path:
        return self._data / f"part-{number:06}.{self._part_kind}"

    def _count_of(self, number: int) -> Path:
        return self._counts / f"{number:06}.json"

    def _whole_parts(self) -> set[int]:
        """The numbers of the finished parts. Those of a folder that is in its place already are, too."""
        if not self._manifest.exists():
            return set()
        data = self.out if self._folder and not self._data.exists() else self._data
        if not data.is_dir():
            return set()
        matches = [PART.fullmatch(path.name) for path in data.iterdir()]
        return {int(match[1]) for match in matches if match is not None and match[2] == self._part_kind}

    def _place_folder(self, schema: Any, parts: int) -> None:  # noqa: ANN401
        if not self._data.exists():
            return  # it is in its place
        if not parts:
            self._write(self._part_of(0), encoded(empty(schema), self._part_kind, header=True))
        if self.out.exists():
            self.sidecar.unlink(missing_ok=True)
            self.out.rename(self._old)
        self._data.rename(self.out)
        shutil.rmtree(self._old, ignore_errors=True)

    def _join(self, whole: Path, schema: Any, parts: int) -> None:  # noqa: ANN401
        found = (self._part_of(number) for number in range(parts))
        if self._kind in {"parquet", "arrow"}:
            with pa.OSFile(str(whole), "wb") as sink, _writer(sink, schema, self._kind) as writer:
                for part in found:
                    with pa.OSFile(str(part)) as opened:
                        writer.write_batch(ipc.open_file(opened).get_batch(0))
            return
        with whole.open("wb") as opened:
            opened.write(encoded(empty(schema), self._kind, header=True))
            for part in found:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, opened, COPIED)

    def _write(self, path: Path, content: Any) -> None:  # noqa: ANN401
        aside = self._place / f"{path.name}.tmp"
        try:
            with storage(path):
                with aside.open("wb") as opened:
                    opened.write(content)
                    opened.flush()
                    os.fsync(opened.fileno())
                aside.replace(path)
                _sync(path.parent)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def encoded(batch: Any, kind: Format, *, header: bool) -> Any:  # noqa: ANN401
    """A record batch as bytes of a format."""
    match kind:
        case "csv":
            return csv_bytes(batch, header=header)
        case "ndjson":
            return ndjson_bytes(batch)
        case "arrow":
            return arrow_bytes(batch)
        case "parquet":
            return parquet_bytes(batch)


@contextmanager
def storage(path: Path) -> Generator[None]:
    """What the disk refuses, in words that say what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; --resume goes on where this run has ended"
        ) from error


def _writer(sink: Any, schema: Any, kind: Format) -> Any:  # noqa: ANN401
    return parquet.ParquetWriter(sink, schema) if kind == "parquet" else ipc.new_file(sink, schema)


def empty(schema: Any) -> Any:  # noqa: ANN401
    """A record batch without rows."""
    return pa.RecordBatch.from_pylist([], schema)


def _pretty(document: Any) -> bytes:  # noqa: ANN401
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
