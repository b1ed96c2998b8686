//! Things that are moved while they are read: where one lies, and the set of what it may lie in.
//!
//! Who moves a thing puts a new set in place that has the old home and the new one, then points the [`Place`] to the new, then
//! puts a set in place without the old home. Who reads loads the place first and the set after it, and begins again where
//! the set lacks what the place names and the place has changed meanwhile.
//!
//! Invariant: a reader of a thing that is only ever moved finds it; a set stays whole as long as somebody reads in it. Readers
//! take no lock. Must not know: what lies where.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{AtomicU64, Ordering};
use std::fmt;
use std::marker::PhantomData;

/// Where a thing lies, as a number.
pub struct Place<P: Publication = ReleaseAcquire> {
    /// Stored by who moves the thing, one at a time, with `P::STORE`, after a set that has its new home; loaded by readers with
    /// `P::LOAD` before they load the set. Model: `a_moving_thing_is_always_found`.
    at: AtomicU64,
    marker: PhantomData<P>,
}

impl<P: Publication> Place<P> {
    /// A thing that lies at `at`.
    pub fn new(at: u64) -> Place<P> {
        Place { at: AtomicU64::new(at), marker: PhantomData }
    }

    /// Where it lies.
    pub fn load(&self) -> u64 {
        self.at.load(P::LOAD)
    }

    /// Points to another place.
    pub fn store(&self, at: u64) {
        self.at.store(at, P::STORE);
    }
}

impl<P: Publication> fmt::Debug for Place<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({:#x})", self.at.load(Ordering::Relaxed))
    }
}

impl<T, P: Publication> Swapped<T, P> {
    /// Gives `find` the set and the place that `load` reads, until it finds the thing there; `None` if it does not although the
    /// place stays the same: the thing lies nowhere any more.
    pub fn find<R>(
        &self,
        load: impl Fn() -> u64,
        mut find: impl FnMut(&T, u64) -> Option<R>,
    ) -> Option<R> {
        let mut at = load();
        loop {
            if let Some(found) = find(&self.load(), at) {
                return Some(found);
            }
            let now = load();
            if now == at {
                return None;
            }
            at = now;
        }
    }
}

#[cfg(not(loom))]
pub use real::Swapped;

#[cfg(loom)]
pub use modelled::Swapped;

#[cfg(not(loom))]
mod real {
    use super::{Publication, ReleaseAcquire};
    use arc_swap::{ArcSwap, Guard};
    use std::marker::PhantomData;
    use std::ops::Deref;
    use std::sync::Arc;

    /// A set that is being read.
    #[derive(Debug)]
    pub struct Shown<T>(Guard<Arc<T>>);

    impl<T> Deref for Shown<T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }

    /// A set that is replaced whole; one thread at a time replaces it.
    #[derive(Debug)]
    pub struct Swapped<T, P: Publication = ReleaseAcquire> {
        now: ArcSwap<T>,
        marker: PhantomData<P>,
    }

    impl<T, P: Publication> Swapped<T, P> {
        /// Begins with `set`.
        pub fn new(set: T) -> Swapped<T, P> {
            Swapped { now: ArcSwap::from_pointee(set), marker: PhantomData }
        }

        /// The set as it is now; it stays whole until what is returned goes.
        pub fn load(&self) -> Shown<T> {
            Shown(self.now.load())
        }

        /// Puts `set` in its place.
        pub fn store(&self, set: T) {
            self.now.store(Arc::new(set));
        }
    }
}

#[cfg(loom)]
mod modelled {
    use super::{Publication, ReleaseAcquire};
    use crate::sync::shim::{AtomicPtr, Mutex, Ordering};
    use std::marker::PhantomData;

    /// What arc-swap promises, as loom can see it: a pointer that is published; sets live as long as this.
    #[derive(Debug)]
    pub struct Swapped<T, P: Publication = ReleaseAcquire> {
        now: AtomicPtr<T>,
        former: Mutex<Vec<*mut T>>,
        marker: PhantomData<P>,
    }

    // SAFETY: sets are shared by reference and dropped with this (`T: Send + Sync`).
    unsafe impl<T: Send + Sync, P: Publication> Sync for Swapped<T, P> {}
    // SAFETY: as above.
    unsafe impl<T: Send + Sync, P: Publication> Send for Swapped<T, P> {}

    impl<T, P: Publication> Swapped<T, P> {
        /// Begins with `set`.
        pub fn new(set: T) -> Swapped<T, P> {
            let now = AtomicPtr::new(Box::into_raw(Box::new(set)));
            Swapped { now, former: Mutex::new(Vec::new()), marker: PhantomData }
        }

        /// The set as it is now.
        pub fn load(&self) -> &T {
            // SAFETY: made by `Box::into_raw` and dropped only with `self`.
            unsafe { &*self.now.load(P::LOAD) }
        }

        /// Puts `set` in its place.
        pub fn store(&self, set: T) {
            let former = self.now.load(Ordering::Relaxed);
            self.now.store(Box::into_raw(Box::new(set)), P::STORE);
            self.former.lock().push(former);
        }
    }

    impl<T, P: Publication> Drop for Swapped<T, P> {
        fn drop(&mut self) {
            self.former.lock().push(self.now.load(Ordering::Relaxed));
            for set in self.former.lock().drain(..) {
                // SAFETY: made by `Box::into_raw`, and nobody reads any more.
                drop(unsafe { Box::from_raw(set) });
            }
        }
    }
}
