//! All that one model needs on the way of a prediction: which version answers, its inputs, and the answer's bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::columns::Column;
use crate::encode::{Answer, Envelope, write_uuid7};
use crate::error::{Error, ErrorKind, Result};
use crate::features::Schema;
use crate::hash::SLOTS;
use crate::json::{Reader, shorten};
use crate::ledger::Split;
use crate::names::{Names, number};
use crate::receipt::{Key, Receipt, Score, TEXT};
use crate::tensors::datatype::Datatype;
use crate::watch::{Kind, Seen, Watch};

/// The fields of a prediction, for an error.
const FIELDS: &str = "a prediction takes \"features\" and \"entity_id\"";

/// Why a version answers, in the order of `turnout.domain.REASONS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// It is the active one.
    Active,
    /// A test gave it the entity.
    Test,
    /// An override names it.
    Override,
    /// The request names it.
    Pinned,
    /// A test drew it for a request without an entity.
    Random,
    /// The version that should have answered failed.
    Fallback,
}

impl Reason {
    /// The reason at an index of `turnout.domain.REASONS`.
    #[must_use]
    pub fn from_index(index: usize) -> Option<Self> {
        [Self::Active, Self::Test, Self::Override, Self::Pinned, Self::Random, Self::Fallback].get(index).copied()
    }

    /// The word for it in an answer.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Test => "test",
            Self::Override => "override",
            Self::Pinned => "pinned",
            Self::Random => "random",
            Self::Fallback => "fallback",
        }
    }
}

/// How one version reads features and writes outputs.
#[derive(Debug)]
pub struct Plan {
    /// How its features are packed; None where it takes free tensors.
    pub schema: Option<Schema>,
    /// The names of its outputs.
    pub outputs: Vec<String>,
    /// What the protocol calls their element types, as far as they are known.
    pub datatypes: Vec<Option<Datatype>>,
    /// The output that has its score.
    pub score: Option<usize>,
}

/// The version that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its index.
    pub version: usize,
    /// Why it does.
    pub reason: Reason,
    /// The slot, where a test decided.
    pub slot: Option<u32>,
}

/// A model's versions and what decides between them.
#[derive(Debug)]
pub struct Route {
    model: String,
    versions: Vec<Version>,
    active: Option<usize>,
    split: Option<Arc<Split>>,
    arms: Vec<usize>,
    overrides: HashMap<Box<str>, usize>,
    witness: Option<Witness>,
    known: Names,
    /// Mixed into prediction ids: a forked process inherits the generator, but makes its own routes.
    seed: u128,
}

#[derive(Debug)]
struct Version {
    label: String,
    /// None where nobody knows how it reads and writes.
    plan: Option<Arc<Plan>>,
    envelope: Envelope,
}

/// A request that was read: who answers it, and with which inputs.
#[derive(Debug)]
pub struct Prepared<'a> {
    /// The version that answers.
    pub choice: Choice,
    /// Its inputs in the order of the graph.
    pub columns: Vec<Column<'a>>,
    /// Values of a row in each input.
    pub width: usize,
    /// The hash of its entity, where there is one and somebody bears witness.
    pub entity: Option<u128>,
}

/// Who signs what the versions answer, and notes what the arms of a test do.
#[derive(Debug)]
pub struct Witness {
    /// The keys of the model.
    pub key: Key,
    /// The number of each version.
    pub numbers: Vec<u32>,
    /// The number of the running test and its revision; 0 for none.
    pub test: (u32, u32),
    /// Who notes what its arms do.
    pub watch: Option<Arc<Watch>>,
}

/// A request that was answered, or not.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Index of the version.
    pub version: usize,
    /// Why it answered.
    pub reason: Reason,
    /// The hash of the entity.
    pub entity: Option<u128>,
    /// What it said.
    pub score: Option<Score>,
    /// Nanoseconds that it took.
    pub nanoseconds: u64,
}

/// What decides between versions, as plain data.
#[derive(Debug, Default)]
pub struct Rules {
    /// Index of the active version.
    pub active: Option<usize>,
    /// The running test.
    pub split: Option<Arc<Split>>,
    /// For each arm of the test the index of its version.
    pub arms: Vec<usize>,
    /// Index of a version by entity id.
    pub overrides: HashMap<Box<str>, usize>,
    /// Who signs answers; without, prediction ids are random.
    pub witness: Option<Witness>,
}

/// Where the features of a request go once it is known who answers it.
pub(crate) trait Sink<'a> {
    /// Pack the features that stand next.
    fn pack(&mut self, choice: Choice, reader: &mut Reader<'a>) -> Result<()>;
}

/// An entity id as far as it was read.
#[derive(Debug, Default)]
pub(crate) enum Entity<'a> {
    /// It has not come.
    #[default]
    Absent,
    /// It is `null`.
    Null,
    /// A string, or an integer as its decimal text.
    Id(Cow<'a, str>),
}

impl Entity<'_> {
    /// The id, where there is one.
    pub(crate) fn id(&self) -> Option<&str> {
        if let Self::Id(id) = self { Some(id) } else { None }
    }
}

/// The features of a request as far as they were read.
#[derive(Debug, Default)]
enum Features {
    #[default]
    Absent,
    /// Not packed before the entity is known: where they begin.
    At(usize),
    Packed(Choice),
}

/// One row, in buffers of its own.
struct Single<'a> {
    route: &'a Route,
    columns: Vec<Column<'a>>,
    width: usize,
}

impl<'a> Sink<'a> for Single<'a> {
    #[inline]
    fn pack(&mut self, choice: Choice, reader: &mut Reader<'a>) -> Result<()> {
        let schema = self.route.schema(choice.version)?;
        let mut rows = schema.rows(1);
        schema.pack(reader, &self.route.known, &mut rows)?;
        self.columns = rows.into_columns();
        self.width = schema.width();
        Ok(())
    }
}

impl Route {
    /// Compile a route over versions with their labels.
    ///
    /// # Errors
    /// With a sentence, where an index leaves the versions, or the arms are not those of the split.
    pub fn new(
        model: &str,
        versions: Vec<(String, Option<Arc<Plan>>)>,
        rules: Rules,
        known: &[String],
    ) -> std::result::Result<Self, String> {
        let arms = rules.split.as_ref().map_or(0, |split| split.arms().len());
        if rules.arms.len() != arms {
            return Err(format!("expected an index for each of {arms} arms, found {}", rules.arms.len()));
        }
        let mut indices = rules.active.iter().chain(&rules.arms).chain(rules.overrides.values());
        if let Some(index) = indices.find(|&&index| index >= versions.len()) {
            return Err(format!("index {index} is not one of {} versions", versions.len()));
        }
        if let Some(witness) = rules.witness.as_ref().filter(|witness| witness.numbers.len() != versions.len()) {
            return Err(format!("expected {} numbers of versions, found {}", versions.len(), witness.numbers.len()));
        }
        let versions = versions.into_iter().map(|(label, plan)| {
            let outputs = plan.as_ref().map(|plan| plan.outputs.as_slice()).unwrap_or_default();
            let envelope = Envelope::new(model, &label, outputs);
            Version { label, plan, envelope }
        });
        Ok(Self {
            model: model.to_owned(),
            versions: versions.collect(),
            active: rules.active,
            split: rules.split,
            arms: rules.arms,
            overrides: rules.overrides,
            witness: rules.witness,
            known: number(known.iter().map(String::as_str)),
            seed: seed(),
        })
    }

    /// Number of versions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Whether there are no versions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Which version answers an entity, or a request without one: override, then test, then active version.
    ///
    /// # Errors
    /// Where there is none of these.
    #[inline]
    pub fn assign(&self, entity: Option<&str>) -> Result<Choice> {
        if !self.overrides.is_empty()
            && let Some(&version) = entity.and_then(|entity| self.overrides.get(entity))
        {
            return Ok(Choice { version, reason: Reason::Override, slot: None });
        }
        if let Some(split) = &self.split {
            let (arm, slot, reason) = if let Some(entity) = entity {
                let (arm, slot) = split.assign(entity);
                (arm, slot, Reason::Test)
            } else {
                let slot = fastrand::u32(..SLOTS);
                (split.owner(slot), slot, Reason::Random)
            };
            if let Some(&version) = self.arms.get(usize::from(arm)) {
                return Ok(Choice { version, reason, slot: Some(slot) });
            }
        }
        match self.active {
            Some(version) => Ok(Choice { version, reason: Reason::Active, slot: None }),
            None => Err(ErrorKind::NoActiveVersion(self.model.clone()).into()),
        }
    }

    /// Read a request, route it, and pack its features for the version that answers, or that is pinned.
    ///
    /// # Errors
    /// At the first fault in the body, or where nothing could answer it.
    pub fn prepare<'a>(&'a self, body: &'a [u8], pinned: Option<usize>) -> Result<Prepared<'a>> {
        let mut single = Single { route: self, columns: Vec::new(), width: 0 };
        let (choice, entity) = self.read(&mut Reader::new(body)?, pinned, &mut single)?;
        Ok(Prepared { choice, columns: single.columns, width: single.width, entity })
    }

    /// Read one request and hand its features over, however its fields are ordered; also the hash of its entity.
    pub(crate) fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        pinned: Option<usize>,
        sink: &mut impl Sink<'a>,
    ) -> Result<(Choice, Option<u128>)> {
        let mut entity = Entity::Absent;
        let mut features = Features::Absent;
        reader.require(b'{', "expected an object with \"features\"")?;
        let mut more = reader.first(b'}');
        while more {
            reader.peek();
            let start = reader.position();
            let key = reader.key()?;
            match &*key {
                "entity_id" if matches!(entity, Entity::Absent) => entity = read_entity(reader)?,
                "features" if matches!(features, Features::Absent) => {
                    features = self.features(reader, &entity, pinned, sink)?;
                }
                "entity_id" | "features" => {
                    return Err(Error::at(ErrorKind::DuplicateKey(key.into_owned()), start));
                }
                _ => return Err(Error::at(ErrorKind::UnknownField { name: shorten(&key), takes: FIELDS }, start)),
            }
            more = reader.more(b'}')?;
        }
        reader.end()?;
        let choice = match features {
            Features::Packed(choice) => choice,
            Features::At(start) => {
                let choice = self.choose(entity.id(), pinned)?;
                sink.pack(choice, &mut reader.from_position(start))?;
                choice
            }
            Features::Absent => return Err(ErrorKind::MissingFeatures.into()),
        };
        Ok((choice, self.entity(entity.id())))
    }

    /// The hash of an entity, where somebody bears witness.
    #[inline]
    #[must_use]
    pub fn entity(&self, id: Option<&str>) -> Option<u128> {
        self.witness.as_ref().zip(id).map(|(witness, id)| witness.key.entity(id.as_bytes()))
    }

    /// Whether somebody signs answers.
    pub(crate) fn witnessed(&self) -> bool {
        self.witness.is_some()
    }

    /// The output that has the score of a version.
    #[inline]
    #[must_use]
    pub fn score_output(&self, version: usize) -> Option<usize> {
        self.versions.get(version)?.plan.as_ref()?.score
    }

    /// Note what the arm of a test did; nothing for other requests.
    #[inline]
    pub fn see(&self, done: Done, kind: Kind, milliseconds: u64) {
        let Some(watch) = self.witness.as_ref().and_then(|witness| witness.watch.as_ref()) else { return };
        if !matches!(done.reason, Reason::Test | Reason::Random) {
            return;
        }
        let Some(arm) = self.arms.iter().position(|&version| version == done.version) else { return };
        let Done { entity, score, nanoseconds, .. } = done;
        let arm = u8::try_from(arm).unwrap_or(u8::MAX);
        watch.see(Seen { arm, entity, kind, nanoseconds, score }, milliseconds);
    }

    /// The same for what was answered: of a kind of its own where the score is no number.
    #[inline]
    pub fn see_answer(&self, done: Done, milliseconds: u64) {
        let invalid = done.score.is_some_and(|score| !score.value.is_finite());
        self.see(done, if invalid { Kind::Invalid } else { Kind::Answered }, milliseconds);
    }

    /// Pack the features that stand next, or skip them where an entity id that may yet come would decide.
    fn features<'a>(
        &self,
        reader: &mut Reader<'a>,
        entity: &Entity<'a>,
        pinned: Option<usize>,
        sink: &mut impl Sink<'a>,
    ) -> Result<Features> {
        if matches!(entity, Entity::Absent) && !self.settled(pinned) {
            reader.peek();
            let start = reader.position();
            reader.skip()?;
            return Ok(Features::At(start));
        }
        let choice = self.choose(entity.id(), pinned)?;
        sink.pack(choice, reader)?;
        Ok(Features::Packed(choice))
    }

    /// Whether the same version answers every entity.
    pub(crate) fn settled(&self, pinned: Option<usize>) -> bool {
        pinned.is_some() || (self.split.is_none() && self.overrides.is_empty())
    }

    /// Which version answers: the pinned one, or that of the entity.
    #[inline]
    pub(crate) fn choose(&self, entity: Option<&str>, pinned: Option<usize>) -> Result<Choice> {
        match pinned {
            Some(version) => Ok(Choice { version, reason: Reason::Pinned, slot: None }),
            None => self.assign(entity),
        }
    }

    /// How a version reads features.
    ///
    /// # Errors
    /// Where it takes free tensors, or there is no such version.
    #[inline]
    pub(crate) fn schema(&self, version: usize) -> Result<&Schema> {
        let found = self.versions.get(version);
        found.and_then(|version| version.plan.as_ref()?.schema.as_ref()).ok_or_else(|| {
            let label = found.map(|version| version.label.clone()).unwrap_or_default();
            ErrorKind::FreeTensors(label).into()
        })
    }

    /// The names that any version of the model knows.
    pub(crate) fn known(&self) -> &Names {
        &self.known
    }

    /// The same behind what `bytes` holds already.
    #[inline]
    pub(crate) fn answer_behind(&self, mut bytes: Vec<u8>, done: Done, milliseconds: u64) -> Option<Answer<'_>> {
        let Version { envelope, .. } = self.versions.get(done.version)?;
        envelope.begin(&mut bytes);
        self.write_id(&mut bytes, done, milliseconds);
        Some(envelope.answer(bytes, done.reason.name()))
    }

    /// A new prediction id by itself.
    #[must_use]
    pub fn prediction_id(&self, done: Done, milliseconds: u64) -> String {
        let mut bytes = Vec::with_capacity(TEXT);
        self.write_id(&mut bytes, done, milliseconds);
        String::from_utf8(bytes).unwrap_or_default()
    }

    /// Append a new prediction id: a receipt where somebody signs, else a UUID.
    #[inline]
    pub fn write_id(&self, bytes: &mut Vec<u8>, done: Done, milliseconds: u64) {
        let random = fastrand::u128(..) ^ self.seed;
        if let Some((witness, &version)) =
            self.witness.as_ref().and_then(|witness| Some((witness, witness.numbers.get(done.version)?)))
        {
            let (test, revision) = witness.test;
            #[expect(clippy::cast_possible_truncation, reason = "its low bits")]
            let random = random as u64;
            let Done { reason, entity, score, .. } = done;
            let receipt = Receipt { milliseconds, random, reason, entity, version, test, revision, score };
            receipt.write(&witness.key, bytes);
        } else {
            write_uuid7(milliseconds, random, bytes);
        }
    }

    /// The model's name.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// The label of a version, and the names of its outputs.
    pub(crate) fn version(&self, index: usize) -> Option<(&str, &[String])> {
        let version = self.versions.get(index)?;
        Some((&version.label, version.plan.as_ref().map(|plan| plan.outputs.as_slice()).unwrap_or_default()))
    }

    /// What the protocol calls the element type of an output of a version, where that is known.
    #[must_use]
    pub fn datatype(&self, version: usize, output: usize) -> Option<Datatype> {
        *self.versions.get(version)?.plan.as_ref()?.datatypes.get(output)?
    }

    /// Begin an answer at a time in Unix milliseconds; None where there is no such version.
    #[must_use]
    pub fn answer(&self, done: Done, milliseconds: u64) -> Option<Answer<'_>> {
        self.answer_behind(Vec::with_capacity(320), done, milliseconds)
    }
}

/// The time, as answers and entries have it.
#[must_use]
pub fn unix_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

/// Read an entity id: a string, an integer as its decimal text, or null.
pub(crate) fn read_entity<'a>(reader: &mut Reader<'a>) -> Result<Entity<'a>> {
    const EXPECTED: &str = "expected an entity id that is a string, an integer or null";
    let next = reader.peek();
    let start = reader.clone();
    match next {
        Some(b'"') => reader.string().map(Entity::Id),
        Some(b'-' | b'0'..=b'9') => {
            let number = reader.number()?;
            match number.text() {
                "-0" => Ok(Entity::Id(Cow::Borrowed("0"))),
                text if number.is_integral() => Ok(Entity::Id(Cow::Borrowed(text))),
                _ => Err(start.unexpected(EXPECTED)),
            }
        }
        _ if reader.take_word("null") => Ok(Entity::Null),
        _ => Err(start.unexpected(EXPECTED)),
    }
}

/// Bits that differ between processes and between routes.
fn seed() -> u128 {
    let process = std::process::id();
    let time = std::time::SystemTime::now();
    let half = || u128::from(RandomState::new().hash_one((process, time)));
    half() << 64 | half()
}
