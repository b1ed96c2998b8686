//! Each operation fails once, or for ever.
//!
//! Checked: the failure is an error and never a panic; what was acknowledged is there after a start on a sound disk, and at
//! most the one step that failed besides.

use std::io::ErrorKind;

use super::cut::Chooser;
use super::disk::{Failure, Fault, FaultDisk, Image};
use super::workload::{Contents, Run, Step, contents, open};

/// Runs `workload` with one operation failing; `false` when there is no such operation.
fn with_failure(workload: &[Step], failure: Failure) -> bool {
    let place = || format!("{workload:?}, {failure:?}");
    let disk = FaultDisk::new(Image::new());
    disk.fail(Some(failure));
    let mut allowed = vec![Contents::new()];
    if let Ok(mut run) = Run::begin(disk.clone()) {
        for step in workload {
            let hoped = run.expected(*step);
            match run.go(*step) {
                Ok(()) => allowed = vec![run.model.clone()],
                Err(_) => {
                    // Known or unknown, it may have happened; nothing else may be asked of a store that failed.
                    allowed.push(hoped);
                    break;
                }
            }
        }
        drop(run);
    }
    let reached = disk.changes() > failure.at;
    disk.fail(None);
    let record = disk.record();
    for chooser in [Chooser::Kept, Chooser::Dropped, Chooser::Chance(failure.at as u64 + 1)] {
        let image = record.cut(record.events.len(), chooser);
        let store = open(&FaultDisk::new(image))
            .unwrap_or_else(|e| panic!("{}, {chooser:?}: {e}", place()));
        let found = contents(&store).unwrap();
        assert!(
            allowed.contains(&found),
            "{}, {chooser:?}: {found:#?} is none of {allowed:#?}",
            place()
        );
    }
    reached
}

#[test]
fn an_operation_that_fails_once_or_for_ever_loses_nothing() {
    let mut failures = 0;
    for workload in Step::workloads(2) {
        for kind in [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
            for for_ever in [false, true] {
                let mut at = 0;
                while with_failure(&workload, Failure { at, for_ever, fault: Fault::Error(kind) }) {
                    at += 1;
                }
                failures += at;
            }
        }
    }
    println!("{failures} failures");
}
