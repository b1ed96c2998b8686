//! The store against a naive model: random operations, closes, crashes and compactions, then every read compared with a
//! map and every search with brute force in f64. Uses the public API only.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use flashbulb_engine::{
    AddStatus, Error, Filter, Memory, NewMemory, OnConflict, Patch, Query, Selection, Seq,
    SpaceName, Store, StoreOptions, TimeRange,
};
use proptest::prelude::*;

const DIM: usize = 8;

/// One memory as the model keeps it; unit vectors in f64.
#[derive(Debug, Clone)]
struct Kept {
    memory: NewMemory,
    vectors: Vec<Vec<f64>>,
}

#[derive(Debug, Default, Clone)]
struct ModelSpace {
    by_seq: BTreeMap<u64, Kept>,
    last_seq: u64,
}

impl ModelSpace {
    fn seq_of(&self, id: &str) -> Option<u64> {
        self.by_seq.iter().find(|(_, k)| k.memory.id == id).map(|(s, _)| *s)
    }

    fn append(&mut self, memory: NewMemory) -> u64 {
        self.last_seq += 1;
        let vectors = memory.vectors.clone().unwrap_or_default();
        let vectors = vectors.iter().map(|v| unit(v)).collect();
        self.by_seq.insert(self.last_seq, Kept { memory, vectors });
        self.last_seq
    }
}

fn unit(v: &[f32]) -> Vec<f64> {
    let norm = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    v.iter().map(|x| f64::from(*x) / norm).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Add { space: u8, items: Vec<(u8, u8, Option<u8>)>, conflict: OnConflict },
    Embed { space: u8, count: usize },
    Update { space: u8, id: u8, text: Option<u8>, stale: bool },
    Delete { space: u8, ids: Vec<u8>, expect: Option<u64>, dry_run: bool },
    DeleteRole { space: u8, role: u8 },
    Drop { space: u8 },
    Maintain,
    Compact,
    Reopen,
    Crash,
    Snapshot,
    Check { space: u8, query: u8, k: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let space = 0u8..3;
    let id = 0u8..12;
    let item = (id.clone(), any::<u8>(), proptest::option::of(any::<u8>()));
    let conflict =
        prop_oneof![Just(OnConflict::Error), Just(OnConflict::Skip), Just(OnConflict::Replace)];
    let step = prop_oneof![
        6 => (space.clone(), proptest::collection::vec(item, 1..5), conflict)
            .prop_map(|(space, items, conflict)| Step::Add { space, items, conflict }),
        3 => (space.clone(), 1usize..6).prop_map(|(space, count)| Step::Embed { space, count }),
        3 => (space.clone(), id.clone(), proptest::option::of(any::<u8>()), prop::bool::weighted(0.2))
            .prop_map(|(space, id, text, stale)| Step::Update { space, id, text, stale }),
        3 => (space.clone(), proptest::collection::vec(id, 1..4), proptest::option::of(0u64..4), any::<bool>())
            .prop_map(|(space, ids, expect, dry_run)| Step::Delete { space, ids, expect, dry_run }),
        1 => (space.clone(), 0u8..3).prop_map(|(space, role)| Step::DeleteRole { space, role }),
        1 => space.clone().prop_map(|space| Step::Drop { space }),
        2 => Just(Step::Maintain),
        1 => Just(Step::Compact),
        2 => Just(Step::Reopen),
        2 => Just(Step::Crash),
        1 => Just(Step::Snapshot),
        4 => (space, any::<u8>(), 1usize..15)
            .prop_map(|(space, query, k)| Step::Check { space, query, k }),
    ];
    proptest::collection::vec(step, 1..40)
}

fn name(space: u8) -> SpaceName {
    SpaceName::parse(&format!("space-{space}")).unwrap()
}

/// A vector that differs from all others: angles from the number.
fn vector(n: u8) -> Vec<f32> {
    (0..DIM).map(|i| ((f32::from(n) + 1.0) * (i as f32 + 1.0) * 0.37).sin() + 0.01).collect()
}

fn memory(id: u8, text: u8, vec: Option<u8>) -> NewMemory {
    NewMemory {
        id: format!("m{id}"),
        text: format!("text {text}"),
        role: Some(["user", "assistant", "tool"][usize::from(text % 3)].into()),
        session: text.is_multiple_of(2).then(|| format!("s{}", text % 5)),
        ts_ms: i64::from(text) * 1000,
        meta: text.is_multiple_of(4).then(|| format!("{{\"n\": {text}, \"odd\":  [1.50]}}")),
        vectors: vec.map(|v| vec![vector(v), vector(v.wrapping_add(100))]),
        request: None,
    }
}

struct Harness {
    _root: tempfile::TempDir,
    dir: std::path::PathBuf,
    generation: u32,
    store: Option<Store>,
    model: BTreeMap<u8, ModelSpace>,
}

fn options() -> StoreOptions {
    StoreOptions { seal_bytes: 600, log_file_bytes: 20_000, ..StoreOptions::new(DIM, "model") }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

impl Harness {
    fn new() -> Harness {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("store");
        let store = Some(Store::open(&dir, options()).unwrap());
        Harness { _root: root, dir, generation: 0, store, model: BTreeMap::new() }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn next_dir(&mut self) -> std::path::PathBuf {
        self.generation += 1;
        self.dir.with_file_name(format!("store-{}", self.generation))
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Add { space, items, conflict } => self.add(space, &items, conflict),
            Step::Embed { space, count } => self.embed(space, count),
            Step::Update { space, id, text, stale } => self.update(space, id, text, stale),
            Step::Delete { space, ids, expect, dry_run } => {
                self.delete(space, &ids, expect, dry_run);
            }
            Step::DeleteRole { space, role } => self.delete_role(space, role),
            Step::Drop { space } => {
                let dropped = self.store().drop_space(&name(space));
                match self.model.remove(&space) {
                    Some(m) => assert_eq!(dropped.unwrap(), m.by_seq.len() as u64),
                    None => assert!(matches!(dropped, Err(Error::NoSuchSpace { .. }))),
                }
            }
            Step::Maintain => while self.store().maintain(Duration::from_millis(5)).unwrap() {},
            Step::Compact => drop(self.store().compact().unwrap()),
            Step::Reopen => {
                self.store().close().unwrap();
                self.store = None;
                self.store = Some(Store::open(&self.dir, options()).unwrap());
            }
            Step::Crash => {
                // Everything acknowledged is synced, so a copy of the files is what a crash would leave at the least.
                let dir = self.next_dir();
                copy_dir(&self.dir, &dir);
                self.store = Some(Store::open(&dir, options()).unwrap());
                self.dir = dir;
            }
            Step::Snapshot => {
                let dir = self.next_dir();
                self.store().snapshot(&dir).unwrap();
                self.store = Some(Store::open(&dir, options()).unwrap());
                self.dir = dir;
            }
            Step::Check { space, query, k } => self.check(space, query, k),
        }
    }

    fn add(&mut self, space: u8, items: &[(u8, u8, Option<u8>)], conflict: OnConflict) {
        let mut items: Vec<NewMemory> =
            items.iter().map(|(id, text, v)| memory(*id, *text, *v)).collect();
        items.sort_by(|a, b| a.id.cmp(&b.id));
        items.dedup_by(|a, b| a.id == b.id);
        let done = self.store().add(&name(space), items.clone(), conflict);
        let before = self.model.get(&space).cloned().unwrap_or_default();
        let clash = items.iter().any(|i| before.seq_of(&i.id).is_some());
        if clash && conflict == OnConflict::Error {
            assert!(matches!(done, Err(Error::Conflict { .. })));
            return;
        }
        let model = self.model.entry(space).or_default();
        let done = done.unwrap();
        for (item, out) in items.into_iter().zip(&done.items) {
            let id = item.id.clone();
            let old = model.seq_of(&id);
            let status = match (old, conflict) {
                (None, _) => AddStatus::Added,
                (Some(_), OnConflict::Skip) => AddStatus::Skipped,
                (Some(_), _) => AddStatus::Replaced,
            };
            assert_eq!((&out.id, out.status), (&id, status));
            if status == AddStatus::Skipped {
                assert_eq!(Some(out.seq.0), old);
                continue;
            }
            old.map(|seq| model.by_seq.remove(&seq));
            assert_eq!(out.seq.0, model.append(item));
        }
        assert_eq!(done.seq.0, model.last_seq);
    }

    fn embed(&mut self, space: u8, count: usize) {
        let Some(model) = self.model.get_mut(&space) else { return };
        let waiting: Vec<u64> =
            model.by_seq.iter().filter(|(_, k)| k.vectors.is_empty()).map(|(s, _)| *s).collect();
        let store = self.store.as_ref().unwrap();
        let pending: Vec<u64> = store
            .pending(1000)
            .into_iter()
            .filter(|(n, _)| *n == name(space))
            .map(|(_, s)| s.0)
            .collect();
        assert_eq!(pending, waiting, "pending are those without vectors, oldest first");
        let mut entries = Vec::new();
        for seq in waiting.into_iter().take(count) {
            let v = vector((seq * 7 % 251) as u8);
            model.by_seq.get_mut(&seq).unwrap().vectors = vec![unit(&v)];
            entries.push((Seq(seq), vec![v]));
        }
        entries.push((Seq(9_999_999), vec![vector(1)]));
        let expected = entries.len() - 1;
        assert_eq!(store.set_vectors(&name(space), entries).unwrap(), expected);
    }

    fn update(&mut self, space: u8, id: u8, text: Option<u8>, stale: bool) {
        let id = format!("m{id}");
        let patch = Patch {
            text: text.map(|t| format!("text {t}")),
            role: Some(None),
            ts_ms: Some(5),
            ..Patch::default()
        };
        let known = self.model.get(&space).and_then(|m| m.seq_of(&id));
        let if_seq = stale.then_some(Seq(u64::MAX));
        let done = self.store().update(&name(space), &id, patch, if_seq);
        let Some(seq) = known else {
            assert!(matches!(done, Err(Error::NoSuchSpace { .. } | Error::NoSuchMemory { .. })));
            return;
        };
        if stale {
            assert!(matches!(done, Err(Error::SeqMismatch { .. })));
            return;
        }
        let model = self.model.get_mut(&space).unwrap();
        let mut kept = model.by_seq.remove(&seq).unwrap();
        let new_text = text.map_or(kept.memory.text.clone(), |t| format!("text {t}"));
        if new_text != kept.memory.text {
            kept.vectors.clear();
        }
        kept.memory.text = new_text;
        kept.memory.role = None;
        kept.memory.ts_ms = 5;
        model.last_seq += 1;
        let done = done.unwrap();
        assert_eq!((done.seq.0, done.needs_vectors), (model.last_seq, kept.vectors.is_empty()));
        model.by_seq.insert(model.last_seq, kept);
    }

    fn delete(&mut self, space: u8, ids: &[u8], expect: Option<u64>, dry_run: bool) {
        let ids: std::collections::BTreeSet<String> = ids.iter().map(|i| format!("m{i}")).collect();
        let what = Selection::Ids(ids.iter().cloned().collect());
        let done = self.store().delete(&name(space), &what, dry_run, expect);
        let Some(model) = self.model.get_mut(&space) else {
            assert!(matches!(done, Err(Error::NoSuchSpace { .. })));
            return;
        };
        let seqs: Vec<u64> = ids.iter().filter_map(|id| model.seq_of(id)).collect();
        let matched = seqs.len() as u64;
        if expect.is_some_and(|e| e != matched) {
            assert!(matches!(done, Err(Error::ExpectCount { found, .. }) if found == matched));
            return;
        }
        let done = done.unwrap();
        assert_eq!((done.matched, done.missing), (matched, ids.len() as u64 - matched));
        assert_eq!(done.deleted, if dry_run { 0 } else { matched });
        if !dry_run {
            model.by_seq.retain(|s, _| !seqs.contains(s));
        }
    }

    fn delete_role(&mut self, space: u8, role: u8) {
        let role = ["user", "assistant", "tool"][usize::from(role)];
        let filter = Filter::parse(&serde_json::json!({"role": {"eq": role}})).unwrap();
        let done = self.store().delete(&name(space), &Selection::Filter(filter), false, None);
        let Some(model) = self.model.get_mut(&space) else { return };
        let before = model.by_seq.len();
        model.by_seq.retain(|_, k| k.memory.role.as_deref() != Some(role));
        assert_eq!(done.unwrap().deleted as usize, before - model.by_seq.len());
    }

    /// Compares every read of the space with the model.
    fn check(&self, space: u8, query: u8, k: usize) {
        let store = self.store();
        let Some(model) = self.model.get(&space) else {
            let q = vector(query);
            let none = store.search(&name(space), &Query::new(&q, k));
            assert!(matches!(none, Err(Error::NoSuchSpace { .. })));
            return;
        };
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let page = store.list(&name(space), None, None, after, 3).unwrap();
            listed.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(listed.len(), model.by_seq.len());
        for (m, (seq, kept)) in listed.iter().zip(&model.by_seq) {
            assert_same(m, *seq, kept);
        }
        let ids: Vec<String> = (0..12).map(|i| format!("m{i}")).collect();
        for (id, got) in ids.iter().zip(store.get(&name(space), &ids).unwrap()) {
            assert_eq!(got.map(|m| m.seq.0), model.seq_of(id));
        }
        if let Some((at, m)) = listed.iter().enumerate().nth(k % listed.len().max(1)) {
            let around = store.around(&name(space), &m.id, 2, 3).unwrap();
            let expected = &listed[at.saturating_sub(2)..(at + 4).min(listed.len())];
            assert_eq!(around, expected);
        }
        self.check_search(model, space, query, k, None, None);
        let filter =
            serde_json::json!({"or": [{"role": {"eq": "user"}}, {"meta.n": {"gte": 100}}]});
        self.check_search(model, space, query, k, Some(filter), None);
        let time = TimeRange { from_ms: Some(20_000), to_ms: Some(180_000) };
        self.check_search(model, space, query, k, None, Some(time));
        let stats = store.space_stats(&name(space)).unwrap();
        let waiting = model.by_seq.values().filter(|m| m.vectors.is_empty()).count() as u64;
        assert_eq!((stats.memories, stats.pending), (model.by_seq.len() as u64, waiting));
    }

    fn check_search(
        &self,
        model: &ModelSpace,
        space: u8,
        query: u8,
        k: usize,
        filter: Option<serde_json::Value>,
        time: Option<TimeRange>,
    ) {
        let q = vector(query);
        let qu = unit(&q);
        let accept = |m: &NewMemory| {
            let n = if m.meta.is_some() {
                m.meta.as_ref().and_then(|t| {
                    serde_json::from_str::<serde_json::Value>(t).unwrap()["n"].as_i64()
                })
            } else {
                None
            };
            let by_filter = filter.is_none()
                || m.role.as_deref() == Some("user")
                || n.is_some_and(|n| n >= 100);
            let by_time =
                time.is_none_or(|t| m.ts_ms >= t.from_ms.unwrap() && m.ts_ms < t.to_ms.unwrap());
            by_filter && by_time
        };
        let mut expected: Vec<(f64, u64)> = model
            .by_seq
            .iter()
            .filter(|(_, kept)| accept(&kept.memory))
            .filter_map(|(seq, kept)| {
                let dots =
                    kept.vectors.iter().map(|v| v.iter().zip(&qu).map(|(a, b)| a * b).sum::<f64>());
                dots.max_by(f64::total_cmp).map(|score| (score, *seq))
            })
            .collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        let parsed = filter.as_ref().map(|f| Filter::parse(f).unwrap());
        let query = Query { filter: parsed.as_ref(), time, ..Query::new(&q, k) };
        let found = self.store().search(&name(space), &query).unwrap();
        assert_eq!(found.hits.len(), expected.len().min(k));
        let scores: BTreeMap<u64, f64> = expected.iter().map(|(s, q)| (*q, *s)).collect();
        for (hit, (score, _)) in found.hits.iter().zip(&expected) {
            assert!((f64::from(hit.score) - score).abs() < 1e-5, "rank by rank the same score");
            let own = scores.get(&hit.seq.0).expect("a hit is live and matches");
            assert!((f64::from(hit.score) - own).abs() < 1e-5, "the score is the hit's own");
        }
    }
}

fn assert_same(m: &Memory, seq: u64, kept: &Kept) {
    let want = &kept.memory;
    assert_eq!((&m.id, &m.text, &m.role), (&want.id, &want.text, &want.role));
    assert_eq!((&m.session, m.ts_ms, &m.meta), (&want.session, want.ts_ms, &want.meta));
    assert_eq!((m.seq.0, m.searchable), (seq, !kept.vectors.is_empty()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn a_store_is_a_map_with_brute_force(steps in steps()) {
        let mut h = Harness::new();
        for step in steps {
            h.apply(step);
        }
        for space in 0..3 {
            h.check(space, 17, 10);
        }
        let report = h.store().verify().unwrap();
        prop_assert!(report.problems.is_empty(), "{:?}", report.problems);
    }
}
