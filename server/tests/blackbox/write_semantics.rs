//! What add, update and delete promise, one by one.
//!
//! Invariant checked: a write happens whole or not at all, answers what it did, and can be read at once.

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};

use crate::daemon::shared;
use crate::data::{
    NOTES, add, counts, found, ids, list_all, notes_space, seqs, space, vector, vector_space,
};

#[test]
fn conflicts_are_refused_skipped_or_replaced_and_say_so() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "conflict", 3);
    let both = |mode: &str| {
        let item = |id: &str| json!({"id": id, "text": format!("{mode} wrote this"), "vector": vector(77)});
        json!({"space": space, "items": [item("v1"), item(&format!("new-{mode}"))], "on_conflict": mode, "wait": "searchable"})
    };
    let refused = conn.err("memory.add", both("error"));
    assert!(refused.assert_own().message.contains("v1"), "the conflict is named: {refused:?}");
    assert_eq!(list_all(&mut conn, &space, 100).len(), 3, "a refused add adds nothing");
    let status = |result: &Value| {
        let statuses: Vec<String> = result["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|i| i["status"].as_str().expect("a status").to_owned())
            .collect();
        statuses
    };
    let skipped = conn.ok("memory.add", both("skip"));
    assert_eq!(ids(&skipped["items"]), ["v1", "new-skip"]);
    let text = |conn: &mut crate::client::Conn| {
        conn.ok("memory.get", json!({"space": space, "ids": ["v1"]}))["items"][0]["text"].clone()
    };
    assert_eq!(text(&mut conn), "vector note 1");
    let replaced = conn.ok("memory.add", both("replace"));
    assert_eq!(text(&mut conn), "replace wrote this");
    assert_eq!(list_all(&mut conn, &space, 100).len(), 5, "a replaced memory is one memory");
    let (s, r) = (status(&skipped), status(&replaced));
    assert_eq!(s[1], r[1], "both added one: {s:?} {r:?}");
    let kinds: BTreeSet<&String> = [&s[0], &r[0], &s[1]].into();
    assert_eq!(kinds.len(), 3, "skipped, replaced and added are told apart: {s:?} {r:?}");
    let hits =
        conn.ok("memory.search", json!({"space": space, "vector": vector(1), "k": 10}))["hits"]
            .clone();
    assert_eq!(hits.as_array().map(Vec::len), Some(5));
    assert!(hits[0]["score"].as_f64().unwrap() < 0.9, "the replaced vector is gone: {hits}");
}

#[test]
fn a_replace_without_new_text_keeps_nothing_of_the_old() {
    let mut conn = shared().conn();
    let space = space("replace");
    add(
        &mut conn,
        &space,
        json!([{"id": "a", "text": "old", "role": "user", "session": "s", "ts": 5, "meta": {"k": 1}, "vector": vector(1)}]),
    );
    let item = json!([{"id": "a", "text": "new", "vector": vector(2)}]);
    conn.ok("memory.add", json!({"space": space, "items": item, "on_conflict": "replace"}));
    let got = conn.ok("memory.get", json!({"space": space, "ids": ["a"]}))["items"][0].clone();
    assert_eq!(
        (&got["text"], &got["role"], &got["session"]),
        (&json!("new"), &Value::Null, &Value::Null),
        "{got}"
    );
    assert!(got["meta"].is_null() || got["meta"] == json!({}), "{got}");
    assert_ne!(got["ts"], 5, "{got}");
}

#[test]
fn a_bad_item_anywhere_adds_nothing() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "bad-item", 2);
    for at in [0, 5, 9] {
        let mut items: Vec<Value> = (0..10)
            .map(|i| json!({"id": format!("x{i}"), "text": "fine", "vector": vector(i)}))
            .collect();
        for bad in [
            json!({"id": "bad"}),
            json!({"text": "x", "ts": "never"}),
            json!({"id": "v0", "text": "taken"}),
            json!({"id": "x3", "text": "twice"}),
        ] {
            let kept = std::mem::replace(&mut items[at], bad);
            conn.err("memory.add", json!({"space": space, "items": items}));
            items[at] = kept;
        }
    }
    assert_eq!(list_all(&mut conn, &space, 100).len(), 2);
    conn.err("memory.add", json!({"space": "bad-item-never-made", "items": [{"text": ""}]}));
    conn.err("memory.list", json!({"space": "bad-item-never-made"})).assert_own();
}

#[test]
fn seq_grows_with_every_add_and_orders_the_space() {
    let mut conn = shared().conn();
    let space = space("seq");
    let mut last = 0;
    for i in 0..6_u64 {
        // Timestamps run backwards: order is the order of arrival, not of `ts`.
        let item = |j: u64| json!({"id": format!("m{i}-{j}"), "text": "t", "ts": 1_000_000 - i64::try_from(10 * i + j).unwrap(), "vector": vector(i)});
        let seq = add(&mut conn, &space, json!([item(0), item(1), item(2)]))["seq"]
            .as_u64()
            .expect("a seq");
        assert!(seq > last, "{seq} after {last}");
        last = seq;
    }
    let all = Value::from(list_all(&mut conn, &space, 4));
    assert!(seqs(&all).is_sorted_by(|a, b| a < b), "{:?}", seqs(&all));
    let want: Vec<String> = (0..6).flat_map(|i| (0..3).map(move |j| format!("m{i}-{j}"))).collect();
    assert_eq!(ids(&all), want);
    assert_eq!(*seqs(&all).last().unwrap(), last, "add answers the seq of its last item");
}

#[test]
fn concurrent_adds_get_one_order() {
    let space = space("concurrent");
    let (threads, adds) = (6, 25);
    let answered: Vec<u64> = thread::scope(|scope| {
        let one = |t: u64| {
            let space = &space;
            scope.spawn(move || {
                let mut conn = shared().conn();
                let item = |i: u64| json!([{"id": format!("t{t}-{i:03}"), "text": "t", "vector": vector(t * 100 + i)}]);
                (0..adds).map(|i| conn.ok("memory.add", json!({"space": space, "items": item(i)}))["seq"].as_u64().unwrap()).collect::<Vec<_>>()
            })
        };
        let workers: Vec<_> = (0..threads).map(one).collect();
        workers.into_iter().flat_map(|w| w.join().expect("a writer")).collect()
    });
    assert_eq!(
        answered.iter().collect::<BTreeSet<_>>().len() as u64,
        threads * adds,
        "no two adds share a seq"
    );
    let all = list_all(&mut shared().conn(), &space, 17);
    assert_eq!(all.len() as u64, threads * adds);
    for t in 0..threads {
        let own: Vec<String> = ids(&Value::from(all.clone()))
            .into_iter()
            .filter(|id| id.starts_with(&format!("t{t}-")))
            .collect();
        assert!(own.is_sorted(), "one connection's adds keep their order: {own:?}");
    }
}

#[test]
fn searchable_means_found_at_once() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "at-once");
    for i in 0..30 {
        let text = format!(
            "The code word of day {i} is {}",
            ["heron", "basalt", "violet", "anchor", "thimble"][i % 5]
        );
        add(&mut conn, &space, json!([{"id": format!("d{i}"), "text": text}]));
        let hits = found(&mut conn, &space, &text, 3);
        assert!(hits.contains(&format!("d{i}")), "day {i} right after its add: {hits:?}");
    }
}

#[test]
fn min_seq_reads_what_was_written() {
    let mut conn = shared().conn();
    let mut other = shared().conn();
    let space = notes_space(&mut conn, "min-seq");
    for i in 0..20 {
        let text = format!("A package for apartment {} arrived", 100 + i);
        let added = conn.ok(
            "memory.add",
            json!({"space": space, "items": [{"id": format!("p{i}"), "text": text}]}),
        );
        let params = json!({"space": space, "query": text, "k": 50, "min_seq": added["seq"]});
        let hits = ids(&other.ok("memory.search", params)["hits"]);
        assert!(hits.contains(&format!("p{i}")), "p{i} on another connection: {hits:?}");
    }
    let far = json!({"space": space, "query": "x", "min_seq": u64::MAX / 2, "deadline_ms": 300});
    conn.err("memory.search", far).assert_own();
}

#[test]
fn update_of_text_changes_what_is_found() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "update-text");
    let text = "The canary sings whenever the kettle boils";
    let result =
        conn.ok("memory.update", json!({"space": space, "id": "n4", "patch": {"text": text}}));
    assert!(counts(&result, 1), "{result}");
    assert_eq!(
        found(&mut conn, &space, "a bird and hot water", 1),
        ["n4"],
        "a short new text is found as soon as the update is answered"
    );
    let trains = conn
        .ok("memory.search", json!({"space": space, "query": NOTES[4], "k": 10, "mode": "dense"}))
        ["hits"]
        .clone();
    let old = trains.as_array().unwrap().iter().find(|h| h["id"] == "n4").expect("ten of ten");
    assert!(old["score"].as_f64().unwrap() < 0.8, "the old text's vector is gone: {old}");
    let all = list_all(&mut conn, &space, 100);
    assert_eq!(all.iter().filter(|m| m["id"] == "n4").count(), 1);
    let got = conn.ok("memory.get", json!({"space": space, "ids": ["n4"]}))["items"][0].clone();
    assert_eq!(
        (&got["text"], &got["ts"]),
        (&json!(text), &json!(crate::data::T0 + 240_000)),
        "what the patch leaves out stays"
    );
}

#[test]
fn update_of_meta_alone_keeps_the_vector() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "update-meta", 20);
    let search = json!({"space": space, "vector": vector(7), "k": 1});
    let before = conn.ok("memory.search", search.clone())["hits"][0].clone();
    for patch in [
        json!({"meta": {"n": 700}}),
        json!({"role": "editor"}),
        json!({"session": "late"}),
        json!({"ts": 12}),
    ] {
        conn.ok("memory.update", json!({"space": space, "id": "v7", "patch": patch}));
        let after = conn.ok("memory.search", search.clone())["hits"][0].clone();
        assert_eq!(
            (&after["id"], &after["score"]),
            (&before["id"], &before["score"]),
            "after {patch}"
        );
        let (field, want) = patch.as_object().unwrap().iter().next().unwrap();
        if field == "meta" {
            assert_eq!(after["meta"]["n"], 700);
        } else {
            assert_eq!(after[field], *want);
        }
    }
    let filter = json!({"space": space, "vector": vector(7), "filter": {"meta.n": {"eq": 700}}});
    assert_eq!(ids(&conn.ok("memory.search", filter)["hits"]), ["v7"], "filters see the new meta");
    let old = json!({"space": space, "vector": vector(7), "filter": {"meta.n": {"eq": 7}}});
    assert_eq!(conn.ok("memory.search", old)["hits"], json!([]), "and no more the old");
}

#[test]
fn update_with_if_seq_guards_against_another_writer() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "if-seq", 3);
    let seq = |conn: &mut crate::client::Conn| {
        conn.ok("memory.get", json!({"space": space, "ids": ["v1"]}))["items"][0]["seq"]
            .as_u64()
            .unwrap()
    };
    let first = seq(&mut conn);
    conn.err(
        "memory.update",
        json!({"space": space, "id": "v1", "patch": {"role": "x"}, "if_seq": first + 1000}),
    )
    .assert_own();
    conn.ok(
        "memory.update",
        json!({"space": space, "id": "v1", "patch": {"role": "y"}, "if_seq": first}),
    );
    let got = conn.ok("memory.get", json!({"space": space, "ids": ["v1"]}))["items"][0].clone();
    assert_eq!(got["role"], "y");
    conn.err("memory.update", json!({"space": space, "id": "absent", "patch": {"role": "x"}}))
        .assert_own();
    conn.err("memory.update", json!({"space": space, "id": "v1", "patch": {"id": "renamed"}}));
    conn.err("memory.update", json!({"space": space, "id": "v1", "patch": {"text": ""}}));
    assert_eq!(list_all(&mut conn, &space, 10).len(), 3);
}

#[test]
fn delete_answers_counts_and_keeps_its_guards() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "delete", 30);
    let gone = conn.ok("memory.delete", json!({"space": space, "ids": ["v1", "v2", "nobody"]}));
    assert!(counts(&gone, 2), "{gone}");
    let again = conn.ok("memory.delete", json!({"space": space, "ids": ["v1", "v2"]}));
    assert!(counts(&again, 0), "{again}");
    let user = json!({"role": {"eq": "user"}});
    let dry = conn.ok("memory.delete", json!({"space": space, "filter": user, "dry_run": true}));
    assert!(counts(&dry, 14), "v0, v4, v6, …: {dry}");
    let dry =
        conn.ok("memory.delete", json!({"space": space, "ids": ["v3", "nobody"], "dry_run": true}));
    assert!(counts(&dry, 1), "{dry}");
    for wrong in [0, 13, 15] {
        conn.err("memory.delete", json!({"space": space, "filter": user, "expect_count": wrong}))
            .assert_own();
    }
    conn.err("memory.delete", json!({"space": space, "ids": ["v3", "v5"], "expect_count": 1}))
        .assert_own();
    assert_eq!(
        list_all(&mut conn, &space, 100).len(),
        28,
        "nothing was deleted by dry runs and refusals"
    );
    let done =
        conn.ok("memory.delete", json!({"space": space, "filter": user, "expect_count": 14}));
    assert!(counts(&done, 14), "{done}");
    let none = conn.ok("memory.delete", json!({"space": space, "filter": user}));
    assert!(counts(&none, 0), "{none}");
    let hits =
        conn.ok("memory.search", json!({"space": space, "vector": vector(4), "k": 100}))["hits"]
            .clone();
    assert_eq!(hits.as_array().map(Vec::len), Some(14));
    assert!(ids(&hits).iter().all(|id| id[1..].parse::<usize>().unwrap() % 2 == 1), "{hits}");
}

#[test]
fn a_deleted_id_may_be_added_again() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "again", 5);
    for round in 0..5_u64 {
        conn.ok("memory.delete", json!({"space": space, "ids": ["v2"]}));
        let item =
            json!([{"id": "v2", "text": format!("round {round}"), "vector": vector(100 + round)}]);
        add(&mut conn, &space, item);
        let hits = conn
            .ok("memory.search", json!({"space": space, "vector": vector(100 + round), "k": 100}))
            ["hits"]
            .clone();
        assert_eq!(
            (&hits[0]["id"], &hits[0]["text"]),
            (&json!("v2"), &json!(format!("round {round}")))
        );
        assert_eq!(hits.as_array().map(Vec::len), Some(5));
    }
    assert_eq!(
        ids(&Value::from(list_all(&mut conn, &space, 2))).last().unwrap(),
        "v2",
        "what is added again comes last"
    );
}
