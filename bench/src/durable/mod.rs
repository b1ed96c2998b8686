//! `durable`: acknowledged adds a second and how long one takes, beside SQLite and redb storing the same bytes.
//!
//! Invariant: all stores are made in the same folder by the same process; the systems take turns block by block, in one order
//! and then the other, so that what drifts hits all alike. Each turn begins with a new store and some seconds that are not
//! counted: then a log has wrapped once and is overwritten in place.
//!
//! An add is a transaction of its own, as a client who waits for its acknowledgement sends it. What one system makes of
//! several clients that wait at once is its own affair: Flashbulb syncs for all of them together, the others do not.

mod device;
mod flashbulb;
pub mod record;
mod redb;
mod result;
mod show;
mod sqlite;
mod system;
mod turn;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;

pub use flashbulb::{Connection, SPACE};
pub use system::Writer;

use crate::data::{Corpus, Queries};
use crate::load::mix::{Maker, Mix, Request};
use crate::load::offer::requests_for;
use crate::machine::{self, Machine};
use crate::stats::{Percentiles, histogram};
use crate::{Common, Failure, bare, daemon, setup};
use device::FileSystem;
use record::Records;
use result::{Collected, Durable, SCHEMA, Scenario};
use system::Kind;
use turn::Turn;

/// Components of a vector, those of the model that comes with the service.
pub const DIM: usize = 384;
/// Texts that memories are made of.
const TEXTS: usize = 10_000;
/// Seconds of the device alone, before each block.
const DEVICE_SECONDS: f64 = 1.0;

/// Options of `durable`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Make the stores in this folder; the system's folder for temporary files if left out
    #[arg(long)]
    dir: Option<PathBuf>,
    /// What is measured, in this order and the other in turns
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["flashbulb", "sqlite", "sqlite-one", "redb"])]
    systems: Vec<Kind>,
    /// Clients at once, one after the other
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64], value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: Vec<u16>,
    /// Memories of one add
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Turns of each system with each number of clients
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    blocks: u16,
    /// Seconds of each turn
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds before those that are counted
    #[arg(long, default_value_t = 2.0)]
    warm_up_seconds: f64,
    /// Searches a second beside the adds of flashbulb-searched
    #[arg(long, default_value_t = 50.0)]
    searches: f64,
    /// The program to measure over its socket; the one built beside this one if left out
    #[arg(long)]
    program: Option<PathBuf>,
    /// Write durable.json and durable.md into this folder
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Options {
    fn check(&self) -> Result<(), Failure> {
        for (what, v, least) in [
            ("--seconds", self.seconds, 0.1),
            ("--warm-up-seconds", self.warm_up_seconds, 0.0),
            ("--searches", self.searches, 0.1),
        ] {
            if !v.is_finite() || v < least {
                return Err(format!("{what} is {v}, it must be at least {least}").into());
            }
        }
        Ok(())
    }

    fn has(&self, kind: Kind) -> bool {
        self.systems.contains(&kind)
    }
}

/// Runs `durable`.
///
/// # Errors
/// What the systems or the file system say.
pub fn run(options: &Options) -> Result<(), Failure> {
    options.check()?;
    let begun_at = jiff::Timestamp::now();
    let machine = Machine::read();
    println!("{}\n", machine.line());
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
    }
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let file_system = FileSystem::of(&dir)?;
    let notes = notes(&file_system, options.batch);
    notes.iter().for_each(|note| eprintln!("NOTE: {note}"));
    let corpus = Corpus::read(options.common.data.as_deref(), TEXTS, options.common.seed)?;
    let (rows, syncs) = measure(options, &dir, &corpus)?;
    let rows = rows.iter().map(Collected::row).collect::<Result<Vec<_>, _>>()?;
    let (commit, dirty) = machine::commit();
    let setups = options.systems.iter().map(|k| (k.name().to_owned(), k.setup().to_owned()));
    let durable = Durable {
        schema: SCHEMA,
        begun_at: begun_at.to_string(),
        command: setup::command(),
        seed: options.common.seed,
        machine,
        commit,
        dirty,
        versions: system::versions(),
        setups: setups.collect(),
        scenario: Scenario {
            file_system: file_system.name,
            clients: options.clients.iter().map(|n| usize::from(*n)).collect(),
            batch: options.batch.into(),
            blocks: options.blocks,
            seconds: options.seconds,
            warm_up_seconds: options.warm_up_seconds,
            dim: DIM,
            texts: corpus.source.clone(),
            searches_per_s: options.searches,
        },
        device: Percentiles::of(&syncs),
        ratios: result::ratios(&rows),
        rows,
        notes,
    };
    show::print(&durable);
    options.out.as_deref().map_or(Ok(()), |out| show::write(&durable, out))
}

fn notes(file_system: &FileSystem, batch: u16) -> Vec<String> {
    let mut notes = Vec::new();
    if file_system.in_memory {
        notes.push(format!(
            "{} keeps files in memory, a sync there is nothing: these figures say nothing about durability; name a folder on a disk with --dir",
            file_system.name
        ));
    }
    if !sqlite::knows_fdatasync() {
        notes.push(
            "SQLite was built without fdatasync and syncs more than it needs: build in the repository's folder"
                .to_owned(),
        );
    }
    if batch > 1 {
        notes.push(format!(
            "adds/s are memories: an add has {batch} of them, latency is of the whole add"
        ));
    }
    notes
}

/// All turns; one row for each number of clients and system, and the syncs of the device alone.
fn measure(
    options: &Options,
    dir: &Path,
    corpus: &Corpus,
) -> Result<(Vec<Collected>, Histogram<u64>), Failure> {
    let program = if options.systems.iter().any(|kind| kind.is_daemon()) {
        daemon::program(options.program.as_deref())?
    } else {
        PathBuf::new()
    };
    let records = Records::new(corpus, DIM, options.common.seed);
    let searches = searches(options, corpus)?;
    let mut rows = Vec::new();
    for clients in &options.clients {
        for kind in &options.systems {
            rows.push(Collected::new(*kind, usize::from(*clients))?);
        }
    }
    let mut syncs = histogram()?;
    let systems = options.systems.len();
    for block in 0..usize::from(options.blocks) {
        syncs.add(&device::syncs(dir, DEVICE_SECONDS.min(options.seconds))?)?;
        for (i, clients) in options.clients.iter().enumerate() {
            for at in order(block, systems) {
                let kind = options.systems[at];
                eprintln!("block {}: {}, {clients} client(s)", block + 1, kind.name());
                let searched = (kind == Kind::FlashbulbSearched).then_some(options.searches);
                let turn = Turn {
                    kind,
                    clients: usize::from(*clients),
                    batch: options.batch.into(),
                    warm_up: Duration::from_secs_f64(options.warm_up_seconds),
                    timed: Duration::from_secs_f64(options.seconds),
                    records: &records,
                    dim: DIM,
                    program: &program,
                    dir,
                    searches: searched.map(|rate| (searches.as_slice(), rate)),
                };
                rows[i * systems + at].add(turn.run()?)?;
            }
        }
    }
    Ok((rows, syncs))
}

/// The order of a block: forwards, backwards, forwards.
fn order(block: usize, systems: usize) -> Vec<usize> {
    let forwards = 0..systems;
    if block.is_multiple_of(2) { forwards.collect() } else { forwards.rev().collect() }
}

/// The searches of one turn; none where no system is searched. Each turn has a new daemon, so they are new to it.
fn searches(options: &Options, corpus: &Corpus) -> Result<Vec<Request>, Failure> {
    if !options.has(Kind::FlashbulbSearched) {
        return Ok(Vec::new());
    }
    let embedder = bare::embedder(options.common.precision)?;
    let tokens = bare::tokens(&embedder);
    let mut queries = Queries::new(corpus.held_out(), options.common.seed, tokens)?;
    let (mix, spaces): (Mix, _) = ("search=1".parse()?, [SPACE.to_owned()]);
    let nowhere = Path::new("");
    let mut maker = Maker::new(&mix, &spaces, corpus.base(), nowhere, options.common.seed);
    let count = requests_for(options.searches, options.seconds + options.warm_up_seconds);
    maker.make(count, || queries.take(1)?.pop().ok_or_else(|| "no query".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_block_goes_backwards() {
        assert_eq!([order(0, 3), order(1, 3)], [[0, 1, 2], [2, 1, 0]]);
        assert_eq!(order(2, 3), order(0, 3));
    }

    #[test]
    fn files_in_memory_are_warned_of() {
        let named = |name: &str, in_memory| FileSystem { name: name.to_owned(), in_memory };
        assert!(notes(&named("tmpfs", true), 1)[0].contains("say nothing about durability"));
        assert!(notes(&named("ext4", false), 1).is_empty());
        assert!(notes(&named("ext4", false), 4)[0].contains("4 of them"));
    }
}
