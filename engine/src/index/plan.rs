//! Walk or scan: the choice, by estimated cost.
//!
//! Invariant: a wrong estimate costs time, never recall: a walk that finds too few ends in the
//! scan. Must not know: how either is done.
//!
//! Deleted and unaccepted nodes are walked through but not returned, so if a share `f` of the nodes may be returned, a walk takes about
//! `ef / 2f` steps. In units of one row that is scanned in its turn, a step costs so many ([`Costs`]), the scan of everything one a row and
//! that of a set some a member. The cheaper one runs. For a test, `f` comes from a sample of the vectors; for a set and
//! for deletes it is known. Where the accepted ones lie is not known: if far from the query, a walk has to go through all that are
//! nearer. So it may cost as much as the scan, and then the scan follows.

use super::accept::Accept;
use super::search::SearchParams;
use super::vectors::VectorsView;
use super::{Layout, VectorNo};

/// Cost of a step, and of scoring a member of a set, whose row lies anywhere.
#[derive(Debug, Clone, Copy)]
struct Costs {
    step: usize,
    member: f64,
}

impl Costs {
    /// Measured at 236,000 × 384 with AVX-512. Full, on a Sapphire Rapids: a row 24 ns, a step 600, a member 30 to 45. Lean, on a
    /// Zen 5: a row 8, a step 700; what a member costs there is an estimate, by its four cache lines.
    fn of(layout: Layout) -> Costs {
        match layout {
            Layout::Full => Costs { step: 25, member: 1.6 },
            Layout::Lean => Costs { step: 80, member: 3.0 },
        }
    }
}

/// Steps of a walk for each candidate that is to be kept: most that are made, where nothing is restricted, and about how many are.
const STEPS_FOR_EF: usize = 4;
const STEPS_USUAL: f64 = 0.5;
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
    nodes: u32,
    skipped: u32,
    accept: Accept<'_>,
    params: &SearchParams,
) -> Plan {
    let linked = nodes.saturating_sub(skipped);
    if params.exact || linked == 0 {
        return Plan::Scan;
    }
    let costs = Costs::of(vectors.layout());
    let (returnable, scan_cost) = returnable(vectors, nodes, accept, costs);
    let share = (returnable / f64::from(linked)).min(1.0);
    let ef = params.ef.max(params.k);
    // Also false where the share is 0.
    let walk_is_cheaper = ef as f64 * STEPS_USUAL / share * (costs.step as f64) < scan_cost as f64;
    if !walk_is_cheaper {
        return Plan::Scan;
    }
    let must_end = !matches!(accept, Accept::All) || share < ALMOST_ALL;
    let steps = if must_end { scan_cost / costs.step } else { ef.saturating_mul(STEPS_FOR_EF) };
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
