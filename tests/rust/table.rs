//! Columns that lie in memory already are packed as the same values are from JSON.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "tests"
)]

use proptest::prelude::*;
use turnout_core::columns::{Column, Element};
use turnout_core::error::ErrorKind;
use turnout_core::feature::{Description, Scalar};
use turnout_core::features::{Layout, Schema};
use turnout_core::json::Reader;
use turnout_core::names::Names;
use turnout_core::slice::Slice;
use turnout_core::table::{Bits, Chosen, Source, Values};

fn describe(name: &str, kind: &str, nullable: bool) -> Description {
    let values = if kind == "category" { vec!["x".into(), "y".into()] } else { Vec::new() };
    Description { name: name.into(), kind: kind.into(), nullable, values, default: None }
}

fn matrix(element: Element, kinds: &[(&str, bool)]) -> Schema {
    let features: Vec<_> =
        kinds.iter().enumerate().map(|(i, (kind, nullable))| describe(&format!("f{i}"), kind, *nullable)).collect();
    Schema::new(Layout::Matrix, &[element], &features).unwrap()
}

fn source(values: Values<'_>) -> Source<'_> {
    Source { values, start: 0, stride: 1, valid: None }
}

fn bits_of(column: &Column<'_>) -> Vec<u32> {
    match column {
        Column::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
        other => panic!("{other:?}"),
    }
}

proptest! {
    /// Doubles of any size, NaN for null: what the JSON of the same row gives, row by row.
    #[test]
    fn doubles_are_what_json_is(
        table in proptest::collection::vec((prop_oneof![any::<f64>(), -9.0..9.0], any::<Option<i16>>()), 0..300),
        skip_some in any::<bool>(),
    ) {
        let schema = matrix(Element::F32, &[("float", false), ("float", true)]);
        let first: Vec<f64> = table.iter().map(|row| row.0).collect();
        let second: Vec<f64> = table.iter().map(|row| row.1.map_or(f64::NAN, f64::from)).collect();
        let chosen: Vec<i64> = (0..table.len() as i64).rev().filter(|row| !skip_some || row % 3 > 0).collect();
        let sources = [source(Values::Numbers(Slice::F64(&second))), source(Values::Numbers(Slice::F64(&first)))];
        let packed = schema.pack_table(&sources, &[Some(1), Some(0)], Chosen::List(&chosen), true);
        let texts: Vec<String> = chosen.iter().map(|&row| {
            let (a, b) = table[row as usize];
            let a = if a.is_finite() { format!("{a:e}") } else { "null".to_owned() };
            format!("[{a},{}]", b.map_or("null".to_owned(), |b| b.to_string()))
        }).collect();
        let (mut columns, mut bad) = (Vec::new(), Vec::new());
        for (index, text) in texts.iter().enumerate() {
            let mut row = schema.rows(1);
            match schema.pack(&mut Reader::new(text.as_bytes()).unwrap(), &Names::default(), &mut row) {
                Ok(()) => columns.extend(bits_of(&row.into_columns()[0])),
                Err(_) => bad.push(index),
            }
        }
        prop_assert_eq!(bits_of(&packed.columns[0]), columns);
        prop_assert_eq!(packed.faults.iter().map(|fault| fault.0).collect::<Vec<_>>(), bad);
    }

    #[test]
    fn a_matrix_of_singles_is_copied_but_for_its_bad_rows(
        values in proptest::collection::vec(prop_oneof![8 => -1e30_f32..1e30, 1 => Just(f32::NAN), 1 => Just(f32::INFINITY)], 0..200),
    ) {
        let schema = matrix(Element::F32, &[("float", true), ("float", false)]);
        let whole = &values[..values.len() / 2 * 2];
        let bad: Vec<usize> = whole.chunks(2).enumerate()
            .filter(|(_, row)| row[0].is_infinite() || !row[1].is_finite()).map(|(row, _)| row).collect();
        let strided = |start| Source { values: Values::Numbers(Slice::F32(whole)), start, stride: 2, valid: None };
        let packed = schema.pack_table(&[strided(0), strided(1)], &[Some(0), Some(1)], Chosen::Range(0, whole.len() / 2), true);
        prop_assert_eq!(packed.faults.iter().map(|fault| fault.0).collect::<Vec<_>>(), bad.clone());
        prop_assert_eq!(packed.rows, whole.len() / 2 - bad.len());
    }
}

#[test]
fn every_kind_of_column_goes_into_its_feature() {
    let kinds = ["float", "int", "bool", "category", "string"];
    let elements = [Element::F32, Element::I64, Element::Bool, Element::Text, Element::Text];
    let features: Vec<_> = kinds.iter().map(|kind| describe(kind, kind, true)).collect();
    let schema = Schema::new(Layout::Columns, &elements, &features).unwrap();
    let (offsets, data) = ([0_i32, 1, 2, 3], b"xyx");
    let sources = [
        Source {
            valid: Some(Bits { bytes: &[0b0101_0000], start: 4 }),
            ..source(Values::Numbers(Slice::U8(&[1, 2, 3])))
        },
        source(Values::Numbers(Slice::F64(&[1.0, -2.0, 3e15]))),
        source(Values::Bits(Bits { bytes: &[0b0000_0010], start: 0 })),
        source(Values::Text(&offsets, data)),
        source(Values::LargeText(&[1, 1, 2, 3], data)),
    ];
    let bound: Vec<_> = (0..5).map(Some).collect();
    let packed = schema.pack_table(&sources, &bound, Chosen::Range(0, 3), false);
    assert!(packed.faults.is_empty(), "{:?}", packed.faults);
    let Column::F32(floats) = &packed.columns[0] else { panic!() };
    assert_eq!((floats[0], floats[1].is_nan(), floats[2]), (1.0, true, 3.0));
    assert_eq!(packed.columns[1], Column::I64(vec![1, -2, 3_000_000_000_000_000]));
    assert_eq!(packed.columns[2], Column::Bool(vec![false, true, false]));
    assert_eq!(packed.columns[3], Column::Text(vec!["x".into(), "y".into(), "x".into()]));
    assert_eq!(packed.columns[4], Column::Text(vec!["".into(), "y".into(), "x".into()]));
}

#[test]
fn what_does_not_fit_is_named_with_row_and_feature() {
    let offsets = [0_i32, 1, 9];
    for (kind, element, values, row, found) in [
        ("float", Element::F32, Values::Numbers(Slice::F64(&[1.0, 1e300])), 1, "1e300"),
        ("float", Element::F32, Values::Numbers(Slice::Bool(&[true, false])), 0, "true"),
        ("float", Element::F32, Values::Numbers(Slice::F32(&[f32::NAN, 0.0])), 0, "NaN"),
        ("int", Element::I64, Values::Numbers(Slice::F64(&[1.0, 1.5])), 1, "1.5"),
        ("int", Element::I64, Values::Numbers(Slice::U64(&[1, u64::MAX])), 1, "18446744073709551615"),
        ("int", Element::I32, Values::Numbers(Slice::I64(&[1, 1 << 40])), 1, "1099511627776"),
        ("bool", Element::Bool, Values::Numbers(Slice::I8(&[1, 0])), 0, "1"),
        ("category", Element::I64, Values::Text(&offsets, b"z"), 0, "the string \"z\""),
        ("category", Element::I64, Values::Text(&offsets, b"x"), 1, "a broken value"),
    ] {
        let schema = matrix(element, &[(kind, false)]);
        let packed = schema.pack_table(&[source(values)], &[Some(0)], Chosen::Range(0, 2), false);
        let (at, error) = &packed.faults[0];
        assert_eq!((*at, error.feature()), (row, Some("f0")), "{kind}");
        assert!(error.to_string().ends_with(&format!("found {found}")), "{error}");
    }
}

#[test]
fn rows_outside_of_a_table_are_broken_and_nothing_else() {
    let schema = matrix(Element::F32, &[("float", false)]);
    let values = [1.0_f32, 2.0];
    for chosen in [Chosen::Range(1, 2), Chosen::List(&[-1, 0]), Chosen::List(&[i64::MAX])] {
        for start in [0, 1, usize::MAX] {
            let one = Source { start, stride: 3, ..source(Values::Numbers(Slice::F32(&values))) };
            let packed = schema.pack_table(&[one], &[Some(0)], chosen, true);
            assert!(!packed.faults.is_empty());
        }
    }
}

#[test]
fn columns_are_bound_by_name_or_by_position() {
    let mut features = vec![describe("a", "float", false), describe("b", "float", false)];
    features[1].default = Some(Scalar::Float(0.5));
    let schema = Schema::new(Layout::Matrix, &[Element::F32], &features).unwrap();
    let known: Names = [("a".into(), 0), ("b".into(), 1), ("other".into(), 2)].into_iter().collect();
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let bind = |wanted: &[&str]| schema.bind(Some(&names(wanted)), wanted.len(), &known).map_err(|error| error.kind);
    assert_eq!(bind(&["other", "b", "a"]), Ok(vec![Some(2), Some(1)]));
    assert_eq!(bind(&["a"]), Ok(vec![Some(0), None]));
    assert_eq!(bind(&["b"]), Err(ErrorKind::MissingFeature("a".into())));
    assert_eq!(bind(&["a", "a"]), Err(ErrorKind::DuplicateKey("a".into())));
    assert!(matches!(bind(&["a", "bb"]), Err(ErrorKind::UnknownFeature { .. })));
    assert_eq!(schema.bind(None, 2, &known), Ok(vec![Some(0), Some(1)]));
    assert!(schema.bind(None, 3, &known).is_err());
    let packed = schema.pack_table(
        &[source(Values::Numbers(Slice::I32(&[4, 5])))],
        &[Some(0), None],
        Chosen::Range(0, 2),
        false,
    );
    assert_eq!(packed.columns, [Column::F32(vec![4.0, 0.5, 5.0, 0.5])]);
}
