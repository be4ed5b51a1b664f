//! Names of features: found by their hash, and the known one that a person probably meant.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64;

/// Names longer than this have no nearest one.
const LONGEST: usize = 64;

/// How many known names are looked at.
const MOST: usize = 4096;

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

/// The name with the fewest edits away, at most a third of its bytes and at most three; ties to the bytewise smallest.
#[must_use]
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    let limit = (name.len() / 3).clamp(1, 3);
    known
        .take(MOST)
        .filter(|candidate| !candidate.is_empty() && candidate.len().abs_diff(name.len()) <= limit)
        .map(|candidate| (distance(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|&(edits, _)| edits <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Fewest insertions, deletions, replacements and swaps of neighbours that turn one name into the other, case aside.
///
/// Source: optimal string alignment distance, the restricted form of Damerau (1964).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(!x.eq_ignore_ascii_case(y));
            let mut edits = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                edits = edits.min(before[j - 1] + 1);
            }
            row.push(edits);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
