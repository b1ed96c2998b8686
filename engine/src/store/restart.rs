//! Starting the log anew behind what was recovered.
//!
//! Invariant: what survived is in a new file of a new epoch before anything refers to it; nothing gets a name, and nothing old
//! is removed, before that is durable. Knows nothing of spaces.

use std::path::Path;
use std::sync::Arc;

use hashbrown::HashSet;

use super::recover::Listing;
use super::upkeep::graph;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::Error;
use crate::manifest::{self, Manifest};
use crate::parts::PART_LIMIT;
use crate::segment;
use crate::types::{Lsn, StoreOptions};
use crate::wal::{self, PreparedWal, Scan, Tail, Wal, WalStart};

/// The files of the log that goes on, without names, and the manifest that will name them.
pub(super) struct Restart {
    tail: Option<Tail>,
    log: PreparedWal,
    manifest: Manifest,
    first_new: u64,
}

/// Writes what survived into a new file of a new epoch, and makes the file behind it.
///
/// # Errors
/// [`Error::DiskFull`] or [`Error::Io`].
pub(super) fn prepare(
    (disk, clock): (&Arc<dyn Disk>, &Arc<dyn Clock>),
    dir: &Path,
    options: &StoreOptions,
    old: &Manifest,
    wals: &[u64],
    scan: &Scan,
) -> Result<Restart, Error> {
    let first_new = wals.last().copied().max(old.first_wal).map_or(1, |n| n + 1);
    let epoch = old.epoch + 1;
    let tail = wal::write_tail(&**disk, dir, (epoch, first_new), &scan.batches)?;
    let (checkpoint, last_lsn, next_file) = match (scan.batches.first(), scan.batches.last()) {
        (Some(first), Some(last)) => {
            let before = first.last_lsn.0 - first.records.len() as u64;
            (before, last.last_lsn, first_new + 1)
        }
        // Only marks are behind the checkpoint, if anything: all they follow is in the segments.
        _ => (scan.last_lsn.0, scan.last_lsn, first_new),
    };
    let last_op = scan.batches.last().map_or(Lsn(checkpoint), |b| b.last_lsn);
    let start = WalStart { last_op, ..log_start(dir, options, epoch, next_file, last_lsn) };
    let log = Wal::prepare(Arc::clone(disk), Arc::clone(clock), start)?;
    let manifest = Manifest {
        generation: old.generation + 1,
        checkpoint_lsn: checkpoint,
        first_wal: Some(first_new),
        epoch,
        // The last number is only ever a head's, which has no file: a store that used up the others still opens.
        next_part: (old.next_part + 1).min(PART_LIMIT - 1),
        ..old.clone()
    };
    Ok(Restart { tail, log, manifest, first_new })
}

impl Restart {
    /// Gives the files their names and makes them the store's by the new manifest.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`].
    pub(super) fn publish(self, disk: &dyn Disk, dir: &Path) -> Result<(Wal, Manifest), Error> {
        if let Some(tail) = self.tail {
            tail.publish(disk, dir)?;
        }
        let wal = self.log.begin()?;
        self.manifest.write(disk, dir).map_err(|(_, e)| e)?;
        wal.adopt(self.first_new, Lsn(self.manifest.checkpoint_lsn + 1));
        Ok((wal, self.manifest))
    }
}

/// A log behind `last_lsn`, which is a mark or an operation.
pub(super) fn log_start(
    dir: &Path,
    options: &StoreOptions,
    epoch: u64,
    next_file: u64,
    last_lsn: Lsn,
) -> WalStart {
    WalStart {
        dir: dir.into(),
        epoch,
        file_bytes: options.log_file_bytes,
        next_file,
        last_lsn,
        last_op: last_lsn,
        level: options.durability,
    }
}

/// Removes what the new manifest does not need. A file that cannot be removed is removed at the next open.
pub(super) fn clean_up(disk: &dyn Disk, dir: &Path, files: &Listing, now: &Manifest) {
    let keep_from = now.first_wal.unwrap_or(0);
    let old_wals = files.wals.iter().filter(|n| **n < keep_from).map(|n| wal::file_name(*n));
    let old_manifests = files
        .manifests
        .iter()
        .filter(|g| **g + 1 < now.generation)
        .map(|g| manifest::file_name(*g));
    let named: HashSet<String> = now
        .segments
        .iter()
        .map(|s| segment::file_name(s.part))
        .chain(now.graphs.iter().map(|g| graph::file_name(g.number)))
        .collect();
    let orphans = files.sealed.iter().filter(|name| !named.contains(*name)).cloned();
    let temporary = files.temporary.iter().cloned();
    for name in old_wals.chain(old_manifests).chain(orphans).chain(temporary) {
        if let Err(e) = disk.remove(&dir.join(&name)) {
            tracing::warn!(file = %name, error = %e, "a file that is no longer needed stays behind");
        }
    }
}
