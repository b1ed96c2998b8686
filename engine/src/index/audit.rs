//! Looking over the graph: whether it is what a walk relies on.
//!
//! Invariant: reads only, and trusts nothing that was checked before. Must not know: files, memories.
//!
//! That a node can be reached from the roots is what building and repairing aim at, not what they promise: pruning
//! counts links, not ways. So vectors that cannot be reached are counted, and everything else that does not hold is a
//! problem.

use super::VectorIndex;
use super::block::{DEGREE, NONE};
use super::graph::GraphView;

/// Problems that are listed; more are counted.
const LISTED: usize = 16;

/// What an audit of one index saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Vectors in the graph.
    pub nodes: u32,
    /// Links.
    pub links: u64,
    /// Live vectors in the graph that no way of links leads to from the roots: a walk cannot find them, an exact
    /// search can.
    pub unreachable: u32,
    /// What does not hold, the first few in words.
    pub problems: Vec<String>,
    /// How many problems there are.
    pub problem_count: u64,
}

impl Audit {
    fn problem(&mut self, what: impl FnOnce() -> String) {
        self.problem_count += 1;
        if self.problems.len() < LISTED {
            self.problems.push(what());
        }
    }
}

impl VectorIndex {
    /// Looks over the whole graph: that every link leads to another node, that no live node lacks a block, and which live vectors can
    /// be reached from the roots. Building waits meanwhile, searches do not.
    pub fn audit(&self) -> Audit {
        // Holds the builder off, so that the blocks belong together.
        let _no_builder = self.builder.lock();
        let mut audit = Audit::default();
        let Some(graph) = self.graph.load_full() else { return audit };
        let view = graph.view();
        audit.nodes = view.covered();
        if view.len() > self.len() {
            let (nodes, len) = (view.len(), self.len());
            audit.problem(|| format!("the graph has {nodes} nodes, there are {len} vectors"));
        }
        let dead = self.vectors.dead();
        let mut ids = [NONE; DEGREE];
        for node in 0..view.len() {
            let n = view.neighbours(node, &mut ids);
            audit_links(&view, node, &ids[..n], &mut audit);
            let lacks = view.block(node).is_none() && view.loaded(node).is_none();
            if lacks && !dead.is_dead(node) {
                audit.problem(|| format!("node {node} is live and has no block"));
            }
        }
        let reached = reached(&view, &mut audit);
        let lost =
            (0..view.covered()).filter(|node| !reached[*node as usize] && !dead.is_dead(*node));
        audit.unreachable = u32::try_from(lost.count()).unwrap_or(u32::MAX);
        audit
    }
}

/// Which nodes links lead to from the roots.
fn reached(view: &GraphView<'_>, audit: &mut Audit) -> Vec<bool> {
    let mut reached = vec![false; view.len() as usize];
    let mut open = Vec::new();
    for root in view.root_ids() {
        match reached.get_mut(root as usize) {
            Some(seen) if !*seen => {
                *seen = true;
                open.push(root);
            }
            Some(_) => {}
            None => audit.problem(|| format!("the root {root} is not a node")),
        }
    }
    let mut ids = [NONE; DEGREE];
    while let Some(node) = open.pop() {
        let n = view.neighbours(node, &mut ids);
        for id in &ids[..n] {
            if let Some(seen) = reached.get_mut(*id as usize).filter(|seen| !**seen) {
                *seen = true;
                open.push(*id);
            }
        }
    }
    reached
}

fn audit_links(view: &GraphView<'_>, node: u32, ids: &[u32], audit: &mut Audit) {
    audit.links += ids.len() as u64;
    for (at, id) in ids.iter().enumerate() {
        let what = if *id == node {
            "itself"
        } else if *id >= view.len() {
            "no node"
        } else if ids[..at].contains(id) {
            "the same node twice"
        } else {
            continue;
        };
        audit.problem(|| format!("node {node} links to {what} ({id})"));
    }
}
