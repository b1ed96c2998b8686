//! Clustered vectors from a seed, and brute force over them.
//!
//! Invariant: one seed gives one set of vectors on every machine. Must not know: the index.

use super::super::{
    Accept, Layout, Metric, RowSource, Scratch, SearchParams, SearchResult, VectorIndex, VectorNo,
};
use flashbulb_kernels::Kernels;
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// splitmix64 (Steele, Lea & Flood 2014).
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Roughly normal, mean 0, variance 1: the sum of twelve uniform numbers.
    pub(super) fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u32 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// f32 rows in memory.
pub(super) struct Rows {
    pub(super) dim: usize,
    pub(super) values: Vec<f32>,
}

impl RowSource for Rows {
    type Error = Infallible;

    fn copy_row(&self, vector: VectorNo, out: &mut [f32]) -> Result<(), Infallible> {
        out.copy_from_slice(self.row(vector));
        Ok(())
    }
}

impl Rows {
    /// `n` unit vectors in clusters on a surface of 24 dimensions, with noise in all of them: about
    /// what sentence embeddings look like.
    pub(super) fn clustered(n: usize, dim: usize, seed: u64) -> Rows {
        const LATENT: usize = 24;
        let mut rng = Rng(seed);
        let map: Vec<f32> = (0..LATENT * dim).map(|_| rng.normal()).collect();
        let clusters = (n / 100).max(1);
        let centres: Vec<f32> = (0..clusters * LATENT).map(|_| rng.normal()).collect();
        let mut values = Vec::with_capacity(n * dim);
        let mut vector = vec![0.0; dim];
        for _ in 0..n {
            // Small clusters and large ones.
            let cluster = rng.below(clusters).min(rng.below(clusters));
            vector.fill_with(|| 0.3 * rng.normal());
            for (i, row) in map.chunks(dim).enumerate() {
                let latent = centres[cluster * LATENT + i] + 0.7 * rng.normal();
                vector.iter_mut().zip(row).for_each(|(v, m)| *v += latent * m);
            }
            let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
            values.extend(vector.iter().map(|v| v / norm));
        }
        Rows { dim, values }
    }

    /// Splits `n` vectors off the end: queries of the same kind that are not in the index.
    pub(super) fn hold_out(&mut self, n: usize) -> Rows {
        let values = self.values.split_off(self.values.len() - n * self.dim);
        Rows { dim: self.dim, values }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    pub(super) fn row(&self, vector: VectorNo) -> &[f32] {
        &self.values[vector.0 as usize * self.dim..][..self.dim]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.dim)
    }

    /// The `k` best of the vectors that `keep` keeps, by brute force in f64.
    pub(super) fn best(
        &self,
        query: &[f32],
        k: usize,
        keep: impl Fn(VectorNo) -> bool,
    ) -> Vec<(VectorNo, f64)> {
        let dot = |row: &[f32]| -> f64 {
            row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut all: Vec<(VectorNo, f64)> = (0u32..)
            .map(VectorNo)
            .zip(self.iter())
            .filter(|(number, _)| keep(*number))
            .map(|(number, row)| (number, dot(row)))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all
    }

    /// An index of all rows.
    pub(super) fn index(&self) -> VectorIndex {
        self.index_as(Layout::Full)
    }

    /// An index of all rows, kept like this.
    pub(super) fn index_as(&self, layout: Layout) -> VectorIndex {
        let index = VectorIndex::with_layout(self.dim, Metric::Cosine, layout, Kernels::detect());
        for (n, row) in (0u32..).zip(self.iter()) {
            assert_eq!(index.push(row), VectorNo(n));
        }
        index
    }

    /// An index of all rows, all of them in the graph.
    pub(super) fn graphed(&self) -> VectorIndex {
        let index = self.index();
        build(&index);
        assert_eq!(index.graph_len() as usize, self.len());
        index
    }
}

/// Pushes rows one after the other.
pub(super) fn push_all<'a>(index: &VectorIndex, rows: impl Iterator<Item = &'a [f32]>) {
    rows.for_each(|row| {
        index.push(row);
    });
}

/// Builds until there is nothing to do.
pub(super) fn build(index: &VectorIndex) {
    while index.build_step(&mut || true) {}
}

/// `true` for so long.
pub(super) fn for_about(budget: Duration) -> impl FnMut() -> bool {
    let end = Instant::now() + budget;
    move || Instant::now() < end
}

pub(super) fn search(
    index: &VectorIndex,
    rows: &Rows,
    query: &[f32],
    params: SearchParams,
    accept: Accept<'_>,
) -> SearchResult {
    let Ok(result) = index.search(query, &params, rows, accept, &mut Scratch::new());
    result
}

pub(super) fn exact(k: usize) -> SearchParams {
    SearchParams { exact: true, ..SearchParams::new(k) }
}

/// Asserts that these are the top k, but for swaps among scores that f32 cannot tell apart.
pub(super) fn assert_exact(hits: &[(VectorNo, f32)], best: &[(VectorNo, f64)]) {
    const TIE: f64 = 2e-6;
    assert_eq!(hits.len(), best.len(), "{hits:?}\n{best:?}");
    for (i, (hit, best)) in hits.iter().zip(best).enumerate() {
        assert!((f64::from(hit.1) - best.1).abs() < TIE, "hit {i}: {hit:?}, should be {best:?}");
    }
    let last = best.last().map_or(0.0, |b| b.1);
    for clear in best.iter().filter(|b| b.1 > last + TIE) {
        assert!(hits.iter().any(|hit| hit.0 == clear.0), "{clear:?} is missing in {hits:?}");
    }
}

/// Share of the true top k that was found.
pub(super) fn recall(hits: &[(VectorNo, f32)], best: &[(VectorNo, f64)]) -> f64 {
    let found = best.iter().filter(|b| hits.iter().any(|hit| hit.0 == b.0)).count();
    if best.is_empty() { 1.0 } else { found as f64 / best.len() as f64 }
}
