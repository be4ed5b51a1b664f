"""The command line: the verbs of `Turnout` on a data directory or, with `--url`, on a running server."""

from __future__ import annotations

import sys

import click

from turnout.cli import experiment, outcomes, reads, releases, results, score, system
from turnout.cli.context import Context, common
from turnout.cli.text import plain
from turnout.errors import TurnoutError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@common
@click.version_option(package_name="turnout", message="%(prog)s %(version)s")
def turnout() -> None:
    """Serve versioned ONNX models and decide, for every prediction, which version answers it.

    Every command works on the local data directory (--data) or, with --url, on a running server.
    """


COMMANDS = (
    *system.COMMANDS,
    *releases.COMMANDS,
    *experiment.COMMANDS,
    results.results,
    *outcomes.COMMANDS,
    *reads.COMMANDS,
    *score.COMMANDS,
)
for command in COMMANDS:
    turnout.add_command(command)


def main() -> None:
    """Run the command line; an error is one line on standard error and exit status 1."""
    try:
        turnout(prog_name="turnout", obj=Context())
    except BrokenPipeError:
        # The reader of our output, `head` say, has seen enough.
        sys.stderr.close()
        sys.exit(0)
    except (TurnoutError, OSError) as error:
        click.echo(f"turnout: {plain(str(error))}", err=True)
        sys.exit(1)
