//! The store: a data directory with many spaces, opened by one process at a time.
//!
//! Invariant: a write is in the log before it is in memory, and durable before it is acknowledged; a read may see it
//! a sync earlier than its acknowledgement. Searches take no lock that a writer holds.
//! Knows nothing of models, sockets or async runtimes; its one thread of its own is the log's.

mod admin;
mod attach;
mod folders;
mod query;
mod read;
mod recover;
mod restart;
pub(crate) mod restore;
pub(crate) mod salvage;
mod upkeep;
mod waiting;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use crossbeam::queue::ArrayQueue;
use crossbeam_skiplist::SkipMap;
use flashbulb_kernels::Kernels;
use parking_lot::{Mutex, RwLock};

pub use admin::{SnapshotReport, SpaceStats, StoreStatus, VerifyReport};
pub use recover::RecoveryReport;
pub use restore::{RestoreReport, restore};
pub use salvage::{Loss, SalvageReport, SalvagedSpace, salvage};
pub use upkeep::scrub::ScrubStatus;
pub use upkeep::{CompactReport, Job};

use crate::clock::{Clock, SystemClock};
use crate::disk::{Disk, Lock, RealDisk, create_dir_durably};
use crate::error::Error;
use crate::index::Scratch;
use crate::manifest::{Manifest, UNKNOWN_MODEL};
use crate::parts::Parts;
use crate::segment::Tombstone;
use crate::space::Space;
use crate::types::{DIM_RANGE, SpaceId, SpaceName, StoreOptions};
use crate::wal::Wal;
use upkeep::scrub::Scrub;

/// Scratch memory kept for later searches; more searches at once make their own.
const SCRATCH_KEPT: usize = 16;

/// An open store. Shared by reference among any number of threads.
#[derive(Debug)]
pub struct Store {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: PathBuf,
    options: StoreOptions,
    access: Access,
    kernels: Kernels,
    wal: Wal,
    /// Held for reading from a write's submission until it is applied; for writing to draw a line between the
    /// operations of the old head and those of a new one.
    gate: RwLock<()>,
    spaces: SkipMap<SpaceName, Arc<Space>>,
    /// Held while a space is made or dropped.
    making: Mutex<()>,
    /// Numbers given to spaces. Written by who holds `making`, read by upkeep with all writers locked out: `AcqRel`
    /// throughout, no loom model needed.
    spaces_made: AtomicU32,
    parts: Parts,
    /// Deletes since the last seal.
    tombstones: Mutex<Vec<Tombstone>>,
    /// Spaces with memories that wait for vectors.
    waiting: Mutex<BTreeMap<SpaceId, Weak<Space>>>,
    /// Spaces whose index may have something to build.
    unbuilt: Mutex<BTreeMap<SpaceId, Weak<Space>>>,
    /// One upkeep job at a time; the manifest as it is on disk.
    upkeep: Mutex<Manifest>,
    /// How far the reading of sealed blocks has come.
    scrub: Mutex<Scrub>,
    scratches: ArrayQueue<Box<Scratch>>,
    recovery: RecoveryReport,
    /// Set by close, `Release`; checked by every write and read, `Acquire`. No loom model: a late reader is harmless,
    /// a late writer is refused by the log itself.
    closed: AtomicBool,
    /// Held for the life of the store; the operating system releases it with the process.
    _lock: Lock,
}

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Write,
    /// Nothing in the folder is changed.
    Read,
}

impl Store {
    /// Opens the store in `dir`, making it if there is none, and recovers what an earlier process left.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it; [`Error::FingerprintMismatch`] or [`Error::DimMismatch`] if it keeps
    /// vectors of another model; [`Error::Corrupt`] where acknowledged data are damaged or missing; [`Error::Invalid`]
    /// for options out of range; [`Error::Io`], [`Error::DiskFull`], [`Error::VersionTooNew`].
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Store, Error> {
        check_model_named(&options)?;
        Store::open_on(Arc::new(RealDisk), Arc::new(SystemClock::new()), dir, options)
    }

    /// Opens the store in `dir` for reading, beside other readers and on read-only media; writes nothing there. Graphs that are
    /// not saved are built in memory.
    ///
    /// # Errors
    /// [`Error::NoStore`] if there is none; [`Error::NeedsRecovery`] if it was not closed cleanly; [`Error::Locked`] if a writer
    /// has it; otherwise as [`Store::open`].
    pub fn open_read_only(dir: &Path, options: StoreOptions) -> Result<Store, Error> {
        check_model_named(&options)?;
        let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
        Store::read_on(disk, clock, dir, options)
    }

    pub(crate) fn read_on(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        dir: &Path,
        options: StoreOptions,
    ) -> Result<Store, Error> {
        check_dim(&options)?;
        let path = dir.join("LOCK");
        let lock = disk.try_lock_shared(&path).map_err(Error::io("lock", &path))?;
        let lock = lock.ok_or_else(|| Error::Locked { dir: dir.into() })?;
        recover::recover(disk, clock, dir, options, lock, Access::Read)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        dir: &Path,
        options: StoreOptions,
    ) -> Result<Store, Error> {
        check_dim(&options)?;
        create_dir_durably(&*disk, dir).map_err(Error::io("create the folder", dir))?;
        let path = dir.join("LOCK");
        let lock = disk.try_lock(&path).map_err(Error::io("lock", &path))?;
        let lock = lock.ok_or_else(|| Error::Locked { dir: dir.into() })?;
        recover::recover(disk, clock, dir, options, lock, Access::Write)
    }

    /// Makes the folder of a store, and those above it that are missing, private to the user and durably: a folder whose name
    /// could be lost would take everything in it along. Does nothing where it is there.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`].
    pub fn create_dir(dir: &Path) -> Result<(), Error> {
        create_dir_durably(&RealDisk, dir).map_err(Error::io("create the folder", dir))
    }

    /// What recovery found at open.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// Components of a vector.
    pub fn dim(&self) -> usize {
        self.options.dim
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn check_writable(&self) -> Result<(), Error> {
        self.check_open()?;
        if self.access == Access::Read { Err(Error::ReadOnly) } else { Ok(()) }
    }

    fn find(&self, name: &SpaceName) -> Option<Arc<Space>> {
        self.spaces.get(name).map(|e| Arc::clone(e.value()))
    }

    fn space(&self, name: &SpaceName) -> Result<Arc<Space>, Error> {
        self.check_open()?;
        self.find(name).ok_or_else(|| Error::NoSuchSpace { space: name.to_string() })
    }

    /// Puts a space on the lists of those that need embedding or building.
    fn note_work(&self, space: &Arc<Space>) {
        if space.pending_len() > 0 {
            self.waiting.lock().entry(space.id).or_insert_with(|| Arc::downgrade(space));
        }
        if space.index.len() >= crate::index::GRAPH_FROM {
            self.unbuilt.lock().entry(space.id).or_insert_with(|| Arc::downgrade(space));
        }
    }

    /// Seals what is in memory, saves the graphs, ends the log with a mark. Later calls answer [`Error::Closed`];
    /// a second close does nothing.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if the log had failed; [`Error::Io`], [`Error::DiskFull`]. What was acknowledged is safe in
    /// the log either way.
    pub fn close(&self) -> Result<(), Error> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let saved = match self.access {
            Access::Write => self.save_all(),
            Access::Read => Ok(()),
        };
        let ended = self.wal.close();
        saved.and(ended)
    }
}

/// A store without a known model takes the first it is opened with, so that one must be named.
fn check_model_named(options: &StoreOptions) -> Result<(), Error> {
    if options.fingerprint == UNKNOWN_MODEL {
        return Err(Error::invalid("fingerprint", "is empty; name the model of the vectors"));
    }
    Ok(())
}

fn check_dim(options: &StoreOptions) -> Result<(), Error> {
    if !DIM_RANGE.contains(&options.dim) {
        let why = format!("is {}, it must lie within {DIM_RANGE:?}", options.dim);
        return Err(Error::invalid("dim", why));
    }
    Ok(())
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::error!(error = %e, dir = %self.dir.display(), "the store was not closed cleanly");
        }
    }
}
