//! An input of a request, whose keys come in any order.

use std::borrow::Cow;

use super::data::Wanted;
use super::datatype::Datatype;
use super::fields::{fault, in_input, integer, object, optional};
use crate::error::Result;
use crate::json::{Reader, mismatch, shorten};

/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 32;

/// Most strings of a request: each of them is an object of Python, however short.
pub const MAX_TEXTS: usize = 1 << 20;

/// The values of a tensor.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "named by their types")]
pub enum Values<'a> {
    Bool(Vec<bool>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    /// The bits of half-precision floats.
    F16(Vec<u16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    /// Borrowed from the body where they have no escapes.
    Text(Vec<Cow<'a, str>>),
    /// Numbers or truth values, little-endian, from this byte of the body on.
    Binary(usize),
}

/// An input that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: Cow<'a, str>,
    /// The type of its elements.
    pub datatype: Datatype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// How many elements it has.
    pub count: usize,
    /// Its elements in C order.
    pub values: Values<'a>,
}

/// An input as far as it was read; its keys come in any order.
pub(super) struct Draft<'a> {
    index: usize,
    name: Option<Cow<'a, str>>,
    shape: Option<Vec<usize>>,
    datatype: Option<Datatype>,
    size: Option<usize>,
    /// Where data stands that came before what says how to read it.
    later: Option<Reader<'a>>,
    values: Option<Values<'a>>,
}

impl<'a> Draft<'a> {
    /// Read an input, and its size where it comes in binary.
    pub fn read(reader: &mut Reader<'a>, index: usize) -> Result<(Tensor<'a>, Option<usize>)> {
        reader.peek();
        let start = reader.position();
        let mut draft = Self { index, name: None, shape: None, datatype: None, size: None, later: None, values: None };
        let expected = "expected an input: an object with \"name\", \"shape\", \"datatype\" and \"data\"";
        let known = ["name", "shape", "datatype", "parameters", "data"];
        object(reader, expected, &known, |reader, key| draft.field(reader, key))?;
        draft.finish(start)
    }

    /// Its name, or its index before the name has come.
    fn label(&self) -> String {
        self.name.as_deref().map_or_else(|| self.index.to_string(), shorten)
    }

    fn field(&mut self, reader: &mut Reader<'a>, key: &str) -> Result<()> {
        match key {
            "name" => self.name = Some(reader.string().map_err(|error| in_input(&self.label(), None, error))?),
            "shape" => self.shape = Some(shape(reader).map_err(|error| in_input(&self.label(), None, error))?),
            "datatype" => self.datatype = Some(self.datatype(reader)?),
            "parameters" => drop(optional(reader, |reader| self.parameters(reader))?),
            "data" if self.name.is_none() || self.shape.is_none() || self.datatype.is_none() => {
                self.later = Some(reader.clone());
                reader.skip_data().map_err(|error| in_input(&self.label(), None, error))?;
            }
            "data" => self.values = Some(self.wanted(reader.position(), |wanted| wanted.read(reader))?),
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn datatype(&self, reader: &mut Reader<'a>) -> Result<Datatype> {
        let start = reader.clone();
        let name = reader.string().map_err(|error| in_input(&self.label(), None, error))?;
        let expected = "expected a datatype (BOOL, UINT8 to UINT64, INT8 to INT64, FP16 to FP64, BF16 or BYTES)";
        Datatype::from_name(&name).ok_or_else(|| in_input(&self.label(), None, start.unexpected(expected)))
    }

    fn parameters(&mut self, reader: &mut Reader<'a>) -> Result<()> {
        object(reader, "expected an object of parameters", &["binary_data_size"], |reader, key| {
            let start = reader.position();
            let refuse = |what: &str| fault(&self.label(), format!("{what} is not supported"), Some(start));
            match key {
                "binary_data_size" => {
                    self.size = Some(size(reader).map_err(|error| in_input(&self.label(), None, error))?);
                }
                "shared_memory_region" => return Err(refuse("shared memory")),
                "content_type" if reader.peek() == Some(b'"') => {
                    if reader.string()? == "base64" {
                        return Err(refuse("the content type base64"));
                    }
                }
                _ => reader.skip()?,
            }
            Ok(())
        })
    }

    /// What its data must be, once shape and datatype are known.
    fn wanted<T>(&self, start: usize, work: impl FnOnce(Wanted<'_>) -> Result<T>) -> Result<T> {
        let label = self.label();
        let missing = |key: &str| fault(&label, format!("missing field {key:?}"), Some(start));
        let shape = self.shape.as_deref().ok_or_else(|| missing("shape"))?;
        let datatype = self.datatype.ok_or_else(|| missing("datatype"))?;
        let count = datatype.elements(shape).ok_or_else(|| {
            let problem = format!("expected a shape that fits into memory, found {shape:?}");
            fault(&label, problem, Some(start))
        })?;
        if datatype == Datatype::Bytes && count > MAX_TEXTS {
            return Err(fault(&label, format!("expected at most {MAX_TEXTS} strings, found {count}"), Some(start)));
        }
        work(Wanted { name: &label, datatype, shape, count })
    }

    fn finish(mut self, start: usize) -> Result<(Tensor<'a>, Option<usize>)> {
        let label = self.label();
        let refuse = |problem: &str| fault(&label, problem.to_owned(), Some(start));
        if self.name.is_none() {
            return Err(refuse("missing field \"name\""));
        }
        if let Some(mut later) = self.later.take() {
            let at = later.position();
            self.values = Some(self.wanted(at, |wanted| wanted.read(&mut later))?);
        }
        let count = self.wanted(start, |wanted| Ok(wanted.count))?;
        let values = match (self.values, self.size) {
            (Some(values), None) => values,
            (None, Some(_)) => Values::Binary(0), // until it is placed
            (None, None) => return Err(refuse("expected \"data\" or the parameter binary_data_size, found neither")),
            (Some(_), Some(_)) => {
                return Err(refuse("expected \"data\" or the parameter binary_data_size, found both"));
            }
        };
        match (self.name, self.datatype, self.shape) {
            (Some(name), Some(datatype), Some(shape)) => {
                Ok((Tensor { name, datatype, shape, count, values }, self.size))
            }
            _ => Err(refuse("missing fields")),
        }
    }
}

/// The dimensions of a tensor.
fn shape(reader: &mut Reader<'_>) -> Result<Vec<usize>> {
    const EXPECTED: &str = "expected a shape: an array of integers from 0 on";
    let start = reader.position();
    reader.require(b'[', EXPECTED)?;
    let mut shape = Vec::new();
    let mut more = reader.first(b']');
    while more {
        if shape.len() == MAX_RANK {
            return Err(mismatch("expected a shape of at most 32 dimensions", "more".to_owned(), start));
        }
        reader.peek();
        let bound = u64::try_from(isize::MAX).unwrap_or(u64::MAX);
        let length = integer(reader, "expected a dimension: an integer from 0 on", bound)?;
        shape.push(usize::try_from(length).unwrap_or(usize::MAX));
        more = reader.more(b']')?;
    }
    Ok(shape)
}

fn size(reader: &mut Reader<'_>) -> Result<usize> {
    let bound = u64::try_from(isize::MAX).unwrap_or(u64::MAX);
    let value = integer(reader, "expected a number of bytes", bound)?;
    Ok(usize::try_from(value).unwrap_or(usize::MAX))
}
