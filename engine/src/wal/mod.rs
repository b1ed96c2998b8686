//! The write-ahead log of a store: group commit by one thread, files that are preallocated, records that prove themselves.
//!
//! Invariant: a record whose LSN is at most `durable_lsn` survives a power cut; LSNs are dense and in the order of
//! submission; after a failed write or sync nothing is ever acknowledged again; a full disk refuses a batch whole.
//! Knows nothing of what the payloads mean, nor of segments.

mod files;
mod format;
mod reader;
mod records;
mod salvage;
mod tail;
mod writer;

#[cfg(any(test, fuzzing))]
pub(crate) use format::FileHeader;
#[cfg(fuzzing)]
pub(crate) use format::{RecordHeader, head_of, record_bytes};
pub(crate) use format::{VERSION, file_name, file_number};
pub(crate) use reader::{Batch, Scan, files_of, scan};
pub(crate) use salvage::{LogRemains, SoundBatch};
pub(crate) use tail::{Tail, write_tail};
pub(crate) use writer::{PreparedWal, Wal, WalStart};
