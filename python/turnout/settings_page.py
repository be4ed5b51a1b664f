"""docs/settings.md, made from the one declaration of the settings: `python -m turnout.settings_page > docs/settings.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from turnout.config import Setting, declared

HEAD = """\
# Settings

<!-- Made by `python -m turnout.settings_page`; a test fails when this page is out of date. -->

Each setting is declared once, in `python/turnout/config.py`. It is a flag of `turnout serve` (`--max-in-flight 100`), a
variable, a keyword of `turnout.open()`, and a key of the TOML file that `turnout --config FILE` reads:

```toml
workers = 4
max_in_flight = 100
```

What comes later wins: default, file, environment, flag. `turnout doctor` shows each value and where it came from. Sizes
are in bytes, times in seconds. Variables read `true`, `false`, `1` and `0` as booleans.

| setting | variable | type | default | what it does |
|---|---|---|---|---|
"""


def page() -> str:
    """The page as Markdown."""
    return HEAD + "".join(map(_row, declared()))


def _row(setting: Setting) -> str:
    default = f"`{_literal(setting.default)}`"
    kind = setting.kind.replace("|", "\\|")
    return f"| `{setting.name}` | `{setting.variable}` | {kind} | {default} | {setting.doc} |\n"


def _literal(value: Any) -> str:  # noqa: ANN401
    """A value as TOML and JSON write it."""
    return msgspec.json.encode(value).decode()


def main(target: Path | None = None) -> None:
    """Write the page to a file, or to standard output."""
    if target is None:
        sys.stdout.write(page())
    else:
        target.write_text(page(), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
