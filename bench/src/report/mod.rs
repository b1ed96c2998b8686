//! `report`: runs of `load` as one HTML page and a Markdown summary.
//!
//! Invariant: a report is made of `run.json` and the interval logs beside it and of nothing else, so it can be made again.
//! The page needs no network: pictures are SVG within it, and it has no scripts. A figure of a void row is marked wherever
//! it stands.

pub mod charts;
pub mod log;
mod sections;
mod tables;
pub mod text;
pub mod view;

use std::path::{Path, PathBuf};

use crate::Failure;
use crate::run::Run;
use log::Interval;

/// The names of what is written.
const HTML: &str = "report.html";
const MARKDOWN: &str = "report.md";

/// Options of `report`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Folders of runs of `load`, one part of the report for each
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Write report.html and report.md here; into the first run's folder if left out
    #[arg(long)]
    out: Option<PathBuf>,
    /// A folder of an earlier run, shown beside the one of the same scenario; may be repeated
    #[arg(long)]
    previous: Vec<PathBuf>,
}

/// A run with its interval logs.
pub struct Loaded {
    pub run: Run,
    /// Where it was read.
    pub dir: PathBuf,
    /// One for each row; empty for a row without a log.
    pub logs: Vec<Vec<Interval>>,
}

impl Loaded {
    fn read(dir: &Path) -> Result<Loaded, Failure> {
        let run = Run::read(dir)?;
        let folder = if dir.is_dir() { dir } else { dir.parent().unwrap_or(Path::new(".")) };
        let read = |row: &crate::run::Row| match &row.log {
            Some(file) => log::read(&folder.join(file)),
            None => Ok(Vec::new()),
        };
        let logs = run.rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Loaded { run, dir: folder.to_owned(), logs })
    }
}

/// Runs `report`.
///
/// # Errors
/// If a run cannot be read or a file not be written.
pub fn run(options: &Options) -> Result<(), Failure> {
    let out = match (&options.out, options.runs.first()) {
        (Some(out), _) => out.clone(),
        (None, Some(first)) => first.clone(),
        (None, None) => return Err("no run is named".into()),
    };
    make(&options.runs, &options.previous, &out)
}

/// Makes a report of runs into a folder.
///
/// # Errors
/// As [`run`].
pub fn make(runs: &[PathBuf], previous: &[PathBuf], out: &Path) -> Result<(), Failure> {
    let loaded: Vec<Loaded> = runs.iter().map(|r| Loaded::read(r)).collect::<Result<_, _>>()?;
    let mut earlier = Vec::with_capacity(previous.len());
    for path in previous {
        let run = Run::read(path)?;
        if loaded.iter().all(|l| l.run.scenario != run.scenario) {
            eprintln!("{} is of another scenario and is not shown", path.display());
        }
        earlier.push(run);
    }
    std::fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
    let page = sections::page(&loaded, &earlier)?;
    for (name, text) in [(HTML, view::html(&page)?), (MARKDOWN, view::markdown(&page)?)] {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
