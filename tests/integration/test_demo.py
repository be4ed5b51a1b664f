"""The demo, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_demo_tells_its_story_and_ends(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "turnout",
        "--data",
        str(tmp_path / "demo"),
        "demo",
        "--once",
        "--port",
        "0",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "COLUMNS": "140"},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout, "control characters reached something that is no terminal"
    shares = dict(re.findall(r"│ (v\d-\w+) +│ +\d+ │ +([\d.]+)%", done.stdout))
    assert shares["v2-boosting"] == "100.0", "after the promotion every request went to the winner"
    split = re.search(r"│ v1-logistic │ +1\d{3} │ +([\d.]+)% │", done.stdout)
    assert split is not None
    assert 75 < float(split[1]) < 85
    judged = dict(re.findall(r"│ (v\d-\w+) +│ +\d+ │ +(0\.9\d\d) │ +0\.9", done.stdout))
    assert set(judged) == {"v1-logistic", "v2-boosting"}
    assert re.search(
        r"recommendation: (keep_running|promote|roll_back|no_difference)\. .*diagnosis", done.stdout
    )
    assert re.search(r"every worker serves v1-logistic again after [\d.]+ ms", done.stdout)
    for action in ("register", "activate", "configure_test", "promote", "rollback"):
        assert action in done.stdout
    assert (tmp_path / "demo" / "data" / "registry.lmdb").is_file()
