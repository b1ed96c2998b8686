//! How vectors are compared: as an option, in reports, and exactly.
//!
//! Invariant: a larger score is always the better one; the cosine is the dot product of vectors that were brought to unit length
//! before. Must not know indexes' settings, or where vectors come from.

use flashbulb_engine::index;
use flashbulb_kernels::Kernels;
use serde::{Deserialize, Serialize};

/// How vectors are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// The cosine; vectors are brought to unit length
    Cosine,
    /// The Euclidean distance of the vectors as they are
    L2,
    /// The dot product of the vectors as they are
    Dot,
}

impl Metric {
    /// What an index is made for.
    pub fn of_index(self) -> index::Metric {
        match self {
            Metric::Cosine => index::Metric::Cosine,
            Metric::L2 => index::Metric::L2,
            Metric::Dot => index::Metric::Dot,
        }
    }

    /// As a sentence has it.
    pub fn words(self) -> &'static str {
        match self {
            Metric::Cosine => "the cosine",
            Metric::L2 => "the Euclidean distance",
            Metric::Dot => "the dot product",
        }
    }

    /// In f64.
    pub fn score(self, a: &[f32], b: &[f32]) -> f64 {
        let pairs = a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        match self {
            Metric::Cosine | Metric::Dot => pairs.map(|(a, b)| a * b).sum(),
            Metric::L2 => -pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>(),
        }
    }

    /// In f32, and quickly.
    pub fn rough(self, kernels: Kernels, a: &[f32], b: &[f32]) -> f32 {
        match self {
            Metric::Cosine | Metric::Dot => kernels.dot_f32(a, b),
            Metric::L2 => -kernels.l2_squared_f32(a, b),
        }
    }
}
