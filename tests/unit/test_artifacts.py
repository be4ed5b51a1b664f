"""Model files by content: stored whole or not at all, verified, and gone with what leaves them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import msgspec
import pytest

from turnout.artifacts import Artifacts, artifact_of, graph_of, relative
from turnout.domain import ArtifactFile
from turnout.errors import InvalidModel, PayloadTooLarge, StorageError

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def artifacts(tmp_path):
    found = Artifacts(tmp_path / "data")
    yield found
    found.close()


@pytest.fixture(autouse=True)
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def leftovers(data: Path) -> list[Path]:
    """What lies aside in the folders of processes, but for their locks."""
    return [path for path in data.glob("uploads/*/*") if path.name != ".lock"]


def model_file(folder: Path, content: bytes = b"graph", name: str = "churn.onnx") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_a_file_is_stored_by_its_digest(artifacts, data, tmp_path):
    staged = artifacts.stage_model(model_file(tmp_path / "in"))
    digest = hashlib.sha256(b"graph").hexdigest()
    assert staged.artifact.sha256 == digest
    assert staged.artifact.size == 5
    assert staged.model_path.read_bytes() == b"graph"
    assert artifacts.digests() == set()
    staged.place()
    staged.discard()
    assert artifacts.path(staged.artifact) == data / "artifacts" / "sha256" / digest / "model.onnx"
    assert artifacts.verify(staged.artifact).read_bytes() == b"graph"
    assert artifacts.digests() == {digest}
    assert leftovers(data) == []


def test_the_same_content_is_stored_once(artifacts, data, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        staged = artifacts.stage_model(model_file(tmp_path / "in", name=name))
        staged.place()
        staged.place()
        staged.discard()
    assert len(artifacts.digests()) == 1
    assert leftovers(data) == []


def test_a_stream_is_hashed_as_it_comes(artifacts, data):
    upload = artifacts.stage_stream(limit=9)
    for chunk in (b"one", memoryview(b"two"), b"", b"six"):
        upload.write(chunk)
    staged = upload.finish()
    assert staged.artifact.sha256 == hashlib.sha256(b"onetwosix").hexdigest()
    staged.discard()
    upload = artifacts.stage_stream(limit=9)
    with pytest.raises(PayloadTooLarge, match="limit of 9 bytes"):
        upload.write(b"more than nine")
    upload.abort()
    upload.abort()
    assert leftovers(data) == []


def test_external_data_makes_one_artifact_of_several_files(artifacts, tmp_path):
    graph = model_file(tmp_path / "in")
    (tmp_path / "in" / "weights").mkdir()
    (tmp_path / "in" / "weights" / "b.bin").write_bytes(b"bbb")
    (tmp_path / "in" / "a.bin").write_bytes(b"aa")
    staged = artifacts.stage_model(graph, ["weights/b.bin", "./a.bin"])
    assert [(file.path, file.size) for file in staged.artifact.files] == [
        ("model.onnx", 5),
        ("a.bin", 2),
        ("weights/b.bin", 3),
    ]
    listed = msgspec.json.encode(staged.artifact.files)
    assert staged.artifact.sha256 == hashlib.sha256(listed).hexdigest()
    assert artifact_of(list(staged.artifact.files)) == staged.artifact
    staged.place()
    assert artifacts.has(staged.artifact)
    assert (artifacts.verify(staged.artifact).parent / "weights" / "b.bin").read_bytes() == b"bbb"
    (artifacts.home / staged.artifact.sha256 / "a.bin").unlink()
    assert not artifacts.has(staged.artifact)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "", ".", "a/../../b", "a\0b", "link", "folder/link"]
)
def test_external_data_stays_in_its_folder(artifacts, data, tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    graph = model_file(tmp_path / "in")
    (tmp_path / "in" / "folder").mkdir()
    for link in ("link", "folder/link"):
        (tmp_path / "in" / link).symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidModel):
        artifacts.stage_model(graph, [name])
    assert leftovers(data) == []


@pytest.mark.parametrize(
    "names", [["model.onnx"], ["a.bin", "a.bin"], ["a.bin", "a.bin/b"], ["missing"], ["folder"]]
)
def test_external_data_that_cannot_be_stored(artifacts, data, tmp_path, names):
    graph = model_file(tmp_path / "in")
    model_file(tmp_path / "in", name="model.onnx")
    (tmp_path / "in" / "folder").mkdir()
    (tmp_path / "in" / "a.bin").write_bytes(b"a")
    with pytest.raises(InvalidModel):
        artifacts.stage_model(graph, names)
    assert leftovers(data) == []


def test_what_is_no_file_is_refused(artifacts, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.onnx", tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidModel, match="expected a model file"):
            artifacts.stage_model(path)


def test_the_graph_of_a_folder(tmp_path):
    graph = model_file(tmp_path / "in")
    assert graph_of(graph) == graph
    assert graph_of(tmp_path / "in") == graph
    model_file(tmp_path / "in", name="second.onnx")
    with pytest.raises(InvalidModel, match=r"expected one \.onnx file .* found 2"):
        graph_of(tmp_path / "in")


def test_damage_is_found_and_named(artifacts, tmp_path):
    staged = artifacts.stage_model(model_file(tmp_path / "in"))
    staged.place()
    path = artifacts.path(staged.artifact)
    path.write_bytes(b"other")
    with pytest.raises(StorageError, match=f"{path} has changed since it was registered"):
        artifacts.verify(staged.artifact)
    path.unlink()
    with pytest.raises(StorageError, match=f"{path} cannot be read"):
        artifacts.verify(staged.artifact)


def test_removal(artifacts, data, tmp_path):
    staged = artifacts.stage_model(model_file(tmp_path / "in"))
    staged.place()
    artifacts.remove(staged.artifact.sha256)
    artifacts.remove(staged.artifact.sha256)
    assert artifacts.digests() == set()
    assert leftovers(data) == []


def stage_and_die(data: Path, source: Path) -> None:
    Artifacts(data).stage_model(source)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_gone_at_the_next_start_and_the_rest_stays(artifacts, data, tmp_path):
    source = model_file(tmp_path / "in")
    mine = artifacts.stage_model(source)
    child = SPAWN.Process(target=stage_and_die, args=(data, source))
    child.start()
    child.join(timeout=20)
    assert len(leftovers(data)) == 2
    (data / "uploads" / "half-made").mkdir()
    again = Artifacts(data)
    assert leftovers(data) == [mine.folder]
    assert not (data / "uploads" / "half-made").exists()
    again.close()
    mine.place()
    assert artifacts.has(mine.artifact)


def stage_on_a_full_disk(data: Path, source: Path) -> None:
    """A limit on the size of files is what a process without privileges can do to fill its disk."""
    artifacts = Artifacts(data)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
    with pytest.raises(StorageError, match="cannot be written"):
        artifacts.stage_model(source)
    upload = artifacts.stage_stream()
    upload.write(bytes(60 * 1024))
    with pytest.raises(StorageError, match="cannot be written"):
        upload.write(bytes(1024**2))
    upload.abort()
    assert leftovers(data) == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(data, tmp_path):
    child = SPAWN.Process(
        target=stage_on_a_full_disk, args=(data, model_file(tmp_path / "in", bytes(1024**2)))
    )
    child.start()
    child.join(timeout=20)
    assert child.exitcode == 0


def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        Artifacts(tmp_path / "file")


@pytest.mark.parametrize("name", ["a", "a/b", "a.b/..c", "..."])
def test_relative_names(name):
    assert relative(name).as_posix() == name


def test_the_order_of_external_files_does_not_matter():
    files = [ArtifactFile(path, "0" * 64, 1) for path in ("model.onnx", "b", "a")]
    assert artifact_of(files) == artifact_of([files[0], files[2], files[1]])
