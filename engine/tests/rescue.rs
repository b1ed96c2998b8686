//! Restore and salvage on real files: what a user's folders do that a disk in memory does not.
//!
//! Checked: locks, folders within folders, files of no bytes, modes, and that the source is not touched. What damage costs is
//! checked on the disk in memory (`engine::fault`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flashbulb_engine::{
    Error, NewMemory, OnConflict, SpaceName, Store, StoreOptions, restore, salvage,
};

const DIM: usize = 8;

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreOptions::new(DIM, "m")).unwrap()
}

fn space() -> SpaceName {
    SpaceName::parse("a").unwrap()
}

fn add(store: &Store, from: usize, to: usize) {
    let item = |n: usize| NewMemory {
        id: format!("m{n}"),
        text: format!("text {n}"),
        vectors: Some(vec![(0..DIM).map(|i| ((n * DIM + i) as f32).sin()).collect()]),
        ..NewMemory::default()
    };
    store.add(&space(), (from..to).map(item).collect(), OnConflict::Error).unwrap();
}

fn ids(dir: &Path) -> Vec<String> {
    let store = open(dir);
    assert_eq!(store.verify().unwrap().problems, [""; 0]);
    let listed = store.list(&space(), None, None, None, 1000).unwrap().items;
    listed.into_iter().map(|memory| memory.id).collect()
}

fn expected(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("m{n}")).collect()
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    names.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// A folder with `store`, closed, 30 memories in it, and `snapshot`.
fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    add(&store, 0, 20);
    store.compact().unwrap();
    add(&store, 20, 30);
    store.snapshot(&dir.path().join("snapshot")).unwrap();
    store.close().unwrap();
    dir
}

fn is_bare(dir: &Path) -> bool {
    !dir.exists() || fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn a_snapshot_and_a_closed_store_are_restored_and_left_as_they_are() {
    let dir = sample();
    for (from, to) in [("snapshot", "one"), ("store", "two")] {
        let (from, to) = (dir.path().join(from), dir.path().join(to));
        let before = files(&from);
        // A folder that is there and empty is taken, and made private.
        fs::create_dir(&to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        let report = restore(&from, &to).unwrap();
        assert_eq!(files(&from), before);
        assert_eq!((report.memories, report.spaces, &*report.fingerprint), (30, 1, "m"));
        for path in files(&to).into_keys().chain([to.clone()]) {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", path.display());
        }
        assert_eq!(ids(&to), expected(30));
    }
}

#[test]
fn a_file_of_no_bytes_is_damage() {
    let dir = sample();
    let (snapshot, to) = (dir.path().join("snapshot"), dir.path().join("to"));
    for (path, bytes) in files(&snapshot) {
        fs::write(&path, []).unwrap();
        let refused = restore(&snapshot, &to).unwrap_err();
        assert!(matches!(refused, Error::Corrupt { .. }), "{}: {refused}", path.display());
        assert!(is_bare(&to));
        let saved = dir.path().join("saved").join(path.file_name().unwrap());
        let report = salvage(&snapshot, &saved, DIM).unwrap();
        assert!(!report.losses.is_empty(), "{report:?}");
        assert!(report.memories == 0 || open(&saved).status().memories == report.memories);
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn a_store_in_use_is_left_alone() {
    let dir = sample();
    let (used, to) = (dir.path().join("store"), dir.path().join("to"));
    let store = open(&used);
    assert!(matches!(salvage(&used, &to, DIM), Err(Error::Locked { .. })));
    assert!(matches!(restore(&used, &to), Err(Error::Locked { .. })));
    assert!(matches!(restore(&dir.path().join("snapshot"), &used), Err(Error::Invalid { .. })));
    assert!(!to.exists());
    add(&store, 30, 31);
}

#[test]
fn folders_within_each_other_are_refused() {
    let dir = sample();
    let store = dir.path().join("store");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&store, &link).unwrap();
    for to in [&store, &store.join("to"), &store.join("a/b"), &link.join("to")] {
        let refused = salvage(&store, to, DIM).unwrap_err().to_string();
        assert!(refused.contains("only read"), "{}: {refused}", to.display());
        assert!(matches!(restore(&store, to), Err(Error::Invalid { .. })));
    }
    assert!(fs::read_dir(&store).unwrap().all(|entry| entry.unwrap().path().is_file()));
}

#[test]
fn salvage_reads_a_store_that_was_killed_and_writes_nothing_in_it() {
    let dir = sample();
    let (used, killed) = (dir.path().join("store"), dir.path().join("killed"));
    let store = open(&used);
    add(&store, 30, 40);
    // What a process that is killed now leaves, without its lock file.
    fs::create_dir(&killed).unwrap();
    for (path, bytes) in files(&used) {
        if !path.ends_with("LOCK") {
            fs::write(killed.join(path.file_name().unwrap()), bytes).unwrap();
        }
    }
    let before = files(&killed);
    let to = dir.path().join("to");
    let report = salvage(&killed, &to, DIM).unwrap();
    assert_eq!(files(&killed), before);
    assert_eq!((report.memories, report.without_vectors, &report.losses[..]), (40, 0, &[][..]));
    assert_eq!(ids(&to), expected(40));
    let refused = restore(&killed, &dir.path().join("other")).unwrap_err().to_string();
    assert!(refused.contains("was not closed"), "{refused}");
}
