//! The best-first walk over the graph.
//!
//! Invariant: it allocates nothing, waits for nobody, and ends: every node enters the pool at most once. Must not know: who is dead
//! or accepted.
//!
//! A step takes the best candidate, scores it exactly by its codes, and estimates its 32 neighbours from its block; those that
//! are not too far off enter the pool by their estimates (Gou et al., *SymphonyQG*, SIGMOD 2025). The walk ends when the best
//! candidate left is estimated so many deviations below the k-th best found (a beam that adapts to the query, as in arXiv
//! 2505.15636, with the deviation of RaBitQ's estimates for a measure); what is left but close to that is scored without a step.

use super::block::{Block, DEGREE, NONE, ids_of};
use super::graph::GraphView;
use super::pool::{Pool, Visited};
use super::vectors::{Measure, QueryCodes, VectorsView};
use flashbulb_kernels::Kernels;

/// Everything a walk reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk<'a> {
    pub(super) graph: &'a GraphView<'a>,
    pub(super) vectors: VectorsView<'a>,
    pub(super) kernels: Kernels,
}

/// What a walk writes.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// Candidates by their estimates.
    pub(super) pool: Pool,
    visited: Visited,
    /// Nodes that were scored exactly: first those that were expanded, in the order of the walk.
    pub(super) scored: Vec<Scored>,
    /// How many were expanded.
    pub(super) expanded: usize,
    /// The best exact scores of nodes that may be returned, best first.
    best: Vec<f32>,
}

/// A node that was scored by its codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scored {
    pub(super) node: u32,
    pub(super) score: f32,
    /// How far the score may be off.
    pub(super) slack: f32,
    /// Whether the search may return it: asked once, as a filter may be slow.
    pub(super) returnable: bool,
}

/// How far a walk goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    /// Most steps.
    steps: usize,
    /// The score of this rank is what the walk is measured by.
    rank: usize,
    /// Deviations of an estimate below that score at which steps end.
    steps_end: f32,
    /// Deviations below it at which a candidate is of no use.
    scores_end: f32,
}

/// Best scores that a walk is measured by, at least: by fewer, it ends in the first hollow.
const RANK_MIN: usize = 10;
/// Steps for each candidate that is to be kept: enough that the walk ends by its own rule.
const STEPS_FOR_EF: usize = 4;
/// Where a walk's reach is none: at this `ef` it ends when the best candidate is estimated to be no better than the k-th best.
const EF_OF_NONE: f32 = 16.0;
/// Deviations that each doubling of `ef` adds. Measured on 236,000 × 384, as all here.
const DEVIATIONS_A_DOUBLING: f32 = 0.75;
/// Deviations further down, candidates are scored still, and at least to so many below the k-th best: a score costs a tenth of a step.
const DEVIATIONS_SCORED: f32 = 1.2;
const DEVIATIONS_SCORED_MIN: f32 = 1.5;
/// A walk of so many steps does without candidates that are so many deviations below the score of this rank.
const RANK_OF_STEPS: usize = 32;
const DEVIATIONS_OF_STEPS: f32 = 5.0;
/// Deviation of an estimate at one dimension, in parts of the squared distance to the k-th best. RaBitQ's bound has `0.75 / √dim` of
/// the product of two distances, which near the end are both about that one.
const DEVIATION: f32 = 1.5;

impl Reach {
    /// So many steps.
    pub(super) fn steps(steps: usize) -> Reach {
        let (rank, scores_end) = (RANK_OF_STEPS, DEVIATIONS_OF_STEPS);
        Reach { steps, rank, steps_end: f32::INFINITY, scores_end }
    }

    /// For the `k` best: wider with `ef`. The most steps are a multiple of `pool`, as many candidates as are to be found.
    pub(super) fn of(k: usize, ef: usize, pool: usize) -> Reach {
        let steps_end = DEVIATIONS_A_DOUBLING * (ef as f32 / EF_OF_NONE).log2();
        Reach {
            steps: pool.saturating_mul(STEPS_FOR_EF),
            rank: k.max(RANK_MIN),
            steps_end,
            scores_end: (steps_end + DEVIATIONS_SCORED).max(DEVIATIONS_SCORED_MIN),
        }
    }
}

/// The block that is on its way to the cache, and how many of its lines were asked for.
#[derive(Debug)]
struct Ahead {
    node: u32,
    lines: usize,
}

/// Lines that are asked for before a step; as many after its first product, the rest at its end.
const FETCH_LINES: usize = 8;

/// Estimates below which a walk does without.
#[derive(Debug, Clone, Copy)]
struct Ends {
    /// Steps end.
    steps: f32,
    /// Scores end.
    scores: f32,
}

impl Trail {
    /// Where the walk ends, by what was found.
    fn ends(&self, reach: &Reach, width: usize) -> Ends {
        let Some(score) = self.best.get(reach.rank - 1) else {
            return Ends { steps: f32::NEG_INFINITY, scores: f32::NEG_INFINITY };
        };
        // Of unit vectors: half of the squared distance.
        let distance = (1.0 - score).max(f32::MIN_POSITIVE);
        let deviation = DEVIATION * distance / (width as f32).sqrt();
        Ends {
            steps: score - reach.steps_end * deviation,
            scores: score - reach.scores_end * deviation,
        }
    }

    /// Whether as many were found as the walk was to be measured by.
    pub(super) fn found_enough(&self, reach: &Reach) -> bool {
        self.best.len() >= reach.rank
    }

    /// Takes note of a score; whether that moves the end.
    fn found(&mut self, score: f32, rank: usize) -> bool {
        if self.best.len() == rank {
            if self.best.last().is_some_and(|last| score <= *last) {
                return false;
            }
            self.best.pop();
        }
        let at = self.best.partition_point(|s| *s >= score);
        self.best.insert(at, score);
        self.best.len() == rank
    }
}

impl Walk<'_> {
    /// The query's product with a node, by its codes.
    #[inline]
    fn score(&self, query: &QueryCodes, node: u32, (measure, codes): (Measure, &[i8])) -> Scored {
        let dot = self.kernels.dot_i8(&query.codes, codes) as f32;
        Scored {
            node,
            score: dot * measure.scale * query.scale,
            slack: query.likely_slack(measure),
            returnable: false,
        }
    }

    /// Walks until all candidates are expanded, or those that are left are too far below what was found and may be returned.
    pub(super) fn run(
        &self,
        query: &QueryCodes,
        reach: &Reach,
        returnable: &dyn Fn(u32) -> bool,
        trail: &mut Trail,
    ) {
        trail.pool.begin();
        trail.visited.begin(self.graph.len());
        trail.scored.clear();
        trail.best.clear();
        let mut ends = trail.ends(reach, query.codes.len());
        for root in self.graph.roots() {
            self.estimate(query, root, 0.0, ends.scores, trail);
        }
        let mut ahead = Ahead { node: NONE, lines: 0 };
        for _ in 0..reach.steps {
            let Some(node) = trail.pool.expand(ends.steps) else { break };
            // The next one is asked for bit by bit: the processor waits for as many lines at once as it has room for.
            self.look_ahead(trail, &mut ahead);
            self.fetch(&mut ahead, FETCH_LINES);
            let block = self.graph.block(node);
            let own = block.map(|block| block.own());
            let Some(own) = own.or_else(|| self.vectors.row(node)) else {
                continue;
            };
            let mut scored = self.score(query, node, own);
            self.fetch(&mut ahead, FETCH_LINES);
            scored.returnable = returnable(node);
            trail.scored.push(scored);
            let score = scored.score;
            if scored.returnable && trail.found(score, reach.rank) {
                ends = trail.ends(reach, query.codes.len());
            }
            if let Some(block) = block {
                self.estimate(query, block, score, ends.scores, trail);
            } else if let Some(ids) = self.graph.loaded(node) {
                self.score_all(query, ids, trail);
            }
            self.look_ahead(trail, &mut ahead);
            self.fetch(&mut ahead, usize::MAX);
        }
        trail.expanded = trail.scored.len();
        if ends.steps > f32::NEG_INFINITY {
            self.score_rest(query, ends.scores, returnable, trail);
        }
    }

    /// Turns to the best candidate, if it is another one.
    #[inline]
    fn look_ahead(&self, trail: &Trail, ahead: &mut Ahead) {
        if let Some(next) = trail.pool.peek()
            && next != ahead.node
        {
            *ahead = Ahead { node: next, lines: 0 };
        }
        // One of them comes after that; where its block is must be known before it can be asked for.
        trail.pool.runners_up().for_each(|node| self.graph.prefetch_place(node));
    }

    /// Asks for some more lines of the block that comes next.
    #[inline]
    fn fetch(&self, ahead: &mut Ahead, lines: usize) {
        let to = ahead.lines.saturating_add(lines).min(self.graph.block_lines());
        if ahead.lines < to {
            self.graph.prefetch(ahead.node, ahead.lines..to);
            ahead.lines = to;
        }
    }

    /// Scores candidates that the walk left.
    fn score_rest(
        &self,
        query: &QueryCodes,
        least: f32,
        returnable: &dyn Fn(u32) -> bool,
        trail: &mut Trail,
    ) {
        for node in trail.pool.rest(least) {
            self.vectors.prefetch(node);
        }
        for node in trail.pool.rest(least) {
            if let Some(own) = self.vectors.row(node) {
                let scored = self.score(query, node, own);
                trail.scored.push(Scored { returnable: returnable(node), ..scored });
            }
        }
    }

    /// Offers the neighbours in a block whose estimates exceed `least`, around a centre whose product with the query is `base`.
    #[inline]
    fn estimate(
        &self,
        query: &QueryCodes,
        block: Block<'_>,
        base: f32,
        least: f32,
        trail: &mut Trail,
    ) {
        let mut estimates = [0.0; DEGREE];
        let mut above =
            self.kernels.estimate(&query.table, block.sketch, base, least, &mut estimates);
        while above != 0 {
            let slot = above.trailing_zeros() as usize;
            above &= above - 1;
            let id = block.id(slot);
            if trail.visited.see(id) {
                trail.pool.offer(id, estimates[slot]);
            }
        }
    }

    /// Offers neighbours that have no sketch yet by their exact scores.
    fn score_all(&self, query: &QueryCodes, ids: &[[u8; 4]; DEGREE], trail: &mut Trail) {
        ids_of(ids).for_each(|id| self.vectors.prefetch(id));
        for id in ids_of(ids) {
            if trail.visited.see(id)
                && let Some(own) = self.vectors.row(id)
            {
                trail.pool.offer(id, self.score(query, id, own).score);
            }
        }
    }
}
