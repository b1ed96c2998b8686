//! Search by vector.
//!
//! Invariant: no lock that a writer holds, and no allocation in the graph walk; every hit was live, accepted and of this
//! space when it was looked at; a memory with several vectors appears once, with its best.

use std::cell::Cell;
use std::collections::HashSet;

use super::Store;
use crate::error::Error;
use crate::index::{Accept, RowSource, SearchParams, SearchResult, VectorNo};
use crate::space::{RecordNo, Space};
use crate::types::{Found, Hit, K_MAX, Query, SpaceName};

/// How often a search is repeated because a hit was deleted while it ran.
const RACE_RETRIES: usize = 3;

/// Where the index reads f32 rows from.
struct Rows<'a> {
    store: &'a Store,
    space: &'a Space,
}

impl RowSource for Rows<'_> {
    type Error = Error;

    fn copy_row(&self, vector: VectorNo, out: &mut [f32]) -> Result<(), Error> {
        self.store.copy_row(self.space, vector.0, out)
    }

    fn prefetch(&self, vector: VectorNo) {
        let Some(cell) = self.space.vectors.get(vector.0) else { return };
        let dim = self.space.index.dim();
        // A row that has moved is copied from where it is then: asking for it is a hint.
        let _ = self.store.parts.resolve(
            || cell.loc(),
            |part, loc| {
                part.prefetch_row(loc, dim);
                Ok(())
            },
        );
    }
}

impl Store {
    /// Copies the vector `no`; zeros if its memory died and its bytes were given up while a search ran.
    pub(super) fn copy_row(&self, space: &Space, no: u32, out: &mut [f32]) -> Result<(), Error> {
        let Some(cell) = space.vectors.get(no) else {
            out.fill(0.0);
            return Ok(());
        };
        let copied = self
            .parts
            .resolve(|| cell.loc(), |part, loc| part.copy_row(loc, out).map(|()| true))?;
        if copied.is_none() {
            out.fill(0.0);
        }
        Ok(())
    }

    /// The `k` live memories nearest to the query that match, best first.
    ///
    /// # Errors
    /// [`Error::NoSuchSpace`]; [`Error::Invalid`] for `k` out of range; [`Error::DimMismatch`], [`Error::BadVector`];
    /// [`Error::Corrupt`] if a vector or memory that was needed is damaged; [`Error::Closed`].
    pub fn search(&self, name: &SpaceName, query: &Query<'_>) -> Result<Found, Error> {
        let space = self.space(name)?;
        if !(1..=K_MAX).contains(&query.k) {
            let why = format!("is {}, it must lie within 1 and {K_MAX}", query.k);
            return Err(Error::invalid("k", why));
        }
        let unit = self.unit(query.vector)?;
        let mut scratch = self.scratches.pop().unwrap_or_default();
        let mut outcome = Err(Error::Closed);
        for _ in 0..=RACE_RETRIES {
            outcome = self.search_once(&space, &unit, query, &mut scratch);
            match &outcome {
                Ok((_, raced)) if *raced => {}
                _ => break,
            }
        }
        // A full queue means more scratches than are worth keeping.
        let _ = self.scratches.push(scratch);
        outcome.map(|(found, _)| found)
    }

    /// One try; `true` beside the result if a hit was deleted while it ran.
    fn search_once(
        &self,
        space: &Space,
        unit: &[f32],
        query: &Query<'_>,
        scratch: &mut crate::index::Scratch,
    ) -> Result<(Found, bool), Error> {
        let failed = Cell::new(None);
        let record_of = |v: VectorNo| space.vectors.get(v.0).and_then(|c| c.record());
        let test = |v: VectorNo| {
            record_of(v)
                .is_some_and(|no| self.accepts(space, no, query.filter, query.time, &failed))
        };
        let all = query.filter.is_none() && query.time.is_none();
        let accept = if all { Accept::All } else { Accept::Test(&test) };
        let rows = Rows { store: self, space };
        let mut wanted = query.k;
        loop {
            let mut params = SearchParams::new(wanted);
            params.ef = query.ef.unwrap_or(params.ef).max(wanted);
            params.exact = query.exact;
            let result = space.index.search(unit, &params, &rows, accept, scratch)?;
            if let Some(e) = failed.take() {
                return Err(e);
            }
            let exhausted = result.hits.len() < wanted;
            let (hits, raced) = memories(space, &result, query.k);
            // Several vectors of one memory fill several places: look for more until k memories are there.
            if hits.len() >= query.k || exhausted || raced {
                let found = Found {
                    hits,
                    path: result.path,
                    scanned: result.scanned,
                    waiting: space.pending_len(),
                    simd: self.kernels.level(),
                };
                return Ok((found, raced));
            }
            wanted = wanted.saturating_mul(2).max(wanted + 16);
        }
    }
}

/// The best vector of each live memory, at most `k`; `true` if a memory died meanwhile.
fn memories(space: &Space, result: &SearchResult, k: usize) -> (Vec<Hit>, bool) {
    let mut seen: HashSet<RecordNo> = HashSet::with_capacity(result.hits.len());
    let mut hits = Vec::with_capacity(k.min(result.hits.len()));
    let mut raced = false;
    for (v, score) in &result.hits {
        let Some(no) = space.vectors.get(v.0).and_then(|c| c.record()) else { continue };
        let Some(cell) = space.record(no) else { continue };
        if !cell.is_live() {
            raced = true;
        } else if hits.len() < k && seen.insert(no) {
            hits.push(Hit { seq: cell.seq, score: score.clamp(-1.0, 1.0) });
        }
    }
    (hits, raced)
}
