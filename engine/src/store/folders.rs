//! Folders that a new store is written to: empty, and apart from what it is made of.
//!
//! Invariant: a folder that holds anything is never taken; what is taken is private to the user.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, Lock, create_dir_durably, sync_above};
use crate::error::Error;

/// The lock file's name.
pub(super) const LOCK: &str = "LOCK";

/// Refuses a `to` that lies in `from` or is it.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn check_apart(from: &Path, to: &Path) -> Result<(), Error> {
    if real(to).starts_with(real(from)) {
        let why = format!("lies in {}, which is only read; name another folder", from.display());
        return Err(Error::invalid(to.display().to_string(), why));
    }
    Ok(())
}

/// `path` without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let known = path.ancestors().find_map(|part| Some((part, part.canonicalize().ok()?)));
    match known {
        Some((part, real)) => real.join(path.strip_prefix(part).unwrap_or(Path::new(""))),
        None => path,
    }
}

/// Refuses a folder that holds anything but a lock file.
///
/// # Errors
/// [`Error::Invalid`], [`Error::Io`].
pub(super) fn check_empty(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::invalid(dir.display().to_string(), why));
    match disk.list(dir) {
        Ok(names) => match names.into_iter().find(|name| name != LOCK) {
            None => Ok(()),
            Some(name) => refuse(format!(
                "is not empty (it holds {name}); name a folder that does not exist or is empty"
            )),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            refuse("is not a folder; name one that does not exist or is empty".into())
        }
        Err(e) => Err(Error::io("list", dir)(e)),
    }
}

/// Makes a folder, or takes one that is empty, for the user alone.
///
/// # Errors
/// [`Error::Io`], [`Error::DiskFull`].
pub(super) fn make_private(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    create_dir_durably(disk, dir)
        .and_then(|()| sync_above(disk, dir))
        .map_err(Error::io("create the folder", dir))?;
    disk.make_private(dir).map_err(Error::io("set the rights of", dir))
}

/// Keeps writers out of a folder that is only read; writes nothing there.
///
/// # Errors
/// [`Error::Locked`], [`Error::Io`].
pub(super) fn lock_source(disk: &dyn Disk, dir: &Path) -> Result<Lock, Error> {
    let path = dir.join(LOCK);
    let lock = disk.try_lock_shared(&path).map_err(Error::io("lock", path))?;
    lock.ok_or_else(|| Error::Locked { dir: dir.into() })
}
