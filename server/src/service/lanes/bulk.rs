//! The bulk lane: everything that is embedded in the background.
//!
//! Invariant: the store is the only record of what is still to be embedded ([`Store::pending`]); what is queued here is a
//! copy that may be lost at any time without losing work. No text is embedded twice in one space while its vectors are
//! at hand. A text that cannot be embedded is tried again, stays counted, and never stops the others.
//!
//! Threads: one *coordinator* a little below ordinary priority, which alone talks to the store and sleeps nearly always,
//! and *workers* at idle priority, which see texts and tokens only. So no thread that can be stopped by the kernel for long
//! ever holds a lock of the store. The lane must not know the wire.

mod coordinator;
#[cfg(test)]
mod coordinator_tests;
mod failures;
mod workers;

use crate::embed::Embedder;
use crate::service::counters::{Counters, count};
use crate::service::lanes::{LaneError, idle};
use crate::service::lifecycle::Lifecycle;
use coordinator::{Coordinator, Shared};
use flashbulb_engine::{Seq, SpaceName, Store};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use workers::Workers;

/// Most memories waiting at the front of the lane; beyond it they queue with the rest.
const EXPRESS: usize = 1024;

/// Jobs kept waiting a worker, so that none runs dry while a write is under way.
const AHEAD: usize = 8;

/// What connection threads and the coordinator share: ordinary priority on both sides.
#[derive(Default)]
struct Inbox {
    express: Mutex<VecDeque<(SpaceName, Seq)>>,
    /// There may be memories in the store that were never seen here.
    more: AtomicBool,
    /// Memories without vectors: exact each time the store is asked, drifting by deletes in between.
    pending: AtomicUsize,
    /// Memories that could not be embedded, by space.
    failed: Mutex<HashMap<SpaceName, u64>>,
    failed_total: AtomicUsize,
    /// Why the last failure failed.
    last_failure: Mutex<Option<String>>,
}

/// The lane's handle.
pub struct Bulk {
    inbox: Arc<Inbox>,
    workers: Arc<Workers>,
    coordinator: Thread,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What `admin.status` says of the lane.
#[derive(Debug, Serialize)]
pub struct BulkStatus {
    /// Worker threads.
    pub workers: usize,
    /// What each worker runs at: `SCHED_IDLE`, or why not.
    pub priority: Vec<String>,
    /// Memories without vectors, about.
    pub pending: usize,
    /// Texts handed to workers and not yet embedded.
    pub queued: usize,
    /// Memories that could not be embedded; they are tried again every ten minutes.
    pub failed: usize,
    /// Why the last of them failed.
    pub last_failure: Option<String>,
}

impl Bulk {
    /// Makes the sessions and starts the threads; what the store has pending is taken up at once. `committed` is called
    /// after vectors have reached the store.
    ///
    /// # Errors
    /// When the runtime refuses a session.
    pub fn start(
        store: Arc<Store>,
        embedder: &Arc<Embedder>,
        threads: usize,
        counters: Arc<Counters>,
        lifecycle: Arc<Lifecycle>,
        committed: impl Fn() + Send + 'static,
    ) -> Result<Self, LaneError> {
        let inbox = Arc::new(Inbox::default());
        inbox.more.store(true, Ordering::Release);
        let ahead = threads.max(1) * AHEAD;
        let workers = Arc::new(Workers::new(ahead / 2));
        let shared = Shared {
            store,
            inbox: Arc::clone(&inbox),
            workers: Arc::clone(&workers),
            ahead,
            counters: Arc::clone(&counters),
            lifecycle,
        };
        let handle = std::thread::Builder::new().name("bulk".into()).spawn(move || {
            if let Err(reason) = idle::lower_this_thread_a_little() {
                tracing::warn!(reason, "the bulk lane's coordinator at ordinary priority");
            }
            coordinate(&shared, &committed);
        })?;
        let waker = handle.thread().clone();
        let mut handles = vec![handle];
        for index in 0..threads.max(1) {
            handles.push(workers::spawn(
                index,
                Arc::clone(&workers),
                Arc::clone(embedder),
                Arc::clone(&counters),
                waker.clone(),
            )?);
        }
        Ok(Self { inbox, workers, coordinator: waker, threads: Mutex::new(handles) })
    }

    /// Tells the lane of memories that were just stored without vectors.
    pub fn added(&self, space: &SpaceName, seqs: &[Seq], express: bool) {
        self.inbox.pending.fetch_add(seqs.len(), Ordering::Relaxed);
        let mut queued = false;
        if express {
            let mut front = self.inbox.express.lock();
            if front.len() + seqs.len() <= EXPRESS {
                front.extend(seqs.iter().map(|&seq| (space.clone(), seq)));
                queued = true;
            }
        }
        if !queued {
            self.inbox.more.store(true, Ordering::Release);
        }
        self.coordinator.unpark();
    }

    /// Memories without vectors, about.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.inbox.pending.load(Ordering::Relaxed)
    }

    /// Memories of a space that could not be embedded, though tried several times.
    #[must_use]
    pub fn failed(&self, space: &SpaceName) -> u64 {
        if self.inbox.failed_total.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.inbox.failed.lock().get(space).copied().unwrap_or(0)
    }

    /// What the lane is doing.
    #[must_use]
    pub fn status(&self) -> BulkStatus {
        BulkStatus {
            workers: self.workers.priorities().len(),
            priority: self.workers.priorities(),
            pending: self.pending(),
            queued: self.workers.queued(),
            failed: self.inbox.failed_total.load(Ordering::Relaxed),
            last_failure: self.inbox.last_failure.lock().clone(),
        }
    }

    /// Ends the threads: a worker after the window it is at, the coordinator after storing what is ready.
    pub fn stop(&self) {
        self.workers.close();
        self.coordinator.unpark();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the bulk lane had panicked");
            }
        }
    }
}

/// Runs the coordinator; should it panic, a new one takes the work up from the store again.
fn coordinate(shared: &Shared, committed: &dyn Fn()) {
    loop {
        let run = || Coordinator::new(shared.clone()).run(committed);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok() {
            return;
        }
        count(&shared.counters.panics, 1);
        tracing::error!("the bulk lane's coordinator panicked; starting another");
        shared.inbox.more.store(true, Ordering::Release);
        std::thread::park_timeout(std::time::Duration::from_secs(1));
    }
}

fn subtract(counter: &AtomicUsize, by: usize) {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count.saturating_sub(by)))
        .ok();
}
