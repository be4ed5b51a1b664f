"""Sample ratio mismatch: whether entities reach the arms in the shares that were set.

After Lindon & Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022 (arXiv 2011.03567). A mismatch means
that the arms hold different kinds of entities, so that no comparison of them can be believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

KAPPA = 10_000.0
"""How strongly the alternative is drawn to the set shares: small mismatches are what happens in practice."""


def log_bf(shares: Sequence[float], counts: Sequence[int], kappa: float = KAPPA) -> float:
    """Evidence that `counts` did not come in these `shares`: the log of the Bayes factor, in nats; 0 without counts.

    `counts` are entities at first exposure by arm, never requests. Shares are scaled to sum to 1; arms with share 0 are
    left out. A mixture martingale: alarm when it reaches ln(1/alpha), at any look. ValueError where the lengths differ.
    Lindon & Malek 2022: a Dirichlet-multinomial with the prior kappa * shares.
    """
    pairs = [(share, count) for share, count in zip(shares, counts, strict=True) if share > 0]
    whole, total = math.fsum(share for share, _ in pairs), sum(count for _, count in pairs)
    found = math.lgamma(kappa) - math.lgamma(kappa + total)
    for share, count in pairs:
        prior = kappa * share / whole
        found += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share / whole)
    return found


def log_bf_segments(segments: Iterable[tuple[Sequence[float], Sequence[int]]], kappa: float = KAPPA) -> float:
    """The evidence of all segments of a test together, from pairs of (shares, counts): Bayes factors multiply."""
    return math.fsum(log_bf(shares, counts, kappa) for shares, counts in segments)
