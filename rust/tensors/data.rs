//! The `data` of a tensor in JSON, straight into a vector of its type.

use std::borrow::Cow;

use super::datatype::Datatype;
use super::fields::{fault, in_input};
use super::input::Values;
use crate::encode::f64_to_half;
use crate::error::{Error, Result};
use crate::json::Reader;

/// What a tensor's data must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'w> {
    /// The input's name, for errors.
    pub name: &'w str,
    pub datatype: Datatype,
    pub shape: &'w [usize],
    /// How many elements the shape has.
    pub count: usize,
}

/// An element as it stands in JSON.
trait Element<'a>: Sized {
    /// The fewest bytes that it takes, with what separates it from the next.
    const LEAST: usize = 2;

    fn read(reader: &mut Reader<'a>) -> Result<Self>;
}

macro_rules! integers {
    ($($type:ty, $get:ident, $expected:literal;)*) => {
        $(impl Element<'_> for $type {
            #[inline]
            fn read(reader: &mut Reader<'_>) -> Result<Self> {
                const EXPECTED: &str = concat!("expected an integer from ", $expected);
                let start = numeral(reader, EXPECTED)?;
                let found = reader.number()?.$get().and_then(|value| Self::try_from(value).ok());
                found.ok_or_else(|| reader.from_position(start).unexpected(EXPECTED))
            }
        })*
    };
}

integers! {
    u8, to_u64, "0 to 255";
    u16, to_u64, "0 to 65535";
    u32, to_u64, "0 to 4294967295";
    u64, to_u64, "0 to 18446744073709551615";
    i8, to_i64, "-128 to 127";
    i16, to_i64, "-32768 to 32767";
    i32, to_i64, "-2147483648 to 2147483647";
    i64, to_i64, "-9223372036854775808 to 9223372036854775807";
}

/// Where the number that comes next begins.
#[inline]
fn numeral(reader: &mut Reader<'_>, expected: &'static str) -> Result<usize> {
    match reader.peek() {
        Some(b'-' | b'0'..=b'9') => Ok(reader.position()),
        _ => Err(reader.unexpected(expected)),
    }
}

impl Element<'_> for bool {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        if reader.take_word("true") {
            Ok(true)
        } else if reader.take_word("false") {
            Ok(false)
        } else {
            Err(reader.unexpected("expected true or false"))
        }
    }
}

impl<'a> Element<'a> for Cow<'a, str> {
    const LEAST: usize = 3;

    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        reader.string()
    }
}

/// A number, or one of the words for what is none: those that Python writes, and `null`.
///
/// `narrow` says None where the type has no such number.
#[inline]
fn float<T>(reader: &mut Reader<'_>, expected: &'static str, narrow: impl Fn(f64) -> Option<T>) -> Result<T> {
    reader.peek();
    let start = reader.position();
    let value = match reader.plain() {
        Some(value) => value,
        None => long_or_special(reader, expected)?,
    };
    narrow(value).ok_or_else(|| reader.from_position(start).unexpected(expected))
}

/// A number that is no plain decimal, or one of the words.
fn long_or_special(reader: &mut Reader<'_>, expected: &'static str) -> Result<f64> {
    if !matches!(reader.peek(), Some(b'0'..=b'9'))
        && let Some(value) = special(reader)
    {
        return Ok(value);
    }
    let start = numeral(reader, expected)?;
    let value = reader.number()?.to_f64();
    if value.is_finite() { Ok(value) } else { Err(reader.from_position(start).unexpected(expected)) }
}

fn special(reader: &mut Reader<'_>) -> Option<f64> {
    const WORDS: [(&str, f64); 4] =
        [("null", f64::NAN), ("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)];
    WORDS.into_iter().find_map(|(word, value)| reader.take_word(word).then_some(value))
}

/// What a float became, unless it was finite and is not any more.
#[inline]
fn kept<T>(value: f64, narrowed: T, finite: bool) -> Option<T> {
    (finite || !value.is_finite()).then_some(narrowed)
}

impl Element<'_> for f64 {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        float(reader, "expected a number of FP64", Some)
    }
}

impl Element<'_> for f32 {
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "checked behind it")]
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        float(reader, "expected a number of FP32", |value| {
            let single = value as f32;
            kept(value, single, single.is_finite())
        })
    }
}

/// The bits of a half-precision float.
struct Half(u16);

impl Element<'_> for Half {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        float(reader, "expected a number of FP16", |value| {
            let bits = f64_to_half(value);
            kept(value, Self(bits), bits & 0x7c00 != 0x7c00)
        })
    }
}

impl Wanted<'_> {
    /// Read the data that stands next.
    pub fn read<'a>(self, reader: &mut Reader<'a>) -> Result<Values<'a>> {
        Ok(match self.datatype {
            Datatype::Bool => Values::Bool(self.all(reader)?),
            Datatype::Uint8 => Values::U8(self.all(reader)?),
            Datatype::Uint16 => Values::U16(self.all(reader)?),
            Datatype::Uint32 => Values::U32(self.all(reader)?),
            Datatype::Uint64 => Values::U64(self.all(reader)?),
            Datatype::Int8 => Values::I8(self.all(reader)?),
            Datatype::Int16 => Values::I16(self.all(reader)?),
            Datatype::Int32 => Values::I32(self.all(reader)?),
            Datatype::Int64 => Values::I64(self.all(reader)?),
            Datatype::Fp16 => Values::F16(self.all(reader)?.into_iter().map(|Half(bits)| bits).collect()),
            Datatype::Fp32 => Values::F32(self.all(reader)?),
            Datatype::Fp64 => Values::F64(self.all(reader)?),
            Datatype::Bytes => Values::Text(self.all(reader)?),
            Datatype::Bf16 => {
                reader.peek();
                return Err(fault(self.name, "BF16 can only be sent in binary".to_owned(), Some(reader.position())));
            }
        })
    }

    /// The elements, flat or nested as the shape says; a tensor without dimensions may also be a bare element.
    fn all<'a, T: Element<'a>>(self, reader: &mut Reader<'a>) -> Result<Vec<T>> {
        // What is not there takes no memory, whatever the shape promises.
        let mut values = Vec::with_capacity(self.count.min(reader.left() / T::LEAST));
        if self.shape.is_empty() && reader.peek() != Some(b'[') {
            self.push(reader, &mut values)?;
            return Ok(values);
        }
        reader.require(b'[', "expected an array").map_err(|error| in_input(self.name, None, error))?;
        if self.shape.len() > 1 && reader.peek() == Some(b'[') {
            self.nested(reader, 0, &mut values)?;
        } else {
            self.list(reader, self.count, &mut values, |found| self.miscounted(found))?;
        }
        Ok(values)
    }

    #[inline]
    fn push<'a, T: Element<'a>>(self, reader: &mut Reader<'a>, values: &mut Vec<T>) -> Result<()> {
        let value = T::read(reader).map_err(|error| in_input(self.name, Some(values.len()), error))?;
        values.push(value);
        Ok(())
    }

    /// After `[`: that many elements and `]`.
    fn list<'a, T: Element<'a>>(
        self,
        reader: &mut Reader<'a>,
        length: usize,
        values: &mut Vec<T>,
        problem: impl Fn(Option<usize>) -> String,
    ) -> Result<()> {
        let start = values.len();
        let mut more = reader.first(b']');
        while more {
            if values.len() - start == length {
                reader.peek();
                return Err(fault(self.name, problem(None), Some(reader.position())));
            }
            self.push(reader, values)?;
            more = reader.more(b']').map_err(|error| in_input(self.name, None, error))?;
        }
        let found = values.len() - start;
        if found == length { Ok(()) } else { Err(self.short(reader, problem(Some(found)))) }
    }

    /// After `[`: the lists of a dimension and `]`. As deep as the shape has dimensions, which are few.
    fn nested<'a, T: Element<'a>>(self, reader: &mut Reader<'a>, axis: usize, values: &mut Vec<T>) -> Result<()> {
        let length = self.shape[axis];
        if axis + 1 == self.shape.len() {
            return self.list(reader, length, values, |found| self.misplaced(axis, found));
        }
        let mut found = 0;
        let mut more = reader.first(b']');
        while more {
            if found == length {
                reader.peek();
                return Err(fault(self.name, self.misplaced(axis, None), Some(reader.position())));
            }
            reader.require(b'[', "expected an array").map_err(|error| in_input(self.name, None, error))?;
            self.nested(reader, axis + 1, values)?;
            found += 1;
            more = reader.more(b']').map_err(|error| in_input(self.name, None, error))?;
        }
        if found == length { Ok(()) } else { Err(self.short(reader, self.misplaced(axis, Some(found)))) }
    }

    /// The error behind the `]` that came too early.
    #[cold]
    fn short(self, reader: &Reader<'_>, problem: String) -> Error {
        fault(self.name, problem, Some(reader.position() - 1))
    }

    #[cold]
    fn miscounted(self, found: Option<usize>) -> String {
        format!("expected {} elements for shape {:?}, found {}", self.count, self.shape, count(found))
    }

    #[cold]
    fn misplaced(self, axis: usize, found: Option<usize>) -> String {
        let (length, shape) = (self.shape[axis], self.shape);
        format!("expected lists of {length} in dimension {axis} of shape {shape:?}, found {}", count(found))
    }
}

fn count(found: Option<usize>) -> String {
    found.map_or_else(|| "more".to_owned(), |found| found.to_string())
}
