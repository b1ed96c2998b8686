//! Rows of one width, appended by one writer at a time and read without locks.
//!
//! Invariant: as for [`AppendVec`](super::AppendVec), row by row; rows of one chunk lie side by
//! side, so that a scan reads long runs. Must not know: what the values mean.

use super::chunks::Chunks;
use super::publication::{Publication, ReleaseAcquire};
use std::fmt;
use std::slice;

/// Append-only rows of `width` values. Rows start on a cache line where `width · size_of::<T>()` is
/// a multiple of 64; chunks always do. Loom model: `row_store_publishes_whole_rows`.
pub struct RowStore<T: Copy, P = ReleaseAcquire> {
    rows: Chunks<T, P>,
}

impl<T: Copy> RowStore<T> {
    /// No rows of `width` values each; allocates nothing.
    ///
    /// # Panics
    ///
    /// If `width` is 0.
    pub fn new(width: usize) -> RowStore<T> {
        RowStore::with_publication(width)
    }
}

impl<T: Copy, P: Publication> RowStore<T, P> {
    /// No rows, published as `P` says.
    ///
    /// # Panics
    ///
    /// If `width` is 0.
    pub fn with_publication(width: usize) -> RowStore<T, P> {
        RowStore { rows: Chunks::new(width) }
    }

    /// Appends a row and returns its number. Readers see it at once.
    ///
    /// # Panics
    ///
    /// If the row is not `width` values long, or [`MAX_ITEMS`](super::MAX_ITEMS) rows are stored.
    pub fn push(&self, row: &[T]) -> u32 {
        assert_eq!(row.len(), self.rows.width(), "a row has one width");
        // SAFETY: the closure copies `width` values, into memory that no reader sees yet.
        unsafe { self.rows.push_with(|to| to.copy_from_nonoverlapping(row.as_ptr(), row.len())) }
    }

    /// Rows that can be read.
    pub fn len(&self) -> u32 {
        self.rows.len()
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row of this number, or `None` if it is not there yet.
    #[inline]
    pub fn row(&self, at: u32) -> Option<&[T]> {
        self.reader().row(at)
    }

    /// A view of the rows that are there now.
    #[inline]
    pub fn reader(&self) -> RowReader<'_, T, P> {
        RowReader { rows: &self.rows, len: self.rows.len() }
    }
}

impl<T: Copy, P> fmt::Debug for RowStore<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowStore").finish_non_exhaustive()
    }
}

/// A view of a [`RowStore`] as long as it was when the view was made.
pub struct RowReader<'a, T: Copy, P = ReleaseAcquire> {
    rows: &'a Chunks<T, P>,
    /// At most the published length.
    len: u32,
}

impl<T: Copy, P> Clone for RowReader<'_, T, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Copy, P> Copy for RowReader<'_, T, P> {}

impl<'a, T: Copy, P: Publication> RowReader<'a, T, P> {
    /// Rows in the view.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the view is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.rows.width()
    }

    /// The row of this number, or `None` if it is not in the view.
    #[inline]
    pub fn row(&self, at: u32) -> Option<&'a [T]> {
        if at >= self.len {
            return None;
        }
        // SAFETY: `at` is below the published length, so all `width` values are initialised; they
        // are never written again and live as long as the store.
        Some(unsafe { slice::from_raw_parts(self.rows.item(at), self.rows.width()) })
    }

    /// The rows `from..to` in as few slices as they lie in; `to` is cut to the view.
    pub fn runs(&self, from: u32, to: u32) -> Runs<'a, T, P> {
        Runs { rows: self.rows, at: from, to: to.min(self.len) }
    }

    /// Asks the processor to load a row. Does nothing for rows out of view.
    #[inline]
    pub fn prefetch(&self, at: u32) {
        if at < self.len {
            // SAFETY: `at` is below the published length.
            unsafe { self.rows.prefetch(at) };
        }
    }
}

impl<T: Copy, P> fmt::Debug for RowReader<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowReader").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Runs of rows that lie side by side: (number of the first row, values of all of them).
pub struct Runs<'a, T: Copy, P = ReleaseAcquire> {
    rows: &'a Chunks<T, P>,
    at: u32,
    /// At most the published length.
    to: u32,
}

impl<'a, T: Copy, P: Publication> Iterator for Runs<'a, T, P> {
    type Item = (u32, &'a [T]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.to {
            return None;
        }
        // SAFETY: `at < to`, and `to` is at most the published length.
        let (first, count) = unsafe { self.rows.run(self.at, self.to) };
        // SAFETY: `run` gives `count` published rows that lie side by side.
        let values = unsafe { slice::from_raw_parts(first, count as usize * self.rows.width()) };
        let at = self.at;
        self.at += count;
        Some((at, values))
    }
}

impl<T: Copy, P> fmt::Debug for Runs<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runs").field("at", &self.at).field("to", &self.to).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_one_by_one_and_in_runs() {
        let store = RowStore::<i16>::new(3);
        for i in 0..1_000i16 {
            store.push(&[i, -i, 7]);
        }
        let view = store.reader();
        assert_eq!(view.row(999), Some(&[999, -999, 7][..]));
        assert_eq!(view.row(1_000), None);
        for (from, to) in [(0, 1_000), (5, 6), (15, 17), (40, 2_000), (7, 7), (9, 3)] {
            let mut seen = Vec::new();
            for (first, values) in view.runs(from, to) {
                assert_eq!(seen.len() as u32 + from, first);
                seen.extend(values.chunks(3).map(|r| r[0]));
            }
            let expected: Vec<i16> = (from..to.min(1_000)).map(|i| i as i16).collect();
            assert_eq!(seen, expected, "{from}..{to}");
        }
    }

    #[test]
    fn rows_of_whole_cache_lines_start_on_one() {
        let store = RowStore::<i8>::new(384);
        for _ in 0..20_000 {
            store.push(&[1; 384]);
        }
        let view = store.reader();
        assert!((0..20_000).all(|i| view.row(i).is_some_and(|r| r.as_ptr().addr() % 64 == 0)));
    }
}
