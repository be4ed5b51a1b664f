"""How often each way of reading a test is wrong, and how soon ours is right, as tables in Markdown.

    python benches/validity/run.py [--replications 2000] [--seed 1]

The simulations are those of tests/validity, which runs them with a few hundred replications.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from validity.simulations import (
    ALPHA,
    Alarms,
    delayed_outcomes,
    false_rollbacks,
    margin,
    means_through_a_ramp,
    requests_until_alarm,
    requests_until_slow,
    sample_ratio,
)

CANARIES = (
    (0.0125, 119_000, 1000),
    (0.015, 32_500, 1000),
    (0.02, 13_000, 1000),
    (0.05, 3_000, 1000),
    (0.05, 3_000, 20),
)
"""Error rate of the canary, median requests of the reference, and requests between looks."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    validity(options.replications, options.seed)
    power(options.replications, options.seed)
    print(f"\n{options.replications} replications, seed {options.seed}, {time.monotonic() - started:.0f} s.")


def validity(replications: int, seed: int) -> None:
    print(f"False alarms at alpha {ALPHA}; simulated to within {margin(replications):.3f}\n")
    print("| what is true | way to read it | false alarms |\n|---|---|---|")
    rows("identical arms, ramp, drift, sticky heavy users, 1,000 looks", false_rollbacks(replications, seed))
    rows("shares as set, 800 looks", sample_ratio(replications, seed).false_alarms)
    rows("means through a ramp, no effect, 1,000 looks", means_through_a_ramp(replications, seed))
    rows(
        "means through a ramp, an effect: it is outside",
        means_through_a_ramp(replications, seed, effect=0.01),
    )
    delayed = delayed_outcomes(replications, seed)
    naive = f"all so far, lift {delayed.naive_lift:+.1%}"
    matured = f"ours: matured only, lift {delayed.matured_lift:+.1%}"
    rows("delayed outcomes, no effect", {naive: delayed.naive_alarms, matured: delayed.matured_alarms})


def rows(truth: str, alarms: Alarms) -> None:
    for way, share in alarms.items():
        print(f"| {truth} | {way} | {share:.1%} |", flush=True)


def power(replications: int, seed: int) -> None:
    print("\n| what is wrong | median until the alarm | reference |\n|---|---|---|")
    for worse, figure, every in CANARIES:
        found = requests_until_alarm(worse, replications, seed, every=every, looks=5 * figure // every)
        what = f"errors 1 % -> {worse:.2%}, 10 % canary, a look each {every:,}"
        print(f"| {what} | {found:,.0f} requests | {figure:,} |", flush=True)
    ratio = sample_ratio(replications, seed)
    print(
        f"| 50.2/49.8, found in {ratio.found:.1%} of 1.6 million | {ratio.median:,.0f} entities | 457,000 |"
    )
    slow, false = requests_until_slow(replications, seed)
    print(f"| p99 +10 %, 50/50 (equal arms: {false:.1%} alarms) | {slow:,.0f} requests | 25,000 |")


if __name__ == "__main__":
    main()
