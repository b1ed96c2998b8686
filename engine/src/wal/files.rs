//! The log's files: made with their full length before they are used, given their names when they are begun, removed when
//! segments hold what they hold.
//!
//! Invariant: what was handed over to be written has its place in a file that is already on the device, so a full disk is
//! noticed before a write is taken and never in the middle of one. A name appears only with a synced header below it.
//! Knows nothing of records or of who waits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::format::{FILE_HEADER_BYTES, FileHeader, file_name};
use crate::disk::{Disk, DiskFile, write_all_at};
use crate::error::Error;
use crate::pace::Pace;
use crate::types::Lsn;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A file of zeros on the device, not yet one of the log's.
#[derive(Debug)]
pub(super) struct NewFile {
    file: Box<dyn DiskFile>,
    tmp: PathBuf,
    len: u64,
}

impl NewFile {
    /// Bytes for records.
    fn room(&self) -> u64 {
        self.len - FILE_HEADER_BYTES as u64
    }
}

/// The file being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) salt: u32,
    pub(super) offset: u64,
}

/// The files of a log.
#[derive(Debug)]
pub(super) struct Files {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    epoch: u64,
    file_bytes: u64,
    room: Mutex<Room>,
    names: Mutex<Names>,
}

/// What writers need: where the next bytes go.
#[derive(Debug, Default)]
struct Room {
    /// Bytes of the newest file that nobody was given.
    left: u64,
    spare: Option<NewFile>,
    spare_wanted: bool,
    /// Files made so far: each has a name of its own until it is begun.
    made: u64,
}

/// Files in use, oldest first, and the number of the next.
#[derive(Debug)]
struct Names {
    in_use: Vec<(u64, Lsn)>,
    next: u64,
}

impl Files {
    /// `file_bytes` is the length of a file, more where one batch needs more; `next` the number of the next.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        epoch: u64,
        file_bytes: usize,
        next: u64,
    ) -> Files {
        Files {
            disk,
            dir,
            epoch,
            file_bytes: file_bytes.max(2 * FILE_HEADER_BYTES) as u64,
            room: Mutex::default(),
            names: Mutex::new(Names { in_use: Vec::new(), next }),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the first file, without a name.
    pub(super) fn make_first(&self) -> Result<(), Error> {
        let mut room = self.room.lock();
        let file = self.new_file(&mut room, 0)?;
        room.spare = Some(file);
        Ok(())
    }

    /// Begins the first file.
    pub(super) fn first(&self, first_lsn: Lsn) -> Result<Active, Error> {
        let mut room = self.room.lock();
        let file = self.new_file(&mut room, 0)?;
        room.left = file.room();
        self.begin(file, first_lsn)
    }

    /// Finds `bytes` a place and hands them over by `take`, which gets a file where they are to begin a new one. What is handed
    /// over is written in this order.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`] where a new file cannot be made, and what `take` says; nothing is changed then.
    pub(super) fn place<R>(
        &self,
        bytes: u64,
        take: impl FnOnce(Option<NewFile>) -> Result<R, (Error, Option<NewFile>)>,
    ) -> Result<R, Error> {
        let mut room = self.room.lock();
        let fresh = match bytes > room.left {
            true => Some(self.new_file(&mut room, bytes)?),
            false => None,
        };
        let left = fresh.as_ref().map_or(room.left, NewFile::room) - bytes;
        match take(fresh) {
            Ok(taken) => {
                room.left = left;
                room.spare_wanted |= left * 2 < self.file_bytes && room.spare.is_none();
                Ok(taken)
            }
            Err((error, unused)) => {
                room.spare = unused.or_else(|| room.spare.take());
                Err(error)
            }
        }
    }

    /// The spare file, or another if that is too small or not there.
    fn new_file(&self, room: &mut Room, bytes: u64) -> Result<NewFile, Error> {
        if let Some(spare) = room.spare.take_if(|spare| spare.room() >= bytes) {
            return Ok(spare);
        }
        room.made += 1;
        self.preallocated(room.made, bytes, &Pace::unpaced())
    }

    /// Makes the next file ready so that no writer need wait for it; `false` if one is there. The log is not harmed where it
    /// cannot be made.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub(super) fn prepare_spare(&self, pace: &Pace<'_>) -> Result<bool, Error> {
        let made = {
            let mut room = self.room.lock();
            if !room.spare_wanted {
                return Ok(false);
            }
            room.made += 1;
            room.made
        };
        // Without the lock: a writer that needs a file meanwhile makes its own.
        let spare = self.preallocated(made, 0, pace)?;
        let mut room = self.room.lock();
        room.spare_wanted = false;
        if let Some(other) = room.spare.replace(spare) {
            let _ = self.disk.remove(&other.tmp);
        }
        Ok(true)
    }

    fn preallocated(&self, made: u64, bytes: u64, pace: &Pace<'_>) -> Result<NewFile, Error> {
        let tmp = self.dir.join(format!("wal-spare-{made}.tmp"));
        let needed = FILE_HEADER_BYTES as u64 + bytes;
        let len = needed.next_multiple_of(4096).max(self.file_bytes);
        let file = preallocate(&*self.disk, &tmp, len, pace)?;
        Ok(NewFile { file, tmp, len })
    }

    /// Gives a file its header and its name, durably: the log goes on in it at `first_lsn`.
    pub(super) fn begin(&self, new: NewFile, first_lsn: Lsn) -> Result<Active, Error> {
        let number = self.names.lock().next;
        let salt = new_salt(&*self.disk);
        let header = FileHeader { salt, number, epoch: self.epoch, first_lsn, len: new.len };
        head(&*new.file, &new.tmp, &header)?;
        name(&*self.disk, &new.tmp, &self.dir, number)?;
        let mut names = self.names.lock();
        names.in_use.push((number, first_lsn));
        names.next = number + 1;
        Ok(Active { file: new.file, salt, offset: FILE_HEADER_BYTES as u64 })
    }

    /// Number of the first file that is needed when everything up to `checkpoint` is in segments.
    pub(super) fn first_needed(&self, checkpoint: Lsn) -> u64 {
        let names = self.names.lock();
        let mut needed = names.in_use.first().map_or(names.next, |f| f.0);
        for (number, first_lsn) in &names.in_use {
            if first_lsn.0 <= checkpoint.0 + 1 {
                needed = *number;
            }
        }
        needed
    }

    /// A file that was there before this log: it is removed in its turn.
    pub(super) fn adopt(&self, number: u64, first_lsn: Lsn) {
        let mut names = self.names.lock();
        if names.in_use.first().is_none_or(|f| f.0 > number) {
            names.in_use.insert(0, (number, first_lsn));
        }
    }

    /// Removes the files below `number`.
    ///
    /// # Errors
    /// [`Error::Io`]; a file left behind is removed at the next open.
    pub(super) fn remove_below(&self, number: u64) -> Result<(), Error> {
        let old: Vec<u64> = {
            let mut names = self.names.lock();
            let old = names.in_use.iter().map(|f| f.0).filter(|n| *n < number).collect();
            names.in_use.retain(|f| f.0 >= number);
            old
        };
        for n in old {
            let path = self.dir.join(file_name(n));
            self.disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }
}

/// A new file of `len` written and synced zeros, so that later writes need no allocation; nothing is left where that fails.
pub(super) fn preallocate(
    disk: &dyn Disk,
    path: &Path,
    len: u64,
    pace: &Pace<'_>,
) -> Result<Box<dyn DiskFile>, Error> {
    let _ = disk.remove(path);
    let file = disk.create(path).map_err(Error::io("create", path))?;
    let filled = fill(&*file, len, pace).map_err(Error::io("preallocate", path));
    if filled.is_err() {
        // What little there is left is needed elsewhere.
        let _ = disk.remove(path);
    }
    filled.map(|()| file)
}

fn fill(file: &dyn DiskFile, len: u64, pace: &Pace<'_>) -> std::io::Result<()> {
    let mut at = 0;
    while at < len {
        let part = (ZEROS.len() as u64).min(len - at);
        write_all_at(file, &ZEROS[..part as usize], at)?;
        at += part;
        pace.worked(part as usize);
    }
    file.sync()
}

/// Gives a new file its header, and makes all of it durable.
pub(super) fn head(file: &dyn DiskFile, path: &Path, header: &FileHeader) -> Result<(), Error> {
    write_all_at(file, &header.encode(), 0).map_err(Error::io("write", path))?;
    file.sync().map_err(Error::io("sync", path))
}

/// Gives a file with its header its name, durably.
pub(super) fn name(disk: &dyn Disk, tmp: &Path, dir: &Path, number: u64) -> Result<(), Error> {
    let path = dir.join(file_name(number));
    disk.rename(tmp, &path).map_err(Error::io("rename", &path))?;
    disk.sync_dir(dir).map_err(Error::io("sync", dir))
}

pub(super) fn new_salt(disk: &dyn Disk) -> u32 {
    let [a, b, c, d, ..] = disk.random();
    u32::from_le_bytes([a, b, c, d])
}
