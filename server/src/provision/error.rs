//! Why provisioning failed.
//!
//! Invariant: each message says what failed, where, and what to do next. It must not know how it is shown.

use std::path::{Path, PathBuf};

/// Why the runtime or the model is not there, or cannot be brought there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// Nothing says where the user's data lies.
    #[error("no data folder: neither XDG_DATA_HOME nor HOME is set; set one of them")]
    NoDataDir,
    /// Something is missing and fetching is not allowed.
    #[error(
        "{what} is not installed in {dir} and --offline forbids fetching it; run `flashbulb setup` once with a network, \
         or `flashbulb setup --from DIR` with a bundle made by `flashbulb setup --bundle DIR` on another machine"
    )]
    Offline {
        /// The component.
        what: String,
        /// Where it belongs.
        dir: PathBuf,
    },
    /// An installed file is damaged and fetching is not allowed.
    #[error(
        "{path}: damaged (SHA-256 {found}, expected {expected}) and --offline forbids fetching it again; run \
         `flashbulb setup` with a network, or `flashbulb setup --from DIR` with a bundle"
    )]
    DamagedOffline {
        /// The file.
        path: PathBuf,
        /// The pinned sum.
        expected: String,
        /// The sum found, or why there is none.
        found: String,
    },
    /// No Python was found.
    #[error(
        "no Python 3 found ({tried}); it is needed once, to fetch {what}. Install it (Debian, Ubuntu: `apt install \
         python3 python3-pip`), point FLASHBULB_PYTHON to one, or use `flashbulb setup --from DIR`"
    )]
    NoPython {
        /// What was tried.
        tried: String,
        /// What was to be fetched.
        what: String,
    },
    /// Python has no pip.
    #[error(
        "{python} has no pip; run `{python} -m ensurepip --user`, or install it (Debian, Ubuntu: `apt install \
         python3-pip`), or use `flashbulb setup --from DIR`"
    )]
    NoPip {
        /// The interpreter.
        python: String,
    },
    /// pip ran and failed.
    #[error(
        "pip could not fetch {what} ({status}):\n{stderr}\nMend what pip names and run `flashbulb setup` again"
    )]
    PipFailed {
        /// The package.
        what: String,
        /// pip's exit status.
        status: String,
        /// The end of what pip said.
        stderr: String,
    },
    /// pip reached no package index.
    #[error(
        "no network: pip could not reach the package index for {what}:\n{stderr}\nCheck the connection or proxy (pip \
         obeys HTTPS_PROXY and pip.conf) and run `flashbulb setup` again, or use `flashbulb setup --from DIR`"
    )]
    NoNetwork {
        /// The package.
        what: String,
        /// The end of what pip said.
        stderr: String,
    },
    /// pip took too long.
    #[error(
        "pip did not finish fetching {what} in {limit_s} s and was ended; check the network and run `flashbulb setup` again"
    )]
    PipTimeout {
        /// The package.
        what: String,
        /// The limit.
        limit_s: u64,
    },
    /// A fetched or bundled file is not the pinned one.
    #[error(
        "{path}: SHA-256 is {found}, expected {expected}; the file was removed, run `flashbulb setup` again. If it \
         happens again, something between you and the package index alters files"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The pinned sum.
        expected: String,
        /// The sum found.
        found: String,
    },
    /// A package or bundle lacks a file or cannot be read.
    #[error("{path}: {what}; run `flashbulb setup` again")]
    Package {
        /// The package.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A bundle cannot be used.
    #[error(
        "{path}: {what}; make a bundle with `flashbulb setup --bundle DIR` of this version, on the same kind of machine"
    )]
    Bundle {
        /// The bundle's file or folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// No pinned runtime for this machine.
    #[error(
        "no ONNX Runtime package is pinned for {platform}; pinned are {supported}. Point FLASHBULB_ORT (or --runtime) to \
         a libonnxruntime of version 1.25 or later"
    )]
    UnsupportedPlatform {
        /// This machine.
        platform: String,
        /// The pinned ones.
        supported: String,
    },
    /// No pinned runtime for an accelerator of this machine.
    #[error(
        "no ONNX Runtime package with an accelerator is pinned for {platform}. Point FLASHBULB_ORT (or --runtime) to the \
         libonnxruntime of a build with one, or leave --device out"
    )]
    NoAccelerated {
        /// This machine.
        platform: String,
    },
    /// A path given by the user does not hold what it should.
    #[error("{path}: {what}; correct the path or leave it out")]
    BadPath {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The disk is full.
    #[error(
        "{path}: the disk is full; about 220 MB are needed under the data folder, 600 MB more for a GPU. Free some space and run `flashbulb setup` again"
    )]
    DiskFull {
        /// Where it was written.
        path: PathBuf,
    },
    /// The folder cannot be written.
    #[error(
        "{path}: not writable; make it writable for this user, or set XDG_DATA_HOME to a folder that is"
    )]
    NotWritable {
        /// Where it was written.
        path: PathBuf,
    },
    /// Another failure of the file system.
    #[error("{path}: {source}; mend it and run `flashbulb setup` again")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl ProvisionError {
    /// The kind of failure that `source` at `path` is.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull { path },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                Self::NotWritable { path }
            }
            _ => Self::Io { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_read_only_one_have_their_own_words() {
        let error =
            |code| ProvisionError::io(Path::new("/d"), std::io::Error::from_raw_os_error(code));
        assert!(error(28).to_string().contains("disk is full"));
        assert!(error(30).to_string().contains("not writable"));
        assert!(error(13).to_string().contains("not writable"));
        assert!(matches!(error(5), ProvisionError::Io { .. }));
    }
}
