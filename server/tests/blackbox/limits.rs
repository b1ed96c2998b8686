//! The limits of parameters, each with its own clear error, and the daemon unharmed beyond them.
//!
//! Invariant checked: at the limit a request works; one past it is refused with a message that names what was too
//! much, and nothing was changed. Limits the protocol does not number are only required to be errors, never crashes.

use serde_json::{Value, json};

use crate::client::{clip, outcome};
use crate::daemon::shared;
use crate::data::{add, list_all, notes_space, space, vector, vector_space};

#[test]
fn k_is_one_to_a_thousand() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "k", 1100);
    for k in [1, 2, 999, 1000] {
        let hits =
            conn.ok("memory.search", json!({"space": space, "vector": vector(5), "k": k}))["hits"]
                .clone();
        assert_eq!(hits.as_array().map(Vec::len), Some(k), "k {k}");
        assert_eq!(hits[0]["id"], "v5", "the vector itself is nearest");
    }
    for k in [json!(0), json!(1001), json!(4_294_967_296_u64), json!(u64::MAX)] {
        conn.err("memory.search", json!({"space": space, "vector": vector(5), "k": k}))
            .assert_invalid("k");
    }
    let default =
        conn.ok("memory.search", json!({"space": space, "vector": vector(5)}))["hits"].clone();
    assert_eq!(default.as_array().map(Vec::len), Some(10), "k is 10 when left out");
}

#[test]
fn windows_around_and_neighbours_may_be_wide_but_not_absurd() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "wide");
    for n in [0_u64, 1, 100] {
        conn.ok("memory.around", json!({"space": space, "id": "n5", "before": n, "after": n}));
    }
    for n in [u64::from(u32::MAX), u64::MAX] {
        if let Ok(got) = conn
            .call("memory.around", &json!({"space": space, "id": "n5", "before": n, "after": n}))
        {
            assert_eq!(got["items"].as_array().map(Vec::len), Some(10));
        }
        let neighbors = json!({"before": n, "after": n});
        if let Ok(got) = conn
            .call("memory.search", &json!({"space": space, "query": "cat", "neighbors": neighbors}))
        {
            assert!(!got["hits"].as_array().expect("hits").is_empty());
        }
    }
}

#[test]
fn page_sizes_have_a_limit() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "pages");
    conn.err("memory.list", json!({"space": space, "limit": 0})).assert_invalid("limit");
    conn.err("memory.list", json!({"space": space, "limit": u64::MAX})).assert_invalid("limit");
    conn.err("memory.list", json!({"space": space, "cursor": "no such cursor \u{0}"}))
        .assert_invalid("cursor");
    conn.err("memory.list", json!({"space": space, "cursor": "A".repeat(10_000)}))
        .assert_invalid("cursor");
}

#[test]
fn a_huge_text_is_kept_whole_or_refused() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "huge");
    for (id, size) in [("h1", 60_000), ("h2", 600_000), ("h3", 3_500_000)] {
        let text = "word ".repeat(size / 5);
        // A vector of one's own: how long an embedding takes is not this test's question.
        let params =
            json!({"space": space, "items": [{"id": id, "text": text, "vector": vector(1)}]});
        match conn.call("memory.add", &params) {
            Ok(_) => {
                let got =
                    conn.ok("memory.get", json!({"space": space, "ids": [id]}))["items"][0]["text"]
                        .clone();
                assert!(got == text, "{size} bytes came back changed: {}", clip(&got.to_string()));
            }
            Err(e) => {
                assert!(e.code == -32602 || e.is_own(), "{e:?}");
                assert!(e.message.contains("text"), "{size} bytes: {e:?}");
                assert!(size > 60_000, "60 kB of text is not much: {e:?}");
            }
        }
    }
}

#[test]
fn a_huge_query_is_answered_or_refused() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "long-query");
    for size in [2_000, 20_000, 2_000_000] {
        let query = "why did the nightly backup fail ".repeat(size / 32);
        match conn.call("memory.search", &json!({"space": space, "query": query, "k": 1})) {
            Ok(found) => assert_eq!(found["hits"].as_array().map(Vec::len), Some(1)),
            Err(e) => assert!(
                (e.code == -32602 || e.is_own()) && e.message.contains("query"),
                "{size}: {e:?}"
            ),
        }
    }
}

#[test]
fn huge_meta_roles_and_sessions_are_kept_or_refused() {
    let mut conn = shared().conn();
    let space = space("fat");
    let cases = [
        ("meta", json!({"s": "m".repeat(8_000)}), true),
        ("meta", json!({"s": "m".repeat(2_000_000)}), false),
        (
            "meta",
            (0..50_000)
                .map(|i| (format!("k{i}"), json!(i)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            false,
        ),
        ("role", json!("r".repeat(32)), true),
        ("role", json!("r".repeat(1_000_000)), false),
        ("session", json!("s".repeat(100)), true),
        ("session", json!("s".repeat(1_000_000)), false),
    ];
    for (field, value, must_work) in cases {
        let mut item = json!({"id": "fat", "text": "t", "vector": vector(1)});
        item[field] = value.clone();
        match conn
            .call("memory.add", &json!({"space": space, "items": [item], "on_conflict": "replace"}))
        {
            Ok(_) => {
                let got = conn.ok("memory.get", json!({"space": space, "ids": ["fat"]}))["items"]
                    [0][field]
                    .clone();
                assert!(got == value, "{field} came back changed: {}", clip(&got.to_string()));
            }
            Err(e) => {
                assert!(!must_work, "{field}: {e:?}");
                assert!(
                    (e.code == -32602 || e.is_own()) && e.message.contains(field),
                    "{field}: {e:?}"
                );
            }
        }
    }
}

#[test]
fn many_items_in_one_add_work_or_are_refused_whole() {
    let mut conn = shared().conn();
    let (space, note) = (space("many-items"), "a short note");
    add(&mut conn, &space, json!([{"id": "first", "text": note, "vector": vector(1)}]));
    // 400 items with vectors fill a good part of a frame.
    for n in [100, 400] {
        let item =
            |i: usize| json!({"id": format!("{n}-{i}"), "text": note, "vector": vector(i as u64)});
        let items: Vec<Value> = (0..n).map(item).collect();
        let before = list_all(&mut conn, &space, 1000).len();
        match conn.call("memory.add", &json!({"space": space, "items": items})) {
            Ok(added) => {
                assert_eq!(added["items"].as_array().map(Vec::len), Some(n));
                assert_eq!(list_all(&mut conn, &space, 1000).len(), before + n);
            }
            Err(e) => {
                assert!(n > 100, "a hundred items are not many: {e:?}");
                assert!(e.message.contains("items"), "{e:?}");
                assert_eq!(list_all(&mut conn, &space, 1000).len(), before);
            }
        }
    }
}

#[test]
fn deep_nesting_is_kept_or_refused_and_never_fatal() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "deep");
    for depth in [200, 5_000, 200_000] {
        let lists = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let objects = format!("{}1{}", "{\"k\":".repeat(depth), "}".repeat(depth));
        let filter = format!(
            "{}{{\"role\":{{\"eq\":\"x\"}}}}{}",
            "{\"not\":".repeat(depth),
            "}".repeat(depth)
        );
        let frames = [
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"memory.add","params":{{"space":"{space}","items":[{{"id":"d","text":"t","meta":{{"m":{lists}}}}}]}}}}"#
            ),
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"memory.add","params":{{"space":"{space}","items":[{{"id":"d","text":"t","meta":{objects}}}]}}}}"#
            ),
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"memory.list","params":{{"space":"{space}","filter":{filter}}}}}"#
            ),
            lists.clone(),
            objects.clone(),
        ];
        for frame in frames {
            let answer = conn.exchange(&frame);
            if answer.is_array() {
                continue;
            }
            // Kept whole or refused; `outcome` checks that a refusal says something.
            if outcome(&answer).is_ok() && answer["result"]["items"][0]["id"] == "d" {
                let got = conn.ok("memory.get", json!({"space": space, "ids": ["d"]}))["items"][0]
                    ["meta"]
                    .to_string();
                assert!(got.len() >= 2 * depth, "depth {depth} was cut: {}", clip(&got));
                conn.ok("memory.delete", json!({"space": space, "ids": ["d"]}));
            }
        }
    }
    assert_eq!(list_all(&mut conn, &space, 100).len(), 10);
    // What a person may write works.
    let filter = (0..12)
        .fold(json!({"role": {"exists": false}}), |inner, _| json!({"not": {"and": [inner]}}));
    assert_eq!(
        conn.ok("memory.list", json!({"space": space, "filter": filter}))["items"]
            .as_array()
            .map(Vec::len),
        Some(10)
    );
}

#[test]
fn broken_filters_are_errors_wherever_a_filter_is_taken() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "broken");
    let broken = [
        json!({"role": {"like": "x"}}),
        json!({"role": "user"}),
        json!({"meta": {"eq": 1}}),
        json!({"and": {}}),
        json!([]),
        json!("x"),
        json!(7),
        json!({"role": {"in": "user"}}),
        json!({"colour": {"eq": 1}}),
        json!({"not": []}),
        json!({"or": "x"}),
        json!({"meta.": {"eq": 1}}),
        json!({"and": [5]}),
        json!({"role": {"exists": "yes"}}),
        json!({"role": null}),
        json!({"role": []}),
    ];
    for filter in broken {
        for (method, mut params) in [
            ("memory.search", json!({"query": "cat"})),
            ("memory.list", json!({})),
            ("memory.delete", json!({})),
        ] {
            params["space"] = json!(space);
            params["filter"] = filter.clone();
            match conn.call(method, &params) {
                Ok(r) => panic!("{method} took the filter {filter}: {}", clip(&r.to_string())),
                Err(e) => assert!(e.code == -32602 || e.is_own(), "{method} {filter}: {e:?}"),
            }
        }
    }
    assert_eq!(list_all(&mut conn, &space, 100).len(), 10, "a broken filter deleted something");
}

#[test]
fn vectors_that_are_no_directions_are_refused() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "no-direction");
    let mut huge = vector(1);
    huge[3] = 1e300;
    for v in [vec![0.0; 384], vec![0.1; 383], vec![0.1; 385], Vec::new(), huge] {
        let item = json!([{"id": "v", "text": "t", "vector": v}]);
        conn.err("memory.add", json!({"space": space, "items": item})).assert_invalid("vector");
        conn.err("memory.search", json!({"space": space, "vector": v})).assert_invalid("vector");
    }
    for raw in ["NaN", "Infinity", "1e999", "null"] {
        let parts = vec![raw; 384].join(",");
        let frame = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"memory.search","params":{{"space":"{space}","vector":[{parts}]}}}}"#
        );
        let error = outcome(&conn.exchange(&frame)).expect_err(raw);
        assert!([-32700, -32602].contains(&error.code), "{raw}: {error:?}");
    }
    // Length does not matter, direction does.
    let scaled: Vec<f64> = vector(2).iter().map(|x| x * 1000.0).collect();
    add(&mut conn, &space, json!([{"id": "near", "text": "t", "vector": vector(2)}]));
    let hits =
        conn.ok("memory.search", json!({"space": space, "vector": scaled, "k": 1}))["hits"].clone();
    assert_eq!(hits[0]["id"], "near");
}
