//! The thread that runs the store's upkeep: graph inserts, sealing, checkpoints.
//!
//! Invariant: it runs at idle priority and sleeps when the store has nothing to do; a failure is counted, logged and
//! tried again, never ignored. It must not know what upkeep consists of.

use crate::service::counters::{Counters, count};
use crate::service::lanes::idle;
use crate::service::lifecycle::{Cause, Lifecycle};
use flashbulb_engine::{Error, Store};
use parking_lot::Mutex;
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

/// Work done between two looks at whether the service is stopping.
const BUDGET: Duration = Duration::from_millis(50);

/// Longest sleep without a call; the store may have work that depends on time.
const IDLE: Duration = Duration::from_secs(10);

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The thread's handle.
pub struct Upkeep {
    thread: Mutex<Option<JoinHandle<()>>>,
    waker: Thread,
    priority: Arc<Mutex<String>>,
}

impl Upkeep {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        store: Arc<Store>,
        counters: Arc<Counters>,
        lifecycle: Arc<Lifecycle>,
    ) -> std::io::Result<Self> {
        let priority = Arc::new(Mutex::new("starting".to_owned()));
        let reported = Arc::clone(&priority);
        let thread = std::thread::Builder::new().name("upkeep".into()).spawn(move || {
            *reported.lock() = match idle::lower_this_thread() {
                Ok(policy) => policy.to_owned(),
                Err(reason) => {
                    tracing::warn!(reason, "upkeep at ordinary priority");
                    reason
                }
            };
            run(&store, &counters, &lifecycle);
        })?;
        Ok(Self { waker: thread.thread().clone(), thread: Mutex::new(Some(thread)), priority })
    }

    /// Says that the store may have something to do.
    pub fn wake(&self) {
        self.waker.unpark();
    }

    /// The thread's handle for wakers that outlive this borrow.
    #[must_use]
    pub fn waker(&self) -> Thread {
        self.waker.clone()
    }

    /// What the thread runs at: `SCHED_IDLE`, or why not.
    #[must_use]
    pub fn priority(&self) -> String {
        self.priority.lock().clone()
    }

    /// Waits for the thread's end; the service must be stopping.
    pub fn join(&self) {
        self.waker.unpark();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the upkeep thread had panicked");
        }
    }
}

fn run(store: &Store, counters: &Counters, lifecycle: &Lifecycle) {
    while !lifecycle.is_stopping() {
        let round = || store.maintain(BUDGET);
        let sleep = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(round)) {
            Ok(Ok(true)) => continue,
            Ok(Ok(false)) => IDLE,
            Ok(Err(Error::Closed)) => return,
            Ok(Err(Error::Poisoned { cause })) => {
                lifecycle.stop(Cause::Poisoned(cause));
                return;
            }
            Ok(Err(error)) => {
                count(&counters.upkeep_failures, 1);
                tracing::error!(%error, "upkeep of the store failed; it will be tried again");
                RETRY
            }
            Err(_) => {
                count(&counters.panics, 1);
                tracing::error!("upkeep of the store panicked; it will be tried again");
                RETRY
            }
        };
        std::thread::park_timeout(sleep);
    }
}
