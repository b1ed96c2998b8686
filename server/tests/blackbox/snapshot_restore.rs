//! `admin.snapshot` and `flashbulb restore`: a copy that can be trusted with everything.
//!
//! Invariant checked: a snapshot taken while others write holds a prefix of what each wrote, at least what was
//! acknowledged before; a damaged one is refused whole; restoring is durable, leaves nothing half done, and never
//! touches what is there already.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{Ran, program};
use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{Rng, ids, list_all, notes_space, vector, vector_space};
use crate::faulty_disk::{Call, Disk, EIO, ENOSPC, Fate, When};

const WRITERS: usize = 4;

fn restore(snapshot: &Path, store: &Path) -> Ran {
    program([
        "restore".as_ref(),
        snapshot.as_os_str(),
        "--store".as_ref(),
        store.as_os_str(),
        "--json".as_ref(),
    ])
}

fn is_bare(folder: &Path) -> bool {
    !folder.exists() || fs::read_dir(folder).expect("a folder").count() == 0
}

/// A stopped daemon with a snapshot beside its store.
fn original() -> &'static (Daemon, PathBuf, Vec<Value>) {
    static ORIGINAL: OnceLock<(Daemon, PathBuf, Vec<Value>)> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let mut daemon = Daemon::start();
        let mut conn = daemon.conn();
        notes_space(&mut conn, "snap-notes");
        let space = vector_space(&mut conn, "snap", 120);
        conn.ok("memory.delete", json!({"space": space, "ids": ["v1", "v60"]}));
        conn.ok("admin.compact", json!({}));
        conn.ok("memory.delete", json!({"space": space, "ids": ["v2"]}));
        conn.ok(
            "memory.add",
            json!({"space": space, "items": [{"id": "late", "text": "late", "vector": vector(9)}]}),
        );
        let snapshot = daemon.dir.path().join("snapshot");
        conn.ok("admin.snapshot", json!({"path": snapshot}));
        let held = everything(&mut conn);
        daemon.kill9();
        (daemon, snapshot, held)
    })
}

/// Every memory of every space.
fn everything(conn: &mut Conn) -> Vec<Value> {
    let listed = conn.ok("space.list", json!({}));
    let spaces = listed["spaces"].as_array().unwrap_or_else(|| panic!("spaces: {listed}")).clone();
    let named = |s: &Value| {
        s["space"].as_str().or(s["name"].as_str()).or(s.as_str()).expect("a name").to_owned()
    };
    spaces.iter().flat_map(|s| list_all(conn, &named(s), 1000)).collect()
}

#[test]
fn a_snapshot_under_load_has_a_prefix_of_what_each_writer_wrote() {
    let daemon = Daemon::start();
    let (stop, acked) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; WRITERS]);
    let snapshots: Vec<(PathBuf, Vec<usize>)> = thread::scope(|scope| {
        for (writer, acked) in acked.iter().enumerate() {
            let (mut conn, stop) = (daemon.conn(), &stop);
            scope.spawn(move || {
                let mut rng = Rng::new(writer as u64);
                let mut next = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Batches, some with a text to embed: they must be whole in the snapshot.
                    let item = |i: usize| {
                        let id = format!("{:06}", next + i);
                        let mut item = json!({"id": id, "text": format!("note {id} of {writer}"), "meta": {"batch": next}});
                        if !(next + i).is_multiple_of(97) {
                            item["vector"] = json!(vector((next + i) as u64));
                        }
                        item
                    };
                    let n = 1 + rng.below(5);
                    let items: Vec<Value> = (0..n).map(item).collect();
                    conn.ok("memory.add", json!({"space": format!("load-{writer}"), "items": items}));
                    next += n;
                    acked.store(next, Ordering::SeqCst);
                }
            });
        }
        let take = |name: &str| {
            let before = acked.iter().map(|a| a.load(Ordering::SeqCst)).collect();
            let path = daemon.dir.path().join(name);
            daemon.conn().ok("admin.snapshot", json!({"path": path}));
            (path, before)
        };
        thread::sleep(Duration::from_millis(300));
        let first = take("first");
        thread::sleep(Duration::from_millis(200));
        // A seal and a merge go on beside the second one.
        let compacting = scope.spawn(|| drop(daemon.conn().ok("admin.compact", json!({}))));
        let second = take("second");
        compacting.join().expect("compaction");
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        vec![first, second]
    });
    for (snapshot, before) in snapshots {
        let mut restored = Daemon::prepared();
        restore(&snapshot, &restored.store).succeeded();
        restored.run();
        let mut conn = restored.conn();
        for (writer, (before, sent)) in before.iter().zip(&acked).enumerate() {
            let all = list_all(&mut conn, &format!("load-{writer}"), 1000);
            let there = ids(&json!(all));
            let prefix: Vec<String> = (0..there.len()).map(|i| format!("{i:06}")).collect();
            assert_eq!(there, prefix, "writer {writer}: a prefix, without a hole");
            assert!(
                (*before..=sent.load(Ordering::SeqCst)).contains(&there.len()),
                "writer {writer}: {before} acknowledged before, {} there",
                there.len()
            );
            // The last batch is whole: the next memory of the origin belongs to another one.
            let batch = all.last().expect("not empty")["meta"]["batch"].clone();
            let origin = daemon.conn().ok(
                "memory.get",
                json!({"space": format!("load-{writer}"), "ids": [format!("{:06}", there.len())]}),
            );
            assert_ne!(origin["items"][0]["meta"]["batch"], batch, "writer {writer}: half a batch");
        }
        let socket = restored.socket.to_str().expect("a plain path");
        let verified = program(["verify", "--json", "--socket", socket]).succeeded().json();
        assert_eq!(verified["problems"], json!([]), "{verified}");
        conn.ok(
            "memory.add",
            json!({"space": "load-0", "items": [{"text": "more", "vector": vector(1)}]}),
        );
    }
}

#[test]
fn restoring_is_whole_private_and_says_what_it_did() {
    let (_, snapshot, held) = original();
    for existing in [false, true] {
        let mut daemon = Daemon::prepared();
        if existing {
            fs::create_dir(&daemon.store).unwrap();
        }
        let ran = restore(snapshot, &daemon.store).succeeded();
        let report = ran.json();
        let files = fs::read_dir(snapshot).unwrap().count();
        assert!(report.to_string().contains(&files.to_string()), "how many files: {report}");
        assert!(!daemon.socket.exists(), "no daemon is started");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&daemon.store), 0o700);
        for entry in fs::read_dir(&daemon.store).unwrap().flatten() {
            assert_eq!(mode(&entry.path()) & 0o077, 0, "{}", entry.path().display());
        }
        daemon.run();
        let mut conn = daemon.conn();
        assert_eq!(everything(&mut conn), *held);
        assert_eq!(conn.ok("admin.verify", json!({}))["problems"], json!([]));
    }
    let text = program([
        "restore".as_ref(),
        snapshot.as_os_str(),
        "--store".as_ref(),
        Daemon::prepared().dir.path().join("x").as_os_str(),
    ])
    .succeeded();
    assert!(text.stdout.lines().count() >= 1, "a person can read what was copied: {text:?}");
}

/// Everything that was written below `folder` was synced later, and so were the names in it.
#[track_caller]
fn assert_durable(calls: &[Call], folder: &str) {
    let in_folder = |c: &&Call| c.path.starts_with(&format!("{folder}/"));
    let synced = |path: &str, after: usize| {
        calls.iter().any(|c| c.op == "sync" && c.path == path && c.begun > after && c.result == 0)
    };
    // A file may be written under another name than it keeps.
    let renamed: Vec<&Call> = calls.iter().filter(in_folder).filter(|c| c.op == "rename").collect();
    let writes: Vec<&Call> =
        calls.iter().filter(in_folder).filter(|c| c.op == "write" && c.result > 0).collect();
    assert!(!writes.is_empty(), "no write below {folder} was noted");
    for write in &writes {
        assert!(
            synced(&write.path, write.begun),
            "{} was written and never synced; renames: {renamed:?}",
            write.path
        );
    }
    let last =
        calls.iter().filter(in_folder).filter(|c| ["rename", "create"].contains(&c.op.as_str()));
    let last = last
        .filter(|c| c.result >= 0 && !c.path.ends_with("LOCK"))
        .map(|c| c.begun)
        .max()
        .expect("a name was made");
    assert!(synced(folder, last), "the names in {folder} were not synced");
    let parent = Path::new(folder).parent().unwrap().to_str().unwrap();
    let made = calls.iter().find(|c| c.op == "create" && c.path == folder && c.result >= 0);
    assert!(made.is_none_or(|m| synced(parent, m.begun)), "the name of {folder} was not synced");
}

#[test]
fn a_restored_store_and_a_snapshot_are_on_the_disk_when_that_is_said() {
    let (_, snapshot, _) = original();
    let mut daemon = Daemon::prepared();
    let disk = Disk::under(&mut daemon);
    let output = disk.program(&[
        "restore",
        snapshot.to_str().unwrap(),
        "--store",
        daemon.store.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_durable(&disk.calls(), daemon.store.to_str().unwrap());
    daemon.run();
    let mut conn = daemon.conn();
    let taken = daemon.store.with_file_name("taken");
    conn.ok(
        "memory.add",
        json!({"space": "more", "items": [{"text": "more", "vector": vector(1)}]}),
    );
    conn.ok("admin.snapshot", json!({"path": taken}));
    assert_durable(&disk.calls(), taken.to_str().unwrap());
    // A place that is taken is refused and left alone.
    let names = fs::read_dir(&taken).unwrap().count();
    let e = conn.err("admin.snapshot", json!({"path": taken}));
    assert!(e.message.contains("taken"), "the place is named: {e:?}");
    assert_eq!(fs::read_dir(&taken).unwrap().count(), names);
}

#[test]
fn a_damaged_snapshot_is_refused_and_nothing_is_left() {
    let (_, snapshot, _) = original();
    let folder = tempfile::tempdir().unwrap();
    let (copy, target) = (folder.path().join("copy"), folder.path().join("target"));
    fs::create_dir(&copy).unwrap();
    let files: Vec<String> = fs::read_dir(snapshot)
        .unwrap()
        .flatten()
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    for file in &files {
        fs::copy(snapshot.join(file), copy.join(file)).unwrap();
    }
    let refused = |what: &str, file: &str| {
        let ran = restore(&copy, &target).failed();
        assert_eq!(ran.code, Some(9), "{what} of {file}: {ran:?}");
        assert!(is_bare(&target), "{what} of {file}: something is left");
        ran
    };
    let mut rng = Rng::new(11);
    for file in files.iter().filter(|f| *f != "LOCK") {
        let (path, bytes) = (copy.join(file), fs::read(snapshot.join(file)).unwrap());
        let n = bytes.len();
        let mut places = vec![0, 8, 12, 16, n / 2, n - 9, n - 1];
        places.extend((0..9).map(|_| rng.below(n)));
        for at in places {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << rng.below(8);
            fs::write(&path, damaged).unwrap();
            let ran = refused(&format!("a flipped bit at {at}"), file);
            assert!(ran.stderr.contains(file.as_str()), "the file is named: {ran:?}");
        }
        for (what, damaged) in [
            ("the end", bytes[..n - 1].to_vec()),
            ("all", Vec::new()),
            ("a byte more", [&bytes[..], b"\0"].concat()),
        ] {
            fs::write(&path, damaged).unwrap();
            refused(what, file);
        }
        fs::remove_file(&path).unwrap();
        refused("the absence", file);
        fs::write(&path, bytes).unwrap();
    }
    restore(&copy, &target).succeeded();
}

#[test]
fn a_target_that_is_taken_is_refused_and_left_alone() {
    let (origin, snapshot, _) = original();
    let folder = tempfile::tempdir().unwrap();
    let (busy, file) = (folder.path().join("busy"), folder.path().join("file"));
    fs::create_dir(&busy).unwrap();
    fs::write(busy.join("precious"), "mine").unwrap();
    fs::write(&file, "mine").unwrap();
    for taken in [&busy, &file, snapshot, &origin.store] {
        let ran = restore(snapshot, taken).failed();
        assert_eq!(ran.code, Some(6), "{}: {ran:?}", taken.display());
    }
    assert_eq!(fs::read_dir(&busy).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(busy.join("precious")).unwrap(), "mine");
    let daemon = Daemon::start();
    let ran = restore(snapshot, &daemon.store).failed();
    assert_eq!(ran.code, Some(6), "in use: {ran:?}");
    assert!(healthy_and_empty(&daemon));
    // What is no snapshot is none.
    let (missing, empty) = (folder.path().join("missing"), folder.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    for from in [&missing, &empty, &busy, &file] {
        let target = folder.path().join("target");
        restore(from, &target).failed();
        assert!(is_bare(&target), "from {}", from.display());
    }
}

fn healthy_and_empty(daemon: &Daemon) -> bool {
    everything(&mut daemon.conn()).is_empty()
}

#[test]
fn a_restore_that_cannot_be_written_leaves_nothing_and_can_be_repeated() {
    let (_, snapshot, held) = original();
    let mut daemon = Daemon::prepared();
    let disk = Disk::under(&mut daemon);
    let (from, to) = (snapshot.to_str().unwrap(), daemon.store.to_str().unwrap().to_owned());
    for (op, errno) in
        [("grow", ENOSPC), ("write", EIO), ("sync", EIO), ("create", ENOSPC), ("rename", EIO)]
    {
        for n in 0..2 {
            disk.rule(op, "store/", Fate::Fails(errno), When::Nth(n));
            let output = disk.program(&["restore", from, "--store", &to]);
            disk.heal();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains("panicked"), "{op} {n}: {said}");
            // The snapshot may need fewer such calls.
            if output.status.success() {
                assert!(
                    n > 0 || op == "rename",
                    "{op} failed and it says that all is well: {said}"
                );
                fs::remove_dir_all(&daemon.store).unwrap();
                continue;
            }
            assert!(output.status.code().is_some(), "{op} {n}: {said}");
            assert!(is_bare(&daemon.store), "{op} {n}: half a store is left: {said}");
        }
    }
    restore(snapshot, &daemon.store).succeeded();
    daemon.run();
    assert_eq!(everything(&mut daemon.conn()), *held);
}
