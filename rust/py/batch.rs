//! Many rows: `Table`, and what `Route` does with batches, lines and columns.

use numpy::{
    Element, PyArray1, PyArray2, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArray1, PyReadonlyArrayDyn,
    PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::route::{shaped, texts};
use super::watch::hashes;
use super::{to_py, to_py_in_row, with_entity};
use crate::answers::{Array, Output, Part};
use crate::batch::{Batch, Fault};
use crate::encode::half_to_f32;
use crate::error::{Error, ErrorKind};
use crate::route::{Choice, Route};
use crate::slice::Slice;
use crate::table::{Bits, Chosen, Packed, Source, Values};

/// The hashes of entities, where somebody bears witness.
type Hashes<'py> = Option<Bound<'py, PyArray2<u8>>>;

/// Version, reason and entity of each row, the inputs of each version, and what is wrong with other rows.
pub type Prepared<'py> = (
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<u8>>,
    Hashes<'py>,
    Vec<(usize, Bound<'py, PyTuple>)>,
    Vec<Py<PyAny>>,
);

/// A batch as Python sees it.
pub fn prepared<'py>(py: Python<'py>, batch: Batch<'_>) -> PyResult<Prepared<'py>> {
    let groups = batch.groups.into_iter().map(|group| {
        let inputs = group.columns.into_iter().map(|column| shaped(py, column, group.width));
        Ok((group.version, PyTuple::new(py, inputs.collect::<PyResult<Vec<_>>>()?)?))
    });
    let groups = groups.collect::<PyResult<Vec<_>>>()?;
    let faults = batch.faults.iter().map(|fault| raised(py, fault)).collect();
    let entities = if batch.entities.is_empty() { None } else { Some(hashes(py, &batch.entities)?) };
    Ok((PyArray1::from_vec(py, batch.versions), PyArray1::from_vec(py, batch.reasons), entities, groups, faults))
}

/// A fault as an exception that is not raised.
fn raised(py: Python<'_>, fault: &Fault) -> Py<PyAny> {
    fault_to_py(fault).into_value(py).into_any()
}

/// A fault as the exception that Python raises.
pub fn fault_to_py(fault: &Fault) -> PyErr {
    match fault.row {
        Some(row) => to_py_in_row(&fault.error, row),
        None => to_py(fault.error.clone()),
    }
}

/// Versions and reasons of many entities, and their hashes.
pub type Routed<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<u8>>, Hashes<'py>);

#[derive(Default)]
struct Choices {
    versions: Vec<i32>,
    reasons: Vec<u8>,
    entities: Vec<u128>,
    witnessed: bool,
}

impl Choices {
    fn route(&mut self, route: &Route, entity: Option<&str>) -> Result<(), Error> {
        let Choice { version, reason, .. } = route.assign(entity)?;
        self.versions.push(i32::try_from(version).unwrap_or(crate::batch::NO_VERSION));
        self.reasons.push(reason as u8);
        if let Some(hash) = route.entity(entity) {
            self.witnessed = true;
            self.entities.resize(self.versions.len() - 1, 0);
            self.entities.push(hash);
        }
        Ok(())
    }

    fn into_py(mut self, py: Python<'_>) -> PyResult<Routed<'_>> {
        self.entities.resize(self.versions.len(), 0);
        let entities = if self.witnessed { Some(hashes(py, &self.entities)?) } else { None };
        Ok((PyArray1::from_vec(py, self.versions), PyArray1::from_vec(py, self.reasons), entities))
    }
}

/// Route a number of requests without entities, or each of a list of ids (None stands for no entity).
pub fn assign_each<'py>(py: Python<'py>, route: &Route, ids: &Bound<'py, PyAny>) -> PyResult<Routed<'py>> {
    let mut choices = Choices::default();
    if let Ok(count) = ids.extract::<usize>() {
        for _ in 0..count {
            choices.route(route, None).map_err(to_py)?;
        }
        return choices.into_py(py);
    }
    if let Ok(signed) = ids.extract::<PyReadonlyArray1<'py, i64>>() {
        return assign_integers(py, route, signed.as_slice()?);
    }
    if let Ok(unsigned) = ids.extract::<PyReadonlyArray1<'py, u64>>() {
        return assign_integers(py, route, unsigned.as_slice()?);
    }
    for (row, id) in ids.try_iter()?.enumerate() {
        let id = id?;
        let routed = if id.is_none() {
            choices.route(route, None)
        } else {
            with_entity(&id, |id| choices.route(route, Some(id))).and_then(|routed| routed)
        };
        routed.map_err(|error| to_py_in_row(&error, row))?;
    }
    choices.into_py(py)
}

fn assign_integers<'py, I: itoa::Integer + Copy + Sync>(
    py: Python<'py>,
    route: &Route,
    ids: &[I],
) -> PyResult<Routed<'py>> {
    let choices = py.detach(|| {
        let (mut digits, mut choices) = (itoa::Buffer::new(), Choices::default());
        for id in ids {
            choices.route(route, Some(digits.format(*id)))?;
        }
        Ok::<_, Error>(choices)
    });
    choices.map_err(to_py)?.into_py(py)
}

/// What a column is, besides its buffer: the buffer, that of its text, index of the first value, from one to the next,
/// the buffer of its validity and its first bit.
type ColumnTuple = (usize, Option<usize>, usize, usize, Option<usize>, usize, bool);

/// Columns that the caller has already; nothing of them is copied.
#[pyclass(frozen, module = "turnout._core")]
pub struct Table {
    /// Number of rows.
    #[pyo3(get)]
    rows: usize,
    names: Option<Vec<String>>,
    buffers: Vec<Py<PyAny>>,
    columns: Vec<ColumnTuple>,
}

#[pymethods]
impl Table {
    #[new]
    fn new(
        rows: usize,
        names: Option<Vec<String>>,
        buffers: Vec<Py<PyAny>>,
        columns: Vec<ColumnTuple>,
    ) -> PyResult<Self> {
        let all = columns.iter().flat_map(|column| [Some(column.0), column.1, column.4]).flatten();
        if all.max().is_some_and(|most| most >= buffers.len()) {
            return Err(PyValueError::new_err("a column of a buffer that is none"));
        }
        if names.as_ref().is_some_and(|names| names.len() != columns.len()) {
            return Err(PyValueError::new_err("expected a name for each column"));
        }
        Ok(Self { rows, names, buffers, columns })
    }
}

/// An array of numbers while it is read.
pub enum Held<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F64(PyReadonlyArrayDyn<'py, f64>),
    I8(PyReadonlyArrayDyn<'py, i8>),
    I16(PyReadonlyArrayDyn<'py, i16>),
    I32(PyReadonlyArrayDyn<'py, i32>),
    I64(PyReadonlyArrayDyn<'py, i64>),
    U8(PyReadonlyArrayDyn<'py, u8>),
    U16(PyReadonlyArrayDyn<'py, u16>),
    U32(PyReadonlyArrayDyn<'py, u32>),
    U64(PyReadonlyArrayDyn<'py, u64>),
    Bool(PyReadonlyArrayDyn<'py, bool>),
}

fn readonly<'py, T: Element>(array: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    let held = array.cast::<PyArrayDyn<T>>()?.try_readonly()?;
    held.as_slice()?;
    Ok(held)
}

impl<'py> Held<'py> {
    /// Hold a contiguous array.
    pub fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let dtype = array.cast::<PyUntypedArray>()?.dtype();
        Ok(match (dtype.kind(), dtype.itemsize()) {
            (b'f', 4) => Self::F32(readonly(array)?),
            (b'f', 8) => Self::F64(readonly(array)?),
            (b'i', 1) => Self::I8(readonly(array)?),
            (b'i', 2) => Self::I16(readonly(array)?),
            (b'i', 4) => Self::I32(readonly(array)?),
            (b'i', 8) => Self::I64(readonly(array)?),
            (b'u', 1) => Self::U8(readonly(array)?),
            (b'u', 2) => Self::U16(readonly(array)?),
            (b'u', 4) => Self::U32(readonly(array)?),
            (b'u', 8) => Self::U64(readonly(array)?),
            (b'b', 1) => Self::Bool(readonly(array)?),
            _ => return Err(PyTypeError::new_err(format!("expected numbers or booleans, found {dtype}"))),
        })
    }

    /// Its values.
    pub fn slice(&self) -> PyResult<Slice<'_>> {
        Ok(match self {
            Self::F32(array) => Slice::F32(array.as_slice()?),
            Self::F64(array) => Slice::F64(array.as_slice()?),
            Self::I8(array) => Slice::I8(array.as_slice()?),
            Self::I16(array) => Slice::I16(array.as_slice()?),
            Self::I32(array) => Slice::I32(array.as_slice()?),
            Self::I64(array) => Slice::I64(array.as_slice()?),
            Self::U8(array) => Slice::U8(array.as_slice()?),
            Self::U16(array) => Slice::U16(array.as_slice()?),
            Self::U32(array) => Slice::U32(array.as_slice()?),
            Self::U64(array) => Slice::U64(array.as_slice()?),
            Self::Bool(array) => Slice::Bool(array.as_slice()?),
        })
    }

    fn bytes(&self) -> PyResult<&[u8]> {
        match self.slice()? {
            Slice::U8(bytes) => Ok(bytes),
            _ => Err(PyTypeError::new_err("expected bytes")),
        }
    }

    fn values<'a>(&'a self, bits: bool, text: Option<&'a Self>) -> PyResult<Values<'a>> {
        Ok(match (self.slice()?, text) {
            (Slice::I32(offsets), Some(data)) => Values::Text(offsets, data.bytes()?),
            (Slice::I64(offsets), Some(data)) => Values::LargeText(offsets, data.bytes()?),
            (_, Some(_)) => return Err(PyTypeError::new_err("expected offsets of 32 or 64 bits")),
            (Slice::U8(bytes), None) if bits => Values::Bits(Bits { bytes, start: 0 }),
            (slice, None) => Values::Numbers(slice),
        })
    }
}

impl Table {
    /// For each feature of a version the column that it takes.
    pub fn bind(&self, route: &Route, version: usize) -> Result<Vec<Option<usize>>, Error> {
        route.schema(version)?.bind(self.names.as_deref(), self.columns.len(), route.known())
    }

    /// Pack some rows for a version.
    pub fn pack<'py>(
        &self,
        py: Python<'py>,
        route: &Route,
        version: usize,
        bound: &[Option<usize>],
        chosen: Chosen<'_>,
        skip: bool,
    ) -> PyResult<(Bound<'py, PyTuple>, Vec<Py<PyAny>>)> {
        let schema = route.schema(version).map_err(to_py)?;
        let held = self.buffers.iter().map(|buffer| Held::new(buffer.bind(py))).collect::<PyResult<Vec<_>>>()?;
        let sources = self.columns.iter().map(|&(buffer, text, start, stride, valid, first, bits)| {
            let valid = valid.map(|valid| held[valid].bytes()).transpose()?;
            Ok(Source {
                values: held[buffer].values(bits, text.map(|text| &held[text]))?,
                start,
                stride,
                valid: valid.map(|bytes| Bits { bytes, start: first }),
            })
        });
        let sources = sources.collect::<PyResult<Vec<_>>>()?;
        let packed: Packed<'_> = py.detach(|| schema.pack_table(&sources, bound, chosen, skip));
        let inputs = packed.columns.into_iter().map(|column| shaped(py, column, schema.width()));
        let inputs = PyTuple::new(py, inputs.collect::<PyResult<Vec<_>>>()?)?;
        let faults = packed.faults.into_iter().map(|(row, error)| raised(py, &Fault { row: Some(row), error }));
        Ok((inputs, faults.collect()))
    }
}

/// The answers of a version: its index and its outputs.
pub type PartTuple<'py> = (usize, Vec<Bound<'py, PyUntypedArray>>);

/// An output while it is written.
enum Kept<'py> {
    Held(Held<'py>),
    Singles(Vec<f32>),
    Texts(Vec<String>),
}

/// Hold the arrays of answers, and work with them without the GIL.
pub fn with_parts<'py, T: Send>(
    py: Python<'py>,
    parts: &[PartTuple<'py>],
    work: impl FnOnce(&[Part<'_>]) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let kept = parts.iter().map(|(_, outputs)| outputs.iter().map(keep).collect::<PyResult<Vec<_>>>());
    let kept = kept.collect::<PyResult<Vec<_>>>()?;
    let mut built = Vec::with_capacity(parts.len());
    for ((version, arrays), kept) in parts.iter().zip(&kept) {
        let outputs = arrays.iter().zip(kept).map(|(array, kept)| {
            Output::new(array.shape(), kept.array()?)
                .map_err(|problem| to_py(ErrorKind::Output { name: "of a batch".to_owned(), problem }.into()))
        });
        built.push(Part { version: *version, outputs: outputs.collect::<PyResult<_>>()? });
    }
    py.detach(|| work(&built)).map_err(to_py)
}

/// The outputs of one version for some rows, as the core reads them.
pub fn with_outputs<T>(
    outputs: &[Bound<'_, PyUntypedArray>],
    work: impl FnOnce(&[Output<'_>]) -> PyResult<T>,
) -> PyResult<T> {
    let kept = outputs.iter().map(keep).collect::<PyResult<Vec<_>>>()?;
    let found = outputs.iter().zip(&kept).map(|(array, kept)| {
        Output::new(array.shape(), kept.array()?)
            .map_err(|problem| to_py(ErrorKind::Output { name: "of a batch".to_owned(), problem }.into()))
    });
    work(&found.collect::<PyResult<Vec<_>>>()?)
}

fn keep<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Kept<'py>> {
    let dtype = array.dtype();
    match (dtype.kind(), dtype.itemsize()) {
        (b'O', _) => texts(array)?.map(Kept::Texts).map_err(|found| {
            to_py(
                ErrorKind::Output {
                    name: "of a batch".to_owned(),
                    problem: format!("expected strings, found {found}"),
                }
                .into(),
            )
        }),
        (b'f', 2) => {
            let bits = array.call_method1("view", ("uint16",))?;
            let halves = bits.cast::<PyArrayDyn<u16>>()?.try_readonly()?;
            Ok(Kept::Singles(halves.as_array().iter().map(|&bits| half_to_f32(bits)).collect()))
        }
        _ => Held::new(array.as_any()).map(Kept::Held),
    }
}

impl Kept<'_> {
    fn array(&self) -> PyResult<Array<'_>> {
        Ok(match self {
            Self::Singles(values) => Array::Numbers(Slice::F32(values)),
            Self::Texts(values) => Array::Text(values),
            Self::Held(held) => Array::Numbers(held.slice()?),
        })
    }
}
