"""Model files, stored by their content: written aside, synced, renamed; verified whenever they are loaded.

An artifact is a folder `artifacts/sha256/<digest>/` with the graph, `model.onnx`, and its external data, if any.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec

from turnout.domain import Artifact, ArtifactFile
from turnout.errors import InvalidModel, PayloadTooLarge, StorageError
from turnout.forks import ForkLock

GRAPH = "model.onnx"
CHUNK = 1024 * 1024
DIGEST = re.compile(r"[0-9a-f]{64}")


class Staged:
    """Files that are stored aside, on disk and hashed, but not yet part of the registry."""

    def __init__(self, folder: Path, artifact: Artifact, home: Path) -> None:
        self.folder = folder
        self.artifact = artifact
        self._home = home

    @property
    def model_path(self) -> Path:
        """The graph."""
        return self.folder / GRAPH

    def place(self) -> None:
        """Move to the final place, which is on disk afterwards. Nothing to do where the content is there already."""
        target = self._home / self.artifact.sha256
        try:
            if not target.exists():
                self.folder.rename(target)
            sync_folder(self._home)
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error}") from error

    def discard(self) -> None:
        """Remove what is still aside; after `place` there is nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Writer:
    """One file being stored: hashed as it is written. `finish` it or `abort` it."""

    def __init__(self, folder: Path, name: str, limit: int | None) -> None:
        self._path = folder / name
        self._name = name
        self._limit = limit
        self._hash = hashlib.sha256()
        self._size = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidModel(f"two files of the model have the name {name!r}") from error
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error}") from error

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes. Raises PayloadTooLarge past the limit, StorageError where the disk is full."""
        self._size += len(chunk)
        if self._limit is not None and self._size > self._limit:
            raise PayloadTooLarge(f"the artifact is larger than the limit of {self._limit} bytes")
        self._hash.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error}") from error

    def finish(self) -> ArtifactFile:
        """Bring the file to the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error}") from error
        finally:
            self.close()
        return ArtifactFile(path=self._name, sha256=self._hash.hexdigest(), size=self._size)

    def close(self) -> None:
        """Close the file. What is still buffered may fail to be written here; only `finish` answers for it."""
        with suppress(OSError):
            self._file.close()


class Upload:
    """A graph that arrives in chunks; `abort` it, or `finish` it."""

    def __init__(self, artifacts: Artifacts, limit: int | None) -> None:
        self._artifacts = artifacts
        self._folder = artifacts.aside()
        self._writer = Writer(self._folder, GRAPH, limit)

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes of the graph."""
        self._writer.write(chunk)

    def finish(self) -> Staged:
        """The stored graph."""
        return self._artifacts.staged(self._folder, [self._writer.finish()])

    def abort(self) -> None:
        """Remove what was written."""
        self._writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Artifacts:
    """The artifacts of a data directory."""

    def __init__(self, data: Path) -> None:
        self.home = data / "artifacts" / "sha256"
        self._uploads = data / "uploads"
        self._own: tuple[int, Path, BinaryIO] | None = None
        self._owning = ForkLock()
        try:
            if not self.home.is_dir() or not self._uploads.is_dir():
                self.home.mkdir(parents=True, exist_ok=True)
                self._uploads.mkdir(exist_ok=True)
                for folder in (self.home.parent, data):
                    sync_folder(folder)
        except OSError as error:
            raise StorageError(f"{data} cannot be written: {error}") from error
        with suppress(OSError), self._turn():  # what is left on a full disk is removed another time
            self._sweep()

    def close(self) -> None:
        """Let go of the place for uploads of this process; a forked child leaves its parent's alone."""
        if self._own is not None:
            process, folder, lock = self._own
            if process == os.getpid():
                shutil.rmtree(folder, ignore_errors=True)
            lock.close()
            self._own = None

    # --- storing ------------------------------------------------------------------------------------------------

    def stage_model(self, graph: Path, external: Iterable[str] = ()) -> Staged:
        """Copy a graph and its external data files, whose names are relative to the graph's folder."""
        folder = self.aside()
        try:
            files = [self._copy(graph, folder, GRAPH)]
            files.extend(self._copy(self._beside(graph, name), folder, name) for name in external)
            return self.staged(folder, files)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def stage_stream(self, limit: int | None = None) -> Upload:
        """Begin to store a graph that arrives in chunks; at most `limit` bytes."""
        return Upload(self, limit)

    def aside(self) -> Path:
        """A new folder for files on their way in, on the same file system as their final place."""
        folder = self._mine() / uuid.uuid4().hex
        try:
            folder.mkdir()
        except OSError as error:
            raise StorageError(f"{folder} cannot be made: {error}") from error
        return folder

    def staged(self, folder: Path, files: list[ArtifactFile]) -> Staged:
        """Files in a folder made by `aside`, graph first, as one artifact."""
        try:
            for inner in {(folder / file.path).parent for file in files} | {folder}:
                sync_folder(inner)
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error}") from error
        return Staged(folder, artifact_of(files), self.home)

    # --- reading ------------------------------------------------------------------------------------------------

    def path(self, artifact: Artifact) -> Path:
        """Where the graph of an artifact lies."""
        return self.home / artifact.sha256 / GRAPH

    def has(self, artifact: Artifact) -> bool:
        """Whether the artifact is there."""
        return all((self.home / artifact.sha256 / file.path).is_file() for file in artifact.files)

    def digests(self) -> set[str]:
        """Everything that is stored, referred to or not."""
        try:
            return {folder.name for folder in self.home.iterdir() if DIGEST.fullmatch(folder.name)}
        except OSError as error:
            raise StorageError(f"{self.home} cannot be read: {error}") from error

    def verify(self, artifact: Artifact) -> Path:
        """Hash every file again; where the graph lies. Raises StorageError for what is missing or has changed."""
        folder = self.home / artifact.sha256
        for file in artifact.files:
            try:
                with (folder / relative(file.path)).open("rb") as opened:
                    found = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise StorageError(f"the model file {folder / file.path} cannot be read: {error}") from error
            if found != file.sha256:
                raise StorageError(
                    f"the model file {folder / file.path} has changed since it was registered: "
                    f"expected SHA-256 {file.sha256}, found {found}"
                )
        return self.path(artifact)

    def remove(self, digest: str) -> None:
        """Remove an artifact that no version refers to; the caller holds the registry's write lock."""
        if not (self.home / digest).exists():
            return
        doomed = self._mine() / f"removed-{uuid.uuid4().hex}"
        try:
            (self.home / digest).rename(doomed)
        except OSError as error:
            raise StorageError(
                f"the files of artifact {digest}, which no version uses any more, cannot be removed: {error}"
            ) from error
        shutil.rmtree(doomed, ignore_errors=True)

    # --- the parts ----------------------------------------------------------------------------------------------

    def _mine(self) -> Path:
        """A folder of this process, locked as long as it lives, so that the leftovers of dead ones can be told.

        It is made when it is first needed: who only reads needs none, and must get along on a full disk.
        """
        with self._owning:
            if self._own is None or self._own[0] != os.getpid() or not self._own[1].is_dir():
                try:
                    self._own = self._own_uploads()
                except OSError as error:
                    raise StorageError(f"{self._uploads} cannot be written: {error}") from error
            return self._own[1]

    def _own_uploads(self) -> tuple[int, Path, BinaryIO]:
        with self._turn():
            mine = self._uploads / uuid.uuid4().hex
            mine.mkdir()
            lock = (mine / ".lock").open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
            return os.getpid(), mine, lock

    def _sweep(self) -> None:
        for folder in self._uploads.iterdir():
            if folder.is_dir():
                _remove_if_dead(folder)

    @contextmanager
    def _turn(self) -> Generator[None]:
        """One process at a time makes a folder for uploads, or looks for those of dead ones."""
        with (self._uploads / ".lock").open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            yield

    def _beside(self, graph: Path, name: str) -> Path:
        """A file of external data; neither its name nor a link may lead out of the graph's folder."""
        found = graph.parent / relative(name)
        if not found.resolve().is_relative_to(graph.parent.resolve()):
            raise InvalidModel(f"external data {name!r} lies outside of the folder of the model")
        return found

    def _copy(self, source: Path, folder: Path, name: str) -> ArtifactFile:
        if not source.is_file():
            raise InvalidModel(f"expected a model file, {source} is none or is not there")
        writer = Writer(folder, relative(name).as_posix(), None)
        try:
            with source.open("rb") as opened:
                while chunk := opened.read(CHUNK):
                    writer.write(chunk)
            return writer.finish()
        except OSError as error:
            raise InvalidModel(f"the model file {source} cannot be read: {error}") from error
        finally:
            writer.close()


def _remove_if_dead(folder: Path) -> None:
    """Remove the uploads of a process unless it lives; the caller holds the turn, so none is half made."""
    try:
        with (folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        # Locked by its owner, or being removed by it at this moment.
        return


def graph_of(path: Path) -> Path:
    """The graph that a path means: the file itself, or the only .onnx file of a folder."""
    if not path.is_dir():
        return path
    graphs = sorted(path.glob("*.onnx"))
    if len(graphs) != 1:
        raise InvalidModel(f"expected one .onnx file in {path}, found {len(graphs)}")
    return graphs[0]


def relative(name: str) -> PurePosixPath:
    """A relative path that stays inside. Raises InvalidModel for any other."""
    path = PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or not path.parts:
        raise InvalidModel(f"expected the relative path of a file, found {name!r}")
    return path


def artifact_of(files: list[ArtifactFile]) -> Artifact:
    """One file is known by its own SHA-256, several by that of the JSON list of them, the graph first."""
    if len(files) == 1:
        return Artifact(sha256=files[0].sha256, files=tuple(files))
    ordered = (files[0], *sorted(files[1:], key=lambda file: file.path))
    return Artifact(sha256=hashlib.sha256(msgspec.json.encode(ordered)).hexdigest(), files=ordered)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
