//! `recover.json`: everything that one run found.
//!
//! Invariant: times are milliseconds from the start of the process. Must not know how anything was measured.

use serde::Serialize;
use serde_json::Value;

use crate::machine::Machine;
use crate::run::{Fill, Memory, Program};
use crate::stats::Spread;

/// The schema of the file.
pub const SCHEMA: u64 = 1;

/// One run.
#[derive(Debug, Serialize)]
pub struct Recovered {
    pub schema: u64,
    /// RFC 3339.
    pub begun_at: String,
    pub command: String,
    pub seed: u64,
    pub machine: Machine,
    pub program: Program,
    /// Wanted in the log and not in segments at each kill.
    pub tail_mib: u16,
    /// At which the store seals.
    pub seal_mib: u16,
    /// Whether the page cache was dropped before each start.
    pub cold: bool,
    pub rows: Vec<Row>,
}

/// One size.
#[derive(Debug, Serialize)]
pub struct Row {
    pub memories: usize,
    pub fill: Fill,
    pub by_vector_ms: Spread,
    pub by_text_ms: Spread,
    pub kills: Vec<Kill>,
}

/// One kill and what came after it.
#[derive(Debug, Serialize)]
pub struct Kill {
    /// In the log and not in segments, as the daemon said last.
    pub tail_mib: f64,
    /// Length of the log's files after the kill, preallocated parts included.
    pub log_files_mib: f64,
    /// Memories acknowledged before the kill, since the clean start.
    pub acknowledged: u64,
    /// Memories that were in flight at the kill and are there.
    pub found_beyond: u64,
    /// How dropping the page cache went, if it was asked for.
    pub page_cache: Option<String>,
    /// Until the first answer to a search by vector.
    pub by_vector_ms: f64,
    /// Until the answer to a search by text, which was asked after it.
    pub by_text_ms: f64,
    /// As the daemon logs it.
    pub model_ready_ms: Option<u64>,
    /// As the daemon logs it.
    pub store_ready_ms: Option<u64>,
    /// What `admin.status` says of it.
    pub recovery: Value,
    /// After the two answers.
    pub memory: Option<Memory>,
    /// Until the next daemon had ended cleanly.
    pub stopped_in_ms: f64,
}
