//! What list, around, neighbours and filters promise, one by one.
//!
//! Invariant checked: every read answers what is there at that moment, in the order of the space.

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::shared;
use crate::data::{add, ids, list_all, seqs, space, vector, vector_item, vector_space};

#[test]
fn list_pages_are_stable_while_others_add() {
    let mut conn = shared().conn();
    let mut writer = shared().conn();
    let space = vector_space(&mut conn, "stable", 60);
    let (mut seen, mut cursor, mut round) = (Vec::new(), Value::Null, 1000);
    loop {
        let mut params = json!({"space": space, "limit": 7});
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let page = conn.ok("memory.list", params);
        seen.extend(ids(&page["items"]));
        cursor = page["cursor"].clone();
        // While it pages, others add, change and delete what was already shown.
        if round < 1010 {
            add(&mut writer, &space, json!([vector_item(round)]));
            writer.ok(
                "memory.update",
                json!({"space": space, "id": "v59", "patch": {"role": format!("r{round}")}}),
            );
            if let Some(shown) = seen.get(seen.len() - 2) {
                writer.ok("memory.delete", json!({"space": space, "ids": [shown]}));
            }
            round += 1;
        }
        if cursor.is_null() {
            break;
        }
        assert!(seen.len() < 500, "the list never ends: {seen:?}");
    }
    let old: Vec<&String> =
        seen.iter().filter(|id| id[1..].parse::<usize>().unwrap() < 59).collect();
    let want: Vec<String> = (0..59).map(|i| format!("v{i}")).collect();
    assert_eq!(
        old,
        want.iter().collect::<Vec<_>>(),
        "what was there at the start is shown once, in order"
    );
    assert!(seen.contains(&"v59".to_owned()), "an updated memory is not lost");
}

#[test]
fn list_with_a_filter_pages_through_the_matches() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "list-filter", 100);
    let filter = json!({"and": [{"session": {"eq": "s3"}}, {"meta.n": {"gte": 20}}]});
    let want: Vec<String> = (20..100).filter(|i| i % 5 == 3).map(|i| format!("v{i}")).collect();
    for limit in [1, 3, 16, 1000] {
        let (mut seen, mut cursor) = (Vec::new(), Value::Null);
        for _ in 0..50 {
            let mut params = json!({"space": space, "filter": filter, "limit": limit});
            if !cursor.is_null() {
                params["cursor"] = cursor;
            }
            let page = conn.ok("memory.list", params);
            seen.extend(ids(&page["items"]));
            cursor = page["cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert_eq!(seen, want, "limit {limit}");
    }
}

#[test]
fn around_stops_at_the_ends_and_skips_the_deleted() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "around", 10);
    let mut around = |id: &str, before: usize, after: usize| {
        let items = conn.ok(
            "memory.around",
            json!({"space": space, "id": id, "before": before, "after": after}),
        )["items"]
            .clone();
        assert!(seqs(&items).is_sorted());
        ids(&items).join(" ")
    };
    assert_eq!(around("v0", 5, 2), "v0 v1 v2");
    assert_eq!(around("v9", 2, 5), "v7 v8 v9");
    assert_eq!(around("v4", 0, 0), "v4");
    assert_eq!(around("v4", 100, 100), "v0 v1 v2 v3 v4 v5 v6 v7 v8 v9");
    conn.ok("memory.delete", json!({"space": space, "ids": ["v3", "v5"]}));
    let items = conn
        .ok("memory.around", json!({"space": space, "id": "v4", "before": 2, "after": 1}))["items"]
        .clone();
    assert_eq!(ids(&items), ["v1", "v2", "v4", "v6"], "the deleted are not counted");
    conn.err("memory.around", json!({"space": space, "id": "v3", "before": 1, "after": 1}))
        .assert_own();
}

/// The ids of a hit's neighbours, before and after, however the two are arranged.
fn neighbour_ids(hit: &Value) -> Vec<String> {
    let both = match &hit["neighbors"] {
        Value::Array(all) => all.clone(),
        Value::Object(sides) => ["before", "after"]
            .iter()
            .flat_map(|s| sides[*s].as_array().cloned().unwrap_or_default())
            .collect(),
        other => panic!("neighbours were asked for: {other}"),
    };
    ids(&Value::from(both)).into_iter().filter(|id| hit["id"] != json!(id)).collect()
}

#[test]
fn neighbours_of_a_hit_follow_seq() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "neighbours", 10);
    conn.ok("memory.delete", json!({"space": space, "ids": ["v5"]}));
    let mut of = |i: u64, before: usize, after: usize| {
        let params = json!({"space": space, "vector": vector(i), "k": 1, "neighbors": {"before": before, "after": after}});
        let hit = conn.ok("memory.search", params)["hits"][0].clone();
        assert_eq!(hit["id"], json!(format!("v{i}")));
        neighbour_ids(&hit).join(" ")
    };
    assert_eq!(of(4, 2, 2), "v2 v3 v6 v7");
    assert_eq!(of(0, 3, 1), "v1");
    assert_eq!(of(9, 1, 3), "v8");
    assert_eq!(of(7, 0, 1), "v8");
}

#[test]
fn neighbours_do_not_depend_on_the_filter_of_the_search() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "context", 10);
    let params = json!({"space": space, "vector": vector(4), "k": 10, "filter": {"meta.n": {"eq": 4}}, "neighbors": {"before": 1, "after": 1}});
    let hits = conn.ok("memory.search", params)["hits"].clone();
    assert_eq!(ids(&hits), ["v4"]);
    assert_eq!(neighbour_ids(&hits[0]), ["v3", "v5"]);
}

#[test]
fn search_list_and_delete_read_a_filter_alike() {
    let mut conn = shared().conn();
    let space = space("alike");
    let meta = |i: usize| match i % 6 {
        0 => json!({}),
        1 => json!({"x": null}),
        2 => json!({"x": "5"}),
        3 => json!({"x": 5}),
        4 => json!({"x": [5, "a"]}),
        _ => json!({"x": {"y": 5}}),
    };
    let items: Vec<Value> = (0..24).map(|i| json!({"id": format!("f{i:02}"), "text": "t", "meta": meta(i), "vector": vector(i as u64)})).collect();
    add(&mut conn, &space, json!(items));
    for filter in [
        json!({"meta.x": {"ne": 5}}),
        json!({"meta.x": {"nin": [5, "5"]}}),
        json!({"meta.x": {"exists": true}}),
        json!({"meta.x": {"exists": false}}),
        json!({"meta.x": {"gt": 4}}),
        json!({"meta.x": {"lte": "5"}}),
        json!({"meta.x.y": {"eq": 5}}),
        json!({"not": {"meta.x": {"eq": 5}}}),
        json!({"role": {"exists": true}}),
        json!({"meta.x": {"eq": 5.0}}),
    ] {
        let ask = |method: &str, conn: &mut Conn, extra: Value| {
            let mut params = json!({"space": space, "filter": filter});
            params.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            conn.call(method, &params)
        };
        let searched = ask("memory.search", &mut conn, json!({"vector": vector(1), "k": 100}))
            .map(|r| ids(&r["hits"]));
        let listed = ask("memory.list", &mut conn, json!({"limit": 100})).map(|r| ids(&r["items"]));
        let (Ok(mut searched), Ok(listed)) = (searched.clone(), listed.clone()) else {
            assert_eq!(searched.is_err(), listed.is_err(), "{filter}: {searched:?} {listed:?}");
            continue;
        };
        searched.sort();
        assert_eq!(searched, listed, "{filter}");
        let n = listed.len();
        ask("memory.delete", &mut conn, json!({"dry_run": true, "expect_count": n}))
            .unwrap_or_else(|e| panic!("{filter}: {e:?}"));
    }
    assert_eq!(list_all(&mut conn, &space, 10).len(), 24);
}
