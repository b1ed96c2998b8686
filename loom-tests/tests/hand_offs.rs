//! The loom models of what threads hand to one another: the ring, the mailbox, the call that wakes. Empty without
//! `--cfg loom`.
//!
//! Invariant: a model passes with `ReleaseAcquire` and fails with every mutant that weakens an ordering it rests on or wakes
//! nobody. Must not know: how the types are built.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Note, holds, holds_within_bounds, is_caught_alone, sleeps_forever};
use flashbulb_engine::sync::shim::Arc;
use flashbulb_engine::sync::{
    Call, Mailbox, Publication, PushError, RelaxedLoadMutant, RelaxedStoreMutant, ReleaseAcquire,
    SilentMutant, ring,
};
use loom::cell::UnsafeCell;
use loom::thread;
use std::time::Duration;

/// Longest wait where loom, which knows no time, waits for a call alone.
const LONG: Duration = Duration::from_secs(3600);

/// An item that loom watches: written by who makes it, read by who gets it.
fn item(value: u32) -> Note {
    let note = Note(UnsafeCell::new(0));
    // SAFETY: nobody else has it yet.
    note.0.with_mut(|note| unsafe { *note = value });
    note
}

fn value(note: &Note) -> u32 {
    // SAFETY: who made it let go of it; loom checks.
    note.0.with(|note| unsafe { *note })
}

/// A mutant that lets a thread reach what another is still writing.
fn races(test: &str, model: impl Fn() + Sync + Send + 'static) {
    is_caught_alone(test, "Causality violation", model);
}

/// Two items through a ring beside a consumer that takes what it finds: they come whole and in order.
fn ring_hands_over<P: Publication>() {
    let (mut producer, mut consumer) = ring::<Note, P>(2);
    let other = thread::spawn(move || {
        assert!(producer.push(item(1)).is_ok());
        assert!(producer.push(item(2)).is_ok());
        producer
    });
    let mut seen: Vec<u32> = (0..2).filter_map(|_| consumer.pop()).map(|n| value(&n)).collect();
    let producer = other.join().unwrap();
    seen.extend(std::iter::from_fn(|| consumer.pop()).map(|note| value(&note)));
    assert_eq!(seen, [1, 2]);
    assert!(producer.is_empty());
}

#[test]
fn ring_hands_over_whole_items() {
    holds(ring_hands_over::<ReleaseAcquire>);
}

#[test]
fn ring_without_release_is_caught() {
    races("ring_without_release_is_caught", ring_hands_over::<RelaxedStoreMutant>);
}

#[test]
fn ring_without_acquire_is_caught() {
    races("ring_without_acquire_is_caught", ring_hands_over::<RelaxedLoadMutant>);
}

/// A ring of one place, used three times: a place is written again only after its item was taken out, so the numbers
/// wrap, fullness is seen, and nothing is overwritten.
fn ring_wraps<P: Publication>() {
    let (mut producer, mut consumer) = ring::<Note, P>(1);
    assert!(producer.push(item(1)).is_ok());
    let other = thread::spawn(move || consumer.pop().map(|note| (value(&note), consumer)));
    let refused = match producer.push(item(2)) {
        Ok(()) => None,
        Err(PushError::Full(note)) => Some(note),
        Err(PushError::Closed(_)) => panic!("nobody closed it"),
    };
    let (first, mut consumer) = other.join().unwrap().unwrap();
    assert_eq!(first, 1);
    if let Some(note) = refused {
        assert!(producer.push(note).is_ok());
    }
    assert_eq!(consumer.pop().map(|note| value(&note)), Some(2));
}

#[test]
fn ring_reuses_places() {
    holds(ring_wraps::<ReleaseAcquire>);
}

#[test]
fn ring_that_reuses_places_without_release_is_caught() {
    races("ring_that_reuses_places_without_release_is_caught", ring_wraps::<RelaxedStoreMutant>);
}

#[test]
fn ring_that_reuses_places_without_acquire_is_caught() {
    races("ring_that_reuses_places_without_acquire_is_caught", ring_wraps::<RelaxedLoadMutant>);
}

/// A producer that ends after its last item: a consumer that finds the ring finished has had every item.
fn ring_closes<P: Publication>() {
    let (mut producer, mut consumer) = ring::<Note, P>(2);
    let other = thread::spawn(move || assert!(producer.push(item(7)).is_ok()));
    let mut seen = 0;
    while !consumer.is_finished() {
        match consumer.pop() {
            Some(note) => seen += value(&note),
            None => thread::yield_now(),
        }
    }
    assert_eq!(seen, 7, "finished before its last item");
    other.join().unwrap();
}

#[test]
fn ring_closes_behind_the_last_item() {
    holds_within_bounds(ring_closes::<ReleaseAcquire>);
}

#[test]
fn ring_closed_without_release_is_caught() {
    races("ring_closed_without_release_is_caught", ring_closes::<RelaxedStoreMutant>);
}

#[test]
fn ring_closed_without_acquire_is_caught() {
    races("ring_closed_without_acquire_is_caught", ring_closes::<RelaxedLoadMutant>);
}

/// What a worker of a lane does: sleeps where its ring is empty, and ends when the ring is finished. No item and no
/// shutdown is slept through.
fn worker_sleeps<P: Publication>() {
    let (mut producer, mut consumer) = ring::<Note, P>(2);
    let (send, receive) = loom::sync::mpsc::channel();
    let worker = thread::spawn(move || {
        let call = Arc::new(Call::<P>::here());
        send.send(Arc::clone(&call)).unwrap();
        let mut seen = 0;
        loop {
            match consumer.pop() {
                Some(note) => seen += value(&note),
                None if consumer.is_finished() => return seen,
                None => call.wait(LONG),
            }
        }
    });
    let call = receive.recv().unwrap();
    assert!(producer.push(item(5)).is_ok());
    call.call();
    drop(producer);
    call.call();
    assert_eq!(worker.join().unwrap(), 5);
}

#[test]
fn call_is_never_lost() {
    holds_within_bounds(worker_sleeps::<ReleaseAcquire>);
}

#[test]
fn call_that_wakes_nobody_is_caught() {
    sleeps_forever("call_that_wakes_nobody_is_caught", worker_sleeps::<SilentMutant>);
}

/// Two threads put a letter each into a box beside its owner, who empties it: each comes out once, whole.
fn mailbox_delivers<P: Publication>() {
    let mailbox = Arc::new(Mailbox::<Note, P>::with_publication(4));
    let writers: Vec<_> = [1, 2]
        .into_iter()
        .map(|number| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || assert!(mailbox.put(item(number)).is_ok()))
        })
        .collect();
    let mut seen: Vec<u32> = mailbox.empty().iter().map(value).collect();
    for writer in writers {
        writer.join().unwrap();
    }
    seen.extend(mailbox.empty().iter().map(value));
    seen.sort_unstable();
    assert_eq!(seen, [1, 2]);
    assert!(mailbox.is_empty());
}

#[test]
fn mailbox_delivers_each_letter_once() {
    holds(mailbox_delivers::<ReleaseAcquire>);
}

#[test]
fn mailbox_without_release_is_caught() {
    races("mailbox_without_release_is_caught", mailbox_delivers::<RelaxedStoreMutant>);
}

#[test]
fn mailbox_without_acquire_is_caught() {
    races("mailbox_without_acquire_is_caught", mailbox_delivers::<RelaxedLoadMutant>);
}

/// A box of one place: of two letters at once one is refused unless the owner emptied it between.
#[test]
fn mailbox_is_bounded() {
    holds(|| {
        let mailbox = Arc::new(Mailbox::<u32, ReleaseAcquire>::with_publication(1));
        let other = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.put(1).is_ok())
        };
        let mine = mailbox.put(2).is_ok();
        let theirs = other.join().unwrap();
        assert!(mine != theirs, "both or neither found the one place");
        assert_eq!(mailbox.empty(), [if mine { 2 } else { 1 }]);
    });
}

/// An owner that sleeps until it was called, and then finds the letter that was put in before the call.
fn mailbox_wakes<P: Publication>() {
    let mailbox = Arc::new(Mailbox::<Note, P>::with_publication(1));
    let call = Arc::new(Call::<P>::here());
    let writer = {
        let (mailbox, call) = (Arc::clone(&mailbox), Arc::clone(&call));
        thread::spawn(move || {
            assert!(mailbox.put(item(3)).is_ok());
            call.call();
        })
    };
    loop {
        if let Some(letter) = mailbox.empty().pop() {
            assert_eq!(value(&letter), 3);
            break;
        }
        call.wait(LONG);
    }
    writer.join().unwrap();
}

#[test]
fn mailbox_wakes_its_owner() {
    holds(mailbox_wakes::<ReleaseAcquire>);
}

#[test]
fn mailbox_that_wakes_nobody_is_caught() {
    sleeps_forever("mailbox_that_wakes_nobody_is_caught", mailbox_wakes::<SilentMutant>);
}
