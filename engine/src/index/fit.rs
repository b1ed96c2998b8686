//! How far walks go in this space, so that `ef` means about the same recall in every one.
//!
//! Invariant: the fit changes how far walks go, never the graph, so what is built does not hang on it. Must not know: who searches.
//!
//! A walk ends by deviations of its estimates, which suits most spaces, but not those where links lead poorly to what is near. And how many
//! steps that takes differs a hundredfold. Both are tried with vectors of the space, each hidden from the walks that look for its
//! neighbours, so that it is as a query that nobody stored: what a wide walk finds is taken for the truth, and walks are widened until they
//! find enough of it.

use super::graph::Graph;
use super::link::Linker;
use super::walk::{RANK_MIN, Reach};
use super::{SearchParams, VectorIndex, VectorNo};

/// Vectors that are looked around: the recall of so many is within 0.006 or so of the space's.
const PROBES: u32 = 512;
/// With fewer than so many, the recall says little.
const PROBES_MIN: usize = 64;
/// What walks of the default `ef` are to find of their neighbours, at least. A vector that is hidden is harder to look around than one
/// that was never there, as it keeps its neighbours from leading to one another: on 236,000 × 384, where recall@10 of other vectors is 0.992, this
/// is 0.982, and 0.980 in the lean layout. So it is a bound for spaces that are much harder, and not a number to come close to.
const RECALL: f32 = 0.975;
/// How far a walk goes whose finds are taken for the truth, and the steps it may make.
const EF_OF_TRUTH: f32 = 2_048.0;
const STEPS_OF_TRUTH: usize = 2_048;
/// Widenings that are tried: each the last one times the root of two.
const TRIES: u32 = 11;

/// How far walks go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fit {
    /// `ef` is multiplied with it, at least 1.
    pub(super) widening: f32,
    /// Steps that a walk of the default `ef` takes.
    pub(super) steps: f32,
}

impl Fit {
    /// From a checkpoint; none if no fit is like this.
    pub(super) fn read(widening: f32, steps: f32) -> Option<Fit> {
        let known =
            (1.0..=self::widening(TRIES)).contains(&widening) && (0.0..1e9).contains(&steps);
        known.then_some(Fit { widening, steps })
    }

    /// The `ef` of walks where a search asks for this one.
    pub(super) fn widened(&self, ef: usize) -> f32 {
        ef as f32 * self.widening
    }

    /// Steps that a walk of this `ef` takes, about.
    pub(super) fn steps_of(&self, ef: usize) -> f64 {
        ef as f64 * f64::from(self.steps) / SearchParams::DEFAULT_EF as f64
    }
}

impl Default for Fit {
    /// Before anything was tried.
    fn default() -> Fit {
        // As on 236,000 × 384.
        Fit { widening: 1.0, steps: 30.0 }
    }
}

/// Trying how far walks have to go.
#[derive(Debug, Default)]
pub(super) struct Fitting {
    tried: u32,
    probes: Vec<Probe>,
    /// Which widening is tried, and the probes that were walked to with it.
    at: u32,
    next: usize,
    now: Outcome,
    before: Option<Outcome>,
}

/// A vector that is looked around.
#[derive(Debug)]
struct Probe {
    node: u32,
    /// The score of the tenth best of the others.
    tenth: f32,
}

/// What walks of one widening found.
#[derive(Debug, Default, Clone, Copy)]
struct Outcome {
    found: usize,
    steps: usize,
}

fn widening(at: u32) -> f32 {
    (at as f32 / 2.0).exp2()
}

impl Fitting {
    /// Begins.
    pub(super) fn new(graph: &Graph) -> Fitting {
        graph.set_fitted(graph.covered());
        Fitting::default()
    }

    /// Looks around one more vector; `None` when walks go as far as they have to.
    pub(super) fn advance(mut self, linker: &mut Linker, index: &VectorIndex) -> Option<Fitting> {
        let nodes = linker.graph.covered();
        if self.tried < PROBES {
            let node = (super::hash(VectorNo(1 << 30 | self.tried)) % u64::from(nodes)) as u32;
            self.tried += 1;
            self.probes.extend(probe(linker, index, node));
            return Some(self);
        }
        if self.probes.len() < PROBES_MIN {
            return None;
        }
        if let Some(probe) = self.probes.get(self.next) {
            let ef = SearchParams::DEFAULT_EF as f32 * widening(self.at);
            let reach = Reach::of(RANK_MIN, ef, STEPS_OF_TRUTH, true);
            let walked = linker.look_around(index, probe.node, reach, |trail| {
                let good = |one: &f32| *one >= probe.tenth;
                (trail.returnable_scores().filter(good).take(RANK_MIN).count(), trail.expanded)
            });
            if let Some((found, steps)) = walked {
                self.now.found += found;
                self.now.steps += steps;
            }
            self.next += 1;
            return Some(self);
        }
        if self.missed(self.now) > 1.0 - RECALL && self.at + 1 < TRIES {
            let now = std::mem::take(&mut self.now);
            return Some(Fitting { at: self.at + 1, next: 0, before: Some(now), ..self });
        }
        linker.graph.set_fit(self.fit());
        None
    }

    /// The part of the neighbours that was not found.
    fn missed(&self, outcome: Outcome) -> f32 {
        1.0 - outcome.found as f32 / (RANK_MIN * self.probes.len()) as f32
    }

    /// What was tried last, or between that and the one before: misses fall about evenly with the doublings.
    fn fit(&self) -> Fit {
        let steps = |outcome: Outcome| outcome.steps as f32 / self.probes.len() as f32;
        let last = Fit { widening: widening(self.at), steps: steps(self.now) };
        let Some(before) = self.before else { return last };
        let wanted = 1.0 - RECALL;
        let (more, fewer) = (self.missed(before), self.missed(self.now).max(wanted / 100.0));
        let part = ((more / wanted).ln() / (more / fewer).ln()).clamp(0.0, 1.0);
        let part = if part.is_nan() { 1.0 } else { part };
        Fit {
            widening: widening(self.at - 1) * (part / 2.0).exp2(),
            steps: steps(before) * (last.steps / steps(before).max(1.0)).powf(part),
        }
    }
}

/// What a wide walk finds around a live vector; none if that is too little.
fn probe(linker: &mut Linker, index: &VectorIndex, node: u32) -> Option<Probe> {
    let reach = Reach::of(RANK_MIN, EF_OF_TRUTH, STEPS_OF_TRUTH, true);
    let mut scores: Vec<f32> =
        linker.look_around(index, node, reach, |trail| trail.returnable_scores().collect())?;
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    Some(Probe { node, tenth: *scores.get(RANK_MIN - 1)? })
}

/// Whether it is time to try again: the graph grew by a quarter since, or, while it goes on growing, fourfold.
pub(super) fn is_due(graph: &Graph, grows: bool) -> bool {
    let (nodes, fitted) = (graph.covered(), graph.fitted());
    nodes >= PROBES && if grows { nodes / 4 >= fitted } else { nodes - nodes / 5 >= fitted }
}
