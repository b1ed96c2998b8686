//! Test data: random numbers, vectors, texts, and short ways to say common requests.
//!
//! Invariant: everything random comes from a seed that a failing test prints. Vectors have three decimals, so that
//! their JSON is short and the same number reaches the service and the oracle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Conn;

/// Dimension of the default model.
pub const DIM: usize = 384;
/// 2023-11-14, the first timestamp tests use.
pub const T0: i64 = 1_700_000_000_000;

/// Ten notes that have nothing to do with each other.
pub const NOTES: [&str; 10] = [
    "The nightly backup of the orders database failed because the disk was full",
    "Nadia wants every commit message to start with the ticket number",
    "We moved the image resizing service from Python to Rust last spring",
    "The neighbour's cat is called Marzipan and hates the vacuum cleaner",
    "The train to Vienna leaves from platform nine at half past six",
    "Certificates are renewed every sixty days by the operations team",
    "He cannot eat hazelnuts because they give him a rash",
    "Subscription income fell three percent, mostly in the hobby tier",
    "The slow page was caused by a missing index on the invoices table",
    "She is learning to play the accordion and practises on Sundays",
];

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to draw tests with.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// A vector of thousandths in -1..=1, never all zero.
pub fn vector(seed: u64) -> Vec<f64> {
    let mut rng = Rng::new(seed ^ 0x7665_6374_6f72);
    let mut v: Vec<f64> = (0..DIM).map(|_| (rng.below(2001) as f64 - 1000.0) / 1000.0).collect();
    v[0] = 0.5;
    v
}

/// Cosine in f64: the oracle of every vector search.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(p, q)| p * q).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// A space name no other test uses.
pub fn space(label: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{label}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The ids in a list of memories.
#[track_caller]
pub fn ids(items: &Value) -> Vec<String> {
    let items = items.as_array().unwrap_or_else(|| panic!("expected a list: {items}"));
    items.iter().map(|m| m["id"].as_str().unwrap_or("null").to_owned()).collect()
}

/// The seqs in a list of memories.
#[track_caller]
pub fn seqs(items: &Value) -> Vec<u64> {
    let seq =
        |m: &Value| m["seq"].as_u64().unwrap_or_else(|| panic!("a memory has an integer seq: {m}"));
    items.as_array().expect("a list").iter().map(seq).collect()
}

/// Whether some top-level integer of a result is `n`: the protocol promises counts, not their names.
pub fn counts(result: &Value, n: usize) -> bool {
    result.as_object().is_some_and(|o| o.values().any(|v| v.as_u64() == Some(n as u64)))
}

/// Adds items and waits until they are searchable.
#[track_caller]
pub fn add(conn: &mut Conn, space: &str, items: Value) -> Value {
    conn.ok("memory.add", json!({"space": space, "items": items, "wait": "searchable"}))
}

/// A new space holding `NOTES` as n0 to n9, a minute apart.
#[track_caller]
pub fn notes_space(conn: &mut Conn, label: &str) -> String {
    let space = space(label);
    let note = |(i, text): (usize, &&str)| json!({"id": format!("n{i}"), "text": text, "ts": T0 + 60_000 * i as i64});
    let items: Vec<Value> = NOTES.iter().enumerate().map(note).collect();
    add(conn, &space, json!(items));
    space
}

/// A new space of `n` memories v0… with vectors of their own, so that no embedding is spent on them.
#[track_caller]
pub fn vector_space(conn: &mut Conn, label: &str, n: usize) -> String {
    let space = space(label);
    for from in (0..n).step_by(200) {
        let items: Vec<Value> = (from..n.min(from + 200)).map(vector_item).collect();
        add(conn, &space, json!(items));
    }
    space
}

/// Memory `i` of `vector_space`.
pub fn vector_item(i: usize) -> Value {
    json!({
        "id": format!("v{i}"), "text": format!("vector note {i}"), "role": (["user", "assistant"][i % 2]),
        "session": format!("s{}", i % 5), "ts": T0 + i as i64, "meta": {"n": i}, "vector": vector(i as u64),
    })
}

/// Every memory of a space, by pages of `limit`.
#[track_caller]
pub fn list_all(conn: &mut Conn, space: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), Value::Null);
    for _ in 0..10_000 {
        let mut params = json!({"space": space, "limit": limit});
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let page = conn.ok("memory.list", params);
        let items = page["items"].as_array().expect("items").clone();
        assert!(items.len() <= limit, "{} items for limit {limit}", items.len());
        all.extend(items);
        cursor = page["cursor"].clone();
        if cursor.is_null() {
            return all;
        }
    }
    panic!("memory.list never ended: 10,000 pages of {limit}");
}

/// Repeats `probe` until it holds; `what` says what was waited for.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !probe() {
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The ids a text search finds, best first.
#[track_caller]
pub fn found(conn: &mut Conn, space: &str, query: &str, k: usize) -> Vec<String> {
    ids(&conn.ok("memory.search", json!({"space": space, "query": query, "k": k, "mode": "dense"}))
        ["hits"])
}

/// Writes a space to a file by `memory.export`, in the first format the service's own description names.
#[track_caller]
pub fn export(conn: &mut Conn, space: &str, path: &std::path::Path) {
    let mut params = json!({"space": space, "path": path});
    if conn.call("memory.export", &params).is_ok() {
        return;
    }
    let document = conn.ok("rpc.discover", json!({}));
    let methods = document["methods"].as_array().expect("methods");
    let method =
        methods.iter().find(|m| m["name"] == "memory.export").expect("memory.export is described");
    let format =
        method["params"].as_array().expect("params").iter().find(|p| p["name"] == "format");
    let format = &format.expect("format is described")["schema"]["enum"][0];
    assert!(format.is_string(), "a required format has an enum to choose from: {method}");
    params["format"] = format.clone();
    conn.ok("memory.export", params);
}
