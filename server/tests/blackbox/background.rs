//! What the daemon does when nobody asks: indexing, sealing, tidying up, seen from outside.
//!
//! Invariant checked: every job is listed, works in small quanta at idle priority, and takes nothing from searches. The
//! kernel is asked too which of the daemon's threads are idle ones and whether they did the work.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{eventually, notes_space, vector, vector_item};
use crate::load::{StopAtEnd, percentile};
use crate::openmetrics::Exposition;

const JOBS: [&str; 5] = ["spare_log", "seal", "merge", "graph", "checkpoint"];
/// Twice what is searched without a graph.
const SIZE: usize = 8_000;
const BATCH: usize = 200;
/// A job's whole work takes a second or more in this build; one quantum of it must not.
const QUANTUM_US: u64 = 2_000_000;
/// What the kernel calls SCHED_IDLE.
const SCHED_IDLE: u64 = 5;

/// One line of `admin.status.background.jobs`.
#[derive(Debug, Clone, Copy)]
struct Job {
    quanta: u64,
    total_ms: u64,
    longest_quantum_us: u64,
}

#[track_caller]
fn background(conn: &mut Conn) -> Value {
    conn.ok("admin.status", json!({}))["background"].clone()
}

#[track_caller]
fn job(background: &Value, name: &str) -> Job {
    let jobs = background["jobs"].as_array().unwrap_or_else(|| panic!("jobs: {background}"));
    let of = jobs.iter().find(|j| j["name"] == name);
    let of = of.unwrap_or_else(|| panic!("{name} is not listed: {background}"));
    let number = |key: &str| of[key].as_u64().unwrap_or_else(|| panic!("{key}: {of}"));
    assert!(!of["due"].is_null(), "whether it is due is told: {of}");
    Job {
        quanta: number("quanta"),
        total_ms: number("total_ms"),
        longest_quantum_us: number("longest_quantum_us"),
    }
}

/// Processor time in ticks of the daemon's threads of idle priority, and their number.
fn idle_threads(daemon: &Daemon) -> (u64, usize) {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("its threads");
    let (mut ticks, mut threads) = (0, 0);
    for task in tasks.flatten() {
        // A thread may end while its siblings are read.
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        // The name, which stands in parentheses, is the second field and may hold anything.
        let after = stat.rsplit_once(')').expect("a name").1;
        let fields: Vec<u64> = after.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
        let field = |number: usize| fields[number - 3];
        if field(41) == SCHED_IDLE {
            ticks += field(14) + field(15);
            threads += 1;
        }
    }
    (ticks, threads)
}

#[test]
fn a_large_space_is_indexed_in_small_quanta_and_searches_go_on() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let notes = notes_space(&mut conn, "notes");
    let before = job(&background(&mut conn), "graph");
    let (ticks, threads) = idle_threads(&daemon);
    assert!(threads >= 1, "no thread of the daemon has idle priority");
    let fill = |conn: &mut Conn, from: usize| {
        let items: Vec<Value> = (from..from + BATCH).map(vector_item).collect();
        conn.ok("memory.add", json!({"space": "large", "items": items, "wait": "searchable"}));
    };
    // Before the searcher comes, so that it finds the space.
    fill(&mut conn, 0);
    let stop = AtomicBool::new(false);
    let (waits, seen) = thread::scope(|scope| {
        let searcher = scope.spawn(|| {
            let (mut conn, mut waits) = (daemon.conn(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let i = waits.len();
                let (space, started) = (if i % 2 == 0 { "large" } else { &notes }, Instant::now());
                let params = if i % 2 == 0 {
                    json!({"space": space, "vector": vector(i as u64), "k": 3})
                } else {
                    json!({"space": space, "query": format!("note number {i}"), "k": 3})
                };
                let hits = conn.ok("memory.search", params)["hits"].clone();
                assert_eq!(hits.as_array().map(Vec::len), Some(3), "search {i}");
                waits.push(started.elapsed());
                thread::sleep(Duration::from_millis(5));
            }
            waits
        });
        let searching = StopAtEnd(&stop);
        let mut writer = daemon.conn();
        for from in (BATCH..SIZE).step_by(BATCH) {
            fill(&mut writer, from);
        }
        let mut seen = Vec::new();
        eventually("the graph is built in the background", Duration::from_secs(60), || {
            let now = job(&background(&mut conn), "graph");
            seen.push(now.quanta);
            thread::sleep(Duration::from_millis(100));
            // It grew and has come to rest.
            now.quanta > before.quanta
                && seen.len() > 5
                && seen[seen.len() - 5..].iter().all(|q| *q == now.quanta)
        });
        drop(searching);
        (searcher.join().expect("the searcher"), seen)
    });
    let status = background(&mut conn);
    let graph = job(&status, "graph");
    println!(
        "{graph:?}; {} searches, {:?} at p50, {:?} at most",
        waits.len(),
        percentile(waits.clone(), 50),
        waits.iter().max()
    );
    assert!(seen.is_sorted(), "quanta are only ever added: {seen:?}");
    assert!(waits.len() > 10, "only {} searches", waits.len());
    assert!(percentile(waits.clone(), 100) < Duration::from_secs(5), "{:?}", waits.iter().max());
    assert!(graph.quanta - before.quanta >= 10, "the whole graph in {graph:?}");
    assert!(graph.longest_quantum_us > 0 && graph.longest_quantum_us < QUANTUM_US, "{graph:?}");
    let (ticks_after, _) = idle_threads(&daemon);
    assert!(ticks_after > ticks, "threads of idle priority did nothing in all that time");
    agree(&status, daemon.conn().ok("admin.status", json!({}))["uptime_ms"].as_u64().unwrap());
}

/// Fails unless the numbers of every job can be true.
#[track_caller]
fn agree(background: &Value, uptime_ms: u64) {
    assert_eq!(background["priority"], "SCHED_IDLE", "{background}");
    assert!(background.as_object().unwrap().contains_key("running"), "{background}");
    for name in JOBS {
        let job = job(background, name);
        if job.quanta == 0 {
            assert_eq!(
                (job.total_ms, job.longest_quantum_us),
                (0, 0),
                "{name} did not run: {job:?}"
            );
            continue;
        }
        assert!(job.longest_quantum_us > 0, "{name}: {job:?}");
        assert!(job.longest_quantum_us <= (job.total_ms + 1) * 1000, "{name}: {job:?}");
        assert!(job.total_ms <= uptime_ms, "{name} took longer than there was: {job:?}");
    }
}

#[test]
fn every_job_is_listed_from_the_start_and_measured() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    notes_space(&mut conn, "listed");
    let status = conn.ok("admin.status", json!({}));
    agree(&status["background"], status["uptime_ms"].as_u64().unwrap());
    let text = conn.ok("admin.metrics", json!({}))["text"].as_str().unwrap().to_owned();
    let metrics = Exposition::parse(&text).expect("OpenMetrics");
    let gauges: Vec<_> =
        metrics.0.iter().filter(|f| f.name.starts_with("flashbulb_background_job_")).collect();
    assert!(!gauges.is_empty(), "metrics tell of background jobs: {text}");
    for family in gauges {
        for name in JOBS {
            let told = family.samples.iter().any(|s| s.labels.values().any(|v| v == name));
            assert!(told, "{} tells nothing of {name}", family.name);
        }
    }
}
