//! Whole stores whose files have sound checksums and any contents.
//!
//! Invariant: a store of this kind may be refused or opened, and never panics, whatever is asked of it. Knows no format.

use flashbulb_engine::fuzz::{Disk, Files, manifest_file};
use flashbulb_engine::{Error, NewMemory, OnConflict, Query, SpaceName, Store, StoreOptions};
use serde_json::{Value, json};

/// Components of a vector in the stores of all targets.
pub const DIM: usize = 8;

/// How the targets open stores.
#[must_use]
pub fn options() -> StoreOptions {
    StoreOptions { log_file_bytes: 8 << 10, seal_bytes: 1 << 10, ..StoreOptions::new(DIM, "m") }
}

/// The contents of a manifest that fits [`options`], names these segments and a log from file 1, and has spaces `a` (0), `b` (1).
#[must_use]
pub fn manifest(segments: &[(u32, u64, u128)], first_wal: Option<u64>) -> Value {
    let segment = |(part, len, sum): &(u32, u64, u128)| json!({"part": part, "len": len, "checksum": format!("{sum:032x}")});
    json!({
        "generation": 1, "store": "s", "dim": DIM, "fingerprint": "m", "checkpoint_lsn": 0, "first_wal": first_wal,
        "epoch": 1, "next_space": 2, "next_part": 9,
        "spaces": [{"id": 0, "name": "a", "last_seq": 0}, {"id": 1, "name": "b", "last_seq": 0}],
        "segments": segments.iter().map(segment).collect::<Vec<_>>(), "graphs": [],
    })
}

/// Opens a store of these files and asks everything of it. What one opening shows, the next must show too.
pub fn open_and_ask(mut files: Files, manifest: &Value) {
    let (name, bytes) = manifest_file(
        manifest["generation"].as_u64().unwrap_or(1),
        manifest.to_string().as_bytes(),
    );
    files.insert(name, bytes);
    let disk = Disk::new(files);
    let Ok(store) = disk.open(options()) else { return };
    let seen = contents(&store);
    ask(&store);
    // A store that was asked only, and whose process was killed then, must be the same again.
    let killed = disk.cut(disk.events(), 1);
    drop(store);
    let again = killed.open(options()).expect("a store that was opened once opens again");
    if let (Ok(seen), Ok(again)) = (seen, contents(&again)) {
        assert_eq!(seen, again, "two openings of the same files differ");
    }
    for space in again.spaces() {
        let Ok(name) = SpaceName::parse(&space.space) else { continue };
        let memory = NewMemory {
            id: "new".into(),
            text: "new".into(),
            vectors: Some(vec![vec![1.0; DIM]]),
            ..NewMemory::default()
        };
        let _ = again.add(&name, vec![memory], OnConflict::Replace);
    }
    let _ = again.compact();
    ask(&again);
    let _ = again.close();
}

/// Every memory that can be listed, by space.
fn contents(store: &Store) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    for space in store.spaces() {
        let name = SpaceName::parse(&space.space)?;
        out.push(format!("{name}: {} memories", space.memories));
        for memory in store.list(&name, None, None, None, 10_000)?.items {
            out.push(format!("{memory:?}"));
        }
    }
    Ok(out)
}

fn ask(store: &Store) {
    let _ = store.verify();
    let _ = store.pending(100);
    for space in store.spaces() {
        let Ok(name) = SpaceName::parse(&space.space) else { continue };
        let query = [0.5; DIM];
        let _ = store.search(&name, &Query::new(&query, 5));
        let _ = store.list(&name, None, None, None, 3);
        let _ = store.around(&name, "m1", 2, 2);
        let _ = store.vectors_of_text(&name, "text 1");
    }
}
