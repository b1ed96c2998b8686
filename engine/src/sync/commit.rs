//! Where writers queue what is to be committed and wait for it, and one committer takes it in groups.
//!
//! Items are numbered in the order in which they are submitted. A group forms while the one before it is being written, so no
//! timer makes anybody wait. Who waits sleeps in one of two places by turns of the groups, so that the end of a group wakes
//! those whose items are in it and not those who came after.
//!
//! Invariant: nobody is told that a number is written or durable before the committer said so; nobody sleeps once it is, or once
//! it never will be; after a failure nothing is acknowledged that was not before. Must not know: what an item is, nor files.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{Condvar, Mutex, wait_for};
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

/// What the committer is to do next.
#[derive(Debug)]
pub enum Task<T> {
    /// Write these items, whose last number is `last`. Everything up to `durable` is known to be synced.
    Group {
        /// In their order.
        items: Vec<T>,
        /// The number of the last.
        last: u64,
        /// Synced so far.
        durable: u64,
    },
    /// Sync what is written: somebody waits for that.
    Sync,
    /// Nothing came for as long as was asked.
    Idle,
    /// Nothing is left, and nothing more will come; or the queue was poisoned.
    Closed,
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

/// The queue; shared by any number of writers and one committer. Models: `loom-tests`' `commit`, each with a mutant that
/// wakes nobody and one that takes any wake-up for the end.
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
                poisoned: None,
                closed: false,
            }),
            work: Condvar::new(),
            progress: [Condvar::new(), Condvar::new()],
            limit_bytes,
            marker: PhantomData,
        }
    }

    /// Queues an item that takes the next `count` numbers; returns the last of them.
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
        state.queued_bytes += bytes;
        let last = state.last;
        let sleeps = state.queue.is_empty();
        state.queue.push_back(Queued { last, bytes, item });
        drop(state);
        if sleeps {
            self.wake_committer();
        }
        Ok(last)
    }

    /// Returns once `number` has come as far as `until` says. A wait for [`Until::Durable`] has a sync made if nobody else does.
    ///
    /// # Errors
    /// [`Refused::Poisoned`] where it never will.
    pub fn wait(&self, number: u64, until: Until) -> Result<(), Refused> {
        let mut state = self.state.lock();
        while state.reached(until) < number {
            state.usable()?;
            if until == Until::Durable && state.sync_wanted < number {
                state.sync_wanted = number;
                self.wake_committer();
            }
            let behind = u64::from(number > state.taken);
            let turn = state.groups.wrapping_add(behind) & 1;
            self.progress[turn as usize].wait(&mut state);
            if !P::CHECKS {
                break;
            }
        }
        Ok(())
    }

    /// What the committer is to do. Items are taken while their bytes stay within `budget_bytes`, at least one. Where nothing
    /// comes within `patience`, that is said; without one it waits.
    pub fn next(&self, budget_bytes: usize, patience: Option<Duration>) -> Task<T> {
        let mut state = self.state.lock();
        loop {
            if state.poisoned.is_some() {
                return Task::Closed;
            }
            // Before what is queued, so that a sync is had although there is always something.
            if state.sync_wanted > state.durable && state.written >= state.sync_wanted {
                return Task::Sync;
            }
            if !state.queue.is_empty() {
                return Self::take(&mut state, budget_bytes);
            }
            if state.closed {
                return Task::Closed;
            }
            match patience {
                None => self.work.wait(&mut state),
                Some(span) => {
                    if wait_for(&self.work, &mut state, span) && state.queue.is_empty() {
                        return Task::Idle;
                    }
                }
            }
        }
    }

    fn take(state: &mut State<T>, budget_bytes: usize) -> Task<T> {
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
        Task::Group { items, last: state.taken, durable: state.durable }
    }

    /// A number for something of the committer's own, which it then ends as a group; `None` if something is queued, or the queue
    /// is poisoned.
    pub fn own_number(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if !state.queue.is_empty() || state.poisoned.is_some() {
            return None;
        }
        state.last += 1;
        state.taken = state.last;
        state.groups += 1;
        Some(state.last)
    }

    /// The group taken last is written.
    pub fn written(&self) {
        let mut state = self.state.lock();
        if state.poisoned.is_none() {
            state.written = state.taken;
            self.end_group(&state);
        }
    }

    /// The group taken last is written, and everything up to it is synced.
    pub fn committed(&self) {
        let mut state = self.state.lock();
        if state.poisoned.is_none() {
            state.written = state.taken;
            state.durable = state.taken;
            self.end_group(&state);
        }
    }

    fn end_group(&self, state: &State<T>) {
        if P::WAKES {
            self.progress[(state.groups & 1) as usize].notify_all();
        }
    }

    /// All that is written is synced.
    pub fn synced(&self) {
        let mut state = self.state.lock();
        if state.poisoned.is_none() {
            state.durable = state.written;
            self.wake_all();
        }
    }

    /// Nothing more is committed: whoever waits is told so, and whoever comes. The committer, if it was not the one to fail, is told
    /// that the queue is closed.
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

    fn group(queue: &Queue, budget_bytes: usize) -> (Vec<u64>, u64, u64) {
        match queue.next(budget_bytes, Some(Duration::from_secs(10))) {
            Task::Group { items, last, durable } => (items, last, durable),
            other => panic!("{other:?}"),
        }
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
        assert_eq!(queue.wait(11, Until::Written), Ok(()));
        assert_eq!(queue.submit(5, 1, 1000), Ok(12), "an empty queue takes anything");
        queue.close();
        assert_eq!(queue.submit(6, 1, 1), Err((Refused::Closed, 6)));
        assert_eq!(group(&queue, 40), (vec![5], 12, 9));
        queue.committed();
        assert!(matches!(queue.next(1, None), Task::Closed));
    }

    #[test]
    fn the_committer_is_told_of_idleness_and_of_syncs_that_are_wanted() {
        let queue = Queue::new(0, 100);
        assert!(matches!(queue.next(1, Some(Duration::from_millis(1))), Task::Idle));
        assert_eq!(queue.own_number(), Some(1));
        queue.committed();
        assert_eq!(queue.submit(1, 1, 1), Ok(2));
        assert_eq!((queue.own_number(), queue.last_item()), (None, Some(2)));
        assert_eq!(group(&queue, 1), (vec![1], 2, 1));
        queue.written();
        assert!(matches!(queue.next(1, Some(Duration::from_millis(1))), Task::Idle));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.wait(2, Until::Durable));
            assert!(matches!(queue.next(1, None), Task::Sync));
            queue.synced();
            assert_eq!(waiter.join().ok(), Some(Ok(())));
        });
        assert_eq!(queue.durable(), 2);
    }

    #[test]
    fn a_failure_is_told_to_all_and_takes_back_nothing() {
        let queue = Queue::new(0, 100);
        assert_eq!(queue.submit(1, 1, 1), Ok(1));
        group(&queue, 1);
        queue.committed();
        assert_eq!(queue.submit(2, 1, 1), Ok(2));
        let poisoned = Refused::Poisoned("gone".into());
        thread::scope(|scope| {
            let queue = &queue;
            let waiters = [Until::Written, Until::Durable]
                .map(|until| scope.spawn(move || queue.wait(2, until)));
            queue.poison("gone");
            queue.poison("again");
            for waiter in waiters {
                assert_eq!(waiter.join().ok(), Some(Err(poisoned.clone())));
            }
        });
        assert_eq!(queue.wait(1, Until::Durable), Ok(()));
        assert_eq!(queue.submit(3, 1, 1), Err((poisoned, 3)));
    }

    #[test]
    fn many_writers_are_each_woken() {
        const EACH: u64 = 3_000;
        let queue = Queue::new(0, 1 << 20);
        thread::scope(|scope| {
            let committer = scope.spawn(|| {
                let mut expected = 0;
                loop {
                    match queue.next(7, None) {
                        Task::Group { items, last, .. } => {
                            expected += items.len() as u64;
                            assert_eq!(last, expected);
                            if last % 3 == 0 {
                                queue.written();
                            } else {
                                queue.committed();
                            }
                        }
                        Task::Sync => queue.synced(),
                        Task::Idle => panic!("there is no patience"),
                        Task::Closed => return expected,
                    }
                }
            });
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let queue = &queue;
                    scope.spawn(move || {
                        for item in 0..EACH {
                            let number = queue.submit(item, 1, 1).map_err(|(why, _)| why);
                            let until =
                                if writer % 2 == 0 { Until::Durable } else { Until::Written };
                            assert_eq!(number.and_then(|n| queue.wait(n, until)), Ok(()));
                        }
                    })
                })
                .collect();
            for writer in writers {
                assert!(writer.join().is_ok());
            }
            queue.close();
            assert_eq!(committer.join().ok(), Some(8 * EACH));
        });
    }
}
