//! Recall of answers against brute force over the very vectors the store holds.
//!
//! Invariant: the truth is computed here, in f64 and without the index; a first pass in f32 only leaves out what cannot be
//! among the best, by a bound on its rounding. Memories of equal score are equally right. Runs after the daemon has ended.

use std::collections::{HashMap, HashSet};

use flashbulb_engine::{Seq, SpaceName, Store};
use flashbulb_kernels::Kernels;

use crate::Failure;
use crate::metric::Metric;

/// Rows compared with every query before the next rows: they fit into a core's cache.
const BLOCK: usize = 256;
/// Every vector of one space and whose it is.
pub struct Rows {
    dim: usize,
    rows: Vec<f32>,
    owners: Vec<Seq>,
}

impl Rows {
    /// Of vectors one behind the other, and whose each is.
    pub fn new(dim: usize, rows: Vec<f32>, owners: Vec<Seq>) -> Rows {
        Rows { dim, rows, owners }
    }

    /// Components of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The vectors, one behind the other.
    pub fn values(&self) -> &[f32] {
        &self.rows
    }

    /// The vectors, given back.
    pub fn into_values(self) -> Vec<f32> {
        self.rows
    }

    /// Whose each vector is.
    pub fn owners(&self) -> &[Seq] {
        &self.owners
    }

    /// Reads them from the store.
    ///
    /// # Errors
    /// If the store cannot be read, or a memory has no vectors.
    pub fn read(store: &Store, space: &SpaceName) -> Result<Rows, Failure> {
        let dim = store.dim();
        let (mut rows, mut owners) = (Vec::new(), Vec::new());
        let mut after = None;
        loop {
            let page = store.list(space, None, None, after, 1000)?;
            for memory in &page.items {
                let found = store.vectors_of(space, memory.seq)?;
                let found = found.ok_or_else(|| {
                    format!("memory {} of {space} has no vectors of the model", memory.id)
                })?;
                for row in found {
                    rows.extend(row);
                    owners.push(memory.seq);
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(Rows { dim, rows, owners });
            }
        }
    }

    /// How many vectors there are.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// For each query, the memories with the `k` largest dot products, and those equal to the last of them.
    pub fn nearest(&self, queries: &[Vec<f32>], k: usize) -> Vec<HashSet<Seq>> {
        self.nearest_by(Metric::Dot, queries, k)
    }

    /// As [`Rows::nearest`], compared in another way.
    pub fn nearest_by(&self, metric: Metric, queries: &[Vec<f32>], k: usize) -> Vec<HashSet<Seq>> {
        let longest = self.rows.chunks_exact(self.dim).map(norm).fold(0.0, f64::max);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let part = queries.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let one = |queries: &[Vec<f32>]| self.in_one_thread((metric, longest), queries, k);
            let handles: Vec<_> =
                queries.chunks(part).map(|q| scope.spawn(move || one(q))).collect();
            // A panic there is a bug, and is passed on.
            let done = handles.into_iter().map(|h| match h.join() {
                Ok(found) => found,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            done.flatten().collect()
        })
    }

    fn in_one_thread(
        &self,
        (metric, longest): (Metric, f64),
        queries: &[Vec<f32>],
        k: usize,
    ) -> Vec<HashSet<Seq>> {
        let kernels = Kernels::detect();
        let rounding = |query| Rounding::of(metric, self.dim, norm(query) * longest);
        let mut candidates: Vec<Candidates> =
            queries.iter().map(|q| Candidates::new(k, rounding(q))).collect();
        for (b, block) in self.rows.chunks(BLOCK * self.dim).enumerate() {
            for (query, into) in queries.iter().zip(&mut candidates) {
                for (i, row) in block.chunks_exact(self.dim).enumerate() {
                    let at = b * BLOCK + i;
                    into.push(metric.rough(kernels, query, row), at, self.owners[at]);
                }
            }
        }
        queries.iter().zip(candidates).map(|(q, c)| self.exactly(metric, q, c, k)).collect()
    }

    /// The best of the candidates in f64.
    fn exactly(
        &self,
        metric: Metric,
        query: &[f32],
        candidates: Candidates,
        k: usize,
    ) -> HashSet<Seq> {
        let mut best: HashMap<Seq, f64> = HashMap::new();
        for (_, at, owner) in candidates.kept {
            let row = &self.rows[at * self.dim..][..self.dim];
            let score = metric.score(query, row);
            let known = best.entry(owner).or_insert(score);
            *known = known.max(score);
        }
        let mut scores: Vec<f64> = best.values().copied().collect();
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        let least = scores.get(k - 1).or(scores.last()).copied().unwrap_or(f64::INFINITY);
        best.into_iter().filter(|(_, score)| *score >= least).map(|(seq, _)| seq).collect()
    }
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}

/// How far two scores in f32 may be from the true ones, together.
struct Rounding {
    /// Whatever the score.
    absolute: f32,
    /// In parts of the score.
    relative: f32,
}

impl Rounding {
    /// A dot product of n components errs by at most about `n · 2^-24` of the two lengths' product, a sum of n squares by as much of
    /// itself (Higham, Accuracy and Stability, 3.1); three times that is enough for two of them up to 100,000 components. Tiny
    /// terms may be lost altogether.
    fn of(metric: Metric, dim: usize, lengths: f64) -> Rounding {
        let lost = 2.0 * dim as f32 * f32::MIN_POSITIVE;
        let part = 3.0 * (dim as f32 + 2.0) / 16_777_216.0;
        match metric {
            Metric::Cosine | Metric::Dot => {
                Rounding { absolute: part * lengths as f32 + lost, relative: 0.0 }
            }
            Metric::L2 => Rounding { absolute: lost, relative: part },
        }
    }
}

/// Rows that may be among the best of one query.
struct Candidates {
    k: usize,
    rounding: Rounding,
    /// The score of the k-th best memory so far, less the rounding.
    threshold: f32,
    kept: Vec<(f32, usize, Seq)>,
    prune_at: usize,
}

impl Candidates {
    fn new(k: usize, rounding: Rounding) -> Candidates {
        let prune_at = 16 * k;
        Candidates { k, rounding, threshold: f32::NEG_INFINITY, kept: Vec::new(), prune_at }
    }

    fn push(&mut self, score: f32, at: usize, owner: Seq) {
        if score >= self.threshold {
            self.kept.push((score, at, owner));
            if self.kept.len() >= self.prune_at {
                self.prune();
                self.prune_at = self.prune_at.max(2 * self.kept.len());
            }
        }
    }

    fn prune(&mut self) {
        self.kept.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut owners = HashSet::with_capacity(self.k);
        let kth = self.kept.iter().find(|(_, _, owner)| {
            owners.insert(*owner);
            owners.len() == self.k
        });
        if let Some((score, _, _)) = kth {
            let Rounding { absolute, relative } = self.rounding;
            self.threshold = score - (absolute + relative * score.abs());
            self.kept.retain(|(score, _, _)| *score >= self.threshold);
        }
    }
}

/// How many of `found` are right, and how many could be.
pub fn right(truth: &HashSet<Seq>, found: impl Iterator<Item = Seq>, k: usize) -> (usize, usize) {
    let possible = k.min(truth.len());
    (found.filter(|seq| truth.contains(seq)).count().min(possible), possible)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn rows(dim: usize, rows: Vec<f32>, owners: &[u64]) -> Rows {
        Rows { dim, rows, owners: owners.iter().map(|s| Seq(*s)).collect() }
    }

    #[test]
    fn brute_force_finds_the_nearest_owner_once() {
        let mut all = Vec::new();
        for (a, b) in [(1.0, 0.0), (0.9, 0.1), (0.0, 1.0), (0.95, 0.0)] {
            all.extend([a, b, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        }
        let rows = rows(8, all, &[1, 2, 3, 1]);
        let query = vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let truth = rows.nearest(&[query], 2);
        assert_eq!(truth, [HashSet::from([Seq(1), Seq(2)])]);
        assert_eq!(right(&truth[0], [Seq(2), Seq(3)].into_iter(), 2), (1, 2));
        assert_eq!(right(&truth[0], [Seq(1), Seq(2)].into_iter(), 10), (2, 2));
    }

    #[test]
    fn equal_scores_are_equally_right() {
        let one = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let rows = rows(8, one.repeat(3), &[1, 2, 3]);
        let truth = rows.nearest(&[one.to_vec()], 1);
        assert_eq!(truth[0].len(), 3);
        assert_eq!(right(&truth[0], [Seq(3)].into_iter(), 1), (1, 1));
    }

    /// Leaving out in f32 must change nothing, whatever the order of the rows.
    #[test]
    fn candidates_lose_nothing_against_a_plain_scan() {
        let (dim, count, k) = (16, 3000, 10);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut unit = || {
            let v: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
            let n = norm(&v) as f32;
            v.into_iter().map(|x| x / n).collect::<Vec<f32>>()
        };
        let all: Vec<Vec<f32>> = (0..count).map(|_| unit()).collect();
        let queries: Vec<Vec<f32>> = (0..7).map(|_| unit()).collect();
        let owners: Vec<u64> = (0..count as u64).map(|i| i / 2).collect();
        let rows = rows(dim, all.concat(), &owners);
        for (query, found) in queries.iter().zip(rows.nearest(&queries, k)) {
            let mut plain: HashMap<u64, f64> = HashMap::new();
            for (row, owner) in all.iter().zip(&owners) {
                let dot = query.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let best = plain.entry(*owner).or_insert(dot);
                *best = best.max(dot);
            }
            let mut sorted: Vec<(f64, u64)> = plain.into_iter().map(|(o, s)| (s, o)).collect();
            sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            let truth: HashSet<Seq> = sorted[..k].iter().map(|(_, o)| Seq(*o)).collect();
            assert_eq!(found, truth);
        }
    }

    /// Rows far from the origin and so near one another: with little noise, f32 tells few of their scores apart.
    fn far(count: usize, dim: usize, scale: f32, noise: f32) -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut one = || (30.0 + rng.random_range(-noise..noise)) * scale;
        (0..count).map(|_| (0..dim).map(|_| one()).collect()).collect()
    }

    #[test]
    fn every_metric_agrees_with_a_plain_scan() {
        let k = 10;
        for (dim, scale, noise) in [(3, 1.0, 1.0), (33, 1e-8, 4e-6), (100, 1e6, 4e-6)] {
            let all = far(2_000, dim, scale, noise);
            let queries = far(10, dim, scale, 1.0);
            let owners: Vec<u64> = (0..all.len() as u64).collect();
            let rows = rows(dim, all.concat(), &owners);
            for metric in [Metric::Dot, Metric::L2] {
                let plain = |a: &[f32], b: &[f32]| -> f64 {
                    let pairs = a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
                    match metric {
                        Metric::L2 => pairs.map(|(a, b)| -(a - b).powi(2)).sum(),
                        _ => pairs.map(|(a, b)| a * b).sum(),
                    }
                };
                for (query, found) in queries.iter().zip(rows.nearest_by(metric, &queries, k)) {
                    let scores: Vec<f64> = all.iter().map(|row| plain(query, row)).collect();
                    let mut sorted = scores.clone();
                    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
                    let right = (0..).zip(&scores).filter(|(_, score)| **score >= sorted[k - 1]);
                    let right: HashSet<Seq> = right.map(|(at, _)| Seq(at)).collect();
                    assert_eq!(found, right, "{metric:?}, {dim} components");
                }
            }
        }
    }
}
