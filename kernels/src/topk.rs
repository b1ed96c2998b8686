//! A bounded collector of the k largest scores.
//!
//! Invariant: what is kept is a function of the set of pushed pairs alone, never of their order:
//! of equal scores the lower id wins, and NaN never enters. It must not know what the ids name.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// More room than this is not set aside before it is needed.
const MAX_INITIAL_CAPACITY: usize = 1024;

/// Keeps the `k` largest of the pushed pairs of a score and an id.
///
/// Scores are compared as numbers: −0.0 equals 0.0 (and is given back as 0.0), infinities order as
/// usual. Each push costs one comparison where it is refused and O(log k) where it is kept.
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    /// The smallest key, the next to be displaced, is on top.
    heap: BinaryHeap<Reverse<u64>>,
}

/// One integer that orders as the pair does: larger is better.
fn key(score: f32, id: u32) -> u64 {
    // Adding zero turns −0.0 into 0.0, so that equal scores have equal bits.
    let bits = (score + 0.0).to_bits();
    // Negative numbers order the other way round by their bits.
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!id)
}

fn score_and_id(key: u64) -> (f32, u32) {
    let ordered = (key >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
    (f32::from_bits(bits), !(key as u32))
}

impl TopK {
    /// An empty collector of at most `k` pairs; with `k` zero it keeps nothing.
    pub fn new(k: usize) -> TopK {
        TopK { k, heap: BinaryHeap::with_capacity(k.min(MAX_INITIAL_CAPACITY)) }
    }

    /// Empties the collector for a new `k`, keeping its memory.
    pub fn reset(&mut self, k: usize) {
        self.k = k;
        self.heap.clear();
    }

    /// Offers a pair; returns whether it was kept for now. A NaN score is refused.
    pub fn push(&mut self, score: f32, id: u32) -> bool {
        if score.is_nan() {
            return false;
        }
        let key = key(score, id);
        if self.heap.len() < self.k {
            self.heap.push(Reverse(key));
            return true;
        }
        match self.heap.peek_mut() {
            Some(mut worst) if worst.0 < key => {
                worst.0 = key;
                true
            }
            _ => false,
        }
    }

    /// The score of the worst kept pair once `k` are kept, `None` before (and for `k` zero).
    ///
    /// A lower score cannot enter any more; an equal one enters only with a lower id.
    pub fn threshold(&self) -> Option<f32> {
        if self.heap.len() < self.k {
            return None;
        }
        self.heap.peek().map(|worst| score_and_id(worst.0).0)
    }

    /// How many pairs are kept.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no pair is kept.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The kept pairs, best first.
    pub fn into_sorted_vec(self) -> Vec<(f32, u32)> {
        // Ascending by `Reverse` is descending by key.
        let keys = self.heap.into_sorted_vec();
        keys.into_iter().map(|key| score_and_id(key.0)).collect()
    }

    /// Replaces what `out` holds by the kept pairs, best first, and empties the collector. Neither
    /// allocates once `out` has the room.
    pub fn drain_sorted(&mut self, out: &mut Vec<(f32, u32)>) {
        out.clear();
        while let Some(worst) = self.heap.pop() {
            out.push(score_and_id(worst.0));
        }
        out.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_full_sort(pairs: &[(f32, u32)], k: usize) -> Vec<(f32, u32)> {
        let mut sorted: Vec<_> = pairs.iter().copied().filter(|p| !p.0.is_nan()).collect();
        sorted.sort_by(|a, b| {
            b.0.partial_cmp(&a.0).expect("NaN was filtered out").then(a.1.cmp(&b.1))
        });
        sorted.truncate(k);
        sorted
    }

    fn score() -> impl Strategy<Value = f32> {
        // Few distinct values, so that ties are common, and every special one.
        prop_oneof![
            4 => (-3i8..=3).prop_map(f32::from),
            2 => any::<f32>(),
            1 => prop::sample::select(vec![
                0.0, -0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY,
                f32::MIN_POSITIVE, f32::from_bits(1), -f32::from_bits(1), f32::MAX, f32::MIN,
            ]),
        ]
    }

    proptest! {
        #[test]
        fn equals_a_full_sort_in_any_order(
            pairs in prop::collection::vec((score(), 0u32..50), 0..200),
            k in 0usize..40,
        ) {
            let expected = by_full_sort(&pairs, k);
            let mut forward = TopK::new(k);
            let mut backward = TopK::new(7);
            backward.push(1.0, 1);
            backward.reset(k);
            for &(score, id) in &pairs {
                forward.push(score, id);
            }
            for &(score, id) in pairs.iter().rev() {
                backward.push(score, id);
            }
            let worst = expected.last().filter(|_| expected.len() == k).map(|p| p.0);
            prop_assert_eq!(forward.threshold(), worst);
            let mut drained = Vec::new();
            backward.drain_sorted(&mut drained);
            prop_assert!(backward.is_empty());
            prop_assert_eq!(&drained, &expected);
            prop_assert_eq!(forward.into_sorted_vec(), expected);
        }

        #[test]
        fn keys_give_their_pair_back(score in any::<f32>(), id in any::<u32>()) {
            prop_assume!(!score.is_nan());
            prop_assert_eq!(score_and_id(key(score, id)), (score, id));
        }
    }

    #[test]
    fn ties_go_to_the_lower_id() {
        let mut top = TopK::new(2);
        for id in [9, 3, 7, 1] {
            top.push(0.5, id);
        }
        assert!(!top.push(0.5, 8));
        assert_eq!(top.into_sorted_vec(), [(0.5, 1), (0.5, 3)]);
    }

    #[test]
    fn signed_zeros_are_one_score() {
        let mut top = TopK::new(1);
        assert!(top.push(0.0, 5));
        assert!(top.push(-0.0, 4));
        assert!(!top.push(0.0, 6));
        assert_eq!(top.threshold(), Some(0.0));
        assert_eq!(top.into_sorted_vec(), [(0.0, 4)]);
    }

    #[test]
    fn nothing_and_nan_never_enter() {
        let mut none = TopK::new(0);
        assert!(!none.push(f32::INFINITY, 0));
        assert_eq!(none.threshold(), None);
        assert!(none.into_sorted_vec().is_empty());

        let mut top = TopK::new(3);
        assert!(!top.push(f32::NAN, 0));
        assert!(top.push(f32::NEG_INFINITY, 1));
        assert_eq!(top.len(), 1);
        assert_eq!(top.threshold(), None);
    }

    #[test]
    fn a_huge_k_sets_no_memory_aside() {
        let mut top = TopK::new(usize::MAX);
        assert!(top.push(1.0, 2));
        assert_eq!(top.into_sorted_vec(), [(1.0, 2)]);
    }
}
