//! What the tests of the index compare with: made-up vectors of a fixed seed, brute force over their f32 rows, and the checks that
//! every answer must pass.
//!
//! Knows the index by its public names only. Products are summed in f64, so the oracle's own rounding is none of an f32's.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::convert::Infallible;

use flashbulb_engine::index::{Accept, RowSource, SearchPath, SearchResult, VectorNo};

/// The size factor of the long runs: the value of the variable, 1 without it.
pub fn scale(variable: &str) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// Pseudo-random numbers (splitmix64): the same on every machine.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Near enough to normal: the sum of four uniforms, mean 0 and deviation 1.
    pub fn normal(&mut self) -> f64 {
        ((0..4).map(|_| self.unit()).sum::<f64>() - 2.0) * 3f64.sqrt()
    }
}

/// A mixture of clusters on the unit sphere, their sizes uneven as topics' are.
#[derive(Debug)]
pub struct Mixture {
    pub dim: usize,
    centres: Vec<Vec<f64>>,
    /// Length of a member's distance from its centre, of which length is 1.
    spread: f64,
}

impl Mixture {
    pub fn new(dim: usize, clusters: usize, spread: f64, seed: u64) -> Mixture {
        let mut rng = Rng(seed);
        let centres = (0..clusters).map(|_| direction(dim, &mut rng)).collect();
        Mixture { dim, centres, spread }
    }

    /// A vector of length 1 and its cluster.
    pub fn draw(&self, rng: &mut Rng) -> (usize, Vec<f32>) {
        let at = rng.unit().powf(1.5) * self.centres.len() as f64;
        let cluster = (at as usize).min(self.centres.len() - 1);
        let noise = direction(self.dim, rng);
        let sum: Vec<f64> =
            self.centres[cluster].iter().zip(noise).map(|(c, n)| c + self.spread * n).collect();
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        (cluster, sum.iter().map(|x| (x / length) as f32).collect())
    }
}

fn direction(dim: usize, rng: &mut Rng) -> Vec<f64> {
    let v: Vec<f64> = (0..dim).map(|_| rng.normal()).collect();
    let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    v.iter().map(|x| x / length).collect()
}

/// The f32 rows of an index, in the order of the pushes.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    pub dim: usize,
    values: Vec<f32>,
}

impl Rows {
    pub fn new(dim: usize) -> Rows {
        Rows { dim, values: Vec::new() }
    }

    pub fn push(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.dim);
        self.values.extend_from_slice(row);
    }

    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    pub fn row(&self, n: usize) -> &[f32] {
        &self.values[n * self.dim..][..self.dim]
    }

    /// The product of every row with the query.
    pub fn scores(&self, query: &[f32]) -> Vec<f64> {
        self.values.chunks_exact(self.dim).map(|row| dot(row, query)).collect()
    }
}

impl RowSource for Rows {
    type Error = Infallible;

    fn copy_row(&self, vector: VectorNo, out: &mut [f32]) -> Result<(), Infallible> {
        out.copy_from_slice(self.row(vector.0 as usize));
        Ok(())
    }
}

/// Four sums, so that the processor need not wait for one.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f64; 4];
    let (mut left, mut right) = (a.chunks_exact(4), b.chunks_exact(4));
    for (x, y) in (&mut left).zip(&mut right) {
        sums[0] += f64::from(x[0]) * f64::from(y[0]);
        sums[1] += f64::from(x[1]) * f64::from(y[1]);
        sums[2] += f64::from(x[2]) * f64::from(y[2]);
        sums[3] += f64::from(x[3]) * f64::from(y[3]);
    }
    let rest = left.remainder().iter().zip(right.remainder());
    sums.iter().sum::<f64>() + rest.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
}

/// What one search must answer: the score of every vector that may be returned, best first, equal scores by number.
#[derive(Debug)]
pub struct Truth {
    pub best: Vec<(u32, f64)>,
    pub matches: usize,
}

impl Truth {
    /// Brute force: the best `k` of all vectors that `may` be returned, out of their products with the query.
    pub fn new(scores: &[f64], k: usize, may: impl Fn(u32) -> bool) -> Truth {
        let all = scores.iter().enumerate().map(|(n, score)| (n as u32, *score));
        let mut best: Vec<(u32, f64)> = all.filter(|(n, _)| may(*n)).collect();
        let matches = best.len();
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if matches > k {
            best.select_nth_unstable_by(k - 1, order);
            best.truncate(k);
        }
        best.sort_unstable_by(order);
        Truth { best, matches }
    }
}

/// How far an f32 score may be from the true product of two vectors of about unit length: the kernels' bound is
/// 1.01 · n · 2^-24 · Σ|aᵢ·bᵢ|, and the last factor is at most 1.
pub fn rounding(dim: usize) -> f64 {
    1.02 * dim as f64 / f64::from(1u32 << 24) + 1e-7
}

/// What a score may be off by after a walk, of vectors of length 1: "at most 0.0001 of the product of the two lengths".
pub const AFTER_A_WALK: f64 = 1e-4;

/// Scores that are this close may change places: an f32 of about 1 has steps of 6e-8.
const TIE: f64 = 1e-6;

/// Checks what must hold of every answer, exact or not: each hit may be returned and comes once, its score is its own within
/// `slack`, the best comes first, equal scores by number, and there are as many as there can be. Returns how many of the true best
/// were found; one that ties with the last of them counts.
pub fn check(
    hits: &[(u32, f32)],
    scores: &[f64],
    truth: &Truth,
    slack: f64,
    may: impl Fn(u32) -> bool,
) -> Result<usize, String> {
    if hits.len() != truth.best.len() {
        let (got, want) = (hits.len(), truth.best.len());
        return Err(format!("{got} hits, not {want}; {} vectors match", truth.matches));
    }
    let mut seen = BTreeSet::new();
    for (n, score) in hits {
        if !seen.insert(*n) {
            return Err(format!("{n} comes twice"));
        }
        if *n as usize >= scores.len() || !may(*n) {
            return Err(format!("{n} is dead, unknown, or does not match"));
        }
        let own = scores[*n as usize];
        if (f64::from(*score) - own).abs() > slack {
            return Err(format!("{n} has the score {score}, not {own}"));
        }
    }
    for pair in hits.windows(2) {
        let ((a, first), (b, second)) = (pair[0], pair[1]);
        if first < second || (first == second && a > b) {
            return Err(format!("{a} with {first} comes before {b} with {second}"));
        }
    }
    let worst = truth.best.last().map_or(f64::INFINITY, |last| last.1);
    Ok(hits.iter().filter(|(n, _)| scores[*n as usize] >= worst - TIE).count())
}

/// Checks that an answer is brute force's own: rank by rank the same score within `slack`, so nothing better was left out.
pub fn check_exact(
    hits: &[(u32, f32)],
    scores: &[f64],
    truth: &Truth,
    slack: f64,
    may: impl Fn(u32) -> bool,
) -> Result<(), String> {
    check(hits, scores, truth, slack, may)?;
    for (rank, ((n, score), (best, own))) in hits.iter().zip(&truth.best).enumerate() {
        if (f64::from(*score) - own).abs() > slack {
            return Err(format!("rank {rank} is {n} with {score}, not {best} with {own}"));
        }
    }
    Ok(())
}

/// Checks one answer of the index and returns how many of the true best it has. All of them, where a scan ran: it "answers exactly
/// although it reads only i8 codes".
pub fn judge(
    found: &SearchResult,
    scores: &[f64],
    truth: &Truth,
    slack: f64,
    may: impl Fn(u32) -> bool + Copy,
) -> Result<usize, String> {
    let hits = plain(found);
    if matches!(found.path, SearchPath::Scan | SearchPath::GraphThenScan) {
        check_exact(&hits, scores, truth, slack, may)
            .map_err(|why| format!("{:?}: {why}", found.path))?;
    }
    check(&hits, scores, truth, slack.max(AFTER_A_WALK), may)
        .map_err(|why| format!("{:?}: {why}", found.path))
}

/// The hits of the index as plain numbers.
pub fn plain(found: &SearchResult) -> Vec<(u32, f32)> {
    found.hits.iter().map(|(vector, score)| (vector.0, *score)).collect()
}

/// Counts of true best that were found and that there were.
#[derive(Debug, Default, Clone, Copy)]
pub struct Recall {
    pub found: usize,
    pub of: usize,
}

impl Recall {
    pub fn add(&mut self, found: usize, truth: &Truth) {
        self.found += found;
        self.of += truth.best.len();
    }

    pub fn rate(&self) -> f64 {
        if self.of == 0 { 1.0 } else { self.found as f64 / self.of as f64 }
    }
}

/// Calls `search` with the filter as a set and as a test.
pub fn both_ways(matching: &[bool], mut search: impl FnMut(&str, Accept<'_>)) {
    let set = matching.iter().enumerate().filter(|(_, yes)| **yes);
    let set = set.map(|(n, _)| VectorNo(n as u32)).collect();
    search("set", Accept::Bits(&set));
    search("test", Accept::Test(&|vector| matching[vector.0 as usize]));
}
