//! The bulk lane: everything that is embedded in the background.
//!
//! Invariant: the store is the only record of what is still to be embedded ([`Store::pending`]); what is queued here is a
//! copy that may be lost at any time without losing work. No text is embedded twice in one space while its vectors are
//! at hand. A text that cannot be embedded is tried again, stays counted, and never stops the others.
//!
//! Threads: one *coordinator* a little below ordinary priority, which alone talks to the store and sleeps nearly always;
//! *workers* at idle priority, which see texts and tokens only; and one *express* worker a little below ordinary priority
//! for what somebody waits for, and for what has waited too long because the workers do not get to run (ageing). They share
//! rings, calls and counters with one another, and a mailbox with connections: no thread of this lane can hold anything
//! up by being stopped. The lane must not know the wire.

mod coordinator;
#[cfg(test)]
mod coordinator_tests;
mod failures;
mod workers;

use crate::embed::Embedder;
use crate::service::counters::{Counters, count};
use crate::service::lanes::{LaneError, idle};
use crate::service::lifecycle::Lifecycle;
use arc_swap::{ArcSwap, ArcSwapOption};
use coordinator::{Coordinator, Posts, Shared};
use flashbulb_engine::sync::{Call, Mailbox};
use flashbulb_engine::{Seq, SpaceName, Store};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use workers::{Board, Pace, Started};

/// Most memories waiting for the express worker; beyond it they queue with the rest.
const EXPRESS: u32 = 1024;

/// What connection threads and the coordinator share; nothing of it is locked.
struct Inbox {
    express: Mailbox<(SpaceName, Seq)>,
    /// There may be memories in the store that were never seen here.
    more: AtomicBool,
    /// Memories without vectors: exact each time the store is asked, drifting by deletes in between.
    pending: AtomicUsize,
    /// Memories that are being stored and may come to be pending. Raised by who is about to store, lowered when that is done;
    /// Relaxed: a bound, which orders nothing. No model.
    reserved: AtomicUsize,
    /// Memories that could not be embedded, by space.
    failed: ArcSwap<HashMap<SpaceName, u64>>,
    failed_total: AtomicUsize,
    /// Why the last failure failed.
    last_failure: ArcSwapOption<String>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            express: Mailbox::new(EXPRESS),
            more: AtomicBool::new(false),
            pending: AtomicUsize::new(0),
            reserved: AtomicUsize::new(0),
            failed: ArcSwap::default(),
            failed_total: AtomicUsize::new(0),
            last_failure: ArcSwapOption::empty(),
        }
    }
}

/// The lane's handle.
pub struct Bulk {
    inbox: Arc<Inbox>,
    board: Arc<Board>,
    /// Calls the coordinator.
    coordinator: Arc<Call>,
    /// Call the workers.
    workers: Vec<Arc<Call>>,
    /// What each runs at, the express worker's first.
    priority: Vec<String>,
    /// The coordinator's first.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What `admin.status` says of the lane.
#[derive(Debug, Serialize)]
pub struct BulkStatus {
    /// Worker threads.
    pub workers: usize,
    /// What each worker runs at: `SCHED_IDLE`, or why not.
    pub priority: Vec<String>,
    /// What the express worker runs at: `nice`, or why not.
    pub express_priority: String,
    /// Memories without vectors, about.
    pub pending: usize,
    /// Texts handed to workers that have not come back.
    pub queued: usize,
    /// Memories that wait for the express worker.
    pub express: usize,
    /// Texts that the express worker took because workers at idle priority did not get to run.
    pub aged: u64,
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
        let board = Arc::new(Board::default());
        let shared = Shared {
            store,
            inbox: Arc::clone(&inbox),
            board: Arc::clone(&board),
            counters: Arc::clone(&counters),
            lifecycle,
        };
        let (coordinator, give_posts, handle) = spawn_coordinator(shared, committed)?;
        let start = |name: String, pace| {
            workers::start(name, pace, embedder, &board, &counters, &coordinator)
        };
        let mut started = vec![start("express".into(), Pace::Express)?];
        for index in 0..threads.max(1) {
            started.push(start(format!("bulk-{index}"), Pace::Idle)?);
        }
        let mut lane = Self {
            inbox,
            board: Arc::clone(&board),
            coordinator: Arc::clone(&coordinator),
            workers: Vec::new(),
            priority: Vec::new(),
            threads: Mutex::new(vec![handle]),
        };
        let mut posts = Vec::new();
        for Started { post, call, thread, priority } in started {
            posts.push(post);
            lane.workers.push(call);
            lane.priority.push(priority);
            lane.threads.get_mut().push(thread);
        }
        let express = posts.remove(0);
        // It ends only when the lane is stopped, and waits for this.
        let _ = give_posts.send(Posts { idle: posts, express });
        Ok(lane)
    }

    /// Reserves a place for `count` memories about to be stored without vectors; `None` where `limit` of them are pending or
    /// reserved already. Held until they were [`added`](Self::added) or were not stored.
    pub fn reserve(&self, count: usize, limit: usize) -> Option<Reserved> {
        let pending = self.pending();
        let room = |reserved: usize| (pending + reserved < limit).then_some(reserved + count);
        let reserved = self.inbox.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        reserved.ok().map(|_| Reserved { inbox: Arc::clone(&self.inbox), count })
    }

    /// Tells the lane of memories that were just stored without vectors.
    pub fn added(&self, space: &SpaceName, seqs: &[Seq], express: bool) {
        self.inbox.pending.fetch_add(seqs.len(), Ordering::Relaxed);
        let mut fits = express;
        if express {
            for &seq in seqs {
                fits &= self.inbox.express.put((space.clone(), seq)).is_ok();
            }
        }
        if !fits {
            self.inbox.more.store(true, Ordering::Release);
        }
        self.coordinator.call();
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
        self.inbox.failed.load().get(space).copied().unwrap_or(0)
    }

    /// What the lane is doing.
    #[must_use]
    pub fn status(&self) -> BulkStatus {
        BulkStatus {
            workers: self.workers.len().saturating_sub(1),
            priority: self.priority.iter().skip(1).cloned().collect(),
            express_priority: self.priority.first().cloned().unwrap_or_default(),
            pending: self.pending(),
            queued: self.board.out.load(Ordering::Relaxed),
            express: self.inbox.express.len(),
            aged: self.board.aged.load(Ordering::Relaxed),
            failed: self.inbox.failed_total.load(Ordering::Relaxed),
            last_failure: self.inbox.last_failure.load().as_deref().cloned(),
        }
    }

    /// Ends the threads: a worker after the window it is at, the coordinator after storing what is ready.
    pub fn stop(&self) {
        self.board.close();
        self.coordinator.call();
        self.workers.iter().for_each(|worker| worker.call());
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the bulk lane had panicked");
            }
        }
    }
}

/// Places for memories about to be stored.
#[must_use]
pub struct Reserved {
    inbox: Arc<Inbox>,
    count: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.inbox.reserved.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// A coordinator that was started: what calls it, what gives it its posts, and its thread.
type Waiting = (Arc<Call>, SyncSender<Posts>, JoinHandle<()>);

/// Starts the coordinator, which waits for its posts.
fn spawn_coordinator(
    shared: Shared,
    committed: impl Fn() + Send + 'static,
) -> Result<Waiting, LaneError> {
    let (told, heard) = sync_channel(1);
    let (give_posts, take_posts) = sync_channel::<Posts>(1);
    let thread = std::thread::Builder::new().name("bulk".into()).spawn(move || {
        if let Err(reason) = idle::lower_this_thread_a_little() {
            tracing::warn!(reason, "the bulk lane's coordinator at ordinary priority");
        }
        let call = Arc::new(Call::here());
        if told.send(Arc::clone(&call)).is_ok()
            && let Ok(mut posts) = take_posts.recv()
        {
            coordinate(&shared, &mut posts, &call, &committed);
        }
    })?;
    let ended = |_| LaneError::Thread(std::io::Error::other("it ended while it started"));
    Ok((heard.recv().map_err(ended)?, give_posts, thread))
}

/// Runs the coordinator; should it panic, a new one takes the work up from the store again.
fn coordinate(shared: &Shared, posts: &mut Posts, call: &Call, committed: &dyn Fn()) {
    loop {
        let run = || Coordinator::new(shared.clone(), posts).run(call, committed);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok() {
            return;
        }
        count(&shared.counters.panics, 1);
        tracing::error!("the bulk lane's coordinator panicked; starting another");
        shared.inbox.more.store(true, Ordering::Release);
        call.wait(std::time::Duration::from_secs(1));
    }
}

fn subtract(counter: &AtomicUsize, by: usize) {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count.saturating_sub(by)))
        .ok();
}
