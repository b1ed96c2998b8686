//! Moving vectors from the scanned tail into the graph, step by step, and repairing after deletes.
//!
//! Invariants: searches see either a block before a change or after it, and both are whole; the same pushes give the same graph,
//! whatever the number of threads. Must not know: who calls, or when, or what time it is.
//!
//! Vectors join in batches: each of a batch chooses its neighbours in the graph before it; then their blocks are published, then the
//! links back to them, and only then are they covered. All of a batch's choices are independent, and so are all of its links back
//! but for those to the same node, which are made together (as the batches of Dobson et al., *ParlayANN*, PPoPP 2024).

use super::fit::{Fitting, is_due};
use super::graph::Graph;
use super::link::{Joined, LinkBack, Linker, group_by_target};
use super::repair::{Repair, needs_repair};
use super::roots::Probe;
use super::survey::Survey;
use super::{GRAPH_FROM, VectorIndex};
use std::sync::Arc;

/// Most vectors that join together: the tail that is scanned meanwhile takes a search a few microseconds.
const BATCH_MAX: u32 = 512;
/// A batch is at most this part of the graph it joins: its members do not see one another.
const BATCH_PART: u32 = 50;

/// When so much of the graph joined since the last one, there is a survey: while others join, and when none is left.
const SURVEY_PART: u32 = 16;
const LAST_SURVEY_PART: u32 = 64;

/// What a builder keeps between steps.
#[derive(Debug)]
pub(super) struct Builder {
    linker: Linker,
    stage: Stage,
    /// Nodes that the last survey looked at.
    surveyed: u32,
}

#[derive(Debug)]
enum Stage {
    /// Nothing is half done.
    Idle,
    /// Loaded nodes from this one on have no block yet.
    Drawing { next: u32 },
    /// The nodes from `first` up to `end` choose their neighbours.
    Choosing { first: u32, end: u32, joined: Vec<Joined> },
    /// The links back to the nodes below `end`; the first `next` of them are made.
    Linking { end: u32, back: Vec<LinkBack>, next: usize },
    /// Links to dead nodes are replaced.
    Repairing(Repair),
    /// Whether there are enough roots is tried.
    Probing(Probe),
    /// What nothing leads to is looked for.
    Surveying(Survey),
    /// How far walks have to go is tried.
    Fitting(Fitting),
}

impl VectorIndex {
    /// Works on the graph as long as `go_on` says, which is asked every few hundred microseconds; `true` if there is more to do.
    /// One builder works at a time; searches and pushes go on beside it.
    pub fn build_step(&self, go_on: &mut dyn FnMut() -> bool) -> bool {
        self.build_from(GRAPH_FROM, 1, go_on)
    }

    /// Brings all vectors into the graph with so many threads, at least one: what repeated steps would make, sooner.
    pub fn build(&self, threads: usize) {
        while self.build_from(GRAPH_FROM, threads, &mut || true) {}
    }

    /// As [`build_step`](Self::build_step), with a graph from so many live vectors on.
    pub(super) fn build_from(
        &self,
        graph_from: u32,
        threads: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        let mut slot = self.builder.lock();
        let builder = match &mut *slot {
            Some(builder) => builder,
            empty => {
                let graph = match self.graph.load_full() {
                    Some(graph) => graph,
                    None if self.live() < graph_from => return false,
                    None => {
                        let graph = Arc::new(Graph::new(self.vectors.width(), self.layout()));
                        self.graph.store(Some(Arc::clone(&graph)));
                        graph
                    }
                };
                empty.insert(Box::new(Builder::new(graph)))
            }
        };
        builder.step(self, threads, go_on)
    }
}

impl Builder {
    fn new(graph: Arc<Graph>) -> Builder {
        let stage = match &*graph.loaded.load() {
            Some(_) => Stage::Drawing { next: 0 },
            None => Stage::Idle,
        };
        Builder { surveyed: graph.len(), linker: Linker::new(graph), stage }
    }

    /// Works until there is nothing to do (`false`) or `go_on` says no (`true`).
    fn step(
        &mut self,
        index: &VectorIndex,
        threads: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        loop {
            if !self.advance(index, threads) {
                self.linker.graph.blocks.reclaim();
                return false;
            }
            if !go_on() {
                return true;
            }
        }
    }

    /// Does a little; `false` if there was nothing to do.
    fn advance(&mut self, index: &VectorIndex, threads: usize) -> bool {
        // What one turn takes: with several threads, enough that starting them costs little.
        let turn = if threads <= 1 { 1 } else { BATCH_MAX };
        self.stage = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => match self.begin(index) {
                Some(stage) => stage,
                None => return false,
            },
            Stage::Drawing { next } => {
                let to = self.linker.draw_loaded(index, next, turn.saturating_mul(8), threads);
                if to < self.linker.graph.len() { Stage::Drawing { next: to } } else { Stage::Idle }
            }
            Stage::Choosing { first, end, mut joined } => {
                let from = first + joined.len() as u32;
                let to = from.saturating_add(turn).min(end);
                joined.extend(self.linker.choose(index, from..to, threads));
                if to < end {
                    Stage::Choosing { first, end, joined }
                } else {
                    self.linker.publish(&joined);
                    Stage::Linking { end, back: group_by_target(first, &joined), next: 0 }
                }
            }
            Stage::Linking { end, back, next } => {
                let to = next.saturating_add(turn as usize * 8).min(back.len());
                self.linker.link_back(index, &back[next..to], threads);
                if to < back.len() {
                    Stage::Linking { end, back, next: to }
                } else {
                    self.linker.adopt(index);
                    self.linker.refresh_roots(index);
                    self.linker.graph.cover(end);
                    Stage::Idle
                }
            }
            Stage::Repairing(repair) => {
                match repair.advance(&mut self.linker, index, turn, threads) {
                    Some(repair) => Stage::Repairing(repair),
                    None => self.survey(),
                }
            }
            Stage::Surveying(survey) => match survey.advance(&mut self.linker, index) {
                Some(survey) => Stage::Surveying(survey),
                None => Stage::Idle,
            },
            Stage::Fitting(fitting) => match fitting.advance(&mut self.linker, index) {
                Some(fitting) => Stage::Fitting(fitting),
                None => Stage::Idle,
            },
            Stage::Probing(probe) => match probe.advance(&mut self.linker, index) {
                Some(probe) => Stage::Probing(probe),
                // From other roots other ways lead.
                None => Stage::Surveying(Survey::new(&self.linker.graph)),
            },
        };
        true
    }

    /// What is to be done next.
    fn begin(&mut self, index: &VectorIndex) -> Option<Stage> {
        let graph = &self.linker.graph;
        let (first, there) = (graph.len(), index.len());
        let joined = first.saturating_sub(self.surveyed);
        let part = if first < there { SURVEY_PART } else { LAST_SURVEY_PART };
        if joined > first / part {
            return Some(self.survey());
        }
        if is_due(graph, first < there) {
            return Some(Stage::Fitting(Fitting::new(graph)));
        }
        if first < there {
            let most = (first / BATCH_PART).clamp(1, BATCH_MAX);
            let end = first.saturating_add(most).min(there);
            return Some(Stage::Choosing { first, end, joined: Vec::new() });
        }
        needs_repair(index, graph).then(|| Stage::Repairing(Repair::new(index, graph)))
    }

    /// Begins to try the roots, and then to look whether all can be reached from them.
    fn survey(&mut self) -> Stage {
        self.surveyed = self.linker.graph.len();
        Stage::Probing(Probe::default())
    }
}
