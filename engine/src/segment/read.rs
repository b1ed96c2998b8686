//! Reading a segment in place from its map.
//!
//! Invariant: header and footer are checked at open, a block at its first touch; no byte of an unchecked block is
//! given out. Never panics whatever the bytes. Never writes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{
    BLOCK_BYTES, END_MAGIC, HEADER_BYTES, MAGIC, RECORD_ENTRY_BYTES, RecordEntry, SegmentHeader,
    TOMBSTONE_BYTES, TRAILER_BYTES, Tombstone, VECTOR_ENTRY_BYTES, VERSION, VectorEntry,
};
use crate::codec::{Reader, f32s_from};
use crate::disk::{Bytes, Disk};
use crate::error::Error;
use crate::record::RecordRef;
use crate::types::{Lsn, Seq, SpaceId};

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    path: PathBuf,
    map: Arc<dyn Bytes>,
    header: SegmentHeader,
    /// Where the footer begins: everything before it is covered by the block table.
    data_len: u64,
    blocks: Vec<u64>,
    /// One bit a block, set once its checksum held, cleared to have it checked again. Written and read by any reader,
    /// `Relaxed`: a lost race checks a block twice; the bytes themselves never change, so nothing is published by the bit.
    checked: Vec<AtomicU64>,
    records: (u64, u64),
    vectors: (u64, u64),
    tombstones: (u64, u64),
}

/// What `verify` saw in one segment.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct SegmentReport {
    pub(crate) blocks: u64,
    pub(crate) records: u64,
    pub(crate) vectors: u64,
    pub(crate) problems: Vec<String>,
}

impl Segment {
    /// Maps the file and checks header and footer against each other and against `len`.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::VersionTooNew`], [`Error::Io`].
    pub(crate) fn open(disk: &dyn Disk, path: &Path, len: u64) -> Result<Segment, Error> {
        let map = disk.map(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                Error::corrupt(path, 0, "the manifest names it, and it is missing")
            }
            _ => Error::io("map", path)(e),
        })?;
        let bytes = map.bytes();
        if bytes.len() as u64 != len {
            let what = format!("the file has {} bytes, the manifest says {len}", bytes.len());
            return Err(Error::corrupt(path, 0, what));
        }
        let header = parse_header(path, bytes)?;
        let footer = parse_footer(bytes)
            .ok_or_else(|| Error::corrupt(path, len, "the footer is damaged"))?;
        let words = footer.blocks.len().div_ceil(64);
        let checked = (0..words).map(|_| AtomicU64::new(0)).collect();
        let [records, vectors, tombstones] = footer.parts;
        let segment = Segment {
            path: path.into(),
            header,
            data_len: footer.data_len,
            blocks: footer.blocks,
            checked,
            records,
            vectors,
            tombstones,
            map,
        };
        segment.slice(0, HEADER_BYTES)?;
        Ok(segment)
    }

    pub(crate) fn header(&self) -> &SegmentHeader {
        &self.header
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.map.bytes().len() as u64
    }

    /// The end of `len` bytes at `offset`, if they lie in the data.
    fn within(&self, offset: u64, len: u64) -> Option<u64> {
        offset.checked_add(len).filter(|end| *end <= self.data_len)
    }

    /// `len` bytes at `offset`, their blocks checked.
    fn slice(&self, offset: u64, len: u64) -> Result<&[u8], Error> {
        let Some(end) = self.within(offset, len) else {
            let what = format!("{len} bytes reach past the data, which end at {}", self.data_len);
            return Err(Error::corrupt(&self.path, offset, what));
        };
        if len == 0 {
            return Ok(&[]);
        }
        for block in offset / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES {
            self.check_block(block)?;
        }
        Ok(&self.map.bytes()[offset as usize..end as usize])
    }

    /// Blocks that the file's checksums cover.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Compares a block with its checksum although it held before; if it does not now, no byte of it is given out again.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with its place.
    pub(crate) fn recheck(&self, block: u64) -> Result<(), Error> {
        if let Some(word) = self.checked.get(block as usize / 64) {
            word.fetch_and(!(1u64 << (block % 64)), Ordering::Relaxed);
        }
        self.check_block(block)
    }

    fn check_block(&self, block: u64) -> Result<(), Error> {
        let (word, bit) = (block as usize / 64, 1u64 << (block % 64));
        if self.checked[word].load(Ordering::Relaxed) & bit != 0 {
            return Ok(());
        }
        let start = block * BLOCK_BYTES;
        let end = (start + BLOCK_BYTES).min(self.data_len);
        if xxh3_64(&self.map.bytes()[start as usize..end as usize]) != self.blocks[block as usize] {
            return Err(Error::corrupt(&self.path, start, "a block's checksum does not match"));
        }
        self.checked[word].fetch_or(bit, Ordering::Relaxed);
        Ok(())
    }

    /// The bytes of the record at `offset`.
    pub(crate) fn record_bytes(&self, offset: u64, len: u32) -> Result<&[u8], Error> {
        self.slice(offset, len.into())
    }

    /// The record at `offset`.
    pub(crate) fn record(&self, offset: u64, len: u32) -> Result<RecordRef<'_>, Error> {
        RecordRef::decode(self.record_bytes(offset, len)?)
            .ok_or_else(|| Error::corrupt(&self.path, offset, "this is not a record"))
    }

    /// Copies the row at `offset` to `out`.
    pub(crate) fn copy_row(&self, offset: u64, out: &mut [f32]) -> Result<(), Error> {
        let bytes = self.slice(offset, out.len() as u64 * 4)?;
        for (v, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *v = f32::from_le_bytes(*b);
        }
        Ok(())
    }

    /// Asks the processor for the row of `dim` values at `offset`. It is not looked at, so it need not be checked.
    pub(crate) fn prefetch_row(&self, offset: u64, dim: usize) {
        let end = self.within(offset, dim as u64 * 4);
        if let Some(bytes) = end.and_then(|end| self.map.bytes().get(offset as usize..end as usize))
        {
            flashbulb_kernels::prefetch(bytes);
        }
    }

    /// All rows of one entry.
    pub(crate) fn rows(&self, entry: &VectorEntry) -> Result<Vec<f32>, Error> {
        let len = u64::from(entry.count) * u64::from(self.header.dim) * 4;
        Ok(f32s_from(self.slice(entry.offset, len)?))
    }

    /// The record directory.
    pub(crate) fn records(&self) -> Result<Vec<RecordEntry>, Error> {
        self.table(self.records, RECORD_ENTRY_BYTES, |r| {
            record_entry(r).filter(|e| self.within(e.offset, e.len.into()).is_some())
        })
    }

    /// The vector directory.
    pub(crate) fn vectors(&self) -> Result<Vec<VectorEntry>, Error> {
        self.table(self.vectors, VECTOR_ENTRY_BYTES, |r| {
            let bytes = |e: &VectorEntry| u64::from(e.count) * u64::from(self.header.dim) * 4;
            vector_entry(r).filter(|e| self.within(e.offset, bytes(e)).is_some())
        })
    }

    /// The tombstones.
    pub(crate) fn tombstones(&self) -> Result<Vec<Tombstone>, Error> {
        self.table(self.tombstones, TOMBSTONE_BYTES, tombstone)
    }

    fn table<T>(
        &self,
        (at, count): (u64, u64),
        entry_bytes: u64,
        entry: impl Fn(&mut Reader<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let absurd = || Error::corrupt(&self.path, at, "a directory does not fit the file");
        let len = count.checked_mul(entry_bytes).ok_or_else(absurd)?;
        let mut r = Reader::new(self.slice(at, len)?);
        (0..count).map(|_| entry(&mut r).ok_or_else(absurd)).collect()
    }

    /// Checks every byte against its checksum and every entry against what it points to.
    pub(crate) fn verify(&self, checksum: u128) -> SegmentReport {
        let mut report = SegmentReport { blocks: self.blocks.len() as u64, ..Default::default() };
        if xxh3_128(self.map.bytes()) != checksum {
            report.problems.push(format!(
                "{}: the file's checksum is not the manifest's",
                self.path.display()
            ));
        }
        for (i, expected) in self.blocks.iter().enumerate() {
            let start = i as u64 * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(self.data_len);
            if xxh3_64(&self.map.bytes()[start as usize..end as usize]) != *expected {
                report.problems.push(format!(
                    "{}: block at byte {start} does not match its checksum",
                    self.path.display()
                ));
            }
        }
        if let Err(e) = self.verify_entries(&mut report) {
            report.problems.push(e.to_string());
        }
        report
    }

    fn verify_entries(&self, report: &mut SegmentReport) -> Result<(), Error> {
        for e in self.records()? {
            let record = self.record(e.offset, e.len)?;
            if record.seq != e.seq || record.text_hash() != e.text_hash {
                let what = "the record is not the one its directory names";
                return Err(Error::corrupt(&self.path, e.offset, what));
            }
            report.records += 1;
        }
        for e in self.vectors()? {
            let finite = self.rows(&e)?.iter().all(|v| v.is_finite());
            if !finite {
                return Err(Error::corrupt(&self.path, e.offset, "a vector is not finite"));
            }
            report.vectors += u64::from(e.count);
        }
        self.tombstones().map(drop)
    }
}

/// One entry of the record directory.
pub(super) fn record_entry(r: &mut Reader<'_>) -> Option<RecordEntry> {
    let (space, len, seq) = (SpaceId(r.u32()?), r.u32()?, Seq(r.u64()?));
    let (offset, _, text_hash) = (r.u64()?, r.u64()?, r.u128()?);
    Some(RecordEntry { space, seq, offset, len, text_hash })
}

/// One entry of the vector directory.
pub(super) fn vector_entry(r: &mut Reader<'_>) -> Option<VectorEntry> {
    let (space, count, seq) = (SpaceId(r.u32()?), r.u32()?, Seq(r.u64()?));
    Some(VectorEntry { space, seq, offset: r.u64()?, count })
}

/// One tombstone.
pub(super) fn tombstone(r: &mut Reader<'_>) -> Option<Tombstone> {
    let (space, _, seq) = (SpaceId(r.u32()?), r.u32()?, Seq(r.u64()?));
    Some(Tombstone { space, seq })
}

pub(super) fn parse_header(path: &Path, bytes: &[u8]) -> Result<SegmentHeader, Error> {
    let mut r = Reader::new(bytes);
    let read = |r: &mut Reader<'_>| {
        let magic = r.take(8)? == MAGIC;
        let (version, _, dim, part, _) = (r.u16()?, r.u16()?, r.u32()?, r.u32()?, r.u32()?);
        let last_lsn = Lsn(r.u64()?);
        let uuid = r.take(16)?.try_into().ok()?;
        let covered = r.position();
        let crc = r.u32()? == crc32c::crc32c(&bytes[..covered]);
        Some((magic, version, crc, SegmentHeader { uuid, part, dim, last_lsn }))
    };
    match read(&mut r) {
        Some((true, found, true, _)) if found > VERSION => {
            Err(Error::VersionTooNew { file: path.into(), found, known: VERSION })
        }
        Some((true, _, true, header)) if header.dim > 0 => Ok(header),
        Some((false, ..)) => Err(Error::corrupt(path, 0, "this is not a segment (wrong magic)")),
        _ => Err(Error::corrupt(path, 0, "the header's checksum does not match")),
    }
}

struct Footer {
    data_len: u64,
    blocks: Vec<u64>,
    parts: [(u64, u64); 3],
}

fn parse_footer(bytes: &[u8]) -> Option<Footer> {
    let trailer_at = (bytes.len() as u64).checked_sub(TRAILER_BYTES)?;
    let mut r = Reader::new(bytes.get(trailer_at as usize..)?);
    let mut parts = [(0, 0); 4];
    for part in &mut parts {
        *part = (r.u64()?, r.u64()?);
    }
    let block_count = r.u64()?;
    let crc_at = trailer_at + r.position() as u64;
    let crc = r.u32()?;
    let (zero, magic) = (r.u32()?, r.take(8)?);
    let data_len = trailer_at.checked_sub(block_count.checked_mul(8)?)?;
    let footer = bytes.get(data_len as usize..crc_at as usize)?;
    let whole = zero == 0
        && magic == END_MAGIC
        && crc32c::crc32c(footer) == crc
        && data_len >= HEADER_BYTES
        && data_len.div_ceil(BLOCK_BYTES) == block_count
        && parts[3] == (data_len, 0);
    let blocks = footer.as_chunks::<8>().0.iter().take(block_count as usize);
    whole.then(|| Footer {
        data_len,
        blocks: blocks.map(|b| u64::from_le_bytes(*b)).collect(),
        parts: [parts[0], parts[1], parts[2]],
    })
}
