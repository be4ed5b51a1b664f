"""Who may import whom. The direction of imports is the architecture; this test is what keeps it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "turnout"

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "log": set(),
    "plans": {"errors"},
    "domain": {"errors", "plans"},
    "affinity": set(),
    "config": {"errors"},
    "settings_page": {"config"},
    "forks": set(),
    "store": {"errors", "forks"},
    "beacon": {"errors", "forks"},
    "artifacts": {"domain", "errors", "forks"},
    "records": {"domain", "errors", "router", "store"},
    "transitions": {"_core", "domain", "errors", "plans", "records"},
    "registry": {"beacon", "domain", "errors", "log", "plans", "records", "router", "store", "transitions"},
    "documents": {"_core", "artifacts", "domain", "errors", "plans", "records", "router", "transitions"},
    "archives": {"artifacts", "documents", "domain", "errors"},
    "interchange": {"artifacts", "documents", "domain", "errors", "records", "registry"},
    "external": {"errors"},
    "warmup": {"errors"},
    "engine": {"domain", "errors", "warmup"},
    "probe": {"domain", "engine", "errors"},
    "router": {"_core", "contracts", "domain", "errors"},
    "sessions": {"domain", "engine", "errors", "forks"},
    "locks": {"errors"},
    "renewable": {"errors", "forks", "locks", "store"},
    "runtime": {"beacon", "domain", "errors", "forks", "locks", "renewable", "store"},
    "telemetry": {"_core", "domain", "errors", "forks", "runtime"},
    "live": {
        "affinity",
        "artifacts",
        "config",
        "domain",
        "engine",
        "errors",
        "forks",
        "log",
        "registry",
        "router",
        "sessions",
    },
    "plain": {"errors"},
    "tables": {"_core", "errors", "plain", "router"},
    "answers": {"domain", "errors", "router", "tables"},
    "ipc": {"errors"},
    "streams": {"answers", "batch", "domain", "errors", "ipc", "tables"},
    "batch": {"_core", "answers", "domain", "engine", "errors", "log", "router", "tables", "telemetry"},
    "bundle": {
        *("answers", "archives", "artifacts", "batch", "config", "documents", "domain", "engine", "errors"),
        *("log", "router", "sessions", "telemetry"),
    },
    "cluster": {"answers", "bundle", "domain", "errors", "tables"},
    "ray": {"bundle", "cluster", "domain", "tables"},
    "dask": {"bundle", "cluster", "domain"},
    "contracts": {"domain", "errors"},
    "dialects": {"errors", "router"},
    "inference": {"_core", "answers", "contracts", "dialects", "domain", "errors", "router"},
    "copies": {"affinity", "dialects", "domain", "errors", "experiment", "forks", "live", "log", "router"},
    "prediction": {
        "_core",
        "copies",
        "dialects",
        "domain",
        "engine",
        "errors",
        "live",
        "log",
        "router",
        "telemetry",
    },
    "worker": {"config", "errors", "live", "log", "registry", "runtime", "telemetry"},
    "reports": {"_core", "domain", "errors", "registry", "router", "telemetry"},
    "experiment": {
        *(
            "_core",
            "config",
            "domain",
            "errors",
            "experiment",
            "forks",
            "log",
            "plans",
            "records",
            "registry",
        ),
        *("router", "store", "tables", "telemetry"),
    },
    "changes": {"records", "registry"},
    "trials": {"changes", "domain", "errors", "experiment", "plans", "records", "router"},
    "repository": {"changes", "domain", "errors", "live", "router", "runtime"},
    "service": {
        *("copies", "experiment", "plans", "repository", "trials"),
        *(
            "_core",
            "affinity",
            "answers",
            "archives",
            "artifacts",
            "bundle",
            "config",
            "documents",
            "domain",
            "errors",
            "external",
            "interchange",
            "live",
            "log",
        ),
        *(
            "plain",
            "prediction",
            "batch",
            "probe",
            "records",
            "registry",
            "reports",
            "router",
            "runtime",
            "telemetry",
            "worker",
        ),
    },
    "score": {
        *(
            "_core",
            "answers",
            "batch",
            "domain",
            "engine",
            "errors",
            "router",
            "service",
            "sessions",
            "tables",
        )
    },
    "api": {
        *("_core", "contracts", "dialects", "inference"),
        "affinity",
        "api",
        "config",
        "domain",
        "errors",
        "engine",
        "experiment",
        "ipc",
        "log",
        "plans",
        "prediction",
        "router",
        "service",
        "streams",
    },
    "serve": {"affinity", "api", "config", "domain", "errors", "log", "service", "store"},
    "client": {"domain", "errors", "experiment", "plain", "plans"},
    "demo": {"client", "config", "domain", "errors", "experiment", "plans", "service"},
    "cli": {
        "_core",
        "engine",
        "api",
        "cli",
        "client",
        "config",
        "demo",
        "domain",
        "errors",
        "experiment",
        "plans",
        "score",
        "serve",
        "service",
    },
    "__init__": {
        *(
            "answers",
            "_core",
            "batch",
            "bundle",
            "config",
            "domain",
            "errors",
            "experiment",
            "plans",
            "service",
        )
    },
    "__main__": {"cli"},
}

ONLY_IN = {
    "litestar": {"api"},
    "onnxruntime": {"engine"},
    "lmdb": {"store"},
    "granian": {"api", "serve"},
    "dask": {"dask"},
}


def modules() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, as a dotted name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            module = node.module or ""
            names.update(f"{module}.{alias.name}" if module == "turnout" else module for alias in node.names)
    return names


def test_there_is_something_to_look_at() -> None:
    assert {"service", "router", "registry"} <= {name for name, _ in modules()}


@pytest.mark.parametrize(("name", "path"), modules(), ids=str)
def test_imports_point_the_right_way(name: str, path: Path) -> None:
    assert name in ALLOWED, (
        f"{path} has no place in the house: add it to this table, or to a file that has one"
    )
    ours = {dotted.split(".")[1] for dotted in imported(path) if dotted.startswith("turnout.")}
    assert ours - {name} <= ALLOWED[name]


@pytest.mark.parametrize(("library", "homes"), ONLY_IN.items())
def test_a_library_has_one_home(library: str, homes: set[str]) -> None:
    users = {name for name, path in modules() if any(i.split(".")[0] == library for i in imported(path))}
    assert users == homes
