//! Walk or scan: the choice, by estimated cost.
//!
//! Invariant: a wrong estimate costs time, never recall: a walk that finds too few ends in the
//! scan. Must not know: how either is done.
//!
//! Deleted and unaccepted nodes are walked through but not returned, so if a share `f` of the nodes may be returned, a walk takes about
//! `1 / f` of its usual steps, which are known ([`Fit`]). In units of one row that is scanned in its turn, a step costs so many ([`Costs`]), the scan of everything one a row and
//! that of a set some a member. The cheaper one runs. For a test, `f` comes from a sample of the vectors; for a set and
//! for deletes it is known. Where the accepted ones lie is not known: if far from the query, a walk has to go through all that are
//! nearer. So it may cost as much as the scan, and then the scan follows.

use super::accept::Accept;
use super::block::{Form, LINE};
use super::fit::Fit;
use super::search::SearchParams;
use super::vectors::{VectorsView, code_bytes};
use super::{Layout, VectorNo};

/// What things cost, in rows that a scan reads in their turn.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// A step of a walk, with what is scored besides.
    step: f64,
    /// Scoring a member of a set, whose row lies anywhere.
    member: f64,
}

impl Costs {
    /// By the cache lines of a row and of a block, from nanoseconds on a Zen 5 with AVX-512 (by hand: scans, sets of 5 % and walks over
    /// 236,000 × 100 and 384, 100,000 × 768, 60,000 × 1,536). Full: rows of 4, 12, 24 and 48, members 17, 20, 29 and 45, steps 370, 330, 470
    /// and 960. Lean: 7, 8, 14 and 30, 22, 23, 30 and 47, 670, 770, 900 and 1,280. On a Sapphire Rapids a row of 384 takes 24, a step 600.
    fn of(vectors: &VectorsView<'_>) -> Costs {
        let (layout, width) = (vectors.layout(), vectors.width());
        let (codes, _) = code_bytes(width, layout);
        let lines = codes.div_ceil(LINE) as f64;
        let block_lines = (Form::of(layout, width).bytes() / LINE) as f64;
        let (row, member, step) = match layout {
            Layout::Full => (2.0 * lines, 12.0 + 1.8 * lines, 200.0 + 5.0 * block_lines),
            Layout::Lean => (3.0 + 2.3 * lines, 13.0 + 2.8 * lines, 620.0 + 55.0 * lines),
        };
        Costs { step: step / row, member: member / row }
    }
}

/// Most steps of a walk, where nothing is restricted, in its usual ones. Where many are about as near, as words are, some walks take ten
/// times as many as most, and four times `ef`, as it was, cut off what they were to find (docs/ARCHITECTURE.md, Index).
const STEPS_MOST: f64 = 16.0;
/// A smaller share of the nodes than this may be returned: a restriction.
const ALMOST_ALL: f64 = 0.95;
/// Vectors that a test is tried on.
const SAMPLE: u32 = 256;
/// Fewer accepted in the sample than this, and the estimate is too rough to walk by.
const SAMPLE_MIN: u32 = 4;

/// What a search does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Scan everything.
    Scan,
    /// Walk, and scan what the graph does not cover.
    Walk(Budget),
}

/// How far a walk may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Most steps.
    pub(super) steps: usize,
    /// Whether a walk that took them all has to be followed by the scan. Where nothing is restricted it is good enough: `ef` is meant to
    /// bound the work.
    pub(super) must_end: bool,
}

/// Plans a search over `vectors`, the first `nodes` of which are in the graph, `skipped` of them
/// without links.
pub(super) fn plan(
    vectors: &VectorsView<'_>,
    (nodes, skipped, fit): (u32, u32, Fit),
    accept: Accept<'_>,
    params: &SearchParams,
) -> Plan {
    let linked = nodes.saturating_sub(skipped);
    if params.exact || linked == 0 {
        return Plan::Scan;
    }
    let costs = Costs::of(vectors);
    let (returnable, scan_cost) = returnable(vectors, nodes, accept, costs);
    let share = (returnable / f64::from(linked)).min(1.0);
    let ef = params.ef.max(params.k);
    // Also false where the share is 0.
    let walk_is_cheaper = fit.steps_of(ef) / share * costs.step < scan_cost as f64;
    if !walk_is_cheaper {
        return Plan::Scan;
    }
    let must_end = !matches!(accept, Accept::All) || share < ALMOST_ALL;
    let most = (fit.steps_of(ef) * STEPS_MOST) as usize;
    let of_scan = (scan_cost as f64 / costs.step) as usize;
    let steps = if must_end { of_scan } else { most.clamp(1, of_scan.max(ef)) };
    Plan::Walk(Budget { steps, must_end })
}

/// How many of the first `nodes` vectors may be returned (estimated), and what scanning those
/// vectors costs.
fn returnable(
    vectors: &VectorsView<'_>,
    nodes: u32,
    accept: Accept<'_>,
    costs: Costs,
) -> (f64, usize) {
    let all = f64::from(vectors.len());
    let in_graph = f64::from(nodes) / all;
    match accept {
        Accept::All => {
            let live = vectors.len().saturating_sub(vectors.dead.count());
            (f64::from(live) * in_graph, nodes as usize)
        }
        Accept::Bits(bits) => {
            let members = f64::from(bits.count()) * in_graph;
            (members, (members * costs.member) as usize + nodes as usize / 64)
        }
        Accept::Test(_) => {
            // Evenly spread, with an odd phase: sessions and roles come in runs and turns.
            let step = (nodes / SAMPLE).max(1) | 1;
            let tried = nodes.div_ceil(step);
            let hits = (0..tried)
                .map(|i| i * step)
                .filter(|&n| !vectors.dead.is_dead(n) && accept.accepts(VectorNo(n)))
                .count() as u32;
            let hits = if hits < SAMPLE_MIN { 0 } else { hits };
            (f64::from(nodes) * f64::from(hits) / f64::from(tried), nodes as usize)
        }
    }
}
