"""BentoML: two workers, rows as a NumPy array by its own JSON."""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np
from common import MODELS, answer, session


@bentoml.service(workers=2, traffic={"timeout": 60})
class Predictor:
    def __init__(self) -> None:
        self.sessions = {model: session(model) for model in MODELS}

    @bentoml.api(route="/trees")
    def trees(self, rows: np.ndarray) -> dict[str, Any]:
        return answer(self.sessions["trees"], rows)

    @bentoml.api(route="/logistic")
    def logistic(self, rows: np.ndarray) -> dict[str, Any]:
        return answer(self.sessions["logistic"], rows)
