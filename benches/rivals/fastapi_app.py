"""FastAPI on uvicorn (uvloop, httptools), past its validation: raw body, msgspec, NumPy, raw answer."""

from __future__ import annotations

from common import MODELS, answer, session
from fastapi import FastAPI, Request, Response
from json_rows import decode, encode

app = FastAPI()
sessions = {model: session(model) for model in MODELS}


@app.post("/{model}")
async def predict(model: str, request: Request) -> Response:
    found = answer(sessions[model], decode(await request.body()).rows)
    return Response(encode(found), media_type="application/json")
