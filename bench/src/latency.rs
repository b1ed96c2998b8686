//! Search latency at stated rates, alone and beside a saturating import: the promise, measured.
//!
//! Invariant: each row says what ran beside it and how fast that was, and the bare model is timed at the same rate in the
//! minutes after it, beside the same, so that the machine's own share of a tail can be told from the service's.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use flashbulb::embed::Embedder;
use serde::Serialize;
use serde_json::json;

use crate::bare::{self, Turns};
use crate::daemon::{self, Daemon};
use crate::data;
use crate::feed::Feed;
use crate::load::{self, Load, Percentiles, Summary};
use crate::machine::Machine;
use crate::{Common, Failure, report, space};

const SPACE: &str = "bench";
/// What runs beside a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Beside {
    Nothing,
    Import,
}

/// Options of `load`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// The program to measure; the one built beside this one if left out
    #[arg(long)]
    program: Option<PathBuf>,
    /// Memories in the space that is searched
    #[arg(long, default_value_t = 10_000)]
    memories: usize,
    /// Searches a second, open loop, Poisson; one row of figures for each
    #[arg(long, value_delimiter = ',', default_values_t = [50.0])]
    rates: Vec<f64>,
    /// Seconds of each load; a percentile needs ten samples beyond it
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// What runs beside the load, one after the other
    #[arg(long, value_delimiter = ',', default_values = ["nothing", "import"])]
    beside: Vec<Beside>,
    /// Seconds of the import alone, and of the bare model after each load
    #[arg(long, default_value_t = 20.0)]
    reference_seconds: f64,
    /// Threads that embed one query, as `flashbulb serve` takes them
    #[arg(long)]
    query_threads: Option<u8>,
}

/// How fast the import beside a load was.
#[derive(Debug, Clone, Copy, Serialize)]
struct Import {
    alone_per_s: f64,
    beside_per_s: f64,
}

/// One load.
#[derive(Debug, Serialize)]
struct Row {
    beside: Beside,
    import: Option<Import>,
    load: Summary,
    bare: Turns<Percentiles>,
}

/// Runs `load`.
///
/// # Errors
/// What the daemon, the data or the model say.
pub fn run(options: &Options) -> Result<(), Failure> {
    let machine = Machine::read();
    println!("{}\n", machine.line());
    let program = daemon::program(options.program.as_deref())?;
    let embedder = bare::embedder()?;
    println!("{}; durability sync", report::ran(&embedder));
    let data = options.common.data.as_deref();
    let a_round: usize =
        options.rates.iter().map(|&rate| load::queries_for(rate, options.seconds)).sum();
    let texts = data::texts(
        data,
        options.memories,
        a_round * options.beside.len(),
        options.common.seed,
        bare::tokens(&embedder),
    )?;
    println!("{} memories of {}\n", texts.memories.len(), texts.source);

    let root = tempfile::tempdir()?;
    let threads = options.query_threads.map(|threads| threads.to_string());
    let arguments: Vec<&str> =
        threads.iter().flat_map(|threads| ["--query-threads", threads.as_str()]).collect();
    let status = ("admin.status", &json!({}));
    let daemon = Daemon::start_with(&program, root.path(), &arguments, status)?;
    let mut client = daemon.client()?;
    space::fill(&mut client, SPACE, root.path(), &texts.memories)?;
    let mut bench = Bench {
        options,
        embedder: &embedder,
        queries: &texts.queries,
        daemon: &daemon,
        rows: Vec::new(),
    };
    for &beside in &options.beside {
        match beside {
            Beside::Nothing => bench.measure(beside, None)?,
            Beside::Import => {
                let mut feed = Feed::start(&daemon.socket, root.path(), texts.memories.clone())?;
                let mark = feed.mark()?;
                std::thread::sleep(Duration::from_secs_f64(options.reference_seconds));
                let alone_per_s = feed.rate_since(&mark)?;
                bench.measure(beside, Some((&mut feed, alone_per_s)))?;
            }
        }
    }
    let rows = bench.rows;
    // What is still waiting for vectors is of no use to anybody.
    daemon.kill()?;
    let command: Vec<String> = std::env::args().collect();
    let raw = json!({"machine": machine, "command": command.join(" "), "rows": rows});
    report::write_json(options.common.json.as_deref(), &raw)
}

/// What all rows share.
struct Bench<'a> {
    options: &'a Options,
    embedder: &'a Embedder,
    /// Those that were not asked yet.
    queries: &'a [String],
    daemon: &'a Daemon,
    rows: Vec<Row>,
}

impl Bench<'_> {
    /// One row for each rate.
    fn measure(
        &mut self,
        beside: Beside,
        mut feed: Option<(&mut Feed, f64)>,
    ) -> Result<(), Failure> {
        let options = self.options;
        for &rate in &options.rates {
            let (queries, later) = self.queries.split_at(load::queries_for(rate, options.seconds));
            self.queries = later;
            let load = Load {
                socket: &self.daemon.socket,
                space: SPACE,
                queries,
                rate,
                seconds: options.seconds,
                seed: options.common.seed,
            };
            let mark = feed.as_mut().map(|(feed, _)| feed.mark()).transpose()?;
            let outcome = load::offer_warm(&load)?;
            let mut import = None;
            if let (Some((feed, alone_per_s)), Some(mark)) = (feed.as_mut(), mark) {
                let beside_per_s = feed.rate_since(&mark)?;
                import = Some(Import { alone_per_s: *alone_per_s, beside_per_s });
            }
            let seconds = options.reference_seconds;
            let seed = options.common.seed;
            let bare = bare::at_a_rate(self.embedder, queries, rate, seconds, seed)?;
            let row = Row { beside, import, load: outcome.summary(rate), bare };
            print_row(&row);
            self.rows.push(row);
        }
        Ok(())
    }
}

fn print_row(row: &Row) {
    match row.import {
        None => println!("beside nothing"),
        Some(Import { alone_per_s, beside_per_s }) => println!(
            "beside an import of {beside_per_s:.0} texts/s, {:.0} % of its {alone_per_s:.0} alone",
            beside_per_s / alone_per_s * 100.0
        ),
    }
    println!("{}", report::summary(&row.load));
    println!("  bare model at the same rate, just after");
    println!("    alone  {}", report::percentiles(&row.bare.alone));
    if let Some(helped) = &row.bare.helped {
        println!("    helped {}", report::percentiles(helped));
    }
    println!();
}
