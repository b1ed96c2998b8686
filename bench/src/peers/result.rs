//! `peers.json`: everything that one comparison with peers found.
//!
//! Invariant: what was not measured is absent. Must not know how anything was measured or how it is shown.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::environment::Environment;
use crate::machine::Machine;
use crate::run::{Beside, Data, Load, Memory, Program};

/// The schema of the files that this program writes.
pub const SCHEMA: u64 = 1;

/// One comparison.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub schema: u64,
    /// RFC 3339.
    pub begun_at: String,
    pub command: String,
    pub seed: u64,
    pub machine: Machine,
    /// Flashbulb.
    pub program: Program,
    pub environment: Environment,
    pub data: Data,
    pub scenario: Scenario,
    pub systems: Vec<Found>,
    pub notes: Vec<String>,
}

/// What all systems share.
#[derive(Debug, Serialize)]
pub struct Scenario {
    pub memories: usize,
    /// More than memories where some are longer than the model's window.
    pub vectors: usize,
    pub rate: f64,
    /// Of each system beside nothing, in `blocks` parts.
    pub seconds: f64,
    /// The same beside an import.
    pub seconds_import: f64,
    pub blocks: u16,
    pub k: usize,
    pub connections: usize,
    /// Tokens of a query, least and most.
    pub query_tokens: (usize, usize),
    pub promise_ms: f64,
    pub timeout_ms: u64,
    /// SHA-256 of the files that the peers embed with.
    pub fused_sha256: String,
    pub standard_sha256: String,
    pub tokenizer_sha256: String,
}

/// What came of one system.
#[derive(Debug, Serialize)]
pub struct Found {
    pub name: String,
    /// How it was set up, in words.
    pub setup: String,
    /// Versions that really ran.
    pub versions: BTreeMap<String, String>,
    pub fill: Filled,
    /// The least cosine between its query vectors and the harness's own in f32.
    pub least_cosine: Option<f64>,
    pub recall: Option<Recall>,
    /// After the load beside nothing.
    pub memory: Option<Memory>,
    /// After the load beside an import.
    pub memory_after_import: Option<Memory>,
    pub rows: Vec<Row>,
}

/// From vectors that were there to an index that stood still; nothing is embedded.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Filled {
    /// Until everything was stored.
    pub seconds: f64,
    /// Until the index stood still.
    pub indexed_after_s: f64,
}

/// Answers under load compared with brute force.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Recall {
    pub k: usize,
    pub queries: usize,
    /// Against the vectors that the system holds, made by its own model: what the index loses.
    pub of_own_vectors: f64,
    /// Against the vectors of the f32 model: what index and precision lose together.
    pub of_f32_vectors: f64,
}

/// One load, all of its blocks together.
#[derive(Debug, Serialize)]
pub struct Row {
    pub beside: Beside,
    #[serde(flatten)]
    pub load: Load,
    /// Texts a second that the import beside it added.
    pub import_per_s: Option<f64>,
    pub blocks: Vec<Block>,
}

/// One turn of a system; microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Block {
    /// Which turn of all systems' in this block it was, from 0.
    pub turn: usize,
    pub answered: u64,
    pub p50: u64,
    pub max: u64,
    pub import_per_s: Option<f64>,
}
