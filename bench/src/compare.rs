//! `compare`: two builds against each other, in turns on copies of the same store.
//!
//! Invariant: both are asked the same queries at the same moments of each pair, none twice; the order of a pair is the
//! other way round in the next (ABBA), so that what drifts hits both alike. A pair with a void half decides nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::daemon::{self, Daemon, Start};
use crate::data::Queries;
use crate::feed::Feed;
use crate::load::mix::{Maker, Mix, Request};
use crate::load::offer::{Load, offer, requests_for};
use crate::load::outcome;
use crate::machine::Machine;
use crate::report::text;
use crate::run::{self, Beside, Program};
use crate::setup::{self, Setup, StoreArgs};
use crate::stats::{median, sign_test};
use crate::{Common, Failure, bare, fill};

/// Load that is not counted, before each half of a pair.
const WARM_UP_SECONDS: f64 = 1.0;
const PROMISE: Duration = Duration::from_millis(10);
/// Below this, an outcome is held to be more than chance.
const SIGNIFICANT: f64 = 0.05;

/// Options of `compare`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    store: StoreArgs,
    /// The program as it was
    a: PathBuf,
    /// The program as it is
    b: PathBuf,
    /// Pairs of runs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Seconds of each run; p99 needs a thousand searches
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// Searches a second
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// What runs beside the load
    #[arg(long, value_enum, default_value = "nothing")]
    beside: Beside,
    /// End with exit code 2 if B's p99 or p50 is slower by more than this, in the median of the pairs, and p < 0.05
    #[arg(long)]
    fail_if_slower: Option<f64>,
    /// Write the raw figures here as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One half of a pair.
#[derive(Debug, Clone, Serialize)]
struct Half {
    load: run::Load,
    /// Texts embedded a second by the import beside it.
    import_per_s: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct Pair {
    /// `AB` or `BA`.
    order: &'static str,
    a: Half,
    b: Half,
}

/// What all pairs say of one figure.
#[derive(Debug, Clone, Serialize)]
struct Verdict {
    figure: &'static str,
    /// B by A, less one, of each pair that counts.
    changes: Vec<f64>,
    median_change: Option<f64>,
    slower: u64,
    quicker: u64,
    /// Pairs without a difference, without samples enough, or void.
    undecided: u64,
    /// Two-sided, exact.
    p: f64,
}

impl Verdict {
    fn of(figure: &'static str, pairs: &[Pair], read: impl Fn(&Half) -> Option<f64>) -> Verdict {
        let change = |pair: &Pair| {
            let void = pair.a.load.void.is_some() || pair.b.load.void.is_some();
            let (a, b) = (read(&pair.a)?, read(&pair.b)?);
            (!void && a > 0.0).then(|| b / a - 1.0)
        };
        let changes: Vec<f64> = pairs.iter().filter_map(change).collect();
        let slower = changes.iter().filter(|c| **c > 0.0).count() as u64;
        let quicker = changes.iter().filter(|c| **c < 0.0).count() as u64;
        Verdict {
            figure,
            median_change: median(&changes),
            slower,
            quicker,
            undecided: pairs.len() as u64 - slower - quicker,
            p: sign_test(slower, quicker),
            changes,
        }
    }

    fn is_slower_by(&self, percent: f64) -> bool {
        self.p < SIGNIFICANT && self.median_change.is_some_and(|c| c * 100.0 > percent)
    }

    fn line(&self) -> String {
        let change =
            self.median_change.map_or("–".to_owned(), |c| format!("{:+.1} %", c * 100.0));
        format!(
            "{}: median change {change}; higher in {}, lower in {}, undecided {} pairs; sign test p = {:.4}",
            self.figure, self.slower, self.quicker, self.undecided, self.p
        )
    }
}

/// Runs `compare`; whether B is slower than is allowed.
///
/// # Errors
/// What the daemons, the data or the model say.
pub fn run(options: &Options) -> Result<bool, Failure> {
    let machine = Machine::read();
    println!("{}\n", machine.line());
    let a = daemon::program(Some(&options.a))?;
    let b = daemon::program(Some(&options.b))?;
    let arguments = options.common.arguments();
    let (of_a, of_b) = (setup::describe(&a, &arguments)?, setup::describe(&b, &arguments)?);
    if of_a.sha256 == of_b.sha256 {
        println!("note: A and B are the same file; any difference is the machine's\n");
    }
    let setup = Setup::prepare(&options.common, &options.store, &a, &arguments)?;
    let pairs = measure(options, &setup, [&a, &b])?;
    let verdicts = [
        Verdict::of("p50", &pairs, |h| h.load.response.p50.us().map(|us| us as f64)),
        Verdict::of("p99", &pairs, |h| h.load.response.p99.us().map(|us| us as f64)),
        Verdict::of("import, texts/s", &pairs, |h| h.import_per_s),
    ];
    let shown = if options.beside == Beside::Import { 3 } else { 2 };
    for verdict in &verdicts[..shown] {
        println!("{}", verdict.line());
    }
    let programs: [&Program; 2] = [&of_a, &of_b];
    let raw = json!({
        "schema": run::SCHEMA, "machine": machine, "command": setup::command(), "programs": programs,
        "store": setup.wanted, "beside": options.beside, "rate": options.rate, "seconds": options.seconds,
        "seed": options.common.seed, "pairs": pairs, "verdicts": verdicts[..shown],
    });
    text::write_json(options.json.as_deref(), &raw)?;
    let Some(percent) = options.fail_if_slower else { return Ok(false) };
    let slower = verdicts[..2].iter().any(|v| v.is_slower_by(percent));
    if slower {
        eprintln!("B is slower by more than {percent} %");
    }
    Ok(slower)
}

fn measure(options: &Options, setup: &Setup, programs: [&Path; 2]) -> Result<Vec<Pair>, Failure> {
    let copies = tempfile::tempdir()?;
    let status = json!({});
    let mut daemons = Vec::with_capacity(2);
    for (program, name) in programs.into_iter().zip(["a", "b"]) {
        let store = copies.path().join(name);
        fill::copy(&setup.place.store, &store)?;
        let first = ("admin.status", &status);
        let arguments = &options.common.arguments();
        daemons.push(Daemon::launch(&Start { program, store: &store, arguments, first })?);
    }
    let base = Arc::new(setup.corpus.base().to_vec());
    let mix: Mix = "search=1".parse()?;
    let spaces = fill::space_names(options.store.spaces.into());
    let seed = options.common.seed;
    let mut maker = Maker::new(&mix, &spaces, &base, copies.path(), seed);
    let mut queries = Queries::new(setup.corpus.held_out(), seed, bare::tokens(&setup.embedder))?;
    let mut pairs = Vec::new();
    for number in 0..options.pairs {
        let mut make = |seconds: f64| -> Result<Vec<Request>, Failure> {
            let one = || queries.take(1)?.pop().ok_or_else(|| "no query".into());
            maker.make(requests_for(options.rate, seconds), one)
        };
        let leg = Leg {
            options,
            warm_up: make(WARM_UP_SECONDS)?,
            requests: make(options.seconds)?,
            seed: seed.wrapping_add(number.into()),
            texts: Arc::clone(&base),
        };
        let pair = if number.is_multiple_of(2) {
            let a = leg.run(&daemons[0])?;
            Pair { order: "AB", a, b: leg.run(&daemons[1])? }
        } else {
            let b = leg.run(&daemons[1])?;
            Pair { order: "BA", a: leg.run(&daemons[0])?, b }
        };
        print_pair(number + 1, &pair);
        pairs.push(pair);
    }
    println!();
    daemons.into_iter().try_for_each(|d| d.stop().map(drop))?;
    Ok(pairs)
}

/// What both halves of a pair do.
struct Leg<'a> {
    options: &'a Options,
    warm_up: Vec<Request>,
    requests: Vec<Request>,
    seed: u64,
    texts: Arc<Vec<String>>,
}

impl Leg<'_> {
    fn run(&self, daemon: &Daemon) -> Result<Half, Failure> {
        let target = daemon.target();
        let mut feed = match self.options.beside {
            Beside::Nothing => None,
            Beside::Import => {
                Some(Feed::start(&target, daemon.scratch(), Arc::clone(&self.texts))?)
            }
        };
        let load = |requests, seconds| {
            offer(&Load {
                target: &target,
                pid: Some(daemon.pid()),
                requests,
                rate: self.options.rate,
                seconds,
                most: usize::MAX,
                seed: self.seed,
                connections: 8,
                timeout: Duration::from_secs(5),
            })
        };
        load(&self.warm_up, WARM_UP_SECONDS)?;
        let mark = feed.as_mut().map(Feed::mark).transpose()?;
        let outcome = load(&self.requests, self.options.seconds)?;
        let mut import_per_s = None;
        if let (Some(feed), Some(mark)) = (feed.as_mut(), mark) {
            import_per_s = Some(feed.rate_since(&mark)?);
        }
        // The other daemon must not be measured beside what this one has left to embed.
        feed.map(Feed::finish).transpose()?;
        Ok(Half { load: outcome::load(&outcome, self.options.rate, PROMISE)?, import_per_s })
    }
}

fn print_pair(number: u16, pair: &Pair) {
    let half = |h: &Half| {
        let void = if h.load.void.is_some() { "VOID " } else { "" };
        let missed: u64 = h.load.misses.values().sum();
        let import = h.import_per_s.map_or(String::new(), |v| format!(", import {v:.0}/s"));
        let r = &h.load.response;
        format!(
            "{void}p50 {} ms, p99 {} ms, {missed} missed{import}",
            text::ms(r.p50),
            text::ms(r.p99)
        )
    };
    println!("pair {number:>2} {}: A {}; B {}", pair.order, half(&pair.a), half(&pair.b));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stats::Quantile;

    fn half(p50: u64, void: bool) -> Half {
        let run: run::Run = serde_json::from_str(include_str!("report/testdata/run.json")).unwrap();
        let mut load = run.rows[0].load.clone();
        load.response.p50 = Quantile::Us(p50);
        load.void = void.then(|| "late".to_owned());
        Half { load, import_per_s: None }
    }

    fn verdict(pairs: &[(u64, u64, bool)]) -> Verdict {
        let pair = |(a, b, void): &(u64, u64, bool)| Pair {
            order: "AB",
            a: half(*a, false),
            b: half(*b, *void),
        };
        let pairs: Vec<Pair> = pairs.iter().map(pair).collect();
        Verdict::of("p50", &pairs, |h| h.load.response.p50.us().map(|us| us as f64))
    }

    #[test]
    fn a_slower_build_is_told_from_chance() {
        let slower = verdict(&[(100, 110, false); 8]);
        assert_eq!((slower.slower, slower.quicker, slower.undecided), (8, 0, 0));
        assert!((slower.p - 0.0078125).abs() < 1e-9 && slower.is_slower_by(5.0));
        assert!(!slower.is_slower_by(15.0));
        let mut mixed = vec![(100, 110, false); 5];
        mixed.extend([(110, 100, false); 3]);
        assert!(!verdict(&mixed).is_slower_by(1.0));
    }

    #[test]
    fn void_pairs_and_ties_decide_nothing() {
        let v = verdict(&[(100, 110, true), (100, 100, false), (100, 90, false)]);
        assert_eq!((v.slower, v.quicker, v.undecided), (0, 1, 2));
        assert_eq!(v.median_change, Some((0.9f64 - 1.0 + 0.0) / 2.0));
    }
}
