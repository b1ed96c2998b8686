//! Reading memories by id, by seq, by page and by neighbourhood.
//!
//! Invariant: only live memories are returned, in the order asked for; damage is an error, never an absence.

use std::cell::{Cell, OnceCell};

use serde_json::Value;

use super::Store;
use crate::error::Error;
use crate::filter::{Filter, Subject};
use crate::space::{RecordCell, RecordNo, Space};
use crate::types::{Memory, Page, Seq, SpaceName, TimeRange};

/// A memory as a filter sees it; its meta is read and parsed only when a condition asks.
struct Candidate<'a> {
    store: &'a Store,
    space: &'a Space,
    no: RecordNo,
    cell: &'a RecordCell,
    meta: OnceCell<Option<Value>>,
    failed: &'a Cell<Option<Error>>,
}

impl Subject for Candidate<'_> {
    fn role(&self) -> Option<&str> {
        self.space.role(self.cell)
    }

    fn session(&self) -> Option<&str> {
        self.space.session(self.cell)
    }

    fn meta(&self) -> Option<&Value> {
        if !self.cell.has_meta {
            return None;
        }
        let read = || {
            let parse = |_: &RecordCell, r: &crate::record::RecordRef<'_>| {
                r.meta.and_then(|m| serde_json::from_str(m).ok())
            };
            match self.space.with_record(&self.store.parts, self.no, parse) {
                Ok(meta) => meta.flatten(),
                Err(e) => {
                    self.failed.set(Some(e));
                    None
                }
            }
        };
        self.meta.get_or_init(read).as_ref()
    }
}

impl Store {
    /// Whether a live memory lies in `time` and matches `filter`; damage met on the way goes to `failed`.
    pub(super) fn accepts(
        &self,
        space: &Space,
        no: RecordNo,
        filter: Option<&Filter>,
        time: Option<TimeRange>,
        failed: &Cell<Option<Error>>,
    ) -> bool {
        let Some(cell) = space.record(no).filter(|c| c.is_live()) else { return false };
        if time.is_some_and(|t| !t.contains(cell.ts_ms)) {
            return false;
        }
        let Some(filter) = filter else { return true };
        let meta = OnceCell::new();
        filter.matches(&Candidate { store: self, space, no, cell, meta, failed })
    }

    /// Up to `limit` live memories from record `from` on that match, in order.
    pub(super) fn matching(
        &self,
        space: &Space,
        filter: Option<&Filter>,
        time: Option<TimeRange>,
        from: u32,
        limit: usize,
    ) -> Result<Vec<RecordNo>, Error> {
        let failed = Cell::new(None);
        let mut found = Vec::new();
        for no in (from..space.records.len()).map(RecordNo) {
            if found.len() == limit {
                break;
            }
            if self.accepts(space, no, filter, time, &failed) {
                found.push(no);
            }
            if let Some(e) = failed.take() {
                return Err(e);
            }
        }
        Ok(found)
    }

    fn memory(&self, space: &Space, no: RecordNo) -> Result<Option<Memory>, Error> {
        let memory = space.with_record(&self.parts, no, |cell, r| {
            cell.is_live().then(|| r.to_memory(cell.is_searchable()))
        })?;
        Ok(memory.flatten())
    }

    /// The memories with these seqs; `None` for those deleted since.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::Corrupt`], [`Error::Closed`].
    pub fn fetch(&self, name: &SpaceName, seqs: &[Seq]) -> Result<Vec<Option<Memory>>, Error> {
        let space = self.space(name)?;
        let one = |seq: &Seq| space.by_seq(*seq).map_or(Ok(None), |no| self.memory(&space, no));
        seqs.iter().map(one).collect()
    }

    /// The memories with these ids, `None` where there is none.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::Corrupt`], [`Error::Closed`].
    pub fn get(&self, name: &SpaceName, ids: &[String]) -> Result<Vec<Option<Memory>>, Error> {
        let space = self.space(name)?;
        let one = |id: &String| match space.by_id(&self.parts, id)? {
            Some(no) => self.memory(&space, no),
            None => Ok(None),
        };
        ids.iter().map(one).collect()
    }

    /// One page of memories behind `after`, in the order of the space.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::Corrupt`], [`Error::Closed`].
    pub fn list(
        &self,
        name: &SpaceName,
        filter: Option<&Filter>,
        time: Option<TimeRange>,
        after: Option<Seq>,
        limit: usize,
    ) -> Result<Page, Error> {
        let space = self.space(name)?;
        let from = after.map_or(0, |seq| space.lower_bound(Seq(seq.0.saturating_add(1))));
        let found = self.matching(&space, filter, time, from, limit.saturating_add(1))?;
        let mut items = Vec::with_capacity(found.len().min(limit));
        for no in found.iter().take(limit) {
            items.extend(self.memory(&space, *no)?);
        }
        let more = found.len() > limit;
        let last = found.get(limit.wrapping_sub(1)).and_then(|no| space.record(*no));
        Ok(Page { items, next: last.filter(|_| more).map(|c| c.seq) })
    }

    /// The memory `id` with up to `before` live memories before it and `after` behind it, in order.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::NoSuchMemory`], [`Error::Corrupt`], [`Error::Closed`].
    pub fn around(
        &self,
        name: &SpaceName,
        id: &str,
        before: usize,
        after: usize,
    ) -> Result<Vec<Memory>, Error> {
        let space = self.space(name)?;
        let missing = || Error::NoSuchMemory { space: name.to_string(), id: id.to_owned() };
        let no = space.by_id(&self.parts, id)?.ok_or_else(missing)?;
        let own = self.memory(&space, no)?.ok_or_else(missing)?;
        let mut out = self.walk(&space, (0..no.0).rev(), before)?;
        out.reverse();
        out.push(own);
        out.extend(self.walk(&space, no.0 + 1..space.records.len(), after)?);
        Ok(out)
    }

    /// The live memories before and behind the one with this seq, each in order.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::Corrupt`], [`Error::Closed`].
    pub fn neighbors(
        &self,
        name: &SpaceName,
        seq: Seq,
        before: usize,
        after: usize,
    ) -> Result<(Vec<Memory>, Vec<Memory>), Error> {
        let space = self.space(name)?;
        let mut earlier = self.walk(&space, (0..space.lower_bound(seq)).rev(), before)?;
        earlier.reverse();
        let from = space.lower_bound(Seq(seq.0.saturating_add(1)));
        let later = self.walk(&space, from..space.records.len(), after)?;
        Ok((earlier, later))
    }

    /// The first `count` live memories among `numbers`.
    fn walk(
        &self,
        space: &Space,
        numbers: impl Iterator<Item = u32>,
        count: usize,
    ) -> Result<Vec<Memory>, Error> {
        let mut out = Vec::new();
        if count == 0 {
            return Ok(out);
        }
        for no in numbers.map(RecordNo) {
            if space.record(no).is_some_and(RecordCell::is_live) {
                out.extend(self.memory(space, no)?);
                if out.len() == count {
                    break;
                }
            }
        }
        Ok(out)
    }
}
