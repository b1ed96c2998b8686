//! `flashbulb salvage`: what is saved of a store that does not open any more.
//!
//! Invariant checked: the damaged store is named with file and offset and is never served short; salvaging reads it
//! and changes nothing in it; what was not damaged is in the new store, word for word, what was deleted stays deleted,
//! and what is lost is reported.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{Ran, program};
use crate::daemon::Daemon;
use crate::data::{list_all, vector};
use crate::faulty_disk::{Disk, EIO, ENOSPC, EROFS, Fate, When, logs};

const SPACE: &str = "rescue";
const OTHER: &str = "rescue-other";
const DROPPED: &str = "rescue-dropped";
/// In a segment; one has 64 KiB blocks, so a few of these share one.
const SEALED: usize = 40;
/// In the log alone, one record each.
const LOGGED: usize = 40;

fn text(id: &str) -> String {
    let words = if id.starts_with('a') { 500 } else { 5 };
    format!("the words of {id} and of no other. {}", "and so on and on ".repeat(words))
}

fn item(id: &str) -> Value {
    json!({"id": id, "text": text(id), "session": format!("s-{id}"), "meta": {"of": id}, "vector": vector(1 + id.len() as u64)})
}

/// Every name, byte and time of a store's files.
fn state(folder: &Path) -> BTreeMap<PathBuf, (i64, i64, Vec<u8>)> {
    let facts = |path: PathBuf| {
        let meta = fs::metadata(&path).expect("a file");
        let bytes = if meta.is_file() { fs::read(&path).expect("bytes") } else { Vec::new() };
        (path, (meta.mtime(), meta.mtime_nsec(), bytes))
    };
    let files = fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path());
    files.chain([folder.to_owned()]).map(facts).collect()
}

/// A killed daemon's store: `a…` sealed, `b…` in the log; a03 and b05 deleted, b07 updated, a space dropped.
fn original() -> &'static Daemon {
    static ORIGINAL: OnceLock<Daemon> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let mut daemon = Daemon::start();
        let put = |daemon: &Daemon, space: &str, ids: Vec<String>| {
            let items: Vec<Value> = ids.iter().map(|id| item(id)).collect();
            daemon.conn().ok("memory.add", json!({"space": space, "items": items}));
        };
        put(&daemon, SPACE, (0..SEALED).map(|i| format!("a{i:02}")).collect());
        put(&daemon, OTHER, (0..10).map(|i| format!("o{i:02}")).collect());
        put(&daemon, DROPPED, vec!["d00".to_owned()]);
        daemon.conn().ok("admin.compact", json!({}));
        // A new log, so that what is sealed is in the segment alone.
        assert!(daemon.terminate().success(), "{}", daemon.log_tail());
        daemon.run();
        (0..LOGGED).for_each(|i| put(&daemon, SPACE, vec![format!("b{i:02}")]));
        let mut conn = daemon.conn();
        conn.ok("memory.delete", json!({"space": SPACE, "ids": ["a03", "b05"]}));
        conn.ok(
            "memory.update",
            json!({"space": SPACE, "id": "b07", "patch": {"role": "updated"}}),
        );
        conn.ok("space.drop", json!({"space": DROPPED}));
        put(&daemon, OTHER, vec!["o99".to_owned()]);
        daemon.kill9();
        daemon
    })
}

/// A copy of the original in a folder of its own, and the daemon that would serve it.
fn copy() -> Daemon {
    let daemon = Daemon::prepared();
    fs::create_dir(&daemon.store).unwrap();
    fs::set_permissions(&daemon.store, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(&original().store).unwrap().flatten() {
        fs::copy(entry.path(), daemon.store.join(entry.file_name())).unwrap();
    }
    daemon
}

/// The newest file of a kind.
fn newest(store: &Path, kind: &str) -> PathBuf {
    let files = fs::read_dir(store).expect("a store").flatten().map(|e| e.path());
    let of_kind =
        files.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(kind)));
    of_kind.max().unwrap_or_else(|| panic!("{} has no {kind}", store.display()))
}

fn name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("a file");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("a file");
}

/// Where a text stands in a file.
fn find(path: &Path, text: &str) -> usize {
    memchr::memmem::find(&fs::read(path).expect("a file"), text.as_bytes())
        .unwrap_or_else(|| panic!("{} has no {text:?}", path.display()))
}

fn salvage(from: &Path, to: &Path) -> Ran {
    program(["salvage".as_ref(), from.as_os_str(), to.as_os_str(), "--json".as_ref()])
}

/// Requires that the daemon refuses the store, and returns what it said.
#[track_caller]
fn refuses(daemon: &mut Daemon, file: &str) -> String {
    let status = match daemon.try_run(Duration::from_secs(30)) {
        Err(status) => status,
        Ok(()) => panic!("it serves a store whose {file} is damaged"),
    };
    let said = daemon.log_tail();
    assert_eq!(status.code(), Some(9), "{file}: {said}");
    assert!(said.contains(file), "the damaged file is named: {said}");
    assert!(said.contains("salvage"), "what to do is said: {said}");
    said
}

/// Salvages the daemon's store into a new one and returns the report and the ids of each space; checks what must hold
/// whatever was damaged.
#[track_caller]
fn saved(daemon: &Daemon) -> (Ran, Vec<String>, Vec<String>) {
    let before = state(&daemon.store);
    let mut fresh = Daemon::prepared();
    let ran = salvage(&daemon.store, &fresh.store).succeeded();
    assert!(ran.json().is_object(), "{ran:?}");
    assert!(state(&daemon.store) == before, "salvaging changed the damaged store");
    fresh.run();
    let mut conn = fresh.conn();
    let spaces = conn.ok("space.list", json!({})).to_string();
    let ids = |conn: &mut crate::client::Conn, space: &str| -> Vec<String> {
        if !spaces.contains(&format!("\"{space}\"")) {
            return Vec::new();
        }
        let all = list_all(conn, space, 20);
        for memory in &all {
            let id = memory["id"].as_str().expect("an id");
            assert_eq!(memory["text"], text(id), "{id} is served with other words");
            assert_eq!(
                (&memory["session"], &memory["meta"]),
                (&json!(format!("s-{id}")), &json!({"of": id}))
            );
            assert_eq!(memory["role"] == "updated", id == "b07", "{memory}");
        }
        all.iter().map(|m| m["id"].as_str().expect("an id").to_owned()).collect()
    };
    let (main, other) = (ids(&mut conn, SPACE), ids(&mut conn, OTHER));
    assert_eq!(conn.ok("admin.verify", json!({}))["problems"], json!([]));
    // It is a store like any other: what was saved is found by its vector, and it takes more.
    if let Some(id) = main.first() {
        let hits = conn.ok(
            "memory.search",
            json!({"space": SPACE, "vector": vector(1 + id.len() as u64), "k": 1000}),
        );
        assert_eq!(
            hits["hits"].as_array().expect("hits").len(),
            main.len(),
            "all that was saved is searched"
        );
    }
    conn.ok("memory.add", json!({"space": SPACE, "items": [item("z00")]}));
    (ran, main, other)
}

fn all_but(lost: &[&str]) -> Vec<String> {
    let named = |kind: char, n: usize| (0..n).map(move |i| format!("{kind}{i:02}"));
    let mut all: Vec<String> = named('a', SEALED).chain(named('b', LOGGED)).collect();
    all.retain(|id| !["a03", "b05"].contains(&id.as_str()) && !lost.contains(&id.as_str()));
    all
}

/// The order in a space changes with an update, so sets are compared.
fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

fn others() -> Vec<String> {
    (0..10).map(|i| format!("o{i:02}")).chain(["o99".to_owned()]).collect()
}

#[test]
fn damage_in_the_middle_of_the_log_costs_one_record() {
    let mut daemon = copy();
    let (log, _) = logs(&daemon.store)
        .into_iter()
        .find(|(_, b)| memchr::memmem::find(b, text("b20").as_bytes()).is_some())
        .expect("b20 is logged");
    let at = find(&daemon.store.join(&log), &text("b20"));
    flip(&daemon.store.join(&log), at);
    let said = refuses(&mut daemon, &log);
    let offsets = said.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<usize>().ok());
    assert!(
        offsets.into_iter().any(|n| n > 4096 && n <= at && n + 4096 > at),
        "the offset, below {at}: {said}"
    );
    let (ran, main, other) = saved(&daemon);
    assert_eq!((sorted(main), sorted(other)), (all_but(&["b20"]), others()));
    assert!(ran.stdout.contains(&log), "the loss is reported by its file: {ran:?}");
}

#[test]
fn a_damaged_manifest_costs_nothing_that_the_files_still_have() {
    for cut in [false, true] {
        let mut daemon = copy();
        let manifest = newest(&daemon.store, "manifest-");
        let len = fs::metadata(&manifest).unwrap().len() as usize;
        if cut {
            let bytes = fs::read(&manifest).unwrap();
            fs::write(&manifest, &bytes[..len / 2]).unwrap();
        } else {
            flip(&manifest, len / 2);
        }
        refuses(&mut daemon, &name(&manifest));
        let (ran, main, other) = saved(&daemon);
        assert_eq!((sorted(main), sorted(other)), (all_but(&[]), others()));
        assert!(ran.stdout.contains(&name(&manifest)), "{ran:?}");
    }
}

#[test]
fn a_segment_that_is_cut_or_gone_costs_what_was_in_it_alone() {
    for gone in [false, true] {
        let mut daemon = copy();
        let segment = newest(&daemon.store, "segment-");
        if gone {
            fs::remove_file(&segment).unwrap();
        } else {
            let bytes = fs::read(&segment).unwrap();
            fs::write(&segment, &bytes[..bytes.len() / 2]).unwrap();
        }
        refuses(&mut daemon, &name(&segment));
        let (ran, main, other) = saved(&daemon);
        let logged = main.iter().filter(|id| id.starts_with('b')).count();
        assert_eq!(logged, LOGGED - 1, "the log is whole: {main:?}");
        assert!(other.contains(&"o99".to_owned()), "{other:?}");
        assert!(!main.contains(&"a03".to_owned()), "its deletion is in the log");
        assert!(ran.stdout.contains(&name(&segment)), "{ran:?}");
    }
}

#[test]
fn a_flipped_byte_in_a_segment_costs_one_block() {
    let mut daemon = copy();
    let segment = newest(&daemon.store, "segment-");
    let at = find(&segment, &text("a20"));
    flip(&segment, at + 100);
    // A block is checked at its first touch, so it may start; then it must not pass the damage off.
    if daemon.try_run(Duration::from_secs(30)).is_ok() {
        let got = daemon.conn().call("memory.get", &json!({"space": SPACE, "ids": ["a20"]}));
        assert_eq!(got.expect_err("a damaged memory").code, 1010);
        daemon.kill9();
        // Starting changed the store; salvage has to cope with that as well.
    }
    let (ran, main, other) = saved(&daemon);
    assert!(ran.stdout.contains(&name(&segment)), "{ran:?}");
    assert!(other.len() >= 10, "{other:?}");
    assert!(!main.contains(&"a20".to_owned()), "a20 cannot be whole");
    let lost: Vec<String> = all_but(&[]).into_iter().filter(|id| !main.contains(id)).collect();
    assert!(
        lost.len() <= 18 && lost.iter().all(|id| ("a10"..="a30").contains(&id.as_str())),
        "lost: {lost:?}"
    );
}

#[test]
fn a_log_that_is_gone_costs_what_was_in_it_alone() {
    let mut daemon = copy();
    let mut gone = Vec::new();
    for (log, _) in logs(&daemon.store) {
        fs::remove_file(daemon.store.join(&log)).unwrap();
        gone.push(log);
    }
    refuses(&mut daemon, "wal-");
    let (ran, main, other) = saved(&daemon);
    assert!((SEALED - 1..=SEALED).contains(&main.len()), "a03's deletion was in the log: {main:?}");
    assert!(other.len() == 10 && main.iter().all(|id| id.starts_with('a')), "{other:?} {main:?}");
    assert!(ran.stdout.contains("wal-"), "{ran:?}");
}

#[test]
fn a_sound_store_is_copied_whole() {
    let daemon = copy();
    let (ran, main, other) = saved(&daemon);
    assert_eq!((sorted(main), sorted(other)), (all_but(&[]), others()));
    let report = ran.json().to_string();
    let count = SEALED + LOGGED - 2 + others().len();
    assert!(report.contains(&count.to_string()), "the count of the saved: {report}");
    // A folder made by hand is open to others; a store never is.
    let to = daemon.dir.path().join("made-before");
    fs::create_dir(&to).unwrap();
    let ran = program(["salvage".as_ref(), daemon.store.as_os_str(), to.as_os_str()]).succeeded();
    assert!(ran.stdout.contains(&count.to_string()), "a person reads the count too: {ran:?}");
    assert_eq!(
        fs::metadata(&to).unwrap().mode() & 0o777,
        0o700,
        "the new store is for the owner alone"
    );
}

#[test]
fn salvage_refuses_places_that_are_taken_and_writes_nothing_in_the_old_store() {
    let daemon = copy();
    let before = state(&daemon.store);
    let root = daemon.dir.path();
    let (busy, file) = (root.join("busy"), root.join("file"));
    fs::create_dir(&busy).unwrap();
    fs::write(busy.join("precious"), "mine").unwrap();
    fs::write(&file, "mine").unwrap();
    for taken in [&busy, &file, &daemon.store] {
        let ran = salvage(&daemon.store, taken).failed();
        assert_eq!(ran.code, Some(6), "{}: {ran:?}", taken.display());
    }
    assert_eq!(fs::read_dir(&busy).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    let nowhere = root.join("nowhere");
    salvage(&nowhere, &root.join("to-1")).failed();
    salvage(&busy, &root.join("to-2")).failed();
    assert!(!nowhere.exists() && !root.join("to-1").join("LOCK").exists());
    // On a medium that cannot be written.
    let mut disk = Disk::below(root);
    disk.watch(&daemon.store);
    disk.rule("any", "*", Fate::Fails(EROFS), When::Always);
    let (from, to) = (daemon.store.to_str().unwrap(), root.join("to-3"));
    let output = disk.program(&["salvage", from, to.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tried: Vec<String> = disk.calls().iter().map(|c| format!("{} {}", c.op, c.path)).collect();
    assert!(tried.is_empty(), "it tried to change the old store: {tried:?}");
    assert!(state(&daemon.store) == before, "the old store was changed");
    // A new store that could not be written is a failure that says so.
    for (op, errno) in [("grow", ENOSPC), ("sync", EIO)] {
        let to = root.join(format!("to-{op}"));
        disk.heal();
        disk.watch(root);
        disk.rule(op, to.to_str().unwrap(), Fate::Fails(errno), When::Always);
        let output = disk.program(&["salvage", from, to.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some_and(|c| c != 0), "{op}: {said}");
        assert!(said.len() > 10 && !said.contains("panicked"), "{op}: {said}");
    }
}

#[test]
fn salvage_leaves_a_store_in_use_alone() {
    let mut daemon = copy();
    daemon.run();
    let to = daemon.dir.path().join("to");
    let ran = salvage(&daemon.store, &to).failed();
    assert_eq!(ran.code, Some(7), "{ran:?}");
    assert!(!to.exists() || fs::read_dir(&to).unwrap().count() == 0, "nothing is left behind");
    daemon.assert_alive();
}
