//! `ann.json`: everything that one run found.
//!
//! Invariant: a ratio is of two rates at the same recall in the same block, so that what drifts from block to block is on both
//! sides. Must not know how anything was measured.

use serde::Serialize;

use super::curve::{self, Point};
use crate::environment::Environment;
use crate::machine::Machine;
use crate::metric::Metric;
use crate::run::Memory;
use crate::stats::Spread;

/// The schema of the file.
pub const SCHEMA: u64 = 1;
/// Recalls at which systems are compared.
pub const RECALLS: [f64; 4] = [0.95, 0.98, 0.99, 0.995];

/// One run.
#[derive(Debug, Serialize)]
pub struct Ann {
    pub schema: u64,
    /// RFC 3339.
    pub begun_at: String,
    pub command: String,
    pub seed: u64,
    pub machine: Machine,
    /// Of the folder that the harness was started in.
    pub commit: Option<String>,
    pub dirty: Option<bool>,
    pub environment: Option<Environment>,
    pub scenario: Scenario,
    pub systems: Vec<Found>,
    pub ratios: Vec<Ratio>,
    /// What changes how figures are to be read.
    pub notes: Vec<String>,
}

/// What all systems share.
#[derive(Debug, Serialize)]
pub struct Scenario {
    pub source: String,
    pub sha256: String,
    pub metric: Metric,
    pub normalised: bool,
    pub vectors: usize,
    pub dim: usize,
    pub queries: usize,
    pub k: usize,
    pub blocks: u16,
    /// At least so long, each setting of each block.
    pub seconds: f64,
    pub build_threads: usize,
}

/// What one system did.
#[derive(Debug, Serialize)]
pub struct Found {
    pub name: String,
    pub settings: String,
    pub build_seconds: f64,
    /// Memory that the index took, in bytes a vector, without the f32 rows; where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_bytes: Option<f64>,
    pub memory: Option<Memory>,
    pub settings_measured: Vec<Setting>,
    /// At each of [`RECALLS`]; none where it is outside what was measured.
    pub at: Vec<Option<Spread>>,
}

/// One width of one system.
#[derive(Debug, Serialize)]
pub struct Setting {
    pub width: usize,
    pub recall: f64,
    /// Of each block, all queries in one call on one thread.
    pub qps: Vec<f64>,
    /// Of single calls, all blocks together.
    pub single_us: Single,
}

/// How long single calls took, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Single {
    pub samples: usize,
    pub p50: f64,
    pub p99: f64,
}

impl Single {
    /// Of all times, in nanoseconds.
    pub fn of(mut ns: Vec<u64>) -> Option<Single> {
        ns.sort_unstable();
        // The nearest rank.
        let at = |part: f64| {
            ns.get((part * ns.len() as f64).ceil() as usize - 1).map(|v| *v as f64 / 1e3)
        };
        (!ns.is_empty()).then_some(())?;
        Some(Single { samples: ns.len(), p50: at(0.5)?, p99: at(0.99)? })
    }
}

/// How many times the queries a second of another that Flashbulb answers at one recall.
#[derive(Debug, Serialize)]
pub struct Ratio {
    pub recall: f64,
    pub other: String,
    pub times: Spread,
}

impl Found {
    /// The points of one block.
    fn points(&self, block: usize) -> Vec<Point> {
        let of = |s: &Setting| s.qps.get(block).map(|qps| Point { recall: s.recall, qps: *qps });
        self.settings_measured.iter().filter_map(of).collect()
    }

    /// Rates at one recall, one for each block; none if one block has none.
    fn rates(&self, recall: f64, blocks: usize) -> Option<Vec<f64>> {
        (0..blocks).map(|block| curve::at(&self.points(block), recall)).collect()
    }

    /// Works out [`Found::at`].
    pub fn compare(&mut self, blocks: usize) {
        let spread = |recall: &f64| Spread::of(&self.rates(*recall, blocks)?);
        self.at = RECALLS.iter().map(spread).collect();
    }

    /// The medians, for a picture.
    pub fn medians(&self) -> Vec<Point> {
        let of = |s: &Setting| Some(Point { recall: s.recall, qps: Spread::of(&s.qps)?.median });
        self.settings_measured.iter().filter_map(of).collect()
    }
}

/// The first system's rate by that of each other, where both have one.
pub fn ratios(systems: &[Found], blocks: usize) -> Vec<Ratio> {
    let Some((own, others)) = systems.split_first() else { return Vec::new() };
    let mut out = Vec::new();
    for recall in RECALLS {
        for other in others {
            let both = own.rates(recall, blocks).zip(other.rates(recall, blocks));
            let Some((mine, theirs)) = both else { continue };
            let times: Vec<f64> = mine.iter().zip(&theirs).map(|(a, b)| a / b).collect();
            out.extend(Spread::of(&times).map(|times| Ratio {
                recall,
                other: other.name.clone(),
                times,
            }));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(name: &str, settings: &[(f64, [f64; 2])]) -> Found {
        let single_us = Single { samples: 1, p50: 1.0, p99: 1.0 };
        let setting = |(recall, qps): &(f64, [f64; 2])| Setting {
            width: 1,
            recall: *recall,
            qps: qps.to_vec(),
            single_us,
        };
        Found {
            name: name.into(),
            settings: String::new(),
            build_seconds: 1.0,
            index_bytes: None,
            memory: None,
            settings_measured: settings.iter().map(setting).collect(),
            at: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_of_one_block_at_one_recall() {
        let own = found("own", &[(0.94, [400.0, 40.0]), (0.985, [200.0, 20.0])]);
        let other = found("other", &[(0.94, [100.0, 20.0]), (0.985, [50.0, 10.0])]);
        let ratios = ratios(&[own, other], 2);
        let at: Vec<f64> = ratios.iter().map(|r| r.recall).collect();
        assert_eq!(at, [0.95, 0.98], "nobody reached the others");
        for ratio in &ratios {
            let t = ratio.times;
            assert!((t.least - 2.0).abs() < 1e-9 && (t.most - 4.0).abs() < 1e-9, "{t:?}");
        }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let single = Single::of((1..=100).map(|n| n * 1000).collect()).unwrap();
        assert!((single.p50 - 50.0).abs() < 1e-9 && (single.p99 - 99.0).abs() < 1e-9);
        assert!(Single::of(Vec::new()).is_none());
    }
}
