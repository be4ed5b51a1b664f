//! Tensors in binary behind the JSON: where each is, and what of them has to be looked at.

use std::borrow::Cow;

use super::datatype::Datatype;
use super::fields::{fault, fault_at};
use super::input::{Tensor, Values};
use super::request::HEADER;
use crate::error::{ErrorKind, Result};

/// Find the tensors that have a size, in their order; `json_bytes` of the body are JSON.
pub(super) fn place<'a>(
    inputs: &mut [Tensor<'a>],
    sizes: &[Option<usize>],
    body: &'a [u8],
    json_bytes: Option<usize>,
) -> Result<()> {
    let Some(json_bytes) = json_bytes else {
        let Some((input, _)) = inputs.iter().zip(sizes).find(|(_, size)| size.is_some()) else { return Ok(()) };
        return Err(fault(&input.name, format!("binary_data_size needs the header {HEADER}"), None));
    };
    for (input, &size) in inputs.iter().zip(sizes) {
        size.map_or(Ok(()), |size| check_size(input, size))?;
    }
    let all = sizes.iter().flatten().try_fold(0_usize, |all, &size| all.checked_add(size)).unwrap_or(usize::MAX);
    let found = body.len().saturating_sub(json_bytes);
    if all != found {
        return Err(ErrorKind::BinaryBytes { expected: all, found }.into());
    }
    let mut start = json_bytes;
    for (input, size) in inputs.iter_mut().zip(sizes) {
        let Some(size) = size else { continue };
        let bytes = &body[start..start + size];
        input.values = match input.datatype {
            Datatype::Bytes => Values::Text(texts(input, bytes, start)?),
            datatype => {
                if datatype == Datatype::Bool {
                    check_truth(input, bytes, start)?;
                }
                Values::Binary(start)
            }
        };
        start += size;
    }
    Ok(())
}

/// The size is that of the shape; of strings it is at least that of their lengths.
fn check_size(input: &Tensor<'_>, size: usize) -> Result<()> {
    let Tensor { name, shape, datatype, count, .. } = input;
    let name_of = datatype.name();
    if *datatype == Datatype::Bytes {
        return match count.checked_mul(4) {
            Some(least) if size >= least => Ok(()),
            _ => {
                let least = count.saturating_mul(4);
                let problem = format!(
                    "expected at least {least} bytes for {name_of} of shape {shape:?}, found binary_data_size {size}"
                );
                Err(fault(name, problem, None))
            }
        };
    }
    let expected = count * datatype.size(); // at most isize::MAX, by `Datatype::elements`
    if size == expected {
        return Ok(());
    }
    let problem = format!("expected {expected} bytes for {name_of} of shape {shape:?}, found binary_data_size {size}");
    Err(fault(name, problem, None))
}

fn check_truth(input: &Tensor<'_>, bytes: &[u8], start: usize) -> Result<()> {
    match bytes.iter().position(|&byte| byte > 1) {
        None => Ok(()),
        Some(index) => {
            let problem = format!("expected byte 0 or 1, found {}", bytes[index]);
            Err(fault_at(&input.name, index, problem, start + index))
        }
    }
}

/// Strings, each behind its length in four bytes; exactly as many as the shape says.
fn texts<'a>(input: &Tensor<'_>, bytes: &'a [u8], start: usize) -> Result<Vec<Cow<'a, str>>> {
    let mut texts = Vec::with_capacity(input.count);
    let mut rest = bytes;
    for index in 0..input.count {
        let at = start + bytes.len() - rest.len();
        let Some((length, behind)) = rest.split_first_chunk::<4>() else {
            let problem = format!("expected 4 bytes of its length, found {}", rest.len());
            return Err(fault_at(&input.name, index, problem, at));
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some((text, behind)) = behind.split_at_checked(length) else {
            let problem = format!("expected {length} bytes, found {}", behind.len());
            return Err(fault_at(&input.name, index, problem, at));
        };
        let text = std::str::from_utf8(text).map_err(|error| {
            let wrong = error.valid_up_to();
            let problem = format!("expected UTF-8, found byte 0x{:02x}", text[wrong]);
            fault_at(&input.name, index, problem, at + 4 + wrong)
        })?;
        texts.push(Cow::Borrowed(text));
        rest = behind;
    }
    if rest.is_empty() {
        return Ok(texts);
    }
    let (count, shape) = (input.count, &input.shape);
    let problem = format!("expected {count} elements for shape {shape:?}, found {} more bytes", rest.len());
    Err(fault(&input.name, problem, Some(start + bytes.len() - rest.len())))
}
