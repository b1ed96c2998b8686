//! `serve --durability`: what each level promises, held against what the program really wrote and synced.
//!
//! Invariant checked: in `sync` an answer never comes before a sync that covers its bytes; in `buffered` that sync
//! follows soon; in `manual` it waits for `admin.sync`. In every level kill -9 loses nothing acknowledged, and a power
//! cut takes nothing that was synced and leaves a store that opens.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::program;
use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{eventually, list_all, vector};
use crate::faulty_disk::{Call, Disk, Fate, When, logs, synced_at};

/// `buffered` syncs after 50 ms; the rest is for a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(5);

fn daemon_at(level: &str) -> (Daemon, Disk) {
    let mut daemon = Daemon::prepared();
    // What one gets without asking is the safe one.
    if level != "sync" {
        daemon.args.extend(["--durability".to_owned(), level.to_owned()]);
    }
    let disk = Disk::under(&mut daemon);
    daemon.run();
    (daemon, disk)
}

fn text(id: &str) -> String {
    format!("the words of {id} and of no other.")
}

fn item(id: &str) -> Value {
    json!({"id": id, "text": text(id), "vector": vector(id.len() as u64)})
}

#[track_caller]
fn put(conn: &mut Conn, id: &str) {
    conn.ok("memory.add", json!({"space": "levels", "items": [item(id)]}));
}

#[track_caller]
fn held(conn: &mut Conn) -> Vec<String> {
    let all = list_all(conn, "levels", 1000);
    all.iter().map(|m| m["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn the_level_is_shown_and_a_wrong_one_is_a_usage_error() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.conn().ok("admin.status", json!({}))["store"]["durability"], "sync");
    assert!(daemon.terminate().success());
    daemon.env.push(("FLASHBULB_DURABILITY", "buffered".into()));
    daemon.run();
    assert_eq!(daemon.conn().ok("admin.status", json!({}))["store"]["durability"], "buffered");
    assert!(daemon.terminate().success());
    // What is said on the command line counts more.
    daemon.args.extend(["--durability".to_owned(), "manual".to_owned()]);
    daemon.run();
    assert_eq!(daemon.conn().ok("admin.status", json!({}))["store"]["durability"], "manual");
    daemon.kill9();
    for wrong in ["", "SYNC!", "none", "0"] {
        daemon.args = vec!["--durability".to_owned(), wrong.to_owned()];
        daemon.spawn();
        assert_eq!(daemon.wait_exit(SOON).code(), Some(2), "{wrong:?}: {}", daemon.log_tail());
        assert!(daemon.log_tail().contains("durability"), "{}", daemon.log_tail());
    }
    daemon.args.clear();
    daemon.env = vec![("FLASHBULB_DURABILITY", "everything".into())];
    daemon.spawn();
    assert_eq!(daemon.wait_exit(SOON).code(), Some(2), "{}", daemon.log_tail());
}

#[test]
fn with_sync_every_answer_comes_after_a_sync_of_its_bytes() {
    let (mut daemon, disk) = daemon_at("sync");
    // A slow sync gives an answer that does not wait for it the time to be early.
    disk.rule("sync", "wal-", Fate::WaitsMs(15), When::Always);
    let write = |writer: usize| {
        let (mut conn, disk) = (daemon.conn(), &disk);
        move || -> Vec<(String, usize)> {
            let add = |n: usize| {
                let id = format!("w{writer}-{n}-id");
                put(&mut conn, &id);
                (id, disk.now())
            };
            (0..12).map(add).collect()
        }
    };
    let answered: Vec<(String, usize)> = thread::scope(|scope| {
        let writers: Vec<_> = (0..8).map(|w| scope.spawn(write(w))).collect();
        writers.into_iter().flat_map(|w| w.join().expect("a writer")).collect()
    });
    let (calls, logs) = (disk.calls(), logs(&daemon.store));
    for (id, answered) in &answered {
        let synced = synced_at(&calls, &logs, &text(id));
        assert!(
            synced.is_some_and(|s| s < *answered),
            "{id} was answered at {answered} and synced at {synced:?}"
        );
    }
    daemon.kill9();
    daemon.run();
    assert_eq!(held(&mut daemon.conn()).len(), answered.len());
}

#[test]
fn with_sync_deletes_updates_and_drops_wait_too() {
    let (daemon, disk) = daemon_at("sync");
    let mut conn = daemon.conn();
    ["a-id", "b-id", "c-id"].iter().for_each(|id| put(&mut conn, id));
    disk.rule("sync", ".log$", Fate::WaitsMs(30), When::Always);
    let changes = [
        ("memory.delete", json!({"space": "levels", "ids": ["a-id"]})),
        ("memory.update", json!({"space": "levels", "id": "b-id", "patch": {"role": "x"}})),
        (
            "memory.add",
            json!({"space": "levels", "items": [item("c-id")], "on_conflict": "replace"}),
        ),
        ("memory.delete", json!({"space": "levels", "filter": {"role": {"eq": "x"}}})),
        ("space.drop", json!({"space": "levels"})),
    ];
    for (method, params) in changes {
        // What the log writes when it falls idle is over by then.
        thread::sleep(Duration::from_millis(250));
        let before = disk.now();
        conn.ok(method, params);
        let after = disk.now();
        let calls = disk.calls();
        let log = |c: &&Call, op: &str| c.op == op && c.path.ends_with(".log") && c.begun >= before;
        let write = calls.iter().find(|c| log(c, "write")).and_then(|c| c.ended);
        let write = write.unwrap_or_else(|| panic!("{method} wrote nothing to the log"));
        let synced = calls.iter().filter(|c| log(c, "sync") && c.begun > write);
        let synced = synced.filter_map(|c| c.ended).min();
        assert!(
            synced.is_some_and(|s| s < after),
            "{method}: answered at {after}, synced at {synced:?}"
        );
    }
}

#[test]
fn with_buffered_an_answer_does_not_wait_and_the_sync_follows() {
    let (mut daemon, disk) = daemon_at("buffered");
    let mut conn = daemon.conn();
    put(&mut conn, "first-id");
    eventually("the first add is synced", SOON, || is_synced(&daemon, &disk, "first-id"));
    disk.rule("sync", "wal-", Fate::WaitsMs(400), When::Always);
    let ids: Vec<String> = (0..10).map(|n| format!("b{n}-id")).collect();
    let mut early = 0;
    for id in &ids {
        put(&mut conn, id);
        early += usize::from(!is_synced(&daemon, &disk, id));
    }
    assert!(early > 0, "every one of ten answers waited for a sync of 400 ms");
    disk.heal();
    for id in &ids {
        eventually(&format!("{id} is synced by itself"), SOON, || is_synced(&daemon, &disk, id));
    }
    // Again after a pause: the clock must not have run for the first writes alone.
    thread::sleep(Duration::from_millis(150));
    put(&mut conn, "late-id");
    eventually("a later add is synced too", SOON, || is_synced(&daemon, &disk, "late-id"));
    put(&mut conn, "last-id");
    let all = held(&mut conn);
    daemon.kill9();
    daemon.run();
    assert_eq!(held(&mut daemon.conn()), all);
}

fn is_synced(daemon: &Daemon, disk: &Disk, id: &str) -> bool {
    synced_at(&disk.calls(), &logs(&daemon.store), &text(id)).is_some()
}

#[test]
fn with_manual_nothing_is_synced_before_it_is_asked_for() {
    let (mut daemon, disk) = daemon_at("manual");
    let mut conn = daemon.conn();
    for n in 0..5 {
        put(&mut conn, &format!("m{n}-id"));
    }
    thread::sleep(Duration::from_millis(600));
    let early: Vec<usize> =
        (0..5).filter(|n| is_synced(&daemon, &disk, &format!("m{n}-id"))).collect();
    assert!(early.is_empty(), "synced although nobody asked: {early:?}");
    let answer = conn.ok("admin.sync", json!({}));
    let now = disk.now();
    let (calls, files) = (disk.calls(), logs(&daemon.store));
    for n in 0..5 {
        let synced = synced_at(&calls, &files, &text(&format!("m{n}-id")));
        assert!(synced.is_some_and(|s| s < now), "m{n} at {synced:?}, answered before {now}");
    }
    assert_covers(&mut conn, &answer);
    // At close too.
    put(&mut conn, "closing-id");
    let files = logs(&daemon.store);
    assert!(daemon.terminate().success(), "{}", daemon.log_tail());
    assert!(
        synced_at(&disk.calls(), &files, &text("closing-id")).is_some(),
        "a clean stop syncs what was written"
    );
    daemon.run();
    assert_eq!(held(&mut daemon.conn()).len(), 6);
}

/// What `admin.sync` answered covers everything answered before, and status agrees.
#[track_caller]
fn assert_covers(conn: &mut Conn, answer: &Value) {
    let durable = answer["durable_lsn"].as_u64().unwrap_or_else(|| panic!("durable_lsn: {answer}"));
    let store = conn.ok("admin.status", json!({}))["store"].clone();
    assert!(store["durable_lsn"].as_u64() >= Some(durable), "{store} after {answer}");
    assert!(durable > 0, "{answer}");
}

#[test]
fn sync_answers_in_every_level_and_from_the_command_line() {
    for level in ["sync", "buffered", "manual"] {
        let (daemon, disk) = daemon_at(level);
        let mut conn = daemon.conn();
        let mut last = 0;
        for n in 0..3 {
            let id = format!("s{n}-id");
            put(&mut conn, &id);
            let socket = daemon.socket.to_str().expect("a plain path");
            let answer = if n == 1 {
                program(["sync", "--json", "--socket", socket]).succeeded().json()
            } else {
                conn.ok("admin.sync", json!({}))
            };
            assert!(is_synced(&daemon, &disk, &id), "{level}: {id} after {answer}");
            assert_covers(&mut conn, &answer);
            let durable = answer["durable_lsn"].as_u64().expect("durable_lsn");
            assert!(durable > last, "{level}: an add between moves it on: {last}, {answer}");
            last = durable;
        }
        // With nothing new to sync it answers all the same.
        let again = conn.ok("admin.sync", json!({}));
        assert!(again["durable_lsn"].as_u64() >= Some(last), "{level}: {again}");
        conn.err("admin.sync", json!({"space": "levels"})).assert_invalid("space");
    }
}

#[test]
fn kill_9_loses_nothing_acknowledged_in_any_level() {
    for level in ["buffered", "manual"] {
        let (mut daemon, _disk) = daemon_at(level);
        for round in 0..2 {
            let writers = 4;
            let acked: Vec<Vec<String>> = thread::scope(|scope| {
                let run = |writer: usize| {
                    let mut conn = daemon.conn();
                    move || {
                        let mut acked = Vec::new();
                        for n in 0.. {
                            let id = format!("k{round}-{writer}-{n}");
                            let params = json!({"space": "levels", "items": [item(&id)]});
                            match conn.try_call("memory.add", &params) {
                                Ok(answer) => drop(answer.expect("an add")),
                                Err(_) => break,
                            }
                            acked.push(id);
                        }
                        acked
                    }
                };
                let threads: Vec<_> = (0..writers).map(|w| scope.spawn(run(w))).collect();
                thread::sleep(Duration::from_millis(200));
                daemon.kill9();
                threads.into_iter().map(|t| t.join().expect("a writer")).collect()
            });
            daemon.run();
            let there = held(&mut daemon.conn());
            for ids in &acked {
                assert!(!ids.is_empty(), "a writer was never answered");
                let lost: Vec<&String> = ids.iter().filter(|id| !there.contains(id)).collect();
                assert!(lost.is_empty(), "{level}: acknowledged and lost: {lost:?}");
            }
        }
    }
}

/// Where in the log the text of `id` stands.
fn place(store: &Path, id: &str) -> (String, usize) {
    let held = |(name, bytes): (String, Vec<u8>)| {
        Some((name, memchr::memmem::find(&bytes, text(id).as_bytes())?))
    };
    logs(store).into_iter().find_map(held).expect("the log has the text")
}

fn wipe(store: &Path, name: &str, range: Range<usize>) {
    let mut bytes = fs::read(store.join(name)).expect("the log");
    bytes[range].fill(0);
    fs::write(store.join(name), bytes).expect("the log");
}

/// A power cut may keep a later page and drop an earlier one, where nothing was synced.
#[test]
fn a_power_cut_in_manual_takes_unsynced_adds_alone_and_the_store_opens() {
    let (mut daemon, _disk) = daemon_at("manual");
    let mut conn = daemon.conn();
    (0..5).for_each(|n| put(&mut conn, &format!("safe-{n}-id")));
    conn.ok("admin.sync", json!({}));
    let loose: Vec<String> = (0..40).map(|n| format!("loose-{n:02}-id")).collect();
    loose.iter().for_each(|id| put(&mut conn, id));
    // A pause: what is written when all is quiet must not claim a sync that never was.
    thread::sleep(Duration::from_millis(300));
    daemon.kill9();
    let (name, at) = place(&daemon.store, "loose-20-id");
    let sector = at / 512 * 512;
    wipe(&daemon.store, &name, sector..sector + 512);
    daemon.run();
    let there = held(&mut daemon.conn());
    let kept = there.len() - 5;
    assert!(
        (0..5).all(|n| there[n] == format!("safe-{n}-id")),
        "what was synced is there: {there:?}"
    );
    assert!(there[5..] == loose[..kept], "the rest is a prefix: {there:?}");
    assert!((17..=20).contains(&kept), "and all of it in front of the hole: {kept}");
    daemon.conn().ok("admin.verify", json!({}));
}

/// The same hole where a sync had covered it is no torn write, and must not be passed off as one.
#[test]
fn a_hole_in_what_was_synced_is_damage_in_every_level() {
    for level in ["sync", "buffered", "manual"] {
        let (mut daemon, _disk) = daemon_at(level);
        let mut conn = daemon.conn();
        (0..20).for_each(|n| put(&mut conn, &format!("old-{n:02}-id")));
        conn.ok("admin.sync", json!({}));
        (0..5).for_each(|n| put(&mut conn, &format!("new-{n}-id")));
        daemon.kill9();
        let (name, at) = place(&daemon.store, "old-10-id");
        wipe(&daemon.store, &name, at..at + 8);
        let status = daemon.try_run(Duration::from_secs(30)).expect_err("it must refuse");
        assert_eq!(status.code(), Some(9), "{level}: {}", daemon.log_tail());
        assert!(daemon.log_tail().contains(&name), "{level}: {}", daemon.log_tail());
    }
}
