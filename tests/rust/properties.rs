//! What the assignment promises, for any sequence of weights.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a test fails by panicking; counts are small")]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use turnout_core::error::ErrorKind;
use turnout_core::hash::{SLOTS, Salt};
use turnout_core::ledger::{Ledger, Split};

type Weights = BTreeMap<String, f64>;

fn weights(parts: &[(String, u32)]) -> Weights {
    let parts: BTreeMap<&String, u32> = parts.iter().map(|(arm, part)| (arm, *part)).collect();
    let sum: f64 = parts.values().map(|part| f64::from(*part)).sum();
    parts.into_iter().map(|(arm, part)| (arm.clone(), f64::from(part) / sum)).collect()
}

/// Splits over up to five arms of a small alphabet, so that arms come, go and come back.
fn split() -> impl Strategy<Value = Weights> {
    vec(("[a-f]{1}", 0..1000_u32), 1..6)
        .prop_filter("some weight", |parts| weights(parts).values().all(|weight| weight.is_finite()))
        .prop_map(|parts| weights(&parts))
}

fn counts(ledger: &Ledger) -> BTreeMap<String, usize> {
    ledger.counts().map(|(arm, count)| (arm.to_owned(), count)).collect()
}

/// The owner's name of every slot.
fn owners(ledger: &Ledger) -> Vec<String> {
    let arms: Vec<&str> = ledger.arms().collect();
    ledger.table().iter().map(|arm| arms[usize::from(*arm)].to_owned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_step_moves_the_fewest_slots(steps in vec(split(), 1..6)) {
        let mut ledger = Ledger::start("a");
        for step in steps {
            let (next, moved) = ledger.apply(&step).unwrap();
            let (before, after) = (counts(&ledger), counts(&next));
            let least: usize =
                after.iter().map(|(arm, n)| n.saturating_sub(before.get(arm).copied().unwrap_or(0))).sum();
            prop_assert_eq!(moved, least);
            prop_assert_eq!(after.values().sum::<usize>(), SLOTS as usize);
            for (old, new) in owners(&ledger).iter().zip(owners(&next)) {
                let fell = after.get(old).copied().unwrap_or(0) < before[old];
                prop_assert!(*old == new || fell, "an entity left {old}, whose count did not fall");
            }
            ledger = next;
        }
    }

    #[test]
    fn a_step_back_undoes_a_step_forward(start in 0..=1000_u32, step in 0..=1000_u32) {
        let two = |part: u32| weights(&[("a".into(), part), ("b".into(), 1000 - part)]);
        let (before, _) = Ledger::start("a").apply(&two(start)).unwrap();
        let (forward, _) = before.apply(&two(step)).unwrap();
        let (back, _) = forward.apply(&two(start)).unwrap();
        prop_assert_eq!(back, before);
    }

    #[test]
    fn the_order_of_the_arms_does_not_matter(mut parts in vec(("[a-f]{1,3}", 1..1000_u32), 1..6), seed in any::<u64>()) {
        parts.sort();
        parts.dedup_by(|a, b| a.0 == b.0);
        let mut shuffled = parts.clone();
        shuffled.rotate_left(usize::try_from(seed % parts.len() as u64).unwrap());
        let ledger = Ledger::start(&parts[0].0);
        prop_assert_eq!(ledger.apply(&weights(&parts)).unwrap(), ledger.apply(&weights(&shuffled)).unwrap());
    }

    #[test]
    fn runs_round_trip(steps in vec(split(), 1..6)) {
        let mut ledger = Ledger::start("a");
        for step in steps {
            ledger = ledger.apply(&step).unwrap().0;
        }
        let runs: Vec<_> = ledger.runs().map(|(arm, runs)| (arm.to_owned(), runs)).collect();
        prop_assert_eq!(Ledger::from_runs(runs).unwrap(), ledger);
    }

    #[test]
    fn only_whole_ledgers_are_read(runs in vec(("[ab]", vec((0..100_010_u32, 0..100_010_u32), 0..4)), 0..3)) {
        if let Ok(ledger) = Ledger::from_runs(runs) {
            prop_assert_eq!(counts(&ledger).values().sum::<usize>(), SLOTS as usize);
        }
    }
}

#[test]
fn shares_are_within_binomial_noise() {
    let shares = [("a", 0.5), ("b", 0.3), ("c", 0.15), ("d", 0.05)];
    let ledger = Ledger::start("a").apply(&shares.map(|(arm, share)| (arm.to_owned(), share)).into()).unwrap().0;
    let split = Split::new(&ledger, "churn/1");
    let n = 1_000_000;
    let mut found = [0_u32; 4];
    for id in 0..n {
        found[usize::from(split.assign(format!("user-{id}")).0)] += 1;
    }
    for ((arm, share), found) in shares.into_iter().zip(found) {
        let deviation = (f64::from(found) - f64::from(n) * share) / (f64::from(n) * share * (1.0 - share)).sqrt();
        assert!(deviation.abs() < 4.0, "{arm}: {found} of {n} is {deviation} standard deviations off");
    }
}

#[test]
fn tests_with_different_salts_are_independent() {
    let ledger = Ledger::start("a").apply(&weights(&[("a".into(), 1), ("b".into(), 1)])).unwrap().0;
    let (first, second) = (Split::new(&ledger, "churn/1"), Split::new(&ledger, "churn/2"));
    let mut table = [[0_f64; 2]; 2];
    for id in 0..200_000 {
        let id = format!("user-{id}");
        table[usize::from(first.assign(&id).0)][usize::from(second.assign(&id).0)] += 1.0;
    }
    let total: f64 = table.iter().flatten().sum();
    let mut chi_square = 0.0;
    for i in 0..2 {
        for j in 0..2 {
            let expected = (table[i][0] + table[i][1]) * (table[0][j] + table[1][j]) / total;
            chi_square += (table[i][j] - expected).powi(2) / expected;
        }
    }
    assert!(chi_square < 10.83, "chi-square {chi_square} with 1 degree of freedom: p < 0.001");
}

#[test]
fn salts_and_entities_do_not_run_together() {
    assert_ne!(Salt::new("ab").hash(b"c"), Salt::new("a").hash(b"bc"));
    let long = "x".repeat(1000);
    assert_eq!(Salt::new("s").hash(long.as_bytes()), xxhash_rust::xxh3::xxh3_64(format!("s\0{long}").as_bytes()));
}

#[test]
fn what_is_no_split_is_refused() {
    let ledger = Ledger::start("a");
    let refused = |weights: &[(&str, f64)]| {
        ledger.apply(&weights.iter().map(|(arm, weight)| ((*arm).to_owned(), *weight)).collect()).unwrap_err().kind
    };
    assert_eq!(refused(&[]), ErrorKind::SplitArms(0));
    assert_eq!(refused(&[("a", 0.5), ("b", 0.4)]), ErrorKind::SplitSum(0.9));
    assert!(matches!(refused(&[("a", 1.5), ("b", -0.5)]), ErrorKind::SplitWeight { weight, .. } if weight < 0.0));
    assert!(matches!(refused(&[("a", f64::NAN)]), ErrorKind::SplitWeight { .. }));
    assert!(matches!(refused(&[("a", f64::INFINITY)]), ErrorKind::SplitWeight { .. }));
    let many: Weights = (0..257).map(|arm| (arm.to_string(), 1.0 / 257.0)).collect();
    assert_eq!(ledger.apply(&many).unwrap_err().kind, ErrorKind::SplitArms(257));
}
