//! An inference request: its tensors, and what it asks for.

use std::borrow::Cow;
use std::collections::HashSet;

use super::binary;
use super::datatype::Datatype;
use super::fields::{fault, integer, list, object, optional, tensor, truth};
use super::input::{Draft, MAX_TEXTS, Tensor};
use crate::error::{Error, ErrorKind, Result};
use crate::json::{Reader, shorten};
use crate::route::{Entity, read_entity};

/// The header that says how many bytes of a body are JSON.
pub const HEADER: &str = "Inference-Header-Content-Length";

/// Priorities are below this.
const PRIORITIES: u64 = 1 << 32;

/// Timeouts, in microseconds, are below this: JSON carries no larger integer everywhere.
const TIMEOUTS: u64 = 1 << 53;

/// What a request says besides its inputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request<'a> {
    /// Its id, which the answer repeats.
    pub id: Option<Cow<'a, str>>,
    /// Who it is about; an integer as its decimal text.
    pub entity_id: Option<Cow<'a, str>>,
    /// Who its rows are about.
    pub entity_ids: Option<Vec<Cow<'a, str>>>,
    /// 0 where it says none.
    pub priority: u64,
    /// How long it may wait, in microseconds; 0 for no limit.
    pub timeout_us: u64,
    /// Whether outputs are wanted in binary, where they do not say.
    pub binary_output: Option<bool>,
    /// The outputs that it wants, and whether in binary; None for all.
    pub outputs: Option<Vec<(Cow<'a, str>, Option<bool>)>>,
    /// Its tensors.
    pub inputs: Vec<Tensor<'a>>,
}

/// A string or an integer, as text.
fn entity<'a>(reader: &mut Reader<'a>) -> Result<Cow<'a, str>> {
    let start = reader.clone();
    match read_entity(reader)? {
        Entity::Id(id) => Ok(id),
        _ => Err(start.unexpected("expected an entity id that is a string or an integer")),
    }
}

fn entities<'a>(reader: &mut Reader<'a>) -> Result<Vec<Cow<'a, str>>> {
    reader.require(b'[', "expected an array of entity ids")?;
    let mut ids = Vec::new();
    let mut more = reader.first(b']');
    while more {
        reader.peek();
        if ids.len() == MAX_TEXTS {
            return Err(reader.unexpected("expected at most 1048576 entity ids"));
        }
        ids.push(entity(reader)?);
        more = reader.more(b']')?;
    }
    Ok(ids)
}

/// The first name that comes a second time.
fn twice<'n>(mut names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let mut seen = HashSet::new();
    names.find(|name| !seen.insert(*name))
}

impl<'a> Request<'a> {
    /// Read a body, of which `json_bytes` are JSON and the rest tensors in binary; None where all of it is JSON.
    ///
    /// # Errors
    /// At the first fault.
    pub fn read(body: &'a [u8], json_bytes: Option<usize>) -> Result<Self> {
        let Some(json) = body.get(..json_bytes.unwrap_or(body.len())) else {
            let found = json_bytes.unwrap_or_default().to_string();
            return Err(ErrorKind::HeaderLength { most: body.len(), found }.into());
        };
        let mut reader = Reader::new(json)?;
        let mut request = Self::default();
        let mut sizes = Vec::new();
        let mut texts = 0;
        let known = ["id", "parameters", "inputs", "outputs"];
        object(&mut reader, "expected an object with \"inputs\"", &known, |reader, key| {
            match key {
                "id" => request.id = optional(reader, Reader::string)?,
                "parameters" => drop(optional(reader, |reader| request.parameters(reader))?),
                "inputs" => list(reader, "inputs", "expected an array of inputs", |reader, index| {
                    let start = reader.position();
                    let (input, size) = Draft::read(reader, index)?;
                    texts += if input.datatype == Datatype::Bytes { input.count } else { 0 };
                    if texts > MAX_TEXTS {
                        let problem = format!("expected at most {MAX_TEXTS} strings in a request, found {texts}");
                        return Err(fault(&input.name, problem, Some(start)));
                    }
                    request.inputs.push(input);
                    sizes.push(size);
                    Ok(())
                })?,
                "outputs" => request.outputs = optional(reader, outputs)?.filter(|outputs| !outputs.is_empty()),
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        reader.end()?;
        request.check()?;
        binary::place(&mut request.inputs, &sizes, body, json_bytes)?;
        Ok(request)
    }

    /// There are inputs, and no name comes twice.
    fn check(&self) -> Result<()> {
        if self.inputs.is_empty() {
            return Err(ErrorKind::MissingInputs.into());
        }
        let outputs = self.outputs.iter().flatten().map(|output| &*output.0);
        let double = twice(self.inputs.iter().map(|input| &*input.name))
            .map(|name| ("input", name))
            .or_else(|| twice(outputs).map(|name| ("output", name)));
        match double {
            Some((role, name)) => Err(ErrorKind::DuplicateTensor { role, name: shorten(name) }.into()),
            None => Ok(()),
        }
    }

    fn parameters(&mut self, reader: &mut Reader<'a>) -> Result<()> {
        let known = ["entity_id", "entity_ids", "priority", "timeout", "binary_data_output"];
        object(reader, "expected an object of parameters", &known, |reader, key| {
            match key {
                "entity_id" => self.entity_id = optional(reader, entity)?,
                "entity_ids" => self.entity_ids = optional(reader, entities)?,
                "priority" => {
                    let expected = "expected a priority from 0 to 4294967295";
                    let read = |reader: &mut Reader<'a>| integer(reader, expected, PRIORITIES);
                    self.priority = optional(reader, read)?.unwrap_or(0);
                }
                "timeout" => {
                    let expected = "expected a timeout in microseconds, an integer from 0 to 9007199254740991";
                    let read = |reader: &mut Reader<'a>| integer(reader, expected, TIMEOUTS);
                    self.timeout_us = optional(reader, read)?.unwrap_or(0);
                }
                "binary_data_output" => self.binary_output = optional(reader, truth)?,
                key if key.starts_with("triton_") => {
                    return Err(Error::at(ErrorKind::ReservedParameter(shorten(key)), reader.position()));
                }
                _ => reader.skip()?,
            }
            Ok(())
        })
    }
}

fn outputs<'a>(reader: &mut Reader<'a>) -> Result<Vec<(Cow<'a, str>, Option<bool>)>> {
    let mut outputs = Vec::new();
    list(reader, "outputs", "expected an array of outputs", |reader, index| {
        outputs.push(output(reader, index)?);
        Ok(())
    })?;
    Ok(outputs)
}

fn output<'a>(reader: &mut Reader<'a>, index: usize) -> Result<(Cow<'a, str>, Option<bool>)> {
    reader.peek();
    let start = reader.position();
    let (mut name, mut binary): (Option<Cow<'a, str>>, _) = (None, None);
    let refuse = |name: &Option<Cow<'a, str>>, what: &str, reader: &Reader<'a>| {
        let name = name.as_deref().map_or_else(|| index.to_string(), shorten);
        Error::at(tensor("output", &name, None, format!("{what} is not supported")), reader.position())
    };
    object(reader, "expected an output: an object with \"name\"", &["name", "parameters"], |reader, key| {
        match key {
            "name" => name = Some(reader.string()?),
            "parameters" => drop(optional(reader, |reader| {
                object(reader, "expected an object of parameters", &["binary_data"], |reader, key| match key {
                    "binary_data" => optional(reader, truth).map(|found| binary = found),
                    "classification" => Err(refuse(&name, "classification", reader)),
                    "shared_memory_region" => Err(refuse(&name, "shared memory", reader)),
                    _ => reader.skip(),
                })
            })?),
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    let missing = || Error::at(tensor("output", &index.to_string(), None, "missing field \"name\"".to_owned()), start);
    Ok((name.ok_or_else(missing)?, binary))
}
