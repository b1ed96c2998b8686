//! What is found out about a store after its daemon has ended: how right the answers were, and what the index does alone.
//!
//! Invariant: recall is of the answers that the service really gave; the truth and the bare searches read the same store.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use flashbulb::embed::Embedder;
use flashbulb_engine::{Query, Seq, SpaceName, Store, StoreOptions};

use crate::Failure;
use crate::data::poisson_gaps;
use crate::recall::{Rows, right};
use crate::run::{FrontierPoint, Recall};
use crate::stats::{Percentiles, histogram, record};

/// Searches before those that are timed.
const WARM_UP: usize = 100;

/// A search that the service answered.
#[derive(Debug, Clone)]
pub struct Asked {
    pub space: String,
    pub query: String,
    /// The `seq`s of the answer's hits.
    pub hits: Vec<u64>,
}

/// What is wanted to be known.
pub struct Questions<'a> {
    pub asked: &'a [Asked],
    pub k: usize,
    /// Settings of the graph walk besides the default.
    pub efs: &'a [usize],
    /// Rates at which single searches are timed.
    pub rates: &'a [f64],
    pub seconds: f64,
    pub seed: u64,
    /// Whose answers they are, for the report.
    pub of: String,
}

/// What was found out.
pub struct Analysis {
    pub recall: Option<Recall>,
    pub frontier: Vec<FrontierPoint>,
    /// Single searches at each rate.
    pub paced: Vec<(f64, Percentiles)>,
}

/// A question with its vector and its right answers.
struct Case {
    space: SpaceName,
    vector: Vec<f32>,
    hits: Vec<u64>,
    truth: HashSet<Seq>,
}

/// Opens the store and answers the questions.
///
/// # Errors
/// If the store cannot be opened or read, or what the model says.
pub fn analyse(
    dir: &Path,
    embedder: &Embedder,
    questions: &Questions<'_>,
) -> Result<Analysis, Failure> {
    let mut analysis = Analysis { recall: None, frontier: Vec::new(), paced: Vec::new() };
    if questions.asked.is_empty() {
        return Ok(analysis);
    }
    let store = Store::open(dir, StoreOptions::new(embedder.dim(), embedder.fingerprint()))?;
    let (cases, vectors) = cases(&store, embedder, questions)?;
    let (mut found, mut possible) = (0, 0);
    for case in &cases {
        let hits = case.hits.iter().map(|seq| Seq(*seq));
        let (ok, of) = right(&case.truth, hits, questions.k);
        found += ok;
        possible += of;
    }
    analysis.recall = Some(Recall {
        k: questions.k,
        queries: cases.len(),
        vectors,
        recall: found as f64 / possible.max(1) as f64,
        of: questions.of.clone(),
    });
    let default = point(&store, &cases, questions.k, None)?;
    let scanned = default.path == "scan";
    analysis.frontier.push(default);
    if !scanned {
        for ef in questions.efs {
            analysis.frontier.push(point(&store, &cases, questions.k, Some(*ef))?);
        }
    }
    for rate in questions.rates {
        let took = paced(&store, &cases, questions, *rate)?;
        analysis.paced.push((*rate, took));
    }
    Ok(analysis)
}

/// The cases, and how many vectors their spaces have.
fn cases(
    store: &Store,
    embedder: &Embedder,
    questions: &Questions<'_>,
) -> Result<(Vec<Case>, usize), Failure> {
    let mut by_space: BTreeMap<&str, Vec<&Asked>> = BTreeMap::new();
    for asked in questions.asked {
        by_space.entry(&asked.space).or_default().push(asked);
    }
    let mut session = embedder.session()?;
    let (mut cases, mut count) = (Vec::new(), 0);
    for (name, asked) in by_space {
        let space = SpaceName::parse(name)?;
        let mut vectors = Vec::with_capacity(asked.len());
        for one in &asked {
            match embedder.query_windows(&one.query)?.as_slice() {
                [window] => vectors.push(session.embed(window)?),
                windows => return Err(format!("a query has {} windows", windows.len()).into()),
            }
        }
        let rows = Rows::read(store, &space)?;
        count += rows.len();
        let truths = rows.nearest(&vectors, questions.k);
        for ((one, vector), truth) in asked.into_iter().zip(vectors).zip(truths) {
            cases.push(Case { space: space.clone(), vector, hits: one.hits.clone(), truth });
        }
    }
    Ok((cases, count))
}

fn search(
    store: &Store,
    case: &Case,
    k: usize,
    ef: Option<usize>,
) -> Result<flashbulb_engine::Found, Failure> {
    let mut query = Query::new(&case.vector, k);
    query.ef = ef;
    Ok(store.search(&case.space, &query)?)
}

/// Every case once, one after the other in this thread.
fn point(
    store: &Store,
    cases: &[Case],
    k: usize,
    ef: Option<usize>,
) -> Result<FrontierPoint, Failure> {
    for case in cases.iter().take(WARM_UP) {
        search(store, case, k, ef)?;
    }
    let mut took = histogram()?;
    let (mut found, mut possible, mut path) = (0, 0, String::new());
    for case in cases {
        let begun = Instant::now();
        let outcome = search(store, case, k, ef)?;
        record(&mut took, begun.elapsed());
        let (ok, of) = right(&case.truth, outcome.hits.iter().map(|h| h.seq), k);
        found += ok;
        possible += of;
        path = outcome.path.to_string();
    }
    Ok(FrontierPoint {
        ef,
        recall: found as f64 / possible.max(1) as f64,
        queries: cases.len(),
        path,
        took: Percentiles::of(&took),
    })
}

/// Single searches at Poisson arrivals: with caches as cold as those of a service that is asked as often.
fn paced(
    store: &Store,
    cases: &[Case],
    questions: &Questions<'_>,
    rate: f64,
) -> Result<Percentiles, Failure> {
    let mut took = histogram()?;
    let mut due = Instant::now();
    let until = due + Duration::from_secs_f64(questions.seconds);
    for (gap, case) in poisson_gaps(rate, questions.seed).zip(cases.iter().cycle()) {
        due += Duration::from_secs_f64(gap);
        if due > until {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let begun = Instant::now();
        search(store, case, questions.k, None)?;
        record(&mut took, begun.elapsed());
    }
    Ok(Percentiles::of(&took))
}
