//! The index at every kind of dimension, and with vectors that are not like the others: copies, zeros, and values that no vector may have.
//!
//! The oracle is `oracle`: brute force over the f32 rows, in f64. What is asserted of odd values is what the documentation of
//! `VectorIndex::search` (the largest dot products of all) and of `Error::BadVector` says. Nothing is said there of a NaN or an infinity in
//! an index without a store, so nothing is asserted of it.
//!
//! `FLASHBULB_DIMENSIONS_SCALE=5` takes five times as many vectors (4,196 without it, just enough for a graph).
#![allow(clippy::unwrap_used)]

mod oracle;

use flashbulb_engine::index::{
    Accept, GRAPH_FROM, Scratch, SearchParams, SearchPath, VectorIndex, VectorNo,
};
use flashbulb_engine::{
    DIM_RANGE, Error, NewMemory, OnConflict, Patch, Query, SpaceName, Store, StoreOptions,
};
use flashbulb_kernels::Kernels;
use oracle::{Mixture, Recall, Rng, Rows, Truth, check_exact, judge, plain, rounding};

const QUERIES: usize = 100;
const WANTED: f64 = 0.9;

fn count() -> usize {
    (GRAPH_FROM as usize + 100) * oracle::scale("FLASHBULB_DIMENSIONS_SCALE")
}

fn filled(rows: &Rows) -> VectorIndex {
    let index = VectorIndex::new(rows.dim, Kernels::detect());
    (0..rows.len()).for_each(|n| assert_eq!(index.push(rows.row(n)).0 as usize, n));
    index
}

fn drawn(mixture: &Mixture, count: usize, seed: u64) -> Rows {
    let mut rng = Rng(seed);
    let mut rows = Rows::new(mixture.dim);
    (0..count).for_each(|_| rows.push(&mixture.draw(&mut rng).1));
    rows
}

/// Queries with the products of all rows.
struct Asked<'a> {
    rows: &'a Rows,
    queries: Vec<(Vec<f32>, Vec<f64>)>,
}

impl<'a> Asked<'a> {
    fn new(rows: &'a Rows, queries: &Rows) -> Asked<'a> {
        let all = (0..queries.len()).map(|n| queries.row(n).to_vec());
        Asked { rows, queries: all.map(|query| (query.clone(), rows.scores(&query))).collect() }
    }

    fn one(rows: &'a Rows, query: &[f32]) -> Asked<'a> {
        Asked { rows, queries: vec![(query.to_vec(), rows.scores(query))] }
    }

    /// Searches for each query, exactly and not; the recall of the others.
    fn search(&self, index: &VectorIndex, k: usize) -> Recall {
        let mut recall = Recall::default();
        let slack = rounding(self.rows.dim);
        let mut scratch = Scratch::new();
        let may = |n: u32| !index.is_dead(VectorNo(n));
        for (query, scores) in &self.queries {
            let truth = Truth::new(scores, k, may);
            for exact in [false, true] {
                let params = SearchParams { exact, ..SearchParams::new(k) };
                let Ok(found) = index.search(query, &params, self.rows, Accept::All, &mut scratch);
                if exact {
                    assert_eq!(found.path, SearchPath::Scan);
                    check_exact(&plain(&found), scores, &truth, slack, may).unwrap();
                } else {
                    recall.add(judge(&found, scores, &truth, slack, may).unwrap(), &truth);
                }
            }
        }
        recall
    }
}

/// The path of an ordinary search.
fn path(index: &VectorIndex, rows: &Rows) -> SearchPath {
    let (params, scratch) = (SearchParams::new(10), &mut Scratch::new());
    let Ok(found) = index.search(rows.row(0), &params, rows, Accept::All, scratch);
    found.path
}

/// Deletes one in so many.
fn thin(index: &VectorIndex, every: usize) {
    for n in (0..index.len()).step_by(every) {
        index.kill(VectorNo(n));
    }
}

/// Pushed, built, saved and loaded, with some deleted: the recall of each.
fn holds_at(dim: usize) {
    let mixture = Mixture::new(dim, 100, 0.7, 50);
    let rows = drawn(&mixture, count(), 51);
    // The oracle's own products take the longest.
    let queries = if dim > 1000 { QUERIES / 2 } else { QUERIES };
    let asked = Asked::new(&rows, &drawn(&mixture, queries, 52));
    let index = filled(&rows);
    assert_eq!((index.dim(), path(&index, &rows)), (dim, SearchPath::Scan));
    assert_eq!(asked.search(&index, 10).rate(), 1.0, "a scan is exact");
    index.build(1);
    assert_eq!(path(&index, &rows), SearchPath::Graph);
    let built = asked.search(&index, 10);

    let mut bytes = Vec::new();
    index.checkpoint(&mut bytes).unwrap();
    let loaded = VectorIndex::load(dim, Kernels::detect(), &bytes).unwrap();
    assert_eq!((loaded.len(), loaded.graph_len()), (index.len(), index.len()));
    let at_once = asked.search(&loaded, 10);
    while loaded.build_step(&mut || true) {}
    let later = asked.search(&loaded, 10);
    thin(&loaded, 20);
    assert_eq!(path(&loaded, &rows), SearchPath::Graph);
    let thinned = asked.search(&loaded, 10);
    let audit = loaded.audit();
    assert!(audit.problems.is_empty(), "{audit:?}");

    let all = [built, at_once, later, thinned].map(|recall| recall.rate());
    println!(
        "dim {dim:4}: built {:.3}, loaded {:.3}, sketched {:.3}, thinned {:.3}; unreachable {}",
        all[0], all[1], all[2], all[3], audit.unreachable
    );
    assert!(all.iter().all(|rate| *rate >= WANTED), "dim {dim}: {all:?}");
}

#[test]
fn recall_holds_at_few_dimensions() {
    [8, 9, 50, 100, 127].into_iter().for_each(holds_at);
}

#[test]
fn recall_holds_at_common_dimensions() {
    [384, 960].into_iter().for_each(holds_at);
}

#[test]
fn recall_holds_at_1536_dimensions() {
    holds_at(1536);
}

#[test]
fn recall_holds_at_4096_dimensions() {
    holds_at(4096);
}

/// "The same pushes give the same graph, on any number of threads" (ARCHITECTURE, Index).
#[test]
fn the_graph_is_the_same_on_any_number_of_threads() {
    let mixture = Mixture::new(50, 100, 0.7, 53);
    let rows = drawn(&mixture, count(), 54);
    let saved = |build: &dyn Fn(&VectorIndex)| {
        let index = filled(&rows);
        build(&index);
        assert_eq!(index.graph_len(), index.len());
        let mut bytes = Vec::new();
        index.checkpoint(&mut bytes).unwrap();
        bytes
    };
    let one = saved(&|index| index.build(1));
    assert!(saved(&|index| index.build(2)) == one, "two threads make another graph");
    assert!(saved(&|index| index.build(3)) == one, "three threads make another graph");
    let steps = saved(&|index| while index.build_step(&mut || false) {});
    assert!(steps == one, "steps make another graph");
}

#[test]
fn a_checkpoint_that_is_not_whole_and_sound_is_refused() {
    let dim = 50;
    let mixture = Mixture::new(dim, 100, 0.7, 55);
    let index = filled(&drawn(&mixture, count(), 56));
    let mut empty = Vec::new();
    index.checkpoint(&mut empty).unwrap();
    let load = |dim: usize, bytes: &[u8]| VectorIndex::load(dim, Kernels::detect(), bytes);
    assert_eq!(load(dim, &empty).unwrap().len(), 0, "nothing is in the graph yet");

    index.build(1);
    let mut bytes = Vec::new();
    index.checkpoint(&mut bytes).unwrap();
    assert_eq!(load(dim, &bytes).unwrap().len(), index.len());
    for other in [8, 49, 51, 64, 128, 4096] {
        assert!(load(other, &bytes).is_err(), "taken for one of {other} dimensions");
    }
    let mut rng = Rng(57);
    let whole = bytes.len();
    let cuts = (0..100).map(|n| if n < 50 { n * 7 } else { rng.below(whole) });
    for cut in cuts.chain([whole - 1, whole - 8]).collect::<Vec<_>>() {
        assert!(load(dim, &bytes[..cut]).is_err(), "cut to {cut} of {whole} bytes");
    }
    for turn in 0..150 {
        let at = if turn < 75 { turn * 4 } else { rng.below(whole) };
        bytes[at] ^= 1 << (turn % 8);
        assert!(load(dim, &bytes).is_err(), "a flipped bit in byte {at} of {whole}");
        bytes[at] ^= 1 << (turn % 8);
    }
}

/// Clusters far from each other must not become islands: every vector is found by a search for itself.
#[test]
fn no_cluster_is_lost_among_clusters_far_from_each_other() {
    let mut lost_in = Vec::new();
    for (count, clusters, spread) in [(count(), 30, 0.4), (2 * count(), 100, 0.7)] {
        let mixture = Mixture::new(384, clusters, spread, 50);
        let rows = drawn(&mixture, count, 51);
        let index = filled(&rows);
        index.build(2);
        let mut scratch = Scratch::new();
        let tried: Vec<usize> = (0..count).step_by(3).collect();
        let lost = tried.iter().filter(|n| {
            let (query, params) = (rows.row(**n), SearchParams::new(1));
            let Ok(found) = index.search(query, &params, &rows, Accept::All, &mut scratch);
            found.hits[0].0.0 as usize != **n
        });
        let (lost, audit) = (lost.count(), index.audit());
        let what = format!(
            "{count} vectors in {clusters} clusters of spread {spread}: {lost} of {} not found by themselves, {} unreachable",
            tried.len(),
            audit.unreachable
        );
        println!("{what}");
        if lost * 100 > tried.len() || audit.unreachable > 0 {
            lost_in.push(what);
        }
    }
    assert!(lost_in.is_empty(), "{lost_in:#?}");
}

/// A thousand copies of one vector in the middle of others: neither they nor the others get lost.
#[test]
fn a_thousand_copies_are_found_and_hide_nobody() {
    let mixture = Mixture::new(64, 100, 0.7, 58);
    let (mut rows, others) = (Rows::new(64), drawn(&mixture, count(), 59));
    let copied = others.row(7).to_vec();
    for n in 0..others.len() {
        rows.push(others.row(n));
        // Some one after the other, the rest between others.
        let copies = if n == 100 { 500 } else { usize::from(n % 8 == 0 && n < 4000) };
        (0..copies).for_each(|_| rows.push(&copied));
    }
    let (asked, copy) =
        (Asked::new(&rows, &drawn(&mixture, QUERIES, 60)), Asked::one(&rows, &copied));
    let index = filled(&rows);
    let mut unreachable = Vec::new();
    for stage in ["scanned", "built", "thinned", "repaired"] {
        match stage {
            "built" => index.build(2),
            // A quarter of the copies and of the others.
            "thinned" => thin(&index, 4),
            "repaired" => while index.build_step(&mut || true) {},
            _ => {}
        }
        let others = asked.search(&index, 10);
        assert!(others.rate() >= WANTED, "{stage}: {others:?}");
        let near = [1, 10, 100, 400, 1100].map(|k| copy.search(&index, k).rate());
        println!("{stage}: others {:.3}, copies for five k {near:?}", others.rate());
        assert!(near.iter().all(|rate| *rate >= WANTED), "{stage}: {near:?}");
        let audit = index.audit();
        assert!(audit.problems.is_empty(), "{audit:?}");
        unreachable.push((stage, audit.unreachable));
    }
    assert!(unreachable.iter().all(|(_, count)| *count == 0), "unreachable: {unreachable:?}");
}

#[test]
fn an_index_of_nothing_but_copies_answers_in_full() {
    let mixture = Mixture::new(32, 10, 0.7, 61);
    let row = drawn(&mixture, 1, 62).row(0).to_vec();
    let mut rows = Rows::new(32);
    (0..count()).for_each(|_| rows.push(&row));
    let index = filled(&rows);
    index.build(2);
    for query in [&row[..], drawn(&mixture, 1, 63).row(0)] {
        for k in [1, 10, 1000] {
            assert_eq!(Asked::one(&rows, query).search(&index, k).rate(), 1.0, "all are as near");
        }
    }
    let audit = index.audit();
    assert!(audit.problems.is_empty(), "{audit:?}");
}

/// A zero vector has the product 0 with everything, and nothing is nearer to it than another.
#[test]
fn zero_vectors_have_the_score_zero_and_hide_nobody() {
    let mixture = Mixture::new(48, 100, 0.7, 64);
    let (mut rows, others) = (Rows::new(48), drawn(&mixture, count(), 65));
    for n in 0..others.len() {
        rows.push(others.row(n));
        if n % 10 == 0 {
            rows.push(&[0.0; 48]);
        }
    }
    let asked = Asked::new(&rows, &drawn(&mixture, QUERIES, 66));
    let zero = Asked::one(&rows, &[0.0; 48]);
    let index = filled(&rows);
    for stage in ["scanned", "built"] {
        if stage == "built" {
            index.build(2);
        }
        let found = asked.search(&index, 10);
        println!("{stage}: recall beside zeros {:.3}", found.rate());
        assert!(found.rate() >= WANTED, "{stage}: {found:?}");
        assert_eq!(zero.search(&index, 10).rate(), 1.0, "every answer to a zero is as good");
    }
}

fn space() -> SpaceName {
    SpaceName::parse("a").unwrap()
}

fn memory(id: &str, vectors: Option<Vec<Vec<f32>>>) -> NewMemory {
    NewMemory { id: id.into(), text: "text".into(), vectors, ..NewMemory::default() }
}

/// A vector that cannot be normalised is refused wherever one is given, and nothing of its request is stored.
#[test]
fn a_store_refuses_vectors_without_a_direction() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(&root.path().join("s"), StoreOptions::new(8, "m")).unwrap();
    let good = vec![0.5; 8];
    let add = |items| store.add(&space(), items, OnConflict::Error);
    let waiting = add(vec![memory("good", Some(vec![good.clone()])), memory("waiting", None)]);
    let waiting = waiting.unwrap().items[1].seq;
    let with = |value: f32| (0..8).map(|n| if n == 5 { value } else { 0.25 }).collect::<Vec<f32>>();
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(with);
    for bad in bad.into_iter().chain([vec![0.0; 8], vec![-0.0; 8], vec![f32::NAN; 8]]) {
        let refused = |outcome: Result<(), Error>| {
            assert!(matches!(outcome, Err(Error::BadVector { .. })), "{bad:?}: {outcome:?}");
        };
        let both = vec![good.clone(), bad.clone()];
        refused(
            add(vec![memory("x", Some(vec![good.clone()])), memory("y", Some(both))]).map(drop),
        );
        refused(store.set_vectors(&space(), vec![(waiting, vec![bad.clone()])]).map(drop));
        let patch = Patch { vectors: Some(vec![bad.clone()]), ..Patch::default() };
        refused(store.update(&space(), "good", patch, None).map(drop));
        for exact in [false, true] {
            refused(store.search(&space(), &Query { exact, ..Query::new(&bad, 3) }).map(drop));
        }
        let stats = store.space_stats(&space()).unwrap();
        assert_eq!((stats.memories, stats.searchable, stats.pending), (2, 1, 1));
        assert_eq!(stats.last_seq, waiting.0, "nothing of a refused request is stored");
    }
}

/// Lengths do not matter where there is a direction: scores are cosines.
#[test]
fn a_store_takes_vectors_of_any_length() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(&root.path().join("s"), StoreOptions::new(8, "m")).unwrap();
    let along = |axis: usize, value: f32| {
        (0..8).map(|n| if n == axis { value } else { 0.0 }).collect::<Vec<f32>>()
    };
    let values = [f32::MAX, -1e38, 1e30, 1.0, -1e-30, f32::MIN_POSITIVE, 1e-42, 1e-45];
    for (axis, value) in values.into_iter().enumerate() {
        let item = memory(&format!("m{axis}"), Some(vec![along(axis, value)]));
        store.add(&space(), vec![item], OnConflict::Error).unwrap();
    }
    for (axis, value) in values.into_iter().enumerate() {
        for (query, score) in [(value, 1.0), (value.signum() * 0.3, 1.0), (-value, -1.0)] {
            let query = along(axis, query);
            let hits = store.search(&space(), &Query::new(&query, 8)).unwrap().hits;
            assert_eq!(hits.len(), 8);
            let own = hits.iter().find(|hit| hit.seq.0 == axis as u64 + 1).unwrap();
            assert!((own.score - score).abs() < 1e-6, "{value:e}: {own:?}");
        }
    }
}

#[test]
fn a_store_has_dimensions_within_the_range_and_keeps_to_one() {
    let root = tempfile::tempdir().unwrap();
    let open =
        |dim: usize| Store::open(&root.path().join(format!("{dim}")), StoreOptions::new(dim, "m"));
    assert_eq!(DIM_RANGE, 8..=4096);
    for dim in [0, 7, 4097] {
        assert!(matches!(open(dim), Err(Error::Invalid { .. })), "{dim}");
    }
    for dim in [8, 9, 127, 4096] {
        let store = open(dim).unwrap();
        let row = drawn(&Mixture::new(dim, 2, 0.5, 67), 1, 68).row(0).to_vec();
        for other in [dim - 1, dim + 1] {
            let item = memory("x", Some(vec![vec![0.5; other]]));
            let refused = store.add(&space(), vec![item], OnConflict::Error).map(drop);
            assert!(
                matches!(refused, Err(Error::DimMismatch { expected, got }) if (expected, got) == (dim, other))
            );
        }
        store.add(&space(), vec![memory("x", Some(vec![row.clone()]))], OnConflict::Error).unwrap();
        let found = store.search(&space(), &Query::new(&row, 3)).unwrap().hits;
        assert!((found[0].score - 1.0).abs() < 1e-5, "{found:?}");
        let refused = store.search(&space(), &Query::new(&row[1..], 3)).map(drop);
        assert!(matches!(refused, Err(Error::DimMismatch { .. })), "{refused:?}");
    }
}
