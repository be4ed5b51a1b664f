"""Registries without models: versions that only say what they are, for tests that run nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from turnout.domain import Artifact, ArtifactFile, Feature, Signature, Tensor, Version, utc_now
from turnout.records import Author
from turnout.registry import Registry

ME = Author("me", "because")
SIGNATURE = Signature(
    inputs=(Tensor("x", "float", (None, 2)),), outputs=(Tensor("score", "float", (None, 1)),), layout="matrix"
)


def artifact(content: str) -> Artifact:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Artifact(digest, (ArtifactFile("model.onnx", digest, len(content)),))


def version(model: str, label: str, content: str | None = None, **facts: Any) -> Version:
    return Version(
        model=model,
        version=label,
        artifact=artifact(content or f"{model}/{label}"),
        signature=SIGNATURE,
        features=(Feature("a"), Feature("b")),
        created_at=utc_now(),
        ordinal=0,
        **facts,
    )


def add(registry: Registry, model: str, *labels: str) -> None:
    for label in labels:
        registry.register(version(model, label), nothing, ME)


def nothing(*_: object) -> None:
    """What places or removes no files."""


def opened(data: Path) -> Registry:
    return Registry(data, map_size=256 * 1024)
