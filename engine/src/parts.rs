//! Where the bytes of memories and vectors lie: sealed segments, and the head that is still growing.
//!
//! Invariant: a [`Loc`] that a reader loads from a live cell can be resolved, if need be after loading it again: a part
//! is published before a cell points into it, and withdrawn only after no cell does. Readers take no lock.
//! Knows nothing of spaces.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Error;
use crate::record::RecordRef;
use crate::segment::Segment;
use crate::sync::{AppendVec, Swapped};

/// Number of a part; segments keep the number as their file name.
pub(crate) type PartNo = u32;

const OFFSET_BITS: u32 = 40;
/// Parts are numbered below this.
pub(crate) const PART_LIMIT: PartNo = 1 << (64 - OFFSET_BITS);

/// A place in a part: an index into a head, a byte offset into a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loc(u64);

impl Loc {
    pub(crate) fn new(part: PartNo, offset: u64) -> Loc {
        debug_assert!(part < PART_LIMIT && offset < 1 << OFFSET_BITS);
        Loc(u64::from(part) << OFFSET_BITS | offset)
    }

    pub(crate) fn from_bits(bits: u64) -> Loc {
        Loc(bits)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn part(self) -> PartNo {
        (self.0 >> OFFSET_BITS) as PartNo
    }

    /// `bytes` further on in the same part.
    pub(crate) fn plus(self, bytes: u64) -> Loc {
        Loc::new(self.part(), self.offset() + bytes)
    }

    fn offset(self) -> u64 {
        self.0 & ((1 << OFFSET_BITS) - 1)
    }
}

/// What has been written since the last seal, in memory; its durable copy is the log.
#[derive(Debug)]
pub(crate) struct Head {
    part: PartNo,
    records: AppendVec<Box<[u8]>>,
    rows: AppendVec<Box<[f32]>>,
    /// Bytes held. Written by writers, read by upkeep, `Relaxed`: it only decides when to seal. No loom model:
    /// nothing is published by it.
    bytes: AtomicUsize,
    /// Writers of different spaces meet here; readers never do.
    append: parking_lot::Mutex<()>,
}

impl Head {
    pub(crate) fn new(part: PartNo) -> Head {
        Head {
            part,
            records: AppendVec::new(),
            rows: AppendVec::new(),
            bytes: AtomicUsize::new(0),
            append: parking_lot::Mutex::new(()),
        }
    }

    pub(crate) fn part(&self) -> PartNo {
        self.part
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn push_record(&self, bytes: &[u8]) -> Loc {
        self.bytes.fetch_add(bytes.len() + 64, Ordering::Relaxed);
        let _one_writer = self.append.lock();
        Loc::new(self.part, self.records.push(bytes.into()).into())
    }

    pub(crate) fn push_row(&self, row: &[f32]) -> Loc {
        self.bytes.fetch_add(size_of_val(row) + 32, Ordering::Relaxed);
        let _one_writer = self.append.lock();
        Loc::new(self.part, self.rows.push(row.into()).into())
    }
}

/// One part.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Head(Arc<Head>),
    Segment(Arc<Segment>),
}

impl Part {
    fn number(&self) -> PartNo {
        match self {
            Part::Head(h) => h.part,
            Part::Segment(s) => s.header().part,
        }
    }

    /// The error for something at `loc` that is not what it should be.
    pub(crate) fn damaged_at(&self, loc: Loc) -> Error {
        self.damaged(loc.offset())
    }

    fn damaged(&self, offset: u64) -> Error {
        let file = match self {
            Part::Head(_) => Path::new("(memory)"),
            Part::Segment(s) => s.path(),
        };
        Error::corrupt(file, offset, "a record or vector is not where the index says")
    }

    /// The encoded record at `loc`, which lies in this part.
    pub(crate) fn record_bytes(&self, loc: Loc, len: u32) -> Result<&[u8], Error> {
        match self {
            Part::Head(h) => u32::try_from(loc.offset())
                .ok()
                .and_then(|at| h.records.get(at))
                .map(|b| &b[..])
                .ok_or_else(|| self.damaged(loc.offset())),
            Part::Segment(s) => s.record_bytes(loc.offset(), len),
        }
    }

    /// The record at `loc`, which lies in this part.
    pub(crate) fn record(&self, loc: Loc, len: u32) -> Result<RecordRef<'_>, Error> {
        RecordRef::decode(self.record_bytes(loc, len)?).ok_or_else(|| self.damaged(loc.offset()))
    }

    /// Asks the processor for the vector of `dim` values at `loc`, if it lies in this part.
    pub(crate) fn prefetch_row(&self, loc: Loc, dim: usize) {
        match self {
            Part::Head(h) => {
                let at = u32::try_from(loc.offset());
                if let Some(row) = at.ok().and_then(|at| h.rows.get(at)) {
                    flashbulb_kernels::prefetch(row);
                }
            }
            Part::Segment(s) => s.prefetch_row(loc.offset(), dim),
        }
    }

    /// Copies the vector at `loc`, which lies in this part.
    pub(crate) fn copy_row(&self, loc: Loc, out: &mut [f32]) -> Result<(), Error> {
        match self {
            Part::Head(h) => {
                let row = u32::try_from(loc.offset()).ok().and_then(|at| h.rows.get(at));
                let row = row.filter(|r| r.len() == out.len());
                out.copy_from_slice(row.ok_or_else(|| self.damaged(loc.offset()))?);
                Ok(())
            }
            Part::Segment(s) => s.copy_row(loc.offset(), out),
        }
    }
}

/// All parts at one moment, by number.
#[derive(Debug, Clone)]
pub(crate) struct PartSet {
    parts: Vec<Part>,
    /// The head that takes new writes.
    pub(crate) head: Arc<Head>,
}

impl PartSet {
    pub(crate) fn get(&self, part: PartNo) -> Option<&Part> {
        let at = self.parts.binary_search_by_key(&part, Part::number).ok()?;
        self.parts.get(at)
    }

    /// All heads: the one that takes new writes, and any that a failed seal left.
    pub(crate) fn heads(&self) -> impl Iterator<Item = PartNo> {
        self.parts.iter().filter_map(|p| match p {
            Part::Head(h) => Some(h.part),
            Part::Segment(_) => None,
        })
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.parts.iter().filter_map(|p| match p {
            Part::Segment(s) => Some(s),
            Part::Head(_) => None,
        })
    }
}

/// The parts of a store; swapped whole, so a reader sees one consistent set.
#[derive(Debug)]
pub(crate) struct Parts(Swapped<PartSet>);

impl Parts {
    pub(crate) fn new(segments: Vec<Arc<Segment>>, head: Arc<Head>) -> Parts {
        let mut parts: Vec<Part> = segments.into_iter().map(Part::Segment).collect();
        parts.push(Part::Head(Arc::clone(&head)));
        parts.sort_by_key(Part::number);
        Parts(Swapped::new(PartSet { parts, head }))
    }

    pub(crate) fn now(&self) -> impl Deref<Target = PartSet> {
        self.0.load()
    }

    /// Adds a head that takes the writes from here on. The caller keeps writers out and is the only one to swap.
    pub(crate) fn start_head(&self, head: Arc<Head>) {
        let mut next = PartSet::clone(&self.0.load());
        next.parts.push(Part::Head(Arc::clone(&head)));
        next.parts.sort_by_key(Part::number);
        next.head = head;
        self.0.store(next);
    }

    /// Adds a segment. The caller is the only one to swap.
    pub(crate) fn add_segment(&self, segment: Arc<Segment>) {
        let mut next = PartSet::clone(&self.0.load());
        next.parts.push(Part::Segment(segment));
        next.parts.sort_by_key(Part::number);
        self.0.store(next);
    }

    /// Withdraws parts that no live cell points into. The caller is the only one to swap.
    pub(crate) fn withdraw(&self, gone: &[PartNo]) {
        let mut next = PartSet::clone(&self.0.load());
        next.parts.retain(|p| !gone.contains(&p.number()));
        self.0.store(next);
    }

    /// Resolves what `load` reads from a cell and hands the part to `use_it`. A part that was withdrawn meanwhile means
    /// the cell has moved on: it is loaded again. `None` if the cell still names a withdrawn part: its memory is dead.
    pub(crate) fn resolve<T>(
        &self,
        load: impl Fn() -> Loc,
        use_it: impl FnOnce(&Part, Loc) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let mut use_it = Some(use_it);
        let found = self.0.find(
            || load().bits(),
            |set, bits| {
                let loc = Loc::from_bits(bits);
                let part = set.get(loc.part())?;
                use_it.take().map(|use_it| use_it(part, loc))
            },
        );
        found.transpose()
    }
}
