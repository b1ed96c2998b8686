//! Searches that may return only some vectors, at every selectivity, whatever the correlation.
//!
//! Invariant: what is not accepted is never returned. Must not know: deletes.

use super::super::{Accept, SearchParams, SearchPath, VectorBits, VectorNo};
use super::data::{Rng, Rows, recall, search};
use std::collections::HashSet;

/// Asserts that recall holds with this filter, as a set and as a test.
fn check(rows: &Rows, queries: &Rows, index: &super::super::VectorIndex, name: &str, keep: &Keep) {
    let set: VectorBits = (0..rows.len() as u32).map(VectorNo).filter(|v| keep(*v)).collect();
    for accept in [Accept::Bits(&set), Accept::Test(keep)] {
        let mut found = 0.0;
        for query in queries.iter() {
            let result = search(index, rows, query, SearchParams::new(10), accept);
            assert!(result.hits.iter().all(|hit| keep(hit.0)), "{name}: a hit was not accepted");
            found += recall(&result.hits, &rows.best(query, 10, keep));
        }
        let mean = found / queries.len() as f64;
        assert!(mean >= 0.97, "{name} {accept:?}: recall {mean}");
    }
}

type Keep = dyn Fn(VectorNo) -> bool;

#[test]
fn recall_holds_at_every_selectivity() {
    let mut rows = Rows::clustered(12_020, 64, 23);
    let queries = rows.hold_out(20);
    let index = rows.graphed();
    for per_mille in [0, 1, 10, 50, 200, 500, 900, 1_000] {
        let keep = move |v: VectorNo| Rng(u64::from(v.0)).next() % 1_000 < per_mille;
        if per_mille > 0 {
            check(&rows, &queries, &index, &format!("{per_mille} ‰"), &keep);
        } else {
            let query = queries.row(VectorNo(0));
            let result = search(&index, &rows, query, SearchParams::new(9), Accept::Test(&keep));
            assert_eq!((result.hits, result.path), (Vec::new(), SearchPath::Scan));
        }
    }
}

#[test]
fn recall_holds_when_the_filter_follows_the_query() {
    let rows = Rows::clustered(12_000, 64, 24);
    let index = rows.graphed();
    let query = rows.hold_out_copy(VectorNo(77));
    let order = rows.best(query.row(VectorNo(0)), 12_000, |_| true);
    let near: HashSet<VectorNo> = order[..3_000].iter().map(|b| b.0).collect();
    let far: HashSet<VectorNo> = order[6_000..].iter().map(|b| b.0).collect();
    check(&rows, &query, &index, "near", &move |v| near.contains(&v));
    check(&rows, &query, &index, "far", &move |v| far.contains(&v));
}

#[test]
fn recall_holds_for_runs_of_numbers() {
    let mut rows = Rows::clustered(12_010, 64, 25);
    let queries = rows.hold_out(10);
    let index = rows.graphed();
    check(&rows, &queries, &index, "one session", &|v| (4_000..4_100).contains(&v.0));
    check(&rows, &queries, &index, "the latest half", &|v| v.0 >= 6_000);
    check(&rows, &queries, &index, "every other turn", &|v| v.0 % 2 == 1);
}

impl Rows {
    fn hold_out_copy(&self, vector: VectorNo) -> Rows {
        Rows { dim: self.dim, values: self.row(vector).to_vec() }
    }
}
