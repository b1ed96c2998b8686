//! Looking over the graph: whether it is what a walk relies on.
//!
//! Invariant: reads only, and trusts nothing that was checked before. Must not know: files, memories.
//!
//! That a node can be reached from the entry point is what building and repairing aim at, not what they promise: pruning
//! counts links, not ways. So vectors that cannot be reached are counted, and everything else that does not hold is a
//! problem.

use super::VectorIndex;
use super::graph::{GraphView, M, M_BASE, MAX_LEVEL};

/// Problems that are listed; more are counted.
const LISTED: usize = 16;

/// What an audit of one index saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Vectors in the graph.
    pub nodes: u32,
    /// Links followed on all levels.
    pub links: u64,
    /// Live vectors in the graph that no way of base links leads to from the entry point: a walk cannot find them, an exact
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
    /// Looks over the whole graph: that every link leads to another node of its level, that the entry point is the highest
    /// node, and which live vectors can be reached from it on the base level. Building waits meanwhile, searches do not.
    pub fn audit(&self) -> Audit {
        // Holds the builder off, so that the lists belong together.
        let _no_builder = self.builder.lock();
        let mut audit = Audit::default();
        let Some(graph) = self.graph.load_full() else { return audit };
        let view = graph.view();
        audit.nodes = view.len();
        if view.len() > self.len() {
            let (nodes, len) = (view.len(), self.len());
            audit.problem(|| format!("the graph has {nodes} nodes, there are {len} vectors"));
        }
        let mut highest = 0;
        for node in 0..view.len() {
            let Some(head) = graph.heads.get(node) else {
                audit.problem(|| format!("node {node} has no level"));
                continue;
            };
            highest = highest.max(head.level);
            if head.level > MAX_LEVEL {
                audit.problem(|| format!("node {node} is on level {}", head.level));
            }
            audit_lists(view, node, head.level.min(MAX_LEVEL), &mut audit);
        }
        let reached = self.reached(view, highest, &mut audit);
        let dead = self.vectors.dead();
        let lost = (0..view.len()).filter(|node| !reached[*node as usize] && !dead.is_dead(*node));
        audit.unreachable = u32::try_from(lost.count()).unwrap_or(u32::MAX);
        audit
    }

    /// Which nodes base links lead to from the entry point.
    fn reached(&self, view: GraphView<'_>, highest: u8, audit: &mut Audit) -> Vec<bool> {
        let mut reached = vec![false; view.len() as usize];
        let Some((entry, level)) = view.entry else {
            // A graph of vectors that were dead before they joined it has none.
            if (0..view.len()).any(|node| !self.vectors.dead().is_dead(node)) {
                audit.problem(|| "there are live nodes and no entry point".into());
            }
            return reached;
        };
        if entry >= view.len() {
            audit.problem(|| format!("the entry point {entry} is not a node"));
            return reached;
        }
        if level != highest {
            audit.problem(|| {
                format!("the entry point {entry} is on level {level}, the highest is {highest}")
            });
        }
        let mut open = vec![entry];
        reached[entry as usize] = true;
        let mut ids = [0; M_BASE];
        while let Some(node) = open.pop() {
            let Some(links) = view.base.get(node) else { continue };
            let n = links.read(&mut ids);
            for id in &ids[..n] {
                if let Some(seen) = reached.get_mut(*id as usize).filter(|seen| !**seen) {
                    *seen = true;
                    open.push(*id);
                }
            }
        }
        reached
    }
}

/// Looks over the lists of one node.
fn audit_lists(view: GraphView<'_>, node: u32, level: u8, audit: &mut Audit) {
    let mut ids = [0; M_BASE];
    match view.base.get(node) {
        Some(links) => {
            let n = links.read(&mut ids);
            audit_links(view, node, 0, &ids[..n], audit);
        }
        None => audit.problem(|| format!("node {node} has no list on the base level")),
    }
    for l in 1..=level {
        let mut ids = [0; M];
        match view.upper(node, l) {
            Some(links) => {
                let n = links.read(&mut ids);
                audit_links(view, node, l, &ids[..n], audit);
            }
            None => audit.problem(|| format!("node {node} has no list on level {l}")),
        }
    }
}

fn audit_links(view: GraphView<'_>, node: u32, level: u8, ids: &[u32], audit: &mut Audit) {
    audit.links += ids.len() as u64;
    for (at, id) in ids.iter().enumerate() {
        let what = if *id == node {
            "itself"
        } else if *id >= view.len() {
            "no node"
        } else if level > 0 && view.upper(*id, level).is_none() {
            "a node that does not reach this level"
        } else if ids[..at].contains(id) {
            "the same node twice"
        } else {
            continue;
        };
        audit.problem(|| format!("node {node} links to {what} on level {level} ({id})"));
    }
}
