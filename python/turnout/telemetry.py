"""What was answered: recorded in this process, dumped, merged over all workers, told to Prometheus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from turnout._core import Runs, RunTotals, Series, Totals
from turnout.domain import LiveStatistics, WorkerStatus
from turnout.errors import InvalidDocument
from turnout.forks import ForkLock

KEPT_SCOPES = 64
MAX_SERIES = 4096
"""Series of a process (16 KiB each), and keys of a sum; what comes on top is counted together, without names.

The same holds for the runs of versions (at most 5 KiB each)."""
BOUNDS = tuple(2.0**power * 1e-9 for power in range(14, 34))
"""Upper bounds of the published histograms, in seconds: powers of two of a nanosecond, 16 us to 8.6 s."""
REJECTED = "rejected"
"""The scope of requests that no version has seen; a scope of a test has a slash in it."""
BATCH = "batch"
"""Stands for the reason where the rows of a batch are counted, each with its share of the time of its chunk."""
QUEUE = "queue"
"""Stands for the reason where the time is counted that requests waited for their turn."""
RUNS = "runs"
"""Stands for the reason in dumps where the runs of a version's model are told: `RunTotals`, which `Totals` cannot read."""
DUMP: msgspec.msgpack.Decoder[list[tuple[str, str, str, str, bytes]]] = msgspec.msgpack.Decoder(
    list[tuple[str, str, str, str, bytes]]
)


class Key(NamedTuple):
    """What a series counts. `scope` is the revision of a test, as `<test id>/<revision>`, else empty."""

    model: str
    version: str
    reason: str
    scope: str


class Parts(NamedTuple):
    """Dumps by key, those of runs apart from those of series."""

    series: dict[Key, list[bytes]]
    runs: dict[Key, list[bytes]]


class Telemetry:
    """The series and the runs of one process. Recording to a series takes no lock; finding one and dumping all do."""

    def __init__(self) -> None:
        self._series: dict[Key, Series] = {}
        self._folded: dict[Key, bytes] = {}
        self._runs: dict[Key, Runs] = {}
        self._rejected: dict[str, Series] = {}
        self._lock = ForkLock()

    def series(self, model: str, version: str, reason: str, scope: str) -> Series:
        """The series to record to; always the same for the same key."""
        key = Key(model, version, reason, scope)
        with self._lock:
            found = self._series.get(key)
            if found is None:
                found = self._added(key if len(self._series) < MAX_SERIES else _nameless(key))
            return found

    def runs(self, model: str, version: str) -> Runs:
        """Where the runs of a version's model are recorded; always the same for the same version."""
        key = Key(model, version, RUNS, "")
        with self._lock:
            found = self._runs.get(key)
            if found is None:
                known = key if len(self._runs) < MAX_SERIES else _nameless(key)
                found = self._runs.setdefault(known, Runs())
            return found

    def reject(self, code: str) -> None:
        """Count a request that was refused, by the code of its error."""
        with self._lock:
            found = self._rejected.get(code)
            if found is None:
                found = self._rejected[code] = Series()
        found.record_error()

    def dump(self) -> bytes:
        """The present state, for `Merged`."""
        with self._lock:
            entries = [(*key, dump) for key, dump in self._folded.items()]
            entries += [(*key, series.dump()) for key, series in self._series.items()]
            entries += [(*key, runs.dump()) for key, runs in self._runs.items()]
            entries += [("", "", code, REJECTED, series.dump()) for code, series in self._rejected.items()]
        return msgspec.msgpack.encode(entries)

    def _added(self, key: Key) -> Series:
        added = self._series.setdefault(key, Series())
        self._forget(key.model)
        # What records for a revision that is too old to be kept goes where that revision has gone.
        return added if key in self._series else self._series.setdefault(key._replace(scope=""), added)

    def _forget(self, model: str) -> None:
        """Fold what old revisions of tests counted into one series, so that a long ramp does not cost memory."""
        for key in old_scopes(self._series, model):
            series = self._series.pop(key)
            kept = key._replace(scope="")
            dumps = [series.dump(), *([self._folded[kept]] if kept in self._folded else [])]
            self._folded[kept] = Totals(dumps).dump()


def old_scopes(keys: Iterable[Key], model: str) -> list[Key]:
    """The keys of all but the newest revisions of tests of a model."""
    scoped = [key for key in keys if key.model == model and "/" in key.scope]
    scopes = sorted({key.scope for key in scoped}, key=_age)
    old = set(scopes[:-KEPT_SCOPES])
    return [key for key in scoped if key.scope in old]


def _age(scope: str) -> list[int]:
    """Test ids and revisions are numbers, and later ones are greater."""
    return [int(part) if part.isdecimal() else 0 for part in scope.split("/")]


def fold(dumps: list[bytes]) -> bytes:
    """Add up dumps of processes into one."""
    series, runs = _grouped(dumps)
    for model in {key.model for key in series}:
        for key in old_scopes(list(series), model):
            series[key._replace(scope="")].extend(series.pop(key))
    for parts in (series, runs):
        for key in [key for key in parts if key != _nameless(key)][MAX_SERIES:]:
            parts[_nameless(key)].extend(parts.pop(key))
    entries = [(*key, Totals(parts).dump()) for key, parts in series.items()]
    entries += [(*key, RunTotals(parts).dump()) for key, parts in runs.items()]
    return msgspec.msgpack.encode(entries)


def _nameless(key: Key) -> Key:
    return Key("", "", key.reason, key.scope if key.scope == REJECTED else "")


def _grouped(dumps: Iterable[bytes]) -> Parts:
    """All parts by key. A dump that cannot be read, of another release say, counts nothing."""
    grouped = Parts(defaultdict(list), defaultdict(list))
    for dump in dumps:
        try:
            entries = [(Key(m, v, reason, scope), part) for m, v, reason, scope, part in DUMP.decode(dump)]
            Totals([part for key, part in entries if key.reason != RUNS])
            RunTotals([part for key, part in entries if key.reason == RUNS])
        except (msgspec.DecodeError, UnicodeDecodeError, InvalidDocument):
            continue
        for key, part in entries:
            (grouped.runs if key.reason == RUNS else grouped.series)[key].append(part)
    return grouped


class Merged:
    """The statistics of all processes together."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._runs = parts
        self._versions: dict[tuple[str, str], list[Key]] = defaultdict(list)
        for key in self._parts:
            self._versions[key.model, key.version].append(key)

    @classmethod
    def from_dumps(cls, dumps: Iterable[bytes]) -> Merged:
        """Merge what `Telemetry.dump` gave in each process."""
        return cls(_grouped(dumps))

    def live(self, model: str, version: str) -> LiveStatistics:
        """What a version has answered one by one, whatever the reason."""
        totals = self.of_version(model, version)
        return LiveStatistics(
            requests=totals.requests,
            errors=totals.errors,
            error_rate=totals.errors / totals.requests if totals.requests else None,
            p50=totals.latency(0.5),
            p95=totals.latency(0.95),
            p99=totals.latency(0.99),
        )

    def of_version(self, model: str, version: str) -> Totals:
        """All that a version has answered one by one, whatever the reason."""
        return self._of_version(model, version, lambda key: key.reason not in {BATCH, QUEUE})

    def answered(self, model: str, version: str) -> Totals:
        """All that a version has answered, one by one and in batches."""
        return self._of_version(model, version, lambda key: key.reason != QUEUE and key.scope != REJECTED)

    def queued(self, model: str, version: str) -> Totals:
        """How long requests have waited for a version, as if that were the time of an answer."""
        return self._of_version(model, version, lambda key: key.reason == QUEUE)

    def runs(self, model: str, version: str) -> RunTotals:
        """The runs of a version's model."""
        return RunTotals(self._runs.get(Key(model, version, RUNS, ""), []))

    def of_test(self, model: str, test_id: str, version: str) -> Totals:
        """What a version has answered as an arm of a test, in all of its revisions that are known apart."""
        return self._of_version(
            model,
            version,
            lambda key: key.reason in {"test", "random"} and key.scope.partition("/")[0] == test_id,
        )

    def requests(self, model: str, scope: str) -> dict[str, int]:
        """How many requests each version was given: by a revision of a test, or as the active one where that is ""."""
        reasons = {"test", "random"} if scope else {"active"}
        counts: dict[str, int] = defaultdict(int)
        for key, parts in self._parts.items():
            if key.model == model and key.scope == scope and key.reason in reasons:
                counts[key.version] += Totals(parts).requests
        return dict(counts)

    def families(self) -> Iterator[Metric]:
        """Counters and histograms, for Prometheus."""
        requests = CounterMetricFamily(
            "turnout_requests",
            "Requests, and rows of batches, by the version that answered or failed.",
            labels=["model", "version", "reason"],
        )
        errors = CounterMetricFamily(
            "turnout_errors",
            "Requests that a version failed to answer.",
            labels=["model", "version", "reason"],
        )
        rejected = CounterMetricFamily(
            "turnout_rejected", "Requests refused before a version ran, by code.", labels=["code"]
        )
        latency = HistogramMetricFamily(
            "turnout_latency_seconds",
            "Time of a prediction, or of a row of a batch, model included.",
            labels=["model", "version", "reason"],
        )
        overhead = HistogramMetricFamily(
            "turnout_overhead_seconds",
            "Time of a prediction outside of the model.",
            labels=["model", "version"],
        )
        queue = HistogramMetricFamily(
            "turnout_queue_seconds",
            "Time that a prediction waited for its turn, alone or to run together with others.",
            labels=["model", "version"],
        )
        for labels, totals in self._by(lambda key: (key.model, key.version, key.reason)):
            requests.add_metric(labels, totals.requests)
            errors.add_metric(labels, totals.errors)
            latency.add_metric(labels, _buckets(totals.latency_buckets(BOUNDS), totals), totals.latency_sum)
        for labels, totals in self._by(lambda key: (key.model, key.version)):
            overhead.add_metric(
                labels, _buckets(totals.overhead_buckets(BOUNDS), totals), totals.overhead_sum
            )
        for labels, totals in self._by(lambda key: (key.model, key.version), queued=True):
            queue.add_metric(labels, _buckets(totals.latency_buckets(BOUNDS), totals), totals.latency_sum)
        for key, parts in self._parts.items():
            if key.scope == REJECTED:
                rejected.add_metric([key.reason], Totals(parts).errors)
        yield from (requests, errors, rejected, latency, overhead, queue, *self._run_families())

    def _run_families(self) -> Iterator[Metric]:
        executions = CounterMetricFamily(
            "turnout_executions",
            "Runs of the model, each on one row or more.",
            labels=["model", "version"],
        )
        inferences = CounterMetricFamily(
            "turnout_inferences",
            "Rows of the runs of the model.",
            labels=["model", "version"],
        )
        for key, parts in sorted(self._runs.items()):
            totals = RunTotals(parts)
            executions.add_metric([key.model, key.version], totals.runs)
            inferences.add_metric([key.model, key.version], totals.rows)
        yield from (executions, inferences)

    def _of_version(self, model: str, version: str, chosen: Callable[[Key], bool]) -> Totals:
        keys = self._versions.get((model, version), [])
        return Totals([part for key in keys if chosen(key) for part in self._parts[key]])

    def _by(
        self, label: Callable[[Key], tuple[str, ...]], *, queued: bool = False
    ) -> Iterator[tuple[list[str], Totals]]:
        grouped: dict[tuple[str, ...], list[bytes]] = defaultdict(list)
        for key, parts in self._parts.items():
            if key.scope != REJECTED and (key.reason == QUEUE) == queued:
                grouped[label(key)].extend(parts)
        for labels, parts in sorted(grouped.items()):
            yield list(labels), Totals(parts)


def prometheus(
    merged: Merged,
    workers: Sequence[WorkerStatus],
    shares: Mapping[str, Mapping[str, float]],
    generation: int,
) -> bytes:
    """Everything in the text format 0.0.4.

    `shares` are the configured shares of the traffic by model and version; `generation` is that of the registry, each
    worker's own is beside it.
    """
    registry = CollectorRegistry()
    registry.register(_Once([*merged.families(), *_states(workers, shares, generation)]))
    return generate_latest(registry)


def _states(
    workers: Sequence[WorkerStatus], shares: Mapping[str, Mapping[str, float]], generation: int
) -> Iterator[Metric]:
    share = GaugeMetricFamily(
        "turnout_share", "Configured share of the traffic.", labels=["model", "version"]
    )
    for model, weights in shares.items():
        for version, weight in weights.items():
            share.add_metric([model, version], weight)
    yield share
    yield GaugeMetricFamily("turnout_generation", "Generation of the registry.", value=generation)
    yield GaugeMetricFamily("turnout_workers", "Live workers.", value=len(workers))
    served = GaugeMetricFamily(
        "turnout_worker_generation", "Generation that a worker serves.", labels=["worker"]
    )
    ready = GaugeMetricFamily("turnout_worker_ready", "Whether a worker is ready.", labels=["worker"])
    loaded = GaugeMetricFamily(
        "turnout_version_loaded",
        "A loaded version and its device.",
        labels=["worker", "model", "version", "device"],
    )
    load = GaugeMetricFamily(
        "turnout_load_seconds", "Time to load a version.", labels=["worker", "model", "version"]
    )
    warmup = GaugeMetricFamily(
        "turnout_warmup_seconds", "Time to warm a version up.", labels=["worker", "model", "version"]
    )
    for worker in workers:
        served.add_metric([worker.id], worker.generation)
        ready.add_metric([worker.id], worker.ready)
        for version in worker.versions:
            if version.error is None:
                labels = [worker.id, version.model, version.version]
                loaded.add_metric([*labels, version.device], 1)
                load.add_metric(labels, version.load_seconds)
                warmup.add_metric(labels, version.warmup_seconds)
    yield from (served, ready, loaded, load, warmup)


def _buckets(counts: Sequence[int], totals: Totals) -> list[tuple[str, float]]:
    answers = totals.requests - totals.errors
    return [
        *((f"{bound:.12g}", count) for bound, count in zip(BOUNDS, counts, strict=True)),
        ("+Inf", answers),
    ]


class _Once:
    """A collector of families that are computed already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """What prometheus-client asks a collector for."""
        return self._families
