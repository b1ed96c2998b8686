//! The disk itself: what a sync costs there, which file system it is, what the kernel counts as written.
//!
//! Invariant: the syncs are timed alone, while no system has work. Must not know what is stored.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Failure;
use crate::stats::{histogram, record};

/// Length of the file that is overwritten.
const FILE_BYTES: u64 = 4 << 20;
/// Bytes of one write.
const WRITE_BYTES: u64 = 4 << 10;

/// Overwrites 4 KiB of a preallocated file and syncs its data, over and over; the time of both together.
///
/// # Errors
/// What the file system says.
pub fn syncs(dir: &Path, seconds: f64) -> Result<Histogram<u64>, Failure> {
    let path = dir.join("device");
    let file = File::create(&path)?;
    let page = vec![0xa5; WRITE_BYTES as usize];
    let pages = FILE_BYTES / WRITE_BYTES;
    for at in 0..pages {
        file.write_all_at(&page, at * WRITE_BYTES)?;
    }
    file.sync_all()?;
    let mut times = histogram()?;
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    for at in (0..pages).cycle() {
        let begun = Instant::now();
        if begun >= until {
            break;
        }
        file.write_all_at(&page, at * WRITE_BYTES)?;
        file.sync_data()?;
        record(&mut times, begun.elapsed());
    }
    std::fs::remove_file(&path)?;
    Ok(times)
}

/// Lets what was written or removed before reach the device, so that it does not disturb what comes.
///
/// # Errors
/// What the file system says.
pub fn settle(dir: &Path) -> Result<(), Failure> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}

/// The file system of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    pub name: String,
    /// Whether its files are in memory, where a sync is nothing.
    pub in_memory: bool,
}

impl FileSystem {
    /// Of `dir`.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn of(dir: &Path) -> Result<FileSystem, Failure> {
        let stat = rustix::fs::statfs(dir)
            .map_err(|e| format!("cannot ask for the file system of {}: {e}", dir.display()))?;
        Ok(FileSystem::named(stat.f_type as u64 & 0xffff_ffff))
    }

    /// By the number that the kernel gives (statfs(2)).
    fn named(magic: u64) -> FileSystem {
        let (name, in_memory) = match magic {
            0x0102_1994 => ("tmpfs", true),
            0x8584_58f6 => ("ramfs", true),
            0xef53 => ("ext4", false),
            0x5846_5342 => ("xfs", false),
            0x9123_683e => ("btrfs", false),
            0xf2f5_2010 => ("f2fs", false),
            0x2fc1_2fc1 => ("zfs", false),
            0x794c_7630 => ("overlayfs", false),
            other => return FileSystem { name: format!("type {other:#x}"), in_memory: false },
        };
        FileSystem { name: name.to_owned(), in_memory }
    }
}

/// Bytes that have reached the device of a folder since the machine started, whoever wrote them; none where the folder is on
/// no block device of its own.
///
/// What `/proc/PID/io` says is no measure of it: there a page of a large folio counts as the whole folio.
pub fn written(dir: &Path) -> Option<u64> {
    let device = std::fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    parse_written(&std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?)
}

/// The seventh field is sectors written, of 512 bytes whatever the device's are (Documentation/block/stat.rst).
fn parse_written(stat: &str) -> Option<u64> {
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    sectors.checked_mul(512)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn syncs_are_timed_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let times = syncs(dir.path(), 0.05).unwrap();
        assert!(!times.is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!FileSystem::of(dir.path()).unwrap().name.is_empty());
    }

    #[test]
    fn files_in_memory_are_told_apart() {
        assert!(FileSystem::named(0x0102_1994).in_memory);
        assert_eq!(FileSystem::named(0xef53).name, "ext4");
        assert_eq!(FileSystem::named(0x77).name, "type 0x77");
    }

    #[test]
    fn written_bytes_are_those_of_the_device() {
        let stat = "  100 1 800 30\n  200 2 80 40 0 60 70\n";
        assert_eq!(parse_written(stat), Some(80 * 512));
        assert_eq!(parse_written("1 2 3"), None);
    }
}
