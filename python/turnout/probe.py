"""What a model file takes and gives, found by running it: in a process of its own, because a file may be hostile.

As a program, `python -m turnout.probe FILE DEVICE MEMORY WIDTH OPTIONS` prints the findings as one line of JSON.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from turnout.domain import Feature, FeatureType, Layout, SessionOptions, Signature, Tensor
from turnout.engine import (
    NUMPY_TYPES,
    Session,
    flatten,
    has_known_rows,
    open_session,
    rows_of,
    run_failure,
    signature_parts,
)
from turnout.errors import DeviceUnavailable, InvalidModel, OutOfDeviceMemory, TurnoutError

METADATA_KEY = "turnout.features"
MATRIX_TYPES = frozenset({"float", "double", "int32", "int64"})
COLUMN_TYPES = frozenset({"float", "double", "int32", "int64", "bool", "string"})
FEATURE_TYPES: dict[str, FeatureType] = {"string": "string", "bool": "bool", "int32": "int", "int64": "int"}
DIMENSIONS = 2
DEFAULT = SessionOptions()
PASSED_ON: dict[str, type[TurnoutError]] = {e.code: e for e in (DeviceUnavailable, OutOfDeviceMemory)}
"""What is no fault of the model."""


class Probe(msgspec.Struct, frozen=True, tag=True):
    """What a probe found: the signature, and the features that the model names in its own metadata."""

    signature: Signature
    features: tuple[str | Feature, ...] | None = None


class _Refusal(msgspec.Struct, frozen=True, tag=True):
    code: str
    detail: str


def probe_file(
    path: Path,
    *,
    device: str,
    seconds: float,
    memory_bytes: int,
    width: int | None = None,
    options: SessionOptions = DEFAULT,
) -> Probe:
    """Load and run a model file in a child process, bounded in time and address space.

    `width` is the number of features, for a matrix that leaves it open, `options` are those of the version.

    Raises:
        InvalidModel: for what is no model, cannot run, takes too long, or ends the child.
        DeviceUnavailable: a strict device cannot be had.
        OutOfDeviceMemory: the device has not enough memory left.
    """
    command = [
        sys.executable,
        "-m",
        "turnout.probe",
        os.fspath(path),
        device,
        str(memory_bytes),
        str(width or 0),
        msgspec.json.encode(options).decode(),
    ]
    home = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidModel(f"the model did not load and run within {seconds:g} s") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise InvalidModel(f"onnxruntime was ended by {name} when it loaded or ran the model")
    try:
        found = msgspec.json.decode(done.stdout, type=Probe | _Refusal) if done.returncode == 0 else None
    except msgspec.DecodeError:
        found = None
    if found is None:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise InvalidModel(f"the model could not be loaded and run: {last[0]}")
    if isinstance(found, _Refusal):
        raise PASSED_ON.get(found.code, InvalidModel)(found.detail)
    return found


def features_for(probe: Probe, given: Sequence[str | Feature] | None) -> tuple[Feature, ...]:
    """The feature schema: from the call, else the model's metadata, else the names of its columns.

    A matrix without names gets features named "", which take lists of numbers only.
    Raises InvalidModel where it does not fit the inputs.
    """
    signature = probe.signature
    chosen = given if given is not None else probe.features
    if signature.layout == "tensors":
        if chosen:
            raise InvalidModel("this model takes free tensors, which have no features")
        return ()
    if chosen is None:
        chosen = _from_inputs(signature)
    features = tuple(feature if isinstance(feature, Feature) else Feature(feature) for feature in chosen)
    _check(signature, features)
    return features


def _from_inputs(signature: Signature) -> list[Feature]:
    if signature.layout == "columns":
        return [
            Feature(tensor.name, "string" if tensor.dtype == "string" else "float")
            for tensor in signature.inputs
        ]
    tensor = signature.inputs[0]
    width = tensor.shape[1]
    if width is None:
        raise InvalidModel(
            f"input {tensor.name!r} has shape {_shape(tensor)}: give the names of its features"
        )
    return [Feature("")] * width


def _check(signature: Signature, features: tuple[Feature, ...]) -> None:
    names = [feature.name for feature in features if feature.name]
    if names and len(names) < len(features):
        raise InvalidModel(
            "some features have names and others have none; a version names all of them or none"
        )
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InvalidModel(f"feature {min(twice)!r} is there twice")
    first = signature.inputs[0]
    expected = len(signature.inputs) if signature.layout == "columns" else first.shape[1]
    if expected is not None and expected != len(features):
        raise InvalidModel(f"input {first.name!r} takes {expected} features, found {len(features)}")
    tensors = signature.inputs if signature.layout == "columns" else [first] * len(features)
    for feature, tensor in zip(features, tensors, strict=True):
        _check_type(feature, tensor)


def _check_type(feature: Feature, tensor: Tensor) -> None:
    text = tensor.dtype == "string"
    if (feature.type == "string" and not text) or (text and feature.type not in {"string", "category"}):
        raise InvalidModel(
            f"feature {feature.name!r} is a {feature.type}, but input {tensor.name!r} takes {tensor.dtype}"
        )
    if feature.type == "category" and (not feature.values or len(set(feature.values)) < len(feature.values)):
        raise InvalidModel(f"feature {feature.name!r}: a category needs a list of distinct values")
    if feature.nullable and (feature.type != "float" or tensor.dtype not in {"float", "double"}):
        raise InvalidModel(f"feature {feature.name!r}: only floats can be null (NaN)")
    default = feature.default
    if default is not None and not _fits(feature, default):
        raise InvalidModel(f"feature {feature.name!r}: the default {default!r} is no {feature.type}")


def _fits(feature: Feature, default: object) -> bool:
    number = isinstance(default, int | float) and not isinstance(default, bool)
    return {
        "float": number,
        "int": isinstance(default, int) and not isinstance(default, bool),
        "bool": isinstance(default, bool),
        "string": isinstance(default, str),
        "category": default in feature.values,
    }[feature.type]


# --- inside the child process ---------------------------------------------------------------------------------------


def examine(path: Path, device: str, width: int, options: SessionOptions = DEFAULT) -> Probe:
    """Load a model, run it with 1 and with 3 rows, and describe it.

    Made-up numbers that free tensors do not take say nothing of the model: it is described by its graph then.
    """
    session = open_session(path, device=device, options=options)
    inputs, outputs, metadata = signature_parts(session)
    taken = tuple(
        Tensor(node.name, _element(node.type, node.name), _dimensions(node.shape)) for node in inputs
    )
    if not taken:
        raise InvalidModel("the model has no inputs")
    layout = layout_of(taken, outputs)
    features = _named(metadata.get(METADATA_KEY))
    signature = Signature(inputs=taken, outputs=(), layout=layout)
    width = width or len(features or ())
    found = _runs(session, signature, width)
    given = tuple(
        Tensor(node.name, *_describe(node, [run[position] for run in found]))
        for position, node in enumerate(outputs)
    )
    return Probe(Signature(inputs=taken, outputs=given, layout=layout), features)


def layout_of(inputs: Sequence[Tensor], outputs: Iterable[Any]) -> Layout:
    """One `[N, F]` matrix, `[N, 1]` columns, or free tensors; the latter too where an output has no numbers for JSON."""
    if any(node.type == "tensor(bfloat16)" for node in outputs):
        return "tensors"
    if all(_is_column(tensor) for tensor in inputs):
        return "columns"
    first = inputs[0]
    if len(inputs) == 1 and first.dtype in MATRIX_TYPES and _takes_rows(first):
        return "matrix"
    return "tensors"


def _is_column(tensor: Tensor) -> bool:
    return tensor.dtype in COLUMN_TYPES and _takes_rows(tensor) and tensor.shape[1] == 1


def _takes_rows(tensor: Tensor) -> bool:
    return len(tensor.shape) == DIMENSIONS and tensor.shape[0] in {None, 1} and tensor.shape[1] != 0


def _row_counts(signature: Signature, width: int) -> tuple[int, ...]:
    """How many rows to run with; none for tensors whose free dimensions mean something that only the model knows."""
    if not has_known_rows(signature):
        return ()
    if signature.layout == "matrix" and signature.inputs[0].shape[1] is None and not width:
        tensor = signature.inputs[0]
        raise InvalidModel(
            f"input {tensor.name!r} has shape {_shape(tensor)}: give the names of its features"
        )
    return (1, 3) if all(tensor.shape[:1] == (None,) for tensor in signature.inputs) else (1,)


def _runs(session: Session, signature: Signature, width: int) -> list[list[Any]]:
    """The outputs of each run; free tensors may have fewer of them."""
    found: list[list[Any]] = []
    for rows in _row_counts(signature, width):
        try:
            found.append(_run(session, signature, rows, width))
        except InvalidModel:
            if signature.layout != "tensors":
                raise
            break
    return found


def _run(session: Session, signature: Signature, rows: int, width: int) -> list[Any]:
    taken = rows_of(signature, rows, width=width)
    feed = {tensor.name: array for tensor, array in zip(signature.inputs, taken, strict=True)}
    try:
        outputs: Any = session.call(session.outputs, feed, None)  # as they come, with their maps
    except Exception as error:
        if isinstance(failure := run_failure(error, session.device), OutOfDeviceMemory):
            raise failure from error
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise InvalidModel(f"the model does not run with {rows} rows ({shapes}): {error}") from error
    if signature.layout != "tensors":
        for name, output in zip(session.outputs, outputs, strict=True):
            _check_rows(name, flatten(output)[0], rows)
    return outputs


def _check_rows(name: str, output: Any, rows: int) -> None:  # noqa: ANN401
    if output.ndim and output.shape[0] != rows:
        raise InvalidModel(
            f"output {name!r}: expected {rows} rows for {rows} rows, found shape {list(output.shape)}"
        )


def _describe(node: Any, runs: list[Any]) -> tuple[str, tuple[int | None, ...], tuple[Any, ...]]:  # noqa: ANN401
    """Element type, shape and classes of an output, from what it gave where the graph does not say."""
    if node.type.startswith("tensor("):
        shape = _dimensions(node.shape)
        if not shape and runs:  # a scalar, or the graph does not say
            shape = (None,) * runs[0].ndim
        return _element(node.type, node.name), shape, ()
    if not node.type.startswith("seq(map(") or not runs:
        raise InvalidModel(
            f"output {node.name!r} is a {node.type}: expected a tensor or a sequence of maps (ZipMap)"
        )
    values, classes = flatten(runs[0])
    return "float", (None, values.shape[1]), classes


def _element(kind: str, name: str) -> str:
    element = kind.removeprefix("tensor(").removesuffix(")")
    if element not in NUMPY_TYPES:
        raise InvalidModel(f"{name!r} is a {kind}: expected a tensor of {', '.join(NUMPY_TYPES)}")
    return element


def _dimensions(shape: Iterable[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) and size >= 0 else None for size in shape)


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in tensor.shape) + "]"


def _named(text: str | None) -> tuple[str | Feature, ...] | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=tuple[str | Feature, ...])
    except msgspec.DecodeError as error:
        raise InvalidModel(
            f"the metadata {METADATA_KEY!r} of the model is no list of features: {error}"
        ) from error


def main(arguments: Sequence[str]) -> None:
    """Examine one file, within limits, and print what was found."""
    path, device, memory, width, options = arguments
    if device == "cpu":
        # A CUDA context reserves far more address space than memory, so only the CPU can be held to a limit.
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    result: msgspec.Struct
    try:
        result = examine(Path(path), device, int(width), msgspec.json.decode(options, type=SessionOptions))
    except TurnoutError as error:
        result = _Refusal(error.code, error.detail)
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main(sys.argv[1:])
