"""Series and Totals, Runs and RunTotals at the Python boundary."""

from __future__ import annotations

import threading

import pytest

from turnout import _core
from turnout.errors import InvalidDocument


def recorded(*pairs: tuple[int, int], errors: int = 0) -> _core.Series:
    series = _core.Series()
    for total, model in pairs:
        series.record(total, model)
    for _ in range(errors):
        series.record_error()
    return series


def test_dumps_add_up() -> None:
    first = recorded((1_000_000, 400_000), (3_000_000, 1_000_000), errors=1)
    second = recorded((2_000_000, 2_500_000), errors=2)
    totals = _core.Totals([first.dump(), second.dump()])
    assert totals.requests == 6
    assert totals.errors == 3
    assert totals.latency_sum == pytest.approx(0.006)
    assert totals.latency_ns == 6_000_000
    assert totals.overhead_sum == pytest.approx(0.0026)
    assert _core.Totals([totals.dump()]).dump() == totals.dump()


def test_quantiles_are_within_their_buckets() -> None:
    totals = _core.Totals([recorded(*((n * 1000, n * 900) for n in range(1, 10_001))).dump()])
    for q in (0.5, 0.95, 0.99):
        assert totals.latency(q) == pytest.approx(q * 0.01, rel=0.032)
        assert totals.overhead(q) == pytest.approx(q * 0.001, rel=0.032)


def test_nothing_recorded_has_no_quantiles() -> None:
    totals = _core.Totals([])
    assert totals.requests == 0
    assert totals.latency(0.5) is None
    assert totals.overhead(0.5) is None


def test_buckets_are_cumulative() -> None:
    totals = _core.Totals([recorded((500, 400), (2_000_000, 0), (2**60, 0)).dump()])
    assert totals.latency_buckets([-1.0, 1e-6, 0.005, 1.0, float("inf")]) == [0, 1, 2, 2, 3]
    assert totals.overhead_buckets([128e-9, float("inf")]) == [1, 3]


@pytest.mark.parametrize("dump", [b"", b"\x02\0\0\0\0\0", b"\xff" * 40, b"\1\0\0\0\1", b"\1\0\0\0\0\0\0"])
def test_other_bytes_are_refused(dump: bytes) -> None:
    with pytest.raises(InvalidDocument, match="dump"):
        _core.Totals([dump])


def test_no_dump_can_overflow_the_sums() -> None:
    most = b"\xff" * 9 + b"\1"
    hostile = b"\1" + most * 3 + (b"\2\0" + most + b"\1" + most) * 2
    totals = _core.Totals([hostile, hostile])
    assert totals.requests == totals.latency_buckets([1.0])[0] == 2**64 - 1


def test_threads_lose_nothing() -> None:
    series = _core.Series()
    threads = [
        threading.Thread(target=lambda: [series.record(1000, 500) for _ in range(5000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _core.Totals([series.dump()]).requests == 20_000


def test_rows_of_a_batch_count_as_their_shares_of_its_time() -> None:
    series = _core.Series()
    series.record_rows(8, 8 * 3000, 8 * 1000)
    series.record_rows(0, 5, 0)
    series.record_errors(2)
    totals = _core.Totals([series.dump()])
    assert (totals.requests, totals.errors) == (10, 2)
    assert totals.latency(0.5) == pytest.approx(3e-6, rel=0.05)
    assert totals.latency_sum == pytest.approx(24e-6)
    assert totals.overhead_sum == pytest.approx(16e-6)


def ran(*sizes: int, failures: int = 0) -> _core.Runs:
    runs = _core.Runs()
    for number, rows in enumerate(sizes):
        runs.record(rows, 10, 100 * rows, 1, 5000 + number)
    for _ in range(failures):
        runs.fail(7)
    return runs


def test_runs_add_up_by_their_rows() -> None:
    first, second = ran(8, 1, 8, failures=1), ran(2, 8, failures=2)
    totals = _core.RunTotals([first.dump(), second.dump()])
    assert (totals.rows, totals.runs, totals.last_ms) == (27, 5, 5002)
    assert (totals.failures, totals.failure_ns) == (3, 21)
    assert (totals.input_ns, totals.infer_ns, totals.output_ns) == (50, 2700, 5)
    assert totals.sizes == [(1, 1, 10, 100, 1), (2, 1, 10, 200, 1), (8, 3, 30, 2400, 3)]
    assert _core.RunTotals([totals.dump()]).dump() == totals.dump()
    assert _core.RunTotals([second.dump(), first.dump()]).dump() == totals.dump()


def test_without_runs_all_is_zero() -> None:
    totals = _core.RunTotals([])
    assert (totals.rows, totals.runs, totals.last_ms, totals.failures, totals.sizes) == (0, 0, 0, 0, [])
    assert totals.dump() == _core.Runs().dump()


def test_runs_of_many_sizes_are_rounded_up_but_none_is_lost() -> None:
    totals = _core.RunTotals([ran(*range(1, 1001, 2)).dump(), ran(*range(0, 1001, 2)).dump()])
    assert [size[0] for size in totals.sizes] == [*range(64), 64, 128, 256, 512, 1024]
    assert (totals.runs, totals.rows) == (1001, 1000 * 1001 // 2)
    assert sum(size[1] for size in totals.sizes) == 1001


@pytest.mark.parametrize(
    "dump",
    [b"", recorded().dump(), b"\xff" * 40, b"\2\0\0\0\0\1", b"\2\0\0\0\0\0\0", b"\2\0\0\0\0\1\7\0\0\0\0"],
    ids=["empty", "a series", "no number", "cut", "too long", "a size without runs"],
)
def test_bytes_that_are_no_runs_are_refused(dump: bytes) -> None:
    with pytest.raises(InvalidDocument, match="dump"):
        _core.RunTotals([dump])


def test_a_series_and_runs_are_told_apart() -> None:
    with pytest.raises(InvalidDocument, match="dump"):
        _core.Totals([ran(1).dump()])


def test_threads_lose_no_run() -> None:
    runs = _core.Runs()
    threads = [
        threading.Thread(target=lambda: [runs.record(n % 100, 1, 1, 1, n) for n in range(5000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    totals = _core.RunTotals([runs.dump()])
    assert (totals.runs, totals.rows, totals.last_ms) == (20_000, 990_000, 4999)
