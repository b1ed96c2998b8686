//! `run.json`: everything that one run found, for reports made then or later.
//!
//! Invariant: a file of another schema is refused by its number, never half understood. Must not know how anything was
//! measured or how it is shown.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Failure;
use crate::machine::Machine;
use crate::stats::Percentiles;

/// The schema of the files that this program writes and reads.
pub const SCHEMA: u64 = 1;
/// The name of the file in a report's folder.
pub const FILE: &str = "run.json";

/// One run: one program on one store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    pub schema: u64,
    /// RFC 3339.
    pub begun_at: String,
    pub command: String,
    pub seed: u64,
    pub machine: Machine,
    pub program: Program,
    pub data: Data,
    /// As this process opened it.
    pub model: Model,
    /// What `admin.status` of the measured service says of its embedder.
    pub ran: Value,
    /// When a write is acknowledged, as the daemon says.
    pub durability: String,
    pub scenario: Scenario,
    pub fill: Fill,
    pub rows: Vec<Row>,
    pub knees: Vec<Knee>,
    pub recall: Option<Recall>,
    /// Single searches in this process, one after the other, without model and socket.
    pub frontier: Vec<FrontierPoint>,
    /// Memory of the daemon after the load.
    pub memory: Option<Memory>,
    /// What is out of the ordinary and changes how figures are to be read.
    pub notes: Vec<String>,
}

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    /// What `--version` says.
    pub version: Option<String>,
    pub sha256: String,
    /// Of the folder that the harness was started in.
    pub commit: Option<String>,
    pub dirty: Option<bool>,
    /// Arguments of `serve` besides store and socket.
    pub arguments: Vec<String>,
}

/// The texts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Data {
    pub source: String,
    pub sha256: String,
    pub lines: usize,
    /// Lines that are never imported, for queries.
    pub held_out: usize,
    /// Memories that are lines of the data.
    pub memories_real: usize,
    /// Memories that are lines of the data with a number behind them.
    pub memories_made: usize,
    /// Standard deviation of each component of the noise that made their vectors; none if they were embedded.
    pub noise: Option<f64>,
    pub queries_real: usize,
    /// Queries that are halves of two held-out lines.
    pub queries_made: usize,
}

/// The embedding model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Model {
    pub name: String,
    pub precision: String,
    pub runtime: String,
    pub provider: String,
    /// Of the weights' file.
    pub sha256: Option<String>,
    pub fingerprint: String,
}

/// What the rows of a run share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// In each space.
    pub memories: usize,
    pub spaces: usize,
    pub boundary: Boundary,
    pub connections: usize,
    /// Shares of the methods.
    pub mix: BTreeMap<String, f64>,
    pub k: usize,
    /// Tokens of a query, least and most.
    pub query_tokens: (usize, usize),
    pub promise_ms: f64,
    pub timeout_ms: u64,
    /// `deadline_ms` of each search.
    pub deadline_ms: Option<u64>,
}

/// Between what the time is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Boundary {
    /// A client and the daemon's Unix socket.
    Socket,
    /// A frame in memory and the answer to it, in the process of the load generator.
    InProcess,
}

/// What runs beside a load.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Beside {
    Nothing,
    /// An import into another space that never ends.
    Import,
}

/// Whether the service has run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Temperature {
    Warm,
    /// A new process after the pages of files were dropped, where that is allowed.
    Cold,
}

/// How the store came to be.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Fill {
    /// `import` through the daemon, or `vectors` of a cache.
    pub way: String,
    /// It was there before this run.
    pub reused: bool,
    /// From the start until every text could be found.
    pub seconds: Option<f64>,
    /// Until the index stood still.
    pub indexed_after_s: Option<f64>,
}

/// Why a row was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// At a rate that was asked for.
    Rate,
    /// On the way to the knee.
    Sweep,
    /// The first requests of a new process.
    Cold,
}

/// One load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub purpose: Purpose,
    pub beside: Beside,
    pub temperature: Temperature,
    #[serde(flatten)]
    pub load: Load,
    pub import: Option<Import>,
    pub bare: Option<Turns<Percentiles>>,
    pub against_bare: Option<AgainstBare>,
    pub cold: Option<Cold>,
    /// The daemon's own counters before and after.
    pub counters: Option<(Value, Value)>,
    /// The file of the interval log.
    pub log: Option<String>,
}

/// What came of a load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    pub offered_per_s: f64,
    /// Answers a second.
    pub achieved_per_s: f64,
    pub seconds: f64,
    pub sent: u64,
    /// Searches answered within the promise.
    pub in_time: u64,
    /// Searches sent.
    pub searches: u64,
    pub misses: BTreeMap<Miss, u64>,
    /// The first message of each kind.
    pub first_errors: BTreeMap<Miss, String>,
    /// Why none of this row's figures counts.
    pub void: Option<String>,
    /// Whether the generator's threads had real-time priority.
    pub realtime: bool,
    /// The share of processor time that other guests of the host took meanwhile, as the kernel counts it.
    pub stolen: Option<f64>,
    pub load_before: Option<f64>,
    pub load_after: Option<f64>,
    /// Shares of one processor.
    pub daemon_cpu: Option<f64>,
    pub generator_cpu: Option<f64>,
    /// Of searches, from the scheduled moment; those missed count as never answered.
    pub response: Percentiles,
    /// The same of the answered ones alone.
    pub answered: Percentiles,
    /// Of answered searches, from the moment of sending.
    pub service: Percentiles,
    /// How late the generator itself was.
    pub lag: Percentiles,
    /// Of the other methods of a mix, from the scheduled moment.
    pub others: BTreeMap<String, Percentiles>,
    /// What the answers say of their stages.
    pub stages: BTreeMap<String, Percentiles>,
}

/// Why a request counts as missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Miss {
    /// `Busy`.
    Refused,
    /// `DeadlineExceeded`.
    Deadline,
    /// No answer in time, or no connection free in time.
    Timeout,
    /// Another error of the service.
    Error,
    /// The connection could not be made or broke.
    Connection,
    /// A search that found nothing.
    Empty,
}

impl Miss {
    /// All there are, in the order of tables.
    pub const ALL: [Miss; 6] =
        [Miss::Refused, Miss::Deadline, Miss::Timeout, Miss::Error, Miss::Connection, Miss::Empty];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Miss::Refused => "refused",
            Miss::Deadline => "deadline",
            Miss::Timeout => "timeout",
            Miss::Error => "error",
            Miss::Connection => "connection",
            Miss::Empty => "empty",
        }
    }
}

/// Texts embedded a second by the import beside a load.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Import {
    pub alone_before_per_s: Option<f64>,
    pub beside_per_s: f64,
    pub alone_after_per_s: Option<f64>,
    /// Beside, as a share of the mean alone.
    pub share: Option<f64>,
}

impl Import {
    /// With the share worked out.
    pub fn new(before: Option<f64>, beside: f64, after: Option<f64>) -> Import {
        let alone: Vec<f64> = before.into_iter().chain(after).collect();
        let mean = alone.iter().sum::<f64>() / alone.len() as f64;
        Import {
            alone_before_per_s: before,
            beside_per_s: beside,
            alone_after_per_s: after,
            share: (mean > 0.0).then(|| beside / mean),
        }
    }
}

/// What one thread and the same with a helper took, turn by turn in the same minutes; microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turns<T> {
    pub alone: T,
    pub helped: Option<T>,
}

/// The median over the boundary against the bare parts at the same rate; microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgainstBare {
    pub response_p50: u64,
    pub embed_p50: u64,
    /// `helped` or `alone`: as the service embeds.
    pub embed_how: String,
    pub dense_p50: u64,
    pub ratio: f64,
}

/// The start of a new process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cold {
    /// Whether the page cache was dropped, or why not.
    pub page_cache: String,
    /// From the start of the process until it answered `admin.status`.
    pub started_in_ms: f64,
    pub first_request_us: u64,
}

/// The highest rate that was answered in time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Knee {
    pub beside: Beside,
    pub promise_ms: f64,
    /// Share of the searches that must be answered in time.
    pub share: f64,
    /// None if even the lowest rate was too much.
    pub per_s: Option<f64>,
    /// The lowest rate that was too much; none if the sweep ended before one.
    pub fails_at_per_s: Option<f64>,
    /// A step that decided was void twice.
    pub void: bool,
}

/// Answers compared with brute force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recall {
    pub k: usize,
    pub queries: usize,
    pub vectors: usize,
    pub recall: f64,
    /// Whose answers.
    pub of: String,
}

/// One setting of the index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrontierPoint {
    /// None is the default.
    pub ef: Option<usize>,
    pub recall: f64,
    pub queries: usize,
    pub path: String,
    pub took: Percentiles,
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Memory {
    /// All resident pages, mapped files included.
    pub rss_mib: f64,
    /// Resident pages that are not backed by files.
    pub anonymous_mib: f64,
}

impl Run {
    /// Reads a run from a folder or a file.
    ///
    /// # Errors
    /// If there is none, or it has another schema.
    pub fn read(path: &Path) -> Result<Run, Failure> {
        let file = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
        let shown = file.display();
        let bytes = std::fs::read(&file).map_err(|e| format!("cannot read {shown}: {e}"))?;
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|e| format!("{shown} is not JSON: {e}"))?;
        let schema = json.get("schema").and_then(Value::as_u64);
        if schema != Some(SCHEMA) {
            let found = schema.map_or("no schema".to_owned(), |s| format!("schema {s}"));
            return Err(format!(
                "{shown} has {found}, this program reads schema {SCHEMA}; measure again, or use the program that wrote it"
            )
            .into());
        }
        serde_json::from_value(json)
            .map_err(|e| format!("{shown} does not fit its schema: {e}").into())
    }

    /// Writes the run into a folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        let file = dir.join(FILE);
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        std::fs::write(&file, json)
            .map_err(|e| format!("cannot write {}: {e}", file.display()).into())
    }

    /// What makes two runs comparable.
    pub fn title(&self) -> String {
        let s = &self.scenario;
        let memories = match s.spaces {
            1 => format!("{} memories", thousands(s.memories)),
            n => format!("{} spaces of {} memories", thousands(n), thousands(s.memories)),
        };
        let boundary = match s.boundary {
            Boundary::Socket => "over the socket",
            Boundary::InProcess => "in one process",
        };
        let mix: Vec<String> = s.mix.iter().map(|(m, share)| format!("{m} {share}")).collect();
        let mix = if s.mix.len() > 1 { format!(", {}", mix.join(" + ")) } else { String::new() };
        format!("{memories}, {boundary}{mix}")
    }
}

/// With commas.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn another_schema_is_refused_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |text: &str| {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            Run::read(dir.path()).unwrap_err().to_string()
        };
        assert!(refused(r#"{"schema":0,"rows":[]}"#).contains("has schema 0, this program reads"));
        assert!(refused(r#"{"machine":{},"rows":[]}"#).contains("has no schema"));
        assert!(refused(r#"{"schema":1}"#).contains("does not fit its schema: missing field"));
        assert!(refused("[").contains("is not JSON"));
        assert!(
            Run::read(&dir.path().join("absent")).unwrap_err().to_string().contains("cannot read")
        );
    }

    #[test]
    fn the_share_is_of_the_mean_alone() {
        assert_eq!(Import::new(Some(400.0), 400.0, Some(600.0)).share, Some(0.8));
        assert_eq!(Import::new(Some(400.0), 200.0, None).share, Some(0.5));
        assert_eq!(Import::new(None, 200.0, None).share, None);
    }

    #[test]
    fn numbers_have_commas() {
        assert_eq!(
            [thousands(7), thousands(1000), thousands(1234567)],
            ["7", "1,000", "1,234,567"]
        );
    }
}
