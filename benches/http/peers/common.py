"""What every peer has in common: the session, with the options that Turnout gives its own, and the body of a request.

MODEL is the path of the .onnx file, from the environment.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import onnxruntime as ort

PICK = itemgetter(*(f"f{i}" for i in range(20)))


def open_session() -> ort.InferenceSession:
    """A session of one thread, which does not spin."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


def answers(session: ort.InferenceSession, requests: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """The outputs for the features of some requests, as what JSON can say, by one run."""
    rows = np.array([PICK(features) for features in requests], np.float32)
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {session.get_inputs()[0].name: rows})
    return [
        {name: output[row].tolist() for name, output in zip(names, outputs, strict=True)}
        for row in range(len(rows))
    ]
