//! The words of the engine: names, numbers, memories, requests and their answers.
//!
//! Invariant: a value of these types has passed its checks. Knows nothing of files or indexes.

use std::fmt;
use std::sync::Arc;

use crate::index::Layout;
use flashbulb_kernels::SimdLevel;
use serde::Serialize;

use crate::error::Error;
use crate::filter::Filter;
use crate::index::SearchPath;

/// Longest space name, in bytes.
pub const SPACE_NAME_MAX_BYTES: usize = 128;
/// Longest memory id, in bytes.
pub const ID_MAX_BYTES: usize = 128;
/// Longest role or session, in bytes.
pub const LABEL_MAX_BYTES: usize = 512;
/// Longest text of one memory, in bytes.
pub const TEXT_MAX_BYTES: usize = 256 << 10;
/// Longest meta object of one memory, in bytes of its JSON text.
pub const META_MAX_BYTES: usize = 256 << 10;
/// Most vectors one memory may have.
pub const VECTORS_MAX: usize = 8192;
/// Most hits one search returns.
pub const K_MAX: usize = 1000;
/// Components a vector may have.
pub const DIM_RANGE: std::ops::RangeInclusive<usize> = 8..=4096;

/// The validated name of a space, the unit of isolation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceName(Arc<str>);

impl SpaceName {
    /// Checks `name` against `[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}`.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for anything else.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let bytes = name.as_bytes();
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"._:@-".contains(b);
        let ok = bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.len() <= SPACE_NAME_MAX_BYTES
            && bytes.iter().all(allowed);
        if ok {
            Ok(SpaceName(name.into()))
        } else {
            Err(Error::InvalidName { name: name.chars().take(160).collect() })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A memory's place in the order of its space; every version of a memory has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record's number in the log, counted from 1 over the life of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Lsn(pub u64);

/// A space's number; never used again after a drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SpaceId(pub u32);

/// A memory to be added.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewMemory {
    /// 1 to [`ID_MAX_BYTES`] bytes, unique in its space.
    pub id: String,
    /// 1 to [`TEXT_MAX_BYTES`] bytes.
    pub text: String,
    /// Who said it.
    pub role: Option<String>,
    /// The conversation it belongs to.
    pub session: Option<String>,
    /// Milliseconds since 1970.
    pub ts_ms: i64,
    /// A JSON object as text, kept to the byte.
    pub meta: Option<String>,
    /// The caller's own vectors; searchable at once.
    pub vectors: Option<Vec<Vec<f32>>>,
    /// The request that it comes with, if that may be repeated: see [`Store::add_once`](crate::Store::add_once).
    pub request: Option<RequestId>,
}

/// What to do with an id that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnConflict {
    /// Refuse the whole request.
    #[default]
    Error,
    /// Keep the old memory.
    Skip,
    /// Put the new memory in its place, at the end of the order.
    Replace,
}

/// Tells an add that may be repeated from others; kept with each of its memories, also when they are updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Stands for the key that the caller chose.
    pub key: u128,
    /// Stands for all that was asked for under it.
    pub content: u128,
}

/// What became of one added item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AddStatus {
    /// A new memory.
    Added,
    /// The id was there and was kept.
    Skipped,
    /// The id was there and has a new version.
    Replaced,
}

/// One item of [`Added`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedItem {
    /// The memory's id.
    pub id: String,
    /// What was done.
    pub status: AddStatus,
    /// The memory's place in the order; 0 for one that an earlier request added and that was deleted since.
    pub seq: Seq,
    /// Whether it waits for vectors.
    pub needs_vectors: bool,
}

/// The outcome of an add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// In the order of the request.
    pub items: Vec<AddedItem>,
    /// The space's highest seq after this add.
    pub seq: Seq,
}

/// Changes to one memory; `None` leaves a field as it is, `Some(None)` clears it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Patch {
    /// New text; the memory is embedded anew.
    pub text: Option<String>,
    /// New role.
    pub role: Option<Option<String>>,
    /// New session.
    pub session: Option<Option<String>>,
    /// New time, milliseconds since 1970.
    pub ts_ms: Option<i64>,
    /// New meta, a JSON object as text.
    pub meta: Option<Option<String>>,
    /// New vectors of the caller's own.
    pub vectors: Option<Vec<Vec<f32>>>,
    /// What the model made of `text`, so that the new version can be found at once. Without it, and without vectors of
    /// the caller's own, a new text waits to be embedded.
    pub text_vectors: Option<Vec<Vec<f32>>>,
}

/// The outcome of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Updated {
    /// The new version's place in the order.
    pub seq: Seq,
    /// Whether it waits for vectors.
    pub needs_vectors: bool,
}

/// Which memories a delete means.
#[derive(Debug, Clone)]
pub enum Selection {
    /// These ids; absent ones are counted as missing.
    Ids(Vec<String>),
    /// All that match.
    Filter(Filter),
}

/// The outcome of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Live memories that were meant.
    pub matched: u64,
    /// Memories deleted: `matched`, or 0 in a dry run.
    pub deleted: u64,
    /// Ids that named no live memory.
    pub missing: u64,
    /// The space's highest seq.
    pub seq: Seq,
}

/// A memory as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Unique in its space.
    pub id: String,
    /// Verbatim.
    pub text: String,
    /// Who said it.
    pub role: Option<String>,
    /// The conversation it belongs to.
    pub session: Option<String>,
    /// Milliseconds since 1970.
    pub ts_ms: i64,
    /// Its place in the order of its space.
    pub seq: Seq,
    /// A JSON object as text.
    pub meta: Option<String>,
    /// Whether its vectors are there.
    pub searchable: bool,
}

/// A span of time in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeRange {
    /// First moment inside.
    pub from_ms: Option<i64>,
    /// First moment after it.
    pub to_ms: Option<i64>,
}

impl TimeRange {
    /// Whether `ts_ms` lies inside.
    pub fn contains(&self, ts_ms: i64) -> bool {
        self.from_ms.is_none_or(|from| ts_ms >= from) && self.to_ms.is_none_or(|to| ts_ms < to)
    }
}

/// A search by vector.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// As many components as the store keeps; need not have unit length.
    pub vector: &'a [f32],
    /// 1 to [`K_MAX`].
    pub k: usize,
    /// Candidates kept during the graph walk; the default follows `k`.
    pub ef: Option<usize>,
    /// Only memories that match.
    pub filter: Option<&'a Filter>,
    /// Only memories of this time.
    pub time: Option<TimeRange>,
    /// Scan every vector instead of walking the graph.
    pub exact: bool,
}

impl<'a> Query<'a> {
    /// The usual search for the `k` memories nearest to `vector`.
    pub fn new(vector: &'a [f32], k: usize) -> Self {
        Query { vector, k, ef: None, filter: None, time: None, exact: false }
    }
}

/// One memory found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Which memory.
    pub seq: Seq,
    /// Cosine similarity of its best vector, −1 to 1.
    pub score: f32,
}

/// The outcome of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Best first; equal scores in the order of the space.
    pub hits: Vec<Hit>,
    /// What was really done.
    pub path: SearchPath,
    /// Vectors compared one by one outside the graph.
    pub scanned: u64,
    /// Live memories of the space that had no vectors yet, so could not be found.
    pub waiting: u64,
    /// The instruction set the distances were computed with.
    pub simd: SimdLevel,
}

/// One page of a list, in the order of the space.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Live memories.
    pub items: Vec<Memory>,
    /// Pass as `after` for the next page; `None` at the end.
    pub next: Option<Seq>,
}

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Durability {
    /// After the log is synced to the device: it survives a power cut.
    #[default]
    Sync,
    /// After the operating system has it, which syncs it at most [`BUFFERED_SYNC_MS`] later: it survives the end of the
    /// process, and a power cut only from then on.
    Buffered,
    /// After the operating system has it; synced when [`Store::sync`](crate::Store::sync) is called, when memories are sealed
    /// into a segment, and at close.
    Manual,
}

/// The longest, in milliseconds, that an acknowledged write waits to be synced with [`Durability::Buffered`].
pub const BUFFERED_SYNC_MS: u64 = 50;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Components of a vector, within [`DIM_RANGE`].
    pub dim: usize,
    /// Identity of the model that makes the vectors; a store keeps to one.
    pub fingerprint: String,
    /// When writes are acknowledged.
    pub durability: Durability,
    /// The unsealed part of the store is written to a segment once it holds this many bytes.
    pub seal_bytes: usize,
    /// How vectors and links are kept in memory. A saved graph of the other layout is built anew.
    pub layout: Layout,
    /// Length a log file is preallocated with; a larger batch gets a file of its own size.
    pub log_file_bytes: usize,
}

impl StoreOptions {
    /// Default options for vectors of `dim` components made by the model `fingerprint`.
    pub fn new(dim: usize, fingerprint: impl Into<String>) -> Self {
        StoreOptions {
            dim,
            fingerprint: fingerprint.into(),
            durability: Durability::Sync,
            seal_bytes: 64 << 20,
            layout: Layout::Full,
            log_file_bytes: 32 << 20,
        }
    }
}
