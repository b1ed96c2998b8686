//! The disk: files in memory, a record of every operation in order, and operations that go wrong.
//!
//! Invariant: what a process sees is what a kernel's cache would show it; what the device holds is worked out from the record
//! (`cut`). Knows nothing of stores.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Bytes, Disk, DiskFile, Held, Lock};

/// A file, whatever its name.
pub(super) type FileNo = usize;

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
    MakeDir {
        path: PathBuf,
    },
    /// A write or a name whose sync failed: it never arrives.
    Lost,
}

impl Event {
    /// The folder whose names it changes.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Event::Create { path, .. } | Event::Remove { path } | Event::MakeDir { path } => {
                path.parent()
            }
            Event::Rename { to, .. } => to.parent(),
            _ => None,
        }
    }
}

/// How an operation goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It says so and does nothing.
    Error(io::ErrorKind),
    /// A write takes only this many bytes, or fewer if there are not so many.
    Short(usize),
    /// A write lands so many bytes further on, and says that all is well.
    Misdirected(usize),
    /// One bit of a write is flipped on its way, and it says that all is well.
    Flipped,
}

/// Which operation goes wrong, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    /// Counted from zero over all operations that change something, or over all that read.
    pub(super) at: usize,
    /// Whether all later ones do too.
    pub(super) for_ever: bool,
    pub(super) fault: Fault,
}

impl Failure {
    fn of(failure: Option<Failure>, counted: &mut usize) -> Option<Fault> {
        let at = *counted;
        *counted += 1;
        let hit = |f: &Failure| at == f.at || (f.for_ever && at > f.at);
        failure.filter(hit).map(|f| f.fault)
    }
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
    dirs: BTreeSet<PathBuf>,
    failure: Option<Failure>,
    changes: usize,
    read_failure: Option<Failure>,
    reads: usize,
    random: u64,
}

/// A disk in memory.
#[derive(Debug, Clone)]
pub(super) struct FaultDisk(Arc<Mutex<State>>);

impl FaultDisk {
    /// A disk that holds `image` durably.
    pub(super) fn new(image: Image) -> FaultDisk {
        let mut state = State { random: 0x9e37_79b9_7f4a_7c15, ..State::default() };
        state.dirs.insert("/".into());
        for (path, bytes) in &image {
            state.dirs.extend(path.ancestors().skip(1).map(Path::to_path_buf));
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

    /// Makes a reading fail.
    pub(super) fn fail_reading(&self, failure: Option<Failure>) {
        let mut state = self.0.lock();
        state.read_failure = failure;
        state.reads = 0;
    }

    /// How many readings there were since the last [`FaultDisk::fail_reading`].
    pub(super) fn reads(&self) -> usize {
        self.0.lock().reads
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
    /// Whether the next operation may go on. What goes wrong with writes alone leaves others as they are.
    fn change(&mut self) -> io::Result<()> {
        match Failure::of(self.failure, &mut self.changes) {
            Some(Fault::Error(kind)) if kind != io::ErrorKind::Interrupted => Err(kind.into()),
            _ => Ok(()),
        }
    }

    /// Whether the next reading may go on.
    fn reading(&mut self) -> io::Result<()> {
        match Failure::of(self.read_failure, &mut self.reads) {
            Some(Fault::Error(kind)) => Err(kind.into()),
            _ => Ok(()),
        }
    }

    /// What was done to `file`, or to the names of `dir`, since its last sync never arrives.
    fn lose(&mut self, lost: impl Fn(&Event) -> bool, synced: impl Fn(&Event) -> bool) {
        for event in self.record.events.iter_mut().rev() {
            if synced(event) {
                break;
            }
            if lost(event) {
                *event = Event::Lost;
            }
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
        let mut offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut len = bytes.len();
        let failure = state.failure;
        match Failure::of(failure, &mut state.changes) {
            Some(Fault::Error(kind)) => return Err(kind.into()),
            Some(Fault::Short(most)) => {
                len = len.min(most);
                bytes.truncate(len);
            }
            Some(Fault::Misdirected(by)) => offset += by,
            Some(Fault::Flipped) => {
                let bit = bits(&mut state.random) as usize % (bytes.len().max(1) * 8);
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            None => {}
        }
        put(&mut self.bytes.lock(), offset, &bytes);
        state.record.events.push(Event::Write { file: self.file, offset, bytes });
        Ok(len)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        // A failed sync leaves the cache clean and the device as it was: what was written is seen, and never arrives.
        if let Err(e) = state.change() {
            let mine = self.file;
            state.lose(
                |event| matches!(event, Event::Write { file, .. } if *file == mine),
                |event| matches!(event, Event::Sync { file } if *file == mine),
            );
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
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.dirs.contains(dir) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !dir.parent().is_some_and(|above| state.dirs.contains(above)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change()?;
        state.dirs.insert(dir.into());
        state.record.events.push(Event::MakeDir { path: dir.into() });
        Ok(())
    }

    fn make_private(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self, _path: &Path) -> io::Result<Option<Lock>> {
        Ok(Some(Box::new(Unlocked)))
    }

    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Lock>> {
        self.try_lock(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.0.lock();
        state.reading()?;
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
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
        let mut state = self.0.lock();
        state.reading()?;
        let file = state.find(path)?;
        let bytes = state.files[file].lock().clone();
        Ok(bytes)
    }

    fn read_start(&self, path: &Path, most: usize) -> io::Result<Vec<u8>> {
        let mut start = self.read(path)?;
        start.truncate(most);
        Ok(start)
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
        if let Err(e) = state.change() {
            state.lose(
                |event| event.folder() == Some(dir),
                |event| matches!(event, Event::SyncDir { dir: synced } if synced == dir),
            );
            return Err(e);
        }
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

pub(super) fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}
