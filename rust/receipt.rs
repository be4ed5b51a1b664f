//! Prediction ids that are receipts: what a prediction was, signed, so that its outcome finds it without a stored log.
//!
//! 60 bytes, written as 80 characters of URL-safe base64: format, flags, Unix milliseconds (6), random (6), class (2),
//! entity hash (16), version (4), test (4), revision of the test (4), score (4), and a tag of 12 bytes. Numbers are
//! big-endian. The tag is the keyed BLAKE3 of what stands before it; its key belongs to one model of one data directory.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_128_with_secret;

use crate::route::Reason;

/// The first byte of a receipt; another form gets another.
const FORMAT: u8 = 1;
const SIGNED: usize = 48;
const TAG: usize = 12;
/// Bytes of a receipt, and characters of its text.
const BYTES: usize = SIGNED + TAG;
/// Characters of a receipt.
pub const TEXT: usize = BYTES / 3 * 4;
/// Bytes of the secret that XXH3 mixes into the hash of an entity.
const SECRET: usize = 192;

const HAS_ENTITY: u8 = 1 << 3;
const HAS_SCORE: u8 = 1 << 4;
const REASON: u8 = 7;

/// The keys of a model, derived from the one of its data directory.
#[derive(Clone)]
pub struct Key {
    tag: [u8; 32],
    entities: Box<[u8; SECRET]>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Key(..)")
    }
}

/// The score that a version gave: its probability of the class at index 1, of the likeliest class, or its value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The score.
    pub value: f32,
    /// Index of the likeliest class; 0 for a value.
    pub class: u16,
}

/// What a prediction was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Receipt {
    /// When it was answered, in Unix milliseconds.
    pub milliseconds: u64,
    /// Tells predictions of the same millisecond apart.
    pub random: u64,
    /// Why the version answered.
    pub reason: Reason,
    /// The hash of the entity, where there was one.
    pub entity: Option<u128>,
    /// The number of the version: which one it was of those that were registered, from 1.
    pub version: u32,
    /// The number of the test, 0 for none.
    pub test: u32,
    /// The revision of the test, 0 for none.
    pub revision: u32,
    /// What the version said, where it gave a number.
    pub score: Option<Score>,
}

impl Key {
    /// The keys of a model.
    #[must_use]
    pub fn new(directory: &[u8; 32], model: &str) -> Self {
        let mut entities = Box::new([0; SECRET]);
        // One for all models, so that an entity is the same one everywhere and can be deleted everywhere.
        let mut hasher = blake3::Hasher::new_keyed(directory);
        hasher.update(b"entities");
        hasher.finalize_xof().fill(entities.as_mut_slice());
        let mut hasher = blake3::Hasher::new_keyed(directory);
        hasher.update(b"receipts\0").update(model.as_bytes());
        Self { tag: *hasher.finalize().as_bytes(), entities }
    }

    /// The hash of an entity's id. Who does not have the key cannot tell which id it is of.
    #[inline]
    #[must_use]
    pub fn entity(&self, id: &[u8]) -> u128 {
        xxh3_128_with_secret(id, self.entities.as_slice())
    }

    fn tag(&self, signed: &[u8]) -> [u8; TAG] {
        let mut tag = [0; TAG];
        tag.copy_from_slice(&blake3::keyed_hash(&self.tag, signed).as_bytes()[..TAG]);
        tag
    }
}

impl Receipt {
    /// Append the text of the receipt.
    #[inline]
    pub fn write(&self, key: &Key, bytes: &mut Vec<u8>) {
        let mut raw = [0; BYTES];
        let entity = if self.entity.is_some() { HAS_ENTITY } else { 0 };
        let score = if self.score.is_some() { HAS_SCORE } else { 0 };
        let Score { value, class } = self.score.unwrap_or(Score { value: 0.0, class: 0 });
        raw[0] = FORMAT;
        raw[1] = self.reason as u8 | entity | score;
        raw[2..8].copy_from_slice(&self.milliseconds.to_be_bytes()[2..]);
        raw[8..14].copy_from_slice(&self.random.to_be_bytes()[2..]);
        raw[14..16].copy_from_slice(&class.to_be_bytes());
        raw[16..32].copy_from_slice(&self.entity.unwrap_or(0).to_be_bytes());
        raw[32..36].copy_from_slice(&self.version.to_be_bytes());
        raw[36..40].copy_from_slice(&self.test.to_be_bytes());
        raw[40..44].copy_from_slice(&self.revision.to_be_bytes());
        raw[44..48].copy_from_slice(&value.to_be_bytes());
        let tag = key.tag(&raw[..SIGNED]);
        raw[SIGNED..].copy_from_slice(&tag);
        let start = bytes.len();
        bytes.resize(start + TEXT, 0);
        // The room is what 60 bytes take, so this cannot fail.
        let _written = URL_SAFE_NO_PAD.encode_slice(raw, &mut bytes[start..]);
    }

    /// Read a receipt; None for what this key has not signed.
    #[must_use]
    pub fn read(text: &[u8], key: &Key) -> Option<Self> {
        let mut raw = [0; BYTES];
        if text.len() != TEXT || URL_SAFE_NO_PAD.decode_slice(text, &mut raw).ok()? != BYTES {
            return None;
        }
        let differs = key.tag(&raw[..SIGNED]).iter().zip(&raw[SIGNED..]).fold(0, |all, (a, b)| all | (a ^ b));
        if differs != 0 || raw[0] != FORMAT {
            return None;
        }
        let number = |start: usize, end: usize| raw[start..end].iter().fold(0, |all, &b| all << 8 | u128::from(b));
        let word = |start: usize| u32::try_from(number(start, start + 4)).unwrap_or_default();
        let flags = raw[1];
        Some(Self {
            milliseconds: u64::try_from(number(2, 8)).ok()?,
            random: u64::try_from(number(8, 14)).ok()?,
            reason: Reason::from_index(usize::from(flags & REASON))?,
            entity: (flags & HAS_ENTITY != 0).then(|| number(16, 32)),
            version: word(32),
            test: word(36),
            revision: word(40),
            score: (flags & HAS_SCORE != 0)
                .then(|| Score { value: f32::from_bits(word(44)), class: u16::from_be_bytes([raw[14], raw[15]]) }),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn receipt() -> Receipt {
        Receipt {
            milliseconds: 1_790_000_000_123,
            random: 0xffff_ffff_ffff,
            reason: Reason::Test,
            entity: Some(u128::MAX - 5),
            version: 7,
            test: 3,
            revision: 2,
            score: Some(Score { value: 0.25, class: 1 }),
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let key = Key::new(&[7; 32], "churn");
        for receipt in [receipt(), Receipt { entity: None, score: None, test: 0, revision: 0, ..receipt() }] {
            let mut text = Vec::new();
            receipt.write(&key, &mut text);
            assert_eq!(text.len(), TEXT);
            assert_eq!(Receipt::read(&text, &key), Some(receipt));
        }
    }

    #[test]
    fn what_was_altered_is_refused() {
        let key = Key::new(&[7; 32], "churn");
        let mut text = Vec::new();
        receipt().write(&key, &mut text);
        for place in 0..text.len() {
            for other in [b'A', b'_', b'=', b'!'] {
                let mut altered = text.clone();
                altered[place] = other;
                assert!(altered == text || Receipt::read(&altered, &key).is_none(), "{place}");
            }
        }
        assert_eq!(Receipt::read(&text[1..], &key), None);
        assert_eq!(Receipt::read(&text, &Key::new(&[7; 32], "upsell")), None);
        assert_eq!(Receipt::read(&text, &Key::new(&[8; 32], "churn")), None);
    }

    #[test]
    fn an_entity_is_the_same_in_every_model_of_a_directory() {
        let keys = [Key::new(&[7; 32], "churn"), Key::new(&[7; 32], "upsell"), Key::new(&[8; 32], "churn")];
        assert_eq!(keys[0].entity(b"user-123"), keys[1].entity(b"user-123"));
        assert_ne!(keys[0].entity(b"user-123"), keys[2].entity(b"user-123"));
        assert_ne!(keys[0].entity(b"user-123"), keys[0].entity(b"user-124"));
    }
}
