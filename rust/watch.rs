//! What the arms of a running test did, seen on the way of a prediction and written down later, off that way.
//!
//! An entity's first answer by an arm, its first failure, its first slow answer: each is one entry, so that what has to
//! be written does not grow with the requests. Which of them a process has noted of late is remembered in a table in
//! which a newer entity takes the place of an older one: the table is small and needs no lock, and an entry that comes
//! twice is told from the first one where it is stored.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::receipt::Score;

/// Latency thresholds of a test.
pub const THRESHOLDS: usize = 6;
/// Entities that a process remembers.
const REMEMBERED: usize = 1 << 16;
/// Entries that wait to be written; what comes on top is dropped, and counted.
const MOST_ENTRIES: usize = 1 << 19;
/// Counters of an arm: all requests of each kind, and those without entity of each kind and above each threshold.
pub const COUNTERS: usize = 2 * KINDS + THRESHOLDS;
const KINDS: usize = 4;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// It was answered.
    Answered,
    /// It was answered with a score that is no number.
    Invalid,
    /// The version failed.
    Failed,
    /// The version failed, and another one answered in its place.
    Replaced,
}

impl Kind {
    /// The kind of an index.
    #[must_use]
    pub fn from_index(index: usize) -> Option<Self> {
        [Self::Answered, Self::Invalid, Self::Failed, Self::Replaced].get(index).copied()
    }
}

/// Something that is seen for the first time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// The hash of the entity.
    pub entity: u128,
    /// When, in Unix milliseconds.
    pub milliseconds: u64,
    /// Index of the arm.
    pub arm: u8,
    /// What became of the request.
    pub kind: Kind,
    /// How many thresholds its time was above.
    pub level: u8,
    /// What the version said, where it gave a number.
    pub score: Option<Score>,
}

/// One request of a running test.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Index of the arm.
    pub arm: u8,
    /// The hash of the entity, where there was one.
    pub entity: Option<u128>,
    /// What became of it.
    pub kind: Kind,
    /// Nanoseconds that it took.
    pub nanoseconds: u64,
    /// What the version said.
    pub score: Option<Score>,
}

/// What is seen of one revision of a test in one process.
#[derive(Debug)]
pub struct Watch {
    thresholds: [u64; THRESHOLDS],
    remembered: Box<[AtomicU64]>,
    counters: Box<[[AtomicU64; COUNTERS]]>,
    entries: Mutex<Vec<Entry>>,
    dropped: AtomicU64,
}

/// What was seen since it was last asked.
#[derive(Debug, Default)]
pub struct Drained {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The counters of each arm.
    pub counters: Vec<[u64; COUNTERS]>,
    /// How many entries found no room.
    pub dropped: u64,
}

impl Watch {
    /// Watch so many arms. `thresholds` are nanoseconds, rising; `u64::MAX` for one that nothing is above.
    #[must_use]
    pub fn new(arms: usize, thresholds: [u64; THRESHOLDS]) -> Self {
        Self {
            thresholds,
            remembered: (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect(),
            counters: (0..arms).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
            entries: Mutex::default(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Note a request at a time in Unix milliseconds.
    #[inline]
    pub fn see(&self, seen: Seen, milliseconds: u64) {
        let Some(counters) = self.counters.get(usize::from(seen.arm)) else { return };
        counters[seen.kind as usize].fetch_add(1, Relaxed);
        let level = self.level(seen.nanoseconds);
        let Some(entity) = seen.entity else {
            counters[KINDS + seen.kind as usize].fetch_add(1, Relaxed);
            counters[2 * KINDS..2 * KINDS + level].iter().for_each(|above| {
                above.fetch_add(1, Relaxed);
            });
            return;
        };
        // An answer is noted once for each level, anything else once: a mark for each of them.
        let mark = if seen.kind == Kind::Answered { level } else { THRESHOLDS + seen.kind as usize };
        if self.remember(entity, seen.arm, mark) {
            #[expect(clippy::cast_possible_truncation, reason = "at most THRESHOLDS")]
            let level = level as u8;
            let Seen { arm, kind, score, .. } = seen;
            self.note(Entry { entity, milliseconds, arm, kind, level, score });
        }
    }

    /// How many thresholds a time is above.
    #[inline]
    fn level(&self, nanoseconds: u64) -> usize {
        self.thresholds.iter().take_while(|&&threshold| nanoseconds > threshold).count()
    }

    /// Whether this was not noted of late.
    #[inline]
    fn remember(&self, entity: u128, arm: u8, mark: usize) -> bool {
        // Two halves of a hash that is uniform: one is the place, the other what lies there. Never 0, which is nothing.
        #[expect(clippy::cast_possible_truncation, reason = "the halves of a hash")]
        let (low, high) = (entity as u64, (entity >> 64) as u64);
        let salted = (mark as u64 + 1) << 8 | u64::from(arm);
        #[expect(clippy::cast_possible_truncation, reason = "some bits of a hash")]
        let place = (low ^ salted.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as usize & (REMEMBERED - 1);
        let value = (high ^ salted.rotate_left(32)) | 1;
        self.remembered[place].swap(value, Relaxed) != value
    }

    #[cold]
    #[inline(never)]
    fn note(&self, entry: Entry) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() < MOST_ENTRIES {
            entries.push(entry);
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Take what was seen since the last time.
    #[must_use]
    pub fn drain(&self) -> Drained {
        let entries = std::mem::take(&mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner));
        let counters = self.counters.iter().map(|arm| std::array::from_fn(|index| arm[index].swap(0, Relaxed)));
        Drained { entries, counters: counters.collect(), dropped: self.dropped.swap(0, Relaxed) }
    }
}

impl Entry {
    /// Bytes of an entry.
    pub const BYTES: usize = 36;

    /// The entry as bytes, little-endian: entity (16, big-endian), milliseconds (8), arm, kind, level, whether there is
    /// a score, score (4), class (2), and two zeros.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.entity.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.milliseconds.to_le_bytes());
        bytes[24..28].copy_from_slice(&[self.arm, self.kind as u8, self.level, u8::from(self.score.is_some())]);
        if let Some(score) = self.score {
            bytes[28..32].copy_from_slice(&score.value.to_le_bytes());
            bytes[32..34].copy_from_slice(&score.class.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u64; THRESHOLDS] = [u64::MAX; THRESHOLDS];

    fn seen(entity: u128, kind: Kind, nanoseconds: u64) -> Seen {
        Seen { arm: 1, entity: Some(entity), kind, nanoseconds, score: None }
    }

    #[test]
    fn an_entity_is_noted_once_for_each_thing_that_happens_to_it() {
        let watch = Watch::new(2, [100, 200, 300, 400, 500, 600]);
        for _ in 0..3 {
            watch.see(seen(5, Kind::Answered, 50), 1);
            watch.see(seen(5, Kind::Answered, 250), 2);
            watch.see(seen(5, Kind::Failed, 0), 3);
            watch.see(seen(6, Kind::Answered, 50), 4);
        }
        let drained = watch.drain();
        let found: Vec<_> = drained.entries.iter().map(|e| (e.entity, e.kind, e.level, e.milliseconds)).collect();
        assert_eq!(
            found,
            [(5, Kind::Answered, 0, 1), (5, Kind::Answered, 2, 2), (5, Kind::Failed, 0, 3), (6, Kind::Answered, 0, 4)]
        );
        assert_eq!(drained.counters[1][..KINDS], [9, 0, 3, 0]);
        assert_eq!(drained.counters[0], [0; COUNTERS]);
        assert!(watch.drain().entries.is_empty());
    }

    #[test]
    fn requests_without_entity_are_only_counted() {
        let watch = Watch::new(2, [100, 200, 300, 400, 500, 600]);
        watch.see(Seen { entity: None, ..seen(0, Kind::Answered, 250) }, 1);
        watch.see(Seen { entity: None, ..seen(0, Kind::Replaced, 0) }, 1);
        let drained = watch.drain();
        assert!(drained.entries.is_empty());
        assert_eq!(drained.counters[1], [1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn entries_that_nobody_fetches_are_bounded() {
        let watch = Watch::new(2, NONE);
        for entity in 0..MOST_ENTRIES as u128 + 10 {
            watch.see(seen(entity << 64 | entity, Kind::Answered, 1), 1);
        }
        let drained = watch.drain();
        assert_eq!((drained.entries.len(), drained.dropped), (MOST_ENTRIES, 10));
    }

    #[test]
    fn an_entry_has_a_form() {
        let score = Some(Score { value: 0.5, class: 3 });
        let entry = Entry { entity: 1, milliseconds: 2, arm: 3, kind: Kind::Failed, level: 5, score };
        let bytes = entry.bytes();
        assert_eq!(bytes[15..20], [1, 2, 0, 0, 0]);
        assert_eq!(bytes[24..], [3, 2, 5, 1, 0, 0, 0, 63, 3, 0, 0, 0]);
    }
}
