//! All of `PyO3`: thin frozen classes over the core, and one mapping from its errors to Python's exceptions.

mod answer;
mod assign;
mod batch;
mod plan;
mod recorder;
mod route;
mod tensors;
mod watch;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
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
    module.add_class::<recorder::Runs>()?;
    module.add_class::<recorder::RunTotals>()?;
    module.add_class::<batch::Table>()?;
    module.add_class::<plan::VersionPlan>()?;
    module.add_class::<route::Route>()?;
    module.add_class::<tensors::InferRequest>()?;
    module.add_class::<watch::Signer>()?;
    module.add_class::<watch::Watch>()?;
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
        ErrorKind::TooManyRows(_) => "PayloadTooLarge",
        ErrorKind::Output { .. } => "PredictionFailed",
        _ => "InvalidRequest",
    }
}

/// An error of the core as the exception that Python raises.
#[expect(clippy::needless_pass_by_value, reason = "the signature that `map_err` wants")]
fn to_py(error: Error) -> PyErr {
    Python::attach(|py| exception(py, &error, None).unwrap_or_else(|failure| failure))
}

/// The same for an error in one row of many.
fn to_py_in_row(error: &Error, row: usize) -> PyErr {
    Python::attach(|py| exception(py, error, Some(row)).unwrap_or_else(|failure| failure))
}

fn exception(py: Python<'_>, error: &Error, row: Option<usize>) -> PyResult<PyErr> {
    // At the first error and not with this module, which the package imports while it is being imported itself.
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let errors = ERRORS.get_or_try_init(py, || py.import("turnout.errors").map(Bound::unbind))?;

    let place = PyDict::new(py);
    place.set_item("row", row)?;
    place.set_item("feature", error.feature())?;
    place.set_item("position", error.position)?;
    let class = errors.bind(py).getattr(class_of(&error.kind))?;
    Ok(PyErr::from_value(class.call((error.to_string(),), Some(&place))?))
}

/// Hand an entity id over as text: a string as it is, an integer as its decimal string.
fn with_entity<T>(value: &Bound<'_, PyAny>, work: impl FnOnce(&str) -> T) -> Result<T, Error> {
    let refuse = |found: &str| Error::from(ErrorKind::Entity(found.to_owned()));
    if let Ok(text) = value.cast::<PyString>() {
        return text.to_str().map(work).map_err(|_| refuse("a string with a lone surrogate"));
    }
    if !value.is_instance_of::<PyInt>() || value.is_instance_of::<PyBool>() {
        return Err(refuse(&value.get_type().name().map(|name| name.to_string()).unwrap_or_default()));
    }
    if let Ok(number) = value.extract::<i64>() {
        return Ok(work(itoa::Buffer::new().format(number)));
    }
    // `__index__` first: a subclass may print itself as something else.
    let digits = value.call_method0("__index__").and_then(|number| number.str());
    match digits.as_ref().map(|digits| digits.to_str()) {
        Ok(Ok(digits)) => Ok(work(digits)),
        _ => Err(refuse("an integer of too many digits")),
    }
}
