//! `Route`: a request's bytes to `NumPy` arrays, and arrays to an answer's bytes.

#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

use std::collections::HashMap;
use std::sync::Arc;

use numpy::ndarray::{Array, ArrayView2};
use numpy::{
    PyArray, PyArray1, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};

use super::assign::Split;
use super::batch;
use super::plan::VersionPlan;
use super::watch::{Signer, Watch, entities_of, entity_of};
use super::{answer, to_py, with_entity};
use crate::answers::{Number, Rows};
use crate::batch::Wishes;
use crate::columns::Column;
use crate::encode::{Answer, Token, half_to_f32};
use crate::receipt::Score;
use crate::route::{Choice, Done, Reason, Route as Core, Rules, Witness, unix_milliseconds};
use crate::table::Chosen;
use crate::tensors::answer::Head;
use crate::tensors::datatype::Datatype;
use crate::watch::Kind;

/// The bytes of a request, in one of the forms in which many of them are at hand without another copy.
#[derive(FromPyObject)]
enum Text<'py> {
    Bytes(Bound<'py, PyBytes>),
    Array(PyReadonlyArray1<'py, u8>),
}

impl Text<'_> {
    fn bytes(&self) -> PyResult<&[u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.as_bytes()),
            Self::Array(array) => Ok(array.as_slice()?),
        }
    }
}

/// A version, why it answers, its inputs, and the hash of the entity.
type Single<'py> = (usize, u8, Bound<'py, PyTuple>, Option<Bound<'py, PyBytes>>);

/// A version, which of the bodies it answers, why, for whom, and its inputs for them.
type Group<'py> = (usize, Vec<usize>, Vec<u8>, Vec<Option<Bound<'py, PyBytes>>>, Bound<'py, PyTuple>);

/// All that one model needs on the way of a prediction.
#[pyclass(frozen, module = "turnout._core")]
pub struct Route(Core);

#[pymethods]
impl Route {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "a model has that many facts")]
    #[pyo3(signature = (
        model, plans, versions, active, split, arms, overrides, known, signer = None, numbers = Vec::new(),
        test = (0, 0), watch = None
    ))]
    fn new(
        model: &str,
        plans: Vec<Option<PyRef<'_, VersionPlan>>>,
        versions: Vec<String>,
        active: Option<usize>,
        split: Option<PyRef<'_, Split>>,
        arms: Vec<usize>,
        overrides: HashMap<String, usize>,
        known: Vec<String>,
        signer: Option<PyRef<'_, Signer>>,
        numbers: Vec<u32>,
        test: (u32, u32),
        watch: Option<PyRef<'_, Watch>>,
    ) -> PyResult<Self> {
        if plans.len() != versions.len() {
            return Err(PyValueError::new_err("expected a plan (or None) for each version"));
        }
        let plans = plans.into_iter().map(|plan| plan.map(|plan| Arc::clone(&plan.0)));
        let rules = Rules {
            active,
            split: split.map(|split| split.core()),
            arms,
            overrides: overrides.into_iter().map(|(entity, version)| (entity.into(), version)).collect(),
            witness: signer.map(|signer| {
                let watch = watch.map(|watch| Arc::clone(&watch.0));
                Witness { key: signer.0.clone(), numbers, test, watch }
            }),
        };
        Core::new(model, versions.into_iter().zip(plans).collect(), rules, &known)
            .map(Self)
            .map_err(PyValueError::new_err)
    }

    /// Which version answers an entity: its index, the reason's index, and the slot where a test decided.
    fn assign(&self, entity: Option<Bound<'_, PyAny>>) -> PyResult<(usize, u8, Option<u32>)> {
        let choice = match entity {
            None => self.0.assign(None),
            Some(entity) => with_entity(&entity, |entity| self.0.assign(Some(entity))).and_then(|choice| choice),
        };
        let Choice { version, reason, slot } = choice.map_err(to_py)?;
        Ok((version, reason as u8, slot))
    }

    /// The version that answers an entity, or that is pinned: its index, the reason's, and the hash of the entity.
    #[pyo3(signature = (entity, pinned = None))]
    fn choose<'py>(
        &self,
        py: Python<'py>,
        entity: Option<&str>,
        pinned: Option<usize>,
    ) -> PyResult<(usize, u8, Option<Bound<'py, PyBytes>>)> {
        self.check_index(pinned)?;
        let Choice { version, reason, .. } = self.0.choose(entity, pinned).map_err(to_py)?;
        let hash = self.0.entity(entity).map(|hash| PyBytes::new(py, &hash.to_be_bytes()));
        Ok((version, reason as u8, hash))
    }

    /// Read a request, route it, and pack the features of the version that answers.
    #[pyo3(signature = (body, pinned = None))]
    fn prepare<'py>(&self, body: &Bound<'py, PyBytes>, pinned: Option<usize>) -> PyResult<Single<'py>> {
        self.check_index(pinned)?;
        let prepared = self.0.prepare(body.as_bytes(), pinned).map_err(to_py)?;
        let entity = prepared.entity.map(|entity| PyBytes::new(body.py(), &entity.to_be_bytes()));
        let width = prepared.width;
        let arrays = prepared.columns.into_iter().map(|column| array(body.py(), column, width));
        let inputs = PyTuple::new(body.py(), arrays.collect::<PyResult<Vec<_>>>()?)?;
        Ok((prepared.choice.version, prepared.choice.reason as u8, inputs, entity))
    }

    /// Read a batch, route each row and pack it for its version.
    fn prepare_batch<'py>(
        &self,
        py: Python<'py>,
        body: Text<'py>,
        pinned: Option<usize>,
        skip: bool,
        most: usize,
    ) -> PyResult<batch::Prepared<'py>> {
        self.check_index(pinned)?;
        let (route, bytes, wishes) = (&self.0, body.bytes()?, Wishes { pinned, skip, most });
        let read = py.detach(|| route.prepare_batch(bytes, wishes));
        batch::prepared(py, read.map_err(|fault| batch::fault_to_py(&fault))?)
    }

    /// The same for lines, each of them the body of a prediction.
    fn prepare_lines<'py>(
        &self,
        py: Python<'py>,
        body: Text<'py>,
        pinned: Option<usize>,
        skip: bool,
        most: usize,
    ) -> PyResult<batch::Prepared<'py>> {
        self.check_index(pinned)?;
        let (route, bytes, wishes) = (&self.0, body.bytes()?, Wishes { pinned, skip, most });
        let read = py.detach(|| route.prepare_lines(bytes, wishes));
        batch::prepared(py, read.map_err(to_py)?)
    }

    /// The same for bodies that came one by one, and few: the GIL stays.
    fn prepare_each<'py>(&self, py: Python<'py>, bodies: Vec<Bound<'py, PyBytes>>) -> PyResult<Vec<Group<'py>>> {
        let wishes = Wishes { pinned: None, skip: true, most: bodies.len() };
        let batch = self.0.prepare_each(bodies.iter().map(PyBytesMethods::as_bytes), wishes).map_err(to_py)?;
        let mut bad = vec![false; bodies.len()];
        batch.faults.iter().filter_map(|fault| fault.row).for_each(|row| bad[row] = true);
        let groups = batch.groups.into_iter().map(|group| {
            let mine = |row: &usize| !bad[*row] && usize::try_from(batch.versions[*row]) == Ok(group.version);
            let rows: Vec<usize> = (0..bodies.len()).filter(mine).collect();
            let reasons = rows.iter().map(|&row| batch.reasons[row]).collect();
            let entity = |&row: &usize| batch.entities.get(row).filter(|&&entity| entity != 0);
            let entities =
                rows.iter().map(|row| entity(row).map(|entity| PyBytes::new(py, &entity.to_be_bytes()))).collect();
            let inputs = group.columns.into_iter().map(|column| shaped(py, column, group.width));
            Ok((group.version, rows, reasons, entities, PyTuple::new(py, inputs.collect::<PyResult<Vec<_>>>()?)?))
        });
        groups.collect()
    }

    /// The JSON answers of a version, one for each row of its outputs.
    #[pyo3(signature = (version, reasons, outputs, entities = Vec::new(), nanoseconds = Vec::new()))]
    fn encode_each<'py>(
        &self,
        py: Python<'py>,
        version: usize,
        reasons: Vec<u8>,
        outputs: Vec<Bound<'py, PyUntypedArray>>,
        entities: Vec<Option<Bound<'py, PyBytes>>>,
        nanoseconds: Vec<u64>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let milliseconds = unix_milliseconds();
        batch::with_outputs(&outputs, |found| {
            if found.iter().any(|output| output.rows() != reasons.len()) {
                return Err(PyValueError::new_err("expected a row for each reason"));
            }
            let answers = reasons.iter().enumerate().map(|(row, &reason)| {
                let entity = entities.get(row).and_then(Option::as_ref).map(PyBytesMethods::as_bytes);
                let score = self.0.score_output(version).and_then(|index| found.get(index)?.score(row));
                let nanoseconds = nanoseconds.get(row).copied().unwrap_or(0);
                let done = Done {
                    version,
                    reason: reason_of(usize::from(reason))?,
                    entity: entity_of(entity)?,
                    score,
                    nanoseconds,
                };
                let mut answer = self.0.answer(done, milliseconds).ok_or_else(no_version)?;
                for output in found {
                    answer.push_row(output, row);
                }
                let bytes = answer.finish().map_err(to_py)?;
                self.0.see_answer(done, milliseconds);
                Ok(PyBytes::new(py, &bytes))
            });
            answers.collect()
        })
    }

    /// Note that a version of a running test failed a request; whether another one answered in its place.
    #[pyo3(signature = (version, reason, entity, replaced))]
    fn failed(&self, version: usize, reason: usize, entity: Option<&[u8]>, replaced: bool) -> PyResult<()> {
        let (reason, entity) = (reason_of(reason)?, entity_of(entity)?);
        let kind = if replaced { Kind::Replaced } else { Kind::Failed };
        self.0.see(Done { version, reason, entity, score: None, nanoseconds: 0 }, kind, unix_milliseconds());
        Ok(())
    }

    /// The same for rows of a batch; without outputs they failed.
    #[pyo3(signature = (version, reasons, entities, outputs, replaced = false))]
    fn see_rows<'py>(
        &self,
        version: usize,
        reasons: PyReadonlyArray1<'py, u8>,
        entities: Option<PyReadonlyArray2<'py, u8>>,
        outputs: Option<Vec<Bound<'py, PyUntypedArray>>>,
        replaced: bool,
    ) -> PyResult<()> {
        let milliseconds = unix_milliseconds();
        let entities = entities_of(entities.as_ref())?;
        let reasons = reasons.as_slice()?;
        let rows = |score: &dyn Fn(usize) -> Option<Score>| {
            for (row, &reason) in reasons.iter().enumerate() {
                let entity = entities.get(row).copied().filter(|&entity| entity != 0);
                let reason = reason_of(usize::from(reason))?;
                let done = Done { version, reason, entity, score: score(row), nanoseconds: 0 };
                match outputs {
                    Some(_) => self.0.see_answer(done, milliseconds),
                    None if replaced => self.0.see(done, Kind::Replaced, milliseconds),
                    None => self.0.see(done, Kind::Failed, milliseconds),
                }
            }
            Ok(())
        };
        match (self.0.score_output(version), &outputs) {
            (Some(index), Some(found)) => batch::with_outputs(&found[index..=index.min(found.len() - 1)], |found| {
                rows(&|row| found.first()?.score(row))
            }),
            _ => rows(&|_| None),
        }
    }

    /// Versions and reasons for a number of requests without entity, a list of ids, or an array of integers.
    fn assign_each<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<batch::Routed<'py>> {
        batch::assign_each(py, &self.0, ids)
    }

    /// For each feature of a version the column of a table that it takes.
    fn bind(&self, version: usize, table: &batch::Table) -> PyResult<Vec<Option<usize>>> {
        table.bind(&self.0, version).map_err(to_py)
    }

    /// Pack rows of a table for a version: these, or `count` from `start` on.
    #[allow(clippy::too_many_arguments, reason = "what to pack, and how")]
    fn pack<'py>(
        &self,
        py: Python<'py>,
        version: usize,
        table: &batch::Table,
        bound: Vec<Option<usize>>,
        rows: Option<PyReadonlyArray1<'py, i64>>,
        start: usize,
        count: usize,
        skip: bool,
    ) -> PyResult<(Bound<'py, PyTuple>, Vec<Py<PyAny>>)> {
        let chosen = match &rows {
            Some(rows) => Chosen::List(rows.as_slice()?),
            None => Chosen::Range(start, count),
        };
        table.pack(py, &self.0, version, &bound, chosen, skip)
    }

    /// The JSON answer to a batch.
    #[allow(clippy::too_many_arguments, reason = "a batch has that many facts")]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        labels: Vec<usize>,
        index: PyReadonlyArray1<'py, i32>,
        rows: PyReadonlyArray1<'py, i32>,
        parts: Vec<batch::PartTuple<'py>>,
        errors: &[u8],
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let (route, index, parts_of) = (&self.0, index.as_slice()?, rows.as_slice()?);
        let bytes = batch::with_parts(py, &parts, |parts| {
            let rows = Rows { parts: parts_of, reasons: &[], entities: &[] };
            route.encode_batch(&labels, index, rows, parts, errors)
        })?;
        Ok(PyArray1::from_vec(py, bytes))
    }

    /// A line of JSON for each row.
    #[pyo3(signature = (rows, reasons, parts, problems, entities = None))]
    fn encode_lines<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray1<'py, i32>,
        reasons: PyReadonlyArray1<'py, u8>,
        parts: Vec<batch::PartTuple<'py>>,
        problems: Vec<Bound<'py, PyBytes>>,
        entities: Option<PyReadonlyArray2<'py, u8>>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let entities = entities_of(entities.as_ref())?;
        let rows = Rows { parts: rows.as_slice()?, reasons: reasons.as_slice()?, entities: &entities };
        let route = &self.0;
        let problems: Vec<&[u8]> = problems.iter().map(PyBytesMethods::as_bytes).collect();
        let bytes = batch::with_parts(py, &parts, |parts| route.encode_lines(rows, parts, &problems))?;
        Ok(PyArray1::from_vec(py, bytes))
    }

    /// The JSON answer of a version.
    #[pyo3(signature = (index, reason, outputs, entity = None, nanoseconds = 0))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        index: usize,
        reason: usize,
        outputs: Vec<Bound<'py, PyUntypedArray>>,
        entity: Option<&[u8]>,
        nanoseconds: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let score = self.0.score_output(index).and_then(|place| outputs.get(place)).and_then(score_of);
        let done = Done { version: index, reason: reason_of(reason)?, entity: entity_of(entity)?, score, nanoseconds };
        let milliseconds = unix_milliseconds();
        let mut answer = self.0.answer(done, milliseconds).ok_or_else(no_version)?;
        for output in &outputs {
            push(&mut answer, output)?;
        }
        let bytes = answer.finish().map_err(to_py)?;
        self.0.see_answer(done, milliseconds);
        Ok(PyBytes::new(py, &bytes))
    }

    /// The answer of a version to an inference request.
    #[allow(clippy::too_many_arguments, reason = "an answer has that many facts")]
    fn write_tensors<'py>(
        &self,
        py: Python<'py>,
        position: usize,
        reason: usize,
        outputs: Vec<Bound<'py, PyUntypedArray>>,
        entity: Option<&[u8]>,
        nanoseconds: u64,
        rows: usize,
        request_id: Option<&str>,
        wanted: Vec<(usize, bool)>,
    ) -> PyResult<answer::Answer<'py>> {
        let (version, names) = self.0.version(position).ok_or_else(no_version)?;
        let score = self.0.score_output(position).filter(|_| rows == 1).and_then(|place| outputs.get(place));
        let (reason, entity, score) = (reason_of(reason)?, entity_of(entity)?, score.and_then(score_of));
        let done = Done { version: position, reason, entity, score, nanoseconds };
        let milliseconds = unix_milliseconds();
        let prediction = self.0.prediction_id(done, milliseconds);
        let head =
            Head { version: Some(version), reason: Some(reason.name()), prediction: Some(&prediction), id: request_id };
        let parts = wanted.iter().map(|&(index, binary)| {
            let found = names.get(index).zip(outputs.get(index));
            let (name, array) = found.ok_or_else(|| PyIndexError::new_err("no such output"))?;
            Ok((name.as_str(), self.0.datatype(position, index), array, binary))
        });
        let written = answer::write(py, self.0.model(), head, &parts.collect::<PyResult<Vec<_>>>()?)?;
        self.0.see_answer(done, milliseconds);
        Ok(written)
    }

    /// The answer to an inference request whose rows several versions answered.
    fn write_many<'py>(
        &self,
        py: Python<'py>,
        version: Option<&str>,
        reason: Option<&str>,
        request_id: Option<&str>,
        outputs: Vec<(String, String, Bound<'py, PyUntypedArray>, bool)>,
    ) -> PyResult<answer::Answer<'py>> {
        let parts = outputs.iter().map(|(name, datatype, array, binary)| {
            let declared = Datatype::from_name(datatype);
            let fault = || PyValueError::new_err(format!("output {name}: no datatype {datatype:?}"));
            Ok((name.as_str(), Some(declared.ok_or_else(fault)?), array, *binary))
        });
        let head = Head { version, reason, prediction: None, id: request_id };
        answer::write(py, self.0.model(), head, &parts.collect::<PyResult<Vec<_>>>()?)
    }

    /// The prediction ids of rows that a version answered.
    fn sign_rows(
        &self,
        py: Python<'_>,
        position: usize,
        reasons: PyReadonlyArray1<'_, u8>,
        entities: Option<PyReadonlyArray2<'_, u8>>,
        outputs: Vec<Bound<'_, PyUntypedArray>>,
    ) -> PyResult<Vec<String>> {
        self.check_index(Some(position))?;
        let entities = entities_of(entities.as_ref())?;
        let reasons = reasons.as_slice()?.iter().map(|&reason| reason_of(usize::from(reason)));
        let reasons = reasons.collect::<PyResult<Vec<_>>>()?;
        let scored = self.0.score_output(position).and_then(|index| outputs.get(index));
        let (route, milliseconds) = (&self.0, unix_milliseconds());
        batch::with_outputs(scored.map(std::slice::from_ref).unwrap_or_default(), |found| {
            Ok(py.detach(|| {
                let ids = reasons.iter().enumerate().map(|(row, &reason)| {
                    let entity = entities.get(row).copied().filter(|&entity| entity != 0);
                    let score = found.first().and_then(|output| output.score(row));
                    route.prediction_id(Done { version: position, reason, entity, score, nanoseconds: 0 }, milliseconds)
                });
                ids.collect()
            }))
        })
    }
}

fn reason_of(index: usize) -> PyResult<Reason> {
    Reason::from_index(index).ok_or_else(|| PyIndexError::new_err("no such reason"))
}

fn no_version() -> PyErr {
    PyIndexError::new_err("no such version")
}

/// The score of a single row.
fn score_of(array: &Bound<'_, PyUntypedArray>) -> Option<Score> {
    fn read<T: numpy::Element + Number>(array: &Bound<'_, PyUntypedArray>) -> Option<Score> {
        let typed = array.cast::<PyArrayDyn<T>>().ok()?.try_readonly().ok()?;
        crate::answers::score_of(typed.as_slice().ok()?)
    }
    match (array.dtype().kind(), array.dtype().itemsize()) {
        (b'f', 4) => read::<f32>(array),
        (b'f', 8) => read::<f64>(array),
        _ => None,
    }
}

impl Route {
    fn check_index(&self, version: Option<usize>) -> PyResult<()> {
        match version {
            Some(index) if index >= self.0.len() => Err(PyIndexError::new_err("no such version")),
            _ => Ok(()),
        }
    }
}

/// The same column without a copy of its numbers: what `array` does is cheaper for a single row only.
pub fn shaped<'py>(py: Python<'py>, column: Column<'_>, width: usize) -> PyResult<Bound<'py, PyAny>> {
    fn handed<T: numpy::Element>(py: Python<'_>, values: Vec<T>, width: usize) -> PyResult<Bound<'_, PyAny>> {
        let rows = values.len().checked_div(width).unwrap_or(0);
        Ok(PyArray1::from_vec(py, values).reshape([rows, width])?.into_any())
    }
    match column {
        Column::F32(values) => handed(py, values, width),
        Column::F64(values) => handed(py, values, width),
        Column::I32(values) => handed(py, values, width),
        Column::I64(values) => handed(py, values, width),
        Column::Bool(values) => handed(py, values, width),
        Column::Text(_) => array(py, column, width),
    }
}

/// A column as an array of shape `[rows, width]`.
fn array<'py>(py: Python<'py>, column: Column<'_>, width: usize) -> PyResult<Bound<'py, PyAny>> {
    match column {
        Column::F32(values) => numbers(py, &values, width),
        Column::F64(values) => numbers(py, &values, width),
        Column::I32(values) => numbers(py, &values, width),
        Column::I64(values) => numbers(py, &values, width),
        Column::Bool(values) => numbers(py, &values, width),
        Column::Text(values) => {
            let objects = values.iter().map(|text| PyString::new(py, text).unbind()).collect();
            let shaped = Array::from_shape_vec((values.len().checked_div(width).unwrap_or(1), width), objects);
            Ok(PyArray::from_owned_object_array(py, shaped.map_err(shape_fault)?).into_any())
        }
    }
}

/// Copied into memory of `NumPy`: for a row that is cheaper than handing the vector over.
fn numbers<'py, T: numpy::Element>(py: Python<'py>, values: &[T], width: usize) -> PyResult<Bound<'py, PyAny>> {
    let rows = values.len().checked_div(width).unwrap_or(1);
    let shaped = ArrayView2::from_shape((rows, width), values).map_err(shape_fault)?;
    Ok(PyArray::from_array(py, &shaped).into_any())
}

/// A shape that does not go with its values.
pub fn shape_fault(error: numpy::ndarray::ShapeError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Write one output, whatever its element type.
fn push(answer: &mut Answer<'_>, array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    let dtype = array.dtype();
    match (dtype.kind(), dtype.itemsize()) {
        (b'f', 4) => push_as::<f32>(answer, array),
        (b'i', 8) => push_as::<i64>(answer, array),
        (b'f', 8) => push_as::<f64>(answer, array),
        (b'i', 4) => push_as::<i32>(answer, array),
        (b'b', 1) => push_as::<bool>(answer, array),
        (b'i', 1) => push_as::<i8>(answer, array),
        (b'i', 2) => push_as::<i16>(answer, array),
        (b'u', 1) => push_as::<u8>(answer, array),
        (b'u', 2) => push_as::<u16>(answer, array),
        (b'u', 4) => push_as::<u32>(answer, array),
        (b'u', 8) => push_as::<u64>(answer, array),
        (b'f', 2) => push_halves(answer, array),
        (b'O', _) => push_objects(answer, array),
        _ => Err(to_py(answer.refuse(format!("cannot write elements of type {dtype}")))),
    }
}

fn push_as<T: numpy::Element + Token + Clone>(
    answer: &mut Answer<'_>,
    array: &Bound<'_, PyUntypedArray>,
) -> PyResult<()> {
    let typed = array.cast::<PyArrayDyn<T>>()?.try_readonly()?;
    let pushed = match typed.as_slice() {
        Ok(slice) if array.is_c_contiguous() => answer.push(array.shape(), slice),
        _ => answer.push(array.shape(), &typed.as_array().iter().cloned().collect::<Vec<_>>()),
    };
    pushed.map_err(to_py)
}

/// Half-precision floats: their bits are seen as integers, since Rust has no such type.
fn push_halves(answer: &mut Answer<'_>, array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    let bits = array.call_method1("view", ("uint16",))?;
    let typed = bits.cast::<PyArrayDyn<u16>>()?.try_readonly()?;
    let singles: Vec<f32> = typed.as_array().iter().map(|&bits| half_to_f32(bits)).collect();
    answer.push(array.shape(), &singles).map_err(to_py)
}

/// Strings, or bytes that are UTF-8.
fn push_objects(answer: &mut Answer<'_>, array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    match texts(array)? {
        Ok(texts) => answer.push(array.shape(), &texts).map_err(to_py),
        Err(found) => Err(to_py(answer.refuse(format!("expected strings, found {found}")))),
    }
}

/// The strings of an array of objects, in C order; the type of the first object that is none.
pub fn texts(array: &Bound<'_, PyUntypedArray>) -> PyResult<Result<Vec<String>, String>> {
    let py = array.py();
    let typed = array.cast::<PyArrayDyn<Py<PyAny>>>()?.try_readonly()?;
    let mut texts = Vec::with_capacity(array.len());
    for object in typed.as_array() {
        let object = object.bind(py);
        let text = match object.cast::<PyBytes>() {
            Ok(bytes) => std::str::from_utf8(bytes.as_bytes()).ok().map(str::to_owned),
            Err(_) => object.extract::<String>().ok(),
        };
        let Some(text) = text else { return Ok(Err(object.get_type().name()?.to_string())) };
        texts.push(text);
    }
    Ok(Ok(texts))
}
