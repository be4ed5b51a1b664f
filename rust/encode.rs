//! Outputs of a model as the JSON of an answer, straight from their arrays.

use crate::answers::Output;
use crate::error::{ErrorKind, Result};

/// An array without values costs no memory, yet its shape may ask for any number of empty lists.
pub(crate) const MOST_BRACKETS: usize = 100_000;

/// What the answers of one version have in common.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Up to the prediction id.
    head: Vec<u8>,
    /// The outputs' names, quoted, with colon and, after the first, comma.
    names: Vec<Vec<u8>>,
}

/// An answer that is being written.
#[derive(Debug)]
pub struct Answer<'a> {
    envelope: &'a Envelope,
    bytes: Vec<u8>,
    written: usize,
}

impl Envelope {
    /// Prepare the answers of a version.
    #[must_use]
    pub fn new(model: &str, version: &str, outputs: &[String]) -> Self {
        let mut head = b"{\"model\":".to_vec();
        model.write(&mut head);
        head.extend_from_slice(b",\"version\":");
        version.write(&mut head);
        head.extend_from_slice(b",\"prediction_id\":\"");
        let names = outputs.iter().enumerate().map(|(index, name)| {
            let mut quoted = if index == 0 { Vec::new() } else { b",".to_vec() };
            name.write(&mut quoted);
            quoted.push(b':');
            quoted
        });
        Self { head, names: names.collect() }
    }

    /// Append what stands before the prediction id, which comes next.
    #[inline]
    pub fn begin(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.head);
    }

    /// Go on behind the prediction id.
    #[inline]
    #[must_use]
    pub fn answer(&self, mut bytes: Vec<u8>, reason: &str) -> Answer<'_> {
        bytes.extend_from_slice(b"\",\"reason\":\"");
        bytes.extend_from_slice(reason.as_bytes());
        bytes.extend_from_slice(b"\",\"outputs\":{");
        Answer { envelope: self, bytes, written: 0 }
    }
}

impl Answer<'_> {
    /// Write the next output, values in C order: of shape `[1, ...]`, whose first dimension is dropped, or `[]`.
    ///
    /// # Errors
    /// Where it is more or less than one row, or there are more outputs than names.
    pub fn push<T: Token>(&mut self, shape: &[usize], values: &[T]) -> Result<()> {
        let Some(name) = self.envelope.names.get(self.written) else {
            let problem = format!("expected {} outputs, found more", self.envelope.names.len());
            return Err(output(self.written.to_string(), problem));
        };
        let inner = match shape {
            [] => shape,
            [1, inner @ ..] => inner,
            _ => return Err(self.refuse(format!("expected one row, found shape {shape:?}"))),
        };
        if brackets(inner) > MOST_BRACKETS {
            return Err(self.refuse(format!("too many empty lists in shape {shape:?}")));
        }
        let count = inner.iter().try_fold(1_usize, |all, &length| all.checked_mul(length));
        if count != Some(values.len()) {
            return Err(self.refuse(format!("expected shape {shape:?}, found {} values", values.len())));
        }
        self.bytes.extend_from_slice(name);
        write_nested(inner, values, &mut self.bytes);
        self.written += 1;
        Ok(())
    }

    /// Write a row of many as the next output, which `Output` has checked.
    pub fn push_row(&mut self, output: &Output<'_>, row: usize) {
        if let Some(name) = self.envelope.names.get(self.written) {
            self.bytes.extend_from_slice(name);
            output.write_row(row, &mut self.bytes);
            self.written += 1;
        }
    }

    /// The answer's bytes.
    ///
    /// # Errors
    /// Where outputs are missing.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        if self.written < self.envelope.names.len() {
            return Err(self.refuse(format!("missing; found {} outputs", self.written)));
        }
        self.bytes.extend_from_slice(b"}}");
        Ok(self.bytes)
    }

    /// The error for the output that comes next.
    #[cold]
    pub fn refuse(&self, problem: String) -> crate::error::Error {
        let quoted = self.envelope.names.get(self.written).map(Vec::as_slice).unwrap_or_default();
        let name = String::from_utf8_lossy(quoted);
        output(name.trim_start_matches(',').trim_end_matches(':').trim_matches('"').to_owned(), problem)
    }
}

/// How many lists a shape that holds no values is written with: its dimensions before the first zero.
pub(crate) fn brackets(shape: &[usize]) -> usize {
    if shape.contains(&0) {
        shape.iter().take_while(|&&length| length > 0).fold(1, |all, &length| all.saturating_mul(length))
    } else {
        0
    }
}

fn output(name: String, problem: String) -> crate::error::Error {
    ErrorKind::Output { name, problem }.into()
}

/// Something that is one token of JSON.
pub trait Token {
    /// Append the token.
    fn write(&self, bytes: &mut Vec<u8>);
}

macro_rules! tokens {
    ($write:expr => $($type:ty)*) => {
        $(impl Token for $type {
            #[inline]
            fn write(&self, bytes: &mut Vec<u8>) {
                let write: fn($type, &mut Vec<u8>) = $write;
                write(*self, bytes);
            }
        })*
    };
}

tokens!(|value, bytes| bytes.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()) =>
    i8 i16 i32 i64 u8 u16 u32 u64);

tokens!(|value, bytes| {
    if value.is_finite() {
        bytes.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        bytes.extend_from_slice(b"null");
    }
} => f32 f64);

tokens!(|value, bytes| bytes.extend_from_slice(if value { b"true" } else { b"false" }) => bool);

impl Token for str {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.push(b'"');
        let mut start = 0;
        for (at, byte) in self.bytes().enumerate() {
            if byte >= 0x20 && byte != b'"' && byte != b'\\' {
                continue;
            }
            bytes.extend_from_slice(&self.as_bytes()[start..at]);
            start = at + 1;
            match byte {
                b'"' | b'\\' => bytes.extend_from_slice(&[b'\\', byte]),
                b'\n' => bytes.extend_from_slice(b"\\n"),
                b'\r' => bytes.extend_from_slice(b"\\r"),
                b'\t' => bytes.extend_from_slice(b"\\t"),
                _ => bytes.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            }
        }
        bytes.extend_from_slice(&self.as_bytes()[start..]);
        bytes.push(b'"');
    }
}

impl Token for String {
    fn write(&self, bytes: &mut Vec<u8>) {
        self.as_str().write(bytes);
    }
}

/// Values in C order as nested arrays; the depth is that of the shape.
pub(crate) fn write_nested<T: Token>(shape: &[usize], values: &[T], bytes: &mut Vec<u8>) {
    let Some((&length, inner)) = shape.split_first() else {
        if let Some(value) = values.first() {
            value.write(bytes);
        }
        return;
    };
    bytes.push(b'[');
    let stride = inner.iter().product::<usize>();
    for index in 0..length {
        if index > 0 {
            bytes.push(b',');
        }
        write_nested(inner, &values[index * stride..(index + 1) * stride], bytes);
    }
    bytes.push(b']');
}

/// A half-precision float as the single that equals it.
///
/// Source: IEEE 754-2019, section 3.4, binary16: 1 sign bit, 5 exponent bits biased by 15, 10 fraction bits.
#[must_use]
pub fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 0x1f);
    let fraction = f32::from(bits & 0x3ff) / 1024.0;
    sign * match exponent {
        0 => fraction * 2_f32.powi(-14),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction) * 2_f32.powi(exponent - 15),
    }
}

/// The nearest half-precision float, ties to the even one; infinite from half a step above the largest one on.
///
/// Source: IEEE 754-2019, section 4.3.1, `roundTiesToEven`, from double to binary16 at once.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2048 steps, 31 exponents")]
pub fn f64_to_half(value: f64) -> u16 {
    let sign = u16::from(value.is_sign_negative()) << 15;
    let magnitude = value.abs();
    if value.is_nan() {
        return 0x7e00;
    }
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(-14);
    // Exact but for the rounding; a carry goes on into the exponent.
    let steps = (magnitude * 2_f64.powi(10 - exponent)).round_ties_even() as u16;
    sign | (((exponent + 14) as u16) << 10).wrapping_add(steps)
}

/// A UUID of version 7 in its 36 characters.
///
/// Source: RFC 9562, section 5.7: 48 bits of Unix milliseconds, the version, 12 random bits, the variant, 62 random bits.
pub fn write_uuid7(milliseconds: u64, random: u128, bytes: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    const RANDOM: u128 = (0xfff << 64) | ((1 << 62) - 1);
    let bits = (u128::from(milliseconds) << 80) | (7 << 76) | (2 << 62) | (random & RANDOM);
    for (index, byte) in bits.to_be_bytes().into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            bytes.push(b'-');
        }
        bytes.push(DIGITS[usize::from(byte >> 4)]);
        bytes.push(DIGITS[usize::from(byte & 15)]);
    }
}
