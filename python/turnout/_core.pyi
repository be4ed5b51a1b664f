"""The Rust extension: assignment, feature packing, response encoding and latency recording.

Every class is frozen and safe to share between threads. Errors arrive as the exceptions of `turnout.errors`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SLOTS",
    "InferRequest",
    "Ledger",
    "Route",
    "RunTotals",
    "Runs",
    "Series",
    "Signer",
    "Split",
    "Table",
    "Totals",
    "VersionPlan",
    "Watch",
    "__version__",
    "hash_entity",
    "slot",
]

__version__: str
"""The version of Turnout."""

SLOTS: int
"""Number of equal parts of the hash space: 100,000."""

_Runs: TypeAlias = Mapping[str, Sequence[tuple[int, int]]]

def hash_entity(salt: str, entity: str | int) -> int:
    """XXH3-64 of `utf8(salt) + 0x00 + utf8(entity)`; an integer entity counts as its decimal string."""

def slot(salt: str, entity: str | int) -> int:
    """The slot of an entity, 0 to 99,999: `(hash * 100000) >> 64`."""

@final
class Ledger:
    """Which arm owns each slot, and in which order it got them. Immutable; arms are in bytewise order."""

    arms: list[str]
    @staticmethod
    def start(baseline: str) -> Ledger:
        """A new ledger in which `baseline` owns every slot, in ascending order."""
    @staticmethod
    def from_runs(runs: _Runs) -> Ledger:
        """Read `runs()` back. Raises InvalidDocument unless every slot is owned exactly once."""
    def apply(self, weights: Mapping[str, float]) -> tuple[Ledger, int]:
        """Apply weights (normalised here; arms that are missing fall out) and say how many slots moved.

        Raises InvalidSplit: negative, not finite, not summing to 1 within 0.001, none, or over 256 arms.
        """
    def runs(self) -> dict[str, list[tuple[int, int]]]:
        """The stacks as runs from first to last slot, both included, falling where first > last."""
    def counts(self) -> dict[str, int]:
        """Slots by arm."""
    def owner(self, slot: int) -> str:
        """The arm that owns a slot. Raises IndexError past the last."""
    def table_digest(self) -> str:
        """XXH3-64, 16 hex digits, over 100,000 bytes: for each slot the index of its arm in `arms`."""

@final
class Split:
    """A ledger and a salt, ready for look-ups: one hash and one load from a table of 100,000 bytes."""

    arms: list[str]
    salt: str
    def __new__(cls, ledger: Ledger, salt: str) -> Split: ...
    def assign(self, entity: str | int) -> tuple[int, int]:
        """Index into `arms`, and the slot. Raises InvalidRequest for anything but a string or an integer."""
    def assign_strings(self, entities: Sequence[str]) -> NDArray[np.uint8]:
        """Indices into `arms` for a list of strings (or of integers, or mixed).

        Raises InvalidRequest, with `row`, for anything else and for strings with lone surrogates.
        """
    def assign_integers(self, entities: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Indices into `arms` for integers, each taken as its decimal string; releases the GIL."""
    def assign_utf8(
        self, offsets: NDArray[np.int32] | NDArray[np.int64], data: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Indices into `arms` for the strings of an Arrow array: n + 1 offsets into UTF-8 bytes; releases the GIL.

        Raises InvalidRequest where offsets fall or leave the data.
        """
    def synthetic_counts(self, count: int) -> list[int]:
        """How many of the ids `"0"`, `"1"` ... `str(count - 1)` each arm gets; releases the GIL."""

_Prepared: TypeAlias = tuple[
    NDArray[np.int32],
    NDArray[np.uint8],
    NDArray[np.uint8] | None,
    list[tuple[int, tuple[NDArray[Any], ...]]],
    list[Any],
]

@final
class Table:
    """Columns that lie in memory already; nothing of them is copied.

    `buffers` are contiguous arrays: float32/64, int8 to uint64, bool. A column is (buffer, buffer of the text or None,
    index of the first value, from one value to the next, buffer of the validity or None, its first bit, whether the
    buffer holds bits). The buffer of a text column has its offsets, int32 or int64.
    """

    rows: int
    def __new__(
        cls,
        rows: int,
        names: Sequence[str] | None,
        buffers: Sequence[NDArray[Any]],
        columns: Sequence[tuple[int, int | None, int, int, int | None, int, bool]],
    ) -> Table: ...

@final
class VersionPlan:
    """How one version reads features and writes outputs.

    `layout` "matrix": one input of element type `dtypes[0]` and shape `[1, F]`; "columns": one `[1, 1]` input per
    feature, `dtypes[i]` for feature i. Element types: float32, float64, int32, int64, bool, and object (strings,
    columns only). `features` are (name, type, values, default, nullable) in the schema's order; a version without
    names ("" for each) takes lists only. `outputs` are the names of the outputs in the order of `Route.encode`.
    A `float` on an integer or bool input takes integers, or true and false. `score` is the index of the output that has
    the score of a row, if any. `layout` "tensors": free tensors, which a row of features cannot carry; it has neither
    `dtypes` nor `features`. `datatypes` are what the Open Inference Protocol calls the element types of the outputs
    ("FP32"); where they are not known, those of the arrays count.

    Raises InvalidModel for features that do not fit the inputs.
    """

    def __new__(
        cls,
        version: str,
        layout: Literal["matrix", "columns", "tensors"],
        dtypes: Sequence[str],
        features: Sequence[tuple[str, str, Sequence[str], float | int | bool | str | None, bool]],
        outputs: Sequence[str],
        score: int | None = None,
        datatypes: Sequence[str] = ...,
    ) -> VersionPlan: ...

@final
class InferRequest:
    """An inference request (Open Inference Protocol v2), read: arrays, and what it asks for.

    Source: kserve/open-inference-protocol, inference_rest.md, and Triton's extension_binary_data.md.
    """

    id: str | None
    entity_id: str | None
    """Parameter `entity_id`: a string, or an integer as its decimal text."""
    entity_ids: list[str] | None
    """Parameter `entity_ids`: the same for each row."""
    priority: int
    """Below 2**32; 0 where it is not said."""
    timeout_us: int
    """Below 2**53; 0 for none."""
    binary_output: bool | None
    """Parameter `binary_data_output`."""
    outputs: list[tuple[str, bool | None]] | None
    """Names of the outputs that are wanted, and their parameter `binary_data`; None for all, as an empty list asks."""
    names: tuple[str, ...]
    """The inputs, in the order in which they came: their names."""
    datatypes: tuple[str, ...]
    """As the protocol calls them: `"FP32"`, `"BYTES"` ..."""
    arrays: tuple[NDArray[Any], ...]
    """FP16 is float16, BF16 uint16 (the bits), BYTES object (str), BOOL bool, the others are what they say.

    Inputs in binary are read-only views of the body; where one does not begin at a multiple of the size of its elements
    it is copied, once. Inputs in JSON own their memory.
    """

    @staticmethod
    def read(body: bytes, json_bytes: int | None = None) -> InferRequest:
        """Read a body; with `json_bytes` (of the header) so many are JSON, and the rest are tensors in binary.

        Data in JSON is flat or nested as the shape says. Floats may be null (NaN), NaN, Infinity and -Infinity. Bodies
        above 64 KiB are read without the GIL.

        Raises InvalidRequest, with `position` where there is one, and in `feature` the name of the input or output that
        it is about (its index, where it has no name).
        """

@final
class Route:
    """All that one model needs to turn the bytes of a request into inputs, and outputs into the bytes of an answer.

    `plans` are those of its versions; an entry may be None for one that takes free tensors. `active` indexes `plans`.
    `arms[i]` is the index in `plans` of arm i of `split`. `overrides` map entity ids to indices in `plans`. `known`
    are the feature names of all registered versions: names outside of it are errors, names inside that a version
    does not use are ignored. With a `signer` prediction ids are receipts: `numbers` are those of the versions, `test`
    number and revision of the running test (0 for none), and `watch` notes what its arms do. Without, they are UUIDs.
    """

    def __new__(
        cls,
        model: str,
        plans: Sequence[VersionPlan | None],
        versions: Sequence[str],
        active: int | None,
        split: Split | None,
        arms: Sequence[int],
        overrides: Mapping[str, int],
        known: Sequence[str],
        signer: Signer | None = None,
        numbers: Sequence[int] = ...,
        test: tuple[int, int] = ...,
        watch: Watch | None = None,
    ) -> Route: ...
    def assign(self, entity: str | int | None) -> tuple[int, int, int | None]:
        """(index in `plans`, index in `turnout.domain.REASONS`, slot) as `prepare` would route this entity.

        Raises NoActiveVersion where there is neither an override, a test nor an active version.
        """
    def choose(self, entity: str | None, pinned: int | None = None) -> tuple[int, int, bytes | None]:
        """The version that answers, or that is pinned: its index, the reason's, and the hash of the entity (16 bytes).

        Raises NoActiveVersion.
        """
    def prepare(
        self, body: bytes, pinned: int | None = None
    ) -> tuple[int, int, tuple[NDArray[Any], ...], bytes | None]:
        """Read `{"entity_id"?: str | int | null, "features": {...} | [...]}`, route it, and pack the features.

        Returns (index in `plans`, index in REASONS, inputs in the order of the graph, hash of the entity: 16 bytes,
        None where there is none or nobody signs). With `pinned` that version is
        packed and the reason is `pinned`. No entity id in a test: a random slot, reason `random`.

        Raises InvalidRequest (with `position`) for what is not such a document, InvalidFeatures (with `feature` and
        `position`) for features that do not fit, NoActiveVersion where nothing could answer.
        """
    def prepare_batch(
        self, body: bytes | NDArray[np.uint8], pinned: int | None, skip: bool, most: int
    ) -> _Prepared:
        """Read `{"entity_ids"?: [...], "rows": [...]}` or `{"entity_ids"?, "columns": {...}}`; releases the GIL.

        Returns for each row the index of its version (int32, -1 where its entity id is none), its reason (uint8), and
        where somebody signs the hash of its entity (uint8, shape `[N, 16]`, zeros for none);
        for each version that occurs its index and its inputs; and the errors of bad rows, with `row`, in their order.
        The inputs of a version are those of its rows in their order, without bad ones.

        Raises the first error of a row unless `skip`, and those of `prepare`; PayloadTooLarge past `most` rows.
        """
    def prepare_lines(
        self, body: bytes | NDArray[np.uint8], pinned: int | None, skip: bool, most: int
    ) -> _Prepared:
        """The same for lines, each of them a body of `prepare`. Unless `skip`, nothing behind a bad line is read."""
    def prepare_each(
        self, bodies: Sequence[bytes]
    ) -> list[tuple[int, list[int], bytes, list[bytes | None], tuple[NDArray[Any], ...]]]:
        """The same for bodies of `prepare` that came one by one; keeps the GIL, so for few of them.

        Returns for each version that occurs its index, the numbers of its bodies, their reasons, the hashes of their
        entities, and its inputs. A body that is bad is in none of them.
        """
    def encode_each(
        self,
        version: int,
        reasons: bytes,
        outputs: Sequence[NDArray[Any]],
        entities: Sequence[bytes | None] = ...,
        nanoseconds: Sequence[int] = ...,
    ) -> list[bytes]:
        """What `encode` writes, for each row of the outputs of a version."""
    def failed(self, version: int, reason: int, entity: bytes | None, replaced: bool) -> None:
        """Note that an arm of a running test failed a request; `replaced`: another version answered it."""
    def see_rows(
        self,
        version: int,
        reasons: NDArray[np.uint8],
        entities: NDArray[np.uint8] | None,
        outputs: Sequence[NDArray[Any]] | None,
        replaced: bool = False,
    ) -> None:
        """Note what became of rows of a batch; without outputs the version failed on them."""
    def assign_each(
        self, ids: int | Sequence[str | int | None] | NDArray[np.int64] | NDArray[np.uint64]
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Index of the version, reason and hash of each id; a number stands for so many requests without entity."""
    def bind(self, version: int, table: Table) -> list[int | None]:
        """For each feature of a version the index of the column that it takes, None where its default stands.

        Raises InvalidFeatures for a column that no version knows, and for a feature without column and default.
        """
    def pack(
        self,
        version: int,
        table: Table,
        bound: Sequence[int | None],
        rows: NDArray[np.int64] | None,
        start: int,
        count: int,
        skip: bool,
    ) -> tuple[tuple[NDArray[Any], ...], list[Any]]:
        """The inputs of a version for these rows, or for `count` from `start` on, and the errors of bad rows.

        `row` of an error counts from the first of these rows. Unless `skip`, the first bad row ends it. Releases the
        GIL.
        """
    def encode_batch(
        self,
        labels: Sequence[int],
        index: NDArray[np.int32],
        rows: NDArray[np.int32],
        parts: Sequence[tuple[int, Sequence[NDArray[Any]]]],
        errors: bytes,
    ) -> NDArray[np.uint8]:
        """The bytes of the JSON answer to a batch; releases the GIL.

        `labels` are indices of versions and `index` has, for each row, an index into them (-1: none); `rows` has for
        each row the index of its part (-1: no answer). A part is a version and its outputs, each of shape `[rows,
        ...]`, its rows in their order. `errors` is JSON.
        """
    def encode_lines(
        self,
        rows: NDArray[np.int32],
        reasons: NDArray[np.uint8],
        parts: Sequence[tuple[int, Sequence[NDArray[Any]]]],
        problems: Sequence[bytes],
        entities: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """The bytes of a line for each row: what `encode` writes, or, for a row without part, the next of `problems`."""
    def encode(
        self,
        index: int,
        reason: int,
        outputs: Sequence[NDArray[Any]],
        entity: bytes | None = None,
        nanoseconds: int = 0,
    ) -> bytes:
        """The JSON answer, with a new prediction id: a receipt, or without signer a UUID of version 7.

        An answer by the arm of a running test is noted, for the entity, with its score and the time that it took.

        Outputs are float16/32/64, any integer, bool or object (str or bytes) arrays of shape `[1, ...]` (unwrapped)
        or `[]`; NaN and infinities become null, floats the shortest text that reads back the same.
        """
    def write_tensors(
        self,
        position: int,
        reason: int,
        outputs: Sequence[NDArray[Any]],
        entity: bytes | None,
        nanoseconds: int,
        rows: int,
        request_id: str | None,
        wanted: Sequence[tuple[int, bool]],
    ) -> tuple[bytes, int]:
        """The answer to an `InferRequest`, and how many bytes of it are JSON: 0 where no output is in binary.

        `outputs` are all arrays of the version, `wanted` has for each output of the answer its index and whether it is
        sent in binary. Signs and notes it as `encode` does, with the score of the first row where there is only one.

        Raises InvalidRequest for BF16 outside of binary, PredictionFailed for arrays that cannot be written.
        """
    def write_many(
        self,
        version: str | None,
        reason: str | None,
        request_id: str | None,
        outputs: Sequence[tuple[str, str, NDArray[Any], bool]],
    ) -> tuple[bytes, int]:
        """The same for rows of several versions: (name, datatype, array, binary) of each output; no prediction id.

        `model_version` and the parameters `version` and `reason` are left out where they are None. Nothing is noted.
        """
    def sign_rows(
        self,
        position: int,
        reasons: NDArray[np.uint8],
        entities: NDArray[np.uint8] | None,
        outputs: Sequence[NDArray[Any]],
    ) -> list[str]:
        """New prediction ids for the rows that a version answered, each with its own score. Nothing is noted.

        `outputs` are all arrays of the version; `entities` has shape `[N, 16]`, zeros for none.
        """

@final
class Signer:
    """The keys of a model, derived from that of its data directory (32 bytes)."""

    def __new__(cls, key: bytes, model: str) -> Signer: ...
    def entity(self, entity: str | int) -> bytes:
        """The hash of an entity, 16 bytes: XXH3-128 with a secret, the same for all models of a directory."""
    def read(self, text: str) -> tuple[int, int, bytes | None, int, int, int, float | None, int] | None:
        """What a prediction id says; None for what was not signed with this key.

        (Unix milliseconds, index in REASONS, hash of the entity, number of the version, test and revision, 0 for none,
        score, index of the likeliest class).
        """

@final
class Watch:
    """What is seen of one revision of a test in this process. Noting takes no lock but for what is new.

    `thresholds` are six latencies in nanoseconds, rising.
    """

    def __new__(cls, arms: int, thresholds: Sequence[int] | None = None) -> Watch: ...
    def drain(self) -> tuple[bytes, list[list[int]], int]:
        """What was seen since the last time: entries of 36 bytes, 14 counters for each arm, entries that found no room.

        An entry: entity (16 bytes), milliseconds (uint64), arm, kind, level, whether there is a score (uint8 each),
        score (float32), class (uint16), two zeros; little-endian. Kinds: answered, score is no number, failed, replaced
        by another version. Counters: requests of each kind, requests without entity of each kind, and those answered
        above each threshold.
        """

@final
class Series:
    """Counters and latency histograms of one (model, version, reason); updated without locks."""

    def __new__(cls) -> Series: ...
    def record(self, total_ns: int, model_ns: int) -> None:
        """One answer: time in Turnout and model together, and in the model alone, in nanoseconds."""
    def record_rows(self, rows: int, total_ns: int, model_ns: int) -> None:
        """Answers to the rows of a batch, nanoseconds of all together; each counts as its share of them."""
    def record_errors(self, count: int) -> None:
        """Rows of a batch that this version failed to answer."""
    def record_error(self) -> None:
        """One request that this version failed to answer."""
    def dump(self) -> bytes:
        """A compact form of the present state, for `Totals`."""

@final
class Totals:
    """The sum of dumped series. Histograms have 32 buckets a power of two: quantiles are within 3.2 %."""

    def __new__(cls, dumps: Sequence[bytes]) -> Totals:
        """Raises InvalidDocument for bytes that are no dump."""
    requests: int
    """Answers and errors."""
    errors: int
    latency_sum: float
    """Seconds."""
    latency_ns: int
    """The same in nanoseconds."""
    overhead_sum: float
    """Seconds outside the model."""
    def dump(self) -> bytes:
        """The same form as `Series.dump`."""
    def latency(self, quantile: float) -> float | None:
        """Seconds; None without answers."""
    def overhead(self, quantile: float) -> float | None:
        """Seconds outside the model; None without answers."""
    def latency_buckets(self, bounds: Sequence[float]) -> list[int]:
        """How many answers took at most each bound (seconds): cumulative, exact at powers of two of a nanosecond."""
    def overhead_buckets(self, bounds: Sequence[float]) -> list[int]:
        """The same for the time outside the model."""

@final
class Runs:
    """Runs of the model of one (model, version), by their number of rows; many threads may record at once.

    The 64 smallest numbers of rows are kept apart, runs of more rows count under the next power of two.
    """

    def __new__(cls) -> Runs: ...
    def record(self, rows: int, input_ns: int, infer_ns: int, output_ns: int, unix_ms: int) -> None:
        """One run on `rows` rows: nanoseconds before, in and after the model, and the Unix milliseconds now."""
    def fail(self, ns: int) -> None:
        """One run, or request, that failed after so many nanoseconds."""
    def dump(self) -> bytes:
        """A compact form of the present state, for `RunTotals`."""

@final
class RunTotals:
    """The sum of dumped runs; the same in whatever order they come. Sums stay at 2^64 - 1 where they would be more."""

    def __new__(cls, dumps: Sequence[bytes]) -> RunTotals:
        """Raises InvalidDocument for bytes that are no dump of runs."""
    last_ms: int
    """Unix milliseconds of the last run; 0 without any."""
    failures: int
    """What failed."""
    failure_ns: int
    """Nanoseconds of all that failed."""
    rows: int
    """Rows of all runs, exactly."""
    runs: int
    """Runs of the model."""
    input_ns: int
    infer_ns: int
    output_ns: int
    sizes: list[tuple[int, int, int, int, int]]
    """By rows, which rise: rows, runs, and their nanoseconds before, in and after the model; at most 128."""
    def dump(self) -> bytes:
        """The same form as `Runs.dump`."""
