//! `Signer` and `Watch`: receipts, and what is seen of a running test.

use std::sync::Arc;

use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray2, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{to_py, with_entity};
use crate::receipt::{Key, Receipt, Score};
use crate::watch::{Entry, THRESHOLDS, Watch as Core};

/// The keys of a model.
#[pyclass(frozen, module = "turnout._core")]
pub struct Signer(pub(super) Key);

/// A receipt as Python sees it: milliseconds, reason, entity, version, test, revision, score, class.
type ReceiptTuple<'py> = (u64, u8, Option<Bound<'py, PyBytes>>, u32, u32, u32, Option<f32>, u16);

#[pymethods]
impl Signer {
    #[new]
    fn new(key: [u8; 32], model: &str) -> Self {
        Self(Key::new(&key, model))
    }

    /// The hash of an entity.
    fn entity<'py>(&self, py: Python<'py>, entity: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let hash = with_entity(entity, |id| self.0.entity(id.as_bytes())).map_err(to_py)?;
        Ok(PyBytes::new(py, &hash.to_be_bytes()))
    }

    /// What a prediction was; None for what was not signed with this key.
    fn read<'py>(&self, py: Python<'py>, text: &str) -> Option<ReceiptTuple<'py>> {
        let found = Receipt::read(text.as_bytes(), &self.0)?;
        let entity = found.entity.map(|entity| PyBytes::new(py, &entity.to_be_bytes()));
        let Score { value, class } = found.score.unwrap_or(Score { value: 0.0, class: 0 });
        let score = found.score.map(|_| value);
        let Receipt { milliseconds, reason, version, test, revision, .. } = found;
        Some((milliseconds, reason as u8, entity, version, test, revision, score, class))
    }
}

/// What is seen of one revision of a test.
#[pyclass(frozen, module = "turnout._core")]
pub struct Watch(pub(super) Arc<Core>);

#[pymethods]
impl Watch {
    #[new]
    #[pyo3(signature = (arms, thresholds = None))]
    fn new(arms: usize, thresholds: Option<[u64; THRESHOLDS]>) -> Self {
        Self(Arc::new(Core::new(arms, thresholds.unwrap_or([u64::MAX; THRESHOLDS]))))
    }

    /// What was seen since the last time: entries, counters of each arm, entries dropped.
    fn drain<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, Vec<Vec<u64>>, u64) {
        let drained = py.detach(|| self.0.drain());
        let mut bytes = Vec::with_capacity(drained.entries.len() * Entry::BYTES);
        drained.entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.bytes()));
        let counters = drained.counters.iter().map(|arm| arm.to_vec()).collect();
        (PyBytes::new(py, &bytes), counters, drained.dropped)
    }
}

/// Hashes of entities as an array of shape `[N, 16]`.
pub fn hashes<'py>(py: Python<'py>, entities: &[u128]) -> PyResult<Bound<'py, PyArray2<u8>>> {
    let bytes: Vec<u8> = entities.iter().flat_map(|entity| entity.to_be_bytes()).collect();
    let shaped = Array2::from_shape_vec((entities.len(), 16), bytes);
    Ok(shaped.map_err(|error| PyValueError::new_err(error.to_string()))?.into_pyarray(py))
}

/// And back.
pub fn entities_of(hashes: Option<&PyReadonlyArray2<'_, u8>>) -> PyResult<Vec<u128>> {
    let Some(hashes) = hashes else { return Ok(Vec::new()) };
    if hashes.shape().get(1) != Some(&16) {
        return Err(PyValueError::new_err("expected 16 bytes for each entity"));
    }
    Ok(hashes.as_slice()?.chunks_exact(16).map(number).collect())
}

/// The hash of an entity that its bytes are.
pub fn entity_of(hash: Option<&[u8]>) -> PyResult<Option<u128>> {
    match hash {
        Some(bytes) if bytes.len() != 16 => Err(PyValueError::new_err("expected 16 bytes of an entity")),
        found => Ok(found.map(number)),
    }
}

fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |all, &byte| all << 8 | u128::from(byte))
}
