//! Open-loop load: requests leave when they are due, not when the last answer came.
//!
//! Invariant: latency counts from the scheduled moment, so a stalled server cannot hide the requests that waited for it
//! (coordinated omission; Tene, "How NOT to Measure Latency"). What was refused, failed or took too long is a miss of its
//! kind, never dropped.
//! The generator shares the processors with what it measures: its threads, which hardly compute, take real-time priority
//! where the machine permits, so that they are not late because the service is at work; where the service answers on the
//! generator's own threads, they give it up for the answer. What remains of their lag is the machine's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use serde::Deserialize;
use thread_priority::{
    NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id, thread_schedule_policy,
};

use super::mix::{Method, Request};
use crate::Failure;
use crate::caller::{Caller, Failed, Target};
use crate::data::poisson_gaps;
use crate::machine::{self, ProcessTime, ProcessorTime};
use crate::run::{Boundary, Miss};
use crate::stats::histogram;

/// A load to offer.
pub struct Load<'a> {
    pub target: &'a Target,
    /// The daemon's process.
    pub pid: Option<u32>,
    pub requests: &'a [Request],
    pub rate: f64,
    pub seconds: f64,
    /// Requests at most, whatever the seconds.
    pub most: usize,
    pub seed: u64,
    pub connections: usize,
    /// A request without an answer so long after its scheduled moment is a miss.
    pub timeout: Duration,
}

/// One request; microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Scheduled, from the begin of the load.
    pub due_us: u64,
    pub lag_us: u64,
    pub response_us: u64,
    pub service_us: u64,
    pub method: Method,
    pub miss: Option<Miss>,
}

/// What came of it.
pub struct Outcome {
    /// In the order of their moments.
    pub samples: Vec<Sample>,
    /// What the answers to searches say of their stages; microseconds.
    pub stages: BTreeMap<String, Histogram<u64>>,
    /// The `seq`s of the hits of each answered search, by the request's place.
    pub hits: Vec<(usize, Vec<u64>)>,
    /// The first message of each kind of miss.
    pub first_errors: BTreeMap<Miss, String>,
    pub begun_at: SystemTime,
    /// Until the last answer.
    pub seconds: f64,
    /// Whether every thread of the generator had real-time priority.
    pub realtime: bool,
    pub stolen: Option<f64>,
    pub load_before: Option<f64>,
    pub load_after: Option<f64>,
    pub daemon_cpu: Option<f64>,
    pub generator_cpu: Option<f64>,
}

/// The part of an answer to a search that is looked at.
#[derive(Deserialize)]
struct Found {
    hits: Vec<Hit>,
    #[serde(default)]
    took_us: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Hit {
    seq: u64,
}

/// How many requests `rate` a second for `seconds` take; a Poisson process has a spread.
pub fn requests_for(rate: f64, seconds: f64) -> usize {
    let mean = rate * seconds;
    (mean + 6.0 * mean.sqrt()).ceil() as usize + 1
}

/// The moments at which requests are due, from the begin of the load.
fn schedule(rate: f64, seconds: f64, seed: u64) -> Vec<Duration> {
    let mut at = 0.0;
    let moments = poisson_gaps(rate, seed).map(|gap| {
        at += gap;
        at
    });
    moments.take_while(|at| *at <= seconds).map(Duration::from_secs_f64).collect()
}

/// Offers the load and waits for every answer.
///
/// # Errors
/// If there are fewer requests than moments: one asked again would be answered from the daemon's cache. What a single
/// request meets is counted instead.
pub fn offer(load: &Load<'_>) -> Result<Outcome, Failure> {
    let mut due = schedule(load.rate, load.seconds, load.seed);
    due.truncate(load.most);
    let (there, wanted) = (load.requests.len(), due.len());
    if there < wanted {
        return Err(format!("{there} requests for {wanted} moments; none is sent twice").into());
    }
    let next = AtomicUsize::new(0);
    let before = Readings::take(load.pid);
    let load_before = machine::load();
    let begun_at = SystemTime::now() + Duration::from_millis(50);
    let begun = Instant::now() + Duration::from_millis(50);
    let workers: Vec<Result<Outcome, Failure>> = std::thread::scope(|scope| {
        let one = || Worker::new(load, &due, begun, begun_at)?.run(&next);
        let handles: Vec<_> = (0..load.connections).map(|_| scope.spawn(one)).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|_| Err("a load thread panicked".into())))
            .collect()
    });
    let mut total = Outcome::new(begun_at);
    for outcome in workers {
        total.merge(outcome?)?;
    }
    total.samples.sort_unstable_by_key(|s| s.due_us);
    total.hits.sort_unstable_by_key(|(request, _)| *request);
    total.seconds = begun.elapsed().as_secs_f64();
    let after = Readings::take(load.pid);
    total.stolen = before.machine.zip(after.machine).and_then(|(a, b)| b.stolen_since(&a));
    let share = |a: Option<ProcessTime>, b: Option<ProcessTime>| b?.share_since(&a?);
    total.daemon_cpu = share(before.daemon, after.daemon);
    total.generator_cpu = share(before.generator, after.generator);
    total.load_before = load_before;
    total.load_after = machine::load();
    Ok(total)
}

struct Readings {
    machine: Option<ProcessorTime>,
    daemon: Option<ProcessTime>,
    generator: Option<ProcessTime>,
}

impl Readings {
    fn take(pid: Option<u32>) -> Readings {
        Readings {
            machine: ProcessorTime::read(),
            daemon: pid.and_then(ProcessTime::read),
            generator: ProcessTime::read(std::process::id()),
        }
    }
}

impl Outcome {
    fn new(begun_at: SystemTime) -> Outcome {
        Outcome {
            samples: Vec::new(),
            stages: BTreeMap::new(),
            hits: Vec::new(),
            first_errors: BTreeMap::new(),
            begun_at,
            seconds: 0.0,
            realtime: true,
            stolen: None,
            load_before: None,
            load_after: None,
            daemon_cpu: None,
            generator_cpu: None,
        }
    }

    fn merge(&mut self, other: Outcome) -> Result<(), Failure> {
        self.samples.extend(other.samples);
        self.hits.extend(other.hits);
        self.realtime &= other.realtime;
        for (stage, h) in other.stages {
            match self.stages.get_mut(&stage) {
                Some(all) => all.add(&h)?,
                None => drop(self.stages.insert(stage, h)),
            }
        }
        for (miss, message) in other.first_errors {
            self.first_errors.entry(miss).or_insert(message);
        }
        Ok(())
    }
}

/// Takes the lowest real-time priority, above everything ordinary, and says whether the system gave it.
fn take_realtime_priority() -> bool {
    let fifo = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, fifo).is_ok()
        && thread_schedule_policy() == Ok(fifo)
}

/// Goes back to ordinary priority, neither nice nor the opposite.
fn take_ordinary_priority() -> bool {
    let other = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, other).is_ok()
        && rustix::process::setpriority_process(None, 0).is_ok()
}

/// Takes the next due request, waits for its moment, sends it, and reads the answer; again until none is left.
struct Worker<'a> {
    load: &'a Load<'a>,
    due: &'a [Duration],
    begun: Instant,
    caller: Option<Caller>,
    outcome: Outcome,
    /// The service answers on this thread, which must not have real-time priority then.
    answers: bool,
}

impl<'a> Worker<'a> {
    fn new(
        load: &'a Load<'a>,
        due: &'a [Duration],
        begun: Instant,
        begun_at: SystemTime,
    ) -> Result<Worker<'a>, Failure> {
        let mut outcome = Outcome::new(begun_at);
        outcome.realtime = take_realtime_priority();
        outcome.samples.reserve(due.len());
        let caller = Some(load.target.connect()?);
        let answers = load.target.boundary() == Boundary::InProcess;
        Ok(Worker { load, due, begun, caller, outcome, answers })
    }

    fn run(mut self, next: &AtomicUsize) -> Result<Outcome, Failure> {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(due) = self.due.get(i) else { return Ok(self.outcome) };
            self.one(i, *due);
        }
    }

    fn one(&mut self, i: usize, due: Duration) {
        let request = &self.load.requests[i];
        let scheduled = self.begun + due;
        let asked = Instant::now();
        std::thread::sleep(scheduled.saturating_duration_since(asked));
        let woken = Instant::now();
        if self.answers && self.outcome.realtime {
            self.outcome.realtime = take_ordinary_priority();
        }
        let sent = Instant::now();
        let answer = self.call(request, scheduled + self.load.timeout);
        let done = Instant::now();
        if self.answers && self.outcome.realtime {
            self.outcome.realtime = take_realtime_priority();
        }
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX).max(1);
        let miss = match answer {
            Ok(raw) if request.method == Method::Search => self.found(i, &raw),
            Ok(_) => None,
            Err(failed) => Some(self.failed(failed)),
        };
        self.outcome.samples.push(Sample {
            due_us: us(due),
            // Late because this thread woke late, not because it was still busy with the last request.
            lag_us: us(woken.saturating_duration_since(scheduled.max(asked))),
            response_us: us(done - scheduled),
            service_us: us(done - sent),
            method: request.method,
            miss,
        });
    }

    fn call(
        &mut self,
        request: &Request,
        until: Instant,
    ) -> Result<Box<serde_json::value::RawValue>, Failed> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = "no connection was free in time".to_owned();
            return Err(Failed { miss: Miss::Timeout, message });
        }
        if self.caller.is_none() {
            self.caller = Some(self.load.target.connect()?);
        }
        let Some(caller) = self.caller.as_mut() else {
            return Err(Failed { miss: Miss::Connection, message: "no connection".to_owned() });
        };
        let answer = caller.call_raw(request.method.name(), &request.params, left)?;
        // Only a socket can tell by itself that the time is over.
        if Instant::now() > until {
            let message = "answered too late".to_owned();
            return Err(Failed { miss: Miss::Timeout, message });
        }
        Ok(answer)
    }

    /// Reads what a search found; a miss if that is nothing.
    fn found(&mut self, i: usize, raw: &serde_json::value::RawValue) -> Option<Miss> {
        let found: Found = match serde_json::from_str(raw.get()) {
            Ok(found) => found,
            Err(e) => {
                let message = format!("the answer to a search: {e}");
                return Some(self.failed(Failed { miss: Miss::Error, message }));
            }
        };
        if found.hits.is_empty() {
            let message = "a search found nothing".to_owned();
            return Some(self.failed(Failed { miss: Miss::Empty, message }));
        }
        for (stage, us) in found.took_us {
            // The histogram's bounds are fixed and valid.
            let h = match self.outcome.stages.entry(stage) {
                std::collections::btree_map::Entry::Occupied(h) => h.into_mut(),
                std::collections::btree_map::Entry::Vacant(at) => match histogram() {
                    Ok(h) => at.insert(h),
                    Err(_) => continue,
                },
            };
            // Some stages take no time at all; the histogram begins at one.
            h.saturating_record(us.max(1));
        }
        self.outcome.hits.push((i, found.hits.iter().map(|h| h.seq).collect()));
        None
    }

    fn failed(&mut self, failed: Failed) -> Miss {
        // A late answer may still come on this connection, or none ever.
        if matches!(failed.miss, Miss::Connection | Miss::Timeout) {
            self.caller = None;
        }
        self.outcome.first_errors.entry(failed.miss).or_insert(failed.message);
        failed.miss
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::load::outcome;
    use serde_json::{Value, json};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    /// A server that answers each line with what `answer` makes of its place in line.
    fn server(dir: &Path, answer: impl Fn(usize) -> Value + Send + Sync + 'static) -> PathBuf {
        let socket = dir.join("s.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = std::sync::Arc::new((answer, AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let answer = std::sync::Arc::clone(&answer);
                std::thread::spawn(move || {
                    let mut out = stream.try_clone().unwrap();
                    for line in BufReader::new(stream).lines() {
                        let Ok(line) = line else { return };
                        let id = serde_json::from_str::<Value>(&line).unwrap()["id"].clone();
                        let mut said = (answer.0)(answer.1.fetch_add(1, Ordering::Relaxed));
                        said["jsonrpc"] = "2.0".into();
                        said["id"] = id;
                        if writeln!(out, "{said}").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        socket
    }

    fn offer_to(socket: PathBuf, rate: f64, seconds: f64, timeout: Duration) -> Outcome {
        let one = Request { method: Method::Search, params: json!({"query": "q"}) };
        let requests = vec![one; requests_for(rate, seconds)];
        let target = Target::Socket(socket);
        let load = Load {
            target: &target,
            pid: None,
            requests: &requests,
            rate,
            seconds,
            most: usize::MAX,
            seed: 1,
            connections: 8,
            timeout,
        };
        offer(&load).unwrap()
    }

    /// A server that stalls once: the requests due meanwhile must show it, though each is served fast afterwards.
    #[test]
    fn a_stall_is_seen_by_all_that_were_due() {
        let dir = tempfile::tempdir().unwrap();
        let stalled_until = Instant::now() + Duration::from_millis(1000);
        let socket = server(dir.path(), move |_| {
            std::thread::sleep(stalled_until.saturating_duration_since(Instant::now()));
            json!({"result": {"hits": [{"seq": 1}]}})
        });
        let outcome = offer_to(socket, 200.0, 2.0, Duration::from_secs(5));
        assert!(outcome.samples.iter().all(|s| s.miss.is_none()));
        let (response, service) = outcome::search_times(&outcome).unwrap();
        // Half of the requests were due during the stall and waited half of it on average.
        assert!(response.value_at_quantile(0.75) > 100_000, "response hides the stall");
        assert!(service.value_at_quantile(0.3) < 50_000, "the service was quick afterwards");
        assert_eq!(outcome.hits.len(), outcome.samples.len());
    }

    #[test]
    fn each_kind_of_miss_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let socket = server(dir.path(), |i| match i % 5 {
            0 => json!({"error": {"code": 1006, "message": "busy"}}),
            1 => json!({"error": {"code": 1007, "message": "late"}}),
            2 => json!({"error": {"code": 1010, "message": "corrupt"}}),
            3 => json!({"result": {"hits": []}}),
            _ => json!({"result": {"hits": [{"seq": 3}], "took_us": {"embed": 7, "total": 9}}}),
        });
        let outcome = offer_to(socket, 500.0, 1.0, Duration::from_secs(5));
        let count = |miss| outcome.samples.iter().filter(|s| s.miss == Some(miss)).count();
        let fifth = outcome.samples.len() / 5;
        for miss in [Miss::Refused, Miss::Deadline, Miss::Error, Miss::Empty] {
            assert!(count(miss).abs_diff(fifth) <= 1, "{miss:?}: {}", count(miss));
        }
        assert_eq!(outcome.first_errors[&Miss::Error], "corrupt");
        assert_eq!(outcome.stages["embed"].len(), outcome.hits.len() as u64);
        assert_eq!(outcome.stages["total"].max(), 9);
    }

    #[test]
    fn what_takes_longer_than_the_timeout_is_a_miss_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = server(dir.path(), |_| {
            std::thread::sleep(Duration::from_millis(400));
            json!({"result": {"hits": [{"seq": 1}]}})
        });
        let begun = Instant::now();
        let outcome = offer_to(socket, 100.0, 1.0, Duration::from_millis(50));
        assert!(outcome.samples.iter().all(|s| s.miss == Some(Miss::Timeout)));
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
}
