//! From single requests to the figures of a row, and its interval log.
//!
//! Invariant: every figure comes from the same samples; the interval histograms of a log add up to the row's. A row whose
//! generator was late is void.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

use super::mix::Method;
use super::offer::{Outcome, Sample};
use crate::Failure;
use crate::run::{Load, Miss};
use crate::stats::{Percentiles, histogram};

/// A row is void if the generator itself was later than this for more than 1 % of the requests.
pub const LAG_LIMIT_US: u64 = 1_000;
/// Length of an interval of a log.
const INTERVAL: Duration = Duration::from_secs(1);

fn of<'a>(
    samples: impl Iterator<Item = &'a Sample>,
    us: impl Fn(&Sample) -> u64,
) -> Result<Histogram<u64>, Failure> {
    let mut h = histogram()?;
    samples.for_each(|s| h.saturating_record(us(s)));
    Ok(h)
}

fn answered(samples: &[Sample], method: Method) -> impl Iterator<Item = &Sample> {
    samples.iter().filter(move |s| s.method == method && s.miss.is_none())
}

/// Response and service times of answered searches.
///
/// # Errors
/// Never with the bounds in use.
pub fn search_times(outcome: &Outcome) -> Result<(Histogram<u64>, Histogram<u64>), Failure> {
    let searches = || answered(&outcome.samples, Method::Search);
    Ok((of(searches(), |s| s.response_us)?, of(searches(), |s| s.service_us)?))
}

/// Why a row with these lags is void.
pub fn void(lag: &Histogram<u64>) -> Option<String> {
    let late = lag.value_at_quantile(0.99);
    (late > LAG_LIMIT_US).then(|| {
        let ms = late as f64 / 1000.0;
        format!("the generator itself was {ms:.2} ms late at p99, more than 1 ms")
    })
}

/// The figures of a row.
///
/// # Errors
/// Never with the bounds in use.
pub fn load(outcome: &Outcome, offered_per_s: f64, promise: Duration) -> Result<Load, Failure> {
    let samples = &outcome.samples;
    let lag = of(samples.iter(), |s| s.lag_us)?;
    let (response, service) = search_times(outcome)?;
    let searches = samples.iter().filter(|s| s.method == Method::Search).count() as u64;
    let mut misses = BTreeMap::new();
    for miss in samples.iter().filter_map(|s| s.miss) {
        *misses.entry(miss).or_insert(0) += 1;
    }
    let mut others = BTreeMap::new();
    for method in [Method::Add, Method::Import] {
        let sent = samples.iter().filter(|s| s.method == method).count() as u64;
        if sent > 0 {
            let h = of(answered(samples, method), |s| s.response_us)?;
            let missed = sent - h.len();
            others.insert(method.short().to_owned(), Percentiles::with_missed(&h, missed));
        }
    }
    let good = samples.iter().filter(|s| s.miss.is_none()).count();
    Ok(Load {
        offered_per_s,
        achieved_per_s: good as f64 / outcome.seconds,
        seconds: outcome.seconds,
        sent: samples.len() as u64,
        in_time: in_time(samples, promise),
        searches,
        misses,
        first_errors: outcome.first_errors.clone(),
        void: void(&lag),
        realtime: outcome.realtime,
        stolen: outcome.stolen,
        load_before: outcome.load_before,
        load_after: outcome.load_after,
        daemon_cpu: outcome.daemon_cpu,
        generator_cpu: outcome.generator_cpu,
        response: Percentiles::with_missed(&response, searches - response.len()),
        answered: Percentiles::of(&response),
        service: Percentiles::of(&service),
        lag: Percentiles::of(&lag),
        others,
        stages: outcome.stages.iter().map(|(n, h)| (n.clone(), Percentiles::of(h))).collect(),
    })
}

/// Searches answered within the promise; whatever was refused, failed or came later is not among them.
pub fn in_time(samples: &[Sample], promise: Duration) -> u64 {
    let limit = promise.as_micros() as u64;
    answered(samples, Method::Search).filter(|s| s.response_us <= limit).count() as u64
}

/// Writes the response times of answered searches, second by second of their scheduled moments, as an HDR interval log
/// (V2, deflate); misses stand in it as comments.
///
/// # Errors
/// If the file cannot be written.
pub fn write_log(outcome: &Outcome, path: &Path, title: &str) -> Result<(), Failure> {
    let mut out = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(&format!(
            "[response times of {title} in microseconds, from the scheduled moment]"
        ))
        .with_start_time(outcome.begun_at)
        .with_base_time(outcome.begun_at)
        .begin_log_with(&mut out, &mut serializer)?;
    for (second, samples) in seconds(&outcome.samples) {
        let h = of(answered(samples, Method::Search), |s| s.response_us)?;
        let at = INTERVAL * u32::try_from(second)?;
        log.write_histogram(&h, at, INTERVAL, None)
            .map_err(|e| format!("the interval log cannot be written: {e}"))?;
        let missed = samples.iter().filter(|s| s.miss.is_some()).count();
        if missed > 0 {
            log.write_comment(&format!("[{missed} missed in second {second}]"))?;
        }
    }
    std::fs::write(path, out).map_err(|e| format!("cannot write {}: {e}", path.display()).into())
}

/// The samples by second of their scheduled moments; those of one second stand together.
fn seconds(samples: &[Sample]) -> impl Iterator<Item = (u64, &[Sample])> {
    let second = |s: &Sample| s.due_us / INTERVAL.as_micros() as u64;
    samples
        .chunk_by(move |a, b| second(a) == second(b))
        .filter_map(move |chunk| Some((second(chunk.first()?), chunk)))
}

/// How many searches were missed, by kind, in one line; none if none was.
pub fn misses_line(misses: &BTreeMap<Miss, u64>) -> Option<String> {
    let parts: Vec<String> = misses.iter().map(|(m, n)| format!("{n} {}", m.name())).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::log;
    use crate::stats::Quantile;

    fn sample(due_ms: u64, response_us: u64, miss: Option<Miss>) -> Sample {
        Sample {
            due_us: due_ms * 1000,
            lag_us: 10,
            response_us,
            service_us: response_us,
            method: Method::Search,
            miss,
        }
    }

    fn outcome(samples: Vec<Sample>) -> Outcome {
        Outcome {
            samples,
            stages: BTreeMap::new(),
            hits: Vec::new(),
            first_errors: BTreeMap::new(),
            begun_at: std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            seconds: 10.0,
            realtime: true,
            stolen: None,
            load_before: None,
            load_after: None,
            daemon_cpu: None,
            generator_cpu: None,
        }
    }

    #[test]
    fn a_log_read_back_adds_up_to_the_row() {
        let samples: Vec<Sample> = (0..10_000)
            .map(|i| sample(i, 100 + i * 7 % 20_011, (i % 100 == 3).then_some(Miss::Refused)))
            .collect();
        let outcome = outcome(samples);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("row.hlog");
        write_log(&outcome, &path, "a test").unwrap();
        let intervals = log::read(&path).unwrap();
        assert_eq!(intervals.len(), 10);
        assert_eq!(intervals[3].at, Duration::from_secs(3));
        assert_eq!(intervals[3].response.len(), 990);
        let (whole, _) = search_times(&outcome).unwrap();
        assert_eq!(log::merged(&intervals).unwrap(), whole);
        assert!(std::fs::metadata(&path).unwrap().len() < 40_000);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("[10 missed in second 0]"), "{text:.300}");
    }

    #[test]
    fn only_a_quick_answer_is_in_time() {
        let samples = vec![
            sample(0, 9_000, None),
            sample(1, 10_000, None),
            sample(2, 10_001, None),
            sample(3, 50, Some(Miss::Refused)),
        ];
        let load = load(&outcome(samples), 50.0, Duration::from_millis(10)).unwrap();
        assert_eq!((load.in_time, load.searches, load.misses[&Miss::Refused]), (2, 4, 1));
        assert_eq!((load.response.samples, load.response.missed), (4, 1));
        assert_eq!((load.answered.samples, load.answered.p50), (3, Quantile::Hidden));
        assert_eq!(misses_line(&load.misses).unwrap(), "1 refused");
    }

    #[test]
    fn a_row_is_void_when_the_generator_was_late() {
        let mut samples: Vec<Sample> = (0..1000).map(|i| sample(i, 3_000, None)).collect();
        samples.iter_mut().take(9).for_each(|s| s.lag_us = 5_000);
        let made = load(&outcome(samples.clone()), 50.0, Duration::from_millis(10)).unwrap();
        assert_eq!(made.void, None);
        samples.iter_mut().take(11).for_each(|s| s.lag_us = 5_000);
        let made = load(&outcome(samples), 50.0, Duration::from_millis(10)).unwrap();
        assert!(made.void.unwrap().contains("5.00 ms late"));
    }
}
