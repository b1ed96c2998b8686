//! Latencies and their percentiles.
//!
//! Keeps: a percentile is marked where fewer than ten samples lie beyond it, because it then says little. Must not
//! know what is timed.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart; longer ones count as this.
const MAX_US: u64 = 600_000_000;
/// How many samples must lie beyond a quantile: n · (1 − q) ≥ 10.
const SAMPLES_BEYOND: f64 = 10.0;

/// Samples of one quantity.
#[derive(Debug)]
pub(super) struct Latencies {
    histogram: Histogram<u64>,
}

/// One quantile.
#[derive(Debug, Serialize)]
pub(super) struct Quantile {
    pub name: &'static str,
    pub us: u64,
    /// Whether at least ten samples lie beyond it.
    pub enough_samples: bool,
}

/// What the samples came to.
#[derive(Debug, Serialize)]
pub(super) struct Percentiles {
    pub samples: u64,
    pub quantiles: Vec<Quantile>,
    pub max_us: u64,
}

impl Latencies {
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_US, 3)
            .expect("1 to 600 s with three digits is a range the histogram has");
        Latencies { histogram }
    }

    pub(super) fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(MAX_US);
        self.histogram.saturating_record(us.max(1));
    }

    pub(super) fn percentiles(&self) -> Percentiles {
        let samples = self.histogram.len();
        let quantile = |name, q: f64| Quantile {
            name,
            us: self.histogram.value_at_quantile(q),
            enough_samples: enough(samples, q),
        };
        Percentiles {
            samples,
            quantiles: vec![quantile("p50", 0.5), quantile("p90", 0.9), quantile("p99", 0.99)],
            max_us: self.histogram.max(),
        }
    }
}

/// With a thousandth of slack, because 1 − 0.99 is not quite 0.01 in binary.
fn enough(samples: u64, quantile: f64) -> bool {
    samples as f64 * (1.0 - quantile) >= SAMPLES_BEYOND - 1e-3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_with_few_samples_are_marked() {
        for (samples, quantile, want) in [
            (1000, 0.99, true),
            (999, 0.99, false),
            (200, 0.99, false),
            (20, 0.5, true),
            (19, 0.5, false),
            (0, 0.5, false),
        ] {
            assert_eq!(enough(samples, quantile), want, "{samples} at {quantile}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut latencies = Latencies::new();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        latencies.record(Duration::from_secs(10_000));
        let got = latencies.percentiles();
        assert_eq!(got.samples, 1001);
        for (quantile, want) in got.quantiles.iter().zip([501, 901, 991]) {
            let error = quantile.us.abs_diff(want);
            assert!(error <= want / 500 + 1, "{quantile:?} instead of {want}");
        }
        assert!(got.max_us.abs_diff(MAX_US) < MAX_US / 500);
    }
}
