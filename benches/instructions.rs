//! Walks one path of a prediction as often as it is told, for valgrind to count: `hash 1000`; `--list` names the paths.
//!
//! `tests/instructions.py` runs it. `cargo bench` finds nothing to time in it.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench fails by panicking")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use request::{done, encode, list, object, route};
use turnout_core::ledger::{Ledger, Split};
use turnout_core::receipt::Key;
use turnout_core::recorder::Series;
use turnout_core::route::{Reason, Rules, Witness};
use turnout_core::watch::{THRESHOLDS, Watch};

mod request;

const ENTITY: &[u8] = b"user-123";

fn main() {
    let weights = BTreeMap::from([("v1".to_owned(), 0.8), ("v2".to_owned(), 0.2)]);
    let split = Arc::new(Split::new(&Ledger::start("v1").apply(&weights).unwrap().0, "churn/1"));
    // No overrides: their map hashes with keys that differ between processes.
    let watch = Some(Arc::new(Watch::new(2, [u64::MAX; THRESHOLDS])));
    let witness = Some(Witness { key: Key::new(&[7; 32], "churn"), numbers: vec![1, 2], test: (1, 1), watch });
    let rules = Rules { active: Some(0), split: Some(split.clone()), arms: vec![0, 1], witness, ..Rules::default() };
    let route = route(&["v1", "v2"], rules);
    let (object, list, series) = (object(false), list(), Series::default());
    let paths = [
        ("prepare_object", repeat(|| route.prepare(black_box(object.as_bytes()), None).unwrap())),
        ("prepare_list", repeat(|| route.prepare(black_box(list.as_bytes()), None).unwrap())),
        ("encode", repeat(|| encode(&route, Reason::Test))),
        ("assign", repeat(|| split.assign(black_box(ENTITY)))),
        ("hash", repeat(|| split.salt().hash(black_box(ENTITY)))),
        ("see", repeat(|| route.see_answer(black_box(done(Reason::Test)), black_box(1_790_000_000_000)))),
        ("record", repeat(|| series.record(black_box(350_000), black_box(200_000)))),
    ];

    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [list] if list == "--list" => paths.iter().for_each(|(name, _)| println!("{name}")),
        [name, times] if times != "--bench" => {
            paths.iter().find(|(known, _)| known == name).unwrap().1(times.parse().unwrap());
        }
        _ => {} // `cargo bench`
    }
}

/// The loop is inside the box, so that a short path is not drowned by the call of the box.
fn repeat<'a, T>(path: impl Fn() -> T + 'a) -> Box<dyn Fn(u64) + 'a> {
    Box::new(move |times| {
        for _ in 0..times {
            black_box(path());
        }
    })
}
