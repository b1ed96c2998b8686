//! Giving a recovered space's memories the vectors that its segments hold, and those that its graph was saved with.
//!
//! Invariant: columns and index get the same vectors in the same order. Knows nothing of files by name, nor of the log.

use std::sync::Arc;

use crate::error::Error;
use crate::index::VectorNo;
use crate::parts::Loc;
use crate::segment::{Segment, VectorEntry};
use crate::space::{RecordCell, RecordNo, Space};
use crate::types::Seq;

/// Where the vectors of a memory lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) entry: VectorEntry,
    /// In the list of segments.
    pub(super) segment: usize,
}

/// Gives a space's memories the vectors that its segments hold.
pub(super) struct Attached<'a> {
    space: &'a Space,
    /// By record number.
    places: Vec<Option<Place>>,
    segments: &'a [Arc<Segment>],
    dim: usize,
}

impl<'a> Attached<'a> {
    /// `vectors` in the order of seq, as the records are.
    pub(super) fn new(
        space: &'a Space,
        vectors: &[Place],
        segments: &'a [Arc<Segment>],
        dim: usize,
    ) -> Attached<'a> {
        let mut rest = vectors;
        let seq_of = |no: u32| space.records.get(no).map(|cell| cell.seq);
        let place = |no| {
            let seq = seq_of(no)?;
            rest = &rest[rest.iter().take_while(|p| p.entry.seq < seq).count()..];
            rest.first().filter(|p| p.entry.seq == seq).copied()
        };
        let places = (0..space.records.len()).map(place).collect();
        Attached { space, places, segments, dim }
    }

    fn place(&self, no: RecordNo) -> Option<Place> {
        self.places.get(no.0 as usize).copied().flatten()
    }

    fn loc(&self, place: Place, at: u32) -> Loc {
        let part = self.segments[place.segment].header().part;
        Loc::new(part, place.entry.offset + u64::from(at) * self.dim as u64 * 4)
    }

    /// Fills the columns for the vectors that the graph was loaded with; `seqs` names the memory of each.
    pub(super) fn graph_vectors(&self, seqs: &[Seq]) -> Result<(), Error> {
        let mut last = None;
        let mut near = 0;
        for run in seqs.chunk_by(|a, b| a == b) {
            let first = self.space.vectors.len();
            let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
            // Graphs grow about in the order of seq, so the next memory is usually the one after the last.
            let no = self.space.by_seq_near(run[0], near);
            near = no.map_or(near, |no| no.0 + 1);
            let place = no.and_then(|no| self.place(no)).filter(|p| p.entry.count >= count);
            match (no, place) {
                (Some(no), Some(place)) => {
                    for at in 0..count {
                        self.space.push_loaded_vector(Some(no), self.loc(place, at));
                    }
                    if place.entry.count == count {
                        self.space.load_attached(no, first, count);
                    } else {
                        last = Some((no, place, first, count));
                    }
                }
                // Deleted since, or replaced: its node stays in the graph as a way through, never as a hit.
                _ => {
                    for at in first..first + count {
                        self.space.push_loaded_vector(None, Loc::new(0, 0));
                        self.space.index.kill(VectorNo(at));
                    }
                }
            }
        }
        // The graph may end within a memory of several vectors: the rest of them follows at once.
        if let Some((no, place, first, count)) = last {
            self.push_rows(no, place, count)?;
            self.space.load_attached(no, first, place.entry.count);
        }
        Ok(())
    }

    /// Pushes the vectors that no graph holds.
    pub(super) fn other_vectors(&self) -> Result<(), Error> {
        for no in (0..self.space.records.len()).map(RecordNo) {
            let waits = |cell: &&RecordCell| !cell.is_searchable();
            let Some(place) = self.place(no) else { continue };
            if self.space.record(no).filter(waits).is_some() {
                let first = self.space.vectors.len();
                self.push_rows(no, place, 0)?;
                self.space.load_attached(no, first, place.entry.count);
            }
        }
        Ok(())
    }

    fn push_rows(&self, no: RecordNo, place: Place, from: u32) -> Result<(), Error> {
        let rows = self.segments[place.segment].rows(&place.entry)?;
        for (at, row) in (0u32..).zip(rows.chunks_exact(self.dim)).skip(from as usize) {
            self.space.push_vector(Some(no), self.loc(place, at), row);
        }
        Ok(())
    }
}
