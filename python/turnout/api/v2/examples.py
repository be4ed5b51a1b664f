"""The examples of the Open Inference Protocol in the OpenAPI document, and its refusals."""

from __future__ import annotations

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from turnout.api.examples import RECEIPT

INFERENCES = [
    Example(
        summary="One row, for an entity",
        value={
            "id": "1",
            "parameters": {"entity_id": "user-123"},
            "inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP32", "data": [12.5, 90.0]}],
        },
    ),
    Example(
        summary="Two rows, each for its entity, and who answered them",
        value={
            "inputs": [
                {
                    "name": "features",
                    "shape": [2, 2],
                    "datatype": "FP32",
                    "data": [[12.5, 90.0], [3.0, 7.0]],
                },
                {"name": "entity_id", "shape": [2], "datatype": "BYTES", "data": ["user-123", "user-124"]},
            ],
            "outputs": [{"name": "probabilities"}, {"name": "turnout.version"}],
        },
    ),
]
INFERENCE_ANSWERS = [
    Example(
        summary="A classifier's answer",
        value={
            "model_name": "churn",
            "model_version": "v2.0",
            "id": "1",
            "parameters": {"version": "v2.0", "reason": "test", "prediction_id": RECEIPT},
            "outputs": [
                {"name": "label", "datatype": "INT64", "shape": [1], "data": [1]},
                {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.9]},
            ],
        },
    )
]
TEXTS = {
    400: 'input "features": expected datatype FP32, found INT64',
    404: "Request for unknown model: 'churn' is not found",
    408: "expected the whole body within 30 seconds",
    409: "failed to load 'churn': a worker could not load version v2.0",
    413: "expected a body of at most 134217728 bytes, found 134217729 bytes; see the setting max_batch_bytes",
    415: "expected Content-Encoding gzip, deflate, zstd or identity, found 'br'",
    429: "1024 requests are in flight on this worker, as many as may be; try again in a second",
    500: "version v2.0 of model churn: the model failed",
    503: "model churn is not ready: version v2.0 is not loaded on this worker",
    504: "the request waited for its turn longer than its 5 ms",
}


class Refusal(msgspec.Struct, frozen=True):
    """An error in the protocol's own form."""

    error: str


def refusals(*statuses: int) -> dict[int, ResponseSpec]:
    """Refusals with these statuses, for the OpenAPI document."""
    return {
        status: ResponseSpec(
            Refusal,
            generate_examples=False,
            description="Refused; `error` says why.",
            examples=[Example(summary="A refusal", value={"error": TEXTS[status]})],
        )
        for status in statuses
    }
