"""Ray Serve: two replicas for each model, raw body, msgspec."""

from __future__ import annotations

import os
import signal

import json_rows
import ray
from common import MODELS, answer, session
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=8)
class Predictor:
    def __init__(self, model: str) -> None:
        self.inner = session(model)

    async def __call__(self, request: Request) -> Response:
        found = answer(self.inner, json_rows.decode(await request.body()).rows)
        return Response(json_rows.encode(found), media_type="application/json")


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    for model in MODELS:
        serve.run(Predictor.bind(model), name=model, route_prefix=f"/{model}")
    signal.pause()
