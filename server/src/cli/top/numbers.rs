//! Rates and percentiles of one interval and since start, from two readings of the daemon.
//!
//! Keeps: what is said of an interval comes from the difference of two readings and nothing else, over the time that the
//! daemon's own clock says. Percentiles are the upper edges of buckets, so at most a tenth above the true ones.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::rpc::results::{HistogramOut, MetricsReading};

/// What is said with every percentile.
pub const ACCURACY: &str =
    "percentiles are the upper edges of buckets: at most 10 % above the true ones";

const REQUEST: &str = "flashbulb_request_duration_seconds";
const STAGE: &str = "flashbulb_stage_duration_seconds";

/// An upper edge in microseconds, `None` for what is longer than all, and a count.
type Bucket = (Option<f64>, u64);

/// Two answers, asked for one after the other.
pub struct Sample {
    /// Of `admin.status`.
    pub status: Value,
    /// Of `admin.metrics`.
    pub metrics: MetricsReading,
}

/// Percentiles of some durations in microseconds; `null` is longer than 100 s.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many durations.
    pub count: u64,
    /// The mean, which no bucket rounds.
    pub mean_us: f64,
    /// Half are no longer.
    pub p50_us: Option<f64>,
    /// Nine of ten.
    pub p90_us: Option<f64>,
    /// Ninety-nine of a hundred.
    pub p99_us: Option<f64>,
    /// All.
    pub max_us: Option<f64>,
}

/// Requests by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Outcomes<T> {
    /// With a result.
    pub ok: T,
    /// Turned away.
    pub busy: T,
    /// Too late.
    pub deadline: T,
    /// Any other error.
    pub error: T,
}

/// One method.
#[derive(Debug, Serialize)]
pub struct MethodView {
    /// Its name.
    pub method: String,
    /// A second, in the interval; absent on the first screen.
    pub per_s: Option<Outcomes<f64>>,
    /// Since start.
    pub requests: Outcomes<u64>,
    /// In the interval.
    pub interval: Option<Percentiles>,
    /// Since start.
    pub since_start: Option<Percentiles>,
    /// Its stages, in the order of the daemon.
    pub stages: Vec<StageView>,
}

/// One stage of a method.
#[derive(Debug, Serialize)]
pub struct StageView {
    /// Its name.
    pub stage: String,
    /// In the interval.
    pub interval: Option<Percentiles>,
    /// Since start.
    pub since_start: Option<Percentiles>,
}

/// Everything on a screen.
#[derive(Debug, Serialize)]
pub struct View {
    /// When the daemon was read, in milliseconds since 1970.
    pub at_ms: i64,
    /// Between the two readings; absent on the first screen.
    pub interval_s: Option<f64>,
    /// How exact percentiles are.
    pub accuracy: &'static str,
    /// `admin.status` without its constants.
    pub status: Value,
    /// What grew, a second, in the interval.
    pub per_s: BTreeMap<String, f64>,
    /// Methods that were called, those of memories first.
    pub methods: Vec<MethodView>,
}

impl View {
    /// What happened between two readings, or until the first.
    pub fn between(before: Option<&Sample>, now: &Sample) -> Self {
        let seconds = before.map(|before| uptime(now) - uptime(before)).filter(|&s| s > 0.0);
        let before = before.map(|before| &before.metrics).filter(|_| seconds.is_some());
        let interval = before.zip(seconds);
        let mut status = now.status.clone();
        if let Some(members) = status.as_object_mut() {
            members.remove("limits");
        }
        let mut methods: Vec<MethodView> =
            names(&now.metrics).map(|name| method(name, interval, &now.metrics)).collect();
        methods.sort_by_key(|one| {
            let group = ["memory.", "space."].iter().position(|g| one.method.starts_with(g));
            (group.unwrap_or(usize::MAX), one.method.clone())
        });
        View {
            at_ms: now.metrics.at_ms,
            interval_s: seconds,
            accuracy: ACCURACY,
            status,
            per_s: interval.map(|(before, s)| rates(before, &now.metrics, s)).unwrap_or_default(),
            methods,
        }
    }
}

/// The daemon's own clock, which nobody sets.
fn uptime(sample: &Sample) -> f64 {
    sample.metrics.gauges.get("flashbulb_uptime_seconds").copied().unwrap_or(0.0)
}

/// Growth of every counter but those of requests, which stand with their methods.
fn rates(before: &MetricsReading, now: &MetricsReading, seconds: f64) -> BTreeMap<String, f64> {
    let counters = now.counters.iter().filter(|(name, _)| !name.starts_with(REQUESTS));
    counters
        .map(|(name, &count)| {
            let grown = count.saturating_sub(before.counters.get(name).copied().unwrap_or(0));
            (name.clone(), grown as f64 / seconds)
        })
        .collect()
}

const REQUESTS: &str = "flashbulb_requests_total{method=\"";

/// Methods that were called at least once.
fn names(metrics: &MetricsReading) -> impl Iterator<Item = &str> {
    let mut last = "";
    metrics.counters.iter().filter(|&(_, &count)| count > 0).filter_map(move |(name, _)| {
        let (method, _) = name.strip_prefix(REQUESTS)?.split_once('"')?;
        // The counters of a method stand side by side.
        let new = method != std::mem::replace(&mut last, method);
        new.then_some(method)
    })
}

fn outcomes(metrics: &MetricsReading, method: &str) -> Outcomes<u64> {
    let of = |outcome: &str| {
        let name = format!("{REQUESTS}{method}\",outcome=\"{outcome}\"}}");
        metrics.counters.get(&name).copied().unwrap_or(0)
    };
    Outcomes { ok: of("ok"), busy: of("busy"), deadline: of("deadline"), error: of("error") }
}

fn method(
    name: &str,
    interval: Option<(&MetricsReading, f64)>,
    now: &MetricsReading,
) -> MethodView {
    let requests = outcomes(now, name);
    let per_s = interval.map(|(before, seconds)| {
        let before = outcomes(before, name);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        Outcomes {
            ok: rate(requests.ok, before.ok),
            busy: rate(requests.busy, before.busy),
            deadline: rate(requests.deadline, before.deadline),
            error: rate(requests.error, before.error),
        }
    });
    let of = |histogram: &'static str, stage: Option<&str>| {
        let now = find(now, histogram, name, stage);
        let before = interval.map(|(before, _)| find(before, histogram, name, stage));
        let whole = now.and_then(|now| Percentiles::of(&now.buckets, now.sum_us));
        let part = now.zip(before).and_then(|(now, before)| since(now, before));
        (part, whole)
    };
    let (interval, since_start) = of(REQUEST, None);
    let stages = now.histograms.iter().filter(|one| is_of(one, STAGE, name));
    let stages = stages.filter_map(|one| one.labels.get("stage")).map(|stage| {
        let (interval, since_start) = of(STAGE, Some(stage));
        StageView { stage: stage.clone(), interval, since_start }
    });
    let stages = stages.collect();
    MethodView { method: name.to_owned(), per_s, requests, interval, since_start, stages }
}

fn is_of(histogram: &HistogramOut, name: &str, method: &str) -> bool {
    histogram.name == name && histogram.labels.get("method").is_some_and(|label| label == method)
}

fn find<'a>(
    metrics: &'a MetricsReading,
    name: &str,
    method: &str,
    stage: Option<&str>,
) -> Option<&'a HistogramOut> {
    metrics.histograms.iter().find(|one| {
        is_of(one, name, method) && one.labels.get("stage").map(String::as_str) == stage
    })
}

/// Percentiles of what came after an earlier reading.
fn since(now: &HistogramOut, before: Option<&HistogramOut>) -> Option<Percentiles> {
    let then = |edge: Option<f64>| {
        let buckets = before.map_or(&[][..], |before| &before.buckets);
        buckets.iter().find(|bucket| bucket.0 == edge).map_or(0, |bucket| bucket.1)
    };
    let grown = now.buckets.iter().map(|&(edge, count)| (edge, count.saturating_sub(then(edge))));
    let grown: Vec<Bucket> = grown.filter(|bucket| bucket.1 > 0).collect();
    let sum_us = now.sum_us.saturating_sub(before.map_or(0, |before| before.sum_us));
    Percentiles::of(&grown, sum_us)
}

impl Percentiles {
    /// Of buckets in rising order; `None` where they are empty.
    pub fn of(buckets: &[Bucket], sum_us: u64) -> Option<Self> {
        let count: u64 = buckets.iter().map(|bucket| bucket.1).sum();
        let quantile = |q: f64| {
            let rank = ((q * count as f64).ceil() as u64).clamp(1, count);
            let mut seen = 0;
            let holds = |bucket: &&Bucket| {
                seen += bucket.1;
                seen >= rank
            };
            buckets.iter().find(holds).and_then(|bucket| bucket.0)
        };
        (count > 0).then(|| Percentiles {
            count,
            mean_us: sum_us as f64 / count as f64,
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            max_us: quantile(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::service::metrics::Histogram;
    use proptest::prelude::*;
    use serde_json::json;
    use std::time::Duration;

    proptest! {
        /// Against the sorted durations themselves: never below the true quantile, and no more than a tenth above.
        #[test]
        fn quantiles_are_within_a_bucket_of_the_true_ones(
            mut spans in prop::collection::vec(1_000_u64..90_000_000_000, 1..400),
        ) {
            let histogram = Histogram::default();
            spans.iter().for_each(|&ns| histogram.record(Duration::from_nanos(ns)));
            spans.sort_unstable();
            let reading = histogram.read();
            let buckets: Vec<Bucket> = reading.filled().collect();
            let found = Percentiles::of(&buckets, reading.sum_ns() / 1_000).unwrap();
            prop_assert_eq!(found.count, spans.len() as u64);
            for (q, found) in
                [(0.5, found.p50_us), (0.9, found.p90_us), (0.99, found.p99_us), (1.0, found.max_us)]
            {
                let rank = ((q * spans.len() as f64).ceil() as usize).max(1);
                let exact_us = spans[rank - 1] as f64 / 1e3;
                let found = found.unwrap();
                prop_assert!(found >= exact_us && found <= exact_us * 1.1 + 1e-6, "{q}: {found} for {exact_us}");
            }
        }
    }

    fn reading(uptime: f64, ok: u64, busy: u64, us: &[u64]) -> Sample {
        let histogram = Histogram::default();
        us.iter().for_each(|&us| histogram.record(Duration::from_micros(us)));
        let read = histogram.read();
        let out = |name: &str, stage: Option<&str>| HistogramOut {
            name: name.into(),
            labels: [("method", Some("memory.search")), ("stage", stage)]
                .into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
                .collect(),
            count: read.count(),
            sum_us: read.sum_ns() / 1_000,
            buckets: read.filled().collect(),
        };
        let requests = |method: &str, outcome: &str| {
            format!("flashbulb_requests_total{{method=\"{method}\",outcome=\"{outcome}\"}}")
        };
        Sample {
            status: json!({ "version": "1", "limits": {} }),
            metrics: MetricsReading {
                at_ms: 5,
                counters: [
                    (requests("admin.status", "ok"), 1),
                    (requests("memory.search", "busy"), busy),
                    (requests("memory.search", "ok"), ok),
                    (requests("space.drop", "ok"), 0),
                    ("flashbulb_memories_added_total".to_owned(), ok * 2),
                ]
                .into(),
                gauges: [("flashbulb_uptime_seconds".to_owned(), uptime)].into(),
                histograms: vec![out(REQUEST, None), out(STAGE, Some("embed"))],
            },
        }
    }

    #[test]
    fn an_interval_is_the_difference_of_two_readings() {
        let before = reading(10.0, 2, 0, &[1_000, 1_000]);
        let now = reading(12.0, 5, 4, &[1_000, 1_000, 2_000, 3_000, 3_000]);
        let view = View::between(Some(&before), &now);
        assert_eq!(view.interval_s, Some(2.0));
        assert_eq!(view.status, json!({ "version": "1" }));
        assert_eq!(view.per_s["flashbulb_memories_added_total"], 3.0);
        let names: Vec<&str> = view.methods.iter().map(|one| one.method.as_str()).collect();
        assert_eq!(names, ["memory.search", "admin.status"]);
        let search = &view.methods[0];
        let rates = search.per_s.unwrap();
        assert_eq!((rates.ok, rates.busy, rates.error), (1.5, 2.0, 0.0));
        let part = search.interval.clone().unwrap();
        assert_eq!((part.count, part.p50_us, part.max_us), (3, Some(3_000.0), Some(3_000.0)));
        assert!((part.mean_us - 8_000.0 / 3.0).abs() < 1e-9);
        let whole = search.since_start.clone().unwrap();
        assert_eq!((whole.count, whole.p50_us), (5, Some(2_000.0)));
        assert_eq!(search.stages[0].stage, "embed");
        assert_eq!(search.stages[0].interval, search.interval);
    }

    #[test]
    fn the_first_screen_has_no_interval_and_a_quiet_one_no_percentiles() {
        let now = reading(12.0, 1, 0, &[1_000]);
        let first = View::between(None, &now);
        assert_eq!((first.interval_s, first.methods[0].per_s), (None, None));
        assert!(first.methods[0].interval.is_none() && first.methods[0].since_start.is_some());
        let later = reading(13.0, 1, 0, &[1_000]);
        let quiet = View::between(Some(&now), &later);
        assert!(quiet.methods[0].interval.is_none());
        assert_eq!(quiet.methods[0].per_s.unwrap().ok, 0.0);
    }
}
