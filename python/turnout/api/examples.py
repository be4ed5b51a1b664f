"""The examples of the OpenAPI document, and the responses that many routes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from turnout.api.problems import MEDIA_TYPE, Problem, plain

RECEIPT = "ARkBohve-GJwvXf3yREAAW0ulwf2232nn9njsm50EdoAAAACAAAAAQAAAAE_QAAAm-ZJ28O48WXVuTFt"
"""A prediction id: which version of churn answered whom, when, in which test, and a signature."""
PREDICTIONS = [
    Example(
        summary="Features by name",
        value={"entity_id": "user-123", "features": {"totalSpent": 12.5, "accountAge": 90}},
    ),
    Example(
        summary="Features in the order of the schema", value={"entity_id": "user-123", "features": [12.5, 90]}
    ),
]
ANSWERS = [
    Example(
        summary="A classifier's answer",
        value={
            "model": "churn",
            "version": "v2.0",
            "prediction_id": RECEIPT,
            "reason": "test",
            "outputs": {"label": 1, "probabilities": [0.1, 0.9]},
        },
    )
]
BATCHES = [
    Example(
        summary="Rows in the order of the schema",
        value={"entity_ids": ["user-123", 42], "rows": [[12.5, 90], [3.0, 7]]},
    ),
    Example(
        summary="Columns by name",
        value={"entity_ids": ["user-123", 42], "columns": {"totalSpent": [12.5, 3.0], "accountAge": [90, 7]}},
    ),
]
BATCH_ANSWERS = [
    Example(
        summary="Two rows, answered by two versions",
        value={
            "model": "churn",
            "count": 2,
            "versions": ["v1.0", "v2.0"],
            "version_index": [1, 0],
            "outputs": {"label": [1, 0], "probabilities": [[0.1, 0.9], [0.8, 0.2]]},
            "errors": [],
        },
    )
]
ACTIVATION = [Example(summary="Release a version", value={"version": "v2.0", "reason": "passed the review"})]
ROLLBACK = [
    Example(summary="To the version before", value={"reason": "errors after the release"}),
    Example(summary="To a version", value={"version": "v1.0", "reason": "errors after the release"}),
]
SPLITS = [
    Example(summary="Canary", value={"splits": {"v1.0": 0.95, "v2.0": 0.05}, "reason": "canary"}),
    Example(
        summary="Even, with a salt of one's own",
        value={"splits": {"v1.0": 0.5, "v2.0": 0.5}, "salt": "spring"},
    ),
    Example(
        summary="A ramp that goes on by itself, and back where errors or refunds rise",
        value={
            "splits": {"v1.0": 0.95, "v2.0": 0.05},
            "plan": {
                "steps": [
                    {"share": 0.05, "dwell_seconds": 3600, "min_entities": 500},
                    {"share": 0.5, "dwell_seconds": 86400, "min_entities": 5000, "approval": True},
                ],
                "guardrails": [{"metric": "errors", "margin": 0.1, "hard_limit": 0.5}, {"metric": "refund"}],
                "at_end": "promote",
            },
        },
    ),
]
METRICS = [
    Example(
        summary="A conversion to decide on, and refunds that may not rise by a tenth",
        value={
            "metrics": [
                {"name": "kept", "kind": "binary", "role": "primary", "window_seconds": 604800},
                {"name": "refund", "kind": "binary", "direction": "down", "role": "guardrail", "margin": 0.1},
                {"name": "left", "kind": "label"},
            ],
            "reason": "agreed with marketing",
        },
    )
]
OUTCOMES = [
    Example(
        summary="Of an entity, as one thing",
        value={"model": "churn", "metric": "kept", "value": 1, "entity_id": "user-101", "id": "order-7"},
    ),
    Example(
        summary="Of predictions, as a list",
        value=[
            {"model": "churn", "metric": "kept", "value": True, "prediction_id": RECEIPT},
            {"model": "churn", "metric": "left", "value": 0, "prediction_id": RECEIPT},
        ],
    ),
]
ATTRIBUTED = [
    Example(summary="Of one", value={"state": "attributed", "version": "v2.0", "test": "1", "segment": 1}),
    Example(
        summary="Of a list",
        value={
            "results": [
                {"state": "attributed", "version": "v2.0", "test": "1", "segment": 1},
                {
                    "state": "invalid",
                    "code": "invalid_metric",
                    "detail": "model churn has no metric 'left': expected one of kept, refund",
                },
            ],
            "counts": {"attributed": 1, "invalid": 1},
        },
    ),
]
WHY = [Example(summary="With a reason", value={"reason": "waiting for the holidays to end"})]
PROMOTION = [Example(summary="End the test with a winner", value={"version": "v2.0", "reason": "won"})]
OVERRIDE = [Example(summary="Send an entity to a version", value={"version": "v2.0"})]

SAID = {
    400: "The request could not be read, or what it says can not be.",
    404: "There is no such model, version, test or route.",
    406: "The request accepts no media type that this route answers with.",
    409: "The state of the registry does not allow it.",
    412: "Somebody changed the model since the revision of If-Match.",
    413: "The body is larger than the settings allow.",
    415: "The body is of a type that this route does not read.",
    422: "The file is no model that can run here, or its features do not fit.",
    429: "Too many requests are in flight.",
    500: "The model failed while it ran, or something unexpected happened.",
    503: "The version or the device is not available on this worker.",
    507: "The data directory could not be written or read.",
}


def _shown(problem: Problem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("type", "title", "status", "detail", "code")}


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """The problem documents that a route may answer with."""
    return {
        status: ResponseSpec(
            Problem,
            generate_examples=False,
            description=SAID[status],
            media_type=MEDIA_TYPE,
            examples=[Example(summary=SAID[status], value=_shown(plain(status, SAID[status])))],
        )
        for status in statuses
    }


def also(status: int, container: type, description: str) -> Mapping[int, ResponseSpec]:
    """A second status under which a route answers the same thing."""
    return {status: ResponseSpec(container, generate_examples=False, description=description)}


READ = problems(400, 404)
WRITE = problems(400, 404, 409, 412, 413, 415, 507)
PENDING = "Done and durable, but not every live worker serves it yet; Turnout-Pending names those."
