//! Routing and reading whole requests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use turnout_core::columns::{Column, Element};
use turnout_core::error::ErrorKind;
use turnout_core::feature::Description;
use turnout_core::features::{Layout, Schema};
use turnout_core::ledger::{Ledger, Split};
use turnout_core::receipt::{Key, Receipt, Score};
use turnout_core::route::{Choice, Done, Plan, Reason, Route, Rules, Witness};
use turnout_core::watch::{Kind, THRESHOLDS, Watch};

fn plan(names: &[&str]) -> Arc<Plan> {
    let describe = |name: &&str| Description { name: (*name).into(), kind: "float".into(), ..Description::default() };
    let features: Vec<_> = names.iter().map(describe).collect();
    let schema = Schema::new(Layout::Matrix, &[Element::F32], &features).unwrap();
    Arc::new(Plan { schema: Some(schema), outputs: vec!["out".into()], datatypes: Vec::new(), score: None })
}

/// Two versions that share feature `a`, and a third that takes free tensors.
fn versions() -> Vec<(String, Option<Arc<Plan>>)> {
    vec![
        ("v1".to_owned(), Some(plan(&["a", "b"]))),
        ("v2".to_owned(), Some(plan(&["a", "c"]))),
        ("v3".to_owned(), None),
    ]
}

fn route(rules: Rules) -> Route {
    Route::new("churn", versions(), rules, &["a".into(), "b".into(), "c".into()]).unwrap()
}

fn split() -> Arc<Split> {
    let weights: BTreeMap<String, f64> = [("v1".to_owned(), 0.5), ("v2".to_owned(), 0.5)].into();
    Arc::new(Split::new(&Ledger::start("v1").apply(&weights).unwrap().0, "churn/1"))
}

fn tested() -> Route {
    let overrides = HashMap::from([("qa".into(), 1)]);
    route(Rules { active: Some(0), split: Some(split()), arms: vec![0, 1], overrides, witness: None })
}

fn choice(version: usize, reason: Reason) -> Choice {
    Choice { version, reason, slot: None }
}

#[test]
fn pinned_wins_then_override_then_test_then_active() {
    let tested = tested();
    let body = br#"{"entity_id":"qa","features":{"a":1,"b":2,"c":3}}"#;
    assert_eq!(tested.prepare(body, Some(0)).unwrap().choice, choice(0, Reason::Pinned));
    assert_eq!(tested.prepare(body, None).unwrap().choice, choice(1, Reason::Override));
    let (arm, slot) = split().assign("user-1");
    let expected = Choice { version: usize::from(arm), reason: Reason::Test, slot: Some(slot) };
    assert_eq!(tested.assign(Some("user-1")).unwrap(), expected);
    assert_eq!(tested.assign(None).unwrap().reason, Reason::Random);
    let quiet = route(Rules { active: Some(1), ..Rules::default() });
    assert_eq!(quiet.assign(Some("user-1")).unwrap(), choice(1, Reason::Active));
    let idle = route(Rules::default()).assign(None).unwrap_err();
    assert_eq!(idle.kind, ErrorKind::NoActiveVersion("churn".into()));
}

#[test]
fn each_version_takes_its_own_features_of_the_union() {
    let tested = tested();
    let body = br#"{"features":{"a":1,"b":2,"c":3}}"#;
    assert_eq!(tested.prepare(body, Some(0)).unwrap().columns, [Column::F32(vec![1.0, 2.0])]);
    assert_eq!(tested.prepare(body, Some(1)).unwrap().columns, [Column::F32(vec![1.0, 3.0])]);
    assert_eq!(tested.prepare(body, Some(2)).unwrap_err().kind, ErrorKind::FreeTensors("v3".into()));
}

#[test]
fn an_integer_is_the_entity_of_its_decimal_text() {
    let tested = tested();
    for (id, text) in [("42", "42"), ("-7", "-7"), ("-0", "0"), ("123456789012345678901", "123456789012345678901")] {
        let body = format!(r#"{{"features":[1,2],"entity_id":{id}}}"#);
        assert_eq!(tested.prepare(body.as_bytes(), None).unwrap().choice, tested.assign(Some(text)).unwrap(), "{id}");
    }
    for id in ["1.0", "1e3", "true", "[1]", "{}", "", "01"] {
        let body = format!(r#"{{"entity_id":{id},"features":[1,2]}}"#);
        assert!(tested.prepare(body.as_bytes(), None).is_err(), "{id}");
    }
    let null = tested.prepare(br#"{"entity_id":null,"features":[1,2]}"#, None).unwrap();
    assert_eq!(null.choice.reason, Reason::Random);
}

#[test]
fn bodies_that_are_no_request_are_refused_at_their_byte() {
    let tested = tested();
    let cases = [
        ("", "expected an object with \"features\", found the end of the document", Some(0)),
        ("[]", "expected an object with \"features\", found an array", Some(0)),
        ("{}", "missing field \"features\"", None),
        (r#"{"features":[1,2],"features":[1,2]}"#, "duplicate key \"features\"", Some(18)),
        (r#"{"entity_id":1,"entity_id":1}"#, "duplicate key \"entity_id\"", Some(15)),
        (r#"{"entity":1}"#, "unknown field \"entity\"; a prediction takes \"features\" and \"entity_id\"", Some(1)),
        (r#"{"features":[1,2]} {}"#, "expected the end of the document, found an object", Some(19)),
        (r#"{"features":[1,2"#, "expected ',' or ']', found the end of the document", Some(16)),
        (r#"{"features":null}"#, "expected an object or a list of features, found null", Some(12)),
    ];
    for (body, expected, position) in cases {
        let error = tested.prepare(body.as_bytes(), None).unwrap_err();
        assert_eq!((error.kind.to_string().as_str(), error.position), (expected, position), "{body}");
    }
}

#[test]
fn rules_that_leave_the_versions_are_refused() {
    let versions = || vec![("v1".to_owned(), Some(plan(&["a"])))];
    let wrong = [
        Rules { active: Some(1), ..Rules::default() },
        Rules { split: Some(split()), arms: vec![0], ..Rules::default() },
        Rules { split: Some(split()), arms: vec![0, 1], ..Rules::default() },
        Rules { overrides: HashMap::from([("qa".into(), 7)]), ..Rules::default() },
    ];
    for rules in wrong {
        assert!(Route::new("churn", versions(), rules, &[]).is_err());
    }
}

fn done(version: usize) -> Done {
    Done { version, reason: Reason::Test, entity: None, score: None, nanoseconds: 0 }
}

#[test]
fn a_signed_answer_says_what_it_was() {
    let watch = Arc::new(Watch::new(2, [u64::MAX; THRESHOLDS]));
    let key = Key::new(&[1; 32], "churn");
    let witness = Witness { key: key.clone(), numbers: vec![4, 9, 11], test: (3, 2), watch: Some(Arc::clone(&watch)) };
    let rules = Rules { split: Some(split()), arms: vec![0, 1], witness: Some(witness), ..Rules::default() };
    let route = route(rules);
    let body = br#"{"entity_id": "user-123", "features": {"a": 1, "b": 2, "c": 3}}"#;
    let prepared = route.prepare(body, None).unwrap();
    assert_eq!(prepared.entity, Some(key.entity(b"user-123")));
    let score = Some(Score { value: 0.75, class: 1 });
    let done = Done { entity: prepared.entity, score, ..done(prepared.choice.version) };
    let mut answer = route.answer(done, 1_790_000_000_000).unwrap();
    answer.push(&[1], &[1_i64]).unwrap();
    let bytes = answer.finish().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let receipt = Receipt::read(value["prediction_id"].as_str().unwrap().as_bytes(), &key).unwrap();
    assert_eq!(receipt.version, [4, 9][done.version]);
    assert_eq!((receipt.test, receipt.revision, receipt.milliseconds), (3, 2, 1_790_000_000_000));
    assert_eq!((receipt.entity, receipt.score, receipt.reason), (done.entity, score, Reason::Test));

    route.see_answer(done, 1);
    route.see_answer(Done { score: Some(Score { value: f32::NAN, class: 0 }), ..done }, 2);
    route.see(Done { reason: Reason::Pinned, ..done }, Kind::Failed, 3);
    let kinds: Vec<_> = watch.drain().entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [Kind::Answered, Kind::Invalid]);
}

#[test]
fn prediction_ids_differ() {
    let tested = tested();
    let ids: std::collections::HashSet<Vec<u8>> = (0..1000)
        .map(|_| {
            let mut answer = tested.answer(done(0), 1).unwrap();
            answer.push(&[1], &[1_i64]).unwrap();
            answer.finish().unwrap()
        })
        .collect();
    assert_eq!(ids.len(), 1000);
}

proptest! {
    #[test]
    fn where_the_entity_stands_does_not_matter(entity in any::<String>(), a in -1000_i32..1000) {
        let tested = tested();
        let entity = serde_json::Value::String(entity);
        let first = format!(r#"{{"entity_id":{entity},"features":{{"a":{a},"b":0,"c":1}}}}"#);
        let last = format!(r#" {{ "features" : {{"c":1,"b":0,"a":{a}.0}} , "entity_id" : {entity} }} "#);
        let first = tested.prepare(first.as_bytes(), None).unwrap();
        let last = tested.prepare(last.as_bytes(), None).unwrap();
        prop_assert_eq!(first.choice, last.choice);
        prop_assert_eq!(first.columns, last.columns);
    }

    #[test]
    fn any_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = tested().prepare(&body, None);
    }

    #[test]
    fn any_request_cut_short_is_an_error(cut in 0_usize..60) {
        let body = br#"{"entity_id":"user-1","features":{"a":1.5,"b":-2e3,"c":12}}"#;
        prop_assert!(tested().prepare(&body[..cut.min(body.len() - 1)], None).is_err());
    }
}
