//! Restoring a snapshot: every file checked, then copied, the manifest last.
//!
//! Invariant: nothing is written before the whole snapshot was found sound; a crash leaves a folder without a manifest,
//! which is no store; an error leaves the folder as empty as it was. The snapshot is only read.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use flashbulb_kernels::Kernels;
use serde::Serialize;

use super::admin::copy;
use super::folders::{LOCK, check_apart, check_empty, lock_source, make_private};
use super::recover::{Listing, log_files};
use super::upkeep::graph;
use crate::disk::{Disk, RealDisk};
use crate::error::Error;
use crate::manifest::{self, Manifest};
use crate::segment::{self, Segment, Tombstone};
use crate::types::{Lsn, SpaceId};
use crate::wal;

/// What a restore checked and copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    /// The new folder, a store of its own.
    pub dir: PathBuf,
    /// Files in it.
    pub files: u64,
    /// Bytes of sealed files in it.
    pub bytes: u64,
    /// The model its vectors come from.
    pub fingerprint: String,
    /// Spaces.
    pub spaces: u64,
    /// Live memories.
    pub memories: u64,
    /// Files of the snapshot's folder that are not a store's; they were not copied.
    pub unknown_files: Vec<String>,
}

/// Checks every file of `snapshot`, which [`Store::snapshot`](super::Store::snapshot) wrote or a store that was closed,
/// and copies it durably to `to`, which must not exist or be empty. The copy opens like any store.
///
/// # Errors
/// [`Error::Corrupt`] or [`Error::VersionTooNew`] for a snapshot that is not sound, before anything is written;
/// [`Error::Invalid`] for folders that cannot be used, and for a store that was not closed; [`Error::Locked`] if a process
/// has the snapshot open; [`Error::DiskFull`], [`Error::Io`]: what was copied is removed again.
pub fn restore(snapshot: &Path, to: &Path) -> Result<RestoreReport, Error> {
    check_apart(snapshot, to)?;
    restore_on(&RealDisk, snapshot, to)
}

/// As [`restore`] on any disk.
pub(crate) fn restore_on(
    disk: &dyn Disk,
    snapshot: &Path,
    to: &Path,
) -> Result<RestoreReport, Error> {
    check_empty(disk, to)?;
    let files = list(disk, snapshot)?;
    let _lock = lock_source(disk, snapshot)?;
    let Some(found) = Manifest::read_newest(disk, snapshot, &files.manifests)? else {
        return Err(Error::corrupt(snapshot, 0, "there is no manifest"));
    };
    let memories = check(disk, snapshot, &files, &found)?;
    let mut report = RestoreReport {
        dir: to.into(),
        files: 1,
        bytes: 0,
        fingerprint: found.fingerprint.clone(),
        spaces: found.spaces.len() as u64,
        memories,
        unknown_files: files.unknown,
    };
    make_private(disk, to)?;
    let path = to.join(LOCK);
    let had_lock = disk.list(to).is_ok_and(|names| !names.is_empty());
    let lock = disk.try_lock(&path).map_err(Error::io("lock", &path))?;
    let lock = lock.ok_or_else(|| {
        Error::invalid(
            to.display().to_string(),
            "is in use by another process; name another folder",
        )
    })?;
    // Once more, now that nobody else can start a store here.
    check_empty(disk, to)?;
    let mut written = if had_lock { Vec::new() } else { vec![path] };
    let copied = copy_all(disk, snapshot, to, &found, &mut written, &mut report);
    if copied.is_err() {
        for path in written.iter().rev() {
            let _ = disk.remove(path);
        }
        let _ = disk.sync_dir(to);
    }
    drop(lock);
    copied.map(|()| report)
}

fn list(disk: &dyn Disk, snapshot: &Path) -> Result<Listing, Error> {
    let refuse = |why: &str| {
        Error::invalid(
            snapshot.display().to_string(),
            format!("{why}; name a folder that `snapshot` made"),
        )
    };
    match Listing::of(disk, snapshot) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(refuse("does not exist"))
        }
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotADirectory => {
            Err(refuse("is not a folder"))
        }
        Ok(files) if files.manifests.is_empty() && files.sealed.is_empty() => {
            Err(refuse("holds no snapshot"))
        }
        other => other,
    }
}

/// Names of the sealed files that `manifest` names.
fn sealed(manifest: &Manifest) -> impl Iterator<Item = String> {
    let segments = manifest.segments.iter().map(|s| segment::file_name(s.part));
    segments.chain(manifest.graphs.iter().map(|g| graph::file_name(g.number)))
}

/// Checks every byte of every file that the manifest names; returns the number of live memories.
fn check(disk: &dyn Disk, dir: &Path, files: &Listing, manifest: &Manifest) -> Result<u64, Error> {
    let checkpoint = Lsn(manifest.checkpoint_lsn);
    let log = log_files(disk, dir, manifest, &files.wals)?;
    let only_in_log = wal::scan(disk, dir, &log, checkpoint)?.batches.len();
    if only_in_log > 0 {
        let why = format!(
            "was not closed: {only_in_log} changes are only in its log. Start the daemon on it once and stop it, or take a \
             snapshot of it, and restore that"
        );
        return Err(Error::invalid(dir.display().to_string(), why));
    }
    let mut segments = Vec::new();
    for entry in &manifest.segments {
        let path = dir.join(segment::file_name(entry.part));
        let segment = Segment::open(disk, &path, entry.len)?;
        let header = segment.header();
        if header.part != entry.part || header.dim != manifest.dim {
            return Err(Error::corrupt(path, 0, "it is not the segment the manifest names"));
        }
        let checksum = u128::from_str_radix(&entry.checksum, 16).ok();
        let checksum = checksum
            .ok_or_else(|| Error::corrupt(&path, 0, "the manifest's checksum is not a number"))?;
        if let Some(problem) = segment.verify(checksum).problems.into_iter().next() {
            return Err(Error::corrupt(path, 0, problem));
        }
        segments.push(segment);
    }
    for entry in &manifest.graphs {
        let dim = manifest.dim as usize;
        graph::load(disk, dir, entry, dim, Kernels::detect())
            .map_err(|what| Error::corrupt(dir.join(graph::file_name(entry.number)), 0, what))?;
    }
    live_memories(manifest, &segments)
}

fn live_memories(manifest: &Manifest, segments: &[Segment]) -> Result<u64, Error> {
    let spaces: HashSet<SpaceId> = manifest.spaces.iter().map(|s| SpaceId(s.id)).collect();
    let mut dead = HashSet::new();
    for segment in segments {
        dead.extend(segment.tombstones()?);
    }
    let mut live = 0;
    for segment in segments {
        let records = segment.records()?;
        let is_live = |e: &&segment::RecordEntry| {
            spaces.contains(&e.space) && !dead.contains(&Tombstone { space: e.space, seq: e.seq })
        };
        live += records.iter().filter(is_live).count() as u64;
    }
    Ok(live)
}

/// Copies the sealed files, and then writes a manifest as a snapshot has it. `written` names what there is to remove.
fn copy_all(
    disk: &dyn Disk,
    from: &Path,
    to: &Path,
    manifest: &Manifest,
    written: &mut Vec<PathBuf>,
    report: &mut RestoreReport,
) -> Result<(), Error> {
    for name in sealed(manifest) {
        let path = to.join(&name);
        written.push(path.clone());
        report.bytes += copy(disk, &from.join(&name), &path)?;
        report.files += 1;
    }
    disk.sync_dir(to).map_err(Error::io("sync", to))?;
    let copied = Manifest { generation: 1, first_wal: None, epoch: 0, ..manifest.clone() };
    let name = manifest::file_name(copied.generation);
    written.push(to.join(format!("{name}.tmp")));
    written.push(to.join(name));
    copied.write(disk, to).map_err(|(_, e)| e)
}
