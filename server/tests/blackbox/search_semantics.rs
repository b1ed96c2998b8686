//! What search promises, one by one.
//!
//! Invariant checked: every search answers what is there at that moment, says what ran, and is never an empty success
//! in place of a failure.

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::shared;
use crate::data::{NOTES, T0, add, found, ids, notes_space, space, vector, vector_space};

const STAGES: [&str; 7] = ["queue", "embed", "dense", "lexical", "fuse", "fetch", "total"];

#[test]
fn stage_timings_fit_in_the_total_and_say_what_ran() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "stages");
    for i in 0..20 {
        let result = conn.ok(
            "memory.search",
            json!({"space": space, "query": format!("question {i} about the cat"), "k": 5}),
        );
        let took = &result["took_us"];
        let us = |stage: &str| {
            took[stage].as_u64().unwrap_or_else(|| panic!("took_us has {stage}: {took}"))
        };
        let sum: u64 =
            STAGES.iter().filter(|s| **s != "total" && !took[**s].is_null()).map(|s| us(s)).sum();
        assert!(us("total") > 0 && us("embed") > 0, "{took}");
        assert!(sum <= us("total") + 5, "stages sum to {sum} us: {took}");
        assert!(
            result["ran"]["embed"].is_string() || result["ran"]["embed"].is_object(),
            "{}",
            result["ran"]
        );
        assert!(!result["ran"]["search"].is_null(), "{}", result["ran"]);
        assert_eq!(result["degraded"], json!([]));
    }
    let by_vector = conn.ok("memory.search", json!({"space": space, "vector": vector(1), "k": 5}));
    assert!(
        by_vector["took_us"]["embed"].as_u64().unwrap_or(0) == 0,
        "nothing was embedded: {}",
        by_vector["took_us"]
    );
}

#[test]
fn a_query_asked_again_says_that_its_vector_was_kept_and_finds_what_is_there_now() {
    let mut conn = shared().conn();
    let [space, other] = ["kept", "kept-other"].map(|name| notes_space(&mut conn, name));
    let query = "which of the guests is a vegetarian";
    let long = format!("{query}? {}", "who said so and when ".repeat(30));
    let mut ask = |space: &str, query: &str| {
        conn.ok("memory.search", json!({"space": space, "query": query, "k": 3}))
    };
    let kept = |answer: &Value| answer["ran"]["embed"]["cached"].as_bool().unwrap_or(false);
    let first = ask(&space, query);
    let again = ask(&space, query);
    assert!(!kept(&first) && kept(&again), "{} then {}", first["ran"], again["ran"]);
    assert_eq!(first["hits"], again["hits"]);
    assert!(!kept(&ask(&other, query)), "one space was told what the other asked");
    ask(&space, &long);
    assert!(!kept(&ask(&space, &long)), "{} bytes are more than are kept", long.len());
    let counted = |conn: &mut Conn| {
        conn.ok("admin.status", json!({}))["counters"]["queries_cached"].as_u64().unwrap()
    };
    let before = counted(&mut conn);
    conn.ok(
        "memory.add",
        json!({"space": space, "items": [{"id": "new", "text": query}], "wait": "searchable"}),
    );
    let now = conn.ok("memory.search", json!({"space": space, "query": query, "k": 3}));
    assert!(kept(&now) && now["hits"][0]["id"] == "new", "{now}");
    assert!(counted(&mut conn) > before);
}

#[test]
fn hits_carry_the_whole_memory() {
    let mut conn = shared().conn();
    let space = space("whole");
    let meta = json!({"a": [1, null, "ü"], "b": {"c": true}});
    add(
        &mut conn,
        &space,
        json!([{"id": "m", "text": "t", "role": "narrator", "session": "s", "ts": T0, "meta": meta, "vector": vector(1)}, {"id": "bare", "text": "u", "vector": vector(2)}]),
    );
    let hits = conn
        .ok("memory.search", json!({"space": space, "vector": vector(1), "k": 2, "explain": true}))
        ["hits"]
        .clone();
    let got = conn.ok("memory.get", json!({"space": space, "ids": ["m", "bare"]}))["items"].clone();
    for (hit, memory) in hits.as_array().unwrap().iter().zip(got.as_array().unwrap()) {
        for field in ["id", "text", "role", "session", "ts", "seq", "meta"] {
            assert_eq!(hit[field], memory[field], "{field}");
        }
        assert!(hit["scores"].is_object(), "explain shows the scores: {hit}");
    }
    let score = hits[0]["score"].as_f64().unwrap();
    assert!((score - 1.0).abs() < 1e-3, "a vector's cosine to itself is 1: {score}");
    assert!(
        got[1]["ts"].as_i64().is_some_and(|ts| ts > T0),
        "a ts left out is the time of the add: {}",
        got[1]
    );
    let plain =
        conn.ok("memory.search", json!({"space": space, "vector": vector(1), "k": 2}))["hits"]
            .clone();
    assert!(plain[0]["neighbors"].is_null(), "neighbours only when asked for: {plain}");
}

#[test]
fn a_tiny_deadline_is_an_error_or_an_answer_never_nothing() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "deadline", 200);
    let long = "why did the nightly backup of the orders database fail again this week ".repeat(12);
    let (mut missed, mut met) = (0, 0);
    for i in 0..20 {
        match conn.call(
            "memory.search",
            &json!({"space": space, "query": format!("{i} {long}"), "k": 7, "deadline_ms": 1}),
        ) {
            Ok(result) => {
                assert_eq!(
                    result["hits"].as_array().map(Vec::len),
                    Some(7),
                    "a success is whole: {result}"
                );
                met += 1;
            }
            Err(e) => {
                assert!(e.assert_own().message.contains("deadline"), "{e:?}");
                missed += 1;
            }
        }
    }
    println!("deadline of 1 ms: {missed} missed, {met} met");
    let params = json!({"space": space, "query": "x", "k": 7, "deadline_ms": 30_000});
    assert_eq!(conn.ok("memory.search", params)["hits"].as_array().map(Vec::len), Some(7));
    if let Ok(result) =
        conn.call("memory.search", &json!({"space": space, "query": "x", "k": 7, "deadline_ms": 0}))
    {
        assert_eq!(result["hits"].as_array().map(Vec::len), Some(7));
    }
}

#[test]
fn an_answer_over_unembedded_memories_says_so() {
    let mut conn = shared().conn();
    let space = space("pending");
    let item = |i: usize| json!({"id": format!("p{i}"), "text": format!("{} {i} ", NOTES[i % 10]).repeat(8)});
    let items: Vec<Value> = (0..60).map(item).collect();
    let added = conn.ok("memory.add", json!({"space": space, "items": items}));
    let ask = json!({"space": space, "query": "a cat", "k": 100, "mode": "dense"});
    let early = conn.ok("memory.search", ask.clone());
    let whole = early["hits"].as_array().map(Vec::len) == Some(60);
    assert!(
        whole || early["degraded"] != json!([]),
        "sixty are there, {} were found, nothing is said",
        early["hits"].as_array().map_or(0, Vec::len)
    );
    let mut late = ask;
    late["min_seq"] = added["seq"].clone();
    late["deadline_ms"] = json!(60_000);
    let result = conn.ok("memory.search", late);
    assert_eq!(
        (result["hits"].as_array().map(Vec::len), &result["degraded"]),
        (Some(60), &json!([]))
    );
}

#[test]
fn the_same_text_twice_is_two_memories() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "twice");
    add(
        &mut conn,
        &space,
        json!([{"id": "d1", "text": "The owl is called Minerva"}, {"id": "d2", "text": "The owl is called Minerva"}]),
    );
    add(&mut conn, &space, json!([{"id": "d3", "text": "The owl is called Minerva"}]));
    let mut top = found(&mut conn, &space, "name of the owl", 3);
    top.sort();
    assert_eq!(top, ["d1", "d2", "d3"]);
    conn.ok("memory.delete", json!({"space": space, "ids": ["d2"]}));
    let mut top = found(&mut conn, &space, "name of the owl", 2);
    top.sort();
    assert_eq!(top, ["d1", "d3"], "deleting one leaves the others");
}

#[test]
fn the_same_text_has_the_same_vector_in_every_company() {
    let mut conn = shared().conn();
    let space = space("company");
    let filler: Vec<Value> = (0..20).map(|i| json!({"id": format!("f{i}"), "text": format!("{} {}", NOTES[i % 10], "and so on ".repeat(i * 3))})).collect();
    add(&mut conn, &space, json!([{"id": "alone", "text": NOTES[2]}]));
    let mut items = filler;
    items.insert(7, json!({"id": "among", "text": NOTES[2]}));
    add(&mut conn, &space, json!(items));
    let hits = conn
        .ok("memory.search", json!({"space": space, "query": NOTES[2], "k": 30, "mode": "dense"}))
        ["hits"]
        .clone();
    let score = |id: &str| {
        hits.as_array().unwrap().iter().find(|h| h["id"] == id).expect("found")["score"]
            .as_f64()
            .unwrap()
    };
    assert!(
        (score("alone") - score("among")).abs() < 1e-6,
        "{} and {}",
        score("alone"),
        score("among")
    );
    assert!(score("alone") > 0.999, "the query is the same text: {}", score("alone"));
}

/// Sentences that have nothing to do with the text they are hidden in, and a question for each.
const NEEDLES: [(&str, &str); 10] = [
    ("The password of the vault is purple elephant.", "vault password"),
    ("Grandmother's goulash needs three spoons of paprika.", "recipe for goulash"),
    ("The comet will pass the earth in the year 2061.", "comet and astronomy"),
    ("Our goalkeeper broke his wrist during the penalty shootout.", "football injury"),
    ("The violin was stolen from the museum in Cremona.", "theft of a musical instrument"),
    ("Penguins huddle together to survive the polar winter.", "antarctic birds keeping warm"),
    ("The mayor resigned after the bribery scandal.", "corrupt politician steps down"),
    ("A dentist should check your teeth twice a year.", "oral hygiene appointments"),
    ("Volcanic ash closed the airport in Reykjavik.", "eruption stops flights"),
    ("The beekeeper lost half of her hives to mites.", "dying honey bees"),
];

#[test]
fn a_needle_anywhere_in_a_long_text_is_found() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "needle");
    let line = |i: usize| {
        format!(
            "Step {i}: open valve {i}, note the pressure of pump {i}, and close valve {i} again. "
        )
    };
    let lines: Vec<String> = (0..360).map(line).collect();
    let mut body = lines.clone();
    for (n, (needle, _)) in NEEDLES.iter().enumerate() {
        // From the very first line to the very last.
        let at = n * (lines.len() - 1) / (NEEDLES.len() - 1);
        body[at] = format!("{needle} ");
    }
    assert!(body.concat().len() > 25_000);
    add(
        &mut conn,
        &space,
        json!([{"id": "long", "text": body.concat()}, {"id": "plain", "text": lines.concat()}]),
    );
    for (needle, query) in NEEDLES {
        let hits = conn
            .ok("memory.search", json!({"space": space, "query": query, "k": 20, "mode": "dense"}))
            ["hits"]
            .clone();
        let all = ids(&hits);
        assert_eq!(all.len(), 12, "twelve memories, each once: {all:?}");
        let score = |id: &str| {
            hits[all.iter().position(|i| i == id).expect("found")]["score"].as_f64().unwrap()
        };
        let (long, plain) = (score("long"), score("plain"));
        assert!(
            long > plain + 0.05,
            "{needle:?} is lost: the long text scores {long}, the same without it {plain}"
        );
    }
}
