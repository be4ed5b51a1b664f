//! The shared vectors of assignment: hashes, slots, moves, table digests and assigned arms.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use serde_json::Value;
use turnout_core::hash::{SLOTS, Salt};
use turnout_core::ledger::{Ledger, Split};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/assignment.json")).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    let found = value[key].as_array().unwrap();
    assert!(!found.is_empty(), "{key} has nothing to look at");
    found
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

#[test]
fn hashes_and_slots() {
    let vectors = vectors();
    assert_eq!(vectors["slots_per_split"], SLOTS);
    for case in list(&vectors, "slots") {
        let salt = Salt::new(text(case, "salt"));
        let entity = text(case, "entity").as_bytes();
        assert_eq!(format!("{:016x}", salt.hash(entity)), text(case, "xxh3_64"), "{case}");
        assert_eq!(Value::from(salt.slot(entity)), case["slot"], "{case}");
    }
}

#[test]
fn ledgers() {
    for case in list(&vectors(), "ledgers") {
        let mut ledger = Ledger::start(text(case, "baseline"));
        for step in list(case, "steps") {
            let weights: BTreeMap<String, f64> = serde_json::from_value(step["weights"].clone()).unwrap();
            let moved;
            (ledger, moved) = ledger.apply(&weights).unwrap();
            assert_eq!(Value::from(moved), step["moved"]);
            assert_eq!(format!("{:016x}", ledger.table_digest()), text(step, "table_xxh3_64"));
            for (arm, count) in ledger.counts() {
                assert_eq!(Value::from(count), step["counts"][arm]);
            }
            let split = Split::new(&ledger, text(case, "salt"));
            let assigned = step["assigned"].as_object().unwrap();
            assert!(!assigned.is_empty());
            for (entity, arm) in assigned {
                assert_eq!(split.arms()[usize::from(split.assign(entity).0)], arm.as_str().unwrap());
            }
        }
    }
}
