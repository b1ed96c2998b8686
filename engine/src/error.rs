//! The one error type of the engine: what went wrong, where, and what to do next.
//!
//! Invariant: a failure is always one of these, never an empty result. Knows nothing of sockets or codes on the wire.

use std::path::PathBuf;

use crate::types::Seq;

/// Why the engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The space has never been written to, or was dropped.
    #[error("space {space:?} does not exist: it comes to be with its first add")]
    NoSuchSpace {
        /// The name asked for.
        space: String,
    },
    /// No live memory has this id.
    #[error("space {space:?} has no memory with id {id:?}")]
    NoSuchMemory {
        /// The space looked in.
        space: String,
        /// The id asked for.
        id: String,
    },
    /// An id to be added is already there.
    #[error(
        "memory {id:?} exists already; nothing was added. Use on_conflict \"skip\" or \"replace\""
    )]
    Conflict {
        /// The id that is taken.
        id: String,
    },
    /// An add was repeated under its key, but it is not the same.
    #[error(
        "this idempotency key was used for another request; nothing was added. Repeat that one as it was, or take a new key"
    )]
    KeyTaken,
    /// One request names the same id twice.
    #[error("id {id:?} appears more than once in one request; nothing was changed")]
    DuplicateInRequest {
        /// The repeated id.
        id: String,
    },
    /// A space name breaks the naming rule.
    #[error(
        "space name {name:?} is not allowed: 1 to 128 characters of A-Z a-z 0-9 . _ : @ -, the first a letter or digit"
    )]
    InvalidName {
        /// The name, shortened to 160 characters.
        name: String,
    },
    /// A field of the request is unusable.
    #[error("{what}: {why}")]
    Invalid {
        /// The field.
        what: String,
        /// What is wrong with it and what is allowed.
        why: String,
    },
    /// A vector has the wrong number of components.
    #[error("a vector has {got} components, this store keeps {expected}")]
    DimMismatch {
        /// Components a vector of this store has.
        expected: usize,
        /// Components the vector has.
        got: usize,
    },
    /// A vector cannot be normalised.
    #[error("a vector {why}: cosine similarity needs finite components and a length above zero")]
    BadVector {
        /// What is wrong with it.
        why: &'static str,
    },
    /// `expect_count` did not hold.
    #[error("{found} memories match, {expected} were expected; nothing was deleted")]
    ExpectCount {
        /// What the caller expected.
        expected: u64,
        /// What matched.
        found: u64,
    },
    /// `if_seq` did not hold.
    #[error(
        "the memory is at seq {found}, not {expected}: it was changed since; nothing was updated"
    )]
    SeqMismatch {
        /// What the caller expected.
        expected: Seq,
        /// The memory's present version.
        found: Seq,
    },
    /// A limit of the engine would be passed.
    #[error("{what} is {size}, the limit is {limit}; nothing was changed")]
    TooLarge {
        /// What is too large, with its unit.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// Bytes on disk are not what was written.
    #[error(
        "{file} is damaged at byte {offset}: {what}. The store was left as it is; restore a snapshot, or salvage what can be read into a new store"
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What does not fit.
        what: String,
    },
    /// A newer Flashbulb wrote this file.
    #[error("{file} has format version {found}, this program reads up to {known}: use a newer one")]
    VersionTooNew {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u16,
        /// The newest version known here.
        known: u16,
    },
    /// The store's vectors come from another model.
    #[error(
        "the store was made with model {stored}, the one at hand is {offered}: vectors of two models cannot be compared. Start with the former model, or export and import into a new store"
    )]
    FingerprintMismatch {
        /// The model the store was made with.
        stored: String,
        /// The model offered at open.
        offered: String,
    },
    /// Another process has the store open.
    #[error("the store {dir} is in use by another process: stop that one first")]
    Locked {
        /// The data directory.
        dir: PathBuf,
    },
    /// An earlier write failed; whether the last writes are on disk is unknown.
    #[error(
        "an earlier write to the log failed ({cause}), so the outcome of this one is unknown; restart the program, which recovers what is on disk"
    )]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// No space is left for the log.
    #[error("no disk space for {path}: free some and try again; reads go on")]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The log's queue is full.
    #[error("the write queue is full; try again in {retry_after_ms} ms")]
    Busy {
        /// A sensible wait.
        retry_after_ms: u64,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The store was opened for reading.
    #[error(
        "the store is open for reading only; nothing was changed. Start without --read-only to write"
    )]
    ReadOnly,
    /// A store that was not closed cleanly cannot be read as it is.
    #[error(
        "the store {dir} was not closed cleanly: its log holds changes that a recovery must bring in, and that writes. Open it once for writing (start it without --read-only), or a writable copy of it"
    )]
    NeedsRecovery {
        /// The data directory.
        dir: PathBuf,
    },
    /// There is no store where one is to be read.
    #[error(
        "there is no store in {dir}: name a folder with a manifest, or open it for writing to make one"
    )]
    NoStore {
        /// The folder.
        dir: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] for `op` on `path`, or [`Error::DiskFull`] where that is the reason.
    pub(crate) fn io(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Error::DiskFull { path }
            }
            _ => Error::Io { op, path, source },
        }
    }

    /// An [`Error::Corrupt`] in `file`.
    pub(crate) fn corrupt(file: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Error {
        Error::Corrupt { file: file.into(), offset, what: what.into() }
    }

    /// An [`Error::Invalid`].
    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), why: why.into() }
    }
}
