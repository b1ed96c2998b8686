//! The whole service, from outside: import, search under load, restart, memory, recall.
//!
//! Invariant: one run on one machine gives all figures of a row; the daemon is the program that users run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flashbulb::embed::Embedder;
use serde::Serialize;
use serde_json::json;

use crate::analysis::{self, Asked, Questions};
use crate::bare::{self, Bare};
use crate::daemon::{self, Daemon, Start};
use crate::data::{Corpus, Queries};
use crate::load::mix::{Maker, Mix, Request};
use crate::load::offer::{Load, offer, requests_for};
use crate::load::outcome;
use crate::machine::Machine;
use crate::report::text;
use crate::run::{self, Memory, Recall};
use crate::{Common, Failure, space};

const SPACE: &str = "bench";
/// Load that is not counted.
const WARM_UP_SECONDS: f64 = 2.0;
const PROMISE: Duration = Duration::from_millis(10);

/// Options of `service`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Write the raw figures here as JSON
    #[arg(long)]
    json: Option<PathBuf>,
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
    load: run::Load,
    memory: Option<Memory>,
    restart_s: f64,
    restart_after_kill_s: f64,
    recall: Option<Recall>,
}

/// Runs `service`.
///
/// # Errors
/// What the daemon, the data or the model say.
pub fn run(options: &Options) -> Result<(), Failure> {
    let machine = Machine::read();
    println!("{}\n", machine.line());
    let program = daemon::program(options.program.as_deref())?;
    let embedder = bare::embedder(options.common.precision)?;
    println!("{}; durability sync\n", text::ran(&embedder));
    let mut rows = Vec::new();
    for &size in &options.sizes {
        let corpus = Corpus::read(options.common.data.as_deref(), size, options.common.seed)?;
        let row = measure(options, &program, &embedder, &corpus)?;
        print_row(&row, &corpus.source);
        rows.push(row);
    }
    let command: Vec<String> = std::env::args().collect();
    let raw = json!({"machine": machine, "command": command.join(" "), "rows": rows});
    text::write_json(options.json.as_deref(), &raw)
}

fn measure(
    options: &Options,
    program: &Path,
    embedder: &Embedder,
    corpus: &Corpus,
) -> Result<Row, Failure> {
    let root = tempfile::tempdir()?;
    let store = root.path().join("store");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bare = bare::rate(embedder, corpus.base(), threads, options.bare_seconds)?;

    let arguments = options.common.arguments();
    let start =
        |first| Daemon::launch(&Start { program, store: &store, arguments: &arguments, first });
    let status = json!({});
    let daemon = start(("admin.status", &status))?;
    let mut caller = daemon.caller()?;
    let texts = (0..corpus.len()).map(|i| corpus.text(i));
    let filled = space::fill(&mut caller, SPACE, root.path(), texts)?;

    let tokens = bare::tokens(embedder);
    let mut queries = Queries::new(corpus.held_out(), options.common.seed, tokens)?;
    let first_query = queries.take(1)?.swap_remove(0);
    let (load, asked) = search(options, &daemon, root.path(), corpus, &mut queries)?;
    let memory = daemon.memory();
    drop(caller);
    daemon.stop()?;

    let first = json!({"space": SPACE, "query": first_query, "mode": "dense"});
    let again = start(("memory.search", &first))?;
    let restart_s = again.started_in.as_secs_f64();
    again.kill()?;
    let after_kill = start(("memory.search", &first))?;
    let restart_after_kill_s = after_kill.started_in.as_secs_f64();
    after_kill.stop()?;

    let questions = Questions {
        asked: &asked,
        k: 10,
        efs: &[],
        rates: &[],
        seconds: 0.0,
        seed: options.common.seed,
        of: "answers over the socket, under load".to_owned(),
    };
    let analysis = analysis::analyse(&store, embedder, &questions)?;
    Ok(Row {
        memories: corpus.len(),
        import_share_of_bare: filled.per_s / bare.texts_per_s,
        bare,
        import_per_s: filled.per_s,
        indexed_after_s: filled.indexed_after_s,
        load,
        memory,
        restart_s,
        restart_after_kill_s,
        recall: analysis.recall,
    })
}

/// Searches at the rate; the answers to be compared with brute force.
fn search<T: Fn(&str) -> Option<usize>>(
    options: &Options,
    daemon: &Daemon,
    dir: &Path,
    corpus: &Corpus,
    queries: &mut Queries<'_, T>,
) -> Result<(run::Load, Vec<Asked>), Failure> {
    let mix: Mix = "search=1".parse()?;
    let spaces = [SPACE.to_owned()];
    let seed = options.common.seed;
    let mut maker = Maker::new(&mix, &spaces, corpus.base(), dir, seed);
    let mut make = |seconds: f64| -> Result<Vec<Request>, Failure> {
        let count = requests_for(options.rate, seconds);
        maker.make(count, || queries.take(1)?.pop().ok_or_else(|| "no query".into()))
    };
    let (warm_up, requests) = (make(WARM_UP_SECONDS)?, make(options.seconds)?);
    let target = daemon.target();
    let load = |requests, seconds| {
        offer(&Load {
            target: &target,
            pid: Some(daemon.pid()),
            requests,
            rate: options.rate,
            seconds,
            most: usize::MAX,
            seed,
            connections: 8,
            timeout: Duration::from_secs(5),
        })
    };
    load(&warm_up, WARM_UP_SECONDS)?;
    let outcome = load(&requests, options.seconds)?;
    let asked = outcome.hits.iter().take(options.recall_queries).filter_map(|(i, hits)| {
        let query = requests[*i].params["query"].as_str()?.to_owned();
        Some(Asked { space: SPACE.to_owned(), query, hits: hits.clone() })
    });
    let asked = asked.collect();
    Ok((outcome::load(&outcome, options.rate, PROMISE)?, asked))
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
    print!("{}", text::load(&row.load));
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
    if let Some(r) = &row.recall {
        println!(
            "  recall@{} {:.4} of {} {} against {} vectors",
            r.k, r.recall, r.queries, r.of, r.vectors
        );
    }
    println!();
}
