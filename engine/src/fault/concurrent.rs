//! Power cuts while several write, seal and compact at once.
//!
//! Checked in each state: each writer finds what was acknowledged to it, in its order, and of the rest a beginning; batches are
//! whole. Which operations the disk sees between which is up to the threads, so no two runs are alike; what is checked holds
//! for each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::cut::Chooser;
use super::disk::{FaultDisk, Image, bits};
use super::workload::{Run, contents, name, open, vector};
use crate::store::Store;
use crate::types::{Durability, NewMemory, OnConflict};

const WRITERS: usize = 3;
const BATCHES: usize = 14;
const BATCH: usize = 2;

/// Adds batches to a space of its own, or to the one of all; after which event of the disk each was acknowledged.
fn write(store: &Store, disk: &FaultDisk, writer: usize) -> Vec<usize> {
    let space = name(if writer == 0 { "all" } else { ["all", "one", "two"][writer % 3] });
    let add = |batch: usize| {
        let item = |at: usize| NewMemory {
            id: format!("w{writer}-{:04}", batch * BATCH + at),
            text: format!("batch {batch}, item {at}"),
            vectors: Some(vec![vector(batch * BATCH + at)]),
            ..NewMemory::default()
        };
        store.add(&space, (0..BATCH).map(item).collect(), OnConflict::Error).unwrap();
        disk.events()
    };
    (0..BATCHES).map(add).collect()
}

/// Seals and compacts until all have written.
fn tidy(store: &Store, done: &AtomicBool) {
    let mut round = 0;
    while !done.load(Ordering::Acquire) {
        round += 1;
        if round % 3 == 0 {
            store.compact().unwrap();
        } else {
            store.maintain(Duration::from_millis(1)).unwrap();
        }
    }
}

/// How many batches of `writer` there are: a beginning of all, each of them whole.
fn found(store: &Store, writer: usize, place: &str) -> usize {
    let prefix = format!("w{writer}-");
    let ids: Vec<String> = contents(store)
        .unwrap()
        .into_values()
        .flat_map(|memories| memories.into_keys())
        .filter(|id| id.starts_with(&prefix))
        .collect();
    let expected: Vec<String> = (0..ids.len()).map(|n| format!("{prefix}{n:04}")).collect();
    assert_eq!(ids, expected, "{place}: not a beginning of what was written");
    assert_eq!(ids.len() % BATCH, 0, "{place}: half a batch");
    ids.len() / BATCH
}

#[test]
fn writers_at_once_lose_nothing() {
    let mut states = 0;
    for round in 0..4 {
        let disk = FaultDisk::new(Image::new());
        let run = Run::begin(disk.clone(), Durability::Sync).unwrap();
        let (store, done) = (run.store(), AtomicBool::new(false));
        let acknowledged: Vec<Vec<usize>> = thread::scope(|scope| {
            let disk = &disk;
            let writers: Vec<_> =
                (0..WRITERS).map(|n| scope.spawn(move || write(store, disk, n))).collect();
            let tidying = scope.spawn(|| tidy(store, &done));
            let acknowledged = writers.into_iter().map(|w| w.join().unwrap()).collect();
            done.store(true, Ordering::Release);
            tidying.join().unwrap();
            acknowledged
        });
        let record = disk.record();
        let mut chance = round + 1;
        for at in (0..=record.events.len()).step_by(3) {
            let by_chance = Chooser::Chance(bits(&mut chance) | 1);
            for chooser in [Chooser::Kept, Chooser::Dropped, by_chance] {
                let place = format!("round {round}, cut before event {at}, {chooser:?}");
                let store = open(&FaultDisk::new(record.cut(at, chooser)), Durability::Sync)
                    .unwrap_or_else(|e| panic!("{place}: {e}"));
                for (writer, acknowledged) in acknowledged.iter().enumerate() {
                    let safe = acknowledged.iter().filter(|event| **event <= at).count();
                    let there = found(&store, writer, &place);
                    assert!(
                        there >= safe,
                        "{place}: {there} batches of {writer}, {safe} acknowledged"
                    );
                }
                states += 1;
            }
        }
    }
    println!("{states} crash states");
}
