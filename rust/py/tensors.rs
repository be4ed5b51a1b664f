//! `InferRequest`: an inference request's bytes as `NumPy` arrays.

use std::borrow::Cow;

use numpy::ndarray::{Array, IxDyn};
use numpy::{PyArray, PyArray1, PyArrayDescr, PyArrayMethods, dtype};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyInt, PyString, PyTuple, PyType};

use super::route::shape_fault;
use super::to_py;
use crate::error::ErrorKind;
use crate::tensors::datatype::Datatype;
use crate::tensors::input::{Tensor, Values};
use crate::tensors::request::Request;

/// Bodies from this size on are read without the GIL.
const LARGE: usize = 64 * 1024;

/// The outputs that are wanted, and whether in binary.
type Outputs = Vec<(String, Option<bool>)>;

/// An inference request, read.
#[pyclass(frozen, module = "turnout._core", get_all)]
pub struct InferRequest {
    id: Option<String>,
    entity_id: Option<String>,
    entity_ids: Option<Vec<String>>,
    priority: u64,
    timeout_us: u64,
    binary_output: Option<bool>,
    outputs: Option<Outputs>,
    names: Py<PyTuple>,
    datatypes: Py<PyTuple>,
    arrays: Py<PyTuple>,
}

#[pymethods]
impl InferRequest {
    /// Read a body, of which `json_bytes` are JSON and the rest tensors in binary.
    #[staticmethod]
    #[pyo3(signature = (body, json_bytes = None))]
    fn read(body: &Bound<'_, PyBytes>, json_bytes: Option<&Bound<'_, PyInt>>) -> PyResult<Self> {
        let (py, bytes) = (body.py(), body.as_bytes());
        let json_bytes = json_bytes.map(|found| header(found, bytes.len())).transpose()?;
        let read = || Request::read(bytes, json_bytes);
        let request = if bytes.len() > LARGE { py.detach(read) } else { read() }.map_err(to_py)?;

        let names = request.inputs.iter().map(|input| &*input.name);
        let names = PyTuple::new(py, names.collect::<Vec<_>>())?.unbind();
        let datatypes = request.inputs.iter().map(|input| PyString::intern(py, input.datatype.name()));
        let datatypes = PyTuple::new(py, datatypes.collect::<Vec<_>>())?.unbind();
        let arrays = request.inputs.into_iter().map(|input| array(body, input)).collect::<PyResult<Vec<_>>>()?;
        let owned = |(name, binary): (Cow<'_, str>, _)| (name.into_owned(), binary);
        Ok(Self {
            id: request.id.map(Into::into),
            entity_id: request.entity_id.map(Into::into),
            entity_ids: request.entity_ids.map(|ids| ids.into_iter().map(Into::into).collect()),
            priority: request.priority,
            timeout_us: request.timeout_us,
            binary_output: request.binary_output,
            outputs: request.outputs.map(|outputs| outputs.into_iter().map(owned).collect()),
            names,
            datatypes,
            arrays: PyTuple::new(py, arrays)?.unbind(),
        })
    }
}

/// What the header says, however large or small.
fn header(found: &Bound<'_, PyInt>, most: usize) -> PyResult<usize> {
    found.extract().map_err(|_| to_py(ErrorKind::HeaderLength { most, found: found.to_string() }.into()))
}

/// An input as an array: that of JSON keeps the memory that it was read into, one in binary is a view of the body.
fn array<'py>(body: &Bound<'py, PyBytes>, input: Tensor<'_>) -> PyResult<Bound<'py, PyAny>> {
    let (py, shape) = (body.py(), input.shape.as_slice());
    match input.values {
        Values::Bool(values) => numbers(py, values, shape),
        Values::U8(values) => numbers(py, values, shape),
        Values::U16(values) => numbers(py, values, shape),
        Values::U32(values) => numbers(py, values, shape),
        Values::U64(values) => numbers(py, values, shape),
        Values::I8(values) => numbers(py, values, shape),
        Values::I16(values) => numbers(py, values, shape),
        Values::I32(values) => numbers(py, values, shape),
        Values::I64(values) => numbers(py, values, shape),
        Values::F16(values) => numbers(py, values, shape)?.call_method1("view", (dtype_of(py, Datatype::Fp16)?,)),
        Values::F32(values) => numbers(py, values, shape),
        Values::F64(values) => numbers(py, values, shape),
        Values::Text(values) => {
            let objects = values.iter().map(|text| PyString::new(py, text).unbind()).collect();
            let shaped = Array::from_shape_vec(IxDyn(shape), objects).map_err(shape_fault)?;
            Ok(PyArray::from_owned_object_array(py, shaped).into_any())
        }
        Values::Binary(start) => view(body, input.datatype, shape, start),
    }
}

fn numbers<'py, T: numpy::Element>(py: Python<'py>, values: Vec<T>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyArray1::from_vec(py, values).reshape(shape)?.into_any())
}

/// Numbers of a body, read-only and where they are; copied once where their address is none for their type.
fn view<'py>(
    body: &Bound<'py, PyBytes>,
    datatype: Datatype,
    shape: &[usize],
    start: usize,
) -> PyResult<Bound<'py, PyAny>> {
    static ARRAY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = body.py();
    let class = ARRAY.import(py, "numpy", "ndarray")?;
    let found = class.call1((PyTuple::new(py, shape)?, dtype_of(py, datatype)?, body, start))?;
    let aligned = (body.as_bytes().as_ptr().addr() + start).is_multiple_of(datatype.size());
    if aligned { Ok(found) } else { found.call_method0("copy") }
}

/// `NumPy`'s type; of BF16, which it has none for, that of the bits.
fn dtype_of(py: Python<'_>, datatype: Datatype) -> PyResult<Bound<'_, PyArrayDescr>> {
    Ok(match datatype {
        Datatype::Bool => dtype::<bool>(py),
        Datatype::Uint8 => dtype::<u8>(py),
        Datatype::Uint16 | Datatype::Bf16 => dtype::<u16>(py),
        Datatype::Uint32 => dtype::<u32>(py),
        Datatype::Uint64 => dtype::<u64>(py),
        Datatype::Int8 => dtype::<i8>(py),
        Datatype::Int16 => dtype::<i16>(py),
        Datatype::Int32 => dtype::<i32>(py),
        Datatype::Int64 => dtype::<i64>(py),
        Datatype::Fp16 => PyArrayDescr::new(py, "float16")?,
        Datatype::Fp32 => dtype::<f32>(py),
        Datatype::Fp64 => dtype::<f64>(py),
        Datatype::Bytes => dtype::<Py<PyAny>>(py),
    })
}
