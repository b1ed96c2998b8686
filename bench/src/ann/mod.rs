//! `ann`: recall against queries a second of Flashbulb's vector index and of libraries, side by side.
//!
//! Invariant: each index is alone in a process and gets the very same vectors; all are there all the time, searched in turns, one
//! setting after the other, so that what drifts hits all alike; every answer is held against brute force. Must not know the
//! engine's store: it is the index that is compared.

mod curve;
pub mod dataset;
mod files;
mod result;
mod show;
mod words;
pub mod worker;

use std::path::{Path, PathBuf};

use crate::environment::{self, Environment, Pins};
use crate::machine::{self, Machine};
use crate::{Failure, setup};
use dataset::{Dataset, Source};
use result::{Ann, Found, SCHEMA, Scenario, Setting, Single};
use worker::{Built, Request, Searched, Worker};

/// What is installed for the libraries.
const PINS: &Pins = &[
    ("faiss-cpu", "1.15.1"),
    ("h5py", "3.16.0"),
    ("hnswlib", "0.8.0"),
    ("numpy", "2.4.6"),
    ("rabitqlib", "0.7.1"),
    ("usearch", "2.26.6"),
    ("voyager", "2.2.3"),
];

/// Which index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Flashbulb's
    Flashbulb,
    /// Flashbulb's in the lean layout
    FlashbulbLean,
    /// SymphonyQG of rabitqlib; can only be built at once
    Symqg,
    /// HNSW of rabitqlib
    RabitqHnsw,
    /// hnswlib in f32
    Hnswlib,
    /// USearch in bf16
    Usearch,
    /// HNSW of Faiss in f32
    Faiss,
    /// Voyager in f32
    Voyager,
}

impl Kind {
    /// Whether it is Flashbulb's.
    fn is_own(self) -> bool {
        matches!(self, Kind::Flashbulb | Kind::FlashbulbLean)
    }

    /// As it is written.
    fn name(self) -> &'static str {
        match self {
            Kind::Flashbulb => "flashbulb",
            Kind::FlashbulbLean => worker::LEAN,
            Kind::Symqg => "symqg",
            Kind::RabitqHnsw => "rabitq-hnsw",
            Kind::Hnswlib => "hnswlib",
            Kind::Usearch => "usearch",
            Kind::Faiss => "faiss",
            Kind::Voyager => "voyager",
        }
    }
}

/// Options of `ann`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    source: Source,
    /// What is measured; the first is compared with each other
    #[arg(long, value_delimiter = ',', default_values = ["flashbulb", "symqg", "rabitq-hnsw", "hnswlib", "usearch", "faiss", "voyager"])]
    systems: Vec<Kind>,
    /// Candidates that a search keeps (ef)
    #[arg(long, value_delimiter = ',', default_values_t = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512], value_parser = clap::value_parser!(u32).range(1..=100_000))]
    widths: Vec<u32>,
    /// Threads that build an index, where it has them
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    build_threads: u16,
    /// Each setting is searched for at least so long in each block
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Turns that each setting has
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    blocks: u16,
    /// Write ann.json, ann.md and ann.html into this folder
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Options {
    fn check(&self) -> Result<(), Failure> {
        if !(self.seconds.is_finite() && self.seconds >= 0.0) {
            return Err(format!("--seconds is {}, it must be at least 0", self.seconds).into());
        }
        let mut twice = self.systems.iter().enumerate();
        match twice.find(|(i, kind)| self.systems[..*i].contains(kind)) {
            Some((_, kind)) => Err(format!("--systems names {} twice", kind.name()).into()),
            None => Ok(()),
        }
    }

    /// Whether anything of Python is needed.
    fn needs_python(&self) -> bool {
        self.source.needs_python() || self.systems.iter().any(|kind| !kind.is_own())
    }
}

/// Runs `ann`.
///
/// # Errors
/// What Python, pip, the libraries, the files or the model say.
pub fn run(options: &Options) -> Result<(), Failure> {
    options.check()?;
    let begun_at = jiff::Timestamp::now();
    let machine = Machine::read();
    println!("{}\n", machine.line());
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
    }
    let environment = options.needs_python().then(|| environment(&options.source)).transpose()?;
    let python = environment.as_ref().map_or(Path::new(""), |e| e.python.as_path());
    let folder = tempfile::Builder::new().prefix("fba").tempdir()?;
    let data = Dataset::read(&options.source, python, folder.path())?;
    let mut systems = build(options, &data, python, folder.path())?;
    measure(options, &data, &mut systems, folder.path())?;
    let blocks = usize::from(options.blocks);
    let systems: Vec<Found> = systems.into_iter().filter_map(|s| s.found(blocks)).collect();
    let (commit, dirty) = machine::commit();
    let ann = Ann {
        schema: SCHEMA,
        begun_at: begun_at.to_string(),
        command: setup::command(),
        seed: options.source.common.seed,
        machine,
        commit,
        dirty,
        environment,
        scenario: scenario(options, &data),
        ratios: result::ratios(&systems, blocks),
        notes: notes(&systems),
        systems,
    };
    show::print(&ann);
    match &options.out {
        Some(out) => show::write(&ann, out),
        None => Ok(()),
    }
}

/// The Python environment that is named, made if it is not there.
///
/// # Errors
/// What Python and pip say.
pub fn environment(source: &Source) -> Result<Environment, Failure> {
    let dir = source.env.clone().map_or_else(|| environment::default_dir("ann", "--env"), Ok)?;
    environment::ensure(&source.python, &dir, PINS)
}

fn scenario(options: &Options, data: &Dataset) -> Scenario {
    Scenario {
        source: data.source.clone(),
        sha256: data.sha256.clone(),
        metric: data.metric,
        normalised: data.normalised,
        vectors: data.len(),
        dim: data.dim,
        queries: data.asked(),
        k: options.source.k.into(),
        blocks: options.blocks,
        seconds: options.seconds,
        build_threads: options.build_threads.into(),
    }
}

fn notes(systems: &[Found]) -> Vec<String> {
    let python = systems.iter().any(|s| !s.name.starts_with("flashbulb"));
    let of_calls = "one query at a time, the libraries' figures have the cost of a call from Python in them, a few microseconds; queries/s have next to none of it";
    python.then(|| of_calls.to_owned()).into_iter().collect()
}

/// An index that was built, and what was found of it so far.
struct System {
    kind: Kind,
    worker: Worker,
    built: Built,
    memory: Option<crate::run::Memory>,
    settings: Vec<Collected>,
}

/// One width.
struct Collected {
    width: usize,
    recall: f64,
    qps: Vec<f64>,
    ns: Vec<u64>,
}

impl System {
    fn found(self, blocks: usize) -> Option<Found> {
        let setting = |c: Collected| {
            let Collected { width, recall, qps, ns } = c;
            Some(Setting { width, recall, qps, single_us: Single::of(ns)? })
        };
        let mut found = Found {
            name: self.kind.name().to_owned(),
            settings: self.built.settings,
            build_seconds: self.built.seconds,
            index_bytes: self.built.index_bytes,
            memory: self.memory,
            settings_measured: self.settings.into_iter().filter_map(setting).collect(),
            at: Vec::new(),
        };
        found.compare(blocks);
        Some(found)
    }
}

/// Builds one index after the other, each alone on the machine.
fn build(
    options: &Options,
    data: &Dataset,
    python: &Path,
    folder: &Path,
) -> Result<Vec<System>, Failure> {
    let base = folder.join("base");
    files::write_f32(&base, &data.base)?;
    files::write_f32(&folder.join("queries"), &data.queries)?;
    let mut systems = Vec::new();
    for kind in &options.systems {
        eprintln!("building {}", kind.name());
        let mut worker = match kind {
            own if own.is_own() => Worker::own(folder)?,
            peer => Worker::peer(peer.name(), python, folder)?,
        };
        let built = worker.ask(&Request::Build {
            peer: kind.name().to_owned(),
            base: base.clone(),
            dim: data.dim,
            metric: data.metric,
            threads: options.build_threads.into(),
        })?;
        let memory = worker.memory();
        systems.push(System { kind: *kind, worker, built, memory, settings: Vec::new() });
    }
    Ok(systems)
}

/// All blocks: each width of each system, forwards and backwards by turns.
fn measure(
    options: &Options,
    data: &Dataset,
    systems: &mut [System],
    folder: &Path,
) -> Result<(), Failure> {
    for block in 0..options.blocks {
        eprintln!("block {} of {}", block + 1, options.blocks);
        for width in &options.widths {
            let mut order: Vec<usize> = (0..systems.len()).collect();
            if block % 2 == 1 {
                order.reverse();
            }
            for at in order {
                one(options, data, &mut systems[at], *width as usize, folder)?;
            }
        }
    }
    Ok(())
}

/// One width of one system in one block.
fn one(
    options: &Options,
    data: &Dataset,
    system: &mut System,
    width: usize,
    folder: &Path,
) -> Result<(), Failure> {
    let (k, out) = (usize::from(options.source.k), folder.join("found"));
    let mut ask = |single| {
        let queries = folder.join("queries");
        let request = Request::Search { queries, k, width, single, out: out.clone() };
        system.worker.ask::<Searched>(&request)
    };
    let singles = ask(true)?;
    let recall = data.recall(&files::read_u32(&out)?, k);
    let (mut seconds, mut rounds) = (0.0, 0);
    while rounds == 0 || seconds < options.seconds {
        seconds += ask(false)?.seconds;
        rounds += 1;
    }
    let batch = data.recall(&files::read_u32(&out)?, k);
    if (batch - recall).abs() > 0.01 {
        let name = system.kind.name();
        return Err(format!("{name} has recall {recall:.4} one query at a time and {batch:.4} in one call, at width {width}").into());
    }
    let known = system.settings.iter().position(|s| s.width == width);
    let at = known.unwrap_or_else(|| {
        system.settings.push(Collected { width, recall, qps: Vec::new(), ns: Vec::new() });
        system.settings.len() - 1
    });
    let into = &mut system.settings[at];
    into.qps.push((data.asked() * rounds) as f64 / seconds);
    into.ns.extend(singles.ns.unwrap_or_default());
    Ok(())
}
