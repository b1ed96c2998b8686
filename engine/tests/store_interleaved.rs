//! Random interleavings over a store large enough to have a graph: memories come, go and change, upkeep runs in parts, the store is closed,
//! dropped without a close or crashes and is opened again, and every search in between is compared with brute force.
//!
//! The oracle is `oracle`: brute force over the f32 vectors, in f64, and a map of what was acknowledged. After each opening everything that
//! was acknowledged must be found by exact searches, and nothing else. A run that fails prints the shortest list of steps that still
//! fails; each step has its own seed, so the list alone repeats it.
//!
//! `FLASHBULB_INTERLEAVED_SCALE=20` runs twenty times as many lists.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use flashbulb_engine::index::GRAPH_FROM;
use flashbulb_engine::{
    Filter, K_MAX, NewMemory, OnConflict, Patch, Query, SearchPath, Selection, SpaceName, Store,
    StoreOptions, TimeRange,
};
use oracle::{AFTER_A_WALK, Mixture, Recall, Rng, Truth, check, check_exact, dot, rounding};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use serde_json::json;

const DIM: usize = 40;
const WANTED: f64 = 0.95;
/// Memories in the store that each run starts with, some of more than one vector.
const PREFILLED: usize = GRAPH_FROM as usize + 100;

static MIXTURE: LazyLock<Mixture> = LazyLock::new(|| Mixture::new(DIM, 80, 1.0, 40));

/// A closed store with a saved graph, and what is in it.
static TEMPLATE: LazyLock<(tempfile::TempDir, Model)> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    let mut model = Model::default();
    for seed in 0..(PREFILLED / 100) as u64 {
        model.add(&store, 100, seed).unwrap();
    }
    while store.maintain(Duration::from_millis(100)).unwrap() {}
    assert!(store.space_stats(&space()).unwrap().graph_vectors as usize >= PREFILLED);
    store.close().unwrap();
    (root, model)
});

fn options() -> StoreOptions {
    StoreOptions { seal_bytes: 100_000, log_file_bytes: 300_000, ..StoreOptions::new(DIM, "m") }
}

fn open(dir: &Path) -> Result<Store, String> {
    Store::open(dir, options()).map_err(|why| format!("the store does not open: {why}"))
}

fn space() -> SpaceName {
    SpaceName::parse("a").unwrap()
}

#[derive(Debug, Clone, Copy)]
enum Match {
    All,
    /// By role: half of all, or one in fifty.
    Role(&'static str),
    /// By `meta.n`, a number of 0 to 999 that says nothing of the vector.
    Below(u32),
    /// By time: so many parts of a hundred, beginning with such a one.
    Time(u32, u32),
}

impl Match {
    fn filter(self) -> Option<Filter> {
        let json = match self {
            Match::All | Match::Time(..) => return None,
            Match::Role(role) => json!({"role": {"eq": role}}),
            Match::Below(end) => json!({"meta.n": {"lt": end}}),
        };
        Some(Filter::parse(&json).unwrap())
    }

    fn time(self) -> Option<TimeRange> {
        let Match::Time(from, count) = self else { return None };
        let moment = |part: u32| Some(i64::from(part) * 10);
        Some(TimeRange { from_ms: moment(from), to_ms: moment(from + count) })
    }

    fn accepts(self, kept: &Kept) -> bool {
        match self {
            Match::All => true,
            Match::Role(role) => kept.role == role,
            Match::Below(end) => kept.n < end,
            Match::Time(from, count) => (from..from + count).contains(&(kept.n / 10)),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add {
        count: usize,
        seed: u64,
    },
    /// New vectors under ids that are there.
    Replace {
        count: usize,
        seed: u64,
    },
    /// New versions with the old vectors, or with new ones.
    Update {
        count: usize,
        vectors: bool,
        seed: u64,
    },
    Delete {
        count: usize,
        seed: u64,
    },
    Search {
        k: usize,
        what: Match,
        exact: bool,
        seed: u64,
    },
    Maintain {
        turns: usize,
    },
    Settle,
    Compact,
    Reopen(End),
}

/// How the store ends before it is opened again.
#[derive(Debug, Clone, Copy)]
enum End {
    Close,
    Drop,
    /// What is acknowledged is synced, so a copy of the files is what a crash leaves at the least.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let seed = any::<u32>().prop_map(u64::from);
    let what = prop_oneof![
        3 => Just(Match::All),
        1 => prop_oneof![Just("half"), Just("other"), Just("rare")].prop_map(Match::Role),
        1 => prop_oneof![Just(2u32), Just(50), Just(700)].prop_map(Match::Below),
        1 => (0u32..100, 1u32..60).prop_map(|(from, count)| Match::Time(from, count)),
    ];
    let k = prop_oneof![Just(1usize), Just(10), Just(10), Just(100)];
    let end = prop_oneof![Just(End::Close), Just(End::Drop), Just(End::Crash)];
    let step = prop_oneof![
        4 => (1usize..60, seed.clone()).prop_map(|(count, seed)| Step::Add { count, seed }),
        1 => (1usize..20, seed.clone()).prop_map(|(count, seed)| Step::Replace { count, seed }),
        2 => (1usize..8, any::<bool>(), seed.clone())
            .prop_map(|(count, vectors, seed)| Step::Update { count, vectors, seed }),
        4 => (1usize..100, seed.clone()).prop_map(|(count, seed)| Step::Delete { count, seed }),
        // A tenth and more of the graph, which is then repaired.
        1 => (600usize..1500, seed.clone()).prop_map(|(count, seed)| Step::Delete { count, seed }),
        8 => (k, what, prop::bool::weighted(0.3), seed)
            .prop_map(|(k, what, exact, seed)| Step::Search { k, what, exact, seed }),
        3 => (1usize..6).prop_map(|turns| Step::Maintain { turns }),
        1 => Just(Step::Settle),
        1 => Just(Step::Compact),
        4 => end.prop_map(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..30)
}

#[derive(Debug, Clone)]
struct Kept {
    id: String,
    role: &'static str,
    n: u32,
    vectors: Vec<Vec<f32>>,
}

/// What was acknowledged, by seq.
#[derive(Debug, Default, Clone)]
struct Model {
    live: BTreeMap<u64, Kept>,
    ids: u64,
}

impl Model {
    /// One vector, or three where the memory is a long one.
    fn vectors(rng: &mut Rng) -> Vec<Vec<f32>> {
        let count = if rng.below(12) == 0 { 3 } else { 1 };
        (0..count).map(|_| MIXTURE.draw(rng).1).collect()
    }

    fn draw(id: String, rng: &mut Rng) -> Kept {
        let role = [["half", "other"][rng.below(2)], "rare"][usize::from(rng.below(50) == 0)];
        Kept { id, role, n: rng.below(1000) as u32, vectors: Model::vectors(rng) }
    }

    fn add(&mut self, store: &Store, count: usize, seed: u64) -> Result<(), String> {
        let mut rng = Rng(seed);
        let fresh = (self.ids..self.ids + count as u64).map(|n| format!("n{n}"));
        let items: Vec<Kept> = fresh.map(|id| Model::draw(id, &mut rng)).collect();
        self.ids += count as u64;
        self.put(store, items, OnConflict::Error)
    }

    fn put(&mut self, store: &Store, items: Vec<Kept>, how: OnConflict) -> Result<(), String> {
        let memory = |kept: &Kept| NewMemory {
            id: kept.id.clone(),
            text: format!("text of {}", kept.id),
            role: Some(kept.role.into()),
            ts_ms: i64::from(kept.n),
            meta: Some(format!("{{\"n\": {}}}", kept.n)),
            vectors: Some(kept.vectors.clone()),
            ..NewMemory::default()
        };
        let added = store.add(&space(), items.iter().map(memory).collect(), how);
        let added = added.map_err(|why| format!("not added: {why}"))?;
        for (kept, item) in items.into_iter().zip(added.items) {
            self.live.retain(|_, old| old.id != kept.id || how == OnConflict::Error);
            self.live.insert(item.seq.0, kept);
        }
        Ok(())
    }

    /// So many live ones, anywhere.
    fn some(&self, count: usize, rng: &mut Rng) -> BTreeMap<u64, Kept> {
        let seqs: Vec<u64> = self.live.keys().copied().collect();
        let chosen = (0..count.min(seqs.len())).map(|_| seqs[rng.below(seqs.len())]);
        chosen.map(|seq| (seq, self.live[&seq].clone())).collect()
    }

    /// The score of every seq: the cosine of the best vector; nothing where there is no memory.
    fn scores(&self, query: &[f32]) -> Vec<f64> {
        let end = self.live.keys().next_back().map_or(0, |last| last + 1);
        let mut scores = vec![f64::NEG_INFINITY; end as usize];
        for (seq, kept) in &self.live {
            let dots = kept.vectors.iter().map(|v| dot(v, query));
            scores[*seq as usize] = dots.fold(f64::NEG_INFINITY, f64::max);
        }
        scores
    }
}

struct Harness {
    root: tempfile::TempDir,
    dir: PathBuf,
    crashes: u32,
    store: Option<Store>,
    model: Model,
    recall: Recall,
    paths: BTreeMap<String, usize>,
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
        let (template, model) = &*TEMPLATE;
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("store");
        copy_dir(template.path(), &dir);
        let store = open(&dir).unwrap();
        assert_eq!(store.recovery().graphs_loaded, 1, "{:?}", store.recovery());
        let (recall, paths) = (Recall::default(), BTreeMap::new());
        let model = model.clone();
        Harness { root, dir, crashes: 0, store: Some(store), model, recall, paths }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        let store = self.store.as_ref().unwrap();
        let told = |why: flashbulb_engine::Error| format!("refused: {why}");
        match *step {
            Step::Add { count, seed } => self.model.add(store, count, seed)?,
            Step::Replace { count, seed } => {
                let mut rng = Rng(seed);
                let old = self.model.some(count, &mut rng);
                let new = old.into_values().map(|kept| Model::draw(kept.id, &mut rng)).collect();
                self.model.put(store, new, OnConflict::Replace)?;
            }
            Step::Update { count, vectors, seed } => self.update(count, vectors, seed)?,
            Step::Delete { count, seed } => {
                let gone = self.model.some(count, &mut Rng(seed));
                let ids = gone.values().map(|kept| kept.id.clone()).collect();
                let expect = Some(gone.len() as u64);
                store.delete(&space(), &Selection::Ids(ids), false, expect).map_err(told)?;
                self.model.live.retain(|seq, _| !gone.contains_key(seq));
            }
            Step::Search { k, what, exact, seed } => self.search(k, what, exact, seed)?,
            Step::Maintain { turns } => {
                for _ in 0..turns {
                    store.maintain(Duration::from_millis(1)).map_err(told)?;
                }
            }
            Step::Settle => while store.maintain(Duration::from_millis(50)).map_err(told)? {},
            Step::Compact => drop(store.compact().map_err(told)?),
            Step::Reopen(end) => self.reopen(end)?,
        }
        Ok(())
    }

    fn update(&mut self, count: usize, vectors: bool, seed: u64) -> Result<(), String> {
        let mut rng = Rng(seed);
        for (seq, mut kept) in self.model.some(count, &mut rng) {
            kept.role = "rare";
            if vectors {
                kept.vectors = Model::vectors(&mut rng);
            }
            let patch = Patch {
                role: Some(Some(kept.role.into())),
                vectors: vectors.then(|| kept.vectors.clone()),
                ..Patch::default()
            };
            let updated = self.store().update(&space(), &kept.id, patch, None);
            let updated = updated.map_err(|why| format!("not updated: {why}"))?;
            if updated.needs_vectors {
                return Err(format!("{} lost its vectors", kept.id));
            }
            self.model.live.remove(&seq);
            self.model.live.insert(updated.seq.0, kept);
        }
        Ok(())
    }

    fn reopen(&mut self, end: End) -> Result<(), String> {
        if let End::Close = end {
            self.store().close().map_err(|why| format!("not closed: {why}"))?;
        }
        if let End::Crash = end {
            self.crashes += 1;
            let copy = self.root.path().join(format!("store-{}", self.crashes));
            copy_dir(&self.dir, &copy);
            self.dir = copy;
        }
        self.store = None;
        self.store = Some(open(&self.dir)?);
        let refused = &self.store().recovery().graphs_refused;
        if !refused.is_empty() {
            return Err(format!("graphs refused: {refused:?}"));
        }
        self.check_all().map_err(|why| format!("after {end:?}: {why}"))
    }

    /// Exact searches of spans of time so short that all memories of one fit into an answer: together they must find everything.
    fn check_all(&mut self) -> Result<(), String> {
        let stats = self.store().space_stats(&space()).unwrap();
        let vectors: usize = self.model.live.values().map(|kept| kept.vectors.len()).sum();
        let seen = (stats.memories, stats.searchable, stats.vectors);
        let want = self.model.live.len();
        if seen != (want as u64, want as u64, vectors as u64) {
            return Err(format!("{seen:?} memories, searchable, vectors; not {want}, {vectors}"));
        }
        let query = MIXTURE.draw(&mut Rng(want as u64)).1;
        let scores = self.model.scores(&query);
        let mut found = 0;
        for part in (0..100).step_by(10) {
            found += self.one(&query, &scores, K_MAX, Match::Time(part, 10), true)?;
        }
        if found == want { Ok(()) } else { Err(format!("{found} found, not {want}")) }
    }

    /// Three queries: the newest vector, one of another memory, and a new one.
    fn search(&mut self, k: usize, what: Match, exact: bool, seed: u64) -> Result<(), String> {
        let mut rng = Rng(seed);
        let newest = self.model.live.values().next_back().map(|kept| kept.vectors[0].clone());
        let known = self.model.some(1, &mut rng).into_values().map(|kept| kept.vectors[0].clone());
        let queries: Vec<_> = newest.into_iter().chain(known).collect();
        for query in queries.into_iter().chain([MIXTURE.draw(&mut rng).1]) {
            let scores = self.model.scores(&query);
            self.one(&query, &scores, k, what, exact)?;
        }
        Ok(())
    }

    /// One search compared with brute force; how many it found.
    fn one(
        &mut self,
        query: &[f32],
        scores: &[f64],
        k: usize,
        what: Match,
        exact: bool,
    ) -> Result<usize, String> {
        let (filter, time) = (what.filter(), what.time());
        let asked = Query { filter: filter.as_ref(), time, exact, ..Query::new(query, k) };
        let found = self.store().search(&space(), &asked);
        let found = found.map_err(|why| format!("search refused: {why}"))?;
        let live = &self.model.live;
        let may = |n: u32| live.get(&u64::from(n)).is_some_and(|kept| what.accepts(kept));
        let truth = Truth::new(scores, k, may);
        let hits: Vec<(u32, f32)> =
            found.hits.iter().map(|hit| (hit.seq.0 as u32, hit.score)).collect();
        let judged = if exact {
            check_exact(&hits, scores, &truth, rounding(DIM), may)
        } else {
            let walked = matches!(found.path, SearchPath::Graph | SearchPath::GraphAndScan);
            let slack = if walked { AFTER_A_WALK } else { rounding(DIM) };
            check(&hits, scores, &truth, slack, may).map(|right| self.recall.add(right, &truth))
        };
        judged.map_err(|why| format!("{what:?}, k {k}, {:?}: {why}", found.path))?;
        if exact && found.path != SearchPath::Scan {
            return Err(format!("an exact search ran {:?}", found.path));
        }
        if !exact {
            *self.paths.entry(format!("{:?}", found.path)).or_default() += 1;
        }
        Ok(hits.len())
    }
}

/// Runs the steps, then whatever upkeep is due; the recall of both counts.
fn run(harness: &mut Harness, steps: &[Step]) -> Result<(), String> {
    for (turn, step) in steps.iter().enumerate() {
        harness.apply(step).map_err(|why| format!("step {turn}, {step:?}: {why}"))?;
    }
    for step in [Step::Reopen(End::Drop), Step::Settle, Step::Reopen(End::Close)] {
        harness.apply(&step).map_err(|why| format!("{step:?} at the end: {why}"))?;
        harness.search(10, Match::All, false, 41).map_err(|why| format!("at the end: {why}"))?;
    }
    let report = harness.store().verify().map_err(|why| format!("verify refused: {why}"))?;
    if report.problems.is_empty() { Ok(()) } else { Err(format!("{:?}", report.problems)) }
}

#[test]
fn any_interleaving_with_crashes_answers_as_brute_force_does() {
    let cases = 16 * oracle::scale("FLASHBULB_INTERLEAVED_SCALE") as u32;
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let total = RefCell::new((Recall::default(), BTreeMap::<String, usize>::new()));
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        let mut harness = Harness::new();
        run(&mut harness, &steps).map_err(TestCaseError::fail)?;
        let (recall, paths) = &mut *total.borrow_mut();
        recall.found += harness.recall.found;
        recall.of += harness.recall.of;
        harness.paths.into_iter().for_each(|(path, n)| *paths.entry(path).or_default() += n);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => panic!("{why}\nsteps: {steps:#?}"),
        Err(other) => panic!("{other}"),
    }
    let (recall, paths) = total.into_inner();
    println!("recall {:.4} of {} in {cases} lists, {paths:?}", recall.rate(), recall.of);
    assert!(recall.rate() >= WANTED, "recall {:.4} of {}", recall.rate(), recall.of);
    for path in ["Graph", "GraphAndScan"] {
        assert!(paths.contains_key(path), "{path} never ran: {paths:?}");
    }
}
