"""KServe's Python server, its protocol V1: one instance a request."""

from __future__ import annotations

import os
from typing import Any

from common import answers, open_session
from kserve import Model, ModelServer


class Predictor(Model):
    def __init__(self) -> None:
        super().__init__("m")
        self.session = open_session()
        self.ready = True

    async def predict(
        self, payload: dict[str, Any], headers: Any = None, response_headers: Any = None
    ) -> dict[str, Any]:
        return {"predictions": answers(self.session, payload["instances"])}


if __name__ == "__main__":
    server = ModelServer(
        http_port=int(os.environ["PORT"]),
        workers=int(os.environ["WORKERS"]),
        enable_grpc=False,
        access_log_format=None,
    )
    server.start([Predictor()])
