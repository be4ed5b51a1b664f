"""What was answered, counted in many processes and told as one."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from turnout import telemetry as module
from turnout.domain import VersionStatus, WorkerStatus
from turnout.telemetry import BOUNDS, KEPT_SCOPES, Merged, Telemetry, fold, prometheus

MICRO = 1000


def answered(
    telemetry: Telemetry, version: str, count: int, *, reason: str = "active", scope: str = ""
) -> None:
    series = telemetry.series("churn", version, reason, scope)
    for _ in range(count):
        series.record(50 * MICRO, 40 * MICRO)


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def labels(**words: str) -> frozenset[tuple[str, str]]:
    return frozenset(words.items())


def test_processes_add_up_and_percentiles_are_of_all_of_them() -> None:
    processes, latencies = [Telemetry() for _ in range(3)], np.random.default_rng(1).lognormal(11, 1, 9000)
    for index, latency in enumerate(latencies.astype(int)):
        processes[index % 3].series("churn", "v1", "active", "").record(int(latency), int(latency) // 2)
    processes[1].series("churn", "v1", "test", "1/1").record_error()
    live = Merged.from_dumps(process.dump() for process in processes).live("churn", "v1")
    assert (live.requests, live.errors) == (9001, 1)
    for found, quantile in ((live.p50, 0.5), (live.p95, 0.95), (live.p99, 0.99)):
        assert found == pytest.approx(np.quantile(latencies, quantile) * 1e-9, rel=0.05)


def test_a_version_that_nobody_asked_has_no_rate_and_no_percentiles() -> None:
    live = Merged.from_dumps([]).live("churn", "v1")
    assert (live.requests, live.error_rate, live.p50, live.p99) == (0, None, None, None)


def test_requests_by_the_revision_of_a_test_are_those_that_the_split_sent() -> None:
    telemetry = Telemetry()
    answered(telemetry, "v1", 3, reason="test", scope="1/1")
    answered(telemetry, "v2", 2, reason="random", scope="1/1")
    answered(telemetry, "v2", 5, reason="test", scope="1/2")
    answered(telemetry, "v1", 7, reason="fallback", scope="1/1")
    answered(telemetry, "v1", 9, reason="override", scope="1/1")
    answered(telemetry, "v1", 11)
    merged = Merged.from_dumps([telemetry.dump()])
    assert merged.requests("churn", "1/1") == {"v1": 3, "v2": 2}
    assert merged.requests("churn", "1/2") == {"v2": 5}
    assert merged.requests("churn", "") == {"v1": 11}


def test_a_long_ramp_is_folded_and_loses_no_count() -> None:
    telemetry = Telemetry()
    for revision in range(1, 3 * KEPT_SCOPES + 1):
        answered(telemetry, "v1", 2, reason="test", scope=f"1/{revision}")
    assert len(telemetry._series) == KEPT_SCOPES
    late = telemetry.series("churn", "v1", "test", "1/1")
    late.record(50 * MICRO, 40 * MICRO)
    merged = Merged.from_dumps([telemetry.dump()])
    assert merged.live("churn", "v1").requests == 6 * KEPT_SCOPES + 1
    assert merged.requests("churn", f"1/{3 * KEPT_SCOPES}") == {"v1": 2}
    assert merged.requests("churn", "1/1") == {}
    dumps = [telemetry.dump() for _ in range(3)]
    assert Merged.from_dumps([fold(dumps)]).live("churn", "v1").requests == 3 * (6 * KEPT_SCOPES + 1)


def test_the_newest_revision_is_the_greatest_number_not_the_last_in_the_alphabet() -> None:
    telemetry = Telemetry()
    for revision in range(1, KEPT_SCOPES + 10):
        answered(telemetry, "v1", 1, reason="test", scope=f"2/{revision}")
    merged = Merged.from_dumps([telemetry.dump()])
    assert merged.requests("churn", "2/9") == {}
    assert merged.requests("churn", f"2/{KEPT_SCOPES + 9}") == {"v1": 1}


def test_more_series_than_there_may_be_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 8)
    telemetry = Telemetry()
    for number in range(20):
        answered(telemetry, f"v{number}", 1)
    assert len(telemetry._series) == 9
    assert Merged.from_dumps([telemetry.dump()]).live("", "").requests == 12
    assert Merged.from_dumps([fold([telemetry.dump()] * 2)]).live("", "").requests == 24


@pytest.mark.parametrize(
    "dump",
    [b"", b"\xff\xfe", b"\x91\x92\xa1a\xa1b", msgspec.msgpack.encode([("m", "v", "r", "", b"short")])],
    ids=["empty", "no msgpack", "of another shape", "no series"],
)
def test_a_dump_that_cannot_be_read_counts_nothing_and_hides_nothing(dump: bytes) -> None:
    telemetry = Telemetry()
    answered(telemetry, "v1", 4)
    assert Merged.from_dumps([dump, telemetry.dump(), dump]).live("churn", "v1").requests == 4
    assert Merged.from_dumps([fold([dump, telemetry.dump()])]).live("churn", "v1").requests == 4


def test_threads_that_find_count_and_dump_lose_nothing() -> None:
    telemetry, ready = Telemetry(), threading.Barrier(5)

    def count() -> None:
        ready.wait()
        for revision in range(500):
            answered(telemetry, f"v{revision % 7}", 1, reason="test", scope=f"1/{revision % 50}")
            telemetry.reject("invalid_features")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    while any(thread.is_alive() for thread in threads):
        Merged.from_dumps([telemetry.dump()])
    for thread in threads:
        thread.join()
    merged = Merged.from_dumps([telemetry.dump()])
    assert sum(merged.live("churn", f"v{number}").requests for number in range(7)) == 2000
    text = samples(prometheus(merged, [], {}, 1))
    assert text["turnout_rejected_total", labels(code="invalid_features")] == 2000


def test_prometheus_reads_what_was_counted() -> None:
    telemetry = Telemetry()
    answered(telemetry, 'v"1\n', 10)
    telemetry.series("churn", 'v"1\n', "active", "").record_error()
    loaded = VersionStatus(model="churn", version="v1", device="cpu", load_seconds=0.5, warmup_seconds=0.25)
    broken = VersionStatus(model="churn", version="v2", error="cut")
    worker = WorkerStatus(
        id="abc",
        pid=1,
        started_at="2026-01-01T00:00:00Z",
        heartbeat_at="2026-01-01T00:00:00Z",
        generation=6,
        ready=False,
        draining=False,
        versions=(loaded, broken),
    )
    found = samples(prometheus(Merged.from_dumps([telemetry.dump()]), [worker], {"churn": {"v1": 0.25}}, 7))
    version = {"model": "churn", "version": 'v"1\n'}
    assert found["turnout_requests_total", labels(**version, reason="active")] == 11
    assert found["turnout_errors_total", labels(**version, reason="active")] == 1
    counts = [
        found["turnout_latency_seconds_bucket", labels(**version, reason="active", le=f"{bound:.12g}")]
        for bound in BOUNDS
    ]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 10)  # 16 us, and far more than 50 us
    assert found["turnout_latency_seconds_count", labels(**version, reason="active")] == 10
    assert found["turnout_latency_seconds_sum", labels(**version, reason="active")] == pytest.approx(500e-6)
    assert found["turnout_overhead_seconds_sum", labels(**version)] == pytest.approx(100e-6)
    assert found["turnout_share", labels(model="churn", version="v1")] == 0.25
    assert found["turnout_generation", labels()] == 7
    assert found["turnout_worker_generation", labels(worker="abc")] == 6
    assert found["turnout_worker_ready", labels(worker="abc")] == 0
    assert (
        found["turnout_version_loaded", labels(worker="abc", model="churn", version="v1", device="cpu")] == 1
    )
    assert found["turnout_load_seconds", labels(worker="abc", model="churn", version="v1")] == 0.5
    assert not [at for at in found if ("version", "v2") in at[1]]
