//! The candidates of a walk, and the set of nodes it has seen.
//!
//! Invariant: a candidate leaves when it is expanded and not before; a walk allocates nothing once its buffers have grown. Must not
//! know: vectors, graphs.
//!
//! Most candidates are never looked at again, so they are put on a heap, where one that is no better than most costs a comparison or
//! two; a sorted array moved half of itself for each.

use std::collections::BinaryHeap;

/// Candidates by their estimates.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Estimate above node: [`key`].
    heap: BinaryHeap<u64>,
    /// Keys that were asked for when the walk had ended.
    rest: Vec<u64>,
}

/// A number that grows with the estimate; of equal estimates, with the node.
#[inline]
fn key(node: u32, estimate: f32) -> u64 {
    let bits = estimate.to_bits();
    // Negative numbers grow towards zero: all their bits turn; of others, the sign.
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(node)
}

/// The estimate in a key.
#[inline]
fn estimate(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

impl Pool {
    /// Empties the pool.
    pub(super) fn begin(&mut self) {
        self.heap.clear();
    }

    /// Adds a candidate.
    #[inline]
    pub(super) fn offer(&mut self, node: u32, estimate: f32) {
        self.heap.push(key(node, estimate));
    }

    /// Takes the best candidate out, if it reaches `least`.
    #[inline]
    pub(super) fn expand(&mut self, least: f32) -> Option<u32> {
        let best = *self.heap.peek()?;
        if estimate(best) < least {
            return None;
        }
        self.heap.pop();
        Some(best as u32)
    }

    /// The candidate that [`expand`](Self::expand) would look at.
    #[inline]
    pub(super) fn peek(&self) -> Option<u32> {
        self.heap.peek().map(|best| *best as u32)
    }

    /// Two candidates among which is the second best.
    #[inline]
    pub(super) fn runners_up(&self) -> impl Iterator<Item = u32> + '_ {
        self.heap.as_slice().iter().skip(1).take(2).map(|key| *key as u32)
    }

    /// The candidates that are left and reach `least`, but only the best so many; in no order.
    pub(super) fn rest(
        &mut self,
        least: f32,
        most: usize,
    ) -> impl Iterator<Item = u32> + Clone + '_ {
        let least = key(0, least);
        self.rest.clear();
        self.rest.extend(self.heap.iter().filter(|key| **key >= least));
        if self.rest.len() > most {
            self.rest.select_nth_unstable_by(most, |a, b| b.cmp(a));
            self.rest.truncate(most);
        }
        self.rest.iter().map(|key| *key as u32)
    }
}

/// Nodes seen by the current walk: a bit for each, so that those of a quarter of a million nodes stay in the nearest caches, and a list
/// of the bits that are set, so that the next walk clears no others.
#[derive(Debug, Default)]
pub(super) struct Visited {
    words: Vec<u64>,
    seen: Vec<u32>,
}

impl Visited {
    /// Forgets all nodes and makes room for the numbers below `nodes`.
    pub(super) fn begin(&mut self, nodes: u32) {
        for node in self.seen.drain(..) {
            if let Some(word) = self.words.get_mut(node as usize / 64) {
                *word = 0;
            }
        }
        let words = (nodes as usize).div_ceil(64);
        if words > self.words.len() {
            self.words.resize(words.next_power_of_two(), 0);
        }
    }

    /// Sees a node; `true` if it is new. `false` for numbers without room.
    #[inline]
    pub(super) fn see(&mut self, node: u32) -> bool {
        let bit = 1 << (node % 64);
        match self.words.get_mut(node as usize / 64) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                self.seen.push(node);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_come_best_first() {
        let mut pool = Pool::default();
        pool.begin();
        for (node, score) in [(1, -0.1), (2, 0.5), (3, 0.3), (4, 0.4), (5, -0.7), (6, 0.0)] {
            pool.offer(node, score);
        }
        let all = f32::NEG_INFINITY;
        assert_eq!(pool.expand(all), Some(2));
        pool.offer(7, 0.9);
        assert_eq!((pool.expand(0.95), pool.peek()), (None, Some(7)), "not good enough");
        assert_eq!((pool.expand(0.9), pool.expand(all)), (Some(7), Some(4)));
        let sorted = |rest: &mut dyn Iterator<Item = u32>| {
            let mut rest: Vec<u32> = rest.collect();
            rest.sort_unstable();
            rest
        };
        assert_eq!(sorted(&mut pool.rest(-0.1, 9)), [1, 3, 6]);
        assert_eq!(sorted(&mut pool.rest(-0.1, 2)), [3, 6], "the best");
        assert!(sorted(&mut pool.rest(-0.1, 0)).is_empty());
        let order: Vec<u32> = std::iter::from_fn(|| pool.expand(all)).collect();
        assert_eq!(order, [3, 6, 1, 5]);
        assert_eq!(pool.peek(), None);
    }

    #[test]
    fn keys_keep_every_estimate() {
        for value in [0.0, -0.0, 1.5, -1.5, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(estimate(key(9, value)).to_bits(), value.to_bits());
            assert_eq!(key(9, value) as u32, 9);
        }
    }

    #[test]
    fn visited_forgets_at_every_walk() {
        let mut visited = Visited::default();
        for _ in 0..600 {
            visited.begin(10);
            assert!(visited.see(9) && !visited.see(9));
            assert!(!visited.see(1_000), "out of range");
        }
    }
}
