//! Writing a segment: records first, then vectors, then the directories, then the footer, then one rename.
//!
//! Invariant: the file appears under its name only when it is whole and synced. Memory in use does not grow with
//! the data, only with their number. Knows nothing of spaces' state.

use std::path::PathBuf;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    BLOCK_BYTES, END_MAGIC, HEADER_BYTES, MAGIC, RecordEntry, SegmentHeader, TRAILER_BYTES,
    Tombstone, VERSION, VectorEntry, file_name,
};
use crate::codec::pad_to;
use crate::disk::{Disk, DiskFile, write_all_at};
use crate::error::Error;
use crate::record::RecordRef;
use crate::types::{Seq, SpaceId};

/// Bytes gathered before a write.
const BUFFER_BYTES: usize = 1 << 20;

/// A segment being written.
pub(crate) struct SegmentWriter<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    tmp: PathBuf,
    file: Box<dyn DiskFile>,
    header: SegmentHeader,
    buffer: Vec<u8>,
    /// Where `buffer` begins in the file.
    buffer_at: u64,
    /// The block that is still filling.
    block: Vec<u8>,
    blocks: Vec<u64>,
    whole: Xxh3,
    records: Vec<RecordEntry>,
    vectors: Vec<VectorEntry>,
}

/// A finished segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrittenSegment {
    pub(crate) len: u64,
    pub(crate) checksum: u128,
}

impl<'a> SegmentWriter<'a> {
    /// Starts the segment `header.part` in `dir`.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub(crate) fn create(
        disk: &'a dyn Disk,
        dir: PathBuf,
        header: SegmentHeader,
    ) -> Result<Self, Error> {
        let tmp = dir.join(format!("{}.tmp", file_name(header.part)));
        let _ = disk.remove(&tmp);
        let file = disk.create(&tmp).map_err(Error::io("create", &tmp))?;
        let mut writer = SegmentWriter {
            disk,
            dir,
            tmp,
            file,
            header,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            buffer_at: 0,
            block: Vec::with_capacity(BLOCK_BYTES as usize),
            blocks: Vec::new(),
            whole: Xxh3::new(),
            records: Vec::new(),
            vectors: Vec::new(),
        };
        let bytes = header_bytes(&header);
        writer.put(&bytes)?;
        Ok(writer)
    }

    fn at(&self) -> u64 {
        self.buffer_at + self.buffer.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn align(&mut self, to: usize) -> Result<(), Error> {
        let pad = (self.at() as usize).next_multiple_of(to) - self.at() as usize;
        self.put(&[0; 64][..pad])
    }

    fn flush(&mut self) -> Result<(), Error> {
        write_all_at(&*self.file, &self.buffer, self.buffer_at)
            .map_err(Error::io("write", &self.tmp))?;
        self.whole.update(&self.buffer);
        let mut rest = &self.buffer[..];
        while !rest.is_empty() {
            let room = BLOCK_BYTES as usize - self.block.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK_BYTES as usize {
                self.blocks.push(xxh3_64(&self.block));
                self.block.clear();
            }
            rest = later;
        }
        self.buffer_at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Appends one record; all records come before the first vector.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub(crate) fn record(
        &mut self,
        space: SpaceId,
        record: &RecordRef<'_>,
        bytes: &[u8],
    ) -> Result<(), Error> {
        self.align(8)?;
        self.records.push(RecordEntry {
            space,
            seq: record.seq,
            offset: self.at(),
            len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            text_hash: record.text_hash(),
        });
        self.put(bytes)
    }

    /// Appends the rows of one memory, each of `dim` values.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub(crate) fn vectors(&mut self, space: SpaceId, seq: Seq, rows: &[f32]) -> Result<(), Error> {
        if self.vectors.is_empty() {
            self.align(64)?;
        }
        let count = rows.len() / self.header.dim as usize;
        let offset = self.at();
        self.vectors.push(VectorEntry {
            space,
            seq,
            offset,
            count: u32::try_from(count).unwrap_or(u32::MAX),
        });
        for row in rows {
            self.buffer.extend_from_slice(&row.to_le_bytes());
        }
        self.put(&[])
    }

    /// Writes directories, tombstones and footer, syncs, and gives the file its name.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`]; no file of this name appears then.
    pub(crate) fn finish(mut self, tombstones: &[Tombstone]) -> Result<WrittenSegment, Error> {
        self.align(8)?;
        let records_at = self.at();
        let (records, vectors) =
            (std::mem::take(&mut self.records), std::mem::take(&mut self.vectors));
        for e in &records {
            let mut out = Vec::with_capacity(48);
            out.extend_from_slice(&e.space.0.to_le_bytes());
            out.extend_from_slice(&e.len.to_le_bytes());
            out.extend_from_slice(&e.seq.0.to_le_bytes());
            out.extend_from_slice(&e.offset.to_le_bytes());
            out.extend_from_slice(&[0; 8]);
            out.extend_from_slice(&e.text_hash.to_le_bytes());
            self.put(&out)?;
        }
        let vectors_at = self.at();
        for e in &vectors {
            let mut out = Vec::with_capacity(24);
            out.extend_from_slice(&e.space.0.to_le_bytes());
            out.extend_from_slice(&e.count.to_le_bytes());
            out.extend_from_slice(&e.seq.0.to_le_bytes());
            out.extend_from_slice(&e.offset.to_le_bytes());
            self.put(&out)?;
        }
        let tombstones_at = self.at();
        for t in tombstones {
            let mut out = Vec::with_capacity(16);
            out.extend_from_slice(&t.space.0.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&t.seq.0.to_le_bytes());
            self.put(&out)?;
        }
        let parts = [
            (records_at, records.len()),
            (vectors_at, vectors.len()),
            (tombstones_at, tombstones.len()),
            (self.at(), 0),
        ];
        self.footer(parts)
    }

    fn footer(mut self, parts: [(u64, usize); 4]) -> Result<WrittenSegment, Error> {
        self.flush()?;
        if !self.block.is_empty() {
            self.blocks.push(xxh3_64(&self.block));
        }
        let mut out = Vec::with_capacity(self.blocks.len() * 8 + TRAILER_BYTES as usize);
        for sum in &self.blocks {
            out.extend_from_slice(&sum.to_le_bytes());
        }
        for (offset, count) in parts {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&(count as u64).to_le_bytes());
        }
        out.extend_from_slice(&(self.blocks.len() as u64).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&END_MAGIC);
        write_all_at(&*self.file, &out, self.buffer_at).map_err(Error::io("write", &self.tmp))?;
        self.whole.update(&out);
        self.file.sync().map_err(Error::io("sync", &self.tmp))?;
        let path = self.dir.join(file_name(self.header.part));
        self.disk.rename(&self.tmp, &path).map_err(Error::io("rename", &path))?;
        self.disk.sync_dir(&self.dir).map_err(Error::io("sync", &self.dir))?;
        Ok(WrittenSegment {
            len: self.buffer_at + out.len() as u64,
            checksum: self.whole.digest128(),
        })
    }
}

/// `magic 8 | version u16 | 0 u16 | dim u32 | part u32 | 0 u32 | last_lsn u64 | uuid 16 | crc32c u32`, padded.
fn header_bytes(h: &SegmentHeader) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES as usize);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&h.dim.to_le_bytes());
    out.extend_from_slice(&h.part.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&h.last_lsn.0.to_le_bytes());
    out.extend_from_slice(&h.uuid);
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    pad_to(&mut out, HEADER_BYTES as usize);
    out
}
