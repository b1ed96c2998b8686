//! Counts since start, for `admin.status`.
//!
//! Invariant: counters only grow. They must not hold anything that tells one space from another.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counts since start.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: AtomicU64,)+ }

        /// A reading of [`Counters`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub struct CountersReading { $($(#[doc = $doc])+ pub $name: u64,)+ }

        impl Counters {
            /// Reads all of them; not one instant, but each no older than the call.
            #[must_use]
            pub fn read(&self) -> CountersReading {
                CountersReading { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    connections,
    /// Connections turned away because all places were taken.
    connections_refused,
    /// Requests worked on.
    requests,
    /// Requests answered with an error.
    errors,
    /// Requests answered with `Busy`.
    busy,
    /// Searches and small adds that were not embedded because their deadline had passed.
    cancelled_deadline,
    /// Searches that were not embedded because their client had gone.
    cancelled_gone,
    /// Handlers that panicked; each is a bug worth reporting.
    panics,
    /// Searches.
    searches,
    /// Memories added or replaced.
    memories_added,
    /// Queries whose vector was kept from an earlier one in the same space.
    queries_cached,
    /// Queries that were embedded, because none was kept.
    queries_not_cached,
    /// Windows embedded for queries and small adds.
    windows_interactive,
    /// Windows embedded by the bulk lane.
    windows_bulk,
    /// Memories whose vectors were taken from the same text in the same space.
    texts_reused,
    /// Attempts at embedding that failed.
    embed_failures,
    /// Rounds of upkeep that failed.
    upkeep_failures,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_shows_what_was_counted() {
        let counters = Counters::default();
        count(&counters.searches, 2);
        count(&counters.searches, 1);
        assert_eq!(counters.read().searches, 3);
        assert_eq!(counters.read().errors, 0);
    }
}
