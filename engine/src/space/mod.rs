//! One space in memory: its memories' columns, its ids, its vector index.
//!
//! Invariant: columns only grow; readers of a search take no lock here. Writers hold [`Space::writer`], and what they
//! append is complete before it is published. Knows nothing of the log: what is applied here was submitted before.

mod numbers;

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use flashbulb_kernels::Kernels;
use hashbrown::hash_map::Entry;
use hashbrown::{DefaultHashBuilder, HashMap};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::clock::Clock;
use crate::error::Error;
use crate::index::{Layout, Metric, VectorIndex, VectorNo};
use crate::op::{NewRecord, Rows};
use crate::parts::{Head, Loc, Parts};
use crate::record::RecordRef;
use crate::sync::{AppendVec, Place};
use crate::types::{RequestId, Seq, SpaceId, SpaceName};
use numbers::Numbers;

/// A memory's number in its space, dense, in the order of `seq`. Lives as long as the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RecordNo(pub(crate) u32);

const NO_SYMBOL: u32 = u32::MAX;
/// The record of a vector whose memory was gone when the store was opened.
const ORPHAN: u32 = u32::MAX;

/// One version of a memory.
///
/// The atomics are written by the space's writer or by upkeep and read by any reader; no loom model of their own: each
/// stands alone, and the cell itself is published by [`AppendVec`], which has one.
#[derive(Debug)]
pub(crate) struct RecordCell {
    pub(crate) seq: Seq,
    pub(crate) ts_ms: i64,
    role: u32,
    session: u32,
    pub(crate) len: u32,
    pub(crate) has_meta: bool,
    /// Set once, `Release`; a reader that sees it (`Acquire`) does not return the memory.
    dead: AtomicBool,
    loc: Place,
    /// First of its vectors; stored before `vectors`.
    first_vector: AtomicU32,
    /// How many vectors it has; 0 while it waits for them. Stored `Release` last, loaded `Acquire`.
    vectors: AtomicU32,
}

impl RecordCell {
    pub(crate) fn is_live(&self) -> bool {
        !self.dead.load(Ordering::Acquire)
    }

    pub(crate) fn loc(&self) -> Loc {
        Loc::from_bits(self.loc.load())
    }

    pub(crate) fn set_loc(&self, loc: Loc) {
        self.loc.store(loc.bits());
    }

    /// The numbers of its vectors; empty while it waits for them.
    pub(crate) fn vectors(&self) -> std::ops::Range<u32> {
        let count = self.vectors.load(Ordering::Acquire);
        let first = self.first_vector.load(Ordering::Relaxed);
        first..first + count
    }

    pub(crate) fn is_searchable(&self) -> bool {
        self.vectors.load(Ordering::Acquire) > 0
    }
}

/// One vector: whose it is and where its f32 row lies.
#[derive(Debug)]
pub(crate) struct VectorCell {
    record: u32,
    loc: Place,
}

impl VectorCell {
    pub(crate) fn record(&self) -> Option<RecordNo> {
        (self.record != ORPHAN).then_some(RecordNo(self.record))
    }

    pub(crate) fn loc(&self) -> Loc {
        Loc::from_bits(self.loc.load())
    }

    pub(crate) fn set_loc(&self, loc: Loc) {
        self.loc.store(loc.bits());
    }
}

/// What only writers of a space see.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    symbols: HashMap<Box<str>, u32>,
    /// A memory of each text: the oldest that was live when the latest came. Callers' own vectors are not shared.
    texts: Numbers,
    /// Requests that may be repeated, by key: what was asked for, and how many of its memories are live.
    requests: HashMap<u128, (u128, u32)>,
    pub(crate) dropped: bool,
}

impl Writer {
    /// What was asked for under `key`, as long as a memory of it is live.
    pub(crate) fn asked_under(&self, key: u128) -> Option<u128> {
        self.requests.get(&key).map(|(content, _)| *content)
    }

    fn count_request(&mut self, request: RequestId) {
        self.requests.entry(request.key).or_insert((request.content, 0)).1 += 1;
    }

    fn forget_request(&mut self, request: RequestId) {
        if let Entry::Occupied(mut known) = self.requests.entry(request.key) {
            known.get_mut().1 = known.get().1.saturating_sub(1);
            if known.get().1 == 0 {
                known.remove();
            }
        }
    }
}

/// A space.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) id: SpaceId,
    pub(crate) name: SpaceName,
    pub(crate) records: AppendVec<RecordCell>,
    pub(crate) vectors: AppendVec<VectorCell>,
    pub(crate) index: VectorIndex,
    symbols: AppendVec<Box<str>>,
    pub(crate) writer: Mutex<Writer>,
    /// The highest seq given out. Stored by the space's writer, `Release`; read by upkeep and statistics, `Acquire`. No
    /// loom model: upkeep reads it with all writers locked out.
    pub(crate) last_seq: AtomicU64,
    /// The live memories, by their ids.
    ids: RwLock<Numbers>,
    /// Of ids, with a seed of its own: callers choose them.
    hasher: DefaultHashBuilder,
    /// Live memories without vectors, by seq.
    pending: Mutex<BTreeSet<u64>>,
    /// How many there are. Stored under the lock of `pending`, read by searches without it, `Relaxed`: it is a figure, and
    /// nothing is published by it, so it needs no loom model.
    waiting: AtomicU64,
    embedded: Condvar,
}

/// A record that is already part of the store, as recovery finds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed<'a> {
    pub(crate) record: RecordRef<'a>,
    pub(crate) len: u32,
    pub(crate) loc: Loc,
    pub(crate) text_hash: u128,
}

impl Space {
    pub(crate) fn new(
        id: SpaceId,
        name: SpaceName,
        (dim, layout): (usize, Layout),
        kernels: Kernels,
    ) -> Space {
        Space {
            id,
            name,
            records: AppendVec::new(),
            vectors: AppendVec::new(),
            index: VectorIndex::with_layout(dim, Metric::Cosine, layout, kernels),
            symbols: AppendVec::new(),
            writer: Mutex::new(Writer::default()),
            last_seq: AtomicU64::new(0),
            ids: RwLock::default(),
            hasher: DefaultHashBuilder::default(),
            pending: Mutex::new(BTreeSet::new()),
            waiting: AtomicU64::new(0),
            embedded: Condvar::new(),
        }
    }

    // ---- writing; the caller holds `writer`

    /// Makes room for so many memories at once.
    pub(crate) fn reserve(&self, writer: &mut Writer, memories: usize) {
        self.ids.write().reserve(memories);
        writer.texts.reserve(memories);
    }

    /// Appends a record that lies at `placed.loc`; it waits for vectors.
    pub(crate) fn insert(&self, writer: &mut Writer, placed: &Placed<'_>) -> RecordNo {
        self.change_pending(|p| {
            p.insert(placed.record.seq.0);
        });
        self.load(writer, placed)
    }

    /// As [`Space::insert`], before anybody else sees the space: [`Space::loaded`] finds out what waits.
    pub(crate) fn load(&self, writer: &mut Writer, placed: &Placed<'_>) -> RecordNo {
        let r = &placed.record;
        let cell = RecordCell {
            seq: r.seq,
            ts_ms: r.ts_ms,
            role: self.symbol(writer, r.role),
            session: self.symbol(writer, r.session),
            len: placed.len,
            has_meta: r.meta.is_some(),
            dead: AtomicBool::new(false),
            loc: Place::new(placed.loc.bits()),
            first_vector: AtomicU32::new(0),
            vectors: AtomicU32::new(0),
        };
        let no = self.records.push(cell);
        self.ids.write().insert(self.hasher.hash_one(r.id), no);
        if !r.own_vectors {
            self.note_text(writer, placed.text_hash as u64, no);
        }
        if let Some(request) = r.request {
            writer.count_request(request);
        }
        self.raise_seq(r.seq);
        RecordNo(no)
    }

    /// An older live memory keeps its entry: it may have its vectors already, this one has none yet.
    fn note_text(&self, writer: &mut Writer, hash: u64, no: u32) {
        let known = writer.texts.under(hash).next();
        match known {
            None => writer.texts.insert(hash, no),
            Some(old) if self.records.get(old).is_none_or(|old| !old.is_live()) => {
                writer.texts.replace(hash, old, no);
            }
            Some(_) => {}
        }
    }

    /// Applies one record of a write, its bytes and rows going to `head`. `None` if the bytes are not a record.
    pub(crate) fn apply_record(
        &self,
        writer: &mut Writer,
        head: &Head,
        new: &NewRecord,
    ) -> Option<RecordNo> {
        let record = RecordRef::decode(&new.bytes)?;
        let loc = head.push_record(&new.bytes);
        let len = u32::try_from(new.bytes.len()).ok()?;
        let placed = Placed { record, len, loc, text_hash: record.text_hash() };
        let no = self.insert(writer, &placed);
        if !new.rows.is_empty() {
            self.apply_rows(head, no, &new.rows);
        }
        Some(no)
    }

    /// Gives a waiting record its vectors; rows are unit vectors.
    pub(crate) fn apply_rows(&self, head: &Head, no: RecordNo, rows: &Rows) {
        let dim = self.index.dim();
        let first = self.vectors.len();
        for row in rows.chunks_exact(dim) {
            self.push_vector(Some(no), head.push_row(row), row);
        }
        self.attach(no, first, self.vectors.len() - first);
    }

    /// Appends one vector to column and index. Its memory is searchable after [`Space::attach`].
    pub(crate) fn push_vector(&self, record: Option<RecordNo>, loc: Loc, row: &[f32]) {
        let record = record.map_or(ORPHAN, |r| r.0);
        let at = self.vectors.push(VectorCell { record, loc: Place::new(loc.bits()) });
        let no = self.index.push(row);
        debug_assert_eq!(no, VectorNo(at), "column and index grow together");
    }

    /// Appends a vector's column entry only: the index was loaded with it.
    pub(crate) fn push_loaded_vector(&self, record: Option<RecordNo>, loc: Loc) {
        let record = record.map_or(ORPHAN, |r| r.0);
        self.vectors.push(VectorCell { record, loc: Place::new(loc.bits()) });
    }

    /// Declares the vectors `first..first + count` to be the record's: it is searchable once [`Space::loaded`] was called.
    pub(crate) fn load_attached(&self, no: RecordNo, first: u32, count: u32) {
        let Some(cell) = self.records.get(no.0) else { return };
        cell.first_vector.store(first, Ordering::Relaxed);
        cell.vectors.store(count, Ordering::Release);
    }

    /// Ends a loading: what has no vectors by now waits for them.
    pub(crate) fn loaded(&self) {
        let cells = (0..self.records.len()).filter_map(|no| self.records.get(no));
        let waiting = cells.filter(|cell| cell.is_live() && !cell.is_searchable());
        self.change_pending(|p| p.extend(waiting.map(|cell| cell.seq.0)));
    }

    /// Declares the vectors `first..first + count` to be the record's: it is searchable now.
    pub(crate) fn attach(&self, no: RecordNo, first: u32, count: u32) {
        self.load_attached(no, first, count);
        let Some(cell) = self.records.get(no.0) else { return };
        self.change_pending(|p| {
            p.remove(&cell.seq.0);
        });
        self.embedded.notify_all();
    }

    /// Takes a memory out of every read from now on. `id` is the memory's.
    pub(crate) fn remove(&self, writer: &mut Writer, no: RecordNo, r: &RecordRef<'_>) {
        let Some(cell) = self.records.get(no.0) else { return };
        cell.dead.store(true, Ordering::Release);
        for v in cell.vectors() {
            self.index.kill(VectorNo(v));
        }
        self.ids.write().remove(self.hasher.hash_one(r.id), no.0);
        if let Some(request) = r.request {
            writer.forget_request(request);
        }
        writer.texts.remove(r.text_hash() as u64, no.0);
        self.change_pending(|p| {
            p.remove(&cell.seq.0);
        });
        self.embedded.notify_all();
    }

    /// Marks the space dropped and wakes whoever waits for it.
    pub(crate) fn set_dropped(&self, writer: &mut Writer) {
        writer.dropped = true;
        self.change_pending(BTreeSet::clear);
        self.embedded.notify_all();
    }

    fn change_pending(&self, change: impl FnOnce(&mut BTreeSet<u64>)) {
        let mut pending = self.pending.lock();
        change(&mut pending);
        self.waiting.store(pending.len() as u64, Ordering::Relaxed);
    }

    fn symbol(&self, writer: &mut Writer, text: Option<&str>) -> u32 {
        let Some(text) = text else { return NO_SYMBOL };
        if let Some(no) = writer.symbols.get(text) {
            return *no;
        }
        let no = self.symbols.push(text.into());
        writer.symbols.insert(text.into(), no);
        no
    }

    /// A memory that may have the text of this hash, embedded by the store's model or waiting to be. Whoever asks compares the texts.
    pub(crate) fn with_text(&self, writer: &Writer, hash: u128) -> Option<RecordNo> {
        writer.texts.under(hash as u64).next().map(RecordNo)
    }

    /// Never gives out `seq` or a lower one again.
    pub(crate) fn raise_seq(&self, seq: Seq) {
        self.last_seq.fetch_max(seq.0, Ordering::AcqRel);
    }

    // ---- reading

    pub(crate) fn last_seq(&self) -> Seq {
        Seq(self.last_seq.load(Ordering::Acquire))
    }

    pub(crate) fn record(&self, no: RecordNo) -> Option<&RecordCell> {
        self.records.get(no.0)
    }

    /// The live memory with this id.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a record that may have it cannot be read.
    pub(crate) fn by_id(&self, parts: &Parts, id: &str) -> Result<Option<RecordNo>, Error> {
        // Out of the lock: reading a record may wait for the disk.
        let candidates: Vec<u32> = self.ids.read().under(self.hasher.hash_one(id)).collect();
        for no in candidates.into_iter().map(RecordNo) {
            if self.with_record(parts, no, |_, r| r.id == id)? == Some(true) {
                return Ok(Some(no));
            }
        }
        Ok(None)
    }

    /// The first record whose seq is at least `seq`; the number of records if there is none.
    pub(crate) fn lower_bound(&self, seq: Seq) -> u32 {
        let (mut low, mut high) = (0, self.records.len());
        while low < high {
            let mid = low + (high - low) / 2;
            if self.records.get(mid).is_some_and(|c| c.seq < seq) {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        low
    }

    /// The record with this seq, live or not.
    pub(crate) fn by_seq(&self, seq: Seq) -> Option<RecordNo> {
        let no = self.lower_bound(seq);
        self.records.get(no).filter(|c| c.seq == seq).map(|_| RecordNo(no))
    }

    /// As [`Space::by_seq`], quick if it is the record `near`.
    pub(crate) fn by_seq_near(&self, seq: Seq, near: u32) -> Option<RecordNo> {
        match self.records.get(near) {
            Some(cell) if cell.seq == seq => Some(RecordNo(near)),
            _ => self.by_seq(seq),
        }
    }

    pub(crate) fn role(&self, cell: &RecordCell) -> Option<&str> {
        self.symbols.get(cell.role).map(|s| &**s)
    }

    pub(crate) fn session(&self, cell: &RecordCell) -> Option<&str> {
        self.symbols.get(cell.session).map(|s| &**s)
    }

    /// Live memories.
    pub(crate) fn live(&self) -> u64 {
        self.ids.read().len() as u64
    }

    /// Live memories that wait for vectors; takes no lock.
    pub(crate) fn pending_len(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Up to `limit` waiting memories, oldest first.
    pub(crate) fn pending(&self, limit: usize) -> Vec<Seq> {
        self.pending.lock().iter().take(limit).copied().map(Seq).collect()
    }

    /// Waits until no live memory up to `seq` lacks vectors; `false` if one still does after `span`.
    pub(crate) fn wait_embedded(&self, seq: Seq, clock: &dyn Clock, span: Duration) -> bool {
        let until = clock.now() + span;
        let mut pending = self.pending.lock();
        loop {
            if pending.first().is_none_or(|first| *first > seq.0) {
                return true;
            }
            let left = until.saturating_sub(clock.now());
            if left.is_zero() {
                return false;
            }
            match clock.patience(left) {
                Some(left) => drop(self.embedded.wait_for(&mut pending, left)),
                None => self.embedded.wait(&mut pending),
            }
        }
    }

    /// Reads the record `no`, live or not, and hands it on; `None` if its bytes were given up after its death.
    pub(crate) fn with_record<T>(
        &self,
        parts: &Parts,
        no: RecordNo,
        use_it: impl FnOnce(&RecordCell, &RecordRef<'_>) -> T,
    ) -> Result<Option<T>, Error> {
        let Some(cell) = self.record(no) else { return Ok(None) };
        parts.resolve(|| cell.loc(), |part, loc| Ok(use_it(cell, &part.record(loc, cell.len)?)))
    }
}
