//! The seam between the engine and time.
//!
//! Invariant: time never goes back. Knows nothing of what is timed. A test may put its own clock in place of [`SystemClock`].

use std::time::{Duration, Instant};

/// What the engine asks of a clock.
pub(crate) trait Clock: Send + Sync + std::fmt::Debug {
    /// Time since some moment before the store was opened.
    fn now(&self) -> Duration;
    /// How long a wait that is meant to last `span` shall last; `None`: until something happens.
    fn patience(&self, span: Duration) -> Option<Duration>;
}

/// The operating system's monotonic clock.
#[derive(Debug)]
pub(crate) struct SystemClock(Instant);

impl SystemClock {
    pub(crate) fn new() -> SystemClock {
        SystemClock(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn patience(&self, span: Duration) -> Option<Duration> {
        Some(span)
    }
}
