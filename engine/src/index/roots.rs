//! Roots: the nodes that a walk looks at first.
//!
//! Invariants: the same graph gives the same roots; there are as many as it takes to find a sample of the nodes by themselves, and no
//! more than that doubled. Must not know: queries, who deletes.
//!
//! A sample of the nodes serves as well as levels above the graph, and needs no upkeep (Munyampirwa et al., *Down with the
//! hierarchy*, arXiv 2412.01940), as long as links lead everywhere. They do not from one tight cluster to another that is as far away
//! as all others: each node's neighbours are in its own. So whether roots suffice is tried, and if not, they are doubled.

use super::block::{DEGREE, Pen};
use super::graph::Graph;
use super::link::Linker;
use super::{VectorIndex, VectorNo};
use std::sync::Arc;

/// Roots where they suffice: eight blocks of them. Measured on 236,000 × 384: twice as many save 0.4 steps, which is as much as to look
/// at them costs.
const ROOTS: u32 = 8 * DEGREE as u32;
/// Roots at most: a walk looks at all of them.
pub(super) const ROOTS_MAX: u32 = 64 * DEGREE as u32;
/// A root stands for so many nodes at least, if there are more than [`ROOTS`].
const NODES_OF_ROOT: u32 = 4;
/// Nodes that are looked for.
const PROBES: u32 = 256;
/// So many of them may be lost: a walk misses some of any graph's.
const LOST: u32 = 1;

/// Where walks begin: blocks around the origin whose neighbours are a sample of the nodes.
#[derive(Debug)]
pub(super) struct Roots {
    /// Blocks, one after the other.
    pub(super) bytes: Vec<u8>,
    /// Nodes in them.
    pub(super) count: u32,
    /// Nodes that there should be in them.
    pub(super) wanted: u32,
    /// Nodes that the graph had when they were chosen.
    pub(super) of: u32,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { bytes: Vec::new(), count: 0, wanted: ROOTS, of: 0 }
    }
}

impl Roots {
    /// These nodes as roots, chosen among the first `of`.
    pub(super) fn draw(pen: Pen<'_>, ids: &[u32], of: u32) -> Roots {
        let pen = pen.for_roots();
        let block = pen.block_bytes();
        let mut bytes = vec![0; block * ids.len().div_ceil(DEGREE)];
        for (block, ids) in bytes.chunks_exact_mut(block).zip(ids.chunks(DEGREE)) {
            pen.draw(None, ids, block);
        }
        let count = ids.len() as u32;
        Roots { bytes, count, wanted: count.max(ROOTS), of }
    }

    /// A sample of the live nodes that have blocks.
    fn sample(graph: &Graph, index: &VectorIndex, wanted: u32) -> Roots {
        let vectors = index.vectors.view();
        let view = graph.view();
        let nodes = view.len();
        let mut ids: Vec<u32> = Vec::new();
        let usable = |id: u32| {
            !vectors.dead.is_dead(id) && (view.block(id).is_some() || view.loaded(id).is_some())
        };
        if nodes <= 4 * wanted {
            ids.extend((0..nodes).filter(|id| usable(*id)).take(wanted as usize));
        } else {
            // Tried often enough that even a graph nine tenths dead gives almost all.
            let tries = (0..40 * wanted).map(|at| super::hash(VectorNo(at)) % u64::from(nodes));
            let mut taken = vec![false; nodes as usize];
            for id in tries.map(|id| id as u32) {
                if ids.len() < wanted as usize && usable(id) && !taken[id as usize] {
                    taken[id as usize] = true;
                    ids.push(id);
                }
            }
        }
        let pen = Pen::new(vectors, index.kernels);
        Roots { wanted, ..Roots::draw(pen, &ids, nodes) }
    }
}

impl Linker {
    /// Chooses new roots when the graph has doubled since the last ones, or the last ones are gone.
    pub(super) fn refresh_roots(&mut self, index: &VectorIndex) {
        let nodes = self.graph.len();
        let roots = self.graph.roots.load();
        if roots.count < ROOTS || nodes / 2 >= roots.of {
            self.choose_roots(index);
        }
    }

    /// Chooses new roots among the live nodes, as many as before.
    pub(super) fn choose_roots(&mut self, index: &VectorIndex) {
        let wanted = self.graph.roots.load().wanted;
        self.choose_so_many_roots(index, wanted);
    }

    fn choose_so_many_roots(&mut self, index: &VectorIndex, wanted: u32) {
        let roots = Roots::sample(&self.graph, index, wanted);
        self.graph.roots.store(Arc::new(roots));
    }
}

/// Trying whether walks from the roots find nodes by themselves.
#[derive(Debug, Default)]
pub(super) struct Probe {
    tried: u32,
    lost: u32,
    /// Roots that there were before they were doubled, and how many nodes they lost.
    before: Option<(u32, u32)>,
}

impl Probe {
    /// Looks for one more node; `None` when the roots are as many as is of use.
    pub(super) fn advance(mut self, linker: &mut Linker, index: &VectorIndex) -> Option<Probe> {
        let nodes = linker.graph.len();
        if self.tried < PROBES && nodes > 0 {
            // Others than those that may be roots.
            let node = (super::hash(VectorNo(!self.tried)) % u64::from(nodes)) as u32;
            self.tried += 1;
            self.lost += u32::from(!linker.finds(index, node));
            return Some(self);
        }
        let (wanted, live) = (linker.graph.roots.load().wanted, index.live());
        if let Some((fewer, lost)) = self.before
            && self.lost > lost / 2
        {
            // What they miss is not for want of roots.
            linker.choose_so_many_roots(index, fewer);
            return None;
        }
        if self.lost <= LOST || wanted >= ROOTS_MAX.min(live / NODES_OF_ROOT) {
            return None;
        }
        linker.choose_so_many_roots(index, wanted * 2);
        Some(Probe { tried: 0, lost: 0, before: Some((wanted, self.lost)) })
    }
}
