//! `load`: search latency at stated rates and at the knee, alone and beside a saturating import: the promise, measured.
//!
//! Invariant: each row says what ran beside it and how fast that was; the bare model is timed at the same rate in the same
//! minutes, beside the same, so that the machine's own share of a tail can be told from the service's; no query is asked
//! twice of one daemon.

pub mod mix;
pub mod offer;
pub mod outcome;
mod rows;
pub mod sweep;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::analysis::{self, Analysis, Asked, Questions};
use crate::daemon::{self, Daemon, Host, Start};
use crate::data::{QUERY_TOKENS, Queries};
use crate::feed::Feed;
use crate::machine::Machine;
use crate::report::{self, text};
use crate::run::{AgainstBare, Beside, Boundary, Purpose, Row, Run, SCHEMA, Scenario, Temperature};
use crate::setup::{self, Setup, StoreArgs};
use crate::{Common, Failure, bare, fill, space};
use mix::{Maker, Mix};
use rows::Bench;
use sweep::Plan;

/// Options of `load`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    store: StoreArgs,
    /// The program to measure; the one built beside this one if left out
    #[arg(long)]
    program: Option<PathBuf>,
    /// Write run.json, interval logs and the report into this folder
    #[arg(long)]
    out: Option<PathBuf>,
    /// A folder of an earlier run of the same scenario, shown beside this one in the report
    #[arg(long, requires = "out")]
    previous: Option<PathBuf>,
    /// Requests a second, open loop, Poisson; one row of figures for each. Default: 50, none with --sweep
    #[arg(long, value_delimiter = ',')]
    rates: Vec<f64>,
    /// Seconds of each load; a percentile needs ten samples beyond it
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// What runs beside the load, one after the other
    #[arg(long, value_delimiter = ',', default_values = ["nothing", "import"])]
    beside: Vec<Beside>,
    /// Seconds of the import alone before and after each load, of the bare model after it, and of the bare search
    #[arg(long, default_value_t = 20.0)]
    reference_seconds: f64,
    /// Between what the time is taken
    #[arg(long, value_enum, default_value = "socket")]
    boundary: Boundary,
    /// Connections that share the load
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Shares of the methods: search, add (one durable memory), import (50 lines)
    #[arg(long, default_value = "search=1")]
    mix: Mix,
    /// Warm rows, and a row of the first requests of a new daemon after the page cache was dropped
    #[arg(long, value_delimiter = ',', default_values = ["warm"])]
    temperature: Vec<Temperature>,
    /// Hits asked for
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    k: u16,
    /// What an answer must not take longer than to be in time
    #[arg(long, default_value_t = 10.0)]
    promise_ms: f64,
    /// `deadline_ms` of each search
    #[arg(long)]
    deadline_ms: Option<u64>,
    /// A request without an answer for so long is a miss
    #[arg(long, default_value_t = 5_000)]
    timeout_ms: u64,
    #[command(flatten)]
    sweep: SweepArgs,
    /// Answers compared with brute force
    #[arg(long, default_value_t = 1_000)]
    recall_queries: usize,
    /// Widths of the graph walk whose recall and latency are measured besides the default
    #[arg(long, value_delimiter = ',', default_values_t = [16, 32, 128, 256])]
    efs: Vec<usize>,
    /// Threads that embed one query, as `flashbulb serve` takes them
    #[arg(long)]
    query_threads: Option<u8>,
    /// A further argument of `flashbulb serve`, such as --serve-arg=--promise-ms=10; may be repeated
    #[arg(long = "serve-arg")]
    serve_args: Vec<String>,
}

/// How the knee is searched.
#[derive(Debug, Clone, clap::Args)]
struct SweepArgs {
    /// Search the knee: the highest rate at which --sweep-share of the searches are answered within --promise-ms
    #[arg(long)]
    sweep: bool,
    /// The first rate
    #[arg(long, default_value_t = 50.0)]
    sweep_start: f64,
    /// Each rate by the one before
    #[arg(long, default_value_t = 1.25)]
    sweep_factor: f64,
    /// Halvings of the last stride
    #[arg(long, default_value_t = 2)]
    sweep_bisections: u32,
    /// Seconds of each step
    #[arg(long, default_value_t = 10.0)]
    sweep_seconds: f64,
    /// Steps on the way up, at most
    #[arg(long, default_value_t = 20)]
    sweep_steps: usize,
    /// Share of the searches that must be in time
    #[arg(long, default_value_t = 0.99)]
    sweep_share: f64,
}

impl Options {
    fn rates(&self) -> &[f64] {
        if self.rates.is_empty() && !self.sweep.sweep { &[50.0] } else { &self.rates }
    }

    fn plan(&self) -> Plan {
        Plan {
            start: self.sweep.sweep_start,
            factor: self.sweep.sweep_factor,
            bisections: self.sweep.sweep_bisections,
            steps: self.sweep.sweep_steps,
            promise_ms: self.promise_ms,
            share: self.sweep.sweep_share,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let in_process = self.boundary == Boundary::InProcess;
        let cold = self.temperature.contains(&Temperature::Cold);
        let positive = |what: &str, v: f64| -> Result<(), Failure> {
            if v.is_finite() && v > 0.0 {
                Ok(())
            } else {
                Err(format!("{what} is {v}, it must be above 0").into())
            }
        };
        for rate in self.rates() {
            positive("--rates", *rate)?;
        }
        positive("--seconds", self.seconds)?;
        positive("--reference-seconds", self.reference_seconds)?;
        positive("--promise-ms", self.promise_ms)?;
        positive("--sweep-start", self.sweep.sweep_start)?;
        positive("--sweep-seconds", self.sweep.sweep_seconds)?;
        if self.sweep.sweep_factor <= 1.0 {
            return Err("--sweep-factor must be above 1".into());
        }
        if cold && in_process {
            return Err(
                "a cold row needs a new process: it goes with --boundary socket only".into()
            );
        }
        if in_process && !self.serve_args.is_empty() {
            return Err("--serve-arg goes with --boundary socket only".into());
        }
        Ok(())
    }

    fn scenario(&self) -> Scenario {
        Scenario {
            memories: self.store.memories,
            spaces: self.store.spaces.into(),
            boundary: self.boundary,
            connections: self.connections.into(),
            mix: self.mix.shares(),
            k: self.k.into(),
            query_tokens: (*QUERY_TOKENS.start(), *QUERY_TOKENS.end()),
            promise_ms: self.promise_ms,
            timeout_ms: self.timeout_ms,
            deadline_ms: self.deadline_ms,
        }
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = self.common.arguments();
        arguments.extend(self.query_threads.map(|n| format!("--query-threads={n}")));
        arguments.extend(self.serve_args.iter().cloned());
        arguments
    }
}

/// Runs `load`.
///
/// # Errors
/// What the daemon, the data or the model say.
pub fn run(options: &Options) -> Result<(), Failure> {
    options.check()?;
    let begun_at = jiff::Timestamp::now();
    let machine = Machine::read();
    println!("{}\n", machine.line());
    let program = match options.boundary {
        Boundary::Socket => daemon::program(options.program.as_deref())?,
        Boundary::InProcess => std::env::current_exe()?,
    };
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
    }
    // Before anything is measured: a report that cannot be made would be found out too late.
    options.previous.as_deref().map(Run::read).transpose()?;
    let filler = daemon::program(options.program.as_deref()).or_else(|e| {
        if options.store.vectors_cache.is_some() { Ok(PathBuf::new()) } else { Err(e) }
    })?;
    let setup = Setup::prepare(&options.common, &options.store, &filler, &options.arguments())?;
    println!("{}; {}", text::ran(&setup.embedder), setup.corpus.source);

    let measured = measure(options, &setup, &program)?;
    let analysis = analyse(options, &setup, &measured)?;
    let run = Run {
        schema: SCHEMA,
        begun_at: begun_at.to_string(),
        command: setup::command(),
        seed: options.common.seed,
        machine,
        program: setup::describe(&program, &options.arguments())?,
        data: setup.data(measured.queries.0, measured.queries.1),
        model: setup.model(),
        ran: measured.ran,
        durability: measured.durability,
        scenario: options.scenario(),
        fill: setup.fill.clone(),
        knees: measured.knees,
        recall: analysis.recall,
        frontier: analysis.frontier,
        memory: measured.memory,
        notes: measured.notes,
        rows: with_bare_search(measured.rows, &analysis.paced, options.query_threads),
    };
    text::print_end(&run);
    if let Some(out) = &options.out {
        run.write(out)?;
        report::make(std::slice::from_ref(out), options.previous.as_slice(), out)?;
    }
    Ok(())
}

/// What came of the loads.
struct Measured {
    rows: Vec<Row>,
    knees: Vec<crate::run::Knee>,
    asked: Vec<Asked>,
    durability: String,
    ran: serde_json::Value,
    memory: Option<crate::run::Memory>,
    /// Real and made-up queries.
    queries: (usize, usize),
    notes: Vec<String>,
}

fn measure(
    options: &Options,
    setup: &Setup,
    program: &std::path::Path,
) -> Result<Measured, Failure> {
    let arguments = options.arguments();
    let status = json!({});
    let start = Start {
        program,
        store: &setup.place.store,
        arguments: &arguments,
        first: ("admin.status", &status),
    };
    let host = match options.boundary {
        Boundary::Socket => Host::Daemon(Daemon::launch(&start)?),
        Boundary::InProcess => {
            Host::in_process(&setup.place.store, &setup.embedder, options.query_threads)?
        }
    };
    let spaces = fill::space_names(options.store.spaces.into());
    // Shared with feeds, which take them to a thread of their own.
    let base = Arc::new(setup.corpus.base().to_vec());
    let scratch = tempfile::tempdir()?;
    let mut maker = Maker::new(&options.mix, &spaces, &base, scratch.path(), options.common.seed);
    maker.k = options.k.into();
    maker.deadline_ms = options.deadline_ms;
    let tokens = bare::tokens(&setup.embedder);
    let queries = Queries::new(setup.corpus.held_out(), options.common.seed, tokens)?;
    let target = host.target();
    let mut bench = Bench {
        embedder: &setup.embedder,
        target: &target,
        pid: host.pid(),
        maker,
        queries,
        rows: Vec::new(),
        knees: Vec::new(),
        asked: Vec::new(),
        quota: options
            .recall_queries
            .div_ceil((options.rates().len() * options.beside.len()).max(1)),
        of_sweeps: options.rates().is_empty(),
        out: options.out.as_deref(),
        seconds: options.seconds,
        reference_seconds: options.reference_seconds,
        connections: options.connections.into(),
        timeout: Duration::from_millis(options.timeout_ms),
        promise: Duration::from_secs_f64(options.promise_ms / 1000.0),
        seed: options.common.seed,
    };
    let mut caller = target.connect()?;
    // An earlier run that was cut off may have left them.
    space::drop_if_there(&mut caller, mix::ADDS)?;
    space::drop_if_there(&mut caller, crate::feed::SPACE)?;
    let status = caller.call("admin.status", &json!({}), daemon::ANSWER_LIMIT)?;
    let durability = status["store"]["durability"].as_str().unwrap_or("unknown").to_owned();
    println!("durability {durability}; {}\n", options.scenario_line());
    if options.temperature.contains(&Temperature::Warm) {
        warm(options, &mut bench, &base, host.scratch())?;
    }
    let memory = host.memory();
    space::drop_if_there(&mut caller, mix::ADDS)?;
    space::wait_embedded(&mut caller)?;
    drop(caller);
    let cold = options.temperature.contains(&Temperature::Cold);
    if cold {
        host.stop()?;
        let rate = options.rates().first().copied().unwrap_or(options.sweep.sweep_start);
        bench.cold(&start, rate)?;
    } else {
        host.stop()?;
    }
    let queries = (bench.queries.real, bench.queries.made);
    let notes = notes(setup, queries, &status["embedder"], &bench.rows);
    let Bench { rows, knees, mut asked, .. } = bench;
    asked.truncate(options.recall_queries);
    let ran = status["embedder"].clone();
    Ok(Measured { rows, knees, asked, durability, ran, memory, queries, notes })
}

impl Options {
    fn scenario_line(&self) -> String {
        format!(
            "{} space(s) of {} memories, {} connections, {:?}",
            self.store.spaces, self.store.memories, self.connections, self.boundary
        )
    }
}

/// The rows of a service that has run for a while.
fn warm<T: Fn(&str) -> Option<usize>>(
    options: &Options,
    bench: &mut Bench<'_, T>,
    base: &Arc<Vec<String>>,
    scratch: &std::path::Path,
) -> Result<(), Failure> {
    let sweep = options.sweep.sweep.then(|| (options.plan(), options.sweep.sweep_seconds));
    for beside in &options.beside {
        match beside {
            Beside::Nothing => bench.rows_beside(*beside, options.rates(), sweep.as_ref(), None)?,
            Beside::Import => {
                let mut feed = Feed::start(bench.target, scratch, Arc::clone(base))?;
                bench.rows_beside(*beside, options.rates(), sweep.as_ref(), Some(&mut feed))?;
                feed.finish()?;
            }
        }
    }
    Ok(())
}

fn analyse(options: &Options, setup: &Setup, measured: &Measured) -> Result<Analysis, Failure> {
    let of = match options.boundary {
        Boundary::Socket => "answers over the socket, under load",
        Boundary::InProcess => "answers in one process, under load",
    };
    let questions = Questions {
        asked: &measured.asked,
        k: options.k.into(),
        efs: &options.efs,
        rates: options.rates(),
        seconds: options.reference_seconds,
        seed: options.common.seed,
        of: of.to_owned(),
    };
    analysis::analyse(&setup.place.store, &setup.embedder, &questions)
}

/// Sets each row's median against the bare model and the bare search at its rate.
fn with_bare_search(
    mut rows: Vec<Row>,
    paced: &[(f64, crate::stats::Percentiles)],
    query_threads: Option<u8>,
) -> Vec<Row> {
    for row in rows.iter_mut().filter(|r| r.purpose == Purpose::Rate) {
        row.against_bare = against_bare(row, paced, query_threads);
    }
    rows
}

fn against_bare(
    row: &Row,
    paced: &[(f64, crate::stats::Percentiles)],
    query_threads: Option<u8>,
) -> Option<AgainstBare> {
    let bare = row.bare.as_ref()?;
    let helped = bare.helped.as_ref().filter(|_| query_threads != Some(1));
    let (embed, how) = helped.map_or((&bare.alone, "alone"), |h| (h, "helped"));
    let (_, dense) = paced.iter().find(|(rate, _)| *rate == row.load.offered_per_s)?;
    let (response, embed, dense) = (row.load.response.p50.us()?, embed.p50.us()?, dense.p50.us()?);
    Some(AgainstBare {
        response_p50: response,
        embed_p50: embed,
        embed_how: how.to_owned(),
        dense_p50: dense,
        ratio: response as f64 / (embed + dense) as f64,
    })
}

fn notes(
    setup: &Setup,
    queries: (usize, usize),
    ran: &serde_json::Value,
    rows: &[Row],
) -> Vec<String> {
    let mut notes = Vec::new();
    let corpus = &setup.corpus;
    if corpus.len() > corpus.real() {
        let made = corpus.len() - corpus.real();
        let vectors = match setup.wanted.noise {
            Some((sigma, seed)) => format!(
                "; their vectors are those of the line plus Gaussian noise of standard deviation {sigma} in each component (seed {seed}), normalised"
            ),
            None => String::new(),
        };
        notes.push(format!(
            "{made} of {} memories are lines of the data with a number behind them{vectors}.",
            corpus.len()
        ));
    }
    if queries.1 > 0 {
        notes.push(format!(
            "{} of {} queries are the first half of one held-out line and the second half of another; no query was asked twice.",
            queries.1,
            queries.0 + queries.1
        ));
    }
    if setup.fill.way == "vectors" {
        notes.push("The store was filled with vectors of the model in the harness's process, not by an import.".to_owned());
    }
    if ran["provider"].as_str().is_some_and(|p| p != setup.embedder.ran().provider) {
        notes.push(
            "The bare model ran on the processor, the service's on its accelerator.".to_owned(),
        );
    }
    if rows.iter().any(|r| !r.load.realtime) {
        notes.push("The generator's threads had ordinary priority in some rows: the system refused real-time priority.".to_owned());
    }
    notes
}
