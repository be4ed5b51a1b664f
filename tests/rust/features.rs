//! Packing rows of JSON: examples, hostile bodies, and every value against `serde_json` as the plain oracle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::prelude::*;
use serde_json::{Value, json};
use turnout_core::columns::{Column, Element};
use turnout_core::error::{Error, ErrorKind};
use turnout_core::feature::{Description, Scalar};
use turnout_core::features::{Layout, Schema};
use turnout_core::json::Reader;
use turnout_core::names::{Names, number};

fn feature(name: &str, kind: &str) -> Description {
    Description { name: name.into(), kind: kind.into(), ..Description::default() }
}

fn floats(names: &[&str]) -> Schema {
    let features: Vec<_> = names.iter().map(|name| feature(name, "float")).collect();
    Schema::new(Layout::Matrix, &[Element::F32], &features).unwrap()
}

fn column(feature: Description, element: Element) -> Schema {
    Schema::new(Layout::Columns, &[element], &[feature]).unwrap()
}

fn pack<'a>(schema: &'a Schema, known: &Names, body: &'a [u8]) -> Result<Vec<Column<'a>>, Error> {
    let mut reader = Reader::new(body)?;
    let mut rows = schema.rows(1);
    schema.pack(&mut reader, known, &mut rows)?;
    reader.end()?;
    Ok(rows.into_columns())
}

fn row<'a>(schema: &'a Schema, body: &'a str) -> Result<Column<'a>, Error> {
    pack(schema, &Names::default(), body.as_bytes()).map(|mut columns| columns.remove(0))
}

fn fault(schema: &Schema, body: &str) -> (String, Option<usize>) {
    let error = row(schema, body).expect_err(body);
    (error.kind.to_string(), error.position)
}

#[test]
fn objects_in_any_order_and_lists_give_the_same_row() {
    let schema = floats(&["a", "b", "c"]);
    let expected = Column::F32(vec![1.0, -2.5, 3e5]);
    for body in [
        r#"{"a":1,"b":-2.5,"c":3e5}"#,
        r#" { "c" : 3E+5 , "a" : 1.0 , "b" : -25e-1 } "#,
        r#"{"b":-2.5,"\u0061":1,"c":300000}"#,
        "[1, -2.5, 3e5]",
    ] {
        assert_eq!(row(&schema, body).unwrap(), expected, "{body}");
    }
}

#[test]
fn rows_follow_each_other_for_bulk() {
    let schema = floats(&["a", "b"]);
    let mut reader = Reader::new(br#"{"a":1,"b":2} [3,4]"#).unwrap();
    let mut rows = schema.rows(2);
    schema.pack(&mut reader, &Names::default(), &mut rows).unwrap();
    schema.pack(&mut reader, &Names::default(), &mut rows).unwrap();
    assert_eq!(rows.into_columns(), [Column::F32(vec![1.0, 2.0, 3.0, 4.0])]);
}

#[test]
fn every_type_lands_in_its_input() {
    let category = || Description { values: vec!["red".into(), "blue".into()], ..feature("c", "category") };
    let nullable = Description { nullable: true, ..feature("n", "float") };
    let cases = [
        (feature("i", "int"), Element::I64, "[-9223372036854775808]", Column::I64(vec![i64::MIN])),
        (feature("i", "int"), Element::I32, "[3.0]", Column::I32(vec![3])),
        (feature("i", "int"), Element::F32, "[1.5e1]", Column::F32(vec![15.0])),
        (feature("b", "bool"), Element::Bool, "[true]", Column::Bool(vec![true])),
        (feature("b", "bool"), Element::F32, "[true]", Column::F32(vec![1.0])),
        (feature("b", "float"), Element::Bool, "[false]", Column::Bool(vec![false])),
        (feature("i", "float"), Element::I64, "[-4]", Column::I64(vec![-4])),
        (feature("s", "string"), Element::Text, r#"["a\n\ud83d\ude00"]"#, Column::Text(vec!["a\n😀".into()])),
        (category(), Element::Text, r#"["blue"]"#, Column::Text(vec!["blue".into()])),
        (category(), Element::F64, r#"["blue"]"#, Column::F64(vec![1.0])),
    ];
    for (description, element, body, expected) in cases {
        let schema = column(description, element);
        assert_eq!(row(&schema, body).unwrap(), expected, "{body}");
    }
    let Column::F32(values) = row(&column(nullable, Element::F32), "[null]").unwrap() else { panic!() };
    assert!(values[0].is_nan());
}

#[test]
fn defaults_stand_for_what_was_not_sent() {
    let features = [
        Description { default: Some(Scalar::Float(0.5)), ..feature("a", "float") },
        feature("b", "float"),
        Description { default: Some(Scalar::Int(7)), ..feature("c", "float") },
    ];
    let schema = Schema::new(Layout::Matrix, &[Element::F32], &features).unwrap();
    assert_eq!(row(&schema, r#"{"b":1}"#).unwrap(), Column::F32(vec![0.5, 1.0, 7.0]));
    assert_eq!(row(&schema, r#"{"c":2,"b":1}"#).unwrap(), Column::F32(vec![0.5, 1.0, 2.0]));
    let (text, position) = fault(&schema, r#" {"a":1}"#);
    assert_eq!((text.as_str(), position), (r#"feature "b" is missing and has no default"#, Some(1)));
}

#[test]
fn errors_say_what_was_expected_and_where() {
    let float = floats(&["age"]);
    let int = column(feature("n", "int"), Element::I32);
    let colour = Description { values: vec!["red".into()], ..feature("colour", "category") };
    let colour = column(colour, Element::Text);
    let cases = [
        (&float, r#"{"age":"7"}"#, r#"feature "age": expected a number that fits float32, found the string "7""#, 7),
        (&float, r#"{"age":null}"#, r#"feature "age": expected a number that fits float32, found null"#, 7),
        (&float, r#"{"age":1e999}"#, r#"feature "age": expected a number that fits float32, found 1e999"#, 7),
        (&float, r#"{"age":3.5e38}"#, r#"feature "age": expected a number that fits float32, found 3.5e38"#, 7),
        (&float, r#"{"age":NaN}"#, r#"feature "age": expected a number that fits float32, found NaN"#, 7),
        (&float, r#"{"age":-Infinity}"#, "expected a number, found -Infinity", 7),
        (&float, r#"{"age":[1]}"#, r#"feature "age": expected a number that fits float32, found an array"#, 7),
        (&float, r#"{"age":01}"#, "expected a number without leading zeros, found 01", 7),
        (&float, r#"{"age":1.}"#, "expected digits after the decimal point, found 1.", 7),
        (&float, r#"{"age":1,}"#, "expected a key in double quotes, found }", 9),
        (&float, r#"{"age":1,"age":2}"#, r#"duplicate key "age""#, 9),
        (&float, r#"{"age":1 "x":2}"#, r#"expected ',' or '}', found the string "x""#, 9),
        (&float, r#"{"ago":1}"#, r#"no version of this model has a feature "ago"; did you mean "age"?"#, 1),
        (&float, r#"{"weight":1}"#, r#"no version of this model has a feature "weight""#, 1),
        (&float, "[1,2]", "expected 1 features in the order of the schema, found 2", 0),
        (&float, "[1] x", "expected the end of the document, found x", 4),
        (&float, "7", "expected an object or a list of features, found 7", 0),
        (&float, "", "expected an object or a list of features, found the end of the document", 0),
        (&int, "[3.5]", r#"feature "n": expected an integer that fits int32, found 3.5"#, 1),
        (&int, "[2147483648]", r#"feature "n": expected an integer that fits int32, found 2147483648"#, 1),
        (&int, "[true]", r#"feature "n": expected an integer that fits int32, found true"#, 1),
        (&colour, r#"["blue"]"#, r#"feature "colour": expected one of "red", found the string "blue""#, 1),
        (&colour, r#"["\ud800"]"#, "expected a pair of surrogates, found a lone one", 2),
        (&colour, "[\"a\tb\"]", "expected control characters to be escaped, found control character 0x09", 3),
    ];
    for (schema, body, expected, position) in cases {
        assert_eq!(fault(schema, body), (expected.to_owned(), Some(position)), "{body}");
    }
}

#[test]
fn features_without_names_come_as_lists_and_are_named_by_their_index() {
    let schema = floats(&["", ""]);
    assert_eq!(row(&schema, "[1,2]").unwrap(), Column::F32(vec![1.0, 2.0]));
    assert_eq!(fault(&schema, r#"{"a":1}"#).0, "this version has no feature names: expected a list of 2 numbers");
    assert_eq!(row(&schema, "[1,true]").unwrap_err().feature(), Some("1"));
}

#[test]
fn names_of_other_versions_are_checked_and_ignored() {
    let schema = floats(&["a"]);
    let known = number(["a", "other"]);
    let packed = pack(&schema, &known, br#"{"other":{"deep":[1,{"x":"y"}]},"a":2}"#).unwrap();
    assert_eq!(packed, [Column::F32(vec![2.0])]);
    for body in [r#"{"other":nul,"a":2}"#, r#"{"other":1,"other":2,"a":2}"#, r#"{"othr":1,"a":2}"#] {
        assert!(pack(&schema, &known, body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn names_that_need_escapes_are_matched_by_meaning() {
    let schema = floats(&["a\"b", "tab\there", "größe"]);
    let body = r#"{"a\"b":1,"tab\there":2,"gr\u00f6ße":3}"#;
    assert_eq!(row(&schema, body).unwrap(), Column::F32(vec![1.0, 2.0, 3.0]));
    assert!(row(&schema, r#"{"a"b":1}"#).is_err());
}

#[test]
fn schemas_that_make_no_sense_are_refused() {
    let default = |kind: &str, value| Description { default: Some(value), ..feature("a", kind) };
    let refused = [
        (Layout::Matrix, vec![Element::F32], vec![feature("a", "float"), feature("a", "float")]),
        (Layout::Matrix, vec![Element::F32], vec![feature("a", "string")]),
        (Layout::Matrix, vec![Element::F32], vec![feature("a", "colour")]),
        (Layout::Columns, vec![], vec![feature("a", "float")]),
        (Layout::Columns, vec![Element::Bool], vec![feature("a", "int")]),
        (Layout::Matrix, vec![Element::F32], vec![default("float", Scalar::Float(1e300))]),
        (Layout::Matrix, vec![Element::I32], vec![default("int", Scalar::Float(0.5))]),
        (Layout::Matrix, vec![Element::F32], vec![default("category", Scalar::Text("none".into()))]),
    ];
    for (layout, elements, features) in refused {
        assert!(Schema::new(layout, &elements, &features).is_err(), "{features:?}");
    }
}

#[test]
fn hostile_bodies_are_refused_at_linear_cost() {
    let schema = floats(&["a"]);
    let known = number(["a", "b"]);
    let many: Vec<String> = (0..100_000).map(|i| format!("\"f{i}\":1")).collect();
    let list = format!("[{}1]", "1,".repeat(99_999));
    let deep = format!(r#"{{"b":{}"#, "[".repeat(1_000_000));
    let long = format!(r#"{{"{}":1}}"#, "x".repeat(1_000_000));
    let digits = format!("[0.{}]", "1".repeat(1_000_000));
    for body in [format!("{{{}}}", many.join(",")), list, deep, long] {
        let error = pack(&schema, &known, body.as_bytes()).unwrap_err();
        assert!(error.to_string().len() < 400, "{error}");
    }
    assert_eq!(row(&schema, &digits).unwrap(), Column::F32(vec![0.111_111_11]));
    let bad = pack(&schema, &known, b"{\"a\xff\":1}").unwrap_err();
    assert_eq!(bad.to_string(), "expected UTF-8, found byte 0xff (byte 3)");
    let nested = |depth| format!(r#"{{"b":{}{},"a":1}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(pack(&schema, &known, nested(64).as_bytes()).is_ok());
    assert!(pack(&schema, &known, nested(65).as_bytes()).is_err());
}

/// A name that may need escapes; a feature of some type, a value for it, and what should be packed (None: refused).
fn any_name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,12}", "\\PC{1,6}", "[\"\\\\\n\u{1}é😀]{1,4}"]
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => any::<f64>().prop_map(|value| json!(value)),
        4 => (-1000_i32..1000).prop_map(|value| json!(f64::from(value) / 8.0)),
        2 => any::<i64>().prop_map(|value| json!(value)),
        1 => any::<u64>().prop_map(|value| json!(value)),
        2 => any::<bool>().prop_map(|value| json!(value)),
        2 => any_name().prop_map(|value| json!(value)),
        1 => Just(Value::Null),
        1 => Just(json!([1, {"a": "b"}])),
    ]
}

/// The plain reading of the rules: what a value is as 32-bit float, integer, truth value or string.
fn oracle(kind: &str, nullable: bool, value: &Value) -> Option<Column<'static>> {
    #[allow(clippy::cast_possible_truncation, reason = "that is the rule")]
    match kind {
        "float" if value.is_null() && nullable => Some(Column::F32(vec![f32::NAN])),
        "float" => Some(value.as_f64()? as f32).filter(|single| single.is_finite()).map(|x| Column::F32(vec![x])),
        "int" => {
            let whole = value.as_f64().filter(|x| value.is_f64() && x.fract() == 0.0 && x.abs() < 9.2e18);
            value.as_i64().or(whole.map(|x| x as i64)).map(|x| Column::I64(vec![x]))
        }
        "bool" => value.as_bool().map(|x| Column::Bool(vec![x])),
        _ => value.as_str().map(|x| Column::Text(vec![x.to_owned().into()])),
    }
}

fn element(kind: &str) -> Element {
    match kind {
        "float" => Element::F32,
        "int" => Element::I64,
        "bool" => Element::Bool,
        _ => Element::Text,
    }
}

fn same(a: &Column<'_>, b: &Column<'_>) -> bool {
    match (a, b) {
        (Column::F32(a), Column::F32(b)) => a[0].to_bits() == b[0].to_bits() || (a[0].is_nan() && b[0].is_nan()),
        _ => a == b,
    }
}

proptest! {
    #[test]
    fn packed_rows_equal_the_oracle(
        features in prop::collection::btree_map(
            any_name(),
            (prop::sample::select(vec!["float", "int", "bool", "string"]), any::<bool>(), any_value()),
            1..12,
        ),
        reverse in any::<bool>(), pretty in any::<bool>(), list in any::<bool>(),
    ) {
        let descriptions: Vec<_> = features
            .iter()
            .map(|(name, (kind, nullable, _))| Description { nullable: *nullable, ..feature(name, kind) })
            .collect();
        let elements: Vec<_> = features.values().map(|(kind, ..)| element(kind)).collect();
        let schema = Schema::new(Layout::Columns, &elements, &descriptions).unwrap();
        let mut parts: Vec<String> = features
            .iter()
            .map(|(name, (_, _, value))| if list { value.to_string() } else { format!("{}:{value}", json!(name)) })
            .collect();
        if reverse && !list {
            parts.reverse();
        }
        let inner = parts.join(if pretty { " ,\n\t" } else { "," });
        let body = if list { format!("[{inner}]") } else { format!("{{{inner}}}") };
        let expected: Option<Vec<_>> =
            features.values().map(|(kind, nullable, value)| oracle(kind, *nullable, value)).collect();
        match (pack(&schema, &Names::default(), body.as_bytes()), expected) {
            (Ok(found), Some(expected)) => {
                prop_assert!(found.iter().zip(&expected).all(|(a, b)| same(a, b)), "{found:?} {expected:?}");
            }
            (Err(error), None) => prop_assert!(matches!(error.kind, ErrorKind::Value { .. }), "{error}"),
            (found, expected) => prop_assert!(false, "{body}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn any_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = pack(&floats(&["a", "b"]), &number(["c"]), &body);
    }

    #[test]
    fn what_is_json_is_what_serde_json_takes(body in r#"[\[\]{},:"\\ a0-9.eE+u\-]{0,24}|(true|false|null|\[|\]|,|"a":|\{|\}|1| )*"#) {
        let mut reader = Reader::new(body.as_bytes()).unwrap();
        let ours = reader.skip().and_then(|()| reader.end());
        match serde_json::from_str::<Value>(&body) {
            Err(error) if error.to_string().contains("out of range") => {}
            theirs => prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{} {:?} {:?}", body, ours, theirs),
        }
    }

    #[test]
    fn broken_json_is_refused_as_serde_json_refuses_it(
        values in prop::collection::vec((any_name(), any_value()), 0..4), at in any::<prop::sample::Index>(), byte in 0_u8..128,
    ) {
        let document = Value::Object(values.into_iter().collect());
        let mut body = document.to_string().into_bytes();
        let at = at.index(body.len());
        body[at] = byte;
        let ours = Reader::new(&body).and_then(|mut reader| reader.skip().and_then(|()| reader.end()));
        match serde_json::from_slice::<Value>(&body) {
            Err(error) if error.to_string().contains("out of range") => {}
            theirs => prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs),
        }
    }

    #[test]
    fn numbers_are_read_to_the_last_bit(text in r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?") {
        let number = Reader::new(text.as_bytes()).unwrap().number().unwrap();
        let double = Reader::new(text.as_bytes()).unwrap().double().unwrap();
        prop_assert_eq!(number.to_f64().to_bits(), text.parse::<f64>().unwrap().to_bits());
        prop_assert_eq!(double.to_bits(), number.to_f64().to_bits());
    }

    #[test]
    fn short_decimals_are_read_as_any_number(text in r"-?[0-9]{0,20}\.?[0-9]{0,20}[e, \]\.]?") {
        let mut whole = Reader::new(text.as_bytes()).unwrap();
        let mut fast = whole.clone();
        let (number, double) = (whole.number(), fast.double());
        prop_assert_eq!(number.as_ref().ok().map(|number| number.to_f64().to_bits()), double.ok().map(f64::to_bits));
        prop_assert_eq!(whole.position(), fast.position());
    }

    #[test]
    fn floats_come_back(value in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
        let text = value.to_string();
        let number = Reader::new(text.as_bytes()).unwrap().number().unwrap();
        prop_assert_eq!(number.to_f64().to_bits(), value.to_bits());
    }

    #[test]
    fn integers_are_exact_however_they_are_written(value in any::<i64>(), zeros in 0_usize..30, shift in 0_usize..19) {
        let digits = value.unsigned_abs().to_string();
        let point = digits.len().saturating_sub(shift).max(1);
        let sign = if value < 0 { "-" } else { "" };
        let (whole, fraction) = digits.split_at(point);
        for text in [
            format!("{value}.{}", "0".repeat(zeros + 1)),
            format!("{sign}{whole}.{fraction}{}e{}", "0".repeat(zeros + 1), fraction.len()),
        ] {
            let number = Reader::new(text.as_bytes()).unwrap().number().unwrap();
            prop_assert_eq!(number.to_i64(), Some(value), "{}", text);
        }
        let broken = format!("{value}.{}1", "0".repeat(zeros));
        prop_assert_eq!(Reader::new(broken.as_bytes()).unwrap().number().unwrap().to_i64(), None);
    }
}
