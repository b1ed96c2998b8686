//! What the tests share: one provisioned data folder and its embedders.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flashbulb::embed::{EmbedOptions, Embedder, Precision};
use flashbulb::provision::{Places, Provisioned, Quiet, Wanted, ensure_in};

/// The data folder that all tests share.
pub fn places() -> Places {
    Places { data_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("flashbulb-data") }
}

/// The pinned runtime and model.
pub fn provisioned() -> &'static Provisioned {
    static DONE: OnceLock<Provisioned> = OnceLock::new();
    DONE.get_or_init(|| ensure_in(&places(), &Wanted::default(), &Quiet).unwrap())
}

/// The default model in `precision`.
pub fn embedder(precision: Precision) -> Embedder {
    open(provisioned().model_dir.clone(), precision)
}

/// A model folder over the pinned runtime; graphs of a folder that is not shared are compiled inside it.
pub fn open(model_dir: PathBuf, precision: Precision) -> Embedder {
    let shared = provisioned();
    let compiled_dir = match model_dir == shared.model_dir {
        true => shared.compiled_dir.clone(),
        false => model_dir.join("compiled"),
    };
    let provisioned = Provisioned { model_dir, compiled_dir, ..shared.clone() };
    let options = EmbedOptions { precision, ..EmbedOptions::default() };
    Embedder::open(&provisioned, &options, &Quiet).unwrap()
}

/// The cosine of two unit vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    dot / (norm(a) * norm(b))
}
