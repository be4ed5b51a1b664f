"""Shares that follow what was learnt: Thompson sampling, and the mean that such a test still estimates without bias."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from turnout.experiment.statistics.means import Moments


def allocate(
    arms: Mapping[str, Moments], floor: float, draws: int, seed: int, lower_is_better: bool = False
) -> dict[str, float]:
    """The share of each arm: how probable it is that it is the best, none below `floor`, 1 together.

    Probabilities are over `draws` draws from normal posteriors of the means, whose prior weighs as much as one entity and
    has the mean and the variance of all arms together; the same seed gives the same shares. Equal shares while no value
    differs from another. ValueError without arms or where the floors exceed 1. (Thompson, Biometrika 25, 1933; Agrawal &
    Goyal, Further optimal regret bounds for Thompson sampling, AISTATS 2013.)
    """
    spare = 1 - floor * len(arms)
    if not arms or floor < 0 or spare < -1e-12:
        raise ValueError(f"expected a floor from 0 to 1 / {len(arms)} arms, got {floor}")
    pooled = Moments()
    for arm in arms.values():
        pooled = pooled.plus(arm)
    if pooled.n < 2 or pooled.variance == 0:
        return dict.fromkeys(arms, 1 / len(arms))
    sizes = np.array([arm.n + 1 for arm in arms.values()], dtype=np.float64)
    means = np.array([arm.y + pooled.mean for arm in arms.values()]) / sizes
    generator = np.random.default_rng(seed)
    sampled = means + np.sqrt(pooled.variance / sizes) * generator.standard_normal((draws, len(arms)))
    best = (sampled.argmin if lower_is_better else sampled.argmax)(axis=1)
    chances = np.bincount(best, minlength=len(arms)) / draws
    return {name: floor + max(0.0, spare) * float(chance) for name, chance in zip(arms, chances, strict=True)}


def unbiased_mean(segments: Iterable[tuple[float, Moments]]) -> tuple[float, float] | None:
    """One arm's mean and standard error from pairs of (its share then, its moments then); None without entities.

    Each entity weighs the inverse of the share that its arm had. The raw mean of a bandit's arm is biased downwards: after
    an unlucky start an arm gets little traffic, and its bad luck is never averaged away. (Hajek's estimator; Nie, Tian,
    Taylor & Zou, Why adaptively collected data have negative bias, AISTATS 2018.)
    """
    kept = [(1 / share, moments) for share, moments in segments if share > 0 and moments.n > 0]
    weight = math.fsum(inverse * moments.n for inverse, moments in kept)
    if weight == 0:
        return None
    mean = math.fsum(inverse * moments.y for inverse, moments in kept) / weight
    squares = math.fsum(
        inverse**2 * (moments.yy - 2 * mean * moments.y + moments.n * mean**2) for inverse, moments in kept
    )
    return mean, math.sqrt(max(0.0, squares)) / weight
