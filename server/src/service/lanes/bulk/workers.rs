//! The threads of the bulk lane that embed, and the rings between them and the coordinator.
//!
//! Invariant: a job that was taken comes back exactly once, as vectors or as a reason, also when the runtime panics. What a
//! worker shares with others is a ring with one thread at each end, a call and counters: a worker at idle priority that
//! the kernel stops holds nothing up. Workers must not know the store.

use crate::embed::{EmbedError, EmbedSession, Embedder, Tokens};
use crate::service::counters::{Counters, count};
use crate::service::lanes::{LaneError, idle};
use flashbulb_engine::SpaceName;
use flashbulb_engine::sync::{Call, Consumer, Producer, PushError, ring};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

/// Jobs that may wait for one worker.
pub(super) const JOBS: usize = 32;

/// With so few jobs waiting, a worker calls for more.
const LOW: usize = 8;

/// Jobs that may wait for the express worker: few, so that what comes next can still be chosen.
const EXPRESS_JOBS: usize = 4;

/// Bytes of text that a worker takes at a time where a device runs many texts at once: some thousands of tokens.
const BATCH_BYTES: usize = 16 << 10;

/// Longest sleep of a worker; a call ends it.
const IDLE: Duration = Duration::from_secs(60);

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

/// What everyone in the lane may read and nobody waits for.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// The lane is to end. Set once by who stops it (Release), read between windows (Acquire). No model: nothing is
    /// handed over with it, and who sleeps is called after it is set.
    closed: AtomicBool,
    /// Jobs that have not come back. Written by the coordinator, read for reports; Relaxed: a count. No model.
    pub(super) out: AtomicUsize,
    /// Windows that workers at idle priority have embedded: while it grows, the lane does not starve. Added to by workers,
    /// read by the coordinator; Relaxed: a count. No model.
    pub(super) idle_windows: AtomicU64,
    /// Texts that were given to the express worker because they had waited too long. As `out`.
    pub(super) aged: AtomicU64,
}

impl Board {
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// The coordinator's side of one worker.
pub(super) struct Post {
    jobs: Producer<Job>,
    done: Consumer<Done>,
    call: Arc<Call>,
    /// Jobs that have not come back.
    out: usize,
}

/// The worker's side.
pub(super) struct Desk {
    pub(super) jobs: Consumer<Job>,
    pub(super) done: Producer<Done>,
    coordinator: Arc<Call>,
}

/// A post for `places` jobs whose worker is `call`ed, and the desk for it.
pub(super) fn post(places: usize, call: Arc<Call>, coordinator: Arc<Call>) -> (Post, Desk) {
    let (jobs, taken) = ring(places);
    // Room for everything that can be out: what waits, and what the worker is at.
    let (given, done) = ring(places * 2);
    (Post { jobs, done, call, out: 0 }, Desk { jobs: taken, done: given, coordinator })
}

impl Post {
    /// Gives the worker a job; gives it back where there is no room.
    pub(super) fn push(&mut self, job: Job) -> Result<(), Job> {
        self.jobs.push(job).map_err(PushError::into_item)?;
        self.out += 1;
        self.call.call();
        Ok(())
    }

    /// What has come back next.
    pub(super) fn take_done(&mut self) -> Option<Done> {
        let done = self.done.pop()?;
        self.out = self.out.saturating_sub(1);
        Some(done)
    }

    /// Jobs that have not come back.
    pub(super) fn out(&self) -> usize {
        self.out
    }

    /// Whether another job finds a place.
    pub(super) fn has_room(&self) -> bool {
        !self.jobs.is_full()
    }
}

impl Desk {
    /// Gives a job back and calls the coordinator where it has something to do: when few jobs are left, or `at_once`.
    pub(super) fn give_back(&mut self, done: Done, at_once: bool) {
        if self.done.push(done).is_err() {
            // The coordinator has gone, and the store still lists the text as not embedded.
            return;
        }
        if at_once || self.jobs.len() <= LOW {
            self.coordinator.call();
        }
    }
}

/// At which priority a worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Idle priority: for what nobody waits for.
    Idle,
    /// A little below the ordinary: for what somebody waits for, and for what has waited too long.
    Express,
}

/// A worker that was started.
pub(super) struct Started {
    pub(super) post: Post,
    pub(super) call: Arc<Call>,
    pub(super) thread: JoinHandle<()>,
    /// What it runs at: read back from the system, or why not.
    pub(super) priority: String,
}

/// Starts one worker; it has made its session and lowered its priority when this returns.
pub(super) fn start(
    name: String,
    pace: Pace,
    embedder: &Arc<Embedder>,
    board: &Arc<Board>,
    counters: &Arc<Counters>,
    coordinator: &Arc<Call>,
) -> Result<Started, LaneError> {
    let session = session(embedder, pace)?;
    let (told, heard) = sync_channel(1);
    let (give_desk, take_desk) = sync_channel::<Desk>(1);
    let mut worker = Worker {
        session: Some(session),
        pace,
        embedder: Arc::clone(embedder),
        board: Arc::clone(board),
        counters: Arc::clone(counters),
    };
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let call = Arc::new(Call::here());
        if told.send((Arc::clone(&call), lower(pace))).is_err() {
            return;
        }
        if let Ok(desk) = take_desk.recv() {
            worker.run(desk, &call);
        }
    })?;
    let gone = |_| LaneError::Thread(std::io::Error::other("a worker ended while it started"));
    let (call, priority) = heard.recv().map_err(gone)?;
    let places = if pace == Pace::Express { EXPRESS_JOBS } else { JOBS };
    let (post, desk) = post(places, Arc::clone(&call), Arc::clone(coordinator));
    give_desk.send(desk).map_err(|_| LaneError::Thread(std::io::Error::other("a worker ended")))?;
    Ok(Started { post, call, thread, priority })
}

/// Lowers the calling thread and says what it runs at.
fn lower(pace: Pace) -> String {
    let lowered = match pace {
        Pace::Idle => idle::lower_this_thread().map(str::to_owned),
        Pace::Express => idle::lower_this_thread_a_little().map(|()| "nice".to_owned()),
    };
    lowered.unwrap_or_else(|reason| {
        tracing::warn!(reason, "a bulk worker at ordinary priority");
        reason
    })
}

/// A session for what a worker of this pace runs: many texts at once where the device gains by it, and nobody waits.
fn session(embedder: &Embedder, pace: Pace) -> Result<EmbedSession, EmbedError> {
    match pace {
        Pace::Idle if embedder.batches() => embedder.batch_session(),
        _ => embedder.session(),
    }
}

/// The vectors of a text's windows, or the reason why there are none.
type Outcome = Result<Vec<Vec<f32>>, String>;

struct Worker {
    /// Gone after a panic inside the runtime; made anew for the next job.
    session: Option<EmbedSession>,
    pace: Pace,
    embedder: Arc<Embedder>,
    board: Arc<Board>,
    counters: Arc<Counters>,
}

impl Worker {
    fn run(&mut self, mut desk: Desk, call: &Call) {
        let many = self.pace == Pace::Idle && self.embedder.batches();
        // On a processor a batch costs what its texts cost one by one, and a query would wait for the whole.
        let budget = if many { BATCH_BYTES } else { 1 };
        let mut jobs = Vec::new();
        while !self.board.is_closed() {
            desk.jobs.pop_batch(budget, |job| job.text.len().max(1), &mut jobs);
            if jobs.is_empty() {
                if desk.jobs.is_finished() {
                    return;
                }
                call.wait(IDLE);
                continue;
            }
            let outcomes = self.embed(&jobs);
            for (job, outcome) in jobs.drain(..).zip(outcomes) {
                desk.give_back(Done { job, outcome }, self.pace == Pace::Express);
            }
        }
    }

    /// One outcome a job, in their order.
    fn embed(&mut self, jobs: &[Job]) -> Vec<Outcome> {
        let windows: Vec<Result<Vec<Tokens>, String>> =
            jobs.iter().map(|job| self.windows(&job.text)).collect();
        if let [Ok(one)] = &windows[..] {
            return vec![self.guarded(|worker, session| worker.embed_windows(session, one))];
        }
        let all: Vec<Tokens> = windows.iter().flatten().flatten().cloned().collect();
        let together = self.guarded(|worker, session| worker.embed_together(session, &all));
        let mut vectors = together.map(Vec::into_iter);
        let mut outcomes = Vec::with_capacity(jobs.len());
        for windows in windows {
            let outcome = windows.and_then(|windows| match &mut vectors {
                Ok(vectors) => Ok(vectors.by_ref().take(windows.len()).collect()),
                // One text's failure must not be the others'.
                Err(_) => self.guarded(|worker, session| worker.embed_windows(session, &windows)),
            });
            outcomes.push(outcome);
        }
        outcomes
    }

    fn windows(&self, text: &str) -> Result<Vec<Tokens>, String> {
        let windows = self.embedder.document_windows(text).map_err(|error| error.to_string())?;
        if windows.is_empty() { Err("the text has no tokens".to_owned()) } else { Ok(windows) }
    }

    /// Runs with the session, and makes a new one for the next time where the runtime panics.
    fn guarded(&mut self, run: impl FnOnce(&Self, &mut EmbedSession) -> Outcome) -> Outcome {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => session(&self.embedder, self.pace).map_err(|error| error.to_string())?,
        };
        match catch_unwind(AssertUnwindSafe(|| run(self, &mut session))) {
            Ok(outcome) => {
                self.session = Some(session);
                outcome
            }
            Err(_) => Err("the runtime panicked".to_owned()),
        }
    }

    /// One window after another, so that the lane can end between two.
    fn embed_windows(&self, session: &mut EmbedSession, windows: &[Tokens]) -> Outcome {
        let mut vectors = Vec::with_capacity(windows.len());
        for tokens in windows {
            if self.board.is_closed() {
                return Err("the service is stopping".to_owned());
            }
            vectors.push(session.embed(tokens).map_err(|error| error.to_string())?);
            self.embedded(1);
        }
        Ok(vectors)
    }

    fn embed_together(&self, session: &mut EmbedSession, windows: &[Tokens]) -> Outcome {
        let vectors = session.embed_batch(windows).map_err(|error| error.to_string())?;
        self.embedded(windows.len() as u64);
        Ok(vectors)
    }

    fn embedded(&self, windows: u64) {
        count(&self.counters.windows_bulk, windows);
        if self.pace == Pace::Idle {
            self.board.idle_windows.fetch_add(windows, Ordering::Relaxed);
        }
    }
}
