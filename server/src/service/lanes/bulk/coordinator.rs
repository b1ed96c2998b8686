//! The coordinator of the bulk lane: finds work, hands it out, stores what comes back.
//!
//! Invariant: it alone of the lane talks to the store, at a little less than ordinary priority. A memory is in at most one of: backlog,
//! handed out (to two workers at most), ready, failed and waiting; whatever is lost here is found again in the store. It must not embed.

use super::failures::Failures;
use super::workers::{Board, Done, Job, Post};
use super::{Inbox, subtract};
use crate::service::counters::{Counters, count};
use crate::service::lifecycle::{Cause, Lifecycle};
use flashbulb_engine::sync::Call;
use flashbulb_engine::{Error, Seq, SpaceName, Store};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Memories stored in one write.
const GROUP: usize = 32;

/// Longest that a ready memory waits for others.
const GROUP_WAIT: Duration = Duration::from_millis(20);

/// Without a window embedded at idle priority for so long, the lane starves: then the express worker takes what has
/// waited longest, one text after another.
const STARVED: Duration = Duration::from_millis(200);

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
    /// The express worker has it, perhaps besides another.
    express: bool,
}

/// What the coordinator shares with the rest of the service.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) board: Arc<Board>,
    pub(super) counters: Arc<Counters>,
    pub(super) lifecycle: Arc<Lifecycle>,
}

/// The posts of all workers; they outlive a coordinator that panics.
pub(super) struct Posts {
    /// At idle priority.
    pub(super) idle: Vec<Post>,
    /// A little below the ordinary.
    pub(super) express: Post,
}

impl Posts {
    fn out(&self) -> usize {
        self.idle.iter().map(Post::out).sum::<usize>() + self.express.out()
    }

    /// The post at idle priority that has least to do, if it has room.
    fn least_busy(&mut self) -> Option<&mut Post> {
        self.idle.iter_mut().min_by_key(|post| post.out()).filter(|post| post.has_room())
    }
}

/// Looks whether workers at idle priority get to work at all.
struct Progress {
    windows: u64,
    since: Instant,
}

pub(super) struct Coordinator<'a> {
    shared: Shared,
    posts: &'a mut Posts,
    backlog: VecDeque<MemoryKey>,
    /// Everything in `texts` or `ready`.
    known: HashSet<MemoryKey>,
    texts: HashMap<Job, Text>,
    /// What was handed to workers at idle priority, oldest first; some of it has come back.
    handed: VecDeque<Job>,
    /// What waits for a place at the express worker, oldest first.
    hurried: VecDeque<Job>,
    ready: Vec<(MemoryKey, Vectors)>,
    ready_since: Option<Instant>,
    /// Somebody waits for something that is ready.
    hurry: bool,
    progress: Progress,
    failures: Failures,
    not_before: Option<Instant>,
}

impl<'a> Coordinator<'a> {
    pub(super) fn new(shared: Shared, posts: &'a mut Posts) -> Self {
        Self {
            shared,
            posts,
            backlog: VecDeque::new(),
            known: HashSet::new(),
            texts: HashMap::new(),
            handed: VecDeque::new(),
            hurried: VecDeque::new(),
            ready: Vec::new(),
            ready_since: None,
            hurry: false,
            progress: Progress { windows: 0, since: Instant::now() },
            failures: Failures::default(),
            not_before: None,
        }
    }

    pub(super) fn run(mut self, call: &Call, committed: &dyn Fn()) {
        while !self.shared.board.is_closed() {
            self.collect();
            let now = Instant::now();
            if self.is_group_due(now) {
                self.commit();
                committed();
            }
            self.hand_out(now);
            self.age(now);
            self.shared.board.out.store(self.posts.out(), Ordering::Relaxed);
            let sleep = self.sleep(Instant::now());
            if !sleep.is_zero() {
                call.wait(sleep);
            }
        }
        self.collect();
        self.commit();
    }

    /// Takes what workers have finished.
    fn collect(&mut self) {
        while let Some(done) = self.posts.express.take_done() {
            self.hurry = true;
            self.take(done);
        }
        for at in 0..self.posts.idle.len() {
            while let Some(done) = self.posts.idle[at].take_done() {
                self.take(done);
            }
        }
    }

    fn take(&mut self, Done { job, outcome }: Done) {
        match outcome {
            Ok(vectors) => self.finish(&job, vectors),
            Err(_) if self.shared.board.is_closed() => {}
            Err(reason) => self.fail(&job, reason),
        }
    }

    fn finish(&mut self, job: &Job, vectors: Vectors) {
        // Two workers may have had it: the second brings the same vectors.
        let Some(text) = self.texts.get_mut(job).filter(|text| text.vectors.is_none()) else {
            return;
        };
        for &seq in &text.seqs {
            self.ready.push(((job.space.clone(), seq), vectors.clone()));
        }
        text.vectors = Some(vectors);
        self.ready_since.get_or_insert_with(Instant::now);
    }

    fn fail(&mut self, job: &Job, reason: String) {
        if self.texts.get(job).is_none_or(|text| text.vectors.is_some()) {
            return;
        }
        for seq in self.texts.remove(job).into_iter().flat_map(|text| text.seqs) {
            self.record_failure((job.space.clone(), seq), reason.clone());
        }
    }

    fn publish_failures(&self) {
        let given_up = self.failures.given_up();
        let total: u64 = given_up.values().sum();
        self.shared.inbox.failed.store(Arc::new(given_up));
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
        self.hurry
            || self.ready.len() >= GROUP
            || now.duration_since(since) >= GROUP_WAIT
            || self.posts.out() == 0
    }

    /// Stores what is ready, one write a space.
    fn commit(&mut self) {
        self.ready_since = None;
        self.hurry = false;
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
        self.shared.inbox.last_failure.store(Some(Arc::new(reason)));
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
            self.shared.inbox.last_failure.store(Some(Arc::new(error.to_string())));
        }
        self.shared.inbox.more.store(true, Ordering::Release);
        self.not_before = Some(Instant::now() + STORE_RETRY);
    }

    /// Keeps the workers' rings filled: what somebody waits for goes to the express worker, the rest where least is to do.
    fn hand_out(&mut self, now: Instant) {
        if self.not_before.is_some_and(|then| now < then) {
            return;
        }
        self.not_before = None;
        for memory in self.shared.inbox.express.empty() {
            self.hand_out_one(memory, true);
        }
        self.fill_express();
        self.backlog.extend(self.failures.take_due(now));
        while self.ready.len() < GROUP && self.posts.least_busy().is_some() {
            if self.backlog.is_empty() {
                self.refill();
            }
            let Some(memory) = self.backlog.pop_front() else {
                return;
            };
            self.hand_out_one(memory, false);
        }
    }

    /// Gives the express worker what waits for it, as far as there is room.
    fn fill_express(&mut self) {
        while let Some(job) = self.hurried.pop_front() {
            if self.texts.get(&job).is_none_or(|text| text.vectors.is_some()) {
                continue;
            }
            if let Err(job) = self.posts.express.push(job) {
                self.hurried.push_front(job);
                return;
            }
        }
    }

    /// Where workers at idle priority do not get to work, lets the express worker take the oldest of what they have.
    fn age(&mut self, now: Instant) {
        let windows = self.shared.board.idle_windows.load(Ordering::Relaxed);
        let idle_out = self.posts.idle.iter().any(|post| post.out() > 0);
        if windows != self.progress.windows || !idle_out {
            self.progress = Progress { windows, since: now };
            return;
        }
        if now.duration_since(self.progress.since) < STARVED || self.posts.express.out() > 0 {
            return;
        }
        while let Some(job) = self.handed.pop_front() {
            if let Some(text) = self.texts.get_mut(&job).filter(|text| text.is_still_to_do()) {
                text.express = true;
                self.shared.board.aged.fetch_add(1, Ordering::Relaxed);
                self.hurried.push_back(job);
                return self.fill_express();
            }
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
            if urgent && same.is_still_to_do() {
                same.express = true;
                self.hurried.push_back(job);
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
                let text = Text { seqs: vec![seq], vectors: None, express: urgent };
                self.texts.insert(job.clone(), text);
                if urgent {
                    self.hurried.push_back(job);
                } else {
                    self.give_idle(job);
                }
            }
        }
    }

    fn give_idle(&mut self, job: Job) {
        let given = self.posts.least_busy().map(|post| post.push(job.clone()));
        match given {
            Some(Ok(())) => {
                // What came back is let go of at the front; there is never much more than what is out.
                let done = |job: &Job| !self.texts.contains_key(job);
                while self.handed.front().is_some_and(done) {
                    self.handed.pop_front();
                }
                self.handed.push_back(job);
            }
            // Nobody hands out without looking for room; should it happen, the text is not lost.
            Some(Err(_)) | None => self.hurried.push_back(job),
        }
    }

    /// How long nothing needs doing, unless someone calls.
    fn sleep(&self, now: Instant) -> Duration {
        let mut until = now + IDLE;
        if let Some(since) = self.ready_since {
            let due = self.is_group_due(now);
            until = until.min(if due { now } else { since + GROUP_WAIT });
        }
        if self.posts.out() > 0 {
            // Workers call for more work only; what they have finished is looked for.
            until = until.min(now + GROUP_WAIT);
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

impl Text {
    /// Neither embedded nor hurried.
    fn is_still_to_do(&self) -> bool {
        self.vectors.is_none() && !self.express
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
