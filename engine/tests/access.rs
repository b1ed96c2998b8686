//! How a store is opened and written to: for reading only, with levels of durability, with requests that are repeated.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use flashbulb_engine::{
    AddStatus, Durability, Error, NewMemory, OnConflict, Patch, RequestId, Selection, SpaceName,
    Store, StoreOptions,
};

fn options() -> StoreOptions {
    StoreOptions::new(8, "m")
}

fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(dir, options())
}

fn read(dir: &Path) -> Result<Store, Error> {
    Store::open_read_only(dir, options())
}

fn space() -> SpaceName {
    SpaceName::parse("a").unwrap()
}

fn item(id: &str) -> NewMemory {
    NewMemory {
        id: id.into(),
        text: format!("text of {id}"),
        vectors: Some(vec![vec![1.0; 8]]),
        ..NewMemory::default()
    }
}

fn add(store: &Store, ids: &[&str]) {
    let items = ids.iter().map(|id| item(id)).collect();
    store.add(&space(), items, OnConflict::Error).unwrap();
}

fn ids(store: &Store) -> Vec<String> {
    let listed = store.list(&space(), None, None, None, 100).unwrap();
    listed.items.into_iter().map(|memory| memory.id).collect()
}

/// Names, contents and times of change of all files.
fn files(dir: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entry = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, (fs::read(entry.path()).unwrap(), entry.metadata().unwrap().modified().unwrap()))
    };
    fs::read_dir(dir).unwrap().map(|found| entry(found.unwrap())).collect()
}

#[test]
fn readers_share_a_closed_store_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(dir.path()), Err(Error::NoStore { .. })));
    let store = open(dir.path()).unwrap();
    add(&store, &["x", "y"]);
    assert!(matches!(read(dir.path()), Err(Error::Locked { .. })), "a writer has it");
    store.close().unwrap();
    drop(store);

    let before = files(dir.path());
    let (one, other) = (read(dir.path()).unwrap(), read(dir.path()).unwrap());
    assert!(matches!(open(dir.path()), Err(Error::Locked { .. })), "readers have it");
    assert_eq!(
        (ids(&one), ids(&other)),
        (vec!["x".into(), "y".into()], vec!["x".into(), "y".into()])
    );
    assert!(one.status().read_only && one.verify().unwrap().problems.is_empty());
    let refused = |outcome: Result<(), Error>| assert!(matches!(outcome, Err(Error::ReadOnly)));
    refused(one.add(&space(), vec![item("z")], OnConflict::Error).map(drop));
    refused(one.update(&space(), "x", Patch::default(), None).map(drop));
    refused(one.delete(&space(), &Selection::Ids(vec!["x".into()]), false, None).map(drop));
    refused(one.set_vectors(&space(), Vec::new()).map(drop));
    refused(one.drop_space(&space()).map(drop));
    refused(one.compact().map(drop));
    let dry = one.delete(&space(), &Selection::Ids(vec!["x".into()]), true, None).unwrap();
    assert_eq!(dry.matched, 1);
    while one.maintain(Duration::from_millis(1)).unwrap() {}
    let copy = dir.path().join("copy");
    one.snapshot(&copy).unwrap();
    assert_eq!(ids(&read(&copy).unwrap()), ["x", "y"]);
    fs::remove_dir_all(&copy).unwrap();
    drop((one, other));
    assert_eq!(files(dir.path()), before);
    assert_eq!(ids(&open(dir.path()).unwrap()), ["x", "y"]);
}

#[test]
fn a_store_that_was_not_closed_is_not_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    add(&store, &["x"]);
    // What a kill leaves: the files as they are.
    let killed = tempfile::tempdir().unwrap();
    for (name, (bytes, _)) in files(dir.path()) {
        fs::write(killed.path().join(name), bytes).unwrap();
    }
    let refused = read(killed.path());
    assert!(matches!(refused, Err(Error::NeedsRecovery { .. })), "{refused:?}");
    drop(open(killed.path()).unwrap());
    assert_eq!(ids(&read(killed.path()).unwrap()), ["x"]);
}

#[test]
fn levels_answer_before_a_sync_and_sync_when_they_say() {
    for level in [Durability::Sync, Durability::Buffered, Durability::Manual] {
        let dir = tempfile::tempdir().unwrap();
        let durability = StoreOptions { durability: level, ..options() };
        let store = Store::open(dir.path(), durability).unwrap();
        add(&store, &["x"]);
        let after_add = store.status();
        assert_eq!(after_add.durability, level);
        if level == Durability::Sync {
            assert!(after_add.durable_lsn >= after_add.lsn.min(2), "{after_add:?}");
        }
        std::thread::sleep(Duration::from_millis(300));
        let later = store.status();
        assert_eq!(later.durable_lsn == later.lsn, level != Durability::Manual, "{later:?}");
        let synced = store.sync().unwrap();
        assert!(synced.0 >= 2 && store.status().durable_lsn >= 2);
    }
}

#[test]
fn a_repeated_request_adds_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let request = RequestId { key: 7, content: 1 };
    let ask = |store: &Store, request| {
        let added = store.add_once(&space(), vec![item("x"), item("y")], request)?;
        Ok(added.items.into_iter().map(|item| item.status).collect())
    };
    let skipped = vec![AddStatus::Skipped; 2];
    let mut store = open(dir.path()).unwrap();
    let first: Vec<AddStatus> = ask(&store, request).unwrap();
    assert_eq!(first, [AddStatus::Added; 2]);
    let unlike = RequestId { content: 2, ..request };
    for round in 0..4 {
        assert_eq!(ask(&store, request).unwrap(), skipped, "round {round}");
        let refused: Result<Vec<AddStatus>, Error> = ask(&store, unlike);
        assert!(matches!(refused, Err(Error::KeyTaken)), "round {round}: {refused:?}");
        match round {
            0 => {
                let patch = Patch { text: Some("another".into()), ..Patch::default() };
                store.update(&space(), "x", patch, None).unwrap();
            }
            1 => {
                let gone = Selection::Ids(vec!["y".into()]);
                store.delete(&space(), &gone, false, None).unwrap();
            }
            _ => {
                // From the log, then from a segment.
                drop(store);
                store = open(dir.path()).unwrap();
                store.compact().unwrap();
            }
        }
    }
    assert_eq!(ids(&store), ["x"]);
    let gone = Selection::Ids(vec!["x".into()]);
    store.delete(&space(), &gone, false, None).unwrap();
    assert_eq!(ask(&store, unlike).unwrap(), [AddStatus::Added; 2], "nothing of it is left");
}

/// The segment's file, and a place in the vectors it holds: after the header and the one record.
fn segment_with_vectors(dir: &Path) -> (std::path::PathBuf, usize) {
    let path =
        files(dir).into_keys().find(|name| name.ends_with(".fbs")).map(|n| dir.join(n)).unwrap();
    let value = (1.0 / 8f32.sqrt()).to_le_bytes();
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|window| window == value).unwrap();
    (path, at)
}

#[test]
fn sealed_blocks_are_read_again_and_damage_is_told_and_not_given_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    add(&store, &["x"]);
    store.close().unwrap();
    drop(store);
    let (path, at) = segment_with_vectors(dir.path());
    let store = open(dir.path()).unwrap();
    while store.maintain(Duration::from_millis(1)).unwrap() {}
    let sound = store.scrub_status();
    assert!(sound.passes == 1 && sound.blocks > 0 && sound.damaged.is_empty(), "{sound:?}");
    drop(store);

    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let store = open(dir.path()).unwrap();
    // Below the mapping, as a device would: the block was read and was sound.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff], at as u64).unwrap();
    while store.maintain(Duration::from_millis(1)).unwrap() {}
    let damaged = store.scrub_status().damaged;
    assert!(damaged.len() == 1 && damaged[0].contains("segment-"), "{damaged:?}");
    assert_eq!(store.status().scrub.damaged, damaged);
    assert!(matches!(
        store.fetch(&space(), &[flashbulb_engine::Seq(1)]),
        Err(Error::Corrupt { .. })
    ));
}
