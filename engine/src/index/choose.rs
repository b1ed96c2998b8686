//! Choosing a node's neighbours among candidates.
//!
//! Invariant: the same candidates give the same choice. Must not know: blocks, searches.
//!
//! A candidate is taken unless it is much closer to one that is closer to the node than to the node, so that links lead in different
//! directions (RobustPrune of Subramanya et al., *DiskANN*, NeurIPS 2019). Slots that are left go to the closest of the others, since a block's
//! 32 slots cost the same filled or empty (Gou et al., *SymphonyQG*, SIGMOD 2025).

use super::block::{DEGREE, Pen};
use super::graph::GraphView;
use super::vectors::{Measure, VectorsView};
use flashbulb_kernels::Kernels;

/// How many times closer to another neighbour a candidate must be to be passed over, as a ratio of squared distances. Measured on
/// 236,000 × 384 by walking the links with exact distances: a beam of 32 finds 0.987 of the ten nearest, with 1 it finds 0.982.
const SLACK: f32 = 1.21;

/// A node and how close it is to another: half of their squared distance, with a minus.
pub(super) type Scored = (u32, f32);

/// Measures vectors against one another by their codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale<'a> {
    pub(super) vectors: VectorsView<'a>,
    pub(super) kernels: Kernels,
    /// Where a walk has just read the candidates' codes, so that they are still at hand.
    pub(super) walked: Option<&'a GraphView<'a>>,
}

/// Buffers of a choice.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The neighbours that were chosen; the first `diverse` lead in different directions, or were to stay.
    pub(super) ids: Vec<u32>,
    pub(super) diverse: usize,
    passed_over: Vec<u32>,
    /// Room for the codes of a candidate.
    candidate: Vec<i8>,
    /// Codes of the chosen, side by side, their measures, and how close they are.
    codes: Vec<i8>,
    measures: Vec<Measure>,
    close: Vec<f32>,
}

impl Choice {
    fn clear(&mut self) {
        self.ids.clear();
        self.passed_over.clear();
        self.codes.clear();
        self.measures.clear();
        self.close.clear();
    }

    fn take(&mut self, (id, close): Scored, (measure, codes): (Measure, &[i8])) {
        self.ids.push(id);
        self.codes.extend_from_slice(codes);
        self.measures.push(measure);
        self.close.push(close);
    }
}

/// Neighbours that a candidate is compared with at once.
const ABREAST: usize = 8;

impl<'a> Scale<'a> {
    /// Measures by the rows of all vectors.
    pub(super) fn of(pen: Pen<'a>) -> Scale<'a> {
        Scale { vectors: pen.vectors, kernels: pen.kernels, walked: None }
    }

    #[inline]
    fn row<'r>(&'r self, node: u32, room: &'r mut Vec<i8>) -> Option<(Measure, &'r [i8])> {
        let walked = self.walked.and_then(|graph| graph.block(node)).and_then(|block| block.own());
        walked.or_else(|| self.vectors.row(node, room))
    }

    /// How close a node is to others, appended to `out`.
    pub(super) fn score(&self, node: u32, others: &[u32], out: &mut Vec<Scored>) {
        let mut room = Vec::new();
        let Some((measure, own)) = self.vectors.row(node, &mut room) else { return };
        others.iter().for_each(|id| self.vectors.prefetch(*id));
        for id in others {
            if let Some((other, dot)) = self.vectors.product(own, *id, self.kernels) {
                out.push((*id, self.vectors.closeness(dot, measure, other)));
            }
        }
    }

    /// Whether a candidate that is so close to the node is far enough from all chosen ones that are closer.
    fn is_diverse(&self, (measure, codes): (Measure, &[i8]), close: f32, choice: &Choice) -> bool {
        let most = close / SLACK;
        let rows = choice.codes.chunks(ABREAST * self.vectors.width());
        let others = choice.measures.chunks(ABREAST).zip(choice.close.chunks(ABREAST));
        rows.zip(others).all(|(rows, (measures, others))| {
            let mut dots = [0; ABREAST];
            let dots = &mut dots[..measures.len()];
            self.kernels.dot_i8_rows(codes, rows, dots);
            dots.iter().zip(measures).zip(others).all(|((dot, m), other)| {
                *other < close || self.vectors.closeness(*dot, measure, *m) < most
            })
        })
    }

    /// Chooses up to 32 of the candidates, which are in the order of [`order`].
    pub(super) fn choose(&self, candidates: &[Scored], choice: &mut Choice) {
        self.choose_beside(&[], candidates, choice);
    }

    /// Chooses as many of the candidates, which are in the order of [`order`], as there is room for beside neighbours that stay.
    pub(super) fn choose_beside(
        &self,
        kept: &[Scored],
        candidates: &[Scored],
        choice: &mut Choice,
    ) {
        choice.clear();
        let mut room = std::mem::take(&mut choice.candidate);
        for one in kept {
            if let Some(row) = self.row(one.0, &mut room) {
                choice.take(*one, row);
            }
        }
        for one in candidates {
            if choice.ids.len() == DEGREE {
                break;
            }
            let Some(row) = self.row(one.0, &mut room) else {
                continue;
            };
            if self.is_diverse(row, one.1, choice) {
                choice.take(*one, row);
            } else if choice.passed_over.len() < DEGREE {
                choice.passed_over.push(one.0);
            }
        }
        choice.candidate = room;
        choice.diverse = choice.ids.len();
        let left = DEGREE - choice.ids.len();
        choice.ids.extend(choice.passed_over.iter().take(left));
    }
}

/// Closest first, equal ones by number; each node once.
pub(super) fn order(candidates: &mut Vec<Scored>) {
    candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    candidates.dedup_by_key(|candidate| candidate.0);
}
