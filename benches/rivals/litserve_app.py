"""LitServe: two workers and two API servers for each model."""

from __future__ import annotations

import os

import litserve as ls
from common import answer, session


class Predictor(ls.LitAPI):
    def setup(self, device):  # without annotations: LitServe would validate by them
        self.inner = session(os.environ["MODEL"])

    def decode_request(self, request):
        return request["rows"]

    def predict(self, x):
        return answer(self.inner, x)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    server = ls.LitServer(
        Predictor(api_path=f"/{os.environ['MODEL']}"), accelerator="cpu", workers_per_device=2
    )
    server.run(
        port=int(os.environ["PORT"]),
        host="127.0.0.1",
        num_api_servers=2,
        generate_client_file=False,
        log_level="error",
    )
