//! The buffers that features are packed into.

use std::borrow::Cow;
use std::fmt;

/// The type of the elements of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// 64-bit floats.
    F64,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// Truth values.
    Bool,
    /// Strings.
    Text,
}

/// One value on its way into a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    /// `null` where the schema allows it: NaN.
    Missing,
    /// A number; an infinity stands for one that no double holds, and fits no column.
    Float(f64),
    /// An integer.
    Int(i64),
    /// A truth value: 1 or 0 among numbers.
    Bool(bool),
    /// A category: its index among numbers, its text among strings.
    Category(i64, Cow<'a, str>),
    /// A string.
    Text(Cow<'a, str>),
}

/// The values of one input; strings are borrowed from the body where they have no escapes.
#[derive(Debug, Clone, PartialEq)]
pub enum Column<'a> {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Strings.
    Text(Vec<Cow<'a, str>>),
}

impl fmt::Display for Element {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::Bool => "bool",
            Self::Text => "object",
        })
    }
}

impl Element {
    /// The element type that `NumPy` calls by this name; `object` for strings.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F64, Self::I32, Self::I64, Self::Bool, Self::Text]
            .into_iter()
            .find(|element| element.to_string() == name)
    }

    /// An empty column with room for some values.
    #[must_use]
    pub fn with_capacity<'a>(self, capacity: usize) -> Column<'a> {
        match self {
            Self::F32 => Column::F32(Vec::with_capacity(capacity)),
            Self::F64 => Column::F64(Vec::with_capacity(capacity)),
            Self::I32 => Column::I32(Vec::with_capacity(capacity)),
            Self::I64 => Column::I64(Vec::with_capacity(capacity)),
            Self::Bool => Column::Bool(Vec::with_capacity(capacity)),
            Self::Text => Column::Text(Vec::with_capacity(capacity)),
        }
    }

    /// A column of zeros or empty strings.
    #[must_use]
    pub fn column<'a>(self, length: usize) -> Column<'a> {
        let mut column = self.with_capacity(length);
        column.resize(length);
        column
    }
}

impl Cell<'_> {
    /// The same value, owning its text.
    #[must_use]
    pub fn into_owned(self) -> Cell<'static> {
        match self {
            Self::Missing => Cell::Missing,
            Self::Float(value) => Cell::Float(value),
            Self::Int(value) => Cell::Int(value),
            Self::Bool(value) => Cell::Bool(value),
            Self::Category(index, text) => Cell::Category(index, Cow::Owned(text.into_owned())),
            Self::Text(text) => Cell::Text(Cow::Owned(text.into_owned())),
        }
    }

    /// An integer, if it is one among numbers.
    #[inline]
    fn integer(&self) -> Option<i64> {
        match self {
            Self::Int(value) | Self::Category(value, _) => Some(*value),
            Self::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// A double, if it is a number that a double holds.
    #[inline]
    #[allow(clippy::cast_precision_loss, reason = "a float input takes the nearest float")]
    fn double(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Missing => Some(f64::NAN),
            _ => self.integer().map(|value| value as f64),
        }
    }
}

/// Where a value goes, if it became one of the column's type.
#[inline]
fn set<T>(values: &mut [T], index: usize, value: Option<T>) -> bool {
    match (values.get_mut(index), value) {
        (Some(place), Some(value)) => {
            *place = value;
            true
        }
        _ => false,
    }
}

/// The nearest single, unless the number is beyond its range.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "checked below")]
fn single(value: f64) -> Option<f32> {
    let nearest = value as f32;
    Some(nearest).filter(|nearest| !nearest.is_infinite())
}

/// Close the gaps of rows that go, in one pass.
fn remove<T>(values: &mut Vec<T>, width: usize, gone: &[usize]) {
    let mut gone = gone.iter().copied().peekable();
    let mut index = 0;
    values.retain(|_| {
        let row = index / width.max(1);
        index += 1;
        while gone.next_if(|&next| next < row).is_some() {}
        gone.peek() != Some(&row)
    });
}

impl<'a> Column<'a> {
    /// Put a number into its place; false where the column holds no floats, it is out of range, or there is no place.
    #[inline]
    pub fn put_double(&mut self, index: usize, value: f64) -> bool {
        match self {
            Self::F32(values) => set(values, index, single(value)),
            Self::F64(values) => set(values, index, Some(value).filter(|value| !value.is_infinite())),
            _ => false,
        }
    }

    /// Put a value into its place; false where it does not fit the type, or there is no such place.
    pub fn put(&mut self, index: usize, cell: Cell<'a>) -> bool {
        match self {
            Self::F32(_) | Self::F64(_) => cell.double().is_some_and(|value| self.put_double(index, value)),
            Self::I32(values) => set(values, index, cell.integer().and_then(|value| i32::try_from(value).ok())),
            Self::I64(values) => set(values, index, cell.integer()),
            Self::Bool(values) => match cell {
                Cell::Bool(value) => set(values, index, Some(value)),
                _ => false,
            },
            Self::Text(values) => match cell {
                Cell::Text(text) | Cell::Category(_, text) => set(values, index, Some(text)),
                _ => false,
            },
        }
    }

    /// Take rows of `width` values out; `gone` has their indices, ascending.
    pub fn remove(&mut self, width: usize, gone: &[usize]) {
        match self {
            Self::F32(values) => remove(values, width, gone),
            Self::F64(values) => remove(values, width, gone),
            Self::I32(values) => remove(values, width, gone),
            Self::I64(values) => remove(values, width, gone),
            Self::Bool(values) => remove(values, width, gone),
            Self::Text(values) => remove(values, width, gone),
        }
    }

    /// Lengthen or shorten it; new values are zero, false or empty.
    pub fn resize(&mut self, length: usize) {
        match self {
            Self::F32(values) => values.resize(length, 0.0),
            Self::F64(values) => values.resize(length, 0.0),
            Self::I32(values) => values.resize(length, 0),
            Self::I64(values) => values.resize(length, 0),
            Self::Bool(values) => values.resize(length, false),
            Self::Text(values) => values.resize(length, Cow::Borrowed("")),
        }
    }
}
