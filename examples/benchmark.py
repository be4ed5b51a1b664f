"""Measure two versions and their split in a notebook, and plot the latency by the size of the batch.

pip install "turnout[demo]" matplotlib; python examples/benchmark.py [latency.png]

The cells (`# %%`) open as a notebook in Jupyter (with Jupytext), VS Code and PyCharm.
"""

# %% Two versions of a model, trained on a data set that scikit-learn brings along, and a test between them
from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import turnout

if "ipykernel" not in sys.modules:
    mpl.use("Agg")
import matplotlib.pyplot as plt

folder = tempfile.TemporaryDirectory()
hub = turnout.open(Path(folder.name) / "data", device="cpu")
data = load_breast_cancer()
rows = data.data.astype(np.float32)
for label, estimator in {
    "logistic": make_pipeline(StandardScaler(), LogisticRegression()),
    "boosting": GradientBoostingClassifier(random_state=0),
}.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = to_onnx(estimator.fit(rows, data.target), rows[:1], options={"zipmap": False})
    path = Path(folder.name) / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    hub.register_version("cancer", label, path, features=[str(name) for name in data.feature_names])
hub.activate_version("cancer", "logistic")
hub.configure_test("cancer", {"logistic": 0.5, "boosting": 0.5})


# %% How long a call takes: the median of some, on one thread
def milliseconds(call: Callable[[], object], rounds: int = 7) -> float:
    """The median of the times of some calls, after one that does not count."""
    call()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e3


sizes = [1, 4, 16, 64, 256, 1024, 4096, 16384]
ids = np.arange(max(sizes))
many = np.resize(rows, (max(sizes), rows.shape[1]))
ways = {"logistic": "logistic", "boosting": "boosting", "a test of both": None}
latency = {
    name: [
        milliseconds(
            lambda size=size, version=version: hub.predict_batch(
                "cancer", many[:size], entity_ids=ids[:size], threads=1, version=version
            )
        )
        for size in sizes
    ]
    for name, version in ways.items()
}

# %% The split alone: a million ids
million = np.arange(1_000_000)
taken = milliseconds(lambda: hub.assign_many("cancer", million), 3)
print(f"assign_many: {1e3 / taken:.0f} million ids a second")

# %% Latency by batch size
figure, axes = plt.subplots(figsize=(7, 4.5))
for name, found in latency.items():
    axes.plot(sizes, found, marker="o", label=name)
    print(f"{name:<15} {found[-1] / sizes[-1] * 1e6:6.0f} ns a row in batches of {sizes[-1]:,}")
axes.set(xscale="log", yscale="log", xlabel="rows in a batch", ylabel="milliseconds")
axes.legend()
axes.grid(visible=True, which="both", alpha=0.2)
figure.tight_layout()
if len(sys.argv) > 1 and sys.argv[1].endswith(".png"):
    figure.savefig(sys.argv[1], dpi=150)
plt.show()

# %% Done
hub.close()
folder.cleanup()
