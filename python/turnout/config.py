"""Settings: each is declared once, as a field of `Settings`.

The TOML file, the `TURNOUT_*` variables, the flags of `turnout serve`, docs/settings.md and `turnout doctor` all derive
from these fields. What comes later wins: default, file, environment, flag.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from turnout.errors import InvalidRequest

PREFIX = "TURNOUT_"
DEVICES = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"
Source = Literal["default", "file", "environment", "flag"]

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Folder = Annotated[str, Meta(min_length=1)]
Device = Annotated[str, Meta(pattern=DEVICES)]


def setting(default: Any, doc: str, *, serve: bool = True) -> Any:  # noqa: ANN401
    """Declare one setting: its default and the sentence that documents it everywhere."""
    DOCS.append((doc, serve))
    return default


DOCS: list[tuple[str, bool]] = []


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting of Turnout, with its default; sizes in bytes, times in seconds."""

    data: Folder = setting("./data", "The data directory.")
    host: str = setting(
        "127.0.0.1", "The address to listen on. Anything but loopback opens the server to the network."
    )
    port: Port = setting(8000, "The port to listen on.")
    workers: Positive = setting(1, "Worker processes that serve requests.")
    interface: Literal["rsgi", "asgi"] = setting(
        "rsgi", "How Granian hands requests over; `asgi` takes a fifth more time for each."
    )
    affinity: Literal["auto", "on", "off"] = setting(
        "auto",
        "Whether the threads of a worker that pass requests on share one core; `auto`: where no other worker has it.",
    )
    device: Device = setting(
        "auto", "Where sessions run: `auto` (CUDA if it really works, else CPU), `cpu`, `cuda`, `cuda:N`."
    )
    intra_op_threads: Positive = setting(1, "Threads that one run of a model may use.")
    spinning: bool = setting(False, "Whether idle threads of a session spin; lower latency for a core each.")
    pool_threads: Positive = setting(
        4, "Threads of a worker that run the models too slow for the event loop."
    )
    inline_seconds: Seconds = setting(
        0.001, "A model whose warm run takes at most this long runs on the event loop."
    )
    on_demand_versions: Positive = setting(
        4, "Versions that nothing but pinned requests need, kept loaded in each worker."
    )
    fallback: bool = setting(True, "Whether the active version answers when another arm fails at run time.")
    max_in_flight: Positive = setting(1024, "Requests that one worker has in flight; more are answered 429.")
    max_body_bytes: Positive = setting(16 * 1024**2, "The largest body of a prediction or an admin call.")
    max_batches: Positive = setting(8, "Batches that one worker answers at once; more are answered 429.")
    max_batch_bytes: Positive = setting(
        128 * 1024**2, "The largest JSON document of a batch, and the largest message of an Arrow stream."
    )
    max_batch_rows: Positive = setting(1_000_000, "The most rows of a document or a message.")
    max_stream_bytes: Positive = setting(1024**4, "The most bytes of a batch that is answered as it comes.")
    max_stream_rows: Positive = setting(10**9, "The most rows of a batch that is answered as it comes.")
    max_artifact_bytes: Positive = setting(2 * 1024**3, "The largest model that is taken over HTTP.")
    probe_seconds: Seconds = setting(
        60.0, "How long a new model may take to load and run when it is registered."
    )
    probe_memory_bytes: Positive = setting(
        8 * 1024**3, "How much address space a new model may take when it is registered."
    )
    load_seconds: Seconds = setting(60.0, "How long a change waits for live workers to load a version.")
    change_seconds: Seconds = setting(5.0, "How long a change waits for live workers to serve it.")
    drain_seconds: Seconds = setting(
        1.0, "How long a stopping server answers readyz with 503 before it stops to listen."
    )
    stop_seconds: Positive = setting(
        20, "How long a stopping worker may finish its requests before it is killed."
    )
    flush_seconds: Seconds = setting(0.5, "How often a worker publishes its statistics.")
    exposure_seconds: Annotated[float, Meta(gt=0, le=0.25)] = setting(
        0.2, "How often a process writes down what the arms of running tests did; what a crash can lose."
    )
    controller: bool = setting(
        True, "Whether the workers follow the plans of running tests, one of them at a time."
    )
    controller_seconds: Annotated[float, Meta(gt=0, le=0.25)] = setting(
        0.1, "How often the controller looks at the guardrails of running tests."
    )
    outcome_days: Annotated[float, Meta(gt=0)] = setting(
        180.0, "How long single outcomes are kept. Counts of tests are kept as long as the test."
    )
    exposure_days: Annotated[float, Meta(gt=0)] = setting(
        180.0, "How long after the end of a test its single exposures are kept."
    )
    webhook_secret: str = setting(
        "",
        "Signs webhooks: 24 to 64 bytes in base64, with or without `whsec_`; by default one of the data directory.",
    )
    map_size: Positive = setting(256 * 1024**2, "First size of a database's memory map; it grows by itself.")
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "The least severe event that is logged."
    )
    log_predictions: bool = setting(False, "Whether each single prediction is logged.")


class Setting(msgspec.Struct, frozen=True):
    """One declared setting, as the documentation and `doctor` show it."""

    name: str
    kind: str
    default: Any
    doc: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The command-line flag that sets it."""
        return "--" + self.name.replace("_", "-")


def declared() -> tuple[Setting, ...]:
    """Every setting, in the order of declaration."""
    hints = get_type_hints(Settings)
    fields = msgspec.structs.fields(Settings)
    return tuple(
        Setting(name=field.name, kind=_kind(hints[field.name]), default=field.default, doc=doc)
        for field, (doc, _) in zip(fields, DOCS, strict=True)
    )


def _kind(hint: Any) -> str:  # noqa: ANN401
    choices = get_args(hint)
    return " | ".join(map(str, choices)) if choices else hint.__name__


class Resolved(msgspec.Struct, frozen=True):
    """Settings, and where each of them came from."""

    settings: Settings
    sources: dict[str, Source]


def resolve(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge default, TOML file, environment and flags (those that are not None) into settings.

    Raises:
        InvalidRequest: for a setting that does not exist or a value that does not fit, naming its source.
    """
    environment = os.environ if environment is None else environment
    names = Settings.__struct_fields__
    layers: list[tuple[Source, dict[str, Any]]] = [
        ("file", _from_file(file)),
        (
            "environment",
            {n: environment[PREFIX + n.upper()] for n in names if PREFIX + n.upper() in environment},
        ),
        ("flag", {name: value for name, value in (flags or {}).items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(names, "default")
    for source, layer in layers:
        for name, value in layer.items():
            values[name] = _checked(source, name, value)
            sources[name] = source
    return Resolved(Settings(**values), sources)


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make another process resolve the same settings."""
    return {
        PREFIX + name.upper(): msgspec.json.encode(value).decode().strip('"')
        if isinstance(value, bool)
        else str(value)
        for name, value in msgspec.structs.asdict(settings).items()
    }


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"settings file {file}: {error}") from error


def _checked(source: Source, name: str, value: object) -> Any:  # noqa: ANN401
    hints = get_type_hints(Settings, include_extras=True)
    if name not in hints:
        raise InvalidRequest(f"unknown setting {name!r} ({source}); see docs/settings.md")
    try:
        # `strict=False` reads the strings of the environment: "8000" as a number, "0" and "false" as false.
        return msgspec.convert(value, hints[name], strict=source == "file")
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"setting {name} ({source}): {error}, found {value!r}") from error
