//! An array that only grows, with one writer at a time and lock-free readers.
//!
//! Invariant: `get(i)` for `i < len()` is always there, whole, at one address for the life of the
//! array. Must not know: what the items mean.

use super::chunks::Chunks;
use super::publication::{Publication, ReleaseAcquire};
use std::fmt;

/// Append-only array. Empty, it is about 250 bytes and no allocation.
///
/// Writers exclude one another with a lock that readers never touch; the length is stored with
/// Release after the item and loaded with Acquire before it. Loom model:
/// `append_vec_publishes_whole_items`.
pub struct AppendVec<T, P = ReleaseAcquire> {
    items: Chunks<T, P>,
}

impl<T> AppendVec<T> {
    /// An empty array; allocates nothing.
    pub fn new() -> AppendVec<T> {
        AppendVec::with_publication()
    }
}

impl<T> Default for AppendVec<T> {
    fn default() -> Self {
        AppendVec::new()
    }
}

impl<T, P: Publication> AppendVec<T, P> {
    /// An empty array that publishes as `P` says.
    pub fn with_publication() -> AppendVec<T, P> {
        AppendVec { items: Chunks::new(1) }
    }

    /// Appends an item and returns its number. Readers see it at once.
    ///
    /// # Panics
    ///
    /// If [`MAX_ITEMS`](super::MAX_ITEMS) are stored.
    pub fn push(&self, item: T) -> u32 {
        // SAFETY: the closure writes the one value of the item.
        unsafe { self.items.push_with(|to| to.write(item)) }
    }

    /// Items that can be read.
    pub fn len(&self) -> u32 {
        self.items.len()
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item of this number, or `None` if it is not there yet.
    #[inline]
    pub fn get(&self, at: u32) -> Option<&T> {
        self.reader().get(at)
    }

    /// A view of the items that are there now: it loads the length once, not with every item.
    #[inline]
    pub fn reader(&self) -> AppendReader<'_, T, P> {
        AppendReader { items: &self.items, len: self.items.len() }
    }
}

impl<T, P> fmt::Debug for AppendVec<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppendVec").finish_non_exhaustive()
    }
}

/// A view of an [`AppendVec`] as long as it was when the view was made.
pub struct AppendReader<'a, T, P = ReleaseAcquire> {
    items: &'a Chunks<T, P>,
    /// At most the published length.
    len: u32,
}

impl<T, P> Clone for AppendReader<'_, T, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, P> Copy for AppendReader<'_, T, P> {}

impl<'a, T, P: Publication> AppendReader<'a, T, P> {
    /// Items in the view.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the view is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item of this number, or `None` if it is not in the view.
    #[inline]
    pub fn get(&self, at: u32) -> Option<&'a T> {
        if at >= self.len {
            return None;
        }
        // SAFETY: `at` is below the published length, so the item is initialised; it is never
        // written again and lives as long as the array.
        Some(unsafe { &*self.items.item(at) })
    }

    /// Asks the processor to load the item. Does nothing for items out of view.
    #[inline]
    pub fn prefetch(&self, at: u32) {
        if at < self.len {
            // SAFETY: `at` is below the published length.
            unsafe { self.items.prefetch(at) };
        }
    }
}

impl<T, P> fmt::Debug for AppendReader<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppendReader").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn keeps_items_in_place_across_chunks() {
        let v = AppendVec::new();
        assert!(v.is_empty() && v.get(0).is_none());
        assert_eq!(v.push(0u64), 0);
        let first: *const u64 = v.get(0).expect("pushed");
        for i in 1..5_000u64 {
            assert_eq!(u64::from(v.push(i * 3)), i);
        }
        assert_eq!(v.len(), 5_000);
        assert!(std::ptr::eq(first, v.get(0).expect("pushed")), "items never move");
        assert!((0..5_000).all(|i| v.get(i) == Some(&(u64::from(i) * 3))));
        assert!(v.get(5_000).is_none());
    }

    #[test]
    fn a_reader_does_not_grow() {
        let v = AppendVec::new();
        v.push(1u8);
        let reader = v.reader();
        v.push(2);
        assert_eq!((reader.len(), reader.get(1)), (1, None));
        assert_eq!(v.get(1), Some(&2));
    }

    #[test]
    fn drops_every_item_once() {
        let token = Arc::new(());
        let v = AppendVec::new();
        for _ in 0..100 {
            v.push(Arc::clone(&token));
        }
        assert_eq!(Arc::strong_count(&token), 101);
        drop(v);
        assert_eq!(Arc::strong_count(&token), 1);
    }
}
