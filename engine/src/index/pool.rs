//! The candidates of a walk, and the set of nodes it has seen.
//!
//! Invariant: a walk allocates nothing; both are grown before it. Must not know: vectors, graphs.
//!
//! A sorted array beats two heaps at these sizes: one binary search and one move per insertion,
//! and the next candidate is found by a cursor (as in SymphonyQG and Glass).

/// Marks a candidate that was expanded; numbers stay below it
/// ([`MAX_ITEMS`](crate::sync::MAX_ITEMS)).
const EXPANDED: u32 = 1 << 31;

#[derive(Debug, Clone, Copy)]
struct Slot {
    score: f32,
    /// Node number, with `EXPANDED`.
    node: u32,
}

/// The best candidates found so far, best first.
#[derive(Debug, Default)]
pub(super) struct Pool {
    slots: Vec<Slot>,
    capacity: usize,
    /// Everything before it is expanded.
    cursor: usize,
}

impl Pool {
    /// Empties the pool and sets how many candidates it keeps.
    pub(super) fn begin(&mut self, capacity: usize) {
        self.slots.clear();
        self.slots.reserve(capacity + 1);
        self.capacity = capacity;
        self.cursor = 0;
    }

    /// Candidates kept now.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds a candidate if it is among the best; the worst one makes room.
    #[inline]
    pub(super) fn offer(&mut self, node: u32, score: f32) {
        if self.admits(score) {
            self.insert(node, score);
        }
    }

    /// Whether a candidate of this score would be kept.
    #[inline]
    fn admits(&self, score: f32) -> bool {
        self.slots.len() < self.capacity || self.slots.last().is_some_and(|s| score > s.score)
    }

    fn insert(&mut self, node: u32, score: f32) {
        if self.slots.len() == self.capacity {
            self.slots.pop();
        }
        let at = self.slots.partition_point(|s| s.score >= score);
        self.slots.insert(at, Slot { score, node });
        self.cursor = self.cursor.min(at);
    }

    /// The best candidate that was not expanded yet, which now counts as expanded.
    #[inline]
    pub(super) fn expand(&mut self) -> Option<u32> {
        let node = self.peek()?;
        self.slots[self.cursor].node |= EXPANDED;
        Some(node)
    }

    /// The candidate that [`expand`](Self::expand) would return.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u32> {
        while let Some(slot) = self.slots.get(self.cursor) {
            if slot.node & EXPANDED == 0 {
                return Some(slot.node);
            }
            self.cursor += 1;
        }
        None
    }

    /// All candidates, best first: node and score.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.slots.iter().map(|s| (s.node & !EXPANDED, s.score))
    }
}

/// Nodes seen by the current walk: a stamp for each, so that a new walk need not clear them.
#[derive(Debug, Default)]
pub(super) struct Visited {
    stamps: Vec<u8>,
    epoch: u8,
}

impl Visited {
    /// Forgets all nodes and makes room for the numbers below `nodes`.
    pub(super) fn begin(&mut self, nodes: u32) {
        let nodes = nodes as usize;
        if nodes > self.stamps.len() {
            self.stamps.resize(nodes.next_power_of_two(), 0);
        }
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.stamps.fill(0);
            self.epoch = 1;
        }
    }

    /// Sees a node; `true` if it is new. `false` for numbers without room.
    #[inline]
    pub(super) fn see(&mut self, node: u32) -> bool {
        match self.stamps.get_mut(node as usize) {
            Some(stamp) if *stamp != self.epoch => {
                *stamp = self.epoch;
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
    fn pool_keeps_the_best_and_expands_best_first() {
        let mut pool = Pool::default();
        pool.begin(3);
        for (node, score) in [(1, 0.1), (2, 0.5), (3, 0.3), (4, 0.4)] {
            if pool.admits(score) {
                pool.insert(node, score);
            }
        }
        assert!(!pool.admits(0.3), "an equal score does not push another out");
        assert_eq!(pool.expand(), Some(2));
        pool.offer(5, 0.9);
        assert_eq!((pool.expand(), pool.expand(), pool.expand()), (Some(5), Some(4), None));
        assert_eq!(pool.iter().collect::<Vec<_>>(), [(5, 0.9), (2, 0.5), (4, 0.4)]);
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
