"""Cores for workers: each case in a process of its own, since what it does is for the rest of a process's life."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

pytestmark = pytest.mark.skipif(
    len(CORES) < 2, reason="needs two cores, and a system that tells threads apart"
)

START = """
import os, sys, threading
from pathlib import Path
from turnout import affinity
def where(): return sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0) == os.SCHED_BATCH
def elsewhere(work):
    found = []
    thread = threading.Thread(target=lambda: (work(), found.append(where())))
    thread.start(); thread.join()
    return found[0]
"""


def said(script: str, quota: Path | None = None) -> str:
    limit = f"affinity.QUOTA = Path({str(quota)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", START + limit + script], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


def test_as_many_workers_as_cores_have_one_each() -> None:
    for index, core in enumerate(CORES[:2]):
        script = f"print(affinity.settle({index}, {len(CORES)}, 'auto'), where())"
        assert said(script) == f"{core} ([{core}], True)"


def test_threads_stay_with_the_one_that_starts_them_unless_they_roam() -> None:
    script = "affinity.settle(0, 1, 'on'); print(elsewhere(lambda: None), elsewhere(affinity.roam), affinity.cores())"
    assert said(script) == f"([{CORES[0]}], True) ({CORES}, False) {len(CORES)}"


def test_work_aside_has_every_core_and_a_lower_priority() -> None:
    script = """
affinity.settle(0, 1, 'on')
print(affinity.aside(lambda: (where(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))))
print(os.getpriority(os.PRIO_PROCESS, 0))
"""
    assert said(script) == f"(({CORES}, False), 10)\n0"


def test_off_and_a_share_of_time_leave_threads_where_they_are(tmp_path: Path) -> None:
    print_where = "print(affinity.settle(0, 1, {!r}), where())"
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    unsettled = f"None ({CORES}, False)"
    assert said(print_where.format("off")) == unsettled
    assert said(print_where.format("auto"), tmp_path / "cpu.max") == unsettled
    assert said("affinity.roam(); print(None, where())") == unsettled


def test_a_reserved_core_is_not_given_twice_until_its_process_ends() -> None:
    script = """
import socket
taken = []
for core in os.sched_getaffinity(0):
    one = socket.socket(socket.AF_UNIX)
    try: one.bind(f"\\0turnout-core-{core}")
    except OSError: pass
    taken.append(one)
print(affinity.settle(0, 1, 'auto'))
for one in taken: one.close()
print(affinity.settle(0, 1, 'auto') in where()[0])
"""
    assert said(script) == "None\nTrue"
