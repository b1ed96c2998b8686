//! The graph: a block of neighbours for each node, and the roots where walks begin.
//!
//! Invariants: nodes are the first `len()` vectors; a node's own block is published before another leads to it; what is below
//! `covered()` can be reached. Must not know: how neighbours are chosen.

use super::Layout;
use super::block::{Block, DEGREE, Form, LINE, NONE, ids_of};
use super::fit::Fit;
use super::roots::Roots;
use crate::sync::shim::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{BlockStore, PinnedBlocks, Watermark};
use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use std::ops::Range;
use std::sync::Arc;

/// Neighbours' numbers as a checkpoint has them, of nodes that have no block yet.
#[derive(Debug)]
pub(super) struct Loaded(pub(super) Vec<[[u8; 4]; DEGREE]>);

/// The graph over the first `len()` vectors of an index.
#[derive(Debug)]
pub(super) struct Graph {
    width: usize,
    form: Form,
    pub(super) blocks: BlockStore,
    pub(super) roots: ArcSwap<Roots>,
    /// There until every loaded node has its block.
    pub(super) loaded: ArcSwapOption<Loaded>,
    /// The first so many nodes can be reached by walks. Moved by the builder once the links to them are published, read by searches
    /// before they pin the blocks: what is not below it is scanned.
    covered: Watermark,
    /// Nodes that have no block because they were dead when their turn came, or since a repair. Written by the builder, read by
    /// the planner as an estimate: Relaxed.
    vacant: AtomicU32,
    /// Live nodes that the last survey had to link. Written by the builder, read by whoever asks: Relaxed.
    linked_by_survey: AtomicU32,
    /// How far walks go: the bits of the widening above those of the steps. Written by the builder, read by searches, which go on with
    /// either: Relaxed.
    fit: AtomicU64,
    /// Nodes that there were when that was tried last. Written and read by the builder, and by who saves the graph and holds it off: Relaxed.
    fitted: AtomicU32,
}

/// The graph as it is at one moment. While it is held, no block in it is written again.
pub(super) struct GraphView<'a> {
    width: usize,
    form: Form,
    pub(super) blocks: PinnedBlocks<'a>,
    pub(super) roots: Guard<Arc<Roots>>,
    loaded: Guard<Option<Arc<Loaded>>>,
    covered: u32,
    pub(super) fit: Fit,
}

fn fit_bits(fit: Fit) -> u64 {
    u64::from(fit.widening.to_bits()) << 32 | u64::from(fit.steps.to_bits())
}

impl Graph {
    /// A graph without nodes over vectors of `width` codes.
    pub(super) fn new(width: usize, layout: Layout) -> Graph {
        let form = Form::of(layout, width);
        Graph {
            width,
            form,
            blocks: BlockStore::new(form.bytes()),
            roots: ArcSwap::default(),
            loaded: ArcSwapOption::empty(),
            covered: Watermark::new(),
            vacant: AtomicU32::new(0),
            linked_by_survey: AtomicU32::new(0),
            fit: AtomicU64::new(fit_bits(Fit::default())),
            fitted: AtomicU32::new(0),
        }
    }

    /// Nodes, those included that are not linked yet.
    pub(super) fn len(&self) -> u32 {
        self.blocks.len()
    }

    /// Nodes that walks can reach.
    pub(super) fn covered(&self) -> u32 {
        self.covered.load()
    }

    /// Says that the first `nodes` nodes can be reached. Builder only.
    pub(super) fn cover(&self, nodes: u32) {
        self.covered.store(nodes);
    }

    /// Nodes without a block because they are dead.
    pub(super) fn vacant(&self) -> u32 {
        self.vacant.load(Ordering::Relaxed)
    }

    /// Adds to the nodes without a block. Builder only.
    pub(super) fn add_vacant(&self, nodes: u32) {
        self.vacant.fetch_add(nodes, Ordering::Relaxed);
    }

    /// Live nodes that the last survey had to link.
    pub(super) fn linked_by_survey(&self) -> u32 {
        self.linked_by_survey.load(Ordering::Relaxed)
    }

    /// Says how many a survey linked. Builder only.
    pub(super) fn set_linked_by_survey(&self, nodes: u32) {
        self.linked_by_survey.store(nodes, Ordering::Relaxed);
    }

    /// How far walks go.
    pub(super) fn fit(&self) -> Fit {
        let bits = self.fit.load(Ordering::Relaxed);
        Fit { widening: f32::from_bits((bits >> 32) as u32), steps: f32::from_bits(bits as u32) }
    }

    /// Says how far walks are to go. Builder only.
    pub(super) fn set_fit(&self, fit: Fit) {
        self.fit.store(fit_bits(fit), Ordering::Relaxed);
    }

    /// Nodes that there were when it was last tried how far walks have to go.
    pub(super) fn fitted(&self) -> u32 {
        self.fitted.load(Ordering::Relaxed)
    }

    /// Says that it is tried with so many nodes. Builder only.
    pub(super) fn set_fitted(&self, nodes: u32) {
        self.fitted.store(nodes, Ordering::Relaxed);
    }

    pub(super) fn view(&self) -> GraphView<'_> {
        // In this order: what is covered was published before that was said, and a loaded list goes only when its node has a block.
        let covered = self.covered();
        let loaded = self.loaded.load();
        let blocks = self.blocks.pin();
        GraphView {
            width: self.width,
            form: self.form,
            blocks,
            roots: self.roots.load(),
            loaded,
            covered,
            fit: self.fit(),
        }
    }
}

impl GraphView<'_> {
    pub(super) fn len(&self) -> u32 {
        self.blocks.len()
    }

    pub(super) fn covered(&self) -> u32 {
        self.covered
    }

    /// A node's block, if it has one.
    #[inline]
    pub(super) fn block(&self, node: u32) -> Option<Block<'_>> {
        Some(Block::new(self.blocks.get(node)?, self.form, self.width))
    }

    /// The blocks of the roots.
    pub(super) fn roots(&self) -> impl Iterator<Item = Block<'_>> {
        let form = Form::full(self.width);
        let blocks = self.roots.bytes.chunks_exact(form.bytes());
        blocks.map(move |bytes| Block::new(bytes, form, self.width))
    }

    /// The roots.
    pub(super) fn root_ids(&self) -> Vec<u32> {
        self.roots().flat_map(|block| block.ids().collect::<Vec<_>>()).collect()
    }

    /// The neighbours of a node that was loaded and has no block yet.
    #[inline]
    pub(super) fn loaded(&self, node: u32) -> Option<&[[u8; 4]; DEGREE]> {
        self.loaded.as_ref()?.0.get(node as usize)
    }

    /// The neighbours of a node, wherever they are; fills `out` and returns how many there are.
    pub(super) fn neighbours(&self, node: u32, out: &mut [u32; DEGREE]) -> usize {
        let mut n = 0;
        let mut take = |id: u32| {
            out[n] = id;
            n += 1;
        };
        if let Some(block) = self.block(node) {
            block.ids().for_each(&mut take);
        } else if let Some(ids) = self.loaded(node) {
            ids_of(ids).for_each(&mut take);
        }
        out[n..].fill(NONE);
        n
    }

    /// Cache lines of a block.
    #[inline]
    pub(super) fn block_lines(&self) -> usize {
        self.form.bytes() / LINE
    }

    /// Cache lines at a block's start that hold its node's own codes.
    #[inline]
    pub(super) fn own_lines(&self) -> usize {
        self.form.own / LINE
    }

    /// Asks the processor for where a node's block is.
    #[inline]
    pub(super) fn prefetch_place(&self, node: u32) {
        self.blocks.prefetch_place(node);
    }

    /// Asks the processor for some lines of a node's block.
    #[inline]
    pub(super) fn prefetch(&self, node: u32, lines: Range<usize>) {
        self.blocks.prefetch(node, lines);
    }
}

impl std::fmt::Debug for GraphView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GraphView").field("len", &self.len()).finish_non_exhaustive()
    }
}
