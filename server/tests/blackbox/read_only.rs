//! `serve --read-only`: a store, or a snapshot, on a medium that cannot be written.
//!
//! Invariant checked: nothing below the folder changes, not a name, a byte or a time, and nothing is even tried; reads
//! answer what a writer would answer; every change is refused.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{add, found, list_all, notes_space, vector, vector_space};
use crate::faulty_disk::{Disk, EROFS, Fate, When};

const READ_ONLY: i64 = 1018;

/// Everything about a folder that writing to it would change.
fn state(folder: &Path) -> BTreeMap<PathBuf, (i64, i64, u32, Vec<u8>)> {
    let facts = |path: PathBuf| {
        let meta = fs::metadata(&path).expect("a file");
        let bytes = if meta.is_file() { fs::read(&path).expect("its bytes") } else { Vec::new() };
        (path, (meta.mtime(), meta.mtime_nsec(), meta.mode(), bytes))
    };
    let files = fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path());
    files.chain([folder.to_owned()]).map(facts).collect()
}

/// A daemon that serves `store` for reading, from a folder of its own.
fn reader(store: &Path) -> Daemon {
    let mut daemon = Daemon::prepared();
    daemon.store = store.to_owned();
    daemon.args.push("--read-only".to_owned());
    daemon
}

#[track_caller]
fn refused(mut daemon: Daemon) -> (Option<i32>, String) {
    match daemon.try_run(Duration::from_secs(30)) {
        Err(status) => (status.code(), daemon.log_tail()),
        Ok(()) => panic!("it serves {}", daemon.store.display()),
    }
}

/// What a reader can ask of the two spaces.
fn answers(conn: &mut Conn, notes: &str, vectors: &str) -> Value {
    let hits = conn.ok("memory.search", json!({"space": vectors, "vector": vector(7), "k": 12}));
    // How much of a space waits to be compacted may differ; what is in it may not.
    let listed = conn.ok("space.list", json!({}));
    let facts = |s: &Value| json!([s["space"], s["memories"], s["last_seq"]]);
    let spaces: Vec<Value> =
        listed["spaces"].as_array().expect("spaces").iter().map(facts).collect();
    json!([
        list_all(conn, notes, 100),
        list_all(conn, vectors, 1000),
        found(conn, notes, "an animal that fears the hoover", 3),
        hits["hits"],
        conn.ok("memory.around", json!({"space": notes, "id": "n4", "before": 2, "after": 2}))["items"],
        spaces,
    ])
}

/// A closed store with a segment, newer changes and deletions; what it answers, and a snapshot of it.
fn filled() -> (Daemon, PathBuf, [String; 2], Value) {
    let mut daemon = Daemon::start();
    let mut conn = daemon.conn();
    let spaces = [notes_space(&mut conn, "ro"), vector_space(&mut conn, "ro", 150)];
    conn.ok("memory.delete", json!({"space": spaces[1], "ids": ["v3", "v149"]}));
    conn.ok("admin.compact", json!({}));
    add(
        &mut conn,
        &spaces[1],
        json!([{"id": "late", "text": "a late one", "vector": vector(500)}]),
    );
    conn.ok("memory.delete", json!({"space": spaces[1], "ids": ["v4"]}));
    let answers = answers(&mut conn, &spaces[0], &spaces[1]);
    let snapshot = daemon.dir.path().join("snapshot");
    conn.ok("admin.snapshot", json!({"path": snapshot}));
    assert!(daemon.terminate().success(), "{}", daemon.log_tail());
    (daemon, snapshot, spaces, answers)
}

#[test]
fn a_closed_store_and_a_snapshot_are_read_and_left_untouched() {
    let (writer, snapshot, [notes, vectors], before) = filled();
    for folder in [&writer.store, &snapshot] {
        // Where the tests run as root this binds nobody; the disk below does.
        fs::set_permissions(folder, Permissions::from_mode(0o500)).unwrap();
        let untouched = state(folder);
        let mut daemon = reader(folder);
        let mut disk = Disk::below(folder.parent().expect("a parent"));
        disk.watch(folder);
        daemon.env.extend(disk.env());
        disk.rule("any", "*", Fate::Fails(EROFS), When::Always);
        for _ in 0..2 {
            daemon.run();
            let mut conn = daemon.conn();
            assert_eq!(answers(&mut conn, &notes, &vectors), before, "{}", folder.display());
            let status = conn.ok("admin.status", json!({}));
            assert_eq!(status["store"]["read_only"], true, "{status}");
            conn.ok("admin.health", json!({}));
            let verified = conn.ok("admin.verify", json!({}));
            assert_eq!(verified["problems"], json!([]), "{verified}");
            writes_are_refused(&mut conn, &vectors);
            assert_eq!(answers(&mut conn, &notes, &vectors), before);
            assert!(daemon.terminate().success(), "{}", daemon.log_tail());
        }
        assert!(state(folder) == untouched, "{} was changed", folder.display());
        fs::set_permissions(folder, Permissions::from_mode(0o700)).unwrap();
        let tried: Vec<String> =
            disk.calls().iter().map(|c| format!("{} {}", c.op, c.path)).collect();
        assert!(tried.is_empty(), "it tried to change the folder: {tried:?}");
    }
    // And it is a store like any other afterwards.
    let mut daemon = writer;
    daemon.run();
    assert_eq!(daemon.conn().ok("admin.status", json!({}))["store"]["read_only"], false);
    assert_eq!(answers(&mut daemon.conn(), &notes, &vectors), before);
}

fn writes_are_refused(conn: &mut Conn, space: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let import = folder.path().join("notes.txt");
    fs::write(&import, "A note.\n").expect("a file to import");
    let item = json!([{"id": "new", "text": "a new one", "vector": vector(1)}]);
    let writes = [
        ("memory.add", json!({"space": space, "items": item})),
        (
            "memory.add",
            json!({"space": space, "items": item, "on_conflict": "replace", "wait": "searchable"}),
        ),
        ("memory.add", json!({"space": "another", "items": item, "idempotency_key": "k"})),
        ("memory.update", json!({"space": space, "id": "v1", "patch": {"role": "x"}})),
        ("memory.delete", json!({"space": space, "ids": ["v1"]})),
        ("memory.delete", json!({"space": space, "filter": {"role": {"eq": "user"}}})),
        ("memory.import", json!({"space": space, "format": "text", "path": import})),
        ("space.drop", json!({"space": space})),
        ("admin.compact", json!({})),
    ];
    for (method, params) in writes {
        let e = conn.err(method, params);
        assert_eq!(e.code, READ_ONLY, "{method}: {e:?}");
    }
}

#[test]
fn readers_share_a_store_and_a_writer_has_it_alone() {
    let (mut writer, snapshot, [notes, vectors], before) = filled();
    let (mut first, mut second) = (reader(&writer.store), reader(&writer.store));
    first.run();
    second.run();
    for daemon in [&first, &second] {
        assert_eq!(answers(&mut daemon.conn(), &notes, &vectors), before);
    }
    let untouched = state(&writer.store);
    let intruder = || {
        let mut daemon = Daemon::prepared();
        daemon.store = writer.store.clone();
        daemon
    };
    let (code, said) = refused(intruder());
    assert_eq!(code, Some(7), "{said}");
    first.kill9();
    assert_eq!(refused(intruder()).0, Some(7), "one reader is left");
    assert!(state(&writer.store) == untouched, "a refused writer changed the store");
    assert!(second.terminate().success());
    writer.run();
    let (code, said) = refused(reader(&writer.store));
    assert_eq!(code, Some(7), "{said}");
    writer.assert_alive();
    // A snapshot has no lock file, and a reader may not make one: it is guarded all the same.
    let mut third = reader(&snapshot);
    third.run();
    let mut other = Daemon::prepared();
    other.store = snapshot.clone();
    assert_eq!(refused(other).0, Some(7), "a writer beside a reader of a snapshot");
    assert_eq!(answers(&mut third.conn(), &notes, &vectors), before);
}

#[test]
fn a_killed_store_needs_recovery_first_and_says_so() {
    let mut writer = Daemon::start();
    let space = vector_space(&mut writer.conn(), "ro-killed", 30);
    writer.kill9();
    let untouched = state(&writer.store);
    let (code, said) = refused(reader(&writer.store));
    assert_eq!(code, Some(9), "{said}");
    let told = said.to_lowercase();
    assert!(told.contains("recover") && told.contains("--read-only"), "what to do is said: {said}");
    assert!(state(&writer.store) == untouched, "a refusal changes nothing");
    writer.run();
    assert!(writer.terminate().success());
    let mut daemon = reader(&writer.store);
    daemon.run();
    assert_eq!(list_all(&mut daemon.conn(), &space, 100).len(), 30);
}

#[test]
fn a_clean_stop_with_work_left_leaves_a_store_that_can_be_read() {
    let mut writer = Daemon::start();
    let text = |i: usize| json!({"id": format!("p{i:02}"), "text": format!("note {i}: {}", "some words ".repeat(40))});
    let items: Vec<Value> = (0..60).map(text).collect();
    writer.conn().ok("memory.add", json!({"space": "ro-pending", "items": items}));
    assert!(writer.terminate().success(), "{}", writer.log_tail());
    let untouched = state(&writer.store);
    let mut daemon = reader(&writer.store);
    daemon.run();
    assert_eq!(list_all(&mut daemon.conn(), "ro-pending", 100).len(), 60);
    std::thread::sleep(Duration::from_millis(300));
    assert!(daemon.terminate().success(), "{}", daemon.log_tail());
    assert!(
        state(&writer.store) == untouched,
        "texts that wait to be embedded do not make it write"
    );
}

#[test]
fn there_is_nothing_to_read_where_there_is_no_store() {
    let places = Daemon::prepared();
    let (missing, empty) = (places.dir.path().join("missing"), places.dir.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    for folder in [&missing, &empty] {
        let (code, said) = refused(reader(folder));
        assert!(code.is_some_and(|c| c != 0), "{said}");
        assert!(said.contains(folder.to_str().unwrap()), "the place is named: {said}");
    }
    assert!(!missing.exists(), "and none is made");
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
}
