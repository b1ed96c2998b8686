//! Reading every sound batch of a log file that may be damaged anywhere.
//!
//! Invariant: a batch is given out only whole, each of its records proved by its own checksum; what lies between is
//! passed over in steps of 8 bytes. Never panics whatever the bytes. Writes nothing, and decides nothing about what a
//! missing batch means.

use std::ops::Range;

use super::format::{
    FILE_HEADER_BYTES, FLAG_FIRST, FLAG_LAST, FileHeader, HeaderError, KIND_MARK, parse_record,
    record_bytes, salt_at,
};
use crate::types::Lsn;

/// A whole batch.
#[derive(Debug, Clone)]
pub(crate) struct SoundBatch {
    pub(crate) first_lsn: Lsn,
    pub(crate) last_lsn: Lsn,
    /// Where its first record stands, and where its last one ends.
    pub(crate) place: Range<u64>,
    /// Kind of each operation and where in the file its payload lies; empty for a mark.
    pub(crate) operations: Vec<(u16, Range<usize>)>,
}

/// What is left of a log file.
#[derive(Debug, Default)]
pub(crate) struct LogRemains {
    /// If its own checksum holds.
    pub(crate) header: Option<FileHeader>,
    /// The version of a header that a newer Flashbulb wrote.
    pub(crate) too_new: Option<u16>,
    /// Whole batches in the order of their LSNs, marks among them.
    pub(crate) batches: Vec<SoundBatch>,
    /// The highest LSN that any record says was synced.
    pub(crate) durable_lsn: Lsn,
    /// It holds what a recovery copied from older files: its records know of records behind themselves.
    pub(crate) is_copy: bool,
    /// Where the last whole batch ends, and how many bytes in use follow: a write that was cut off, or damage.
    pub(crate) rest: Option<(u64, u64)>,
}

impl LogRemains {
    /// Reads all that is sound in `file`.
    pub(crate) fn of(file: &[u8]) -> LogRemains {
        let mut out = LogRemains::default();
        match FileHeader::parse(file) {
            Ok(header) => out.header = Some(header),
            Err(HeaderError::TooNew(version)) => out.too_new = Some(version),
            Err(HeaderError::Damaged(_)) => {}
        }
        let mut salt = out.header.map(|header| header.salt);
        let mut open: Option<SoundBatch> = None;
        let mut last = Lsn(0);
        let mut offset = FILE_HEADER_BYTES;
        let mut end = offset;
        while offset < file.len() {
            // Without the header, the first record that proves itself says which salt is the file's.
            let tried = salt.or_else(|| salt_at(file, offset));
            let found = tried.and_then(|salt| parse_record(file, offset, salt));
            let Some((header, payload)) = found.filter(|(header, _)| header.lsn > last) else {
                offset += 8;
                continue;
            };
            salt = tried;
            out.is_copy |= header.durable_lsn >= header.lsn;
            out.durable_lsn = out.durable_lsn.max(header.durable_lsn);
            let goes_on = offset == end && header.lsn.0 == last.0 + 1;
            if header.flags & FLAG_FIRST != 0 {
                open = Some(SoundBatch {
                    first_lsn: header.lsn,
                    last_lsn: header.lsn,
                    place: offset as u64..offset as u64,
                    operations: Vec::new(),
                });
            } else if !goes_on {
                open = None;
            }
            if let Some(batch) = &mut open {
                batch.last_lsn = header.lsn;
                if header.kind != KIND_MARK {
                    let start = offset + record_bytes(0);
                    batch.operations.push((header.kind, start..start + payload.len()));
                }
            }
            last = header.lsn;
            offset += record_bytes(payload.len());
            end = offset;
            if header.flags & FLAG_LAST != 0 {
                out.batches.extend(open.take());
                if let Some(batch) = out.batches.last_mut().filter(|b| b.last_lsn == last) {
                    batch.place.end = end as u64;
                }
            }
        }
        let end = out.batches.last().map_or(FILE_HEADER_BYTES, |batch| batch.place.end as usize);
        let rest = file.get(end..).unwrap_or_default();
        let used = rest.len() - rest.iter().rev().take_while(|byte| **byte == 0).count();
        out.rest = (used > 0).then_some((end as u64, used as u64));
        out
    }

    /// The first LSN that belongs to this file's opening of the store: older openings' records from there on were cut off
    /// by that recovery. `None` where the file holds nothing that says so.
    pub(crate) fn supersedes_from(&self) -> Option<Lsn> {
        let first = self.batches.first()?.first_lsn;
        if self.is_copy {
            return Some(Lsn(self.durable_lsn.0 + 1));
        }
        Some(self.header.map_or(first, |header| header.first_lsn))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::format::{RecordHeader, head_of};
    use super::*;
    use crate::codec::pad_to;

    const SALT: u32 = 77;

    /// Batches of the given lengths, from LSN 5 on, and where each record stands.
    fn file(batches: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let header = FileHeader { salt: SALT, number: 1, epoch: 1, first_lsn: Lsn(5), len: 0 };
        let (mut out, mut at, mut lsn) = (header.encode(), Vec::new(), 5);
        for len in batches {
            for record in 0..*len {
                let first = if record == 0 { FLAG_FIRST } else { 0 };
                let last = if record + 1 == *len { FLAG_LAST } else { 0 };
                let header = RecordHeader {
                    lsn: Lsn(lsn),
                    kind: 3,
                    flags: first | last,
                    durable_lsn: Lsn(lsn - 1),
                };
                let offset = out.len();
                at.push(offset);
                let payload = format!("op {lsn}");
                out.extend_from_slice(&head_of(SALT, offset as u64, header, payload.as_bytes()));
                out.extend_from_slice(payload.as_bytes());
                pad_to(&mut out, 8);
                lsn += 1;
            }
        }
        out.resize(out.len() + 4096, 0);
        (out, at)
    }

    fn lsns(bytes: &[u8]) -> Vec<(u64, u64)> {
        let found = LogRemains::of(bytes).batches;
        found.iter().map(|batch| (batch.first_lsn.0, batch.last_lsn.0)).collect()
    }

    #[test]
    fn batches_around_every_flipped_byte_are_read() {
        let (good, at) = file(&[1, 3, 1, 2]);
        let all = [(5, 5), (6, 8), (9, 9), (10, 11)];
        assert_eq!(lsns(&good), all);
        for byte in 0..at[6] + record_bytes(5) {
            let mut bad = good.clone();
            bad[byte] ^= 0x10;
            let record = at.iter().rposition(|at| *at <= byte);
            let batch = record.map(|record| [0, 1, 1, 1, 2, 3, 3][record]);
            let left: Vec<_> = (0..4).filter(|n| Some(*n) != batch).map(|n| all[n]).collect();
            assert_eq!(lsns(&bad), left, "byte {byte}");
        }
    }

    #[test]
    fn payloads_are_where_they_are_said_to_be() {
        let (good, _) = file(&[2]);
        let found = LogRemains::of(&good);
        let payloads: Vec<&[u8]> =
            found.batches[0].operations.iter().map(|(_, range)| &good[range.clone()]).collect();
        assert_eq!(payloads, [&b"op 5"[..], b"op 6"]);
        assert_eq!((found.rest, found.is_copy), (None, false));
        assert_eq!(found.supersedes_from(), Some(Lsn(5)));
    }

    #[test]
    fn a_header_of_noise_costs_nothing_but_itself() {
        let (mut bad, _) = file(&[1, 3]);
        bad[..FILE_HEADER_BYTES].fill(0xa5);
        assert_eq!(lsns(&bad), [(5, 5), (6, 8)]);
        assert_eq!(LogRemains::of(&[]).batches.len(), 0);
    }

    #[test]
    fn what_follows_the_last_record_is_reported() {
        let (mut bad, at) = file(&[1, 1]);
        bad[at[1] + 34] ^= 1;
        let (from, used) = LogRemains::of(&bad).rest.unwrap();
        assert_eq!(from as usize, at[1]);
        assert!(used > 8);
    }
}
