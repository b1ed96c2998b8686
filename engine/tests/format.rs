//! Frozen stores: what earlier versions wrote, this one opens.
//!
//! Each folder in `tests/fixtures` was written once, by the version it is named after, and is never written again. It holds the
//! files of a store and `expected.json`, what must be found in it. `FLASHBULB_WRITE_FIXTURES=DIR cargo test -p
//! flashbulb-engine --test format write` writes the folders of the present version to DIR, to be frozen with a release that
//! changes a format.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flashbulb_engine::{
    NewMemory, OnConflict, Patch, Query, RequestId, Selection, SpaceName, Store, StoreOptions,
};
use serde_json::{Value, json};

const DIM: usize = 8;
/// Stores with graphs that are built anew instead of read.
const FORMER_GRAPHS: [&str; 2] = ["graph1", "graph2"];
/// Enough for a graph.
const MANY: usize = 4_200;

fn options() -> StoreOptions {
    StoreOptions { log_file_bytes: 8 << 10, ..StoreOptions::new(DIM, "fixture-model") }
}

fn name(space: &str) -> SpaceName {
    SpaceName::parse(space).unwrap()
}

fn vector(n: usize) -> Vec<f32> {
    (0..DIM).map(|i| ((n as f32 + 1.0) * (i as f32 + 1.0) * 0.37).sin() + 0.01).collect()
}

fn memory(n: usize) -> NewMemory {
    NewMemory {
        id: format!("n{n:04}"),
        text: format!("note {n}: Grüße, 記憶"),
        role: n.is_multiple_of(3).then(|| "user".into()),
        session: n.is_multiple_of(2).then(|| format!("s{}", n / 10)),
        ts_ms: 1_700_000_000_000 + n as i64,
        meta: n.is_multiple_of(5).then(|| format!("{{\"n\": {n}}}")),
        vectors: (!n.is_multiple_of(7)).then(|| vec![vector(n)]),
        ..NewMemory::default()
    }
}

/// Everything that a format has a place for.
fn write_small(store: &Store) {
    let notes = name("notes");
    store.add(&notes, (0..40).map(memory).collect(), OnConflict::Error).unwrap();
    let request = RequestId { key: 11, content: 12 };
    store.add_once(&name("keyed"), vec![memory(100), memory(101)], request).unwrap();
    store.add(&name("dropped"), vec![memory(1)], OnConflict::Error).unwrap();
    store.compact().unwrap();
    store.drop_space(&name("dropped")).unwrap();
    let gone = Selection::Ids(vec!["n0003".into(), "n0004".into()]);
    store.delete(&notes, &gone, false, None).unwrap();
    let patch = Patch { text: Some("another text".into()), ..Patch::default() };
    store.update(&notes, "n0010", patch, None).unwrap();
    let waiting = store.pending(2);
    let two = waiting.iter().map(|(_, seq)| (*seq, vec![vector(9), vector(10)]));
    store.set_vectors(&notes, two.collect()).unwrap();
    store.add(&notes, vec![memory(5)], OnConflict::Replace).unwrap();
}

fn contents(store: &Store) -> Value {
    let mut spaces = BTreeMap::new();
    for stats in store.spaces() {
        let listed = store.list(&name(&stats.space), None, None, None, 5_000).unwrap();
        let memories = listed.items.into_iter().map(|m| {
            json!([m.id, m.text, m.role, m.session, m.ts_ms, m.seq.0, m.meta, m.searchable])
        });
        let vectors = json!({"vectors": stats.vectors, "graph": stats.graph_vectors});
        spaces.insert(stats.space, json!([memories.collect::<Vec<_>>(), vectors]));
    }
    json!(spaces)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn write() {
    let Some(dir) = std::env::var_os("FLASHBULB_WRITE_FIXTURES").map(PathBuf::from) else { return };
    let freeze = |kind: &str, expected: &Value, from: &Path| {
        let to = dir.join(format!("{}-{kind}", env!("CARGO_PKG_VERSION")));
        copy(from, &to);
        for unneeded in ["LOCK", "wal-spare-1.tmp", "wal-spare-2.tmp", "wal-spare-3.tmp"] {
            let _ = fs::remove_file(to.join(unneeded));
        }
        fs::write(to.join("expected.json"), expected.to_string()).unwrap();
    };
    let live = tempfile::tempdir().unwrap();
    let store = Store::open(live.path(), options()).unwrap();
    write_small(&store);
    let expected = contents(&store);
    // As a kill would leave it: sealed memories, and changes that only the log holds.
    freeze("killed", &expected, live.path());
    drop(store);
    freeze("closed", &expected, live.path());

    let large = tempfile::tempdir().unwrap();
    let store = Store::open(large.path(), options()).unwrap();
    let many = (0..MANY).map(|n| NewMemory { vectors: Some(vec![vector(n)]), ..memory(n) });
    store.add(&name("many"), many.collect(), OnConflict::Error).unwrap();
    while store.maintain(Duration::from_millis(50)).unwrap() {}
    let expected = contents(&store);
    drop(store);
    freeze("graph", &expected, large.path());
}

#[test]
fn every_frozen_store_opens() {
    let mut opened = Vec::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for entry in fs::read_dir(fixtures).unwrap() {
        let frozen = entry.unwrap().path();
        let kind = frozen.file_name().unwrap().to_str().unwrap().to_owned();
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("store");
        copy(&frozen, &dir);
        fs::remove_file(dir.join("expected.json")).unwrap();
        let expected = fs::read(frozen.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        for round in ["as it was frozen", "as this version closed it"] {
            let store =
                Store::open(&dir, options()).unwrap_or_else(|e| panic!("{kind} {round}: {e}"));
            let refused = store.recovery().graphs_refused.clone();
            let problems = store.verify().unwrap().problems;
            if FORMER_GRAPHS.contains(&kind.as_str()) && round == "as it was frozen" {
                // A graph of a former kind is built anew, from vectors that are all there, and replaced when it is saved.
                assert!(refused.len() == 1 && refused[0].contains("version"), "{refused:?}");
                assert!(problems.len() == 1 && problems[0].contains("version"), "{problems:?}");
                search(&store, &kind);
                while store.maintain(Duration::from_millis(50)).unwrap() {}
            } else {
                assert_eq!(refused, Vec::<String>::new(), "{kind} {round}");
                assert_eq!(problems, Vec::<String>::new(), "{kind} {round}");
            }
            assert_eq!(contents(&store), expected, "{kind} {round}");
            search(&store, &kind);
        }
        opened.push(kind);
    }
    let kinds =
        ["graph3", "log1-closed", "log1-killed", "0.1.0-closed", "0.1.0-graph", "0.1.0-killed"];
    for kind in kinds.into_iter().chain(FORMER_GRAPHS) {
        assert!(opened.iter().any(|one| one == kind), "{kind} is not among {opened:?}");
    }
}

/// The vectors are those that were stored: each is the nearest to itself.
fn search(store: &Store, kind: &str) {
    let (space, ids) = match kind.contains("graph") {
        true => ("many", ["n0001", "n4199"]),
        false => ("notes", ["n0001", "n0039"]),
    };
    for id in ids {
        let query = vector(id[1..].parse().unwrap());
        let found = store.search(&name(space), &Query::new(&query, 1)).unwrap();
        let hit = store.fetch(&name(space), &[found.hits[0].seq]).unwrap();
        assert_eq!(hit[0].as_ref().map(|m| &*m.id), Some(id), "{kind}");
        assert!(found.hits[0].score > 0.999, "{kind}: {found:?}");
    }
}
