//! Keeps every candidate that may still be among the k best, and turns them into the k best.
//!
//! Invariant: given sound bounds, no vector of the true top k is ever dropped (up to f32 rounding
//! of equal scores). Must not know: where candidates come from.

use super::VectorNo;

/// Candidates kept before those that fell below the threshold are swept out.
const SWEEP_FROM: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// The true score is at most this.
    upper: f32,
    vector: u32,
}

/// The best of the candidates.
pub(super) struct Best {
    /// Best first, equal scores by number.
    pub(super) hits: Vec<(VectorNo, f32)>,
    /// Candidates scored anew to find them.
    pub(super) reranked: u64,
}

/// Candidates of one search.
#[derive(Debug, Default)]
pub(super) struct Collector {
    k: usize,
    /// The k best lower bounds, best first.
    lowers: Vec<f32>,
    candidates: Vec<Candidate>,
    sweep_at: usize,
}

impl Collector {
    pub(super) fn begin(&mut self, k: usize) {
        self.k = k;
        self.lowers.clear();
        self.candidates.clear();
        self.sweep_at = SWEEP_FROM;
    }

    /// The k-th best lower bound: what falls below it cannot be among the k best.
    #[inline]
    pub(super) fn threshold(&self) -> f32 {
        if self.lowers.len() < self.k { f32::NEG_INFINITY } else { self.lowers[self.k - 1] }
    }

    /// Adds a candidate whose score is within `slack` of `score`.
    pub(super) fn offer(&mut self, vector: VectorNo, score: f32, slack: f32) {
        let (upper, lower) = (score + slack, score - slack);
        if upper < self.threshold() {
            return;
        }
        self.candidates.push(Candidate { upper, vector: vector.0 });
        if lower > self.threshold() {
            if self.lowers.len() == self.k {
                self.lowers.pop();
            }
            let at = self.lowers.partition_point(|&l| l >= lower);
            self.lowers.insert(at, lower);
        }
        if self.candidates.len() >= self.sweep_at {
            self.sweep();
            self.sweep_at = SWEEP_FROM.max(self.candidates.len() * 2);
        }
    }

    fn sweep(&mut self) {
        let threshold = self.threshold();
        self.candidates.retain(|c| c.upper >= threshold);
    }

    /// Scores the candidates anew, best bound first, until none can enter the k best. `told` makes of a bound what `score` says.
    pub(super) fn finish<E>(
        &mut self,
        told: impl Fn(f32) -> f32,
        prefetch: impl Fn(u32),
        mut score: impl FnMut(u32) -> Result<f32, E>,
    ) -> Result<Best, E> {
        self.sweep();
        self.candidates
            .sort_unstable_by(|a, b| b.upper.total_cmp(&a.upper).then(a.vector.cmp(&b.vector)));
        self.candidates.iter().take(self.k).for_each(|c| prefetch(c.vector));
        let mut hits: Vec<(VectorNo, f32)> = Vec::with_capacity(self.k.min(self.candidates.len()));
        let mut reranked = 0;
        for c in &self.candidates {
            let full = hits.len() == self.k;
            if full && hits.last().is_some_and(|worst| told(c.upper) < worst.1) {
                break;
            }
            let vector = VectorNo(c.vector);
            let score = score(c.vector)?;
            reranked += 1;
            let at = hits.partition_point(|hit| (hit.1, vector) >= (score, hit.0));
            if at < self.k {
                if full {
                    hits.pop();
                }
                hits.insert(at, (vector, score));
            }
        }
        Ok(Best { hits, reranked })
    }
}
