//! `Ledger` and `Split`: the assignment of entities to arms, one at a time and in bulk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use numpy::{AllowTypeChange, PyArray1, PyArrayLike1, PyReadonlyArray1};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;

use super::{entity, to_py};
use crate::error::{Error, ErrorKind};
use crate::hash::{SLOTS, Salt};
use crate::ledger::{Ledger as CoreLedger, Run, Split as CoreSplit};

/// XXH3-64 of the salt, a zero byte and the entity.
#[pyfunction]
#[pyo3(signature = (salt, entity))]
pub fn hash_entity(salt: &str, entity: &Bound<'_, PyAny>) -> PyResult<u64> {
    Ok(Salt::new(salt).hash(super::entity(entity)?.as_bytes()))
}

/// The slot of an entity.
#[pyfunction]
#[pyo3(signature = (salt, entity))]
pub fn slot(salt: &str, entity: &Bound<'_, PyAny>) -> PyResult<u32> {
    Ok(Salt::new(salt).slot(super::entity(entity)?.as_bytes()))
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
    fn from_runs(runs: HashMap<String, Vec<Run>>) -> PyResult<Self> {
        CoreLedger::from_runs(runs).map(Self).map_err(to_py)
    }

    #[getter]
    fn arms(&self) -> Vec<&str> {
        self.0.arms().collect()
    }

    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands over mappings by value")]
    fn apply(&self, weights: BTreeMap<String, f64>) -> PyResult<(Self, usize)> {
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

/// A ledger and a salt, ready for look-ups.
#[pyclass(frozen, module = "turnout._core")]
pub struct Split(Arc<CoreSplit>);

impl Split {
    /// The core's split, shared.
    pub fn core(&self) -> Arc<CoreSplit> {
        Arc::clone(&self.0)
    }

    /// Assign bulk ids without holding up other Python threads.
    fn detached<'py>(
        &self,
        py: Python<'py>,
        work: impl FnOnce(&CoreSplit) -> Vec<u8> + Send,
    ) -> Bound<'py, PyArray1<u8>> {
        let split = &*self.0;
        PyArray1::from_vec(py, py.detach(|| work(split)))
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
        Ok(self.0.assign(&super::entity(entity)?))
    }

    fn assign_strings<'py>(&self, py: Python<'py>, entities: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let mut arms = Vec::with_capacity(entities.len()?);
        for id in entities.try_iter()? {
            arms.push(self.0.assign(&entity(&id?)?).0);
        }
        Ok(PyArray1::from_vec(py, arms))
    }

    fn assign_integers<'py>(
        &self,
        py: Python<'py>,
        entities: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        if let Ok(signed) = entities.extract::<PyReadonlyArray1<'py, i64>>() {
            let ids = signed.as_slice()?;
            return Ok(self.detached(py, |split| assign_integers(split, ids)));
        }
        let unsigned = entities.extract::<PyReadonlyArray1<'py, u64>>()?;
        let ids = unsigned.as_slice()?;
        Ok(self.detached(py, |split| assign_integers(split, ids)))
    }

    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands over arrays by value")]
    fn assign_utf8<'py>(
        &self,
        py: Python<'py>,
        offsets: PyArrayLike1<'py, i64, AllowTypeChange>,
        data: PyReadonlyArray1<'py, u8>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let (offsets, data) = (offsets.as_slice()?, data.as_slice()?);
        let text = checked_text(offsets, data).map_err(to_py)?;
        Ok(self.detached(py, |split| assign_text(split, offsets, text)))
    }

    fn synthetic_counts(&self, py: Python<'_>, count: u64) -> Vec<u64> {
        let split = &*self.0;
        py.detach(|| {
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

/// The data as text, if every offset rises and lies on a boundary inside of it.
fn checked_text<'a>(offsets: &[i64], data: &'a [u8]) -> Result<&'a str, Error> {
    let fault = || Error::from(ErrorKind::Offsets);
    let end = usize::try_from(offsets.last().copied().unwrap_or(0)).map_err(|_| fault())?;
    let text = std::str::from_utf8(data.get(..end).ok_or_else(fault)?).map_err(|_| fault())?;
    let rises = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    let inside = |offset: &i64| usize::try_from(*offset).is_ok_and(|offset| text.is_char_boundary(offset));
    if rises && offsets.iter().all(inside) { Ok(text) } else { Err(fault()) }
}

fn assign_text(split: &CoreSplit, offsets: &[i64], text: &str) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie inside the text")]
    let entity = |pair: &[i64]| &text[pair[0] as usize..pair[1] as usize];
    offsets.windows(2).map(|pair| split.assign(entity(pair)).0).collect()
}
