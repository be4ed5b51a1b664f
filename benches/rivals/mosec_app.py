"""mosec: two workers for each model, msgspec for the JSON on the wire."""

from __future__ import annotations

from typing import Any

from common import answer, session
from json_rows import decode, encode
from mosec import Runtime, Server, Worker


class Predictor(Worker):
    model = ""

    def __init__(self) -> None:
        self.inner = session(self.model)

    def deserialize(self, data: bytes) -> Any:
        return decode(data).rows

    def forward(self, data: Any) -> Any:
        return answer(self.inner, data)

    def serialize(self, data: Any) -> bytes:
        return encode(data)


class Trees(Predictor):
    model = "trees"


class Logistic(Predictor):
    model = "logistic"


if __name__ == "__main__":
    server = Server()
    server.register_runtime({"/trees": [Runtime(Trees, num=2)], "/logistic": [Runtime(Logistic, num=2)]})
    server.run()
