//! `churn.json`: everything that one run found.
//!
//! Invariant: a shortfall is against an index of the same vectors that was built at once; percentiles with too few samples beyond
//! them are absent. Must not know how anything was measured.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::machine::Machine;
use crate::metric::Metric;
use crate::stats;

/// The schema of the file.
pub const SCHEMA: u64 = 1;

/// One run.
#[derive(Debug, Serialize)]
pub struct Churn {
    pub schema: u64,
    /// RFC 3339.
    pub begun_at: String,
    pub command: String,
    pub seed: u64,
    pub machine: Machine,
    /// Of the folder that the harness was started in.
    pub commit: Option<String>,
    pub dirty: Option<bool>,
    pub scenario: Scenario,
    #[serde(flatten)]
    pub measured: Measured,
    pub shortfalls: Vec<Shortfall>,
    /// What changes how figures are to be read.
    pub notes: Vec<String>,
}

/// What was done.
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
    pub rounds: usize,
    pub share: f64,
    /// Vectors that each round deletes and inserts again.
    pub moved: usize,
    /// Operations after which the index's own work is done to its end.
    pub between: usize,
    /// How the index keeps vectors and links.
    pub layout: String,
    /// Threads that build an index at once.
    pub threads: usize,
    /// Of each measurement of latency.
    pub seconds: f64,
    /// Length of the noise on the vectors that are inserted beside searches, in parts of theirs.
    pub noise: f64,
}

/// All figures.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// The index before the first round.
    pub built: State,
    pub rounds: Vec<State>,
    /// An index of the same vectors in random order, built at once.
    pub fresh: State,
    pub latency: Latencies,
}

/// An index at one time.
#[derive(Debug, Serialize)]
pub struct State {
    /// That it took to come there from the state before.
    pub seconds: f64,
    /// In the index, dead ones included.
    pub vectors: u32,
    pub live: u32,
    /// The first so many vectors, which the graph covers.
    pub in_graph: u32,
    /// Those of dead vectors that were not taken out yet among them.
    pub links: u64,
    /// Live vectors that no way of links leads to.
    pub unreachable: u32,
    /// One for each width.
    pub points: Vec<Point>,
}

/// Searches at one width.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Point {
    pub width: usize,
    pub recall: f64,
    /// The part of the searches that the graph answered; the others scanned everything.
    pub walked: f64,
    /// Nodes that a search expanded, in the mean.
    pub visited: f64,
}

/// What the rounds cost in recall at one width.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shortfall {
    pub width: usize,
    pub fresh: f64,
    /// The lowest after a round.
    pub least: f64,
    /// After which round, counted from 1.
    pub round: usize,
    /// `fresh` less `least`: below 0 if every round left a better index than a fresh one.
    pub shortfall: f64,
}

/// How long single searches took on one thread.
#[derive(Debug, Serialize)]
pub struct Latencies {
    pub width: usize,
    pub idle_before: Latency,
    pub under_inserts: Latency,
    pub idle_after: Latency,
    pub inserts: Inserts,
    /// p99 under inserts by the mean of both idle ones.
    pub p99_ratio: Option<f64>,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub samples: u64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    pub max_us: f64,
}

/// What the other thread did meanwhile.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Inserts {
    pub count: usize,
    pub seconds: f64,
    pub per_s: f64,
    /// Whether the vectors that were held for it came to their end before the time did.
    pub used_up: bool,
}

impl Latency {
    /// Of times in nanoseconds.
    pub fn of(ns: &Histogram<u64>) -> Latency {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |q| stats::is_shown(ns.len(), q).then(|| us(ns.value_at_quantile(q)));
        Latency {
            samples: ns.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: us(ns.max()),
        }
    }
}

/// p99 under inserts by the mean of the idle ones, where all three are known.
pub fn ratio(before: &Latency, under: &Latency, after: &Latency) -> Option<f64> {
    let idle = f64::midpoint(before.p99_us?, after.p99_us?);
    (idle > 0.0).then_some(under.p99_us? / idle)
}

impl Measured {
    /// For each width, the worst that a round left against the fresh index.
    pub fn shortfalls(&self) -> Vec<Shortfall> {
        let of = |(at, fresh): (usize, &Point)| {
            let recalls = self.rounds.iter().map(|round| round.points[at].recall);
            let (round, least) = recalls.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
            let (width, fresh) = (fresh.width, fresh.recall);
            Some(Shortfall { width, fresh, least, round: round + 1, shortfall: fresh - least })
        };
        self.fresh.points.iter().enumerate().filter_map(of).collect()
    }

    /// What a reader must know beside the figures.
    pub fn notes(&self, cores: usize) -> Vec<String> {
        let mut notes = Vec::new();
        for (at, point) in self.built.points.iter().enumerate() {
            let states = self.rounds.iter().chain([&self.built, &self.fresh]);
            let walked = states.map(|s| s.points[at].walked).fold(1.0, f64::min);
            if walked < 1.0 {
                notes.push(format!(
                    "at width {} the graph answered {:.1} % of the searches of one state or more, a scan of everything the others: the recall there is not the graph's alone",
                    point.width,
                    walked * 100.0
                ));
            }
        }
        let inserts = &self.latency.inserts;
        if inserts.used_up {
            notes.push(format!(
                "all {} vectors held for inserts were used up after {:.2} s, and the searches beside them ended then",
                inserts.count, inserts.seconds
            ));
        }
        if cores < 2 {
            notes.push("one processor: searches and inserts take turns on it".to_owned());
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn state(recalls: [f64; 2], walked: f64) -> State {
        let point = |(width, recall)| Point { width, recall, walked, visited: 1.0 };
        State {
            seconds: 1.0,
            vectors: 9,
            live: 9,
            in_graph: 9,
            links: 1,
            unreachable: 0,
            points: [32, 64].into_iter().zip(recalls).map(point).collect(),
        }
    }

    fn latency(p99: Option<f64>) -> Latency {
        Latency { samples: 1, p50_us: None, p99_us: p99, p999_us: None, max_us: 1.0 }
    }

    fn measured(rounds: Vec<State>) -> Measured {
        let [idle_before, under_inserts, idle_after] = [latency(None); 3];
        let inserts = Inserts { count: 7, seconds: 1.0, per_s: 7.0, used_up: true };
        let latency = Latencies {
            width: 64,
            idle_before,
            under_inserts,
            idle_after,
            inserts,
            p99_ratio: None,
        };
        Measured { built: state([0.9, 1.0], 1.0), rounds, fresh: state([0.9, 0.99], 1.0), latency }
    }

    #[test]
    fn a_shortfall_is_the_worst_round_against_a_fresh_index() {
        let rounds = [[0.89, 1.0], [0.85, 0.995], [0.91, 1.0]].map(|r| state(r, 1.0));
        let found = measured(rounds.into()).shortfalls();
        assert_eq!((found[0].width, found[0].round, found[1].round), (32, 2, 2));
        assert!((found[0].shortfall - 0.05).abs() < 1e-9 && (found[1].shortfall + 0.005) < 1e-9);
    }

    #[test]
    fn scans_and_an_early_end_are_noted() {
        let notes = measured(vec![state([1.0, 1.0], 0.5)]).notes(1);
        assert!(notes[0].contains("width 32") && notes[0].contains("50.0 %"), "{notes:?}");
        assert!(notes[2].contains("all 7 vectors") && notes[3].contains("one processor"));
        assert_eq!(measured(vec![state([1.0, 1.0], 1.0)]).notes(2).len(), 1);
    }

    #[test]
    fn percentiles_need_samples_and_a_ratio_needs_percentiles() {
        let mut ns = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        (1..=1000).for_each(|us| ns.record(us * 1000).unwrap());
        let found = Latency::of(&ns);
        assert!((found.p99_us.unwrap() / 990.0 - 1.0).abs() < 2e-3, "{found:?}");
        assert_eq!((found.samples, found.p999_us), (1000, None));
        let [two, six, none] = [Some(2.0), Some(6.0), None].map(latency);
        assert!((ratio(&two, &six, &latency(Some(4.0))).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(ratio(&two, &six, &none), None);
    }
}
