//! Moving vectors from the scanned tail into the graph, step by step, and repairing after deletes.
//!
//! Invariant: searches see either the graph before a step or after it, and both are whole.
//! Must not know: who calls, or when, or what time it is.
//!
//! Dead nodes are walked through, which keeps every other node reachable but costs time. Once a
//! third of the linked nodes is dead, a graph of the live ones is built beside the current one and
//! swapped in: three live nodes are inserted again for each one or two deletes.

use super::graph::Graph;
use super::insert::{GraphWriter, InsertScratch};
use super::{GRAPH_FROM, VectorIndex};
use std::sync::Arc;

/// What a builder keeps between steps.
#[derive(Debug)]
pub(super) struct Builder {
    current: GraphWriter,
    /// The graph that will take the current one's place.
    repair: Option<GraphWriter>,
    /// A graph that was replaced: freed here once no search uses it, not in a search.
    retired: Option<Arc<Graph>>,
    scratch: InsertScratch,
}

impl VectorIndex {
    /// Works on the graph, at least one insertion, as long as `go_on` says, which is asked after each; `true` if there is more
    /// to do. One builder works at a time; searches and pushes go on beside it.
    pub fn build_step(&self, go_on: &mut dyn FnMut() -> bool) -> bool {
        self.build_from(GRAPH_FROM, go_on)
    }

    /// As [`build_step`](Self::build_step), with a graph from so many live vectors on.
    pub(super) fn build_from(&self, graph_from: u32, go_on: &mut dyn FnMut() -> bool) -> bool {
        let mut slot = self.builder.lock();
        let builder = match &mut *slot {
            Some(builder) => builder,
            empty => {
                let graph = match self.graph.load_full() {
                    Some(graph) => graph,
                    None if self.live() < graph_from => return false,
                    None => {
                        let graph = Arc::new(Graph::default());
                        self.graph.store(Some(Arc::clone(&graph)));
                        graph
                    }
                };
                empty.insert(Box::new(Builder {
                    current: GraphWriter::new(graph),
                    repair: None,
                    retired: None,
                    scratch: InsertScratch::default(),
                }))
            }
        };
        builder.step(self, go_on)
    }
}

impl Builder {
    fn step(&mut self, index: &VectorIndex, go_on: &mut dyn FnMut() -> bool) -> bool {
        if self.retired.as_ref().is_some_and(|graph| Arc::strong_count(graph) == 1) {
            self.retired = None;
        }
        let to = index.len();
        if !grow(&mut self.current, to, index, go_on, &mut self.scratch) {
            return true;
        }
        if self.repair.is_none() && needs_repair(index, &self.current.graph) {
            self.repair = Some(GraphWriter::new(Arc::new(Graph::default())));
        }
        let Some(repair) = &mut self.repair else {
            return false;
        };
        if !grow(repair, to, index, go_on, &mut self.scratch) {
            return true;
        }
        if let Some(repaired) = self.repair.take() {
            index.graph.store(Some(Arc::clone(&repaired.graph)));
            let replaced = std::mem::replace(&mut self.current, repaired);
            self.retired = Some(replaced.graph);
        }
        false
    }
}

/// Inserts vectors until `to` of them are in the graph; `false` if it was stopped before.
fn grow(
    writer: &mut GraphWriter,
    to: u32,
    index: &VectorIndex,
    go_on: &mut dyn FnMut() -> bool,
    scratch: &mut InsertScratch,
) -> bool {
    let vectors = index.vectors.view();
    while writer.graph.len() < to {
        writer.insert(vectors, index.kernels, scratch);
        if !go_on() {
            return writer.graph.len() >= to;
        }
    }
    true
}

/// Whether a third of the linked nodes is dead.
fn needs_repair(index: &VectorIndex, graph: &Graph) -> bool {
    let nodes = graph.len();
    let dead = index.vectors.dead();
    let full_words: u32 = (0..nodes / 64).map(|at| dead.word(at).count_ones()).sum();
    let rest = dead.word(nodes / 64) & ((1u64 << (nodes % 64)) - 1);
    let dead_linked = (full_words + rest.count_ones()).saturating_sub(graph.skipped());
    dead_linked * 3 > nodes.saturating_sub(graph.skipped())
}
