//! The answer to an inference request: its JSON, and the outputs in binary behind it.

use super::datatype::Datatype;
use crate::encode::{Token, half_to_f32};
use crate::error::{ErrorKind, Result};
use crate::slice::{Slice, with_values};

/// The values of an output, in C order.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Numbers or truth values.
    Numbers(Slice<'a>),
    /// The bits of half-precision floats.
    Halves(&'a [u16]),
    /// Strings.
    Text(&'a [String]),
}

/// An output as it goes into an answer.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type of its elements, which is one that the content can be.
    pub datatype: Datatype,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// Its values.
    pub content: Content<'a>,
    /// Whether it goes behind the JSON.
    pub binary: bool,
}

/// What an answer says besides its outputs; what is None is left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Head<'a> {
    /// The version that answered.
    pub version: Option<&'a str>,
    /// Why it did.
    pub reason: Option<&'a str>,
    /// The prediction id.
    pub prediction: Option<&'a str>,
    /// The id of the request.
    pub id: Option<&'a str>,
}

impl Content<'_> {
    /// The type that the values have by themselves.
    #[must_use]
    pub fn datatype(self) -> Datatype {
        match self {
            Self::Halves(_) => Datatype::Fp16,
            Self::Text(_) => Datatype::Bytes,
            Self::Numbers(slice) => match slice {
                Slice::F32(_) => Datatype::Fp32,
                Slice::F64(_) => Datatype::Fp64,
                Slice::I8(_) => Datatype::Int8,
                Slice::I16(_) => Datatype::Int16,
                Slice::I32(_) => Datatype::Int32,
                Slice::I64(_) => Datatype::Int64,
                Slice::U8(_) => Datatype::Uint8,
                Slice::U16(_) => Datatype::Uint16,
                Slice::U32(_) => Datatype::Uint32,
                Slice::U64(_) => Datatype::Uint64,
                Slice::Bool(_) => Datatype::Bool,
            },
        }
    }

    /// The declared type where the values can be of it, as the bits of BF16 can: else the type that they have.
    #[must_use]
    pub fn as_declared(self, declared: Option<Datatype>) -> Datatype {
        match declared {
            Some(Datatype::Bf16) if matches!(self, Self::Numbers(Slice::U16(_))) => Datatype::Bf16,
            _ => self.datatype(),
        }
    }

    /// Number of values.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            Self::Numbers(slice) => slice.len(),
            Self::Halves(bits) => bits.len(),
            Self::Text(texts) => texts.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    fn write_json(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Numbers(slice) => with_values!(slice, values => write_flat(values, bytes)),
            Self::Text(texts) => write_flat(texts, bytes),
            Self::Halves(bits) => separated(bits, bytes, |&bits, bytes| half_to_f32(bits).write(bytes)),
        }
    }
}

fn write_flat<T: Token>(values: &[T], bytes: &mut Vec<u8>) {
    separated(values, bytes, Token::write);
}

/// Write a list, each element by `write`.
fn separated<T>(values: &[T], bytes: &mut Vec<u8>, write: impl Fn(&T, &mut Vec<u8>)) {
    bytes.push(b'[');
    for (place, value) in values.iter().enumerate() {
        if place > 0 {
            bytes.push(b',');
        }
        write(value, bytes);
    }
    bytes.push(b']');
}

impl Output<'_> {
    /// Bytes that it has behind the JSON; 0 where it is in it.
    ///
    /// # Errors
    /// With a string that is too long for its length in four bytes.
    pub fn binary_bytes(&self) -> Result<usize> {
        if !self.binary {
            return Ok(0);
        }
        let Content::Text(texts) = self.content else {
            return Ok(self.content.len() * self.datatype.size());
        };
        match texts.iter().position(|text| u32::try_from(text.len()).is_err()) {
            None => Ok(texts.iter().map(|text| 4 + text.len()).sum()),
            Some(index) => Err(self.refuse(Some(index), "a string of more than 4294967295 bytes").into()),
        }
    }

    /// Its strings as they go behind the JSON, each behind its length; None for what goes there as it is in memory.
    #[must_use]
    pub fn packed(&self) -> Option<Vec<u8>> {
        let Content::Text(texts) = self.content else { return None };
        let mut packed = Vec::with_capacity(texts.iter().map(|text| 4 + text.len()).sum());
        for text in texts {
            packed.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            packed.extend_from_slice(text.as_bytes());
        }
        Some(packed)
    }

    #[cold]
    fn refuse(&self, element: Option<usize>, problem: &str) -> ErrorKind {
        ErrorKind::Tensor { role: "output", name: self.name.to_owned(), element, problem: problem.to_owned() }
    }

    fn write_json(&self, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.extend_from_slice(b"{\"name\":");
        self.name.write(bytes);
        bytes.extend_from_slice(b",\"datatype\":");
        self.datatype.name().write(bytes);
        bytes.extend_from_slice(b",\"shape\":");
        separated(self.shape, bytes, |&length, bytes| (length as u64).write(bytes));
        if self.binary {
            bytes.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            (self.binary_bytes()? as u64).write(bytes);
            bytes.extend_from_slice(b"}}");
        } else if self.datatype == Datatype::Bf16 {
            return Err(self.refuse(None, "BF16 can only be sent in binary").into());
        } else {
            bytes.extend_from_slice(b",\"data\":");
            self.content.write_json(bytes);
            bytes.push(b'}');
        }
        Ok(())
    }
}

impl Head<'_> {
    /// The JSON of an answer.
    ///
    /// # Errors
    /// Where an output cannot be sent as it is wanted.
    pub fn write(&self, model: &str, outputs: &[Output<'_>]) -> Result<Vec<u8>> {
        let inline = outputs.iter().filter(|output| !output.binary).map(|output| output.content.len());
        let mut bytes = Vec::with_capacity(320 + 8 * inline.sum::<usize>());
        bytes.extend_from_slice(b"{\"model_name\":");
        model.write(&mut bytes);
        for (key, value) in [("model_version", self.version), ("id", self.id)] {
            if let Some(value) = value {
                bytes.push(b',');
                member(key, value, &mut bytes);
            }
        }
        self.parameters(&mut bytes);
        bytes.extend_from_slice(b",\"outputs\":[");
        for (place, output) in outputs.iter().enumerate() {
            if place > 0 {
                bytes.push(b',');
            }
            output.write_json(&mut bytes)?;
        }
        bytes.extend_from_slice(b"]}");
        Ok(bytes)
    }

    fn parameters(&self, bytes: &mut Vec<u8>) {
        let all = [("version", self.version), ("reason", self.reason), ("prediction_id", self.prediction)];
        let mut before: &[u8] = b",\"parameters\":{";
        for (key, value) in all {
            if let Some(value) = value {
                bytes.extend_from_slice(before);
                member(key, value, bytes);
                before = b",";
            }
        }
        if before.len() == 1 {
            bytes.push(b'}');
        }
    }
}

fn member(key: &str, value: &str, bytes: &mut Vec<u8>) {
    key.write(bytes);
    bytes.push(b':');
    value.write(bytes);
}
