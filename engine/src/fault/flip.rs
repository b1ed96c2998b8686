//! Every byte of a closed store flipped.
//!
//! Checked: the damage is named, at the open or at the first reading, or what is read is what was written; nothing panics.

use super::disk::{FaultDisk, Image};
use super::workload::{Contents, Run, Step, contents, open};
use crate::error::Error;
use crate::types::Durability;

/// A store with two segments, one of them merged, and its log.
fn closed() -> (Image, Contents) {
    let disk = FaultDisk::new(Image::new());
    let mut run = Run::begin(disk.clone(), Durability::Sync).unwrap();
    for step in Step::MIXED.into_iter().chain([Step::Reopen]) {
        run.go(step).unwrap();
    }
    let model = run.model.clone();
    drop(run);
    let image = disk.live();
    assert_eq!(read(image.clone()).unwrap(), model);
    (image, model)
}

fn read(image: Image) -> Result<Contents, Error> {
    contents(&open(&FaultDisk::new(image), Durability::Sync)?)
}

#[test]
fn a_flipped_byte_is_noticed_or_harmless() {
    let (image, model) = closed();
    let (mut noticed, mut harmless) = (0, 0);
    for (path, bytes) in &image {
        for at in 0..bytes.len() {
            let mut bad = image.clone();
            if let Some(byte) = bad.get_mut(path).and_then(|bytes| bytes.get_mut(at)) {
                *byte ^= 1 << (at % 8);
            }
            match read(bad) {
                Ok(found) => {
                    assert_eq!(found, model, "{} byte {at}", path.display());
                    harmless += 1;
                }
                Err(Error::Corrupt { .. } | Error::VersionTooNew { .. }) => noticed += 1,
                Err(e) => panic!("{} byte {at}: {e}", path.display()),
            }
        }
    }
    println!("{noticed} noticed, {harmless} harmless");
}
