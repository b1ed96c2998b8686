//! Random interleavings over one index: vectors come, go and change, the graph is built and repaired in parts, saved and loaded, and every
//! search in between is compared with brute force. `store_interleaved` has the same for the store, with crashes.
//!
//! The oracle is `oracle`: brute force over the f32 rows, in f64, and a list of which vectors are dead. A run that fails prints the
//! shortest list of steps that still fails; each step has its own seed, so the list alone repeats it.
//!
//! `FLASHBULB_INTERLEAVED_SCALE=20` runs twenty times as many lists.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use flashbulb_engine::index::{
    Accept, GRAPH_FROM, Layout, Metric, Scratch, SearchParams, SearchPath, VectorIndex, VectorNo,
};
use flashbulb_kernels::Kernels;
use oracle::{
    AFTER_A_WALK, Mixture, Recall, Rng, Rows, Truth, both_ways, check_exact, judge, plain, rounding,
};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

const DIM: usize = 40;
const WANTED: f64 = 0.95;

static MIXTURE: LazyLock<Mixture> = LazyLock::new(|| Mixture::new(DIM, 80, 1.0, 20));

const LAYOUTS: [Layout; 2] = [Layout::Full, Layout::Lean];

/// A graph of some more vectors than it takes to have one, as a checkpoint of each layout, and their rows.
static PREFILLED: LazyLock<[(Rows, Vec<u8>); 2]> = LazyLock::new(|| {
    LAYOUTS.map(|layout| {
        let mut harness = Harness::empty(layout);
        harness.push(GRAPH_FROM as usize + 300, 21);
        harness.index.build(2);
        let mut bytes = Vec::new();
        harness.index.checkpoint(&mut bytes).unwrap();
        (harness.rows, bytes)
    })
});

#[derive(Debug, Clone, Copy)]
enum Match {
    All,
    /// One in so many, at random.
    OneIn(u64),
    /// So many of those that are nearest to the query.
    Nearest(usize),
    /// All but the nearest so many.
    AllBut(usize),
}

#[derive(Debug, Clone)]
enum Step {
    Push {
        count: usize,
        seed: u64,
    },
    /// Anywhere, or all that are nearest to some vector.
    Kill {
        count: usize,
        together: bool,
        seed: u64,
    },
    /// Kills and pushes, one after the other.
    Update {
        count: usize,
        seed: u64,
    },
    Search {
        k: usize,
        what: Match,
        exact: bool,
        seed: u64,
    },
    Build {
        turns: usize,
    },
    Finish {
        threads: usize,
    },
    /// A checkpoint is written and loaded; what it does not cover is pushed again.
    Reload,
    Audit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let seed = any::<u32>().prop_map(u64::from);
    let what = prop_oneof![
        3 => Just(Match::All),
        2 => prop_oneof![Just(2u64), Just(10), Just(200)].prop_map(Match::OneIn),
        1 => (1usize..400).prop_map(Match::Nearest),
        1 => (1usize..40).prop_map(Match::AllBut),
    ];
    let k = prop_oneof![Just(1usize), Just(10), Just(10), Just(100)];
    let step = prop_oneof![
        6 => (1usize..200, seed.clone()).prop_map(|(count, seed)| Step::Push { count, seed }),
        4 => (1usize..150, any::<bool>(), seed.clone())
            .prop_map(|(count, together, seed)| Step::Kill { count, together, seed }),
        // Far below the border of the graph at once.
        1 => (1000usize..2500, seed.clone())
            .prop_map(|(count, seed)| Step::Kill { count, together: false, seed }),
        2 => (1usize..80, seed.clone()).prop_map(|(count, seed)| Step::Update { count, seed }),
        10 => (k, what, prop::bool::weighted(0.25), seed)
            .prop_map(|(k, what, exact, seed)| Step::Search { k, what, exact, seed }),
        4 => (1usize..40).prop_map(|turns| Step::Build { turns }),
        1 => (1usize..3).prop_map(|threads| Step::Finish { threads }),
        2 => Just(Step::Reload),
        1 => Just(Step::Audit),
    ];
    proptest::collection::vec(step, 1..40)
}

struct Harness {
    rows: Rows,
    dead: Vec<bool>,
    index: VectorIndex,
    scratch: Scratch,
    recall: Recall,
    paths: BTreeMap<String, usize>,
}

impl Harness {
    fn empty(layout: Layout) -> Harness {
        Harness {
            rows: Rows::new(DIM),
            dead: Vec::new(),
            index: VectorIndex::with_layout(DIM, Metric::Cosine, layout, Kernels::detect()),
            scratch: Scratch::new(),
            recall: Recall::default(),
            paths: BTreeMap::new(),
        }
    }

    fn prefilled(layout: Layout) -> Harness {
        let [full, lean] = &*PREFILLED;
        let (rows, bytes) = if layout == Layout::Lean { lean } else { full };
        let index = VectorIndex::load(DIM, Kernels::detect(), bytes).unwrap();
        assert_eq!(index.layout(), layout);
        assert_eq!(index.len() as usize, rows.len());
        Harness {
            rows: rows.clone(),
            dead: vec![false; rows.len()],
            index,
            ..Harness::empty(layout)
        }
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Push { count, seed } => self.push(count, seed),
            Step::Kill { count, together, seed } => self.kill(count, together, seed),
            Step::Update { count, seed } => {
                for turn in 0..count as u64 {
                    self.kill(1, false, seed ^ turn);
                    self.push(1, seed ^ turn);
                }
            }
            Step::Search { k, what, exact, seed } => self.search(k, what, exact, seed)?,
            Step::Build { turns } => {
                let mut left = turns;
                self.index.build_step(&mut || {
                    left -= 1;
                    left > 0
                });
            }
            Step::Finish { threads } => self.index.build(threads),
            Step::Reload => self.reload()?,
            Step::Audit => self.audit()?,
        }
        self.counts()
    }

    fn push(&mut self, count: usize, seed: u64) {
        let mut rng = Rng(seed);
        for _ in 0..count {
            let (_, row) = MIXTURE.draw(&mut rng);
            let number = self.index.push(&row);
            assert_eq!(number.0 as usize, self.rows.len(), "numbers are dense");
            self.rows.push(&row);
            self.dead.push(false);
        }
    }

    fn kill(&mut self, count: usize, together: bool, seed: u64) {
        let mut rng = Rng(seed);
        let chosen: Vec<usize> = if together {
            let scores = self.rows.scores(&MIXTURE.draw(&mut rng).1);
            let nearest = Truth::new(&scores, count, |_| true).best;
            nearest.into_iter().map(|(n, _)| n as usize).collect()
        } else {
            (0..count).map(|_| rng.below(self.rows.len())).collect()
        };
        for n in chosen {
            assert_eq!(self.index.kill(VectorNo(n as u32)), !self.dead[n], "killed once");
            self.dead[n] = true;
            assert!(self.index.is_dead(VectorNo(n as u32)));
        }
    }

    /// Which vectors match, dead ones among them.
    fn matching(&self, what: Match, scores: &[f64], rng: &mut Rng) -> Vec<bool> {
        let among = |count: usize, inside: bool| {
            let mut mask = vec![!inside; scores.len()];
            let nearest = Truth::new(scores, count, |_| true).best;
            nearest.iter().for_each(|(n, _)| mask[*n as usize] = inside);
            mask
        };
        match what {
            Match::All => vec![true; scores.len()],
            Match::OneIn(many) => scores.iter().map(|_| rng.next().is_multiple_of(many)).collect(),
            Match::Nearest(count) => among(count, true),
            Match::AllBut(count) => among(count, false),
        }
    }

    /// Four queries: a new one, one that a row is, the newest row, and what is dead if any is.
    fn search(&mut self, k: usize, what: Match, exact: bool, seed: u64) -> Result<(), String> {
        let mut rng = Rng(seed);
        let dead = (0..self.dead.len()).rev().find(|n| self.dead[*n]).unwrap_or(0);
        let (any, newest) = (rng.below(self.rows.len()), self.rows.len() - 1);
        let rows = [any, newest, dead].map(|n| self.rows.row(n).to_vec());
        for query in rows.into_iter().chain([MIXTURE.draw(&mut rng).1]) {
            let scores = self.rows.scores(&query);
            let matching = self.matching(what, &scores, &mut rng);
            let may = |n: u32| matching[n as usize] && !self.dead[n as usize];
            let truth = Truth::new(&scores, k, may);
            let params = SearchParams { exact, ..SearchParams::new(k) };
            let mut outcome = Ok(());
            let mut one = |form: &str, accept: Accept<'_>| {
                let Ok(found) =
                    self.index.search(&query, &params, &self.rows, accept, &mut self.scratch);
                if !exact {
                    *self.paths.entry(format!("{:?}", found.path)).or_default() += 1;
                }
                let judged = if exact {
                    check_exact(&plain(&found), &scores, &truth, rounding(DIM), may)
                } else {
                    judge(&found, &scores, &truth, rounding(DIM), may)
                        .map(|right| self.recall.add(right, &truth))
                };
                let judged = judged.and_then(|()| match found.path {
                    SearchPath::Scan => Ok(()),
                    _ if exact => Err("an exact search walked".into()),
                    _ => Ok(()),
                });
                if let Err(why) = judged {
                    outcome = Err(format!("{what:?} by {form}, k {k}: {why}"));
                }
            };
            if matches!(what, Match::All) {
                one("nothing", Accept::All);
            }
            both_ways(&matching, one);
            outcome?;
        }
        Ok(())
    }

    fn reload(&mut self) -> Result<(), String> {
        let covered = self.index.graph_len();
        let mut bytes = Vec::new();
        self.index.checkpoint(&mut bytes).unwrap();
        let index = VectorIndex::load(DIM, Kernels::detect(), &bytes)
            .map_err(|why| format!("its own checkpoint was refused: {why}"))?;
        if (index.len(), index.graph_len()) != (covered, covered) {
            return Err(format!("{covered} saved, {} loaded", index.len()));
        }
        for n in 0..covered {
            if index.is_dead(VectorNo(n)) != self.dead[n as usize] {
                return Err(format!("{n} is dead or alive, but not as it was"));
            }
        }
        for n in covered as usize..self.rows.len() {
            assert_eq!(index.push(self.rows.row(n)).0 as usize, n);
            if self.dead[n] {
                index.kill(VectorNo(n as u32));
            }
        }
        self.index = index;
        Ok(())
    }

    fn audit(&self) -> Result<(), String> {
        let audit = self.index.audit();
        if audit.problems.is_empty() && audit.problem_count == 0 {
            Ok(())
        } else {
            Err(format!("{:?}", audit.problems))
        }
    }

    fn counts(&self) -> Result<(), String> {
        let live = self.dead.iter().filter(|dead| !**dead).count();
        let seen = (self.index.len() as usize, self.index.live() as usize);
        if seen != (self.rows.len(), live) {
            return Err(format!("{seen:?} are not {:?}", (self.rows.len(), live)));
        }
        Ok(())
    }
}

/// Runs the steps, then the same search with everything in the graph. The recall of both counts.
fn run(harness: &mut Harness, steps: &[Step]) -> Result<(), String> {
    for (turn, step) in steps.iter().enumerate() {
        harness.apply(step).map_err(|why| format!("step {turn}, {step:?}: {why}"))?;
    }
    for exact in [false, true] {
        harness.search(10, Match::All, exact, 22).map_err(|why| format!("at the end: {why}"))?;
    }
    harness.index.build(1);
    harness.audit()?;
    harness.search(10, Match::All, false, 23).map_err(|why| format!("built at the end: {why}"))
}

#[test]
fn any_interleaving_answers_as_brute_force_does() {
    let cases = 24 * oracle::scale("FLASHBULB_INTERLEAVED_SCALE") as u32;
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let total = RefCell::new((Recall::default(), BTreeMap::<String, usize>::new()));
    let kinds = (any::<bool>(), proptest::sample::select(&LAYOUTS[..]));
    let outcome = TestRunner::new(config).run(&(steps(), kinds), |(steps, (prefilled, layout))| {
        let fresh = if prefilled { Harness::prefilled } else { Harness::empty };
        let mut harness = fresh(layout);
        if !prefilled {
            harness.push(GRAPH_FROM as usize - 150, 24);
        }
        run(&mut harness, &steps).map_err(TestCaseError::fail)?;
        let (recall, paths) = &mut *total.borrow_mut();
        recall.found += harness.recall.found;
        recall.of += harness.recall.of;
        harness.paths.into_iter().for_each(|(path, n)| *paths.entry(path).or_default() += n);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, (steps, (prefilled, layout)))) => {
            panic!("{why}\nlayout {layout}, prefilled: {prefilled}, steps: {steps:#?}");
        }
        Err(other) => panic!("{other}"),
    }
    let (recall, paths) = total.into_inner();
    println!("recall {:.4} of {} in {cases} lists, {paths:?}", recall.rate(), recall.of);
    assert!(recall.rate() >= WANTED, "recall {:.4} of {}", recall.rate(), recall.of);
    for path in ["Scan", "Graph", "GraphAndScan"] {
        assert!(paths.contains_key(path), "{path} never ran: {paths:?}");
    }
}

/// One thread pushes and kills, one builds, one searches: what is found was pushed before the search ended and was not killed before it
/// began, and what was there all the time is found.
#[test]
fn searches_beside_a_writer_and_a_builder_see_whole_vectors() {
    LAYOUTS.into_iter().for_each(see_whole_vectors_beside_a_writer_and_a_builder);
}

fn see_whole_vectors_beside_a_writer_and_a_builder(layout: Layout) {
    let count = GRAPH_FROM as usize + 2000;
    let mut rng = Rng(30);
    let mut rows = Rows::new(DIM);
    (0..count).for_each(|_| rows.push(&MIXTURE.draw(&mut rng).1));
    let index = VectorIndex::with_layout(DIM, Metric::Cosine, layout, Kernels::detect());
    for n in 0..GRAPH_FROM as usize {
        index.push(rows.row(n));
    }
    // Numbers below are pushed and may be found; those that are multiples of three, below the other, are dead.
    let (pushed, killed) = (AtomicU32::new(GRAPH_FROM), AtomicU32::new(0));
    let done = AtomicBool::new(false);
    let mut searches = 0;
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for n in GRAPH_FROM..count as u32 {
                index.push(rows.row(n as usize));
                pushed.store(n + 1, Ordering::Release);
                let victim = n - GRAPH_FROM;
                if victim.is_multiple_of(3) {
                    index.kill(VectorNo(victim));
                }
                killed.store(victim + 1, Ordering::Release);
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
            done.store(true, Ordering::Release);
        });
        threads.spawn(|| while index.build_step(&mut || true) || !done.load(Ordering::Acquire) {});
        let mut scratch = Scratch::new();
        while !done.load(Ordering::Acquire) {
            let (before, gone) = (pushed.load(Ordering::Acquire), killed.load(Ordering::Acquire));
            let own = (before as usize - 1 - searches % 50) as u32;
            let query = rows.row(own as usize);
            let params = SearchParams { exact: searches % 4 == 0, ..SearchParams::new(10) };
            let Ok(found) = index.search(query, &params, &rows, Accept::All, &mut scratch);
            let after = pushed.load(Ordering::Acquire) + 1;
            let scores = rows.scores(query);
            for (n, score) in plain(&found) {
                assert!(n < after, "{n} was not pushed yet");
                assert!(n >= gone || n % 3 != 0, "{n} was killed before");
                assert!(
                    (f64::from(score) - scores[n as usize]).abs() < rounding(DIM).max(AFTER_A_WALK)
                );
            }
            assert_eq!(found.hits.len(), 10);
            assert_eq!(found.hits[0].0.0, own, "a vector is nearest to itself: {:?}", found.path);
            searches += 1;
        }
    });
    println!("{searches} searches");
    assert!(searches > 100);
    index.build(1);
    assert!(index.audit().problems.is_empty());
}
