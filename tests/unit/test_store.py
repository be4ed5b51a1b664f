"""One LMDB file: transactions, growth, forks, threads, a full disk; and the words of shared memory beside it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from turnout.beacon import Beacon
from turnout.errors import StorageError
from turnout.store import Store, key

SMALL = 64 * 1024
SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "a.lmdb", map_size=1024**2)
    yield opened
    opened.close()


def put(store: Store, at: bytes, value: bytes) -> None:
    store.change(lambda t: t.put(at, value))


def get(store: Store, at: bytes) -> bytes | None:
    return store.read(lambda t: t.get(at))


def fill(path: Path, name: str, count: int, size: int) -> None:
    """Write `count` values of `size` bytes, each in a change of its own."""
    store = Store(path, map_size=SMALL)
    for number in range(count):
        put(store, key(name, number), bytes(size))
    store.close()


def finish(*processes) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=25)
        assert process.exitcode == 0


def test_a_change_is_all_or_nothing(store):
    def fail(t):
        t.put(b"a", b"1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.change(fail)
    assert get(store, b"a") is None


def test_integers_sort_as_numbers(store):
    store.change(lambda t: [t.put(key("table", n), str(n).encode()) for n in (300, 2, 10)])
    assert store.read(lambda t: [value for _, value in t.scan("table")]) == [b"2", b"10", b"300"]


def test_a_scan_sees_its_prefix_only_and_can_go_on_behind_a_key(store):
    def write(t):
        for table in ("a", "b", "bb", "c"):
            for rest in ("x", "y", "z"):
                t.put(key(table, rest), table.encode())

    store.change(write)
    assert [rest for rest, _ in store.read(lambda t: list(t.scan("b")))] == [b"x", b"y", b"z"]
    assert [rest for rest, _ in store.read(lambda t: list(t.scan("b", after=b"x")))] == [b"y", b"z"]
    assert store.read(lambda t: t.last("b")) == (b"z", b"b")
    assert store.read(lambda t: t.last("c")) == (b"z", b"c")
    assert store.read(lambda t: t.last("nothing")) is None


@pytest.mark.parametrize("name", ["x" * 600, "\ud800", ""])
def test_looking_for_what_cannot_be_stored_finds_nothing(store, name):
    put(store, key("table", "a"), b"1")
    assert get(store, key("table", name)) is None
    assert store.read(lambda t: list(t.scan("table", name))) == []
    assert store.change(lambda t: t.delete(key("table", name))) is False


def test_one_process_may_open_a_file_twice_and_under_two_names(store, tmp_path):
    (tmp_path / "link.lmdb").symlink_to("a.lmdb")
    again = Store(tmp_path / "a.lmdb", map_size=SMALL)
    linked = Store(tmp_path / "link.lmdb", map_size=SMALL)
    put(again, b"a", b"1")
    assert get(linked, b"a") == b"1"
    again.close()
    again.close()
    linked.close()
    assert get(store, b"a") == b"1"
    with pytest.raises(StorageError, match="closed"):
        get(again, b"a")


def test_a_replaced_file_is_noticed_and_the_new_one_is_another_store(store, tmp_path):
    put(store, b"a", b"old")
    assert not store.replaced()
    store.path.unlink()
    (tmp_path / "a.lmdb-lock").unlink()
    assert store.replaced()
    fresh = Store(store.path, map_size=SMALL)
    assert get(fresh, b"a") is None
    assert get(store, b"a") == b"old"
    fresh.close()


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path):
    (tmp_path / "a.lmdb").write_bytes(b"no database" * 4096)
    with pytest.raises(StorageError, match="cannot be opened"):
        Store(tmp_path / "a.lmdb", map_size=SMALL)
    with pytest.raises(StorageError, match="cannot be opened"):
        Store(tmp_path / "missing" / "a.lmdb", map_size=SMALL)


def test_a_full_map_grows(tmp_path):
    store = Store(tmp_path / "a.lmdb", map_size=SMALL)
    store.change(lambda t: [t.put(key("big", n), bytes(10_000)) for n in range(100)])
    assert store.read(lambda t: len(list(t.scan("big")))) == 100
    store.close()


@contextmanager
def threads(*works):
    """Run each work again and again in a thread until the block ends; none of them may have failed."""
    done = threading.Event()
    faults: list[BaseException] = []

    def run(work):
        try:
            while not done.wait(0.001):
                work()
        except Exception as error:  # noqa: BLE001
            faults.append(error)

    started = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in started:
            thread.join()
    assert faults == []


def test_a_full_map_grows_under_threads_that_read_and_write(tmp_path):
    store = Store(tmp_path / "a.lmdb", map_size=SMALL)
    counter = iter(range(10_000))

    def read():
        store.read(lambda t: len(list(t.scan("a"))))

    def write():
        put(store, key("b", next(counter)), bytes(3000))

    with threads(read, read, write):
        for number in range(60):
            put(store, key("a", number), bytes(5000))
    assert store.read(lambda t: len(list(t.scan("a")))) == 60
    assert store.read(lambda t: len(list(t.scan("b")))) == next(counter)
    store.close()


def test_a_full_map_grows_from_two_processes_at_once(tmp_path):
    path = tmp_path / "a.lmdb"
    store = Store(path, map_size=SMALL)
    finish(*(SPAWN.Process(target=fill, args=(path, name, 150, 3000)) for name in ("a", "b")))
    # This process has opened the file with the small map: it adopts what the others have made of it.
    assert store.read(lambda t: (len(list(t.scan("a"))), len(list(t.scan("b"))))) == (150, 150)
    put(store, b"more", bytes(200_000))
    store.close()


def use_inherited(store: Store, beacon: Beacon) -> None:
    assert get(store, b"a") == b"parent"
    put(store, b"b", b"child")
    beacon.raise_to(0, 7)
    beacon.step(1)
    again = Store(store.path, map_size=SMALL)
    assert get(again, b"b") == b"child"
    again.close()
    store.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_may_use_the_store_while_the_parent_is_in_a_change(store, tmp_path):
    put(store, b"a", b"parent")
    beacon = Beacon(tmp_path / "beacon")
    child = FORK.Process(target=use_inherited, args=(store, beacon))

    def change(t):
        child.start()  # the child waits for the write lock, which this change holds
        t.put(b"c", b"meanwhile")

    store.change(change)
    child.join(timeout=20)
    assert child.exitcode == 0
    assert [get(store, at) for at in (b"a", b"b", b"c")] == [b"parent", b"child", b"meanwhile"]
    assert (beacon[0], beacon[1]) == (7, 1)
    beacon.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forks_while_other_threads_are_inside(store, tmp_path):
    beacon = Beacon(tmp_path / "beacon")
    put(store, b"a", b"parent")
    with threads(lambda: get(store, b"a"), lambda: put(store, b"c", b"1")):
        for _ in range(5):
            finish(FORK.Process(target=use_inherited, args=(store, beacon)))
    assert get(store, b"b") == b"child"
    beacon.close()


def die_in_a_change(path: Path) -> None:
    store = Store(path, map_size=SMALL)
    put(store, b"a", b"committed")

    def die(t):
        t.put(b"a", b"torn")
        os.kill(os.getpid(), signal.SIGKILL)

    store.change(die)


def test_a_process_that_is_killed_in_a_change_leaves_the_last_committed_state_and_no_lock(store):
    child = SPAWN.Process(target=die_in_a_change, args=(store.path,))
    child.start()
    child.join(timeout=20)
    assert child.exitcode == -signal.SIGKILL
    began = time.monotonic()
    put(store, b"b", b"1")
    assert time.monotonic() - began < 5
    assert get(store, b"a") == b"committed"


def fill_the_disk(path: Path) -> None:
    """A limit on the size of files is what a process without privileges can do to fill its disk."""
    store = Store(path, map_size=SMALL)
    put(store, b"a", b"committed")
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, resource.RLIM_INFINITY))
    with pytest.raises(StorageError, match="the last committed state stands"):
        put(store, b"a", bytes(1024**2))
    assert get(store, b"a") == b"committed"
    put(store, b"b", b"small changes still fit")
    store.close()


def test_a_full_disk_is_a_clear_error_and_the_last_committed_state(tmp_path):
    finish(SPAWN.Process(target=fill_the_disk, args=(tmp_path / "a.lmdb",)))
    store = Store(tmp_path / "a.lmdb", map_size=SMALL)
    assert (get(store, b"a"), get(store, b"b")) == (b"committed", b"small changes still fit")
    store.close()


FULL = """
import sys
from pathlib import Path
from turnout.errors import StorageError
from turnout.store import Store
store = Store(Path(sys.argv[1]) / "a.lmdb", map_size=65536)
store.change(lambda t: t.put(b"a", b"committed"))
try:
    store.change(lambda t: t.put(b"a", bytes(4 * 1024**2)))
    raise SystemExit("a megabyte holds four")
except StorageError as error:
    assert "the disk is full" in str(error), error
assert store.read(lambda t: t.get(b"a")) == b"committed"
store.change(lambda t: t.put(b"b", b"small"))
print("survived")
"""


def test_a_really_full_file_system(tmp_path):
    """Needs a mount of its own; skipped, visibly, where the system does not let us make one."""
    script = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "{sys.executable}" -c "$0" "{tmp_path}"'
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, FULL],
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mounts for us here: {done.stderr.strip()[:80]}")
    assert done.stdout == "survived\n", done.stderr


# --- the beacon -----------------------------------------------------------------------------------------------------


def raise_many(path: Path, values: range) -> None:
    beacon = Beacon(path)
    for value in values:
        beacon.raise_to(0, value)
        beacon.step(1)
    beacon.close()


def test_a_word_rises_and_never_falls(tmp_path):
    beacon = Beacon(tmp_path / "beacon")
    other = Beacon(tmp_path / "beacon")
    beacon.raise_to(0, 5)
    beacon.raise_to(0, 3)
    assert other[0] == 5
    other.advance(0, 9)
    other.advance(0, 2)
    assert beacon[0] == 10
    assert beacon[2] == 0
    for one in (beacon, other, other):
        one.close()


def test_words_are_exact_under_many_writers(tmp_path):
    path = tmp_path / "beacon"
    finish(*(SPAWN.Process(target=raise_many, args=(path, range(n, 900, 3))) for n in range(3)))
    beacon = Beacon(path)
    assert (beacon[0], beacon[1]) == (899, 900)
    beacon.close()


def test_a_beacon_where_none_can_be_is_a_clear_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be opened"):
        Beacon(tmp_path / "missing" / "beacon")
