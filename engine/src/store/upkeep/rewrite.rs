//! Rewriting the live contents of some parts to one new segment.
//!
//! Invariant: cells are moved to the segment only after it is part of the store, each to a copy of what it pointed to.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::Store;
use crate::error::Error;
use crate::manifest::Manifest;
use crate::pace::Pace;
use crate::parts::{Loc, PartNo};
use crate::record::RecordRef;
use crate::segment::{self, Segment, SegmentHeader, SegmentWriter, Tombstone, WrittenSegment};
use crate::space::{RecordNo, Space};
use crate::types::Lsn;

/// A segment that was written, with the cells that are to point into it.
pub(super) struct Rewritten {
    pub(super) segment: Arc<Segment>,
    pub(super) written: WrittenSegment,
    moved: Vec<Moved>,
}

/// What one space has in the new segment, in the order it was written.
struct Moved {
    space: Arc<Space>,
    records: Vec<RecordNo>,
    /// Memories whose vectors were written: the first vector's number and how many.
    vectors: Vec<(RecordNo, u32, u32)>,
    record_locs: Vec<Loc>,
    vector_locs: Vec<Loc>,
}

impl Rewritten {
    /// Points the cells into the segment.
    pub(super) fn move_cells(&self) {
        for m in &self.moved {
            for (no, loc) in m.records.iter().zip(&m.record_locs) {
                if let Some(cell) = m.space.record(*no) {
                    cell.set_loc(*loc);
                }
            }
            let row_bytes = m.space.index.dim() as u64 * 4;
            for ((_, first, count), loc) in m.vectors.iter().zip(&m.vector_locs) {
                for at in 0..*count {
                    if let Some(cell) = m.space.vectors.get(first + at) {
                        cell.set_loc(loc.plus(u64::from(at) * row_bytes));
                    }
                }
            }
        }
    }
}

impl Store {
    /// The tombstones that must outlive `parts`: theirs and `fresh`.
    pub(super) fn tombstones_of(
        &self,
        parts: &[PartNo],
        fresh: &[Tombstone],
    ) -> Result<Vec<Tombstone>, Error> {
        let mut kept = fresh.to_vec();
        for segment in self.parts.now().segments().filter(|s| parts.contains(&s.header().part)) {
            kept.extend(segment.tombstones()?);
        }
        kept.sort_unstable();
        kept.dedup();
        Ok(kept)
    }

    /// Writes what is live in `parts` to segment `part`; `None` if that is nothing.
    pub(super) fn write_live(
        &self,
        next: &Manifest,
        part: PartNo,
        parts: &[PartNo],
        tombstones: &[Tombstone],
        pace: &Pace<'_>,
    ) -> Result<Option<Rewritten>, Error> {
        let header = SegmentHeader {
            uuid: self.disk.random(),
            part,
            dim: next.dim,
            last_lsn: Lsn(next.checkpoint_lsn),
        };
        let mut moved: Vec<Moved> =
            self.spaces.iter().map(|e| gather(Arc::clone(e.value()), parts)).collect();
        moved.retain(|m| !m.records.is_empty() || !m.vectors.is_empty());
        if moved.is_empty() && tombstones.is_empty() {
            return Ok(None);
        }
        let mut writer = SegmentWriter::create(&*self.disk, self.dir.clone(), header)?;
        for m in &mut moved {
            self.write_records(&mut writer, m, pace)?;
        }
        for m in &mut moved {
            self.write_vectors(&mut writer, m, pace)?;
        }
        let written = writer.finish(tombstones)?;
        let path = self.dir.join(segment::file_name(part));
        let segment = Arc::new(Segment::open(&*self.disk, &path, written.len)?);
        locate(&segment, part, &mut moved)?;
        Ok(Some(Rewritten { segment, written, moved }))
    }

    fn write_records(
        &self,
        writer: &mut SegmentWriter<'_>,
        m: &mut Moved,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        for no in &m.records {
            let Some(cell) = m.space.record(*no) else { continue };
            self.parts.resolve(
                || cell.loc(),
                |part, loc| {
                    let bytes = part.record_bytes(loc, cell.len)?;
                    let record = RecordRef::decode(bytes).ok_or_else(|| part.damaged_at(loc))?;
                    writer.record(m.space.id, &record, bytes)
                },
            )?;
            pace.worked(cell.len as usize);
        }
        Ok(())
    }

    fn write_vectors(
        &self,
        writer: &mut SegmentWriter<'_>,
        m: &mut Moved,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        let dim = self.dim();
        for (no, first, count) in &m.vectors {
            let Some(cell) = m.space.record(*no) else { continue };
            let mut rows = vec![0.0; *count as usize * dim];
            for (at, row) in rows.chunks_exact_mut(dim).enumerate() {
                self.copy_row(&m.space, first + at as u32, row)?;
            }
            writer.vectors(m.space.id, cell.seq, &rows)?;
            pace.worked(size_of_val(&*rows));
        }
        Ok(())
    }
}

/// The live memories and vectors of `space` that lie in `parts`.
fn gather(space: Arc<Space>, parts: &[PartNo]) -> Moved {
    let mut records = Vec::new();
    let mut vectors = Vec::new();
    for no in (0..space.records.len()).map(RecordNo) {
        let Some(cell) = space.record(no).filter(|c| c.is_live()) else { continue };
        if parts.contains(&cell.loc().part()) {
            records.push(no);
        }
        let range = cell.vectors();
        let first_loc = space.vectors.get(range.start).filter(|_| !range.is_empty());
        if first_loc.is_some_and(|c| parts.contains(&c.loc().part())) {
            vectors.push((no, range.start, range.len() as u32));
        }
    }
    Moved { space, records, vectors, record_locs: Vec::new(), vector_locs: Vec::new() }
}

/// Looks up in the segment itself where everything was written.
fn locate(segment: &Segment, part: PartNo, moved: &mut [Moved]) -> Result<(), Error> {
    let records: HashMap<_, _> =
        segment.records()?.into_iter().map(|e| ((e.space, e.seq), e.offset)).collect();
    let vectors: HashMap<_, _> =
        segment.vectors()?.into_iter().map(|e| ((e.space, e.seq), e.offset)).collect();
    let lost = || Error::corrupt(segment.path(), 0, "a memory is missing from a new segment");
    for m in moved {
        let (space, id) = (&m.space, m.space.id);
        let seq = |no: &RecordNo| space.record(*no).map(|c| c.seq).ok_or_else(lost);
        for no in &m.records {
            let at = records.get(&(id, seq(no)?)).ok_or_else(lost)?;
            m.record_locs.push(Loc::new(part, *at));
        }
        for (no, _, _) in &m.vectors {
            let at = vectors.get(&(id, seq(no)?)).ok_or_else(lost)?;
            m.vector_locs.push(Loc::new(part, *at));
        }
    }
    Ok(())
}
