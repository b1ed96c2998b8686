//! Where writers queue what is to be committed, and who commits it.
//!
//! Items are numbered in the order in which they are submitted. One thread at a time has the turn to commit: a writer that finds
//! nobody at it takes what is queued and commits it itself, which spares two wake-ups; what is queued meanwhile is left to
//! a thread that does nothing else, the committer. A group forms while the one before it is committed, so no timer makes anybody
//! wait. Who waits sleeps in one of two places by turns of the groups, so that the end of a group wakes those whose items are
//! in it and not those who came after.
//!
//! Invariant: nobody is told that a number is written or durable before who had the turn said so; nobody sleeps once it is, or
//! once it never will be; after a failure nothing is acknowledged that was not before. Must not know: what an item is, nor files.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{Condvar, Mutex, MutexGuard, wait_for};
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// How far a number must have come before who waits for it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Written: it outlives the process.
    Written,
    /// Synced: it outlives the machine's power.
    Durable,
}

/// Why nothing was queued, or why a wait ended without what was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Too many bytes wait already.
    Full,
    /// Nothing more is taken in.
    Closed,
    /// The committer failed, for this reason: what was not acknowledged by then may be there or not.
    Poisoned(Arc<str>),
}

/// Items to be written together, by who has the turn.
#[derive(Debug)]
pub struct Group<T> {
    /// In their order.
    pub items: Vec<T>,
    /// The number of the last.
    pub last: u64,
    /// Everything up to this is known to be synced.
    pub durable: u64,
}

/// What the committer is to do; all but the last gives it the turn.
#[derive(Debug)]
pub enum Task<T> {
    /// Write these items, then say [`CommitQueue::written`] or [`CommitQueue::committed`].
    Group(Group<T>),
    /// Sync what is written, then say [`CommitQueue::synced`].
    Sync,
    /// Everything up to `durable` is synced, and nothing came since: write that down under `number`, sync it, and say
    /// [`CommitQueue::committed`].
    Mark {
        /// The number it takes.
        number: u64,
        /// Synced so far: everything before it.
        durable: u64,
    },
    /// Nothing is left, and nothing more will come; or the queue was poisoned.
    Closed,
}

/// How the committer's last sleep ended.
#[derive(Clone, Copy, Default)]
struct Pause {
    /// It was as long as was asked.
    whole: bool,
    /// And nobody committed anything meanwhile.
    quiet: bool,
}

struct Queued<T> {
    last: u64,
    bytes: usize,
    item: T,
}

struct State<T> {
    queue: VecDeque<Queued<T>>,
    queued_bytes: usize,
    /// The last number given out.
    last: u64,
    /// The last number given out that is an item's.
    last_item: Option<u64>,
    /// The last number of the newest group taken, and how many were taken.
    taken: u64,
    groups: u64,
    written: u64,
    durable: u64,
    /// Somebody waits until this is durable.
    sync_wanted: u64,
    /// Somebody has the turn.
    busy: bool,
    /// The last number given out is a mark's, or none was yet.
    marked: bool,
    /// The committer sleeps until it is woken.
    asleep: bool,
    poisoned: Option<Arc<str>>,
    closed: bool,
}

impl<T> State<T> {
    fn reached(&self, until: Until) -> u64 {
        match until {
            Until::Written => self.written,
            Until::Durable => self.durable,
        }
    }

    fn usable(&self) -> Result<(), Refused> {
        match &self.poisoned {
            Some(cause) => Err(Refused::Poisoned(Arc::clone(cause))),
            None => Ok(()),
        }
    }
}

/// The queue; shared by any number of writers and one committer. Models: `loom-tests`' `durability`, with mutants that wake
/// nobody, and that take any wake-up for the end.
pub struct CommitQueue<T, P: Publication = ReleaseAcquire> {
    state: Mutex<State<T>>,
    /// Something was queued, a sync is wanted, or the queue closes. The committer sleeps here.
    work: Condvar,
    /// A group ended, or the committer failed. Writers sleep in the one that the number of their group says.
    progress: [Condvar; 2],
    limit_bytes: usize,
    marker: PhantomData<P>,
}

impl<T, P: Publication> CommitQueue<T, P> {
    /// A queue of at most about `limit_bytes`, behind the number `last`, up to which everything is durable.
    pub fn new(last: u64, limit_bytes: usize) -> CommitQueue<T, P> {
        CommitQueue {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued_bytes: 0,
                last,
                last_item: None,
                taken: last,
                groups: 0,
                written: last,
                durable: last,
                sync_wanted: 0,
                busy: false,
                marked: true,
                asleep: false,
                poisoned: None,
                closed: false,
            }),
            work: Condvar::new(),
            progress: [Condvar::new(), Condvar::new()],
            limit_bytes,
            marker: PhantomData,
        }
    }

    /// Queues an item that takes the next `count` numbers; returns the last of them. Who submits must [`wait`](Self::wait) soon:
    /// until somebody does, or the committer looks by itself, nothing happens.
    ///
    /// # Errors
    /// The item with the reason why it was not queued.
    pub fn submit(&self, item: T, count: u64, bytes: usize) -> Result<u64, (Refused, T)> {
        let mut state = self.state.lock();
        if let Err(refused) = state.usable() {
            return Err((refused, item));
        }
        if state.closed {
            return Err((Refused::Closed, item));
        }
        if state.queued_bytes > 0 && state.queued_bytes + bytes > self.limit_bytes {
            return Err((Refused::Full, item));
        }
        state.last += count;
        state.last_item = Some(state.last);
        state.marked = false;
        state.queued_bytes += bytes;
        let last = state.last;
        state.queue.push_back(Queued { last, bytes, item });
        Ok(last)
    }

    /// Returns once `number` has come as far as `until` says, or with the turn and a group of at most `budget_bytes`, at least one
    /// item, to be committed before waiting again.
    ///
    /// # Errors
    /// [`Refused::Poisoned`] where it never will.
    pub fn wait(
        &self,
        number: u64,
        until: Until,
        budget_bytes: usize,
    ) -> Result<Option<Group<T>>, Refused> {
        let mut state = self.state.lock();
        while state.reached(until) < number {
            state.usable()?;
            if !state.busy && !state.queue.is_empty() {
                return Ok(Some(Self::take(&mut state, budget_bytes)));
            }
            self.sleep(&mut state, number, until);
            if !P::CHECKS {
                break;
            }
        }
        Ok(None)
    }

    /// As [`wait`](Self::wait), and leaves all the work to the committer: for threads that may be held up for long.
    ///
    /// # Errors
    /// [`Refused::Poisoned`] where it never will.
    pub fn wait_idly(&self, number: u64, until: Until) -> Result<(), Refused> {
        let mut state = self.state.lock();
        while state.reached(until) < number {
            state.usable()?;
            self.wake_committer();
            self.sleep(&mut state, number, until);
        }
        Ok(())
    }

    /// Sleeps until a group ends, or everybody is woken. Who waits for a sync that nobody would make says so.
    fn sleep(&self, state: &mut MutexGuard<'_, State<T>>, number: u64, until: Until) {
        if until == Until::Durable && state.sync_wanted < number {
            state.sync_wanted = number;
            self.wake_committer();
        }
        let behind = u64::from(number > state.taken);
        let turn = state.groups.wrapping_add(behind) & 1;
        self.progress[turn as usize].wait(state);
    }

    /// What the committer is to do. What is not synced is to be after `patience`, and where nothing comes for so long a mark says
    /// that everything is; without a patience neither is done before the end.
    pub fn next(&self, budget_bytes: usize, patience: Option<Duration>) -> Task<T> {
        let mut state = self.state.lock();
        let mut pause = Pause::default();
        loop {
            if state.poisoned.is_some() {
                return Task::Closed;
            }
            if !state.busy
                && let Some(task) = Self::task(&mut state, budget_bytes, pause)
            {
                return task;
            }
            let settled = state.marked && state.written == state.durable;
            let groups = state.groups;
            pause = match patience.filter(|_| !settled) {
                Some(span) => {
                    let whole = wait_for(&self.work, &mut state, span);
                    Pause { whole, quiet: whole && state.groups == groups }
                }
                None => {
                    state.asleep = true;
                    self.work.wait(&mut state);
                    state.asleep = false;
                    Pause::default()
                }
            };
        }
    }

    /// What there is to do, and the turn to do it.
    fn task(state: &mut State<T>, budget_bytes: usize, pause: Pause) -> Option<Task<T>> {
        let unsynced = state.written > state.durable;
        // Before what is queued, so that a sync is had although there is always something.
        if unsynced && state.sync_wanted > state.durable && state.written >= state.sync_wanted {
            state.busy = true;
            return Some(Task::Sync);
        }
        if !state.queue.is_empty() {
            return Some(Task::Group(Self::take(state, budget_bytes)));
        }
        if unsynced && (pause.whole || state.closed) {
            state.busy = true;
            return Some(Task::Sync);
        }
        // Not between the commits of busy writers: each mark would hold one of them up.
        if !state.marked && !unsynced && (pause.quiet || state.closed) {
            state.busy = true;
            state.marked = true;
            state.last += 1;
            state.taken = state.last;
            state.groups += 1;
            return Some(Task::Mark { number: state.last, durable: state.durable });
        }
        (state.closed && !unsynced).then_some(Task::Closed)
    }

    fn take(state: &mut State<T>, budget_bytes: usize) -> Group<T> {
        let (mut items, mut size) = (Vec::new(), 0);
        while let Some(next) = state.queue.front() {
            if !items.is_empty() && size + next.bytes > budget_bytes {
                break;
            }
            size += next.bytes;
            state.taken = next.last;
            items.extend(state.queue.pop_front().map(|queued| queued.item));
        }
        state.queued_bytes -= size;
        state.groups += 1;
        state.busy = true;
        Group { items, last: state.taken, durable: state.durable }
    }

    /// The group taken last is written. Ends the turn.
    pub fn written(&self) {
        let mut state = self.state.lock();
        if state.poisoned.is_none() {
            state.written = state.taken;
            self.end_turn(&mut state);
            self.wake_group(&state);
        }
    }

    /// The group taken last is written, and everything up to it is synced. Ends the turn.
    pub fn committed(&self) {
        let mut state = self.state.lock();
        if state.poisoned.is_none() {
            state.written = state.taken;
            state.durable = state.taken;
            self.end_turn(&mut state);
            self.wake_group(&state);
        }
    }

    /// All that is written is synced. Ends the turn.
    pub fn synced(&self) {
        let mut state = self.state.lock();
        if state.poisoned.is_none() {
            state.durable = state.written;
            self.end_turn(&mut state);
            self.wake_all();
        }
    }

    /// The committer goes on where something is queued, wanted or closing, and begins to wait for marks and syncs where it slept.
    fn end_turn(&self, state: &mut State<T>) {
        state.busy = false;
        let wanted = state.sync_wanted > state.durable;
        if state.asleep || !state.queue.is_empty() || wanted || state.closed {
            self.wake_committer();
        }
    }

    fn wake_group(&self, state: &State<T>) {
        if P::WAKES {
            self.progress[(state.groups & 1) as usize].notify_all();
        }
    }

    /// Nothing more is committed: whoever waits is told so, and whoever comes; the committer is told that the queue is closed.
    pub fn poison(&self, cause: &str) {
        let mut state = self.state.lock();
        state.poisoned.get_or_insert_with(|| Arc::from(cause));
        self.wake_all();
        self.wake_committer();
    }

    /// Takes nothing more in; what is queued is still committed.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake_committer();
    }

    fn wake_all(&self) {
        if P::WAKES {
            for woken in &self.progress {
                woken.notify_all();
            }
        }
    }

    fn wake_committer(&self) {
        if P::WAKES {
            self.work.notify_one();
        }
    }

    /// The last number given out.
    pub fn last(&self) -> u64 {
        self.state.lock().last
    }

    /// The last number that an item was given, not one of the committer's own.
    pub fn last_item(&self) -> Option<u64> {
        self.state.lock().last_item
    }

    /// Everything up to this number is durable.
    pub fn durable(&self) -> u64 {
        self.state.lock().durable
    }

    /// The committer's failure, if there was one.
    pub fn poisoned(&self) -> Option<Arc<str>> {
        self.state.lock().poisoned.clone()
    }
}

impl<T, P: Publication> fmt::Debug for CommitQueue<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitQueue")
            .field("limit_bytes", &self.limit_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    type Queue = CommitQueue<u64>;

    const SOON: Option<Duration> = Some(Duration::from_millis(1));

    fn group(queue: &Queue, budget_bytes: usize) -> (Vec<u64>, u64, u64) {
        match queue.next(budget_bytes, SOON) {
            Task::Group(Group { items, last, durable }) => (items, last, durable),
            other => panic!("{other:?}"),
        }
    }

    /// Waits, committing what falls to it.
    fn wait(queue: &Queue, number: u64, until: Until, budget_bytes: usize) -> Result<(), Refused> {
        while queue.wait(number, until, budget_bytes)?.is_some() {
            queue.committed();
        }
        Ok(())
    }

    #[test]
    fn groups_keep_the_order_and_their_budget_but_take_one_item_at_least() {
        let queue = Queue::new(7, 100);
        assert_eq!(queue.submit(1, 2, 60), Ok(9));
        assert_eq!(queue.submit(2, 1, 20), Ok(10));
        assert_eq!(queue.submit(3, 1, 20), Ok(11));
        assert_eq!(queue.submit(4, 1, 1), Err((Refused::Full, 4)));
        assert_eq!(group(&queue, 50), (vec![1], 9, 7));
        queue.committed();
        assert_eq!(group(&queue, 40), (vec![2, 3], 11, 9));
        queue.written();
        assert_eq!((queue.last(), queue.durable()), (11, 9));
        assert!(matches!(queue.wait(11, Until::Written, 1), Ok(None)));
        assert_eq!(queue.submit(5, 1, 1000), Ok(12), "an empty queue takes anything");
        queue.close();
        assert_eq!(queue.submit(6, 1, 1), Err((Refused::Closed, 6)));
        assert_eq!(group(&queue, 40), (vec![5], 12, 9));
        queue.written();
        assert!(matches!(queue.next(1, None), Task::Sync));
        queue.synced();
        assert!(matches!(queue.next(1, None), Task::Mark { number: 13, durable: 12 }));
        queue.committed();
        assert!(matches!(queue.next(1, None), Task::Closed));
        assert_eq!((queue.last(), queue.last_item(), queue.durable()), (13, Some(12), 13));
    }

    #[test]
    fn a_writer_that_finds_nobody_at_it_commits_and_one_who_does_leaves_it() {
        let queue = Queue::new(0, 100);
        assert_eq!(queue.submit(1, 1, 1), Ok(1));
        let Ok(Some(first)) = queue.wait(1, Until::Durable, 10) else { panic!("nobody is at it") };
        assert_eq!((first.items, first.last), (vec![1], 1));
        assert_eq!(queue.submit(2, 1, 1), Ok(2));
        thread::scope(|scope| {
            let committer = scope.spawn(|| {
                while let Task::Group(_) | Task::Mark { .. } = queue.next(10, None) {
                    queue.committed();
                }
            });
            let second = scope.spawn(|| wait(&queue, 2, Until::Durable, 10));
            thread::sleep(Duration::from_millis(20));
            assert!(!committer.is_finished() && !second.is_finished(), "somebody has the turn");
            queue.committed();
            assert_eq!(second.join().ok(), Some(Ok(())));
            queue.close();
            assert!(committer.join().is_ok());
        });
        assert_eq!((queue.last_item(), queue.durable()), (Some(2), 3), "a mark at the end");
    }

    #[test]
    fn what_is_idle_is_synced_and_marked_once() {
        let queue = Queue::new(0, 100);
        assert_eq!(queue.submit(1, 1, 1), Ok(1));
        assert_eq!(group(&queue, 1), (vec![1], 1, 0));
        queue.written();
        assert!(matches!(queue.next(1, SOON), Task::Sync));
        queue.synced();
        assert!(matches!(queue.next(1, SOON), Task::Mark { number: 2, durable: 1 }));
        queue.committed();
        thread::scope(|scope| {
            let committer = scope.spawn(|| matches!(queue.next(1, SOON), Task::Closed));
            thread::sleep(Duration::from_millis(20));
            assert!(!committer.is_finished(), "there is nothing to do");
            queue.close();
            assert_eq!(committer.join().ok(), Some(true));
        });
    }

    #[test]
    fn writers_who_commit_by_themselves_are_not_held_up_by_marks() {
        let queue = Queue::new(0, 100);
        let span = Some(Duration::from_millis(60));
        thread::scope(|scope| {
            let committer = scope.spawn(|| match queue.next(1, span) {
                Task::Mark { number, .. } => {
                    queue.committed();
                    number
                }
                other => panic!("{other:?}"),
            });
            for number in 1..=20 {
                assert_eq!(queue.submit(number, 1, 1), Ok(number));
                assert_eq!(wait(&queue, number, Until::Durable, 1), Ok(()));
                thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(committer.join().ok(), Some(21), "a mark came between");
        });
    }

    #[test]
    fn a_sync_that_is_waited_for_is_made_although_there_is_always_something() {
        let queue = Queue::new(0, 100);
        assert_eq!(queue.submit(1, 1, 1), Ok(1));
        assert_eq!(group(&queue, 1), (vec![1], 1, 0));
        queue.written();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.wait_idly(1, Until::Durable));
            while !matches!(queue.next(1, SOON), Task::Sync) {
                queue.synced();
            }
            assert_eq!(queue.submit(2, 1, 1), Ok(2));
            queue.synced();
            assert_eq!(waiter.join().ok(), Some(Ok(())));
        });
        assert_eq!(queue.durable(), 1);
    }

    #[test]
    fn a_failure_is_told_to_all_and_takes_back_nothing() {
        let queue = Queue::new(0, 100);
        assert_eq!(queue.submit(1, 1, 1), Ok(1));
        group(&queue, 1);
        queue.committed();
        assert_eq!(queue.submit(2, 1, 1), Ok(2));
        group(&queue, 1);
        let poisoned = Refused::Poisoned("gone".into());
        thread::scope(|scope| {
            let queue = &queue;
            let waiters = [Until::Written, Until::Durable]
                .map(|until| scope.spawn(move || wait(queue, 2, until, 1)));
            queue.poison("gone");
            queue.poison("again");
            for waiter in waiters {
                assert_eq!(waiter.join().ok(), Some(Err(poisoned.clone())));
            }
        });
        queue.committed();
        assert!(matches!(queue.next(1, None), Task::Closed));
        assert_eq!(wait(&queue, 1, Until::Durable, 1), Ok(()));
        assert_eq!(queue.submit(3, 1, 1), Err((poisoned, 3)));
    }

    #[test]
    fn many_writers_are_each_woken() {
        const EACH: u64 = 3_000;
        let queue = Queue::new(0, 1 << 20);
        thread::scope(|scope| {
            let committer = scope.spawn(|| {
                loop {
                    match queue.next(7, SOON) {
                        Task::Group(group) if group.last % 3 == 0 => queue.written(),
                        Task::Group(_) | Task::Mark { .. } => queue.committed(),
                        Task::Sync => queue.synced(),
                        Task::Closed => return,
                    }
                }
            });
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let queue = &queue;
                    scope.spawn(move || {
                        for item in 0..EACH {
                            let number = queue.submit(item, 1, 1).map_err(|(why, _)| why);
                            let outcome = number.and_then(|number| match writer % 3 {
                                0 => queue.wait_idly(number, Until::Durable),
                                1 => wait(queue, number, Until::Durable, 7),
                                _ => wait(queue, number, Until::Written, 7),
                            });
                            assert_eq!(outcome, Ok(()));
                        }
                    })
                })
                .collect();
            for writer in writers {
                assert!(writer.join().is_ok());
            }
            queue.close();
            assert!(committer.join().is_ok());
        });
        assert!(queue.last() >= 8 * EACH && queue.durable() == queue.last());
    }
}
