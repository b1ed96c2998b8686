//! `recover`: how long a daemon that was killed in the middle of adds takes from its next start to its first answer.
//!
//! Invariant: each kill is SIGKILL while clients add, with as much in the log and not in segments as was asked for; what was
//! acknowledged before it must be there after it, or the run fails. A folder that was named is never changed.

mod kill;
mod result;
mod show;

use std::path::{Path, PathBuf};

use flashbulb::embed::Embedder;

use crate::data::Corpus;
use crate::fill::{self, Place, Wanted};
use crate::machine::Machine;
use crate::run::Fill;
use crate::stats::Spread;
use crate::{Common, Failure, bare, daemon, setup};
use kill::Killer;
use result::{Recovered, Row, SCHEMA};

/// Unsealed bytes at which the store begins to seal.
const SEAL_MIB: u16 = 64;

/// Options of `recover`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// The program to measure; the one built beside this one if left out
    #[arg(long)]
    program: Option<PathBuf>,
    /// Memories of the store, one row of figures for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000])]
    memories: Vec<usize>,
    /// Keep the filled store in this folder, and use the one that is there; with several numbers of memories in folders of
    /// these names in it. What is measured is a copy
    #[arg(long)]
    store: Option<PathBuf>,
    /// Fill the store with the vectors of the texts from this file, which is made if need be, instead of generated ones
    #[arg(long)]
    vectors_cache: Option<PathBuf>,
    /// Standard deviation of the noise on each component of a vector that no text has
    #[arg(long, default_value_t = 0.02)]
    noise: f64,
    /// Make the copy in this folder; the system's folder for temporary files if left out
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Times that the daemon is killed and started again
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    kills: u16,
    /// MiB in the log and not in segments at the kill; the store seals at 64
    #[arg(long, default_value_t = 62, value_parser = clap::value_parser!(u16).range(1..=63))]
    tail_mib: u16,
    /// Drop the page cache between the kill and the start, as after a power cut
    #[arg(long)]
    cold: bool,
    /// Write recover.json and recover.md into this folder
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs `recover`.
///
/// # Errors
/// What the daemon, the store or the model say, or that something acknowledged is gone.
pub fn run(options: &Options) -> Result<(), Failure> {
    if options.memories.contains(&0) {
        return Err("--memories must be at least 1".into());
    }
    let begun_at = jiff::Timestamp::now();
    let machine = Machine::read();
    println!("{}\n", machine.line());
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
    }
    let program = daemon::program(options.program.as_deref())?;
    let embedder = bare::embedder(options.common.precision)?;
    let mut rows = Vec::new();
    for memories in &options.memories {
        let row = measure(options, &program, &embedder, *memories)?;
        show::print_row(&row);
        rows.push(row);
    }
    let arguments = options.common.arguments();
    let recovered = Recovered {
        schema: SCHEMA,
        begun_at: begun_at.to_string(),
        command: setup::command(),
        seed: options.common.seed,
        machine,
        program: setup::describe(&program, &arguments)?,
        tail_mib: options.tail_mib,
        seal_mib: SEAL_MIB,
        cold: options.cold,
        rows,
    };
    options.out.as_deref().map_or(Ok(()), |out| show::write(&recovered, out))
}

/// One size: filled, copied if it is kept, and killed.
fn measure(
    options: &Options,
    program: &Path,
    embedder: &Embedder,
    memories: usize,
) -> Result<Row, Failure> {
    let corpus = Corpus::read(options.common.data.as_deref(), memories, options.common.seed)?;
    let kept = options.store.as_ref().map(|dir| match options.memories.len() {
        1 => dir.clone(),
        _ => dir.join(memories.to_string()),
    });
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let own = tempfile::Builder::new().prefix("recover").tempdir_in(&dir)?;
    let place = Place::new(Some(kept.as_deref().unwrap_or(own.path())))?;
    let fill = filled(options, &place, embedder, &corpus, memories)?;
    let store = match kept {
        None => place.store.clone(),
        Some(_) => {
            let copy = own.path().join("copy");
            fill::copy(&place.store, &copy)?;
            copy
        }
    };
    let killer = Killer {
        program,
        store: &store,
        arguments: options.common.arguments(),
        corpus: &corpus,
        dim: embedder.dim(),
        seed: options.common.seed,
        tail_bytes: u64::from(options.tail_mib) << 20,
        cold: options.cold,
    };
    let mut kills = Vec::new();
    for number in 0..options.kills {
        eprintln!("{memories} memories: kill {} of {}", number + 1, options.kills);
        kills.push(killer.kill(number)?);
    }
    let spread = |of: fn(&result::Kill) -> f64| {
        let values: Vec<f64> = kills.iter().map(of).collect();
        Spread::of(&values).ok_or("no kills")
    };
    Ok(Row {
        memories,
        fill,
        by_vector_ms: spread(|k| k.by_vector_ms)?,
        by_text_ms: spread(|k| k.by_text_ms)?,
        kills,
    })
}

fn filled(
    options: &Options,
    place: &Place,
    embedder: &Embedder,
    corpus: &Corpus,
    memories: usize,
) -> Result<Fill, Failure> {
    let seed = options.common.seed;
    let way = if options.vectors_cache.is_some() { "vectors" } else { "generated" };
    let made_up = options.vectors_cache.is_none() || corpus.len() > corpus.real();
    let wanted = Wanted {
        memories,
        spaces: 1,
        data_sha256: corpus.sha256.clone(),
        model: embedder.fingerprint(),
        way: way.to_owned(),
        noise: made_up.then_some((options.noise, seed)),
    };
    match &options.vectors_cache {
        Some(cache) => fill::with_vectors(place, &wanted, corpus, embedder, cache),
        None => {
            let of = (embedder.dim(), &*embedder.fingerprint());
            fill::with_generated(place, &wanted, corpus, of)
        }
    }
}
