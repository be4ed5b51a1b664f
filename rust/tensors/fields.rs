//! The objects and lists of a request, field by field, and how an error names the tensor that it is about.

use crate::error::{Error, ErrorKind, Result};
use crate::json::Reader;

/// Most inputs, and most outputs, of a request.
pub const MAX_TENSORS: usize = 1024;

/// A problem of an input.
#[cold]
pub(super) fn fault(name: &str, problem: String, position: Option<usize>) -> Error {
    Error { kind: tensor("input", name, None, problem), position }
}

/// A problem of an element of an input.
#[cold]
pub(super) fn fault_at(name: &str, element: usize, problem: String, position: usize) -> Error {
    Error::at(tensor("input", name, Some(element), problem), position)
}

/// The same error, saying in which input, and at which of its elements.
#[cold]
pub(super) fn in_input(name: &str, element: Option<usize>, error: Error) -> Error {
    in_tensor("input", name, element, error)
}

#[cold]
pub(super) fn in_tensor(role: &'static str, name: &str, element: Option<usize>, error: Error) -> Error {
    let Error { kind, position } = error;
    let kind = match kind {
        ErrorKind::Json { expected, found } => tensor(role, name, element, format!("{expected}, found {found}")),
        other => other,
    };
    Error { kind, position }
}

pub(super) fn tensor(role: &'static str, name: &str, element: Option<usize>, problem: String) -> ErrorKind {
    ErrorKind::Tensor { role, name: name.to_owned(), element, problem }
}

/// Read an object: `field` takes the value of each key. One of `known` that comes twice is an error.
pub(super) fn object<'a>(
    reader: &mut Reader<'a>,
    expected: &'static str,
    known: &[&str],
    mut field: impl FnMut(&mut Reader<'a>, &str) -> Result<()>,
) -> Result<()> {
    reader.require(b'{', expected)?;
    let mut seen = 0_u32;
    let mut more = reader.first(b'}');
    while more {
        reader.peek();
        let start = reader.position();
        let key = reader.key()?;
        let bit = known.iter().position(|&name| name == key).map_or(0, |index| 1 << index);
        if seen & bit > 0 {
            return Err(Error::at(ErrorKind::DuplicateKey(key.into_owned()), start));
        }
        seen |= bit;
        reader.peek();
        field(reader, &key)?;
        more = reader.more(b'}')?;
    }
    Ok(())
}

/// Read a list of inputs or outputs, each by `item`.
pub(super) fn list<'a>(
    reader: &mut Reader<'a>,
    role: &'static str,
    expected: &'static str,
    mut item: impl FnMut(&mut Reader<'a>, usize) -> Result<()>,
) -> Result<()> {
    reader.require(b'[', expected)?;
    let mut found = 0;
    let mut more = reader.first(b']');
    while more {
        if found == MAX_TENSORS {
            return Err(Error::at(ErrorKind::TooManyTensors { role, most: MAX_TENSORS }, reader.position()));
        }
        item(reader, found)?;
        found += 1;
        more = reader.more(b']')?;
    }
    Ok(())
}

/// Read a value that may be `null`.
pub(super) fn optional<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if reader.take_word("null") { Ok(None) } else { read(reader).map(Some) }
}

pub(super) fn truth(reader: &mut Reader<'_>) -> Result<bool> {
    if reader.take_word("true") {
        Ok(true)
    } else if reader.take_word("false") {
        Ok(false)
    } else {
        Err(reader.unexpected("expected true or false"))
    }
}

/// An integer from 0 on, below a bound.
pub(super) fn integer(reader: &mut Reader<'_>, expected: &'static str, bound: u64) -> Result<u64> {
    let start = reader.clone();
    let found = match reader.peek() {
        Some(b'-' | b'0'..=b'9') => reader.number()?.to_u64().filter(|&value| value < bound),
        _ => None,
    };
    found.ok_or_else(|| start.unexpected(expected))
}
