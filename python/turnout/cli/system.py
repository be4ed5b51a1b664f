"""Commands about the whole: serve, demo, export, import, doctor."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click
import msgspec

from turnout._core import __version__
from turnout.cli.context import Context, reason
from turnout.cli.show import answer, facts, table
from turnout.config import Setting, declared
from turnout.errors import InvalidDocument, StorageError

TAR_SUFFIX = ".tar"


@click.command(params=[])
@click.pass_obj
def serve(context: Context, **flags: Any) -> None:  # noqa: ANN401
    """Serve predictions and the admin API over HTTP until SIGTERM or Ctrl-C."""
    context.local("serve")
    from turnout.serve import run  # noqa: PLC0415 - Granian and Litestar, which no other command needs

    sys.exit(run(context.resolved(**flags).settings))


def _option(setting: Setting) -> click.Option:
    return click.Option(
        [setting.flag, setting.name],
        metavar=setting.kind.upper().replace(" ", ""),
        help=f"{setting.doc}  [{_shown(setting)}]",
    )


def _shown(setting: Setting) -> str:
    return (
        f"default: {str(setting.default).lower() if isinstance(setting.default, bool) else setting.default}"
    )


serve.params.extend(_option(setting) for setting in declared())


@click.command()
@click.option("--once", is_flag=True, help="End by itself after the story, and stop the server.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port."
)
@click.pass_obj
def demo(context: Context, once: bool, port: int) -> None:
    """Train two models, serve them, split traffic 80/20, promote, roll back; leave the server running."""
    context.local("demo")
    from turnout.demo import run  # noqa: PLC0415 - scikit-learn, which only the demo needs

    sys.exit(run(Path(context.data or "./demo-data"), port=port, once=once))


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def export_registry(context: Context, file: Path) -> None:
    """Write the registry to FILE: JSON, or with the model files where the name ends with .tar. `-` is the output."""
    with context.backend("exporting") as backend:
        if str(file) == "-":
            sys.stdout.buffer.write(_pretty(backend.export_registry()))
            return
        with _aside(file) as opened:
            archive = file.suffix == TAR_SUFFIX
            document = backend.export_registry(opened if archive else None)
            if not archive:
                opened.write(_pretty(document))
    names = [model["model"]["name"] for model in document["models"]]
    answer(context, {"file": str(file), "models": names}, f"{len(names)} models are in {file}")


def _pretty(document: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


@contextmanager
def _aside(file: Path) -> Generator[IO[bytes]]:
    """Write aside and rename, so that a broken export leaves nothing that looks whole."""
    aside = file.with_name(file.name + ".part")
    try:
        with aside.open("wb") as opened:
            yield opened
        aside.replace(file)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--replace", is_flag=True, help="Even where it ends a running test or changes a version.")
@reason
@click.pass_obj
def import_registry(context: Context, file: Path, replace: bool, reason: str) -> None:
    """Read an export back: JSON, a .tar with the model files, or the JSON export of PrisML. `-` is the input, as JSON."""
    with context.backend("importing", makes=True) as backend, click.open_file(str(file), "rb") as opened:
        source = opened if file.suffix == TAR_SUFFIX else _document(opened.read(), file)
        names = backend.import_registry(source, replace=replace, actor=context.actor, reason=reason)
    answer(context, {"models": names}, f"{len(names)} models are imported: {', '.join(names)}")


def _document(text: bytes, file: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidDocument(f"{file}: {error}") from error


@click.command()
@click.pass_obj
def doctor(context: Context) -> None:
    """Show devices and what CUDA would really run on, versions, limits, and where each setting comes from."""
    context.local("doctor")
    from turnout.engine import (  # noqa: PLC0415
        available_providers,
        cuda_status,
        resolve_device,
        runtime_version,
        tensorrt_status,
    )

    resolved = context.resolved()
    works, why = cuda_status()
    device = resolved.settings.device
    devices = {
        "providers listed": available_providers(),
        "CUDA works": works,
        "because": why,
        "TensorRT works": tensorrt_status()[0],
        f"device {device} means": resolve_device(device)
        if works or not device.startswith("cuda")
        else "an error",
    }
    data = Path(resolved.settings.data)
    machine = {
        "turnout": __version__,
        "python": platform.python_version(),
        "onnxruntime": runtime_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2**20} MiB",
        "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "data directory": str(data.resolve()),
        "is there": data.is_dir(),
        "can be written": os.access(data if data.exists() else data.absolute().parent, os.W_OK),
    }
    settings = [
        {"name": s.name, "value": getattr(resolved.settings, s.name), "source": resolved.sources[s.name]}
        for s in declared()
    ]
    answer(
        context,
        {"devices": devices, "machine": machine, "settings": settings},
        facts("devices", devices),
        facts("machine", machine),
        table("settings", ("setting", "value", "from"), [tuple(setting.values()) for setting in settings]),
    )


COMMANDS = (serve, demo, doctor, export_registry, import_registry)
