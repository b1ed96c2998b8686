//! The best-first walk over one level of the graph.
//!
//! Invariant: it follows only numbers in view, allocates nothing, and ends: every node is scored
//! at most once. Must not know: who is dead or accepted.

use super::graph::{GraphView, M_BASE};
use super::pool::{Pool, Visited};
use super::vectors::VectorsView;
use flashbulb_kernels::Kernels;

/// Everything a walk reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk<'a> {
    pub(super) graph: GraphView<'a>,
    pub(super) vectors: VectorsView<'a>,
    pub(super) kernels: Kernels,
}

impl Walk<'_> {
    /// Similarity of these codes to a node's: proportional to the dot product of the vectors.
    #[inline]
    pub(super) fn score(&self, codes: &[i8], node: u32) -> Option<f32> {
        let row = self.vectors.codes.row(node)?;
        let scale = self.vectors.scales.row(node)?.first()?;
        Some(self.kernels.dot_i8(codes, row) as f32 * scale)
    }

    /// [`score`](Self::score) of four nodes, for less than four times the price.
    #[inline]
    pub(super) fn score_four(&self, codes: &[i8], nodes: &[u32; 4]) -> Option<[f32; 4]> {
        let [a, b, c, d] = *nodes;
        let row = |node| self.vectors.codes.row(node);
        let dots = self.kernels.dot_i8_x4(codes, [row(a)?, row(b)?, row(c)?, row(d)?]);
        let mut scores = [0.0; 4];
        for ((score, dot), &node) in scores.iter_mut().zip(dots).zip(nodes) {
            *score = dot as f32 * self.vectors.scales.row(node)?.first()?;
        }
        Some(scores)
    }

    /// Walks greedily from `start` on level `from` down to level `to`, and returns the closest node
    /// found and how many were scored.
    pub(super) fn descend(&self, codes: &[i8], start: u32, from: u8, to: u8) -> (u32, u64) {
        let mut best = start;
        let mut best_score = self.score(codes, start).unwrap_or(f32::NEG_INFINITY);
        let mut scored = 1;
        let mut ids = [0; M_BASE / 2];
        for level in (to..from).map(|l| l + 1).rev() {
            loop {
                let before = best;
                let Some(links) = self.graph.upper(best, level) else {
                    break;
                };
                let n = links.read(&mut ids);
                for &id in &ids[..n] {
                    self.vectors.codes.prefetch(id);
                }
                for &id in ids[..n].iter().filter(|&&id| id < self.graph.len()) {
                    let Some(score) = self.score(codes, id) else {
                        continue;
                    };
                    scored += 1;
                    if score > best_score {
                        (best, best_score) = (id, score);
                    }
                }
                if best == before {
                    break;
                }
            }
        }
        (best, scored)
    }

    /// Fills the pool with the nodes of a level that are closest to these codes; returns how many
    /// were scored. `ef` is how many candidates it keeps.
    pub(super) fn level(
        &self,
        codes: &[i8],
        (start, level): (u32, u8),
        ef: usize,
        pool: &mut Pool,
        visited: &mut Visited,
    ) -> u64 {
        pool.begin(ef);
        visited.begin(self.graph.len());
        let Some(score) = self.score(codes, start) else {
            return 0;
        };
        if !visited.see(start) {
            return 0;
        }
        pool.offer(start, score);
        let mut scored = 1;
        let mut fresh = [0; M_BASE];
        while let Some(node) = pool.expand() {
            let n = self.fresh_neighbours(node, level, visited, &mut fresh);
            let (fours, rest) = fresh[..n].as_chunks::<4>();
            for ids in fours {
                let Some(scores) = self.score_four(codes, ids) else {
                    continue;
                };
                for (&id, score) in ids.iter().zip(scores) {
                    pool.offer(id, score);
                }
            }
            for &id in rest {
                if let Some(score) = self.score(codes, id) {
                    pool.offer(id, score);
                }
            }
            scored += n as u64;
            if let Some(next) = pool.peek() {
                self.graph.base.prefetch(next);
            }
        }
        scored
    }

    /// The neighbours in view that the walk has not seen yet, their codes on the way to the cache.
    #[inline]
    fn fresh_neighbours(
        &self,
        node: u32,
        level: u8,
        visited: &mut Visited,
        fresh: &mut [u32; M_BASE],
    ) -> usize {
        let mut ids = [0; M_BASE];
        let n = if level == 0 {
            self.graph.base.get(node).map_or(0, |links| links.read(&mut ids))
        } else {
            let mut few = [0; M_BASE / 2];
            let n = self.graph.upper(node, level).map_or(0, |links| links.read(&mut few));
            ids[..n].copy_from_slice(&few[..n]);
            n
        };
        let mut count = 0;
        for &id in &ids[..n] {
            if id < self.graph.len() && visited.see(id) {
                self.vectors.codes.prefetch(id);
                self.vectors.scales.prefetch(id);
                fresh[count] = id;
                count += 1;
            }
        }
        count
    }
}
