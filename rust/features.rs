//! Feature schemas, and rows of JSON packed by them into the buffers that a model takes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64;

use crate::columns::{Cell, Column, Element};
use crate::error::{Error, ErrorKind, Result};
use crate::json::{Reader, shorten};
use crate::nearest::nearest;

/// Hashes a name in one call. Only names of schemas are ever inserted, so nobody can choose them to collide.
#[derive(Debug, Clone, Copy, Default)]
pub struct NameHasher(u64);

impl Hasher for NameHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= xxh3_64(bytes);
    }

    #[inline]
    fn write_u8(&mut self, _: u8) {} // the end mark of a string

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Numbers by name.
pub type Names = HashMap<Box<str>, usize, BuildHasherDefault<NameHasher>>;

/// Number names in their order.
#[must_use]
pub fn number<'a>(names: impl IntoIterator<Item = &'a str>) -> Names {
    names.into_iter().enumerate().map(|(index, name)| (name.into(), index)).collect()
}

/// How the features of a row lie in the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One buffer, the features of a row side by side.
    Matrix,
    /// One buffer for each feature.
    Columns,
}

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
struct Feature {
    name: Box<str>,
    /// The name in quotes, as it stands in a body; empty for names that need escapes.
    quoted: Box<str>,
    kind: Kind,
    element: Element,
    default: Option<Cell<'static>>,
}

/// The features of one version in their order, and how they lie in its inputs.
#[derive(Debug, Clone)]
pub struct Schema {
    layout: Layout,
    features: Vec<Feature>,
    names: Names,
    takes_objects: bool,
}

/// Rows that are being packed.
#[derive(Debug)]
pub struct Rows<'a> {
    /// The inputs in the order of the graph.
    pub columns: Vec<Column<'a>>,
    rows: usize,
}

impl Kind {
    fn new(description: &Description, element: Element) -> std::result::Result<Self, String> {
        let kind = match (description.kind.as_str(), element) {
            ("float", Element::F32 | Element::F64) => Self::Float { nullable: description.nullable },
            ("float" | "int", Element::I32 | Element::I64) | ("int", Element::F32 | Element::F64) => Self::Int,
            ("bool", Element::F32 | Element::F64 | Element::I32 | Element::I64 | Element::Bool) => Self::Bool,
            ("category", Element::F32 | Element::F64 | Element::I32 | Element::I64 | Element::Text) => {
                let values: Vec<Box<str>> = description.values.iter().map(|value| value.as_str().into()).collect();
                let index = number(description.values.iter().map(String::as_str));
                Self::Category { values, index }
            }
            ("string", Element::Text) => Self::Text,
            (kind, element) => return Err(format!("a feature of type {kind:?} does not fit an input of {element:?}")),
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
    fn new(description: &Description, element: Element) -> std::result::Result<Self, String> {
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
        let quoted = if plain { format!("\"{name}\"") } else { String::new() };
        Ok(Self { name: name.into(), quoted: quoted.into(), kind, element, default })
    }

    /// Read the value that stands next into a cell.
    #[inline]
    fn read<'a>(&'a self, index: usize, reader: &mut Reader<'a>, column: &mut Column<'a>, cell: usize) -> Result<()> {
        let next = reader.peek();
        let start = reader.position();
        let done = match (&self.kind, next) {
            (Kind::Float { .. }, Some(b'-' | b'0'..=b'9')) => column.put_double(cell, reader.double()?),
            _ => self.kind.read(reader)?.is_some_and(|value| column.put(cell, value)),
        };
        if done { Ok(()) } else { Err(self.refuse(index, &reader.from_position(start))) }
    }

    #[cold]
    fn refuse(&self, index: usize, reader: &Reader<'_>) -> Error {
        let kind = ErrorKind::Value {
            feature: self.label(index),
            expected: self.kind.expected(self.element),
            found: reader.describe(),
        };
        Error::at(kind, reader.position())
    }

    /// The name, or the index where it has none.
    fn label(&self, index: usize) -> String {
        if self.name.is_empty() { index.to_string() } else { self.name.to_string() }
    }
}

/// Which features of a row have come. While they come in order, one number says it all.
#[derive(Debug, Default)]
struct Seen {
    next: usize,
    bits: Vec<u64>,
}

impl Seen {
    /// Note a feature that came out of order, or after one that did; false where it had come before.
    fn insert(&mut self, index: usize, count: usize) -> bool {
        if self.bits.is_empty() {
            self.bits.resize(count.div_ceil(64), 0);
            for earlier in 0..self.next {
                self.bits[earlier / 64] |= 1 << (earlier % 64);
            }
        }
        self.next = index + 1;
        let bit = 1 << (index % 64);
        let fresh = self.bits[index / 64] & bit == 0;
        self.bits[index / 64] |= bit;
        fresh
    }

    fn contains(&self, index: usize) -> bool {
        if self.bits.is_empty() { index < self.next } else { self.bits[index / 64] >> (index % 64) & 1 == 1 }
    }
}

impl Schema {
    /// Compile a schema. `elements` holds the type of the one input (matrix), or of each feature (columns).
    ///
    /// # Errors
    /// With a sentence, where types, names, defaults or lengths do not go together.
    pub fn new(
        layout: Layout,
        elements: &[Element],
        descriptions: &[Description],
    ) -> std::result::Result<Self, String> {
        let wanted = if layout == Layout::Matrix { 1 } else { descriptions.len() };
        if elements.len() != wanted {
            return Err(format!("expected {wanted} element types, found {}", elements.len()));
        }
        let features = descriptions
            .iter()
            .enumerate()
            .map(|(i, description)| Feature::new(description, elements[if layout == Layout::Matrix { 0 } else { i }]))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let names = number(features.iter().map(|feature| &*feature.name));
        let takes_objects = !names.contains_key("");
        if takes_objects && names.len() != features.len() {
            return Err("feature names must differ".to_owned());
        }
        Ok(Self { layout, features, names, takes_objects })
    }

    /// Number of features.
    #[must_use]
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// Whether a row has no features at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// Values of a row in each input.
    #[must_use]
    pub fn width(&self) -> usize {
        if self.layout == Layout::Matrix { self.len() } else { 1 }
    }

    /// Buffers without rows.
    #[must_use]
    pub fn rows(&self, capacity: usize) -> Rows<'_> {
        let columns = match (self.layout, self.features.first()) {
            (Layout::Matrix, Some(first)) => vec![first.element.with_capacity(capacity * self.len())],
            (Layout::Matrix, None) => vec![Element::F32.with_capacity(0)],
            (Layout::Columns, _) => {
                self.features.iter().map(|feature| feature.element.with_capacity(capacity)).collect()
            }
        };
        Rows { columns, rows: 0 }
    }

    /// Read the object or list of features that stands next as one more row.
    ///
    /// `known` are the names that other versions may use: they are checked to be JSON and ignored.
    ///
    /// # Errors
    /// Where it is not JSON, or does not fit the schema; the row is incomplete then.
    pub fn pack<'a>(&'a self, reader: &mut Reader<'a>, known: &Names, rows: &mut Rows<'a>) -> Result<()> {
        let row = rows.rows;
        rows.rows += 1;
        for column in &mut rows.columns {
            column.resize(rows.rows * self.width());
        }
        match reader.peek() {
            Some(b'[') => self.pack_list(reader, rows, row),
            Some(b'{') if self.takes_objects => self.pack_object(reader, known, rows, row),
            Some(b'{') => Err(Error::at(ErrorKind::Unnamed(self.len()), reader.position())),
            _ => Err(reader.unexpected("expected an object or a list of features")),
        }
    }

    #[inline]
    fn place<'r, 'a>(&self, rows: &'r mut Rows<'a>, row: usize, index: usize) -> (&'r mut Column<'a>, usize) {
        match self.layout {
            Layout::Matrix => (&mut rows.columns[0], row * self.features.len() + index),
            Layout::Columns => (&mut rows.columns[index], row),
        }
    }

    fn pack_list<'a>(&'a self, reader: &mut Reader<'a>, rows: &mut Rows<'a>, row: usize) -> Result<()> {
        let start = reader.position();
        reader.require(b'[', "expected a list")?;
        let mut more = reader.first(b']');
        let mut found = 0;
        while more {
            match self.features.get(found) {
                Some(feature) => {
                    let (column, cell) = self.place(rows, row, found);
                    feature.read(found, reader, column, cell)?;
                }
                None => reader.skip()?,
            }
            found += 1;
            more = reader.more(b']')?;
        }
        if found == self.len() {
            return Ok(());
        }
        Err(Error::at(ErrorKind::FeatureCount { expected: self.len(), found }, start))
    }

    fn pack_object<'a>(
        &'a self,
        reader: &mut Reader<'a>,
        known: &Names,
        rows: &mut Rows<'a>,
        row: usize,
    ) -> Result<()> {
        let start = reader.position();
        let mut seen = Seen::default();
        let mut ignored = Seen::default();
        reader.require(b'{', "expected an object")?;
        let mut more = reader.first(b'}');
        while more {
            reader.peek();
            let at = reader.position();
            if let Some(index) = self.name(reader, known, &mut seen, &mut ignored)? {
                let feature = &self.features[index];
                let (column, cell) = self.place(rows, row, index);
                feature.read(index, reader, column, cell)?;
            } else {
                reader.skip()?;
            }
            debug_assert!(reader.position() > at, "every turn takes bytes");
            more = reader.more(b'}')?;
        }
        self.fill(&seen, rows, row, start)
    }

    /// Take a key and its colon: the index of its feature, or None where another version may use it.
    #[inline]
    fn name(
        &self,
        reader: &mut Reader<'_>,
        known: &Names,
        seen: &mut Seen,
        ignored: &mut Seen,
    ) -> Result<Option<usize>> {
        let next = seen.next;
        let start = reader.position();
        if let Some(feature) = self.features.get(next)
            && !feature.quoted.is_empty()
            && reader.take_exact(feature.quoted.as_bytes())
        {
            reader.colon()?;
            if seen.bits.is_empty() {
                seen.next += 1;
            } else if !seen.insert(next, self.len()) {
                return Err(duplicate(&feature.name, start));
            }
            return Ok(Some(next));
        }
        let key = reader.key()?;
        if let Some(&index) = self.names.get(&*key) {
            return if seen.insert(index, self.len()) { Ok(Some(index)) } else { Err(duplicate(&key, start)) };
        }
        match known.get(&*key) {
            Some(&index) if ignored.insert(index, known.len()) => Ok(None),
            Some(_) => Err(duplicate(&key, start)),
            None => Err(self.unknown(&key, known, start)),
        }
    }

    #[cold]
    fn unknown(&self, key: &str, known: &Names, position: usize) -> Error {
        let mine = self.features.iter().map(|feature| &*feature.name);
        let nearest = nearest(key, mine.chain(known.keys().map(|name| &**name)));
        Error::at(ErrorKind::UnknownFeature { name: shorten(key), nearest: nearest.map(str::to_owned) }, position)
    }

    /// Defaults for the features that did not come.
    fn fill<'a>(&'a self, seen: &Seen, rows: &mut Rows<'a>, row: usize, start: usize) -> Result<()> {
        let first = if seen.bits.is_empty() { seen.next } else { 0 };
        for (index, feature) in self.features.iter().enumerate().skip(first) {
            if seen.contains(index) {
                continue;
            }
            let Some(default) = &feature.default else {
                return Err(Error::at(ErrorKind::MissingFeature(feature.label(index)), start));
            };
            let (column, cell) = self.place(rows, row, index);
            column.put(cell, default.clone());
        }
        Ok(())
    }
}

#[cold]
fn duplicate(key: &str, position: usize) -> Error {
    Error::at(ErrorKind::DuplicateKey(shorten(key)), position)
}
