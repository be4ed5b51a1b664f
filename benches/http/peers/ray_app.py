"""Ray Serve: a replica for each worker, raw body, msgspec."""

from __future__ import annotations

import os
import signal

import body
import ray
from common import answers, open_session
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

WORKERS = int(os.environ["WORKERS"])


@serve.deployment(num_replicas=WORKERS, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=64)
class Predictor:
    def __init__(self) -> None:
        self.session = open_session()

    async def __call__(self, request: Request) -> Response:
        found = answers(self.session, [body.decode(await request.body()).features])
        return Response(body.encode(found[0]), media_type="application/json")


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Predictor.bind(), name="m", route_prefix="/predict")
    signal.pause()
