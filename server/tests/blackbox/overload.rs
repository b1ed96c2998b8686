//! More clients than the machine can serve, clients with deadlines, and clients that leave.
//!
//! Invariant checked: every request is answered once, by a result or by a refusal that comes soon and says when to come
//! again; nobody waits in a line that only grows; what nobody waits for any longer is not worked on. Bounds are orders
//! of magnitude, because other tests use the same processors.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{Rng, eventually, notes_space};
use crate::load::{
    Answered, BUSY, DEADLINE_EXCEEDED, Storm, ask, counter, patiently, percentile, retry_after,
    search, status_number, text,
};
use crate::openmetrics::Exposition;

const CLIENTS: usize = 32;
/// Words of a query as people ask them.
const SHORT: usize = 10;
/// About as many words as one window of the model holds.
const LONG: usize = 150;
/// A refusal costs nothing, so it comes at once; this allows for processors that are taken.
const REFUSAL_SOON: Duration = Duration::from_millis(250);

/// Fails unless each answer is one whole result or one refusal; how many of each there are.
#[track_caller]
fn results_and_refusals(answers: &[Answered]) -> (u64, u64) {
    let (mut results, mut refusals) = (0, 0);
    for answer in answers {
        match &answer.outcome {
            Ok(found) => {
                assert_eq!(found["hits"].as_array().map(Vec::len), Some(1), "{found}");
                let cached = found["ran"]["embed"]["cached"].as_bool().unwrap_or(false);
                assert!(!cached, "nobody asked this before: {}", found["ran"]);
                results += 1;
            }
            Err(error) => {
                retry_after(error);
                refusals += 1;
            }
        }
    }
    (results, refusals)
}

fn waits(answers: &[Answered], busy: bool) -> impl Iterator<Item = Duration> {
    answers.iter().filter(move |a| a.is_busy() == busy).map(|a| a.waited)
}

fn micros(answers: &[Answered], stage: &str) -> Vec<u64> {
    let of = |a: &Answered| a.outcome.as_ref().ok().and_then(|r| r["took_us"][stage].as_u64());
    answers.iter().filter_map(of).collect()
}

/// Fails unless a new client's search is answered now, at its first try.
#[track_caller]
fn search_works_at_once(daemon: &Daemon, space: &str, seed: u64) {
    let mut conn = daemon.conn();
    let answer = ask(&mut conn, "memory.search", &search(space, &mut Rng::new(seed), SHORT));
    assert!(answer.outcome.is_ok(), "nobody else asks, yet: {:?}", answer.outcome);
    assert!(answer.waited < Duration::from_secs(2), "it took {:?}", answer.waited);
}

#[test]
fn an_overload_is_answered_or_refused_soon_and_is_counted() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "storm");
    let now = |conn: &mut Conn| {
        let text = conn.ok("admin.metrics", json!({}))["text"].as_str().unwrap().to_owned();
        let metrics = Exposition::parse(&text).expect("OpenMetrics");
        let of = |outcome| {
            let labels = [("method", "memory.search"), ("outcome", outcome)];
            metrics.count("flashbulb_requests_total", &labels)
        };
        let refused = status_number(conn, &["lanes", "interactive", "refused"]);
        [counter(conn, "busy"), refused, of("busy"), of("ok")]
    };
    let before = now(&mut conn);
    let params = |rng: &mut Rng| search(&space, rng, SHORT);
    let storm = |lasts, pause, seed| {
        let storm = Storm { clients: CLIENTS, lasts, pause, seed };
        let answers = storm.run(&daemon, params);
        search_works_at_once(&daemon, &space, seed + 77);
        answers
    };
    // Clients that hammer, then such that draw a breath after a refusal.
    let hammered = storm(Duration::from_secs(1), Duration::ZERO, 1);
    let answers = storm(Duration::from_secs(3), Duration::from_millis(20), 2);
    let (first, second) = (results_and_refusals(&hammered), results_and_refusals(&answers));
    println!("hammering: {first:?}, with pauses: {second:?} answered and refused");
    assert!(first.0 > 0 && second.0 > 0, "searches are served during the storm");
    assert!(second.1 > 0, "{CLIENTS} clients in closed loops are more than can be served in time");

    let soon = percentile(waits(&answers, true), 50);
    let latest = percentile(waits(&answers, true), 99);
    let (queue, embed) = (micros(&answers, "queue"), micros(&answers, "embed"));
    let (queue_us, embed_us) = (percentile(queue, 50), percentile(embed, 50));
    println!(
        "refused within {soon:?} at p50, {latest:?} at p99; admitted: queue {queue_us} us, embed {embed_us} us at p50"
    );
    assert!(soon < REFUSAL_SOON, "half of the refusals took {soon:?} or more");
    assert!(latest < Duration::from_secs(2), "a refusal took {latest:?}");
    // Without admission control each would wait for all others.
    let for_all_others = CLIENTS as u64 * embed_us;
    assert!(queue_us < (for_all_others / 4).max(50_000), "the admitted waited {queue_us} us");
    let slowest = percentile(waits(&answers, false), 100);
    assert!(slowest < Duration::from_secs(5), "an admitted search took {slowest:?}");

    let (after, refused) = (now(&mut conn), first.1 + second.1);
    // One more search after each storm saw that it was over.
    let wanted = [refused, refused, refused, first.0 + second.0 + 2];
    let grew: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    assert_eq!(grew, wanted, "counters.busy, interactive.refused, requests_total busy and ok");
    assert_eq!(status_number(&mut conn, &["lanes", "interactive", "waiting"]), 0);
}

#[test]
fn who_waits_as_long_as_told_is_served() {
    let daemon = Daemon::start();
    let space = notes_space(&mut daemon.conn(), "patience");
    let started = Instant::now();
    let refusals: Vec<u64> = thread::scope(|scope| {
        let one = |client: u64| {
            let (mut conn, space) = (daemon.conn(), &space);
            scope.spawn(move || {
                let mut rng = Rng::new(500 + client);
                let mut once = || {
                    let params = search(space, &mut rng, SHORT);
                    patiently(&mut conn, "memory.search", &params, Duration::from_secs(30)).1
                };
                (0..5).map(|_| once()).max().unwrap_or(0)
            })
        };
        let running: Vec<_> = (0..CLIENTS as u64).map(one).collect();
        running.into_iter().map(|r| r.join().expect("a client")).collect()
    });
    println!(
        "{CLIENTS} clients had 5 answers each in {:?}; most refusals of one: {:?}",
        started.elapsed(),
        refusals.iter().max()
    );
}

#[test]
fn pipelined_requests_are_all_answered_in_order() {
    let daemon = Daemon::start();
    let space = notes_space(&mut daemon.conn(), "pipelines");
    // More than may be in flight at once on one connection.
    const EACH: u64 = 80;
    let answered: Vec<(u64, u64)> = thread::scope(|scope| {
        let one = |client: u64| {
            let (mut conn, space) = (daemon.conn(), &space);
            scope.spawn(move || {
                let mut rng = Rng::new(900 + client);
                let post = |_| conn.post("memory.search", &search(space, &mut rng, SHORT)).unwrap();
                let sent: Vec<u64> = (0..EACH).map(post).collect();
                let (mut ok, mut busy) = (0, 0);
                for id in sent {
                    let answer = conn.recv();
                    assert_eq!(answer["id"], id, "answers come in the order of the requests");
                    match crate::client::outcome(&answer) {
                        Ok(_) => ok += 1,
                        Err(error) => {
                            retry_after(&error);
                            busy += 1;
                        }
                    }
                }
                (ok, busy)
            })
        };
        let running: Vec<_> = (0..8).map(one).collect();
        running.into_iter().map(|r| r.join().expect("a client")).collect()
    });
    println!("answered and refused: {answered:?}");
    assert!(answered.iter().all(|(ok, busy)| ok + busy == EACH));
    assert!(answered.iter().any(|(ok, _)| *ok > 0));
    search_works_at_once(&daemon, &space, 4);
}

#[test]
fn a_deadline_beside_a_storm_is_kept_or_refused() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "deadlines");
    let before = (counter(&mut conn, "cancelled_deadline"), counter(&mut conn, "errors"));
    let storm = Storm {
        clients: 16,
        lasts: Duration::from_secs(2),
        pause: Duration::from_millis(5),
        seed: 3,
    };
    let in_a_hurry = || {
        let (mut conn, mut rng) = (daemon.conn(), Rng::new(31));
        thread::sleep(Duration::from_millis(300));
        let one = |_| {
            let mut params = search(&space, &mut rng, SHORT);
            params["deadline_ms"] = json!(1);
            ask(&mut conn, "memory.search", &params)
        };
        (0..100).map(one).collect::<Vec<_>>()
    };
    let (answers, others) = thread::scope(|scope| {
        let hurried = scope.spawn(in_a_hurry);
        let others = storm.run(&daemon, |rng| search(&space, rng, SHORT));
        (hurried.join().expect("the client in a hurry"), others)
    });
    results_and_refusals(&others);
    let (mut met, mut missed, mut busy) = (0, 0, 0);
    for answer in &answers {
        assert!(answer.waited < Duration::from_secs(2), "1 ms became {:?}", answer.waited);
        match &answer.outcome {
            Ok(found) => {
                // The model may have begun in time; it is not stopped in the middle of one query.
                let total = found["took_us"]["total"].as_u64().unwrap();
                assert!(total < 250_000, "a success {total} us after a deadline of 1 ms");
                met += 1;
            }
            Err(error) if error.code == DEADLINE_EXCEEDED => missed += 1,
            Err(error) => {
                retry_after(error);
                busy += 1;
            }
        }
    }
    println!("1 ms beside a storm: {met} met, {missed} missed, {busy} refused");
    assert!(missed + busy >= 50, "one embedding alone takes longer than 1 ms: {met} met");
    let cancelled = counter(&mut conn, "cancelled_deadline") - before.0;
    assert!(cancelled <= missed, "{cancelled} dropped unembedded, {missed} told so");
    // What has time is served, storm or not.
    let mut params = search(&space, &mut Rng::new(41), SHORT);
    params["deadline_ms"] = json!(30_000);
    conn.ok("memory.search", params);
}

#[test]
fn a_deadline_behind_a_query_of_seconds_is_kept_or_refused_in_time() {
    const HURRIED: u64 = 8;
    const DEADLINE: Duration = Duration::from_millis(150);
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "in-line");
    let bytes = status_number(&mut conn, &["limits", "query_bytes"]) as usize;
    let mut rng = Rng::new(51);
    // What searches usually take is known before one comes that takes seconds.
    for _ in 0..5 {
        conn.ok("memory.search", search(&space, &mut rng, SHORT));
    }
    let mut huge = text(&mut rng, bytes / 4);
    huge.truncate(bytes);
    let now = |conn: &mut Conn| counter(conn, "cancelled_deadline");
    let before = now(&mut conn);
    let (whole, hurried, while_at_it) = thread::scope(|scope| {
        let mut patient = daemon.conn();
        let params = json!({"space": space, "query": huge, "k": 1, "deadline_ms": 120_000});
        let whole = scope.spawn(move || ask(&mut patient, "memory.search", &params));
        thread::sleep(Duration::from_millis(100));
        let one = |client: u64| {
            let (mut conn, space) = (daemon.conn(), &space);
            scope.spawn(move || {
                let mut params = search(space, &mut Rng::new(520 + client), SHORT);
                params["deadline_ms"] = json!(DEADLINE.as_millis() as u64);
                ask(&mut conn, "memory.search", &params)
            })
        };
        let running: Vec<_> = (0..HURRIED).map(one).collect();
        let hurried: Vec<Answered> =
            running.into_iter().map(|r| r.join().expect("a client")).collect();
        let while_at_it = !whole.is_finished();
        (whole.join().expect("the patient client"), hurried, while_at_it)
    });
    assert!(whole.outcome.is_ok(), "two minutes are enough: {:?}", whole.outcome);
    let slowest = hurried.iter().map(|a| a.waited).max().unwrap_or_default();
    let ok = hurried.iter().filter(|a| a.outcome.is_ok()).count() as u64;
    let failed = |code: i64| {
        hurried.iter().filter(|a| a.outcome.as_ref().is_err_and(|e| e.code == code)).count() as u64
    };
    let (missed, busy) = (failed(DEADLINE_EXCEEDED), failed(BUSY));
    println!(
        "behind a query of {:?}: {ok} answered, {missed} missed, {busy} refused, within {slowest:?}; it went on: {while_at_it}",
        whole.waited
    );
    assert_eq!(ok + missed + busy, HURRIED, "{hurried:?}");
    assert!(
        slowest < DEADLINE + Duration::from_millis(750),
        "an answer due in {DEADLINE:?} came after {slowest:?}, behind a query of {:?}",
        whole.waited
    );
    let after = now(&mut conn);
    assert!(after - before <= missed, "{} dropped, {missed} told so", after - before);
}

#[test]
fn deadlines_in_a_pipeline_run_from_arrival_and_what_is_late_is_not_embedded() {
    const HURRIED: u64 = 6;
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let [space, other] = ["pipe", "pipe-alone"].map(|label| notes_space(&mut conn, label));
    // Many windows of the model, some hundred milliseconds.
    let long = text(&mut Rng::new(55), 1_000);
    let params =
        |space: &str| json!({"space": space, "query": long, "k": 1, "deadline_ms": 60_000});
    let now = |conn: &mut Conn| {
        (counter(conn, "cancelled_deadline"), counter(conn, "windows_interactive"))
    };
    // In a space of its own, so that its vector is not kept for the pipeline.
    let start = now(&mut conn);
    let alone = ask(&mut conn, "memory.search", &params(&other));
    assert!(alone.outcome.is_ok(), "{:?}", alone.outcome);
    let before = now(&mut conn);
    let of_long = before.1 - start.1;

    let mut pipe = daemon.conn();
    let deadline_ms = (alone.waited.as_millis() as u64 / 10).max(1);
    let first = pipe.post("memory.search", &params(&space)).unwrap();
    for i in 0..HURRIED {
        let mut hurried = search(&space, &mut Rng::new(550 + i), SHORT);
        hurried["deadline_ms"] = json!(deadline_ms);
        pipe.post("memory.search", &hurried).unwrap();
    }
    let answer = pipe.recv();
    assert_eq!(answer["id"], first);
    crate::client::outcome(&answer).expect("a minute is enough");
    let (mut missed, mut busy) = (0, 0);
    for _ in 0..HURRIED {
        match crate::client::outcome(&pipe.recv()) {
            Ok(found) => panic!("{deadline_ms} ms were over long ago: {}", found["took_us"]),
            Err(error) if error.code == DEADLINE_EXCEEDED => missed += 1,
            Err(error) => {
                retry_after(&error);
                busy += 1;
            }
        }
    }
    let after = now(&mut conn);
    println!("behind {:?}, due in {deadline_ms} ms: {missed} missed, {busy} refused", alone.waited);
    assert!(missed > 0, "a deadline that has passed is said to have passed");
    assert_eq!(after.0 - before.0, missed, "counters.cancelled_deadline");
    assert_eq!(after.1 - before.1, of_long, "nothing was embedded for those that were late");
}

#[test]
fn a_client_that_leaves_keeps_nobody_waiting() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "leavers");
    let mut rng = Rng::new(61);
    let mut long = || {
        let mut params = search(&space, &mut rng, LONG);
        params["deadline_ms"] = json!(60_000);
        params
    };
    let embedded = |conn: &mut Conn| counter(conn, "windows_interactive");
    let (gone, windows) = (counter(&mut conn, "cancelled_gone"), embedded(&mut conn));
    let alone = ask(&mut conn, "memory.search", &long());
    assert!(alone.outcome.is_ok(), "{:?}", alone.outcome);
    let per_query = embedded(&mut conn) - windows;
    assert!(per_query >= 1, "the windows of queries are counted");

    // Many, because one connection may have its requests worked on one after another.
    const LEAVERS: usize = 48;
    const EACH: usize = 4;
    let before = embedded(&mut conn);
    let mut leavers: Vec<Conn> = (0..LEAVERS).map(|_| daemon.conn()).collect();
    for leaver in &mut leavers {
        for _ in 0..EACH {
            leaver.post("memory.search", &long()).unwrap();
        }
    }
    thread::sleep(Duration::from_millis(50));
    drop(leavers);
    let left = Instant::now();
    let all = alone.waited * LEAVERS as u32;
    let mut newcomer = daemon.conn();
    let params = json!({"space": space, "query": "whose cat is it", "k": 1});
    let (_, refusals) = patiently(&mut newcomer, "memory.search", &params, Duration::from_secs(60));
    let waited = left.elapsed();
    println!(
        "one query takes {:?}, one of each who left {all:?}; a newcomer waited {waited:?}, refused {refusals} times",
        alone.waited
    );
    assert!(waited < (all / 4).max(Duration::from_secs(1)), "the newcomer waited {waited:?}");
    eventually("what was left behind is gone", Duration::from_secs(10), || {
        status_number(&mut conn, &["requests_in_flight"]) <= 1
            && counter(&mut conn, "cancelled_gone") > gone
    });
    let worked_on = (embedded(&mut conn) - before) / per_query;
    println!(
        "{worked_on} of {} were embedded, {} counted as cancelled",
        LEAVERS * EACH,
        counter(&mut conn, "cancelled_gone") - gone
    );
    assert!(
        worked_on < LEAVERS as u64 / 2,
        "{worked_on} queries were embedded for clients that had gone"
    );
    thread::sleep(Duration::from_millis(200));
    assert_eq!((embedded(&mut conn) - before) / per_query, worked_on, "nothing goes on unseen");
}

#[test]
fn who_only_stops_sending_gets_every_answer() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "half");
    let gone = counter(&mut conn, "cancelled_gone");
    // As `nc -N` does: one request, and nothing more to say.
    for i in 0..20 {
        let mut once = daemon.conn();
        let id = once
            .post("memory.search", &json!({"space": space, "query": format!("half {i}"), "k": 1}))
            .unwrap();
        once.half_close().unwrap();
        let answer = once.recv();
        assert_eq!(answer["id"], id);
        assert_eq!(
            crate::client::outcome(&answer).unwrap()["hits"].as_array().map(Vec::len),
            Some(1)
        );
        assert!(once.try_line().is_err(), "then the service closes too");
    }
    // Several at once, with much in the pipe, so that most of it stands in line after the end was said.
    const EACH: usize = 25;
    thread::scope(|scope| {
        for client in 0..4 {
            let (mut conn, space) = (daemon.conn(), &space);
            scope.spawn(move || {
                let mut rng = Rng::new(700 + client);
                let mut post = |i: usize| match i % 5 {
                    0 => {
                        let item =
                            json!({"id": format!("h{client}-{i}"), "text": text(&mut rng, SHORT)});
                        conn.post("memory.add", &json!({"space": space, "items": [item]})).unwrap()
                    }
                    1 => conn.post("memory.get", &json!({"space": space, "ids": ["n1"]})).unwrap(),
                    _ => {
                        let mut params = search(space, &mut rng, SHORT);
                        params["deadline_ms"] = json!(30_000);
                        conn.post("memory.search", &params).unwrap()
                    }
                };
                let sent: Vec<u64> = (0..EACH).map(&mut post).collect();
                conn.half_close().unwrap();
                for id in sent {
                    let answer = conn.recv();
                    assert_eq!(answer["id"], id);
                    let outcome = crate::client::outcome(&answer);
                    assert!(outcome.is_ok(), "client {client}, request {id}: {outcome:?}");
                }
                assert!(conn.try_line().is_err(), "then the service closes too");
            });
        }
    });
    let ids: BTreeSet<String> =
        (0..4).flat_map(|c| (0..EACH).step_by(5).map(move |i| format!("h{c}-{i}"))).collect();
    let got = conn.ok("memory.get", json!({"space": space, "ids": ids}))["items"].clone();
    assert!(got.as_array().unwrap().iter().all(Value::is_object), "every add happened");
    assert_eq!(counter(&mut conn, "cancelled_gone"), gone, "nobody had gone");
}
