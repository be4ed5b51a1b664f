"""LitServe: as many API servers as workers; BATCH requests run together, gathered for a millisecond at most."""

from __future__ import annotations

import os

import litserve as ls
from common import answers, open_session

BATCH, WORKERS = int(os.environ["BATCH"]), int(os.environ["WORKERS"])


class Predictor(ls.LitAPI):
    def setup(self, device):  # without annotations: LitServe would validate by them
        self.session = open_session()

    def decode_request(self, request):
        return request["features"]

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return output

    def predict(self, x):
        return answers(self.session, x) if BATCH > 1 else answers(self.session, [x])[0]

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    api = Predictor(api_path="/predict", max_batch_size=BATCH, batch_timeout=0.001 if BATCH > 1 else 0.0)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(
        port=int(os.environ["PORT"]),
        host="127.0.0.1",
        num_api_servers=WORKERS,
        generate_client_file=False,
        log_level="error",
    )
