//! `VersionPlan`: how one version reads features and writes outputs.

#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString};

use crate::columns::Element;
use crate::feature::{Description, Scalar};
use crate::features::{Layout, Schema};
use crate::route::Plan;
use crate::tensors::datatype::Datatype;

/// How one version reads features and writes outputs.
#[pyclass(frozen, module = "turnout._core")]
pub struct VersionPlan(pub(super) Arc<Plan>);

type DescriptionTuple<'py> = (String, String, Vec<String>, Option<Bound<'py, PyAny>>, bool);

#[pymethods]
impl VersionPlan {
    #[new]
    #[pyo3(signature = (version, layout, dtypes, features, outputs, score = None, datatypes = Vec::new()))]
    #[allow(clippy::too_many_arguments, reason = "a version has that many facts")]
    fn new(
        py: Python<'_>,
        version: &str,
        layout: &str,
        dtypes: Vec<String>,
        features: Vec<DescriptionTuple<'_>>,
        outputs: Vec<String>,
        score: Option<usize>,
        datatypes: Vec<String>,
    ) -> PyResult<Self> {
        let fault = |problem: String| PyValueError::new_err(format!("version {version}: {problem}"));
        if !datatypes.is_empty() && datatypes.len() != outputs.len() {
            return Err(fault(format!("expected a datatype for each of {} outputs", outputs.len())));
        }
        let datatypes = datatypes.iter().map(|name| Datatype::from_name(name)).collect();
        let layout = match layout {
            "matrix" => Layout::Matrix,
            "columns" => Layout::Columns,
            "tensors" => return Ok(Self(Arc::new(Plan { schema: None, outputs, datatypes, score }))),
            other => return Err(fault(format!("layout must be matrix, columns or tensors, found {other:?}"))),
        };
        let elements = dtypes
            .iter()
            .map(|name| Element::from_name(name).ok_or_else(|| fault(format!("no element type {name:?}"))))
            .collect::<PyResult<Vec<_>>>()?;
        let descriptions = features.into_iter().map(describe).collect::<PyResult<Vec<_>>>()?;
        let schema = Schema::new(layout, &elements, &descriptions)
            .map_err(|problem| invalid_model(py, format!("version {version}: {problem}")))?;
        Ok(Self(Arc::new(Plan { schema: Some(schema), outputs, datatypes, score })))
    }
}

/// A schema that does not fit the model's inputs: the mistake of the person who registers it.
fn invalid_model(py: Python<'_>, problem: String) -> PyErr {
    let raised = py.import("turnout.errors").and_then(|errors| errors.getattr("InvalidModel")?.call1((problem,)));
    raised.map_or_else(|failure| failure, PyErr::from_value)
}

fn describe((name, kind, values, default, nullable): DescriptionTuple<'_>) -> PyResult<Description> {
    let default = default.as_ref().map(scalar).transpose()?;
    Ok(Description { name, kind, values, default, nullable })
}

fn scalar(value: &Bound<'_, PyAny>) -> PyResult<Scalar> {
    if let Ok(truth) = value.cast::<PyBool>() {
        Ok(Scalar::Bool(truth.is_true()))
    } else if let Ok(text) = value.cast::<PyString>() {
        Ok(Scalar::Text(text.to_str()?.to_owned()))
    } else if let Ok(integer) = value.extract::<i64>() {
        Ok(Scalar::Int(integer))
    } else {
        Ok(Scalar::Float(value.extract()?))
    }
}
