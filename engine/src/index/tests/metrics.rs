//! Distances and products of vectors of any length, against brute force in f64.
//!
//! Invariant: expectations come from the f32 rows alone. Must not know: how the index brings vectors near unit length.

use super::super::{Accept, Metric, SearchParams, SearchPath, VectorIndex, VectorNo};
use super::data::{Rng, Rows, build, exact, push_all, recall, search};
use flashbulb_kernels::Kernels;

/// Vectors in clusters that lie off the origin, of lengths between a half and twice `length`.
fn of_many_lengths(n: usize, dim: usize, length: f32) -> Rows {
    spread(n, dim, length, 2.0)
}

/// Vectors in clusters that lie off the origin, of lengths between one `by`-th and `by` times `length`.
fn spread(n: usize, dim: usize, length: f32, by: f32) -> Rows {
    let mut rows = Rows::clustered(n, dim, 17);
    let mut rng = Rng(3);
    for row in rows.values.chunks_mut(dim) {
        let by = length * (1.0 / by + (by - 1.0 / by) * (rng.below(1_000) as f32 / 1_000.0));
        row.iter_mut().enumerate().for_each(|(at, v)| *v = (*v + 0.2 * (at % 3) as f32) * by);
    }
    rows
}

fn score(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    match metric {
        Metric::Cosine | Metric::Dot => pairs.map(|(a, b)| a * b).sum(),
        Metric::L2 => -pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>(),
    }
}

fn best(metric: Metric, rows: &Rows, query: &[f32], k: usize) -> Vec<(VectorNo, f64)> {
    let mut all: Vec<_> =
        (0..).map(VectorNo).zip(rows.iter().map(|row| score(metric, row, query))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(k);
    all
}

fn indexed(metric: Metric, rows: &Rows) -> VectorIndex {
    let index = VectorIndex::with_metric(rows.dim, metric, Kernels::detect());
    push_all(&index, rows.iter());
    index
}

fn assert_scores(metric: Metric, rows: &Rows, query: &[f32], hits: &[(VectorNo, f32)], part: f64) {
    let length = |v: &[f32]| score(Metric::Dot, v, v).sqrt();
    for (vector, said) in hits {
        let row = rows.row(*vector);
        let off = (f64::from(*said) - score(metric, row, query)).abs();
        assert!(off <= part * length(row) * length(query), "{metric:?}: off by {off}");
    }
}

#[test]
fn scans_are_exact_and_walks_find_the_best() {
    for metric in [Metric::Dot, Metric::L2] {
        for length in [1e-4, 1.0, 3_000.0] {
            let mut rows = of_many_lengths(6_100, 48, length);
            let queries = rows.hold_out(100);
            let index = indexed(metric, &rows);
            build(&index);
            let mut found = 0.0;
            for query in queries.iter() {
                let wanted = best(metric, &rows, query, 10);
                let scanned = search(&index, &rows, query, exact(10), Accept::All);
                assert_eq!(recall(&scanned.hits, &wanted), 1.0, "{metric:?} {length}");
                assert_scores(metric, &rows, query, &scanned.hits, 1e-6);
                let walked = search(&index, &rows, query, SearchParams::new(10), Accept::All);
                assert_eq!(walked.path, SearchPath::Graph);
                assert_scores(metric, &rows, query, &walked.hits, 1e-4);
                found += recall(&walked.hits, &wanted) / queries.len() as f64;
            }
            // The largest products are with the longest vectors, wherever these are.
            let least = if metric == Metric::L2 { 0.99 } else { 0.95 };
            assert!(found >= least, "{metric:?}, length {length}: recall {found}");
        }
    }
}

#[test]
fn a_checkpoint_keeps_metric_and_size() {
    for metric in [Metric::Dot, Metric::L2] {
        let rows = of_many_lengths(4_200, 24, 50.0);
        let index = indexed(metric, &rows);
        build(&index);
        let mut bytes = Vec::new();
        index.checkpoint(&mut bytes).unwrap();
        let loaded = VectorIndex::load(24, Kernels::detect(), &bytes).unwrap();
        assert_eq!(loaded.metric(), metric);
        build(&loaded);
        for query in rows.iter().take(20) {
            let hits = |index| search(index, &rows, query, SearchParams::new(5), Accept::All).hits;
            assert_eq!(hits(&index), hits(&loaded));
        }
    }
}

#[test]
fn zeros_before_all_others_do_not_decide() {
    let mut rows = Rows { dim: 48, values: vec![0.0; 48] };
    rows.values.extend_from_slice(&of_many_lengths(4_300, 48, 3_000.0).values);
    let index = indexed(Metric::L2, &rows);
    build(&index);
    let found = rows.iter().take(100).filter(|query| {
        let walked = search(&index, &rows, query, SearchParams::new(1), Accept::All);
        assert_eq!(walked.path, SearchPath::Graph);
        walked.hits[0].1 == 0.0
    });
    assert!(found.count() >= 98);
}
