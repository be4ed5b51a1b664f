//! What an assignment costs without Python: one, in bulk, a step of a ramp, and one record of the recorder.
#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a bench fails by panicking")]

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use turnout_core::ledger::{Ledger, Split};
use turnout_core::recorder::Series;

const IDS: u64 = 100_000;

fn weights(second: f64) -> BTreeMap<String, f64> {
    BTreeMap::from([("v1.0".to_owned(), 1.0 - second), ("v2.0".to_owned(), second)])
}

fn split() -> Split {
    Split::new(&Ledger::start("v1.0").apply(&weights(0.2)).unwrap().0, "churn/1")
}

fn one(criterion: &mut Criterion) {
    let split = split();
    let mut group = criterion.benchmark_group("assign");
    for (name, entity) in
        [("8 bytes", "user-123".to_owned()), ("36 bytes", "u".repeat(36)), ("300 bytes", "u".repeat(300))]
    {
        group.bench_function(name, |bench| bench.iter(|| split.assign(black_box(&entity))));
    }
}

fn bulk(criterion: &mut Criterion) {
    let split = split();
    let ids: Vec<String> = (0..IDS).map(|id| format!("user-{id}")).collect();
    let mut group = criterion.benchmark_group("bulk");
    group.throughput(Throughput::Elements(IDS));
    group.bench_function("strings", |bench| {
        bench.iter(|| ids.iter().map(|id| usize::from(split.assign(id).0)).sum::<usize>());
    });
    group.bench_function("integers", |bench| {
        let mut digits = itoa::Buffer::new();
        bench.iter(|| (0..IDS).map(|id| usize::from(split.assign(digits.format(id)).0)).sum::<usize>());
    });
}

fn ledger(criterion: &mut Criterion) {
    let (ledger, _) = Ledger::start("v1.0").apply(&weights(0.2)).unwrap();
    let runs: Vec<_> = ledger.runs().map(|(arm, runs)| (arm.to_owned(), runs)).collect();
    let mut group = criterion.benchmark_group("ledger");
    group.bench_function("a step of a ramp", |bench| bench.iter(|| ledger.apply(black_box(&weights(0.3))).unwrap()));
    group.bench_function("read from runs", |bench| {
        bench.iter_batched(|| runs.clone(), |runs| Ledger::from_runs(runs).unwrap(), BatchSize::SmallInput);
    });
    group.bench_function("compile", |bench| bench.iter(|| Split::new(&ledger, "churn/1")));
}

fn recorder(criterion: &mut Criterion) {
    let series = Series::default();
    let mut group = criterion.benchmark_group("recorder");
    group.bench_function("record", |bench| bench.iter(|| series.record(black_box(350_000), black_box(200_000))));
    group.bench_function("dump", |bench| bench.iter(|| series.dump()));
}

criterion_group!(benches, one, bulk, ledger, recorder);
criterion_main!(benches);
