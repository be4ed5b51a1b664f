"""Which version answers, and why. Pure: everything here is computed from records, never read from a database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turnout import _core
from turnout.contracts import DATATYPES, Contract
from turnout.domain import REASONS, Assignment, Model, Runs, Test, Version
from turnout.errors import InvalidRequest, ModelNotFound, NoActiveVersion, StorageError, VersionNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

Ids = Sequence[str | int] | NDArray[Any]

NUMPY_TYPES = {"float": "float32", "double": "float64", "string": "object"}
"""Names of ONNX element types that differ from NumPy's."""


class ModelRecord(NamedTuple):
    """All that the registry knows of one model that routing needs."""

    model: Model
    versions: Mapping[str, Version]
    test: Test | None
    runs: Runs | None
    overrides: Mapping[str, str]


class Lane:
    """One version of a serving: the key of its session, and its statistics, made at first use.

    `series` counts answers by index into REASONS, `queue` the time that requests waited for their turn, `runs` runs of
    the model. `contract` says which tensors it takes and gives. `watched` says whether it is an arm of a running test
    that somebody takes notes of.
    """

    __slots__ = ("contract", "key", "label", "queue", "runs", "series", "version", "watched")

    def __init__(self, version: Version, key: str) -> None:
        self.version = version
        self.label = version.version
        self.key = key
        self.series: list[_core.Series | None] = [None] * len(REASONS)
        self.queue: _core.Series | None = None
        self.runs: _core.Runs | None = None
        self.contract: Contract | None = None
        self.watched = False


def contract_of(lane: Lane) -> Contract:
    """Which tensors the version of a lane takes and gives."""
    contract = lane.contract
    if contract is None:
        contract = lane.contract = Contract(lane.version)
    return contract


class Witness(NamedTuple):
    """Who signs the answers of a model, and who notes what the arms of its running test do."""

    signer: _core.Signer
    watch: _core.Watch | None


class Serving:
    """One model, ready to route: a lane for each of its versions, and the compiled route over them.

    A server keeps in `burst` what arrives for it at once; None before the first request, False where it keeps nothing.
    `copying` says which requests another version runs as well, after the answer has gone.
    """

    __slots__ = (
        "active_lane",
        "burst",
        "copying",
        "index",
        "labels",
        "lanes",
        "record",
        "routable",
        "routable_lanes",
        "route",
        "split",
        "wanted",
    )

    def __init__(
        self,
        record: ModelRecord,
        plan: Callable[[Version], _core.VersionPlan | None],
        key: Callable[[Version], str],
        witness: Witness | None = None,
    ) -> None:
        self.record = record
        self.burst: Any = None
        self.copying: Any = None
        self.lanes = tuple(Lane(version, key(version)) for version in record.versions.values())
        self.labels = tuple(record.versions)
        self.index = {label: position for position, label in enumerate(self.labels)}
        self.split = None
        if record.test is not None and record.runs is not None:
            self.split = _core.Split(_core.Ledger.from_runs(record.runs), record.test.salt)
        if self.split is not None and witness is not None and witness.watch is not None:
            for arm in self.split.arms:
                self.lanes[self.index[arm]].watched = True
        active = record.model.active
        self.route = _core.Route(
            record.model.name,
            [plan(version) for version in record.versions.values()],
            self.labels,
            None if active is None else self.index[active],
            self.split,
            [self.index[arm] for arm in self.split.arms] if self.split else [],
            {entity: self.index[label] for entity, label in record.overrides.items()},
            sorted(
                {feature.name for version in record.versions.values() for feature in version.features} - {""}
            ),
            None if witness is None else witness.signer,
            [] if witness is None else [version.ordinal for version in record.versions.values()],
            (0, 0) if record.test is None else (int(record.test.id), record.test.revision),
            None if witness is None else witness.watch,
        )
        self.routable = frozenset(routable(record))
        self.routable_lanes = tuple(self.lanes[self.index[label]] for label in sorted(self.routable))
        self.active_lane = None if active is None else self.lanes[self.index[active]]
        self.wanted = self.routable.union(self.labels if record.model.kept else record.model.former)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.record.model.name

    @property
    def scope(self) -> str:
        """Names the running split in the statistics: test id and revision."""
        test = self.record.test
        return "" if test is None else f"{test.id}/{test.revision}"

    @property
    def shares(self) -> dict[str, float]:
        """Configured share of the traffic by version."""
        test, active = self.record.test, self.record.model.active
        if test is not None:
            return test.weights
        return {} if active is None else {active: 1.0}

    def position(self, label: str) -> int:
        """The index of the version with this label. Raises VersionNotFound."""
        try:
            return self.index[label]
        except KeyError:
            raise VersionNotFound(f"Version {label} not found for model {self.name}") from None

    def version(self, label: str) -> Version:
        """The version with this label. Raises VersionNotFound."""
        return self.lanes[self.position(label)].version

    def assign(self, entity: str | int) -> Assignment:
        """Route an entity. Raises NoActiveVersion where nothing could answer it."""
        position, reason, slot = self.route.assign(check_entity(entity))
        test = self.record.test
        return Assignment(
            model=self.name,
            entity_id=str(entity),
            version=self.labels[position],
            reason=REASONS[reason],
            slot=slot,
            test_id=test.id if test else None,
            test_revision=test.revision if test else None,
            weights=test.weights if test else {},
        )

    def assign_many(self, ids: Ids) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """Route many entities: for each an index into the names that are returned beside."""
        if self.split is None:
            if self.record.model.active is None:
                raise NoActiveVersion(f"model {self.name} has no active version")
            names = [self.record.model.active]
            # Read as in a test, so that ids which are none do not wait for the first one to be found.
            indices = assign_ids(_core.Split(_core.Ledger.start(names[0]), ""), ids)
        else:
            names = list(self.split.arms)
            indices = assign_ids(self.split, ids)
        if self.record.overrides:
            self._override(indices, names, ids)
        return indices, tuple(names)

    def _override(self, indices: NDArray[np.uint8], names: list[str], ids: Ids) -> None:
        overrides = self.record.overrides
        for row, entity in enumerate(as_list(ids)):
            label = overrides.get(str(entity))
            if label is not None:
                if label not in names:
                    names.append(label)
                indices[row] = names.index(label)


class Snapshot(NamedTuple):
    """The immutable view that a process serves from: a generation of the registry, compiled."""

    generation: int
    models: Mapping[str, Serving]
    unreadable: Mapping[str, str] = {}
    """What is wrong with the records of a model, by name; it is served as it was before, if it was."""

    def serving(self, model: str) -> Serving:
        """The model with this name. Raises ModelNotFound, StorageError where its records cannot be read."""
        try:
            return self.models[model]
        except KeyError:
            if model in self.unreadable:
                raise StorageError(
                    f"the records of model {model} cannot be read: {self.unreadable[model]}"
                ) from None
            raise ModelNotFound(f"Model {model} not found") from None

    def revisions(self) -> dict[str, int]:
        """What is known already, by model: its revision."""
        return {name: serving.record.model.revision for name, serving in self.models.items()}


EMPTY = Snapshot(0, {})


def routable(record: ModelRecord) -> Iterable[str]:
    """The versions that a request without a pinned version may reach."""
    if record.model.active is not None:
        yield record.model.active
    if record.test is not None:
        yield from (arm.version for arm in record.test.arms)
    yield from set(record.overrides.values())


def plan_of(version: Version) -> _core.VersionPlan:
    """How the version's features are packed, unless it takes free tensors, and how its outputs are written."""
    signature = version.signature
    free = signature.layout == "tensors"
    return _core.VersionPlan(
        version.version,
        signature.layout,
        [] if free else [NUMPY_TYPES.get(tensor.dtype, tensor.dtype) for tensor in signature.inputs],
        [(f.name, f.type, f.values, f.default, f.nullable) for f in version.features],
        [tensor.name for tensor in signature.outputs],
        score_output(version),
        [DATATYPES[tensor.dtype] for tensor in signature.outputs],
    )


def score_output(version: Version) -> int | None:
    """The index of the output that has the score of a row: its probabilities, else its first number that is no label.

    Of two classes the score is the probability of the second one, of more that of the likeliest, else it is the value.
    """
    floats = [
        (index, tensor)
        for index, tensor in enumerate(version.signature.outputs)
        if tensor.dtype in {"float", "double"} and len(tensor.shape) in {1, 2}
    ]
    wide = [index for index, tensor in floats if len(tensor.shape) == 2 and tensor.shape[1] != 1]
    return next(iter(wide), None) if wide else next((index for index, _ in floats), None)


def check_entity(entity: object) -> str | int:
    """Return an entity id that can be hashed: a string or an integer (not a bool), NumPy's too."""
    if isinstance(entity, np.integer):
        return int(entity)
    if isinstance(entity, str | int) and not isinstance(entity, bool):
        return entity
    raise InvalidRequest(f"an entity id is a string or an integer, found {type(entity).__name__}")


def assign_ids(split: _core.Split, ids: Ids) -> NDArray[np.uint8]:
    """Arm indices for a list of ids, a NumPy array (integers or strings) or a pyarrow string or integer array.

    Source of the layout of strings: Arrow columnar format, "Variable-size Binary Layout".
    """
    if isinstance(ids, np.ndarray):
        return _assign_numpy(split, ids)
    if type(ids).__module__.partition(".")[0] == "pyarrow":
        return _assign_arrow(split, ids)
    found = as_list(ids)
    if not set(map(type, found)) <= {str, int}:
        found = [check_entity(entity) for entity in found]  # NumPy's scalars, say
    return split.assign_strings(found)


def _assign_numpy(split: _core.Split, ids: NDArray[Any]) -> NDArray[np.uint8]:
    if ids.ndim != 1:
        raise InvalidRequest(f"entity ids must be one-dimensional, found shape {ids.shape}")
    if ids.dtype.kind == "i":
        return split.assign_integers(np.require(ids, np.int64, ["C", "A"]))
    if ids.dtype.kind == "u":
        return split.assign_integers(np.require(ids, np.uint64, ["C", "A"]))
    if ids.dtype.kind in "UOT":
        return split.assign_strings(ids.tolist())
    raise InvalidRequest(f"entity ids must be strings or integers, found dtype {ids.dtype}")


def _assign_arrow(split: _core.Split, ids: Any) -> NDArray[np.uint8]:  # noqa: ANN401
    if hasattr(ids, "chunks"):
        parts = [_assign_arrow(split, chunk) for chunk in ids.chunks]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    if ids.null_count:
        raise InvalidRequest(f"entity ids must not be null, found {ids.null_count} nulls")
    kind = str(ids.type)
    if kind not in {"string", "large_string"}:
        return _assign_numpy(split, ids.to_numpy(zero_copy_only=False))
    width: Any = np.int64 if kind == "large_string" else np.int32
    _, offsets, data = ids.buffers()
    if not len(ids):
        return np.zeros(0, np.uint8)
    whole: NDArray[Any] = np.frombuffer(offsets, width)
    bounds = np.require(whole[ids.offset : ids.offset + len(ids) + 1], requirements=["A"])
    return split.assign_utf8(
        bounds, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    )


def as_list(ids: Any) -> list[Any]:  # noqa: ANN401
    """Ids as a list, from NumPy, pyarrow or any iterable but a string."""
    if isinstance(ids, str | bytes):
        raise InvalidRequest("entity ids must be a sequence of ids, not one string")
    convert = getattr(ids, "to_pylist", None) or getattr(ids, "tolist", None)
    try:
        return convert() if convert else list(ids)
    except TypeError as error:
        raise InvalidRequest(f"expected a sequence of entity ids, found {type(ids).__name__}") from error
