//! The coordinator of the bulk lane: finds work, hands it out, stores what comes back.
//!
//! Invariant: it alone of the lane talks to the store, at a little less than ordinary priority. A memory is in at most one of: backlog,
//! handed out, ready, failed and waiting; whatever is lost here is found again in the store. It must not embed.

use super::failures::Failures;
use super::workers::{Done, Job, Workers};
use super::{Inbox, subtract};
use crate::service::counters::{Counters, count};
use crate::service::lifecycle::{Cause, Lifecycle};
use flashbulb_engine::{Error, Seq, SpaceName, Store};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Memories stored in one write.
const GROUP: usize = 32;

/// Longest that a ready memory waits for others.
const GROUP_WAIT: Duration = Duration::from_millis(20);

/// Memories asked of the store at a time.
const REFILL: usize = 512;

/// Wait after the store refused a write.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Longest sleep; work that announced itself ends it sooner.
const IDLE: Duration = Duration::from_secs(60);

type MemoryKey = (SpaceName, Seq);

/// One a window of a text.
type Vectors = Vec<Vec<f32>>;

/// A text that is handed out, or ready and not stored yet.
struct Text {
    seqs: Vec<Seq>,
    vectors: Option<Vectors>,
}

/// What the coordinator shares with the rest of the service.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) workers: Arc<Workers>,
    /// Jobs kept waiting for workers.
    pub(super) ahead: usize,
    pub(super) counters: Arc<Counters>,
    pub(super) lifecycle: Arc<Lifecycle>,
}

pub(super) struct Coordinator {
    shared: Shared,
    backlog: VecDeque<MemoryKey>,
    /// Everything in `texts` or `ready`.
    known: HashSet<MemoryKey>,
    texts: HashMap<Job, Text>,
    ready: Vec<(MemoryKey, Vectors)>,
    ready_since: Option<Instant>,
    failures: Failures,
    not_before: Option<Instant>,
}

impl Coordinator {
    pub(super) fn new(shared: Shared) -> Self {
        Self {
            shared,
            backlog: VecDeque::new(),
            known: HashSet::new(),
            texts: HashMap::new(),
            ready: Vec::new(),
            ready_since: None,
            failures: Failures::default(),
            not_before: None,
        }
    }

    pub(super) fn run(mut self, committed: &dyn Fn()) {
        while !self.shared.workers.is_closed() {
            self.collect();
            let now = Instant::now();
            if self.is_group_due(now) {
                self.commit();
                committed();
            }
            self.hand_out(now);
            // Nobody calls for what comes back while a group waits for its time; so when none does, calls must begin anew.
            let again = self.ready_since.is_none() && self.shared.workers.end_group();
            let sleep = self.sleep(Instant::now());
            if !again && !sleep.is_zero() {
                std::thread::park_timeout(sleep);
            }
        }
        self.collect();
        self.commit();
    }

    /// Takes what workers have finished.
    fn collect(&mut self) {
        for Done { job, outcome } in self.shared.workers.take_done() {
            match outcome {
                Ok(vectors) => self.finish(&job, vectors),
                Err(_) if self.shared.workers.is_closed() => {}
                Err(reason) => self.fail(&job, reason),
            }
        }
    }

    fn finish(&mut self, job: &Job, vectors: Vectors) {
        let Some(text) = self.texts.get_mut(job) else {
            return;
        };
        for &seq in &text.seqs {
            self.ready.push(((job.space.clone(), seq), vectors.clone()));
        }
        text.vectors = Some(vectors);
        self.ready_since.get_or_insert_with(Instant::now);
    }

    fn fail(&mut self, job: &Job, reason: String) {
        let Some(text) = self.texts.remove(job) else {
            return;
        };
        for seq in text.seqs {
            self.record_failure((job.space.clone(), seq), reason.clone());
        }
    }

    fn publish_failures(&self) {
        let given_up = self.failures.given_up();
        let total: u64 = given_up.values().sum();
        *self.shared.inbox.failed.lock() = given_up;
        self.shared
            .inbox
            .failed_total
            .store(usize::try_from(total).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// A group is stored when it is full or old, or when nothing else is on its way.
    fn is_group_due(&self, now: Instant) -> bool {
        let Some(since) = self.ready_since else {
            return false;
        };
        self.ready.len() >= GROUP
            || now.duration_since(since) >= GROUP_WAIT
            || self.shared.workers.queued() == 0
    }

    /// Stores what is ready, one write a space.
    fn commit(&mut self) {
        self.ready_since = None;
        let mut by_space: HashMap<SpaceName, Vec<(Seq, Vectors)>> = HashMap::new();
        for ((space, seq), vectors) in self.ready.drain(..) {
            by_space.entry(space).or_default().push((seq, vectors));
        }
        self.texts.retain(|_, text| text.vectors.is_none());
        for (space, vectors) in by_space {
            self.store_group(&space, vectors);
        }
    }

    /// Stores vectors of one space. Where the store finds fault with one memory's vectors, the others must not fail with
    /// it: then each is stored alone.
    fn store_group(&mut self, space: &SpaceName, vectors: Vec<(Seq, Vectors)>) {
        let alone = vectors.len() == 1;
        let memories: Vec<MemoryKey> =
            vectors.iter().map(|(seq, _)| (space.clone(), *seq)).collect();
        let spare = if alone { Vec::new() } else { vectors.clone() };
        let outcome = self.shared.store.set_vectors(space, vectors);
        if !alone && outcome.as_ref().is_err_and(is_about_one_memory) {
            for one in spare {
                self.store_group(space, vec![one]);
            }
            return;
        }
        for memory in &memories {
            self.known.remove(memory);
        }
        match outcome {
            // A space that was dropped meanwhile has nothing left to embed.
            Ok(_) | Err(Error::NoSuchSpace { .. }) => {
                subtract(&self.shared.inbox.pending, memories.len());
                for memory in &memories {
                    self.forget_failure(memory);
                }
            }
            Err(error) if is_about_one_memory(&error) => {
                for memory in memories {
                    self.record_failure(memory, error.to_string());
                }
            }
            Err(error) => self.refused(&error),
        }
    }

    fn record_failure(&mut self, memory: MemoryKey, reason: String) {
        count(&self.shared.counters.embed_failures, 1);
        tracing::warn!(
            space = memory.0.as_str(),
            seq = memory.1.0,
            reason,
            "a memory could not be embedded"
        );
        *self.shared.inbox.last_failure.lock() = Some(reason);
        self.known.remove(&memory);
        self.failures.record(memory, Instant::now());
        self.publish_failures();
    }

    fn forget_failure(&mut self, memory: &MemoryKey) {
        if self.failures.is_recorded(memory) {
            self.failures.forget(memory);
            self.publish_failures();
        }
    }

    /// The store did not take vectors: they are made again later, since the store still lists their memories.
    fn refused(&mut self, error: &Error) {
        if let Error::Poisoned { cause } = error {
            self.shared.lifecycle.stop(Cause::Poisoned(cause.clone()));
        } else if !matches!(error, Error::Closed) {
            tracing::error!(%error, "vectors were not stored; they will be made again");
            *self.shared.inbox.last_failure.lock() = Some(error.to_string());
        }
        self.shared.inbox.more.store(true, Ordering::Release);
        self.not_before = Some(Instant::now() + STORE_RETRY);
    }

    /// Keeps the workers' queue filled: what is urgent first, then what has waited longest.
    fn hand_out(&mut self, now: Instant) {
        if self.not_before.is_some_and(|then| now < then) {
            return;
        }
        self.not_before = None;
        let express: Vec<MemoryKey> = self.shared.inbox.express.lock().drain(..).collect();
        // Each goes to the front of the workers' queue, so the first must go last.
        for memory in express.into_iter().rev() {
            self.hand_out_one(memory, true);
        }
        for memory in self.failures.take_due(now) {
            self.hand_out_one(memory, false);
        }
        while self.shared.workers.waiting() < self.shared.ahead && self.ready.len() < GROUP {
            if self.backlog.is_empty() {
                self.refill();
            }
            let Some(memory) = self.backlog.pop_front() else {
                return;
            };
            self.hand_out_one(memory, false);
        }
    }

    /// Asks the store for pending memories that are not known here.
    fn refill(&mut self) {
        if !self.shared.inbox.more.swap(false, Ordering::AcqRel) {
            return;
        }
        let most = self.known.len() + self.failures.len() + REFILL;
        let pending = self.shared.store.pending(most);
        if pending.len() < most {
            self.shared.inbox.pending.store(pending.len(), Ordering::Relaxed);
        }
        self.backlog = pending
            .into_iter()
            .filter(|memory| !self.known.contains(memory) && !self.failures.is_waiting(memory))
            .collect();
        // Until the store has nothing new to tell, it is asked again.
        if !self.backlog.is_empty() {
            self.shared.inbox.more.store(true, Ordering::Release);
        }
    }

    fn hand_out_one(&mut self, memory: MemoryKey, urgent: bool) {
        if self.known.contains(&memory) {
            return;
        }
        let (space, seq) = &memory;
        let text = match self.shared.store.fetch(space, std::slice::from_ref(seq)) {
            Ok(mut found) => found.pop().flatten(),
            Err(Error::NoSuchSpace { .. }) => None,
            Err(error) => {
                self.record_failure(memory, format!("the text cannot be read: {error}"));
                return;
            }
        };
        match text {
            Some(found) if !found.searchable => self.embed_or_reuse(memory, &found.text, urgent),
            done => {
                if done.is_none() {
                    subtract(&self.shared.inbox.pending, 1);
                }
                self.forget_failure(&memory);
            }
        }
    }

    /// Uses vectors that are at hand for the same text of the same space, and else hands the text out.
    fn embed_or_reuse(&mut self, memory: MemoryKey, text: &str, urgent: bool) {
        let (space, seq) = memory.clone();
        let job = Job { space, text: text.into() };
        self.known.insert(memory.clone());
        if let Some(same) = self.texts.get_mut(&job) {
            count(&self.shared.counters.texts_reused, 1);
            match &same.vectors {
                Some(vectors) => self.ready.push((memory, vectors.clone())),
                None => same.seqs.push(seq),
            }
            return;
        }
        match self.shared.store.vectors_of_text(&job.space, text) {
            Ok(Some(vectors)) => {
                count(&self.shared.counters.texts_reused, 1);
                self.ready.push((memory, vectors));
                self.ready_since.get_or_insert_with(Instant::now);
            }
            Ok(None) | Err(_) => {
                // An error here only costs the saving; one that matters comes back when the vectors are stored.
                self.texts.insert(job.clone(), Text { seqs: vec![seq], vectors: None });
                self.shared.workers.push(job, urgent);
            }
        }
    }

    /// How long nothing needs doing, unless someone calls.
    fn sleep(&self, now: Instant) -> Duration {
        let mut until = now + IDLE;
        if let Some(since) = self.ready_since {
            let due = self.ready.len() >= GROUP || self.shared.workers.queued() == 0;
            until = until.min(if due { now } else { since + GROUP_WAIT });
        }
        if let Some(due) = self.failures.next_due() {
            until = until.min(due);
        }
        if let Some(then) = self.not_before {
            until = until.min(then);
        }
        until.saturating_duration_since(now)
    }
}

/// Whether the store finds fault with a memory's vectors, rather than being unable to write.
fn is_about_one_memory(error: &Error) -> bool {
    matches!(
        error,
        Error::DimMismatch { .. }
            | Error::BadVector { .. }
            | Error::TooLarge { .. }
            | Error::Invalid { .. }
    )
}
