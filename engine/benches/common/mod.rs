//! Clustered vectors from a seed, an index of them, and the searches that are measured.
//!
//! Invariant: the same vectors and the same graph on every machine, whatever the number of threads that build it; a search that
//! takes another path than its name says ends the run. Must not know how a search is measured.

use std::convert::Infallible;

use flashbulb_engine::index::{
    Accept, Layout, Metric, RowSource, Scratch, SearchParams, SearchPath, VectorIndex, VectorNo,
};
use flashbulb_kernels::Kernels;

/// Values of a vector: as many as all-MiniLM-L6-v2 gives.
pub const DIM: usize = 384;
/// Vectors in the graph: enough that a walk is estimated to be cheaper than a scan, also with [`What::FilteredWalk`].
pub const NODES: usize = 8_000;
/// Vectors of the same kind that are not in the graph yet.
pub const NEWCOMERS: usize = 16;
/// Vectors of the same kind to search with.
pub const QUERIES: usize = 32;
/// Hits wanted.
pub const K: usize = 10;

const SEED: u64 = 1;
const CLUSTERS: usize = 80;
/// Dimensions of the surface that the clusters lie on.
const LATENT: usize = 24;

/// Vectors one after the other; the number of each is its place.
pub struct Rows(pub Vec<f32>);

impl Rows {
    pub fn row(&self, vector: VectorNo) -> &[f32] {
        &self.0[vector.0 as usize * DIM..][..DIM]
    }

    pub fn iter(&self) -> impl Iterator<Item = &[f32]> + Clone {
        self.0.chunks_exact(DIM)
    }
}

impl RowSource for Rows {
    type Error = Infallible;

    fn copy_row(&self, vector: VectorNo, out: &mut [f32]) -> Result<(), Infallible> {
        out.copy_from_slice(self.row(vector));
        Ok(())
    }

    fn prefetch(&self, vector: VectorNo) {
        flashbulb_kernels::prefetch(self.row(vector));
    }
}

/// What is searched: the rows of the graph and the newcomers after them, and the queries.
pub struct Data {
    pub rows: Rows,
    pub queries: Rows,
}

impl Data {
    /// Unit vectors in clusters on a surface of few dimensions, with noise in all of them: about what sentence embeddings are like.
    pub fn made() -> Data {
        let mut random = Random(SEED);
        let map: Vec<f32> = (0..LATENT * DIM).map(|_| random.normal()).collect();
        let centres: Vec<f32> = (0..CLUSTERS * LATENT).map(|_| random.normal()).collect();
        let mut rows = Vec::with_capacity((NODES + NEWCOMERS + QUERIES) * DIM);
        for _ in 0..NODES + NEWCOMERS + QUERIES {
            // Small clusters and large ones.
            let cluster = random.below(CLUSTERS).min(random.below(CLUSTERS));
            let centre = &centres[cluster * LATENT..][..LATENT];
            let mut vector: Vec<f32> = (0..DIM).map(|_| 0.3 * random.normal()).collect();
            for (centre, direction) in centre.iter().zip(map.chunks_exact(DIM)) {
                let latent = centre + 0.7 * random.normal();
                vector.iter_mut().zip(direction).for_each(|(v, d)| *v += latent * d);
            }
            let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
            rows.extend(vector.iter().map(|v| v / norm));
        }
        let queries = rows.split_off((NODES + NEWCOMERS) * DIM);
        Data { rows: Rows(rows), queries: Rows(queries) }
    }

    /// An index of the first [`NODES`] rows, all of them in the graph.
    pub fn index(&self, layout: Layout, kernels: Kernels) -> VectorIndex {
        let index = VectorIndex::with_layout(DIM, Metric::Cosine, layout, kernels);
        self.rows.iter().take(NODES).for_each(|row| {
            index.push(row);
        });
        index.build(std::thread::available_parallelism().map_or(1, usize::from));
        assert_eq!(index.graph_len() as usize, NODES, "vectors are left outside of the graph");
        index
    }
}

/// Repeatable pseudo-random numbers (splitmix64: Steele, Lea & Flood 2014).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Roughly normal, mean 0, variance 1: the sum of twelve uniform numbers.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.bits() >> 40) as f32 / (1u32 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// A kind of search.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// The usual walk.
    Walk,
    /// The usual walk, of three vectors in four.
    FilteredWalk,
    /// The exact scan of everything.
    Scan,
}

impl What {
    /// The usual search, or the exact one.
    fn params(self) -> SearchParams {
        SearchParams { exact: matches!(self, What::Scan), ..SearchParams::new(K) }
    }

    fn accept(self) -> Accept<'static> {
        match self {
            What::FilteredWalk => Accept::Test(&|vector| !vector.0.is_multiple_of(4)),
            What::Walk | What::Scan => Accept::All,
        }
    }

    fn path(self) -> SearchPath {
        match self {
            What::Walk | What::FilteredWalk => SearchPath::Graph,
            What::Scan => SearchPath::Scan,
        }
    }

    /// Searches once.
    pub fn search(
        self,
        index: &VectorIndex,
        query: &[f32],
        rows: &Rows,
        scratch: &mut Scratch,
    ) -> usize {
        let Ok(found) = index.search(query, &self.params(), rows, self.accept(), scratch);
        assert_eq!(found.path, self.path(), "{self:?} took another path");
        found.hits.len()
    }
}
