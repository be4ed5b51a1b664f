"""One model on its way to other machines: its registry document and model files in one tar, known by its SHA-256."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from turnout import archives
from turnout.answers import Job
from turnout.artifacts import Artifacts
from turnout.batch import BatchPredictor
from turnout.config import Settings, resolve
from turnout.documents import Document, ModelDocument, record_of
from turnout.domain import OnError, Version
from turnout.engine import Engine, Session
from turnout.errors import InvalidDocument, InvalidRequest, ModelNotFound, StorageError, VersionNotFound
from turnout.log import log
from turnout.router import Lane, Serving, Snapshot, plan_of, routable
from turnout.sessions import Sessions, key_of
from turnout.telemetry import Telemetry

Stream = io.BytesIO | io.BufferedReader
KEPT_BUNDLES = 4
"""Bundles that a process keeps loaded; a worker of a cluster may outlive many jobs."""


class Bundle(msgspec.Struct, frozen=True):
    """A model as it was when the bundle was made, with the files of the versions that may answer.

    It is as large as its model files while it holds them itself, and small once it names a file: `save` it on storage
    that all machines see, and hand on what `save` returns. Whoever opens it verifies its SHA-256.

    Attributes:
        model: the name of the model.
        digest: SHA-256 of the tar, in hex.
        path: the file that holds the tar, or None.
        content: the tar, where no file holds it.
    """

    model: str
    digest: str
    path: str | None = None
    content: bytes = b""

    @classmethod
    def load(cls, path: str | Path, model: str | None = None) -> Self:
        """A bundle that `save` has written, or an export of a registry with its model files; its bytes stay there.

        `model` says which one, where the file has several. Raises InvalidDocument, InvalidRequest, ModelNotFound,
        StorageError.
        """
        place = Path(path).expanduser().absolute()
        with _opened(place) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            document, _ = archives.read_document(file)
        return cls(_named(document, model).model.name, digest, str(place))

    def save(self, path: str | Path) -> Bundle:
        """Write it to a file, which is replaced at once, and return the bundle that this file holds."""
        place = Path(path).expanduser().absolute()
        with _replacing(place) as target, self.open() as source:
            shutil.copyfileobj(source, target)
        return Bundle(self.model, self.digest, str(place))

    def open(self) -> Stream:
        """The tar, verified. Raises StorageError where it cannot be read, InvalidDocument where it is another one."""
        file = self.file()
        try:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self.digest:
                raise InvalidDocument(
                    f"the bundle of model {self.model} has changed: expected SHA-256 {self.digest}, found {found}"
                )
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def file(self) -> Stream:
        """The tar as it is, not verified. Raises StorageError where it cannot be read."""
        return io.BytesIO(self.content) if self.path is None else _opened(Path(self.path))

    def __repr__(self) -> str:
        return f"Bundle(model={self.model!r}, digest={self.digest!r}, path={self.path!r})"

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        """By what Dask names a task that is given it."""
        return ("turnout.Bundle", self.digest, self.model)


def write_bundle(
    document: Document, artifacts: Artifacts, versions: Iterable[str] | None, path: str | Path | None
) -> Bundle:
    """The bundle of the one model of a document, with these versions, else with all that may answer."""
    (model,) = document.models
    name, record = model.model.name, record_of(model)
    labels = set(routable(record) if versions is None else versions)
    unknown = sorted(labels - record.versions.keys())
    if unknown:
        raise VersionNotFound(f"Version {unknown[0]} not found for model {name}")
    only = {record.versions[label].artifact.sha256 for label in labels}
    if path is None:
        memory = io.BytesIO()
        archives.write_archive(document, artifacts, memory, only)
        content = memory.getvalue()
        return Bundle(name, hashlib.sha256(content).hexdigest(), content=content)
    place = Path(path).expanduser().absolute()
    with _replacing(place) as file:
        archives.write_archive(document, artifacts, file, only)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Bundle(name, digest, str(place))


@contextmanager
def _replacing(place: Path) -> Generator[io.BufferedRandom]:
    """A new file that takes this place when it is complete. Raises StorageError."""
    half = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    try:
        with half.open("x+b") as file:
            yield file
        half.replace(place)
    except OSError as error:
        raise StorageError(f"{place} cannot be written: {error}") from error
    finally:
        half.unlink(missing_ok=True)


def _opened(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise StorageError(f"the bundle {path} cannot be read: {error}") from error


def _named(document: Document, model: str | None) -> ModelDocument:
    names = [part.model.name for part in document.models]
    if model is None and len(names) != 1:
        raise InvalidRequest(f"expected the name of one of the models {', '.join(names) or '(none)'}")
    for part in document.models:
        if model in {None, part.model.name}:
            return part
    raise ModelNotFound(f"Model {model} not found in the archive, which has {', '.join(names) or 'none'}")


# --- in the process that predicts -----------------------------------------------------------------------------------


class OpenBundle:
    """A bundle in this process: routes as the server has them, and each version loaded once, when it is first wanted.

    It writes to no registry, and what it counts stays in this process.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self._bundle = bundle
        self._engine = Engine(
            settings.device, settings.intra_op_threads, settings.spinning, settings.inline_seconds
        )
        with bundle.open() as file:
            document, self._carried = archives.read_document(file)
        self.serving = Serving(record_of(_named(document, bundle.model)), plan_of, key_of)
        self._sessions = Sessions(self._load, on_demand=1)
        # All of them stay: what a bundle carries is what its jobs want.
        self._sessions.keep(lane.version for lane in self.serving.lanes)
        self.batches = BatchPredictor(
            self, Telemetry(), fallback=settings.fallback, most=settings.max_batch_rows
        )

    def current(self) -> Snapshot:
        """The one model, which never changes."""
        return Snapshot(0, {self.serving.name: self.serving})

    def session(self, lane: Lane) -> Session:
        """The session of a version, loaded now if it is not."""
        return self._sessions.get(lane.key) or self._sessions.load(lane.version)

    def job(self, version: str | None, on_error: OnError) -> Job:
        """What is asked of it. Raises VersionNotFound, and InvalidRequest where it does not carry the version."""
        job = self.batches.job(self.serving.name, version, on_error)
        for position in job.reachable:
            wanted = self.serving.lanes[position].version
            if wanted.artifact.sha256 not in self._carried:
                raise InvalidRequest(
                    f"the bundle of model {self.serving.name} does not carry version {wanted.version}: name it when "
                    "you make the bundle"
                )
        return job

    def load(self, job: Job) -> None:
        """Load every version that may answer. Raises what verification and loading raise.

        At once, and not when the first row comes, so that no other version ever answers in place of a damaged one.
        """
        for position in job.reachable:
            self.session(self.serving.lanes[position])

    def _load(self, version: Version) -> Session:
        # Each file is verified as it is taken. They are gone again as soon as they are loaded: a worker may be killed,
        # and then removes nothing.
        with tempfile.TemporaryDirectory(prefix="turnout-") as folder, self._bundle.file() as file:
            session = self._engine.load(archives.read_artifact(file, version.artifact, Path(folder)), version)
        log(
            "info",
            "version_loaded",
            model=version.model,
            version=version.version,
            device=session.device,
            load_seconds=session.load_seconds,
            run_seconds=session.run_seconds,
        )
        return session


_open: OrderedDict[tuple[str, str], OpenBundle] = OrderedDict()
_opening = threading.Lock()


def open_bundle(bundle: Bundle) -> OpenBundle:
    """The bundle as this process has it open: the same one for all who ask, whichever copy they have.

    Settings are those of the environment of this process (`TURNOUT_DEVICE`, `TURNOUT_INTRA_OP_THREADS` ...).
    """
    key = (bundle.digest, bundle.model)
    with _opening:
        found = _open.get(key)
        if found is None:
            found = _open[key] = OpenBundle(bundle, resolve().settings)
        _open.move_to_end(key)
        while len(_open) > KEPT_BUNDLES:
            _open.popitem(last=False)
        return found
