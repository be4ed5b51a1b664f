"""Everything that the output depends on: decided once, written down, and found again by a run that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from turnout.answers import Job
from turnout.domain import Model, OnError, Runs, Test, Version, utc_now
from turnout.errors import Conflict, InvalidFeatures, NoActiveVersion
from turnout.router import ModelRecord, Serving, plan_of
from turnout.score.inputs import Format, Input
from turnout.score.source import Kind, Source, Wanted, column_index
from turnout.service import Turnout
from turnout.sessions import key_of

ENTITY = "entity_id"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was asked, and with what: another one gives another output."""

    model: str
    inputs: tuple[Input, ...]
    version: str | None
    entity: str | None
    keep: tuple[str, ...]
    on_error: OnError
    part_rows: int
    format: Format
    folder: bool
    turnout: str
    onnxruntime: str
    device: str
    intra_op_threads: int
    fallback: bool


class Routing(msgspec.Struct, frozen=True):
    """How the model routed when the run began: the versions that may answer by their digests, and who gets which."""

    model: Model
    versions: dict[str, str]
    test: Test | None
    runs: Runs | None
    overrides: dict[str, str]


class Manifest(msgspec.Struct, frozen=True):
    """The first thing that a run writes."""

    request: Request
    routing: Routing
    started_at: datetime


def begin(hub: Turnout, request: Request) -> Manifest:
    """Take the model as it is now. Raises ModelNotFound, VersionNotFound and NoActiveVersion."""
    job = hub.batches.job(request.model, request.version, request.on_error)
    record = job.serving.record
    if request.version is None and record.model.active is None and record.test is None:
        raise NoActiveVersion(f"model {request.model} has no active version: activate one, or name one")
    reached = [job.serving.lanes[index].version for index in job.reachable]
    versions = {version.version: version.artifact.sha256 for version in reached}
    if request.version is not None:
        head = msgspec.structs.replace(record.model, active=None, former=(), test_id=None)
        routing = Routing(model=head, versions=versions, test=None, runs=None, overrides={})
    else:
        head = msgspec.structs.replace(record.model, former=())
        overrides = dict(record.overrides)
        routing = Routing(
            model=head, versions=versions, test=record.test, runs=record.runs, overrides=overrides
        )
    return Manifest(request=request, routing=routing, started_at=utc_now())


def job_of(hub: Turnout, manifest: Manifest) -> Job:
    """What the manifest says, whatever has become of the model since.

    Raises Conflict where a version is gone or is another one now.
    """
    request, routing = manifest.request, manifest.routing
    found = {version.version: version for version in hub.list_versions(request.model)}
    for label, digest in routing.versions.items():
        if label not in found or found[label].artifact.sha256 != digest:
            raise Conflict(
                f"version {label} of model {request.model} is not what it was when the run began: start it anew"
            )
    versions = {label: version for label, version in found.items() if label in routing.versions}
    record = ModelRecord(routing.model, versions, routing.test, routing.runs, routing.overrides)
    serving = Serving(record, plan_of, key_of)
    pinned = None if request.version is None else serving.position(request.version)
    return Job(serving, pinned, request.on_error == "skip")


def differences(before: Request, now: Request) -> list[str]:
    """What is not as it was, in words."""
    said = [
        f"{name} was {getattr(before, name)!r} and is {getattr(now, name)!r}"
        for name in Request.__struct_fields__
        if name != "inputs" and getattr(before, name) != getattr(now, name)
    ]
    old, new = ({given.path: given for given in request.inputs} for request in (before, now))
    said += [f"{path} is not among the inputs any more" for path in old if path not in new]
    said += [f"{path} was not among the inputs" for path in new if path not in old]
    said += [f"{path} has changed" for path in old if path in new and old[path] != new[path]]
    if not said and before != now:
        said.append("the inputs are in another order")
    return said


# --- columns --------------------------------------------------------------------------------------------------------


def wanted_of(job: Job, sources: Sequence[Source], request: Request) -> Wanted:
    """The columns that are read, of which every file is found to have those that it must.

    Raises InvalidRequest and InvalidFeatures with the file and the column.
    """
    serving = job.serving
    reached = [serving.lanes[index].version for index in job.reachable]
    features = _kinds(reached)
    entity = _entity(sources, request.entity)
    for source in sources:
        if source.names is not None:
            _check(source, source.names, features, answering(job))
        for name in (*request.keep, *([entity] if entity is not None else [])):
            source.field(name, features)
    kept = tuple(sources[0].field(name, features) for name in request.keep) if sources else ()
    routed = job.pinned is None and (serving.split is not None or serving.record.overrides)
    return Wanted(features, entity if routed else None, kept)


def answering(job: Job) -> list[Version]:
    """The versions that have traffic: not targets of overrides alone, nor arms that wait for their ramp."""
    record = job.serving.record
    if job.pinned is not None:
        return [job.serving.lanes[job.pinned].version]
    arms = [] if record.test is None else [arm.version for arm in record.test.arms if arm.slots]
    labels = arms if record.test is not None else [record.model.active]
    return [job.serving.version(label) for label in labels if label is not None]


def _kinds(versions: Sequence[Version]) -> dict[str, Kind]:
    kinds: dict[str, set[Kind]] = {}
    for version in versions:
        if version.signature.layout == "tensors":
            raise InvalidFeatures(f"version {version.version} takes free tensors, not a row of features")
        for feature in version.features:
            if not feature.name:
                raise InvalidFeatures(
                    f"version {version.version} has features without names, which no column is called: register it "
                    "with the names of its features"
                )
            kind: Kind = "text" if feature.type in {"string", "category"} else feature.type  # pyright: ignore[reportAssignmentType]
            kinds.setdefault(feature.name, set()).add(kind)
    return {name: _one_kind(name, found) for name, found in kinds.items()}


def _one_kind(name: str, found: set[Kind]) -> Kind:
    if found <= {"float", "int"}:
        return "float" if "float" in found else "int"
    if len(found) > 1:
        raise InvalidFeatures(
            f"feature {name!r} is {' or '.join(sorted(found))}, depending on the version: name a version",
            feature=name,
        )
    return next(iter(found))


def _entity(sources: Sequence[Source], given: str | None) -> str | None:
    """The column of entity ids, by default `entity_id` where there is one."""
    if given is not None:
        return given
    known = [source.names for source in sources if source.names is not None]
    return ENTITY if not known or any(ENTITY in names for names in known) else None


def _check(source: Source, names: list[str], features: dict[str, Kind], answering: Sequence[Version]) -> None:
    for version in answering:
        for feature in version.features:
            if feature.name not in names and feature.default is None:
                raise InvalidFeatures(
                    f"{source.path}: feature {feature.name!r} of version {version.version} is missing and has no "
                    f"default; the columns are {', '.join(names)}",
                    feature=feature.name,
                )
    there = [name for name in features if name in names]
    if not there:
        raise InvalidFeatures(f"{source.path}: none of the columns is a feature: {', '.join(names)}")
    for name in there:
        column_index(source.path, names, name)


def describe(manifest: Manifest) -> dict[str, Any]:
    """What the sidecar says of the model and its test."""
    routing, test = manifest.routing, manifest.routing.test
    split = None if test is None else {"id": test.id, "salt": test.salt, "weights": test.weights}
    return {
        "model": manifest.request.model,
        "model_revision": routing.model.revision,
        "active": routing.model.active,
        "versions": routing.versions,
        "test": split,
        "ledger_revision": None if test is None else test.revision,
    }
