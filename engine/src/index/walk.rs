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
use super::vectors::{QueryCodes, VectorsView};
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
    /// What stands for them before there are as many as the walk is measured by.
    early: Early,
    /// The best nodes that may be returned, best first.
    best: Vec<Found>,
}

/// A node by which the walk is measured.
#[derive(Debug, Clone, Copy)]
struct Found {
    score: f32,
    /// Of an estimate about as good.
    deviation: f32,
    /// Of the score.
    slack: f32,
}

/// A node that was scored by its codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scored {
    pub(super) node: u32,
    pub(super) score: f32,
    /// How far the score may be off: four deviations.
    pub(super) slack: f32,
    /// Half of the squared distance to the query.
    pub(super) half_distance: f32,
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
    /// [`Early::end`]
    early_end: Option<f32>,
    /// A node that the walk does as if it were not there; or [`NONE`].
    hidden: u32,
}

/// The best estimates, by which the first steps of a walk are measured.
///
/// Most candidates of the first steps are far worse than what the next steps find. To leave them out takes some 10 % off a search of
/// 20 steps over 236,000 × 384, and leaves the recall as it is.
#[derive(Debug, Default)]
struct Early {
    /// Best first.
    best: [f32; RANK_MIN],
    /// Deviations below the last of them at which candidates are left out. None if the walk is to find more than these, or if
    /// some of these may not be returned, and when there are exact scores to go by.
    end: Option<f32>,
}

impl Early {
    fn begin(&mut self, end: Option<f32>) {
        *self = Early { best: [f32::NEG_INFINITY; RANK_MIN], end };
    }

    #[inline]
    fn take(&mut self, estimate: f32) {
        if self.end.is_some() && estimate > self.best[RANK_MIN - 1] {
            // Each place at once, in registers: the better of what was there and what is pushed down to it.
            let larger = |a: f32, b: f32| if a > b { a } else { b };
            let old = self.best;
            for at in 1..RANK_MIN {
                let pushed = if old[at - 1] < estimate { old[at - 1] } else { estimate };
                self.best[at] = larger(old[at], pushed);
            }
            self.best[0] = larger(old[0], estimate);
        }
    }

    /// The estimate below which candidates are left out, by how far scores may be off.
    fn least(&self, slack: f32, query: &QueryCodes) -> f32 {
        let last = self.best[RANK_MIN - 1];
        let half_distance = query.half_distance(last);
        self.end.map_or(f32::NEG_INFINITY, |end| {
            last - (end * deviation(half_distance, slack, query)).max(slack / 2.0)
        })
    }
}

/// Best scores that a walk is measured by, at least: by fewer, it ends in the first hollow.
pub(super) const RANK_MIN: usize = 10;
/// Where a walk's reach is none: at this `ef` it ends when the best candidate is estimated to be no better than the k-th best.
const EF_OF_NONE: f32 = 16.0;
/// Deviations that each doubling of `ef` adds. Measured on 236,000 × 384, as all here.
const DEVIATIONS_A_DOUBLING: f32 = 0.75;
/// Deviations further down, candidates are scored still, and at least to so many below the k-th best: a score costs a tenth of a step.
const DEVIATIONS_SCORED: f32 = 0.45;
const DEVIATIONS_SCORED_MIN: f32 = 1.2;
/// Candidates that are scored without a step, at most, for each step: where many are about as near, as words are, there are many more.
const SCORED_OF_STEPS: usize = 2;
/// A walk of so many steps does without candidates that are so many deviations below the score of this rank.
const RANK_OF_STEPS: usize = 32;
const DEVIATIONS_OF_STEPS: f32 = 5.0;
/// Deviations less than for scores, and at least, at which candidates are left out before exact scores are there to go by.
const DEVIATIONS_LESS_EARLY: f32 = 1.55;
const DEVIATIONS_EARLY_MIN: f32 = 0.5;
/// Steps after which candidates are left out by exact scores alone: the first steps' are of nodes far away. With 14 the recall falls.
const EARLY_STEPS: usize = 12;
/// Blocks of roots that are all made candidates.
const BLOCKS_OF_FEW_ROOTS: usize = 4;
/// Deviation of an estimate at one dimension, in parts of the squared distance to the k-th best. RaBitQ's bound has `0.75 / √dim` of
/// the product of two distances, which near the end are both about that one.
const DEVIATION: f32 = 1.5;

impl Reach {
    /// So many steps.
    pub(super) fn steps(steps: usize) -> Reach {
        let (rank, scores_end) = (RANK_OF_STEPS, DEVIATIONS_OF_STEPS);
        Reach { steps, rank, steps_end: f32::INFINITY, scores_end, early_end: None, hidden: NONE }
    }

    /// For the `k` best: wider with `ef`, in at most so many steps; whether any node may be returned.
    pub(super) fn of(k: usize, ef: f32, steps: usize, any: bool) -> Reach {
        let steps_end = DEVIATIONS_A_DOUBLING * (ef / EF_OF_NONE).log2();
        let scores_end = (steps_end + DEVIATIONS_SCORED).max(DEVIATIONS_SCORED_MIN);
        let early_end = (scores_end - DEVIATIONS_LESS_EARLY).max(DEVIATIONS_EARLY_MIN);
        Reach {
            steps,
            rank: k.max(RANK_MIN),
            steps_end,
            scores_end,
            early_end: (any && k <= RANK_MIN).then_some(early_end),
            hidden: NONE,
        }
    }

    /// The same in a graph without a node.
    pub(super) fn hiding(self, node: u32) -> Reach {
        Reach { hidden: node, ..self }
    }
}

/// How a walk came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walked {
    /// It found enough, and what is left is too far below that.
    ToTheEnd,
    /// It found enough when it had made all its steps.
    Far,
    /// It found too little that may be returned.
    Nowhere,
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
    /// The scores of what may be returned, in no order.
    pub(super) fn returnable_scores(&self) -> impl Iterator<Item = f32> + '_ {
        self.scored.iter().filter(|one| one.returnable).map(|one| one.score)
    }

    /// Where the walk ends, by what was found.
    fn ends(&self, reach: &Reach) -> Ends {
        let Some(last) = self.best.get(reach.rank - 1) else {
            return Ends { steps: f32::NEG_INFINITY, scores: f32::NEG_INFINITY };
        };
        // Among vectors so close to one another that scores by codes tell them apart poorly, whoever may be better is scored finer.
        let scores_end = (reach.scores_end * last.deviation).max(last.slack);
        Ends {
            steps: last.score - reach.steps_end * last.deviation,
            scores: last.score - scores_end,
        }
    }

    /// Takes note of a score; whether that moves the end.
    fn found(&mut self, one: &Scored, query: &QueryCodes, rank: usize) -> bool {
        let &Scored { score, slack, half_distance, .. } = one;
        if self.best.len() == rank {
            if self.best.last().is_some_and(|last| score <= last.score) {
                return false;
            }
            self.best.pop();
        }
        let at = self.best.partition_point(|best| best.score >= score);
        let deviation = deviation(half_distance, slack, query);
        self.best.insert(at, Found { score, deviation, slack });
        self.best.len() == rank
    }
}

/// The largest estimate, by lanes that a register holds.
fn most(estimates: &[f32; DEGREE]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 8];
    for some in estimates.as_chunks::<8>().0 {
        for (lane, estimate) in lanes.iter_mut().zip(some) {
            *lane = if *estimate > *lane { *estimate } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The deviation of an estimate about as far from the query as this, from what the f32 row would have: that of the sketch, which is small among
/// vectors that are close to one another, and that of the codes, which is not.
fn deviation(half_distance: f32, slack: f32, query: &QueryCodes) -> f32 {
    let of_sketch = DEVIATION * half_distance.max(f32::MIN_POSITIVE) * query.per_root;
    (of_sketch * of_sketch + slack * slack / 16.0).sqrt()
}

impl Walk<'_> {
    /// The query's score with a node, by the codes in its block or by its row; `None` if it has neither.
    #[inline]
    fn score(&self, query: &QueryCodes, node: u32, block: Option<Block<'_>>) -> Option<Scored> {
        let (measure, dot) = match block.and_then(|block| block.own()) {
            Some((measure, codes)) => (measure, self.kernels.dot_i8(&query.codes, codes)),
            None => self.vectors.product(&query.codes, node, self.kernels)?,
        };
        let score = query.score(&self.vectors, measure, dot);
        Some(Scored {
            node,
            score,
            half_distance: query.half_distance(score),
            slack: query.likely_slack(measure),
            returnable: false,
        })
    }

    /// Walks until all candidates are expanded, or those that are left are too far below what was found and may be returned.
    pub(super) fn run(
        &self,
        query: &QueryCodes,
        reach: &Reach,
        returnable: &dyn Fn(u32) -> bool,
        trail: &mut Trail,
    ) -> Walked {
        trail.pool.begin();
        trail.visited.begin(self.graph.len());
        trail.visited.see(reach.hidden);
        trail.scored.clear();
        trail.best.clear();
        trail.early.begin(reach.early_end);
        let mut ends = trail.ends(reach);
        self.begin_at_roots(query, trail);
        let mut ahead = Ahead { node: NONE, lines: 0 };
        self.look_ahead(trail, &mut ahead);
        self.fetch(&mut ahead, usize::MAX);
        let mut ended = false;
        for _ in 0..reach.steps {
            let Some(node) = trail.pool.expand(ends.steps) else {
                ended = true;
                break;
            };
            // The next one is asked for bit by bit: the processor waits for as many lines at once as it has room for.
            self.look_ahead(trail, &mut ahead);
            self.fetch(&mut ahead, FETCH_LINES);
            let block = self.graph.block(node);
            let Some(mut scored) = self.score(query, node, block) else {
                continue;
            };
            self.fetch(&mut ahead, FETCH_LINES);
            scored.returnable = returnable(node);
            trail.scored.push(scored);
            let score = scored.score;
            if scored.returnable && trail.found(&scored, query, reach.rank) {
                ends = trail.ends(reach);
            }
            if trail.scored.len() >= EARLY_STEPS && trail.best.len() == reach.rank {
                trail.early.end = None;
            }
            let least = ends.scores.max(trail.early.least(scored.slack, query));
            match block {
                Some(block) if block.has_sketch() => {
                    self.estimate(query, block, score, least, trail);
                }
                Some(block) => self.score_all(query, block.ids, least, trail),
                None => {
                    let ids = self.graph.loaded(node);
                    ids.into_iter().for_each(|ids| self.score_all(query, ids, least, trail));
                }
            }
            self.look_ahead(trail, &mut ahead);
            self.fetch(&mut ahead, usize::MAX);
        }
        trail.expanded = trail.scored.len();
        if ends.steps > f32::NEG_INFINITY {
            self.score_rest(query, ends.scores, returnable, trail);
        }
        match (trail.best.len() >= reach.rank, ended) {
            (false, _) => Walked::Nowhere,
            (true, false) => Walked::Far,
            (true, true) => Walked::ToTheEnd,
        }
    }

    /// Makes the roots candidates; where they are many, the best of each block.
    fn begin_at_roots(&self, query: &QueryCodes, trail: &mut Trail) {
        let all = f32::NEG_INFINITY;
        let few = self.graph.roots.count as usize <= BLOCKS_OF_FEW_ROOTS * DEGREE;
        for root in self.graph.roots() {
            if few {
                self.estimate(query, root, 0.0, all, trail);
                continue;
            }
            let mut estimates = [0.0; DEGREE];
            self.estimates(query, root, 0.0, all, &mut estimates);
            let best = most(&estimates);
            if best > all
                && let Some(slot) = estimates.iter().position(|estimate| *estimate == best)
                && trail.visited.see(root.id(slot))
            {
                trail.pool.offer(root.id(slot), best);
                trail.early.take(best);
            }
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
        let rest = trail.pool.rest(least, SCORED_OF_STEPS * trail.expanded);
        for node in rest.clone() {
            self.graph.prefetch(node, 0..self.graph.own_lines());
        }
        for node in rest {
            if let Some(scored) = self.score(query, node, self.graph.block(node)) {
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
        let mut above = self.estimates(query, block, base, least, &mut estimates);
        while above != 0 {
            let slot = above.trailing_zeros() as usize;
            above &= above - 1;
            let id = block.id(slot);
            if trail.visited.see(id) {
                trail.pool.offer(id, estimates[slot]);
                trail.early.take(estimates[slot]);
            }
        }
    }

    /// The estimates of a block, and a bit for each that exceeds `least`.
    #[inline]
    fn estimates(
        &self,
        query: &QueryCodes,
        block: Block<'_>,
        base: f32,
        least: f32,
        estimates: &mut [f32; DEGREE],
    ) -> u32 {
        match query.lifted() {
            Some(height) => self.estimate_lifted(query, block, (base, height), least, estimates),
            None => self.kernels.estimate(&query.table, block.sketch, base, least, estimates),
        }
    }

    /// As the kernel's estimates, of products of lifted vectors.
    fn estimate_lifted(
        &self,
        query: &QueryCodes,
        block: Block<'_>,
        (base, height): (f32, f32),
        least: f32,
        estimates: &mut [f32; DEGREE],
    ) -> u32 {
        // Around the origin, which is not lifted, the base is nothing.
        let lifted = block.own().filter(|own| own.0.scale > 0.0);
        let product = lifted.map_or(base, |own| base - height * self.vectors.height(own.0));
        let all = f32::NEG_INFINITY;
        let present = self.kernels.estimate(&query.table, block.sketch, product, all, estimates);
        let mut above = 0;
        for (slot, estimate) in estimates.iter_mut().enumerate() {
            if present >> slot & 1 == 1
                && let Some(measure) = self.vectors.measure(block.id(slot))
            {
                *estimate += height * self.vectors.height(measure);
                above |= u32::from(*estimate > least) << slot;
            }
        }
        above
    }

    /// Offers neighbours that have no sketch by their own scores, those that exceed `least`.
    fn score_all(&self, query: &QueryCodes, ids: &[[u8; 4]], least: f32, trail: &mut Trail) {
        let mut new = [NONE; DEGREE];
        let mut n = 0;
        for id in ids_of(ids) {
            if trail.visited.see(id) {
                self.vectors.prefetch(id);
                new[n] = id;
                n += 1;
            }
        }
        for id in &new[..n] {
            if let Some(scored) = self.score(query, *id, None)
                && scored.score > least
            {
                trail.pool.offer(*id, scored.score);
                trail.early.take(scored.score);
            }
        }
    }
}
