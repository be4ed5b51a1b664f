"""What every rival has in common: a session with the options that Turnout gives its own, and rows in, answers out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

MODELS = ("trees", "logistic")


def session(model: str) -> ort.InferenceSession:
    """A session of one thread, which does not spin."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = Path(os.environ["MODELS"]) / f"{model}.onnx"
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answer(inner: ort.InferenceSession, rows: Any) -> dict[str, Any]:
    """Labels and probabilities of rows, as what JSON can say."""
    label, probabilities = inner.run(None, {inner.get_inputs()[0].name: np.asarray(rows, np.float32)})
    return {"label": label.tolist(), "probabilities": probabilities.tolist()}
