//! `Ledger` and `Split`: the assignment of entities to arms, one at a time and in bulk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};

use super::{to_py, to_py_in_row, with_entity};
use crate::error::{Error, ErrorKind};
use crate::hash::{SLOTS, Salt};
use crate::ledger::{Ledger as CoreLedger, Run, Split as CoreSplit};

/// XXH3-64 of the salt, a zero byte and the entity.
#[pyfunction]
#[pyo3(signature = (salt, entity))]
pub fn hash_entity(salt: &str, entity: &Bound<'_, PyAny>) -> PyResult<u64> {
    with_entity(entity, |entity| Salt::new(salt).hash(entity.as_bytes())).map_err(to_py)
}

/// The slot of an entity.
#[pyfunction]
#[pyo3(signature = (salt, entity))]
pub fn slot(salt: &str, entity: &Bound<'_, PyAny>) -> PyResult<u32> {
    with_entity(entity, |entity| Salt::new(salt).slot(entity.as_bytes())).map_err(to_py)
}

/// Which arm owns each slot, and in which order it got them.
#[pyclass(frozen, module = "turnout._core")]
pub struct Ledger(CoreLedger);

#[pymethods]
impl Ledger {
    #[staticmethod]
    fn start(baseline: &str) -> Self {
        Self(CoreLedger::start(baseline))
    }

    #[staticmethod]
    fn from_runs(runs: &Bound<'_, PyMapping>) -> PyResult<Self> {
        let runs: HashMap<String, Vec<Run>> =
            extract(runs).map_err(|fault| to_py(ErrorKind::Ledger(fault.to_string()).into()))?;
        CoreLedger::from_runs(runs).map(Self).map_err(to_py)
    }

    #[getter]
    fn arms(&self) -> Vec<&str> {
        self.0.arms().collect()
    }

    fn apply(&self, weights: &Bound<'_, PyMapping>) -> PyResult<(Self, usize)> {
        let weights: BTreeMap<String, f64> = extract(weights)?;
        let (ledger, moved) = self.0.apply(&weights).map_err(to_py)?;
        Ok((Self(ledger), moved))
    }

    fn runs(&self) -> BTreeMap<&str, Vec<Run>> {
        self.0.runs().collect()
    }

    fn counts(&self) -> BTreeMap<&str, usize> {
        self.0.counts().collect()
    }

    fn owner(&self, slot: u32) -> PyResult<&str> {
        if slot >= SLOTS {
            return Err(PyIndexError::new_err(format!("slots are 0 to {}, found {slot}", SLOTS - 1)));
        }
        let owner = self.0.table()[slot as usize];
        self.0.arms().nth(usize::from(owner)).ok_or_else(|| PyIndexError::new_err("slot without an owner"))
    }

    fn table_digest(&self) -> String {
        format!("{:016x}", self.0.table_digest())
    }
}

/// Any mapping, by way of the dict that `PyO3` reads.
fn extract<'py, T: FromPyObjectOwned<'py>>(mapping: &Bound<'py, PyMapping>) -> PyResult<T> {
    let dict = PyDict::new(mapping.py());
    dict.update(mapping)?;
    dict.extract().map_err(Into::into)
}

/// A ledger and a salt, ready for look-ups.
#[pyclass(frozen, module = "turnout._core")]
pub struct Split(Arc<CoreSplit>);

impl Split {
    /// The core's split, shared.
    pub fn core(&self) -> Arc<CoreSplit> {
        Arc::clone(&self.0)
    }

    /// Bulk work that does not hold up other Python threads: the one place that releases the GIL.
    fn detached<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&CoreSplit) -> T + Send) -> T {
        let split = &*self.0;
        py.detach(|| work(split))
    }
}

#[pymethods]
impl Split {
    #[new]
    fn new(ledger: &Ledger, salt: &str) -> Self {
        Self(Arc::new(CoreSplit::new(&ledger.0, salt)))
    }

    #[getter]
    fn arms(&self) -> &[String] {
        self.0.arms()
    }

    #[getter]
    fn salt(&self) -> String {
        String::from_utf8_lossy(self.0.salt().as_bytes()).into_owned()
    }

    fn assign(&self, entity: &Bound<'_, PyAny>) -> PyResult<(u8, u32)> {
        with_entity(entity, |entity| self.0.assign(entity)).map_err(to_py)
    }

    fn assign_strings<'py>(&self, py: Python<'py>, entities: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let mut arms = Vec::with_capacity(entities.len()?);
        for (row, entity) in entities.try_iter()?.enumerate() {
            let arm = with_entity(&entity?, |entity| self.0.assign(entity).0);
            arms.push(arm.map_err(|error| to_py_in_row(&error, row))?);
        }
        Ok(PyArray1::from_vec(py, arms))
    }

    fn assign_integers<'py>(
        &self,
        py: Python<'py>,
        entities: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let arms = if let Ok(signed) = entities.extract::<PyReadonlyArray1<'py, i64>>() {
            let ids = signed.as_slice()?;
            self.detached(py, |split| assign_integers(split, ids))
        } else {
            let unsigned = entities.extract::<PyReadonlyArray1<'py, u64>>()?;
            let ids = unsigned.as_slice()?;
            self.detached(py, |split| assign_integers(split, ids))
        };
        Ok(PyArray1::from_vec(py, arms))
    }

    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands over arrays by value")]
    fn assign_utf8<'py>(
        &self,
        py: Python<'py>,
        offsets: &Bound<'py, PyAny>,
        data: PyReadonlyArray1<'py, u8>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let data = data.as_slice()?;
        let arms = if let Ok(short) = offsets.extract::<PyReadonlyArray1<'py, i32>>() {
            let offsets = short.as_slice()?;
            self.detached(py, |split| assign_spans(split, offsets, data))
        } else {
            let long = offsets.extract::<PyReadonlyArray1<'py, i64>>()?;
            let offsets = long.as_slice()?;
            self.detached(py, |split| assign_spans(split, offsets, data))
        };
        Ok(PyArray1::from_vec(py, arms.map_err(to_py)?))
    }

    fn synthetic_counts(&self, py: Python<'_>, count: u64) -> Vec<u64> {
        self.detached(py, |split| {
            let mut counts = vec![0; split.arms().len()];
            let mut digits = itoa::Buffer::new();
            for id in 0..count {
                counts[usize::from(split.assign(digits.format(id)).0)] += 1;
            }
            counts
        })
    }
}

fn assign_integers<I: itoa::Integer + Copy>(split: &CoreSplit, ids: &[I]) -> Vec<u8> {
    let mut digits = itoa::Buffer::new();
    ids.iter().map(|id| split.assign(digits.format(*id)).0).collect()
}

/// Each span is checked when it is read: without the GIL another thread may be writing to the arrays.
fn assign_spans<O: Copy + TryInto<usize>>(split: &CoreSplit, offsets: &[O], data: &[u8]) -> Result<Vec<u8>, Error> {
    let at = |offset: O| offset.try_into().ok();
    let mut arms = Vec::with_capacity(offsets.len().saturating_sub(1));
    for pair in offsets.windows(2) {
        let entity = at(pair[0]).zip(at(pair[1])).and_then(|(start, end)| data.get(start..end));
        arms.push(split.assign(entity.ok_or(ErrorKind::Offsets)?).0);
    }
    Ok(arms)
}
