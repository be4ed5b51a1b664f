//! Counters and latency histograms: recorded without locks, dumped, merged, and asked for quantiles.
//!
//! A histogram is log-linear: 32 buckets of equal width in each power of two of a nanosecond, so that a quantile is
//! within 1/32 of the true value at any scale, in constant memory (8.5 KiB).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::{ErrorKind, Result};

/// Buckets in each power of two: its logarithm, and the number.
const STEP_BITS: u32 = 5;
const STEPS: u64 = 1 << STEP_BITS;
/// Times of 2^37 ns (137 s) and more fall into the last bucket.
const MAX_BITS: u32 = 37;
const BUCKETS: usize = ((MAX_BITS - STEP_BITS + 1) << STEP_BITS) as usize;
/// First byte of a dump; another format gets another.
const FORMAT: u64 = 1;

#[expect(clippy::cast_possible_truncation, reason = "the index is below BUCKETS")]
fn bucket_of(nanoseconds: u64) -> usize {
    if nanoseconds < STEPS {
        return nanoseconds as usize;
    }
    let power = nanoseconds.ilog2();
    if power >= MAX_BITS {
        return BUCKETS - 1;
    }
    let shift = power - STEP_BITS;
    (u64::from(shift) * STEPS + (nanoseconds >> shift)) as usize
}

/// The smallest time, in nanoseconds, that falls into a bucket.
fn floor_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    (bucket - shift * STEPS) << shift
}

/// Counters and histograms of one series; many threads may record at once.
#[derive(Debug)]
pub struct Series {
    errors: AtomicU64,
    latency_sum: AtomicU64,
    overhead_sum: AtomicU64,
    latency: Box<[AtomicU64]>,
    overhead: Box<[AtomicU64]>,
}

impl Default for Series {
    fn default() -> Self {
        let zeros = || (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self {
            errors: AtomicU64::new(0),
            latency_sum: AtomicU64::new(0),
            overhead_sum: AtomicU64::new(0),
            latency: zeros(),
            overhead: zeros(),
        }
    }
}

impl Series {
    /// One answer: nanoseconds in all, and in the model alone.
    #[inline]
    pub fn record(&self, total: u64, model: u64) {
        let overhead = total.saturating_sub(model);
        self.latency[bucket_of(total)].fetch_add(1, Relaxed);
        self.overhead[bucket_of(overhead)].fetch_add(1, Relaxed);
        self.latency_sum.fetch_add(total, Relaxed);
        self.overhead_sum.fetch_add(overhead, Relaxed);
    }

    /// Answers to the rows of a batch: nanoseconds of all of them together, and in the model alone. Each row counts as
    /// its share of them.
    pub fn record_rows(&self, rows: u64, total: u64, model: u64) {
        let overhead = total.saturating_sub(model);
        let Some((each, outside)) = total.checked_div(rows).zip(overhead.checked_div(rows)) else { return };
        self.latency[bucket_of(each)].fetch_add(rows, Relaxed);
        self.overhead[bucket_of(outside)].fetch_add(rows, Relaxed);
        self.latency_sum.fetch_add(total, Relaxed);
        self.overhead_sum.fetch_add(overhead, Relaxed);
    }

    /// Requests, or rows, that were not answered.
    pub fn record_errors(&self, count: u64) {
        self.errors.fetch_add(count, Relaxed);
    }

    /// The present state as bytes.
    #[must_use]
    pub fn dump(&self) -> Vec<u8> {
        self.totals().dump()
    }

    fn totals(&self) -> Totals {
        let read = |buckets: &[AtomicU64]| buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        Totals {
            errors: self.errors.load(Relaxed),
            latency_sum: self.latency_sum.load(Relaxed),
            overhead_sum: self.overhead_sum.load(Relaxed),
            latency: Histogram(read(&self.latency)),
            overhead: Histogram(read(&self.overhead)),
        }
    }
}

/// A histogram at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram(Box<[u64]>);

impl Default for Histogram {
    fn default() -> Self {
        Self(vec![0; BUCKETS].into_boxed_slice())
    }
}

impl Histogram {
    /// How many times were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The time, in nanoseconds, that a share `q` (0 to 1) of the recorded ones does not exceed; None without any.
    ///
    /// Interpolated inside its bucket.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a statistic, not an identifier")]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        let rank = q.clamp(0.0, 1.0) * count as f64;
        let mut below = 0.0;
        for (bucket, &inside) in self.0.iter().enumerate().filter(|(_, inside)| **inside > 0) {
            let inside = inside as f64;
            if below + inside >= rank {
                let (low, high) = (floor_of(bucket) as f64, floor_of(bucket + 1) as f64);
                return Some(low + (high - low) * ((rank - below) / inside).clamp(0.0, 1.0));
            }
            below += inside;
        }
        None
    }

    /// How many times are below each bound in nanoseconds; a bound inside a bucket leaves that bucket out.
    #[must_use]
    pub fn cumulative(&self, bounds: &[u64]) -> Vec<u64> {
        let below = |bound: u64| {
            let inside = self.0.iter().enumerate().take_while(|(bucket, _)| floor_of(bucket + 1) <= bound);
            inside.fold(0_u64, |sum, (_, count)| sum.saturating_add(*count))
        };
        bounds.iter().map(|bound| below(*bound)).collect()
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = mine.saturating_add(*theirs);
        }
    }
}

/// The sum of any number of series.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that were not answered.
    pub errors: u64,
    /// Nanoseconds of all answers.
    pub latency_sum: u64,
    /// Nanoseconds of all answers outside the model.
    pub overhead_sum: u64,
    /// Time of an answer.
    pub latency: Histogram,
    /// Time of an answer outside the model.
    pub overhead: Histogram,
}

impl Totals {
    /// Answers and errors.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.latency.count().saturating_add(self.errors)
    }

    /// Add another sum to this one.
    pub fn add(&mut self, other: &Self) {
        self.errors = self.errors.saturating_add(other.errors);
        self.latency_sum = self.latency_sum.saturating_add(other.latency_sum);
        self.overhead_sum = self.overhead_sum.saturating_add(other.overhead_sum);
        self.latency.add(&other.latency);
        self.overhead.add(&other.overhead);
    }

    /// As bytes: variable-length integers; of the histograms only the buckets that hold something.
    #[must_use]
    pub fn dump(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in [FORMAT, self.errors, self.latency_sum, self.overhead_sum] {
            write(&mut bytes, value);
        }
        for Histogram(buckets) in [&self.latency, &self.overhead] {
            let filled = buckets.iter().enumerate().filter(|(_, count)| **count > 0);
            write(&mut bytes, filled.clone().count() as u64);
            for (bucket, count) in filled {
                write(&mut bytes, bucket as u64);
                write(&mut bytes, *count);
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
            errors: read(&mut bytes)?,
            latency_sum: read(&mut bytes)?,
            overhead_sum: read(&mut bytes)?,
            ..Self::default()
        };
        for histogram in [&mut totals.latency, &mut totals.overhead] {
            let mut next = 0;
            for _ in 0..read(&mut bytes)? {
                let bucket = read(&mut bytes)?;
                let place = usize::try_from(bucket).ok().filter(|_| bucket >= next);
                *place.and_then(|place| histogram.0.get_mut(place)).ok_or(ErrorKind::Dump)? = read(&mut bytes)?;
                next = bucket + 1;
            }
        }
        if bytes.is_empty() { Ok(totals) } else { Err(ErrorKind::Dump.into()) }
    }
}

/// LEB128: seven bits a byte, the lowest first.
pub(crate) fn write(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    bytes.push(value as u8);
}

/// Take the first integer away from bytes that `write` made.
pub(crate) fn read(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(ErrorKind::Dump)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(ErrorKind::Dump.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn buckets_meet_without_gaps() {
        assert_eq!(BUCKETS, 1056);
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(floor_of(bucket)), bucket);
            if bucket > 0 {
                assert_eq!(bucket_of(floor_of(bucket) - 1), bucket - 1);
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_a_bucket() {
        let series = Series::default();
        for value in 1..=10_000_u64 {
            series.record(value * 1000, value * 900);
        }
        let totals = series.totals();
        for q in [0.01, 0.5, 0.95, 0.99, 1.0] {
            let exact = q * 10_000_000.0;
            let found = totals.latency.quantile(q).unwrap();
            assert!((found / exact - 1.0).abs() < 1.0 / 32.0, "{q}: {found} for {exact}");
        }
        assert!(Histogram::default().quantile(0.5).is_none());
    }

    #[test]
    fn dumps_add_up() {
        let (a, b) = (Series::default(), Series::default());
        a.record(1_000, 400);
        b.record(u64::MAX, 0);
        b.record_errors(1);
        let mut sum = Totals::from_dump(&a.dump()).unwrap();
        sum.add(&Totals::from_dump(&b.dump()).unwrap());
        assert_eq!(sum.requests(), 3);
        assert_eq!(sum.errors, 1);
        assert_eq!(Totals::from_dump(&sum.dump()).unwrap(), sum);
    }

    #[test]
    fn hostile_dumps_are_refused() {
        let good = Series::default().dump();
        assert!(Totals::from_dump(&good[..good.len() - 1]).is_err());
        assert!(Totals::from_dump(&[]).is_err());
        assert!(Totals::from_dump(&[0xff; 40]).is_err());
        assert!(Totals::from_dump(&[1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 1, 0]).is_err());
        assert!(Totals::from_dump(&[1, 0, 0, 0, 2, 7, 1, 7, 1, 0]).is_err(), "a bucket twice");
        assert!(Totals::from_dump(&[1, 0, 0, 0, 2, 7, 1, 8, 1, 0]).is_ok());
    }

    #[test]
    fn cumulative_counts_are_exact_at_powers_of_two() {
        let series = Series::default();
        for value in [1, 1023, 1024, 1025, 5000] {
            series.record(value, 0);
        }
        assert_eq!(series.totals().latency.cumulative(&[1024, 2048, 1 << 40]), [2, 4, 5]);
    }
}
