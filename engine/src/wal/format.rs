//! The bytes of a log file.
//!
//! File: a 4,096-byte header `magic 8 | version u16 | 0 u16 | salt u32 | number u64 | epoch u64 | first_lsn u64 |
//! len u64 | crc32c u32`; version 1 has no `len`
//! (the CRC covers the bytes before it), then records, each at a multiple of 8, then zeros up to the preallocated length.
//! The epoch counts the openings of the store: files of an epoch that the manifest does not name were left by a recovery
//! that did not finish.
//!
//! Record: `crc32c u32 | len u32 | lsn u64 | salt u32 | kind u16 | flags u16 | durable_lsn u64`, payload, zero padding
//! to 8. The CRC starts from the record's file offset and covers everything behind itself, so stale, recycled and
//! misdirected bytes fail. `durable_lsn` is the highest LSN known synced when the record was written: it tells a torn
//! tail from damage.
//!
//! Invariant: `parse` never panics and checks `len` before anything is read by it. Knows no threads.

use crate::codec::{Reader, pad_to};
use crate::types::Lsn;

pub(crate) const MAGIC: [u8; 8] = *b"\x89FBWAL\r\n";
pub(crate) const VERSION: u16 = 2;
pub(crate) const FILE_HEADER_BYTES: usize = 4096;
pub(crate) const RECORD_HEADER_BYTES: usize = 32;
/// Longest payload of one record.
pub(crate) const PAYLOAD_MAX_BYTES: usize = 16 << 20;
/// Written when the log falls idle and at close, so that the last group is known to be synced.
pub(crate) const KIND_MARK: u16 = 1;
/// First record of a batch.
pub(crate) const FLAG_FIRST: u16 = 1;
/// Last record of a batch.
pub(crate) const FLAG_LAST: u16 = 2;

/// The name of log file `number`.
pub(crate) fn file_name(number: u64) -> String {
    format!("wal-{number:010}.log")
}

/// The number in a log file's name.
pub(crate) fn file_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?.strip_suffix(".log")?;
    (digits.len() == 10).then(|| digits.parse().ok())?
}

/// What a log file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) salt: u32,
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) first_lsn: Lsn,
    /// Bytes of the file when it was begun: it never has fewer. 0 where version 1 does not say.
    pub(crate) len: u64,
}

/// Why a file header was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    TooNew(u16),
    Damaged(&'static str),
}

impl FileHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FILE_HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.first_lsn.0.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        pad_to(&mut out, FILE_HEADER_BYTES);
        out
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let short = HeaderError::Damaged("the file is shorter than its header");
        let Some(header) = bytes.get(..FILE_HEADER_BYTES) else { return Err(short) };
        let mut r = Reader::new(header);
        let read = |r: &mut Reader<'_>| {
            let magic = r.take(8)? == MAGIC;
            let (version, _, salt) = (r.u16()?, r.u16()?, r.u32()?);
            let (number, epoch, first_lsn) = (r.u64()?, r.u64()?, Lsn(r.u64()?));
            let len = if version == 1 { 0 } else { r.u64()? };
            let covered = r.position();
            let crc = r.u32()? == crc32c::crc32c(&header[..covered]);
            Some((magic, version, crc, FileHeader { salt, number, epoch, first_lsn, len }))
        };
        match read(&mut r) {
            Some((true, version, true, _)) if version > VERSION => {
                Err(HeaderError::TooNew(version))
            }
            Some((true, _, true, parsed)) => Ok(parsed),
            Some((false, ..)) => Err(HeaderError::Damaged("this is not a log file (wrong magic)")),
            _ => Err(HeaderError::Damaged("the header's checksum does not match")),
        }
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) lsn: Lsn,
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) durable_lsn: Lsn,
}

/// The length a record with `payload_len` takes in the file.
pub(crate) fn record_bytes(payload_len: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_len).next_multiple_of(8)
}

/// The header of a record that will stand at `offset`, in front of `payload` and zeros up to [`record_bytes`].
pub(crate) fn head_of(
    salt: u32,
    offset: u64,
    header: RecordHeader,
    payload: &[u8],
) -> [u8; RECORD_HEADER_BYTES] {
    let mut out = [0; RECORD_HEADER_BYTES];
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out[4..8].copy_from_slice(&len.to_le_bytes());
    out[8..16].copy_from_slice(&header.lsn.0.to_le_bytes());
    out[16..20].copy_from_slice(&salt.to_le_bytes());
    out[20..22].copy_from_slice(&header.kind.to_le_bytes());
    out[22..24].copy_from_slice(&header.flags.to_le_bytes());
    out[24..32].copy_from_slice(&header.durable_lsn.0.to_le_bytes());
    let pad = record_bytes(payload.len()) - RECORD_HEADER_BYTES - payload.len();
    let head = checksum(offset, &out[4..]);
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(head, payload), &[0; 8][..pad]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The salt that a record at `offset` of `file` would have.
pub(crate) fn salt_at(file: &[u8], offset: usize) -> Option<u32> {
    Reader::new(file.get(offset.checked_add(16)?..)?).u32()
}

fn checksum(offset: u64, behind_crc: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&offset.to_le_bytes()), behind_crc)
}

/// The record at `offset` of `file`, if whole and meant for this place.
pub(crate) fn parse_record(file: &[u8], offset: usize, salt: u32) -> Option<(RecordHeader, &[u8])> {
    let mut r = Reader::new(file.get(offset..)?);
    let crc = r.u32()?;
    let len = r.u32()? as usize;
    let lsn = Lsn(r.u64()?);
    if r.u32()? != salt || len > PAYLOAD_MAX_BYTES {
        return None;
    }
    let (kind, flags, durable_lsn) = (r.u16()?, r.u16()?, Lsn(r.u64()?));
    let payload = r.take(len)?;
    let behind_crc = file.get(offset + 4..offset + record_bytes(len))?;
    (checksum(offset as u64, behind_crc) == crc)
        .then_some((RecordHeader { lsn, kind, flags, durable_lsn }, payload))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEADER: RecordHeader =
        RecordHeader { lsn: Lsn(5), kind: 3, flags: 3, durable_lsn: Lsn(4) };

    fn one(offset: usize) -> Vec<u8> {
        let mut out = vec![0; offset];
        out.extend_from_slice(&head_of(77, offset as u64, HEADER, b"payload"));
        out.extend_from_slice(b"payload\0");
        out
    }

    #[test]
    fn a_record_stands_only_where_it_was_written() {
        let file = one(64);
        assert_eq!(parse_record(&file, 64, 77).unwrap(), (HEADER, &b"payload"[..]));
        assert_eq!(parse_record(&file, 64, 78), None, "another file's salt");
        let mut moved = vec![0; 8];
        moved.extend_from_slice(&file);
        assert_eq!(parse_record(&moved, 72, 77), None, "misdirected by 8 bytes");
        assert_eq!(parse_record(&file, usize::MAX, 77), None);
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let file = one(8);
        for bit in 8 * 8..file.len() * 8 {
            let mut bad = file.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_record(&bad, 8, 77), None, "bit {bit}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_file_header_is_noticed() {
        let header = FileHeader { salt: 1, number: 2, epoch: 9, first_lsn: Lsn(3), len: 8192 };
        let bytes = header.encode();
        assert_eq!(FileHeader::parse(&bytes), Ok(header));
        for bit in 0..52 * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FileHeader::parse(&bad).is_err(), "bit {bit}");
        }
        assert!(FileHeader::parse(&bytes[..100]).is_err());
    }

    #[test]
    fn a_crc32c_check_value_from_the_rfc_holds() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn names_carry_numbers() {
        assert_eq!(file_number(&file_name(12)), Some(12));
        for other in ["wal-12.log", "wal-0000000012.tmp", "wal-00000000x2.log", ""] {
            assert_eq!(file_number(other), None);
        }
    }
}
