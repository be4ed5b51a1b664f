"""FastAPI on uvicorn (uvloop, httptools), past its validation: raw body, msgspec, NumPy, raw answer."""

from __future__ import annotations

import fastapi
from body import decode, encode
from common import answers, open_session

app = fastapi.FastAPI()
session = open_session()


@app.post("/predict")
async def predict(request: fastapi.Request) -> fastapi.Response:
    found = answers(session, [decode(await request.body()).features])
    return fastapi.Response(encode(found[0]), media_type="application/json")
