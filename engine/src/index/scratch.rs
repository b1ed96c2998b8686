//! What a search needs besides the index, kept by the caller from search to search.
//!
//! Invariant: any scratch fits any index; it only grows. Must not know: which index it served last.

use super::collector::Collector;
use super::vectors::QueryCodes;
use super::walk::Trail;

/// Buffers of one search at a time. Keep one for each thread that searches: after the first few
/// searches they are large enough, and a walk allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) query: QueryCodes,
    pub(super) trail: Trail,
    pub(super) collector: Collector,
    /// A row that is being read.
    pub(super) row: Vec<f32>,
}

impl Scratch {
    /// Empty buffers.
    pub fn new() -> Scratch {
        Scratch::default()
    }
}
