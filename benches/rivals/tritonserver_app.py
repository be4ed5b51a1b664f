"""tritonserver: the model.py of its Python backend, a session on whatever tensors come.

Where the server batches, several requests come at once; elsewhere it is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from common import session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.inner = session(args["model_name"])
        self.taken = self.inner.get_inputs()[0].name
        self.names = [output.name for output in self.inner.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        taken = [triton.get_input_tensor_by_name(request, self.taken).as_numpy() for request in requests]
        together = taken[0] if len(taken) == 1 else np.concatenate(taken)
        found = self.inner.run(self.names, {self.taken: together})
        answers, at = [], 0
        for rows in map(len, taken):
            parts = [values[at : at + rows] for values in found]
            answers.append(triton.InferenceResponse(list(map(triton.Tensor, self.names, parts))))
            at += rows
        return answers
