"""MLServer: parallel workers, its own inference protocol (V2), NumPy codec."""

from __future__ import annotations

from common import open_session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Predictor(MLModel):
    async def load(self) -> bool:
        self.session = open_session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        row = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        names = [output.name for output in self.session.get_outputs()]
        outputs = self.session.run(names, {self.session.get_inputs()[0].name: row})
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(*pair) for pair in zip(names, outputs, strict=True)],
        )
