//! Restoring: snapshots that are sound, damaged, not closed; a power cut or a failure on the way.
//!
//! Checked: what is restored is what was kept; damage is refused before anything is written; a power cut leaves the whole
//! store or a folder without a manifest, a failure an empty one.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::cut::Chooser;
use super::disk::{Failure, Fault, FaultDisk, Image, bits};
use super::workload::{Contents, DIR, Run, Step, StillClock, contents};
use crate::disk::Disk;
use crate::error::Error;
use crate::store::Store;
use crate::store::restore::restore_on;
use crate::types::{Durability, NewMemory, OnConflict, SpaceName, StoreOptions};

const SNAPSHOT: &str = "/snapshot";
const TO: &str = "/restored";

fn open_at(disk: &FaultDisk, dir: &str) -> Result<Store, Error> {
    let options =
        StoreOptions { log_file_bytes: 8 << 10, seal_bytes: 1, ..StoreOptions::new(8, "m") };
    Store::open_on(Arc::new(disk.clone()), Arc::new(StillClock), Path::new(dir), options)
}

/// A disk with the files of `image` below `dir` alone.
fn only(image: &Image, dir: &str) -> Image {
    image
        .iter()
        .filter(|(path, _)| path.starts_with(dir))
        .map(|(p, b)| (p.clone(), b.clone()))
        .collect()
}

/// A store that was not closed, a snapshot of it, and what is in both.
fn sample() -> (FaultDisk, Contents) {
    let disk = FaultDisk::new(Image::new());
    let mut run = Run::begin(disk.clone(), Durability::Sync).unwrap();
    for step in Step::MIXED.into_iter().chain([Step::Delete]) {
        run.go(step).unwrap();
    }
    let unclean = disk.live();
    let store = open_at(&FaultDisk::new(unclean.clone()), DIR).unwrap();
    let expected = contents(&store).unwrap();
    assert_eq!(expected, run.model);
    drop(run);
    let disk = FaultDisk::new(unclean);
    let store = open_at(&disk, DIR).unwrap();
    store.snapshot(Path::new(SNAPSHOT)).unwrap();
    (disk, expected)
}

fn restore(disk: &FaultDisk, from: &str) -> Result<u64, Error> {
    restore_on(disk, Path::new(from), Path::new(TO)).map(|report| report.memories)
}

fn is_untouched(disk: &FaultDisk) -> bool {
    disk.list(Path::new(TO)).unwrap_or_default().is_empty()
}

#[test]
fn a_snapshot_and_a_closed_store_are_restored_whole() {
    let (disk, expected) = sample();
    let live = disk.live();
    let closed = FaultDisk::new(only(&live, DIR));
    open_at(&closed, DIR).unwrap().close().unwrap();
    for (image, from) in [(only(&live, SNAPSHOT), SNAPSHOT), (closed.live(), DIR)] {
        let disk = FaultDisk::new(image.clone());
        let memories = restore(&disk, from).unwrap();
        assert_eq!(only(&disk.live(), from), image, "the snapshot was changed");
        let store = open_at(&disk, TO).unwrap();
        assert_eq!(contents(&store).unwrap(), expected);
        assert_eq!(memories, store.status().memories);
        assert_eq!(store.verify().unwrap().problems, [""; 0]);
        assert!(restore(&disk, from).unwrap_err().to_string().contains("not empty"));
    }
}

#[test]
fn a_store_that_was_not_closed_is_refused_with_what_to_do() {
    let disk = FaultDisk::new(Image::new());
    let mut run = Run::begin(disk.clone(), Durability::Sync).unwrap();
    run.go(Step::AddText).unwrap();
    let disk = FaultDisk::new(disk.live());
    let refused = restore(&disk, DIR).unwrap_err().to_string();
    assert!(refused.contains("Start the daemon on it once"), "{refused}");
    assert!(is_untouched(&disk));
    let refused = restore(&disk, "/nowhere").unwrap_err().to_string();
    assert!(refused.contains("does not exist"), "{refused}");
}

#[test]
fn a_flipped_byte_of_a_snapshot_is_refused_before_anything_is_written() {
    let (disk, _) = sample();
    let image = only(&disk.live(), SNAPSHOT);
    let mut flips = 0;
    for (path, bytes) in &image {
        for at in 0..bytes.len() {
            let mut bad = image.clone();
            bad.get_mut(path).unwrap()[at] ^= 1 << (at % 8);
            let disk = FaultDisk::new(bad);
            let found = restore(&disk, SNAPSHOT);
            let refused = matches!(found, Err(Error::Corrupt { .. } | Error::VersionTooNew { .. }));
            assert!(refused, "{} byte {at}: {found:?}", path.display());
            assert!(is_untouched(&disk), "{} byte {at}", path.display());
            flips += 1;
        }
        let mut less = image.clone();
        less.remove(path);
        assert!(restore(&FaultDisk::new(less), SNAPSHOT).is_err(), "{}", path.display());
    }
    println!("{flips} flips");
}

#[test]
fn a_power_cut_leaves_the_whole_store_or_none() {
    let (disk, expected) = sample();
    let disk = FaultDisk::new(only(&disk.live(), SNAPSHOT));
    restore(&disk, SNAPSHOT).unwrap();
    let record = disk.record();
    let mut whole = 0;
    let choosers = [Chooser::Kept, Chooser::Dropped];
    for events in 0..=record.events.len() {
        let by_chance = (1..40).map(|n| Chooser::Chance(n * 77 + events as u64));
        for chooser in choosers.into_iter().chain(by_chance) {
            let image = record.cut(events, chooser);
            let has_manifest = image.keys().any(|path| {
                path.starts_with(TO)
                    && path.to_string_lossy().ends_with("manifest-0000000000000001")
            });
            if has_manifest {
                let store = open_at(&FaultDisk::new(image), TO).unwrap();
                assert_eq!(contents(&store).unwrap(), expected, "{events} {chooser:?}");
                whole += 1;
            }
        }
    }
    assert!(whole >= 41, "after the last event it is durable");
}

#[test]
fn a_failure_leaves_an_empty_folder() {
    let (disk, _) = sample();
    let image = only(&disk.live(), SNAPSHOT);
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        let mut failures = 0;
        for at in 0.. {
            let disk = FaultDisk::new(image.clone());
            disk.fail(Some(Failure { at, for_ever: false, fault: Fault::Error(kind) }));
            if restore(&disk, SNAPSHOT).is_ok() {
                break;
            }
            assert!(is_untouched(&disk), "operation {at}: {:?}", disk.list(Path::new(TO)));
            failures += 1;
        }
        assert!(failures > 8, "{failures}");
    }
}

#[test]
fn damage_in_any_block_of_a_large_snapshot_is_refused() {
    let disk = FaultDisk::new(Image::new());
    let store = open_at(&disk, DIR).unwrap();
    let item = |n: usize| NewMemory {
        id: format!("m{n}"),
        text: format!("text {n}"),
        vectors: Some(vec![(0..8).map(|i| ((n * 8 + i) as f32 * 0.37).sin()).collect()]),
        ..NewMemory::default()
    };
    let space = SpaceName::parse("a").unwrap();
    store.add(&space, (0..4200).map(item).collect(), OnConflict::Error).unwrap();
    while store.maintain(Duration::from_secs(1)).unwrap() {}
    store.snapshot(Path::new(SNAPSHOT)).unwrap();
    let image = only(&disk.live(), SNAPSHOT);
    let disk = FaultDisk::new(image.clone());
    assert_eq!(restore(&disk, SNAPSHOT).unwrap(), 4200);
    let restored = open_at(&disk, TO).unwrap();
    assert_eq!(restored.recovery().graphs_loaded, 1);
    let report = restored.verify().unwrap();
    assert_eq!((report.graph_vectors, &report.problems[..]), (4200, &[][..]));
    let mut state = 0x5eed;
    for (path, bytes) in &image {
        for _ in 0..60 {
            let at = bits(&mut state) as usize % bytes.len();
            let mut bad = image.clone();
            bad.get_mut(path).unwrap()[at] ^= 1;
            let disk = FaultDisk::new(bad);
            let found = restore(&disk, SNAPSHOT);
            let refused = matches!(found, Err(Error::Corrupt { .. } | Error::VersionTooNew { .. }));
            assert!(refused, "{} byte {at}: {found:?}", path.display());
            assert!(is_untouched(&disk));
        }
    }
}
