//! Runs of a model, however they are spread over processes: none is lost, and their order does not matter.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use turnout_core::error::ErrorKind;
use turnout_core::runs::{EXACT, RunTotals, Runs};

/// Rows, nanoseconds before, in and after the model, Unix milliseconds.
type Run = (u64, u64, u64, u64, u64);

/// Mostly the small numbers of rows of a server, so that some come twice; and any number at all.
fn run() -> impl Strategy<Value = Run> {
    let rows = prop_oneof![4 => 0..300_u64, 1 => any::<u64>()];
    (rows, any::<u32>(), any::<u64>(), any::<u32>(), any::<u64>())
        .prop_map(|(rows, before, model, after, now)| (rows, before.into(), model, after.into(), now))
}

fn recorded(runs: &[Run]) -> Runs {
    let recorded = Runs::default();
    for (rows, before, model, after, now) in runs {
        recorded.record(*rows, *before, *model, *after, *now);
    }
    recorded
}

fn sum(parts: &[&[Run]]) -> RunTotals {
    let mut sum = RunTotals::default();
    for part in parts {
        sum.add(&RunTotals::from_dump(&recorded(part).dump()).unwrap());
    }
    sum
}

/// The number under which a run of so many rows is counted, by the definition: the smallest ones are kept apart.
fn counted_under(rows: u64, all: &BTreeSet<u64>) -> u64 {
    let rows = rows.min(1 << 63);
    if all.range(..rows).count() < EXACT { rows } else { rows.next_power_of_two() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_sum_of_processes_is_what_one_would_have_counted(runs in vec(run(), 0..250), cuts in (0..250_usize, 0..250_usize)) {
        let (first, second) = (cuts.0.min(cuts.1).min(runs.len()), cuts.0.max(cuts.1).min(runs.len()));
        let parts = [&runs[..first], &runs[first..second], &runs[second..]];
        let whole = recorded(&runs).totals();
        prop_assert_eq!(&sum(&parts), &whole);
        prop_assert_eq!(&sum(&[parts[2], parts[0], parts[1]]), &whole);
        prop_assert!(whole.sizes().len() <= 2 * EXACT);
    }

    #[test]
    fn runs_are_found_under_their_rows(runs in vec(run(), 0..250)) {
        let all: BTreeSet<u64> = runs.iter().map(|(rows, ..)| *rows.min(&(1 << 63))).collect();
        let totals = recorded(&runs).totals();
        for (size, times) in totals.sizes() {
            let mine: Vec<&Run> = runs.iter().filter(|(rows, ..)| counted_under(*rows, &all) == *size).collect();
            let sum = |of: fn(&Run) -> u64| mine.iter().fold(0_u64, |sum, run| sum.saturating_add(of(run)));
            prop_assert_eq!(times.count, mine.len() as u64);
            prop_assert_eq!((times.input, times.infer, times.output), (sum(|r| r.1), sum(|r| r.2), sum(|r| r.3)));
        }
        prop_assert_eq!(totals.runs().count, runs.len() as u64);
        prop_assert_eq!(totals.rows, runs.iter().fold(0_u64, |sum, run| sum.saturating_add(run.0)));
        prop_assert_eq!(totals.last_ms, runs.iter().map(|run| run.4).max().unwrap_or(0));
    }

    #[test]
    fn dumps_round_trip(runs in vec(run(), 0..250), failures in vec(any::<u64>(), 0..4)) {
        let recorded = recorded(&runs);
        for nanoseconds in &failures {
            recorded.fail(*nanoseconds);
        }
        let totals = recorded.totals();
        prop_assert_eq!(totals.failures, failures.len() as u64);
        prop_assert_eq!(RunTotals::from_dump(&totals.dump()).unwrap(), totals);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..64), runs in vec(run(), 0..100), at in any::<usize>(), flip in 1..=255_u8) {
        let mut bent = recorded(&runs).dump();
        let at = at % bent.len();
        bent[at] ^= flip;
        for bytes in [bytes, bent] {
            match RunTotals::from_dump(&bytes) {
                Ok(read) => {
                    prop_assert!(read.sizes().len() <= 2 * EXACT);
                    prop_assert_eq!(&RunTotals::from_dump(&read.dump()).unwrap(), &read);
                    let mut sum = RunTotals::default();
                    sum.add(&read);
                    prop_assert_eq!(sum, read, "what is read is in the form that a sum has");
                }
                Err(error) => prop_assert_eq!(error.kind, ErrorKind::Dump),
            }
        }
    }
}
