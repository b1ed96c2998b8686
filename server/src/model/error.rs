//! Why a model folder cannot be used.
//!
//! Invariant: each message names the file and the next step. It must not know how embedding errors are reported.

use std::path::PathBuf;

/// Why a model folder cannot be read or compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file the model needs is not there.
    #[error("{path}: the model folder lacks this file; {hint}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// A file could not be read.
    #[error("{path}: cannot be read: {source}; check its permissions")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {what}; fetch the model again")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The model uses something that Flashbulb does not compile or run.
    #[error("{path}: {what} is not supported; {hint}")]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What it asks for.
        what: String,
        /// What works instead.
        hint: &'static str,
    },
    /// A weight is missing or has another shape than the configuration says.
    #[error(
        "{path}: tensor `{tensor}`: {what}; config.json and the weights do not belong together"
    )]
    Tensor {
        /// The weights file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        what: String,
    },
}
