//! The same text has the same vector, whoever embeds it.
//!
//! Invariant checked: the bulk lane, the interactive lane and a query give one text one vector, alone and among texts of
//! other lengths, from the cache and fresh. Vectors are seen through scores: a text's score with itself is 1, and two
//! spaces that hold the same text give it the same score, to the last digit, whatever is asked.

use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::Daemon;
use crate::data::{NOTES, Rng, add};
use crate::load::{counter, status_number, text};

/// Texts of one to some hundred words, all within one window of the model.
fn texts() -> Vec<String> {
    let mut rng = Rng::new(21);
    let mut texts: Vec<String> = vec![
        "cat".to_owned(),
        "Überraschung für Zoë: 東京タワー 🚀".to_owned(),
        "fn main() { println!(\"{}\", 1 + 1); }".to_owned(),
        "  spaces   and\ttabs\nand lines  ".to_owned(),
    ];
    texts.extend(NOTES[..3].iter().map(|n| (*n).to_owned()));
    texts.extend([2, 7, 15, 30, 60, 100].map(|words| text(&mut rng, words)));
    texts
}

/// The score of memory `id` for a query, as the service wrote it.
#[track_caller]
fn score(conn: &mut Conn, space: &str, query: &str, id: &str) -> f64 {
    let found = conn.ok("memory.search", json!({"space": space, "query": query, "k": 1000}));
    let hits = found["hits"].as_array().expect("hits");
    let hit = hits.iter().find(|h| h["id"] == id);
    let hit = hit.unwrap_or_else(|| panic!("{id} is not found in {space}"));
    hit["score"].as_f64().expect("a score")
}

#[track_caller]
fn assert_one(score: f64, what: &str) {
    assert!((score - 1.0).abs() < 1e-4, "{what}: the same text scores {score}");
}

#[test]
fn both_lanes_and_queries_give_one_text_one_vector() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let texts = texts();
    let lanes =
        |conn: &mut Conn| (counter(conn, "windows_interactive"), counter(conn, "windows_bulk"));
    // Bulk: all in one add among two hundred others of every length.
    let start = lanes(&mut conn);
    let mut rng = Rng::new(22);
    let mut items: Vec<Value> = (0..200)
        .map(|i| json!({"id": format!("f{i}"), "text": text(&mut rng, 1 + i % 40)}))
        .collect();
    for (i, text) in texts.iter().enumerate() {
        items.insert(i * 13, json!({"id": format!("t{i}"), "text": text}));
    }
    add(&mut conn, "bulk", json!(items));
    let (interactive, bulk) = lanes(&mut conn);
    let n = items.len() as u64;
    assert!(bulk - start.1 >= n / 2, "a big add goes to bulk: {} windows", bulk - start.1);
    assert!(interactive - start.0 < n / 2, "{} interactive", interactive - start.0);
    // Interactive: one by one, each in a space of its own.
    let alone = |i: usize| format!("alone-{i}");
    for (i, text) in texts.iter().enumerate() {
        add(&mut conn, &alone(i), json!([{"id": format!("t{i}"), "text": text}]));
    }
    let (interactive_after, _) = lanes(&mut conn);
    let small = interactive_after - interactive;
    assert!(small >= texts.len() as u64 / 2, "small adds go to interactive: {small} windows");
    let foreign = ["who owns the cat", "harbour", &texts[8]];
    for (i, text) in texts.iter().enumerate() {
        let id = format!("t{i}");
        // Twice: fresh, then from the cache.
        for round in ["fresh", "again"] {
            let in_bulk = score(&mut conn, "bulk", text, &id);
            let in_alone = score(&mut conn, &alone(i), text, &id);
            assert_one(in_bulk, &format!("bulk, {round}, {text:?}"));
            assert_one(in_alone, &format!("interactive, {round}, {text:?}"));
            assert_eq!(in_bulk, in_alone, "{round}: two vectors for {text:?}");
        }
        for query in foreign {
            let both = [&alone(i), "bulk"].map(|s| score(&mut conn, s, query, &id));
            assert_eq!(both[0], both[1], "{query:?} tells two vectors of {text:?} apart");
        }
    }
}

#[test]
fn updates_replaces_and_small_adds_beside_a_big_one_give_the_same_vector() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let texts = texts();
    let mut rng = Rng::new(23);
    let filler: Vec<Value> = (0..400)
        .map(|i| json!({"id": format!("f{i}"), "text": text(&mut rng, 1 + i % 40)}))
        .collect();
    let quiet = json!({"id": "quiet", "text": texts[9]});
    add(&mut conn, "quiet", json!([quiet]));
    // Not waited for: what follows is embedded while this goes on.
    conn.ok("memory.add", json!({"space": "filler", "items": filler}));
    add(&mut conn, "beside", json!([{"id": "beside", "text": texts[9]}]));
    add(&mut conn, "changed", json!([{"id": "changed", "text": "something else"}]));
    let patch = json!({"space": "changed", "id": "changed", "patch": {"text": texts[9]}});
    conn.ok("memory.update", patch);
    let pending = status_number(&mut conn, &["store", "pending"]);
    println!("{pending} of 400 were pending beside it");
    for query in [texts[9].as_str(), "winter in the harbour", "cat"] {
        let scores = ["quiet", "beside", "changed"].map(|s| score(&mut conn, s, query, s));
        assert!(scores.iter().all(|s| *s == scores[0]), "{query:?}: {scores:?}");
    }
    assert_one(score(&mut conn, "beside", &texts[9], "beside"), "beside a big add");
}

#[test]
fn kept_queries_are_counted_and_bounded() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let most = status_number(&mut conn, &["lanes", "queries_kept_limit"]);
    assert!((1..=10_000).contains(&most), "{most} would be too many");
    add(&mut conn, "kept", json!([{"id": "a", "text": "a cat"}]));
    let kept = |conn: &mut Conn| status_number(conn, &["lanes", "queries_kept"]);
    let ask = |conn: &mut Conn, i: u64| {
        conn.ok("memory.search", json!({"space": "kept", "query": format!("q{i}"), "k": 1}))["ran"]
            ["embed"]["cached"]
            .as_bool()
            .unwrap_or(false)
    };
    let before = (kept(&mut conn), counter(&mut conn, "queries_cached"));
    for i in 0..20 {
        assert!(!ask(&mut conn, i), "query {i} is new");
    }
    for i in 0..20 {
        assert!(ask(&mut conn, i), "query {i} was kept");
    }
    assert_eq!(kept(&mut conn) - before.0, 20, "each is kept once");
    assert_eq!(counter(&mut conn, "queries_cached") - before.1, 20, "hits are counted");
    for i in 20..most + 60 {
        ask(&mut conn, i);
    }
    let now = kept(&mut conn);
    assert!(now <= most, "{now} are kept");
    assert!(!ask(&mut conn, 0), "the oldest was forgotten");
}
