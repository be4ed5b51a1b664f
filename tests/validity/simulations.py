"""Simulated tests whose truth is known: how often each way of reading them is wrong, and how soon it is right.

Seeded. `tests/validity/test_validity.py` runs them small, `benches/validity/run.py` large.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from turnout.experiment.statistics.counts import log_e_many, log_sum_exp
from turnout.experiment.statistics.means import Moments, difference, enough, interval
from turnout.experiment.statistics.mismatch import log_bf

ALPHA = 0.05
ALARM = math.log(1 / ALPHA)
Z_ONE_SIDED, Z_TWO_SIDED, CHI_SQUARE = 1.6449, 1.9600, 3.8415
"""What one look would be compared with at that alpha."""
RAMP = np.array([0.01, 0.05, 0.1, 0.25, 0.5, 0.75])
LOOKS = 1000

Floats = NDArray[np.float64]
Alarms = dict[str, float]
"""The share of simulated tests with an alarm, by way of reading them."""


def margin(replications: int) -> float:
    """Three standard errors of the share of false alarms, were it alpha."""
    return 3 * math.sqrt(ALPHA * (1 - ALPHA) / replications)


def false_rollbacks(replications: int, seed: int, entities: int = 30_000) -> Alarms:
    """Identical arms, looked at 1,000 times through a ramp, while the base rate doubles and few entities do the most.

    Entities come and go. Their requests are Pareto many, and their error rates Pareto high. An entity is in the candidate
    where its place in [0, 1) is below the candidate's share.
    """
    rng = np.random.default_rng(seed)
    alarms = {"ours": 0, "z-test": 0, "one share": 0, "requests": 0}
    for _ in range(replications):
        place, step, look, errs, entity = _sticky_requests(rng, entities)
        bad = np.flatnonzero(errs)
        first = bad[np.unique(entity[bad], return_index=True)[1]]
        traffic = RAMP[np.arange(LOOKS) * len(RAMP) // LOOKS]
        one_share = np.cumsum(traffic) / np.arange(1, LOOKS + 1)
        in_candidate = place[entity] < RAMP[step]
        candidate, total = _by_look(look[first], step[first], in_candidate[first])
        every_candidate, every_total = _by_look(look[bad], step[bad], in_candidate[bad])
        alarms["ours"] += _alarmed(log_e_many(RAMP, candidate, total - candidate))
        alarms["requests"] += _alarmed(log_e_many(RAMP, every_candidate, every_total - every_candidate))
        both = candidate.sum(1), total.sum(1)
        pooled = log_e_many(one_share[:, None], both[0][:, None], (both[1] - both[0])[:, None])
        alarms["one share"] += _alarmed(pooled)
        expected, variance = total @ RAMP, total @ (RAMP * (1 - RAMP))
        ready = both[1] >= 100
        z = (both[0] - expected)[ready] / np.sqrt(variance[ready])
        alarms["z-test"] += bool((z > Z_ONE_SIDED).any())
    return {name: count / replications for name, count in alarms.items()}


def _sticky_requests(rng: np.random.Generator, entities: int) -> tuple[NDArray, ...]:
    """In order of time: places of entities, and the step, look, error and entity of each request."""
    place = rng.random(entities)
    requests = np.minimum(1 + 3 * rng.pareto(1.1, entities), 2000).astype(int)
    rate = np.minimum(0.005 * (1 + rng.pareto(1.5, entities)), 0.45)
    start = rng.uniform(-0.2, 1, entities)
    entity = np.repeat(np.arange(entities), requests)
    time = start[entity] + 0.2 * rng.random(len(entity))
    kept = (time >= 0) & (time < 1)
    entity, time = entity[kept], time[kept]
    order = np.argsort(time)
    entity, time = entity[order], time[order]
    errs = rng.random(len(entity)) < rate[entity] * (1 + time)
    return place, (time * len(RAMP)).astype(int), (time * LOOKS).astype(int), errs, entity


def _by_look(look: NDArray, step: NDArray, in_candidate: NDArray) -> tuple[Floats, Floats]:
    """Events of the candidate, and of both arms, by look and step, up to then."""
    shape = (LOOKS, len(RAMP))
    candidate, total = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (look, step), 1)
    np.add.at(candidate, (look[in_candidate], step[in_candidate]), 1)
    return candidate.cumsum(0), total.cumsum(0)


def _alarmed(log_e: Floats) -> bool:
    return bool((log_e >= ALARM).any())


def requests_until_alarm(
    worse: float,
    replications: int,
    seed: int,
    *,
    every: int,
    looks: int,
    base: float = 0.01,
    share: float = 0.1,
) -> float:
    """The median of the requests until a canary with the error rate `worse` alarms, looked at so `every` so many."""
    rng = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(replications):
        canary = rng.binomial(every, share, looks)
        candidate = rng.binomial(canary, worse).cumsum()
        baseline = rng.binomial(every - canary, base).cumsum()
        log_e = log_e_many(
            np.array([share]), candidate[:, None].astype(float), baseline[:, None].astype(float)
        )
        found.append(_first(log_e) * every)
    return float(np.median(found))


def _first(log_e: Floats) -> float:
    """The number of the first look that alarms; infinite where none does."""
    hits = np.flatnonzero(log_e >= ALARM)
    return float(hits[0] + 1) if len(hits) else math.inf


class Mismatch(NamedTuple):
    """What a sequential test of the ratio found: how soon, how often in time, and how often where nothing was wrong."""

    median: float
    found: float
    false_alarms: Alarms


def sample_ratio(
    replications: int, seed: int, true: float = 0.502, every: int = 2000, looks: int = 800
) -> Mismatch:
    """Entities at shares that are not the set 50/50; `median` is of those that alarm within `every * looks`."""
    rng = np.random.default_rng(seed)
    hits: list[float] = []
    false = {"ours": 0, "chi-square": 0}
    total = every * np.arange(1, looks + 1)
    for _ in range(replications):
        counts = rng.binomial(every, true, looks).cumsum()
        hits.append(_first(_bayes_factors(counts, total)) * every)
        quiet = rng.binomial(every, 0.5, looks).cumsum()
        false["ours"] += _alarmed(_bayes_factors(quiet, total))
        false["chi-square"] += bool((4 * (quiet - total / 2) ** 2 / total > CHI_SQUARE).any())
    within = [hit for hit in hits if math.isfinite(hit)]
    return Mismatch(
        float(np.median(within)), len(within) / replications, {n: c / replications for n, c in false.items()}
    )


def _bayes_factors(counts: NDArray, total: NDArray) -> Floats:
    pairs = zip(counts.tolist(), total.tolist(), strict=True)
    return np.array([log_bf((0.5, 0.5), (first, both - first)) for first, both in pairs])


LATENCY_SIGMA = 0.65
THRESHOLDS = np.exp(LATENCY_SIGMA * np.array([0.0, 0.67449, 1.28155, 1.64485, 2.32635, 3.09023]))
"""p50, p75, p90, p95, p99 and p99.9 of the baseline's latency; log-normal, p99 is 4.5 times p50."""


def requests_until_slow(
    replications: int, seed: int, slower: float = 1.1, every: int = 500, looks: int = 240
) -> tuple[float, float]:
    """The median of the requests until a p99 that is 10 % higher alarms at 50/50, and the alarms of equal arms.

    The slowest 5 % of the candidate's requests take `slower` times as long. The mean of six E, one for each of the
    baseline's quantiles as a threshold, has to alarm. How soon depends on the shape: 5,000 requests at sigma 0.3, 60,000
    at sigma 1.
    """
    rng = np.random.default_rng(seed)
    hits, false = [], 0
    for _ in range(replications):
        hits.append(_first(_latency_e(rng, slower, every, looks)) * every)
        false += _alarmed(_latency_e(rng, 1.0, every, looks))
    return float(np.median(hits)), false / replications


def _latency_e(rng: np.random.Generator, slower: float, every: int, looks: int) -> Floats:
    in_candidate = rng.random(every * looks) < 0.5
    latency = rng.lognormal(0, LATENCY_SIGMA, every * looks)
    latency = np.where(in_candidate & (latency > THRESHOLDS[3]), latency * slower, latency)
    # The quickest half passes no threshold; what passes i of them is slow for the first i.
    passed, look = np.searchsorted(THRESHOLDS, latency), np.arange(every * looks) // every
    shape = (looks, len(THRESHOLDS) + 1)
    slow = [np.zeros(shape), np.zeros(shape)]
    for sums, mask in zip(slow, (in_candidate, ~in_candidate), strict=True):
        np.add.at(sums, (look[mask], passed[mask]), 1)
    candidate, baseline = (sums[:, ::-1].cumsum(1)[:, ::-1][:, 1:].cumsum(0)[..., None] for sums in slow)
    log_e = log_e_many(np.array([0.5]), candidate, baseline)
    return log_sum_exp(log_e - math.log(len(THRESHOLDS)))


class Delayed(NamedTuple):
    """Lifts that are none: what a young canary seems to do, what matured entities show, and how often each is believed."""

    naive_lift: float
    matured_lift: float
    naive_alarms: float
    matured_alarms: float


def delayed_outcomes(replications: int, seed: int, daily: int = 2000, window: float = 7.0) -> Delayed:
    """Identical arms at 50/50, 10 % of entities convert, 2 days later on average; the baseline runs since 11 days before.

    The naive reading takes all conversions until now over all entities of each arm, when the canary is 3 days old. Ours
    looks every 6 hours for 21 days, at entities that were exposed a window ago in the test, and what they did in it.
    """
    rng = np.random.default_rng(seed)
    naive: list[float] = []
    lifts: list[float] = []
    naive_alarms = matured_alarms = 0
    days = 21
    for _ in range(replications):
        starts = (rng.uniform(-11, days, daily * (days + 11)), rng.uniform(0, days, daily * days))
        delays = [np.where(rng.random(len(s)) < 0.1, rng.exponential(2.0, len(s)), np.inf) for s in starts]
        young = [_converted(s < 3, s + d < 3) for s, d in zip(starts, delays, strict=True)]
        seen = difference([(young[0], young[1])], cuped=False)
        assert seen is not None
        naive.append(seen.estimate / seen.baseline)
        naive_alarms += abs(seen.estimate) > Z_TWO_SIDED * seen.se
        alarmed, last = False, 0.0
        for now in np.arange(window + 0.25, days, 0.25).tolist():
            arms = [
                _converted((s >= 0) & (s <= now - window), d < window)
                for s, d in zip(starts, delays, strict=True)
            ]
            if not all(enough(arm.n, int(arm.y)) for arm in arms):
                continue
            found = difference([(arms[0], arms[1])], cuped=False)
            assert found is not None
            low, high = interval(found, ALPHA, 10_000)
            alarmed |= not low <= 0 <= high
            last = found.estimate / found.baseline
        matured_alarms += alarmed
        lifts.append(last)
    return Delayed(
        float(np.mean(naive)),
        float(np.mean(lifts)),
        naive_alarms / replications,
        matured_alarms / replications,
    )


def _converted(counted: NDArray, converted: NDArray) -> Moments:
    conversions = int((counted & converted).sum())
    return Moments(int(counted.sum()), conversions, conversions)


def means_through_a_ramp(replications: int, seed: int, effect: float = 0.0, entities: int = 30_000) -> Alarms:
    """How often the true difference is outside of the interval at one of 1,000 looks, through a ramp with drift.

    5 % convert, and 10 % at the end, for a log-normal sum of money; in the candidate `effect` more at all times.
    Readings start when there is enough in both arms.
    """
    truth = effect * math.exp(0.5**2 / 2)
    rng = np.random.default_rng(seed)
    misses = {"ours": 0, "pooled": 0, "repeated z": 0}
    per_step = entities // len(RAMP)
    for _ in range(replications):
        time = np.arange(entities) / entities
        in_candidate = rng.random(entities) < RAMP[np.arange(entities) // per_step]
        spent = rng.lognormal(0, 0.5, entities)
        y = (rng.random(entities) < 0.05 * (1 + time) + effect * in_candidate) * spent
        looks = np.arange(entities // LOOKS - 1, entities, entities // LOOKS)
        arms = [_running(y, mask, per_step, looks) for mask in (~in_candidate, in_candidate)]
        outside = dict.fromkeys(misses, False)
        for place in range(len(looks)):
            events = [int(arm[2][place]) for arm in arms]
            pairs = [
                (_moments(b), _moments(c)) for b, c in zip(arms[0][0][place], arms[1][0][place], strict=True)
            ]
            whole = (_moments(arms[0][1][place]), _moments(arms[1][1][place]))
            if not all(enough(arm.n, seen) for arm, seen in zip(whole, events, strict=True)):
                continue
            found, pooled = difference(pairs, cuped=False), difference([whole], cuped=False)
            assert found is not None
            assert pooled is not None
            outside["ours"] |= not _holds(interval(found, ALPHA, 5000), truth)
            outside["pooled"] |= not _holds(interval(pooled, ALPHA, 5000), truth)
            outside["repeated z"] |= abs(found.estimate - truth) > Z_TWO_SIDED * found.se
        for name in misses:
            misses[name] += outside[name]
    return {name: count / replications for name, count in misses.items()}


def _running(y: Floats, mask: NDArray, per_step: int, looks: NDArray) -> tuple[Floats, Floats, Floats]:
    """Sums (n, y, yy) of an arm at each look, by step and together, and its entities with a value."""
    terms = np.stack([mask, y * mask, y * y * mask], axis=1).astype(float)
    step = np.arange(len(y)) // per_step
    by_step = np.stack(
        [np.cumsum(terms * (step == s)[:, None], axis=0)[looks] for s in range(len(RAMP))], axis=1
    )
    return by_step, by_step.sum(1), np.cumsum(mask & (y != 0))[looks]


def _moments(sums: Floats) -> Moments:
    n, y, yy = sums.tolist()
    return Moments(int(n), y, yy)


def _holds(bounds: tuple[float, float], value: float) -> bool:
    return bounds[0] <= value <= bounds[1]
