//! From weights to the owners of slots, moving the fewest; and from a slot to its owner.

use std::collections::{BTreeMap, VecDeque};

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{ErrorKind, Result};
use crate::hash::{SLOTS, Salt};

/// More arms than an index of one byte can tell apart do not fit the table.
pub const MAX_ARMS: usize = 256;

/// How far from one the sum of the weights may be.
const TOLERANCE: f64 = 0.001;

/// Slots from first to last, both included; falling where the first is greater.
pub type Run = (u32, u32);

/// Which arm owns each slot: per arm, bytewise ordered by name, its slots in the order in which it got them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    stacks: BTreeMap<String, Vec<u32>>,
}

impl Ledger {
    /// A new ledger: the baseline owns every slot, in ascending order.
    #[must_use]
    pub fn start(baseline: &str) -> Self {
        Self { stacks: BTreeMap::from([(baseline.to_owned(), (0..SLOTS).collect())]) }
    }

    /// Read back what `runs` wrote.
    ///
    /// # Errors
    /// `ErrorKind::Ledger` unless every slot is owned exactly once.
    pub fn from_runs(runs: impl IntoIterator<Item = (String, Vec<Run>)>) -> Result<Self> {
        let mut owned = vec![false; SLOTS as usize];
        let mut stacks = BTreeMap::new();
        for (arm, runs) in runs {
            let mut stack = Vec::new();
            for run in runs {
                claim(&mut owned, run)?;
                extend(&mut stack, run);
            }
            if stacks.insert(arm.clone(), stack).is_some() {
                return Err(ErrorKind::Ledger(format!("arm {arm} is there twice")).into());
            }
        }
        if stacks.len() > MAX_ARMS {
            return Err(ErrorKind::Ledger(format!("{} arms, more than {MAX_ARMS}", stacks.len())).into());
        }
        match owned.iter().position(|owned| !owned) {
            Some(slot) => Err(ErrorKind::Ledger(format!("slot {slot} has no owner")).into()),
            None => Ok(Self { stacks }),
        }
    }

    /// Names of the arms, bytewise ordered.
    pub fn arms(&self) -> impl ExactSizeIterator<Item = &str> {
        self.stacks.keys().map(String::as_str)
    }

    /// Slots by arm.
    #[must_use]
    pub fn counts(&self) -> impl ExactSizeIterator<Item = (&str, usize)> {
        self.stacks.iter().map(|(arm, stack)| (arm.as_str(), stack.len()))
    }

    /// The stacks as runs.
    #[must_use]
    pub fn runs(&self) -> impl ExactSizeIterator<Item = (&str, Vec<Run>)> {
        self.stacks.iter().map(|(arm, stack)| (arm.as_str(), to_runs(stack)))
    }

    /// Apply weights: the new ledger, and how many slots moved. Arms without a weight give up everything and fall out.
    ///
    /// # Errors
    /// `SplitArms`, `SplitWeight` or `SplitSum` for weights that are no split.
    pub fn apply(&self, weights: &BTreeMap<String, f64>) -> Result<(Self, usize)> {
        let targets = targets(weights)?;
        let mut stacks = self.stacks.clone();
        for arm in targets.keys() {
            stacks.entry((*arm).to_owned()).or_default();
        }
        let target = |arm: &String| targets.get(arm.as_str()).copied().unwrap_or(0);

        // The order of giving and taking is the contract: it makes a step back return what the step forward took.
        let mut pool = VecDeque::new();
        for (arm, stack) in &mut stacks {
            while stack.len() > target(arm) {
                pool.extend(stack.pop());
            }
        }
        let moved = pool.len();
        for (arm, stack) in &mut stacks {
            let need = target(arm).saturating_sub(stack.len());
            stack.extend(pool.drain(..need));
        }
        stacks.retain(|arm, _| weights.contains_key(arm));
        Ok((Self { stacks }, moved))
    }

    /// For each slot the index of its owner among `arms`.
    #[must_use]
    pub fn table(&self) -> Box<[u8]> {
        let mut table = vec![0; SLOTS as usize].into_boxed_slice();
        for (index, stack) in (0..=u8::MAX).zip(self.stacks.values()) {
            for slot in stack {
                table[*slot as usize] = index;
            }
        }
        table
    }

    /// XXH3-64 of the table: two ledgers with the same digest assign every entity alike.
    #[must_use]
    pub fn table_digest(&self) -> u64 {
        xxh3_64(&self.table())
    }
}

/// Mark the slots of a run as owned.
fn claim(owned: &mut [bool], (first, last): Run) -> Result<()> {
    let (low, high) = (first.min(last), first.max(last));
    if high >= SLOTS {
        return Err(ErrorKind::Ledger(format!("slot {high} is past the last")).into());
    }
    for slot in low..=high {
        if std::mem::replace(&mut owned[slot as usize], true) {
            return Err(ErrorKind::Ledger(format!("slot {slot} has two owners")).into());
        }
    }
    Ok(())
}

fn extend(stack: &mut Vec<u32>, (first, last): Run) {
    if first <= last {
        stack.extend(first..=last);
    } else {
        stack.extend((last..=first).rev());
    }
}

/// The shortest list of runs that gives the stack back: each run is as long as it can be.
fn to_runs(stack: &[u32]) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut rest = stack;
    while let Some((&first, tail)) = rest.split_first() {
        let rising = tail.iter().zip(first + 1..).take_while(|(slot, next)| **slot == *next).count();
        let falling = tail.iter().zip((0..first).rev()).take_while(|(slot, next)| **slot == *next).count();
        let length = rising.max(falling);
        runs.push((first, rest[length]));
        rest = &rest[length + 1..];
    }
    runs
}

/// Slots by arm for weights: the method of the largest remainder, ties to the bytewise smaller name.
fn targets(weights: &BTreeMap<String, f64>) -> Result<BTreeMap<&str, usize>> {
    if weights.is_empty() || weights.len() > MAX_ARMS {
        return Err(ErrorKind::SplitArms(weights.len()).into());
    }
    if let Some((arm, weight)) = weights.iter().find(|(_, weight)| !weight.is_finite() || **weight < 0.0) {
        return Err(ErrorKind::SplitWeight { arm: arm.clone(), weight: *weight }.into());
    }
    let sum: f64 = weights.values().sum();
    if (sum - 1.0).abs() > TOLERANCE {
        return Err(ErrorKind::SplitSum(sum).into());
    }
    let mut shares: Vec<Share> = weights.iter().map(|(arm, weight)| Share::new(arm, weight / sum)).collect();
    let given: usize = shares.iter().map(|share| share.slots).sum();
    // A stable sort: arms that tie stay in bytewise order.
    shares.sort_by(|a, b| b.remainder.total_cmp(&a.remainder));
    let left = (SLOTS as usize).saturating_sub(given);
    for share in shares.iter_mut().take(left) {
        share.slots += 1;
    }
    Ok(shares.into_iter().map(|share| (share.arm, share.slots)).collect())
}

struct Share<'a> {
    arm: &'a str,
    slots: usize,
    remainder: f64,
}

impl<'a> Share<'a> {
    fn new(arm: &'a str, weight: f64) -> Self {
        let quota = weight * f64::from(SLOTS);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= quota <= 100,000")]
        let slots = quota.floor() as usize;
        Self { arm, slots, remainder: quota - quota.floor() }
    }
}

/// A ledger and a salt, ready for look-ups: one hash, one load from a table of 100,000 bytes.
#[derive(Debug, Clone)]
pub struct Split {
    arms: Vec<String>,
    salt: Salt,
    table: Box<[u8]>,
}

impl Split {
    /// Compile a ledger.
    #[must_use]
    pub fn new(ledger: &Ledger, salt: &str) -> Self {
        Self { arms: ledger.arms().map(str::to_owned).collect(), salt: Salt::new(salt), table: ledger.table() }
    }

    /// Names of the arms, bytewise ordered.
    #[must_use]
    pub fn arms(&self) -> &[String] {
        &self.arms
    }

    /// The salt.
    #[must_use]
    pub fn salt(&self) -> &Salt {
        &self.salt
    }

    /// The arm of an entity, as an index into `arms`, and its slot.
    #[inline]
    #[must_use]
    pub fn assign(&self, entity: impl AsRef<[u8]>) -> (u8, u32) {
        let slot = self.salt.slot(entity.as_ref());
        (self.owner(slot), slot)
    }

    /// The owner of a slot, as an index into `arms`.
    ///
    /// # Panics
    /// Past the last slot.
    #[inline]
    #[must_use]
    pub fn owner(&self, slot: u32) -> u8 {
        self.table[slot as usize]
    }
}
