//! Bundles: everything a machine without network and Python needs, in one folder.
//!
//! Layout: `manifest.json`, `runtime/<name>-<version>/…`, `models/<name>-<version>/…`. Invariant: a bundle installs
//! only if its files have the sums pinned in this program, so that it needs no more trust than a fetched package.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{SummedFile, copy_synced, make_dir, sha256, write_synced};
use super::pins::Component;
use super::{ProvisionError, expected_sums, folder_name};

const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    program: String,
    platform: String,
    components: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    folder: String,
    files: Vec<SummedFile>,
}

/// Writes the installed `components`, which lie under `data_dir`, as a bundle to `to`.
pub fn write(components: &[&Component], data_dir: &Path, to: &Path) -> Result<(), ProvisionError> {
    make_dir(to)?;
    let mut entries = Vec::new();
    for component in components {
        let folder = folder_name(component);
        let mut files = Vec::new();
        for (path, expected) in expected_sums(component) {
            let copy = to.join(&folder).join(path);
            copy_synced(&data_dir.join(&folder).join(path), &copy)?;
            let (found, size) = sha256(&copy).map_err(|error| ProvisionError::io(&copy, error))?;
            if found != expected {
                return Err(ProvisionError::Checksum {
                    path: copy,
                    expected: expected.to_owned(),
                    found,
                });
            }
            files.push(SummedFile { path: path.to_owned(), size, sha256: found });
        }
        entries.push(Entry { folder, files });
    }
    let manifest = Manifest {
        format: FORMAT,
        program: format!("flashbulb {}", env!("CARGO_PKG_VERSION")),
        platform: platform(),
        components: entries,
    };
    let text = serde_json::to_vec_pretty(&manifest)
        .expect("a struct of strings and integers is always JSON");
    // Last, so that an interrupted bundle has no manifest and is refused.
    write_synced(&to.join(MANIFEST), &text)
}

/// Copies one component from the bundle at `from` into `staged`, checking each file.
pub fn read(component: &Component, from: &Path, staged: &Path) -> Result<(), ProvisionError> {
    let path = from.join(MANIFEST);
    let refuse = |what: String| ProvisionError::Bundle { path: path.clone(), what };
    let text = fs::read(&path)
        .map_err(|error| refuse(format!("cannot be read ({error}); is this a whole bundle?")))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| refuse(format!("is no bundle manifest ({error})")))?;
    if manifest.format != FORMAT {
        return Err(refuse(format!("has format {}, this program reads {FORMAT}", manifest.format)));
    }
    if manifest.platform != platform() {
        return Err(refuse(format!(
            "is for {}, this machine is {}",
            manifest.platform,
            platform()
        )));
    }
    let folder = folder_name(component);
    let entry = manifest.components.iter().find(|entry| entry.folder == folder);
    let Some(entry) = entry else {
        return Err(refuse(format!("lacks {folder}")));
    };
    for (file, expected) in expected_sums(component) {
        let source = from.join(&folder).join(file);
        if !entry.files.iter().any(|listed| listed.path == file) {
            return Err(refuse(format!("does not list {folder}/{file}")));
        }
        let (found, _) = sha256(&source).map_err(|error| ProvisionError::Bundle {
            path: source.clone(),
            what: format!("cannot be read ({error})"),
        })?;
        if found != expected {
            return Err(ProvisionError::Bundle {
                path: source,
                what: format!("SHA-256 is {found}, expected {expected}; the bundle is damaged"),
            });
        }
        copy_synced(&source, &staged.join(file))?;
    }
    Ok(())
}

fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}
