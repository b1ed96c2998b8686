//! kill -9 at random moments under concurrent writers, with the oracle outside the process.
//!
//! Invariant checked: what was acknowledged is there after the restart; what was not is wholly there or wholly not;
//! nothing deleted returns; `seq` only grows. The oracle learns from acknowledgements alone and settles what was in
//! flight by what it finds, once: a later restart may not change it again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{Rng, T0, eventually, found, list_all, seqs, space, vector};

/// How often the daemon is killed where `FLASHBULB_KILLS` says nothing.
const ROUNDS: usize = 16;
/// After so many a new store begins, with other writers: checking all of an old one takes ever longer.
const ROUNDS_OF_A_STORE: usize = 100;
const WRITERS: usize = 4;
/// All writers write here as well as into a space of their own.
const SHARED_SPACE: &str = "crash-shared";

/// What is known of one memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    /// Present, at this revision.
    At(u64),
    Gone,
}

/// A change that was sent and not answered.
#[derive(Debug)]
struct InFlight {
    space: usize,
    /// Each id with what it was before and what it is if the change happened.
    changes: Vec<(String, Option<Known>, Known)>,
}

/// One writer's oracle; ids carry the writer's number, so writers never touch each other's memories.
struct Writer {
    number: usize,
    rng: Rng,
    spaces: [String; 2],
    known: [BTreeMap<String, Known>; 2],
    in_flight: Vec<InFlight>,
    next: u64,
    /// The highest seq acknowledged in each space.
    acked_seq: [u64; 2],
    acked: usize,
    /// Texts sent without a vector and acknowledged, with their ids.
    to_embed: Vec<(String, String)>,
}

impl Writer {
    fn new(number: usize, seed: u64) -> Self {
        Self {
            number,
            rng: Rng::new(900 + number as u64 + 1000 * seed),
            spaces: [space("crash-own"), SHARED_SPACE.to_owned()],
            known: Default::default(),
            in_flight: Vec::new(),
            next: 0,
            acked_seq: [0; 2],
            acked: 0,
            to_embed: Vec::new(),
        }
    }

    /// Writes until the connection breaks. Only that may end it: an error answer fails the test.
    fn write(&mut self, mut conn: Conn, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let (method, params, change) = self.draw();
            self.in_flight.push(change);
            let Ok(outcome) = conn.try_call(method, &params) else {
                return;
            };
            let result =
                outcome.unwrap_or_else(|e| panic!("{method} by writer {}: {e:?}", self.number));
            self.acknowledge(method, &params, &result);
        }
    }

    /// Sends several adds before it reads the first answer, then reads until the connection breaks.
    fn write_pipelined(&mut self, mut conn: Conn, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut sent = Vec::new();
            for _ in 0..6 {
                let (params, change) = self.draw_add();
                self.in_flight.push(change);
                let Ok(id) = conn.post("memory.add", &params) else {
                    return;
                };
                sent.push((id, params));
            }
            for (id, params) in sent {
                let Ok(line) = conn.try_line() else { return };
                let answer: Value = serde_json::from_str(&line).expect("JSON");
                assert_eq!(answer["id"], json!(id), "one connection is answered in order");
                assert!(answer["result"].is_object(), "{answer}");
                self.acknowledge("memory.add", &params, &answer["result"]);
            }
        }
    }

    /// The oldest change in flight happened.
    fn acknowledge(&mut self, method: &str, params: &Value, result: &Value) {
        let change = self.in_flight.remove(0);
        for (id, _, after) in change.changes {
            self.known[change.space].insert(id, after);
        }
        self.acked += 1;
        if method == "memory.add" {
            let seq = result["seq"].as_u64().expect("add answers a seq");
            assert!(
                seq > self.acked_seq[change.space],
                "seq went from {} to {seq}",
                self.acked_seq[change.space]
            );
            self.acked_seq[change.space] = seq;
            for item in
                params["items"].as_array().expect("items").iter().filter(|i| i["vector"].is_null())
            {
                let text = |key: &str| item[key].as_str().expect("a string").to_owned();
                self.to_embed.push((text("id"), text("text")));
            }
        }
    }

    fn draw(&mut self) -> (&'static str, Value, InFlight) {
        let space = self.rng.below(2);
        let present: Vec<(String, u64)> =
            self.known[space]
                .iter()
                .rev()
                .filter_map(|(id, known)| {
                    if let Known::At(rev) = known { Some((id.clone(), *rev)) } else { None }
                })
                .take(60)
                .collect();
        if present.len() < 10 || self.rng.chance(60) {
            let (params, change) = self.draw_add();
            return ("memory.add", params, change);
        }
        let from = self.rng.below(present.len() - 5);
        if self.rng.chance(50) {
            let doomed = &present[from..from + 1 + self.rng.below(5)];
            let changes = doomed
                .iter()
                .map(|(id, rev)| (id.clone(), Some(Known::At(*rev)), Known::Gone))
                .collect();
            let ids: Vec<&String> = doomed.iter().map(|(id, _)| id).collect();
            let params = json!({"space": self.spaces[space], "ids": ids});
            return ("memory.delete", params, InFlight { space, changes });
        }
        let (id, rev) = present[from].clone();
        let patch = json!({"meta": {"rev": rev + 1}, "session": format!("rev {}", rev + 1)});
        let params = json!({"space": self.spaces[space], "id": id, "patch": patch});
        (
            "memory.update",
            params,
            InFlight { space, changes: vec![(id, Some(Known::At(rev)), Known::At(rev + 1))] },
        )
    }

    fn draw_add(&mut self) -> (Value, InFlight) {
        let space = self.rng.below(2);
        let embed = self.rng.chance(4);
        let size = if embed { 1 } else { [1, 1, 2, 5, 12, 30][self.rng.below(6)] };
        let (mut items, mut changes) = (Vec::new(), Vec::new());
        for _ in 0..size {
            let (n, id) = (self.next, format!("w{}-{:07}", self.number, self.next));
            self.next += 1;
            let text = format!("kept note {n} of writer {}", self.number);
            let mut item = json!({"id": id, "text": text, "ts": T0 + n as i64, "session": "rev 0", "meta": {"rev": 0}});
            if !embed {
                item["vector"] = json!(vector(n));
            }
            items.push(item);
            changes.push((id, None, Known::At(0)));
        }
        (json!({"space": self.spaces[space], "items": items}), InFlight { space, changes })
    }

    /// After a restart: what was in flight is whole or absent, and what is known is as known: `all` of it, or what was written last,
    /// so that many rounds do not read the same again and again.
    fn verify(&mut self, conn: &mut Conn, all: bool) {
        let mut lost = None;
        for change in std::mem::take(&mut self.in_flight) {
            let ids: Vec<String> = change.changes.iter().map(|(id, ..)| id.clone()).collect();
            let got = self.states(conn, change.space, &ids);
            let before: Vec<Option<Known>> = change.changes.iter().map(|(_, b, _)| *b).collect();
            let after: Vec<Option<Known>> =
                change.changes.iter().map(|(_, _, a)| seen(*a)).collect();
            assert!(
                got == before || got == after,
                "a change in flight is half there: {ids:?}: {got:?}"
            );
            if got == before {
                lost = Some(ids);
            } else {
                // What is recovered of one connection is a prefix of what it sent.
                assert!(lost.is_none(), "{ids:?} survived, {lost:?} sent before it did not");
                for (id, _, after) in change.changes {
                    self.known[change.space].insert(id, after);
                }
            }
        }
        for space in 0..2 {
            let most = if all { usize::MAX } else { 500 };
            let known: Vec<(String, Known)> =
                self.known[space].iter().rev().take(most).map(|(i, k)| (i.clone(), *k)).collect();
            for part in known.chunks(500) {
                let ids: Vec<String> = part.iter().map(|(id, _)| id.clone()).collect();
                let got = self.states(conn, space, &ids);
                for ((id, known), got) in part.iter().zip(got) {
                    assert_eq!(
                        got,
                        seen(*known),
                        "{id} in {} after the restart",
                        self.spaces[space]
                    );
                }
            }
        }
    }

    fn states(&self, conn: &mut Conn, space: usize, ids: &[String]) -> Vec<Option<Known>> {
        let got = match conn.call("memory.get", &json!({"space": self.spaces[space], "ids": ids})) {
            Ok(result) => result["items"].as_array().expect("items").clone(),
            // The very first add may have been in flight: then the space does not exist.
            Err(e) => {
                assert_eq!(self.acked_seq[space], 0, "an acknowledged space is lost: {e:?}");
                vec![Value::Null; ids.len()]
            }
        };
        let state = |m: &Value| {
            let rev = m["meta"]["rev"].as_u64()?;
            assert_eq!(m["session"], json!(format!("rev {rev}")), "half an update: {m}");
            Some(Known::At(rev))
        };
        got.iter().map(state).collect()
    }
}

/// What `get` shows of something known.
fn seen(known: Known) -> Option<Known> {
    (known != Known::Gone).then_some(known)
}

/// The order of one space: seqs grow strictly, and each writer's items keep the order they were sent in.
fn check_order(conn: &mut Conn, space: &str) {
    let all = list_all(conn, space, 1000);
    let order = seqs(&Value::from(all.clone()));
    assert!(order.is_sorted_by(|a, b| a < b), "seqs of {space} grow strictly");
    let mut by_writer: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    for memory in all.iter().filter(|m| m["meta"]["rev"] == 0) {
        let id = memory["id"].as_str().expect("an id").to_owned();
        by_writer
            .entry(id[..2].to_owned())
            .or_default()
            .push((memory["seq"].as_u64().unwrap(), id));
    }
    for ids in by_writer.values() {
        assert!(
            ids.is_sorted_by(|a, b| a.1 < b.1),
            "a writer's untouched memories are in the order it sent them"
        );
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let asked = std::env::var("FLASHBULB_KILLS").ok();
    let kills = asked.map_or(ROUNDS, |n| n.parse().expect("FLASHBULB_KILLS is a number"));
    // Several long runs beside each other take seeds of their own.
    let seed = std::env::var("FLASHBULB_KILLS_SEED").ok();
    let seed: u64 = seed.map_or(0, |n| n.parse().expect("FLASHBULB_KILLS_SEED is a number"));
    let (mut done, mut acked) = (0, 0);
    for store in 0.. {
        if done == kills {
            break;
        }
        let rounds = ROUNDS_OF_A_STORE.min(kills - done);
        acked += kill_often(rounds, seed + store);
        done += rounds;
        println!("{done} kills, {acked} changes acknowledged, none lost");
    }
}

/// Kills the daemon of one store so often under load; returns how many changes it acknowledged.
fn kill_often(rounds: usize, seed: u64) -> usize {
    let mut daemon = Daemon::start();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|number| Writer::new(number, seed)).collect();
    let mut rng = Rng::new(7 + 1000 * seed);
    for round in 0..rounds {
        let stop = AtomicBool::new(false);
        let pause = Duration::from_millis(20 + rng.below(380) as u64);
        println!("store {seed}, round {round}: kill after {pause:?}");
        thread::scope(|scope| {
            for writer in &mut writers {
                let (conn, stop) = (daemon.conn(), &stop);
                if writer.number == 0 {
                    scope.spawn(move || writer.write_pipelined(conn, stop));
                } else {
                    scope.spawn(move || writer.write(conn, stop));
                }
            }
            thread::sleep(pause);
            daemon.kill9();
            stop.store(true, Ordering::Relaxed);
        });
        daemon.run();
        let mut conn = daemon.conn();
        for writer in &mut writers {
            writer.verify(&mut conn, round % 20 == 19 || round + 1 == rounds);
        }
    }
    let acked: usize = writers.iter().map(|w| w.acked).sum();
    assert!(
        acked > 10 * rounds,
        "only {acked} changes were acknowledged: the test did not load the daemon"
    );
    let mut conn = daemon.conn();
    check_order(&mut conn, SHARED_SPACE);
    writers.iter().for_each(|w| check_order(&mut conn, &w.spaces[0]));
    check_embedded(&mut conn, &writers);
    acked
}

/// Texts acknowledged without a vector are embedded in the end, although the daemon died many times since.
fn check_embedded(conn: &mut Conn, writers: &[Writer]) {
    let mut checked = 0;
    for writer in writers {
        for (id, text) in writer.to_embed.iter().rev().take(8) {
            let held = |space: usize| writer.known[space].get(id).copied().and_then(seen).is_some();
            let Some(space) = (0..2).find(|s| held(*s)) else {
                continue;
            };
            let space = &writer.spaces[space];
            eventually(
                &format!("{id} is embedded after the crash"),
                Duration::from_secs(60),
                || found(conn, space, text, 50).contains(id),
            );
            checked += 1;
        }
    }
    assert!(checked > 0, "no text without a vector survived to be checked");
}

#[test]
fn a_crash_right_after_the_answer_keeps_delete_drop_and_update() {
    let mut daemon = Daemon::start();
    let mut conn = daemon.conn();
    let item = |id: &str, n: u64| json!({"id": id, "text": format!("note {n}"), "vector": vector(n), "meta": {"n": n}});
    for space in ["kept", "dropped"] {
        conn.ok(
            "memory.add",
            json!({"space": space, "items": [item("a", 1), item("b", 2), item("c", 3)]}),
        );
    }
    conn.ok("memory.delete", json!({"space": "kept", "ids": ["a"]}));
    conn.ok("memory.update", json!({"space": "kept", "id": "b", "patch": {"meta": {"n": 20}}}));
    conn.ok("space.drop", json!({"space": "dropped"}));
    let before = list_all(&mut conn, "kept", 100);
    for _ in 0..2 {
        daemon.kill9();
        daemon.run();
        let mut conn = daemon.conn();
        assert_eq!(list_all(&mut conn, "kept", 100), before);
        conn.err("memory.list", json!({"space": "dropped"})).assert_own();
        let hits = conn.ok("memory.search", json!({"space": "kept", "vector": vector(1), "k": 10}));
        assert_eq!(hits["hits"].as_array().expect("hits").len(), 2);
    }
    let mut conn = daemon.conn();
    let last = before.last().unwrap()["seq"].as_u64().unwrap();
    let added = conn.ok("memory.add", json!({"space": "kept", "items": [item("d", 4)]}));
    assert!(added["seq"].as_u64().unwrap() > last, "seq goes on after a restart: {added}");
    conn.ok("memory.add", json!({"space": "dropped", "items": [item("z", 5)]}));
    assert_eq!(
        list_all(&mut conn, "dropped", 100).len(),
        1,
        "a dropped space starts empty after a crash too"
    );
}
