//! Walk or scan: the choice, by estimated cost.
//!
//! Invariant: a wrong estimate costs time, never recall: a walk that finds too few ends in the
//! scan. Must not know: how either is done.
//!
//! Deleted and unaccepted nodes are walked through but not returned, so if a share `f` of the nodes
//! may be returned, a walk keeps `ef / f` candidates to end with about `ef` of them. That costs
//! `WALK_COST · ef / f`, in units of one scanned row. The scan of everything costs one unit a row,
//! and the scan of a set one unit a member. The cheaper one runs. For a test, `f` comes from a
//! sample of the vectors; for a set and for deletes it is known.

use super::VectorNo;
use super::accept::Accept;
use super::search::SearchParams;
use super::vectors::VectorsView;

/// Cost of keeping one more candidate, in scanned rows. Measured at 100,000 × 384 with AVX2, for the graph before this one.
const WALK_COST: usize = 60;
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
    Walk {
        /// Candidates to keep at first.
        pool: usize,
        /// Candidates beyond which the scan is cheaper.
        pool_max: usize,
        /// Returnable candidates that the walk must end with.
        want: usize,
    },
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
    let (returnable, scan_cost) = returnable(vectors, nodes, accept);
    let share = (returnable / f64::from(linked)).min(1.0);
    let ef = params.ef.max(params.k);
    let pool_max = scan_cost / WALK_COST;
    // Also false where the share is 0.
    let pool = (ef as f64 / share).ceil();
    if pool < pool_max as f64 {
        let want = if share < 1.0 { params.k.max(ef / 2) } else { params.k };
        Plan::Walk { pool: pool as usize, pool_max, want }
    } else {
        Plan::Scan
    }
}

/// How many of the first `nodes` vectors may be returned (estimated), and what scanning those
/// vectors costs.
fn returnable(vectors: &VectorsView<'_>, nodes: u32, accept: Accept<'_>) -> (f64, usize) {
    let all = f64::from(vectors.len());
    let in_graph = f64::from(nodes) / all;
    match accept {
        Accept::All => {
            let live = vectors.len().saturating_sub(vectors.dead.count());
            (f64::from(live) * in_graph, nodes as usize)
        }
        Accept::Bits(bits) => {
            let members = f64::from(bits.count()) * in_graph;
            (members, members as usize + nodes as usize / 64)
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
