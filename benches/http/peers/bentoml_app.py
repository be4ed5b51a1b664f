"""BentoML: features as a dictionary by its own JSON."""

from __future__ import annotations

import os
from typing import Any

import bentoml
from common import answers, open_session


@bentoml.service(workers=int(os.environ["WORKERS"]), traffic={"timeout": 60})
class Predictor:
    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api(route="/predict")
    def predict(self, features: dict[str, float], entity_id: str = "") -> dict[str, Any]:
        return answers(self.session, [features])[0]
