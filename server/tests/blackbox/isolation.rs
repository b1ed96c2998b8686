//! A space sees only itself, whatever is done in others at the same time.
//!
//! Invariant checked: no line the service answers for one space holds a mark of another, and no operation on one
//! changes what another answers. Every text, session and meta of a space carries the space's own mark, so a leak
//! shows in the raw bytes of an answer, whichever field it leaks through.

use std::collections::BTreeMap;
use std::thread;

use serde_json::{Value, json};

use crate::client::{Conn, clip};
use crate::daemon::shared;
use crate::data::{
    NOTES, Rng, T0, add, cosine, counts, eventually, found, ids, list_all, notes_space, space,
    vector,
};

const IDS: usize = 24;
const STEPS: usize = 60;

/// One space and what it must hold.
struct Tenant {
    space: String,
    mark: String,
    /// id → revision; the revision is in the text and in `meta.rev`.
    held: BTreeMap<usize, usize>,
    /// Whether the space has come to be and was not dropped since.
    exists: bool,
    next_rev: usize,
}

impl Tenant {
    fn item(&self, id: usize, rev: usize) -> Value {
        json!({
            "id": format!("m{id}"), "text": format!("{} {} rev{rev}", NOTES[id % 10], self.mark),
            "role": "user", "session": format!("session {}", self.mark), "ts": T0 + id as i64,
            "meta": {"mark": self.mark, "rev": rev, "even": id.is_multiple_of(2)}, "vector": vector(id as u64),
        })
    }

    fn call(&self, conn: &mut Conn, marks: &[String], method: &str, mut params: Value) -> Value {
        params["space"] = json!(self.space);
        let line = conn.try_raw(method, &params).unwrap_or_else(|e| panic!("{method}: {e}"));
        for other in marks.iter().filter(|m| **m != self.mark) {
            assert!(
                !line.contains(other.as_str()),
                "{method} in {} shows {other}: {}",
                self.space,
                clip(&line)
            );
        }
        serde_json::from_str(&line).expect("JSON")
    }

    fn ok(&self, conn: &mut Conn, marks: &[String], method: &str, params: Value) -> Value {
        let answer = self.call(conn, marks, method, params);
        assert!(
            answer["result"].is_object(),
            "{method} in {}: {}",
            self.space,
            clip(&answer.to_string())
        );
        answer["result"].clone()
    }

    /// One random change, through a random connection.
    fn change(&mut self, rng: &mut Rng, conn: &mut Conn, marks: &[String]) {
        let rev = self.next_rev;
        self.next_rev += 1;
        match rng.below(if self.exists { 10 } else { 1 }) {
            0..=4 => {
                let first = rng.below(IDS);
                let picked: Vec<usize> = (first..IDS.min(first + 1 + rng.below(6))).collect();
                let items: Vec<Value> = picked.iter().map(|i| self.item(*i, rev)).collect();
                let params =
                    json!({"items": items, "on_conflict": "replace", "wait": "searchable"});
                self.ok(conn, marks, "memory.add", params);
                self.held.extend(picked.into_iter().map(|i| (i, rev)));
                self.exists = true;
            }
            5 | 6 => {
                let Some(&id) = self.held.keys().nth(rng.below(self.held.len().max(1))) else {
                    return;
                };
                let patch = json!({"meta": self.item(id, rev)["meta"], "session": format!("{} again", self.mark)});
                self.ok(
                    conn,
                    marks,
                    "memory.update",
                    json!({"id": format!("m{id}"), "patch": patch}),
                );
                self.held.insert(id, rev);
            }
            7 => {
                let gone = [rng.below(IDS), rng.below(IDS / 2) + IDS / 2];
                let names = if gone[0] == gone[1] { vec![gone[0]] } else { gone.to_vec() };
                let n = names.iter().filter(|id| self.held.remove(*id).is_some()).count();
                let names: Vec<String> = names.iter().map(|i| format!("m{i}")).collect();
                let result = self.ok(conn, marks, "memory.delete", json!({"ids": names}));
                assert!(counts(&result, n), "{n} deleted in {}: {result}", self.space);
            }
            8 => {
                let even = rng.chance(50);
                let n = self.held.keys().filter(|i| (*i % 2 == 0) == even).count();
                let params = json!({"filter": {"meta.even": {"eq": even}}, "expect_count": n});
                self.ok(conn, marks, "memory.delete", params);
                self.held.retain(|i, _| (i % 2 == 0) != even);
            }
            _ => {
                self.ok(conn, marks, "space.drop", json!({}));
                self.held.clear();
                self.exists = false;
            }
        }
    }

    /// Every way to look, against what must be there.
    fn check(&self, rng: &mut Rng, conn: &mut Conn, marks: &[String]) {
        let names: Vec<String> = (0..IDS).map(|i| format!("m{i}")).collect();
        let got = self.call(conn, marks, "memory.get", json!({"ids": names}));
        if !self.exists {
            assert!(got["error"].is_object(), "a space that does not exist is an error: {got}");
            return;
        }
        for (i, memory) in got["result"]["items"].as_array().expect("items").iter().enumerate() {
            let want = self.held.get(&i);
            assert_eq!(memory.is_null(), want.is_none(), "m{i} in {}: {memory}", self.space);
            if let Some(rev) = want {
                assert_eq!(memory["meta"]["rev"], json!(rev), "m{i} in {}", self.space);
            }
        }
        let listed = self.ok(conn, marks, "memory.list", json!({"limit": 1000}));
        assert_eq!(ids(&listed["items"]).len(), self.held.len(), "list of {}", self.space);
        let stats = self.ok(conn, marks, "space.stats", json!({}));
        assert!(
            counts(&stats, self.held.len()),
            "stats of {} with {}: {stats}",
            self.space,
            self.held.len()
        );
        self.check_search(rng, conn, marks);
        let stranger = marks[rng.below(marks.len())].clone();
        if stranger != self.mark {
            let filter = json!({"meta.mark": {"eq": stranger}});
            let hits = conn.ok(
                "memory.search",
                json!({"space": self.space, "vector": vector(0), "filter": filter}),
            );
            assert_eq!(hits["hits"], json!([]), "a filter on another's mark finds nothing");
        }
    }

    fn check_search(&self, rng: &mut Rng, conn: &mut Conn, marks: &[String]) {
        let query = vector(rng.below(IDS) as u64);
        let params = json!({"vector": query, "k": 1000, "neighbors": {"before": 2, "after": 2}, "explain": true});
        let hits = self.ok(conn, marks, "memory.search", params)["hits"].clone();
        let mut want: Vec<usize> = self.held.keys().copied().collect();
        want.sort_by(|a, b| {
            cosine(&query, &vector(*b as u64)).total_cmp(&cosine(&query, &vector(*a as u64)))
        });
        let want: Vec<String> = want.iter().map(|i| format!("m{i}")).collect();
        assert_eq!(ids(&hits), want, "search in {}", self.space);
        if let Some(id) = want.first() {
            let params = json!({"id": id, "before": IDS, "after": IDS});
            let around = self.ok(conn, marks, "memory.around", params);
            assert_eq!(ids(&around["items"]).len(), self.held.len(), "around in {}", self.space);
        }
    }
}

/// Names as alike as the pattern allows.
fn alike_names() -> Vec<String> {
    let base = space("Iso");
    let long = format!("{base}{}", "x".repeat(127 - base.len()));
    let mut names: Vec<String> =
        ["", ".", ":", "-", "_", "@", "..", "0"].iter().map(|s| format!("{base}{s}")).collect();
    names.extend([
        base.to_lowercase(),
        base.to_uppercase(),
        format!("{long}a"),
        format!("{long}b"),
    ]);
    names
}

#[test]
fn interleaved_changes_stay_in_their_space() {
    let names = alike_names();
    let marks: Vec<String> = (0..names.len()).map(|i| format!("owner<{i}>mark")).collect();
    let tenants: Vec<(usize, String)> = names.into_iter().enumerate().collect();
    thread::scope(|scope| {
        for (worker, chunk) in tenants.chunks(3).enumerate() {
            let marks = &marks;
            scope.spawn(move || {
                let seed = 40 + worker as u64;
                println!("isolation worker {worker}, seed {seed}");
                let mut rng = Rng::new(seed);
                let mut conns = [shared().conn(), shared().conn()];
                let own = |(i, space): &(usize, String)| Tenant {
                    space: space.clone(),
                    mark: marks[*i].clone(),
                    held: BTreeMap::new(),
                    exists: false,
                    next_rev: 0,
                };
                let mut own: Vec<Tenant> = chunk.iter().map(own).collect();
                for _ in 0..STEPS {
                    let tenant = rng.below(own.len());
                    let (write, read) = (rng.below(2), rng.below(2));
                    own[tenant].change(&mut rng, &mut conns[write], marks);
                    own[tenant].check(&mut rng, &mut conns[read], marks);
                }
                for tenant in &own {
                    tenant.check(&mut rng, &mut conns[0], marks);
                }
            });
        }
    });
}

#[test]
fn another_spaces_ids_do_nothing() {
    let mut conn = shared().conn();
    let (a, b) = (notes_space(&mut conn, "ids-a"), space("ids-b"));
    add(&mut conn, &b, json!([{"id": "only-b", "text": "a note of b", "vector": vector(1)}]));
    assert_eq!(conn.ok("memory.get", json!({"space": b, "ids": ["n1"]}))["items"], json!([null]));
    conn.err("memory.around", json!({"space": b, "id": "n1", "before": 1, "after": 1}))
        .assert_own();
    conn.err("memory.update", json!({"space": b, "id": "n1", "patch": {"text": "taken over"}}))
        .assert_own();
    conn.ok("memory.delete", json!({"space": b, "ids": ["n1", "n2"]}));
    conn.ok(
        "memory.delete",
        json!({"space": b, "filter": {"meta.x": {"exists": false}}, "expect_count": 1}),
    );
    let left = list_all(&mut conn, &a, 1000);
    assert_eq!(left.len(), 10);
    assert_eq!(left[1]["text"], NOTES[1]);
    assert_eq!(list_all(&mut conn, &b, 1000).len(), 0);
}

#[test]
fn a_cursor_of_one_space_opens_no_other() {
    let mut conn = shared().conn();
    let (a, b) = (notes_space(&mut conn, "cursor-a"), space("cursor-b"));
    add(
        &mut conn,
        &b,
        json!([{"id": "b1", "text": "b one", "vector": vector(1)}, {"id": "b2", "text": "b two", "vector": vector(2)}]),
    );
    let cursor = conn.ok("memory.list", json!({"space": a, "limit": 3}))["cursor"].clone();
    assert!(!cursor.is_null(), "ten memories do not fit a page of three");
    if let Ok(page) = conn.call("memory.list", &json!({"space": b, "limit": 10, "cursor": cursor}))
    {
        let shown = ids(&page["items"]);
        assert!(shown.iter().all(|id| id.starts_with('b')), "{shown:?}");
    }
}

#[test]
fn identical_text_and_session_do_not_link_spaces() {
    let mut conn = shared().conn();
    let spaces = [space("same"), space("same"), space("same")];
    for (i, name) in spaces.iter().enumerate() {
        let item = |n: usize| json!({"id": format!("t{n}"), "text": NOTES[3], "session": "one", "meta": {"of": i}});
        add(&mut conn, name, json!([item(0), item(1)]));
    }
    conn.ok("memory.update", json!({"space": spaces[0], "id": "t0", "patch": {"text": "Rain is expected in the valley"}}));
    conn.ok("memory.delete", json!({"space": spaces[1], "ids": ["t0"]}));
    // Until the new text is embedded, the memory cannot be found by meaning.
    eventually(
        "the updated text is found by its new meaning",
        std::time::Duration::from_secs(10),
        || found(&mut conn, &spaces[0], "weather forecast, wet", 1) == ["t0"],
    );
    let of = |hits: &Value| {
        hits.as_array().expect("hits").iter().map(|h| h["meta"]["of"].clone()).collect::<Vec<_>>()
    };
    for (i, name) in spaces.iter().enumerate() {
        let hits = conn.ok(
            "memory.search",
            json!({"space": name, "query": "a cat", "k": 100, "mode": "dense"}),
        )["hits"]
            .clone();
        let expected = if i == 1 { 1 } else { 2 };
        assert_eq!(of(&hits), vec![json!(i); expected], "space {i} after changes in its siblings");
    }
}

#[test]
fn dropping_leaves_others_and_a_new_one_starts_empty() {
    let mut conn = shared().conn();
    let (kept, dropped) = (notes_space(&mut conn, "drop"), notes_space(&mut conn, "drop"));
    conn.ok("space.drop", json!({"space": dropped}));
    for method in ["memory.list", "space.stats", "space.drop"] {
        conn.err(method, json!({"space": dropped})).assert_own();
    }
    conn.err("memory.get", json!({"space": dropped, "ids": ["n1"]})).assert_own();
    assert_eq!(list_all(&mut conn, &kept, 1000).len(), 10);
    add(&mut conn, &dropped, json!([{"id": "n3", "text": "a fresh start", "vector": vector(9)}]));
    let again = list_all(&mut conn, &dropped, 1000);
    assert_eq!((again.len(), &again[0]["text"]), (1, &json!("a fresh start")));
    assert_eq!(found(&mut conn, &dropped, "cat vacuum cleaner", 50), ["n3"]);
    assert_eq!(
        conn.ok("memory.get", json!({"space": dropped, "ids": ["n1", "n2"]}))["items"],
        json!([null, null])
    );
    let around =
        conn.ok("memory.around", json!({"space": dropped, "id": "n3", "before": 50, "after": 50}));
    assert_eq!(ids(&around["items"]), ["n3"]);
}

#[test]
fn an_export_holds_one_space() {
    let mut conn = shared().conn();
    let (a, b) = (space("export-a"), space("export-b"));
    add(&mut conn, &a, json!([{"id": "x", "text": "mark of A", "vector": vector(1)}]));
    add(&mut conn, &b, json!([{"id": "x", "text": "mark of B", "vector": vector(1)}]));
    let path = shared().dir.path().join("export-a.jsonl");
    crate::data::export(&mut conn, &a, &path);
    let text = std::fs::read_to_string(&path).expect("the export was written");
    assert!(
        text.contains("mark of A") && !text.contains("mark of B") && !text.contains(&b),
        "{text}"
    );
}
