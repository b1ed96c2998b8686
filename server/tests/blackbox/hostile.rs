//! Garbage: thousands of frames of it, and the daemon alive, quick and no bigger.
//!
//! Invariant checked: nothing a client sends ends the daemon, blocks another client, or makes memory grow without
//! bound. Runs on a daemon of its own, because it measures that daemon's memory.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{Rng, found, notes_space};

const CONNECTIONS: usize = 6;
const FRAMES: usize = 5_000;
/// The most a daemon may grow by under garbage, in kB.
const GROWTH_KB: u64 = 64 * 1024;

/// One frame that is wrong in some way, ending in a line end.
fn garbage(rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = match rng.below(9) {
        0 => (0..rng.below(300)).map(|_| rng.next() as u8).collect(),
        1 => b"[".repeat(1 + rng.below(3000)),
        2 => b"{\"a\":".repeat(1 + rng.below(1000)),
        3 => format!("\"{}", "\\ud800".repeat(rng.below(50))).into_bytes(),
        4 => mutated(rng),
        5 => format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"memory.add\"",
            "9".repeat(1 + rng.below(2000))
        )
        .into_bytes(),
        6 => json!({"jsonrpc": "2.0", "id": rng.next(), "method": "x".repeat(rng.below(5000))})
            .to_string()
            .into_bytes(),
        7 => vec![0; rng.below(200)],
        _ => json!(vec![0; rng.below(200)]).to_string().into_bytes(),
    };
    bytes.retain(|b| *b != b'\n');
    bytes.push(b'\n');
    bytes
}

/// A good request with some bytes changed.
fn mutated(rng: &mut Rng) -> Vec<u8> {
    let params = json!({"space": "garbage", "items": [{"id": "x", "text": "y", "meta": {"a": [1, 2]}}], "wait": "durable"});
    let mut bytes = json!({"jsonrpc": "2.0", "id": 1, "method": "memory.add", "params": params})
        .to_string()
        .into_bytes();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len());
        match rng.below(3) {
            0 => bytes[at] = rng.next() as u8,
            1 => drop(bytes.remove(at)),
            _ => bytes.insert(at, *rng.pick(b"{}[]\",:\\0-")),
        }
    }
    bytes
}

/// Sends garbage; reads what is answered; comes back when the service hangs up.
fn pester(daemon: &Daemon, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut conn = daemon.conn();
    for sent in 0..FRAMES {
        let alive = conn.send(&garbage(&mut rng)).is_ok();
        // A reader that drains now and then keeps the output queue from filling.
        if !alive || sent % 20 == 19 {
            conn = drained(daemon, conn);
        }
    }
    drained(daemon, conn);
}

/// Reads until the answer to a question of its own; a new connection if this one is closed.
fn drained(daemon: &Daemon, mut conn: Conn) -> Conn {
    conn.limit(Duration::from_secs(20));
    if conn.send(b"{\"jsonrpc\":\"2.0\",\"id\":\"drained\",\"method\":\"admin.status\"}\n").is_ok()
    {
        while let Ok(line) = conn.try_line() {
            if line.contains("\"drained\"") {
                return conn;
            }
        }
    }
    daemon.conn()
}

#[test]
fn garbage_changes_nothing_and_memory_stays_bounded() {
    let mut daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "steady");
    // Once over everything, so that lazily made buffers exist before the first measurement.
    found(&mut conn, &space, "cat", 3);
    pester(&daemon, 1);
    let before = daemon.proc_status("VmRSS");
    let slowest = thread::scope(|scope| {
        let pests: Vec<_> = (0..CONNECTIONS as u64)
            .map(|i| {
                let daemon = &daemon;
                scope.spawn(move || pester(daemon, 50 + i))
            })
            .collect();
        let mut slowest = Duration::ZERO;
        while pests.iter().any(|p| !p.is_finished()) {
            let started = Instant::now();
            assert_eq!(found(&mut conn, &space, "the cat next door", 1), ["n3"], "beside garbage");
            slowest = slowest.max(started.elapsed());
            thread::sleep(Duration::from_millis(10));
        }
        slowest
    });
    let after = daemon.proc_status("VmRSS");
    println!(
        "{CONNECTIONS} connections x {FRAMES} frames: RSS {before} kB to {after} kB, slowest search {slowest:?}"
    );
    assert!(after.saturating_sub(before) < GROWTH_KB, "grew from {before} kB to {after} kB");
    assert!(slowest < Duration::from_secs(3), "a search took {slowest:?} beside garbage");
    daemon.assert_alive();
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let mut daemon = Daemon::start();
    daemon.conn().ok("admin.status", json!({}));
    let churn = |n: usize| {
        for i in 0..n {
            let Ok(mut conn) = Conn::try_open(&daemon.socket) else {
                continue;
            };
            match i % 4 {
                0 => drop(conn.post("admin.status", &json!({}))),
                1 => drop(conn.send(b"{\"half")),
                2 => drop(conn.try_raw("admin.status", &json!({}))),
                _ => {}
            }
        }
    };
    let open_files = |daemon: &Daemon| {
        std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("fds").count()
    };
    churn(300);
    thread::sleep(Duration::from_millis(300));
    let before = (daemon.proc_status("VmRSS"), daemon.proc_status("Threads"), open_files(&daemon));
    churn(3000);
    crate::data::eventually(
        "threads and files of closed connections are given back",
        Duration::from_secs(10),
        || daemon.proc_status("Threads") <= before.1 + 2 && open_files(&daemon) <= before.2 + 2,
    );
    let grown = daemon.proc_status("VmRSS").saturating_sub(before.0);
    assert!(grown < 16 * 1024, "3,000 connections left {grown} kB behind");
    daemon.assert_alive();
}
