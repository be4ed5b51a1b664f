//! `Series` and `Totals`: the recorder's two halves.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::to_py;
use crate::recorder::{Histogram, Series as CoreSeries, Totals as CoreTotals};

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
