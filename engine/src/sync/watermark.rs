//! How many of a row of things are done.
//!
//! Invariant: who reads `n` sees everything that was written before `n` was said. Must not know: what is done to them.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::AtomicU32;
use std::fmt;
use std::marker::PhantomData;

/// The number of the first thing that is not done yet.
pub struct Watermark<P = ReleaseAcquire> {
    /// Stored by the one writer with `P::STORE` after the work, loaded by readers with `P::LOAD` before they look for what was
    /// done. Model: `a_node_is_scanned_until_it_is_linked`.
    mark: AtomicU32,
    marker: PhantomData<P>,
}

impl Watermark {
    /// Nothing is done.
    pub fn new() -> Watermark {
        Watermark::with_publication()
    }
}

impl Default for Watermark {
    fn default() -> Self {
        Watermark::new()
    }
}

impl<P: Publication> Watermark<P> {
    /// Nothing is done; published as `P` says.
    pub fn with_publication() -> Watermark<P> {
        Watermark { mark: AtomicU32::new(0), marker: PhantomData }
    }

    /// The first so many are done.
    pub fn load(&self) -> u32 {
        self.mark.load(P::LOAD)
    }

    /// Says that the first `mark` are done. One writer.
    pub fn store(&self, mark: u32) {
        self.mark.store(mark, P::STORE);
    }
}

impl<P> fmt::Debug for Watermark<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watermark").finish_non_exhaustive()
    }
}
