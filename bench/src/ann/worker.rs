//! A process with one index in it: Flashbulb's here, or a library's in Python. Both are told the same by lines of JSON.
//!
//! Invariant: an index is alone in its process, so that its memory can be read; a search's time covers the call of the index and
//! nothing else. Must not know what is right.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use flashbulb_engine::index::{
    Accept, Layout, RowSource, Scratch, SearchParams, VectorIndex, VectorNo,
};
use flashbulb_engine::sync::RowStore;
use flashbulb_kernels::Kernels;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files;
use crate::Failure;
use crate::daemon;
use crate::metric::Metric;
use crate::run::Memory;

/// What runs in a Python process.
const ADAPTER: &str = include_str!("adapter.py");
/// The name of Flashbulb's index in the lean layout.
pub const LEAN: &str = "flashbulb-lean";
/// No neighbour, as files of answers have it.
const NONE: u32 = u32::MAX;

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Request {
    /// Build an index of the vectors in a file.
    Build { peer: String, base: PathBuf, dim: usize, metric: Metric, threads: usize },
    /// Search for each of the vectors in a file, on one thread.
    Search { queries: PathBuf, k: usize, width: usize, single: bool, out: PathBuf },
    /// Take a file of ann-benchmarks apart.
    Convert { file: PathBuf, into: PathBuf },
}

/// The answer to [`Request::Build`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Built {
    pub seconds: f64,
    /// Memory that the index took, in bytes a vector, without the f32 rows; where the process can tell the two apart.
    #[serde(default)]
    pub index_bytes: Option<f64>,
    pub settings: String,
}

/// The answer to [`Request::Search`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Searched {
    pub seconds: f64,
    /// Of each query, where they were asked one at a time.
    pub ns: Option<Vec<u64>>,
}

/// The answer to [`Request::Convert`].
#[derive(Debug, Deserialize)]
pub struct Converted {
    pub distance: Option<String>,
    pub dim: usize,
}

/// A running worker.
pub struct Worker {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Worker {
    /// A process of this program for Flashbulb's index.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn own(folder: &Path) -> Result<Worker, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("ann-worker");
        Worker::start("flashbulb", command, folder)
    }

    /// A Python process for a library's.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn peer(name: &str, python: &Path, folder: &Path) -> Result<Worker, Failure> {
        let script = folder.join("adapter.py");
        std::fs::write(&script, ADAPTER)?;
        let mut command = Command::new(python);
        command.arg(script);
        // Libraries that would start threads of their own for a search are told not to.
        command.env("OMP_NUM_THREADS", "1").env("OPENBLAS_NUM_THREADS", "1");
        Worker::start(name, command, folder)
    }

    fn start(name: &str, mut command: Command, folder: &Path) -> Result<Worker, Failure> {
        let log = folder.join(format!("{name}.log"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|e| format!("cannot start {name}: {e}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("{name} has no pipes").into());
        };
        Ok(Worker { name: name.to_owned(), child, input, output: BufReader::new(output), log })
    }

    /// Asks and waits for the answer, however long it takes: building a large index takes minutes.
    ///
    /// # Errors
    /// If the process ends instead, with the end of what it said.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, Failure> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let written = self.input.write_all(line.as_bytes()).and_then(|()| self.input.flush());
        let mut answer = String::new();
        if written.is_err() || self.output.read_line(&mut answer)? == 0 {
            let status = self.child.wait()?;
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            return Err(
                format!("{} ended with {status}; the end of its log:\n{tail}", self.name).into()
            );
        }
        Ok(serde_json::from_str(&answer)?)
    }

    /// Memory in use now.
    pub fn memory(&self) -> Option<Memory> {
        daemon::memory(self.child.id())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Already ended is fine; there is no one to tell about anything else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The f32 rows, in memory, on huge pages as an index has its own.
struct Rows(RowStore<f32>);

impl RowSource for Rows {
    type Error = std::convert::Infallible;

    fn copy_row(&self, vector: VectorNo, out: &mut [f32]) -> Result<(), Self::Error> {
        out.copy_from_slice(self.row(vector));
        Ok(())
    }

    fn prefetch(&self, vector: VectorNo) {
        flashbulb_kernels::prefetch(self.row(vector));
    }
}

impl Rows {
    fn row(&self, vector: VectorNo) -> &[f32] {
        self.0.row(vector.0).unwrap_or(&[])
    }
}

/// Flashbulb's index and what it searches with.
struct Own {
    dim: usize,
    index: VectorIndex,
    rows: Rows,
    scratch: Scratch,
}

/// Runs the worker for Flashbulb's index until there is no more input.
///
/// # Errors
/// What the files say, or a request that is none.
pub fn run() -> Result<(), Failure> {
    let mut own: Option<Own> = None;
    for line in std::io::stdin().lock().lines() {
        let answer = match (serde_json::from_str(&line?)?, &mut own) {
            (Request::Build { peer, base, dim, metric, threads }, own) => {
                let layout = if peer == LEAN { Layout::Lean } else { Layout::Full };
                let (built, answer) = build(&base, dim, (metric, layout), threads)?;
                *own = Some(built);
                serde_json::to_string(&answer)?
            }
            (Request::Search { queries, k, width, single, out }, Some(own)) => {
                let queries = files::raw(&queries, own.dim)?;
                let (found, answer) = own.search(&queries, k, width, single);
                files::write_u32(&out, &found)?;
                serde_json::to_string(&answer)?
            }
            (request, _) => return Err(format!("{request:?} cannot be done").into()),
        };
        println!("{answer}");
    }
    Ok(())
}

fn build(
    base: &Path,
    dim: usize,
    (metric, layout): (Metric, Layout),
    threads: usize,
) -> Result<(Own, Built), Failure> {
    let values = files::raw(base, dim)?;
    let rows = Rows(RowStore::new(dim));
    values.chunks_exact(dim).for_each(|row| {
        rows.0.push(row);
    });
    drop(values);
    let anonymous = || daemon::memory(std::process::id()).map(|memory| memory.anonymous_mib);
    let (before, begun) = (anonymous(), Instant::now());
    let index = VectorIndex::with_layout(dim, metric.of_index(), layout, Kernels::detect());
    (0..rows.0.len()).for_each(|at| {
        index.push(rows.row(VectorNo(at)));
    });
    index.build(threads);
    let seconds = begun.elapsed().as_secs_f64();
    let grown = before.zip(anonymous()).map(|(before, after)| after - before);
    let index_bytes = grown.map(|mib| mib * f64::from(1 << 20) / f64::from(rows.0.len().max(1)));
    let built = Built { seconds, index_bytes, settings: settings(metric, layout) };
    Ok((Own { dim, index, rows, scratch: Scratch::default() }, built))
}

/// How the index works, for the report.
fn settings(metric: Metric, layout: Layout) -> String {
    let hits = match (metric, layout) {
        (_, Layout::Lean) => "hits scored from f32 rows",
        (Metric::Cosine | Metric::Dot, Layout::Full) => {
            "hits scored from 16-bit codes (int8 and 8 bits of what they left over), f32 rows read in scans only"
        }
        (Metric::L2, Layout::Full) => "hits scored from f32 rows",
    };
    let codes = match layout {
        Layout::Full => "1-bit sketches of neighbours, int8 codes",
        Layout::Lean => "codes of 4 bits",
    };
    format!(
        "by {}, one level of degree 32, {codes}, {hits}, ef_construction 200, built in the batches of online building, kernels {:?}",
        metric.words(),
        Kernels::detect().level()
    )
}

impl Own {
    fn search(
        &mut self,
        queries: &[f32],
        k: usize,
        width: usize,
        single: bool,
    ) -> (Vec<u32>, Searched) {
        let params = SearchParams { ef: width.max(k), ..SearchParams::new(k) };
        let count = queries.len() / self.dim;
        let (mut found, mut ns) = (vec![NONE; count * k], Vec::new());
        let begun = Instant::now();
        for (query, into) in queries.chunks_exact(self.dim).zip(found.chunks_exact_mut(k)) {
            let asked = Instant::now();
            let Self { index, rows, scratch, .. } = self;
            let Ok(result) = index.search(query, &params, rows, Accept::All, scratch);
            if single {
                ns.push(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            for (hit, place) in result.hits.iter().zip(into) {
                *place = hit.0.0;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        (found, Searched { seconds, ns: single.then_some(ns) })
    }
}
