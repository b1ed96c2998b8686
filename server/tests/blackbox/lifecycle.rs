//! Starting, stopping and guarding: sockets, folders, one daemon a store, SIGTERM, restarts.
//!
//! Invariant checked: what was acknowledged before a stop is there after it, and nobody but the owner gets in.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::daemon::{Daemon, STOP_LIMIT};
use crate::data::{T0, add, found, list_all, notes_space, vector};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).mode() & 0o777
}

/// Runs `serve` on the given places, requires that it refuses, and returns what it said.
#[track_caller]
fn refused(store: &Path, socket: &Path) -> String {
    let mut daemon = Daemon::prepared();
    (daemon.store, daemon.socket) = (store.to_owned(), socket.to_owned());
    refuses(daemon)
}

#[track_caller]
fn refuses(mut daemon: Daemon) -> String {
    daemon.spawn();
    let status = daemon.wait_exit(Duration::from_secs(30));
    let said = daemon.log_tail();
    assert!(status.code().is_some_and(|c| c != 0), "it must refuse: {status} {said}");
    assert!(said.trim().len() > 10, "a refusal says why");
    said
}

#[test]
fn store_and_socket_are_for_the_owner_alone() {
    let daemon = Daemon::start();
    assert_eq!(mode(&daemon.socket), 0o600, "the socket");
    assert_eq!(mode(daemon.socket.parent().unwrap()), 0o700, "the folder made for the socket");
    assert_eq!(mode(&daemon.store), 0o700, "the store");
    let mut open = Vec::new();
    let mut folders = vec![daemon.store.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
            if mode(&entry.path()) & 0o077 != 0 {
                open.push(entry.path());
            }
        }
    }
    assert!(open.is_empty(), "open to others: {open:?}");
}

#[test]
fn a_stale_socket_is_taken_over() {
    let mut daemon = Daemon::start();
    let space = notes_space(&mut daemon.conn(), "stale");
    daemon.kill9();
    assert!(daemon.socket.exists(), "a killed daemon leaves its socket");
    daemon.run();
    assert_eq!(found(&mut daemon.conn(), &space, "cat", 1), ["n3"]);
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let mut daemon = Daemon::start();
    let space = notes_space(&mut daemon.conn(), "second");
    let said = refused(&daemon.store, &daemon.dir.path().join("other.sock"));
    assert!(said.contains("store"), "what is taken is named: {said}");
    let said = refused(&daemon.dir.path().join("other-store"), &daemon.socket);
    assert!(said.contains("sock"), "what is taken is named: {said}");
    refused(&daemon.store, &daemon.socket);
    daemon.assert_alive();
    assert_eq!(found(&mut daemon.conn(), &space, "cat", 1), ["n3"]);
}

#[test]
fn places_that_cannot_be_are_refused_and_left_alone() {
    let prepared = Daemon::prepared();
    let dir = prepared.dir.path();
    let file = dir.join("precious.txt");
    fs::write(&file, "not a socket").unwrap();
    refused(&dir.join("store-1"), &file);
    refused(&file, &dir.join("a.sock"));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "not a socket",
        "a file in the way is never removed"
    );
    let said = refused(&dir.join("store-2"), &dir.join("x".repeat(150)));
    assert!(said.contains("sock"), "a path too long for a socket is named: {said}");
    let live = UnixListener::bind(dir.join("foreign.sock")).unwrap();
    refused(&dir.join("store-3"), &dir.join("foreign.sock"));
    drop(live);
}

#[test]
fn sigterm_during_adds_keeps_what_was_acknowledged() {
    let mut daemon = Daemon::start();
    for round in 0..3 {
        let acked = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for writer in 0..4 {
                let (mut conn, acked) = (daemon.conn(), &acked);
                scope.spawn(move || {
                    for n in 0_u64.. {
                        let id = format!("r{round}-w{writer}-{n}");
                        let mut item = json!({"id": id, "text": format!("note {id}")});
                        if n % 5 != 0 {
                            item["vector"] = json!(vector(n));
                        }
                        // The end of the stream, or an error while it shuts down, ends the writer.
                        let Ok(Ok(_)) =
                            conn.try_call("memory.add", &json!({"space": "term", "items": [item]}))
                        else {
                            return;
                        };
                        acked.lock().unwrap().push(id);
                    }
                });
            }
            thread::sleep(Duration::from_millis(250));
            let status = daemon.terminate();
            assert_eq!(status.code(), Some(0), "{}", daemon.log_tail());
        });
        assert!(!daemon.socket.exists(), "the socket is removed");
        daemon.run();
        let mut conn = daemon.conn();
        let acked = acked.into_inner().unwrap();
        assert!(acked.len() > 20, "only {} adds in 250 ms", acked.len());
        for ids in acked.chunks(500) {
            let got = conn.ok("memory.get", json!({"space": "term", "ids": ids}))["items"].clone();
            let lost = got.as_array().unwrap().iter().filter(|m| m.is_null()).count();
            assert_eq!(lost, 0, "of {} acknowledged", ids.len());
        }
    }
}

#[test]
fn sigterm_does_not_wait_for_idle_or_half_said_clients() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start();
        let mut idle = daemon.conn();
        idle.ok("admin.status", json!({}));
        let _silent = daemon.conn();
        let mut half = daemon.conn();
        half.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"meth").unwrap();
        thread::sleep(Duration::from_millis(100));
        let started = Instant::now();
        daemon.signal(signal);
        let status = daemon.wait_exit(STOP_LIMIT);
        assert_eq!(status.code(), Some(0), "{}", daemon.log_tail());
        assert!(
            started.elapsed() < Duration::from_secs(8),
            "stopping took {:?}",
            started.elapsed()
        );
        assert!(!daemon.socket.exists(), "the socket is removed");
        assert!(idle.try_line().is_err(), "the idle connection is closed");
    }
}

#[test]
fn shutdown_over_the_protocol_is_answered_and_clean() {
    let mut daemon = Daemon::start();
    let mut conn = daemon.conn();
    conn.ok(
        "memory.add",
        json!({"space": "last", "items": [{"id": "a", "text": "the last word"}]}),
    );
    conn.err("admin.shutdown", json!({"colour": "red"})).assert_invalid("colour");
    daemon.assert_alive();
    conn.ok("admin.shutdown", json!({}));
    assert_eq!(daemon.wait_exit(STOP_LIMIT).code(), Some(0));
    assert!(!daemon.socket.exists());
    daemon.run();
    let got =
        daemon.conn().ok("memory.get", json!({"space": "last", "ids": ["a"]}))["items"].clone();
    assert_eq!(got[0]["text"], "the last word");
}

#[test]
fn a_restart_keeps_everything_as_it_was() {
    let mut daemon = Daemon::start();
    let mut conn = daemon.conn();
    let meta = json!({"n": 9_007_199_254_740_993_u64, "f": 0.1, "deep": [[{"ü": null}]], "empty": {}, "s": "\u{1}\"\\"});
    let item = |i: u64| json!({"id": format!("k{i}"), "text": format!("kept {i} 🚀\n"), "role": "user", "session": format!("s{}", i % 3), "ts": T0 - 1000 * i as i64, "meta": meta, "vector": vector(i)});
    add(&mut conn, "keep", json!((0..150).map(item).collect::<Vec<_>>()));
    let notes = notes_space(&mut conn, "notes");
    conn.ok("memory.delete", json!({"space": "keep", "ids": ["k7", "k149"]}));
    conn.ok("memory.update", json!({"space": "keep", "id": "k9", "patch": {"role": "editor"}}));
    let item = json!([{"id": "k3", "text": "replaced", "vector": vector(500)}]);
    conn.ok(
        "memory.add",
        json!({"space": "keep", "items": item, "on_conflict": "replace", "wait": "searchable"}),
    );
    let ask = json!({"space": "keep", "vector": vector(42), "k": 20});
    let hits = |conn: &mut crate::client::Conn| -> Value {
        conn.ok("memory.search", ask.clone())["hits"].clone()
    };
    let before = (
        list_all(&mut conn, "keep", 1000),
        hits(&mut conn),
        list_all(&mut conn, &notes, 100),
        found(&mut conn, &notes, "cat", 10),
    );
    for stop in ["term", "kill", "compact", "term"] {
        match stop {
            "kill" => daemon.kill9(),
            "compact" => {
                daemon.conn().ok("admin.compact", json!({}));
                assert!(daemon.terminate().success());
            }
            _ => assert!(daemon.terminate().success()),
        }
        daemon.run();
        let mut conn = daemon.conn();
        let after = (
            list_all(&mut conn, "keep", 1000),
            hits(&mut conn),
            list_all(&mut conn, &notes, 100),
            found(&mut conn, &notes, "cat", 10),
        );
        assert_eq!(after, before, "after {stop}");
        conn.ok("admin.verify", json!({}));
    }
}

#[test]
fn a_damaged_store_is_refused_not_served_short() {
    let mut daemon = Daemon::start();
    let mut conn = daemon.conn();
    for part in 0..20_u64 {
        let items: Vec<Value> = (0..20)
            .map(|i| json!({"text": format!("note {part} {i}"), "vector": vector(part * 20 + i)}))
            .collect();
        add(&mut conn, "damaged", json!(items));
    }
    assert!(daemon.terminate().success());
    let biggest = fs::read_dir(&daemon.store)
        .unwrap()
        .flatten()
        .filter(|e| e.path().is_file())
        .max_by_key(|e| {
            fs::read(e.path()).map_or(0, |bytes| bytes.iter().filter(|b| **b != 0).count())
        })
        .expect("the store has files")
        .path();
    let mut bytes = fs::read(&biggest).unwrap();
    let used = bytes.iter().rposition(|b| *b != 0).expect("not empty");
    // The middle of what is used: an acknowledged record, far from any torn tail.
    for byte in bytes.iter_mut().skip(used / 2).take(64) {
        *byte ^= 0x55;
    }
    fs::write(&biggest, bytes).unwrap();
    // Either it does not start, or it says what is wrong: fewer memories in silence is the one wrong answer.
    match daemon.try_run(Duration::from_secs(30)) {
        Err(status) => {
            assert!(!status.success());
            assert!(daemon.log_tail().trim().len() > 10, "a refusal says why");
        }
        Ok(()) => {
            let mut conn = daemon.conn();
            let served = conn.call("memory.list", &json!({"space": "damaged", "limit": 1000}));
            let whole = served.is_ok_and(|r| r["items"].as_array().map(Vec::len) == Some(400));
            let verified = conn.call("admin.verify", &json!({}));
            assert!(
                whole || verified.is_err(),
                "damage in {} went unnoticed: {verified:?}",
                biggest.display()
            );
        }
    }
}

#[test]
fn the_socket_folder_of_another_mode_is_not_opened_wider() {
    let mut daemon = Daemon::prepared();
    let folder = daemon.socket.parent().unwrap().to_owned();
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    daemon.run();
    assert_eq!((mode(&folder), mode(&daemon.socket)), (0o700, 0o600));
}

#[test]
fn what_is_demanded_and_missing_is_an_error_at_start() {
    let nowhere = std::path::PathBuf::from("/nonexistent/flashbulb-part");
    for key in ["FLASHBULB_ORT", "FLASHBULB_MODEL"] {
        let mut daemon = Daemon::prepared();
        daemon.env.push((key, nowhere.clone()));
        let said = refuses(daemon);
        assert!(
            said.contains("/nonexistent/flashbulb-part"),
            "{key}: what is missing is named: {said}"
        );
    }
    let mut daemon = Daemon::prepared();
    daemon.env.push(("XDG_DATA_HOME", daemon.dir.path().join("empty")));
    daemon.args.push("--offline".to_owned());
    let said = refuses(daemon);
    assert!(
        said.contains("setup"),
        "offline and nothing provisioned: the next step is named: {said}"
    );
}
