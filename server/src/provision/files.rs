//! Hashing, whole-folder installs and the cheap check that a folder is still whole.
//!
//! Invariant: a folder appears under its final name only complete, checked and synced. A stamp beside the files keeps
//! each one's size, time and sum, so that a start needs no hashing. It must not know packages or networks.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ProvisionError;

/// The stamp's name inside an installed folder.
const STAMP: &str = ".flashbulb-stamp.json";

/// A file with the sum it must have.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SummedFile {
    /// The path inside its folder.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Stamp {
    files: Vec<StampedFile>,
}

#[derive(Serialize, Deserialize)]
struct StampedFile {
    path: String,
    size: u64,
    modified_ns: u64,
    sha256: String,
}

/// A file that is not as it should be.
#[derive(Debug)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// The sum it should have.
    pub expected: String,
    /// The sum it has, or why it has none.
    pub found: String,
}

/// SHA-256 of a file, lower-case hex, and its length.
///
/// # Errors
/// The file cannot be read.
pub fn sha256(path: &Path) -> Result<(String, u64), std::io::Error> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hex(&hasher.finalize()), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Size and time of a file, as the stamp keeps them.
///
/// # Errors
/// The file cannot be looked at.
pub fn size_and_time(path: &Path) -> Result<(u64, u64), std::io::Error> {
    let meta = fs::metadata(path)?;
    let since = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((meta.len(), since.as_nanos() as u64))
}

/// Hashes every file of `dir` against `expected`; the first damage.
pub fn damage(dir: &Path, expected: &[(&str, &str)]) -> Option<Damage> {
    expected.iter().find_map(|&(path, sum)| {
        let path = dir.join(path);
        let found = match sha256(&path) {
            Ok((found, _)) if found == sum => return None,
            Ok((found, _)) => found,
            Err(error) => error.to_string(),
        };
        Some(Damage { path, expected: sum.to_owned(), found })
    })
}

/// Writes the stamp of a folder whose files were just checked.
pub fn stamp(dir: &Path, expected: &[(&str, &str)]) -> Result<(), ProvisionError> {
    let mut files = Vec::new();
    for &(path, sha256) in expected {
        let full = dir.join(path);
        let (size, modified_ns) = size_and_time(&full).map_err(|e| ProvisionError::io(&full, e))?;
        files.push(StampedFile {
            path: path.to_owned(),
            size,
            modified_ns,
            sha256: sha256.to_owned(),
        });
    }
    let text = serde_json::to_vec(&Stamp { files })
        .expect("a struct of strings and integers is always JSON");
    write_synced(&dir.join(STAMP), &text)
}

/// Whether the stamp says that these very files were checked and nobody touched them since.
pub fn is_untouched(dir: &Path, expected: &[(&str, &str)]) -> bool {
    let Ok(text) = fs::read(dir.join(STAMP)) else {
        return false;
    };
    let Ok(stamp) = serde_json::from_slice::<Stamp>(&text) else {
        return false;
    };
    expected.iter().all(|&(path, sum)| {
        stamp.files.iter().any(|file| {
            file.path == path
                && file.sha256 == sum
                && size_and_time(&dir.join(path))
                    .is_ok_and(|found| found == (file.size, file.modified_ns))
        })
    })
}

/// Writes a file and syncs it.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ProvisionError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| ProvisionError::io(path, error))
}

/// Copies a file and syncs the copy.
pub fn copy_synced(from: &Path, to: &Path) -> Result<(), ProvisionError> {
    make_dir(to.parent().unwrap_or(to))?;
    let mut source = File::open(from).map_err(|error| ProvisionError::io(from, error))?;
    let mut write = || {
        let mut file = File::create(to)?;
        std::io::copy(&mut source, &mut file)?;
        file.sync_all()
    };
    write().map_err(|error| ProvisionError::io(to, error))
}

/// Makes a folder and those above it.
pub fn make_dir(dir: &Path) -> Result<(), ProvisionError> {
    fs::create_dir_all(dir).map_err(|error| ProvisionError::io(dir, error))
}

/// Puts a finished folder under its final name, in place of whatever is there.
pub fn publish(staged: &Path, target: &Path) -> Result<(), ProvisionError> {
    let parent = target.parent().unwrap_or(target);
    make_dir(parent)?;
    sync_dir(staged)?;
    if target.exists() {
        fs::remove_dir_all(target).map_err(|error| ProvisionError::io(target, error))?;
    }
    fs::rename(staged, target).map_err(|error| ProvisionError::io(target, error))?;
    sync_dir(parent)
}

/// Syncs a folder's entries.
pub fn sync_dir(dir: &Path) -> Result<(), ProvisionError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(|error| ProvisionError::io(dir, error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_touched_file_is_noticed_and_a_changed_one_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "abc").unwrap();
        // The SHA-256 of "abc" (FIPS 180-2, appendix B.1).
        let expected = [("a", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")];
        assert!(damage(dir.path(), &expected).is_none());
        assert!(!is_untouched(dir.path(), &expected), "no stamp yet");
        stamp(dir.path(), &expected).unwrap();
        assert!(is_untouched(dir.path(), &expected));
        fs::write(dir.path().join("a"), "abd").unwrap();
        assert!(damage(dir.path(), &expected).is_some());
        fs::remove_file(dir.path().join("a")).unwrap();
        assert!(!is_untouched(dir.path(), &expected));
    }
}
