//! Outputs of many rows, from the arrays of each version back into the order in which the rows came, as JSON.

use std::cmp::Ordering;

use crate::encode::{MOST_BRACKETS, Token, brackets, write_nested};
use crate::error::{Error, ErrorKind, Result};
use crate::receipt::Score;
use crate::route::{Done, Reason, Route, unix_milliseconds};
use crate::slice::{Slice, with_values};

/// The values of an output, all of them of one type.
#[derive(Debug, Clone, Copy)]
pub enum Array<'a> {
    /// Numbers or truth values.
    Numbers(Slice<'a>),
    /// Strings.
    Text(&'a [String]),
}

impl Array<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }
}

/// One output of a version for all of its rows, in C order.
#[derive(Debug)]
pub struct Output<'a> {
    values: Array<'a>,
    rows: usize,
    inner: Vec<usize>,
    stride: usize,
}

impl<'a> Output<'a> {
    /// An output of shape `[rows, ...]`.
    ///
    /// # Errors
    /// With a sentence, where values and shape do not go together.
    pub fn new(shape: &[usize], values: Array<'a>) -> std::result::Result<Self, String> {
        let Some((&rows, inner)) = shape.split_first() else {
            return Err("expected a value for each row, found a single one".to_owned());
        };
        if brackets(inner).saturating_mul(rows) > MOST_BRACKETS {
            return Err(format!("too many empty lists in shape {shape:?}"));
        }
        let stride = inner.iter().try_fold(1_usize, |all, &length| all.checked_mul(length)).unwrap_or(usize::MAX);
        if stride.checked_mul(rows) != Some(values.len()) {
            return Err(format!("expected shape {shape:?}, found {} values", values.len()));
        }
        Ok(Self { values, rows, inner: inner.to_vec(), stride })
    }

    /// The score in a row: of two or more numbers that of the class at index 1 or, of more, the likeliest one.
    #[must_use]
    pub fn score(&self, row: usize) -> Option<Score> {
        let Array::Numbers(slice) = self.values else { return None };
        match slice {
            Slice::F32(values) => score_of(values.get(row * self.stride..(row + 1) * self.stride)?),
            Slice::F64(values) => score_of(values.get(row * self.stride..(row + 1) * self.stride)?),
            _ => None,
        }
    }

    /// How many rows it has.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Append a row as JSON.
    pub(crate) fn write_row(&self, row: usize, bytes: &mut Vec<u8>) {
        match self.values {
            Array::Numbers(slice) => with_values!(slice, values => self.write(values, row, bytes)),
            Array::Text(values) => self.write(values, row, bytes),
        }
    }

    #[inline]
    fn write<T: Token>(&self, values: &[T], row: usize, bytes: &mut Vec<u8>) {
        let start = row * self.stride;
        write_nested(&self.inner, values.get(start..start + self.stride).unwrap_or_default(), bytes);
    }
}

/// A number that a score can be made of.
pub trait Number: Copy + PartialOrd {
    /// As a score has it.
    fn single(self) -> f32;
}

impl Number for f32 {
    #[inline]
    fn single(self) -> f32 {
        self
    }
}

impl Number for f64 {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a score has seven digits")]
    fn single(self) -> f32 {
        self as f32
    }
}

/// The score that the numbers of a row are: a value, the probability of the second of two classes, or of the likeliest.
#[inline]
#[must_use]
pub fn score_of<T: Number>(row: &[T]) -> Option<Score> {
    match row {
        [] => None,
        [value] => Some(Score { value: value.single(), class: 0 }),
        [first, second] => Some(Score { value: second.single(), class: u16::from(second > first) }),
        [first, rest @ ..] => {
            let (mut class, mut most) = (0, *first);
            for (index, value) in (1..=u16::MAX).zip(rest) {
                // NaN compares with nothing; take it, so that it shows.
                if matches!(value.partial_cmp(&most), None | Some(Ordering::Greater)) {
                    (class, most) = (index, *value);
                }
            }
            Some(Score { value: most.single(), class })
        }
    }
}

/// What one version answered to its rows, which are in the order in which they came.
#[derive(Debug)]
pub struct Part<'a> {
    /// Index of the version.
    pub version: usize,
    /// Its outputs, in the order of their names.
    pub outputs: Vec<Output<'a>>,
}

/// Where each row's answer is.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Index of its part; negative where it has none.
    pub parts: &'a [i32],
    /// Indices of `turnout.domain.REASONS`.
    pub reasons: &'a [u8],
    /// The hashes of the entities, 0 for none; may be empty.
    pub entities: &'a [u128],
}

impl Route {
    /// The JSON answer to a batch, by columns. `labels[i]` is the index of a version, `index` has indices into it (a
    /// negative one for none), `errors` is JSON already.
    ///
    /// # Errors
    /// Where parts and rows do not go together.
    pub fn encode_batch(
        &self,
        labels: &[usize],
        index: &[i32],
        rows: Rows<'_>,
        parts: &[Part<'_>],
        errors: &[u8],
    ) -> Result<Vec<u8>> {
        self.check(rows, parts)?;
        let mut bytes = Vec::with_capacity(64 * rows.parts.len());
        bytes.extend_from_slice(b"{\"model\":");
        self.model().write(&mut bytes);
        bytes.extend_from_slice(b",\"count\":");
        rows.parts.len().to_string().bytes().for_each(|digit| bytes.push(digit));
        bytes.extend_from_slice(b",\"versions\":");
        list(labels, &mut bytes, |label, bytes| {
            self.version(*label).map(|version| version.0).unwrap_or_default().write(bytes);
        });
        bytes.extend_from_slice(b",\"version_index\":");
        list(index, &mut bytes, |index, bytes| if *index < 0 { null(bytes) } else { index.write(bytes) });
        bytes.extend_from_slice(b",\"outputs\":{");
        for (place, (name, found)) in self.columns(parts).into_iter().enumerate() {
            if place > 0 {
                bytes.push(b',');
            }
            name.write(&mut bytes);
            bytes.push(b':');
            let mut cursors = vec![0; parts.len()];
            list(rows.parts, &mut bytes, |&part, bytes| {
                let part = usize::try_from(part).ok();
                let row =
                    part.and_then(|part| cursors.get_mut(part)).map(|cursor| std::mem::replace(cursor, *cursor + 1));
                match part.and_then(|part| found.get(part).copied().flatten()).zip(row) {
                    Some((output, row)) => output.write_row(row, bytes),
                    None => null(bytes),
                }
            });
        }
        bytes.extend_from_slice(b"},\"errors\":");
        bytes.extend_from_slice(errors);
        bytes.push(b'}');
        Ok(bytes)
    }

    /// A line for each row: the answer of a single prediction, or one of `problems`, which are JSON, in their order.
    ///
    /// # Errors
    /// Where parts and rows do not go together.
    pub fn encode_lines(&self, rows: Rows<'_>, parts: &[Part<'_>], problems: &[&[u8]]) -> Result<Vec<u8>> {
        self.check(rows, parts)?;
        let mut bytes = Vec::with_capacity(200 * rows.parts.len());
        let mut cursors = vec![0; parts.len()];
        let mut problems = problems.iter();
        let milliseconds = unix_milliseconds();
        for (row, (part, reason)) in rows.parts.iter().zip(rows.reasons).enumerate() {
            let found = usize::try_from(*part).ok().and_then(|part| parts.get(part).zip(cursors.get_mut(part)));
            if let Some((part, cursor)) = found {
                let reason = Reason::from_index(usize::from(*reason)).unwrap_or(Reason::Active);
                let score = self.score_output(part.version).and_then(|index| part.outputs.get(index)?.score(*cursor));
                let entity = rows.entities.get(row).copied().filter(|&entity| entity != 0);
                let done = Done { version: part.version, reason, entity, score, nanoseconds: 0 };
                if let Some(mut answer) = self.answer_behind(std::mem::take(&mut bytes), done, milliseconds) {
                    part.outputs.iter().for_each(|output| answer.push_row(output, *cursor));
                    bytes = answer.finish()?;
                }
                *cursor += 1;
            } else {
                bytes.extend_from_slice(problems.next().copied().unwrap_or(b"null"));
            }
            bytes.push(b'\n');
        }
        Ok(bytes)
    }

    /// Every output by name, in the order in which the versions have them, and where each part has it.
    fn columns<'p, 'a>(&'p self, parts: &'p [Part<'a>]) -> Vec<(&'p str, Vec<Option<&'p Output<'a>>>)> {
        let mut columns: Vec<(&str, Vec<Option<&Output<'a>>>)> = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let names = self.version(part.version).map(|version| version.1).unwrap_or_default();
            for (name, output) in names.iter().zip(&part.outputs) {
                let place = columns.iter().position(|column| column.0 == name).unwrap_or_else(|| {
                    columns.push((name, vec![None; parts.len()]));
                    columns.len() - 1
                });
                columns[place].1[index] = Some(output);
            }
        }
        columns
    }

    /// Each part has as many outputs as its version names, and each of them as many rows as the part was given.
    fn check(&self, rows: Rows<'_>, parts: &[Part<'_>]) -> Result<()> {
        let mut counts = vec![0; parts.len()];
        for part in rows.parts.iter().filter_map(|part| usize::try_from(*part).ok()) {
            *counts.get_mut(part).ok_or_else(|| fault("parts", "a row of a part that is none"))? += 1;
        }
        for (part, count) in parts.iter().zip(counts) {
            let names = self.version(part.version).map(|version| version.1).unwrap_or_default();
            if names.len() != part.outputs.len() {
                return Err(fault("outputs", &format!("expected {}, found {}", names.len(), part.outputs.len())));
            }
            for (name, output) in names.iter().zip(&part.outputs) {
                if output.rows != count {
                    return Err(fault(name, &format!("expected {count} rows, found {}", output.rows)));
                }
            }
        }
        Ok(())
    }
}

#[cold]
fn fault(name: &str, problem: &str) -> Error {
    ErrorKind::Output { name: name.to_owned(), problem: problem.to_owned() }.into()
}

fn null(bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(b"null");
}

/// Write a list, each element by `write`.
fn list<T>(values: &[T], bytes: &mut Vec<u8>, mut write: impl FnMut(&T, &mut Vec<u8>)) {
    bytes.push(b'[');
    for (place, value) in values.iter().enumerate() {
        if place > 0 {
            bytes.push(b',');
        }
        write(value, bytes);
    }
    bytes.push(b']');
}
