"""Documents and archives: exact round trips, everything that is refused, and nothing lost unless told to."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import turnout
from models import linear_matrix
from registries import ME, opened, version
from turnout import archives, documents, interchange
from turnout.artifacts import Artifacts
from turnout.errors import ImportConflict, InvalidDocument, InvalidModel, StorageError
from turnout.records import Author


class Place:
    """A data directory without a service."""

    def __init__(self, data: Path) -> None:
        data.mkdir()
        self.data = data
        self.registry = opened(data)
        self.artifacts = Artifacts(data)

    def close(self) -> None:
        self.registry.close()
        self.artifacts.close()

    def add(
        self, model: str, label: str, content: bytes, external: dict[str, bytes] | None = None, **facts: Any
    ):
        folder = self.data.parent / "in" / model / label
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in {"graph.onnx": content, **(external or {})}.items():
            (folder / name).write_bytes(data)
        staged = self.artifacts.stage_model(folder / "graph.onnx", external or ())
        added = replace(version(model, label, **facts), artifact=staged.artifact)
        self.registry.register(added, staged.place, ME)
        staged.discard()

    def export(self) -> dict[str, Any]:
        return documents.plain(self.registry.read(documents.document_of))

    def archive(self) -> bytes:
        file = io.BytesIO()
        archives.write_archive(self.registry.read(documents.document_of), self.artifacts, file)
        return file.getvalue()

    def take(self, source: dict[str, Any] | bytes, *, overwrite: bool = False) -> list[str]:
        if isinstance(source, bytes):
            document, staged = archives.read_archive(io.BytesIO(source), self.artifacts)
        else:
            document, staged = documents.parse(source), {}
        try:
            return interchange.restore(
                self.registry,
                document,
                self.artifacts,
                staged,
                overwrite=overwrite,
                author=Author("ann", "move"),
            ).value
        finally:
            for files in staged.values():
                files.discard()

    def leftovers(self) -> list[Path]:
        return [path for path in self.data.glob("uploads/*/*") if path.name != ".lock"]


@pytest.fixture
def places(tmp_path):
    made: list[Place] = []

    def make() -> Place:
        made.append(Place(tmp_path / f"data{len(made)}"))
        return made[-1]

    yield make
    for place in made:
        place.close()


@pytest.fixture
def here(places):
    """A registry with everything in it."""
    place = places()
    place.add(
        "churn",
        "v1",
        b"one",
        accuracy=0.1 + 0.2,
        metrics={"f1": 1 / 3},
        metadata={"a": [1, None, {"ü": 1.5}]},
    )
    place.add("churn", "v2", b"two", {"w.bin": b"weights"})
    place.add("churn", "v3", b"three")
    place.add("ü/fraud", "v 1", b"one")
    registry = place.registry
    registry.activate("churn", "v1", ME)
    registry.configure_test("churn", {"v1": 0.7, "v2": 0.3}, "salt", ME)
    registry.promote("churn", "v2", ME)
    registry.configure_test("churn", {"v2": 0.9, "v3": 0.1}, None, ME)
    registry.configure_test("churn", {"v2": 0.5, "v3": 0.5}, None, ME)
    registry.set_override("churn", "", "v1", ME)
    registry.set_override("churn", "user-1", "v3", ME)
    registry.keep("churn", ME, kept=True)
    return place


# --- round trips ----------------------------------------------------------------------------------------------------


def test_an_export_is_plain_json(here):
    document = here.export()
    assert json.loads(json.dumps(document)) == document
    assert (document["format"], document["format_version"]) == ("turnout-registry", 1)
    assert [model["model"]["name"] for model in document["models"]] == ["churn", "ü/fraud"]


def test_an_archive_round_trips_exactly(here, places):
    there = places()
    assert there.take(here.archive()) == ["churn", "ü/fraud"]
    assert there.export() == here.export()
    assert there.archive() == here.archive()
    assert there.registry.snapshot({}).records == here.registry.snapshot({}).records
    assert there.artifacts.digests() == here.artifacts.digests()
    assert there.leftovers() == []
    for stored in there.registry.versions("churn"):
        there.artifacts.verify(stored.artifact)


def test_an_export_of_a_release_that_kept_nothing_is_taken(here, places):
    document, there = here.export(), places()
    there.take(here.archive())
    assert [model["model"].pop("kept") for model in document["models"]] == [True, False]
    there.take(document)
    assert [model.kept for model in there.registry.models()] == [False, False]


def test_an_import_is_an_event_and_the_same_again_is_none(here, places):
    there = places()
    there.take(here.archive())
    events = there.registry.audit()
    assert [(e.action, e.model, e.actor, e.reason) for e in events] == [
        ("import", "churn", "ann", "move"),
        ("import", "ü/fraud", "ann", "move"),
    ]
    assert there.registry.beacon[0] == 2
    there.take(here.export())
    here.take(here.export())
    assert len(there.registry.audit()) == 2
    assert there.export() == here.export()


def test_life_goes_on_after_an_import(here, places):
    there = places()
    there.take(here.archive())
    registry = there.registry
    assert registry.configure_test("churn", {"v2": 1.0}, None, ME).value.revision == 3
    assert registry.stop_test("churn", ME).value.id == "2"
    assert registry.rollback("churn", None, ME).value.version == "v1"
    there.add("churn", "v4", b"four")
    assert registry.version("churn", "v4").ordinal == 4
    assert [stay.version for stay in registry.deployments("churn")] == ["v1", "v2", "v1"]
    there.take(here.export(), overwrite=True)
    assert registry.model("churn").revision > here.registry.model("churn").revision
    fresh, known = there.export(), here.export()
    for document in (fresh, known):
        document["models"][0]["model"].pop("revision")
    assert fresh == known


def test_a_newer_export_is_taken_where_nothing_is_lost(here, places):
    there = places()
    there.take(here.archive())
    here.add("churn", "v4", b"four")
    here.registry.set_override("churn", "new", "v4", ME)
    with pytest.raises(InvalidDocument, match=hashlib.sha256(b"four").hexdigest()):
        there.take(here.export())
    there.take(here.archive())
    assert there.registry.version("churn", "v4") == here.registry.version("churn", "v4")


# --- conflicts ------------------------------------------------------------------------------------------------------


def other(here: Place, **facts: Any) -> dict[str, Any]:
    document = here.export()
    document["models"] = document["models"][:1]
    document["models"][0]["versions"][0].update(facts)
    return document


def test_a_running_test_is_not_broken(here):
    before = here.export()
    here.registry.configure_test("churn", {"v2": 0.2, "v3": 0.8}, None, ME)
    state = here.export()
    with pytest.raises(ImportConflict, match="would break running test 2"):
        here.take(before)
    assert here.export() == state
    here.take(before, overwrite=True)
    assert here.registry.test("churn").weights == {"v2": 0.5, "v3": 0.5}
    assert here.registry.audit()[-1].before["revision"] == state["models"][0]["model"]["revision"]


def test_an_ended_test_is_not_broken_by_the_end(here, places):
    there = places()
    there.take(here.archive())
    here.registry.stop_test("churn", ME)
    with pytest.raises(ImportConflict, match="would break running test 2"):
        there.take(here.export())


@pytest.mark.parametrize(
    "facts", [{"accuracy": 0.5}, {"metadata": {}}, {"created_at": "2020-01-01T00:00:00Z"}], ids=str
)
def test_versions_are_not_changed_unless_replaced(here, facts):
    document = other(here, **facts)
    with pytest.raises(ImportConflict, match="change or lose versions"):
        here.take(document)
    here.take(document, overwrite=True)
    assert here.export()["models"][0]["versions"] == document["models"][0]["versions"]
    assert len(here.export()["models"]) == 2


def test_replacing_removes_the_files_that_nothing_uses_any_more(here, places):
    there = places()
    there.add("churn", "v1", b"another file")
    there.add("mine", "v1", b"mine")
    with pytest.raises(ImportConflict):
        there.take(here.archive())
    assert len(there.artifacts.digests()) == 2
    there.take(here.archive(), overwrite=True)
    assert there.artifacts.digests() == here.artifacts.digests() | {hashlib.sha256(b"mine").hexdigest()}


def test_missing_files_are_all_named_and_nothing_is_done(here, places):
    there = places()
    with pytest.raises(InvalidDocument) as caught:
        there.take(here.export())
    for digest in here.artifacts.digests():
        assert digest in str(caught.value)
    assert there.registry.models() == []


# --- documents that are none ----------------------------------------------------------------------------------------


def at(document: Any, path: str) -> tuple[Any, Any]:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        document = document[part]
    return document, last


BROKEN = {
    "format": "other",
    "format_version": 2,
    "models": None,
    "extra": 1,
    "models.0.model.name": "",
    "models.1.model.name": "churn",
    "models.0.model.active": "v9",
    "models.0.model.former": ["v9"],
    "models.0.model.revision": 0,
    "models.0.model.test_id": None,
    "models.0.model.tests_started": 1,
    "models.0.model.versions_registered": 2,
    "models.0.model.overrides": 1,
    "models.0.model.created_at": "2020-01-01T00:00:00",
    "models.0.overrides": {"\0": "v1", "": "v1"},
    "models.0.versions": [],
    "models.0.versions.0.model": "other",
    "models.0.versions.0.version": "..",
    "models.0.versions.0.ordinal": 2,
    "models.0.versions.0.accuracy": "high",
    "models.0.versions.0.metadata": {"x": "\ud800"},
    "models.0.versions.0.metrics": {"x": float("inf")},
    "models.0.versions.0.artifact.sha256": "../../../../etc/passwd",
    "models.0.versions.0.artifact.files": [],
    "models.0.versions.0.artifact.files.0.path": "../../model.onnx",
    "models.0.versions.0.artifact.files.0.size": -1,
    "models.0.versions.1.artifact.files.1.path": "/etc/passwd",
    "models.0.versions.1.artifact.files.1.sha256": "0" * 64,
    "models.0.versions.0.signature.layout": "cube",
    "models.0.tests.0.id": "7",
    "models.0.tests.0.status": "running",
    "models.0.tests.0.salt": "\0",
    "models.0.tests.0.revision": 0,
    "models.0.tests.1.id": "x" * 5000,
    "models.0.tests.1.revision": 2**62,
    "models.0.tests.1.arms.0.slots": 1,
    "models.0.tests.1.arms.0.weight": 0.1,
    "models.0.tests.1.arms.0.version": "v1",
    "models.0.tests.1.changed_at": "2020-01-01T00:00:00",
    "models.0.ledgers": [],
    "models.0.ledgers.0.test_id": "x",
    "models.0.ledgers.0.revision": -1,
    "models.0.ledgers.0.weights": {"v1": -1, "v2": 2},
    "models.0.ledgers.1.weights": {},
    "models.0.ledgers.1.runs": {},
    "models.0.ledgers.1.runs.v2": [[0, 2**70]],
    "models.0.ledgers.2.runs.v2": [[-5, 99999]],
    "models.0.deployments": [],
    "models.0.deployments.0.until": None,
    "models.0.deployments.1.version": "v1",
    "models.0.deployments.1.since": "yesterday",
}


@pytest.mark.parametrize("path", BROKEN)
def test_a_document_that_does_not_fit_together(here, path):
    document = here.export()
    parent, last = at(document, path)
    parent[last] = BROKEN[path]
    before = here.export()
    with pytest.raises(InvalidDocument):
        here.take(document, overwrite=True)
    assert here.export() == before


@pytest.mark.parametrize(
    "document", [None, [], "x", 1, {}, {"models": {}}, {"models": [None]}, {"models": [{}]}], ids=str
)
def test_what_is_no_document(document):
    with pytest.raises(InvalidDocument, match="no export of Turnout"):
        documents.parse(document)


def test_nesting_without_end():
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(InvalidDocument):
        documents.parse({"models": [], "format": deep})


# --- archives that are none -----------------------------------------------------------------------------------------


def members(archive: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]


def packed(parts: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in parts:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def info_of(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def refused(here: Place, there: Place, archive: bytes, match: str) -> None:
    with pytest.raises(InvalidDocument, match=match):
        there.take(archive)
    assert there.registry.models() == []
    assert there.artifacts.digests() == set()
    assert there.leftovers() == []


@pytest.mark.parametrize(
    "extra",
    [
        info_of("../../escaped"),
        info_of("/etc/cron.d/escaped"),
        info_of("registry.json"),
        info_of("artifacts/sha256/" + "0" * 64 + "/model.onnx"),
        info_of("link", tarfile.SYMTYPE, link="/etc/passwd"),
        info_of("link", tarfile.LNKTYPE, link="registry.json"),
        info_of("device", tarfile.CHRTYPE),
        info_of("pipe", tarfile.FIFOTYPE),
        info_of("folder", tarfile.DIRTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type!r}",
)
def test_an_archive_holds_nothing_else(here, places, extra):
    refused(here, places(), packed([*members(here.archive()), (extra, b"")]), "which is no model file")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_a_model_file_that_is_none(here, places, kind):
    parts = members(here.archive())
    parts[1] = (info_of(parts[1][0].name, kind, link="/etc/passwd"), b"")
    refused(here, places(), packed(parts), "which is no model file")


def test_a_model_file_with_other_content(here, places):
    parts = members(here.archive())
    parts[2] = (parts[2][0], b"x" * parts[2][0].size)
    refused(here, places(), packed(parts), "does not have the digest")
    parts[2] = (info_of(parts[2][0].name, size=10**6), bytes(10**6))
    refused(here, places(), packed(parts), "which is no model file")


def test_an_artifact_with_only_some_of_its_files(here, places):
    parts = [part for part in members(here.archive()) if not part[0].name.endswith("w.bin")]
    refused(here, places(), packed(parts), "only some files of artifact")


def test_an_archive_without_some_files_is_fine_where_they_are(here, places):
    there = places()
    there.take(here.archive())
    there.take(packed(members(here.archive())[:1]))
    refused(here, places(), packed(members(here.archive())[:1]), "neither here nor in the import")


@pytest.mark.parametrize("cut", [0, 1, 100, 512, 513, 1024, 2000])
def test_truncated_archives(here, places, cut):
    refused(here, places(), here.archive()[:cut], "expected a tar|no JSON|neither here")


@pytest.mark.parametrize(
    "content",
    [b"x" * 10_000, bytes(10_000), b"\x1f\x8b" + bytes(1000), b"{}", b"[" * 10_000, b"\xff"],
    ids=["text", "zeros", "gzip", "json", "brackets", "bytes"],
)
def test_what_is_no_archive(here, places, content):
    there = places()
    refused(here, there, content, "expected a tar")
    wrapped = packed([(info_of("registry.json", size=len(content)), content)])
    refused(here, there, wrapped, "no JSON|no export of Turnout")


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    return info_of(name, kind, size).tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_header_that_says_it_is_gigabytes_long_is_not_read(here, places, kind):
    refused(here, places(), header(kind, 2**32) + bytes(1024), "expected a tar")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_without_end(here, places, kind):
    refused(here, places(), (header(kind, 10) + b"9 path=a\n".ljust(512, b"\0")) * 5000, "expected a tar")


def test_a_document_that_is_too_large(here, places, monkeypatch):
    monkeypatch.setattr(archives, "MAX_DOCUMENT_BYTES", 100)
    refused(here, places(), here.archive(), "expected at most 100 bytes")


def test_a_model_file_that_is_gone_stops_the_export(here):
    stored = here.registry.version("churn", "v1").artifact
    document = here.registry.read(documents.document_of)
    here.artifacts.remove(stored.sha256)
    with pytest.raises(StorageError, match="cannot be read"):
        archives.write_archive(document, here.artifacts, io.BytesIO())


# --- PrisML ---------------------------------------------------------------------------------------------------------


def prisml(path: Path) -> dict[str, Any]:
    path.write_bytes(b"onnx")
    return {
        "churnPredictor": [
            {
                "version": "v1.0",
                "modelPath": str(path),
                "createdAt": "2024-01-15T10:30:00.000Z",
                "accuracy": 0.85,
                "metrics": {"precision": 0.8, "note": "text"},
                "metadata": {"algorithm": "RandomForest"},
                "isActive": True,
                "deployedAt": "2024-01-16T10:30:00.000Z",
            },
            {
                "version": "v1.1",
                "modelPath": str(path),
                "createdAt": "2024-01-17T00:00:00Z",
                "isActive": False,
            },
        ]
    }


def test_prisml_exports_are_read(tmp_path, here):
    document = prisml(tmp_path / "model.onnx")
    assert interchange.is_prisml(document)
    assert not interchange.is_prisml(here.export())
    first, second = interchange.parse_prisml(document)["churnPredictor"]
    assert first.version == "v1.0"
    assert first.created_at == datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
    assert first.numbers == {"precision": 0.8}
    assert (first.is_active, second.is_active, second.accuracy) == (True, False, None)


def test_prisml_exports_that_cannot_be_taken(tmp_path):
    document = prisml(tmp_path / "model.onnx")
    bad = deepcopy(document)
    bad["churnPredictor"][1]["isActive"] = True
    with pytest.raises(InvalidDocument, match="more than one active"):
        interchange.parse_prisml(bad)
    bad = deepcopy(document)
    bad["churnPredictor"][0]["createdAt"] = 5
    with pytest.raises(InvalidDocument, match=r"churnPredictor|\[\.\.\.\]"):
        interchange.parse_prisml(bad)
    for entry, name in zip(document["churnPredictor"], ("a.onnx", "b.onnx"), strict=True):
        entry["modelPath"] = str(tmp_path / name)
    with pytest.raises(InvalidDocument, match=r"a\.onnx, .*b\.onnx"):
        interchange.parse_prisml(document)


# --- with a service -------------------------------------------------------------------------------------------------


def test_model_files_of_an_archive_are_probed_before_they_are_taken(here, tmp_path):
    with turnout.open(tmp_path / "service") as hub:
        with pytest.raises(InvalidModel):
            hub.import_registry(io.BytesIO(here.archive()))
        assert hub.models() == []
        assert hub.artifacts.digests() == set()


def test_prisml_exports_are_registered_and_activated(tmp_path):
    document = prisml(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(linear_matrix([1.0, 2.0], names=["a", "b"]))
    with turnout.open(tmp_path / "service") as hub:
        assert hub.import_registry(document) == ["churnPredictor"]
        assert hub.active_version("churnPredictor").version == "v1.0"
        assert hub.get_version("churnPredictor", "v1.0").accuracy == 0.85
        assert hub.predict("churnPredictor", {"a": 1, "b": 2}).outputs == {"score": [5.0]}
        archive = io.BytesIO()
        exported = hub.export_registry(archive)
    with turnout.open(tmp_path / "other") as hub:
        archive.seek(0)
        assert hub.import_registry(archive) == ["churnPredictor"]
        assert hub.export_registry() == exported
        assert hub.predict("churnPredictor", [1, 2]).outputs == {"score": [5.0]}
