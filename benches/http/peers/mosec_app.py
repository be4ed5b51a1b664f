"""mosec: msgspec for the JSON on the wire; BATCH requests run together, gathered for a millisecond at most."""

from __future__ import annotations

import os
from typing import Any

from body import decode, encode
from common import answers, open_session
from mosec import Server, Worker

BATCH = int(os.environ["BATCH"])


class Predictor(Worker):
    def __init__(self) -> None:
        self.session = open_session()

    def deserialize(self, data: bytes) -> Any:
        return decode(data).features

    def serialize(self, data: Any) -> bytes:
        return encode(data)

    def forward(self, data: Any) -> Any:
        return answers(self.session, data) if BATCH > 1 else answers(self.session, [data])[0]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Predictor, num=int(os.environ["WORKERS"]), max_batch_size=BATCH, max_wait_time=1, route="/predict"
    )
    server.run()
