//! Numbers of records, found by a hash of something that the records hold themselves.
//!
//! Invariant: what was inserted under a hash is among what is found under it, until it is removed. Others may be, too: 32 bits
//! of the hash are kept, so whoever finds a number compares what its record holds. Takes 9 bytes an entry at most 7/8 full,
//! a third of a map that owns the strings, and no allocation for each. Knows neither records nor hashers.

use hashbrown::HashTable;

/// The bits that are kept. Few in tests, so that all of them live with hashes that share theirs.
const TAG_BITS: u32 = if cfg!(test) { 0xff } else { u32::MAX };

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u32,
    no: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    table: HashTable<Entry>,
}

impl Numbers {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Makes room for so many more at once.
    pub(super) fn reserve(&mut self, more: usize) {
        self.table.reserve(more, |entry| spread(entry.tag));
    }

    /// Adds `no`, which is not in it under this hash yet.
    pub(super) fn insert(&mut self, hash: u64, no: u32) {
        let tag = tag(hash);
        self.table.insert_unique(spread(tag), Entry { tag, no }, |entry| spread(entry.tag));
    }

    /// Takes out `no`; `false` if it is not in it under this hash.
    pub(super) fn remove(&mut self, hash: u64, no: u32) -> bool {
        let tag = tag(hash);
        let found = self.table.find_entry(spread(tag), |entry| entry.tag == tag && entry.no == no);
        found.map(|entry| entry.remove()).is_ok()
    }

    /// Puts `no` in the place of `old`, which is in it under this hash.
    pub(super) fn replace(&mut self, hash: u64, old: u32, no: u32) {
        let tag = tag(hash);
        let is_old = |entry: &Entry| entry.tag == tag && entry.no == old;
        if let Some(entry) = self.table.find_mut(spread(tag), is_old) {
            entry.no = no;
        }
    }

    /// What may have been inserted under this hash, in no order.
    pub(super) fn under(&self, hash: u64) -> impl Iterator<Item = u32> {
        let tag = tag(hash);
        self.table
            .iter_hash(spread(tag))
            .filter(move |entry| entry.tag == tag)
            .map(|entry| entry.no)
    }
}

fn tag(hash: u64) -> u32 {
    (hash ^ hash >> 32) as u32 & TAG_BITS
}

/// The table takes its bits from both ends of a hash, and a tag has but one.
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn under(numbers: &Numbers, hash: u64) -> BTreeSet<u32> {
        numbers.under(hash).collect()
    }

    #[test]
    fn hashes_that_share_a_tag_find_each_others_numbers() {
        let (a, b) = (7, 7 << 32);
        assert_eq!(tag(a), tag(b), "the test is about this");
        let mut numbers = Numbers::default();
        numbers.insert(a, 1);
        numbers.insert(b, 2);
        assert_eq!(under(&numbers, a), BTreeSet::from([1, 2]));
        assert!(!numbers.remove(a, 3));
        assert!(numbers.remove(a, 1));
        assert_eq!(under(&numbers, b), BTreeSet::from([2]));
        numbers.replace(b, 2, 5);
        assert_eq!(under(&numbers, b), BTreeSet::from([5]));
        assert_eq!(under(&numbers, 8), BTreeSet::new());
    }

    proptest! {
        /// Against a set of pairs of tag and number.
        #[test]
        fn it_is_a_set_of_pairs(steps in prop::collection::vec((any::<bool>(), 0u64..300, 0u32..4), 1..600)) {
            let (mut numbers, mut model) = (Numbers::default(), BTreeSet::new());
            for (add, hash, no) in steps {
                let pair = (tag(hash), no);
                if !add {
                    prop_assert_eq!(numbers.remove(hash, no), model.remove(&pair));
                } else if model.insert(pair) {
                    numbers.insert(hash, no);
                }
                prop_assert_eq!(numbers.len(), model.len());
                let expected = model.iter().filter(|(t, _)| *t == pair.0).map(|(_, no)| *no).collect();
                prop_assert_eq!(under(&numbers, hash), expected);
            }
        }
    }
}
