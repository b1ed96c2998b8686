//! A store that used up the numbers for its files.
//!
//! Checked: it says so where a new file is needed, and opens, answers and takes memories as often as before.

use std::path::Path;

use serde_json::Value;

use super::disk::{FaultDisk, Image};
use super::workload::{DIR, Run, Step, contents, open};
use crate::manifest::{self, Manifest};
use crate::parts::PART_LIMIT;
use crate::types::{Durability, NewMemory, OnConflict, SpaceName};

/// A store without a log to recover, whose newest manifest has given out all numbers below `next_part`.
fn with_next_part(next_part: u32) -> FaultDisk {
    let disk = FaultDisk::new(Image::new());
    let mut run = Run::begin(disk.clone(), Durability::Sync).unwrap();
    Step::MIXED.into_iter().for_each(|step| run.go(step).unwrap());
    drop(run);
    open(&disk, Durability::Sync).unwrap().close().unwrap();
    let mut files = disk.live();
    let generation = |path: &Path| path.file_name()?.to_str().and_then(manifest::file_generation);
    let newest = files.keys().filter_map(|path| generation(path)).max().unwrap();
    let path = Path::new(DIR).join(manifest::file_name(newest));
    let manifest = Manifest::read_newest(&disk, Path::new(DIR), &[newest]).unwrap().unwrap();
    let mut json = serde_json::to_value(manifest).unwrap();
    json["next_part"] = Value::from(next_part);
    files.insert(path, manifest::framed(json.to_string().as_bytes()));
    FaultDisk::new(files)
}

#[test]
fn a_store_out_of_file_numbers_opens_again_and_again() {
    for left in 1..4 {
        let disk = with_next_part(PART_LIMIT - left);
        let mut before = contents(&open(&disk, Durability::Sync).unwrap()).unwrap();
        let mut refusals = 0;
        for round in 0..5 {
            let store = open(&disk, Durability::Sync)
                .unwrap_or_else(|e| panic!("{left} left, opened {round} times before: {e}"));
            assert_eq!(contents(&store).unwrap(), before);
            let id = format!("of round {round}");
            let memory = NewMemory { text: id.clone(), id, ..NewMemory::default() };
            store.add(&SpaceName::parse("a").unwrap(), vec![memory], OnConflict::Error).unwrap();
            if let Err(e) = store.compact() {
                assert!(e.to_string().contains("file numbers"), "{e}");
                refusals += 1;
            }
            before = contents(&store).unwrap();
            let _ = store.close();
        }
        assert!(refusals > 0, "the numbers never ran out");
    }
}
