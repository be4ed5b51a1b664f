"""A process that scores: it says which parts it answers, and can be made to die at a certain call to the kernel.

    scorer.py DATA MODEL IN OUT LOG PART_ROWS [FIRST STEP]

With FIRST, children are forked that die at their FIRST, FIRST + STEP ... call that changes the disk, each followed by
one that goes on; the outputs are OUT with the number of the call in front of its suffix.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from turnout import open as open_hub
from turnout.score import run as scoring
from turnout.score.running import Options

CHANGES = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir")


def main(data: str, model: str, source: str, out: str, log: str, part_rows: int, call: int = 0) -> None:
    """Score, going on where another one was killed; die at a call, if it is given."""
    written = scoring.Work.write

    def write(self: Any, number: int, answered: Any) -> None:
        with open(log, "a", buffering=1) as file:  # noqa: PTH123 - kept open for one line
            file.write(f"{number}\n")
        written(self, number, answered)

    scoring.Work.write = write
    options = Options(part_rows=part_rows, threads=2, resume=True, keep=("row",))
    with open_hub(data) as hub:
        if call:
            dying(call)
        scoring.score(hub, model, [source], out, options)


def dying(call: int) -> None:
    """From now on, the `call`th change of the disk kills this process instead."""
    left = call

    def counted(what: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **words: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return what(*arguments, **words)

        return wrapper

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def forked(work: Callable[[], None]) -> int:
    """Run it in a child; how that ended."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        work()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - the child must not go on as the parent
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def everywhere(arguments: tuple[str, str, str, str, str, int], first: int, step: int) -> None:
    """Die at each of the calls in turn, until none is left to die at."""
    data, model, source, out, log, part_rows = arguments
    call = first
    while True:
        target = str(Path(out).with_name(f"{Path(out).stem}-{call}{Path(out).suffix}"))
        target += "/" if out.endswith("/") else ""
        status = forked(partial(main, data, model, source, target, log, part_rows, call))
        if status == 0:
            print(call)
            return
        goes_on = partial(main, data, model, source, target, log, part_rows)
        if os.WTERMSIG(status) != signal.SIGKILL or forked(goes_on):
            sys.exit(f"at call {call}: status {status}")
        call += step


if __name__ == "__main__":
    *names, rows = sys.argv[1:7]
    if len(sys.argv) > 7:
        everywhere((*names, int(rows)), int(sys.argv[7]), int(sys.argv[8]))  # type: ignore[arg-type]
    else:
        main(*names, int(rows))
