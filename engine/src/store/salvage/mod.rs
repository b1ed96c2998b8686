//! Salvage: what can still be read of a damaged store, as a new store.
//!
//! Invariant: nothing is written in the damaged folder; every memory of the new store was stored in the old
//! one, proved by a checksum; whatever could not be read is named in the report, and so is whatever may be back that was
//! deleted. Never panics whatever the bytes.
//!
//! A version of a memory is known by space and seq and never changes, and neither does the fact that it was deleted. So
//! what the files hold is gathered as sets, in any order and from any number of copies, and nothing can be applied twice
//! (`gather`, `log`); then the versions that are not known to be deleted are added to a new store in their order
//! (`rewrite`). Texts and vectors stay in the mapped files until then: a memory costs about 100 bytes meanwhile, and
//! the new store what a store of that size costs.

mod gather;
mod log;
mod rewrite;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::folders::{check_apart, check_empty, lock_source};
use super::recover::Listing;
use crate::clock::{Clock, SystemClock};
use crate::disk::{Disk, RealDisk};
use crate::error::Error;
use crate::manifest::{self, Manifest};
use crate::types::StoreOptions;
use gather::Gathered;

/// What salvage saved and what it could not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SalvageReport {
    /// The new folder; no folder was made if nothing could be saved.
    pub dir: PathBuf,
    /// The model the vectors come from; `None` if no manifest could be read. The new store then takes the model it is opened
    /// with first, and embeds all texts again but those with vectors of the caller's own.
    pub fingerprint: Option<String>,
    /// Components of a vector.
    pub dim: usize,
    /// Spaces saved.
    pub spaces: u64,
    /// Memories saved.
    pub memories: u64,
    /// Memories saved that wait to be embedded, again or for the first time.
    pub without_vectors: u64,
    /// Batches of the log that are newer than the segments, or may be.
    pub log_batches: u64,
    /// Each space saved, by name.
    pub saved: Vec<SalvagedSpace>,
    /// What was lost, file by file.
    pub losses: Vec<Loss>,
    /// What may be in the new store although it was deleted or replaced.
    pub risks: Vec<Loss>,
}

/// One space that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SalvagedSpace {
    /// Its name; `recovered-<number>` if no name could be read.
    pub space: String,
    /// Memories saved.
    pub memories: u64,
    /// Memories of these that wait to be embedded.
    pub without_vectors: u64,
}

/// Something that could not be read, or not be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The file's name in the damaged folder.
    pub file: String,
    /// Where in the file, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What is wrong, and what follows from it.
    pub what: String,
}

impl Loss {
    fn of(file: impl Into<String>, offset: Option<u64>, what: impl Into<String>) -> Loss {
        Loss { file: file.into(), offset, what: what.into() }
    }
}

/// Reads what can be read of the store in `from`, which may be damaged anywhere, and writes it to `to` as a new store.
///
/// Memories keep id, text, role, session, time, meta, vectors and their order; their seqs are given out anew. A memory
/// whose vectors are lost waits to be embedded. Where no manifest can be read, the model is unknown: vectors that a model
/// made are left behind, and the new store takes the model it is opened with first. `dim_if_unknown` is used where no
/// file says how many components a vector has. `to` must not exist or be empty, and must not lie in `from`.
///
/// # Errors
/// [`Error::Invalid`] for folders that cannot be used, or a `from` that holds no store; [`Error::Locked`] if `from` is in
/// use; [`Error::VersionTooNew`]; [`Error::Io`] or [`Error::DiskFull`] where the new store cannot be written: remove what is
/// in `to` then. Damage is not an error but a line in the report.
pub fn salvage(from: &Path, to: &Path, dim_if_unknown: usize) -> Result<SalvageReport, Error> {
    check_apart(from, to)?;
    let sizes = StoreOptions::new(dim_if_unknown, manifest::UNKNOWN_MODEL);
    salvage_on((Arc::new(RealDisk), Arc::new(SystemClock::new())), from, to, sizes)
}

/// What the new store runs on.
type Machine = (Arc<dyn Disk>, Arc<dyn Clock>);

/// As [`salvage`] on any disk; `sizes` are the new store's, its dimension and model those of the old one if known.
pub(crate) fn salvage_on(
    machine: Machine,
    from: &Path,
    to: &Path,
    sizes: StoreOptions,
) -> Result<SalvageReport, Error> {
    let disk = &*machine.0;
    let files = list(disk, from)?;
    check_empty(disk, to)?;
    let mut report = SalvageReport { dir: to.into(), ..SalvageReport::default() };
    let _lock = lock_source(disk, from)?;
    let manifest = newest_readable(disk, from, &files, &mut report)?;
    let mut gathered = Gathered::new(manifest);
    gathered.read_segments(disk, from, &files, &mut report)?;
    gathered.read_log(disk, from, &files, sizes.dim, &mut report)?;
    gathered.settle(&mut report);
    report.dim = gathered.dim;
    report.fingerprint = gathered.manifest.as_ref().map(|m| m.fingerprint.clone());
    let unknown = manifest::UNKNOWN_MODEL.to_owned();
    let fingerprint = report.fingerprint.clone().unwrap_or(unknown);
    let options = StoreOptions { dim: gathered.dim, fingerprint, ..sizes };
    if gathered.is_empty() && !report.losses.is_empty() {
        return Ok(report);
    }
    rewrite::write(&machine, to, options, &gathered, &mut report)?;
    Ok(report)
}

/// The files of the damaged store.
fn list(disk: &dyn Disk, from: &Path) -> Result<Listing, Error> {
    let refuse = |why: &str| Error::invalid(from.display().to_string(), why);
    let files = match Listing::of(disk, from) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse("does not exist; name the folder of the damaged store"));
        }
        other => other?,
    };
    if files.manifests.is_empty() && files.wals.is_empty() && files.sealed.is_empty() {
        return Err(refuse("holds no file of a store; name the folder of the damaged store"));
    }
    Ok(files)
}

/// The newest manifest that can be read; those that cannot are losses.
fn newest_readable(
    disk: &dyn Disk,
    from: &Path,
    files: &Listing,
    report: &mut SalvageReport,
) -> Result<Option<Manifest>, Error> {
    for at in (0..files.manifests.len()).rev() {
        let name = manifest::file_name(files.manifests[at]);
        match Manifest::read_newest(disk, from, &files.manifests[..=at]) {
            Ok(Some(found)) => {
                if at + 1 < files.manifests.len() {
                    let what = "it is older than one that cannot be read: all files that may be newer were read, and what was \
                                deleted since may be back";
                    report.risks.push(Loss::of(name, None, what));
                }
                return Ok(Some(found));
            }
            Ok(None) => break,
            Err(newer @ Error::VersionTooNew { .. }) => return Err(newer),
            Err(Error::Corrupt { offset, what, .. }) => {
                report.losses.push(Loss::of(name, Some(offset), what));
            }
            Err(e) => report.losses.push(Loss::of(name, None, e.to_string())),
        }
    }
    let file = "manifest";
    report.losses.push(Loss::of(
        file,
        None,
        "no manifest can be read: the model is unknown, so that texts are to be embedded again, and spaces have names only \
         where the log tells",
    ));
    let what = "without a manifest, dropped spaces and deleted memories that still lie in a segment may be back";
    report.risks.push(Loss::of(file, None, what));
    Ok(None)
}
