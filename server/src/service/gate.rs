//! A bounded count of things under way: requests, sessions waited for.
//!
//! Invariant: at most `limit` permits exist at one time, and each is given back exactly once, also on a panic. It must not
//! wait: who comes too late is told so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A limit and the number of permits out.
#[derive(Debug)]
pub struct Gate {
    limit: usize,
    taken: AtomicUsize,
}

/// One place inside a [`Gate`]; dropping it gives it back.
#[derive(Debug)]
pub struct Permit(Arc<Gate>);

impl Gate {
    /// A gate with `limit` places.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicUsize::new(0) })
    }

    /// Takes a place, unless all are taken.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<Permit> {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |taken| {
                (taken < self.limit).then_some(taken + 1)
            })
            .ok()
            .map(|_| Permit(Arc::clone(self)))
    }

    /// Places taken at the moment.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// All places.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_more_than_the_limit_are_inside() {
        let gate = Gate::new(2);
        let first = gate.enter().unwrap();
        let _second = gate.enter().unwrap();
        assert!(gate.enter().is_none());
        drop(first);
        assert!(gate.enter().is_some());
        assert_eq!(gate.taken(), 1);
    }

    #[test]
    fn a_panic_gives_the_place_back() {
        let gate = Gate::new(1);
        let inside = Arc::clone(&gate);
        let outcome = std::thread::spawn(move || {
            let _permit = inside.enter().unwrap();
            panic!("as a handler might");
        })
        .join();
        assert!(outcome.is_err());
        assert_eq!(gate.taken(), 0);
    }
}
