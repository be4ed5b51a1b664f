"""KServe's Python server, its protocol V2: a session on whatever tensors come."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common import session
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.protocol.rest.server import RESTServer
from kserve.utils.numpy_codec import from_np_dtype


class Predictor(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.inner = session(name)
        self.outputs = [output.name for output in self.inner.get_outputs()]
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        taken = payload.inputs[0]
        found = self.inner.run(self.outputs, {taken.name: taken.as_numpy()})
        outputs = [
            InferOutput(name, list(values.shape), from_np_dtype(values.dtype), values)
            for name, values in zip(self.outputs, found, strict=True)
        ]
        return InferResponse(
            payload.id or "", self.name, outputs, use_binary_outputs=payload.use_binary_outputs
        )


class Loopback(RESTServer):
    """The server, on one address: it would listen on all of them."""

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self.config.host = "127.0.0.1"


if __name__ == "__main__":
    model_server.RESTServer = Loopback
    server = ModelServer(
        http_port=int(os.environ["PORT"]), workers=1, enable_grpc=False, access_log_format=None
    )
    server.start([Predictor(path.stem) for path in sorted(Path(os.environ["MODELS"]).glob("*.onnx"))])
