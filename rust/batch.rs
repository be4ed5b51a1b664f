//! Many rows at once: each is routed by itself, and packed side by side with the others of its version.

use std::collections::HashSet;

use crate::columns::Column;
use crate::error::{Error, ErrorKind, Result};
use crate::features::{Rows, Schema, duplicate};
use crate::json::{Reader, shorten};
use crate::route::{Choice, Route, Sink, read_entity};

/// The fields of a batch, for an error.
const FIELDS: &str = "a batch takes \"entity_ids\" and either \"rows\" or \"columns\"";

/// Stands for the version of a row whose entity id is none.
pub const NO_VERSION: i32 = -1;

/// What is wrong with a row, or, without one, with the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// The row, counted from 0.
    pub row: Option<usize>,
    /// What is wrong.
    pub error: Error,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self { row: None, error }
    }
}

impl From<ErrorKind> for Fault {
    fn from(kind: ErrorKind) -> Self {
        Error::from(kind).into()
    }
}

/// The rows of one version.
#[derive(Debug)]
pub struct Group<'a> {
    /// Index of the version.
    pub version: usize,
    /// Its inputs in the order of the graph.
    pub columns: Vec<Column<'a>>,
    /// Values of a row in each input.
    pub width: usize,
}

/// Rows that were read, in groups by version. Within a group they keep the order in which they came.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// Index of the version of each row, or [`NO_VERSION`].
    pub versions: Vec<i32>,
    /// Why it answers: an index of `turnout.domain.REASONS`.
    pub reasons: Vec<u8>,
    /// The hash of each row's entity; 0 for none. Empty where nobody bears witness.
    pub entities: Vec<u128>,
    /// The rows that can be answered.
    pub groups: Vec<Group<'a>>,
    /// The rows that cannot, ascending.
    pub faults: Vec<Fault>,
}

/// What a caller wants of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// The version that the request names.
    pub pinned: Option<usize>,
    /// Whether a bad row is noted and passed over; else the first one is the error of the batch.
    pub skip: bool,
    /// Most rows.
    pub most: usize,
}

/// The rows of a version while they are being packed.
#[derive(Debug)]
struct Packing<'a> {
    version: usize,
    rows: Rows<'a>,
}

/// A batch that is being read.
#[derive(Debug)]
struct Packer<'a> {
    route: &'a Route,
    wishes: Wishes,
    versions: Vec<i32>,
    reasons: Vec<u8>,
    entities: Vec<u128>,
    groups: Vec<Packing<'a>>,
    /// Index of its group by index of a version.
    places: Vec<Option<usize>>,
    faults: Vec<Fault>,
}

impl Route {
    /// Read `{"entity_ids"?: [...], "rows": [...]}` or `{..., "columns": {name: [...]}}`, route each row and pack it.
    ///
    /// # Errors
    /// At the first fault in the document, or, unless they are skipped, in a row.
    pub fn prepare_batch<'a>(&'a self, body: &'a [u8], wishes: Wishes) -> std::result::Result<Batch<'a>, Fault> {
        let mut packer = Packer::new(self, wishes);
        packer.read(&mut Reader::new(body)?)?;
        Ok(packer.finish())
    }

    /// Read lines that are bodies of single predictions. Positions in errors are those in the line.
    ///
    /// A bad line is a fault of its row; unless such are skipped, nothing behind the first one is read.
    ///
    /// # Errors
    /// Where there are too many lines.
    pub fn prepare_lines<'a>(&'a self, body: &'a [u8], wishes: Wishes) -> Result<Batch<'a>> {
        let lines = body.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        self.prepare_each(lines, wishes)
    }

    /// The same for bodies that came one by one.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn prepare_each<'a>(&'a self, bodies: impl Iterator<Item = &'a [u8]>, wishes: Wishes) -> Result<Batch<'a>> {
        let mut packer = Packer::new(self, wishes);
        for line in bodies {
            packer.check_count(packer.versions.len() + 1)?;
            if let Err(error) = packer.line(line) {
                packer.faults.push(Fault { row: Some(packer.versions.len() - 1), error });
                if !wishes.skip {
                    break;
                }
            }
        }
        Ok(packer.finish())
    }
}

/// The features of a line, on their way to the group of their version.
struct Line<'p, 'a> {
    packer: &'p mut Packer<'a>,
    /// The group, and how many rows it had.
    before: Option<(usize, usize)>,
}

impl<'a> Sink<'a> for Line<'_, 'a> {
    fn pack(&mut self, choice: Choice, reader: &mut Reader<'a>) -> Result<()> {
        let group = self.packer.group(choice.version)?;
        self.before = Some((group, self.packer.groups[group].rows.len()));
        self.packer.pack(group, reader)
    }
}

impl<'a> Packer<'a> {
    fn new(route: &'a Route, wishes: Wishes) -> Self {
        Self {
            route,
            wishes,
            versions: Vec::new(),
            reasons: Vec::new(),
            entities: Vec::new(),
            groups: Vec::new(),
            places: vec![None; route.len()],
            faults: Vec::new(),
        }
    }

    fn finish(self) -> Batch<'a> {
        let groups = self.groups.into_iter().filter(|group| !group.rows.is_empty()).map(|group| {
            let width = self.route.schema(group.version).map_or(0, Schema::width);
            Group { version: group.version, columns: group.rows.into_columns(), width }
        });
        let entities = if self.route.witnessed() { self.entities } else { Vec::new() };
        let Self { versions, reasons, faults, .. } = self;
        Batch { versions, reasons, entities, groups: groups.collect(), faults }
    }

    fn check_count(&self, rows: usize) -> Result<()> {
        if rows > self.wishes.most { Err(ErrorKind::TooManyRows(self.wishes.most).into()) } else { Ok(()) }
    }

    fn read(&mut self, reader: &mut Reader<'a>) -> std::result::Result<(), Fault> {
        let settled = self.route.settled(self.wishes.pinned);
        let (mut entities, mut rows, mut guessed) = (false, None, false);
        reader.require(b'{', "expected an object with \"rows\" or \"columns\"")?;
        let mut more = reader.first(b'}');
        while more {
            reader.peek();
            let start = reader.position();
            let key = reader.key()?;
            match &*key {
                "entity_ids" if !entities => {
                    entities = true;
                    if let Some((place, true)) = rows
                        && guessed
                    {
                        *self = Self::new(self.route, self.wishes);
                        rows = Some((place, false));
                    }
                    let (start, faults) = (reader.clone(), self.faults.len());
                    self.entities(reader)?;
                    if let Some((place, true)) = rows
                        && self.faults.len() > faults
                    {
                        // Rows of entities that are none were packed already: once more, in the other order.
                        *self = Self::new(self.route, self.wishes);
                        *reader = start;
                        self.entities(reader)?;
                        rows = Some((place, false));
                    }
                }
                "rows" | "columns" if rows.is_none() => {
                    let place = (key == "columns", reader.position());
                    let start = reader.clone();
                    guessed = !entities && !settled;
                    // Most often no entity ids follow; should they, all is read once more.
                    match self.rows_at(reader, place.0, entities) {
                        Ok(()) => rows = Some((place, true)),
                        Err(fault) if !guessed => return Err(fault),
                        Err(_) => {
                            *self = Self::new(self.route, self.wishes);
                            *reader = start;
                            reader.skip()?;
                            rows = Some((place, false));
                        }
                    }
                }
                "entity_ids" | "rows" | "columns" => return Err(duplicate(&key, start).into()),
                _ => {
                    return Err(Error::at(ErrorKind::UnknownField { name: shorten(&key), takes: FIELDS }, start).into());
                }
            }
            more = reader.more(b'}')?;
        }
        reader.end()?;
        match rows {
            Some((_, true)) => Ok(()),
            Some(((columns, start), false)) => self.rows_at(&mut reader.from_position(start), columns, entities),
            None => Err(ErrorKind::MissingRows.into()),
        }
    }

    /// Pack what stands next. Entity ids that come behind rows that did not need them are only counted.
    fn rows_at(&mut self, reader: &mut Reader<'a>, columns: bool, routed: bool) -> std::result::Result<(), Fault> {
        if columns { self.columns(reader, routed) } else { self.rows(reader, routed) }
    }

    /// Note who answers a row, and for whom.
    fn note(&mut self, choice: Choice, entity: Option<u128>) {
        self.versions.push(i32::try_from(choice.version).unwrap_or(NO_VERSION));
        self.reasons.push(choice.reason as u8);
        self.entities.push(entity.unwrap_or(0));
    }

    /// Note a row that nobody answers.
    fn note_none(&mut self) {
        self.versions.push(NO_VERSION);
        self.reasons.push(0);
        self.entities.push(0);
    }

    /// Read entity ids and route each of them; where the rows were packed already, check that there are as many.
    fn entities(&mut self, reader: &mut Reader<'a>) -> std::result::Result<(), Fault> {
        let known = self.versions.len();
        let packed = known > 0;
        let mut row = 0;
        reader.require(b'[', "expected a list of entity ids")?;
        let mut more = reader.first(b']');
        while more {
            reader.peek();
            let start = reader.position();
            let read = read_entity(reader).and_then(|entity| {
                Ok((self.route.choose(entity.id(), self.wishes.pinned)?, self.route.entity(entity.id())))
            });
            self.check_count(row + 1)?;
            match read {
                Ok((_, entity)) if packed => {
                    if let Some(known) = self.entities.get_mut(row) {
                        *known = entity.unwrap_or(0);
                    }
                }
                Ok((choice, entity)) => self.note(choice, entity),
                Err(error) if matches!(error.kind, ErrorKind::NoActiveVersion(_)) => return Err(error.into()),
                Err(error) => {
                    self.refuse(row, error, reader, start)?;
                    if !packed {
                        self.note_none();
                    }
                }
            }
            row += 1;
            more = reader.more(b']')?;
        }
        if packed && row != known { Err(row_count("entity_ids", known, row)) } else { Ok(()) }
    }

    /// Note a row that is not what it should be, and take its value all the same, if it is one.
    #[cold]
    fn refuse(
        &mut self,
        row: usize,
        error: Error,
        reader: &mut Reader<'a>,
        start: usize,
    ) -> std::result::Result<(), Fault> {
        if !self.wishes.skip {
            return Err(Fault { row: Some(row), error });
        }
        *reader = reader.from_position(start);
        reader.skip()?;
        self.faults.push(Fault { row: Some(row), error });
        Ok(())
    }

    /// The index of the group of a version, made when its first row comes.
    #[inline]
    fn group(&mut self, version: usize) -> Result<usize> {
        if let Some(Some(group)) = self.places.get(version) {
            return Ok(*group);
        }
        let rows = self.route.schema(version)?.rows(0);
        self.groups.push(Packing { version, rows });
        self.places[version] = Some(self.groups.len() - 1);
        Ok(self.groups.len() - 1)
    }

    #[inline]
    fn pack(&mut self, group: usize, reader: &mut Reader<'a>) -> Result<()> {
        let group = &mut self.groups[group];
        self.route.schema(group.version)?.pack(reader, self.route.known(), &mut group.rows)
    }

    /// Take the row back that was not packed whole.
    #[cold]
    fn shorten(&mut self, group: usize, rows: usize) {
        let group = &mut self.groups[group];
        if let Ok(schema) = self.route.schema(group.version) {
            schema.resize(&mut group.rows, rows);
        }
    }

    fn line(&mut self, line: &'a [u8]) -> Result<()> {
        self.note_none();
        let (route, pinned, row) = (self.route, self.wishes.pinned, self.versions.len() - 1);
        let mut reader = Reader::new(line)?;
        let mut sink = Line { packer: self, before: None };
        let read = route.read(&mut reader, pinned, &mut sink);
        let before = sink.before;
        match read {
            Ok((choice, entity)) => {
                self.versions[row] = i32::try_from(choice.version).unwrap_or(NO_VERSION);
                self.reasons[row] = choice.reason as u8;
                self.entities[row] = entity.unwrap_or(0);
                Ok(())
            }
            Err(error) => {
                if let Some((group, rows)) = before {
                    self.shorten(group, rows);
                }
                Err(error)
            }
        }
    }

    /// Read rows; `routed` says whether their entities were read before.
    fn rows(&mut self, reader: &mut Reader<'a>, routed: bool) -> std::result::Result<(), Fault> {
        let expected = if routed { self.versions.len() } else { usize::MAX };
        let mut row = 0;
        reader.require(b'[', "expected a list of rows")?;
        let mut more = reader.first(b']');
        while more {
            if row == expected {
                return Err(row_count("rows", expected, row + 1));
            }
            if !routed {
                self.check_count(row + 1)?;
                self.note(self.route.choose(None, self.wishes.pinned)?, None);
            }
            match usize::try_from(self.versions[row]) {
                Ok(version) => self.row(row, version, reader)?,
                Err(_) => reader.skip()?,
            }
            row += 1;
            more = reader.more(b']')?;
        }
        if routed && row != expected { Err(row_count("rows", expected, row)) } else { Ok(()) }
    }

    #[inline]
    fn row(&mut self, row: usize, version: usize, reader: &mut Reader<'a>) -> std::result::Result<(), Fault> {
        let group = self.group(version)?;
        let before = self.groups[group].rows.len();
        reader.peek();
        let start = reader.position();
        match self.pack(group, reader) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.shorten(group, before);
                self.refuse(row, error, reader, start)
            }
        }
    }

    /// Read columns: each value goes into its row, wherever that is.
    fn columns(&mut self, reader: &mut Reader<'a>, routed: bool) -> std::result::Result<(), Fault> {
        if !routed {
            let count = self.count(&mut reader.clone())?;
            for _ in 0..count {
                self.note(self.route.choose(None, self.wishes.pinned)?, None);
            }
        }
        let places = self.spread()?;
        let mut bad = vec![false; places.len()];
        let mut seen: HashSet<Box<str>> = HashSet::new();
        reader.require(b'{', "expected an object of lists")?;
        let mut more = reader.first(b'}');
        while more {
            reader.peek();
            let start = reader.position();
            let name = reader.key()?;
            let targets = self.targets(&name, start)?;
            self.column(&name, &targets, &places, &mut bad, reader)?;
            if !seen.insert(name.as_ref().into()) {
                return Err(duplicate(&name, start).into());
            }
            more = reader.more(b'}')?;
        }
        self.fill(&seen)?;
        self.drop_bad(&places, &bad);
        self.faults.sort_by_key(|fault| fault.row);
        Ok(())
    }

    /// How many values the first list of an object of lists has.
    fn count(&self, reader: &mut Reader<'a>) -> Result<usize> {
        reader.require(b'{', "expected an object of lists")?;
        if !reader.first(b'}') {
            return Ok(0);
        }
        reader.key()?;
        reader.require(b'[', "expected a list of values")?;
        let (mut count, mut more) = (0, reader.first(b']'));
        while more {
            reader.skip()?;
            count += 1;
            self.check_count(count)?;
            more = reader.more(b']')?;
        }
        Ok(count)
    }

    /// Make room for every row; for each its group and its place there.
    fn spread(&mut self) -> Result<Vec<Option<(usize, usize)>>> {
        let mut places = Vec::with_capacity(self.versions.len());
        let mut counts: Vec<usize> = Vec::new();
        for row in 0..self.versions.len() {
            let Ok(version) = usize::try_from(self.versions[row]) else {
                places.push(None);
                continue;
            };
            let group = self.group(version)?;
            counts.resize(self.groups.len(), 0);
            places.push(Some((group, counts[group])));
            counts[group] += 1;
        }
        for (group, count) in self.groups.iter_mut().zip(counts) {
            self.route.schema(group.version)?.resize(&mut group.rows, count);
        }
        Ok(places)
    }

    /// The index of a feature in each group's schema.
    fn targets(&self, name: &str, position: usize) -> Result<Vec<Option<usize>>> {
        let mut targets = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let schema = self.route.schema(group.version)?;
            if !schema.takes_objects() {
                return Err(Error::at(ErrorKind::Unnamed(schema.len()), position));
            }
            let index = schema.names.get(name).copied();
            if index.is_none() && !self.route.known().contains_key(name) {
                return Err(schema.unknown(name, self.route.known(), position));
            }
            targets.push(index);
        }
        Ok(targets)
    }

    fn column(
        &mut self,
        name: &str,
        targets: &[Option<usize>],
        places: &[Option<(usize, usize)>],
        bad: &mut [bool],
        reader: &mut Reader<'a>,
    ) -> std::result::Result<(), Fault> {
        let route = self.route;
        let mut row = 0;
        reader.require(b'[', "expected a list of values")?;
        let mut more = reader.first(b']');
        while more {
            let Some(place) = places.get(row) else { return Err(row_count(name, places.len(), row + 1)) };
            let target = place.and_then(|(group, cell)| Some((group, cell, targets[group]?)));
            if let Some((group, cell, index)) = target {
                reader.peek();
                let start = reader.position();
                let packing = &mut self.groups[group];
                let schema = route.schema(packing.version)?;
                let (column, at) = schema.place(&mut packing.rows, cell, index);
                if let Err(error) = schema.features[index].read(index, reader, column, at) {
                    let first = !std::mem::replace(&mut bad[row], true);
                    self.refuse(row, error, reader, start)?;
                    if !first {
                        self.faults.pop();
                    }
                }
            } else {
                reader.skip()?;
            }
            row += 1;
            more = reader.more(b']')?;
        }
        if row == places.len() { Ok(()) } else { Err(row_count(name, places.len(), row)) }
    }

    /// Defaults for the features that have no column.
    fn fill(&mut self, seen: &HashSet<Box<str>>) -> std::result::Result<(), Fault> {
        for packing in &mut self.groups {
            let schema = self.route.schema(packing.version)?;
            for (index, feature) in schema.features.iter().enumerate() {
                if seen.contains(&feature.name) {
                    continue;
                }
                let Some(default) = &feature.default else {
                    return Err(ErrorKind::MissingFeature(feature.label(index)).into());
                };
                for row in 0..packing.rows.len() {
                    let (column, at) = schema.place(&mut packing.rows, row, index);
                    column.put(at, default.clone());
                }
            }
        }
        Ok(())
    }

    fn drop_bad(&mut self, places: &[Option<(usize, usize)>], bad: &[bool]) {
        for (index, packing) in self.groups.iter_mut().enumerate() {
            let rows = places.iter().zip(bad).filter(|(_, bad)| **bad);
            let gone: Vec<usize> =
                rows.filter_map(|(place, _)| place.filter(|place| place.0 == index).map(|place| place.1)).collect();
            if let Ok(schema) = self.route.schema(packing.version) {
                schema.remove(&mut packing.rows, &gone);
            }
        }
    }
}

fn row_count(name: &str, expected: usize, found: usize) -> Fault {
    ErrorKind::RowCount { name: shorten(name), expected, found }.into()
}
