//! More to embed than can be embedded: the bulk lane fills, refuses, and empties again.
//!
//! Invariant checked: what waits for its vector is bounded, a refused add leaves nothing behind, an acknowledged one is
//! never lost, small adds get through beside a full lane, and bulk work goes on beside searches that never stop.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{Rng, ids, list_all, notes_space};
use crate::load::{
    StopAtEnd, ask, patiently, percentile, retry_after, search, status_number, text,
};

/// Items of a big add; the most that one request may have.
const BATCH: usize = 1_000;
/// Words of a text that takes long enough to embed that adding is much faster.
const WORDS: usize = 25;

fn items(prefix: &str, n: usize, words: usize, rng: &mut Rng) -> Vec<Value> {
    (0..n).map(|i| json!({"id": format!("{prefix}-{i}"), "text": text(rng, words)})).collect()
}

/// Adds batches until one is refused; the acknowledged ids and the refused batch's number.
#[track_caller]
fn fill(
    conn: &mut Conn,
    space: &str,
    from: usize,
    rng: &mut Rng,
    acked: &mut Vec<String>,
) -> usize {
    let limit = status_number(conn, &["limits", "pending_memories"]);
    let reserve = status_number(conn, &["limits", "pending_reserve"]);
    for batch in from.. {
        let batch_items = items(&format!("b{batch}"), BATCH, WORDS, rng);
        let params = json!({"space": space, "items": batch_items});
        let answer = ask(conn, "memory.add", &params);
        let pending = status_number(conn, &["store", "pending"]);
        assert!(pending <= limit + reserve, "{pending} wait for a vector; {limit} may");
        match answer.outcome {
            Ok(result) => acked.extend(ids(&result["items"])),
            Err(error) => {
                retry_after(&error);
                assert!(
                    answer.waited < Duration::from_secs(5),
                    "refused after {:?}",
                    answer.waited
                );
                assert!(
                    pending + 2 * BATCH as u64 > limit - reserve,
                    "refused at {pending} pending of {limit}"
                );
                return batch;
            }
        }
        assert!(acked.len() < 20 * limit as usize, "adds are never refused");
    }
    unreachable!("the assertion ends the loop")
}

#[test]
fn a_full_bulk_lane_refuses_and_small_adds_get_through() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let (space, mut rng, mut acked) = ("full", Rng::new(81), Vec::new());
    let mut batch = fill(&mut conn, space, 0, &mut rng, &mut acked);
    println!("{} were taken before batch {batch} was refused", acked.len());

    // Nothing of what was refused is there, nor does a refused first add make a space.
    let refused: Vec<String> = (0..BATCH).map(|i| format!("b{batch}-{i}")).collect();
    let got = conn.ok("memory.get", json!({"space": space, "ids": refused}))["items"].clone();
    assert!(got.as_array().unwrap().iter().all(Value::is_null), "part of a refused add is stored");
    let params = json!({"space": "refused", "items": items("r", BATCH, WORDS, &mut rng)});
    match conn.call("memory.add", &params) {
        Err(error) => {
            retry_after(&error);
            let listed = conn.ok("space.list", json!({})).to_string();
            assert!(!listed.contains("\"refused\""), "a refused add made a space: {listed}");
        }
        Ok(_) => println!("a second space's add was taken"),
    }

    // Small adds, each searchable, while the lane is full: it is filled up again before each.
    let mut waits = Vec::new();
    for i in 0..6 {
        batch = fill(&mut conn, space, batch + 1, &mut rng, &mut acked);
        let words = text(&mut rng, 8);
        let params = json!({"space": "small", "items": [{"id": format!("s{i}"), "text": words}], "wait": "searchable"});
        let answer = ask(&mut conn, "memory.add", &params);
        assert!(answer.outcome.is_ok(), "small add {i} beside a full lane: {:?}", answer.outcome);
        waits.push(answer.waited);
        let (found, _) = patiently(
            &mut conn,
            "memory.search",
            &json!({"space": "small", "query": words, "k": 1}),
            Duration::from_secs(20),
        );
        assert_eq!(found["hits"][0]["id"], json!(format!("s{i}")), "searchable: {found}");
    }
    println!(
        "small adds: {:?} at p50, {:?} at most",
        percentile(waits.clone(), 50),
        waits.iter().max()
    );
    let longest = percentile(waits, 100);
    assert!(longest < Duration::from_secs(3), "a small add took {longest:?} to be searchable");

    // Whoever does as told is served.
    let params = json!({"space": space, "items": items("again", 100, 4, &mut rng)});
    let (added, refusals) = patiently(&mut conn, "memory.add", &params, Duration::from_secs(60));
    println!("a hundred more were taken after {refusals} refusals");
    acked.extend(ids(&added["items"]));
    let mut listed = ids(&Value::from(list_all(&mut conn, space, 1000)));
    listed.sort();
    acked.sort();
    assert!(listed == acked, "{} acknowledged, {} listed", acked.len(), listed.len());
}

#[test]
fn many_who_add_at_once_do_not_get_past_the_limit() {
    const CLIENTS: u64 = 8;
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let limit = status_number(&mut conn, &["limits", "pending_memories"]);
    let reserve = status_number(&mut conn, &["limits", "pending_reserve"]);
    let start = Barrier::new(CLIENTS as usize);
    let acked: usize = thread::scope(|scope| {
        let one = |client: u64| {
            let (mut conn, start) = (daemon.conn(), &start);
            scope.spawn(move || {
                let mut rng = Rng::new(800 + client);
                let mut params = |batch: usize| {
                    let prefix = format!("c{client}-{batch}");
                    json!({"space": "together", "items": items(&prefix, BATCH, WORDS, &mut rng)})
                };
                // Made beforehand, so that all are sent at the same moment.
                let batches: Vec<Value> = (0..4).map(&mut params).collect();
                start.wait();
                let mut taken = 0;
                for batch in &batches {
                    match conn.call("memory.add", batch) {
                        Ok(result) => taken += ids(&result["items"]).len(),
                        Err(error) => drop(retry_after(&error)),
                    }
                }
                taken
            })
        };
        let running: Vec<_> = (0..CLIENTS).map(one).collect();
        running.into_iter().map(|r| r.join().expect("a client")).sum()
    });
    let pending = status_number(&mut conn, &["store", "pending"]);
    println!("{acked} of 32000 were taken together, {pending} wait");
    assert!(pending <= limit + reserve, "{pending} wait for a vector; {limit} may");
    let listed = list_all(&mut conn, "together", 1000).len();
    assert_eq!(listed, acked, "what was acknowledged is there, and nothing else");
}

#[test]
fn bulk_goes_on_beside_searches_that_never_stop() {
    const MEMORIES: usize = 1_000;
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let notes = notes_space(&mut conn, "beside");
    let stop = AtomicBool::new(false);
    let (mut pending, mut searches) = (Vec::new(), 0);
    let mut seq = 0;
    thread::scope(|scope| {
        let client = |i: u64| {
            let (mut conn, notes, stop) = (daemon.conn(), &notes, &stop);
            scope.spawn(move || {
                let (mut rng, mut answered) = (Rng::new(90 + i), 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    let answer = ask(&mut conn, "memory.search", &search(notes, &mut rng, 10));
                    match answer.outcome {
                        Ok(_) => answered += 1,
                        // Sooner than told: the load must not stop.
                        Err(error) => {
                            thread::sleep(retry_after(&error).min(Duration::from_millis(20)));
                        }
                    }
                }
                answered
            })
        };
        let clients: Vec<_> = (0..3).map(client).collect();
        let searching = StopAtEnd(&stop);
        let mut rng = Rng::new(82);
        for batch in 0..MEMORIES / 500 {
            let batch_items = items(&format!("m{batch}"), 500, 20, &mut rng);
            let params = json!({"space": "bulk", "items": batch_items});
            let (added, _) = patiently(&mut conn, "memory.add", &params, Duration::from_secs(60));
            seq = added["seq"].as_u64().unwrap().max(seq);
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(11) && pending.last() != Some(&0) {
            pending.push(status_number(&mut conn, &["store", "pending"]));
            thread::sleep(Duration::from_secs(1));
        }
        drop(searching);
        searches = clients.into_iter().map(|c| c.join().expect("a client")).sum::<u64>();
    });
    println!("pending, second by second: {pending:?}; {searches} searches beside it");
    assert!(searches > 50, "only {searches} searches: the load is none");
    let (first, last) = (pending[0], *pending.last().unwrap());
    assert!(first > 0 || last == 0, "{pending:?}");
    assert!(last == 0 || last + 20 < first, "the bulk lane starves: {pending:?}");
    // Three seconds without a single text are a standstill.
    let stands = pending.windows(4).any(|w| w[0] > 0 && w[0] == w[3]);
    assert!(!stands, "the bulk lane stood still: {pending:?}");
    let params = json!({"space": "bulk", "query": "the harbour in winter", "k": 1000, "min_seq": seq, "deadline_ms": 60_000});
    let (found, _) = patiently(&mut conn, "memory.search", &params, Duration::from_secs(90));
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(1000));
    assert_eq!(found["degraded"], json!([]), "everything can be found in the end");
    assert_eq!(status_number(&mut conn, &["store", "pending"]), 0);
    assert_eq!(list_all(&mut conn, "bulk", 1000).len(), MEMORIES);
}
