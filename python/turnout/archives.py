"""A document and its model files in one tar. What comes in is hostile until every byte of it is what it says."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import msgspec

from turnout.artifacts import CHUNK, Artifacts, Staged, Writer
from turnout.documents import Document, parse
from turnout.domain import ArtifactFile
from turnout.errors import InvalidDocument, StorageError

DOCUMENT_NAME = "registry.json"
ARTIFACTS_NAME = "artifacts/sha256"
MAX_DOCUMENT_BYTES = 256 * 1024**2


def write_archive(document: Document, artifacts: Artifacts, file: IO[bytes]) -> None:
    """Write a tar of the document and every model file that it names, as a stream; the same bytes each time.

    Raises StorageError where a model file is damaged, or was deleted meanwhile.
    """
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        text = msgspec.json.encode(document, order="deterministic")
        tar.addfile(_info(DOCUMENT_NAME, len(text)), io.BytesIO(text))
        for digest, artifact in document.artifacts.items():
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
        with tarfile.open(fileobj=cast("IO[bytes]", _Bounded(file)), mode="r:") as tar:
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
    except BaseException as error:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, tarfile.TarError | ValueError | OverflowError | RecursionError | EOFError):
            raise InvalidDocument(f"expected a tar written by an export: {error}") from error
        raise


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
    found = wanted.pop(info.name, None)
    if found is None or not info.isfile() or info.issparse() or info.size != found[1].size:
        raise InvalidDocument(f"the archive holds {info.name!r}, which is no model file of its document")
    digest, part = found
    if digest not in folders:
        folders[digest] = artifacts.aside()
    writer = Writer(folders[digest], part.path, part.size)
    try:
        for chunk in _content(tar, info):
            writer.write(chunk)
        written = writer.finish()
    finally:
        writer.close()
    if written != part:
        raise InvalidDocument(f"{info.name!r} of the archive does not have the digest that its document says")
