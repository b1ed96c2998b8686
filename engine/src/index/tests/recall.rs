//! Recall of the graph and exactness of the scan.
//!
//! Invariant: queries are held out. Must not know: deletes, filters.

use super::super::{Accept, GRAPH_FROM, SearchParams, SearchPath, VectorIndex, VectorNo};
use super::data::{Rows, assert_exact, build, exact, push_all, recall, search};
use flashbulb_kernels::{Kernels, SimdLevel};

fn mean_recall(rows: &Rows, queries: &Rows, index: &VectorIndex, k: usize) -> f64 {
    let total: f64 = queries
        .iter()
        .map(|query| {
            let result = search(index, rows, query, SearchParams::new(k), Accept::All);
            assert_eq!(result.path, SearchPath::Graph);
            recall(&result.hits, &rows.best(query, k, |_| true))
        })
        .sum();
    total / queries.len() as f64
}

#[test]
fn a_walk_finds_the_neighbours() {
    for (n, dim) in [(20_000, 64), (8_000, 384)] {
        let mut rows = Rows::clustered(n + 100, dim, 3);
        let queries = rows.hold_out(100);
        let index = rows.graphed();
        let recall = mean_recall(&rows, &queries, &index, 10);
        assert!(recall >= 0.97, "{n} × {dim}: recall@10 {recall}");
    }
}

#[test]
fn every_vector_is_found_by_itself() {
    let rows = Rows::clustered(8_000, 32, 5);
    let index = rows.graphed();
    let params = SearchParams::new(1);
    let lost = rows
        .iter()
        .enumerate()
        .filter(|(n, row)| {
            let hits = search(&index, &rows, row, params, Accept::All).hits;
            hits[0].0 != VectorNo(*n as u32)
        })
        .count();
    assert!(lost <= 8, "{lost} of 8,000 cannot be reached");
}

#[test]
fn a_scan_is_exact() {
    for dim in [7, 64, 384] {
        let mut rows = Rows::clustered(3_050, dim, 11);
        let queries = rows.hold_out(50);
        let index = rows.index();
        for query in queries.iter() {
            for k in [1, 10, 100] {
                let result = search(&index, &rows, query, SearchParams::new(k), Accept::All);
                assert_eq!((result.path, result.scanned), (SearchPath::Scan, 3_000));
                assert_exact(&result.hits, &rows.best(query, k, |_| true));
                assert!(result.reranked < 1_500, "k {k}: reranked {}", result.reranked);
            }
        }
    }
}

#[test]
fn a_scan_is_exact_on_coarse_codes() {
    // One value dwarfs the others, so that they all round to a few steps: only the bounds help.
    let mut rows = Rows::clustered(1_000, 16, 2);
    for row in rows.values.chunks_mut(16) {
        row.iter_mut().for_each(|v| *v *= 0.02);
        let rest: f32 = row[1..].iter().map(|v| v * v).sum();
        row[0] = (1.0 - rest).sqrt();
    }
    let queries = rows.hold_out(20);
    let index = rows.index();
    for query in queries.iter() {
        let result = search(&index, &rows, query, SearchParams::new(10), Accept::All);
        assert_exact(&result.hits, &rows.best(query, 10, |_| true));
    }
}

#[test]
fn every_level_of_kernels_gives_the_same_hits() {
    let mut rows = Rows::clustered(2_010, 48, 8);
    let queries = rows.hold_out(10);
    let reference = rows.index();
    let scalar = VectorIndex::new(48, Kernels::with_level(SimdLevel::Scalar).unwrap());
    push_all(&scalar, rows.iter());
    for query in queries.iter() {
        let a = search(&reference, &rows, query, exact(10), Accept::All).hits;
        let b = search(&scalar, &rows, query, exact(10), Accept::All).hits;
        assert!(a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6));
    }
}

#[test]
fn crossing_the_threshold_is_seamless() {
    let n = GRAPH_FROM as usize + 3_000;
    let mut rows = Rows::clustered(n + 20, 32, 21);
    let queries = rows.hold_out(20);
    let index = VectorIndex::new(32, Kernels::detect());
    let mut pushed = 0;
    for at in [GRAPH_FROM - 1, GRAPH_FROM, n as u32 - 500, n as u32] {
        while pushed < at {
            index.push(rows.row(VectorNo(pushed)));
            pushed += 1;
        }
        let before_build = index.graph_len();
        for query in queries.iter() {
            let best = rows.best(query, 10, |v| v.0 < pushed);
            let result = search(&index, &rows, query, SearchParams::new(10), Accept::All);
            assert!(recall(&result.hits, &best) >= 0.9, "{at} with {before_build} in the graph");
        }
        build(&index);
        assert_eq!(index.graph_len(), if at < GRAPH_FROM { 0 } else { at });
    }
}

#[test]
fn a_new_vector_is_found_beside_a_graph() {
    let mut rows = Rows::clustered(6_001, 32, 4);
    let extra = rows.hold_out(1);
    let index = rows.graphed();
    let added = index.push(extra.row(VectorNo(0)));
    rows.values.extend_from_slice(&extra.values);
    let params = SearchParams { ef: 16, ..SearchParams::new(1) };
    let result = search(&index, &rows, extra.row(VectorNo(0)), params, Accept::All);
    assert_eq!((result.hits[0].0, result.path), (added, SearchPath::GraphAndScan));
    assert_eq!(result.scanned, 1);
}

#[test]
fn duplicates_do_not_wall_off_the_rest() {
    // Half of the vectors are one and the same, as "ok" and "thanks" are in a log.
    let mut rows = Rows::clustered(6_020, 32, 13);
    let queries = rows.hold_out(20);
    let same = rows.row(VectorNo(0)).to_vec();
    for (n, row) in rows.values.chunks_mut(32).enumerate() {
        if n.is_multiple_of(2) {
            row.copy_from_slice(&same);
        }
    }
    let index = rows.graphed();
    let found: f64 = queries
        .iter()
        .map(|query| {
            let hits = search(&index, &rows, query, SearchParams::new(10), Accept::All).hits;
            let best = rows.best(query, 10, |_| true);
            let floor = best[9].1 - 1e-6;
            hits.iter().filter(|hit| f64::from(hit.1) >= floor).count() as f64 / 10.0
        })
        .sum();
    assert!(found / 20.0 >= 0.95, "recall {}", found / 20.0);
}

#[test]
fn an_empty_index_answers_empty_and_k_may_exceed_it() {
    let rows = Rows::clustered(3, 8, 1);
    let index = VectorIndex::new(8, Kernels::detect());
    let query = rows.row(VectorNo(0));
    assert!(search(&index, &rows, query, SearchParams::new(5), Accept::All).hits.is_empty());
    push_all(&index, rows.iter());
    assert_eq!(search(&index, &rows, query, SearchParams::new(1_000), Accept::All).hits.len(), 3);
}

#[test]
fn the_same_pushes_give_the_same_graph() {
    let rows = Rows::clustered(5_000, 16, 30);
    let mut bytes = [Vec::new(), Vec::new()];
    for out in &mut bytes {
        rows.graphed().checkpoint(out).unwrap();
    }
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn any_number_of_threads_makes_the_same_graph() {
    let rows = Rows::clustered(6_000, 16, 31);
    let of = |threads| {
        let index = rows.index();
        index.build(threads);
        let mut bytes = Vec::new();
        index.checkpoint(&mut bytes).unwrap();
        bytes
    };
    let one = of(1);
    assert!([2, 3, 8].into_iter().all(|threads| of(threads) == one));
}
