//! Sealed segments: immutable, checksummed files of memories and vectors, of many spaces each.
//!
//! Invariant: a segment's bytes are trusted only after their block's checksum held; offsets are bounds-checked even
//! then. Knows nothing of what is live: a store decides that.
//!
//! File: header (4,096 bytes) | data | footer. The data are the records (each at a multiple of 8), the vectors (rows of
//! f32, from a multiple of 64), the record directory, the vector directory and the tombstones, one after the other.
//! The footer holds one xxh3-64 per 64 KiB block of everything before it, the places of the parts, a CRC32C and the end
//! magic. Numbers are little-endian.

mod read;
mod salvage;
mod write;

pub(crate) use read::Segment;
pub(crate) use salvage::Remains;
pub(crate) use write::{SegmentWriter, WrittenSegment};

use crate::types::{Lsn, Seq, SpaceId};

pub(crate) const MAGIC: [u8; 8] = *b"\x89FBSEG\r\n";
pub(crate) const END_MAGIC: [u8; 8] = *b"FBSEGEND";
pub(crate) const VERSION: u16 = 1;
pub(crate) const HEADER_BYTES: u64 = 4096;
/// What one checksum covers.
pub(crate) const BLOCK_BYTES: u64 = 64 << 10;
pub(crate) const RECORD_ENTRY_BYTES: u64 = 48;
pub(crate) const VECTOR_ENTRY_BYTES: u64 = 24;
pub(crate) const TOMBSTONE_BYTES: u64 = 16;
/// Behind the block table: 4 × (offset u64, count u64), records, blocks, crc, length, end magic.
pub(crate) const TRAILER_BYTES: u64 = 4 * 16 + 8 + 4 + 4 + 8;

/// The name of segment `part`.
pub(crate) fn file_name(part: u32) -> String {
    format!("segment-{part:010}.fbs")
}

/// The number in a segment's name.
pub(crate) fn file_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".fbs")?;
    (digits.len() == 10).then(|| digits.parse().ok())?
}

/// Where a memory's record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordEntry {
    pub(crate) space: SpaceId,
    pub(crate) seq: Seq,
    /// From the start of the file, a multiple of 8.
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) text_hash: u128,
}

/// Where a memory's vectors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VectorEntry {
    pub(crate) space: SpaceId,
    pub(crate) seq: Seq,
    /// Of the first row, from the start of the file.
    pub(crate) offset: u64,
    pub(crate) count: u32,
}

/// A memory of an earlier segment that was deleted or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tombstone {
    pub(crate) space: SpaceId,
    pub(crate) seq: Seq,
}

/// What the header of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) uuid: [u8; 16],
    pub(crate) part: u32,
    pub(crate) dim: u32,
    /// Operations up to this one are in this segment or in earlier ones.
    pub(crate) last_lsn: Lsn,
}

#[cfg(test)]
mod tests;
