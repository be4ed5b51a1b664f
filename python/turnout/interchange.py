"""The registry as a document: plain JSON that round-trips exactly, or a tar of it together with the model files.

The audit log is no part of it: it tells what happened in one data directory, and an import is an event of its own.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from turnout._core import Ledger
from turnout.artifacts import CHUNK, Artifacts, Staged, Writer, artifact_of, relative
from turnout.domain import (
    Artifact,
    ArtifactFile,
    Deployment,
    LedgerRevision,
    Model,
    Test,
    Version,
    check_name,
)
from turnout.errors import ImportConflict, InvalidDocument, TurnoutError
from turnout.records import Author, Committed, Records

FORMAT = "turnout-registry"
DOCUMENT_NAME = "registry.json"
ARTIFACTS_NAME = "artifacts/sha256"
MAX_DOCUMENT_BYTES = 256 * 1024**2
DIGEST = re.compile(r"[0-9a-f]{64}")


class ModelDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that is stored of one model."""

    model: Model
    versions: tuple[Version, ...]
    tests: tuple[Test, ...]
    ledgers: tuple[LedgerRevision, ...]
    overrides: dict[str, str]
    deployments: tuple[Deployment, ...]

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts of its versions by digest."""
        return {version.artifact.sha256: version.artifact for version in self.versions}


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A registry, or a part of one."""

    models: tuple[ModelDocument, ...]
    format: Literal["turnout-registry"] = FORMAT
    format_version: Literal[1] = 1

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """All artifacts by digest."""
        return {digest: artifact for model in self.models for digest, artifact in model.artifacts.items()}


def document_of(r: Records) -> Document:
    """The registry as one document, from one consistent state."""
    return Document(models=tuple(_model_of(r, head) for head in r.models()))


def _model_of(r: Records, head: Model) -> ModelDocument:
    tests = r.tests(head.name)
    return ModelDocument(
        model=head,
        versions=tuple(r.versions(head.name)),
        tests=tuple(tests),
        ledgers=tuple(ledger for test in tests for ledger in r.ledgers(head.name, test.id)),
        overrides=r.overrides(head.name),
        deployments=tuple(r.deployments(head.name)),
    )


# --- reading a document ---------------------------------------------------------------------------------------------


def parse(data: Any) -> Document:  # noqa: ANN401
    """Check a document of plain JSON data. Raises InvalidDocument, which says where it is wrong."""
    try:
        document = msgspec.convert(data, Document)
    except msgspec.ValidationError as error:
        raise InvalidDocument(f"the document is no export of Turnout: {error}") from error
    names = [model.model.name for model in document.models]
    if len(set(names)) < len(names):
        raise InvalidDocument("the document has the same model twice")
    for model in document.models:
        try:
            _check(model)
        except TurnoutError as error:
            raise InvalidDocument(f"model {model.model.name!r} of the document: {error.detail}") from error
    return document


def _check(document: ModelDocument) -> None:
    head = document.model
    check_name("model", head.name)
    labels = {check_name("version", version.version) for version in document.versions}
    if len(labels) < len(document.versions) or any(
        version.model != head.name for version in document.versions
    ):
        raise InvalidDocument("versions must be of this model and have different labels")
    for version in document.versions:
        _check_artifact(version.artifact)
    named = {head.active, *head.former, *document.overrides.values()} - {None}
    missing = sorted(str(label) for label in named - labels)
    if missing:
        raise InvalidDocument(f"version {missing[0]!r} is named but not there")
    if head.overrides != len(document.overrides) or head.revision < 1:
        raise InvalidDocument("the head does not fit the rest")
    _check_tests(document, labels)


def _check_artifact(artifact: Artifact) -> None:
    digests = [artifact.sha256, *(file.sha256 for file in artifact.files)]
    if not all(DIGEST.fullmatch(digest) for digest in digests) or not artifact.files:
        raise InvalidDocument(f"expected SHA-256 digests of files, found {digests[0]!r}")
    for file in artifact.files:
        relative(file.path)
    if artifact_of(list(artifact.files)) != artifact:
        raise InvalidDocument(f"the files of artifact {artifact.sha256} do not add up to its digest")


def _check_tests(document: ModelDocument, labels: set[str]) -> None:
    ledgers = {(ledger.test_id, ledger.revision): ledger for ledger in document.ledgers}
    running = [test.id for test in document.tests if test.status == "running"]
    if running != ([] if document.model.test_id is None else [document.model.test_id]):
        raise InvalidDocument(
            f"the head says that test {document.model.test_id} runs, the tests say {running}"
        )
    for test in document.tests:
        ledger = ledgers.get((test.id, test.revision))
        if not test.id.isdecimal() or test.model != document.model.name or ledger is None:
            raise InvalidDocument(f"test {test.id!r} has no ledger, or is of another model")
        if test.status == "running" and not set(test.weights) <= labels:
            raise InvalidDocument(f"test {test.id} has an arm that is not registered")
        if Ledger.from_runs(ledger.runs).counts() != {arm.version: arm.slots for arm in test.arms}:
            raise InvalidDocument(
                f"test {test.id}: the ledger does not give its arms the slots that they have"
            )


# --- restoring ------------------------------------------------------------------------------------------------------


def restore(
    r: Records, document: Document, staged: dict[str, Staged], *, overwrite: bool, author: Author
) -> Committed:
    """Make the models of a document what it says they are. The value is the list of their names.

    Unless `overwrite` is set nothing that is here may be lost: raises ImportConflict where a version, a test (running
    or not), an override or a deployment is here and not, or differently, in the document.
    """
    for files in staged.values():
        files.place()
    committed = Committed([], None, r.generation)
    for model in document.models:
        here = r.find(model.model.name)
        present = None if here is None else _model_of(r, here)
        if present == model:
            continue
        if present is not None and not overwrite:
            _check_kept(present, model)
        committed = _write(r, model, here, author)
    return committed._replace(value=[model.model.name for model in document.models])


def _check_kept(here: ModelDocument, there: ModelDocument) -> None:
    name = here.model.name
    running = next((test for test in here.tests if test.status == "running"), None)
    if running is not None and running not in there.tests:
        raise ImportConflict(
            f"model {name}: the import would break running test {running.id}; stop it, or replace"
        )
    stays = {stay.since: stay for stay in there.deployments}
    kept = {
        "versions": set(_texts(here.versions)) <= set(_texts(there.versions)),
        "tests": set(_texts(here.tests)) <= set(_texts(there.tests)),
        "overrides": here.overrides.items() <= there.overrides.items(),
        "deployments": all(
            stay.since in stays and stay.version == stays[stay.since].version for stay in here.deployments
        ),
    }
    lost = [kind for kind, whole in kept.items() if not whole]
    if lost:
        raise ImportConflict(
            f"model {name}: the import would change or lose {', '.join(lost)}; say replace to let it"
        )


def _texts(parts: tuple[Version, ...] | tuple[Test, ...]) -> Iterator[bytes]:
    return (msgspec.json.encode(part, order="deterministic") for part in parts)


def _write(r: Records, document: ModelDocument, here: Model | None, author: Author) -> Committed:
    name = document.model.name
    r.erase(name)
    for version in document.versions:
        r.put_version(version)
    for test in document.tests:
        r.put_test(test)
    for ledger in document.ledgers:
        r.put_ledger(name, ledger)
    for entity, label in document.overrides.items():
        r.put_override(name, entity, label)
    for stay in document.deployments:
        r.put_deployment(name, stay)
    # A revision that somebody has read may not come back with other content.
    revision = document.model.revision if here is None else max(document.model.revision, here.revision + 1)
    return r.commit("import", author, here, document.model, None, revision=revision)


def missing_artifacts(document: Document, artifacts: Artifacts, staged: dict[str, Staged]) -> list[str]:
    """The digests of model files that are neither here nor in the archive."""
    return [
        digest
        for digest, artifact in document.artifacts.items()
        if digest not in staged and not artifacts.has(artifact)
    ]


# --- archives -------------------------------------------------------------------------------------------------------


def write_archive(document: Document, artifacts: Artifacts, file: IO[bytes]) -> None:
    """Write a tar of the document and every model file that it names, as a stream."""
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        text = msgspec.json.encode(document)
        info = tarfile.TarInfo(DOCUMENT_NAME)
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
        for digest, artifact in document.artifacts.items():
            artifacts.verify(artifact)
            for part in artifact.files:
                tar.add(artifacts.home / digest / part.path, f"{ARTIFACTS_NAME}/{digest}/{part.path}")


def read_archive(file: IO[bytes], artifacts: Artifacts) -> tuple[Document, dict[str, Staged]]:
    """The document of a tar and its model files, stored aside and verified. Raises InvalidDocument.

    Only what the document names is taken: no links, no devices, no other paths, no other sizes.
    """
    staged: dict[str, Staged] = {}
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            members = iter(tar)
            document = _first_document(tar, next(members, None))
            wanted = _members(document)
            folders: dict[str, Path] = {}
            for info in members:
                _take(tar, info, wanted, folders, artifacts)
            for digest, artifact in document.artifacts.items():
                if digest in folders and not any(digest == owner for owner, _ in wanted.values()):
                    staged[digest] = artifacts.staged(folders[digest], list(artifact.files))
    except tarfile.TarError as error:
        raise InvalidDocument(f"expected a tar written by an export: {error}") from error
    return document, staged


def _first_document(tar: tarfile.TarFile, info: tarfile.TarInfo | None) -> Document:
    if info is None or info.name != DOCUMENT_NAME or not info.isreg() or info.size > MAX_DOCUMENT_BYTES:
        raise InvalidDocument(f"expected a tar that begins with {DOCUMENT_NAME}")
    content = tar.extractfile(info)
    try:
        return parse(msgspec.json.decode(b"" if content is None else content.read()))
    except msgspec.DecodeError as error:
        raise InvalidDocument(f"{DOCUMENT_NAME} of the archive is no JSON: {error}") from error


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
    if found is None or not info.isreg() or info.size != found[1].size:
        raise InvalidDocument(f"the archive holds {info.name!r}, which is no model file of its document")
    digest, part = found
    if digest not in folders:
        folders[digest] = artifacts.aside()
    content = tar.extractfile(info)
    writer = Writer(folders[digest], part.path, part.size)
    try:
        while content is not None and (chunk := content.read(CHUNK)):
            writer.write(chunk)
        if writer.finish() != part:
            raise InvalidDocument(
                f"{info.name!r} of the archive does not have the digest that its document says"
            )
    finally:
        writer.close()


# --- coming from PrisML ---------------------------------------------------------------------------------------------


class PrismlVersion(msgspec.Struct, frozen=True, rename="camel"):
    """One version as PrisML exports it; `model_path` is a file of the machine that exported it."""

    version: str
    model_path: str
    created_at: datetime | None = None
    accuracy: float | None = None
    metrics: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    is_active: bool = False
    deployed_at: datetime | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """The metrics that are numbers."""
        return {name: float(value) for name, value in self.metrics.items() if isinstance(value, int | float)}


def is_prisml(data: Any) -> bool:  # noqa: ANN401
    """Whether plain JSON data looks like an export of PrisML: an object from model name to a list of versions."""
    if not isinstance(data, dict) or "format" in data or not data:
        return False
    return all(isinstance(entries, list) for entries in data.values())


def parse_prisml(data: Any) -> dict[str, list[PrismlVersion]]:  # noqa: ANN401
    """Versions by model. Raises InvalidDocument, which names every model file that is missing."""
    try:
        models = msgspec.convert(data, dict[str, list[PrismlVersion]])
    except msgspec.ValidationError as error:
        raise InvalidDocument(f"the document is no export of PrisML: {error}") from error
    missing = [
        v.model_path for versions in models.values() for v in versions if not Path(v.model_path).is_file()
    ]
    if missing:
        raise InvalidDocument(
            f"model files that the document names are missing: {', '.join(sorted(set(missing)))}"
        )
    for name, versions in models.items():
        if sum(version.is_active for version in versions) > 1:
            raise InvalidDocument(f"model {name!r} of the document has more than one active version")
    return models


def refuse_incomplete(missing: list[str]) -> None:
    """Raise InvalidDocument if model files are missing."""
    if missing:
        raise InvalidDocument(
            f"model files are neither here nor in the import: {', '.join(missing)}; export with the model files"
        )
