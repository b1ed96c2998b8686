//! One search: plan, walk or scan, rerank.
//!
//! Invariants: only vectors that are live and accepted are returned; the path that is reported is
//! the one that ran. Must not know: how the graph is built.

use super::accept::Accept;
use super::collector::{Best, Collector};
use super::graph::GraphView;
use super::plan::{Plan, plan};
use super::scan::scan;
use super::scratch::Scratch;
use super::vectors::VectorsView;
use super::walk::{Reach, Walk};
use super::{RowSource, VectorIndex, VectorNo};
use std::fmt;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchParams {
    /// Hits wanted, at least 1.
    pub k: usize,
    /// How far a walk goes: more is more exact and slower. As a pool of so many candidates would, roughly; raised to `k` if below.
    pub ef: usize,
    /// Scan everything, however long it takes.
    pub exact: bool,
}

impl SearchParams {
    /// How far a walk goes by default: recall@10 of 0.99 on 236,000 turns of 384 components (`docs/ARCHITECTURE.md`, Index).
    pub const DEFAULT_EF: usize = 64;

    /// The usual search for `k` hits.
    pub fn new(k: usize) -> SearchParams {
        SearchParams { k, ef: SearchParams::DEFAULT_EF, exact: false }
    }
}

/// What a search ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchPath {
    /// The exact scan of everything.
    Scan,
    /// The graph alone: it covers every vector.
    Graph,
    /// The graph, and a scan of the vectors that are not in it yet.
    GraphAndScan,
    /// The graph found too few, so the exact scan of everything followed.
    GraphThenScan,
}

impl fmt::Display for SearchPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SearchPath::Scan => "scan",
            SearchPath::Graph => "graph",
            SearchPath::GraphAndScan => "graph+scan",
            SearchPath::GraphThenScan => "graph, then scan",
        })
    }
}

/// What a search found, and what it cost.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchResult {
    /// Best first, equal scores by number: vector and dot product with the query (the cosine, as
    /// both are unit vectors), computed from the f32 rows.
    pub hits: Vec<(VectorNo, f32)>,
    /// What ran.
    pub path: SearchPath,
    /// Vectors whose codes a scan read.
    pub scanned: u64,
    /// Nodes that walks expanded: each scored exactly, and its neighbours estimated.
    pub visited: u64,
    /// f32 rows read to rerank.
    pub reranked: u64,
}

impl VectorIndex {
    /// The `k` live, accepted vectors with the largest dot product with the query.
    ///
    /// # Errors
    ///
    /// If a row cannot be read: the error of `rows`.
    ///
    /// # Panics
    ///
    /// If `k` is 0 or the query is not `dim` values long.
    pub fn search<R: RowSource + ?Sized>(
        &self,
        query: &[f32],
        params: &SearchParams,
        rows: &R,
        accept: Accept<'_>,
        scratch: &mut Scratch,
    ) -> Result<SearchResult, R::Error> {
        assert!(params.k > 0, "a search asks for at least one hit");
        assert_eq!(query.len(), self.dim(), "a query has the index's dimension");
        scratch.query.set(query, self.vectors.view().rotation, self.kernels);
        scratch.collector.begin(params.k);
        let graph = self.graph.load();
        // The graph first: whatever it covers is then in the view of the vectors.
        let graph_view = graph.as_deref().map(|g| (g.view(), g.vacant()));
        let vectors = self.vectors.view();
        let mut visited = 0;
        let mut path = SearchPath::Scan;
        let mut scan_from = 0;
        if let Some((view, vacant)) = graph_view
            && let Plan::Walk { pool, pool_max, want } =
                plan(&vectors, view.covered(), vacant, accept, params)
        {
            let mut widths =
                Widths { k: params.k, ef: params.ef.max(params.k), pool, pool_max, want };
            let found = self.walk(&view, vectors, accept, &mut widths, scratch, &mut visited);
            if found {
                scan_from = view.covered();
                let all = scan_from == vectors.len();
                path = if all { SearchPath::Graph } else { SearchPath::GraphAndScan };
            } else {
                path = SearchPath::GraphThenScan;
            }
        }
        let Scratch { query: codes, collector, .. } = scratch;
        let range = (scan_from, vectors.len());
        let scanned = scan(&vectors, codes, range, accept, self.kernels, collector);
        let Best { hits, reranked } = collector.finish(query, self.kernels, rows)?;
        Ok(SearchResult { hits, path, scanned, visited, reranked })
    }

    /// Walks with wider and wider pools until enough candidates may be returned, and offers them.
    /// `false`, with nothing offered, if there were too few even in the widest.
    fn walk(
        &self,
        graph: &GraphView<'_>,
        vectors: VectorsView<'_>,
        accept: Accept<'_>,
        widths: &mut Widths,
        scratch: &mut Scratch,
        visited: &mut u64,
    ) -> bool {
        let walk = Walk { graph, vectors, kernels: self.kernels };
        scratch.query.prepare_walk(self.kernels);
        let covered = graph.covered();
        let returnable = |node: u32| {
            node < covered && !vectors.dead.is_dead(node) && accept.accepts(VectorNo(node))
        };
        loop {
            let Scratch { query, trail, .. } = scratch;
            let reach = Reach::of(widths.k, widths.ef, widths.pool);
            walk.run(query, &reach, &returnable, trail);
            *visited += trail.expanded as u64;
            let (found, exhausted) = (trail.found_enough(&reach), trail.pool.is_empty());
            let offered = offer_scored(scratch);
            if found || offered >= widths.want {
                return true;
            }
            scratch.collector.begin_again();
            if exhausted || widths.pool >= widths.pool_max {
                return false;
            }
            widths.pool = (widths.pool * 2).min(widths.pool_max);
        }
    }
}

/// How far to walk, and how many of what is found must be returnable.
struct Widths {
    k: usize,
    ef: usize,
    pool: usize,
    pool_max: usize,
    want: usize,
}

/// Offers what the walk scored and the search may return; returns how many that are.
fn offer_scored(scratch: &mut Scratch) -> usize {
    let Scratch { trail, collector, .. } = scratch;
    let collector: &mut Collector = collector;
    let mut offered = 0;
    for one in trail.scored.iter().filter(|one| one.returnable) {
        collector.offer(VectorNo(one.node), one.score, one.slack);
        offered += 1;
    }
    offered
}
