//! The seam between the engine and the machine: every file operation and every random number passes through here.
//!
//! Invariant: what a method promises about durability, callers may build on; nothing else reaches the file system.
//! Knows nothing of formats. A test may put its own disk in place of [`RealDisk`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::map::Map;
use crate::pace::Pace;

/// An open file that is written at offsets.
pub(crate) trait DiskFile: Send + Sync + std::fmt::Debug {
    /// Writes `parts` one after the other at `offset`, or only a beginning of them; returns how many bytes. May be
    /// interrupted. Callers use [`write_all_at`] and [`write_all_parts_at`].
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Returns once all written data, and the length, are on the device.
    fn sync(&self) -> io::Result<()>;
    /// Returns once all written data that overwrote allocated space are on the device.
    fn sync_data(&self) -> io::Result<()>;
}

/// Most parts of one write; Linux takes 1,024.
const PARTS_MAX: usize = 1024;

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(file: &dyn DiskFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_all_parts_at(file, &mut [IoSlice::new(bytes)], offset)
}

/// Writes all of `parts`, one after the other, at `offset`; uses them up.
pub(crate) fn write_all_parts_at(
    file: &dyn DiskFile,
    mut parts: &mut [IoSlice<'_>],
    mut offset: u64,
) -> io::Result<()> {
    // Takes off empty parts in front, so that what is left is never only those.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match file.write_at(&parts[..parts.len().min(PARTS_MAX)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut parts, written);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A file's bytes, in memory or mapped.
pub(crate) trait Bytes: Send + Sync + std::fmt::Debug {
    fn bytes(&self) -> &[u8];
}

/// A lock that goes with its holder.
pub(crate) type Lock = Box<dyn Held>;

/// What holds a lock until it is dropped, or the process ends.
pub(crate) trait Held: Send + Sync + std::fmt::Debug {}

impl Held for File {}

impl Held for (File, File) {}

/// The file operations the engine needs, each durable only as it says.
pub(crate) trait Disk: Send + Sync + std::fmt::Debug {
    /// Makes a folder that must not exist, in one that does, private to the user; durable after [`Disk::sync_dir`] of that.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes all others' rights to a folder away.
    fn make_private(&self, dir: &Path) -> io::Result<()>;
    /// Locks the file `path`, which is made if need be, and its folder; `None` if another process has either.
    fn try_lock(&self, path: &Path) -> io::Result<Option<Lock>>;
    /// Locks the folder of `path` together with other readers; `None` if a writer has it. Writes nothing.
    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Lock>>;
    /// Names of the files in `dir`.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist, private to the user.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file for syncing what an earlier process wrote.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Reads a whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Reads at most the first `most` bytes of a file.
    fn read_start(&self, path: &Path, most: usize) -> io::Result<Vec<u8>>;
    /// Maps a file that is never written again.
    fn map(&self, path: &Path) -> io::Result<Arc<dyn Bytes>>;
    /// Renames within a folder, replacing; durable after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; durable after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns once the folder's entries are on the device.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// 16 random bytes.
    fn random(&self) -> [u8; 16];
}

/// The operating system's files.
#[derive(Debug, Default)]
pub(crate) struct RealDisk;

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(&self.0, parts, offset)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(dir)
    }

    fn make_private(&self, dir: &Path) -> io::Result<()> {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
        if !taken(file.try_lock())? {
            return Ok(None);
        }
        let dir = folder_of(path)?;
        Ok(taken(dir.try_lock())?.then(|| Box::new((file, dir)) as Lock))
    }

    fn try_lock_shared(&self, path: &Path) -> io::Result<Option<Lock>> {
        // The folder alone: a snapshot has no lock file, and none can be made on read-only media.
        let dir = folder_of(path)?;
        Ok(taken(dir.try_lock_shared())?.then(|| Box::new(dir) as Lock))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn read_start(&self, path: &Path, most: usize) -> io::Result<Vec<u8>> {
        let mut start = Vec::with_capacity(most);
        File::open(path)?.take(most as u64).read_to_end(&mut start)?;
        Ok(start)
    }

    fn map(&self, path: &Path) -> io::Result<Arc<dyn Bytes>> {
        Ok(Arc::new(Map::open(&File::open(path)?)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn random(&self) -> [u8; 16] {
        uuid::Uuid::new_v4().into_bytes()
    }
}

/// Whether a lock was taken, or another has it.
fn taken(outcome: Result<(), TryLockError>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// The folder of `path`, open to be locked.
fn folder_of(path: &Path) -> io::Result<File> {
    File::open(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Makes a folder and those above it that are missing, each durably; does nothing where it is there.
pub(crate) fn create_dir_durably(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let above = match dir.parent() {
        None => return Ok(()),
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
    };
    match disk.create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            create_dir_durably(disk, above)?;
            disk.create_dir(dir)?;
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    disk.sync_dir(above)
}

/// Makes durable that `dir` and those above it are there: an earlier process may have made them and been killed before it could. One
/// that may not be opened, or whose file system knows no such sync (a read-only image's, /proc), is passed over.
pub(crate) fn sync_above(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    for above in dir.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match disk.sync_dir(above) {
            Err(e) if !matches!(e.kind(), PermissionDenied | InvalidInput | Unsupported) => {
                return Err(e);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Writes `bytes` as `dir/name` so that a crash leaves the old file, the new one, or none, never a part:
/// a temporary file, synced, renamed, and the folder synced.
///
/// # Errors
/// What failed, and in which half: after [`Halfway::Written`] nothing has changed but a temporary file, after
/// [`Halfway::Named`] it is unknown which file a crash would leave.
pub(crate) fn write_durably(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    bytes: &[u8],
    pace: &Pace<'_>,
) -> Result<(), (Halfway, io::Error)> {
    let tmp = dir.join(format!("{name}.tmp"));
    let write = || {
        let _ = disk.remove(&tmp);
        let file = disk.create(&tmp)?;
        for (at, part) in pace.parts(bytes) {
            write_all_at(&*file, part, at)?;
        }
        file.sync()
    };
    write().map_err(|e| (Halfway::Written, e))?;
    let install = || {
        disk.rename(&tmp, &dir.join(name))?;
        disk.sync_dir(dir)
    };
    install().map_err(|e| (Halfway::Named, e))
}

/// Where [`write_durably`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halfway {
    /// Writing the temporary file failed.
    Written,
    /// Giving it its name failed.
    Named,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux answers a sync of a folder in /proc, as of one in a read-only image, with `EINVAL`.
    #[test]
    #[cfg(target_os = "linux")]
    fn folders_that_know_no_sync_are_passed_over() {
        assert!(RealDisk.sync_dir(Path::new("/proc")).is_err(), "the test is about this");
        assert!(sync_above(&RealDisk, Path::new("/proc/self/x")).is_ok());
        assert!(sync_above(&RealDisk, Path::new("/no/such/folder")).is_err());
    }
}
