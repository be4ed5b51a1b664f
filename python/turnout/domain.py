"""The words of Turnout as frozen structs. They are what the registry stores, the API sends and Python returns."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from turnout.errors import InvalidName
from turnout.plans import Metric, Plan

FeatureType = Literal["float", "int", "bool", "category", "string"]
Layout = Literal["matrix", "columns", "tensors"]
Reason = Literal["active", "test", "override", "pinned", "random", "fallback"]
Scalar = float | int | bool | str
TestStatus = Literal["running", "promoted", "stopped", "rolled_back"]
OnError = Literal["fail", "skip"]
ArenaExtend = Literal["next_power_of_two", "same_as_requested"]
ConvSearch = Literal["exhaustive", "heuristic", "default"]
LoadState = Literal["READY", "LOADING", "UNAVAILABLE"]

REASONS: tuple[Reason, ...] = ("active", "test", "override", "pinned", "random", "fallback")
MAX_NAME_BYTES = 200
PATH_WORDS = frozenset(
    [
        "activate",
        "approve",
        "assignments",
        "batch",
        "compare",
        "config",
        "distribution",
        "history",
        "infer",
        "load",
        "metrics",
        "overrides",
        "pause",
        "predict",
        "promote",
        "quality",
        "ready",
        "receipts",
        "results",
        "resume",
        "rollback",
        "skip",
        "stats",
        "test",
        "tests",
        "unload",
        "versions",
    ]
)
"""What the paths of the API have behind the name of a model or a version."""
MAX_ARMS = 256
MAX_THREADS = 256
MAX_BATCH_ROWS = 4096
MAX_DELAY_US = 10_000_000
MAX_MEMORY = 2**63 - 1


class Feature(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One column of a version's input.

    `values` lists the categories of a `category` feature; in a float matrix a category is its index in that list.
    A feature without `default` must be sent; `nullable` lets `null` through as NaN (floats only).
    """

    name: str
    type: FeatureType = "float"
    values: tuple[str, ...] = ()
    default: Scalar | None = None
    nullable: bool = False


class Tensor(msgspec.Struct, frozen=True):
    """An input or output of the graph: ONNX element type (`float`, `int64`, `string` ...), shape with None where free.

    `classes` are the keys of an output that a scikit-learn converter wrapped into maps (ZipMap), in column order.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    classes: tuple[str | int, ...] = ()


class Signature(msgspec.Struct, frozen=True):
    """What the graph takes and gives. `layout`: one `[N, F]` matrix, `[N, 1]` columns, or free tensors."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layout: Layout


class SessionOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a version is run. None means: the setting of the process that loads it.

    Requests that arrive while a worker is busy run together, up to `max_batch_rows` rows at once; 1 means each by
    itself, None what the warm-up finds to pay. A run that is not full waits for `max_delay_us` for more (None: not at
    all). Past `max_queue_rows` waiting rows a worker refuses more (None: past `max_in_flight` requests).

    The others matter on CUDA only, where None is what onnxruntime does by itself: `gpu_memory_limit` is the most that its
    arena takes, in bytes, `arena_extend` how it grows, `tf32` whether float32 is multiplied as TF32, `conv_search` how
    cuDNN chooses the algorithm of a convolution. `cuda_graphs` false records no graphs, true insists on them, None
    records them where the model allows it. `allow_cpu_nodes` lets nodes that CUDA cannot run go to the CPU where a
    version, or its process, asks for CUDA by name. `tensorrt` runs with TensorRT what it can run.
    """

    device: str | None = None
    intra_op_threads: Annotated[int, msgspec.Meta(ge=1, le=MAX_THREADS)] | None = None
    spinning: bool | None = None
    max_batch_rows: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH_ROWS)] | None = None
    max_delay_us: Annotated[int, msgspec.Meta(ge=0, le=MAX_DELAY_US)] | None = None
    max_queue_rows: Annotated[int, msgspec.Meta(ge=1)] | None = None
    gpu_memory_limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMORY)] | None = None
    arena_extend: ArenaExtend | None = None
    tf32: bool | None = None
    conv_search: ConvSearch | None = None
    cuda_graphs: bool | None = None
    allow_cpu_nodes: bool | None = None
    tensorrt: bool | None = None


class ArtifactFile(msgspec.Struct, frozen=True):
    """One file of an artifact; `path` is relative to it, `size` in bytes."""

    path: str
    sha256: str
    size: int


class Artifact(msgspec.Struct, frozen=True):
    """A stored model: its SHA-256 (of the file, or of the list of files where there are several) and its files.

    The first file is the graph; others are its external data.
    """

    sha256: str
    files: tuple[ArtifactFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Version(msgspec.Struct, frozen=True):
    """An immutable model file with its label and everything that was known when it was registered."""

    model: str
    version: str
    artifact: Artifact
    signature: Signature
    features: tuple[Feature, ...]
    created_at: datetime
    ordinal: int
    accuracy: float | None = None
    metrics: dict[str, float] = {}
    metadata: dict[str, Any] = {}
    options: SessionOptions = SessionOptions()


class Model(msgspec.Struct, frozen=True):
    """The mutable head of a model. `revision` rises by one with each change and is its ETag.

    `kept` says that all of its versions stay loaded, also those that no traffic needs.
    """

    name: str
    revision: int
    created_at: datetime
    active: str | None = None
    former: tuple[str, ...] = ()
    test_id: str | None = None
    tests_started: int = 0
    versions_registered: int = 0
    overrides: int = 0
    metrics: tuple[Metric, ...] = ()
    kept: bool = False


class Arm(msgspec.Struct, frozen=True):
    """A version inside a test: its share of the traffic and the number of slots that it owns."""

    version: str
    weight: float
    slots: int


class Test(msgspec.Struct, frozen=True):
    """A split between versions of one model. `revision` counts its ramp steps, from 1; arms are in bytewise order.

    `baseline` is the arm that the others are compared with. With a `plan`, `step` is the one that it is at, counted from
    0, and `since` when that began, on a clock that does not jump. `thresholds` are the latencies of the baseline, in
    seconds, above which an answer is slow (its p50, p75, p90, p95, p99 and p99.9 before). `metrics` are those that a
    test counted, once it has ended.
    """

    __test__ = False  # pytest would collect a class of this name

    id: str
    model: str
    salt: str
    arms: tuple[Arm, ...]
    revision: int
    status: TestStatus
    started_at: datetime
    changed_at: datetime
    ended_at: datetime | None = None
    winner: str | None = None
    baseline: str | None = None
    candidate: str | None = None
    plan: Plan | None = None
    step: int = 0
    since: float = 0.0
    paused: bool = False
    approved: bool = False
    thresholds: tuple[float, ...] = ()
    metrics: tuple[Metric, ...] | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Share of the traffic by version."""
        return {arm.version: arm.weight for arm in self.arms}


Runs = dict[str, list[tuple[int, int]]]
"""The stacks of a ledger: by arm, runs of slots from first to last, both included, falling where first > last."""


class LedgerRevision(msgspec.Struct, frozen=True):
    """The ledger as it stood from `created_at` until the next revision of the test."""

    test_id: str
    revision: int
    created_at: datetime
    weights: dict[str, float]
    runs: Runs


class Deployment(msgspec.Struct, frozen=True):
    """One stay of a version as the active one; `until` is None for the present one."""

    version: str
    since: datetime
    action: str
    actor: str
    reason: str
    until: datetime | None = None


class AuditEvent(msgspec.Struct, frozen=True):
    """One change: who did what to which model, why, and the head of the model before and after."""

    sequence: int
    generation: int
    time: datetime
    actor: str
    action: str
    model: str
    version: str | None
    reason: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class History(msgspec.Struct, frozen=True):
    """What happened to a model: its versions newest first, its deployments and its events, oldest first."""

    model: str
    current_version: str | None
    versions: tuple[Version, ...]
    deployments: tuple[Deployment, ...]
    tests: tuple[Test, ...]
    events: tuple[AuditEvent, ...]


class LiveStatistics(msgspec.Struct, frozen=True):
    """What a version has answered since the counters began. Latencies in seconds, None without traffic."""

    requests: int
    errors: int
    error_rate: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Duration(msgspec.Struct, frozen=True):
    """How often something happened, and the nanoseconds of all of them together."""

    count: int
    ns: int


class BatchStatistics(msgspec.Struct, frozen=True):
    """The runs of a model on `batch_size` rows: before, in and after the model."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class InferenceStatistics(msgspec.Struct, frozen=True):
    """What a version has done since the counters began, in the words of the Open Inference Protocol.

    `inference_count` are rows, `execution_count` runs of the model. `success` are answers, to each row of a batch one
    with its share of the time, `fail` what failed, `queue` the requests that waited for their turn. The `compute_`
    times are of runs; `batch_stats` has them by the number of rows, which rises: exactly for the 64 smallest, others
    under the next power of two. `last_inference` is in Unix milliseconds, 0 for never.

    Source: statistics extension of the protocol, `$model_stat`.
    """

    model: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    batch_stats: tuple[BatchStatistics, ...]


class Comparison(msgspec.Struct, frozen=True):
    """Two versions side by side; differences are b minus a, for metrics that both have."""

    model: str
    a: str
    b: str
    accuracy_diff: float | None
    metrics_diff: dict[str, float]
    live: dict[str, LiveStatistics]


class Assignment(msgspec.Struct, frozen=True):
    """Which version answers an entity, and why. `slot` is None where no test decides."""

    model: str
    entity_id: str
    version: str
    reason: Reason
    slot: int | None = None
    test_id: str | None = None
    test_revision: int | None = None
    weights: dict[str, float] = {}


class Share(msgspec.Struct, frozen=True):
    """One arm of a distribution: configured share, share of synthetic ids, requests so far and their share."""

    version: str
    configured: float
    synthetic: float
    requests: int
    observed: float | None


class Distribution(msgspec.Struct, frozen=True):
    """How the traffic of a model is split: as configured, on synthetic ids, and in the requests so far."""

    model: str
    test_id: str | None
    test_revision: int | None
    synthetic_ids: int
    requests: int
    shares: tuple[Share, ...]


class Prediction(msgspec.Struct, frozen=True):
    """One answer. `outputs` holds each output of the model by name, the single row unwrapped."""

    model: str
    version: str
    prediction_id: str
    reason: Reason
    outputs: dict[str, Any]


class RowError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a row has no answer."""

    row: int
    code: str
    detail: str
    feature: str | None = None
    position: int | None = None

    def behind(self, rows: int) -> RowError:
        """The same error where so many rows came before."""
        return msgspec.structs.replace(self, row=self.row + rows) if rows else self


class VersionStatus(msgspec.Struct, frozen=True):
    """A version as one worker has it loaded; times in seconds, `error` where it could not be loaded.

    `run_seconds` is the time of a warm run of one row, `batch_seconds` of one of `max_batch_rows` rows, which is what
    runs together at most; 1 where requests run each by itself. On CUDA, `graphs` are the numbers of rows for which a
    CUDA graph was recorded, `cpu_nodes` the nodes that run on the CPU all the same, and `note` says why there are no
    graphs.
    """

    model: str
    version: str
    device: str = ""
    providers: tuple[str, ...] = ()
    inline: bool = False
    load_seconds: float = 0.0
    warmup_seconds: float = 0.0
    run_seconds: float = 0.0
    max_batch_rows: int = 1
    max_delay_us: int = 0
    batch_seconds: float = 0.0
    graphs: tuple[int, ...] = ()
    cpu_nodes: tuple[str, ...] = ()
    note: str = ""
    error: str | None = None


class WorkerStatus(msgspec.Struct, frozen=True):
    """A live serving process: the generation that it serves and what it has loaded.

    `held_back` names the models of which it serves an older state, because it cannot load or read the new one (yet);
    of all others it serves the generation `reached`.
    """

    id: str
    pid: int
    started_at: datetime
    heartbeat_at: datetime
    generation: int
    ready: bool
    draining: bool
    versions: tuple[VersionStatus, ...]
    reached: int = 0
    held_back: tuple[str, ...] = ()


class Status(msgspec.Struct, frozen=True):
    """The state of a data directory and of the workers that serve it."""

    turnout: str
    generation: int
    data: str
    models: int
    workers: tuple[WorkerStatus, ...]


class VersionState(msgspec.Struct, frozen=True):
    """Whether a version is loaded wherever it may be asked for, and why it is not.

    READY: every live worker has it. LOADING: workers are about to. UNAVAILABLE: it could not be loaded, or nothing has
    asked for it. The words are those of the Open Inference Protocol, extension "model repository".
    """

    model: str
    version: str
    state: LoadState
    reason: str = ""


class Change(msgspec.Struct, frozen=True):
    """Where a change has arrived: `pending` names live workers that do not serve `generation` yet."""

    generation: int
    revision: int
    pending: tuple[str, ...] = ()


def utc_now() -> datetime:
    """The present time in UTC, as the registry stores it."""
    return datetime.now(UTC)


def check_name(kind: str, name: object) -> str:
    """Return `name` if it can name a model or a version: 1 to 200 bytes of UTF-8 that print, not `.` or `..`.

    It may have slashes inside, but behind one no word that the paths of the API have behind a name: some servers tell
    `%2F` from `/` no more.

    Raises:
        InvalidName: with what was expected and what came.
    """
    if not isinstance(name, str):
        raise InvalidName(f"{kind} must be a string, not {type(name).__name__}")
    shown = name if len(name) <= 60 else name[:60] + "…"
    if not name or name != name.strip() or name in {".", ".."}:
        raise InvalidName(
            f"{kind} {shown!r}: expected a name without spaces at its ends that is not '.' or '..'"
        )
    if name.startswith("/") or name.endswith("/") or PATH_WORDS.intersection(name.split("/")[1:]):
        raise InvalidName(
            f"{kind} {shown!r}: expected slashes only inside, and behind one none of the words "
            f"{', '.join(sorted(PATH_WORDS))}"
        )
    if "\ufffd" in name or any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in name):
        raise InvalidName(f"{kind} {shown!r}: control characters are not allowed")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidName(
            f"{kind} {shown!r}: expected at most {MAX_NAME_BYTES} bytes, found {len(name.encode())}"
        )
    return name
