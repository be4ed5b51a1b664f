"""What was answered, counted in many processes and told as one."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import turnout
from models import linear_matrix
from turnout import telemetry as module
from turnout._core import Runs, Series
from turnout.domain import BatchStatistics, Duration, VersionStatus, WorkerStatus
from turnout.errors import InvalidRequest, ModelNotFound, VersionNotFound
from turnout.reports import inference_statistics
from turnout.telemetry import BATCH, BOUNDS, KEPT_SCOPES, QUEUE, RUNS, Merged, Telemetry, fold, prometheus

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
    [
        b"",
        b"\xff\xfe",
        b"\x91\x92\xa1a\xa1b",
        msgspec.msgpack.encode([("m", "v", "r", "", b"short")]),
        msgspec.msgpack.encode([("churn", "v1", RUNS, "", Series().dump())]),
        msgspec.msgpack.encode([("churn", "v1", "active", "", Runs().dump())]),
    ],
    ids=["empty", "no msgpack", "of another shape", "no series", "no runs", "runs as a series"],
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


def ran(telemetry: Telemetry, version: str, *sizes: int) -> None:
    runs = telemetry.runs("churn", version)
    for rows in sizes:
        runs.record(rows, 2 * MICRO, 40 * MICRO, 3 * MICRO, 1_790_000_000_000 + rows)


def test_runs_of_a_version_are_kept_in_one_place() -> None:
    telemetry = Telemetry()
    assert telemetry.runs("churn", "v1") is telemetry.runs("churn", "v1")
    assert telemetry.runs("churn", "v1") is not telemetry.runs("churn", "v2")
    assert telemetry.runs("churn", "v1") is not telemetry.runs("other", "v1")


def test_runs_of_processes_add_up_whether_folded_or_not() -> None:
    processes = [Telemetry() for _ in range(3)]
    for process in processes:
        ran(process, "v1", 1, 8)
        process.runs("churn", "v1").fail(5)
    ran(processes[1], "v2", 3)
    dumps = [process.dump() for process in processes]
    for merged in (
        Merged.from_dumps(dumps),
        Merged.from_dumps([fold(dumps)]),
        Merged.from_dumps([fold(dumps[:2]), dumps[2]]),
    ):
        one, two = merged.runs("churn", "v1"), merged.runs("churn", "v2")
        assert (one.runs, one.rows, one.failures) == (6, 27, 3)
        assert [size[:2] for size in one.sizes] == [(1, 3), (8, 3)]
        assert (two.runs, two.rows, two.last_ms) == (1, 3, 1_790_000_000_003)
        assert merged.runs("churn", "v3").runs == merged.runs("", "").runs == 0


def test_runs_are_in_no_sum_of_series() -> None:
    telemetry = Telemetry()
    answered(telemetry, "v1", 4, reason="test", scope="1/1")
    before = Merged.from_dumps([telemetry.dump()])
    ran(telemetry, "v1", 1, 2, 3)
    after = Merged.from_dumps([telemetry.dump()])
    for read in (
        lambda merged: merged.live("churn", "v1"),
        lambda merged: merged.of_version("churn", "v1").dump(),
        lambda merged: merged.of_test("churn", "1", "v1").dump(),
        lambda merged: merged.answered("churn", "v1").dump(),
        lambda merged: merged.queued("churn", "v1").dump(),
        lambda merged: merged.requests("churn", "1/1"),
        lambda merged: [family for family in merged.families() if "latency" in family.name],
    ):
        assert read(after) == read(before)
    assert (before.runs("churn", "v1").runs, after.runs("churn", "v1").runs) == (0, 3)


def test_a_dump_of_before_there_were_runs_is_read_beside_others() -> None:
    old, new = Telemetry(), Telemetry()
    answered(old, "v1", 3)
    answered(new, "v1", 2)
    ran(new, "v1", 2)
    series = old.series("churn", "v1", "active", "").dump()
    dump = msgspec.msgpack.encode([("churn", "v1", "active", "", series)])
    assert dump == old.dump()
    merged = Merged.from_dumps([fold([dump, new.dump()])])
    assert (merged.live("churn", "v1").requests, merged.runs("churn", "v1").rows) == (5, 2)


def test_runs_of_more_versions_than_there_may_be_are_counted_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 8)
    telemetry = Telemetry()
    for number in range(20):
        ran(telemetry, f"v{number}", 2)
        answered(telemetry, f"v{number}", 1)
    assert len(telemetry._runs) == 9
    assert telemetry.runs("churn", "v19") is telemetry.runs("churn", "v18")
    assert Merged.from_dumps([telemetry.dump()]).runs("", "").rows == 24
    folded = Merged.from_dumps([fold([telemetry.dump()] * 2)])
    assert (folded.runs("", "").rows, folded.runs("churn", "v7").rows) == (48, 4)
    assert (folded.live("", "").requests, folded.live("churn", "v7").requests) == (24, 2)


def test_prometheus_has_runs_and_their_rows() -> None:
    telemetry = Telemetry()
    ran(telemetry, 'v"1\n', 1, 8, 8)
    ran(telemetry, "v2", 5)
    found = samples(prometheus(Merged.from_dumps([telemetry.dump(), telemetry.dump()]), [], {}, 1))
    one, two = labels(model="churn", version='v"1\n'), labels(model="churn", version="v2")
    assert (found["turnout_executions_total", one], found["turnout_executions_total", two]) == (6, 2)
    assert (found["turnout_inferences_total", one], found["turnout_inferences_total", two]) == (34, 10)


def test_statistics_of_a_version_in_the_words_of_the_protocol() -> None:
    telemetry = Telemetry()
    answered(telemetry, "v1", 3)
    answered(telemetry, "v1", 2, reason="test", scope="1/1")
    telemetry.series("churn", "v1", "active", "").record_error()
    telemetry.series("churn", "v1", BATCH, "").record_rows(10, 70 * MICRO, 60 * MICRO)
    telemetry.series("churn", "v1", QUEUE, "").record(9 * MICRO, 0)
    telemetry.reject("invalid_features")
    answered(telemetry, "v2", 100)
    ran(telemetry, "v1", 1, 4, 10)
    telemetry.runs("churn", "v1").fail(11)
    found = inference_statistics("churn", "v1", Merged.from_dumps([telemetry.dump()]))
    assert (found.model, found.version, found.last_inference) == ("churn", "v1", 1_790_000_000_010)
    assert (found.inference_count, found.execution_count) == (15, 3)
    assert found.success == Duration(15, (5 * 50 + 70) * MICRO)
    assert (found.fail, found.queue) == (Duration(1, 11), Duration(1, 9 * MICRO))
    assert found.compute_input == Duration(3, 6 * MICRO)
    assert found.compute_infer == Duration(3, 120 * MICRO)
    assert found.compute_output == Duration(3, 9 * MICRO)
    once = (Duration(1, 2 * MICRO), Duration(1, 40 * MICRO), Duration(1, 3 * MICRO))
    assert found.batch_stats == tuple(BatchStatistics(rows, *once) for rows in (1, 4, 10))


def test_a_version_that_never_ran_has_zeros() -> None:
    found = inference_statistics("churn", "v1", Merged.from_dumps([]))
    none = Duration(0, 0)
    assert (found.last_inference, found.inference_count, found.execution_count) == (0, 0, 0)
    assert {found.success, found.fail, found.queue, found.compute_infer} == {none}
    assert found.batch_stats == ()


def test_statistics_are_of_all_models_of_one_or_of_one_version(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear_matrix([1.0, 2.0]))
    with turnout.open(tmp_path / "data") as hub:
        for model, version in (("b", "v2"), ("b", "v1"), ("a", "v1")):
            hub.register_version(model, version, tmp_path / "model.onnx")
        hub.telemetry.runs("b", "v1").record(4, 1, 2, 3, 4)
        of = [(one.model, one.version, one.inference_count) for one in hub.inference_statistics()]
        assert of == [("a", "v1", 0), ("b", "v2", 0), ("b", "v1", 4)]
        assert [one.version for one in hub.inference_statistics("b")] == ["v2", "v1"]
        assert [one.execution_count for one in hub.inference_statistics("b", "v1")] == [1]
        with pytest.raises(ModelNotFound, match="Model c not found"):
            hub.inference_statistics("c")
        with pytest.raises(VersionNotFound, match="Version v9 not found for model b"):
            hub.inference_statistics("b", "v9")
        with pytest.raises(InvalidRequest, match="model"):
            hub.inference_statistics(version="v1")
