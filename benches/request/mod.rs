//! A model of 20 features and the bodies that ask it: what the benches have in common.

use std::hint::black_box;
use std::sync::Arc;

use turnout_core::columns::Element;
use turnout_core::feature::Description;
use turnout_core::features::{Layout, Schema};
use turnout_core::receipt::Score;
use turnout_core::route::{Done, Plan, Reason, Route, Rules};

const FEATURES: usize = 20;

fn names() -> Vec<String> {
    (0..FEATURES).map(|index| format!("featureNumber{index}")).collect()
}

fn values() -> Vec<String> {
    (0_u16..20).map(|index| (f64::from(index * 791 % 1000) / 8.0 + 0.1).to_string()).collect()
}

/// Versions with these labels, all of them a label and two probabilities from the same matrix.
pub fn route(labels: &[&str], rules: Rules) -> Route {
    let describe = |name| Description { name, kind: "float".into(), ..Description::default() };
    let features: Vec<_> = names().into_iter().map(describe).collect();
    let schema = Schema::new(Layout::Matrix, &[Element::F32], &features).unwrap();
    let plan = Arc::new(Plan {
        schema: Some(schema),
        outputs: vec!["label".into(), "probabilities".into()],
        datatypes: Vec::new(),
        score: Some(1),
    });
    let versions = labels.iter().map(|&label| (label.to_owned(), Some(Arc::clone(&plan)))).collect();
    Route::new("churn", versions, rules, &names()).unwrap()
}

/// A request that the first version answered.
pub fn done(reason: Reason) -> Done {
    let score = Some(Score { value: 0.876_543_2, class: 1 });
    Done { version: 0, reason, entity: Some(1 << 100 | 7), score, nanoseconds: 350_000 }
}

/// One answer of the first version: its label and its probabilities.
pub fn encode(route: &Route, reason: Reason) -> Vec<u8> {
    let mut answer = route.answer(done(reason), 1_790_000_000_000).unwrap();
    answer.push(&[1], black_box(&[1_i64])).unwrap();
    answer.push(&[1, 2], black_box(&[0.123_456_79_f32, 0.876_543_2])).unwrap();
    answer.finish().unwrap()
}

pub fn object(reverse: bool) -> String {
    let mut parts: Vec<_> = names().iter().zip(values()).map(|(name, value)| format!("\"{name}\":{value}")).collect();
    if reverse {
        parts.reverse();
    }
    format!("{{\"entity_id\":\"user-123\",\"features\":{{{}}}}}", parts.join(","))
}

pub fn list() -> String {
    format!("{{\"entity_id\":\"user-123\",\"features\":[{}]}}", values().join(","))
}
