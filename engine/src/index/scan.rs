//! The exact scan: every vector's codes, with bounds that let nothing of the top k slip.
//!
//! Invariant: every live, accepted vector of the range is offered to the collector or provably
//! outside of the top k. Must not know: graphs.

use super::VectorNo;
use super::accept::Accept;
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
    accept: Accept<'_>,
    kernels: Kernels,
    collector: &mut Collector,
) -> u64 {
    let mut read = 0;
    // Both grow alike, so their runs are cut at the same numbers.
    for ((first, codes), (_, measures)) in view.codes.runs(from, to).zip(view.measures(from, to)) {
        let run = Run { first, codes, measures };
        read += match accept {
            Accept::Bits(_) => scan_members(view, query, &run, accept, kernels, collector),
            Accept::All | Accept::Test(_) => {
                scan_all(view, query, &run, accept, kernels, collector)
            }
        };
    }
    read
}

/// Scores every row, and asks who is dead or accepted only about those that reach the threshold.
fn scan_all(
    view: &VectorsView<'_>,
    query: &QueryCodes,
    run: &Run<'_>,
    accept: Accept<'_>,
    kernels: Kernels,
    collector: &mut Collector,
) -> u64 {
    let mut dots = [0; BLOCK];
    for (block, codes) in run.codes.chunks(BLOCK * view.width()).enumerate() {
        let start = block * BLOCK;
        let dots = &mut dots[..codes.len() / view.width()];
        kernels.dot_i8_rows(&query.codes, codes, dots);
        for (i, &dot) in dots.iter().enumerate() {
            let at = start + i;
            let measure = run.measures[at];
            let score = query.score(view, measure, dot);
            let slack = query.slack(measure);
            if score + slack >= collector.threshold() {
                let vector = VectorNo(run.first + at as u32);
                if !view.dead.is_dead(vector.0) && accept.accepts(vector) {
                    collector.offer(vector, score, slack);
                }
            }
        }
    }
    run.measures.len() as u64
}

/// Scores the members of a set only.
fn scan_members(
    view: &VectorsView<'_>,
    query: &QueryCodes,
    run: &Run<'_>,
    accept: Accept<'_>,
    kernels: Kernels,
    collector: &mut Collector,
) -> u64 {
    let Accept::Bits(members) = accept else {
        return 0;
    };
    let (first, end) = (run.first, run.first + run.measures.len() as u32);
    let mut read = 0;
    let mut ids = [0; BLOCK];
    for word in first / 64..=(end - 1) / 64 {
        let mut bits = members.word(word) & !view.dead.word(word);
        let mut n = 0;
        while bits != 0 {
            let number = word * 64 + bits.trailing_zeros();
            bits &= bits - 1;
            if (first..end).contains(&number) {
                // They lie too far apart for the processor to guess.
                view.codes.prefetch(number);
                ids[n] = number;
                n += 1;
            }
        }
        for &number in &ids[..n] {
            let at = (number - first) as usize;
            let codes = &run.codes[at * view.width()..][..view.width()];
            let measure = run.measures[at];
            let score = query.score(view, measure, kernels.dot_i8(&query.codes, codes));
            let slack = query.slack(measure);
            collector.offer(VectorNo(number), score, slack);
        }
        read += n as u64;
    }
    read
}
