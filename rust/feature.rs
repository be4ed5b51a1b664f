//! One feature: what a schema says of it, and its value read from JSON.

use std::borrow::Cow;

use crate::columns::{Cell, Column, Element};
use crate::error::{Error, ErrorKind, Result};
use crate::json::{Reader, shorten};
use crate::names::{Names, number};

/// What a feature may be.
#[derive(Debug, Clone)]
enum Kind {
    Float { nullable: bool },
    Int,
    Bool,
    Category { values: Vec<Box<str>>, index: Names },
    Text,
}

/// A default value, as it comes from a schema.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// A float.
    Float(f64),
    /// An integer.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// A string, or one of the values of a category.
    Text(String),
}

/// One feature as a schema describes it.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// Its name; empty where the features of a version have none.
    pub name: String,
    /// `float`, `int`, `bool`, `category` or `string`.
    pub kind: String,
    /// The values of a category.
    pub values: Vec<String>,
    /// What stands for it where it is not sent.
    pub default: Option<Scalar>,
    /// Whether `null` is NaN (floats only).
    pub nullable: bool,
}

/// One feature, ready to be read.
#[derive(Debug, Clone)]
pub struct Feature {
    /// Its name.
    pub name: Box<str>,
    /// The name in quotes and a colon, as they stand in a body; empty for names that need escapes.
    pub token: Box<str>,
    kind: Kind,
    /// The type of the input that it goes into.
    pub element: Element,
    /// What stands for it where it is not sent.
    pub default: Option<Cell<'static>>,
}

impl Kind {
    /// `float` is what a feature is called that was only named: so its input says whether it is an integer or a bool.
    fn new(description: &Description, element: Element) -> std::result::Result<Self, String> {
        let kind = match (description.kind.as_str(), element) {
            ("float", Element::F32 | Element::F64) => Self::Float { nullable: description.nullable },
            ("float" | "int", Element::I32 | Element::I64) | ("int", Element::F32 | Element::F64) => Self::Int,
            ("float", Element::Bool)
            | ("bool", Element::F32 | Element::F64 | Element::I32 | Element::I64 | Element::Bool) => Self::Bool,
            ("category", Element::F32 | Element::F64 | Element::I32 | Element::I64 | Element::Text) => {
                let values: Vec<Box<str>> = description.values.iter().map(|value| value.as_str().into()).collect();
                let index = number(description.values.iter().map(String::as_str));
                Self::Category { values, index }
            }
            ("string", Element::Text) => Self::Text,
            (kind, element) => {
                let name = &description.name;
                return Err(format!("feature {name:?} of type {kind} does not fit an input of {element}"));
            }
        };
        Ok(kind)
    }

    /// What a value of this kind is, for an error.
    fn expected(&self, element: Element) -> String {
        match self {
            Self::Float { nullable: true } => format!("expected a number or null that fits {element}"),
            Self::Float { nullable: false } => format!("expected a number that fits {element}"),
            Self::Int => format!("expected an integer that fits {element}"),
            Self::Bool => "expected true or false".to_owned(),
            Self::Text => "expected a string".to_owned(),
            Self::Category { values, .. } => {
                let shown: Vec<String> = values.iter().take(10).map(|value| format!("{:?}", shorten(value))).collect();
                let more = if values.len() > 10 { ", ..." } else { "" };
                format!("expected one of {}{more}", shown.join(", "))
            }
        }
    }

    /// The value that stands next, if it is one of this kind and not a float, which is read faster.
    fn read<'a>(&'a self, reader: &mut Reader<'a>) -> Result<Option<Cell<'a>>> {
        let next = reader.peek();
        let cell = match self {
            Self::Float { nullable: true } if reader.take_word("null") => Some(Cell::Missing),
            Self::Int if matches!(next, Some(b'-' | b'0'..=b'9')) => reader.number()?.to_i64().map(Cell::Int),
            Self::Bool if reader.take_word("true") => Some(Cell::Bool(true)),
            Self::Bool if reader.take_word("false") => Some(Cell::Bool(false)),
            Self::Category { .. } | Self::Text if next == Some(b'"') => self.text(reader.string()?),
            _ => None,
        };
        Ok(cell)
    }

    /// A text as a string, or as one of the values.
    fn text<'a>(&'a self, text: Cow<'a, str>) -> Option<Cell<'a>> {
        match self {
            Self::Category { values, index } => {
                let index = *index.get(&*text)?;
                Some(Cell::Category(i64::try_from(index).ok()?, Cow::Borrowed(values.get(index)?)))
            }
            _ => Some(Cell::Text(text)),
        }
    }

    /// A default as a cell, if it is a value of this kind.
    fn default(&self, default: &Scalar) -> Option<Cell<'static>> {
        let cell = match (self, default) {
            (Self::Float { .. }, Scalar::Float(value)) if value.is_nan() => Cell::Missing,
            (Self::Float { .. }, Scalar::Float(value)) => Cell::Float(*value),
            #[allow(clippy::cast_precision_loss, reason = "as a number in a body would be rounded")]
            (Self::Float { .. }, Scalar::Int(value)) => Cell::Float(*value as f64),
            (Self::Int, Scalar::Int(value)) => Cell::Int(*value),
            #[allow(clippy::cast_possible_truncation, reason = "whole and in range")]
            (Self::Int, Scalar::Float(value)) if value.fract() == 0.0 && value.abs() < 9.0e15 => {
                Cell::Int(*value as i64)
            }
            (Self::Bool, Scalar::Bool(value)) => Cell::Bool(*value),
            (Self::Text | Self::Category { .. }, Scalar::Text(text)) => {
                self.text(Cow::Owned(text.clone()))?.into_owned()
            }
            _ => return None,
        };
        Some(cell)
    }
}

impl Feature {
    /// Compile a description for an input of some type.
    ///
    /// # Errors
    /// With a sentence, where types or default do not go together.
    pub fn new(description: &Description, element: Element) -> std::result::Result<Self, String> {
        let name = description.name.as_str();
        let kind = Kind::new(description, element)?;
        let fits = |cell: &Cell<'static>| element.column(1).put(0, cell.clone());
        let default = match &description.default {
            None => None,
            Some(scalar) => match kind.default(scalar).filter(fits) {
                Some(cell) => Some(cell),
                None => {
                    return Err(format!("default of feature {name:?}: {}, found {scalar:?}", kind.expected(element)));
                }
            },
        };
        let plain = name.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\');
        let token = if plain { format!("\"{name}\":") } else { String::new() };
        Ok(Self { name: name.into(), token: token.into(), kind, element, default })
    }

    /// Read the value that stands next into a cell. `index` names a feature that has no name.
    ///
    /// # Errors
    /// Where it is no JSON, or does not fit.
    #[inline]
    pub fn read<'a>(
        &'a self,
        index: usize,
        reader: &mut Reader<'a>,
        column: &mut Column<'a>,
        cell: usize,
    ) -> Result<()> {
        let next = reader.peek();
        let start = reader.position();
        let done = match (&self.kind, next) {
            (Kind::Float { .. }, Some(b'-' | b'0'..=b'9')) => column.put_double(cell, reader.double()?),
            _ => self.kind.read(reader)?.is_some_and(|value| column.put(cell, value)),
        };
        if done { Ok(()) } else { Err(self.refuse(index, &reader.from_position(start))) }
    }

    /// The same for a cell of a buffer of singles.
    ///
    /// # Errors
    /// As `read`.
    pub fn read_single<'a>(&'a self, index: usize, reader: &mut Reader<'a>, cell: &mut f32) -> Result<()> {
        let mut column = Column::F32(vec![0.0]);
        self.read(index, reader, &mut column, 0)?;
        if let Column::F32(values) = column {
            *cell = values[0];
        }
        Ok(())
    }

    #[cold]
    fn refuse(&self, index: usize, reader: &Reader<'_>) -> Error {
        Error { position: Some(reader.position()), ..self.mismatch(index, reader.describe()) }
    }

    /// The error for a value that does not fit.
    #[cold]
    #[must_use]
    pub fn mismatch(&self, index: usize, found: String) -> Error {
        let expected = self.kind.expected(self.element);
        ErrorKind::Value { feature: self.label(index), expected, found }.into()
    }

    /// Whether it takes any number.
    #[must_use]
    pub fn is_float(&self) -> bool {
        matches!(self.kind, Kind::Float { .. })
    }

    /// What `null` is to it; None where it may not be null.
    #[must_use]
    pub fn missing<'a>(&self) -> Option<Cell<'a>> {
        matches!(self.kind, Kind::Float { nullable: true }).then_some(Cell::Missing)
    }

    /// What a number is to it; None where it takes none, or only whole ones and this is not.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "whole and in range")]
    pub fn number<'a>(&self, value: f64) -> Option<Cell<'a>> {
        match self.kind {
            Kind::Float { .. } => Some(Cell::Float(value)),
            Kind::Int if value.fract() == 0.0 && value.abs() < 9.2e18 => Some(Cell::Int(value as i64)),
            _ => None,
        }
    }

    /// What an integer is to it.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "the nearest double, as of a number in a body")]
    pub fn integer<'a>(&self, value: i64) -> Option<Cell<'a>> {
        match self.kind {
            Kind::Float { .. } => Some(Cell::Float(value as f64)),
            Kind::Int => Some(Cell::Int(value)),
            _ => None,
        }
    }

    /// What a truth value is to it.
    #[must_use]
    pub fn truth<'a>(&self, value: bool) -> Option<Cell<'a>> {
        matches!(self.kind, Kind::Bool).then_some(Cell::Bool(value))
    }

    /// What a text is to it.
    #[must_use]
    pub fn text<'a>(&'a self, text: Cow<'a, str>) -> Option<Cell<'a>> {
        matches!(self.kind, Kind::Category { .. } | Kind::Text).then(|| self.kind.text(text))?
    }

    /// The name, or the index where it has none.
    #[must_use]
    pub fn label(&self, index: usize) -> String {
        if self.name.is_empty() { index.to_string() } else { self.name.to_string() }
    }
}
