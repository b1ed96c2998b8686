//! A store beside a map: every operation is done on both, and everything that can be read is compared.
//!
//! Invariant: the model is maps and brute force in f64. A power cut may take back the one step that it fell into, whole, and
//! nothing that was acknowledged before.

use std::collections::BTreeMap;
use std::time::Duration;

use arbitrary::Arbitrary;
use flashbulb_engine::fuzz::{Disk, Files};
use flashbulb_engine::{
    AddStatus, Error, Filter, Memory, NewMemory, OnConflict, Patch, Query, Selection, Seq,
    SpaceName, Store, TimeRange,
};
use serde_json::json;

use crate::hostile::{DIM, options};

/// One step. Spaces, ids and texts are few, so that steps meet.
#[derive(Debug, Clone, Arbitrary)]
pub enum Step {
    /// Several memories at once.
    Add { space: u8, items: Vec<Item>, conflict: Conflict },
    /// A memory gets another text, or other fields only.
    Update { space: u8, id: u8, text: Option<u8>, vector: Option<u8>, stale: bool },
    /// By id.
    Delete { space: u8, ids: Vec<u8>, expect: Option<u8>, dry_run: bool },
    /// By filter.
    DeleteRole { space: u8, role: u8 },
    /// A space goes.
    Drop { space: u8 },
    /// Vectors for what waits.
    Embed { space: u8, count: u8 },
    /// Background work until none is left: seals, merges, spare logs.
    Seal,
    /// All becomes one segment.
    Compact,
    /// Closed and opened.
    Reopen,
    /// The process is killed: all that was written is there.
    Kill,
    /// The power is cut within the step before or behind it; what was not synced is by chance.
    PowerCut { back: u8, seed: u32 },
}

/// What an add does with an id that is there.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Conflict {
    /// Refuses all.
    Error,
    /// Keeps the old.
    Skip,
    /// Takes the new.
    Replace,
}

/// A memory to be added.
#[derive(Debug, Clone, Arbitrary)]
pub struct Item {
    id: u8,
    text: u8,
    vector: Option<u8>,
}

#[derive(Debug, Clone, PartialEq)]
struct Kept {
    memory: NewMemory,
    vectors: Vec<Vec<f64>>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Space {
    by_seq: BTreeMap<u64, Kept>,
    last_seq: u64,
}

type Spaces = BTreeMap<u8, Space>;

impl Space {
    fn seq_of(&self, id: &str) -> Option<u64> {
        self.by_seq.iter().find(|(_, kept)| kept.memory.id == id).map(|(seq, _)| *seq)
    }

    fn push(&mut self, kept: Kept) -> u64 {
        self.last_seq += 1;
        self.by_seq.insert(self.last_seq, kept);
        self.last_seq
    }
}

/// A store on a disk in memory, and what must be in it.
pub struct Pair {
    disk: Disk,
    store: Option<Store>,
    model: Spaces,
    /// The model before the last step, and how many events the disk had seen then.
    before: (Spaces, usize),
}

fn name(space: u8) -> SpaceName {
    SpaceName::parse(&format!("space-{space}")).expect("a name")
}

fn vector(n: u8) -> Vec<f32> {
    (0..DIM).map(|i| ((f32::from(n) + 1.0) * (i as f32 + 1.0) * 0.37).sin() + 0.01).collect()
}

fn unit(v: &[f32]) -> Vec<f64> {
    let norm = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    v.iter().map(|x| f64::from(*x) / norm).collect()
}

const ROLES: [&str; 3] = ["user", "assistant", "tool"];

fn memory(item: &Item) -> NewMemory {
    let text = item.text;
    NewMemory {
        id: format!("m{}", item.id % 8),
        text: format!("text {text}"),
        role: Some(ROLES[usize::from(text % 3)].into()),
        session: (text % 2 == 0).then(|| format!("s{}", text % 5)),
        ts_ms: i64::from(text) * 1000,
        meta: (text % 4 == 0).then(|| format!("{{\"n\": {text}, \"odd\":  [1.50]}}")),
        vectors: item.vector.map(|v| vec![vector(v), vector(v.wrapping_add(100))]),
        request: None,
    }
}

impl Default for Pair {
    fn default() -> Pair {
        let disk = Disk::new(Files::new());
        let store = Some(disk.open(options()).expect("a new store opens"));
        let before = (Spaces::new(), disk.events());
        Pair { disk, store, model: Spaces::new(), before }
    }
}

impl Pair {
    fn store(&self) -> &Store {
        self.store.as_ref().expect("open between steps")
    }

    /// Does a step on both and compares what they answer, then all that can be read.
    ///
    /// # Panics
    /// When they differ.
    pub fn step(&mut self, step: &Step) {
        let before = (self.model.clone(), self.disk.events());
        match step {
            Step::Add { space, items, conflict } => self.add(space % 3, items, *conflict),
            Step::Update { space, id, text, vector, stale } => {
                self.update(space % 3, *id, *text, *vector, *stale)
            }
            Step::Delete { space, ids, expect, dry_run } => {
                self.delete(space % 3, ids, *expect, *dry_run)
            }
            Step::DeleteRole { space, role } => {
                self.delete_role(space % 3, ROLES[usize::from(role % 3)])
            }
            Step::Drop { space } => self.drop_space(space % 3),
            Step::Embed { space, count } => self.embed(space % 3, *count),
            Step::Seal => while self.store().maintain(Duration::from_millis(5)).expect("upkeep") {},
            Step::Compact => drop(self.store().compact().expect("compacting")),
            Step::Reopen => {
                self.store().close().expect("closing");
                self.store = None;
                self.open("after a close");
            }
            Step::Kill => {
                let files = self.disk.files();
                self.store = None;
                self.disk = Disk::new(files);
                self.open("after a kill");
            }
            Step::PowerCut { back, seed } => return self.power_cut(*back, *seed),
        }
        self.before = before;
        self.compare();
    }

    fn open(&mut self, when: &str) {
        self.store = Some(self.disk.open(options()).unwrap_or_else(|e| panic!("{when}: {e}")));
    }

    fn power_cut(&mut self, back: u8, seed: u32) {
        let (model, from) = self.before.clone();
        let to = self.disk.events();
        let at = to - usize::from(back) % (to.saturating_sub(from) + 1);
        let disk = self.disk.cut(at, seed.into());
        self.store = None;
        self.disk = disk;
        self.open("after a power cut");
        // What the step was to change is there whole or not at all.
        if at < to && !self.differs(&model) {
            self.model = model;
        }
        self.before = (self.model.clone(), self.disk.events());
        self.compare();
    }

    /// Whether the store holds something other than `model`.
    fn differs(&self, model: &Spaces) -> bool {
        let listed = |space: u8| self.store().list(&name(space), None, None, None, 1000).ok();
        (0..3).any(|space| match (listed(space), model.get(&space)) {
            (None, None) => false,
            (Some(page), Some(kept)) => {
                page.items.len() != kept.by_seq.len()
                    || page.items.iter().zip(&kept.by_seq).any(|(m, (seq, k))| !same(m, *seq, k))
            }
            _ => true,
        })
    }

    fn add(&mut self, space: u8, items: &[Item], conflict: Conflict) {
        let mut items: Vec<NewMemory> = items.iter().take(6).map(memory).collect();
        items.sort_by(|a, b| a.id.cmp(&b.id));
        items.dedup_by(|a, b| a.id == b.id);
        let on_conflict = match conflict {
            Conflict::Error => OnConflict::Error,
            Conflict::Skip => OnConflict::Skip,
            Conflict::Replace => OnConflict::Replace,
        };
        let done = self.store().add(&name(space), items.clone(), on_conflict);
        if items.is_empty() {
            assert!(matches!(done, Err(Error::Invalid { .. })));
            return;
        }
        let old = self.model.get(&space).cloned().unwrap_or_default();
        if on_conflict == OnConflict::Error && items.iter().any(|i| old.seq_of(&i.id).is_some()) {
            assert!(matches!(done, Err(Error::Conflict { .. })), "{done:?}");
            return;
        }
        let done = done.expect("an add");
        let model = self.model.entry(space).or_default();
        for (memory, out) in items.into_iter().zip(&done.items) {
            let old = model.seq_of(&memory.id);
            let status = match (old, on_conflict) {
                (None, _) => AddStatus::Added,
                (Some(_), OnConflict::Skip) => AddStatus::Skipped,
                (Some(_), _) => AddStatus::Replaced,
            };
            assert_eq!((&out.id, out.status), (&memory.id, status));
            if status == AddStatus::Skipped {
                assert_eq!(Some(out.seq.0), old);
                continue;
            }
            old.map(|seq| model.by_seq.remove(&seq));
            let vectors = memory.vectors.iter().flatten().map(|v| unit(v)).collect();
            assert_eq!(out.seq.0, model.push(Kept { memory, vectors }));
        }
        assert_eq!(done.seq.0, model.last_seq);
    }

    fn update(&mut self, space: u8, id: u8, text: Option<u8>, own: Option<u8>, stale: bool) {
        let id = format!("m{}", id % 8);
        let text = text.map(|t| format!("text {t}"));
        let vectors = own.map(|v| vec![vector(v)]);
        let patch = Patch {
            text: text.clone(),
            role: Some(None),
            ts_ms: Some(5),
            vectors: vectors.clone(),
            ..Patch::default()
        };
        let done = self.store().update(&name(space), &id, patch, stale.then_some(Seq(u64::MAX)));
        let Some((model, seq)) =
            self.model.get_mut(&space).and_then(|m| m.seq_of(&id).map(|seq| (m, seq)))
        else {
            assert!(
                matches!(done, Err(Error::NoSuchSpace { .. } | Error::NoSuchMemory { .. })),
                "{done:?}"
            );
            return;
        };
        if stale {
            assert!(matches!(done, Err(Error::SeqMismatch { .. })), "{done:?}");
            return;
        }
        let Some(mut kept) = model.by_seq.remove(&seq) else { return };
        if let Some(text) = text.filter(|text| *text != kept.memory.text) {
            kept.memory.text = text;
            kept.vectors.clear();
        }
        if let Some(rows) = vectors {
            kept.vectors = rows.iter().map(|v| unit(v)).collect();
        }
        (kept.memory.role, kept.memory.ts_ms) = (None, 5);
        let waits = kept.vectors.is_empty();
        let done = done.expect("an update");
        assert_eq!((done.seq.0, done.needs_vectors), (model.push(kept), waits));
    }

    fn delete(&mut self, space: u8, ids: &[u8], expect: Option<u8>, dry_run: bool) {
        let ids: std::collections::BTreeSet<String> =
            ids.iter().map(|id| format!("m{}", id % 8)).collect();
        let expect = expect.map(|e| u64::from(e % 4));
        let what = Selection::Ids(ids.iter().cloned().collect());
        let done = self.store().delete(&name(space), &what, dry_run, expect);
        let Some(model) = self.model.get_mut(&space) else {
            assert!(matches!(done, Err(Error::NoSuchSpace { .. })), "{done:?}");
            return;
        };
        let seqs: Vec<u64> = ids.iter().filter_map(|id| model.seq_of(id)).collect();
        let matched = seqs.len() as u64;
        if expect.is_some_and(|e| e != matched) {
            assert!(
                matches!(done, Err(Error::ExpectCount { found, .. }) if found == matched),
                "{done:?}"
            );
            return;
        }
        let done = done.expect("a delete");
        assert_eq!((done.matched, done.missing), (matched, ids.len() as u64 - matched));
        assert_eq!(done.deleted, if dry_run { 0 } else { matched });
        if !dry_run {
            model.by_seq.retain(|seq, _| !seqs.contains(seq));
        }
    }

    fn delete_role(&mut self, space: u8, role: &str) {
        let filter = Filter::parse(&json!({"role": {"eq": role}})).expect("a filter");
        let done = self.store().delete(&name(space), &Selection::Filter(filter), false, None);
        let Some(model) = self.model.get_mut(&space) else { return };
        let before = model.by_seq.len();
        model.by_seq.retain(|_, kept| kept.memory.role.as_deref() != Some(role));
        assert_eq!(done.expect("a delete").deleted as usize, before - model.by_seq.len());
    }

    fn drop_space(&mut self, space: u8) {
        let dropped = self.store().drop_space(&name(space));
        match self.model.remove(&space) {
            Some(model) => assert_eq!(dropped.expect("a drop"), model.by_seq.len() as u64),
            None => assert!(matches!(dropped, Err(Error::NoSuchSpace { .. })), "{dropped:?}"),
        }
    }

    fn embed(&mut self, space: u8, count: u8) {
        let Some(model) = self.model.get_mut(&space) else { return };
        let waiting: Vec<u64> = model
            .by_seq
            .iter()
            .filter(|(_, kept)| kept.vectors.is_empty())
            .map(|(seq, _)| *seq)
            .collect();
        let store = self.store.as_ref().expect("open between steps");
        let pending = store
            .pending(1000)
            .into_iter()
            .filter(|(n, _)| *n == name(space))
            .map(|(_, seq)| seq.0);
        assert_eq!(
            pending.collect::<Vec<_>>(),
            waiting,
            "pending are those without vectors, oldest first"
        );
        let mut entries = vec![(Seq(9_999_999), vec![vector(1)])];
        for seq in waiting.into_iter().take(usize::from(count % 8)) {
            let row = vector((seq * 7 % 251) as u8);
            if let Some(kept) = model.by_seq.get_mut(&seq) {
                kept.vectors = vec![unit(&row)];
            }
            entries.push((Seq(seq), vec![row]));
        }
        let expected = entries.len() - 1;
        assert_eq!(store.set_vectors(&name(space), entries).expect("vectors"), expected);
    }

    /// Compares all that can be read.
    fn compare(&self) {
        let store = self.store();
        for space in 0..3 {
            let Some(model) = self.model.get(&space) else {
                assert!(matches!(store.space_stats(&name(space)), Err(Error::NoSuchSpace { .. })));
                continue;
            };
            let mut listed = Vec::new();
            let mut after = None;
            loop {
                let page = store.list(&name(space), None, None, after, 3).expect("a page");
                listed.extend(page.items);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(listed.len(), model.by_seq.len(), "space {space}");
            for (memory, (seq, kept)) in listed.iter().zip(&model.by_seq) {
                assert!(same(memory, *seq, kept), "{memory:?} is not {seq}: {kept:?}");
            }
            let ids: Vec<String> = (0..8).map(|id| format!("m{id}")).collect();
            for (id, got) in ids.iter().zip(store.get(&name(space), &ids).expect("reading by id")) {
                assert_eq!(got.map(|m| m.seq.0), model.seq_of(id));
            }
            let stats = store.space_stats(&name(space)).expect("it is there");
            let waiting =
                model.by_seq.values().filter(|kept| kept.vectors.is_empty()).count() as u64;
            let vectors = model.by_seq.values().map(|kept| kept.vectors.len() as u64).sum();
            assert_eq!((stats.memories, stats.pending), (model.by_seq.len() as u64, waiting));
            assert_eq!((stats.searchable, stats.vectors), (stats.memories - waiting, vectors));
            self.search(space, model, 4, None);
            self.search(
                space,
                model,
                20,
                Some(TimeRange { from_ms: Some(20_000), to_ms: Some(180_000) }),
            );
        }
        assert_eq!(store.spaces().len(), self.model.len());
    }

    /// Compares a search with brute force; spaces are too small for a graph, so it must be exact.
    fn search(&self, space: u8, model: &Space, k: usize, time: Option<TimeRange>) {
        let query = vector(17);
        let direction = unit(&query);
        let dot = |v: &Vec<f64>| v.iter().zip(&direction).map(|(a, b)| a * b).sum::<f64>();
        let best = |kept: &Kept| kept.vectors.iter().map(dot).max_by(f64::total_cmp);
        let inside = |kept: &Kept| time.is_none_or(|t| t.contains(kept.memory.ts_ms));
        let mut expected: Vec<(f64, u64)> = model
            .by_seq
            .iter()
            .filter(|(_, kept)| inside(kept))
            .filter_map(|(seq, kept)| best(kept).map(|score| (score, *seq)))
            .collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found = self
            .store()
            .search(&name(space), &Query { time, ..Query::new(&query, k) })
            .expect("a search");
        assert_eq!(found.hits.len(), expected.len().min(k));
        for (hit, (score, _)) in found.hits.iter().zip(&expected) {
            let own = expected
                .iter()
                .find(|(_, seq)| *seq == hit.seq.0)
                .expect("a hit is live and in time")
                .0;
            assert!((f64::from(hit.score) - score).abs() < 1e-5, "rank by rank the same score");
            assert!((f64::from(hit.score) - own).abs() < 1e-5, "the score is the hit's own");
        }
    }

    /// Checks every byte of the store, closes it and compares it once more.
    ///
    /// # Panics
    /// When something is not as it must be.
    pub fn end(mut self) {
        let report = self.store().verify().expect("a verification");
        assert_eq!(report.problems, [""; 0]);
        self.step(&Step::Reopen);
    }
}

fn same(memory: &Memory, seq: u64, kept: &Kept) -> bool {
    let want = &kept.memory;
    (&memory.id, &memory.text, &memory.role) == (&want.id, &want.text, &want.role)
        && (&memory.session, memory.ts_ms, &memory.meta) == (&want.session, want.ts_ms, &want.meta)
        && (memory.seq.0, memory.searchable) == (seq, !kept.vectors.is_empty())
}
