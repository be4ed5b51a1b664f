"""Two models of 20 float features that several benches use: `trees` (100 boosted trees of depth 4) and `logistic`."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np

from turnout.service import Turnout

FEATURES = 20
VERSIONS = ("v1", "v2")


def graphs() -> dict[str, dict[str, bytes]]:
    """The ONNX files, by model and version; both versions of a model are other bytes that do the same work."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    values = np.random.default_rng(0).normal(size=(2000, FEATURES)) * 100
    labels = (values[:, :5].sum(axis=1) > 0).astype(int)
    found: dict[str, dict[str, bytes]] = {}
    for model, estimator in (
        ("trees", GradientBoostingClassifier(n_estimators=100, max_depth=4, random_state=0)),
        ("logistic", LogisticRegression(max_iter=1000)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(values, labels)
            graph = to_onnx(estimator, values[:1].astype(np.float32), options={"zipmap": False})
        found[model] = {}
        for version in VERSIONS:
            graph.producer_name = version
            found[model][version] = graph.SerializeToString()
    return found


def fill(hub: Turnout) -> None:
    """Register both models, with a test of their two versions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for model, versions in graphs().items():
            for version, content in versions.items():
                path.write_bytes(content)
                hub.register_version(model, version, path)
            hub.activate_version(model, VERSIONS[0])
            hub.configure_test(model, dict.fromkeys(VERSIONS, 0.5))
