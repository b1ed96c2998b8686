//! Thousands of small spaces in one store cost little each.
//!
//! Invariant checked: an idle space has no thread, no file and no big buffer of its own. The bounds below are what a
//! memory with its vector needs (1.5 kB as f32, 0.4 kB as codes), its text and names, and room for allocation slack.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::daemon::Daemon;
use crate::data::{counts, ids, list_all, vector};

const SPACES: usize = 2_000;
const WRITERS: usize = 4;
/// The most one small space may cost in resident memory.
const KB_PER_SPACE: u64 = 40;
/// The most threads and files the spaces together may add.
const MORE_THREADS: u64 = 4;
const FILES: usize = 64;
const RESTART: Duration = Duration::from_secs(10);

fn files_below(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).expect("the store");
    entries.flatten().map(|e| if e.path().is_dir() { files_below(&e.path()) } else { 1 }).sum()
}

fn name(i: usize) -> String {
    format!("agent:{i:04}")
}

fn fill(daemon: &Daemon) {
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut conn = daemon.conn();
                for i in (writer..SPACES).step_by(WRITERS) {
                    let item = json!({"id": "only", "text": format!("the note of agent {i}"), "vector": vector(i as u64), "meta": {"of": i}});
                    conn.ok("memory.add", json!({"space": name(i), "items": [item]}));
                }
            });
        }
    });
}

fn check_some(daemon: &Daemon) {
    let mut conn = daemon.conn();
    for i in (0..SPACES).step_by(97) {
        let hits =
            conn.ok("memory.search", json!({"space": name(i), "vector": vector(i as u64), "k": 5}))
                ["hits"]
                .clone();
        assert_eq!(ids(&hits), ["only"], "{}", name(i));
        assert_eq!(hits[0]["meta"]["of"], i);
        assert!(counts(&conn.ok("space.stats", json!({"space": name(i)})), 1));
    }
    let listed = conn.ok("space.list", json!({})).to_string();
    let missing: Vec<String> = (0..SPACES).map(name).filter(|n| !listed.contains(n)).collect();
    assert!(missing.is_empty(), "{} of {SPACES} spaces are not listed", missing.len());
}

#[test]
fn two_thousand_small_spaces_cost_little() {
    let mut daemon = Daemon::start();
    let mut conn = daemon.conn();
    let warm = json!([{"id": "w", "text": "warm up"}]);
    conn.ok("memory.add", json!({"space": "warm", "items": warm, "wait": "searchable"}));
    conn.ok("memory.search", json!({"space": "warm", "query": "warm"}));
    // Connections have threads: hold as many while measuring before as are used while filling.
    let held: Vec<_> = (0..WRITERS).map(|_| daemon.conn()).collect();
    thread::sleep(Duration::from_millis(100));
    let (rss, threads) = (daemon.proc_status("VmRSS"), daemon.proc_status("Threads"));
    drop(held);
    let started = Instant::now();
    fill(&daemon);
    println!("{SPACES} spaces in {:?}", started.elapsed());
    check_some(&daemon);
    let grown = daemon.proc_status("VmRSS").saturating_sub(rss);
    let threads_now = daemon.proc_status("Threads");
    let files = files_below(&daemon.store);
    println!(
        "{grown} kB, {:.1} a space; {threads} then {threads_now} threads; {files} files",
        grown as f64 / SPACES as f64
    );
    assert!(grown < KB_PER_SPACE * SPACES as u64, "{SPACES} spaces cost {grown} kB");
    assert!(threads_now <= threads + MORE_THREADS, "{threads} threads became {threads_now}");
    assert!(files <= FILES, "{files} files in the store");
    assert!(daemon.terminate().success());
    let started = Instant::now();
    daemon.run();
    let restart = started.elapsed();
    println!("restart with {SPACES} spaces: {restart:?}");
    assert!(restart < RESTART, "the restart took {restart:?}");
    check_some(&daemon);
    let mut conn = daemon.conn();
    for i in 0..SPACES / 2 {
        conn.ok("space.drop", json!({"space": name(i)}));
    }
    assert_eq!(list_all(&mut conn, &name(SPACES - 1), 10).len(), 1);
    conn.err("memory.list", json!({"space": name(0)})).assert_own();
    assert!(files_below(&daemon.store) <= FILES);
}
