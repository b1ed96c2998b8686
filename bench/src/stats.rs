//! Percentiles that say how much stands behind them.
//!
//! Invariant: percentiles come from a merged histogram, never from other percentiles; a request that was missed counts as
//! one that was never answered; a quantile with fewer than ten samples beyond it is hidden. Must not know what was timed.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Failure;

/// Longest time that is told apart, in microseconds.
const LONGEST_US: u64 = 60_000_000;
/// Samples that must lie beyond a quantile for it to be shown.
pub const BEYOND: f64 = 10.0;
/// Confidence of an interval.
const CONFIDENCE: f64 = 0.95;

/// An empty histogram of microseconds.
///
/// # Errors
/// Never with these bounds.
pub fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, LONGEST_US, 3)?)
}

/// Adds a time; less than a microsecond counts as one.
pub fn record(h: &mut Histogram<u64>, d: Duration) {
    h.saturating_record(u64::try_from(d.as_micros()).unwrap_or(u64::MAX).max(1));
}

/// One quantile. In JSON a number of microseconds, `"missed"` or null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Value", try_from = "Value")]
pub enum Quantile {
    /// Microseconds.
    Us(u64),
    /// A request at this rank has no answer.
    Missed,
    /// Too few samples.
    #[default]
    Hidden,
}

impl Quantile {
    /// Microseconds, where there are some.
    pub fn us(self) -> Option<u64> {
        match self {
            Quantile::Us(us) => Some(us),
            Quantile::Missed | Quantile::Hidden => None,
        }
    }
}

impl From<Quantile> for Value {
    fn from(q: Quantile) -> Value {
        match q {
            Quantile::Us(us) => us.into(),
            Quantile::Missed => "missed".into(),
            Quantile::Hidden => Value::Null,
        }
    }
}

impl TryFrom<Value> for Quantile {
    type Error = String;

    fn try_from(value: Value) -> Result<Quantile, String> {
        match &value {
            Value::Null => Ok(Quantile::Hidden),
            Value::String(s) if s == "missed" => Ok(Quantile::Missed),
            _ => {
                let wrong = || format!("{value} is no quantile: a number, \"missed\" or null");
                value.as_u64().map(Quantile::Us).ok_or_else(wrong)
            }
        }
    }
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Requests, the missed ones among them.
    pub samples: u64,
    /// Those without an answer; they stand behind all others.
    pub missed: u64,
    pub p50: Quantile,
    pub p90: Quantile,
    pub p95: Quantile,
    pub p99: Quantile,
    pub p999: Quantile,
    pub p9999: Quantile,
    /// Between which samples the true p99 lies with 95 % confidence, if they are independent.
    pub p99_between: Option<(Quantile, Quantile)>,
    /// Of those with an answer.
    pub mean: Option<f64>,
    /// Of those with an answer.
    pub max: u64,
}

impl Percentiles {
    /// Of answers alone.
    pub fn of(h: &Histogram<u64>) -> Percentiles {
        Percentiles::with_missed(h, 0)
    }

    /// Of answers and of `missed` requests that have none.
    pub fn with_missed(h: &Histogram<u64>, missed: u64) -> Percentiles {
        let samples = h.len() + missed;
        let at = |q: f64| quantile(h, samples, q);
        Percentiles {
            samples,
            missed,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            p99_between: interval(h, samples, 0.99),
            mean: (!h.is_empty()).then(|| h.mean()),
            max: h.max(),
        }
    }
}

/// Whether `samples` are enough to show the quantile `q`.
pub fn is_shown(samples: u64, q: f64) -> bool {
    // Rounding must not hide p99 of exactly a thousand.
    samples as f64 * (1.0 - q) >= BEYOND - 1e-6
}

fn quantile(h: &Histogram<u64>, samples: u64, q: f64) -> Quantile {
    if !is_shown(samples, q) {
        return Quantile::Hidden;
    }
    at_rank(h, (samples as f64 * q - 1e-6).ceil().max(1.0) as u64)
}

/// The sample of this rank, counted from 1.
fn at_rank(h: &Histogram<u64>, rank: u64) -> Quantile {
    if rank > h.len() {
        return Quantile::Missed;
    }
    // In the middle of the rank, so that no rounding moves it to a neighbour.
    Quantile::Us(h.value_at_quantile((rank as f64 - 0.5) / h.len() as f64))
}

/// The order statistics between which the quantile lies; none if there are too few samples for one on either side.
fn interval(h: &Histogram<u64>, samples: u64, q: f64) -> Option<(Quantile, Quantile)> {
    if !is_shown(samples, q) {
        return None;
    }
    let (low, high) = ranks(samples, q)?;
    Some((at_rank(h, low), at_rank(h, high)))
}

/// Ranks `(l, u)` with `P(X(l) <= quantile < X(u)) >= 0.95`, from the binomial distribution of how many of `n` samples lie
/// below the quantile.
fn ranks(n: u64, q: f64) -> Option<(u64, u64)> {
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let mut low = 0;
    let mut below = 0.0;
    let mut log_of = n as f64 * (1.0 - q).ln();
    for k in 0..n {
        // `below` is P(count < k), `below + P(k)` is P(count <= k).
        if below <= tail {
            low = k;
        }
        below += log_of.exp();
        if below >= 1.0 - tail {
            return (low > 0).then_some((low, k + 1));
        }
        log_of += ((n - k) as f64 / (k + 1) as f64 * q / (1.0 - q)).ln();
    }
    None
}

/// The two-sided sign test: how probable so lopsided an outcome is, or a worse one, if either side is equally likely.
/// Ties are to be left out by the caller.
pub fn sign_test(wins: u64, losses: u64) -> f64 {
    let n = wins + losses;
    let fewer = wins.min(losses);
    let mut log_of = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=fewer {
        sum += log_of.exp();
        log_of += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

/// The median; none of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// What repeated measurements of the same say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// Of finite values; none of nothing.
    pub fn of(values: &[f64]) -> Option<Spread> {
        Some(Spread {
            median: median(values)?,
            least: values.iter().copied().reduce(f64::min)?,
            most: values.iter().copied().reduce(f64::max)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of_range(range: std::ops::RangeInclusive<u64>) -> Histogram<u64> {
        let mut h = histogram().unwrap();
        range.for_each(|us| h.record(us).unwrap());
        h
    }

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        let p = Percentiles::of(&of_range(1..=999));
        assert_eq!(p.p99, Quantile::Hidden);
        assert_eq!(p.p99_between, None);
        let p = Percentiles::of(&of_range(1..=1000));
        assert_eq!((p.p50, p.p99), (Quantile::Us(500), Quantile::Us(990)));
        assert_eq!((p.p999, p.p9999), (Quantile::Hidden, Quantile::Hidden));
    }

    #[test]
    fn what_was_missed_stands_behind_every_answer() {
        let p = Percentiles::with_missed(&of_range(1..=985), 15);
        assert_eq!((p.samples, p.p50, p.p99), (1000, Quantile::Us(500), Quantile::Missed));
        let p = Percentiles::with_missed(&of_range(1..=995), 5);
        assert_eq!(p.p99, Quantile::Us(990));
        let json = serde_json::to_value(Percentiles::with_missed(&of_range(1..=985), 15)).unwrap();
        assert_eq!((json["p99"].as_str(), json["p999"].is_null()), (Some("missed"), true));
        let back: Percentiles = serde_json::from_value(json).unwrap();
        assert_eq!(back.p99, Quantile::Missed);
        assert!(serde_json::from_value::<Quantile>("soon".into()).is_err());
    }

    /// The median of 16 lies between the 4th and the 13th, of 100 between the 40th and the 61st, as in any table of such
    /// intervals; the last was summed up from the definition by another program.
    #[test]
    fn the_interval_is_that_of_the_binomial_distribution() {
        assert_eq!(ranks(100, 0.5), Some((40, 61)));
        assert_eq!(ranks(16, 0.5), Some((4, 13)));
        assert_eq!(ranks(1000, 0.99), Some((983, 997)));
        let p = Percentiles::of(&of_range(1..=1000));
        assert_eq!(p.p99_between, Some((Quantile::Us(983), Quantile::Us(997))));
        assert_eq!(ranks(3, 0.99), None);
    }

    /// Exact values as in any table of the sign test (for example Siegel, table D, doubled).
    #[test]
    fn the_sign_test_has_its_published_values() {
        for (wins, losses, p) in [
            (10, 0, 0.001953125),
            (9, 1, 0.021484375),
            (1, 9, 0.021484375),
            (8, 2, 0.109375),
            (5, 5, 1.0),
            (15, 5, 0.041389465),
            (0, 0, 1.0),
        ] {
            assert!((sign_test(wins, losses) - p).abs() < 1e-8, "{wins}:{losses}");
        }
    }

    #[test]
    fn a_spread_is_of_all_values() {
        assert_eq!(Spread::of(&[]), None);
        let spread = Spread::of(&[3.0, 1.0, 2.0, 9.0]);
        assert_eq!(spread, Some(Spread { median: 2.5, least: 1.0, most: 9.0 }));
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
