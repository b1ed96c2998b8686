//! Records as they will stand in a file, written in one go without copying their payloads.
//!
//! Invariant: what is written is what `super::format` describes, byte for byte. Knows no files by name.

use std::io::{self, IoSlice};

use super::files::Active;
use super::format::{FLAG_FIRST, FLAG_LAST, RecordHeader, head_of, record_bytes};
use crate::disk::write_all_parts_at;
use crate::types::Lsn;

/// Records are padded to 8.
static PAD: [u8; 8] = [0; 8];

/// A batch's records, kind and payload each.
pub(super) type Records = Vec<(u16, Vec<u8>)>;

/// Bytes that `records` take in a file.
pub(super) fn bytes_of(records: &[(u16, Vec<u8>)]) -> usize {
    records.iter().map(|(_, payload)| record_bytes(payload.len())).sum()
}

/// Writes `batches`, whose records are numbered from `first_lsn`, behind what `active` holds. `durable_lsn` goes into each.
pub(super) fn write<'a>(
    active: &mut Active,
    batches: impl IntoIterator<Item = &'a Records>,
    first_lsn: Lsn,
    durable_lsn: Lsn,
) -> io::Result<()> {
    let (mut heads, mut payloads) = (Vec::new(), Vec::new());
    let mut offset = active.offset;
    let mut lsn = first_lsn;
    for records in batches {
        for (i, (kind, payload)) in records.iter().enumerate() {
            let first = if i == 0 { FLAG_FIRST } else { 0 };
            let last = if i + 1 == records.len() { FLAG_LAST } else { 0 };
            let header = RecordHeader { lsn, kind: *kind, flags: first | last, durable_lsn };
            heads.push(head_of(active.salt, offset, header, payload));
            payloads.push(&payload[..]);
            offset += record_bytes(payload.len()) as u64;
            lsn = Lsn(lsn.0 + 1);
        }
    }
    let mut parts = Vec::with_capacity(heads.len() * 3);
    for (head, payload) in heads.iter().zip(payloads) {
        let pad = record_bytes(payload.len()) - head.len() - payload.len();
        parts.extend([IoSlice::new(head), IoSlice::new(payload), IoSlice::new(&PAD[..pad])]);
    }
    write_all_parts_at(&*active.file, &mut parts, active.offset)?;
    active.offset = offset;
    Ok(())
}
