//! Looking whether every live node can be reached, and linking those that cannot.
//!
//! Invariant: a survey that links nobody has found a way of links from the roots to every live node. Must not know:
//! who deletes, or when.
//!
//! Counting the links to each node keeps a node from losing its last one, but not two from leading to nobody but one another.

use super::VectorIndex;
use super::block::{DEGREE, NONE};
use super::graph::Graph;
use super::link::Linker;

/// Nodes whose neighbours are looked at in one turn.
const TURN: usize = 2_048;

/// How far a survey is.
#[derive(Debug)]
pub(super) struct Survey {
    /// A bit for each node that was reached.
    reached: Vec<u64>,
    open: Vec<u32>,
    nodes: u32,
    /// All nodes below it were reached or dealt with.
    next: u32,
    /// Nodes that were linked: in the place of a link that may have been the only way to another.
    linked: u32,
    /// Surveys that are to follow at most.
    more: u32,
}

/// Surveys one after the other at most, as long as each links a node.
const ROUNDS: u32 = 8;

impl Survey {
    /// A survey from the roots on.
    pub(super) fn new(graph: &Graph) -> Survey {
        Survey::round(graph, ROUNDS - 1)
    }

    fn round(graph: &Graph, more: u32) -> Survey {
        let view = graph.view();
        let nodes = view.len();
        let reached = vec![0; nodes.div_ceil(64) as usize];
        let mut survey = Survey { reached, open: Vec::new(), nodes, next: 0, linked: 0, more };
        view.root_ids().into_iter().for_each(|root| survey.reach(root));
        survey
    }

    fn reach(&mut self, node: u32) {
        if let Some(word) = self.reached.get_mut((node / 64) as usize) {
            let bit = 1 << (node % 64);
            if *word & bit == 0 {
                *word |= bit;
                self.open.push(node);
            }
        }
    }

    fn is_reached(&self, node: u32) -> bool {
        self.reached[(node / 64) as usize] >> (node % 64) & 1 == 1
    }

    /// Looks at some more nodes; `None` when the survey is complete.
    pub(super) fn advance(mut self, linker: &mut Linker, index: &VectorIndex) -> Option<Survey> {
        let graph = std::sync::Arc::clone(&linker.graph);
        {
            let view = graph.view();
            let mut ids = [NONE; DEGREE];
            for _ in 0..TURN {
                let Some(node) = self.open.pop() else { break };
                let n = view.neighbours(node, &mut ids);
                ids[..n].iter().for_each(|id| self.reach(*id));
            }
        }
        if !self.open.is_empty() {
            return Some(self);
        }
        let dead = index.vectors.dead();
        while self.next < self.nodes {
            let node = self.next;
            self.next += 1;
            if !self.is_reached(node) && !dead.is_dead(node) {
                // Whoever is found by a walk can be reached, and now leads here.
                linker.adopt_by_any(index, node);
                self.linked += 1;
                self.reach(node);
                return Some(self);
            }
        }
        if self.more == ROUNDS - 1 {
            graph.set_linked_by_survey(self.linked);
        }
        (self.linked > 0 && self.more > 0).then(|| Survey::round(&graph, self.more - 1))
    }
}
