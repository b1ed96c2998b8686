//! The loom models of what durability and moving rest on: who waits for a commit, and who reads what is moved.
//!
//! Invariant: as for the other models: each passes as it is and fails with its mutants. Must not know: how the types are built.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Note, holds, holds_within, is_caught, is_caught_alone, sleeps_forever};
use flashbulb_engine::sync::shim::{Arc, AtomicU32, Ordering};
use flashbulb_engine::sync::{
    CommitQueue, Group, Place, Publication, Refused, RelaxedLoadMutant, RelaxedStoreMutant,
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

/// Writes one group to the device, and syncs it where `syncs`.
fn write_group<P: Publication>(queue: &Queue<P>, group: Group<u32>, syncs: bool) {
    let (queue, device) = &**queue;
    device.written.store(group.last as u32, Ordering::Relaxed);
    if syncs {
        device.synced.store(group.last as u32, Ordering::Relaxed);
        queue.committed();
    } else {
        queue.written();
    }
}

/// What the committer does until the queue is closed, with a sync for each group where `syncs`, else only for those who ask.
fn commit<P: Publication>(queue: &Queue<P>, syncs: bool) {
    loop {
        match queue.0.next(1, None) {
            Task::Group(group) => write_group(queue, group, syncs),
            Task::Sync => {
                let written = queue.1.written.load(Ordering::Relaxed);
                queue.1.synced.store(written, Ordering::Relaxed);
                queue.0.synced();
            }
            Task::Mark { number, durable } => {
                assert_eq!(u64::from(queue.1.synced.load(Ordering::Relaxed)), durable);
                queue.1.written.store(number as u32, Ordering::Relaxed);
                queue.1.synced.store(number as u32, Ordering::Relaxed);
                queue.0.committed();
            }
            Task::Closed => return,
        }
    }
}

/// Submits one item and waits for it, committing what falls to it.
fn write<P: Publication>(queue: &Queue<P>, until: Until, syncs: bool) -> Result<(), Refused> {
    let number = queue.0.submit(1, 1, 1).map_err(|(why, _)| why)?;
    while let Some(group) = queue.0.wait(number, until, 1)? {
        write_group(queue, group, syncs);
    }
    let reached = match until {
        Until::Written => &queue.1.written,
        Until::Durable => &queue.1.synced,
    };
    let reached = u64::from(reached.load(Ordering::Relaxed));
    assert!(reached >= number, "{number} was acknowledged before it was there");
    Ok(())
}

/// Two writers, each of whom may commit both items, or one, or leave them to the other: none is told too early, none sleeps on.
fn writers_wait<P: Publication>() {
    let queue = queue::<P>();
    let other = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || write(&queue, Until::Durable, true))
    };
    let committer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || commit(&queue, true))
    };
    assert_eq!(write(&queue, Until::Durable, true), Ok(()));
    assert_eq!(other.join().unwrap(), Ok(()));
    queue.0.close();
    committer.join().unwrap();
    let last = queue.0.last();
    assert_eq!((queue.0.last_item(), last), (Some(2), 3), "two items and a mark");
    assert_eq!(u64::from(queue.1.synced.load(Ordering::Relaxed)), last);
}

#[test]
fn commits_wake_their_writers_and_none_too_early() {
    holds_within(3, writers_wait::<ReleaseAcquire>);
}

#[test]
fn commits_that_wake_nobody_are_caught() {
    sleeps_forever("commits_that_wake_nobody_are_caught", writers_wait::<SilentMutant>);
}

/// A writer who is content with a write beside one who wants a sync and leaves all the work to the committer, who sleeps: the sync
/// is made.
fn sync_is_had<P: Publication>() {
    let queue = queue::<P>();
    let other = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || write(&queue, Until::Written, false))
    };
    let committer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || commit(&queue, false))
    };
    let number = queue.0.submit(1, 1, 1).map_err(|(why, _)| why).unwrap();
    assert_eq!(queue.0.wait_idly(number, Until::Durable), Ok(()));
    assert!(u64::from(queue.1.synced.load(Ordering::Relaxed)) >= number);
    assert_eq!(other.join().unwrap(), Ok(()));
    queue.0.close();
    committer.join().unwrap();
}

#[test]
fn a_sync_that_is_waited_for_is_made() {
    holds_within(3, sync_is_had::<ReleaseAcquire>);
}

#[test]
fn a_sync_that_nobody_is_told_of_is_caught() {
    sleeps_forever("a_sync_that_nobody_is_told_of_is_caught", sync_is_had::<SilentMutant>);
}

/// Two writers want their items synced and the committer syncs when asked: a group's end is not yet a sync.
fn ends_are_told_apart<P: Publication>() {
    let queue = queue::<P>();
    let other = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || write(&queue, Until::Durable, false))
    };
    let committer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || commit(&queue, false))
    };
    assert_eq!(write(&queue, Until::Durable, false), Ok(()));
    assert_eq!(other.join().unwrap(), Ok(()));
    queue.0.close();
    committer.join().unwrap();
}

#[test]
fn a_written_group_is_not_taken_for_a_synced_one() {
    holds_within(3, ends_are_told_apart::<ReleaseAcquire>);
}

#[test]
fn a_wait_that_takes_any_end_for_its_own_is_caught() {
    is_caught_alone(
        "a_wait_that_takes_any_end_for_its_own_is_caught",
        "before it was there",
        ends_are_told_apart::<UncheckedMutant>,
    );
}

/// The committer fails with one item taken and perhaps one queued: whoever waits is told, and whoever comes.
fn poison_reaches_all<P: Publication>() {
    let queue = queue::<P>();
    let number = queue.0.submit(1, 1, 1).map_err(|(why, _)| why).unwrap();
    let Task::Group(_) = queue.0.next(1, None) else { panic!("an item is there") };
    let writers = [0, 1].map(|place| {
        let queue = Arc::clone(&queue);
        thread::spawn(move || match place {
            0 => queue.0.wait(number, Until::Durable, 1).map(|led| assert!(led.is_none())),
            _ => write(&queue, Until::Durable, true),
        })
    });
    queue.0.poison("the device is gone");
    for writer in writers {
        let outcome = writer.join().unwrap();
        assert!(matches!(outcome, Err(Refused::Poisoned(_))), "told {outcome:?} after a failure");
    }
    queue.0.committed();
    assert_eq!(queue.0.durable(), 0, "acknowledged after a failure");
    assert!(matches!(queue.0.next(1, None), Task::Closed));
}

#[test]
fn a_failure_reaches_everybody() {
    holds_within(3, poison_reaches_all::<ReleaseAcquire>);
}

#[test]
fn a_failure_that_wakes_nobody_is_caught() {
    sleeps_forever("a_failure_that_wakes_nobody_is_caught", poison_reaches_all::<SilentMutant>);
}

#[test]
fn a_failure_taken_for_success_is_caught() {
    is_caught_alone(
        "a_failure_taken_for_success_is_caught",
        "a failure",
        poison_reaches_all::<UncheckedMutant>,
    );
}

/// The queue closes beside a writer: what was taken in is committed, what was not was refused, and the committer ends with all of it
/// synced.
fn drains<P: Publication>() {
    let queue = queue::<P>();
    let writer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || write(&queue, Until::Durable, true))
    };
    let closer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || queue.0.close())
    };
    commit(&queue, true);
    closer.join().unwrap();
    let outcome = writer.join().unwrap();
    assert!(matches!(outcome, Ok(()) | Err(Refused::Closed)), "{outcome:?}");
    assert_eq!(queue.0.durable(), queue.0.last(), "the committer ended too early");
    assert_eq!(queue.0.last_item().is_some(), outcome.is_ok());
}

#[test]
fn closing_drains_what_was_taken_in() {
    holds_within(3, drains::<ReleaseAcquire>);
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
