//! One request of 20 features to a row, and one answer to bytes, without Python.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use request::{list, object, route};
use turnout_core::route::{Reason, Rules};

mod request;

fn active() -> Rules {
    Rules { active: Some(0), ..Rules::default() }
}

fn prepare(criterion: &mut Criterion) {
    let route = route(&["v1"], active());
    let mut group = criterion.benchmark_group("prepare");
    for (name, body) in [("object", object(false)), ("object_reversed", object(true)), ("list", list())] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| route.prepare(black_box(body.as_bytes()), None).unwrap());
        });
    }
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let route = route(&["v1"], active());
    criterion.bench_function("encode", |bencher| bencher.iter(|| request::encode(&route, Reason::Active)));
}

criterion_group!(benches, prepare, encode);
criterion_main!(benches);
