//! All of `PyO3`: thin frozen classes over the core, and one mapping from its errors to Python's exceptions.

mod assign;
mod recorder;
mod route;

use std::borrow::Cow;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyString};

use crate::error::{Error, ErrorKind};
use crate::hash::SLOTS;

/// The extension module `turnout._core`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("SLOTS", SLOTS)?;
    module.add_class::<assign::Ledger>()?;
    module.add_class::<assign::Split>()?;
    module.add_class::<recorder::Series>()?;
    module.add_class::<recorder::Totals>()?;
    module.add_class::<route::VersionPlan>()?;
    module.add_class::<route::Route>()?;
    module.add_function(wrap_pyfunction!(assign::hash_entity, module)?)?;
    module.add_function(wrap_pyfunction!(assign::slot, module)?)
}

/// The class of `turnout.errors` for an error of the core.
fn class_of(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::SplitSum(_) | ErrorKind::SplitWeight { .. } | ErrorKind::SplitArms(_) => "InvalidSplit",
        ErrorKind::Ledger(_) | ErrorKind::Dump => "InvalidDocument",
        ErrorKind::Value { .. }
        | ErrorKind::MissingFeature(_)
        | ErrorKind::UnknownFeature { .. }
        | ErrorKind::FeatureCount { .. }
        | ErrorKind::Unnamed(_)
        | ErrorKind::FreeTensors(_) => "InvalidFeatures",
        ErrorKind::NoActiveVersion(_) => "NoActiveVersion",
        ErrorKind::Output { .. } => "PredictionFailed",
        _ => "InvalidRequest",
    }
}

/// An error of the core as the exception that Python raises.
#[expect(clippy::needless_pass_by_value, reason = "the signature that `map_err` wants")]
fn to_py(error: Error) -> PyErr {
    Python::attach(|py| exception(py, &error).unwrap_or_else(|failure| failure))
}

fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let place = PyDict::new(py);
    place.set_item("feature", error.feature())?;
    place.set_item("position", error.position)?;
    let class = py.import("turnout.errors")?.getattr(class_of(&error.kind))?;
    Ok(PyErr::from_value(class.call((error.to_string(),), Some(&place))?))
}

/// An entity id as text: a string as it is, an integer as its decimal string.
fn entity<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<Cow<'a, str>> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Cow::Borrowed(text.to_str()?));
    }
    if value.is_instance_of::<PyInt>() && !value.is_instance_of::<PyBool>() {
        return Ok(Cow::Owned(value.str()?.to_str()?.to_owned()));
    }
    let found = value.get_type().name()?;
    Err(PyTypeError::new_err(format!("an entity id is a string or an integer, found {found}")))
}
