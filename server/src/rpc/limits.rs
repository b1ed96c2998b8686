//! Limits of the wire and of parameters.
//!
//! Invariant: every buffer whose size a client decides has its bound here, so that memory in use is bounded by these
//! numbers and the number of connections. It must not know how a limit is enforced.

use serde::Serialize;

/// The bounds of one daemon. [`Limits::default`] is what is documented; a test may lower them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of one frame, the newline not counted.
    pub frame_bytes: usize,
    /// Requests in one batch.
    pub batch_requests: usize,
    /// Bytes of text and meta in one answer; longer lists are cut at a cursor, the rest is `LimitExceeded`.
    pub answer_bytes: usize,
    /// Connections at one time.
    pub connections: usize,
    /// Requests being worked on at one time, over all connections; `admin.*` is not counted.
    pub requests_in_flight: usize,
    /// Memories without vectors at which `memory.add` answers `Busy`.
    pub pending_memories: usize,
    /// How many more of them small adds and updates may make, so that an import does not shut an agent out.
    pub pending_reserve: usize,
    /// Milliseconds in which a frame that was begun must end.
    pub frame_read_ms: u64,
    /// Milliseconds in which a client must take an answer of up to a mebibyte; each further mebibyte adds a second.
    pub write_ms: u64,
    /// Milliseconds that a stopping daemon gives to requests in flight.
    pub drain_ms: u64,
    /// Milliseconds that `memory.add` with `wait = searchable` waits.
    pub searchable_wait_ms: u64,
    /// Milliseconds within which a search without `deadline_ms` is to be answered; where a line stands, those that could not
    /// be are refused with `Busy`.
    pub promise_ms: u64,
    /// Milliseconds for `memory.search` without `deadline_ms`.
    pub default_deadline_ms: u64,
    /// Largest `deadline_ms`.
    pub max_deadline_ms: u64,
    /// Memories in one `memory.add`.
    pub items: usize,
    /// Bytes of one memory's `text`.
    pub text_bytes: usize,
    /// Bytes of one memory's `meta`, as written.
    pub meta_bytes: usize,
    /// Levels of nesting in `meta`.
    pub meta_depth: usize,
    /// Bytes of an `id`.
    pub id_bytes: usize,
    /// Bytes of a `role`.
    pub role_bytes: usize,
    /// Bytes of a `session`.
    pub session_bytes: usize,
    /// Bytes of a `query`.
    pub query_bytes: usize,
    /// Largest `k`.
    pub k: usize,
    /// `ids` in one `memory.get` or `memory.delete`.
    pub ids: usize,
    /// Largest `limit` of `memory.list`.
    pub list: usize,
    /// Largest `before` and `after` of `memory.around`.
    pub around: usize,
    /// Largest `before` and `after` of `neighbors` in `memory.search`.
    pub neighbors: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes: 4 << 20,
            batch_requests: 100,
            answer_bytes: 16 << 20,
            connections: 64,
            requests_in_flight: 32,
            pending_memories: 8_192,
            pending_reserve: 1_024,
            frame_read_ms: 30_000,
            write_ms: 5_000,
            drain_ms: 10_000,
            searchable_wait_ms: 60_000,
            promise_ms: 10,
            default_deadline_ms: 10_000,
            max_deadline_ms: 600_000,
            items: 1_000,
            text_bytes: flashbulb_engine::TEXT_MAX_BYTES,
            meta_bytes: 64 << 10,
            meta_depth: 32,
            id_bytes: 128,
            role_bytes: 128,
            session_bytes: 256,
            query_bytes: 32 << 10,
            k: 1_000,
            ids: 1_000,
            list: 1_000,
            around: 100,
            neighbors: 20,
        }
    }
}
