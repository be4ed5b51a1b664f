"""Routes about what a model's tests show: metrics, outcomes, results, steps of a plan, receipts, single entities."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Response, delete, get, post, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    Example,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Reference,
    RequestBody,
    Schema,
)
from litestar.params import Body, QueryParameter

from turnout.api.examples import ATTRIBUTED, METRICS, OUTCOMES, PENDING, READ, WHY, WRITE, also, problems
from turnout.api.threads import threaded
from turnout.api.writes import Author, changed, read
from turnout.domain import Reason, Test
from turnout.errors import InvalidOutcome, InvalidRequest
from turnout.experiment.outcomes import MAX_OUTCOMES, Attributed, Outcome, single
from turnout.experiment.results import Results, VersionQuality
from turnout.plans import Metric
from turnout.service import Turnout

MODEL = "/v1/models/{model:str}"
JSON = "application/json"
ONE_OR_MANY = msgspec.json.Decoder(Outcome | list[Outcome])
ONE = msgspec.json.Decoder(Outcome)
EACH = msgspec.json.Decoder(list[msgspec.Raw])
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


# --- outcomes -------------------------------------------------------------------------------------------------------


class Recorded(msgspec.Struct, frozen=True):
    """What became of each outcome, in their order, and how often which state came of them."""

    results: list[Attributed]
    counts: dict[str, int]


def _outcome_schema() -> Schema:
    text, integer, number, flag = (
        Schema(type=kind)
        for kind in (OpenAPIType.STRING, OpenAPIType.INTEGER, OpenAPIType.NUMBER, OpenAPIType.BOOLEAN)
    )
    return Schema(
        type=OpenAPIType.OBJECT,
        description="Something observed about an entity (`entity_id`) or about one prediction (`prediction_id`). With "
        "an `id` it counts once, however often it comes.",
        properties={
            "model": text,
            "metric": text,
            "value": Schema(one_of=[number, flag, text]),
            "entity_id": Schema(one_of=[text, integer]),
            "prediction_id": text,
            "time": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME),
            "id": text,
        },
        required=["model", "metric", "value"],
        additional_properties=False,
    )


@dataclass
class OutcomesOperation(Operation):
    """The operation that takes outcomes: the handler reads the bytes itself, so the body is described here."""

    def __post_init__(self) -> None:
        """Describe both forms of the body."""
        one = _outcome_schema()
        many = Schema(type=OpenAPIType.ARRAY, items=one, min_items=1, max_items=MAX_OUTCOMES)
        examples: dict[str, Example | Reference] = {
            str(number): example for number, example in enumerate(OUTCOMES, 1)
        }
        content = {JSON: OpenAPIMediaType(schema=Schema(one_of=[one, many]), examples=examples)}
        self.request_body = RequestBody(content=content, required=True)


@post(
    "/v1/outcomes",
    status_code=200,
    operation_id="recordOutcomes",
    operation_class=OutcomesOperation,
    summary="Say what was observed",
    tags=["outcomes"],
    responses={
        200: ResponseSpec(
            Attributed | Recorded,  # pyright: ignore[reportArgumentType]
            generate_examples=False,
            description="What became of it, or of each of a list; stored durably.",
            examples=ATTRIBUTED,
        ),
        **problems(400, 404, 413, 415, 507),
    },
)
@threaded
def record_outcomes(hub: Turnout, body: bytes) -> Response[bytes]:
    """Take one outcome, or a list of at most 10,000, and say what became of it once it is stored durably.

    States: `attributed`, `late` (after the window of its metric), `duplicate` (its id has come before), `unexposed`
    (nothing is known of the entity), `invalid` (`code` and `detail` say why). One that is invalid alone is answered
    with a problem document; in a list it does not hold up the others.
    """
    given = _read(body)
    if isinstance(given, Outcome):
        return _encoded(single(hub.record_outcomes([given])))
    if not 1 <= len(given) <= MAX_OUTCOMES:
        raise InvalidRequest(f"expected 1 to {MAX_OUTCOMES} outcomes, found {len(given)}")
    # What could not be read stands in its place already.
    stored = iter(hub.record_outcomes([one for one in given if isinstance(one, Outcome)]))
    results = [next(stored) if isinstance(one, Outcome) else one for one in given]
    return _encoded(Recorded(results, Counter(result.state for result in results)))


def _read(body: bytes) -> Outcome | list[Outcome] | list[Outcome | Attributed]:
    """One outcome, or many. Those of many that are none are told so; raises InvalidOutcome for one that is none."""
    try:
        return ONE_OR_MANY.decode(body)
    except UNREADABLE as error:
        if not body.lstrip().startswith(b"["):
            kind = InvalidOutcome if isinstance(error, msgspec.ValidationError) else InvalidRequest
            raise kind(_told(error)) from error
    try:
        return [_read_one(raw) for raw in EACH.decode(body)]
    except UNREADABLE as error:
        raise InvalidRequest(f"expected a JSON list of outcomes: {error}") from error


def _read_one(raw: msgspec.Raw) -> Outcome | Attributed:
    try:
        return ONE.decode(raw)
    except UNREADABLE as error:
        return Attributed("invalid", code=InvalidOutcome.code, detail=_told(error))


def _told(error: Exception) -> str:
    return (
        f"an outcome is model, metric, value, entity_id or prediction_id, and optionally time and id: {error}"
    )


def _encoded(answer: Attributed | Recorded) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type=JSON)


# --- metrics, results, quality --------------------------------------------------------------------------------------


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All metrics of a model, each with the fields of the schema Metric; they replace those of before."""

    metrics: list[dict[str, Any]]
    reason: str = ""


@get(
    f"{MODEL}/metrics",
    operation_id="declaredMetrics",
    summary="What is measured of a model",
    tags=["outcomes"],
    responses=READ,
)
@threaded
def declared_metrics(hub: Turnout, model: str) -> Response[tuple[Metric, ...]]:
    """The metrics that outcomes of this model may have."""
    head = hub.model(model)
    return read(hub, model, head.metrics, head.revision)


@put(
    f"{MODEL}/metrics",
    operation_id="declareMetrics",
    summary="Say what is measured of a model",
    tags=["outcomes"],
    responses={**also(202, tuple[Metric, ...], PENDING), **WRITE},
)
@threaded
def declare_metrics(
    hub: Turnout, model: str, author: Author, data: Annotated[Metrics, Body(examples=METRICS)]
) -> Response[tuple[Metric, ...]]:
    """Declare all metrics at once. What a running test counts cannot change its kind, window or classes (409)."""
    return changed(hub, hub.declare_metrics(model, data.metrics, reason=data.reason, **author))


@get(
    f"{MODEL}/test/results",
    operation_id="results",
    summary="What a test has shown",
    tags=["tests"],
    responses=READ,
)
@threaded
def results(
    hub: Turnout,
    model: str,
    test: Annotated[
        str | None, QueryParameter(description="The id of a test; else the running one, else the last.")
    ] = None,
    alpha: Annotated[
        float, QueryParameter(gt=0, lt=1, description="Rate of false alarms of each interval and p-value.")
    ] = 0.05,
) -> Results:
    """Effects and intervals by metric, bad events, sample ratio, latency, quality, and what is recommended and why.

    The intervals and p-values hold at every look, so that nobody has to wait for a certain number of entities.
    """
    return hub.results(model, test, alpha=alpha)


@get(
    f"{MODEL}/quality",
    operation_id="liveQuality",
    summary="What labels say of each version",
    tags=["outcomes"],
    responses=READ,
)
@threaded
def live_quality(hub: Turnout, model: str) -> list[VersionQuality]:
    """Live metrics of each version that has labels, in tests and outside of them, beside its offline ones."""
    return hub.live_quality(model)


# --- steps of a plan ------------------------------------------------------------------------------------------------


class Reasoned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why, for the audit log and the history."""

    reason: str = ""


Why = Annotated[Reasoned | None, Body(examples=WHY)]
STEPPED = {**also(202, Test, PENDING), **WRITE}


@post(
    f"{MODEL}/test/pause",
    status_code=200,
    operation_id="pauseTest",
    summary="Pause a plan",
    tags=["tests"],
    responses=STEPPED,
)
@threaded
def pause(hub: Turnout, model: str, author: Author, data: Why = None) -> Response[Test]:
    """Keep a planned test at its step until it is resumed; its guardrails go on to be watched."""
    return changed(hub, hub.pause_test(model, reason=_reason(data), **author))


@post(
    f"{MODEL}/test/resume",
    status_code=200,
    operation_id="resumeTest",
    summary="Resume a plan",
    tags=["tests"],
    responses=STEPPED,
)
@threaded
def resume(hub: Turnout, model: str, author: Author, data: Why = None) -> Response[Test]:
    """Let a paused test go on; the dwell time of its step begins anew."""
    return changed(hub, hub.resume_test(model, reason=_reason(data), **author))


@post(
    f"{MODEL}/test/approve",
    status_code=200,
    operation_id="approveStep",
    summary="Approve a step",
    tags=["tests"],
    responses=STEPPED,
)
@threaded
def approve(hub: Turnout, model: str, author: Author, data: Why = None) -> Response[Test]:
    """Say that a planned test may leave its step once all else allows it."""
    return changed(hub, hub.approve_step(model, reason=_reason(data), **author))


@post(
    f"{MODEL}/test/skip",
    status_code=200,
    operation_id="skipStep",
    summary="Skip a step",
    tags=["tests"],
    responses=STEPPED,
)
@threaded
def skip(hub: Turnout, model: str, author: Author, data: Why = None) -> Response[Test]:
    """Take a planned test to its next step now, whatever it still waits for."""
    return changed(hub, hub.skip_step(model, reason=_reason(data), **author))


def _reason(said: Reasoned | None) -> str:
    return "" if said is None else said.reason


# --- single predictions and entities --------------------------------------------------------------------------------


class ReceiptDocument(msgspec.Struct, frozen=True):
    """What a prediction was. `version` is null where that one is deleted; `entity` is a hash, in hexadecimal.

    `test` and `segment` are 0 where no test ran. `score` is the probability of the second of two classes, of the
    likeliest of more (`predicted` is its index), or the value of a regressor.
    """

    model: str
    version: str | None
    version_number: int
    time: datetime
    reason: Reason
    entity: str | None
    test: int
    segment: int
    score: float | None
    predicted: int


class Forgotten(msgspec.Struct, frozen=True):
    """How many records of an entity are gone."""

    deleted: int


@get(
    f"{MODEL}/receipts/{{prediction_id:str}}",
    operation_id="readReceipt",
    summary="What a prediction id says",
    tags=["outcomes"],
    responses=READ,
)
@threaded
def read_receipt(hub: Turnout, model: str, prediction_id: str) -> ReceiptDocument:
    """The prediction that an id was given for, read from the id itself: nothing is stored of predictions."""
    versions = hub.list_versions(model)
    receipt = hub.read_receipt(model, prediction_id)
    label = next((version.version for version in versions if version.ordinal == receipt.version), None)
    return ReceiptDocument(
        model=receipt.model,
        version=label,
        version_number=receipt.version,
        time=receipt.time,
        reason=receipt.reason,
        entity=None if receipt.entity is None else receipt.entity.hex(),
        test=receipt.test,
        segment=receipt.segment,
        score=receipt.score,
        predicted=receipt.predicted,
    )


@delete(
    "/v1/entities/{entity_id:str}",
    status_code=200,
    operation_id="forgetEntity",
    summary="Delete an entity everywhere",
    tags=["outcomes"],
    responses=problems(400, 507),
)
@threaded
def forget_entity(hub: Turnout, entity_id: str) -> Forgotten:
    """Remove the exposures and outcomes of one entity from every test of every model. Counts, which name nobody, stay."""
    return Forgotten(hub.forget_entity(entity_id))


ROUTES = [
    record_outcomes,
    declared_metrics,
    declare_metrics,
    results,
    live_quality,
    pause,
    resume,
    approve,
    skip,
    read_receipt,
    forget_entity,
]
