//! Open-loop load: requests leave when they are due, not when the last answer came.
//!
//! Invariant: latency counts from the scheduled moment, so a stalled server cannot hide the requests that waited for it
//! (coordinated omission; Tene, "How NOT to Measure Latency"). Errors and timeouts count as misses, never dropped.
//! The generator shares the processors with what it measures: its threads, which hardly compute, take real-time priority
//! where the machine permits, so that they are not late because the service is at work. What remains of their lag is the
//! machine's.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flashbulb::client::Client;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id, thread_schedule_policy,
};

use crate::Failure;
use crate::data::poisson_gaps;
use crate::machine::ProcessorTime;

/// Connections that share the load; enough that a due request rarely finds none free.
const CONNECTIONS: usize = 8;
/// A request without an answer for so long is a miss.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A run is void if the generator itself was later than this for more than 1 % of the requests.
const LAG_LIMIT_US: u64 = 1_000;

/// Seconds of load that are not counted: the first requests of a connection and of a graph are another matter.
const WARM_UP_SECONDS: f64 = 2.0;

/// How many queries `rate` a second for `seconds` take, warm-up included; a Poisson process has a spread.
pub fn queries_for(rate: f64, seconds: f64) -> usize {
    let mean = rate * (seconds + WARM_UP_SECONDS);
    (mean + 6.0 * mean.sqrt()).ceil() as usize + 1
}

/// Offers the load after some that is not counted.
///
/// # Errors
/// As [`offer`].
pub fn offer_warm(load: &Load<'_>) -> Result<Outcome, Failure> {
    let warm_up = queries_for(load.rate, 0.0).min(load.queries.len());
    let (first, rest) = load.queries.split_at(warm_up);
    offer(&Load { queries: first, seconds: WARM_UP_SECONDS, ..*load })?;
    offer(&Load { queries: rest, ..*load })
}

/// A load to offer.
pub struct Load<'a> {
    pub socket: &'a Path,
    pub space: &'a str,
    pub queries: &'a [String],
    pub rate: f64,
    pub seconds: f64,
    pub seed: u64,
}

/// What came of it; microseconds.
pub struct Outcome {
    pub sent: usize,
    pub misses: usize,
    pub response: Histogram<u64>,
    pub service: Histogram<u64>,
    pub lag: Histogram<u64>,
    pub embed: Histogram<u64>,
    pub dense: Histogram<u64>,
    pub seconds: f64,
    /// Whether every thread of the generator had real-time priority.
    pub realtime: bool,
    /// The share of processor time that other guests of the host took meanwhile, as the kernel counts it.
    pub stolen: Option<f64>,
}

/// An [`Outcome`] for a report; microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub offered_per_s: f64,
    pub achieved_per_s: f64,
    pub sent: usize,
    pub misses: usize,
    pub void: bool,
    pub realtime: bool,
    pub stolen: Option<f64>,
    pub response: Percentiles,
    pub service: Percentiles,
    pub lag: Percentiles,
    pub embed: Percentiles,
    pub dense: Percentiles,
}

/// Percentiles in microseconds; those with fewer than ten samples beyond them are absent.
#[derive(Debug, Clone, Serialize)]
pub struct Percentiles {
    pub samples: u64,
    pub p50: Option<u64>,
    pub p90: Option<u64>,
    pub p99: Option<u64>,
    pub p999: Option<u64>,
    pub max: u64,
}

impl Percentiles {
    /// Reads them off a histogram.
    pub fn of(h: &Histogram<u64>) -> Percentiles {
        let at = |q: f64| {
            let enough = h.len() as f64 * (1.0 - q) >= 10.0;
            enough.then(|| h.value_at_quantile(q))
        };
        Percentiles {
            samples: h.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: h.max(),
        }
    }
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

impl Outcome {
    fn new() -> Result<Outcome, Failure> {
        Ok(Outcome {
            sent: 0,
            misses: 0,
            response: histogram()?,
            service: histogram()?,
            lag: histogram()?,
            embed: histogram()?,
            dense: histogram()?,
            seconds: 0.0,
            realtime: true,
            stolen: None,
        })
    }

    fn merge(&mut self, other: &Outcome) -> Result<(), Failure> {
        self.sent += other.sent;
        self.misses += other.misses;
        self.realtime &= other.realtime;
        self.response.add(&other.response)?;
        self.service.add(&other.service)?;
        self.lag.add(&other.lag)?;
        self.embed.add(&other.embed)?;
        self.dense.add(&other.dense)?;
        Ok(())
    }

    /// The figures of a report.
    pub fn summary(&self, rate: f64) -> Summary {
        let late = self.lag.value_at_quantile(0.99) > LAG_LIMIT_US;
        Summary {
            offered_per_s: rate,
            achieved_per_s: (self.sent - self.misses) as f64 / self.seconds,
            sent: self.sent,
            misses: self.misses,
            void: late,
            realtime: self.realtime,
            stolen: self.stolen,
            response: Percentiles::of(&self.response),
            service: Percentiles::of(&self.service),
            lag: Percentiles::of(&self.lag),
            embed: Percentiles::of(&self.embed),
            dense: Percentiles::of(&self.dense),
        }
    }
}

/// Offers the load and waits for every answer.
///
/// # Errors
/// If no connection can be made, or there are fewer queries than requests: one asked again would be answered from the
/// daemon's cache. What a single request meets is counted instead.
pub fn offer(load: &Load<'_>) -> Result<Outcome, Failure> {
    let mut due = Vec::new();
    let mut at = 0.0;
    for gap in poisson_gaps(load.rate, load.seed) {
        at += gap;
        if at > load.seconds {
            break;
        }
        due.push(Duration::from_secs_f64(at));
    }
    let (queries, requests) = (load.queries.len(), due.len());
    if queries < requests {
        return Err(
            format!("{queries} queries for {requests} requests; none is asked twice").into()
        );
    }
    let next = AtomicUsize::new(0);
    let begun = Instant::now() + Duration::from_millis(50);
    let mut total = Outcome::new()?;
    let before = ProcessorTime::read();
    let workers: Vec<Result<Outcome, Failure>> = std::thread::scope(|scope| {
        let handles: Vec<_> =
            (0..CONNECTIONS).map(|_| scope.spawn(|| worker(load, &due, &next, begun))).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|_| Err("a load thread panicked".into())))
            .collect()
    });
    for outcome in workers {
        total.merge(&outcome?)?;
    }
    total.seconds = begun.elapsed().as_secs_f64();
    total.stolen = before.zip(ProcessorTime::read()).and_then(|(a, b)| b.stolen_since(&a));
    Ok(total)
}

/// Takes the lowest real-time priority, above everything ordinary, and says whether the system gave it.
fn take_realtime_priority() -> bool {
    let fifo = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, fifo).is_ok()
        && thread_schedule_policy() == Ok(fifo)
}

/// Takes the next due request, waits for its moment, sends it, and reads the answer; again until none is left.
fn worker(
    load: &Load<'_>,
    due: &[Duration],
    next: &AtomicUsize,
    begun: Instant,
) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::new()?;
    outcome.realtime = take_realtime_priority();
    let mut client = Client::connect(load.socket)?;
    loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        let Some(due) = due.get(i) else { return Ok(outcome) };
        let scheduled = begun + *due;
        let asked = Instant::now();
        std::thread::sleep(scheduled.saturating_duration_since(asked));
        let query = &load.queries[i];
        let params = json!({"space": load.space, "query": query, "k": 10, "mode": "dense"});
        let sent = Instant::now();
        // Late because this thread woke late, not because it was still busy with the last request.
        let lag = sent.saturating_duration_since(scheduled.max(asked));
        let answer = client.call::<Value>("memory.search", &params, TIMEOUT);
        let done = Instant::now();
        outcome.sent += 1;
        record(&mut outcome.lag, lag);
        record(&mut outcome.response, done - scheduled);
        record(&mut outcome.service, done - sent);
        match answer {
            Ok(found) if found["hits"].as_array().is_some_and(|h| !h.is_empty()) => {
                let us = |stage: &str| found["took_us"][stage].as_u64().unwrap_or(0);
                outcome.embed.saturating_record(us("embed").max(1));
                outcome.dense.saturating_record(us("dense").max(1));
            }
            Ok(_) => outcome.misses += 1,
            Err(_) => {
                outcome.misses += 1;
                client = Client::connect(load.socket)?;
            }
        }
    }
}

fn record(h: &mut Histogram<u64>, d: Duration) {
    h.saturating_record(u64::try_from(d.as_micros()).unwrap_or(u64::MAX).max(1));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        let mut h = histogram().unwrap();
        for us in 1..=999 {
            h.record(us).unwrap();
        }
        let p = Percentiles::of(&h);
        assert_eq!(p.p99, None);
        h.record(1000).unwrap();
        let p = Percentiles::of(&h);
        assert_eq!((p.p50, p.p99, p.p999), (Some(500), Some(990), None));
    }

    /// A server that stalls once: the requests due meanwhile must show it, though each is served fast afterwards.
    #[test]
    fn a_stall_is_seen_by_all_that_were_due() {
        use std::io::{BufRead, BufReader, Write};
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let stalled_until = Instant::now() + Duration::from_millis(1000);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut out = stream.try_clone().unwrap();
                    for line in BufReader::new(stream).lines() {
                        let Ok(line) = line else { return };
                        let id = serde_json::from_str::<Value>(&line).unwrap()["id"].clone();
                        std::thread::sleep(stalled_until.saturating_duration_since(Instant::now()));
                        let answer = json!({"jsonrpc": "2.0", "id": id, "result": {"hits": [1]}});
                        if writeln!(out, "{answer}").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let queries = vec!["q".to_owned(); 1000];
        let load = Load {
            socket: &socket,
            space: "s",
            queries: &queries,
            rate: 200.0,
            seconds: 2.0,
            seed: 1,
        };
        let outcome = offer(&load).unwrap();
        assert_eq!(outcome.misses, 0);
        // Half of the requests were due during the stall and waited half of it on average.
        let median = outcome.response.value_at_quantile(0.3);
        let fast = outcome.service.value_at_quantile(0.3);
        assert!(outcome.response.value_at_quantile(0.75) > 100_000, "response hides the stall");
        assert!(fast < 50_000 && median < 100_000, "service {fast} response {median}");
    }
}
