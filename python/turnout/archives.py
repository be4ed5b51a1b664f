"""A document and its model files in one tar. What comes in is hostile until every byte of it is what it says."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import msgspec

from turnout.artifacts import CHUNK, Artifacts, Staged, Writer
from turnout.documents import Document, parse
from turnout.domain import Artifact, ArtifactFile
from turnout.errors import InvalidDocument, StorageError

DOCUMENT_NAME = "registry.json"
ARTIFACTS_NAME = "artifacts/sha256"
MAX_DOCUMENT_BYTES = 256 * 1024**2


def write_archive(
    document: Document, artifacts: Artifacts, file: IO[bytes], only: Collection[str] | None = None
) -> None:
    """Write a tar of the document and the model files that it names, as a stream; the same bytes each time.

    With `only`, of the model files those of these artifacts, by digest. Raises StorageError where a model file is damaged, or was deleted meanwhile.
    """
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        text = msgspec.json.encode(document, order="deterministic")
        tar.addfile(_info(DOCUMENT_NAME, len(text)), io.BytesIO(text))
        for digest, artifact in document.artifacts.items():
            if only is not None and digest not in only:
                continue
            folder = artifacts.verify(artifact).parent
            for part in artifact.files:
                try:
                    source = (folder / part.path).open("rb")
                except OSError as error:
                    raise StorageError(
                        f"{folder / part.path} was deleted during the export: {error}"
                    ) from error
                with source:
                    tar.addfile(_info(f"{ARTIFACTS_NAME}/{digest}/{part.path}", part.size), source)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


class _Bounded:
    """A file that is never read into memory at once: a header of a hostile tar may say that it is gigabytes long."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > CHUNK:
            raise InvalidDocument(f"expected a tar written by an export, found a header of {size} bytes")
        return self._file.read(size)


def read_archive(file: IO[bytes], artifacts: Artifacts) -> tuple[Document, dict[str, Staged]]:
    """The document of a tar and its model files, stored aside and verified. Raises InvalidDocument.

    `file` can be sought in. Only what the document names is taken: no links, no devices, no other paths, no other
    sizes. The caller discards what is staged.
    """
    folders: dict[str, Path] = {}
    try:
        with _reading(file) as tar:
            members = iter(tar)
            document = _first_document(tar, next(members, None))
            wanted = _members(document)
            for info in members:
                _take(tar, info, wanted, folders, artifacts)
        partial = {digest for digest, _ in wanted.values() if digest in folders}
        if partial:
            raise InvalidDocument(f"the archive holds only some files of artifact {min(partial)}")
        known = document.artifacts
        return document, {
            digest: artifacts.staged(folder, list(known[digest].files)) for digest, folder in folders.items()
        }
    except BaseException:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def read_document(file: IO[bytes]) -> tuple[Document, frozenset[str]]:
    """The document of a tar, and the digests of the artifacts that it carries whole. Raises InvalidDocument."""
    with _reading(file) as tar:
        document = _first_document(tar, tar.next())
        names = set(tar.getnames())
    carried = (
        digest
        for digest, artifact in document.artifacts.items()
        if names.issuperset(f"{ARTIFACTS_NAME}/{digest}/{part.path}" for part in artifact.files)
    )
    return document, frozenset(carried)


def read_artifact(file: IO[bytes], artifact: Artifact, folder: Path) -> Path:
    """Take the files of one artifact of a tar into a folder and verify them; where the graph lies.

    Raises InvalidDocument where one is missing or is not what its digest says, StorageError on a full disk.
    """
    with _reading(file) as tar:
        for part in artifact.files:
            name = f"{ARTIFACTS_NAME}/{artifact.sha256}/{part.path}"
            try:
                info = tar.getmember(name)
            except KeyError:
                raise InvalidDocument(f"the archive does not hold {name!r}") from None
            _write(tar, info, _checked(info, part), folder)
    return folder / artifact.files[0].path


@contextmanager
def _reading(file: IO[bytes]) -> Generator[tarfile.TarFile]:
    """The tar in a file. Raises InvalidDocument for whatever is wrong with it."""
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Bounded(file)), mode="r:") as tar:
            yield tar
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        raise InvalidDocument(f"expected a tar written by an export: {error}") from error


def _first_document(tar: tarfile.TarFile, info: tarfile.TarInfo | None) -> Document:
    if info is None or info.name != DOCUMENT_NAME or not info.isfile() or info.issparse():
        raise InvalidDocument(f"expected a tar that begins with {DOCUMENT_NAME}")
    if info.size > MAX_DOCUMENT_BYTES:
        raise InvalidDocument(
            f"{DOCUMENT_NAME}: expected at most {MAX_DOCUMENT_BYTES} bytes, found {info.size}"
        )
    try:
        return parse(msgspec.json.decode(b"".join(_content(tar, info))))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidDocument(f"{DOCUMENT_NAME} of the archive is no JSON: {error}") from error


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    content = tar.extractfile(info)
    while content is not None and (chunk := content.read(CHUNK)):
        yield chunk


def _members(document: Document) -> dict[str, tuple[str, ArtifactFile]]:
    """What the archive may hold: by the name in the tar, digest of the artifact and the file; taken ones are removed."""
    return {
        f"{ARTIFACTS_NAME}/{digest}/{part.path}": (digest, part)
        for digest, artifact in document.artifacts.items()
        for part in artifact.files
    }


def _take(
    tar: tarfile.TarFile,
    info: tarfile.TarInfo,
    wanted: dict[str, tuple[str, ArtifactFile]],
    folders: dict[str, Path],
    artifacts: Artifacts,
) -> None:
    digest, named = wanted.pop(info.name, ("", None))
    part = _checked(info, named)
    if digest not in folders:
        folders[digest] = artifacts.aside()
    _write(tar, info, part, folders[digest])


def _checked(info: tarfile.TarInfo, part: ArtifactFile | None) -> ArtifactFile:
    if part is None or not info.isfile() or info.issparse() or info.size != part.size:
        raise InvalidDocument(f"the archive holds {info.name!r}, which is no model file of its document")
    return part


def _write(tar: tarfile.TarFile, info: tarfile.TarInfo, part: ArtifactFile, folder: Path) -> None:
    """Take a member into a folder. Raises InvalidDocument where it is not what its digest says."""
    writer = Writer(folder, part.path, part.size)
    try:
        for chunk in _content(tar, info):
            writer.write(chunk)
        written = writer.finish()
    finally:
        writer.close()
    if written != part:
        raise InvalidDocument(f"{info.name!r} of the archive does not have the digest that its document says")
