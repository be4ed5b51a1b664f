//! Answers in JSON: every value read back by `serde_json`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use proptest::prelude::*;
use serde_json::{Value, json};
use turnout_core::encode::{Envelope, Token, half_to_f32, write_uuid7};

fn envelope(outputs: &[&str]) -> Envelope {
    let outputs: Vec<String> = outputs.iter().map(|&name| name.to_owned()).collect();
    Envelope::new("chu\"rn", "v1.0", &outputs)
}

fn begun(envelope: &Envelope) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope.begin(&mut bytes);
    bytes.extend_from_slice(b"id");
    bytes
}

fn one<T: Token>(shape: &[usize], values: &[T]) -> Value {
    let envelope = envelope(&["out"]);
    let mut answer = envelope.answer(begun(&envelope), "test");
    answer.push(shape, values).unwrap();
    let value: Value = serde_json::from_slice(&answer.finish().unwrap()).unwrap();
    value["outputs"]["out"].clone()
}

fn text<T: Token>(value: &T) -> String {
    let mut bytes = Vec::new();
    value.write(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn an_answer_has_its_five_fields_in_order() {
    let envelope = envelope(&["label", "probabilities"]);
    let mut answer = envelope.answer(begun(&envelope), "test");
    answer.push(&[1], &[1_i64]).unwrap();
    answer.push(&[1, 2], &[0.1_f32, 0.9]).unwrap();
    let bytes = String::from_utf8(answer.finish().unwrap()).unwrap();
    let (before, after) = bytes.split_once("\"prediction_id\":\"").unwrap();
    assert_eq!(before, r#"{"model":"chu\"rn","version":"v1.0","#);
    assert_eq!(&after[2..], r#"","reason":"test","outputs":{"label":1,"probabilities":[0.1,0.9]}}"#);
}

#[test]
fn the_batch_dimension_is_dropped_and_the_rest_nested() {
    assert_eq!(one(&[], &[2.5_f64]), json!(2.5));
    assert_eq!(one(&[1], &[true]), json!(true));
    assert_eq!(one(&[1, 1], &[7_u8]), json!([7]));
    assert_eq!(one(&[1, 2, 3], &[1_i32, 2, 3, 4, 5, 6]), json!([[1, 2, 3], [4, 5, 6]]));
    assert_eq!(one::<f32>(&[1, 0], &[]), json!([]));
    assert_eq!(one::<f32>(&[1, 2, 0], &[]), json!([[], []]));
    assert_eq!(one(&[1], &["a\"\u{1}é".to_owned()]), json!("a\"\u{1}é"));
}

#[test]
fn what_is_no_single_row_is_refused_by_name() {
    let envelope = envelope(&["first", "second"]);
    let mut answer = envelope.answer(begun(&envelope), "active");
    let error = answer.push(&[2], &[1_i64, 2]).unwrap_err().to_string();
    assert_eq!(error, r#"output "first": expected one row, found shape [2]"#);
    assert!(answer.push::<f32>(&[1, 1_000_000_000, 0], &[]).is_err());
    assert!(answer.push::<f32>(&[1, usize::MAX, 2], &[]).is_err());
    answer.push(&[1], &[1_i64]).unwrap();
    assert_eq!(answer.finish().unwrap_err().to_string(), r#"output "second": missing; found 1 outputs"#);
    let mut answer = envelope.answer(begun(&envelope), "active");
    answer.push(&[1], &[1_i64]).unwrap();
    answer.push(&[1], &[1_i64]).unwrap();
    assert!(answer.push(&[1], &[1_i64]).is_err());
}

#[test]
fn what_json_lacks_is_null() {
    assert_eq!(one(&[1, 3], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), json!([null, null, null]));
    assert_eq!(one(&[1], &[f64::NAN]), json!(null));
}

#[test]
fn every_half_is_the_single_that_equals_it() {
    let expected =
        [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0400, 6.103_515_6e-5), (0x0001, 5.960_464_5e-8)];
    for (bits, value) in expected {
        assert_eq!(half_to_f32(bits).to_bits(), f32::to_bits(value), "{bits:04x}");
    }
    assert_eq!(half_to_f32(0x8000).to_bits(), (-0.0_f32).to_bits());
    assert!(half_to_f32(0xfc00) == f32::NEG_INFINITY && half_to_f32(0x7e00).is_nan());
    let rising: Vec<f32> = (0..0x7c00).map(half_to_f32).collect();
    assert!(rising.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn prediction_ids_are_uuids_of_version_7() {
    // RFC 9562, appendix A.6: 2022-02-22 19:22:22 UTC, rand_a 0xcc3, rand_b 0x18c4dc0c0c07398f
    let mut bytes = Vec::new();
    write_uuid7(0x017f_22e2_79b0, (0xcc3 << 64) | 0x18c4_dc0c_0c07_398f, &mut bytes);
    assert_eq!(bytes, b"017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    let mut bytes = Vec::new();
    write_uuid7(0, u128::MAX, &mut bytes);
    assert_eq!(bytes, b"00000000-0000-7fff-bfff-ffffffffffff");
}

proptest! {
    #[test]
    fn singles_are_the_shortest_text_that_reads_back(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        prop_assume!(value.is_finite());
        let written = text(&value);
        prop_assert_eq!(written.parse::<f32>().unwrap().to_bits(), bits);
        let digits = |text: &str| {
            let text = text.split(['e', 'E']).next().unwrap().replace(['.', '-'], "");
            text.trim_matches('0').len()
        };
        prop_assert!(digits(&written) <= digits(&format!("{value:e}")), "{}", written);
    }

    #[test]
    fn doubles_read_back(value in any::<f64>()) {
        prop_assume!(value.is_finite());
        prop_assert_eq!(text(&value).parse::<f64>().unwrap().to_bits(), value.to_bits());
    }

    #[test]
    fn strings_and_integers_read_back(string in any::<String>(), signed in any::<i64>(), unsigned in any::<u64>()) {
        prop_assert_eq!(one(&[1], std::slice::from_ref(&string)), json!(string));
        prop_assert_eq!(one(&[1], &[signed]), json!(signed));
        prop_assert_eq!(one(&[1], &[unsigned]), json!(unsigned));
    }

    #[test]
    fn any_shape_is_nested_as_numpy_would(shape in prop::collection::vec(0_usize..4, 0..5)) {
        let count = shape.iter().product::<usize>();
        let values: Vec<u64> = (0..count as u64).collect();
        let mut expected: Vec<Value> = values.iter().map(|value| json!(value)).collect();
        for (axis, &length) in shape.iter().enumerate().rev() {
            let outer = shape[..axis].iter().product::<usize>();
            let mut parts = expected.into_iter();
            expected = (0..outer).map(|_| Value::Array(parts.by_ref().take(length).collect())).collect();
        }
        let full: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
        if let Some(expected) = expected.first() {
            prop_assert_eq!(&one(&full, &values), expected);
        }
    }
}
