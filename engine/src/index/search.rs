//! One search: plan, walk or scan, rerank.
//!
//! Invariants: only vectors that are live and accepted are returned; the path that is reported is
//! the one that ran. Must not know: how the graph is built.

use super::accept::Accept;
use super::collector::Best;
use super::graph::GraphView;
use super::plan::{Plan, plan};
use super::scan::{Bounds, scan};
use super::scratch::Scratch;
use super::vectors::VectorsView;
use super::walk::{Reach, Walk, Walked};
use super::{Layout, Metric, RowSource, VectorIndex, VectorNo};
use std::convert::Infallible;
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
    /// Best first, equal scores by number: vector and score, as the [`Metric`] has it. Computed from the f32 rows, but after a walk
    /// from 16-bit codes of the vectors: then a score is off by less than 0.0001 of the product of the two lengths, usually by a
    /// millionth. (A bound as long as no rotated value is beyond 6.5 deviations, which a random rotation makes of one vector in millions.) (Squared distances are always from the f32 rows.)
    pub hits: Vec<(VectorNo, f32)>,
    /// What ran.
    pub path: SearchPath,
    /// Vectors whose codes a scan read.
    pub scanned: u64,
    /// Nodes that walks expanded: each scored exactly, and its neighbours estimated.
    pub visited: u64,
    /// Candidates scored anew to rank them.
    pub reranked: u64,
}

impl VectorIndex {
    /// The `k` live, accepted vectors with the best scores. The query's values are to be finite; with others the answer has no meaning.
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
        scratch.collector.begin(params.k);
        let graph = self.graph.load();
        // The graph first: whatever it covers is then in the view of the vectors.
        let graph_view = graph.as_deref().map(|g| (g.view(), g.vacant()));
        let vectors = self.vectors.view();
        scratch.query.set(query, &vectors, self.kernels);
        let mut visited = 0;
        let mut path = SearchPath::Scan;
        let mut scan_from = 0;
        if let Some((view, vacant)) = &graph_view
            && let Plan::Walk(budget) =
                plan(&vectors, (view.covered(), *vacant, view.fit), accept, params)
        {
            let ef = view.fit.widened(params.ef.max(params.k));
            let reach = Reach::of(params.k, ef, budget.steps, !budget.must_end);
            let walked = self.walk(view, vectors, accept, &reach, scratch);
            visited = scratch.trail.expanded as u64;
            let found = walked == Walked::ToTheEnd || walked == Walked::Far && !budget.must_end;
            if found {
                scan_from = view.covered();
                let all = scan_from == vectors.len();
                path = if all { SearchPath::Graph } else { SearchPath::GraphAndScan };
            } else {
                scratch.collector.begin(params.k);
                path = SearchPath::GraphThenScan;
            }
        }
        let range = (scan_from, vectors.len());
        let Scratch { query: codes, collector, .. } = &mut *scratch;
        let is_sure = params.exact || self.layout() == Layout::Full;
        let bounds = if is_sure { Bounds::Sure } else { Bounds::Likely };
        let scanned = scan(&vectors, codes, range, (accept, bounds), self.kernels, collector);
        let walked = graph_view.as_ref().map(|(view, _)| view).filter(|_| scan_from > 0);
        let Best { hits, reranked } = match walked {
            Some(view) if self.is_refined() => self.finish_by_codes(view, &vectors, scratch),
            _ => self.finish_by_rows(query, &vectors, rows, scratch)?,
        };
        Ok(SearchResult { hits, path, scanned, visited, reranked })
    }

    /// Whether fine codes make a score as good as the f32 row does: for L2 they do not, as the difference of two large numbers.
    fn is_refined(&self) -> bool {
        self.layout() == Layout::Full && self.metric() != Metric::L2
    }

    /// The best of the candidates, scored by their f32 rows.
    fn finish_by_rows<R: RowSource + ?Sized>(
        &self,
        query: &[f32],
        vectors: &VectorsView<'_>,
        rows: &R,
        scratch: &mut Scratch,
    ) -> Result<Best, R::Error> {
        let Scratch { query: codes, collector, row, .. } = scratch;
        row.clear();
        row.resize(query.len(), 0.0);
        collector.finish(
            |score| vectors.told(codes, score),
            |vector| rows.prefetch(VectorNo(vector)),
            |vector| {
                rows.copy_row(VectorNo(vector), row)?;
                Ok(vectors.told_by_row(query, row, self.kernels))
            },
        )
    }

    /// The best of the candidates, scored by their fine codes: a quarter of the bytes, and none of them on a disk.
    fn finish_by_codes(
        &self,
        graph: &GraphView<'_>,
        vectors: &VectorsView<'_>,
        scratch: &mut Scratch,
    ) -> Best {
        let Scratch { query, collector, .. } = scratch;
        // A walk has just read the codes in the block.
        let score = |vector| {
            let mut room = Vec::new();
            let own = graph.block(vector).and_then(|block| block.own());
            let own = own.or_else(|| vectors.row(vector, &mut room));
            let score = own.and_then(|own| vectors.fine_score(query, vector, own, self.kernels));
            Ok(score.map_or(f32::NEG_INFINITY, |score| vectors.told(query, score)))
        };
        let told = |score| vectors.told(query, score);
        let best: Result<Best, Infallible> =
            collector.finish(told, |vector| vectors.prefetch_fine(vector), score);
        match best {
            Ok(best) => best,
            Err(never) => match never {},
        }
    }

    /// Walks, and offers what was found unless that is too little.
    fn walk(
        &self,
        graph: &GraphView<'_>,
        vectors: VectorsView<'_>,
        accept: Accept<'_>,
        reach: &Reach,
        scratch: &mut Scratch,
    ) -> Walked {
        let walk = Walk { graph, vectors, kernels: self.kernels };
        let Scratch { query, trail, collector, .. } = scratch;
        query.prepare_walk(self.kernels);
        let covered = graph.covered();
        let returnable = |node: u32| {
            node < covered && !vectors.dead.is_dead(node) && accept.accepts(VectorNo(node))
        };
        let walked = walk.run(query, reach, &returnable, trail);
        if walked != Walked::Nowhere {
            for one in trail.scored.iter().filter(|one| one.returnable) {
                collector.offer(VectorNo(one.node), one.score, one.slack);
            }
        }
        walked
    }
}
