"""The documents of the Open Inference Protocol, and what they are made of."""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.contracts import Contract, Described
from turnout.domain import BatchStatistics, Duration, InferenceStatistics, LoadState, Version

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"


class ServerMetadata(msgspec.Struct, frozen=True):
    """What this server is, and which extensions of the protocol it has."""

    name: str
    version: str
    extensions: tuple[str, ...]


class Health(msgspec.Struct, frozen=True):
    """Whether this worker answers, and whether it serves the present generation."""

    live: bool
    ready: bool


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor; -1 stands for a dimension that is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True):
    """What a model takes and gives: its active version, or the version that was asked for."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class ModelReady(msgspec.Struct, frozen=True):
    """That a model can answer."""

    name: str
    ready: bool


class TensorConfig(msgspec.Struct, frozen=True):
    """A tensor; without the dimension that counts rows where `max_batch_size` is greater than 0."""

    name: str
    data_type: str
    dims: tuple[int, ...]


class ModelConfig(msgspec.Struct, frozen=True):
    """What load generators want to know. `max_batch_size` is 0 for a model without rows."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: tuple[TensorConfig, ...]
    output: tuple[TensorConfig, ...]


class Timings(msgspec.Struct, frozen=True):
    """Requests that were answered and that failed, the time they waited, and the parts of the runs."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(msgspec.Struct, frozen=True):
    """One version. `inference_count` counts rows, `execution_count` runs, `last_inference` is in milliseconds (Unix)."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: Timings
    batch_stats: tuple[BatchStatistics, ...]


class Statistics(msgspec.Struct, frozen=True):
    """Versions, merged over all workers."""

    model_stats: tuple[ModelStatistics, ...]


class InputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor that goes in: row-major, nested or flat."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class WantedTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor that is to come out."""

    name: str
    parameters: dict[str, Any] | None = None


class InferenceRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tensors, and which outputs are wanted (all, unless they are named)."""

    inputs: tuple[InputTensor, ...]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: tuple[WantedTensor, ...] | None = None


class InferenceResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Outputs, and in `parameters` who answered (`version`), why (`reason`), and a receipt (`prediction_id`)."""

    model_name: str
    outputs: tuple[InputTensor, ...]
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


class IndexEntry(msgspec.Struct, frozen=True):
    """A version, and whether the workers have loaded it; if not, why."""

    name: str
    version: str
    state: LoadState
    reason: str


class IndexRequest(msgspec.Struct, frozen=True):
    """Whether to list only what is ready."""

    ready: bool = False


class RepositoryParameters(msgspec.Struct, frozen=True):
    """What a call to load or unload may say besides the name; other servers take a configuration or files here."""

    parameters: dict[str, Any] = {}


def metadata_of(name: str, versions: tuple[str, ...], contract: Contract) -> ModelMetadata:
    """The metadata of a model whose version has this contract."""
    return ModelMetadata(name, versions, PLATFORM, _tensors(contract.inputs), _tensors(contract.outputs))


def config_of(version: Version, contract: Contract, most_rows: int) -> ModelConfig:
    """The configuration of a version, of which a request may have so many rows."""
    return ModelConfig(
        version.model,
        PLATFORM,
        BACKEND,
        most_rows if contract.batched else 0,
        tuple(_config(tensor, contract) for tensor in contract.inputs),
        tuple(_config(tensor, contract) for tensor in contract.outputs),
    )


def statistics_of(found: InferenceStatistics) -> ModelStatistics:
    """Statistics of a version in the protocol's form."""
    return ModelStatistics(
        found.model,
        found.version,
        found.last_inference,
        found.inference_count,
        found.execution_count,
        Timings(
            found.success,
            found.fail,
            found.queue,
            found.compute_input,
            found.compute_infer,
            found.compute_output,
        ),
        found.batch_stats,
    )


def _tensors(described: tuple[Described, ...]) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(*tensor) for tensor in described)


def _config(tensor: Described, contract: Contract) -> TensorConfig:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return TensorConfig(tensor.name, f"TYPE_{kind}", tensor.shape[contract.batched :])
