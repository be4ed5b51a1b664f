"""MLServer: its own inference protocol (V2), NumPy codec, a session on whatever one tensor comes."""

from __future__ import annotations

from common import session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Predictor(MLModel):
    async def load(self) -> bool:
        self.inner = session(self.name)
        self.taken = self.inner.get_inputs()[0].name
        self.names = [output.name for output in self.inner.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        taken = NumpyCodec.decode_input(payload.inputs[0]).astype("float32", copy=False)
        found = self.inner.run(self.names, {self.taken: taken})
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(*pair) for pair in zip(self.names, found, strict=True)],
        )
