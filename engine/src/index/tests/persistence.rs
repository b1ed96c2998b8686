//! Checkpoints: the same answers after a load, and damage is refused.
//!
//! Invariant: no bytes make a load panic. Must not know: files.

use super::super::{Accept, Scratch, SearchParams, SearchPath, VectorIndex, VectorNo};
use super::data::{Rng, Rows, assert_exact, build, exact, push_all, recall, search};
use flashbulb_kernels::Kernels;
use xxhash_rust::xxh3::xxh3_64;

fn saved(index: &VectorIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    index.checkpoint(&mut bytes).unwrap();
    bytes
}

fn load(dim: usize, bytes: &[u8]) -> Result<VectorIndex, super::super::LoadError> {
    VectorIndex::load(dim, Kernels::detect(), bytes)
}

#[test]
fn a_loaded_index_answers_the_same() {
    let mut rows = Rows::clustered(6_530, 48, 40);
    let queries = rows.hold_out(30);
    let index = rows.graphed();
    (0..6_500).step_by(7).for_each(|n| assert!(index.kill(VectorNo(n))));
    let bytes = saved(&index);
    let loaded = load(48, &bytes).unwrap();
    assert_eq!((loaded.len(), loaded.graph_len(), loaded.live()), (6_500, 6_500, index.live()));
    assert!(saved(&loaded) == bytes, "saved again, it is the same");
    let of = |index: &VectorIndex, query: &[f32]| {
        search(index, &rows, query, SearchParams::new(20), Accept::All)
    };
    // Before its sketches are drawn it knows its neighbours' scores exactly, which cannot be worse.
    for query in queries.iter() {
        let found = of(&loaded, query);
        let best = rows.best(query, 20, |v| !index.is_dead(v));
        assert!(recall(&found.hits, &best) >= 0.95 && found.path == SearchPath::Graph);
    }
    assert!(loaded.build_step(&mut || false), "sketches are to be drawn");
    loaded.build(2);
    index.build(1);
    for query in queries.iter() {
        assert_eq!(of(&index, query), of(&loaded, query));
    }
}

#[test]
fn a_loaded_index_grows_on() {
    let mut rows = Rows::clustered(6_000, 24, 41);
    let later = rows.hold_out(1_000);
    let whole = rows.graphed();
    let index = load(24, &saved(&whole)).unwrap();
    for index in [&index, &whole] {
        push_all(index, later.iter());
        build(index);
    }
    rows.values.extend_from_slice(&later.values);
    assert!(saved(&index) == saved(&whole), "as if it had never been saved");
}

#[test]
fn a_checkpoint_holds_what_the_graph_covers() {
    let small = Rows::clustered(100, 8, 42);
    let loaded = load(8, &saved(&small.index())).unwrap();
    assert_eq!((loaded.len(), loaded.graph_len()), (0, 0));
    let mut rows = Rows::clustered(5_010, 8, 43);
    let tail = rows.hold_out(10);
    let index = rows.graphed();
    push_all(&index, tail.iter());
    index.kill(VectorNo(5_005));
    let loaded = load(8, &saved(&index)).unwrap();
    assert_eq!((loaded.len(), loaded.live()), (5_000, 5_000));
}

/// A checkpoint small enough to damage at every byte.
fn small_checkpoint() -> (Rows, Vec<u8>) {
    let rows = Rows::clustered(40, 8, 44);
    let index = rows.index();
    index.kill(VectorNo(11));
    while index.build_from(1, 1, &mut || true) {}
    (rows, saved(&index))
}

#[test]
fn every_flipped_byte_is_refused() {
    let (_, bytes) = small_checkpoint();
    assert!(load(8, &bytes).is_ok_and(|index| index.graph_len() == 40));
    let mut damaged = bytes.clone();
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80, 0xff] {
            damaged[at] ^= bit;
            assert!(load(8, &damaged).is_err(), "byte {at} ^ {bit:#x}");
            damaged[at] = bytes[at];
        }
    }
    for len in 0..bytes.len() {
        assert!(load(8, &bytes[..len]).is_err(), "cut to {len}");
    }
    assert!(load(16, &bytes).is_err(), "another dimension");
}

#[test]
fn damage_with_a_matching_checksum_is_refused_or_harmless() {
    let (rows, bytes) = small_checkpoint();
    let body = bytes.len() - 8;
    let mut rng = Rng(9);
    for at in 0..body {
        let mut damaged = bytes.clone();
        damaged[at] = rng.next() as u8;
        let sum = xxh3_64(&damaged[..body]).to_le_bytes();
        damaged[body..].copy_from_slice(&sum);
        let Ok(index) = load(8, &damaged) else {
            continue;
        };
        let query = rows.row(VectorNo(at as u32 % 40));
        for params in [SearchParams::new(3), exact(50)] {
            let hits = search(&index, &rows, query, params, Accept::All).hits;
            assert!(hits.iter().all(|hit| hit.0.0 < 40 && !index.is_dead(hit.0)));
        }
        push_all(&index, rows.iter().take(3));
        build(&index);
    }
}

#[test]
fn a_scan_after_a_load_is_exact() {
    let rows = Rows::clustered(5_000, 32, 45);
    let loaded = load(32, &saved(&rows.graphed())).unwrap();
    let mut scratch = Scratch::new();
    for query in rows.iter().step_by(500) {
        let Ok(result) = loaded.search(query, &exact(10), &rows, Accept::All, &mut scratch);
        assert_exact(&result.hits, &rows.best(query, 10, |_| true));
    }
}
