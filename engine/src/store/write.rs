//! Writes: add, vectors, update, delete, drop. Each is validated, submitted to the log, applied, and waited for.
//!
//! Invariant: nothing is applied that was not submitted; nothing is submitted that was not wholly valid.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::Store;
use crate::error::Error;
use crate::op::{NewRecord, Op, Rows};
use crate::parts::Head;
use crate::record::RecordRef;
use crate::segment::Tombstone;
use crate::space::{RecordNo, Space, Writer};
use crate::types::{
    AddStatus, Added, AddedItem, Deleted, ID_MAX_BYTES, LABEL_MAX_BYTES, Lsn, META_MAX_BYTES,
    NewMemory, OnConflict, Patch, RequestId, Selection, Seq, SpaceId, SpaceName, TEXT_MAX_BYTES,
    Updated, VECTORS_MAX,
};

/// A log record is closed once it holds this much, so that large batches stay below the record limit.
const RECORD_SOFT_BYTES: usize = 8 << 20;
/// Deletes in one log record.
const REMOVED_PER_RECORD: usize = 1 << 18;

/// A memory that passed its checks, with unit vectors one after the other.
struct Valid {
    memory: NewMemory,
    rows: Rows,
}

/// A write, ready to be submitted.
struct Change {
    removed: Vec<(RecordNo, Seq)>,
    added: Vec<NewRecord>,
    last_seq: Seq,
}

impl Store {
    /// Adds memories whole or not at all; the space comes to be with its first add. Returns when they are durable.
    ///
    /// # Errors
    /// [`Error::Conflict`] for an id that is there already (with [`OnConflict::Error`]); [`Error::DuplicateInRequest`],
    /// [`Error::Invalid`], [`Error::TooLarge`], [`Error::DimMismatch`], [`Error::BadVector`] for what the items say;
    /// [`Error::Corrupt`] if the memory that may have an id cannot be read; [`Error::Busy`], [`Error::DiskFull`], [`Error::Poisoned`],
    /// [`Error::ReadOnly`], [`Error::Closed`].
    pub fn add(
        &self,
        name: &SpaceName,
        mut items: Vec<NewMemory>,
        on_conflict: OnConflict,
    ) -> Result<Added, Error> {
        items.iter_mut().for_each(|item| item.request = None);
        self.add_whole(name, items, on_conflict)
    }

    /// As [`Store::add`], and nothing is added twice where the same request is repeated, because its answer was lost: as long as one
    /// of its memories is live, all its items are answered [`AddStatus::Skipped`]. What was updated since stays as it is, what
    /// was deleted stays so.
    ///
    /// # Errors
    /// [`Error::KeyTaken`] if the key was used with another content; otherwise as [`Store::add`] with [`OnConflict::Error`].
    pub fn add_once(
        &self,
        name: &SpaceName,
        mut items: Vec<NewMemory>,
        request: RequestId,
    ) -> Result<Added, Error> {
        items.iter_mut().for_each(|item| item.request = Some(request));
        self.add_whole(name, items, OnConflict::Error)
    }

    /// Adds memories that another store kept, each with the request that it came with there. An id that is there gets a new
    /// version.
    ///
    /// # Errors
    /// As [`Store::add`].
    pub(super) fn add_kept(&self, name: &SpaceName, items: Vec<NewMemory>) -> Result<Added, Error> {
        self.add_whole(name, items, OnConflict::Replace)
    }

    fn add_whole(
        &self,
        name: &SpaceName,
        items: Vec<NewMemory>,
        on_conflict: OnConflict,
    ) -> Result<Added, Error> {
        self.check_writable()?;
        let items = self.validate(items)?;
        let (lsn, added) = loop {
            if let Some(space) = self.find(name) {
                let writer = space.writer.lock();
                if writer.dropped {
                    continue;
                }
                break self.add_in(&space, writer, &items, on_conflict, None)?;
            }
            let _one_maker = self.making.lock();
            if self.find(name).is_some() {
                continue;
            }
            let id = SpaceId(self.spaces_made.load(Ordering::Acquire));
            let space = Arc::new(Space::new(
                id,
                name.clone(),
                (self.dim(), self.options.layout),
                self.kernels,
            ));
            let create = Op::Create { space: id, name: name.to_string() };
            break self.add_in(&space, space.writer.lock(), &items, on_conflict, Some(create))?;
        };
        self.wal.wait_acknowledged(lsn)?;
        Ok(added)
    }

    fn add_in(
        &self,
        space: &Arc<Space>,
        mut writer: MutexGuard<'_, Writer>,
        items: &[Valid],
        on_conflict: OnConflict,
        create: Option<Op>,
    ) -> Result<(Lsn, Added), Error> {
        // What replaces is no request of a caller that may be repeated.
        let request = items.first().and_then(|item| item.memory.request);
        let request = request.filter(|_| on_conflict == OnConflict::Error);
        if let Some(request) = request
            && let Some(items) = self.done_before(space, &writer, items, request)?
        {
            return Ok((self.wal.last_lsn(), Added { items, seq: space.last_seq() }));
        }
        let mut change =
            Change { removed: Vec::new(), added: Vec::new(), last_seq: space.last_seq() };
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            let id = &item.memory.id;
            let old = space.by_id(&self.parts, id)?;
            let old = old.and_then(|no| space.record(no).map(|c| (no, c)));
            let status = match (old, on_conflict) {
                (None, _) => AddStatus::Added,
                (Some(_), OnConflict::Error) => return Err(Error::Conflict { id: id.clone() }),
                (Some(_), OnConflict::Skip) => AddStatus::Skipped,
                (Some(_), OnConflict::Replace) => AddStatus::Replaced,
            };
            if let (Some((_, cell)), AddStatus::Skipped) = (old, status) {
                let needs_vectors = !cell.is_searchable();
                out.push(AddedItem { id: id.clone(), status, seq: cell.seq, needs_vectors });
                continue;
            }
            change.removed.extend(old.map(|(no, cell)| (no, cell.seq)));
            let needs_vectors = item.rows.is_empty();
            let seq = change.push(&item.memory, item.rows.clone(), !needs_vectors);
            out.push(AddedItem { id: id.clone(), status, seq, needs_vectors });
        }
        let lsn = self.submit_change(space, &mut writer, change, create)?;
        let seq = space.last_seq();
        drop(writer);
        self.note_work(space);
        Ok((lsn, Added { items: out, seq }))
    }

    /// The answer to the request if it was done before: what became of its items.
    fn done_before(
        &self,
        space: &Space,
        writer: &Writer,
        items: &[Valid],
        request: RequestId,
    ) -> Result<Option<Vec<AddedItem>>, Error> {
        match writer.asked_under(request.key) {
            None => return Ok(None),
            Some(content) if content != request.content => return Err(Error::KeyTaken),
            Some(_) => {}
        }
        let found = |item: &Valid| {
            let id = item.memory.id.clone();
            let cell = space.by_id(&self.parts, &id)?.and_then(|no| space.record(no));
            let (seq, needs_vectors) =
                cell.map_or((Seq(0), false), |c| (c.seq, !c.is_searchable()));
            Ok(AddedItem { id, status: AddStatus::Skipped, seq, needs_vectors })
        };
        items.iter().map(found).collect::<Result<_, _>>().map(Some)
    }

    /// Submits a change and applies it. The caller waits for the LSN.
    fn submit_change(
        &self,
        space: &Arc<Space>,
        writer: &mut Writer,
        change: Change,
        create: Option<Op>,
    ) -> Result<Lsn, Error> {
        if change.removed.is_empty() && change.added.is_empty() && create.is_none() {
            return Ok(self.wal.last_lsn());
        }
        let removed = self.read_removed(space, &change)?;
        let is_new = create.is_some();
        let ops = create.into_iter().chain(change.ops(space.id));
        let payloads = ops.map(|op| (op.kind(), op.encode(self.dim()))).collect();
        let gate = self.gate.read();
        let lsn = self.wal.submit(payloads)?;
        let head = Arc::clone(&self.parts.now().head);
        for (no, bytes) in &removed {
            if let Some(record) = RecordRef::decode(bytes) {
                space.remove(writer, *no, &record);
                self.tombstones.lock().push(Tombstone { space: space.id, seq: record.seq });
            }
        }
        for new in &change.added {
            space.apply_record(writer, &head, new);
        }
        space.raise_seq(change.last_seq);
        if is_new {
            // Within the gate: a seal must see the space if the log before it does.
            self.spaces_made.fetch_add(1, Ordering::AcqRel);
            self.spaces.insert(space.name.clone(), Arc::clone(space));
        }
        drop(gate);
        Ok(lsn)
    }

    /// The records to be removed, read before anything is submitted: damage must not leave a write half applied.
    fn read_removed(
        &self,
        space: &Space,
        change: &Change,
    ) -> Result<Vec<(RecordNo, Vec<u8>)>, Error> {
        let mut out = Vec::with_capacity(change.removed.len());
        for (no, _) in &change.removed {
            let Some(cell) = space.record(*no) else { continue };
            let bytes = self.parts.resolve(
                || cell.loc(),
                |part, loc| Ok(part.record_bytes(loc, cell.len)?.to_vec()),
            )?;
            out.extend(bytes.map(|b| (*no, b)));
        }
        Ok(out)
    }

    /// Gives memories their vectors, making them searchable; seqs that are gone or have theirs are skipped.
    /// Rows are normalised. Returns how many memories got theirs, when they are durable.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::DimMismatch`], [`Error::BadVector`], [`Error::TooLarge`], [`Error::Busy`],
    /// [`Error::Poisoned`], [`Error::Closed`].
    pub fn set_vectors(
        &self,
        name: &SpaceName,
        vectors: Vec<(Seq, Vec<Vec<f32>>)>,
    ) -> Result<usize, Error> {
        self.check_writable()?;
        let space = self.space(name)?;
        let mut entries = Vec::with_capacity(vectors.len());
        for (seq, rows) in vectors {
            entries.push((seq, self.unit_rows(rows)?));
        }
        let writer = space.writer.lock();
        let waits = |seq: Seq| {
            let no = space.by_seq(seq)?;
            let cell = space.record(no)?;
            (cell.is_live() && !cell.is_searchable()).then_some(no)
        };
        let mut seen = HashSet::new();
        entries
            .retain(|(seq, rows)| !rows.is_empty() && waits(*seq).is_some() && seen.insert(*seq));
        if writer.dropped || entries.is_empty() {
            return Ok(0);
        }
        let ops = vector_ops(space.id, &entries);
        let payloads = ops.into_iter().map(|op| (op.kind(), op.encode(self.dim()))).collect();
        let gate = self.gate.read();
        let lsn = self.wal.submit(payloads)?;
        let head = Arc::clone(&self.parts.now().head);
        for (seq, rows) in &entries {
            if let Some(no) = space.by_seq(*seq) {
                space.apply_rows(&head, no, rows);
            }
        }
        drop(gate);
        drop(writer);
        self.note_work(&space);
        self.wal.wait_acknowledged(lsn)?;
        Ok(entries.len())
    }

    /// Changes one memory: a new version with a new seq takes its place. With an unchanged text it keeps its vectors.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::NoSuchMemory`], [`Error::SeqMismatch`] if `if_seq` is not the present version, and
    /// those of [`Store::add`].
    pub fn update(
        &self,
        name: &SpaceName,
        id: &str,
        patch: Patch,
        if_seq: Option<Seq>,
    ) -> Result<Updated, Error> {
        self.check_writable()?;
        let space = self.space(name)?;
        let mut writer = space.writer.lock();
        let missing = || Error::NoSuchMemory { space: name.to_string(), id: id.to_owned() };
        let no = space.by_id(&self.parts, id)?.ok_or_else(missing)?;
        let (old_seq, old, were_own, request) = space
            .with_record(&self.parts, no, |cell, r| {
                (cell.seq, r.to_memory(cell.is_searchable()), r.own_vectors, r.request)
            })?
            .ok_or_else(missing)?;
        if let Some(expected) = if_seq.filter(|s| *s != old_seq) {
            return Err(Error::SeqMismatch { expected, found: old_seq });
        }
        let same_text = patch.text.as_ref().is_none_or(|t| *t == old.text);
        let brings_vectors = patch.vectors.is_some();
        let own_vectors = brings_vectors || (same_text && were_own);
        let memory = NewMemory {
            id: old.id,
            text: patch.text.unwrap_or(old.text),
            role: patch.role.unwrap_or(old.role),
            session: patch.session.unwrap_or(old.session),
            ts_ms: patch.ts_ms.unwrap_or(old.ts_ms),
            meta: patch.meta.unwrap_or(old.meta),
            vectors: patch.vectors.or(patch.text_vectors.filter(|_| !same_text)),
            request,
        };
        let mut valid = self.validate(vec![memory])?;
        let Some(mut item) = valid.pop() else { return Err(missing()) };
        if same_text && !brings_vectors {
            item.rows = self.rows_of(&space, no)?;
        }
        let needs_vectors = item.rows.is_empty();
        let mut change =
            Change { removed: vec![(no, old_seq)], added: Vec::new(), last_seq: space.last_seq() };
        let seq = change.push(&item.memory, item.rows, own_vectors);
        let lsn = self.submit_change(&space, &mut writer, change, None)?;
        drop(writer);
        self.note_work(&space);
        self.wal.wait_acknowledged(lsn)?;
        Ok(Updated { seq, needs_vectors })
    }

    /// Deletes what `what` names, whole or not at all. A dry run only counts.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`]; [`Error::ExpectCount`] if another number of memories matches; [`Error::Busy`],
    /// [`Error::Poisoned`], [`Error::Closed`], [`Error::Corrupt`].
    pub fn delete(
        &self,
        name: &SpaceName,
        what: &Selection,
        dry_run: bool,
        expect_count: Option<u64>,
    ) -> Result<Deleted, Error> {
        let space = self.space(name)?;
        let mut writer = space.writer.lock();
        let (found, missing) = match what {
            Selection::Ids(ids) => {
                let unique: HashSet<&str> = ids.iter().map(String::as_str).collect();
                let found = unique.iter().filter_map(|id| space.by_id(&self.parts, id).transpose());
                let mut found = found.collect::<Result<Vec<_>, _>>()?;
                found.sort();
                let missing = unique.len() - found.len();
                (found, missing as u64)
            }
            Selection::Filter(filter) => {
                (self.matching(&space, Some(filter), None, 0, usize::MAX)?, 0)
            }
        };
        let matched = found.len() as u64;
        if let Some(expected) = expect_count.filter(|e| *e != matched) {
            return Err(Error::ExpectCount { expected, found: matched });
        }
        if dry_run {
            return Ok(Deleted { matched, deleted: 0, missing, seq: space.last_seq() });
        }
        self.check_writable()?;
        let removed =
            found.iter().filter_map(|no| space.record(*no).map(|c| (*no, c.seq))).collect();
        let change = Change { removed, added: Vec::new(), last_seq: space.last_seq() };
        let lsn = self.submit_change(&space, &mut writer, change, None)?;
        let seq = space.last_seq();
        drop(writer);
        self.wal.wait_acknowledged(lsn)?;
        Ok(Deleted { matched, deleted: matched, missing, seq })
    }

    /// Drops a space with all it holds; returns how many memories that were.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::Busy`], [`Error::DiskFull`], [`Error::Poisoned`], [`Error::ReadOnly`], [`Error::Closed`].
    pub fn drop_space(&self, name: &SpaceName) -> Result<u64, Error> {
        self.check_writable()?;
        let _one_maker = self.making.lock();
        let space = self.space(name)?;
        let mut writer = space.writer.lock();
        let op = Op::Drop { space: space.id };
        let gate = self.gate.read();
        let lsn = self.wal.submit(vec![(op.kind(), op.encode(self.dim()))])?;
        let dropped = space.live();
        space.set_dropped(&mut writer);
        self.spaces.remove(name);
        drop(gate);
        drop(writer);
        self.wal.wait_acknowledged(lsn)?;
        Ok(dropped)
    }

    /// Returns once everything acknowledged before is on the device, whatever the store's [`Durability`](crate::Durability);
    /// the LSN up to which that holds.
    ///
    /// # Errors
    /// [`Error::Poisoned`], [`Error::Closed`].
    pub fn sync(&self) -> Result<Lsn, Error> {
        self.check_open()?;
        self.wal.wait_durable(self.wal.last_op())?;
        Ok(self.wal.durable_lsn())
    }

    pub(super) fn rows_of(&self, space: &Space, no: RecordNo) -> Result<Rows, Error> {
        let Some(cell) = space.record(no) else { return Ok(Rows::new()) };
        let range = cell.vectors();
        let mut rows = vec![0.0; range.len() * self.dim()];
        for (v, row) in range.zip(rows.chunks_exact_mut(self.dim())) {
            self.copy_row(space, v, row)?;
        }
        Ok(rows)
    }

    fn validate(&self, items: Vec<NewMemory>) -> Result<Vec<Valid>, Error> {
        if items.is_empty() {
            return Err(Error::invalid("items", "is empty; give at least one"));
        }
        let mut seen = HashSet::with_capacity(items.len());
        for item in &items {
            check_memory(item)?;
            if !seen.insert(item.id.as_str()) {
                return Err(Error::DuplicateInRequest { id: item.id.clone() });
            }
        }
        let valid = |mut memory: NewMemory| {
            let rows = match memory.vectors.take() {
                Some(rows) if rows.is_empty() => {
                    return Err(Error::invalid("vectors", "is empty; leave it out instead"));
                }
                Some(rows) => self.unit_rows(rows)?,
                None => Rows::new(),
            };
            Ok(Valid { memory, rows })
        };
        items.into_iter().map(valid).collect()
    }

    /// Rows of unit length, one after the other.
    fn unit_rows(&self, rows: Vec<Vec<f32>>) -> Result<Rows, Error> {
        at_most("the number of vectors of one memory", rows.len(), VECTORS_MAX)?;
        let mut out = Rows::with_capacity(rows.len() * self.dim());
        for row in rows {
            let start = out.len();
            out.extend_from_slice(&self.unit(&row)?);
            debug_assert_eq!(out.len(), start + self.dim());
        }
        Ok(out)
    }

    /// `vector` scaled to unit length.
    pub(super) fn unit(&self, vector: &[f32]) -> Result<Vec<f32>, Error> {
        if vector.len() != self.dim() {
            return Err(Error::DimMismatch { expected: self.dim(), got: vector.len() });
        }
        if vector.iter().any(|v| !v.is_finite()) {
            return Err(Error::BadVector { why: "has a component that is not a finite number" });
        }
        // In f64: squares of f32 values neither overflow nor vanish there.
        let norm = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 {
            return Err(Error::BadVector { why: "is all zeros" });
        }
        Ok(vector.iter().map(|v| (f64::from(*v) / norm) as f32).collect())
    }
}

impl Change {
    /// Appends a new version; returns its seq.
    fn push(&mut self, memory: &NewMemory, rows: Rows, own_vectors: bool) -> Seq {
        self.last_seq = Seq(self.last_seq.0 + 1);
        let mut bytes = Vec::new();
        RecordRef::of(self.last_seq, memory, own_vectors).encode(&mut bytes);
        self.added.push(NewRecord { bytes, rows });
        self.last_seq
    }

    /// The change as log records of bounded size, to be submitted as one batch.
    fn ops(&self, space: SpaceId) -> Vec<Op> {
        let added = packed(&self.added, |new| new.bytes.len() + new.rows.len() * 4);
        let removed: Vec<_> = self.removed.chunks(REMOVED_PER_RECORD).collect();
        let op = |i: usize| Op::Write {
            space,
            last_seq: self.last_seq,
            removed: removed.get(i).map_or(Vec::new(), |r| r.iter().map(|r| r.1).collect()),
            added: added.get(i).map_or(Vec::new(), |a| a.to_vec()),
        };
        (0..added.len().max(removed.len())).map(op).collect()
    }
}

/// Vector entries as log records of bounded size.
fn vector_ops(space: SpaceId, entries: &[(Seq, Rows)]) -> Vec<Op> {
    let parts = packed(entries, |(_, rows)| rows.len() * 4);
    parts.into_iter().map(|part| Op::Vectors { space, entries: part.to_vec() }).collect()
}

/// `items` cut into runs of at most [`RECORD_SOFT_BYTES`]; a larger item stands alone.
fn packed<T>(items: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut runs = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, item) in items.iter().enumerate() {
        let item_bytes = bytes(item);
        if i > start && size + item_bytes > RECORD_SOFT_BYTES {
            runs.push(&items[start..i]);
            (start, size) = (i, 0);
        }
        size += item_bytes;
    }
    if start < items.len() {
        runs.push(&items[start..]);
    }
    runs
}

fn at_most(what: &'static str, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit {
        return Err(Error::TooLarge { what, size: size as u64, limit: limit as u64 });
    }
    Ok(())
}

fn check_memory(m: &NewMemory) -> Result<(), Error> {
    if m.id.is_empty() {
        return Err(Error::invalid("id", "is empty; leave it out to have one made"));
    }
    if m.text.is_empty() {
        return Err(Error::invalid("text", "is empty; a memory needs at least one character"));
    }
    at_most("id, in bytes,", m.id.len(), ID_MAX_BYTES)?;
    at_most("role, in bytes,", m.role.as_ref().map_or(0, String::len), LABEL_MAX_BYTES)?;
    at_most("session, in bytes,", m.session.as_ref().map_or(0, String::len), LABEL_MAX_BYTES)?;
    at_most("text, in bytes,", m.text.len(), TEXT_MAX_BYTES)?;
    at_most("meta, in bytes,", m.meta.as_ref().map_or(0, String::len), META_MAX_BYTES)?;
    if let Some(meta) = &m.meta {
        match serde_json::from_str::<serde_json::Value>(meta) {
            Ok(serde_json::Value::Object(_)) => {}
            Ok(_) => return Err(Error::invalid("meta", "must be a JSON object")),
            Err(e) => return Err(Error::invalid("meta", format!("is not JSON: {e}"))),
        }
    }
    Ok(())
}

/// Used by recovery: applies one operation of the log to spaces already there.
pub(super) fn replay_write(
    space: &Space,
    parts: &crate::parts::Parts,
    head: &Head,
    last_seq: Seq,
    removed: &[Seq],
    added: &[NewRecord],
) -> Result<bool, Error> {
    let mut writer = space.writer.lock();
    for seq in removed {
        let Some(no) = space.by_seq(*seq) else { continue };
        let bytes = space.with_record(parts, no, |_, r| {
            let mut bytes = Vec::new();
            r.encode(&mut bytes);
            bytes
        })?;
        if let Some(record) = bytes.as_deref().and_then(RecordRef::decode) {
            space.remove(&mut writer, no, &record);
        }
    }
    for new in added {
        let Some(record) = RecordRef::decode(&new.bytes) else { return Ok(false) };
        // Idempotent: a record that a segment already holds is not applied twice.
        if space.by_seq(record.seq).is_none() {
            space.apply_record(&mut writer, head, new);
        }
    }
    space.raise_seq(last_seq);
    Ok(true)
}
