//! Tombstones: never returned, never in the way.
//!
//! Invariant: recall is against the live vectors only. Must not know: filters.

use super::super::{Accept, SearchParams, SearchPath, VectorIndex, VectorNo};
use super::data::{Rng, Rows, assert_exact, build, push_all, recall, search};

#[test]
fn recall_holds_up_to_ninety_per_cent_deleted() {
    let mut rows = Rows::clustered(12_040, 64, 17);
    let queries = rows.hold_out(40);
    let index = rows.graphed();
    let mut rng = Rng(1);
    let mut order: Vec<u32> = (0..12_000).collect();
    (1..order.len()).rev().for_each(|i| order.swap(i, rng.below(i + 1)));
    let mut killed = 0;
    for share in [0.1, 0.3, 0.5, 0.7, 0.9] {
        while (killed as f64) < 12_000.0 * share {
            assert!(index.kill(VectorNo(order[killed])));
            killed += 1;
        }
        assert_eq!(index.live() as usize, 12_000 - killed);
        for repaired in [false, true] {
            let mut found = 0.0;
            for query in queries.iter() {
                let result = search(&index, &rows, query, SearchParams::new(10), Accept::All);
                assert!(result.hits.iter().all(|hit| !index.is_dead(hit.0)));
                found += recall(&result.hits, &rows.best(query, 10, |v| !index.is_dead(v)));
            }
            let mean = found / 40.0;
            assert!(mean >= 0.97, "{share} deleted, repaired {repaired}: recall {mean}");
            build(&index);
        }
    }
}

#[test]
fn deleting_all_around_the_query_still_finds_the_rest() {
    let rows = Rows::clustered(8_000, 64, 18);
    let index = rows.graphed();
    let query = rows.row(VectorNo(100)).to_vec();
    for (near, _) in rows.best(&query, 2_000, |_| true) {
        index.kill(near);
    }
    let result = search(&index, &rows, &query, SearchParams::new(10), Accept::All);
    let best = rows.best(&query, 10, |v| !index.is_dead(v));
    assert!(recall(&result.hits, &best) >= 0.9, "{:?}", result.path);
}

#[test]
fn deleting_all_leaves_nothing_and_new_ones_are_found() {
    let mut rows = Rows::clustered(5_010, 16, 19);
    let extra = rows.hold_out(10);
    let index = rows.graphed();
    (0..5_000).for_each(|n| assert!(index.kill(VectorNo(n))));
    assert!(!index.kill(VectorNo(3)) && !index.kill(VectorNo(1 << 20)));
    for _ in 0..2 {
        let query = rows.row(VectorNo(0));
        assert!(search(&index, &rows, query, SearchParams::new(3), Accept::All).hits.is_empty());
        build(&index);
    }
    push_all(&index, extra.iter());
    rows.values.extend_from_slice(&extra.values);
    for _ in 0..2 {
        let query = extra.row(VectorNo(4));
        let result = search(&index, &rows, query, SearchParams::new(10), Accept::All);
        assert_exact(&result.hits, &rows.best(query, 10, |v| v.0 >= 5_000));
        build(&index);
    }
}

#[test]
fn a_repair_takes_the_dead_out_of_the_way() {
    let rows = Rows::clustered(10_000, 32, 20);
    let index = rows.graphed();
    (0..10_000)
        .filter(|n: &u32| n.is_multiple_of(2))
        .for_each(|n| assert!(index.kill(VectorNo(n))));
    let query = rows.row(VectorNo(1));
    let before = search(&index, &rows, query, SearchParams::new(10), Accept::All);
    build(&index);
    let after = search(&index, &rows, query, SearchParams::new(10), Accept::All);
    assert_eq!((before.path, after.path), (SearchPath::Graph, SearchPath::Graph));
    assert!(after.visited < before.visited * 3 / 4, "{} to {}", before.visited, after.visited);
    assert_eq!(index.graph_len(), 10_000, "numbers stay");
}

#[test]
fn vectors_that_come_back_are_found_as_before() {
    // Each takes the place of one that is dead and the same, which must not keep it out of its neighbours' lists.
    let mut rows = Rows::clustered(8_100, 64, 23);
    let queries = rows.hold_out(100);
    let index = rows.graphed();
    let mut of: Vec<u32> = (0..8_000).collect();
    let mut numbers: Vec<VectorNo> = (0..8_000).map(VectorNo).collect();
    let mut rng = Rng(5);
    for _ in 0..3 {
        for _ in 0..2_400 {
            let vector = rng.below(8_000);
            assert!(index.kill(numbers[vector]));
            numbers[vector] = index.push(rows.row(VectorNo(vector as u32)));
            of.push(vector as u32);
            build(&index);
        }
        let audit = index.audit();
        assert_eq!((audit.unreachable, &audit.problems[..]), (0, &[][..]));
    }
    let all =
        Rows { dim: 64, values: of.iter().flat_map(|v| rows.row(VectorNo(*v)).to_vec()).collect() };
    let recall_of =
        |index: &VectorIndex, of: &dyn Fn(VectorNo) -> u32, rows: &Rows, all: &Rows| -> f64 {
            let found = queries.iter().map(|query| {
                let params = SearchParams { ef: 16, ..SearchParams::new(10) };
                let hits = search(index, all, query, params, Accept::All).hits;
                let hits: Vec<_> = hits.iter().map(|hit| (VectorNo(of(hit.0)), hit.1)).collect();
                recall(&hits, &rows.best(query, 10, |_| true))
            });
            found.sum::<f64>() / 100.0
        };
    let churned = recall_of(&index, &|n| of[n.0 as usize], &rows, &all);
    let fresh = recall_of(&rows.graphed(), &|n| n.0, &rows, &rows);
    assert!(churned >= fresh - 0.01, "{churned} where a fresh one has {fresh}");
}
