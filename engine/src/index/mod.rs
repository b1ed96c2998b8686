//! The vector index of one space: exact scan for small spaces, a graph with a scanned tail for large.
//!
//! Invariants: a vector is findable as soon as [`VectorIndex::push`] returns, and never again once
//! [`VectorIndex::kill`] returns; a scan answers exactly although it reads only i8 codes; searches
//! wait for no writer; an idle index costs about a kilobyte, no thread and no buffer.
//! Must not know: memories, filters' language, files, spaces.
//!
//! Vectors are numbered densely in the order of their pushes. A prefix of them is in the graph, one level of nodes whose blocks
//! hold sketches of their neighbours (Gou et al., *SymphonyQG*, SIGMOD 2025, here grown and repaired while it is searched);
//! [`VectorIndex::build_step`] moves the border. The f32 rows stay with the caller ([`RowSource`]) and are read only to rerank the
//! last few candidates.

mod accept;
mod audit;
mod block;
mod build;
mod checkpoint;
mod choose;
mod collector;
mod fit;
mod graph;
mod link;
mod occlusion;
mod plan;
mod pool;
mod repair;
mod roots;
mod scan;
mod scratch;
mod search;
mod survey;
#[cfg(all(test, not(loom)))]
mod tests;
mod vectors;
mod walk;

pub use accept::{Accept, VectorBits};
pub use audit::Audit;
pub use checkpoint::LoadError;
pub use scratch::Scratch;
pub use search::{SearchParams, SearchPath, SearchResult};

use crate::sync::shim::Mutex;
use arc_swap::ArcSwapOption;
use flashbulb_kernels::Kernels;
use graph::Graph;
use serde::Serialize;
use std::fmt;
use vectors::Vectors;

/// Number of a vector in its index: 0, 1, 2, … in the order of the pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VectorNo(pub u32);

/// How vectors are compared. A larger score is always the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metric {
    /// The cosine: the dot product of vectors that the caller brought to unit length, queries too.
    #[default]
    Cosine,
    /// The dot product of vectors of any length.
    Dot,
    /// The squared Euclidean distance, with a minus.
    L2,
}

/// How an index keeps its vectors and links. What it finds is the same but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// For speed: all that a step of a walk reads lies side by side. Some 3 KiB a vector at 384 values.
    #[default]
    Full,
    /// For little memory: codes of four bits and bare links, some 400 bytes a vector at 384 values; a search reads more of the f32 rows.
    Lean,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Layout::Full => "full",
            Layout::Lean => "lean",
        })
    }
}

/// Live vectors from which a graph is built. Below, a scan is as fast and exact: measured at 384
/// dimensions (`docs/ARCHITECTURE.md`, Index), a scan of 4,000 takes about as long as a walk.
pub const GRAPH_FROM: u32 = 4_096;

/// Where the f32 rows are. Reading one must not block: it happens within a search.
pub trait RowSource {
    /// Why a row could not be read.
    type Error;

    /// Copies the row of a vector that was pushed; `out` has the index's dimension.
    ///
    /// # Errors
    ///
    /// If the row cannot be read; the search then fails with this error.
    fn copy_row(&self, vector: VectorNo, out: &mut [f32]) -> Result<(), Self::Error>;

    /// Asks the processor for a row that will be copied soon, if it can.
    fn prefetch(&self, _vector: VectorNo) {}
}

/// The index of one space. Shared freely: searches and kills from any thread, pushes from one at a
/// time, and one builder at a time.
pub struct VectorIndex {
    kernels: Kernels,
    vectors: Vectors,
    /// The graph over the first `graph.covered()` vectors; `None` while the space is small.
    graph: ArcSwapOption<Graph>,
    /// What a builder keeps between steps; there only while there is something to build.
    builder: Mutex<Option<Box<build::Builder>>>,
}

impl VectorIndex {
    /// An empty index of vectors of `dim` values and unit length.
    ///
    /// # Panics
    ///
    /// If `dim` is 0.
    pub fn new(dim: usize, kernels: Kernels) -> VectorIndex {
        VectorIndex::with_metric(dim, Metric::Cosine, kernels)
    }

    /// An empty index of vectors of `dim` values that are compared like this.
    ///
    /// # Panics
    ///
    /// If `dim` is 0.
    pub fn with_metric(dim: usize, metric: Metric, kernels: Kernels) -> VectorIndex {
        VectorIndex::with_layout(dim, metric, Layout::Full, kernels)
    }

    /// An empty index of vectors of `dim` values that are compared and kept like this.
    ///
    /// # Panics
    ///
    /// If `dim` is 0.
    pub fn with_layout(
        dim: usize,
        metric: Metric,
        layout: Layout,
        kernels: Kernels,
    ) -> VectorIndex {
        VectorIndex {
            kernels,
            vectors: Vectors::new(dim, metric, layout),
            graph: ArcSwapOption::empty(),
            builder: Mutex::new(None),
        }
    }

    /// Values in a vector.
    pub fn dim(&self) -> usize {
        self.vectors.dim()
    }

    /// How vectors are compared.
    pub fn metric(&self) -> Metric {
        self.vectors.metric()
    }

    /// How vectors and links are kept.
    pub fn layout(&self) -> Layout {
        self.vectors.layout()
    }

    /// Adds a vector; the next search finds it. One writer at a time. Its values are to be finite: one with an infinity or NaN is kept,
    /// and found or not, and with what score, is not said.
    ///
    /// # Panics
    ///
    /// If it is not `dim` values long, or the index holds [`MAX_ITEMS`](crate::sync::MAX_ITEMS).
    pub fn push(&self, vector: &[f32]) -> VectorNo {
        self.vectors.push(vector, self.kernels)
    }

    /// Hides a vector from every search that begins from now on. There is no way back, and a
    /// checkpoint keeps it: call it once the delete is durable. `false` if it was hidden already
    /// or never pushed.
    pub fn kill(&self, vector: VectorNo) -> bool {
        self.vectors.dead().kill(vector.0)
    }

    /// Whether the vector was killed.
    pub fn is_dead(&self, vector: VectorNo) -> bool {
        self.vectors.dead().is_dead(vector.0)
    }

    /// Vectors pushed, the killed ones included.
    pub fn len(&self) -> u32 {
        self.vectors.len()
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Vectors that searches can find.
    pub fn live(&self) -> u32 {
        // Loaded first: a kill follows its push, so the count cannot exceed a later length.
        let dead = self.vectors.dead().count();
        self.len().saturating_sub(dead)
    }

    /// Vectors that the graph covers: the first so many. The others are scanned.
    pub fn graph_len(&self) -> u32 {
        self.graph.load().as_ref().map_or(0, |graph| graph.covered())
    }

    /// Live vectors that the last survey of the graph, which follows growth and repairs, had to link, as no way of links led to them.
    pub fn linked_by_survey(&self) -> u32 {
        self.graph.load().as_ref().map_or(0, |graph| graph.linked_by_survey())
    }
}

/// Spreads numbers over all of u64 (splitmix64: Steele, Lea & Flood 2014).
fn hash(vector: VectorNo) -> u64 {
    let mut x = (u64::from(vector.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl fmt::Debug for VectorIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VectorIndex")
            .field("dim", &self.dim())
            .field("len", &self.len())
            .field("live", &self.live())
            .field("graph_len", &self.graph_len())
            .finish_non_exhaustive()
    }
}
