//! The exact scan: every vector's codes, with bounds that let nothing of the top k slip.
//!
//! Invariant: every live, accepted vector of the range is offered to the collector or outside of the top k, provably or,
//! where the caller settles for that, but for one case in some ten thousand. Must not know: graphs.

use super::VectorNo;
use super::accept::{Accept, VectorBits};
use super::collector::Collector;
use super::vectors::{Measure, QueryCodes, VectorsView};
use flashbulb_kernels::Kernels;

/// Rows scored at a time: their codes pass through the first-level cache once.
pub(super) const BLOCK: usize = 64;

/// A run of vectors that lie side by side.
struct Run<'a> {
    first: u32,
    codes: &'a [i8],
    measures: &'a [Measure],
}

/// Offers the vectors `from..to` and returns how many rows of codes were read.
pub(super) fn scan(
    view: &VectorsView<'_>,
    query: &QueryCodes,
    (from, to): (u32, u32),
    (accept, bounds): (Accept<'_>, Bounds),
    kernels: Kernels,
    collector: &mut Collector,
) -> u64 {
    let mut read = 0;
    let scan = Scan { view, query, accept, bounds, kernels };
    // Both grow alike, so their runs are cut at the same numbers.
    for ((first, codes), (_, measures)) in view.codes.runs(from, to).zip(view.measures(from, to)) {
        let run = Run { first, codes, measures };
        read += match accept {
            Accept::Bits(members) => scan.members(&run, members, collector),
            Accept::All | Accept::Test(_) => scan.all(&run, collector),
        };
    }
    read
}

/// How far a score may be from the true one for a vector to be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounds {
    /// As far as it can be.
    Sure,
    /// As far as it is but for one case in some ten thousand: where codes are of four bits, the sure bound keeps thousands.
    Likely,
}

/// What rows are scored with.
struct Scan<'a> {
    view: &'a VectorsView<'a>,
    query: &'a QueryCodes,
    accept: Accept<'a>,
    bounds: Bounds,
    kernels: Kernels,
}

impl Scan<'_> {
    fn slack(&self, measure: Measure) -> f32 {
        match self.bounds {
            Bounds::Sure => self.query.slack(measure),
            Bounds::Likely => self.query.likely_slack(measure),
        }
    }

    /// Scores every row, and asks who is dead or accepted only about those that reach the threshold.
    fn all(&self, run: &Run<'_>, collector: &mut Collector) -> u64 {
        let mut dots = [0; BLOCK];
        let stride = self.view.codes.width();
        for (block, codes) in run.codes.chunks(BLOCK * stride).enumerate() {
            let start = block * BLOCK;
            let dots = &mut dots[..codes.len() / stride];
            self.view.products(&self.query.codes, codes, self.kernels, dots);
            for (i, &dot) in dots.iter().enumerate() {
                let at = start + i;
                let measure = run.measures[at];
                let score = self.query.score(self.view, measure, dot);
                let slack = self.slack(measure);
                if score + slack >= collector.threshold() {
                    let vector = VectorNo(run.first + at as u32);
                    if !self.view.dead.is_dead(vector.0) && self.accept.accepts(vector) {
                        collector.offer(vector, score, slack);
                    }
                }
            }
        }
        run.measures.len() as u64
    }

    /// Scores the members of a set only.
    fn members(&self, run: &Run<'_>, members: &VectorBits, collector: &mut Collector) -> u64 {
        let (first, end) = (run.first, run.first + run.measures.len() as u32);
        let mut read = 0;
        let mut ids = [0; BLOCK];
        for word in first / 64..=(end - 1) / 64 {
            let mut bits = members.word(word) & !self.view.dead.word(word);
            let mut n = 0;
            while bits != 0 {
                let number = word * 64 + bits.trailing_zeros();
                bits &= bits - 1;
                if (first..end).contains(&number) {
                    // They lie too far apart for the processor to guess.
                    self.view.codes.prefetch(number);
                    ids[n] = number;
                    n += 1;
                }
            }
            for &number in &ids[..n] {
                let product = self.view.product(&self.query.codes, number, self.kernels);
                if let Some((measure, dot)) = product {
                    let score = self.query.score(self.view, measure, dot);
                    collector.offer(VectorNo(number), score, self.slack(measure));
                }
            }
            read += n as u64;
        }
        read
    }
}
