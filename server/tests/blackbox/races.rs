//! Several clients after the same thing at once.
//!
//! Invariant checked: one wins where one may win, counts add up, and nothing is left half done.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;

use serde_json::{Value, json};

use crate::client::{Conn, RpcError};
use crate::daemon::{Daemon, shared};
use crate::data::{ids, list_all, seqs, space, vector, vector_space};

const CLIENTS: usize = 8;

/// Lets every client do the same call at the same moment.
fn all_at_once(
    call: impl Fn(usize, &mut Conn) -> Result<Value, RpcError> + Sync,
) -> Vec<Result<Value, RpcError>> {
    let start = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        let one = |client: usize| {
            let (start, call) = (&start, &call);
            scope.spawn(move || {
                let mut conn = shared().conn();
                start.wait();
                call(client, &mut conn)
            })
        };
        let running: Vec<_> = (0..CLIENTS).map(one).collect();
        running.into_iter().map(|r| r.join().expect("a client")).collect()
    })
}

#[test]
fn one_of_many_adds_of_an_id_wins() {
    let space = space("race-add");
    for round in 0..15 {
        let item = |client: usize| json!([{"id": format!("r{round}"), "text": format!("by {client}"), "vector": vector(client as u64)}]);
        let answers = all_at_once(|client, conn| {
            conn.call("memory.add", &json!({"space": space, "items": item(client)}))
        });
        let won: Vec<usize> = (0..CLIENTS).filter(|c| answers[*c].is_ok()).collect();
        assert_eq!(won.len(), 1, "round {round}: {answers:?}");
        for lost in answers.iter().filter_map(|a| a.as_ref().err()) {
            lost.assert_own();
        }
        let got = shared()
            .conn()
            .ok("memory.get", json!({"space": space, "ids": [format!("r{round}")]}))["items"]
            .clone();
        assert_eq!(got[0]["text"], json!(format!("by {}", won[0])), "the winner's text is there");
    }
    assert_eq!(
        list_all(&mut shared().conn(), &space, 100).len(),
        15,
        "the first adds made the space once"
    );
}

#[test]
fn replaces_of_an_id_leave_one_memory() {
    let space = space("race-replace");
    for round in 0..15 {
        let item = |client: usize| json!([{"id": "x", "text": format!("by {client}"), "vector": vector(client as u64)}]);
        let replace = |client: usize| json!({"space": space, "items": item(client), "on_conflict": "replace", "wait": "searchable"});
        let answers = all_at_once(|client, conn| conn.call("memory.add", &replace(client)));
        assert!(answers.iter().all(Result::is_ok), "round {round}: {answers:?}");
    }
    let mut conn = shared().conn();
    let all = list_all(&mut conn, &space, 100);
    assert_eq!(all.len(), 1);
    let client: u64 = all[0]["text"].as_str().unwrap()[3..].parse().unwrap();
    let hits = conn.ok("memory.search", json!({"space": space, "vector": vector(client), "k": 10}))
        ["hits"]
        .clone();
    assert_eq!(hits.as_array().map(Vec::len), Some(1));
    assert!(
        hits[0]["score"].as_f64().unwrap() > 0.99,
        "text and vector are of the same replace: {hits}"
    );
}

#[test]
fn deletes_count_each_memory_once() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "race-delete", 200);
    let names: Vec<String> = (0..200).map(|i| format!("v{i}")).collect();
    let answers =
        all_at_once(|_, conn| conn.call("memory.delete", &json!({"space": space, "ids": names})));
    let full =
        answers.iter().filter(|a| a.as_ref().is_ok_and(|r| crate::data::counts(r, 200))).count();
    assert!(answers.iter().all(Result::is_ok) && full >= 1, "{answers:?}");
    let deleted: u64 = answers.iter().flatten().filter_map(|r| r["deleted"].as_u64()).sum();
    assert_eq!(deleted, 200, "each was deleted once: {answers:?}");
    assert_eq!(list_all(&mut conn, &space, 100).len(), 0);
}

#[test]
fn if_seq_lets_one_writer_through() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "race-if-seq", 1);
    let seq = |conn: &mut Conn| {
        conn.ok("memory.get", json!({"space": space, "ids": ["v0"]}))["items"][0]["seq"].clone()
    };
    for round in 0..15 {
        let at = seq(&mut conn);
        let patch = |client: usize| json!({"space": space, "id": "v0", "patch": {"role": format!("{round}-{client}")}, "if_seq": at});
        let answers = all_at_once(|client, conn| conn.call("memory.update", &patch(client)));
        let won: Vec<usize> = (0..CLIENTS).filter(|c| answers[*c].is_ok()).collect();
        assert_eq!(won.len(), 1, "round {round}: {answers:?}");
        let got = conn.ok("memory.get", json!({"space": space, "ids": ["v0"]}))["items"][0].clone();
        assert_eq!(got["role"], json!(format!("{round}-{}", won[0])));
    }
}

#[test]
fn drops_beside_adds_leave_whole_batches() {
    let mut daemon = Daemon::start();
    let start = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (start, mut conn) = (&start, daemon.conn());
            scope.spawn(move || {
                start.wait();
                for n in 0..60 {
                    if client == 0 {
                        // Unknown, when it comes right after another drop.
                        let _ = conn.call("space.drop", &json!({"space": "contested"}));
                        continue;
                    }
                    let item = |i: u64| json!({"id": format!("c{client}-{n}-{i}"), "text": "t", "vector": vector(i)});
                    let items: Vec<Value> = (0..5).map(item).collect();
                    conn.ok("memory.add", json!({"space": "contested", "items": items, "wait": "searchable"}));
                }
            });
        }
    });
    let whole = |conn: &mut Conn| {
        let all = Value::from(list_all(conn, "contested", 1000));
        assert!(seqs(&all).is_sorted_by(|a, b| a < b));
        let names = ids(&all);
        let batches: BTreeSet<&str> =
            names.iter().map(|id| id.rsplit_once('-').unwrap().0).collect();
        assert_eq!(names.len(), 5 * batches.len(), "every batch is whole");
        let hits =
            conn.ok("memory.search", json!({"space": "contested", "vector": vector(1), "k": 1000}))
                ["hits"]
                .clone();
        assert_eq!(
            hits.as_array().map(Vec::len),
            Some(names.len().min(1000)),
            "all that is listed is found"
        );
        names
    };
    let mut conn = daemon.conn();
    conn.ok("memory.add", json!({"space": "contested", "items": (0..5).map(|i| json!({"id": format!("last-{i}"), "text": "t", "vector": vector(i)})).collect::<Vec<_>>(), "wait": "searchable"}));
    let before = whole(&mut conn);
    daemon.kill9();
    daemon.run();
    assert_eq!(whole(&mut daemon.conn()), before, "the restart resolves the race the same way");
}
