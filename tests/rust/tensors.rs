//! Inference requests: what is read from JSON and from binary tensors, and what is refused with which words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use turnout_core::encode::{f64_to_half, half_to_f32};
use turnout_core::slice::Slice;
use turnout_core::tensors::answer::{Content, Head, Output};
use turnout_core::tensors::datatype::Datatype;
use turnout_core::tensors::input::{Tensor, Values};
use turnout_core::tensors::request::Request;

fn body(shape: &str, datatype: &str, data: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#)
}

fn values(shape: &str, datatype: &str, data: &str) -> Values<'static> {
    let body: &'static str = body(shape, datatype, data).leak();
    Request::read(body.as_bytes(), None).unwrap_or_else(|error| panic!("{body}: {error}")).inputs.remove(0).values
}

/// What is said of a body, without the position.
fn refused(body: &str) -> String {
    match Request::read(body.as_bytes(), None) {
        Ok(found) => panic!("{body} was read: {found:?}"),
        Err(error) => error.kind.to_string(),
    }
}

fn bad(shape: &str, datatype: &str, data: &str) -> String {
    refused(&body(shape, datatype, data))
}

/// A request of tensors in binary: their JSON, with sizes, and their bytes.
fn binary(inputs: &[(&str, &str, &[u8])]) -> (Vec<u8>, usize) {
    let described = inputs.iter().enumerate().map(|(index, (shape, datatype, bytes))| {
        let size = bytes.len();
        format!(
            r#"{{"name":"x{index}","shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}"#
        )
    });
    let json = format!(r#"{{"inputs":[{}]}}"#, described.collect::<Vec<_>>().join(","));
    let mut body = json.clone().into_bytes();
    for input in inputs {
        body.extend_from_slice(input.2);
    }
    (body, json.len())
}

fn bad_binary(inputs: &[(&str, &str, &[u8])]) -> String {
    let (body, json_bytes) = binary(inputs);
    Request::read(&body, Some(json_bytes)).unwrap_err().kind.to_string()
}

#[test]
fn every_datatype_is_read_from_json() {
    assert_eq!(values("[3]", "BOOL", "[true, false ,true]"), Values::Bool(vec![true, false, true]));
    assert_eq!(values("[2]", "UINT8", "[0,255]"), Values::U8(vec![0, 255]));
    assert_eq!(values("[2]", "UINT16", "[0,65535]"), Values::U16(vec![0, u16::MAX]));
    assert_eq!(values("[2]", "UINT32", "[0,4294967295]"), Values::U32(vec![0, u32::MAX]));
    assert_eq!(values("[2]", "UINT64", "[-0,18446744073709551615]"), Values::U64(vec![0, u64::MAX]));
    assert_eq!(values("[2]", "INT8", "[-128,127]"), Values::I8(vec![i8::MIN, i8::MAX]));
    assert_eq!(values("[2]", "INT16", "[-32768,32767]"), Values::I16(vec![i16::MIN, i16::MAX]));
    assert_eq!(values("[2]", "INT32", "[-2147483648,2147483647]"), Values::I32(vec![i32::MIN, i32::MAX]));
    let wide = values("[2]", "INT64", "[-9223372036854775808,9223372036854775807]");
    assert_eq!(wide, Values::I64(vec![i64::MIN, i64::MAX]));
    assert_eq!(values("[3]", "FP16", "[1, -0.1, 65504]"), Values::F16(vec![0x3c00, 0xae66, 0x7bff]));
    assert_eq!(values("[3]", "FP32", "[1, -0.25, 3.4028234663852886e38]"), Values::F32(vec![1.0, -0.25, f32::MAX]));
    assert_eq!(values("[2]", "FP64", "[0.1, 1.7976931348623157e308]"), Values::F64(vec![0.1, f64::MAX]));
    let texts = values("[3]", "BYTES", r#"["", "a\n\u00e9", "😀"]"#);
    assert_eq!(texts, Values::Text(vec!["".into(), "a\né".into(), "😀".into()]));
}

#[test]
fn whole_numbers_are_integers_however_they_are_written() {
    assert_eq!(values("[4]", "INT32", "[1.0, 2e3, -30e-1, 100.00]"), Values::I32(vec![1, 2000, -3, 100]));
    assert_eq!(values("[2]", "UINT64", "[1e19, 18446744073709551615.0]"), Values::U64(vec![10_u64.pow(19), u64::MAX]));
}

#[test]
fn floats_take_what_python_writes_for_what_json_lacks() {
    let Values::F32(found) = values("[4]", "FP32", "[NaN, null, Infinity, -Infinity]") else { panic!() };
    assert!(found[0].is_nan() && found[1].is_nan());
    assert_eq!(found[2..], [f32::INFINITY, f32::NEG_INFINITY]);
    let Values::F16(found) = values("[4]", "FP16", "[NaN, null, Infinity, -Infinity]") else { panic!() };
    assert_eq!(found, [0x7e00, 0x7e00, 0x7c00, 0xfc00]);
    let before = r#"{"inputs":[{"data":[NaN,[-Infinity],-1],"name":"x","shape":[3],"datatype":"FP64"}]}"#;
    assert_eq!(refused(before), r#"input "x", element 1: expected a number of FP64, found an array"#);
}

#[test]
fn data_is_flat_or_nested_as_the_shape_says() {
    let six = Values::I8(vec![1, 2, 3, 4, 5, 6]);
    assert_eq!(values("[2,3]", "INT8", "[1,2,3,4,5,6]"), six);
    assert_eq!(values("[2,3]", "INT8", "[ [1,2,3] , [4,5,6] ]"), six);
    assert_eq!(values("[1,2,3]", "INT8", "[[[1,2,3],[4,5,6]]]"), six);
    assert_eq!(values("[]", "INT8", "[7]"), Values::I8(vec![7]));
    assert_eq!(values("[]", "INT8", "7"), Values::I8(vec![7]));
    for (shape, data) in
        [("[0]", "[]"), ("[0,3]", "[]"), ("[2,0]", "[]"), ("[2,0]", "[[],[]]"), ("[0,999999999]", "[]")]
    {
        assert_eq!(values(shape, "FP32", data), Values::F32(vec![]), "{shape} {data}");
    }
}

#[test]
fn what_does_not_fit_the_shape_is_refused_with_what_was_found() {
    assert_eq!(bad("[2,3]", "FP32", "[1,2,3,4,5]"), r#"input "x": expected 6 elements for shape [2, 3], found 5"#);
    assert_eq!(bad("[2]", "FP32", "[1,2,3]"), r#"input "x": expected 2 elements for shape [2], found more"#);
    assert_eq!(bad("[0]", "FP32", "[1]"), r#"input "x": expected 0 elements for shape [0], found more"#);
    assert_eq!(bad("[]", "FP32", "[]"), r#"input "x": expected 1 elements for shape [], found 0"#);
    let short = r#"input "x": expected lists of 3 in dimension 1 of shape [2, 3], found 2"#;
    assert_eq!(bad("[2,3]", "FP32", "[[1,2,3],[4,5]]"), short);
    let few = r#"input "x": expected lists of 2 in dimension 0 of shape [2, 3], found 1"#;
    assert_eq!(bad("[2,3]", "FP32", "[[1,2,3]]"), few);
    assert!(bad("[2,3]", "FP32", "[[1,2,3],[4,5,6],[7,8,9]]").ends_with("found more"));
    assert!(bad("[2,3]", "FP32", "[[1,2,3,4],[5,6]]").ends_with("found more"));
    let flat = bad("[2,2,2]", "INT8", "[[1,2,3,4],[5,6,7,8]]");
    assert_eq!(flat, r#"input "x": expected an array, found 1"#);
    assert_eq!(
        bad("[2]", "INT8", "[[1],[2]]"),
        r#"input "x", element 0: expected an integer from -128 to 127, found an array"#
    );
    assert_eq!(bad("[2,1]", "FP32", "[1,[2]]"), r#"input "x", element 1: expected a number of FP32, found an array"#);
    assert_eq!(bad("[1]", "FP32", "1"), r#"input "x": expected an array, found 1"#);
    assert_eq!(bad("[2]", "FP32", "[1 2]"), r#"input "x": expected ',' or ']', found 2"#);
}

#[test]
fn an_element_of_another_type_is_named_with_its_index() {
    for (datatype, element, expected) in [
        ("BOOL", "1", "expected true or false, found 1"),
        ("BOOL", "null", "expected true or false, found null"),
        ("UINT8", "256", "expected an integer from 0 to 255, found 256"),
        ("UINT8", "-1", "expected an integer from 0 to 255, found -1"),
        ("INT32", "1.5", "expected an integer from -2147483648 to 2147483647, found 1.5"),
        ("INT32", "null", "expected an integer from -2147483648 to 2147483647, found null"),
        ("INT32", "true", "expected an integer from -2147483648 to 2147483647, found true"),
        (
            "UINT64",
            "18446744073709551616",
            "expected an integer from 0 to 18446744073709551615, found 18446744073709551616",
        ),
        ("FP16", "65520", "expected a number of FP16, found 65520"),
        ("FP32", "3.5e38", "expected a number of FP32, found 3.5e38"),
        ("FP64", "1e999", "expected a number of FP64, found 1e999"),
        ("FP64", "\"1\"", "expected a number of FP64, found the string \"1\""),
        ("BYTES", "1", "expected a string, found 1"),
    ] {
        let good = if datatype == "BOOL" {
            "true"
        } else if datatype == "BYTES" {
            "\"\""
        } else {
            "0"
        };
        let text = body("[3]", datatype, &format!("[{good},{element},{good}]"));
        let error = Request::read(text.as_bytes(), None).unwrap_err();
        assert_eq!(error.kind.to_string(), format!("input \"x\", element 1: {expected}"));
        assert_eq!(error.feature(), Some("x"));
        assert!(text[error.position.unwrap()..].starts_with(element), "{error}");
    }
}

#[test]
fn shapes_are_checked_before_memory_is_spent() {
    let dimension = |found| format!("input \"x\": expected a dimension: an integer from 0 on, found {found}");
    for found in ["-1", "1.5", "99999999999999999999", "9223372036854775807", "null"] {
        assert_eq!(bad(&format!("[{found}]"), "FP32", "[]"), dimension(found));
    }
    assert!(bad("[4611686018427387904]", "FP32", "[]").contains("a shape that fits into memory"));
    assert!(bad("[4294967296,4294967296,0]", "INT8", "[]").contains("a shape that fits into memory"));
    assert!(bad("[1000000000000]", "FP64", "[1]").ends_with("found 1"));
    assert!(bad(&format!("[{}]", ["1"; 33].join(",")), "FP32", "[1]").contains("at most 32 dimensions"));
    let deep = format!("{}5{}", "[".repeat(32), "]".repeat(32));
    assert_eq!(values(&format!("[{}]", ["1"; 32].join(",")), "INT8", &deep), Values::I8(vec![5]));
    assert!(bad("7", "FP32", "[1]").contains("expected a shape"));
}

#[test]
fn keys_come_in_any_order_and_others_are_skipped() {
    let text = r#" {"outputs":[{"parameters":{"binary_data":true,"o":[1]},"name":"b"},{"name":"a"}],"more":{"a":[1,{}]},
        "inputs":[{"data":[[1],[2]],"x":null,"datatype":"INT64","parameters":{"content_type":"np","y":{}},
        "shape":[2,1],"name":"x"}],
        "parameters":{"entity_id":-0,"entity_ids":["a",7],"priority":4294967295,"timeout":9007199254740991,
        "binary_data_output":false,"mine":[[]]},"id":""} "#;
    let found = Request::read(text.as_bytes(), None).unwrap();
    let input = Tensor {
        name: "x".into(),
        datatype: Datatype::Int64,
        shape: vec![2, 1],
        count: 2,
        values: Values::I64(vec![1, 2]),
    };
    let expected = Request {
        id: Some("".into()),
        entity_id: Some("0".into()),
        entity_ids: Some(vec!["a".into(), "7".into()]),
        priority: u64::from(u32::MAX),
        timeout_us: (1 << 53) - 1,
        binary_output: Some(false),
        outputs: Some(vec![("b".into(), Some(true)), ("a".into(), None)]),
        inputs: vec![input],
    };
    assert_eq!(found, expected);
    let nulls = body("[1]", "FP32", "[1]").replacen(
        '{',
        r#"{"id":null,"outputs":null,"parameters":{"entity_id":null,"entity_ids":null,"priority":null},"#,
        1,
    );
    let found = Request::read(nulls.as_bytes(), None).unwrap();
    assert_eq!(found, Request { inputs: found.inputs.clone(), ..Request::default() });
    let none = body("[1]", "FP32", "[1]").replacen('{', r#"{"outputs":[],"#, 1);
    assert_eq!(Request::read(none.as_bytes(), None).unwrap().outputs, None);
}

#[test]
fn what_is_no_request_is_refused() {
    let x = r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1]}"#;
    for (text, expected) in [
        ("", "expected an object with \"inputs\", found the end of the document".to_owned()),
        ("{}", "missing field \"inputs\"".to_owned()),
        (r#"{"inputs":[]}"#, "missing field \"inputs\"".to_owned()),
        (r#"{"inputs":null}"#, "expected an array of inputs, found null".to_owned()),
        (r#"{"inputs":[],"inputs":[]}"#, "duplicate key \"inputs\"".to_owned()),
        (&format!(r#"{{"inputs":[{x},{x}]}}"#), "duplicate input \"x\"".to_owned()),
        (
            &format!(r#"{{"inputs":[{x}],"outputs":[{{"name":"o"}},{{"name":"o"}}]}}"#),
            "duplicate output \"o\"".to_owned(),
        ),
        (&format!(r#"{{"inputs":[{x}]}} 1"#), "expected the end of the document, found 1".to_owned()),
        (&format!(r#"{{"id":1,"inputs":[{x}]}}"#), "expected a string, found 1".to_owned()),
        (
            r#"{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}"#,
            "input \"0\": missing field \"name\"".to_owned(),
        ),
        (
            r#"{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}"#,
            "input \"x\": missing field \"shape\"".to_owned(),
        ),
        (r#"{"inputs":[{"name":"x","shape":[1],"data":[1]}]}"#, "input \"x\": missing field \"datatype\"".to_owned()),
        (
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}"#,
            "input \"x\": expected \"data\" or the parameter binary_data_size, found neither".to_owned(),
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}}]}"#,
            "input \"x\": expected \"data\" or the parameter binary_data_size, found both".to_owned(),
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}"#,
            "input \"x\": binary_data_size needs the header Inference-Header-Content-Length".to_owned(),
        ),
        (
            r#"{"inputs":[{"name":"x","parameters":{"shared_memory_region":"r"}}]}"#,
            "input \"x\": shared memory is not supported".to_owned(),
        ),
        (
            r#"{"inputs":[{"name":"x","parameters":{"content_type":"base64"}}]}"#,
            "input \"x\": the content type base64 is not supported".to_owned(),
        ),
        (
            r#"{"outputs":[{"name":"o","parameters":{"classification":3}}]}"#,
            "output \"o\": classification is not supported".to_owned(),
        ),
        (
            r#"{"outputs":[{"parameters":{"shared_memory_region":3}}]}"#,
            "output \"0\": shared memory is not supported".to_owned(),
        ),
        (r#"{"outputs":[{}]}"#, "output \"0\": missing field \"name\"".to_owned()),
        (
            r#"{"parameters":{"triton_x":1}}"#,
            "parameter \"triton_x\": names that begin with \"triton_\" are reserved".to_owned(),
        ),
        (
            r#"{"parameters":{"priority":4294967296}}"#,
            "expected a priority from 0 to 4294967295, found 4294967296".to_owned(),
        ),
        (
            r#"{"parameters":{"timeout":0.5}}"#,
            "expected a timeout in microseconds, an integer from 0 to 9007199254740991, found 0.5".to_owned(),
        ),
        (r#"{"parameters":{"binary_data_output":1}}"#, "expected true or false, found 1".to_owned()),
        (
            r#"{"parameters":{"entity_ids":[null]}}"#,
            "expected an entity id that is a string or an integer, found null".to_owned(),
        ),
        (r#"{"parameters":{"entity_id":1,"entity_id":1}}"#, "duplicate key \"entity_id\"".to_owned()),
    ] {
        assert_eq!(refused(text), expected);
    }
    assert_eq!(bad("[1]", "BF16", "[1]"), "input \"x\": BF16 can only be sent in binary");
    assert!(bad("[1]", "FP8", "[1]").starts_with("input \"x\": expected a datatype (BOOL"));
    let many: Vec<_> = (0..1025).map(|index| x.replace('x', &format!("x{index}"))).collect();
    assert_eq!(refused(&format!(r#"{{"inputs":[{}]}}"#, many.join(","))), "a request has at most 1024 inputs");
    assert!(Request::read(format!(r#"{{"inputs":[{}]}}"#, many[1..].join(",")).as_bytes(), None).is_ok());
    let deep = format!(r#"{{"more":{}}}"#, "[".repeat(100));
    assert!(refused(&deep).contains("at most 64 levels"));
}

#[test]
fn binary_tensors_follow_the_json_in_the_order_of_the_inputs() {
    let texts = b"\x02\0\0\0hi\0\0\0\0\x02\0\0\0\xc3\xa9";
    let bools = [1, 0, 1];
    let floats = [0; 24];
    let (body, json_bytes) = binary(&[("[3]", "BYTES", texts), ("[3]", "BOOL", &bools), ("[2,3]", "FP32", &floats)]);
    let found = Request::read(&body, Some(json_bytes)).unwrap();
    assert_eq!(found.inputs[0].values, Values::Text(vec!["hi".into(), "".into(), "é".into()]));
    assert_eq!(found.inputs[1].values, Values::Binary(json_bytes + texts.len()));
    assert_eq!(found.inputs[2].values, Values::Binary(json_bytes + texts.len() + 3));
    let (body, json_bytes) = binary(&[("[0,3]", "FP64", &[]), ("[0]", "BYTES", &[]), ("[]", "BF16", &[0, 0])]);
    let found = Request::read(&body, Some(json_bytes)).unwrap();
    assert_eq!(found.inputs[2].values, Values::Binary(json_bytes));
    let mixed =
        br#"{"inputs":[{"name":"a","shape":[1],"datatype":"INT8","data":[1]},{"name":"b","shape":[1],"datatype":
        "INT8","parameters":{"binary_data_size":1}}]}."#;
    let found = Request::read(mixed, Some(mixed.len() - 1)).unwrap();
    assert_eq!((&found.inputs[0].values, found.inputs[1].count), (&Values::I8(vec![1]), 1));
}

#[test]
fn binary_tensors_of_another_size_are_refused() {
    let size = "input \"x0\": expected 8 bytes for FP32 of shape [2], found binary_data_size 7";
    assert_eq!(bad_binary(&[("[2]", "FP32", &[0; 7])]), size);
    let least = "input \"x0\": expected at least 8 bytes for BYTES of shape [2], found binary_data_size 7";
    assert_eq!(bad_binary(&[("[2]", "BYTES", &[0; 7])]), least);
    assert!(bad_binary(&[("[999999999999]", "BYTES", &[])]).starts_with("input \"x0\": expected at most"));
    let wrong = |expected: &str, bytes: &[u8]| assert_eq!(bad_binary(&[("[2]", "BYTES", bytes)]), expected);
    wrong("input \"x0\", element 1: expected 4 bytes of its length, found 3", b"\x01\0\0\0a\0\0\0");
    wrong("input \"x0\", element 1: expected 2 bytes, found 1", b"\0\0\0\0\x02\0\0\0a");
    wrong("input \"x0\", element 1: expected UTF-8, found byte 0xff", b"\0\0\0\0\x02\0\0\0a\xff");
    wrong("input \"x0\": expected 2 elements for shape [2], found 1 more bytes", b"\0\0\0\0\0\0\0\0a");
    let truth = "input \"x0\", element 1: expected byte 0 or 1, found 2";
    assert_eq!(bad_binary(&[("[2]", "BOOL", &[0, 2])]), truth);

    let (mut body, json_bytes) = binary(&[("[2]", "INT8", &[0, 1])]);
    body.push(0);
    let error = Request::read(&body, Some(json_bytes)).unwrap_err();
    assert_eq!(error.to_string(), "expected 2 bytes of binary tensors behind the JSON, found 3");
    body.truncate(json_bytes);
    assert!(Request::read(&body, Some(json_bytes)).is_err());
    let error = Request::read(&body, Some(json_bytes + 1)).unwrap_err().to_string();
    let expected = format!("expected at most {json_bytes} (the length of the body), found {}", json_bytes + 1);
    assert_eq!(error, format!("Inference-Header-Content-Length: {expected}"));
    assert!(Request::read(b"{\xff}", Some(3)).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn every_half_is_the_nearest() {
    for bits in (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00) {
        assert_eq!(f64_to_half(f64::from(half_to_f32(bits))), bits);
        let (here, next) = (f64::from(half_to_f32(bits)), f64::from(half_to_f32(bits + 1)));
        if next.is_finite() && bits & 0x7fff < 0x7bff {
            let middle = f64::midpoint(here, next);
            assert_eq!(f64_to_half(middle), bits + bits % 2);
            assert_eq!(f64_to_half(middle + (here - middle) * 1e-9), bits);
            assert_eq!(f64_to_half(middle + (next - middle) * 1e-9), bits + 1);
        }
    }
    assert_eq!([65519.9, 65520.0, -1e300, 1e-300].map(f64_to_half), [0x7bff, 0x7c00, 0xfc00, 0]);
}

fn written(head: Head<'_>, outputs: &[Output<'_>]) -> Value {
    serde_json::from_slice(&head.write("mo\"del", outputs).unwrap()).unwrap()
}

#[test]
fn an_answer_has_its_outputs_in_json_or_behind_it() {
    let texts = ["a\"".to_owned(), String::new()];
    let output = |name, datatype, shape, content, binary| Output { name, datatype, shape, content, binary };
    let floats = Content::Numbers(Slice::F32(&[1.5, f32::NAN]));
    let outputs = [
        output("f", Datatype::Fp32, &[1, 2], floats, false),
        output("g", Datatype::Fp32, &[2, 1], floats, true),
        output("s", Datatype::Bytes, &[2], Content::Text(&texts), false),
        output("t", Datatype::Bytes, &[2], Content::Text(&texts), true),
        output("h", Datatype::Fp16, &[1], Content::Halves(&[0x3e00]), false),
        output("b", Datatype::Bf16, &[1], Content::Numbers(Slice::U16(&[0x3fc0])), true),
        output("e", Datatype::Bool, &[0, 2], Content::Numbers(Slice::Bool(&[])), false),
    ];
    let head = Head { version: Some("v1"), reason: Some("active"), prediction: Some("p"), id: Some("") };
    let json = written(head, &outputs);
    let data = |name: &str, datatype: &str, shape: Value, data: Value| json!({"name": name, "datatype": datatype, "shape": shape, "data": data});
    let sized = |name: &str, datatype: &str, shape: Value, size: u32| json!({"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}});
    let expected = json!({
        "model_name": "mo\"del", "model_version": "v1", "id": "",
        "parameters": {"version": "v1", "reason": "active", "prediction_id": "p"},
        "outputs": [
            data("f", "FP32", json!([1, 2]), json!([1.5, null])),
            sized("g", "FP32", json!([2, 1]), 8),
            data("s", "BYTES", json!([2]), json!(["a\"", ""])),
            sized("t", "BYTES", json!([2]), 10),
            data("h", "FP16", json!([1]), json!([1.5])),
            sized("b", "BF16", json!([1]), 2),
            data("e", "BOOL", json!([0, 2]), json!([])),
        ],
    });
    assert_eq!(json, expected);
    assert_eq!(outputs[3].packed().unwrap(), b"\x02\0\0\0a\"\0\0\0\0");
    assert_eq!(outputs[1].packed(), None);
    assert_eq!(written(Head::default(), &[]), json!({"model_name": "mo\"del", "outputs": []}));
    let text = output("b", Datatype::Bf16, &[1], Content::Numbers(Slice::U16(&[0])), false);
    let error = Head::default().write("m", &[text]).unwrap_err();
    assert_eq!(error.to_string(), "output \"b\": BF16 can only be sent in binary");
}

/// A shape, and as many of these as it holds.
fn shaped<T: std::fmt::Debug + Clone + 'static>(
    element: impl Strategy<Value = T> + Clone + 'static,
) -> impl Strategy<Value = (Vec<usize>, Vec<T>)> {
    vec(0_usize..4, 0..5).prop_flat_map(move |shape| {
        let count = shape.iter().product::<usize>();
        (Just(shape), vec(element.clone(), count))
    })
}

/// Values nested as a shape says.
fn nested(shape: &[usize], values: &[Value]) -> Value {
    let Some((&length, inner)) = shape.split_first() else { return values[0].clone() };
    let stride = inner.iter().product::<usize>();
    (0..length).map(|index| nested(inner, &values[index * stride..(index + 1) * stride])).collect()
}

fn read_back(datatype: &str, shape: &[usize], values: &[Value], pretty: bool) -> Vec<Values<'static>> {
    let flat = Value::from(values.to_vec());
    let forms = [flat, nested(shape, values)].map(|data| {
        let input = json!({"name": "x", "shape": shape, "datatype": datatype, "data": data});
        let request = json!({"inputs": [input]}); // keys in the order of the alphabet: the data comes first
        let text = if pretty { serde_json::to_string_pretty(&request) } else { serde_json::to_string(&request) };
        let direct = body(&json!(shape).to_string(), datatype, &data.to_string());
        [text.unwrap(), direct]
    });
    forms
        .into_iter()
        .flatten()
        .map(|text| {
            let text: &'static str = text.leak();
            let found = Request::read(text.as_bytes(), None).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(found.inputs[0].shape, shape);
            found.inputs.into_iter().next().unwrap().values
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn numbers_read_back((shape, values) in shaped(any::<f64>().prop_filter("finite", |v| v.is_finite())), pretty: bool) {
        let json: Vec<Value> = values.iter().map(|value| json!(value)).collect();
        for found in read_back("FP64", &shape, &json, pretty) {
            prop_assert_eq!(found, Values::F64(values.clone()));
        }
    }

    #[test]
    fn singles_read_back((shape, values) in shaped(any::<f32>().prop_filter("finite", |v| v.is_finite()))) {
        let json: Vec<Value> = values.iter().map(|value| serde_json::from_str(&value.to_string()).unwrap()).collect();
        for found in read_back("FP32", &shape, &json, false) {
            prop_assert_eq!(found, Values::F32(values.clone()));
        }
    }

    #[test]
    fn integers_read_back((shape, values) in shaped(any::<i64>()), (other, unsigned) in shaped(any::<u64>())) {
        let json: Vec<Value> = values.iter().map(|value| json!(value)).collect();
        for found in read_back("INT64", &shape, &json, true) {
            prop_assert_eq!(found, Values::I64(values.clone()));
        }
        let json: Vec<Value> = unsigned.iter().map(|value| json!(value)).collect();
        for found in read_back("UINT64", &other, &json, false) {
            prop_assert_eq!(found, Values::U64(unsigned.clone()));
        }
    }

    #[test]
    fn strings_read_back((shape, values) in shaped(any::<String>())) {
        let json: Vec<Value> = values.iter().map(|value| json!(value)).collect();
        for found in read_back("BYTES", &shape, &json, false) {
            prop_assert_eq!(found, Values::Text(values.iter().map(|text| text.clone().into()).collect()));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|text| {
            [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
        }).collect();
        let (body, json_bytes) = binary(&[(&json!(shape).to_string(), "BYTES", &bytes)]);
        let found = Request::read(&body, Some(json_bytes)).unwrap();
        prop_assert_eq!(&found.inputs[0].values, &Values::Text(values.iter().map(|text| text.clone().into()).collect()));
    }

    #[test]
    fn what_was_cut_off_or_altered_never_panics(cut: prop::sample::Index, at: prop::sample::Index, byte: u8) {
        let texts = b"\x02\0\0\0hi\0\0\0\0";
        let (body, json_bytes) = binary(&[("[2]", "BYTES", texts), ("[3]", "BOOL", &[1, 0, 1]), ("[2,3]", "FP32", &[0; 24])]);
        let cut = cut.index(body.len());
        prop_assert!(Request::read(&body[..cut], Some(json_bytes.min(cut))).is_err());
        prop_assert!(Request::read(&body[..cut], None).is_err());
        let mut altered = body.clone();
        altered[at.index(body.len())] = byte;
        let _ = Request::read(&altered, Some(json_bytes));
        let _ = Request::read(&altered, Some(cut));
    }

    #[test]
    fn any_bytes_never_panic(bytes: Vec<u8>, json_bytes: Option<u8>) {
        let _ = Request::read(&bytes, json_bytes.map(usize::from));
    }

    #[test]
    fn any_tokens_never_panic(tokens in vec(prop::sample::select(vec![
        "{", "}", "[", "]", ",", ":", "\"inputs\":", "\"name\":", "\"shape\":", "\"datatype\":", "\"data\":", "\"parameters\":",
        "\"x\"", "\"FP32\"", "\"BYTES\"", "\"BOOL\"", "[1]", "[]", "1", "-1", "1e9", "NaN", "null", "true",
        "\"binary_data_size\":", "\"outputs\":",
    ]), 0..40)) {
        let text = tokens.concat();
        let _ = Request::read(text.as_bytes(), None);
        let _ = Request::read(text.as_bytes(), Some(text.len() / 2));
    }
}

#[test]
fn strings_are_counted_before_they_are_made() {
    let input = |name: &str, count: usize| {
        format!(
            "{{\"name\":\"{name}\",\"shape\":[{count}],\"datatype\":\"BYTES\",\"parameters\":{{\"binary_data_size\":{}}}}}",
            4 * count
        )
    };
    let most = 1 << 20;
    for (inputs, said) in [
        (input("x", most + 1), format!("input \"x\": expected at most {most} strings, found {}", most + 1)),
        (
            format!("{},{}", input("x", most), input("y", 1)),
            format!("input \"y\": expected at most {most} strings in a request, found {}", most + 1),
        ),
    ] {
        let json = format!("{{\"inputs\":[{inputs}]}}");
        let error = Request::read(json.as_bytes(), Some(json.len())).unwrap_err();
        assert!(error.to_string().starts_with(&said), "{error}");
    }
}
