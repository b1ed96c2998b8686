//! What waits for vectors, and who waits for what waits.
//!
//! Invariant: a text is named here as long as it lives without vectors, also after a restart. Knows nothing of models.

use std::time::Duration;

use super::{Access, Store};
use crate::error::Error;
use crate::record::text_hash;
use crate::space::{RecordNo, Space};
use crate::types::{Seq, SpaceName};

impl Store {
    /// Up to `limit` memories without vectors: the oldest of each space in turn, so that no space waits for another's
    /// backlog.
    /// None in a store that is open for reading: nothing could be given to them.
    pub fn pending(&self, limit: usize) -> Vec<(SpaceName, Seq)> {
        if self.access == Access::Read {
            return Vec::new();
        }
        let mut spaces = Vec::new();
        self.waiting.lock().retain(|_, space| {
            let space = space.upgrade().filter(|space| space.pending_len() > 0);
            let waits = space.is_some();
            spaces.extend(space);
            waits
        });
        let share = limit.div_ceil(spaces.len().max(1));
        let mut lists: Vec<Vec<Seq>> = spaces.iter().map(|space| space.pending(share)).collect();
        let mut room = limit.saturating_sub(lists.iter().map(Vec::len).sum());
        // What some spaces leave of their shares goes to those that have more.
        for (space, list) in spaces.iter().zip(&mut lists).filter(|(_, list)| list.len() == share) {
            if room > 0 {
                *list = space.pending(share + room);
                room -= list.len().saturating_sub(share).min(room);
            }
        }
        let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
        let in_turn = (0..longest).flat_map(|at| {
            let one_each = spaces.iter().zip(&lists);
            one_each.filter_map(move |(space, list)| Some((space.name.clone(), *list.get(at)?)))
        });
        in_turn.take(limit).collect()
    }

    /// The vectors of a memory of this space with exactly this text, if one is known that has them. Of different texts whose hashes
    /// share 32 bits, one is known: about five of 200,000 texts are not.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::Corrupt`], [`Error::Closed`].
    pub fn vectors_of_text(
        &self,
        name: &SpaceName,
        text: &str,
    ) -> Result<Option<Vec<Vec<f32>>>, Error> {
        let space = self.space(name)?;
        let found = space.with_text(&space.writer.lock(), text_hash(text));
        let Some(no) = found else { return Ok(None) };
        let same = space.with_record(&self.parts, no, |_, r| r.text == text)?;
        if same != Some(true) {
            return Ok(None);
        }
        self.rows_by_vector(&space, no)
    }

    /// The vectors of the live memory with this seq; `None` if there is none, or it waits for them.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], [`Error::Corrupt`], [`Error::Closed`].
    pub fn vectors_of(&self, name: &SpaceName, seq: Seq) -> Result<Option<Vec<Vec<f32>>>, Error> {
        let space = self.space(name)?;
        let live = |no: &RecordNo| space.record(*no).is_some_and(|record| record.is_live());
        let Some(no) = space.by_seq(seq).filter(live) else { return Ok(None) };
        self.rows_by_vector(&space, no)
    }

    /// The vectors of a memory, one by one; `None` if it has none.
    fn rows_by_vector(&self, space: &Space, no: RecordNo) -> Result<Option<Vec<Vec<f32>>>, Error> {
        let rows = self.rows_of(space, no)?;
        let rows: Vec<Vec<f32>> = rows.chunks_exact(self.dim()).map(<[f32]>::to_vec).collect();
        Ok((!rows.is_empty()).then_some(rows))
    }

    /// Waits until every live memory up to `seq` is searchable; `false` if one still is not after `span`.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`], also if the space is dropped meanwhile; [`Error::Closed`].
    pub fn wait_searchable(
        &self,
        name: &SpaceName,
        seq: Seq,
        span: Duration,
    ) -> Result<bool, Error> {
        let space = self.space(name)?;
        let done = space.wait_embedded(seq, &*self.clock, span);
        self.space(name).map(|_| done)
    }
}
