"""Tensors in, tensors out: the dialect of the Open Inference Protocol, version 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from turnout import _core
from turnout.answers import Job, Outcome, Part, Rows
from turnout.contracts import VARIABLE, Contract, Given, Wanted
from turnout.dialects import Read
from turnout.domain import REASONS
from turnout.errors import InvalidTensors, OutOfDeviceMemory, PredictionFailed, TurnoutError
from turnout.router import Serving, contract_of

ENTITY = "entity_id"
"""The input that says whom each row is about, unless a version of the model has one of this name itself."""
VERSION, REASON, PREDICTION_ID = "turnout.version", "turnout.reason", "turnout.prediction_id"
ABOUT = (VERSION, REASON, PREDICTION_ID)
"""Outputs that say of each row who answered it, and why; they are sent to those who name them."""
PINNED = REASONS.index("pinned")
NUMPY_TYPES = {
    "BOOL": np.dtype(np.bool_),
    **{
        f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits}")
        for kind in ("INT", "UINT")
        for bits in (8, 16, 32, 64)
    },
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}


class Asked(Protocol):
    """What an answer has to look like: `_core.InferRequest`, or a raw request."""

    @property
    def id(self) -> str | None:
        """Comes back as it is."""
        ...

    @property
    def outputs(self) -> Sequence[tuple[str, bool | None]] | None:
        """The outputs, and whether they go in binary; None for all."""
        ...

    @property
    def binary_output(self) -> bool | None:
        """Whether outputs that do not say go in binary."""
        ...


class Raw(NamedTuple):
    """A request of which there is nothing but the bytes of its single input."""

    id: str | None = None
    outputs: Sequence[tuple[str, bool | None]] | None = None
    binary_output: bool | None = True


class Tensors:
    """One inference request: its tensors, and whom it is about.

    Attributes:
        json_bytes: of the answer that was written last, the length of its JSON; 0 where it is nothing else.
    """

    __slots__ = (
        "_asked",
        "_given",
        "_ids",
        "_most_rows",
        "entity_id",
        "entity_ids",
        "json_bytes",
        "rows",
        "size",
        "weight",
    )

    def __init__(self, asked: Asked, given: Given, size: int, entity_id: str | None, most_rows: int) -> None:
        self._asked = asked
        self._given = given
        self._ids: int | None = None
        self._most_rows = most_rows
        self.size = size
        self.entity_id = entity_id
        self.entity_ids: list[str] | None = None
        self.rows = self.weight = 1
        self.json_bytes = 0

    @classmethod
    def of(
        cls, asked: _core.InferRequest, serving: Serving, size: int, header: str | None, most_rows: int
    ) -> Tensors:
        """A request for a model; `header` is the entity that its headers name, `most_rows` how many it may have."""
        given = dict(zip(asked.names, zip(asked.datatypes, asked.arrays, strict=True), strict=True))
        ids = asked.entity_ids
        if ENTITY in given and not _takes(serving, ENTITY):
            if ids is not None:
                raise InvalidTensors(
                    f'expected the parameter "entity_ids" or the input "{ENTITY}", found both'
                )
            ids = _ids_of(*given.pop(ENTITY))
        entity = header if asked.entity_id is None else asked.entity_id
        found = cls(asked, given, size, entity, most_rows)
        if ids is not None:
            found._identify(ids)
        return found

    def _identify(self, ids: list[str]) -> None:
        """Take an id for each row; one alone is that of the request."""
        if len(ids) > self._most_rows:
            raise self._too_many(len(ids))
        about = any(name in ABOUT for name, _ in self._asked.outputs or ())
        if len(ids) > 1 or (ids and about):
            self.entity_ids = ids
            return
        self._ids = len(ids)
        if ids:
            self.entity_id = ids[0]

    def _too_many(self, rows: int) -> InvalidTensors:
        return InvalidTensors(
            f"expected at most {self._most_rows} rows, found {rows}; see the setting max_batch_rows"
        )

    def read(self, serving: Serving, pinned: int | None) -> Read:
        """Routed as one request, however many rows it has."""
        position, reason, entity = serving.route.choose(self.entity_id, pinned)
        contract = contract_of(serving.lanes[position])
        inputs = self.inputs(contract)
        self.wanted(contract)
        self.weight = max((len(inputs[place]) for place in contract.growing), default=1)
        self.rows = len(inputs[0]) if contract.batched else 1
        if self.rows > self._most_rows:
            raise self._too_many(self.rows)
        if self._ids is not None and self.rows != self._ids:
            raise InvalidTensors(
                f"expected an entity id for each row, found {self._ids} for {self.rows} rows"
            )
        return position, reason, inputs, entity

    def inputs(self, contract: Contract) -> tuple[NDArray[Any], ...]:
        """The inputs of a version. Raises InvalidTensors."""
        return contract.take(self._given)

    def wanted(self, contract: Contract) -> Wanted:
        """The outputs of a version that were asked for. Raises InvalidTensors."""
        return contract.wanted(self._asked.outputs, binary=bool(self._asked.binary_output))

    def write(
        self,
        serving: Serving,
        position: int,
        reason: int,
        outputs: list[NDArray[Any]],
        entity: bytes | None,
        nanoseconds: int,
    ) -> bytes:
        """JSON, and behind it the outputs in binary."""
        wanted = self.wanted(contract_of(serving.lanes[position]))
        body, self.json_bytes = serving.route.write_tensors(
            position, reason, outputs, entity, nanoseconds, self.rows, self._asked.id, wanted
        )
        return body

    def blames(self, serving: Serving, position: int, error: TurnoutError) -> TurnoutError:
        """The request, where it chose sizes that the signature leaves open, or the runtime says so."""
        return self._blamed(error, open_shapes=contract_of(serving.lanes[position]).open)

    def _blamed(self, error: TurnoutError, *, open_shapes: bool) -> TurnoutError:
        if not isinstance(error, PredictionFailed) or isinstance(error, OutOfDeviceMemory):
            return error
        nothing = any(
            not array.size for _, array in self._given.values()
        )  # a size that the caller chose as well
        if not (open_shapes or error.refused or nothing):
            return error
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, (_, array) in self._given.items())
        return InvalidTensors(f"it does not take these tensors ({shapes}): {error.detail}")

    def refuse(self, error: TurnoutError) -> bytes:
        """The protocol's own form of an error."""
        self.json_bytes = 0
        return said(error.detail)

    # --- rows of several entities -------------------------------------------------------------------------------

    def work(self, job: Job) -> TensorRows:
        """Each row for its entity. Raises InvalidTensors where the inputs have no rows."""
        return TensorRows(self, job.serving, self.entity_ids or [], job.pinned)

    def check_outputs(self, serving: Serving, versions: list[int]) -> None:
        """Raise InvalidTensors where the outputs of some versions cannot be sent together."""
        contracts = [contract_of(serving.lanes[version]) for version in versions]
        for name, chosen in self._wanted_of(serving, versions):
            if name in ABOUT:
                continue
            found = {contract.outputs[contract.output(name)].datatype for contract in contracts}
            if len(found) > 1:
                raise apart(name, sorted(found))
            for contract in contracts:
                contract.wanted([(name, chosen)], binary=bool(self._asked.binary_output))

    def _wanted_of(self, serving: Serving, versions: list[int]) -> list[tuple[str, bool | None]]:
        """The outputs that are named, else those of the versions. Raises InvalidTensors where one lacks another's."""
        if self._asked.outputs:
            return list(self._asked.outputs)
        contracts = [contract_of(serving.lanes[version]) for version in versions]
        names = dict.fromkeys(tensor.name for contract in contracts for tensor in contract.outputs)
        for contract in contracts:
            for name in names:
                contract.output(name)
        return [(name, None) for name in names]

    def write_rows(self, job: Job, outcome: Outcome) -> bytes:
        """The answer to rows that were given to several versions, in their order."""
        serving = job.serving
        versions = [serving.labels[part.version] for part in outcome.parts]
        names = self._wanted_of(serving, [part.version for part in outcome.parts])
        binary = bool(self._asked.binary_output)
        outputs = [
            (*_column(job, outcome, name), binary if chosen is None else chosen) for name, chosen in names
        ]
        reasons = set(outcome.reasons.tolist())
        body, self.json_bytes = serving.route.write_many(
            versions[0] if len(versions) == 1 else None,
            REASONS[reasons.pop()] if len(reasons) == 1 else None,
            self._asked.id,
            outputs,
        )
        return body


class RawTensor(Tensors):
    """A request of which there is nothing but the bytes of its single input: a batch of one."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes, entity_id: str | None, most_rows: int) -> None:
        super().__init__(Raw(), {}, len(body), entity_id, most_rows)
        self._body = body

    def inputs(self, contract: Contract) -> tuple[NDArray[Any], ...]:
        """The body in the shape that is left. Raises InvalidTensors."""
        if len(contract.inputs) != 1:
            raise InvalidTensors(
                f"expected JSON in front of the tensors, as the model has {len(contract.inputs)} inputs"
            )
        tensor = contract.inputs[0]
        shape = list(tensor.shape)
        if contract.batched:
            shape[0] = 1
        free = [place for place, size in enumerate(shape) if size == VARIABLE]
        if len(free) > 1:
            raise InvalidTensors(
                f"expected JSON in front of the tensors, as input {tensor.name!r} has the shape {list(tensor.shape)}"
            )
        if tensor.datatype == "BYTES":
            values = _element(self._body, tensor.name)
        else:
            values = self._numbers(tensor.name, tensor.datatype)
        count = int(np.prod([size for size in shape if size != VARIABLE], dtype=np.int64))
        if free and count:
            shape[free[0]] = len(values) // count
            count *= shape[free[0]]
        if len(values) != count:
            raise InvalidTensors(
                f"input {tensor.name!r}: expected {count} elements of {tensor.datatype} for the shape {shape}, "
                f"found {len(values)}",
                feature=tensor.name,
            )
        self._given = {tensor.name: (tensor.datatype, values.reshape(shape))}
        return contract.take(self._given)

    def _numbers(self, name: str, datatype: str) -> NDArray[Any]:
        dtype = NUMPY_TYPES[datatype]
        if len(self._body) % dtype.itemsize:
            raise InvalidTensors(
                f"input {name!r}: expected elements of {dtype.itemsize} bytes, found {len(self._body)} bytes",
                feature=name,
            )
        found: NDArray[Any] = np.frombuffer(self._body, dtype)
        if datatype == "BOOL" and len(found) and found.view(np.uint8).max() > 1:
            raise InvalidTensors(f"input {name!r}: expected bytes of 0 and 1", feature=name)
        return found


class TensorRows:
    """The rows of a request, each for its entity: work for `BatchPredictor.run`."""

    def __init__(self, request: Tensors, serving: Serving, ids: Sequence[str], pinned: int | None) -> None:
        self._request = request
        self._serving = serving
        self.faults: list[TurnoutError] = []
        self._taken: dict[int, tuple[NDArray[Any], ...]] = {}
        if pinned is None:
            self.versions, self.reasons, self.entities = serving.route.assign_each(list(ids))
        else:
            self.versions = np.full(len(ids), pinned, np.int32)
            self.reasons = np.full(len(ids), PINNED, np.uint8)
            self.entities = None
        for version in set(self.versions.tolist()):
            self._inputs(version)  # before any of them runs
        request.check_outputs(serving, sorted(set(self.versions.tolist())))

    def take(
        self, version: int, rows: Rows, start: int, stop: int
    ) -> tuple[Sequence[NDArray[Any]], list[Any]]:
        """The rows of a version."""
        inputs = self._inputs(version)
        if len(rows) == len(self.versions):
            return [array[start:stop] for array in inputs], []
        return [array[rows[start:stop]] for array in inputs], []

    def pinned(self, version: int) -> TensorRows:
        """The same rows for one version."""
        return TensorRows(self._request, self._serving, [""] * len(self.versions), version)

    def blames(self, version: int, error: TurnoutError) -> TurnoutError:
        """The request, in the same cases as where it is about one entity."""
        return self._request.blames(self._serving, version, error)

    def _inputs(self, version: int) -> tuple[NDArray[Any], ...]:
        taken = self._taken.get(version)
        if taken is None:
            contract = contract_of(self._serving.lanes[version])
            taken = self._taken[version] = self._request.inputs(contract)
            if not contract.batched:
                raise InvalidTensors(
                    f"version {self._serving.labels[version]} does not take rows: expected one entity"
                )
            if len(taken[0]) != len(self.versions):
                raise InvalidTensors(
                    f"expected an entity id for each row, found {len(self.versions)} for {len(taken[0])} rows"
                )
        return taken


def apart(name: str, found: list[str]) -> InvalidTensors:
    """The error for an output that differs between the versions of an answer."""
    return InvalidTensors(
        f'output "{name}": the versions that answer these rows give {" and ".join(found)}; ask for them one by one',
        feature=name,
    )


def said(detail: str) -> bytes:
    """The body of a refusal in the protocol's form."""
    return msgspec.json.encode({"error": detail})


def _takes(serving: Serving, name: str) -> bool:
    return any(tensor.name == name for lane in serving.lanes for tensor in lane.version.signature.inputs)


def _ids_of(datatype: str, array: NDArray[Any]) -> list[str]:
    if datatype != "BYTES" or array.ndim not in {1, 2} or array.shape[1:] not in {(), (1,)}:
        raise InvalidTensors(
            f'input "{ENTITY}": expected BYTES of shape [N] or [N, 1], found {datatype} of {list(array.shape)}',
            feature=ENTITY,
        )
    return array.reshape(-1).tolist()


def _element(body: bytes, name: str) -> NDArray[Any]:
    """All of the body as one string."""
    values: NDArray[Any] = np.empty(1, np.object_)
    try:
        values[0] = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidTensors(f"input {name!r}: expected UTF-8: {error}", feature=name) from error
    return values


def _column(job: Job, outcome: Outcome, name: str) -> tuple[str, str, NDArray[Any]]:
    """An output of all rows: its name, its datatype, its values."""
    if name in ABOUT:
        return name, "BYTES", _about(job, outcome, name)
    pieces: list[tuple[str, Rows, NDArray[Any]]] = []
    for part in outcome.parts:
        contract = contract_of(job.serving.lanes[part.version])
        index = contract.output(name)
        pieces.append((contract.outputs[index].datatype, part.rows, part.outputs[index]))
    if len(pieces) == 1:
        return name, pieces[0][0], pieces[0][2]
    kinds = {(datatype, array.shape[1:]) for datatype, _, array in pieces}
    if len(kinds) > 1:
        raise apart(name, [f"{datatype} of {list(inner)} a row" for datatype, inner in sorted(kinds)])
    merged = np.empty((outcome.rows, *pieces[0][2].shape[1:]), pieces[0][2].dtype)
    for _, rows, array in pieces:
        merged[rows] = array
    return name, pieces[0][0], merged


def _about(job: Job, outcome: Outcome, name: str) -> NDArray[Any]:
    """Who answered each row, or why, or the receipt of its answer."""
    found: NDArray[Any] = np.empty(outcome.rows, np.object_)
    if name == VERSION:
        found[:] = [job.serving.labels[version] for version in outcome.assigned.tolist()]
    elif name == REASON:
        found[:] = [REASONS[reason] for reason in outcome.reasons.tolist()]
    else:
        for part in outcome.parts:
            found[part.rows] = _receipts(job, outcome, part)
    return found


def _receipts(job: Job, outcome: Outcome, part: Part) -> list[str]:
    entities = None if outcome.entities is None else outcome.entities[part.rows]
    return job.serving.route.sign_rows(part.version, outcome.reasons[part.rows], entities, part.outputs)
