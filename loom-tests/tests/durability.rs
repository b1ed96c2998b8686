//! The loom models of what durability and moving rest on: who waits for a commit, and who reads what is moved.
//!
//! Invariant: as for the other models: each passes as it is and fails with its mutants. Must not know: how the types are built.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Note, holds, holds_within_bounds, is_caught, is_caught_alone, sleeps_forever};
use flashbulb_engine::sync::shim::{Arc, AtomicU32, Ordering};
use flashbulb_engine::sync::{
    CommitQueue, Place, Publication, Refused, RelaxedLoadMutant, RelaxedStoreMutant,
    ReleaseAcquire, SilentMutant, Swapped, Task, UncheckedMutant, Until,
};
use loom::cell::UnsafeCell;
use loom::thread;

/// What has reached a device: the highest number written, and the highest synced. Only the committer writes; relaxed, so that
/// nothing but the queue orders it.
struct Device {
    written: AtomicU32,
    synced: AtomicU32,
}

type Queue<P> = Arc<(CommitQueue<u32, P>, Device)>;

fn queue<P: Publication>() -> Queue<P> {
    let device = Device { written: AtomicU32::new(0), synced: AtomicU32::new(0) };
    Arc::new((CommitQueue::new(0, 100), device))
}

/// Commits until the queue is closed, with a sync for each group where `syncs`, else only for those who ask; what it committed.
fn commit<P: Publication>(queue: &Queue<P>, budget: usize, syncs: bool) -> Vec<u32> {
    let (queue, device) = &**queue;
    let mut all = Vec::new();
    loop {
        match queue.next(budget, None) {
            Task::Group { items, last, .. } => {
                all.extend(items);
                device.written.store(last as u32, Ordering::Relaxed);
                if syncs {
                    device.synced.store(last as u32, Ordering::Relaxed);
                    queue.committed();
                } else {
                    queue.written();
                }
            }
            Task::Sync => {
                let written = device.written.load(Ordering::Relaxed);
                device.synced.store(written, Ordering::Relaxed);
                queue.synced();
            }
            Task::Idle => panic!("there is no patience"),
            Task::Closed => return all,
        }
    }
}

/// Submits one item and waits until it is durable.
fn write<P: Publication>(queue: &Queue<P>, item: u32) {
    let (queue, device) = &**queue;
    let number = queue.submit(item, 1, 1).map_err(|(why, _)| why).unwrap();
    queue.wait(number, Until::Durable).unwrap();
    let synced = u64::from(device.synced.load(Ordering::Relaxed));
    assert!(synced >= number, "{number} was acknowledged before it was synced");
}

/// Two writers, whose items may come in one group or in two: both are woken, neither before its item is synced.
fn writers_wait<P: Publication>() {
    let queue = queue::<P>();
    let writers = [1, 2].map(|item| {
        let queue = Arc::clone(&queue);
        thread::spawn(move || write(&queue, item))
    });
    let committer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || commit(&queue, 1, true))
    };
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    queue.0.close();
    let mut all = committer.join().unwrap();
    all.sort_unstable();
    assert_eq!(all, [1, 2]);
}

#[test]
fn commits_wake_their_writers_and_none_too_early() {
    holds_within_bounds(writers_wait::<ReleaseAcquire>);
}

#[test]
fn commits_that_wake_nobody_are_caught() {
    sleeps_forever("commits_that_wake_nobody_are_caught", writers_wait::<SilentMutant>);
}

/// A written item that somebody wants synced: the committer, who sleeps, is told, and the wait ends with the sync. Beside it
/// another is only written, so that not every end of a group is a sync.
fn sync_is_had<P: Publication>() {
    let queue = queue::<P>();
    let writer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || write(&queue, 1))
    };
    let committer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || commit(&queue, 1, false))
    };
    let number = queue.0.submit(2, 1, 1).map_err(|(why, _)| why).unwrap();
    queue.0.wait(number, Until::Written).unwrap();
    assert!(u64::from(queue.1.written.load(Ordering::Relaxed)) >= number);
    writer.join().unwrap();
    queue.0.close();
    assert_eq!(committer.join().unwrap().len(), 2);
}

#[test]
fn a_sync_that_is_waited_for_is_made() {
    holds_within_bounds(sync_is_had::<ReleaseAcquire>);
}

#[test]
fn a_sync_that_nobody_is_told_of_is_caught() {
    sleeps_forever("a_sync_that_nobody_is_told_of_is_caught", sync_is_had::<SilentMutant>);
}

#[test]
fn a_wait_that_takes_any_end_for_its_own_is_caught() {
    is_caught_alone(
        "a_wait_that_takes_any_end_for_its_own_is_caught",
        "before it was synced",
        sync_is_had::<UncheckedMutant>,
    );
}

/// The committer fails with one item taken and perhaps one queued: whoever waits is told, and whoever comes.
fn poison_reaches_all<P: Publication>() {
    let queue = queue::<P>();
    let writers = [1, 2].map(|item| {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            let number = queue.0.submit(item, 1, 1).map_err(|(why, _)| why);
            number.and_then(|number| queue.0.wait(number, Until::Durable))
        })
    });
    match queue.0.next(1, None) {
        Task::Group { .. } => queue.0.poison("the device is gone"),
        other => panic!("{other:?}"),
    }
    for writer in writers {
        let outcome = writer.join().unwrap();
        assert!(matches!(outcome, Err(Refused::Poisoned(_))), "told {outcome:?} after a failure");
    }
}

#[test]
fn a_failure_reaches_everybody() {
    holds_within_bounds(poison_reaches_all::<ReleaseAcquire>);
}

#[test]
fn a_failure_that_wakes_nobody_is_caught() {
    sleeps_forever("a_failure_that_wakes_nobody_is_caught", poison_reaches_all::<SilentMutant>);
}

#[test]
fn a_failure_taken_for_success_is_caught() {
    is_caught_alone(
        "a_failure_taken_for_success_is_caught",
        "after a failure",
        poison_reaches_all::<UncheckedMutant>,
    );
}

/// The queue closes beside a writer: what was taken in is committed, what was not was refused, and the committer ends.
fn drains<P: Publication>() {
    let queue = queue::<P>();
    let writer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || match queue.0.submit(1, 1, 1) {
            Ok(number) => {
                queue.0.wait(number, Until::Durable).unwrap();
                1
            }
            Err((refused, _)) => {
                assert_eq!(refused, Refused::Closed);
                0
            }
        })
    };
    let closer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || queue.0.close())
    };
    let committed = commit(&queue, 1, true).len();
    closer.join().unwrap();
    assert_eq!(writer.join().unwrap(), committed);
}

#[test]
fn closing_drains_what_was_taken_in() {
    holds(drains::<ReleaseAcquire>);
}

#[test]
fn closing_without_a_word_is_caught() {
    sleeps_forever("closing_without_a_word_is_caught", drains::<SilentMutant>);
}

/// What a part of a store holds, for a part that is there.
struct Part {
    number: u64,
    text: Note,
}

fn part(number: u64) -> Arc<Part> {
    let text = Note(UnsafeCell::new(0));
    // SAFETY: nobody else has it yet; loom checks.
    text.0.with_mut(|text| unsafe { *text = 7 });
    Arc::new(Part { number, text })
}

/// The steps of a move, in an order.
#[derive(Clone, Copy)]
enum Order {
    Right,
    /// The old home goes before the thing is told.
    GoneTooEarly,
    /// The thing is told of a home that is not there yet.
    ToldTooEarly,
}

/// A thing is moved from part 1 to part 2 while it is read: it is found, in one of them, whole.
fn moves<P: Publication>(order: Order) {
    let old = part(1);
    let shared =
        Arc::new((Swapped::<Vec<Arc<Part>>, P>::new(vec![Arc::clone(&old)]), Place::<P>::new(1)));
    let mover = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (parts, place) = &*shared;
            let new = part(2);
            let (both, only) = (vec![old, Arc::clone(&new)], vec![new]);
            match order {
                Order::Right => {
                    parts.store(both);
                    place.store(2);
                    parts.store(only);
                }
                Order::GoneTooEarly => {
                    parts.store(only);
                    place.store(2);
                }
                Order::ToldTooEarly => {
                    place.store(2);
                    parts.store(both);
                }
            }
        })
    };
    let (parts, place) = &*shared;
    let text = parts.find(
        || place.load(),
        |parts, at| {
            let part = parts.iter().find(|part| part.number == at)?;
            // SAFETY: written before the part was put into a set; loom checks.
            Some(part.text.0.with(|text| unsafe { *text }))
        },
    );
    assert_eq!(text, Some(7), "a thing that is only moved was not found");
    mover.join().unwrap();
}

#[test]
fn a_moving_thing_is_always_found() {
    holds(|| moves::<ReleaseAcquire>(Order::Right));
}

#[test]
fn moving_without_release_is_caught() {
    is_caught(|| moves::<RelaxedStoreMutant>(Order::Right));
}

#[test]
fn moving_without_acquire_is_caught() {
    is_caught(|| moves::<RelaxedLoadMutant>(Order::Right));
}

#[test]
fn a_home_that_goes_too_early_is_caught() {
    is_caught(|| moves::<ReleaseAcquire>(Order::GoneTooEarly));
}

#[test]
fn a_home_that_comes_too_late_is_caught() {
    is_caught(|| moves::<ReleaseAcquire>(Order::ToldTooEarly));
}
