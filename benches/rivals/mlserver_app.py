"""MLServer: two parallel workers, its own inference protocol (V2), NumPy codec."""

from __future__ import annotations

from common import session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Predictor(MLModel):
    async def load(self) -> bool:
        self.inner = session(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        label, probabilities = self.inner.run(None, {self.inner.get_inputs()[0].name: rows.astype("float32")})
        outputs = {"label": label, "probabilities": probabilities}
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, values) for name, values in outputs.items()],
        )
