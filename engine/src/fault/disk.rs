//! The disk: files in memory, and a record of every operation in order.
//!
//! What a power cut leaves is worked out from the record alone ([`Record::cut`]): an operation that no sync covers may
//! be there, be missing, be there in part (by sectors of 512 or 4,096 bytes), or have left garbage, each by itself and in any
//! order; so may a name that was made, changed or removed in a folder that was not synced. Model: SQLite's `test6.c` and
//! ALICE (Pillai et al., OSDI 2014).
//!
//! Invariant: a synced file has its bytes, a synced folder its names; everything else is up to the chooser.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Bytes, Disk, DiskFile, Held, Lock};

/// A file, whatever its name.
type FileNo = usize;

/// What reached the device, in order.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Create {
        path: PathBuf,
        file: FileNo,
    },
    Write {
        file: FileNo,
        offset: usize,
        bytes: Vec<u8>,
    },
    Sync {
        file: FileNo,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        file: FileNo,
    },
    Remove {
        path: PathBuf,
    },
    SyncDir {
        dir: PathBuf,
    },
    /// A write whose sync failed: it never arrives.
    Lost,
}

impl Event {
    /// The folder whose names it changes.
    fn folder(&self) -> Option<&Path> {
        match self {
            Event::Create { path, .. } | Event::Remove { path } => path.parent(),
            Event::Rename { to, .. } => to.parent(),
            _ => None,
        }
    }
}

/// Which operation fails, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    /// Counted from zero over all operations that change something.
    pub(super) at: usize,
    /// Whether all later ones fail too.
    pub(super) for_ever: bool,
    pub(super) kind: io::ErrorKind,
}

/// Files by name, as a device holds them.
pub(super) type Image = BTreeMap<PathBuf, Vec<u8>>;

/// What happened to a disk that began as `base`.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    pub(super) base: Image,
    pub(super) events: Vec<Event>,
}

#[derive(Debug, Default)]
struct State {
    record: Record,
    files: Vec<Arc<Mutex<Vec<u8>>>>,
    names: BTreeMap<PathBuf, FileNo>,
    failure: Option<Failure>,
    changes: usize,
    random: u64,
}

/// A disk in memory.
#[derive(Debug, Clone)]
pub(super) struct FaultDisk(Arc<Mutex<State>>);

impl FaultDisk {
    /// A disk that holds `image` durably.
    pub(super) fn new(image: Image) -> FaultDisk {
        let mut state = State { random: 0x9e37_79b9_7f4a_7c15, ..State::default() };
        for (path, bytes) in &image {
            state.names.insert(path.clone(), state.files.len());
            state.files.push(Arc::new(Mutex::new(bytes.clone())));
        }
        state.record.base = image;
        FaultDisk(Arc::new(Mutex::new(state)))
    }

    /// Makes an operation fail.
    pub(super) fn fail(&self, failure: Option<Failure>) {
        let mut state = self.0.lock();
        state.failure = failure;
        state.changes = 0;
    }

    /// How many operations changed something, or failed to, since the last [`FaultDisk::fail`].
    pub(super) fn changes(&self) -> usize {
        self.0.lock().changes
    }

    /// How many events there were.
    pub(super) fn events(&self) -> usize {
        self.0.lock().record.events.len()
    }

    /// What a process sees now.
    pub(super) fn live(&self) -> Image {
        let state = self.0.lock();
        let bytes = |file: FileNo| state.files[file].lock().clone();
        state.names.iter().map(|(path, file)| (path.clone(), bytes(*file))).collect()
    }

    /// All that happened so far.
    pub(super) fn record(&self) -> Record {
        self.0.lock().record.clone()
    }
}

impl State {
    /// Whether the next operation may go on.
    fn change(&mut self) -> io::Result<()> {
        let at = self.changes;
        self.changes += 1;
        match self.failure {
            Some(f) if at == f.at || (f.for_ever && at > f.at) => Err(f.kind.into()),
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<FileNo> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[derive(Debug)]
struct OpenFile {
    disk: FaultDisk,
    file: FileNo,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl DiskFile for OpenFile {
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        state.change()?;
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let len = bytes.len();
        put(&mut self.bytes.lock(), offset, &bytes);
        state.record.events.push(Event::Write { file: self.file, offset, bytes });
        Ok(len)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        // A failed sync leaves the cache clean and the device as it was: what was written is seen, and never arrives.
        if let Err(e) = state.change() {
            for event in state.record.events.iter_mut().rev() {
                match event {
                    Event::Write { file, .. } if *file == self.file => *event = Event::Lost,
                    Event::Sync { file } if *file == self.file => break,
                    _ => {}
                }
            }
            return Err(e);
        }
        state.record.events.push(Event::Sync { file: self.file });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
}

/// One process at a time is all there is.
#[derive(Debug)]
struct Unlocked;

impl Held for Unlocked {}

#[derive(Debug)]
struct Copied(Vec<u8>);

impl Bytes for Copied {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Disk for FaultDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self, _path: &Path) -> io::Result<Option<Lock>> {
        Ok(Some(Box::new(Unlocked)))
    }

    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Lock>> {
        self.try_lock(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let here = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.change()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let (file, bytes) = (state.files.len(), Arc::default());
        state.files.push(Arc::clone(&bytes));
        state.names.insert(path.into(), file);
        state.record.events.push(Event::Create { path: path.into(), file });
        Ok(Box::new(OpenFile { disk: self.clone(), file, bytes }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.0.lock();
        let file = state.find(path)?;
        let bytes = Arc::clone(&state.files[file]);
        Ok(Box::new(OpenFile { disk: self.clone(), file, bytes }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.0.lock();
        let file = state.find(path)?;
        let bytes = state.files[file].lock().clone();
        Ok(bytes)
    }

    fn map(&self, path: &Path) -> io::Result<Arc<dyn Bytes>> {
        Ok(Arc::new(Copied(self.read(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.change()?;
        let file = state.find(from)?;
        state.names.remove(from);
        state.names.insert(to.into(), file);
        state.record.events.push(Event::Rename { from: from.into(), to: to.into(), file });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.find(path)?;
        state.change()?;
        state.names.remove(path);
        state.record.events.push(Event::Remove { path: path.into() });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.change()?;
        state.record.events.push(Event::SyncDir { dir: dir.into() });
        Ok(())
    }

    fn random(&self) -> [u8; 16] {
        let mut state = self.0.lock();
        let mut out = [0; 16];
        for half in out.chunks_exact_mut(8) {
            half.copy_from_slice(&bits(&mut state.random).to_le_bytes());
        }
        out
    }
}

/// Repeatable pseudo-random bits (xorshift64).
pub(super) fn bits(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

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
        for (file, (path, bytes)) in self.base.iter().enumerate() {
            files.insert(file, OnDevice { bytes: bytes.clone(), unsynced: Vec::new() });
            names.insert(path.clone(), file);
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
                        rename_on_device(&mut names, event);
                    }
                    !synced
                }),
                Event::Lost => {}
                Event::Create { .. } | Event::Rename { .. } | Event::Remove { .. } => {
                    unsynced_names.push(event);
                }
            }
        }
        for event in unsynced_names {
            if chooser.coin() {
                rename_on_device(&mut names, event);
            }
        }
        for file in files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.unsynced) {
                arrive(&mut file.bytes, offset, &bytes, &mut chooser);
            }
        }
        let bytes = |file: FileNo| files.get(&file).map(|f| f.bytes.clone()).unwrap_or_default();
        names.into_iter().map(|(path, file)| (path, bytes(file))).collect()
    }
}

fn rename_on_device(names: &mut BTreeMap<PathBuf, FileNo>, event: &Event) {
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
