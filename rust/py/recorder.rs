//! `Series` and `Totals`, `Runs` and `RunTotals`: what is recorded, and the sum of what was dumped.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::to_py;
use crate::recorder::{Histogram, Series as CoreSeries, Totals as CoreTotals};
use crate::runs::{RunTotals as CoreRunTotals, Runs as CoreRuns};

const SECOND: f64 = 1e9;

/// Counters and latency histograms of one series.
#[pyclass(frozen, module = "turnout._core")]
#[derive(Default)]
pub struct Series(CoreSeries);

#[pymethods]
impl Series {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn record(&self, total_ns: u64, model_ns: u64) {
        self.0.record(total_ns, model_ns);
    }

    /// Answers to the rows of a batch, nanoseconds of all of them together.
    fn record_rows(&self, rows: u64, total_ns: u64, model_ns: u64) {
        self.0.record_rows(rows, total_ns, model_ns);
    }

    /// Rows of a batch that this version failed to answer.
    fn record_errors(&self, count: u64) {
        self.0.record_errors(count);
    }

    fn record_error(&self) {
        self.0.record_errors(1);
    }

    fn dump<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.dump())
    }
}

/// The sum of dumped series.
#[pyclass(frozen, module = "turnout._core")]
pub struct Totals(CoreTotals);

#[pymethods]
#[expect(clippy::cast_precision_loss, reason = "nanoseconds as seconds: a statistic")]
impl Totals {
    #[new]
    fn new(dumps: Vec<Bound<'_, PyBytes>>) -> PyResult<Self> {
        let mut sum = CoreTotals::default();
        for dump in dumps {
            sum.add(&CoreTotals::from_dump(dump.as_bytes()).map_err(to_py)?);
        }
        Ok(Self(sum))
    }

    #[getter]
    fn requests(&self) -> u64 {
        self.0.requests()
    }

    #[getter]
    fn errors(&self) -> u64 {
        self.0.errors
    }

    #[getter]
    fn latency_sum(&self) -> f64 {
        self.0.latency_sum as f64 / SECOND
    }

    #[getter]
    fn latency_ns(&self) -> u64 {
        self.0.latency_sum
    }

    #[getter]
    fn overhead_sum(&self) -> f64 {
        self.0.overhead_sum as f64 / SECOND
    }

    fn dump<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.dump())
    }

    fn latency(&self, quantile: f64) -> Option<f64> {
        self.0.latency.quantile(quantile).map(|nanoseconds| nanoseconds / SECOND)
    }

    fn overhead(&self, quantile: f64) -> Option<f64> {
        self.0.overhead.quantile(quantile).map(|nanoseconds| nanoseconds / SECOND)
    }

    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands over sequences by value")]
    fn latency_buckets(&self, bounds: Vec<f64>) -> Vec<u64> {
        cumulative(&self.0.latency, &bounds)
    }

    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands over sequences by value")]
    fn overhead_buckets(&self, bounds: Vec<f64>) -> Vec<u64> {
        cumulative(&self.0.overhead, &bounds)
    }
}

fn cumulative(histogram: &Histogram, bounds: &[f64]) -> Vec<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let nanoseconds: Vec<u64> = bounds.iter().map(|bound| (bound * SECOND).round() as u64).collect();
    histogram.cumulative(&nanoseconds)
}

/// The runs of one version's model.
#[pyclass(frozen, module = "turnout._core")]
#[derive(Default)]
pub struct Runs(CoreRuns);

#[pymethods]
impl Runs {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    // The lock is held with the GIL and never waits for it: so no thread of a process holds it while that forks.
    fn record(&self, rows: u64, input_ns: u64, infer_ns: u64, output_ns: u64, unix_ms: u64) {
        self.0.record(rows, input_ns, infer_ns, output_ns, unix_ms);
    }

    fn fail(&self, ns: u64) {
        self.0.fail(ns);
    }

    fn dump<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.dump())
    }
}

/// The sum of dumped runs.
#[pyclass(frozen, module = "turnout._core")]
pub struct RunTotals(CoreRunTotals);

#[pymethods]
impl RunTotals {
    #[new]
    fn new(dumps: Vec<Bound<'_, PyBytes>>) -> PyResult<Self> {
        let mut sum = CoreRunTotals::default();
        for dump in dumps {
            sum.add(&CoreRunTotals::from_dump(dump.as_bytes()).map_err(to_py)?);
        }
        Ok(Self(sum))
    }

    #[getter]
    fn last_ms(&self) -> u64 {
        self.0.last_ms
    }

    #[getter]
    fn failures(&self) -> u64 {
        self.0.failures
    }

    #[getter]
    fn failure_ns(&self) -> u64 {
        self.0.failure_ns
    }

    #[getter]
    fn rows(&self) -> u64 {
        self.0.rows
    }

    #[getter]
    fn runs(&self) -> u64 {
        self.0.runs().count
    }

    #[getter]
    fn input_ns(&self) -> u64 {
        self.0.runs().input
    }

    #[getter]
    fn infer_ns(&self) -> u64 {
        self.0.runs().infer
    }

    #[getter]
    fn output_ns(&self) -> u64 {
        self.0.runs().output
    }

    #[getter]
    fn sizes(&self) -> Vec<(u64, u64, u64, u64, u64)> {
        let sizes = self.0.sizes().iter();
        sizes.map(|(rows, times)| (*rows, times.count, times.input, times.infer, times.output)).collect()
    }

    fn dump<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.dump())
    }
}
