//! Writing what survived a stop into a new file, so that nothing torn is ever appended to; nor is the new one.
//!
//! Invariant: the batches keep their LSNs, dense from the first; the old files are untouched. Knows nothing of manifests.

use std::path::{Path, PathBuf};

use super::files::{Active, head, name, new_salt};
use super::format::{FILE_HEADER_BYTES, FileHeader, KIND_MARK, file_name};
use super::reader::Batch;
use super::records;
use crate::disk::Disk;
use crate::error::Error;
use crate::types::Lsn;

/// A log file that is written and synced, and not part of the log before it has its name.
pub(crate) struct Tail {
    tmp: PathBuf,
    number: u64,
}

impl Tail {
    /// Gives it its name, durably.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn publish(&self, disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
        name(disk, &self.tmp, dir, self.number)
    }
}

/// Writes `batches` into log file `number` of `epoch`; nothing, if there are none. The log goes on behind the last.
///
/// # Errors
/// [`Error::DiskFull`] or [`Error::Io`]; the old files are untouched.
pub(crate) fn write_tail(
    disk: &dyn Disk,
    dir: &Path,
    (epoch, number): (u64, u64),
    batches: &[Batch],
) -> Result<Option<Tail>, Error> {
    let Some((first, last)) = batches.first().zip(batches.last()) else { return Ok(None) };
    let first_lsn = Lsn(first.last_lsn.0 + 1 - first.records.len() as u64);
    let tmp = dir.join(format!("{}.tmp", file_name(number)));
    let _ = disk.remove(&tmp);
    let file = disk.create(&tmp).map_err(Error::io("create", &tmp))?;
    let salt = new_salt(disk);
    let mut active = Active { file, salt, offset: FILE_HEADER_BYTES as u64 };
    // Marks between the batches are gone; one in the place of each gap keeps the LSNs dense.
    let mark = vec![(KIND_MARK, Vec::new())];
    let mut next = first_lsn;
    for batch in batches {
        let start = Lsn(batch.last_lsn.0 + 1 - batch.records.len() as u64);
        let marks = std::iter::repeat_n(&mark, (start.0 - next.0) as usize);
        let run = marks.chain([&batch.records]);
        records::write(&mut active, run, next, last.last_lsn).map_err(Error::io("write", &tmp))?;
        next = Lsn(batch.last_lsn.0 + 1);
    }
    let header = FileHeader { salt, number, epoch, first_lsn, len: active.offset };
    head(&*active.file, &tmp, &header)?;
    Ok(Some(Tail { tmp, number }))
}
