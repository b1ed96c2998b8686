//! The promises of the models with real threads, for builds without loom.
//!
//! Invariant: readers beside a writer see whole items only. Must not know: how the types are built.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use flashbulb_engine::sync::{AppendVec, BlockStore, RowStore, Tombstones, Watermark};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const ITEMS: u32 = 200_000;
const READERS: usize = 3;

/// Runs `read` over and over in some threads while `write` runs in this one, and once after it.
fn beside(write: impl FnOnce(), read: impl Fn() + Sync) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    read();
                }
                read();
            });
        }
        write();
        done.store(true, Ordering::Release);
    });
}

#[test]
fn readers_of_an_append_vec_see_whole_items() {
    let items = AppendVec::new();
    beside(
        || (0..ITEMS).for_each(|i| assert_eq!(items.push([i, !i]), i)),
        || {
            let view = items.reader();
            let Some(last) = view.len().checked_sub(1) else {
                return;
            };
            for at in [last, last / 2, 0] {
                assert_eq!(view.get(at), Some(&[at, !at]));
            }
            assert!(view.get(view.len()).is_none());
        },
    );
}

#[test]
fn readers_of_a_row_store_see_whole_rows() {
    let rows = RowStore::<u32>::new(24);
    beside(
        || (0..ITEMS / 4).for_each(|i| assert_eq!(rows.push(&[i; 24]), i)),
        || {
            let view = rows.reader();
            let from = view.len().saturating_sub(100);
            for (first, run) in view.runs(from, view.len()) {
                for (i, row) in run.chunks(24).enumerate() {
                    assert!(row.iter().all(|&v| v == first + i as u32));
                }
            }
        },
    );
}

#[test]
fn kills_from_many_threads_count_once() {
    let dead = Tombstones::new();
    dead.grow(ITEMS);
    let killed: u32 = thread::scope(|scope| {
        let killers: Vec<_> = (0..READERS)
            .map(|_| scope.spawn(|| (0..ITEMS).map(|i| u32::from(dead.kill(i))).sum::<u32>()))
            .collect();
        killers.into_iter().map(|killer| killer.join().unwrap()).sum()
    });
    assert_eq!((killed, dead.count()), (ITEMS, ITEMS));
    assert!((0..ITEMS).all(|i| dead.is_dead(i)));
}

#[test]
fn walks_beside_a_builder_find_what_is_covered() {
    const LINE: u32 = 1_000;
    let blocks = BlockStore::new(8);
    let covered = Watermark::new();
    let put = |next: u32| {
        let mut slot = blocks.reserve();
        slot.bytes_mut().copy_from_slice(&[next.to_le_bytes(), (!next).to_le_bytes()].concat());
        slot
    };
    beside(
        || {
            for i in 0..LINE {
                // The last one leads nowhere; the one before it now leads to it. All change again and again.
                assert_eq!(blocks.push(put(i)), i);
                (i.saturating_sub(10)..i).for_each(|node| blocks.replace(node, put(node + 1)));
                covered.store(i + 1);
            }
        },
        || {
            let mark = covered.load();
            let view = blocks.pin();
            let mut at = 0;
            for step in 0..mark {
                assert_eq!(at, step, "a covered node is not found");
                let block = view.get(at).expect("in view").as_chunks::<4>().0;
                at = u32::from_le_bytes(block[0]);
                assert_eq!(at, !u32::from_le_bytes(block[1]), "a torn block");
            }
        },
    );
}
