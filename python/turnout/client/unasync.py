"""Makes `turnout.client.sync` of `turnout.client.aio`: `python -m turnout.client.unasync` after each change there.

Names are replaced, and `async` and `await` left out; ruff sorts the imports and formats. Text is left as it is, so
docstrings must be true of both. Where the package cannot be imported any more, run this file itself.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tokenize
from pathlib import Path

SOURCE = Path(__file__).parent / "aio"
TARGET = Path(__file__).parent / "sync"
HEADER = "# Made of {} by `python -m turnout.client.unasync`: change that, and run it.\n"
BLOCKING = ("import asyncio\n", "from turnout.client import blocking\n")
NAMES = {
    "async": "",
    "await": "",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "AsyncConnection": "Connection",
    "AsyncMade": "Made",
    "AsyncIterator": "Iterator",
    "AsyncTrials": "Trials",
    "AsyncTurns": "Turns",
    "aclose": "close",
    "aio": "sync",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "asyncio": "blocking",
}


def unasynced(path: Path) -> str:
    """The same module without an event loop. Raises CalledProcessError where ruff finds no Python in it."""
    lines = path.read_text("utf-8").replace(*BLOCKING).splitlines(keepends=True)
    # From the end, so that what is still to be replaced stays where the tokens say.
    for token in reversed(list(tokenize.generate_tokens(io.StringIO("".join(lines)).readline))):
        new = NAMES.get(token.string) if token.type == tokenize.NAME else None
        if new is not None:
            (number, start), (_, end) = token.start, token.end
            line = lines[number - 1]
            rest = line[end:] if new else line[end:].lstrip(" ")
            lines[number - 1] = line[:start] + new + rest
    text = HEADER.format(f"{SOURCE.name}/{path.name}") + "".join(lines)
    return _ruff(_ruff(text, path.name, "check", "--select=I", "--fix", "--quiet"), path.name, "format")


def made() -> dict[Path, str]:
    """Every file of the client of threads, as it should be."""
    return {TARGET / path.name: unasynced(path) for path in sorted(SOURCE.glob("*.py"))}


def main() -> None:
    """Write them."""
    for path, text in made().items():
        path.write_text(text, "utf-8")


def _ruff(text: str, name: str, *words: str) -> str:
    command = [sys.executable, "-m", "ruff", *words, f"--stdin-filename={TARGET / name}", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout


if __name__ == "__main__":
    main()
