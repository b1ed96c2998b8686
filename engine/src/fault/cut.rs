//! What a power cut leaves.
//!
//! It is worked out from the record alone: an operation that no sync covers may be there, be missing, be there in part (by sectors
//! of 512 or 4,096 bytes), or have left garbage, each by itself and in any order; so may a name that was made, changed or
//! removed in a folder that was not synced. What lies in a folder whose own name is missing is gone. Model: SQLite's `test6.c`
//! and ALICE (Pillai et al., OSDI 2014).
//!
//! Invariant: a synced file has its bytes, a synced folder its names; everything else is up to the chooser.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::disk::{Event, FileNo, Image, Record, bits, put};

/// Who decides what an unsynced operation comes to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chooser {
    /// Everything arrived.
    Kept,
    /// Nothing did.
    Dropped,
    /// Each operation by itself, by chance.
    Chance(u64),
}

/// What became of one operation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Kept,
    Dropped,
    /// Each sector of so many bytes by chance.
    Torn(usize),
    Garbage,
}

impl Chooser {
    fn write(&mut self) -> Fate {
        match self {
            Chooser::Kept => Fate::Kept,
            Chooser::Dropped => Fate::Dropped,
            Chooser::Chance(state) => match bits(state) >> 32 & 7 {
                0 | 1 => Fate::Kept,
                2 | 3 => Fate::Dropped,
                4 | 5 => Fate::Torn(512),
                6 => Fate::Torn(4096),
                _ => Fate::Garbage,
            },
        }
    }

    fn coin(&mut self) -> bool {
        match self {
            Chooser::Kept => true,
            Chooser::Dropped => false,
            Chooser::Chance(state) => bits(state) >> 32 & 1 == 0,
        }
    }

    fn noise(&mut self) -> u64 {
        match self {
            Chooser::Chance(state) => bits(state),
            _ => 0,
        }
    }
}

/// A file on the device, and what was written to it since its last sync.
#[derive(Default)]
struct OnDevice {
    bytes: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Record {
    /// What a power cut after the first `events` leaves.
    pub(super) fn cut(&self, events: usize, mut chooser: Chooser) -> Image {
        let mut files: BTreeMap<FileNo, OnDevice> = BTreeMap::new();
        let mut names: BTreeMap<PathBuf, FileNo> = BTreeMap::new();
        let mut dirs: BTreeSet<PathBuf> = BTreeSet::from(["/".into()]);
        for (file, (path, bytes)) in self.base.iter().enumerate() {
            files.insert(file, OnDevice { bytes: bytes.clone(), unsynced: Vec::new() });
            names.insert(path.clone(), file);
            dirs.extend(path.ancestors().skip(1).map(Path::to_path_buf));
        }
        let mut unsynced_names: Vec<&Event> = Vec::new();
        for event in &self.events[..events] {
            match event {
                Event::Write { file, offset, bytes } => {
                    files.entry(*file).or_default().unsynced.push((*offset, bytes.clone()));
                }
                Event::Sync { file } => {
                    let file = files.entry(*file).or_default();
                    for (offset, bytes) in std::mem::take(&mut file.unsynced) {
                        put(&mut file.bytes, offset, &bytes);
                    }
                }
                Event::SyncDir { dir } => unsynced_names.retain(|event| {
                    let synced = event.folder() == Some(dir);
                    if synced {
                        rename_on_device(&mut names, &mut dirs, event);
                    }
                    !synced
                }),
                Event::Lost => {}
                Event::Create { .. }
                | Event::Rename { .. }
                | Event::Remove { .. }
                | Event::MakeDir { .. } => unsynced_names.push(event),
            }
        }
        for event in unsynced_names {
            if chooser.coin() {
                rename_on_device(&mut names, &mut dirs, event);
            }
        }
        for file in files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.unsynced) {
                arrive(&mut file.bytes, offset, &bytes, &mut chooser);
            }
        }
        names.retain(|path, _| path.ancestors().skip(1).all(|dir| dirs.contains(dir)));
        let bytes = |file: FileNo| files.get(&file).map(|f| f.bytes.clone()).unwrap_or_default();
        names.into_iter().map(|(path, file)| (path, bytes(file))).collect()
    }
}

fn rename_on_device(
    names: &mut BTreeMap<PathBuf, FileNo>,
    dirs: &mut BTreeSet<PathBuf>,
    event: &Event,
) {
    match event {
        Event::Create { path, file } => {
            names.insert(path.clone(), *file);
        }
        Event::Rename { from, to, file } => {
            names.remove(from);
            names.insert(to.clone(), *file);
        }
        Event::Remove { path } => {
            names.remove(path);
        }
        Event::MakeDir { path } => {
            dirs.insert(path.clone());
        }
        Event::Write { .. } | Event::Sync { .. } | Event::SyncDir { .. } | Event::Lost => {}
    }
}

fn arrive(file: &mut Vec<u8>, offset: usize, bytes: &[u8], chooser: &mut Chooser) {
    match chooser.write() {
        Fate::Kept => put(file, offset, bytes),
        Fate::Dropped => {}
        Fate::Torn(sector) => {
            // Sectors of the device, not of the write.
            let mut at = offset;
            while at < offset + bytes.len() {
                let end = ((at / sector + 1) * sector).min(offset + bytes.len());
                if chooser.coin() {
                    put(file, at, &bytes[at - offset..end - offset]);
                }
                at = end;
            }
        }
        Fate::Garbage => {
            let noise: Vec<u8> = bytes.iter().map(|_| (chooser.noise() >> 32) as u8).collect();
            put(file, offset, &noise);
        }
    }
}
