"""The one tree of exceptions; each class carries its HTTP `status` and its stable `code`.

TurnoutError                    500 internal
├── InvalidRequest              400 invalid_request
│   ├── InvalidName             400 invalid_name
│   ├── InvalidSplit            400 invalid_split
│   ├── InvalidFeatures         400 invalid_features
│   ├── InvalidTensors          400 invalid_tensors
│   ├── InvalidDocument         400 invalid_document
│   ├── InvalidMetric           400 invalid_metric
│   ├── InvalidPlan             400 invalid_plan
│   ├── InvalidOutcome          400 invalid_outcome
│   └── InvalidReceipt          400 invalid_receipt
├── NotFound                    404 not_found
│   ├── ModelNotFound           404 model_not_found
│   ├── VersionNotFound         404 version_not_found
│   ├── TestNotFound            404 test_not_found
│   └── NoActiveVersion         404 no_active_version
├── NotAcceptable               406 not_acceptable
├── Conflict                    409 conflict
│   ├── VersionExists           409 version_exists
│   ├── VersionInUse            409 version_in_use
│   ├── ImportConflict          409 import_conflict
│   └── NotReady                409 version_not_ready
├── RevisionConflict            412 revision_conflict
├── PayloadTooLarge             413 payload_too_large
├── UnsupportedMediaType        415 unsupported_media_type
├── InvalidModel                422 invalid_model
├── TooManyRequests             429 too_many_requests
├── PredictionFailed            500 prediction_failed
│   └── OutOfDeviceMemory       503 out_of_device_memory
├── DeviceUnavailable           503 device_unavailable
├── DeadlineExceeded            504 deadline_exceeded
├── VersionNotLoaded            503 version_not_loaded
└── StorageError                507 storage_error
"""

from __future__ import annotations

import functools
from typing import ClassVar


class TurnoutError(Exception):
    """Anything Turnout raises on purpose. `str(error)` is the sentence for the person who reads it."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str,
        *,
        row: int | None = None,
        feature: str | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.row = row
        self.feature = feature
        self.position = position


class InvalidRequest(TurnoutError):
    """The request cannot be read; `position` is the byte offset of the first fault in a JSON body."""

    status = 400
    code = "invalid_request"


class InvalidName(InvalidRequest):
    """A model name or a version label that cannot be one."""

    code = "invalid_name"


class InvalidSplit(InvalidRequest):
    """Weights that are no split of the traffic."""

    code = "invalid_split"


class InvalidFeatures(InvalidRequest):
    """Features that do not fit the schema of the version; `feature` names the first that does not."""

    code = "invalid_features"


class InvalidTensors(InvalidRequest):
    """Tensors that a version does not take, or that it fails on; `feature` names the first input that does not fit."""

    code = "invalid_tensors"


class InvalidDocument(InvalidRequest):
    """An import document or archive that is not one of ours."""

    code = "invalid_document"


class InvalidMetric(InvalidRequest):
    """A metric that cannot be declared, or that is not declared."""

    code = "invalid_metric"


class InvalidPlan(InvalidRequest):
    """A plan that cannot be followed."""

    code = "invalid_plan"


class InvalidOutcome(InvalidRequest):
    """An outcome whose value does not fit its metric, or whose time cannot be."""

    code = "invalid_outcome"


class InvalidReceipt(InvalidRequest):
    """A prediction id that was not signed here: forged, altered, or of another model or data directory."""

    code = "invalid_receipt"


class NotFound(TurnoutError):
    """What was asked for is not there."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No version was ever registered under this model name."""

    code = "model_not_found"


class VersionNotFound(NotFound):
    """The model has no version with this label."""

    code = "version_not_found"


class TestNotFound(NotFound):
    """No test runs on this model."""

    __test__ = False  # pytest would collect a class of this name
    code = "test_not_found"


class NoActiveVersion(NotFound):
    """The model has versions, but none is active and none was named."""

    code = "no_active_version"


class NotAcceptable(TurnoutError):
    """The answer is of no media type that the caller accepts."""

    status = 406
    code = "not_acceptable"


class Conflict(TurnoutError):
    """The state of the registry does not allow it."""

    status = 409
    code = "conflict"


class VersionExists(Conflict):
    """The label is taken by other content; versions are immutable."""

    code = "version_exists"


class VersionInUse(Conflict):
    """The version is active, an arm of a running test, or the target of an override."""

    code = "version_in_use"


class ImportConflict(Conflict):
    """The document would break a running test or change a version; say `replace` to let it."""

    code = "import_conflict"


class NotReady(Conflict):
    """A live worker could not load the version, so nothing was changed."""

    code = "version_not_ready"


class RevisionConflict(TurnoutError):
    """Somebody else changed the model since the revision that the caller had read."""

    status = 412
    code = "revision_conflict"


class PayloadTooLarge(TurnoutError):
    """The body is larger than the settings allow."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(TurnoutError):
    """The body is of a type that this route does not read."""

    status = 415
    code = "unsupported_media_type"


class InvalidModel(TurnoutError):
    """The file is no ONNX model that this runtime can run, or its schema does not fit it."""

    status = 422
    code = "invalid_model"


class TooManyRequests(TurnoutError):
    """More requests are in flight than the settings allow; try again after a moment."""

    status = 429
    code = "too_many_requests"


class DeadlineExceeded(TurnoutError):
    """The request waited for its turn longer than it allows."""

    status = 504
    code = "deadline_exceeded"


class PredictionFailed(TurnoutError):
    """The model raised while it ran; `refused` says that the runtime finds fault with the inputs."""

    code = "prediction_failed"
    refused = False


class OutOfDeviceMemory(PredictionFailed):
    """The device has not enough memory left to load or to run the version; the others go on."""

    status = 503
    code = "out_of_device_memory"


class DeviceUnavailable(TurnoutError):
    """A strict device (`cuda`, `cuda:N`) was asked for and cannot be had."""

    status = 503
    code = "device_unavailable"


class VersionNotLoaded(TurnoutError):
    """The version is registered, but this worker has not loaded it (yet)."""

    status = 503
    code = "version_not_loaded"


class StorageError(TurnoutError):
    """The data directory could not be written or read; the last committed state stands."""

    status = 507
    code = "storage_error"


def problem(error: TurnoutError) -> dict[str, str | int]:
    """The error as a problem document (RFC 9457, section 3.1), with our `code` and, where known, the place."""
    return _document(error.status, error.code, error.detail, error.row, error.feature, error.position)


def problem_of(
    code: str, detail: str, row: int | None, feature: str | None, position: int | None
) -> dict[str, str | int]:
    """The same for an error of which only the code is left."""
    return _document(_statuses()[code], code, detail, row, feature, position)


def _document(
    status: int, code: str, detail: str, row: int | None, feature: str | None, position: int | None
) -> dict[str, str | int]:
    place = {"row": row, "feature": feature, "position": position}
    return {
        "type": f"urn:turnout:error:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        **{key: value for key, value in place.items() if value is not None},
    }


@functools.cache
def _statuses() -> dict[str, int]:
    """HTTP status by code."""
    found: dict[str, int] = {}
    left = [TurnoutError]
    while left:
        kind = left.pop()
        found.setdefault(kind.code, kind.status)
        left += kind.__subclasses__()
    return found
