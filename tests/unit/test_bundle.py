"""Bundles: a model as its registry has it, known by its digest, answered from as the registry would."""

from __future__ import annotations

import io
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from msgspec.structs import replace

import turnout
from models import constant_label, external_data_model, linear_matrix
from turnout import Bundle, bundle
from turnout.bundle import OpenBundle, open_bundle
from turnout.config import Settings
from turnout.dask import Predictor as DaskPredictor
from turnout.engine import Engine
from turnout.errors import (
    InvalidDocument,
    InvalidFeatures,
    InvalidRequest,
    ModelNotFound,
    NoActiveVersion,
    StorageError,
    VersionNotFound,
)
from turnout.ray import Predictor
from turnout.service import Turnout

ROWS = 5000


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turnout]:
    """`churn` runs a test in its third revision; v3 is the target of an override, v4 only registered."""
    tmp_path = tmp_path_factory.mktemp("bundle")
    with turnout.open(tmp_path / "data", device="cpu") as opened:
        for version, weights in {"v1": [1, 2], "v2": [3, 5], "v3": [7, 11], "v4": [13, 17]}.items():
            (tmp_path / "model.onnx").write_bytes(linear_matrix(weights))
            opened.register_version("churn", version, tmp_path / "model.onnx", features=["a", "b"])
        opened.activate_version("churn", "v1")
        for share in (0.1, 0.5, 0.3):
            opened.configure_test("churn", {"v1": 1 - share, "v2": share})
        opened.set_override("churn", "user-7", "v3")
        opened.register_version("other", "v1", tmp_path / "model.onnx", features=["a", "b"])
        yield opened


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "entity_id": [f"user-{index}" for index in range(ROWS)],
            "a": rng.random(ROWS, np.float32),
            "b": rng.random(ROWS, np.float32),
            "label": rng.integers(0, 2, ROWS),
        }
    )


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every version that is loaded from now on, in a process that has no bundle open."""
    bundle._open.clear()
    found: list[str] = []
    load = Engine.load

    def counted(engine: Engine, path: Path, version: turnout.Version):
        found.append(version.version)
        return load(engine, path, version)

    monkeypatch.setattr(Engine, "load", counted)
    return found


# --- what is in it --------------------------------------------------------------------------------------------------


def test_a_bundle_has_the_document_of_its_model_and_the_files_that_may_answer(hub: Turnout) -> None:
    made = hub.bundle("churn")
    with tarfile.open(fileobj=made.open()) as tar:
        names = tar.getnames()
    digests = {version.version: version.artifact.sha256 for version in hub.list_versions("churn")}
    assert names == [
        "registry.json",
        *(f"artifacts/sha256/{digests[version]}/model.onnx" for version in ("v1", "v2", "v3")),
    ]
    opened = open_bundle(made)
    assert opened.serving.record == hub.live.current().serving("churn").record


def test_a_bundle_of_all_versions_is_an_export_of_the_model(hub: Turnout, tmp_path: Path) -> None:
    made = hub.bundle("churn", versions=["v1", "v2", "v3", "v4"])
    with turnout.open(tmp_path / "there") as there:
        assert there.import_registry(made.open()) == ["churn"]
        (document,) = there.export_registry()["models"]
        assert document == hub.export_registry()["models"][0]
        assert there.bundle("churn", versions=["v4", "v3", "v2", "v1"]) == made


def test_the_same_state_is_the_same_bundle(hub: Turnout, tmp_path: Path) -> None:
    made = hub.bundle("churn")
    assert hub.bundle("churn") == made
    written = hub.bundle("churn", path=tmp_path / "churn.bundle")
    saved = made.save(tmp_path / "saved.bundle")
    assert written.digest == saved.digest == Bundle.load(saved.path).digest == made.digest
    assert sorted(path.name for path in tmp_path.glob("*bundle*")) == ["churn.bundle", "saved.bundle"]
    hub.set_override("churn", "user-8", "v3")
    assert hub.bundle("churn").digest != made.digest


def test_a_bundle_that_names_a_file_travels_without_its_content(hub: Turnout, tmp_path: Path) -> None:
    made = hub.bundle("churn")
    saved = made.save(tmp_path / "churn.bundle")
    assert pickle.loads(pickle.dumps(made)) == made
    assert pickle.loads(pickle.dumps(saved)) == saved
    assert len(pickle.dumps(saved)) < 1000 < len(made.content) < len(pickle.dumps(made))
    assert len(repr(made)) < 200
    assert len(pickle.dumps(DaskPredictor(made))) < 1000


def test_what_is_not_there_is_refused(hub: Turnout, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        hub.bundle("nothing")
    with pytest.raises(VersionNotFound, match="v9"):
        hub.bundle("churn", versions=["v9"])
    with pytest.raises(InvalidRequest, match="one string"):
        hub.bundle("churn", versions="v1")
    with pytest.raises(StorageError):
        hub.bundle("churn", path=tmp_path / "no" / "folder")
    with pytest.raises(StorageError):
        Bundle.load(tmp_path / "nothing")


def test_an_export_of_a_registry_is_a_bundle_of_each_of_its_models(hub: Turnout, tmp_path: Path) -> None:
    path = tmp_path / "registry.tar"
    with path.open("wb") as file:
        hub.export_registry(artifacts=file)
    with pytest.raises(InvalidRequest, match="one of the models churn, "):
        Bundle.load(path)
    with pytest.raises(ModelNotFound):
        Bundle.load(path, "nothing")
    assert open_bundle(Bundle.load(path, "other")).serving.name == "other"
    assert open_bundle(Bundle.load(path, "churn")).serving.name == "churn"


# --- what is verified -----------------------------------------------------------------------------------------------


def altered(made: Bundle, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The tar with other content under the names that end so."""
    target = io.BytesIO()
    with tarfile.open(fileobj=made.open()) as tar, tarfile.open(fileobj=target, mode="w") as out:
        for info in tar:
            content = tar.extractfile(info).read()
            if info.name.endswith(name):
                content = change(content)
                info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return target.getvalue()


def test_a_bundle_that_has_changed_is_refused(hub: Turnout, tmp_path: Path, loads: list[str]) -> None:
    made = hub.bundle("churn")
    with pytest.raises(InvalidDocument, match="has changed: expected SHA-256"):
        Predictor(replace(made, content=made.content[:-1] + b"!"))
    saved = made.save(tmp_path / "churn.bundle")
    content = Path(saved.path).read_bytes()
    Path(saved.path).write_bytes(content.replace(b"churn", b"chern"))
    with pytest.raises(InvalidDocument, match="has changed"):
        Predictor(saved)
    Path(saved.path).unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        Predictor(saved)
    assert loads == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "does not have the digest"),
        (lambda content: content + b"!", "no model file of its document"),
    ],
)
def test_a_model_file_that_is_another_one_is_refused_whoever_made_the_tar(
    hub: Turnout, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "altered.bundle"
    digest = hub.get_version("churn", "v2").artifact.sha256
    path.write_bytes(altered(hub.bundle("churn"), f"{digest}/model.onnx", change))
    with pytest.raises(InvalidDocument, match=message):
        Predictor(Bundle.load(path))


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.bundle"
    path.write_bytes(b"no tar" * 1000)
    with pytest.raises(InvalidDocument, match="expected a tar"):
        Bundle.load(path)


def test_a_model_file_that_vanishes_after_the_bundle_was_opened_is_missed(
    hub: Turnout, tmp_path: Path
) -> None:
    saved = hub.bundle("churn", path=tmp_path / "churn.bundle")
    opened = OpenBundle(saved, Settings(device="cpu"))
    digest = hub.get_version("churn", "v2").artifact.sha256
    hub.bundle("churn", versions=["v1", "v3"], path=saved.path)
    with pytest.raises(InvalidDocument, match=f"does not hold .*{digest}"):
        opened.load(opened.job(None, "fail"))


# --- once in a process ----------------------------------------------------------------------------------------------


def test_a_process_opens_a_bundle_once_and_loads_each_version_once(
    hub: Turnout, table: pa.Table, loads: list[str]
) -> None:
    made = hub.bundle("churn")
    copies = [pickle.loads(pickle.dumps(made)) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda copy=copy: Predictor(copy, keep=["label"])(table)) for copy in copies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(open_bundle(copy)) for copy in copies}) == 1
    assert sorted(loads) == ["v1", "v2", "v3"]


def test_a_version_that_is_named_is_the_only_one_that_is_loaded(
    hub: Turnout, table: pa.Table, loads: list[str]
) -> None:
    answers = Predictor(hub.bundle("churn"), version="v2")(table.drop_columns(["entity_id", "label"]))
    assert (set(answers["version"].to_pylist()), loads) == ({"v2"}, ["v2"])


def test_the_bundle_that_was_used_least_lately_is_let_go(hub: Turnout) -> None:
    made = []
    for index in range(bundle.KEPT_BUNDLES + 1):
        hub.set_override("churn", f"user-{index}", "v3")
        made.append(hub.bundle("churn"))
    first, second, *_ = opened = [open_bundle(one) for one in made[:-1]]
    assert open_bundle(made[0]) is first
    open_bundle(made[-1])
    assert open_bundle(made[0]) is first
    assert open_bundle(made[1]) is not second
    assert len(opened) == bundle.KEPT_BUNDLES


def test_no_files_stay_behind(
    hub: Turnout, tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "external").mkdir()
    graph = external_data_model(tmp_path / "external")
    hub.register_version("external", "v1", graph, features=["a", "b"])
    hub.activate_version("external", "v1")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    answers = Predictor(hub.bundle("external"), keep=["label"])(table)
    expected = hub.predict_batch("external", table.drop_columns(["label"]))
    assert answers["score"].equals(expected.to_arrow()["score"])
    assert list((tmp_path / "temporary").iterdir()) == []


# --- what it answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["arrow", "pandas", "numpy"])
def test_answers_are_those_of_the_registry_in_any_format_of_ray(
    hub: Turnout, table: pa.Table, kind: str
) -> None:
    batch = {
        "arrow": table,
        "pandas": table.to_pandas(),
        "numpy": {name: table[name].to_numpy() for name in table.column_names},
    }[kind]
    answers = Predictor(hub.bundle("churn"), keep=["entity_id", "label"])(batch)
    expected = hub.predict_batch("churn", table.drop_columns(["label"])).to_arrow()
    assert answers.column_names == ["entity_id", "label", "version", "score"]
    assert answers["label"].to_pylist() == table["label"].to_pylist()
    assert answers.select(["version", "score"]) == expected
    indices, names = hub.assign_many("churn", table["entity_id"])
    assert answers["version"].to_pylist() == [names[index] for index in indices]
    assert answers["version"][7].as_py() == "v3"


def test_answers_to_a_frame_keep_its_index_and_have_the_types_that_meta_says(
    hub: Turnout, table: pa.Table
) -> None:
    made = hub.bundle("churn")
    frame = table.to_pandas()
    frame.index = pd.Index(np.arange(ROWS) % 7, name="day")
    predictor = DaskPredictor(made, keep=["entity_id", "label"])
    answers = pickle.loads(pickle.dumps(predictor))(frame, made)
    meta = predictor.meta(frame)
    assert answers.index.equals(frame.index)
    assert (len(meta), list(meta.columns)) == (0, ["entity_id", "label", "version", "score"])
    assert answers.dtypes.equals(meta.dtypes)
    assert predictor(frame.head(0), made).dtypes.equals(meta.dtypes)
    expected = hub.predict_batch("churn", table.drop_columns(["label"])).to_arrow()
    assert answers["version"].tolist() == expected["version"].to_pylist()
    assert answers["score"].tolist() == expected["score"].to_pylist()


def test_bad_rows_are_skipped_where_that_is_wanted(hub: Turnout, table: pa.Table) -> None:
    made = hub.bundle("churn")
    holed = table.set_column(1, "a", pa.array([None, *table["a"].to_pylist()[1:]], pa.float32()))
    with pytest.raises(InvalidFeatures) as caught:
        Predictor(made, keep=["label"])(holed)
    assert caught.value.row == 0
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.row, again.feature, str(again)) == (InvalidFeatures, 0, "a", str(caught.value))
    answers = Predictor(made, keep=["label"], on_error="skip")(holed)
    assert answers["error"].null_count == ROWS - 1
    assert answers["error"][0]["feature"].as_py() == "a"
    assert answers["score"].null_count == 1
    frame = DaskPredictor(made, keep=["label"], on_error="skip")
    assert frame(holed.to_pandas(), made).dtypes.equals(frame.meta(holed.to_pandas()).dtypes)


def test_columns_are_given_to_the_model_unless_they_are_kept(hub: Turnout, table: pa.Table) -> None:
    made = hub.bundle("churn")
    with pytest.raises(InvalidFeatures, match="label"):
        Predictor(made)(table)
    kept = Predictor(made, keep=["label", "a"])(table)
    assert kept.column_names == ["label", "a", "version", "score"]
    renamed = table.rename_columns(["user", "a", "b", "score"])
    answers = Predictor(made, entity="user", keep=["score"])(renamed)
    assert answers.column_names == ["score", "version", "output_score"]
    assert answers["output_score"].equals(kept["score"])
    frame = DaskPredictor(made, entity="user", keep=["score"])
    assert list(frame(renamed.to_pandas(), made).columns) == answers.column_names
    assert list(frame.meta(renamed.to_pandas()).columns) == answers.column_names


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        ({}, ["a", "b"]),
        ({"entity": "user"}, ["entity_id", "a", "b"]),
        ({"keep": ["label"]}, ["entity_id", "a", "b"]),
        ({}, ["entity_id"]),
    ],
)
def test_a_column_that_is_missing_is_named(hub: Turnout, table: pa.Table, words, columns: list[str]) -> None:
    with pytest.raises(InvalidRequest, match=r"expected (one column '\w+'|columns of features), found"):
        Predictor(hub.bundle("churn"), **words)(table.select(columns))


def test_rows_without_entities_are_drawn(hub: Turnout, table: pa.Table) -> None:
    answers = Predictor(hub.bundle("churn"), entity=None)(table.select(["a", "b"]))
    share = answers["version"].to_pylist().count("v2") / ROWS
    assert 0.25 < share < 0.35


def test_what_cannot_be_answered_is_refused_before_there_are_rows(hub: Turnout) -> None:
    made = hub.bundle("churn")
    with pytest.raises(VersionNotFound):
        Predictor(made, version="v9")
    with pytest.raises(InvalidRequest, match="does not carry version v4"):
        DaskPredictor(made, version="v4")
    with pytest.raises(InvalidRequest, match="does not carry version v1"):
        Predictor(hub.bundle("churn", versions=["v4"]))
    with pytest.raises(InvalidRequest, match="on_error"):
        Predictor(made, on_error="ignore")
    with pytest.raises(InvalidRequest, match="one string"):
        Predictor(made, keep="label")
    with pytest.raises(InvalidRequest, match="cannot be read as a table"):
        Predictor(made)({"a": np.zeros((2, 2))})
    with pytest.raises(InvalidRequest, match="cannot be read as a table"):
        Predictor(made)(b"rows")


def test_a_bundle_of_a_model_without_an_active_version_answers_for_named_ones(
    hub: Turnout, table: pa.Table, tmp_path: Path
) -> None:
    (tmp_path / "label.onnx").write_bytes(constant_label(3))
    hub.register_version("new", "v1", tmp_path / "label.onnx", features=["a", "b"])
    made = hub.bundle("new", versions=["v1"])
    answers = Predictor(made, version="v1", keep=["label"])(table)
    assert answers.column_names == ["label", "version", "output_label", "probabilities"]
    with pytest.raises(NoActiveVersion):
        Predictor(made, keep=["label"])(table)
