//! `memory.add` with an `idempotency_key`, and repeated adds without one.
//!
//! Invariant checked: a client that lost an answer may ask again, and what it added is there once: whoever repeats,
//! however often, at the same time, and whether or not the daemon died in between.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::{Daemon, shared};
use crate::data::{ids, list_all, space, vector};

fn items(n: usize) -> Value {
    let item = |i: usize| json!({"text": format!("keyed note {i}"), "role": "user", "meta": {"n": i}, "vector": vector(i as u64)});
    (0..n).map(item).collect()
}

fn request(space: &str, key: &str, items: &Value) -> Value {
    json!({"space": space, "items": items, "idempotency_key": key})
}

/// The ids and statuses that an add answered.
#[track_caller]
fn answered(result: &Value) -> (Vec<String>, Vec<String>) {
    let status = |i: &Value| i["status"].as_str().expect("a status").to_owned();
    let items = result["items"].as_array().expect("items");
    (ids(&result["items"]), items.iter().map(status).collect())
}

#[track_caller]
fn add(conn: &mut Conn, space: &str, key: &str, items: &Value) -> (Vec<String>, Vec<String>) {
    answered(&conn.ok("memory.add", request(space, key, items)))
}

#[test]
fn a_repeated_request_adds_nothing_and_answers_the_same_ids() {
    let (mut conn, space) = (shared().conn(), space("idem"));
    let (first, statuses) = add(&mut conn, &space, "key-1", &items(4));
    assert_eq!(statuses, ["added"; 4]);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4, "each item has an id of its own");
    let before = list_all(&mut conn, &space, 100);
    assert_eq!(ids(&json!(before)), first);
    for repeat in 0..3 {
        // On another connection, as after a lost one, and whatever it waits for.
        let mut conn = shared().conn();
        let mut request = request(&space, "key-1", &items(4));
        request["wait"] = json!(["durable", "searchable"][repeat % 2]);
        let (again, statuses) = answered(&conn.ok("memory.add", request));
        assert_eq!((again, statuses), (first.clone(), vec!["skipped".to_owned(); 4]));
    }
    assert_eq!(list_all(&mut conn, &space, 100), before);
    // Another key is another request, and so is the same key in another space.
    let (other, statuses) = add(&mut conn, &space, "key-2", &items(4));
    assert_eq!(statuses, ["added"; 4]);
    assert!(other.iter().all(|id| !first.contains(id)), "{other:?}");
    let elsewhere = crate::data::space("idem");
    let (third, statuses) = add(&mut conn, &elsewhere, "key-1", &items(4));
    assert_eq!(statuses, ["added"; 4]);
    assert!(third.iter().all(|id| !first.contains(id)), "ids tell nothing of another space");
    assert_eq!(list_all(&mut conn, &space, 100).len(), 8);
}

#[test]
fn ids_of_the_callers_own_are_kept_and_texts_are_embedded() {
    let (mut conn, space) = (shared().conn(), space("idem-mixed"));
    let mixed = json!([{"id": "mine", "text": "The stork nests on the town hall"}, {"text": "Bread is baked at four in the morning"}]);
    let (first, statuses) = add(&mut conn, &space, "mixed", &mixed);
    assert_eq!((first[0].as_str(), statuses), ("mine", vec!["added".to_owned(); 2]));
    let mut again = request(&space, "mixed", &mixed);
    again["wait"] = json!("searchable");
    assert_eq!(
        answered(&conn.ok("memory.add", again)),
        (first.clone(), vec!["skipped".to_owned(); 2])
    );
    let found = crate::data::found(&mut conn, &space, "a bird on a roof", 1);
    assert_eq!(found, ["mine"], "a repeat that waits until it can be found means it");
    // An item with an id that somebody else's request made is no repetition.
    let theirs = json!([{"id": "mine", "text": "other words"}, {"text": "more"}]);
    let e = conn.err("memory.add", request(&space, "another", &theirs));
    assert_eq!(e.code, 1003, "{e:?}");
    assert_eq!(list_all(&mut conn, &space, 10).len(), 2);
}

#[test]
fn the_same_key_with_another_content_is_a_conflict() {
    let (mut conn, space) = (shared().conn(), space("idem-conflict"));
    add(&mut conn, &space, "k", &items(3));
    let before = list_all(&mut conn, &space, 100);
    let changed = |path: &str, value: Value| {
        let mut changed = items(3);
        *changed.pointer_mut(path).expect("a place") = value;
        changed
    };
    let mut cases = vec![
        ("the text of the first", changed("/0/text", json!("other words"))),
        ("the text of the last", changed("/2/text", json!("other words"))),
        ("the role", changed("/1/role", json!("assistant"))),
        ("the meta", changed("/1/meta", json!({"n": 10}))),
        ("one item more", items(4)),
        ("one item less", items(2)),
    ];
    let mut swapped = items(3);
    swapped.as_array_mut().unwrap().swap(0, 1);
    cases.push(("the order", swapped));
    for (what, items) in cases {
        match conn.call("memory.add", &request(&space, "k", &items)) {
            Err(e) => assert_eq!(e.code, 1003, "{what}: {e:?}"),
            Ok(answer) => panic!("{what} differs and was answered {answer}"),
        }
        assert_eq!(list_all(&mut conn, &space, 100), before, "{what}");
    }
    let (_, statuses) = add(&mut conn, &space, "k", &items(3));
    assert_eq!(statuses, ["skipped"; 3], "the first request itself may still be repeated");
}

#[test]
fn what_was_deleted_since_stays_deleted() {
    let (mut conn, space) = (shared().conn(), space("idem-deleted"));
    let (first, _) = add(&mut conn, &space, "k", &items(3));
    conn.ok("memory.delete", json!({"space": space, "ids": [first[1]]}));
    for _ in 0..2 {
        let (again, statuses) = add(&mut conn, &space, "k", &items(3));
        assert_eq!((again, statuses), (first.clone(), vec!["skipped".to_owned(); 3]));
        let there = ids(&json!(list_all(&mut conn, &space, 10)));
        assert_eq!(there, [first[0].clone(), first[2].clone()]);
    }
    conn.ok("admin.compact", json!({}));
    let (_, statuses) = add(&mut conn, &space, "k", &items(3));
    assert_eq!(statuses, ["skipped"; 3], "also once the deletion was compacted away");
    assert_eq!(list_all(&mut conn, &space, 10).len(), 2);
}

#[test]
fn an_update_in_between_is_not_undone() {
    let (mut conn, space) = (shared().conn(), space("idem-updated"));
    let (first, _) = add(&mut conn, &space, "k", &items(2));
    let patch = json!({"text": "corrected words"});
    conn.ok("memory.update", json!({"space": space, "id": first[0], "patch": patch}));
    let before = list_all(&mut conn, &space, 10);
    // It is the request of before, word for word, so it is answered as such.
    let (again, statuses) = add(&mut conn, &space, "k", &items(2));
    assert_eq!((again, statuses), (first, vec!["skipped".to_owned(); 2]));
    assert_eq!(list_all(&mut conn, &space, 10), before);
}

#[test]
fn eight_clients_that_repeat_at_once_add_once() {
    let space = space("idem-race");
    for round in 0..6 {
        let key = format!("round {round}");
        let answers: Vec<(Vec<String>, Vec<String>)> = thread::scope(|scope| {
            let client = || {
                let (mut conn, space, key) = (shared().conn(), &space, &key);
                move || add(&mut conn, space, key, &items(5))
            };
            let clients: Vec<_> = (0..8).map(|_| scope.spawn(client())).collect();
            clients.into_iter().map(|c| c.join().expect("a client")).collect()
        });
        assert!(answers.iter().all(|(ids, _)| *ids == answers[0].0), "{answers:?}");
        let added = answers.iter().filter(|(_, s)| s.iter().all(|s| s == "added")).count();
        let skipped = answers.iter().filter(|(_, s)| s.iter().all(|s| s == "skipped")).count();
        assert_eq!((added, skipped), (1, 7), "{answers:?}");
    }
    assert_eq!(list_all(&mut shared().conn(), &space, 1000).len(), 30);
}

#[test]
fn keys_that_are_none_are_invalid_params() {
    let (mut conn, space) = (shared().conn(), space("idem-keys"));
    let wrong = [
        json!(""),
        json!("x".repeat(129)),
        json!("ü".repeat(65)),
        json!(5),
        json!(["k"]),
        json!({}),
        json!(true),
    ];
    for key in wrong {
        let params = json!({"space": space, "items": items(1), "idempotency_key": key});
        conn.err("memory.add", params).assert_invalid("idempotency_key");
    }
    conn.err("memory.list", json!({"space": space})).assert_own();
    for key in ["x".repeat(128), "ü".repeat(64), " ".to_owned(), "\u{0}/../\n🚀".to_owned()] {
        let (_, statuses) = add(&mut conn, &space, &key, &items(1));
        assert_eq!(statuses, ["added"], "{key:?}");
        let (_, statuses) = add(&mut conn, &space, &key, &items(1));
        assert_eq!(statuses, ["skipped"], "{key:?}");
    }
    assert_eq!(list_all(&mut conn, &space, 10).len(), 4);
}

#[test]
fn without_a_key_the_same_ids_never_make_a_second_memory() {
    let (mut conn, space) = (shared().conn(), space("idem-none"));
    let named = json!([{"id": "a", "text": "one", "vector": vector(1)}, {"id": "b", "text": "two", "vector": vector(2)}]);
    let ask =
        |on_conflict: &str| json!({"space": space, "items": named, "on_conflict": on_conflict});
    conn.ok("memory.add", json!({"space": space, "items": named}));
    assert_eq!(conn.err("memory.add", json!({"space": space, "items": named})).code, 1003);
    assert_eq!(conn.err("memory.add", ask("error")).code, 1003);
    assert_eq!(answered(&conn.ok("memory.add", ask("skip"))).1, ["skipped"; 2]);
    assert_eq!(answered(&conn.ok("memory.add", ask("replace"))).1, ["replaced"; 2]);
    assert_eq!(ids(&json!(list_all(&mut conn, &space, 10))), ["a", "b"]);
}

/// The request is under way when the daemon dies: it happened whole or not at all, and the repetition settles it.
#[test]
fn a_repetition_after_kill_9_settles_what_was_unknown() {
    let mut daemon = Daemon::start();
    let (mut whole, mut none) = (0, 0);
    for round in 0..5_u64 {
        let (key, n) = (format!("round {round}"), 1 + 40 * (round as usize % 3));
        let mut conn = daemon.conn();
        conn.post("memory.add", &request("idem-crash", &key, &items(n)))
            .expect("the request is sent");
        // From before it is read to after it is answered.
        thread::sleep(Duration::from_millis([0, 2, 5, 12, 60][round as usize]));
        daemon.kill9();
        let answer = conn.try_line().ok();
        daemon.run();
        let mut conn = daemon.conn();
        let (first, statuses) = add(&mut conn, "idem-crash", &key, &items(n));
        let (again, repeated) = add(&mut conn, "idem-crash", &key, &items(n));
        assert_eq!((&again, repeated), (&first, vec!["skipped".to_owned(); n]));
        let was_there = statuses.iter().all(|s| s == "skipped");
        assert!(was_there || statuses.iter().all(|s| s == "added"), "half of it: {statuses:?}");
        if let Some(line) = answer {
            let answer: Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!(
                ids(&answer["result"]["items"]),
                first,
                "the ids that were answered before it died"
            );
            assert!(was_there, "acknowledged before it died, and added again: {statuses:?}");
        }
        (whole, none) = (whole + usize::from(was_there), none + usize::from(!was_there));
    }
    println!("{whole} had happened, {none} had not");
    assert_eq!(list_all(&mut daemon.conn(), "idem-crash", 1000).len(), 1 + 41 + 81 + 1 + 41);
}

/// Acknowledged, sealed and restarted in every way: the repetition still knows it.
#[test]
fn a_key_is_known_after_sealing_restarts_and_crashes() {
    let mut daemon = Daemon::start();
    let (first, _) = add(&mut daemon.conn(), "idem-kept", "k", &items(30));
    for step in ["kill", "compact", "kill", "term"] {
        match step {
            "compact" => drop(daemon.conn().ok("admin.compact", json!({}))),
            "kill" => daemon.kill9(),
            _ => assert!(daemon.terminate().success()),
        }
        if step != "compact" {
            daemon.run();
        }
        let mut conn = daemon.conn();
        let again = add(&mut conn, "idem-kept", "k", &items(30));
        assert_eq!(again, (first.clone(), vec!["skipped".to_owned(); 30]), "after {step}");
        let e = conn.err("memory.add", request("idem-kept", "k", &items(31)));
        assert_eq!(e.code, 1003, "after {step}: {e:?}");
        assert_eq!(list_all(&mut conn, "idem-kept", 100).len(), 30, "after {step}");
    }
}
