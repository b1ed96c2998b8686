//! A disk that fails under the running daemon: failed writes and syncs of the log, a full disk, short writes and
//! interruptions, and reads that fail at the start.
//!
//! Invariant checked: no answer says more than the disk has; an add whose fate is unknown is wholly there or wholly
//! not; after the fault everything acknowledged is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Conn, RpcError};
use crate::daemon::Daemon;
use crate::data::{ids, list_all, vector};
use crate::faulty_disk::{Disk, EINTR, EIO, ENOSPC, EROFS, Fate, When};

const SPACE: &str = "failing";
/// A poisoned store ends the daemon; more than this is a daemon that lingers.
const END: Duration = Duration::from_secs(20);
const OUTCOME_UNKNOWN: i64 = 1012;
const DISK_FULL: i64 = 1011;

fn daemon_on_disk(args: &[&str]) -> (Daemon, Disk) {
    let mut daemon = Daemon::prepared();
    daemon.args.extend(args.iter().map(|a| (*a).to_owned()));
    let disk = Disk::under(&mut daemon);
    daemon.run();
    (daemon, disk)
}

/// A batch of three whose ids begin with `name`.
fn batch(name: &str) -> Value {
    let item = |i: usize| json!({"id": format!("{name}.{i}"), "text": format!("{name} {i}"), "vector": vector(i as u64)});
    json!({"space": SPACE, "items": (0..3).map(item).collect::<Vec<_>>()})
}

/// How many memories of each batch are there.
fn batches(conn: &mut Conn) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for id in ids(&json!(list_all(conn, SPACE, 1000))) {
        *count.entry(id.split('.').next().expect("a name").to_owned()).or_insert(0) += 1;
    }
    count
}

/// What became of the batches that were sent.
#[derive(Default, Debug)]
struct Sent {
    acked: Vec<String>,
    failed: Vec<(String, RpcError)>,
    unanswered: Vec<String>,
}

/// Four clients add until the service says no or goes away.
fn add_until_it_ends(daemon: &Daemon, label: &str) -> Sent {
    let client = |number: usize| {
        let mut conn = daemon.conn();
        move || {
            let mut sent = Sent::default();
            for n in 0.. {
                let name = format!("{label}-{number}-{n}");
                match conn.try_call("memory.add", &batch(&name)) {
                    Ok(Ok(_)) => sent.acked.push(name),
                    // Go on: nothing that follows an unknown outcome may be acknowledged.
                    Ok(Err(e)) => sent.failed.push((name, e)),
                    Err(_) => {
                        sent.unanswered.push(name);
                        return sent;
                    }
                }
            }
            sent
        }
    };
    let mut all = Sent::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|i| scope.spawn(client(i))).collect();
        for client in clients {
            let sent = client.join().expect("a client");
            all.acked.extend(sent.acked);
            all.failed.extend(sent.failed);
            all.unanswered.extend(sent.unanswered);
        }
    });
    all
}

/// After a restart on a sound disk.
#[track_caller]
fn assert_kept(daemon: &Daemon, sent: &Sent) {
    let mut conn = daemon.conn();
    let there = batches(&mut conn);
    for name in &sent.acked {
        assert_eq!(there.get(name), Some(&3), "{name} was acknowledged");
    }
    for name in sent.failed.iter().map(|(n, _)| n).chain(&sent.unanswered) {
        assert!(matches!(there.get(name), None | Some(3)), "{name} is half there: {there:?}");
    }
    conn.ok("admin.verify", json!({}));
    conn.ok("memory.add", batch("afterwards"));
}

#[test]
fn a_failed_write_or_sync_of_the_log_answers_unknown_and_ends_the_daemon() {
    let cases = [("sync", EIO), ("sync", ENOSPC), ("write", EIO), ("write", EROFS)];
    thread::scope(|scope| {
        for (op, errno) in cases {
            scope.spawn(move || a_log_failure(op, errno));
        }
    });
}

fn a_log_failure(op: &str, errno: i32) {
    let what = format!("{op} fails with {errno}");
    let (mut daemon, disk) = daemon_on_disk(&[]);
    for n in 0..5 {
        daemon.conn().ok("memory.add", batch(&format!("before-{n}")));
    }
    // The failure comes once, in the middle of the load; asking again must not make up for it.
    disk.rule(op, ".log$", Fate::Fails(errno), When::Nth(20));
    let sent = add_until_it_ends(&daemon, "during");
    let status = daemon.wait_exit(END);
    assert_eq!(status.code(), Some(11), "{what}: {}", daemon.log_tail());
    assert!(!sent.failed.is_empty(), "{what}: those who waited are answered: {sent:?}");
    for (name, e) in &sent.failed {
        assert!([OUTCOME_UNKNOWN, 1013].contains(&e.code), "{what}: {name} was answered {e:?}");
    }
    assert!(sent.failed.iter().any(|(_, e)| e.code == OUTCOME_UNKNOWN), "{what}: {sent:?}");
    assert!(daemon.log_tail().len() > 10, "{what}: the log says why");
    disk.heal();
    daemon.run();
    assert_kept(&daemon, &sent);
    let there = batches(&mut daemon.conn());
    assert!((0..5).all(|n| there.get(&format!("before-{n}")) == Some(&3)), "{what}: {there:?}");
}

/// In these levels nobody waits for the sync that fails, so ending is all that tells.
#[test]
fn a_sync_that_fails_behind_an_answer_ends_the_daemon_too() {
    for (level, asked) in [("buffered", false), ("manual", true)] {
        let (mut daemon, disk) = daemon_on_disk(&["--durability", level]);
        let mut conn = daemon.conn();
        conn.ok("memory.add", batch("first"));
        conn.ok("admin.sync", json!({}));
        disk.rule("sync", ".log$", Fate::Fails(EIO), When::Always);
        let second = conn.try_call("memory.add", &batch("second")).expect("an answer");
        assert!(second.is_ok() || level == "buffered", "{level}: {second:?}");
        if asked {
            let e = conn.err("admin.sync", json!({}));
            assert_eq!(e.code, OUTCOME_UNKNOWN, "{level}: {e:?}");
        }
        assert_eq!(daemon.wait_exit(END).code(), Some(11), "{level}: {}", daemon.log_tail());
        disk.heal();
        daemon.run();
        let there = batches(&mut daemon.conn());
        assert_eq!(there.get("first"), Some(&3), "{level}");
        // The process alone ended, so what was answered is with the operating system.
        let second = second.is_ok();
        assert!(!second || there.get("second") == Some(&3), "{level}: {there:?}");
    }
}

/// The last sync of all is that of the stop: a clean exit would say that everything is on the disk.
#[test]
fn a_stop_whose_sync_fails_is_no_clean_stop() {
    let (mut daemon, disk) = daemon_on_disk(&["--durability", "manual"]);
    daemon.conn().ok("memory.add", batch("first"));
    disk.rule("sync", ".log$", Fate::Fails(EIO), When::Always);
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait_exit(END).code(), Some(11), "{}", daemon.log_tail());
    disk.heal();
    daemon.run();
    assert_eq!(batches(&mut daemon.conn()).get("first"), Some(&3));
}

/// Texts that fill a log of 32 MiB soon, with vectors of their own.
fn bulky(name: &str) -> Value {
    let text = "0123456789abcdef".repeat(15_000);
    let item = |i: usize| json!({"id": format!("{name}.{i}"), "text": format!("{name} {i} {text}"), "vector": vector(i as u64)});
    json!({"space": SPACE, "items": (0..10).map(item).collect::<Vec<_>>()})
}

#[test]
fn on_a_full_disk_adds_are_refused_reads_go_on_and_space_mends_it() {
    let (mut daemon, disk) = daemon_on_disk(&[]);
    let mut conn = daemon.conn();
    conn.ok("memory.add", bulky("before"));
    // As long as each line of the answers is short, `get` by ids is what shows presence.
    let there = |conn: &mut Conn, name: &str| -> usize {
        let wanted: Vec<String> = (0..10).map(|i| format!("{name}.{i}")).collect();
        let got = conn.ok("memory.get", json!({"space": SPACE, "ids": wanted}));
        got["items"].as_array().expect("items").iter().filter(|m| !m.is_null()).count()
    };
    let stats = |conn: &mut Conn| conn.ok("space.stats", json!({"space": SPACE}));
    disk.rule("grow", "*", Fate::Fails(ENOSPC), When::Always);
    let (mut acked, mut refused) = (vec!["before".to_owned()], Vec::new());
    // The log in use and one kept ready take 64 MiB; this is 144.
    for n in 0..60 {
        let name = format!("full-{n}");
        match conn.call("memory.add", &bulky(&name)) {
            Ok(_) => acked.push(name),
            Err(e) => {
                assert_eq!(e.code, DISK_FULL, "{name}: {e:?}");
                refused.push(name);
            }
        }
        if refused.len() == 3 {
            break;
        }
    }
    assert_eq!(refused.len(), 3, "{} adds were taken on a full disk", acked.len());
    let before = stats(&mut conn);
    for name in &refused {
        assert_eq!(there(&mut conn, name), 0, "{name} was refused");
    }
    let hits = conn.ok("memory.search", json!({"space": SPACE, "vector": vector(3), "k": 40}));
    let hits = ids(&hits["hits"]);
    assert!(
        !hits.is_empty() && hits.iter().all(|id| !refused.contains(&id[..id.len() - 2].to_owned())),
        "{hits:?}"
    );
    assert_eq!(there(&mut conn, &acked[acked.len() - 1]), 10);
    conn.ok("admin.health", json!({}));
    assert_eq!(stats(&mut conn), before, "a refused add leaves no trace");
    disk.heal();
    let end = Instant::now() + Duration::from_secs(20);
    // It may need a moment, not a restart.
    while let Err(e) = conn.call("memory.add", &bulky("mended")) {
        assert_eq!(e.code, DISK_FULL, "{e:?}");
        assert!(Instant::now() < end, "there is space again, and adds are refused");
        thread::sleep(Duration::from_millis(100));
    }
    acked.push("mended".to_owned());
    // What was refused may be asked for again.
    conn.ok("memory.add", bulky(&refused[0]));
    acked.push(refused.remove(0));
    daemon.kill9();
    daemon.run();
    let mut conn = daemon.conn();
    for name in &acked {
        assert_eq!(there(&mut conn, name), 10, "{name} was acknowledged");
    }
    for name in &refused {
        assert_eq!(there(&mut conn, name), 0, "{name} was refused");
    }
    conn.ok("admin.verify", json!({}));
}

/// Compaction and snapshots need space too, and may fail; nothing else may.
#[test]
fn a_full_disk_fails_compaction_and_snapshot_alone() {
    let (mut daemon, disk) = daemon_on_disk(&[]);
    let mut conn = daemon.conn();
    (0..10).for_each(|n| drop(conn.ok("memory.add", batch(&format!("kept-{n}")))));
    let snapshot = disk_path(&daemon, "snapshot");
    disk.rule("grow", "segment-", Fate::Fails(ENOSPC), When::Always);
    disk.rule("grow", "manifest-", Fate::Fails(ENOSPC), When::Always);
    for (method, params) in
        [("admin.compact", json!({})), ("admin.snapshot", json!({"path": snapshot}))]
    {
        let e = match conn.call(method, &params) {
            Err(e) => e,
            Ok(answer) => panic!("{method} succeeded on a full disk: {answer}"),
        };
        assert!([DISK_FULL, 1017].contains(&e.code), "{method}: {e:?}");
        conn.ok("memory.add", batch(&format!("during-{}", &method[6..])));
    }
    disk.heal();
    conn.ok("admin.compact", json!({}));
    // The place of the failed snapshot can be used again, or is named as what is in the way.
    let second = disk_path(&daemon, "second");
    conn.ok("admin.snapshot", json!({"path": second}));
    daemon.kill9();
    daemon.run();
    assert_eq!(batches(&mut daemon.conn()).len(), 12);
    daemon.conn().ok("admin.verify", json!({}));
}

fn disk_path(daemon: &Daemon, name: &str) -> std::path::PathBuf {
    daemon.store.parent().expect("a folder").join(name)
}

#[test]
fn interruptions_and_short_writes_change_nothing() {
    let mut daemon = Daemon::prepared();
    let disk = Disk::under(&mut daemon);
    // From the first start on: the making of the store, the log, segments, manifests and snapshots.
    for op in ["write", "sync", "allocate"] {
        disk.rule(op, "*", Fate::Fails(EINTR), When::Every(3));
    }
    disk.rule("write", "*", Fate::Short, When::Every(2));
    disk.rule("read", "*", Fate::Fails(EINTR), When::Every(2));
    disk.rule("read", "*", Fate::Short, When::Every(3));
    daemon.run();
    let mut conn = daemon.conn();
    for part in 0..3 {
        (0..15).for_each(|n| drop(conn.ok("memory.add", batch(&format!("part-{part}-{n}")))));
        conn.ok("admin.compact", json!({}));
    }
    conn.ok("admin.snapshot", json!({"path": disk_path(&daemon, "snapshot")}));
    let before = list_all(&mut conn, SPACE, 1000);
    assert_eq!(before.len(), 3 * 15 * 3);
    daemon.kill9();
    daemon.run();
    assert_eq!(list_all(&mut daemon.conn(), SPACE, 1000), before);
    daemon.conn().ok("admin.verify", json!({}));
    let shown = disk.calls().iter().filter(|c| c.result < 0).count();
    assert!(shown > 10, "only {shown} calls failed: the disk was sound");
}

/// The names and contents of a folder's files.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |e: fs::DirEntry| {
        (e.file_name().into_string().expect("a name"), fs::read(e.path()).expect("a file"))
    };
    fs::read_dir(folder).expect("a folder").flatten().map(read).collect()
}

#[test]
fn a_disk_that_cannot_be_read_at_the_start_is_an_error_and_harms_nothing() {
    let (mut daemon, disk) = daemon_on_disk(&[]);
    let mut conn = daemon.conn();
    (0..5).for_each(|n| drop(conn.ok("memory.add", batch(&format!("sealed-{n}")))));
    conn.ok("admin.compact", json!({}));
    (0..5).for_each(|n| drop(conn.ok("memory.add", batch(&format!("log-{n}")))));
    daemon.kill9();
    let before = contents(&daemon.store);
    for part in ["wal-", "manifest-"] {
        disk.rule("read", part, Fate::Fails(EIO), When::Always);
        let status = daemon.try_run(Duration::from_secs(30)).expect_err("it cannot be read");
        let said = daemon.log_tail();
        assert!(status.code().is_some_and(|c| c != 0), "{part}: {status} {said}");
        assert!(said.contains(part), "what could not be read is named: {said}");
        assert!(!said.contains("panicked"), "{said}");
        disk.heal();
        assert!(contents(&daemon.store) == before, "{part}: the store was changed");
    }
    daemon.run();
    assert_eq!(batches(&mut daemon.conn()).len(), 10);
}

/// Recovery writes too. Wherever that fails, the next start has what the first one had.
#[test]
fn a_disk_that_fails_during_recovery_loses_nothing() {
    let (mut daemon, disk) = daemon_on_disk(&[]);
    let mut conn = daemon.conn();
    (0..5).for_each(|n| drop(conn.ok("memory.add", batch(&format!("sealed-{n}")))));
    conn.ok("admin.compact", json!({}));
    (0..5).for_each(|n| drop(conn.ok("memory.add", batch(&format!("log-{n}")))));
    daemon.kill9();
    let faults = [
        ("write", "*", ENOSPC),
        ("sync", "*", EIO),
        ("rename", "manifest-", EIO),
        ("rename", "wal-", EIO),
        ("create", "*", EROFS),
    ];
    for (op, part, errno) in faults {
        disk.rule(op, part, Fate::Fails(errno), When::Always);
        let status = daemon.try_run(Duration::from_secs(30)).expect_err("it cannot recover");
        assert!(status.code().is_some_and(|c| c != 0), "{op} {part}: {}", daemon.log_tail());
        assert!(!daemon.log_tail().contains("panicked"), "{op}: {}", daemon.log_tail());
        disk.heal();
    }
    daemon.run();
    assert_eq!(batches(&mut daemon.conn()).len(), 10);
    daemon.conn().ok("admin.verify", json!({}));
}
