"""Taking a document into a registry: all of it or nothing, and nothing that is here is lost unless told to.

Also reads the exports of PrisML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from turnout.artifacts import Artifacts, Staged
from turnout.documents import Document, ModelDocument, model_of
from turnout.domain import Test, Version
from turnout.errors import ImportConflict, InvalidDocument
from turnout.records import Author, Committed, Records
from turnout.registry import Registry


def restore(
    registry: Registry,
    document: Document,
    artifacts: Artifacts,
    staged: Mapping[str, Staged],
    *,
    overwrite: bool,
    author: Author,
) -> Committed:
    """Make the models of a document what it says they are, in one change. The value is the list of their names.

    Unless `overwrite` is set nothing that is here may be lost: raises ImportConflict where a version, a test (running
    or not), an override or a deployment is here and not, or differently, in the document. Raises InvalidDocument
    where model files are neither here nor in `staged`, by digest.
    """

    def change(r: Records) -> Committed:
        changed = [model for model in document.models if _differs(r, model, overwrite=overwrite)]
        missing = [
            digest
            for digest, it in document.artifacts.items()
            if digest not in staged and not artifacts.has(it)
        ]
        if missing:
            raise InvalidDocument(
                f"model files are neither here nor in the import: {', '.join(missing)}; export with the model files"
            )
        for files in staged.values():
            files.place()
        committed = Committed([], None, r.generation)
        for model in changed:
            committed = _write(r, model, author)
        return committed._replace(value=[model.model.name for model in document.models])

    before = registry.read(lambda r: r.digests())
    try:
        return registry.rewrite(change)
    finally:
        # Those that the import has replaced, or brought in vain.
        registry.collect({*before, *staged}, artifacts.remove)


def _differs(r: Records, there: ModelDocument, *, overwrite: bool) -> bool:
    """Whether the model is another one here, but for its revision; raises ImportConflict if it may not be changed."""
    head = r.find(there.model.name)
    if head is None:
        return True
    here = model_of(r, head)
    if replace(here, model=replace(head, revision=there.model.revision)) == there:
        return False
    if not overwrite:
        _check_kept(here, there)
    return True


def _check_kept(here: ModelDocument, there: ModelDocument) -> None:
    name = here.model.name
    running = next((test for test in here.tests if test.status == "running"), None)
    if running is not None and running not in there.tests:
        raise ImportConflict(
            f"model {name}: the import would break running test {running.id}; stop it, or replace"
        )
    stays = {stay.since: stay for stay in there.deployments}
    kept = {
        "versions": set(_texts(here.versions)) <= set(_texts(there.versions)),
        "tests": set(_texts(here.tests)) <= set(_texts(there.tests)),
        "overrides": here.overrides.items() <= there.overrides.items(),
        "deployments": all(
            stay.since in stays and stay.version == stays[stay.since].version for stay in here.deployments
        ),
    }
    lost = [kind for kind, whole in kept.items() if not whole]
    if lost:
        raise ImportConflict(
            f"model {name}: the import would change or lose {', '.join(lost)}; say replace to let it"
        )


def _texts(parts: tuple[Version, ...] | tuple[Test, ...]) -> Iterator[bytes]:
    return (msgspec.json.encode(part, order="deterministic") for part in parts)


def _write(r: Records, document: ModelDocument, author: Author) -> Committed:
    name = document.model.name
    here = r.find(name)
    r.erase(name)
    for version in document.versions:
        r.put_version(version)
    for test in document.tests:
        r.put_test(test)
    for ledger in document.ledgers:
        r.put_ledger(name, ledger)
    for entity, label in document.overrides.items():
        r.put_override(name, entity, label)
    for stay in document.deployments:
        r.put_deployment(name, stay)
    # The number of a test that was here stands for what was counted then, and may not be given again.
    model = document.model
    if here is not None and here.tests_started > model.tests_started:
        model = replace(model, tests_started=here.tests_started)
    # A revision that somebody has read may not come back with other content.
    revision = document.model.revision if here is None else max(document.model.revision, here.revision + 1)
    return r.commit("import", author, here, model, None, revision=revision)


# --- coming from PrisML ---------------------------------------------------------------------------------------------


class PrismlVersion(msgspec.Struct, frozen=True, rename="camel"):
    """One version as PrisML exports it; `model_path` is a file of the machine that exported it."""

    version: str
    model_path: str
    created_at: datetime | None = None
    accuracy: float | None = None
    metrics: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    is_active: bool = False
    deployed_at: datetime | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """The metrics that are numbers."""
        return {name: float(value) for name, value in self.metrics.items() if isinstance(value, int | float)}


def is_prisml(data: Any) -> bool:  # noqa: ANN401
    """Whether plain JSON data looks like an export of PrisML: an object from model name to a list of versions."""
    if not isinstance(data, dict) or "format" in data or not data:
        return False
    return all(isinstance(entries, list) for entries in data.values())


def parse_prisml(data: Any) -> dict[str, list[PrismlVersion]]:  # noqa: ANN401
    """Versions by model. Raises InvalidDocument, which names every model file that is missing."""
    try:
        models = msgspec.convert(data, dict[str, list[PrismlVersion]])
    except msgspec.ValidationError as error:
        raise InvalidDocument(f"the document is no export of PrisML: {error}") from error
    missing = [
        str(Path(v.model_path).absolute())
        for versions in models.values()
        for v in versions
        if not Path(v.model_path).is_file()
    ]
    if missing:
        raise InvalidDocument(
            f"model files that the document names are missing: {', '.join(sorted(set(missing)))}"
        )
    for name, versions in models.items():
        if sum(version.is_active for version in versions) > 1:
            raise InvalidDocument(f"model {name!r} of the document has more than one active version")
    return models
