//! Choosing a node's neighbours among candidates.
//!
//! Invariant: the same candidates give the same choice. Must not know: blocks, searches.
//!
//! A candidate is taken unless it is much closer to one taken before than to the node, so that links lead in different directions
//! (RobustPrune of Subramanya et al., *DiskANN*, NeurIPS 2019). Slots that are left go to the closest of the others, since a block's
//! 32 slots cost the same filled or empty (Gou et al., *SymphonyQG*, SIGMOD 2025).

use super::block::DEGREE;
use super::vectors::VectorsView;
use flashbulb_kernels::{Coded, Kernels};

/// How many times closer to another neighbour a candidate must be to be passed over, as a ratio of squared distances. Measured on
/// 100,000 × 384: 1.21 instead of 1 takes a third off the steps to recall@10 0.98.
const SLACK: f32 = 1.21;

/// A node and its product with another.
pub(super) type Scored = (u32, f32);

/// Measures vectors against one another by their codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale<'a> {
    pub(super) vectors: VectorsView<'a>,
    pub(super) kernels: Kernels,
}

/// Buffers of a choice.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The neighbours that were chosen; the first `diverse` lead in different directions.
    pub(super) ids: Vec<u32>,
    pub(super) diverse: usize,
    passed_over: Vec<u32>,
    /// Codes of the chosen, side by side, and their scales.
    codes: Vec<i8>,
    scales: Vec<f32>,
}

/// Neighbours that a candidate is compared with at once.
const ABREAST: usize = 8;

impl Scale<'_> {
    /// The products of a node with others, appended to `out`.
    pub(super) fn score(&self, node: u32, others: &[u32], out: &mut Vec<Scored>) {
        let Some(own) = self.vectors.coded(node) else { return };
        others.iter().for_each(|id| self.vectors.prefetch(*id));
        for id in others {
            if let Some(other) = self.vectors.coded(*id) {
                let dot = self.kernels.dot_i8(own.codes, other.codes);
                out.push((*id, dot as f32 * own.scale * other.scale));
            }
        }
    }

    /// Whether a candidate, whose product with the node is `score`, is far enough from all that were chosen.
    fn is_diverse(&self, candidate: Coded<'_>, score: f32, choice: &Choice) -> bool {
        let most = most_of(score);
        let rows = choice.codes.chunks(ABREAST * self.vectors.width());
        rows.zip(choice.scales.chunks(ABREAST)).all(|(rows, scales)| {
            let mut dots = [0; ABREAST];
            let dots = &mut dots[..scales.len()];
            self.kernels.dot_i8_rows(candidate.codes, rows, dots);
            dots.iter().zip(scales).all(|(dot, scale)| *dot as f32 * candidate.scale * scale < most)
        })
    }

    /// Whether one of the candidates, which are in the order of [`order`], would be taken in the place of all but those before it.
    pub(super) fn is_wanted(&self, candidates: &[Scored], candidate: u32) -> bool {
        let Some(at) = candidates.iter().position(|c| c.0 == candidate) else { return false };
        let Some(own) = self.vectors.coded(candidate) else { return false };
        let most = most_of(candidates[at].1);
        candidates[..at].iter().all(|(id, _)| {
            self.vectors.coded(*id).is_none_or(|other| {
                let dot = self.kernels.dot_i8(own.codes, other.codes);
                dot as f32 * own.scale * other.scale < most
            })
        })
    }

    /// Chooses up to 32 of the candidates, which are in the order of [`order`].
    pub(super) fn choose(&self, candidates: &[Scored], choice: &mut Choice) {
        choice.ids.clear();
        choice.passed_over.clear();
        choice.codes.clear();
        choice.scales.clear();
        for (id, score) in candidates {
            if choice.ids.len() == DEGREE {
                break;
            }
            let Some(candidate) = self.vectors.coded(*id) else {
                continue;
            };
            if self.is_diverse(candidate, *score, choice) {
                choice.ids.push(*id);
                choice.codes.extend_from_slice(candidate.codes);
                choice.scales.push(candidate.scale);
            } else if choice.passed_over.len() < DEGREE {
                choice.passed_over.push(*id);
            }
        }
        choice.diverse = choice.ids.len();
        let left = DEGREE - choice.ids.len();
        choice.ids.extend(choice.passed_over.iter().take(left));
    }
}

/// The largest product with a chosen neighbour that a candidate may have, whose product with the node is `score`. Of unit vectors,
/// whose squared distance is 2 − 2 · product.
fn most_of(score: f32) -> f32 {
    1.0 - (1.0 - score) / SLACK
}

/// Best first, equal ones by number; each node once.
pub(super) fn order(candidates: &mut Vec<Scored>) {
    candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    candidates.dedup_by_key(|candidate| candidate.0);
}
