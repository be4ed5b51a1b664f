//! Columns that a caller has already (`NumPy`, Arrow) into the buffers that a model takes.

use std::borrow::Cow;

use crate::columns::{Cell, Column};
use crate::error::{Error, ErrorKind, Result};
use crate::feature::Feature;
use crate::features::{Layout, Schema};
use crate::names::Names;
use crate::slice::{Slice, with_values};

/// Rows packed at a time, so that what is written stays in the first cache while its columns come in turn.
const BLOCK: usize = 128;

/// Truth values of one bit each, the lowest first (Arrow columnar format, "Validity bitmaps").
#[derive(Debug, Clone, Copy)]
pub struct Bits<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// The bit of the first value.
    pub start: usize,
}

impl Bits<'_> {
    #[inline]
    fn get(&self, index: usize) -> bool {
        let bit = self.start + index;
        self.bytes.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }
}

/// The values of a column, all of them of one type.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Numbers, or truth values of a byte each.
    Numbers(Slice<'a>),
    /// Truth values of a bit each.
    Bits(Bits<'a>),
    /// Offsets of 32 bits into UTF-8.
    Text(&'a [i32], &'a [u8]),
    /// Offsets of 64 bits into UTF-8.
    LargeText(&'a [i64], &'a [u8]),
}

/// One column: where its values lie, and which of them are null.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The values.
    pub values: Values<'a>,
    /// Index of the first one.
    pub start: usize,
    /// From one to the next.
    pub stride: usize,
    /// Which rows have a value; None where all have.
    pub valid: Option<Bits<'a>>,
}

/// Which rows of a table to pack.
#[derive(Debug, Clone, Copy)]
pub enum Chosen<'a> {
    /// A number of rows from one on.
    Range(usize, usize),
    /// These, in this order.
    List(&'a [i64]),
}

impl Chosen<'_> {
    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Range(_, count) => *count,
            Self::List(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of them.
    #[must_use]
    pub fn part(&self, from: usize, to: usize) -> Self {
        match *self {
            Self::Range(start, _) => Self::Range(start + from, to - from),
            Self::List(rows) => Self::List(&rows[from..to]),
        }
    }

    /// The row of the table at an index; past every table where it is negative.
    #[inline]
    #[must_use]
    pub fn row(&self, index: usize) -> usize {
        match self {
            Self::Range(start, _) => start + index,
            Self::List(rows) => rows.get(index).and_then(|row| usize::try_from(*row).ok()).unwrap_or(usize::MAX),
        }
    }
}

/// One value of a column as it came.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Raw<'a> {
    Null,
    Float(f64),
    Int(i64),
    Large(u64),
    Bool(bool),
    Text(&'a str),
    /// Outside of the column, or no UTF-8.
    Broken,
}

impl<'a> Source<'a> {
    #[inline]
    fn raw(&self, row: usize) -> Raw<'a> {
        if self.valid.is_some_and(|valid| !valid.get(row)) {
            return Raw::Null;
        }
        let Some(at) = row.checked_mul(self.stride).and_then(|offset| offset.checked_add(self.start)) else {
            return Raw::Broken;
        };
        match self.values {
            Values::Numbers(slice) => {
                with_values!(slice, values => values.get(at).map_or(Raw::Broken, |value| value.raw()))
            }
            Values::Bits(bits) => Raw::Bool(bits.get(at)),
            Values::Text(offsets, data) => span(offsets, data, at),
            Values::LargeText(offsets, data) => span(offsets, data, at),
        }
    }
}

/// Each span is checked when it is read: offsets come from outside.
fn span<'a, O: Copy + TryInto<usize>>(offsets: &[O], data: &'a [u8], at: usize) -> Raw<'a> {
    let bound = |index: usize| offsets.get(index).and_then(|offset| (*offset).try_into().ok());
    let bytes = bound(at).zip(bound(at + 1)).and_then(|(start, end)| data.get(start..end));
    bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).map_or(Raw::Broken, Raw::Text)
}

impl<'a> Raw<'a> {
    fn describe(self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Float(value) => format!("{value:?}"),
            Self::Int(value) => value.to_string(),
            Self::Large(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("the string {:?}", crate::json::shorten(text)),
            Self::Broken => "a broken value".to_owned(),
        }
    }

    /// As a JSON reader would have given it to a feature. NaN is what `null` is in JSON.
    #[inline]
    #[allow(clippy::cast_precision_loss, reason = "the nearest double, as of a number in a body")]
    fn cell(self, feature: &'a Feature) -> Option<Cell<'a>> {
        match self {
            Self::Null => feature.missing(),
            Self::Float(value) if value.is_nan() => feature.missing(),
            Self::Float(value) => feature.number(value),
            Self::Int(value) => feature.integer(value),
            Self::Large(value) => feature.number(value as f64).filter(|cell| matches!(cell, Cell::Float(_))),
            Self::Bool(value) => feature.truth(value),
            Self::Text(text) => feature.text(Cow::Borrowed(text)),
            Self::Broken => None,
        }
    }
}

/// Rows that were packed, and what was wrong with others: the index among the chosen ones, ascending.
#[derive(Debug)]
pub struct Packed<'a> {
    /// The inputs in the order of the graph, without the bad rows.
    pub columns: Vec<Column<'a>>,
    /// Rows in them.
    pub rows: usize,
    /// The bad rows.
    pub faults: Vec<(usize, Error)>,
}

impl Schema {
    /// For each feature the column that it takes: by name, or by position where the table has no names.
    ///
    /// # Errors
    /// At a column that no version knows, at one that comes twice, and at a feature without column and default.
    pub fn bind(&self, names: Option<&[String]>, width: usize, known: &Names) -> Result<Vec<Option<usize>>> {
        let Some(names) = names else {
            return if width == self.len() {
                Ok((0..width).map(Some).collect())
            } else {
                Err(ErrorKind::FeatureCount { expected: self.len(), found: width }.into())
            };
        };
        if !self.takes_objects() {
            return Err(ErrorKind::Unnamed(self.len()).into());
        }
        let mut bound = vec![None; self.len()];
        for (column, name) in names.iter().enumerate() {
            match self.names.get(name.as_str()) {
                Some(&index) if bound[index].is_some() => return Err(ErrorKind::DuplicateKey(name.clone()).into()),
                Some(&index) => bound[index] = Some(column),
                None if known.contains_key(name.as_str()) => {}
                None => return Err(Error { position: None, ..self.unknown(name, known, 0) }),
            }
        }
        let missing =
            self.features.iter().zip(&bound).position(|(feature, at)| at.is_none() && feature.default.is_none());
        match missing {
            Some(index) => Err(ErrorKind::MissingFeature(self.features[index].label(index)).into()),
            None => Ok(bound),
        }
    }

    /// Pack rows of a table; `bound` comes from `bind`. Unless bad rows are skipped, the first one ends it.
    #[must_use]
    pub fn pack_table<'a>(
        &'a self,
        sources: &[Source<'a>],
        bound: &[Option<usize>],
        chosen: Chosen<'_>,
        skip: bool,
    ) -> Packed<'a> {
        if let Some(values) = self.copy_rows(sources, bound, chosen) {
            return Packed { columns: vec![Column::F32(values)], rows: chosen.len(), faults: Vec::new() };
        }
        let mut rows = self.rows(chosen.len());
        self.resize(&mut rows, chosen.len());
        let mut columns = rows.into_columns();
        let mut faults = Vec::new();
        for from in (0..chosen.len()).step_by(BLOCK) {
            let to = chosen.len().min(from + BLOCK);
            self.pack_block(sources, bound, chosen.part(from, to), from, &mut columns, &mut faults);
            if !faults.is_empty() && !skip {
                break;
            }
        }
        // Found feature by feature within a block; the first feature of a row speaks for it.
        faults.sort_by_key(|(row, _)| *row);
        faults.dedup_by_key(|(row, _)| *row);
        let gone: Vec<usize> = faults.iter().map(|(row, _)| *row).collect();
        if !gone.is_empty() {
            for column in &mut columns {
                column.remove(self.width(), &gone);
            }
        }
        Packed { columns, rows: chosen.len() - gone.len(), faults }
    }

    /// Rows that lie in memory as the matrix wants them, copied whole; None where they do not, or one has a value
    /// that has to be looked at.
    fn copy_rows(&self, sources: &[Source<'_>], bound: &[Option<usize>], chosen: Chosen<'_>) -> Option<Vec<f32>> {
        let width = self.len();
        let first = sources.get((*bound.first()?)?)?;
        let Values::Numbers(Slice::F32(values)) = first.values else { return None };
        let side_by_side = self.singles
            && self.features.iter().all(Feature::is_float)
            && bound.iter().enumerate().all(|(index, source)| {
                source.and_then(|source| sources.get(source)).is_some_and(|source| {
                    source.valid.is_none()
                        && source.stride == first.stride
                        && source.start.checked_sub(index) == Some(first.start)
                        && matches!(source.values, Values::Numbers(Slice::F32(other)) if std::ptr::eq(other, values))
                })
            });
        if !side_by_side {
            return None;
        }
        let mut copied = Vec::with_capacity(chosen.len().checked_mul(width)?);
        let place = |row: usize| row.checked_mul(first.stride)?.checked_add(first.start);
        match chosen {
            Chosen::Range(row, count) if first.stride == width => {
                let from = place(row)?;
                copied.extend_from_slice(values.get(from..from.checked_add(count.checked_mul(width)?)?)?);
            }
            _ => {
                for index in 0..chosen.len() {
                    let from = place(chosen.row(index))?;
                    copied.extend_from_slice(values.get(from..from.checked_add(width)?)?);
                }
            }
        }
        let fits = copied.iter().fold(true, |fits, value| fits & value.is_finite());
        fits.then_some(copied)
    }

    fn pack_block<'a>(
        &'a self,
        sources: &[Source<'a>],
        bound: &[Option<usize>],
        chosen: Chosen<'_>,
        from: usize,
        columns: &mut [Column<'a>],
        faults: &mut Vec<(usize, Error)>,
    ) {
        for (index, feature) in self.features.iter().enumerate() {
            let (column, start, stride) = match self.layout {
                Layout::Matrix => (&mut columns[0], from * self.len() + index, self.len()),
                Layout::Columns => (&mut columns[index], from, 1),
            };
            let source = bound.get(index).copied().flatten().and_then(|source| sources.get(source));
            let Some(source) = source else {
                let Some(default) = &feature.default else { continue };
                for row in 0..chosen.len() {
                    column.put(start + row * stride, default.clone());
                }
                continue;
            };
            if feature.is_float()
                && source.valid.is_none()
                && let Column::F32(values) = &mut *column
                && source.singles(chosen, values.get_mut(start..).unwrap_or_default(), stride)
            {
                continue;
            }
            for row in 0..chosen.len() {
                let raw = source.raw(chosen.row(row));
                let done = raw.cell(feature).is_some_and(|cell| column.put(start + row * stride, cell));
                if !done {
                    faults.push((from + row, feature.mismatch(index, raw.describe())));
                }
            }
        }
    }
}

/// Values of a table.
trait Value: Copy {
    /// The nearest single; NaN for what is no number.
    fn single(self) -> f32;

    /// As it came.
    fn raw<'a>(self) -> Raw<'a>;
}

macro_rules! numbers {
    ($raw:expr => $($type:ty)*) => {
        $(impl Value for $type {
            #[inline]
            #[allow(
                clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_lossless,
                reason = "the nearest single, by way of the nearest double, as of a number in a body"
            )]
            fn single(self) -> f32 {
                self as f64 as f32
            }

            #[inline]
            fn raw<'a>(self) -> Raw<'a> {
                $raw(self.into())
            }
        })*
    };
}

numbers!(Raw::Float => f32 f64);
numbers!(Raw::Int => i8 i16 i32 i64 u8 u16 u32);
numbers!(|value: u64| i64::try_from(value).map_or(Raw::Large(value), Raw::Int) => u64);

impl Value for bool {
    fn single(self) -> f32 {
        f32::NAN
    }

    fn raw<'a>(self) -> Raw<'a> {
        Raw::Bool(self)
    }
}

impl Source<'_> {
    /// Copy numbers as singles into every `stride`th place; false where one of them is none that fits.
    #[inline]
    fn singles(&self, chosen: Chosen<'_>, places: &mut [f32], stride: usize) -> bool {
        match self.values {
            Values::Numbers(slice) => with_values!(slice, values => self.copy(values, chosen, places, stride)),
            _ => false,
        }
    }

    #[inline]
    fn copy<T: Value>(&self, values: &[T], chosen: Chosen<'_>, places: &mut [f32], stride: usize) -> bool {
        let mut fits = true;
        let mut set = |place: &mut f32, value: T| {
            *place = value.single();
            fits &= place.is_finite();
        };
        let places = places.iter_mut().step_by(stride).take(chosen.len());
        match chosen {
            Chosen::Range(row, count) if self.stride == 1 => {
                let start = self.start.saturating_add(row);
                let Some(values) = values.get(start..start.saturating_add(count)) else { return false };
                places.zip(values).for_each(|(place, value)| set(place, *value));
            }
            _ => {
                for (index, place) in places.enumerate() {
                    let at = chosen.row(index).checked_mul(self.stride).and_then(|at| at.checked_add(self.start));
                    let Some(value) = at.and_then(|at| values.get(at)) else { return false };
                    set(place, *value);
                }
            }
        }
        fits
    }
}
