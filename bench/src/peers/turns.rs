//! Loads in turns: block by block, system by system.
//!
//! Invariant: within a block every system has the same requests at the same moments; what a row says is made of all its
//! blocks' samples, never of their percentiles.

use std::sync::Arc;
use std::time::Duration;

use flashbulb::embed::Embedder;

use super::Options;
use super::result::{Block, Found, Recall, Row};
use super::system::{Kind, System, Vectored};
use crate::data::{Corpus, Queries};
use crate::load::mix::{Maker, Mix, Request};
use crate::load::offer::{Load, Outcome, offer, requests_for};
use crate::load::outcome;
use crate::recall::right;
use crate::run::Beside;
use crate::{Failure, bare, fill};

/// Load that is not counted, before each turn.
const WARM_UP_SECONDS: f64 = 1.0;

/// How many tokens a text has.
type Tokens<'a> = Box<dyn Fn(&str) -> Option<usize> + 'a>;

/// The loads of all systems.
pub struct Turns<'a> {
    options: &'a Options,
    mix: Mix,
    spaces: Vec<String>,
    queries: Queries<'a, Tokens<'a>>,
    texts: Arc<Vec<String>>,
    /// Blocks so far, of all kinds.
    blocks: u64,
}

/// The turns of one system beside the same.
#[derive(Default)]
struct Collected {
    outcome: Option<Outcome>,
    blocks: Vec<Block>,
    imported: Vec<f64>,
}

/// Queries with the hits that a system gave.
type Answers = Vec<(String, Vec<u64>)>;

impl<'a> Turns<'a> {
    /// With the held-out lines of `corpus` as queries.
    ///
    /// # Errors
    /// If none of them can be one.
    pub fn new(
        options: &'a Options,
        corpus: &'a Corpus,
        embedder: &'a Embedder,
    ) -> Result<Turns<'a>, Failure> {
        let tokens: Tokens<'a> = Box::new(bare::tokens(embedder));
        Ok(Turns {
            options,
            mix: "search=1".parse()?,
            spaces: fill::space_names(1),
            queries: Queries::new(corpus.held_out(), options.common.seed, tokens)?,
            texts: Arc::new(corpus.base().to_vec()),
            blocks: 0,
        })
    }

    /// How many queries were asked: lines of the data, and made-up ones.
    pub fn queries(&self) -> (usize, usize) {
        (self.queries.real, self.queries.made)
    }

    /// All loads on all systems; `own` gives the vectors that a kind holds.
    ///
    /// # Errors
    /// What the systems or the model say.
    pub fn measure<'b>(
        &mut self,
        systems: &mut [System],
        own: &dyn Fn(Kind) -> &'b Vectored,
    ) -> Result<Vec<Found>, Failure> {
        let mut found: Vec<Found> = systems.iter().map(begin).collect();
        for (beside, seconds) in
            [(Beside::Nothing, self.options.seconds), (Beside::Import, self.options.seconds_import)]
        {
            if seconds <= 0.0 {
                continue;
            }
            let (rows, answers) = self.rows(systems, beside, seconds)?;
            for (((found, row), system), answers) in
                found.iter_mut().zip(rows).zip(&*systems).zip(&answers)
            {
                if row.load.response.missed == row.load.response.samples {
                    let why = row.load.first_errors.values().next().cloned().unwrap_or_default();
                    return Err(format!("{} answered nothing: {why}", system.name).into());
                }
                if beside == Beside::Nothing {
                    found.memory = system.running.memory();
                    found.recall = self.recall(system, answers, own)?;
                } else {
                    found.memory_after_import = system.running.memory();
                }
                found.rows.push(row);
            }
        }
        Ok(found)
    }

    fn rows(
        &mut self,
        systems: &mut [System],
        beside: Beside,
        seconds: f64,
    ) -> Result<(Vec<Row>, Vec<Answers>), Failure> {
        let mut collected: Vec<Collected> = systems.iter().map(|_| Collected::default()).collect();
        let mut answers: Vec<Answers> = vec![Vec::new(); systems.len()];
        let each = seconds / f64::from(self.options.blocks);
        for block in 0..usize::from(self.options.blocks) {
            let leg = self.leg(beside, each)?;
            for turn in 0..systems.len() {
                let i = (block + turn) % systems.len();
                eprintln!("block {} beside {beside:?}: {}", block + 1, systems[i].name);
                let (outcome, imported) = leg.run(&mut systems[i])?;
                answers[i].extend(leg.answers(&outcome));
                collected[i].add(turn, outcome, imported)?;
            }
        }
        let promise = Duration::from_secs_f64(self.options.promise_ms / 1000.0);
        let rows = collected.into_iter().map(|c| c.row(beside, self.options.rate, promise));
        Ok((rows.collect::<Result<_, _>>()?, answers))
    }

    /// The requests of the next block.
    fn leg(&mut self, beside: Beside, seconds: f64) -> Result<Leg<'a>, Failure> {
        let dir = std::env::temp_dir();
        let mut maker = Maker::new(&self.mix, &self.spaces, &self.texts, &dir, self.blocks);
        maker.k = self.options.k.into();
        let rate = self.options.rate;
        let mut make = |seconds: f64| {
            let one = || self.queries.take(1)?.pop().ok_or_else(|| "no query".into());
            maker.make(requests_for(rate, seconds), one)
        };
        let (warm_up, requests) = (make(WARM_UP_SECONDS)?, make(seconds)?);
        self.blocks += 1;
        let seed = self.options.common.seed.wrapping_add(self.blocks);
        let texts = Arc::clone(&self.texts);
        Ok(Leg { options: self.options, beside, warm_up, requests, seconds, seed, texts })
    }

    fn recall<'b>(
        &self,
        system: &System,
        answers: &Answers,
        own: &dyn Fn(Kind) -> &'b Vectored,
    ) -> Result<Option<Recall>, Failure> {
        let k = self.options.k.into();
        let answers = &answers[..answers.len().min(self.options.recall_queries)];
        if answers.is_empty() {
            return Ok(None);
        }
        let queries: Vec<String> = answers.iter().map(|(query, _)| query.clone()).collect();
        let against = |vectored: &Vectored| -> Result<f64, Failure> {
            let truths = vectored.truth(&queries, k)?;
            let pairs = answers.iter().zip(&truths);
            let of = pairs.map(|((_, hits), truth)| right(truth, system.memories(hits), k));
            let (found, possible) = of.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
            Ok(found as f64 / possible.max(1) as f64)
        };
        Ok(Some(Recall {
            k,
            queries: queries.len(),
            of_own_vectors: against(own(system.kind))?,
            of_f32_vectors: against(own(Kind::FlashbulbF32))?,
        }))
    }
}

fn begin(system: &System) -> Found {
    Found {
        name: system.name.clone(),
        setup: system.setup.clone(),
        versions: system.versions.clone(),
        fill: system.fill,
        least_cosine: None,
        recall: None,
        memory: None,
        memory_after_import: None,
        rows: Vec::new(),
    }
}

/// What every system does in a block.
struct Leg<'a> {
    options: &'a Options,
    beside: Beside,
    warm_up: Vec<Request>,
    requests: Vec<Request>,
    seconds: f64,
    seed: u64,
    texts: Arc<Vec<String>>,
}

impl Leg<'_> {
    /// The load's outcome, and how many texts a second were imported beside it.
    fn run(&self, system: &mut System) -> Result<(Outcome, Option<f64>), Failure> {
        let target = system.running.target();
        let pid = Some(system.running.pid());
        let load = |requests, seconds| {
            offer(&Load {
                target: &target,
                pid,
                requests,
                rate: self.options.rate,
                seconds,
                most: usize::MAX,
                seed: self.seed,
                connections: self.options.connections.into(),
                timeout: Duration::from_millis(self.options.timeout_ms),
            })
        };
        if self.beside == Beside::Nothing {
            load(&self.warm_up, WARM_UP_SECONDS)?;
            return Ok((load(&self.requests, self.seconds)?, None));
        }
        let mut import = system.running.begin_import(&self.texts)?;
        load(&self.warm_up, WARM_UP_SECONDS)?;
        let mark = import.mark()?;
        let outcome = load(&self.requests, self.seconds)?;
        let per_s = import.rate_since(&mark)?;
        // The next system must not be measured beside what this one has left to do.
        import.finish()?;
        Ok((outcome, Some(per_s)))
    }

    fn answers(&self, outcome: &Outcome) -> Answers {
        let of = |(i, hits): &(usize, Vec<u64>)| {
            let query = self.requests.get(*i)?.params["query"].as_str()?;
            Some((query.to_owned(), hits.clone()))
        };
        outcome.hits.iter().filter_map(of).collect()
    }
}

impl Collected {
    fn add(&mut self, turn: usize, next: Outcome, per_s: Option<f64>) -> Result<(), Failure> {
        let (response, _) = outcome::search_times(&next)?;
        self.blocks.push(Block {
            turn,
            answered: response.len(),
            p50: response.value_at_quantile(0.5),
            max: response.max(),
            import_per_s: per_s,
        });
        self.imported.extend(per_s);
        match &mut self.outcome {
            None => self.outcome = Some(next),
            Some(all) => append(all, next)?,
        }
        Ok(())
    }

    fn row(self, beside: Beside, rate: f64, promise: Duration) -> Result<Row, Failure> {
        let all = self.outcome.ok_or("a row without blocks")?;
        // Blocks are of equal length.
        let import = self.imported.iter().sum::<f64>() / self.imported.len() as f64;
        Ok(Row {
            beside,
            load: outcome::load(&all, rate, promise)?,
            import_per_s: (!self.imported.is_empty()).then_some(import),
            blocks: self.blocks,
        })
    }
}

/// The samples of a later block behind those of earlier ones.
fn append(all: &mut Outcome, next: Outcome) -> Result<(), Failure> {
    let (before, now) = (all.seconds, next.seconds);
    let mean = |a: Option<f64>, b: Option<f64>| Some((a? * before + b? * now) / (before + now));
    all.stolen = mean(all.stolen, next.stolen);
    all.daemon_cpu = mean(all.daemon_cpu, next.daemon_cpu);
    all.generator_cpu = mean(all.generator_cpu, next.generator_cpu);
    all.load_after = next.load_after;
    all.realtime &= next.realtime;
    all.seconds += now;
    all.samples.extend(next.samples);
    for (stage, times) in next.stages {
        match all.stages.get_mut(&stage) {
            Some(known) => known.add(&times)?,
            None => drop(all.stages.insert(stage, times)),
        }
    }
    for (miss, message) in next.first_errors {
        all.first_errors.entry(miss).or_insert(message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::load::mix::Method;
    use crate::load::offer::Sample;
    use crate::run::Miss;
    use crate::stats::{Quantile, histogram};
    use std::collections::BTreeMap;

    fn outcome(seconds: f64, responses: &[u64], cpu: f64) -> Outcome {
        let sample = |response_us: &u64| Sample {
            due_us: 1,
            lag_us: 1,
            response_us: *response_us,
            service_us: *response_us,
            method: Method::Search,
            miss: (*response_us == 0).then_some(Miss::Timeout),
        };
        let mut total = histogram().unwrap();
        responses.iter().filter(|us| **us > 0).for_each(|us| total.record(*us).unwrap());
        Outcome {
            samples: responses.iter().map(sample).collect(),
            stages: BTreeMap::from([("total".to_owned(), total)]),
            hits: Vec::new(),
            first_errors: BTreeMap::new(),
            begun_at: std::time::UNIX_EPOCH,
            seconds,
            realtime: true,
            stolen: None,
            load_before: Some(1.0),
            load_after: Some(2.0),
            daemon_cpu: Some(cpu),
            generator_cpu: None,
        }
    }

    #[test]
    fn a_row_is_made_of_the_samples_of_all_blocks() {
        let mut collected = Collected::default();
        collected.add(0, outcome(1.0, &[1_000; 30], 0.2), Some(100.0)).unwrap();
        let mut second = vec![5_000; 69];
        second.push(0);
        collected.add(1, outcome(3.0, &second, 0.6), Some(300.0)).unwrap();
        let row = collected.row(Beside::Import, 50.0, Duration::from_millis(2)).unwrap();
        // Percentiles of all hundred, in buckets of three digits; the mean of the blocks' medians would be 3 ms.
        assert_eq!(row.load.response.p50, Quantile::Us(5_003));
        assert_eq!((row.load.searches, row.load.in_time, row.load.response.missed), (100, 30, 1));
        assert_eq!(row.load.stages["total"].samples, 99);
        assert!((row.load.daemon_cpu.unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(row.import_per_s, Some(200.0));
        assert_eq!((row.blocks[1].turn, row.blocks[1].answered), (1, 69));
    }
}
