//! Runs of a version's model: how many, on how many rows, and how long they took.
//!
//! What the statistics extension of the Open Inference Protocol tells: `inference_count` are rows, `execution_count`
//! runs, and `batch_stats` the runs by their number of rows.
//!
//! The 64 smallest numbers of rows are kept apart; runs of more rows count under the next power of two. So the memory
//! is bounded, and a sum is the same in whatever order its parts came.

use std::sync::{Mutex, PoisonError};

use crate::error::{ErrorKind, Result};
use crate::recorder::{read, write};

/// Numbers of rows that are kept apart.
pub const EXACT: usize = 64;
/// More rows than this count as this many: the greatest power of two that there is.
const MOST_ROWS: u64 = 1 << 63;
/// First byte of a dump; a dump of a series begins with another.
const FORMAT: u64 = 2;

/// Runs, and the nanoseconds of all of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Runs.
    pub count: u64,
    /// Nanoseconds in which the inputs were made ready.
    pub input: u64,
    /// Nanoseconds in the model.
    pub infer: u64,
    /// Nanoseconds in which the outputs were made an answer.
    pub output: u64,
}

impl Times {
    fn add(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.input = self.input.saturating_add(other.input);
        self.infer = self.infer.saturating_add(other.infer);
        self.output = self.output.saturating_add(other.output);
    }
}

/// The runs of one version in one process; many threads may record at once.
///
/// A lock, and no atomics: a run takes hundreds of times as long, and a call changes values that belong together.
#[derive(Debug, Default)]
pub struct Runs(Mutex<RunTotals>);

impl Runs {
    /// One run of the model on so many rows: nanoseconds before, in and after the model, and the Unix milliseconds now.
    pub fn record(&self, rows: u64, input: u64, infer: u64, output: u64, milliseconds: u64) {
        self.change(|totals| {
            totals.last_ms = totals.last_ms.max(milliseconds);
            totals.rows = totals.rows.saturating_add(rows);
            totals.add_size(rows.min(MOST_ROWS), &Times { count: 1, input, infer, output });
        });
    }

    /// One request, or run, that failed after so many nanoseconds.
    pub fn fail(&self, nanoseconds: u64) {
        self.change(|totals| {
            totals.failures = totals.failures.saturating_add(1);
            totals.failure_ns = totals.failure_ns.saturating_add(nanoseconds);
        });
    }

    /// The present state.
    #[must_use]
    pub fn totals(&self) -> RunTotals {
        self.change(|totals| totals.clone())
    }

    /// The present state as bytes.
    #[must_use]
    pub fn dump(&self) -> Vec<u8> {
        self.totals().dump()
    }

    fn change<T>(&self, work: impl FnOnce(&mut RunTotals) -> T) -> T {
        // Sums stay sums, wherever a thread may have died.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The sum of the runs of any number of processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunTotals {
    /// Unix milliseconds of the last run; 0 without any.
    pub last_ms: u64,
    /// What failed.
    pub failures: u64,
    /// Nanoseconds of all that failed.
    pub failure_ns: u64,
    /// Rows of all runs.
    pub rows: u64,
    sizes: Vec<(u64, Times)>,
}

impl RunTotals {
    /// The runs by their number of rows, which rises: exact for the first `EXACT`, powers of two behind them.
    #[must_use]
    pub fn sizes(&self) -> &[(u64, Times)] {
        &self.sizes
    }

    /// All runs.
    #[must_use]
    pub fn runs(&self) -> Times {
        let mut sum = Times::default();
        self.sizes.iter().for_each(|(_, times)| sum.add(times));
        sum
    }

    /// Add another sum to this one.
    pub fn add(&mut self, other: &Self) {
        self.last_ms = self.last_ms.max(other.last_ms);
        self.failures = self.failures.saturating_add(other.failures);
        self.failure_ns = self.failure_ns.saturating_add(other.failure_ns);
        self.rows = self.rows.saturating_add(other.rows);
        for (rows, times) in &other.sizes {
            self.add_size(*rows, times);
        }
    }

    /// Count runs under their number of rows, or under the next power of two where `EXACT` smaller ones are known.
    fn add_size(&mut self, rows: u64, times: &Times) {
        match self.place(rows) {
            Ok(at) => self.sizes[at].1.add(times),
            Err(at) if at < EXACT => {
                self.sizes.insert(at, (rows, *times));
                self.round_last();
            }
            Err(_) => self.add_rounded(rows, times),
        }
    }

    /// The largest number that was kept apart is not any more, now that there is one too many.
    fn round_last(&mut self) {
        if self.sizes.len() > EXACT {
            let (rows, times) = self.sizes.remove(EXACT);
            self.add_rounded(rows, &times);
        }
    }

    fn add_rounded(&mut self, rows: u64, times: &Times) {
        let rows = rows.next_power_of_two();
        match self.place(rows) {
            Ok(at) => self.sizes[at].1.add(times),
            Err(at) => self.sizes.insert(at, (rows, *times)),
        }
    }

    fn place(&self, rows: u64) -> std::result::Result<usize, usize> {
        self.sizes.binary_search_by_key(&rows, |(rows, _)| *rows)
    }

    /// As bytes: variable-length integers.
    #[must_use]
    pub fn dump(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let sizes = self.sizes.len() as u64;
        for value in [FORMAT, self.last_ms, self.failures, self.failure_ns, self.rows, sizes] {
            write(&mut bytes, value);
        }
        for (rows, times) in &self.sizes {
            for value in [*rows, times.count, times.input, times.infer, times.output] {
                write(&mut bytes, value);
            }
        }
        bytes
    }

    /// Read a dump back.
    ///
    /// # Errors
    /// `ErrorKind::Dump` for anything else.
    pub fn from_dump(mut bytes: &[u8]) -> Result<Self> {
        if read(&mut bytes)? != FORMAT {
            return Err(ErrorKind::Dump.into());
        }
        let mut totals = Self {
            last_ms: read(&mut bytes)?,
            failures: read(&mut bytes)?,
            failure_ns: read(&mut bytes)?,
            rows: read(&mut bytes)?,
            sizes: Vec::new(),
        };
        for _ in 0..read(&mut bytes)? {
            let size = totals.next_size(&mut bytes)?;
            totals.sizes.push(size);
        }
        if bytes.is_empty() { Ok(totals) } else { Err(ErrorKind::Dump.into()) }
    }

    /// Read the next of the sizes, which must be one that could come next. So there are never more than could be
    /// counted, whatever their announced number.
    fn next_size(&self, bytes: &mut &[u8]) -> Result<(u64, Times)> {
        let rows = read(bytes)?;
        let times = Times { count: read(bytes)?, input: read(bytes)?, infer: read(bytes)?, output: read(bytes)? };
        let rises = self.sizes.last().is_none_or(|(before, _)| *before < rows);
        let kept = rows <= MOST_ROWS && (self.sizes.len() < EXACT || rows.is_power_of_two());
        if rises && kept && times.count > 0 { Ok((rows, times)) } else { Err(ErrorKind::Dump.into()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn counts(totals: &RunTotals) -> Vec<(u64, u64)> {
        totals.sizes().iter().map(|(rows, times)| (*rows, times.count)).collect()
    }

    /// Format, last, failures, their time, rows, sizes, and each of these with one run.
    fn bytes_of(sizes: &[u64]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0];
        write(&mut bytes, sizes.len() as u64);
        for rows in sizes {
            write(&mut bytes, *rows);
            bytes.extend([1, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn runs_are_counted_by_their_rows() {
        let runs = Runs::default();
        runs.record(8, 10, 100, 1, 5000);
        runs.record(1, 20, 50, 2, 4000);
        runs.record(8, 30, 200, 3, 3000);
        runs.fail(70);
        runs.fail(7);
        let totals = runs.totals();
        assert_eq!((totals.last_ms, totals.failures, totals.failure_ns, totals.rows), (5000, 2, 77, 17));
        assert_eq!(totals.runs(), Times { count: 3, input: 60, infer: 350, output: 6 });
        let eight = Times { count: 2, input: 40, infer: 300, output: 4 };
        assert_eq!(totals.sizes(), [(1, Times { count: 1, input: 20, infer: 50, output: 2 }), (8, eight)]);
    }

    #[test]
    fn more_sizes_than_are_kept_apart_count_under_the_next_power_of_two() {
        let runs = Runs::default();
        for rows in (1..=64).chain([65, 100, 128, 129, 64]) {
            runs.record(rows, 0, 1, 0, 1);
        }
        let totals = runs.totals();
        assert_eq!(counts(&totals)[62..], [(63, 1), (64, 2), (128, 3), (256, 1)]);
        assert_eq!(totals.rows, 64 * 65 / 2 + 65 + 100 + 128 + 129 + 64, "rows are exact all the same");
    }

    #[test]
    fn the_smallest_sizes_are_kept_apart_in_whatever_order_they_came() {
        let (rising, falling) = (Runs::default(), Runs::default());
        (0..300).for_each(|rows| rising.record(rows, 1, 2, 3, 4));
        (0..300).rev().for_each(|rows| falling.record(rows, 1, 2, 3, 4));
        assert_eq!(rising.totals(), falling.totals());
        assert_eq!(counts(&rising.totals())[63..], [(63, 1), (64, 1), (128, 64), (256, 128), (512, 43)]);
    }

    #[test]
    fn there_are_few_sizes_whatever_comes_and_no_sum_overflows() {
        let runs = Runs::default();
        for power in 0..64 {
            for near in [-1, 0, 1] {
                runs.record((1_u64 << power).wrapping_add_signed(near), u64::MAX, u64::MAX, u64::MAX, u64::MAX);
            }
        }
        (0..2).for_each(|_| runs.fail(u64::MAX));
        runs.record(u64::MAX, 1, 1, 1, 1);
        let mut totals = runs.totals();
        totals.add(&totals.clone());
        assert!(totals.sizes().len() <= 2 * EXACT);
        assert_eq!((totals.rows, totals.failure_ns, totals.failures), (u64::MAX, u64::MAX, 4));
        assert_eq!(totals.runs(), Times { count: 386, input: u64::MAX, infer: u64::MAX, output: u64::MAX });
        assert_eq!(totals.sizes().last().unwrap().0, MOST_ROWS);
        assert_eq!(RunTotals::from_dump(&totals.dump()).unwrap(), totals);
    }

    #[test]
    fn a_poisoned_lock_loses_nothing() {
        let runs = Runs::default();
        runs.record(1, 1, 1, 1, 1);
        let died = std::thread::scope(|scope| scope.spawn(|| runs.change(|_| assert!(runs.0.is_poisoned()))).join());
        assert!(died.is_err() && runs.0.is_poisoned());
        runs.record(1, 1, 1, 1, 1);
        assert_eq!(runs.totals().rows, 2);
    }

    #[test]
    fn hostile_dumps_are_refused() {
        let most: Vec<u64> = (0..64).chain((6..64).map(|power| 1 << power)).collect();
        for good in [&[][..], &[7, 9], &[0], &most] {
            assert_eq!(RunTotals::from_dump(&bytes_of(good)).unwrap().dump(), bytes_of(good));
        }
        let good = bytes_of(&most);
        (0..good.len()).for_each(|end| assert!(RunTotals::from_dump(&good[..end]).is_err(), "{end}"));
        let apart: Vec<u64> = (0..65).map(|rows| rows * 3).collect();
        for bad in [&[7, 7][..], &[9, 7], &[MOST_ROWS + 1], &apart] {
            assert!(RunTotals::from_dump(&bytes_of(bad)).is_err(), "{bad:?}");
        }
        assert!(RunTotals::from_dump(&[2, 0, 0, 0, 0, 1, 7, 0, 0, 0, 0]).is_err(), "a size without runs");
        assert!(RunTotals::from_dump(&[&good[..], &[0]].concat()).is_err(), "a byte too many");
        assert!(RunTotals::from_dump(&[1, 0, 0, 0, 0, 0]).is_err(), "a dump of a series");
        assert!(RunTotals::from_dump(&[0xff; 40]).is_err());
    }
}
