//! Inserting a node into the graph beside running walks.
//!
//! Invariants: a node is published with its own lists before any list leads to it; on the base
//! level no node loses its last incoming link. Must not know: budgets, checkpoints.
//!
//! Algorithms 1, 3 and 4 of Malkov & Yashunin (HNSW, TPAMI 2020), on i8 codes. The incoming-link
//! rule is ours: plain pruning leaves nodes that nothing leads to, which no search then finds.

use super::VectorNo;
use super::graph::{Graph, M, M_BASE, level_of};
use super::pool::{Pool, Visited};
use super::vectors::VectorsView;
use super::walk::Walk;
use crate::sync::Links;
use flashbulb_kernels::Kernels;
use std::sync::Arc;

/// Candidates that an insertion chooses its neighbours from.
pub(super) const EF_CONSTRUCTION: usize = 128;

/// A graph and what only its builder knows of it.
#[derive(Debug)]
pub(super) struct GraphWriter {
    pub(super) graph: Arc<Graph>,
    /// Base-level links that lead to each node.
    in_degree: Vec<u32>,
}

/// Buffers of an insertion.
#[derive(Debug, Default)]
pub(super) struct InsertScratch {
    pool: Pool,
    visited: Visited,
    candidates: Vec<(u32, f32)>,
    chosen: Vec<u32>,
}

impl GraphWriter {
    /// Takes over the writing of a graph.
    pub(super) fn new(graph: Arc<Graph>) -> GraphWriter {
        let mut in_degree = vec![0; graph.len() as usize];
        let base = graph.base.reader();
        let mut ids = [0; M_BASE];
        for links in (0..graph.len()).filter_map(|node| base.get(node)) {
            let n = links.read(&mut ids);
            for &id in &ids[..n] {
                if let Some(degree) = in_degree.get_mut(id as usize) {
                    *degree += 1;
                }
            }
        }
        GraphWriter { graph, in_degree }
    }

    /// Inserts the next vector: number `graph.len()`. A dead one takes its number, without links.
    pub(super) fn insert(
        &mut self,
        vectors: VectorsView<'_>,
        kernels: Kernels,
        scratch: &mut InsertScratch,
    ) {
        let graph = Arc::clone(&self.graph);
        let node = graph.len();
        let Some(codes) = vectors.codes.row(node) else {
            return;
        };
        self.in_degree.push(0);
        if vectors.dead.is_dead(node) {
            graph.push_skipped();
            return;
        }
        let level = level_of(VectorNo(node));
        let view = graph.view();
        let mut base = Vec::new();
        let mut upper = vec![Vec::new(); usize::from(level)];
        let mut top = None;
        if let Some((entry, entry_level)) = view.entry {
            top = Some(entry_level);
            let walk = Walk { graph: view, vectors, kernels };
            let from = level.min(entry_level);
            let (mut start, _) = walk.descend(codes, entry, entry_level, from);
            for l in (0..=from).rev() {
                let InsertScratch { pool, visited, .. } = scratch;
                walk.level(codes, (start, l), EF_CONSTRUCTION, pool, visited);
                scratch.candidates.clear();
                scratch.candidates.extend(scratch.pool.iter());
                start = scratch.candidates.first().map_or(start, |c| c.0);
                choose(&walk, node, M, scratch);
                let list = if l == 0 { &mut base } else { &mut upper[usize::from(l) - 1] };
                list.extend_from_slice(&scratch.chosen);
            }
        }
        graph.push(level, &base, &upper);
        for &id in &base {
            self.in_degree[id as usize] += 1;
        }
        let walk = Walk { graph: graph.view(), vectors, kernels };
        for &to in &base {
            self.link_base(&walk, to, node, scratch);
        }
        for (l, list) in upper.iter().enumerate() {
            for &to in list {
                if let Some(links) = walk.graph.upper(to, l as u8 + 1) {
                    link_upper(&walk, links, to, node, scratch);
                }
            }
        }
        if top.is_none_or(|top| level > top) {
            graph.entry.store(node, level);
        }
    }

    /// Adds `node` to the base list of `to`; a full list is chosen anew.
    fn link_base(&mut self, walk: &Walk<'_>, to: u32, node: u32, scratch: &mut InsertScratch) {
        let Some(links) = walk.graph.base.get(to) else {
            return;
        };
        if links.append(node) {
            self.in_degree[node as usize] += 1;
            return;
        }
        read_candidates(walk, links, to, node, scratch);
        choose(walk, to, M_BASE, scratch);
        let InsertScratch { candidates, chosen, .. } = scratch;
        // The new node is not counted yet, so that it is the one link short of the others here.
        self.in_degree[node as usize] += 1;
        for &(id, _) in candidates.iter().filter(|c| !chosen.contains(&c.0)).collect::<Vec<_>>() {
            let degree = &mut self.in_degree[id as usize];
            if *degree == 1 && chosen.len() < M_BASE {
                chosen.push(id);
            } else {
                *degree -= 1;
            }
        }
        links.replace(chosen);
    }
}

/// Adds `node` to an upper list of `to`; a full list is chosen anew.
fn link_upper(walk: &Walk<'_>, links: &Links<M>, to: u32, node: u32, scratch: &mut InsertScratch) {
    if !links.append(node) {
        read_candidates(walk, links, to, node, scratch);
        choose(walk, to, M, scratch);
        links.replace(&scratch.chosen);
    }
}

/// Makes the neighbours of `to`, and `node`, the candidates: best first.
fn read_candidates<const N: usize>(
    walk: &Walk<'_>,
    links: &Links<N>,
    to: u32,
    node: u32,
    scratch: &mut InsertScratch,
) {
    let mut ids = [0; N];
    let n = links.read(&mut ids);
    scratch.candidates.clear();
    let Some(codes) = walk.vectors.codes.row(to) else {
        return;
    };
    for &id in ids[..n].iter().chain([&node]) {
        if let Some(score) = walk.score(codes, id) {
            scratch.candidates.push((id, score));
        }
    }
    scratch.candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

/// Chooses up to `most` of the candidates as neighbours of `node`: those closer to it than to any
/// chosen before, so that links lead in different directions.
fn choose(walk: &Walk<'_>, node: u32, most: usize, scratch: &mut InsertScratch) {
    let InsertScratch { candidates, chosen, .. } = scratch;
    chosen.clear();
    let Some(&[scale]) = walk.vectors.scales.row(node) else {
        return;
    };
    for &(id, score) in candidates.iter() {
        if chosen.len() == most {
            break;
        }
        let Some(codes) = walk.vectors.codes.row(id) else {
            continue;
        };
        let Some(&[own_scale]) = walk.vectors.scales.row(id) else {
            continue;
        };
        // `score` lacks the node's scale, and a score against another candidate this one's.
        let to_node = score * scale;
        let apart = |score: f32| score * own_scale < to_node;
        let (fours, rest) = chosen.as_chunks::<4>();
        let diverse = fours.iter().all(|ids| {
            let scores = walk.score_four(codes, ids);
            scores.is_some_and(|scores| scores.into_iter().all(apart))
        }) && rest.iter().all(|&other| walk.score(codes, other).is_some_and(apart));
        if diverse {
            chosen.push(id);
        }
    }
}
