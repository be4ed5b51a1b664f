"""What every command knows: where the data is, how to answer, and who asks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from turnout.cli.text import plain
from turnout.client import Client
from turnout.config import Resolved, resolve
from turnout.errors import StorageError
from turnout.service import Turnout, user_name

F = TypeVar("F", bound=Callable[..., Any])
Backend = Turnout | Client


class Context:
    """The options that come before the command."""

    def __init__(self) -> None:
        self.config: Path | None = None
        self.data: str | None = None
        self.url: str | None = None
        self.json = False
        self.actor: str = user_name()
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.errors = Console(stderr=True, highlight=False)

    def resolved(self, **flags: Any) -> Resolved:  # noqa: ANN401
        """The settings, and where each comes from."""
        given = {name: value for name, value in flags.items() if value is not None}
        return resolve(self.config, flags={"data": self.data, **given})

    @contextmanager
    def backend(self, doing: str = "", *, makes: bool = False) -> Generator[Backend]:
        """The data directory or the server; meanwhile a terminal shows what is being done.

        Unless the command `makes` a directory, one that is not there is an error: it was mistyped.
        """
        opened = self._opened(makes) if self.url is None else Client(self.url, actor=self.actor)
        with opened, self.progress(doing):
            yield opened

    def _opened(self, makes: bool) -> Turnout:
        settings = self.resolved().settings
        folder = Path(settings.data).expanduser()
        if not makes and not folder.is_dir():
            raise StorageError(
                f"there is no data directory {folder.absolute()}; --data says where it is, and register, import and "
                "serve make one"
            )
        return Turnout(settings)

    @contextmanager
    def progress(self, doing: str) -> Generator[None]:
        """Say on a terminal what is being done, for as long as it takes."""
        if doing and self.errors.is_terminal and not self.json:
            with self.errors.status(Text(f"{plain(doing)} …")):
                yield
        else:
            yield

    def local(self, command: str) -> None:
        """Raise a usage error where `--url` makes no sense."""
        if self.url is not None:
            raise click.UsageError(f"{command} works on this machine, not on a server: leave out --url")


def common(function: Callable[[], None]) -> Any:  # noqa: ANN401
    """The options that come before the command."""

    @click.option("--data", metavar="DIR", help="The data directory.  [default: ./data, or TURNOUT_DATA]")
    @click.option(
        "--url", metavar="URL", envvar="TURNOUT_URL", help="A running server, instead of a directory."
    )
    @click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document, for machines.")
    @click.option("--actor", metavar="NAME", help="Who makes changes, for the audit log.  [default: you]")
    @click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A TOML file of settings.",
    )
    @click.pass_obj
    @functools.wraps(function)
    def wrapper(
        context: Context,
        data: str | None,
        url: str | None,
        as_json: bool,
        actor: str | None,
        config: Path | None,
    ) -> None:
        if url == "":
            raise click.UsageError("--url is empty")
        context.data, context.url, context.json, context.config = data, url, as_json, config
        context.actor = actor or context.actor
        function()

    return wrapper


def reason(function: F) -> F:
    """The option that says why, for the audit log."""
    return click.option(
        "--reason", "-m", default="", metavar="TEXT", help="Why, for the audit log and the history."
    )(function)
