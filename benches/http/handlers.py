"""The bare handlers that the prediction route is measured against: the same model, no routing, no registry.

Each decodes with msgspec, picks the features with an itemgetter into NumPy, runs the session and encodes with msgspec.
MODEL is the path of the .onnx file, from the environment.
"""

from __future__ import annotations

import os
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from litestar import Litestar, post
from litestar.response import Response

FEATURES = [f"f{i}" for i in range(20)]
PICK = itemgetter(*FEATURES)
JSON = [(b"content-type", b"application/json")]


class Request(msgspec.Struct):
    features: dict[str, float]
    entity_id: str | None = None


DECODER = msgspec.json.Decoder(Request)
ENCODER = msgspec.json.Encoder()


def open_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


SESSION = open_session()
INPUT = SESSION.get_inputs()[0].name
OUTPUTS = [output.name for output in SESSION.get_outputs()]


def answer(body: bytes) -> bytes:
    row = np.array([PICK(DECODER.decode(body).features)], np.float32)
    label, probabilities = SESSION.run(OUTPUTS, {INPUT: row})
    return ENCODER.encode({"label": int(label[0]), "probabilities": probabilities[0].tolist()})


async def read(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def raw(scope: Any, receive: Any, send: Any) -> None:
    body = answer(await read(receive))
    await send({"type": "http.response.start", "status": 200, "headers": JSON})
    await send({"type": "http.response.body", "body": body})


@post("/predict")
async def handler(data: Request) -> Response[dict[str, Any]]:
    row = np.array([PICK(data.features)], np.float32)
    label, probabilities = SESSION.run(OUTPUTS, {INPUT: row})
    return Response({"label": int(label[0]), "probabilities": probabilities[0].tolist()}, status_code=200)


ordinary_litestar = Litestar([handler])


async def raw_asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await raw(scope, receive, send)


async def bare_rsgi(scope: Any, protocol: Any) -> None:
    body = answer(await protocol())
    protocol.response_bytes(200, [("content-type", "application/json")], body)
