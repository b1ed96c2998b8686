//! Recall of answers against brute force over the very vectors the store holds.
//!
//! Invariant: the truth is computed here, in f64 and without the index; a first pass in f32 only leaves out what cannot be
//! among the best, by a bound on its rounding. Memories of equal score are equally right. Runs after the daemon has ended.

use std::collections::{HashMap, HashSet};

use flashbulb_engine::{Seq, SpaceName, Store};
use flashbulb_kernels::Kernels;

use crate::Failure;

/// Rows compared with every query before the next rows: they fit into a core's cache.
const BLOCK: usize = 256;
/// An upper bound of how far two f32 dot products of unit vectors may be from the true ones, together. A product of n
/// components errs by at most `n · 2^-24` (Higham, Accuracy and Stability, 3.1); 4,096 components are the most.
const MARGIN: f32 = 2.0 * 4096.0 / 16_777_216.0;

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
                let found = store.vectors_of_text(space, &memory.text)?;
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
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let part = queries.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let one = |queries: &[Vec<f32>]| self.nearest_in_one_thread(queries, k);
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

    fn nearest_in_one_thread(&self, queries: &[Vec<f32>], k: usize) -> Vec<HashSet<Seq>> {
        let kernels = Kernels::detect();
        let mut candidates: Vec<Candidates> =
            queries.iter().map(|q| Candidates::new(k, norm(q))).collect();
        for (b, block) in self.rows.chunks(BLOCK * self.dim).enumerate() {
            for (query, into) in queries.iter().zip(&mut candidates) {
                for (i, row) in block.chunks_exact(self.dim).enumerate() {
                    let at = b * BLOCK + i;
                    into.push(kernels.dot_f32(query, row), at, self.owners[at]);
                }
            }
        }
        queries.iter().zip(candidates).map(|(q, c)| self.exactly(q, c, k)).collect()
    }

    /// The best of the candidates in f64.
    fn exactly(&self, query: &[f32], candidates: Candidates, k: usize) -> HashSet<Seq> {
        let mut best: HashMap<Seq, f64> = HashMap::new();
        for (_, at, owner) in candidates.kept {
            let row = &self.rows[at * self.dim..][..self.dim];
            let score: f64 =
                query.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let known = best.entry(owner).or_insert(score);
            *known = known.max(score);
        }
        let mut scores: Vec<f64> = best.values().copied().collect();
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        let least = scores.get(k - 1).or(scores.last()).copied().unwrap_or(f64::INFINITY);
        best.into_iter().filter(|(_, score)| *score >= least).map(|(seq, _)| seq).collect()
    }
}

fn norm(v: &[f32]) -> f32 {
    v.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Rows that may be among the best of one query.
struct Candidates {
    k: usize,
    margin: f32,
    /// The score of the k-th best memory so far, less the margin.
    threshold: f32,
    kept: Vec<(f32, usize, Seq)>,
    prune_at: usize,
}

impl Candidates {
    fn new(k: usize, norm: f32) -> Candidates {
        let margin = MARGIN * norm.max(1.0);
        let prune_at = 16 * k;
        Candidates { k, margin, threshold: f32::NEG_INFINITY, kept: Vec::new(), prune_at }
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
            self.threshold = score - self.margin;
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
            let n = norm(&v);
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
}
