//! Searches beside pushes, kills and building.
//!
//! Invariant: a hit is always a vector that was there and not yet killed when the search began.
//! Must not know: recall.

use super::super::{Accept, Scratch, SearchParams, VectorIndex, VectorNo};
use super::data::{Rows, for_about};
use flashbulb_kernels::Kernels;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

#[test]
fn searches_beside_writers_return_what_is_there() {
    const N: u32 = 9_000;
    let rows = Rows::clustered(N as usize, 32, 50);
    let index = VectorIndex::new(32, Kernels::detect());
    // Every vector below it is killed for good.
    let killed_below = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for reader in 0..2 {
            let (rows, index, killed_below, done) = (&rows, &index, &killed_below, &done);
            scope.spawn(move || {
                let mut scratch = Scratch::new();
                let mut at = reader;
                while !done.load(Ordering::Acquire) {
                    at = (at + 101) % N;
                    let floor = killed_below.load(Ordering::Acquire);
                    let (before, query) = (index.len(), rows.row(VectorNo(at)));
                    let params = SearchParams::new(5);
                    let Ok(result) = index.search(query, &params, rows, Accept::All, &mut scratch);
                    assert!(result.hits.iter().all(|hit| hit.0.0 >= floor), "a killed one");
                    assert!(result.hits.iter().all(|hit| hit.0.0 < N), "one that never was");
                    let scored = result.scanned + result.visited;
                    assert!(scored > 0 || before == 0, "nothing was looked at");
                }
            });
        }
        let builder = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if !index.build_step(&mut for_about(Duration::from_millis(1))) {
                    thread::yield_now();
                }
            }
        });
        for n in 0..N {
            index.push(rows.row(VectorNo(n)));
            if n % 3 == 2 {
                assert!(index.kill(VectorNo(n / 3)));
                killed_below.store(n / 3 + 1, Ordering::Release);
            }
        }
        while index.graph_len() < N {
            thread::yield_now();
        }
        done.store(true, Ordering::Release);
        builder.join().unwrap();
    });
    assert_eq!(index.live(), N - N / 3);
}

#[test]
fn a_checkpoint_beside_a_builder_is_sound() {
    let rows = Rows::clustered(6_000, 16, 51);
    let index = rows.index();
    thread::scope(|scope| {
        let builder =
            scope.spawn(|| while index.build_step(&mut for_about(Duration::from_millis(2))) {});
        let mut last = 0;
        while !builder.is_finished() {
            let mut bytes = Vec::new();
            index.checkpoint(&mut bytes).unwrap();
            let loaded = VectorIndex::load(16, Kernels::detect(), &bytes).unwrap();
            assert!(loaded.len() >= last, "a checkpoint never goes back");
            last = loaded.len();
        }
    });
}
