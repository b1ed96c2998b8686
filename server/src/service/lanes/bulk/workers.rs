//! The worker threads of the bulk lane and the queue between them and the coordinator.
//!
//! Invariant: a job that was taken comes back exactly once, as vectors or as a reason, also when the runtime panics. The
//! lock here is held for a push or a pop only, by the coordinator and by workers; no connection ever takes it. Workers
//! must not know the store.

use crate::embed::{EmbedSession, Embedder};
use crate::service::counters::{Counters, count};
use crate::service::lanes::{LaneError, idle};
use flashbulb_engine::SpaceName;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// A text of a space; equal texts of one space are one job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Job {
    pub(super) space: SpaceName,
    pub(super) text: Arc<str>,
}

/// What became of a job.
pub(super) struct Done {
    pub(super) job: Job,
    pub(super) outcome: Result<Vec<Vec<f32>>, String>,
}

/// The queue and what is known of the workers.
pub(super) struct Workers {
    /// With so few jobs waiting, more are wanted.
    low: usize,
    state: Mutex<State>,
    work: Condvar,
    closed: AtomicBool,
    queued: AtomicUsize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    /// The coordinator knows that there is something to store, and will look again in time.
    group_begun: bool,
    priorities: Vec<String>,
}

impl Workers {
    /// No jobs; the coordinator is called when no more than `low` wait.
    pub(super) fn new(low: usize) -> Self {
        Self {
            low,
            state: Mutex::default(),
            work: Condvar::new(),
            closed: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
        }
    }

    /// Queues a job, in front of all others where it is urgent.
    pub(super) fn push(&self, job: Job, urgent: bool) {
        let mut state = self.state.lock();
        if urgent {
            state.jobs.push_front(job);
        } else {
            state.jobs.push_back(job);
        }
        self.queued.fetch_add(1, Ordering::Relaxed);
        drop(state);
        self.work.notify_one();
    }

    /// Jobs that no worker has taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().jobs.len()
    }

    /// Jobs that have not come back, without taking the lock.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Takes what has come back.
    pub(super) fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut self.state.lock().done)
    }

    /// What each worker runs at.
    pub(super) fn priorities(&self) -> Vec<String> {
        self.state.lock().priorities.clone()
    }

    /// Ends the workers after the window they are at.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.state.lock());
        self.work.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if self.is_closed() {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            self.work.wait(&mut state);
        }
    }

    /// Gives a job back, and says whether the coordinator has something to do: the first of a group begins its wait, a
    /// short queue wants filling, and the last one ends both.
    #[must_use]
    pub(super) fn give_back(&self, done: Done) -> bool {
        let mut state = self.state.lock();
        state.done.push(done);
        let left = self.queued.fetch_sub(1, Ordering::Relaxed) - 1;
        let first = !std::mem::replace(&mut state.group_begun, true);
        first || left == 0 || state.jobs.len() <= self.low
    }

    /// What was taken so far is a whole group; says whether the next has begun already.
    pub(super) fn end_group(&self) -> bool {
        let mut state = self.state.lock();
        state.group_begun = !state.done.is_empty();
        state.group_begun
    }
}

/// Starts one worker; it has made its session and lowered its priority when this returns or soon after.
pub(super) fn spawn(
    index: usize,
    workers: Arc<Workers>,
    embedder: Arc<Embedder>,
    counters: Arc<Counters>,
    coordinator: Thread,
) -> Result<JoinHandle<()>, LaneError> {
    let session = embedder.session()?;
    let thread = std::thread::Builder::new().name(format!("bulk-{index}")).spawn(move || {
        let priority = match idle::lower_this_thread() {
            Ok(policy) => policy.to_owned(),
            Err(reason) => {
                tracing::warn!(worker = index, reason, "bulk worker at ordinary priority");
                reason
            }
        };
        workers.state.lock().priorities.push(priority);
        let mut worker = Worker { session: Some(session), workers, embedder, counters };
        while let Some(job) = worker.workers.next() {
            let outcome = worker.embed(&job.text);
            if worker.workers.give_back(Done { job, outcome }) {
                coordinator.unpark();
            }
        }
    })?;
    Ok(thread)
}

struct Worker {
    /// Gone after a panic inside the runtime; made anew for the next job.
    session: Option<EmbedSession>,
    workers: Arc<Workers>,
    embedder: Arc<Embedder>,
    counters: Arc<Counters>,
}

impl Worker {
    fn embed(&mut self, text: &str) -> Result<Vec<Vec<f32>>, String> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.embedder.session().map_err(|error| error.to_string())?,
        };
        let embedded = catch_unwind(AssertUnwindSafe(|| self.embed_windows(&mut session, text)));
        match embedded {
            Ok(outcome) => {
                self.session = Some(session);
                outcome
            }
            Err(_) => Err("the runtime panicked".to_owned()),
        }
    }

    fn embed_windows(
        &self,
        session: &mut EmbedSession,
        text: &str,
    ) -> Result<Vec<Vec<f32>>, String> {
        let windows = self.embedder.document_windows(text).map_err(|error| error.to_string())?;
        if windows.is_empty() {
            return Err("the text has no tokens".to_owned());
        }
        let mut vectors = Vec::with_capacity(windows.len());
        for tokens in &windows {
            if self.workers.is_closed() {
                return Err("the service is stopping".to_owned());
            }
            vectors.push(session.embed(tokens).map_err(|error| error.to_string())?);
            count(&self.counters.windows_bulk, 1);
        }
        Ok(vectors)
    }
}
