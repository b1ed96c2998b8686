//! Texts that could not be embedded, and when to try them again.
//!
//! Invariant: a failing memory is never forgotten while it is in the store, and never tried more often than its schedule
//! says, so it cannot starve the others. It must not know why embedding fails.

use flashbulb_engine::{Seq, SpaceName};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Tries after which a memory counts as failed.
const TRIES: u32 = 3;

/// Waits after the first and the second failure, and after every later one.
const WAITS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(600)];

struct Failure {
    tries: u32,
    retry_at: Instant,
    /// Being tried again at the moment.
    under_way: bool,
}

/// The memories that failed at least once.
#[derive(Default)]
pub(super) struct Failures(HashMap<(SpaceName, Seq), Failure>);

impl Failures {
    /// Records one more failure.
    pub(super) fn record(&mut self, memory: (SpaceName, Seq), now: Instant) {
        let failure =
            self.0.entry(memory).or_insert(Failure { tries: 0, retry_at: now, under_way: false });
        let wait = WAITS[(failure.tries as usize).min(WAITS.len() - 1)];
        failure.tries += 1;
        failure.retry_at = now + wait;
        failure.under_way = false;
    }

    /// Forgets a memory that has its vectors or is gone.
    pub(super) fn forget(&mut self, memory: &(SpaceName, Seq)) {
        self.0.remove(memory);
    }

    /// Whether the memory has failed before.
    pub(super) fn is_recorded(&self, memory: &(SpaceName, Seq)) -> bool {
        self.0.contains_key(memory)
    }

    /// Whether the memory waits for its next try.
    pub(super) fn is_waiting(&self, memory: &(SpaceName, Seq)) -> bool {
        self.0.get(memory).is_some_and(|failure| !failure.under_way)
    }

    /// Memories whose next try is due; they count as under way from here on.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(SpaceName, Seq)> {
        self.0
            .iter_mut()
            .filter(|(_, failure)| !failure.under_way && failure.retry_at <= now)
            .map(|(memory, failure)| {
                failure.under_way = true;
                memory.clone()
            })
            .collect()
    }

    /// When the next try is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().filter(|failure| !failure.under_way).map(|failure| failure.retry_at).min()
    }

    /// Everything recorded, given up or not.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Memories given up for now, by space.
    pub(super) fn given_up(&self) -> HashMap<SpaceName, u64> {
        let mut by_space = HashMap::new();
        for ((space, _), failure) in &self.0 {
            if failure.tries >= TRIES {
                *by_space.entry(space.clone()).or_default() += 1;
            }
        }
        by_space
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_failure_is_retried_on_schedule_and_given_up_after_three() {
        let start = Instant::now();
        let memory = (SpaceName::parse("s").unwrap(), Seq(1));
        let mut failures = Failures::default();
        let mut now = start;
        for (tries, wait) in [(1, 1), (2, 10), (3, 600), (4, 600)] {
            failures.record(memory.clone(), now);
            assert!(failures.is_waiting(&memory));
            let due = now + Duration::from_secs(wait);
            assert_eq!(failures.next_due(), Some(due));
            assert!(failures.take_due(due - Duration::from_millis(1)).is_empty());
            assert_eq!(failures.take_due(due), std::slice::from_ref(&memory));
            assert!(failures.take_due(due).is_empty(), "not twice");
            assert_eq!(failures.given_up().len(), usize::from(tries >= 3));
            now = due;
        }
        failures.forget(&memory);
        assert_eq!((failures.len(), failures.next_due()), (0, None));
    }
}
