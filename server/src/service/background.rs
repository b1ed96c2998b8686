//! The one scheduler of background work: log files in reserve, sealing, merging, graphs, checkpoints, and whatever comes to
//! the store's list of jobs.
//!
//! Invariant: one thread at idle priority does one job at a time in small quanta, and between two quanta lets a query go
//! first that is being embedded; it sleeps when nothing is to do. What it did can be watched. A failure is counted,
//! logged and tried again, never ignored. It must not know what a job consists of, nor take a lock that a query takes.

use crate::service::counters::{Counters, count};
use crate::service::lanes::idle;
use crate::service::lifecycle::{Cause, Lifecycle};
use flashbulb_engine::{Error, Job, Pace, Store};
use parking_lot::Mutex;
use serde::Serialize;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Graphs are built for so long at a time.
const QUANTUM: Duration = Duration::from_millis(5);

/// Longest that one quantum lets queries go first: locks of upkeep are held meanwhile.
const GIVE_WAY: Duration = Duration::from_millis(4);

/// How often it looks whether the query is done.
const LOOK: Duration = Duration::from_micros(500);

/// Longest sleep without a call; the store may have work that depends on time.
const IDLE: Duration = Duration::from_secs(10);

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// What one job has done. Written by the scheduler's thread, read for reports; Relaxed: counts. No model.
#[derive(Debug, Default)]
struct Done {
    quanta: AtomicU64,
    total_us: AtomicU64,
    longest_us: AtomicU64,
}

/// What the thread shows of itself.
#[derive(Debug, Default)]
struct Board {
    /// In the order of [`Job::ALL`].
    done: [Done; Job::ALL.len()],
    /// Place of the job at hand in [`Job::ALL`], one added; 0 where there is none. As [`Done`].
    running: AtomicUsize,
}

/// What one job has done, for `admin.status`.
#[derive(Debug, Serialize)]
pub struct JobStatus {
    /// Its name.
    pub name: &'static str,
    /// Stretches of work between two moments at which queries could go first.
    pub quanta: u64,
    /// All of them together, in milliseconds.
    pub total_ms: u64,
    /// The longest, in microseconds; at idle priority, time in which the processor was taken away counts too.
    pub longest_quantum_us: u64,
    /// Whether it has more to do.
    pub due: bool,
}

/// What the scheduler is doing, for `admin.status`.
#[derive(Debug, Serialize)]
pub struct BackgroundStatus {
    /// What the thread runs at: `SCHED_IDLE`, or why not.
    pub priority: String,
    /// The job at hand.
    pub running: Option<&'static str>,
    /// All jobs, the most urgent first.
    pub jobs: Vec<JobStatus>,
}

/// The thread's handle.
pub struct Background {
    thread: Mutex<Option<JoinHandle<()>>>,
    waker: Thread,
    priority: Arc<Mutex<String>>,
    board: Arc<Board>,
}

impl Background {
    /// Starts the thread. `queries` counts the queries that are being embedded.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        store: Arc<Store>,
        queries: Arc<AtomicUsize>,
        counters: Arc<Counters>,
        lifecycle: Arc<Lifecycle>,
    ) -> std::io::Result<Self> {
        let priority = Arc::new(Mutex::new("starting".to_owned()));
        let board = Arc::new(Board::default());
        let reported = Arc::clone(&priority);
        let shown = Arc::clone(&board);
        let thread = std::thread::Builder::new().name("background".into()).spawn(move || {
            *reported.lock() = match idle::lower_this_thread() {
                Ok(policy) => policy.to_owned(),
                Err(reason) => {
                    tracing::warn!(reason, "background work at ordinary priority");
                    reason
                }
            };
            let worker = Worker { store, queries, counters, lifecycle, board: shown };
            worker.run();
        })?;
        Ok(Self {
            waker: thread.thread().clone(),
            thread: Mutex::new(Some(thread)),
            priority,
            board,
        })
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

    /// What it is doing and has done.
    #[must_use]
    pub fn status(&self) -> BackgroundStatus {
        let running = self.board.running.load(Ordering::Relaxed);
        let jobs = Job::ALL.iter().zip(&self.board.done).enumerate();
        BackgroundStatus {
            priority: self.priority(),
            running: running.checked_sub(1).and_then(|at| Job::ALL.get(at)).map(|job| job.name()),
            jobs: jobs
                .map(|(at, (job, done))| JobStatus {
                    name: job.name(),
                    quanta: done.quanta.load(Ordering::Relaxed),
                    total_ms: done.total_us.load(Ordering::Relaxed) / 1000,
                    longest_quantum_us: done.longest_us.load(Ordering::Relaxed),
                    due: running == at + 1,
                })
                .collect(),
        }
    }

    /// Waits for the thread's end; the service must be stopping.
    pub fn join(&self) {
        self.waker.unpark();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the background work had panicked");
        }
    }
}

impl Board {
    fn number(job: Job) -> Option<usize> {
        Job::ALL.iter().position(|known| *known == job)
    }

    fn add(&self, job: Job, took: Duration) {
        let Some(at) = Self::number(job) else { return };
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let done = &self.done[at];
        done.quanta.fetch_add(1, Ordering::Relaxed);
        done.total_us.fetch_add(us, Ordering::Relaxed);
        done.longest_us.fetch_max(us, Ordering::Relaxed);
        self.running.store(at + 1, Ordering::Relaxed);
    }
}

struct Worker {
    store: Arc<Store>,
    queries: Arc<AtomicUsize>,
    counters: Arc<Counters>,
    lifecycle: Arc<Lifecycle>,
    board: Arc<Board>,
}

impl Worker {
    fn run(&self) {
        while !self.lifecycle.is_stopping() {
            let sleep = match catch_unwind(AssertUnwindSafe(|| self.quantum())) {
                Ok(Ok(true)) => {
                    self.give_way();
                    continue;
                }
                Ok(Ok(false)) => IDLE,
                Ok(Err(Error::Closed)) => return,
                Ok(Err(Error::Poisoned { cause })) => {
                    self.lifecycle.stop(Cause::Poisoned(cause));
                    return;
                }
                Ok(Err(error)) => {
                    count(&self.counters.upkeep_failures, 1);
                    tracing::error!(%error, "background work failed; it will be tried again");
                    RETRY
                }
                Err(_) => {
                    count(&self.counters.panics, 1);
                    tracing::error!("background work panicked; it will be tried again");
                    RETRY
                }
            };
            self.board.running.store(0, Ordering::Relaxed);
            std::thread::park_timeout(sleep);
        }
    }

    /// Works on the most urgent job; false when there is none.
    fn quantum(&self) -> Result<bool, Error> {
        let begun = Cell::new(Instant::now());
        let pause = |job| {
            self.board.add(job, begun.get().elapsed());
            self.give_way();
            begun.set(Instant::now());
        };
        let worked = self.store.work(QUANTUM, &Pace::new(&pause))?;
        if let Some(job) = worked {
            self.board.add(job, begun.get().elapsed());
        }
        Ok(worked.is_some())
    }

    /// Waits a little while a query is being embedded. The kernel lets it go first in any case; this leaves it the caches
    /// and the disk too.
    fn give_way(&self) {
        let begun = Instant::now();
        while self.queries.load(Ordering::Relaxed) > 0 && begun.elapsed() < GIVE_WAY {
            std::thread::park_timeout(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use flashbulb_engine::{NewMemory, OnConflict, SpaceName, StoreOptions};

    #[test]
    fn jobs_are_done_watched_and_give_way() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = StoreOptions::new(8, "test");
        options.seal_bytes = 1 << 20;
        let store = Arc::new(Store::open(&dir.path().join("store"), options).unwrap());
        let queries = Arc::new(AtomicUsize::new(1));
        let lifecycle = Arc::new(Lifecycle::default());
        let background = Background::start(
            Arc::clone(&store),
            Arc::clone(&queries),
            Arc::default(),
            Arc::clone(&lifecycle),
        )
        .unwrap();
        let space = SpaceName::parse("a").unwrap();
        let items = (0..2000).map(|n| NewMemory {
            id: n.to_string(),
            text: "x".repeat(1000),
            vectors: Some(vec![vec![1.0; 8]]),
            ..NewMemory::default()
        });
        store.add(&space, items.collect(), OnConflict::Error).unwrap();
        let seal = || background.status().jobs.into_iter().find(|job| job.name == "seal").unwrap();
        let begun = Instant::now();
        while seal().quanta == 0 {
            background.wake();
            assert!(begun.elapsed() < Duration::from_secs(30), "nothing was sealed");
            std::thread::sleep(Duration::from_millis(1));
        }
        while store.status().segments == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "the seal does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        // Two megabytes in quanta of a quarter of one, each waiting for the query that never ends.
        assert!(begun.elapsed() >= 6 * GIVE_WAY, "the seal gave no way: {:?}", begun.elapsed());
        assert!(seal().quanta >= 6 && seal().longest_quantum_us > 0, "{:?}", seal());
        lifecycle.stop(Cause::Requested);
        background.join();
        store.close().unwrap();
    }
}
