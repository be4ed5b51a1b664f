"""Evidence from counts of bad events: errors, timeouts, slow requests, wrong answers.

After Lindon & Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022 (arXiv 2011.03567). Given that a bad
event happened, which arm it came from is a coin whose bias we know, because we set the shares; what changes over time in
both arms cancels. E is at most 1 on average as long as the claim it is evidence against is true, at any look, so alarm
when E >= 1/alpha. Everything is in natural logarithms, because E overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

STEP, STEPS, SCALE = 0.05, 60, 0.7
"""Log ratios of rates that E mixes over: 0.05 to 3, that is 1.05 to 20 times, small ones with more weight."""
DRIFTS: NDArray[np.float64] = np.linspace(STEP, STEP * STEPS, STEPS, dtype=np.float64)
LOG_WEIGHTS: NDArray[np.float64] = -DRIFTS / SCALE - math.log(float(np.sum(np.exp(-DRIFTS / SCALE))))
HALVINGS = 60
"""Bisections of an interval in [0, 1]: past the precision of a double."""


class Segment(NamedTuple):
    """Bad events while the shares did not change; `share` is the candidate's of the traffic of these two arms."""

    share: float
    candidate: int
    baseline: int


def log_e_worse(segments: Iterable[Segment], tolerance: float = 0.0) -> float:
    """Evidence that the candidate's rate of bad events is more than 1 + `tolerance` times the baseline's.

    The logarithm of E, in nats; 0 without events. Segments with one arm only count nothing. Lindon & Malek 2022, with
    a mixture over positive log ratios only.
    """
    return _log_e(segments, tolerance, DRIFTS)


def log_e_better(segments: Iterable[Segment], tolerance: float = 0.0) -> float:
    """Evidence that the candidate's rate is less than 1 + `tolerance` times the baseline's: harm beyond is excluded.

    The logarithm of E, in nats; the mirror image of `log_e_worse`.
    """
    return _log_e(segments, tolerance, -DRIFTS)


def _log_e(segments: Iterable[Segment], tolerance: float, drifts: NDArray[np.float64]) -> float:
    table = _table(segments)
    if not len(table):
        return 0.0
    return float(log_e_many(table[:, 0], table[:, 1], table[:, 2], tolerance, drifts))


def log_e_many(
    share: NDArray[np.float64],
    candidate: NDArray[np.float64],
    baseline: NDArray[np.float64],
    tolerance: float = 0.0,
    drifts: NDArray[np.float64] = DRIFTS,
) -> NDArray[np.float64]:
    """The logarithm of E for many states at once: arrays with segments along the last axis, which it sums over.

    Shares must lie strictly between 0 and 1. `drifts` are log ratios with the weights LOG_WEIGHTS.
    """
    shifted = share * (1 + tolerance) / (1 - share + share * (1 + tolerance))
    normal = np.log1p(shifted[..., None] * np.expm1(drifts))
    gain = candidate.sum(axis=-1)[..., None] * drifts
    gain = gain - np.einsum("...s,...sj->...j", candidate + baseline, normal)
    return log_sum_exp(gain + LOG_WEIGHTS)


def _table(segments: Iterable[Segment]) -> NDArray[np.float64]:
    """The segments that say something, one a row."""
    kept = [s for s in segments if 0 < s.share < 1 and s.candidate + s.baseline > 0]
    return np.array(kept, dtype=np.float64).reshape(-1, 3)


def log_sum_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of a sum of exponentials along the last axis, without overflow."""
    top = values.max(axis=-1)
    return np.log(np.exp(values - top[..., None]).sum(axis=-1)) + top


def rate_ratio_interval(segments: Sequence[Segment], alpha: float) -> Interval:
    """Where the ratio of rates, candidate to baseline, lies: in these bounds at every look, but for `alpha` of all tests.

    (0, inf) without events. Ratios that neither of two one-sided tests at alpha / 2 excludes (Lindon & Malek 2022).
    """
    table, target = _table(segments), math.log(2 / alpha)
    if not len(table):
        return 0.0, math.inf

    def excess(log_ratio: float, drifts: NDArray[np.float64]) -> float:
        return (
            float(log_e_many(table[:, 0], table[:, 1], table[:, 2], math.expm1(log_ratio), drifts)) - target
        )

    centre = _log_ratio(table)
    low = _root(lambda x: -excess(x, DRIFTS), centre, -1)
    high = _root(lambda x: -excess(x, -DRIFTS), centre, 1)
    return (0.0 if math.isinf(low) else math.exp(low)), (math.inf if math.isinf(high) else math.exp(high))


def _log_ratio(table: NDArray[np.float64]) -> float:
    """The log ratio of rates that makes the candidate's events as many as they are, within +-10."""
    share, candidate, total = table[:, 0], float(table[:, 1].sum()), table[:, 1] + table[:, 2]
    low, high = -10.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        ratio = math.exp(middle)
        few = float(np.sum(total * share * ratio / (1 - share + share * ratio))) < candidate
        low, high = (middle, high) if few else (low, middle)
    return (low + high) / 2


def _root(inside: Callable[[float], float], start: float, sign: int) -> float:
    """Where `inside` falls below 0, going from `start` in the direction of `sign`; infinite where it is not within 30."""
    near, far = start, start + sign * 0.25
    while inside(far) > 0:
        near, far = far, start + 2 * (far - start)
        if abs(far) > 30:
            return sign * math.inf
    for _ in range(40):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(middle) > 0 else (near, middle)
    return far


def rate_interval(bad: int, total: int, alpha: float) -> Interval:
    """Where one rate lies: in these bounds at every look, but for `alpha` of all sequences.

    (0, 1) where total is 0; ValueError where `bad` is not in 0..total. The rates p that the beta-binomial mixture
    martingale B(1 + bad, 1 + total - bad) / (p^bad (1 - p)^(total - bad)) < 1/alpha does not exclude (Robbins,
    Annals of Mathematical Statistics 41, 1970).
    """
    if not 0 <= bad <= total:
        raise ValueError(f"expected 0 <= bad <= total, got bad {bad} of {total}")
    if total == 0:
        return 0.0, 1.0
    good = total - bad
    floor = math.lgamma(1 + bad) + math.lgamma(1 + good) - math.lgamma(2 + total) + math.log(alpha)

    def inside(p: float) -> bool:
        return (bad * math.log(p) if bad else 0.0) + (good * math.log1p(-p) if good else 0.0) > floor

    low = 0.0 if bad == 0 else _edge(inside, bad / total, 0.0)
    high = 1.0 if good == 0 else _edge(inside, bad / total, 1.0)
    return low, high


def _edge(inside: Callable[[float], bool], within: float, outside: float) -> float:
    for _ in range(HALVINGS):
        middle = (within + outside) / 2
        if middle in {within, outside}:
            break
        within, outside = (middle, outside) if inside(middle) else (within, middle)
    return outside


def log_e_mean(log_es: Sequence[float]) -> float:
    """The logarithm of the mean of Es, which is an E whatever ties them together, as six thresholds of one latency do.

    0 without any: nothing is evidence of nothing.
    """
    if not log_es:
        return 0.0
    top = max(log_es)
    if math.isinf(top):
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in log_es) / len(log_es))


def log_e_weighted_max(weighted: Iterable[tuple[float, float]]) -> float:
    """The greatest ln(weight) + log E of pairs of weight and log E; -inf without any of positive weight.

    With weights that sum to 1, reaching 1/alpha is a false alarm in at most alpha of all tests (weighted Bonferroni).
    """
    return max((math.log(weight) + log_e for weight, log_e in weighted if weight > 0), default=-math.inf)
