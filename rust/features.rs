//! Feature schemas, and rows of JSON packed by them into the buffers that a model takes.

use crate::columns::{Column, Element};
use crate::error::{Error, ErrorKind, Result};
use crate::feature::{Description, Feature};
use crate::json::{Reader, shorten};
use crate::names::{Names, nearest, number};

/// How the features of a row lie in the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One buffer, the features of a row side by side.
    Matrix,
    /// One buffer for each feature.
    Columns,
}

/// The features of one version in their order, and how they lie in its inputs.
#[derive(Debug, Clone)]
pub struct Schema {
    pub(crate) layout: Layout,
    pub(crate) features: Vec<Feature>,
    pub(crate) names: Names,
    takes_objects: bool,
    /// Whether all of it is one buffer of singles.
    pub(crate) singles: bool,
}

/// Rows that are being packed.
#[derive(Debug)]
pub struct Rows<'a> {
    /// The inputs in the order of the graph.
    columns: Vec<Column<'a>>,
    rows: usize,
}

impl<'a> Rows<'a> {
    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The inputs in the order of the graph.
    #[must_use]
    pub fn into_columns(self) -> Vec<Column<'a>> {
        self.columns
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
        let singles = layout == Layout::Matrix
            && features.iter().all(|feature| feature.is_float() && feature.element == Element::F32);
        Ok(Self { layout, features, names, takes_objects, singles })
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

    /// Whether its features have names, so that a row may be an object.
    #[must_use]
    pub fn takes_objects(&self) -> bool {
        self.takes_objects
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
        self.resize(rows, row + 1);
        match reader.peek() {
            Some(b'[') => self.pack_list(reader, rows, row),
            Some(b'{') if self.takes_objects => self.pack_object(reader, known, rows, row),
            Some(b'{') => Err(Error::at(ErrorKind::Unnamed(self.len()), reader.position())),
            _ => Err(reader.unexpected("expected an object or a list of features")),
        }
    }

    /// Lengthen with zeros, or shorten.
    pub(crate) fn resize(&self, rows: &mut Rows<'_>, count: usize) {
        rows.rows = count;
        for column in &mut rows.columns {
            column.resize(count * self.width());
        }
    }

    /// Take rows out; `gone` has their indices, ascending.
    pub(crate) fn remove(&self, rows: &mut Rows<'_>, gone: &[usize]) {
        if !gone.is_empty() {
            rows.rows -= gone.len();
            for column in &mut rows.columns {
                column.remove(self.width(), gone);
            }
        }
    }

    /// The buffer and the cell of a feature in a row.
    #[inline]
    pub(crate) fn place<'r, 'a>(
        &self,
        rows: &'r mut Rows<'a>,
        row: usize,
        index: usize,
    ) -> (&'r mut Column<'a>, usize) {
        match self.layout {
            Layout::Matrix => (&mut rows.columns[0], row * self.features.len() + index),
            Layout::Columns => (&mut rows.columns[index], row),
        }
    }

    /// Read the value that stands next into its cell.
    #[inline]
    fn value<'a>(&'a self, reader: &mut Reader<'a>, rows: &mut Rows<'a>, row: usize, index: usize) -> Result<()> {
        let (column, cell) = self.place(rows, row, index);
        self.features[index].read(index, reader, column, cell)
    }

    /// The cells of a row where all of it is one buffer of singles, else none.
    #[inline]
    fn cells<'r>(&self, rows: &'r mut Rows<'_>, row: usize) -> &'r mut [f32] {
        match rows.columns.first_mut() {
            Some(Column::F32(values)) if self.singles => values.get_mut(row * self.len()..).unwrap_or_default(),
            _ => &mut [],
        }
    }

    fn pack_list<'a>(&'a self, reader: &mut Reader<'a>, rows: &mut Rows<'a>, row: usize) -> Result<()> {
        let start = reader.position();
        reader.require(b'[', "expected a list")?;
        let mut more = reader.first(b']');
        let mut found = 0;
        // Nearly always all of a row is plain decimals.
        for cell in self.cells(rows, row) {
            if !more {
                break;
            }
            let Some(value) = reader.plain() else { break };
            *cell = single(value);
            found += 1;
            more = reader.more(b']')?;
        }
        while more {
            if found < self.features.len() {
                self.value(reader, rows, row, found)?;
            } else {
                reader.skip()?;
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
        // While the keys come as a serializer writes them, in the schema's order, nothing needs to be looked up.
        for cell in self.cells(rows, row) {
            if !more || !self.next_token(reader, seen.next) {
                break;
            }
            match reader.plain() {
                Some(value) => *cell = single(value),
                None => self.features[seen.next].read_single(seen.next, reader, cell)?,
            }
            seen.next += 1;
            more = reader.more(b'}')?;
        }
        while more {
            reader.peek();
            let at = reader.position();
            match self.name(reader, known, &mut seen, &mut ignored)? {
                Some(index) => self.value(reader, rows, row, index)?,
                None => reader.skip()?,
            }
            debug_assert!(reader.position() > at, "every turn takes bytes");
            more = reader.more(b'}')?;
        }
        self.fill(&seen, rows, row, start)
    }

    /// Take the key of a feature and its colon, if they stand next without space between them.
    #[inline]
    fn next_token(&self, reader: &mut Reader<'_>, index: usize) -> bool {
        reader.peek();
        let token = self.features.get(index).map_or("", |feature| &*feature.token);
        !token.is_empty() && reader.take_exact(token.as_bytes())
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
        let start = reader.position();
        if self.next_token(reader, seen.next) {
            let next = seen.next;
            return if seen.insert(next, self.len()) {
                Ok(Some(next))
            } else {
                Err(duplicate(&self.features[next].name, start))
            };
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

    /// The error for a name that no version knows.
    #[cold]
    pub(crate) fn unknown(&self, key: &str, known: &Names, position: usize) -> Error {
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

/// The nearest single; every plain decimal is in their range.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "that is what nearest means")]
fn single(value: f64) -> f32 {
    value as f32
}

/// The error for a name that comes twice.
#[cold]
pub(crate) fn duplicate(key: &str, position: usize) -> Error {
    Error::at(ErrorKind::DuplicateKey(shorten(key)), position)
}
