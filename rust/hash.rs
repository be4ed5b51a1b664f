//! From an entity to its slot.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The hash space is cut into this many equal parts.
pub const SLOTS: u32 = 100_000;

/// Salts and entities that fit this many bytes together are hashed from the stack in one call.
const STACK: usize = 256;

/// A salt, ready to be put in front of entities.
#[derive(Debug, Clone)]
pub struct Salt {
    prefix: Box<[u8]>,
}

impl Salt {
    /// Prepare a salt.
    #[must_use]
    pub fn new(salt: &str) -> Self {
        Self { prefix: [salt.as_bytes(), &[0]].concat().into_boxed_slice() }
    }

    /// The salt as it was given.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.prefix[..self.prefix.len() - 1]
    }

    /// XXH3-64 of salt, a zero byte and the entity.
    #[inline]
    #[must_use]
    pub fn hash(&self, entity: &[u8]) -> u64 {
        let salt = self.prefix.len();
        let length = salt + entity.len();
        if length <= STACK {
            let mut buffer = [0; STACK];
            buffer[..salt].copy_from_slice(&self.prefix);
            buffer[salt..length].copy_from_slice(entity);
            return xxh3_64(&buffer[..length]);
        }
        let mut hasher = Xxh3::new();
        hasher.update(&self.prefix);
        hasher.update(entity);
        hasher.digest()
    }

    /// The slot of an entity.
    #[inline]
    #[must_use]
    pub fn slot(&self, entity: &[u8]) -> u32 {
        slot_of(self.hash(entity))
    }
}

/// The slot of a hash, or of a random number of 64 bits: `(hash * 100000) >> 64`.
///
/// A multiplication and not a remainder: the high bits decide, and every slot gets the same share of the hash space.
#[inline]
#[must_use]
pub fn slot_of(hash: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the product shifted by 64 is below SLOTS")]
    let slot = ((u128::from(hash) * u128::from(SLOTS)) >> 64) as u32;
    slot
}
