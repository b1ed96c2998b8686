//! One bit an item that says it is gone.
//!
//! Invariant: a bit goes from 0 to 1 once, and each change is counted once, whoever races.
//! Must not know: what is gone, or why.

use super::append_vec::AppendVec;
use super::publication::{Publication, ReleaseAcquire};
use super::shim::{AtomicU32, AtomicU64, Ordering};
use std::fmt;

/// A growing set of numbers that were killed.
pub struct Tombstones<P = ReleaseAcquire> {
    /// Bit `i % 64` of word `i / 64`. Set by any thread with an atomic or (`P::STORE`), read by all
    /// with `P::LOAD`: who sees the bit sees what the killer wrote before. Models:
    /// `tombstone_carries_what_came_before`, `tombstones_count_each_kill_once`.
    words: AppendVec<AtomicU64>,
    /// Bits set. Added to by whoever set the bit; Relaxed, as it is a count and orders nothing.
    /// Model: `tombstones_count_each_kill_once`.
    count: AtomicU32,
    marker: std::marker::PhantomData<P>,
}

impl Tombstones {
    /// Nothing is gone; allocates nothing.
    pub fn new() -> Tombstones {
        Tombstones::with_publication()
    }
}

impl Default for Tombstones {
    fn default() -> Self {
        Tombstones::new()
    }
}

impl<P: Publication> Tombstones<P> {
    /// Nothing is gone; published as `P` says.
    pub fn with_publication() -> Tombstones<P> {
        Tombstones {
            words: AppendVec::new(),
            count: AtomicU32::new(0),
            marker: std::marker::PhantomData,
        }
    }

    /// Makes room for `items` bits, so that [`kill`](Self::kill) can reach them. One writer.
    pub fn grow(&self, items: u32) {
        while u64::from(self.words.len()) * 64 < u64::from(items) {
            self.words.push(AtomicU64::new(0));
        }
    }

    /// Sets a bit; `true` if this call was the one that did. `false` for numbers without room.
    pub fn kill(&self, at: u32) -> bool {
        let Some(word) = self.words.get(at / 64) else {
            return false;
        };
        let bit = 1u64 << (at % 64);
        let newly = word.fetch_or(bit, P::STORE) & bit == 0;
        if newly {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        newly
    }

    /// Whether the bit is set.
    #[inline]
    pub fn is_dead(&self, at: u32) -> bool {
        self.word(at / 64) >> (at % 64) & 1 == 1
    }

    /// The bits of items `64·at .. 64·at + 64`.
    #[inline]
    pub fn word(&self, at: u32) -> u64 {
        self.words.get(at).map_or(0, |word| word.load(P::LOAD))
    }

    /// Bits set.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}

impl<P> fmt::Debug for Tombstones<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tombstones").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_kill_counts_once_and_only_where_there_is_room() {
        let dead = Tombstones::new();
        assert!(!dead.kill(0) && !dead.is_dead(0));
        dead.grow(65);
        assert!(dead.kill(64) && !dead.kill(64));
        assert!(dead.is_dead(64) && !dead.is_dead(63) && !dead.is_dead(1_000_000));
        assert_eq!((dead.count(), dead.word(1)), (1, 1));
    }
}
