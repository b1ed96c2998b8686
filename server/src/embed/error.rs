//! Why a text could not be embedded, or the embedder not be opened.
//!
//! Invariant: each message says what failed and what to do next. It must not know how it is shown.

use std::path::PathBuf;

use super::device::Unavailable;
use crate::model::ModelError;

/// Why embedding failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The model folder cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// ONNX Runtime could not be loaded.
    #[error(
        "{path}: ONNX Runtime cannot be loaded: {what}; point FLASHBULB_ORT (or --runtime) to a libonnxruntime of version \
         1.25 or later for this machine, or run `flashbulb setup`"
    )]
    Runtime {
        /// The library.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The process has already loaded another ONNX Runtime.
    #[error(
        "{wanted}: this process already runs {loaded}; one process can load only one ONNX Runtime, start another"
    )]
    OtherRuntime {
        /// The library asked for.
        wanted: PathBuf,
        /// The library in use.
        loaded: PathBuf,
    },
    /// ONNX Runtime refused a graph.
    #[error(
        "{path}: ONNX Runtime cannot load the graph: {what}; if this is the default model, delete the file and try again"
    )]
    Graph {
        /// The graph's file.
        path: PathBuf,
        /// What it said.
        what: String,
    },
    /// A graph lacks the inputs or outputs of a text embedding model.
    #[error("{path}: {what}; export it with sentence-transformers or optimum")]
    Interface {
        /// The graph's file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The compiled graph could not be written.
    #[error("{path}: {source}; about 120 MB are needed for compiled graphs, mend it and try again")]
    Cache {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The tokenizer's file cannot be used.
    #[error("{path}: the tokenizer cannot be loaded: {what}; fetch the model again")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The text has nothing to embed.
    #[error("the text is empty or only white space; there is nothing to embed")]
    EmptyText,
    /// The tokenizer or the runtime failed on a text.
    #[error("embedding failed: {what}; report this text's shape if it happens again")]
    Run {
        /// What it said.
        what: String,
    },
    /// A run gave something that is no vector.
    #[error("the model gave {what}; its file may be damaged, run `flashbulb doctor`")]
    BadOutput {
        /// What came out.
        what: String,
    },
    /// The device that was required does not carry the model.
    #[error(
        "--device required, but not to be had: {0}. Or give --device preferred, which runs on the processor where it must \
         and says so in every answer"
    )]
    Device(Unavailable),
    /// Execution is not what it should be.
    #[error(
        "the warm-up run could not be witnessed: {what}; without that the device in use would be a guess"
    )]
    Witness {
        /// What is wrong.
        what: String,
    },
}

impl EmbedError {
    /// What went wrong, without advice that fits the processor only.
    pub(super) fn bare(&self) -> String {
        match self {
            Self::Graph { what, .. } | Self::Run { what } | Self::Witness { what } => what.clone(),
            Self::BadOutput { what } => format!("the model gave {what}"),
            other => other.to_string(),
        }
    }

    /// A failure of a run.
    pub(super) fn run(error: impl std::fmt::Display) -> Self {
        Self::Run { what: error.to_string() }
    }
}
