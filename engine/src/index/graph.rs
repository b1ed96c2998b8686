//! The HNSW graph: who neighbours whom on which level.
//!
//! Invariants: nodes are the first `len()` vectors; a node's own lists are written before it can be
//! reached; only one builder writes. Must not know: distances.

use super::VectorNo;
use crate::sync::shim::{AtomicU32, Ordering};
use crate::sync::{AppendReader, AppendVec, EntryPoint, Links};

/// Neighbours of a node on the levels above the base, and links a new node gets on each.
pub(super) const M: usize = 16;
/// Neighbours of a node on the base level.
pub(super) const M_BASE: usize = 2 * M;
/// Highest level: reached by one node in 16¹², so it cuts off nothing.
pub(super) const MAX_LEVEL: u8 = 12;

/// A node's place above the base level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeHead {
    /// Its list on level `l ≥ 1` is `upper[first_upper + l − 1]`.
    pub(super) first_upper: u32,
    /// Its highest level.
    pub(super) level: u8,
}

/// The graph over the first `len()` vectors of an index.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// Pushed last of a node's parts: its length is the length of the graph.
    pub(super) base: AppendVec<Links<M_BASE>>,
    pub(super) heads: AppendVec<NodeHead>,
    pub(super) upper: AppendVec<Links<M>>,
    pub(super) entry: EntryPoint,
    /// Nodes that were dead when their turn came, and so have no links. Written by the builder,
    /// read by the planner as an estimate: Relaxed.
    skipped: AtomicU32,
}

/// The graph as it is at one moment: entry point and nodes that go together.
#[derive(Debug, Clone, Copy)]
pub(super) struct GraphView<'a> {
    /// Node and level where walks begin; the node is in view.
    pub(super) entry: Option<(u32, u8)>,
    pub(super) base: AppendReader<'a, Links<M_BASE>>,
    heads: AppendReader<'a, NodeHead>,
    upper: AppendReader<'a, Links<M>>,
}

impl Graph {
    pub(super) fn len(&self) -> u32 {
        self.base.len()
    }

    /// Nodes without links because they were dead already.
    pub(super) fn skipped(&self) -> u32 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Adds a node with these lists, base level first, that nothing leads to yet.
    pub(super) fn push(&self, level: u8, base: &[u32], upper: &[Vec<u32>]) {
        self.push_links(level, Links::new(base), upper.iter().map(|list| Links::new(list)));
    }

    /// As [`push`](Self::push), with lists that are made already.
    pub(super) fn push_links(
        &self,
        level: u8,
        base: Links<M_BASE>,
        upper: impl IntoIterator<Item = Links<M>>,
    ) {
        let first_upper = self.upper.len();
        for list in upper {
            self.upper.push(list);
        }
        self.heads.push(NodeHead { first_upper, level });
        self.base.push(base);
    }

    /// Adds a dead vector's node: it takes its number and is never reached.
    pub(super) fn push_skipped(&self) {
        self.push(0, &[], &[]);
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn view(&self) -> GraphView<'_> {
        // In this order: the entry point's node was published before it, and a node's parts
        // before its base list.
        let entry = self.entry.load();
        let base = self.base.reader();
        GraphView { entry, base, heads: self.heads.reader(), upper: self.upper.reader() }
    }
}

impl<'a> GraphView<'a> {
    pub(super) fn len(&self) -> u32 {
        self.base.len()
    }

    /// A node's list on a level of 1 or more; `None` if it does not reach that level.
    pub(super) fn upper(&self, node: u32, level: u8) -> Option<&'a Links<M>> {
        let head = self.heads.get(node)?;
        if level == 0 || level > head.level {
            return None;
        }
        self.upper.get(head.first_upper + u32::from(level) - 1)
    }
}

/// The level of a node: a geometric distribution with ratio 1/`M`, from a hash of the number, so
/// that the same pushes give the same graph.
pub(super) fn level_of(node: VectorNo) -> u8 {
    // splitmix64 (Steele, Lea & Flood 2014).
    let mut x = (u64::from(node.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    // Each further level needs log2(M) = 4 more leading zeros.
    ((x.leading_zeros() / M.ilog2()) as u8).min(MAX_LEVEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_in_sixteen_rises() {
        let risen = (0..100_000).filter(|&n| level_of(VectorNo(n)) > 0).count();
        assert!((5_900..6_600).contains(&risen), "{risen}");
    }
}
