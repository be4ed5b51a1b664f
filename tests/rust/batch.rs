//! Many rows at once give what each of them gives alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "tests"
)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use turnout_core::answers::{Array, Output, Part, Rows};
use turnout_core::batch::{Batch, Fault, NO_VERSION, Wishes};
use turnout_core::columns::{Column, Element};
use turnout_core::error::ErrorKind;
use turnout_core::feature::{Description, Scalar};
use turnout_core::features::{Layout, Schema};
use turnout_core::ledger::{Ledger, Split};
use turnout_core::route::{Plan, Reason, Route, Rules};
use turnout_core::slice::Slice;

const ALL: Wishes = Wishes { pinned: None, skip: false, most: 1000 };
const SKIP: Wishes = Wishes { skip: true, ..ALL };

fn plan(layout: Layout, names: &[(&str, &str)], outputs: &[&str]) -> Arc<Plan> {
    let element = |kind: &str| if kind == "string" { Element::Text } else { Element::F32 };
    let describe = |(name, kind): &(&str, &str)| Description {
        name: (*name).into(),
        kind: (*kind).into(),
        nullable: *name == "a",
        default: (*name == "d").then_some(Scalar::Float(7.0)),
        ..Description::default()
    };
    let features: Vec<_> = names.iter().map(describe).collect();
    let elements: Vec<_> = match layout {
        Layout::Matrix => vec![Element::F32],
        Layout::Columns => names.iter().map(|(_, kind)| element(kind)).collect(),
    };
    let schema = Schema::new(layout, &elements, &features).unwrap();
    Arc::new(Plan {
        schema: Some(schema),
        outputs: outputs.iter().map(|&name| name.to_owned()).collect(),
        datatypes: Vec::new(),
        score: None,
    })
}

/// Three versions with different features, layouts and outputs; the split has one arm for each.
fn route(arms: usize) -> Route {
    let versions = vec![
        ("v1".to_owned(), Some(plan(Layout::Matrix, &[("a", "float"), ("b", "float")], &["score"]))),
        ("v2".to_owned(), Some(plan(Layout::Matrix, &[("b", "float"), ("a", "float"), ("d", "float")], &["label"]))),
        ("v3".to_owned(), Some(plan(Layout::Columns, &[("s", "string"), ("a", "float")], &["label", "score"]))),
    ];
    let known: Vec<String> = ["a", "b", "d", "s"].map(str::to_owned).into();
    if arms == 0 {
        return Route::new("m", versions, Rules { active: Some(0), ..Rules::default() }, &known).unwrap();
    }
    let weights: BTreeMap<String, f64> = (0..arms).map(|i| (format!("v{}", i + 1), 1.0 / arms as f64)).collect();
    let split = Arc::new(Split::new(&Ledger::start("v1").apply(&weights).unwrap().0, "m/1"));
    let overrides = HashMap::from([("qa".into(), arms - 1)]);
    let rules = Rules { active: Some(0), split: Some(split), arms: (0..arms).collect(), overrides, witness: None };
    Route::new("m", versions, rules, &known).unwrap()
}

/// Rows `(entity, features)` as JSON; some of the features are wrong.
fn rows() -> impl Strategy<Value = Vec<(String, String)>> {
    let entity = prop_oneof!["\"[a-z]{1,3}\"", "[1-9][0-9]{0,3}", Just("\"qa\"".to_owned())];
    let value = prop_oneof![
        6 => "-?[1-9][0-9]{0,4}(\\.[0-9]{1,3})?",
        1 => Just("null".to_owned()),
        1 => Just("1e99".to_owned()),
        1 => Just("\"text\\n\"".to_owned()),
    ];
    let row =
        (value.clone(), value.clone(), value, any::<bool>(), 0..9_u8).prop_map(|(a, b, d, full, odd)| match odd {
            0 => format!("[{a},{b}]"),
            1 => format!(r#"{{"a":{a},"nobody":[1,{{}}]}}"#),
            2 => format!(r#"{{"a":{a},"a":{b}}}"#),
            _ if full => format!(r#"{{"a":{a},"b":{b},"d":{d},"s":"x"}}"#),
            _ => format!(r#"{{"b":{b},"s":"é","a":{a}}}"#),
        });
    proptest::collection::vec((entity, row), 0..40)
}

/// The rows of each version, and the bad rows with what is wrong with them (positions aside), one by one.
type Alone = (BTreeMap<usize, Vec<Vec<String>>>, Vec<(usize, ErrorKind)>);

fn cells(column: &Column<'_>, width: usize, row: usize) -> String {
    let at = row * width..(row + 1) * width;
    match column {
        Column::F32(values) => format!("{:?}", &values[at]),
        Column::Text(values) => format!("{:?}", &values[at]),
        other => panic!("{other:?}"),
    }
}

fn one_by_one(route: &Route, rows: &[(String, String)]) -> Alone {
    let (mut groups, mut faults) = (BTreeMap::<usize, Vec<Vec<String>>>::new(), Vec::new());
    for (row, (entity, features)) in rows.iter().enumerate() {
        let body = format!(r#"{{"entity_id":{entity},"features":{features}}}"#);
        match route.prepare(body.as_bytes(), None) {
            Ok(prepared) => {
                let values = prepared.columns.iter().map(|column| cells(column, prepared.width, 0)).collect();
                groups.entry(prepared.choice.version).or_default().push(values);
            }
            Err(error) => faults.push((row, error.kind)),
        }
    }
    (groups, faults)
}

fn together(batch: &Batch<'_>) -> Alone {
    let groups = batch.groups.iter().map(|group| {
        let length = match &group.columns[0] {
            Column::F32(values) => values.len(),
            Column::Text(values) => values.len(),
            other => panic!("{other:?}"),
        };
        let row = |row| group.columns.iter().map(|column| cells(column, group.width, row)).collect();
        (group.version, (0..length / group.width).map(row).collect())
    });
    let faults = batch.faults.iter().map(|fault| (fault.row.unwrap(), fault.error.kind.clone()));
    (groups.collect(), faults.collect())
}

proptest! {
    #[test]
    fn rows_and_lines_are_what_each_is_alone(rows in rows(), arms in 0..4_usize, ids_first in any::<bool>()) {
        let route = route(arms);
        let alone = one_by_one(&route, &rows);
        let entities: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
        let features: Vec<&str> = rows.iter().map(|row| row.1.as_str()).collect();
        let (ids, values) = (entities.join(" , "), features.join("\n,"));
        let body = if ids_first {
            format!(r#"{{"entity_ids":[{ids}],"rows":[{values}]}}"#)
        } else {
            format!(r#"{{"rows":[{values}],"entity_ids":[{ids}]}}"#)
        };
        let batch = route.prepare_batch(body.as_bytes(), SKIP).unwrap();
        prop_assert_eq!(&together(&batch), &alone);
        for (row, entity) in entities.iter().enumerate() {
            let choice = route.assign(Some(entity.trim_matches('"'))).unwrap();
            prop_assert_eq!((batch.versions[row], batch.reasons[row]), (choice.version as i32, choice.reason as u8));
        }
        let lines: Vec<String> =
            rows.iter().map(|(id, row)| format!(r#"{{"features":{row},"entity_id":{id}}}"#)).collect();
        let text = lines.join("\n\n");
        let lines = route.prepare_lines(text.as_bytes(), SKIP).unwrap();
        prop_assert_eq!(&together(&lines), &alone);

        let strict = route.prepare_batch(body.as_bytes(), ALL);
        match alone.1.first() {
            None => prop_assert_eq!(&together(&strict.unwrap()), &alone),
            Some((row, kind)) => {
                let fault = strict.unwrap_err();
                prop_assert_eq!((fault.row, &fault.error.kind), (Some(*row), kind));
                let cut = route.prepare_lines(text.as_bytes(), ALL).unwrap();
                prop_assert_eq!((cut.versions.len(), cut.faults.len()), (row + 1, 1));
            }
        }
    }

    #[test]
    fn columns_are_what_rows_are(
        rows in proptest::collection::vec(("[1-9][0-9]{0,3}", "-?[0-9]", "[0-9]|null", "\"[a-z]\"|3"), 0..40),
        arms in 0..4_usize,
    ) {
        let route = route(arms);
        let list = |column: fn(&(String, String, String, String)) -> &str| {
            format!("[{}]", rows.iter().map(column).collect::<Vec<_>>().join(","))
        };
        let objects: Vec<String> =
            rows.iter().map(|(_, a, b, s)| format!(r#"{{"a":{a},"b":{b},"s":{s}}}"#)).collect();
        let by_rows = format!(r#"{{"entity_ids":{},"rows":[{}]}}"#, list(|row| &row.0), objects.join(","));
        let by_columns = format!(
            r#"{{"columns":{{"s":{},"b":{},"a":{}}},"entity_ids":{}}}"#,
            list(|row| &row.3), list(|row| &row.2), list(|row| &row.1), list(|row| &row.0)
        );
        let expected = route.prepare_batch(by_rows.as_bytes(), SKIP).unwrap();
        let found = route.prepare_batch(by_columns.as_bytes(), SKIP).unwrap();
        prop_assert_eq!(together(&found), together(&expected));
        prop_assert_eq!(found.versions, expected.versions);
    }

    #[test]
    fn no_bytes_break_it(body in proptest::collection::vec(any::<u8>(), 0..60), cut in 0..200_usize) {
        let route = route(3);
        let text = br#"{"entity_ids":[1,"b",null],"columns":{"a":[1,2,null],"b":[1,2,3],"s":["x","y","z"]}}"#;
        let mut mixed = text[..cut.min(text.len())].to_vec();
        mixed.extend_from_slice(&body);
        for wishes in [ALL, SKIP] {
            let _ = route.prepare_batch(&mixed, wishes);
            let _ = route.prepare_lines(&mixed, wishes);
        }
    }
}

fn refused(route: &Route, body: &str) -> Fault {
    route.prepare_batch(body.as_bytes(), SKIP).unwrap_err()
}

#[test]
fn a_document_that_is_none_is_refused_though_bad_rows_are_skipped() {
    let route = route(2);
    for body in [
        "",
        "[]",
        "{}",
        r#"{"entity_ids":[1]}"#,
        r#"{"rows":[[1,2]],"rows":[]}"#,
        r#"{"rows":[[1,2]],"columns":{}}"#,
        r#"{"rows":[[1,2]"#,
        r#"{"rows":[[1,2]]} x"#,
        r#"{"rows":[[1,2]],"other":1}"#,
        r#"{"entity_ids":[1,2],"rows":[[1,2]]}"#,
        r#"{"entity_ids":[1],"rows":[[1,2],[3,4]]}"#,
        r#"{"rows":[[1,2]],"entity_ids":[]}"#,
        r#"{"entity_ids":[1],"columns":{"a":[1],"b":[1],"b":[1],"d":[1]}}"#,
        r#"{"entity_ids":[1],"columns":{"a":[1]}}"#,
        r#"{"entity_ids":[1],"columns":{"a":[1,2],"b":[1]}}"#,
        r#"{"entity_ids":[1],"columns":{"a":[],"b":[1]}}"#,
        r#"{"entity_ids":[1],"columns":{"a":[1],"b":[1],"nobody":[1]}}"#,
        "{\"rows\":[[1,\u{1}2]]}",
    ] {
        assert!(refused(&route, body).row.is_none(), "{body}");
    }
}

#[test]
fn rows_past_the_limit_are_refused_before_they_are_packed() {
    let few = Wishes { most: 2, ..SKIP };
    for arms in [0, 2] {
        let route = route(arms);
        for body in [
            r#"{"rows":[[1,2],[1,2],[1,2]]}"#,
            r#"{"entity_ids":[1,2,3],"rows":[]}"#,
            r#"{"columns":{"a":[1,2,3],"b":[1,2,3]}}"#,
        ] {
            let fault = route.prepare_batch(body.as_bytes(), few).unwrap_err();
            assert_eq!(fault.error.kind, ErrorKind::TooManyRows(2), "{body}");
        }
        assert!(route.prepare_lines(b"{}\n{}\n{}", few).is_err());
    }
}

#[test]
fn an_entity_that_is_none_is_a_bad_row() {
    let route = route(2);
    let body = br#"{"entity_ids":["a",1.5,{"x":[]},null],"rows":[{"a":1,"b":2},[9],{"z":1},{"a":3,"b":4}]}"#;
    let batch = route.prepare_batch(body, SKIP).unwrap();
    assert_eq!(batch.faults.iter().map(|fault| fault.row).collect::<Vec<_>>(), [Some(1), Some(2)]);
    assert_eq!(&batch.versions[1..3], [NO_VERSION, NO_VERSION]);
    assert_eq!(batch.reasons[3], Reason::Random as u8);
    let fault = route.prepare_batch(body, ALL).unwrap_err();
    assert_eq!(fault.row, Some(1));
}

#[test]
fn an_entity_that_is_none_is_one_behind_the_rows_too() {
    let route = route(0);
    let batch = route.prepare_batch(br#"{"rows":[[1,2],[3,4],[5]],"entity_ids":["a",true,"c"]}"#, SKIP).unwrap();
    assert_eq!(batch.faults.iter().map(|fault| fault.row).collect::<Vec<_>>(), [Some(1), Some(2)]);
    assert_eq!(batch.groups[0].columns, [Column::F32(vec![1.0, 2.0])]);
    assert_eq!(batch.versions, [0, NO_VERSION, 0]);
}

#[test]
fn a_batch_without_rows_is_one() {
    for arms in [0, 2] {
        for body in [r#"{"rows":[]}"#, r#"{"entity_ids":[],"rows":[]}"#, r#"{"columns":{}}"#, r#"{"columns":{"a":[]}}"#]
        {
            let route = route(arms);
            let batch = route.prepare_batch(body.as_bytes(), ALL).unwrap();
            assert!(batch.versions.is_empty() && batch.groups.is_empty(), "{body}");
        }
    }
}

#[test]
fn answers_come_back_in_the_order_of_the_rows() {
    let route = route(3);
    let first =
        Part { version: 0, outputs: vec![Output::new(&[2, 1], Array::Numbers(Slice::F32(&[0.1, 0.2]))).unwrap()] };
    let labels = ["\"yes\"".to_owned()];
    let third = Part {
        version: 2,
        outputs: vec![
            Output::new(&[1], Array::Text(&labels)).unwrap(),
            Output::new(&[1], Array::Numbers(Slice::F64(&[f64::NAN]))).unwrap(),
        ],
    };
    let rows = Rows { parts: &[1, 0, -1, 0], reasons: &[1, 1, 1, 4], entities: &[] };
    let parts = [first, third];
    let text = route.encode_batch(&[2, 0], &[0, 1, -1, 1], rows, &parts, b"[7]").unwrap();
    assert_eq!(
        String::from_utf8(text).unwrap(),
        r#"{"model":"m","count":4,"versions":["v3","v1"],"version_index":[0,1,null,1],"#.to_owned()
            + r#""outputs":{"score":[null,[0.1],null,[0.2]],"label":["\"yes\"",null,null,null]},"errors":[7]}"#
    );
    let text = String::from_utf8(route.encode_lines(rows, &parts, &[b"{}"]).unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(
        lines[0].contains(r#""version":"v3""#) && lines[0].ends_with(r#""outputs":{"label":"\"yes\"","score":null}}"#)
    );
    assert!(lines[1].contains(r#""reason":"test""#) && lines[1].ends_with(r#""outputs":{"score":[0.1]}}"#));
    assert_eq!(lines[2], "{}");
    assert!(lines[3].contains(r#""reason":"random""#) && lines[3].ends_with(r#""outputs":{"score":[0.2]}}"#));
    for wrong in [&[1, 0, 0, 0][..], &[0, 0], &[1, 0, 5, 0]] {
        assert!(
            route.encode_batch(&[0], &[0], Rows { parts: wrong, reasons: &[], entities: &[] }, &parts, b"[]").is_err()
        );
    }
}
