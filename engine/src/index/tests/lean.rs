//! The lean layout: what it keeps, and that what it finds is what the full one finds.
//!
//! Invariant: expectations come from the f32 rows alone. Must not know: how codes are packed.

use super::super::{
    Accept, Layout, Metric, SearchParams, SearchPath, VectorBits, VectorIndex, VectorNo,
};
use super::data::{Rows, assert_exact, build, exact, push_all, recall, search};
use flashbulb_kernels::Kernels;

fn lean(rows: &Rows) -> VectorIndex {
    let index = rows.index_as(Layout::Lean);
    build(&index);
    assert_eq!(index.graph_len() as usize, rows.len());
    index
}

fn saved(index: &VectorIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    index.checkpoint(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_walk_finds_the_neighbours_and_a_scan_all_of_them() {
    for (n, dim) in [(20_000, 64), (8_000, 384)] {
        let mut rows = Rows::clustered(n + 100, dim, 3);
        let queries = rows.hold_out(100);
        let index = lean(&rows);
        let mut found = 0.0;
        for query in queries.iter() {
            let best = rows.best(query, 10, |_| true);
            let walked = search(&index, &rows, query, SearchParams::new(10), Accept::All);
            assert_eq!(walked.path, SearchPath::Graph);
            found += recall(&walked.hits, &best) / queries.len() as f64;
            let scanned = search(&index, &rows, query, exact(10), Accept::All);
            assert_exact(&scanned.hits, &best);
        }
        assert!(found >= 0.97, "{n} × {dim}: recall@10 {found}");
    }
}

#[test]
fn a_scan_that_need_not_be_exact_reads_few_rows() {
    let mut rows = Rows::clustered(4_050, 384, 7);
    let queries = rows.hold_out(50);
    let index = rows.index_as(Layout::Lean);
    let (mut found, mut read) = (0.0, 0);
    for query in queries.iter() {
        let result = search(&index, &rows, query, SearchParams::new(10), Accept::All);
        assert_eq!(result.path, SearchPath::Scan);
        found += recall(&result.hits, &rows.best(query, 10, |_| true)) / queries.len() as f64;
        read += result.reranked;
    }
    assert!(found >= 0.998 && read <= 50 * 40, "recall {found}, {read} rows");
}

#[test]
fn filters_and_deletes_hold_in_scans_of_members() {
    let rows = Rows::clustered(6_000, 48, 21);
    let index = lean(&rows);
    (0..6_000).step_by(3).for_each(|n| assert!(index.kill(VectorNo(n))));
    let bits: VectorBits = (0..6_000).step_by(40).map(VectorNo).collect();
    for query in rows.iter().step_by(600) {
        let keep = |v: VectorNo| v.0.is_multiple_of(40) && !v.0.is_multiple_of(3);
        let best = rows.best(query, 10, keep);
        let found = search(&index, &rows, query, exact(10), Accept::Bits(&bits));
        assert_exact(&found.hits, &best);
    }
}

#[test]
fn a_loaded_index_has_its_blocks_at_once_and_grows_on() {
    let mut rows = Rows::clustered(6_000, 24, 41);
    let later = rows.hold_out(1_000);
    let whole = lean(&rows);
    let loaded = VectorIndex::load(24, Kernels::detect(), &saved(&whole)).unwrap();
    assert_eq!((loaded.layout(), loaded.graph_len()), (Layout::Lean, 5_000));
    assert!(!loaded.build_step(&mut || false), "nothing is to be drawn");
    assert!(saved(&loaded) == saved(&whole), "saved again, it is the same");
    for index in [&loaded, &whole] {
        push_all(index, later.iter());
        build(index);
    }
    assert!(saved(&loaded) == saved(&whole), "as if it had never been saved");
}

#[test]
fn every_metric_is_scanned_exactly() {
    let rows = Rows::clustered(4_300, 40, 51);
    for metric in [Metric::Dot, Metric::L2] {
        let index = VectorIndex::with_layout(40, metric, Layout::Lean, Kernels::detect());
        push_all(&index, rows.iter());
        build(&index);
        for query in rows.iter().step_by(430) {
            // Of vectors of one length, all metrics have one order.
            let best = rows.best(query, 10, |_| true);
            let found = search(&index, &rows, query, exact(10), Accept::All);
            assert_eq!(recall(&found.hits, &best), 1.0, "{metric:?}");
            let walked = search(&index, &rows, query, SearchParams::new(10), Accept::All);
            assert!(recall(&walked.hits, &best) >= 0.8, "{metric:?}");
        }
    }
}

/// A query that points where a vector's codes are off: by them it is far from the vector that is nearest.
#[test]
fn exact_means_exact_where_codes_err_most() {
    const DIM: usize = 128;
    let mut rows = Rows::clustered(1, DIM, 61);
    let index = rows.index_as(Layout::Lean);
    let vectors = index.vectors.view();
    let mut room = Vec::new();
    let (measure, codes) = vectors.row(0, &mut room).unwrap();
    let rotated = |row: &[f32]| {
        let mut row = row.to_vec();
        vectors.rotation().apply(&mut row, index.kernels);
        row
    };
    let turned = rotated(rows.row(VectorNo(0)));
    let left: Vec<f32> =
        turned.iter().zip(codes).map(|(v, code)| v - f32::from(*code) * measure.scale).collect();
    let length = left.iter().map(|v| v * v).sum::<f32>().sqrt();
    // Back by the transpose: the product with each turned axis.
    let query: Vec<f32> = (0..DIM)
        .map(|at| {
            let mut axis = vec![0.0; DIM];
            axis[at] = 1.0;
            rotated(&axis).iter().zip(&left).map(|(a, l)| a * l / length).sum()
        })
        .collect();
    for mut row in Rows::clustered(500, DIM, 62).iter().map(<[f32]>::to_vec) {
        let along: f32 = row.iter().zip(&query).map(|(r, q)| r * q).sum();
        row.iter_mut().zip(&query).for_each(|(r, q)| *r -= (along + 0.06) * q);
        rows.values.extend(row);
    }
    push_all(&index, rows.iter().skip(1));
    assert_exact(
        &search(&index, &rows, &query, exact(1), Accept::All).hits,
        &rows.best(&query, 1, |_| true),
    );
    let likely = search(&index, &rows, &query, SearchParams::new(1), Accept::All);
    assert_ne!(likely.hits[0].0, VectorNo(0), "else this says nothing of `exact`");
}
