//! Each operation goes wrong once, or for ever.
//!
//! Checked: a failure is an error and never a panic; what was acknowledged is there after a start on a sound disk, and at most
//! the one step that failed besides; a store that is not poisoned goes on as if the step had not been asked for. A write that is short or interrupted changes nothing at all. A write that went astray, or
//! lost a bit, and said that all was well is named as damage, or what is found is what there was at some moment.

use std::io::ErrorKind;

use super::cut::Chooser;
use super::disk::{Failure, Fault, FaultDisk, Image};
use super::workload::{Contents, Run, Step, contents, open};
use crate::error::Error;
use crate::types::Durability;

const SYNC: Durability = Durability::Sync;

/// What came of a workload with an operation that goes wrong.
struct Outcome {
    disk: FaultDisk,
    /// Contents after each step that was acknowledged; the first is empty.
    acknowledged: Vec<Contents>,
    /// What a step that failed may have left nevertheless.
    hoped: Option<Contents>,
    reached: bool,
}

/// Runs `workload` up to the first step that fails.
fn run(workload: &[Step], failure: Failure) -> Outcome {
    let disk = FaultDisk::new(Image::new());
    disk.fail(Some(failure));
    let (mut acknowledged, mut hoped) = (vec![Contents::new()], None);
    if let Ok(mut run) = Run::begin(disk.clone(), SYNC) {
        for step in workload {
            let next = run.expected(*step);
            if run.go(*step).is_err() {
                // Known or unknown, it may have happened; nothing else may be asked of a store that failed.
                hoped = Some(next);
                break;
            }
            acknowledged.push(next);
        }
    }
    let reached = disk.changes() > failure.at;
    disk.fail(None);
    Outcome { disk, acknowledged, hoped, reached }
}

/// Runs `workload` with one operation failing; `false` when there is no such operation.
fn survives(workload: &[Step], failure: Failure) -> bool {
    let place = || format!("{workload:?}, {failure:?}");
    let outcome = run(workload, failure);
    let allowed: Vec<&Contents> =
        outcome.acknowledged.last().into_iter().chain(&outcome.hoped).collect();
    let record = outcome.disk.record();
    for chooser in [Chooser::Kept, Chooser::Dropped, Chooser::Chance(failure.at as u64 + 1)] {
        let image = record.cut(record.events.len(), chooser);
        let store = open(&FaultDisk::new(image), SYNC)
            .unwrap_or_else(|e| panic!("{}, {chooser:?}: {e}", place()));
        let found = contents(&store).unwrap();
        assert!(
            allowed.contains(&&found),
            "{}, {chooser:?}: {found:#?} is none of {allowed:#?}",
            place()
        );
    }
    outcome.reached
}

/// Calls `check` with failures at 0, 1, ... until it says that there is no such operation; returns how many there were.
fn each(mut check: impl FnMut(Failure) -> bool, for_ever: bool, fault: Fault) -> usize {
    (0..).take_while(|at| check(Failure { at: *at, for_ever, fault })).count()
}

#[test]
fn an_operation_that_fails_once_or_for_ever_loses_nothing() {
    let mut failures = 0;
    for workload in Step::workloads(2) {
        for kind in [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
            for for_ever in [false, true] {
                let check = |failure| survives(&workload, failure);
                failures += each(check, for_ever, Fault::Error(kind));
            }
        }
    }
    println!("{failures} failures");
}

/// Does `workload` with one operation that fails once, goes on behind it, after a restart where the store was poisoned, and cuts the
/// power at the end. Says whether there is such an operation, and whether it poisoned the store.
fn goes_on(workload: &[Step], failure: Failure) -> (bool, bool) {
    let place = |what: &str| format!("{workload:?}, {failure:?}: {what}");
    let sure =
        |opened: Result<(), Error>| opened.unwrap_or_else(|e| panic!("{}", place(&e.to_string())));
    let disk = FaultDisk::new(Image::new());
    disk.fail(Some(failure));
    // A start that fails is another test's.
    let Ok(mut run) = Run::begin(disk.clone(), SYNC) else { return (true, false) };
    let mut poisoned = false;
    for step in workload {
        let next = run.expected(*step);
        match run.go(*step) {
            Ok(()) => {}
            Err(Error::Poisoned { .. }) => {
                poisoned = true;
                assert!(run.is_closed() || run.go(Step::AddText).is_err(), "{}", place("goes on"));
                sure(run.restart());
                let found = run.contents().unwrap();
                assert!(found == run.model || found == next, "{}", place("lost at the restart"));
                run.model = found;
            }
            Err(_) => {
                sure(if run.is_closed() { run.restart() } else { Ok(()) });
                assert_eq!(run.contents().unwrap(), run.model, "{}", place("it did happen"));
            }
        }
    }
    let reached = disk.changes() > failure.at;
    disk.fail(None);
    let record = disk.record();
    for chooser in [Chooser::Kept, Chooser::Dropped, Chooser::Chance(failure.at as u64 + 1)] {
        let image = record.cut(record.events.len(), chooser);
        let store = open(&FaultDisk::new(image), SYNC);
        let store = store.unwrap_or_else(|e| panic!("{}", place(&format!("{chooser:?}: {e}"))));
        assert_eq!(contents(&store).unwrap(), run.model, "{}", place("lost"));
    }
    (reached, poisoned)
}

#[test]
fn a_store_that_goes_on_after_a_failure_keeps_what_it_acknowledges() {
    // New memories, a file for them, a record of the log that needs another file, and all merged.
    let behind =
        [Step::AddBatch, Step::Seal, Step::AddText, Step::Reopen, Step::AddBatch, Step::Compact];
    let (mut failures, mut poisoned) = (0, 0);
    let by_chance = (1..30).map(|seed| Step::by_chance(3, seed));
    for first in Step::workloads(1).into_iter().chain(by_chance) {
        let workload: Vec<Step> = first.into_iter().chain(behind).collect();
        for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
            let fault = Fault::Error(kind);
            failures += each(
                |failure| {
                    let (reached, poisons) = goes_on(&workload, failure);
                    poisoned += usize::from(poisons);
                    reached
                },
                false,
                fault,
            );
        }
    }
    println!("{failures} failures, {poisoned} of them poisoned the store");
    assert!(poisoned > 500 && failures > 2 * poisoned);
}

#[test]
fn short_and_interrupted_writes_change_nothing() {
    let mut failures = 0;
    let harmless = |workload: &[Step], failure| {
        let outcome = run(workload, failure);
        let steps = outcome.acknowledged.len() - 1;
        assert_eq!(steps, workload.len(), "{workload:?} failed after {steps} steps: {failure:?}");
        let found = contents(&open(&outcome.disk, SYNC).unwrap()).unwrap();
        assert_eq!(Some(&found), outcome.acknowledged.last(), "{workload:?}, {failure:?}");
        outcome.reached
    };
    for workload in Step::workloads(1).into_iter().chain((1..12).map(|n| Step::by_chance(6, n))) {
        let check = |failure| harmless(&workload, failure);
        let interrupted = Fault::Error(ErrorKind::Interrupted);
        failures += each(check, false, interrupted);
        for most in [1, 511] {
            failures += each(check, false, Fault::Short(most));
        }
        // Every write takes a part only.
        check(Failure { at: 0, for_ever: true, fault: Fault::Short(700) });
    }
    println!("{failures} short and interrupted writes");
}

#[test]
fn a_write_that_goes_astray_is_noticed_or_what_is_found_was_there_once() {
    let (mut noticed, mut whole, mut earlier) = (0, 0, 0);
    let mut check = |workload: &[Step], failure: Failure| {
        let outcome = run(workload, failure);
        match open(&outcome.disk, SYNC).and_then(|store| contents(&store)) {
            Ok(found) if outcome.acknowledged.last() == Some(&found) => whole += 1,
            Ok(found) => {
                let known = outcome.acknowledged.contains(&found) || outcome.hoped == Some(found);
                assert!(known, "{workload:?}, {failure:?}");
                earlier += 1;
            }
            Err(Error::Corrupt { .. }) => noticed += 1,
            Err(e) => panic!("{workload:?}, {failure:?}: {e}"),
        }
        outcome.reached
    };
    for seed in 1..25 {
        let workload = Step::by_chance(7, seed);
        for fault in [Fault::Flipped, Fault::Misdirected(8), Fault::Misdirected(4096)] {
            let mut at = 0;
            while check(&workload, Failure { at, for_ever: false, fault }) {
                at += 1;
            }
        }
    }
    println!("{noticed} noticed, {whole} harmless, {earlier} with an earlier state");
    assert!(noticed > 100);
    assert_eq!(earlier, 0, "a store that was closed lost what it had acknowledged");
}

#[test]
fn a_store_that_cannot_be_read_now_can_be_later() {
    let mut failures = 0;
    for seed in 1..12 {
        let workload = Step::by_chance(8, seed);
        let disk = FaultDisk::new(Image::new());
        let mut run = Run::begin(disk.clone(), SYNC).unwrap();
        workload.iter().for_each(|step| run.go(*step).unwrap());
        let model = run.model.clone();
        drop(run);
        let image = disk.live();
        failures += each(
            |failure| {
                let disk = FaultDisk::new(image.clone());
                disk.fail_reading(Some(failure));
                let found = open(&disk, SYNC).and_then(|store| contents(&store));
                let reached = disk.reads() > failure.at;
                assert!(!reached || !matches!(found, Err(Error::Corrupt { .. })), "{failure:?}");
                disk.fail_reading(None);
                let found = contents(&open(&disk, SYNC).unwrap()).unwrap();
                assert_eq!(found, model, "{workload:?}, {failure:?}");
                reached
            },
            false,
            Fault::Error(ErrorKind::Other),
        );
    }
    println!("{failures} readings that failed");
}
