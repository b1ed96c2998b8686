//! The results of every method, as they stand on the wire.
//!
//! Invariant: what a result may hold is said here, in types that also make the OpenRPC document. Absent role, session and
//! meta are `null`, never left out. These types must not know the engine's.

use crate::rpc::time::TsMs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// A report of the service about itself: an object whose members may grow between versions.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Report(
    #[schemars(with = "serde_json::Map<String, Value>")]
    /// The object.
    pub Value,
);

/// What happened to one item of `memory.add`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddedStatus {
    /// It is new.
    Added,
    /// Its id was there; the old memory stays.
    Skipped,
    /// Its id was there; it took the old memory's place.
    Replaced,
}

/// One item of [`AddResult`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct AddedItem {
    /// The id given, or made by the service.
    pub id: String,
    /// What happened to it.
    pub status: AddedStatus,
}

/// Result of `memory.add`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AddResult {
    /// In the order of the request.
    pub items: Vec<AddedItem>,
    /// The space's highest `seq` afterwards; give it to `min_seq` to find what was added.
    pub seq: u64,
}

/// One memory.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MemoryOut {
    /// Its id.
    pub id: String,
    /// Its text.
    pub text: String,
    /// Who said it.
    pub role: Option<String>,
    /// The conversation it belongs to.
    pub session: Option<String>,
    /// When it was said.
    pub ts: TsMs,
    /// Its place in the order of the space; a new version has a new one.
    pub seq: u64,
    /// As given, to the byte.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub meta: Option<Box<RawValue>>,
}

/// Result of `memory.get`, `memory.list` and `memory.around`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ItemsResult {
    /// For `get`, one for each id and `null` where there is none.
    pub items: Vec<Option<MemoryOut>>,
    /// For `list`, where there is more: the `cursor` of the next request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The memories around a hit.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Neighbors {
    /// Before it, by `seq`.
    pub before: Vec<MemoryOut>,
    /// After it, by `seq`.
    pub after: Vec<MemoryOut>,
}

/// A hit's scores by stage.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct Scores {
    /// Cosine similarity, −1 to 1.
    pub dense: f32,
}

/// One hit of `memory.search`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HitOut {
    /// Its id.
    pub id: String,
    /// Larger is nearer; hits come in falling order.
    pub score: f32,
    /// Its text.
    pub text: String,
    /// Who said it.
    pub role: Option<String>,
    /// The conversation it belongs to.
    pub session: Option<String>,
    /// When it was said.
    pub ts: TsMs,
    /// Its place in the order of the space.
    pub seq: u64,
    /// As given, to the byte.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub meta: Option<Box<RawValue>>,
    /// Where `neighbors` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbors: Option<Neighbors>,
    /// Where `explain` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<Scores>,
}

/// Microseconds by stage, from the arrival of the frame's last byte; `total` ends where the answer begins to be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TookUs {
    /// Waiting: for earlier requests of the connection, for `min_seq`, for an embedding session.
    pub queue: u64,
    /// Cutting the query into tokens and windows; 0 where its vector was kept or given.
    pub tokenise: u64,
    /// The model, or finding a vector that was kept: then at least 1. 0 where a vector was given.
    pub embed: u64,
    /// Search by meaning.
    pub dense: u64,
    /// Search by words.
    pub lexical: u64,
    /// Fusing the two.
    pub fuse: u64,
    /// Fetching texts.
    pub fetch: u64,
    /// Everything.
    pub total: u64,
}

/// How a search was really carried out.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SearchRan {
    /// `cpu`.
    pub device: &'static str,
    /// The instruction set of the distance kernels.
    pub simd: String,
    /// `scan`, `graph` or both.
    pub path: String,
    /// With `explain`: vectors that were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scanned: Option<u64>,
    /// With `explain`: windows of the query that were searched, best score counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<usize>,
}

/// What really executed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RanOut {
    /// Runtime, execution provider, precision and model; `null` for a search with a `vector`.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub embed: Option<Box<RawValue>>,
    /// The search.
    pub search: SearchRan,
}

/// Result of `memory.search`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SearchResult {
    /// At most `k`, best first.
    pub hits: Vec<HitOut>,
    /// Microseconds by stage.
    pub took_us: TookUs,
    /// What really executed.
    pub ran: RanOut,
    /// What was less than it should be, each with a fixed first word; empty when all was well.
    pub degraded: Vec<String>,
}

/// Result of `memory.context`, which this version does not have yet.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ContextResult {
    /// The text, within the budget.
    pub text: String,
    /// The memories in it.
    pub items: Vec<MemoryOut>,
    /// Tokens of the text.
    pub tokens: u64,
    /// Memories that were found and left out.
    pub omitted: u64,
}

/// Result of `memory.update`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UpdateResult {
    /// Always 1; an absent memory is an error.
    pub updated: u64,
    /// The `seq` of the new version.
    pub seq: u64,
}

/// Result of `admin.sync`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncResult {
    /// Everything up to this record of the log is on the device.
    pub durable_lsn: u64,
}

/// Result of `memory.delete`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeleteResult {
    /// Memories that were found.
    pub matched: u64,
    /// Memories that were deleted: 0 with `dry_run`.
    pub deleted: u64,
    /// Ids that were not there.
    pub missing: u64,
}

/// Result of `memory.import`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ImportResult {
    /// The format read.
    pub format: String,
    /// Things found: `added`, `already_there` and everything skipped.
    pub read: u64,
    /// New memories.
    pub added: u64,
    /// Memories that were there already.
    pub already_there: u64,
    /// What did not become a memory, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Whether nothing was stored.
    pub dry_run: bool,
}

/// Result of `memory.export`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ExportResult {
    /// Memories written.
    pub exported: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The file.
    pub path: String,
}

/// Result of `space.list`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SpacesResult {
    /// One report a space, in the order of their names.
    pub spaces: Vec<Report>,
}

/// Result of `space.drop`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DropResult {
    /// Memories that went with it.
    pub dropped: u64,
}

/// Microseconds of the two probes of `admin.health`.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct HealthTookUs {
    /// Tokenising and embedding the probe's text.
    pub embed: u64,
    /// Searching for it.
    pub search: u64,
    /// Everything.
    pub total: u64,
}

/// Result of `admin.health`; a service that is not well answers with an error instead.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HealthResult {
    /// `ok`, or `degraded` with the reasons below.
    pub status: &'static str,
    /// What really executed.
    pub ran: RanOut,
    /// Microseconds by probe.
    pub took_us: HealthTookUs,
    /// As in `memory.search`.
    pub degraded: Vec<String>,
}

/// Result of `admin.metrics`: one of the two, as `format` asked for.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum MetricsResult {
    /// `openmetrics`.
    OpenMetrics {
        /// What to serve the text as.
        content_type: &'static str,
        /// The text, which ends with `# EOF`.
        text: String,
    },
    /// `json`.
    Json(MetricsReading),
}

/// All metrics at one time, with their finest buckets.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct MetricsReading {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Counts since start, by name and labels as they stand in the text.
    pub counters: BTreeMap<String, u64>,
    /// What is now, named in the same way.
    pub gauges: BTreeMap<String, f64>,
    /// Durations; a histogram in which nothing was counted yet is left out.
    pub histograms: Vec<HistogramOut>,
}

/// Durations since start.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HistogramOut {
    /// The name in the text.
    pub name: String,
    /// `method`, and `stage` where there is one.
    pub labels: BTreeMap<String, String>,
    /// How many were counted: the sum over the buckets.
    pub count: u64,
    /// All together in microseconds, rounded down.
    pub sum_us: u64,
    /// Buckets with something in them: the upper edge in microseconds, itself included, and the count, not cumulative.
    /// An edge is at most a tenth above the one before; `null` stands for what is longer than 100 s.
    pub buckets: Vec<(Option<f64>, u64)>,
}

/// Result of `admin.shutdown`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShutdownResult {
    /// Always true; the service ends once requests in flight are answered.
    pub stopping: bool,
}
