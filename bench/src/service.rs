//! The whole service, from outside: import, search under load, restart, memory, recall.
//!
//! Invariant: one run on one machine gives all figures of a row; the daemon is the program that users run.

use std::path::{Path, PathBuf};

use flashbulb::embed::Embedder;
use flashbulb_engine::StoreOptions;
use serde::Serialize;
use serde_json::json;

use crate::bare::{self, Bare};
use crate::daemon::{self, Daemon, Memory};
use crate::data::{self, Texts};
use crate::load::{self, Load, Summary};
use crate::machine::Machine;
use crate::recall::{self, Recall};
use crate::{Common, Failure, report, space};

const SPACE: &str = "bench";

/// Options of `service`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// The program to measure; the one built beside this one if left out
    #[arg(long)]
    program: Option<PathBuf>,
    /// Memories in the space, one row of figures for each size
    #[arg(long, value_delimiter = ',', default_values_t = [10_000])]
    sizes: Vec<usize>,
    /// Searches a second, open loop, Poisson
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Seconds of load
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Queries compared with brute force
    #[arg(long, default_value_t = 200)]
    recall_queries: usize,
    /// Seconds of the bare model before each import
    #[arg(long, default_value_t = 20.0)]
    bare_seconds: f64,
}

/// All figures of one size.
#[derive(Debug, Serialize)]
struct Row {
    memories: usize,
    bare: Bare,
    import_per_s: f64,
    import_share_of_bare: f64,
    indexed_after_s: f64,
    load: Summary,
    memory: Option<Memory>,
    restart_s: f64,
    restart_after_kill_s: f64,
    recall: Recall,
}

/// Runs `service`.
///
/// # Errors
/// What the daemon, the data or the model say.
pub fn run(options: &Options) -> Result<(), Failure> {
    let machine = Machine::read();
    println!("{}\n", machine.line());
    let program = daemon::program(options.program.as_deref())?;
    let embedder = bare::embedder()?;
    println!("{}; durability sync\n", report::ran(&embedder));
    let mut rows = Vec::new();
    for &size in &options.sizes {
        let texts = data::texts(
            options.common.data.as_deref(),
            size,
            load::queries_for(options.rate, options.seconds),
            options.common.seed,
            bare::tokens(&embedder),
        )?;
        let row = measure(options, &program, &embedder, &texts)?;
        print_row(&row, &texts.source);
        rows.push(row);
    }
    let command: Vec<String> = std::env::args().collect();
    let raw = json!({"machine": machine, "command": command.join(" "), "rows": rows});
    report::write_json(options.common.json.as_deref(), &raw)
}

fn measure(
    options: &Options,
    program: &Path,
    embedder: &Embedder,
    texts: &Texts,
) -> Result<Row, Failure> {
    let root = tempfile::tempdir()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bare = bare::rate(embedder, &texts.memories, threads, options.bare_seconds)?;

    let daemon = Daemon::start(program, root.path(), ("admin.status", &json!({})))?;
    let mut client = daemon.client()?;
    let filled = space::fill(&mut client, SPACE, root.path(), &texts.memories)?;

    let load = Load {
        socket: &daemon.socket,
        space: SPACE,
        queries: &texts.queries,
        rate: options.rate,
        seconds: options.seconds,
        seed: options.common.seed,
    };
    let outcome = load::offer_warm(&load)?;
    let memory = daemon.memory();
    drop(client);
    daemon.stop()?;

    let first = json!({"space": SPACE, "query": texts.queries[0], "mode": "dense"});
    let again = Daemon::start(program, root.path(), ("memory.search", &first))?;
    let restart_s = again.started_in.as_secs_f64();
    again.kill()?;
    let after_kill = Daemon::start(program, root.path(), ("memory.search", &first))?;
    let restart_after_kill_s = after_kill.started_in.as_secs_f64();
    after_kill.stop()?;

    let mut session = embedder.session()?;
    let mut vectors = Vec::new();
    for query in texts.queries.iter().take(options.recall_queries) {
        for window in embedder.query_windows(query)?.iter().take(1) {
            vectors.push(session.embed(window)?);
        }
    }
    let store = StoreOptions::new(embedder.dim(), embedder.fingerprint());
    let recall = recall::measure(&root.path().join("store"), SPACE, store, &vectors, 10)?;
    Ok(Row {
        memories: texts.memories.len(),
        import_share_of_bare: filled.per_s / bare.texts_per_s,
        bare,
        import_per_s: filled.per_s,
        indexed_after_s: filled.indexed_after_s,
        load: outcome.summary(options.rate),
        memory,
        restart_s,
        restart_after_kill_s,
        recall,
    })
}

fn print_row(row: &Row, source: &str) {
    println!("{} memories of {source}", row.memories);
    println!(
        "  import {:.0} turns/s, {:.0} % of the bare model's {:.0} in {} threads; indexed after {:.0} s",
        row.import_per_s,
        row.import_share_of_bare * 100.0,
        row.bare.texts_per_s,
        row.bare.threads,
        row.indexed_after_s
    );
    println!("{}", report::summary(&row.load));
    if let Some(m) = row.memory {
        println!(
            "  memory {:.0} MiB resident, {:.0} MiB of it not backed by files",
            m.rss_mib, m.anonymous_mib
        );
    }
    println!(
        "  start to first answer {:.2} s, after kill -9 {:.2} s",
        row.restart_s, row.restart_after_kill_s
    );
    println!(
        "  recall@{} {:.4} over {} queries and {} vectors, {}\n",
        row.recall.k, row.recall.recall, row.recall.queries, row.recall.vectors, row.recall.path
    );
}
