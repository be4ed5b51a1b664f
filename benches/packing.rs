//! One request of 20 features to a row, and one answer to bytes, without Python.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use turnout_core::columns::Element;
use turnout_core::feature::Description;
use turnout_core::features::{Layout, Schema};
use turnout_core::route::{Plan, Reason, Route, Rules};

const FEATURES: usize = 20;

fn names() -> Vec<String> {
    (0..FEATURES).map(|index| format!("featureNumber{index}")).collect()
}

fn route() -> Route {
    let describe = |name| Description { name, kind: "float".into(), ..Description::default() };
    let features: Vec<_> = names().into_iter().map(describe).collect();
    let schema = Schema::new(Layout::Matrix, &[Element::F32], &features).unwrap();
    let plan = Arc::new(Plan { schema, outputs: vec!["label".into(), "probabilities".into()] });
    let rules = Rules { active: Some(0), ..Rules::default() };
    Route::new("churn", vec![("v1".into(), Some(plan))], rules, &names()).unwrap()
}

fn values() -> Vec<String> {
    (0_u16..20).map(|index| (f64::from(index * 791 % 1000) / 8.0 + 0.1).to_string()).collect()
}

fn object(reverse: bool) -> String {
    let mut parts: Vec<_> = names().iter().zip(values()).map(|(name, value)| format!("\"{name}\":{value}")).collect();
    if reverse {
        parts.reverse();
    }
    format!("{{\"entity_id\":\"user-123\",\"features\":{{{}}}}}", parts.join(","))
}

fn list() -> String {
    format!("{{\"entity_id\":\"user-123\",\"features\":[{}]}}", values().join(","))
}

fn prepare(criterion: &mut Criterion) {
    let route = route();
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
    let route = route();
    criterion.bench_function("encode", |bencher| {
        bencher.iter(|| {
            let mut answer = route.answer(0, Reason::Active).unwrap();
            answer.push(&[1], black_box(&[1_i64])).unwrap();
            answer.push(&[1, 2], black_box(&[0.123_456_79_f32, 0.876_543_2])).unwrap();
            answer.finish().unwrap()
        });
    });
}

criterion_group!(benches, prepare, encode);
criterion_main!(benches);
