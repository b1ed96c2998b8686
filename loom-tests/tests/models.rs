//! The loom models, each beside its mutants. Empty without `--cfg loom`.
//!
//! Invariant: a model passes with `ReleaseAcquire` and fails with every mutant that weakens an
//! ordering it rests on. Must not know: how the types are built.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Note, holds, holds_within_bounds, is_caught, sleeps_forever};
use flashbulb_engine::sync::shim::{Arc, AtomicU32, Condvar, Mutex, Ordering};
use flashbulb_engine::sync::{
    AppendVec, Crew, Lent, Publication, RelaxedLoadMutant, RelaxedStoreMutant, ReleaseAcquire,
    RowStore, SilentMutant, Tombstones,
};
use loom::cell::UnsafeCell;
use loom::thread;

/// Two pushes beside a reader: whatever the length says is there can be read, and is whole.
fn append_vec<P: Publication>() {
    let items = Arc::new(AppendVec::<[u32; 2], P>::with_publication());
    let writer = {
        let items = Arc::clone(&items);
        thread::spawn(move || {
            items.push([1, 10]);
            items.push([2, 20]);
        })
    };
    let view = items.reader();
    for at in 0..view.len() {
        assert_eq!(view.get(at), Some(&[at + 1, (at + 1) * 10]));
    }
    assert!(view.get(view.len()).is_none());
    writer.join().unwrap();
    assert_eq!(items.len(), 2);
}

#[test]
fn append_vec_publishes_whole_items() {
    holds(append_vec::<ReleaseAcquire>);
}

#[test]
fn append_vec_without_release_is_caught() {
    is_caught(append_vec::<RelaxedStoreMutant>);
}

#[test]
fn append_vec_without_acquire_is_caught() {
    is_caught(append_vec::<RelaxedLoadMutant>);
}

/// Writers exclude one another: two at once give two items, each whole.
#[test]
fn append_vec_takes_writers_one_at_a_time() {
    holds(|| {
        let items = Arc::new(AppendVec::<u32>::new());
        let other = {
            let items = Arc::clone(&items);
            thread::spawn(move || items.push(7))
        };
        let mine = items.push(9);
        let theirs = other.join().unwrap();
        assert_ne!(mine, theirs);
        assert_eq!((items.get(mine), items.get(theirs)), (Some(&9), Some(&7)));
    });
}

/// Two rows beside a reader that takes them one by one and in runs.
fn row_store<P: Publication>() {
    let rows = Arc::new(RowStore::<u32, P>::with_publication(3));
    let writer = {
        let rows = Arc::clone(&rows);
        thread::spawn(move || {
            rows.push(&[0, 1, 2]);
            rows.push(&[3, 4, 5]);
        })
    };
    let view = rows.reader();
    let seen: Vec<u32> = view.runs(0, u32::MAX).flat_map(|(_, run)| run.to_vec()).collect();
    assert!(seen.iter().copied().eq(0..view.len() * 3));
    if let Some(row) = rows.row(1) {
        assert_eq!(row, [3, 4, 5]);
    }
    writer.join().unwrap();
}

#[test]
fn row_store_publishes_whole_rows() {
    holds(row_store::<ReleaseAcquire>);
}

#[test]
fn row_store_without_release_is_caught() {
    is_caught(row_store::<RelaxedStoreMutant>);
}

#[test]
fn row_store_without_acquire_is_caught() {
    is_caught(row_store::<RelaxedLoadMutant>);
}

/// A reader that sees the tombstone sees what was written before it.
fn tombstone<P: Publication>() {
    let dead = Tombstones::<P>::with_publication();
    dead.grow(2);
    let shared = Arc::new((dead, Note(UnsafeCell::new(0))));
    let killer = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            // SAFETY: the reader looks only after it has seen the tombstone; loom checks.
            shared.1.0.with_mut(|note| unsafe { *note = 5 });
            assert!(shared.0.kill(1));
        })
    };
    if shared.0.is_dead(1) {
        // SAFETY: the killer wrote before the tombstone; loom checks.
        assert_eq!(shared.1.0.with(|note| unsafe { *note }), 5);
    }
    assert!(!shared.0.is_dead(0));
    killer.join().unwrap();
    assert!(shared.0.is_dead(1), "a kill that has returned is seen");
}

#[test]
fn tombstone_carries_what_came_before() {
    holds(tombstone::<ReleaseAcquire>);
}

#[test]
fn tombstone_without_release_is_caught() {
    is_caught(tombstone::<RelaxedStoreMutant>);
}

#[test]
fn tombstone_without_acquire_is_caught() {
    is_caught(tombstone::<RelaxedLoadMutant>);
}

/// Two threads kill one item and its neighbour in the same word: no kill is lost, none is counted
/// twice.
#[test]
fn tombstones_count_each_kill_once() {
    holds(|| {
        let dead = Tombstones::new();
        dead.grow(2);
        let dead = Arc::new(dead);
        let other = {
            let dead = Arc::clone(&dead);
            thread::spawn(move || u32::from(dead.kill(0)) + u32::from(dead.kill(1)))
        };
        let mine = u32::from(dead.kill(0));
        let theirs = other.join().unwrap();
        assert_eq!(mine + theirs, 2);
        assert_eq!((dead.count(), dead.word(0)), (2, 0b11));
    });
}

/// The shim's condition variable: a wake-up between the check and the wait is not lost.
#[test]
fn condvar_loses_no_wake_up() {
    holds(|| {
        let shared = Arc::new((Mutex::new(false), Condvar::new(), AtomicU32::new(0)));
        let waker = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.2.store(1, Ordering::Relaxed);
                *shared.0.lock() = true;
                shared.1.notify_all();
            })
        };
        let mut ready = shared.0.lock();
        while !*ready {
            shared.1.wait(&mut ready);
        }
        drop(ready);
        assert_eq!(shared.2.load(Ordering::Relaxed), 1, "the mutex carries what came before");
        waker.join().unwrap();
    });
}

/// A crew with its helper; `turns` are the numbers of parts of the turns that an owner hands out. Each part writes a
/// cell of its own, which loom watches, and the owner reads it when the turn is over.
fn crew<P: Publication>(turns: &'static [usize]) {
    let crew = Arc::new(Crew::<P>::with_publication());
    let helper = {
        let crew = Arc::clone(&crew);
        thread::spawn(move || crew.serve(1))
    };
    if let Some(mut lent) = Lent::of(&crew, 1) {
        for &parts in turns {
            let cells: Vec<Note> = (0..parts).map(|_| Note(UnsafeCell::new(0))).collect();
            // SAFETY: each part has a cell of its own, and the owner looks after the turn; loom checks.
            lent.each(parts, &|part| cells[part].0.with_mut(|note| unsafe { *note += 1 }));
            for cell in &cells {
                // SAFETY: as above.
                assert_eq!(cell.0.with(|note| unsafe { *note }), 1, "a part ran not once");
            }
        }
    }
    crew.close();
    helper.join().unwrap();
}

#[test]
fn crew_runs_each_part_once() {
    holds_within_bounds(|| crew::<ReleaseAcquire>(&[2]));
}

#[test]
fn crew_goes_from_turn_to_turn() {
    holds_within_bounds(|| crew::<ReleaseAcquire>(&[1, 1]));
}

#[test]
fn crew_without_release_is_caught() {
    is_caught(|| crew::<RelaxedStoreMutant>(&[2]));
}

#[test]
fn crew_without_acquire_is_caught() {
    is_caught(|| crew::<RelaxedLoadMutant>(&[2]));
}

#[test]
fn crew_that_wakes_nobody_is_caught() {
    sleeps_forever("crew_that_wakes_nobody_is_caught", || crew::<SilentMutant>(&[2]));
}

/// Two threads want the crew at once: never do both have it, and who has it second sees what the first wrote.
fn owners<P: Publication>() {
    let shared = Arc::new((Arc::new(Crew::<P>::with_publication()), Note(UnsafeCell::new(0))));
    let helper = {
        let crew = Arc::clone(&shared.0);
        thread::spawn(move || crew.serve(1))
    };
    let note = |shared: &(Arc<Crew<P>>, Note)| {
        if let Some(lent) = Lent::of(&shared.0, 1) {
            // SAFETY: only who has the crew writes; loom checks.
            shared.1.0.with_mut(|note| unsafe { *note += 1 });
            drop(lent);
        }
    };
    let other = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || note(&shared))
    };
    note(&shared);
    other.join().unwrap();
    shared.0.close();
    helper.join().unwrap();
}

#[test]
fn crew_has_one_owner() {
    holds_within_bounds(owners::<ReleaseAcquire>);
}

#[test]
fn crew_given_back_without_release_is_caught() {
    is_caught(owners::<RelaxedStoreMutant>);
}

#[test]
fn crew_taken_without_acquire_is_caught() {
    is_caught(owners::<RelaxedLoadMutant>);
}
