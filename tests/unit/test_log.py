from __future__ import annotations

import json
import subprocess
import sys

WRITE = "from turnout.log import enable, log\nenable('info')\nfor n in range(3): log('info', 'n', n=n, path=__import__('pathlib').Path('p'))\n"


def test_an_event_is_one_line_of_json() -> None:
    done = subprocess.run([sys.executable, "-c", WRITE], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["n"] for line in lines] == [0, 1, 2]
    assert lines[0]["event"] == "n"
    assert lines[0]["path"] == "p"


def test_a_log_that_nobody_reads_ends_nothing() -> None:
    code = f"import os, sys\nos.close(2)\n{WRITE}\nprint('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
