//! Arrays to the bytes of an answer to an inference request.

use numpy::{
    PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::batch::Held;
use super::route::texts;
use super::to_py;
use crate::error::ErrorKind;
use crate::tensors::answer::{Content, Head, Output};
use crate::tensors::datatype::Datatype;

/// Answers with so many elements in their JSON are written without the GIL.
const MANY: usize = 4096;

/// A whole answer, and how many bytes of it are JSON; 0 where all of it is.
pub type Answer<'py> = (Bound<'py, PyBytes>, usize);

/// An output: its name, the datatype that its version declares, its values, and whether they go behind the JSON.
pub type Part<'a, 'py> = (&'a str, Option<Datatype>, &'a Bound<'py, PyUntypedArray>, bool);

/// An array while it is written; of numbers also the array itself, which has them in C order.
enum Kept<'py> {
    Numbers(Held<'py>, Bound<'py, PyAny>),
    Halves(PyReadonlyArrayDyn<'py, u16>, Bound<'py, PyAny>),
    Text(Vec<String>),
}

impl<'py> Kept<'py> {
    fn new(name: &str, array: &Bound<'py, PyUntypedArray>) -> PyResult<Self> {
        let refuse = |problem: String| to_py(ErrorKind::Output { name: name.to_owned(), problem }.into());
        let dtype = array.dtype();
        if dtype.kind() == b'O' {
            return texts(array)?.map(Self::Text).map_err(|found| refuse(format!("expected strings, found {found}")));
        }
        let whole =
            if array.is_c_contiguous() { array.as_any().clone() } else { array.call_method1("copy", ("C",))? };
        if (dtype.kind(), dtype.itemsize()) == (b'f', 2) {
            // Their bits are seen as integers, since Rust has no such type.
            let bits = whole.call_method1("view", ("uint16",))?;
            return Ok(Self::Halves(bits.cast::<PyArrayDyn<u16>>()?.try_readonly()?, whole));
        }
        let held = Held::new(&whole).map_err(|_| refuse(format!("cannot write elements of type {dtype}")))?;
        Ok(Self::Numbers(held, whole))
    }

    fn content(&self) -> PyResult<Content<'_>> {
        Ok(match self {
            Self::Numbers(held, _) => Content::Numbers(held.slice()?),
            Self::Halves(bits, _) => Content::Halves(bits.as_slice()?),
            Self::Text(texts) => Content::Text(texts),
        })
    }
}

/// Write an answer. Each output of numbers in binary is copied once, into memory of the size that the answer has.
pub fn write<'py>(py: Python<'py>, model: &str, head: Head<'_>, parts: &[Part<'_, 'py>]) -> PyResult<Answer<'py>> {
    let kept = parts.iter().map(|(name, _, array, _)| Kept::new(name, array)).collect::<PyResult<Vec<_>>>()?;
    let outputs = parts.iter().zip(&kept).map(|(&(name, declared, array, binary), kept)| {
        let content = kept.content()?;
        Ok(Output { name, datatype: content.as_declared(declared), shape: array.shape(), content, binary })
    });
    let outputs = outputs.collect::<PyResult<Vec<_>>>()?;

    let inline = outputs.iter().filter(|output| !output.binary).map(|output| output.content.len());
    let write = || head.write(model, &outputs);
    let json = if inline.sum::<usize>() > MANY { py.detach(write) } else { write() }.map_err(to_py)?;
    if outputs.iter().all(|output| !output.binary) {
        return Ok((PyBytes::new(py, &json), 0));
    }
    // What joins bytes takes new memory and fills it once; `PyBytes::new_with` would fill it with zeros before.
    let mut joined = vec![PyBytes::new(py, &json).into_any()];
    for (output, kept) in outputs.iter().zip(&kept).filter(|(output, _)| output.binary) {
        joined.push(match kept {
            Kept::Numbers(_, array) | Kept::Halves(_, array) => array.clone(),
            Kept::Text(_) => PyBytes::new(py, &output.packed().unwrap_or_default()).into_any(),
        });
    }
    let bytes = PyBytes::new(py, b"").call_method1("join", (joined,))?.cast_into::<PyBytes>()?;
    Ok((bytes, json.len()))
}
