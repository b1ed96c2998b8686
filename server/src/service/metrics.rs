//! What is measured since start: requests by method, outcome and stage, and what `admin.metrics` says of it.
//!
//! Invariant: whoever records takes no lock, allocates nothing and waits for nobody, whatever its priority; the table is
//! made whole at start. Nothing here can tell one space from another, nor hold any text. It must not know the wire.

mod exposition;
mod histogram;

pub use exposition::{CONTENT_TYPE, Exposition, Family, Labels, Series};
pub use histogram::{Histogram, Reading};

use crate::rpc::{ErrorCode, RpcError};
use crate::service::Service;
use crate::service::background::{BackgroundStatus, JobStatus};
use crate::service::clock::{Stage, Stages};
use crate::service::lanes::InteractiveStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has a result.
    Ok,
    /// It was turned away, to be tried again.
    Busy,
    /// Its deadline passed.
    Deadline,
    /// Any other error.
    Error,
}

impl Outcome {
    const ALL: [(Outcome, &str); 4] = [
        (Outcome::Ok, "ok"),
        (Outcome::Busy, "busy"),
        (Outcome::Deadline, "deadline"),
        (Outcome::Error, "error"),
    ];

    /// Of a handler's answer.
    #[must_use]
    pub fn of(answer: &Result<(), RpcError>) -> Self {
        match answer {
            Ok(()) => Outcome::Ok,
            Err(error) if error.is(ErrorCode::Busy) => Outcome::Busy,
            Err(error) if error.is(ErrorCode::DeadlineExceeded) => Outcome::Deadline,
            Err(_) => Outcome::Error,
        }
    }
}

struct OfMethod {
    name: &'static str,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    took: Histogram,
    stages: [Histogram; Stage::COUNT],
}

/// A method's place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodNo(pub(super) usize);

/// The table, by method.
pub struct Metrics {
    methods: Box<[OfMethod]>,
}

impl Metrics {
    /// A table of zeros for these methods: 60 KiB each, written here so that no request meets a fresh page.
    #[must_use]
    pub fn new(names: impl Iterator<Item = &'static str>) -> Self {
        let methods = names.map(|name| OfMethod {
            name,
            outcomes: Default::default(),
            took: Histogram::default(),
            stages: Default::default(),
        });
        Self { methods: methods.collect() }
    }

    /// How many methods there are.
    #[must_use]
    pub fn methods(&self) -> usize {
        self.methods.len()
    }

    /// Where a method stands.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<MethodNo> {
        self.methods.iter().position(|method| method.name == name).map(MethodNo)
    }

    /// Counts a request whose answer is ready to be written. One that was turned away is counted and not timed: it takes
    /// microseconds, and the more are turned away the better would the percentiles look.
    pub fn record(&self, method: MethodNo, outcome: Outcome, took: Duration, stages: &Stages) {
        let method = &self.methods[method.0];
        method.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Busy {
            return;
        }
        method.took.record(took);
        for (stage, span) in stages.iter() {
            method.stages[stage as usize].record(span);
        }
    }

    /// Counts the writing of the answers to so many requests of a method.
    pub fn record_write(&self, method: MethodNo, span: Duration, times: u64) {
        self.methods[method.0].stages[Stage::Write as usize].record_many(span, times);
    }

    fn requests(&self) -> Family {
        let series = self.methods.iter().flat_map(|method| {
            Outcome::ALL.iter().map(|&(outcome, name)| {
                let count = method.outcomes[outcome as usize].load(Ordering::Relaxed);
                (vec![("method", method.name), ("outcome", name)], count)
            })
        });
        Family {
            name: "requests",
            help: "Requests by what became of them",
            series: Series::Counters(series.collect()),
        }
    }

    fn durations(&self) -> Family {
        let series =
            self.methods.iter().map(|method| (vec![("method", method.name)], &method.took));
        Family {
            name: "request_duration",
            help: "From the arrival of a request's last byte to its answer being ready; what was turned away is left out",
            series: Series::Seconds(recorded(series)),
        }
    }

    fn stages(&self) -> Family {
        let series = self.methods.iter().flat_map(|method| {
            Stage::ALL.iter().zip(&method.stages).map(|(stage, histogram)| {
                (vec![("method", method.name), ("stage", stage.name())], histogram)
            })
        });
        Family {
            name: "stage_duration",
            help: "Parts of a request's time; write is the answer's way into the socket, after its duration has ended",
            series: Series::Seconds(recorded(series)),
        }
    }
}

/// Readings of the histograms with something in them.
fn recorded<'a>(
    series: impl Iterator<Item = (Labels, &'a Histogram)>,
) -> Vec<(Labels, histogram::Reading)> {
    series
        .map(|(labels, histogram)| (labels, histogram.read()))
        .filter(|(_, reading)| reading.count() > 0)
        .collect()
}

/// Everything that `admin.metrics` says.
#[must_use]
pub fn collect(service: &Service) -> Exposition {
    let mut families =
        vec![service.metrics.requests(), service.metrics.durations(), service.metrics.stages()];
    let lane = service.interactive.status();
    families.extend(counters(service, &lane));
    families.extend(gauges(service, &lane));
    families.extend(jobs(&service.background.status()));
    Exposition(families)
}

fn counters(service: &Service, lane: &InteractiveStatus) -> Vec<Family> {
    let counted = service.counters.read();
    let one = |name, help, value| Family {
        name,
        help,
        series: Series::Counters(vec![(Labels::new(), value)]),
    };
    let by = |name, help, label, series: [(&'static str, u64); 2]| Family {
        name,
        help,
        series: Series::Counters(
            series.into_iter().map(|(word, value)| (vec![(label, word)], value)).collect(),
        ),
    };
    vec![
        by(
            "embedded_windows",
            "Windows of text embedded",
            "lane",
            [("interactive", counted.windows_interactive), ("bulk", counted.windows_bulk)],
        ),
        by(
            "cancelled",
            "Requests dropped before they were embedded",
            "why",
            [("deadline", counted.cancelled_deadline), ("gone", counted.cancelled_gone)],
        ),
        one(
            "refused",
            "Requests refused at once, because they could not be embedded in time",
            lane.refused,
        ),
        one("query_cache_hits", "Queries whose vector was kept", counted.queries_cached),
        one("query_cache_misses", "Queries that were embedded", counted.queries_not_cached),
        one("memories_added", "Memories added or replaced", counted.memories_added),
        one("texts_reused", "Texts whose vectors were there already", counted.texts_reused),
        one("embed_failures", "Attempts at embedding that failed", counted.embed_failures),
        one("upkeep_failures", "Rounds of upkeep that failed", counted.upkeep_failures),
        one("panics", "Handlers and threads that panicked", counted.panics),
        one("connections_accepted", "Connections accepted", counted.connections),
        one("connections_refused", "Connections turned away", counted.connections_refused),
    ]
}

fn gauges(service: &Service, lane: &InteractiveStatus) -> Vec<Family> {
    let gauge = |name, help, value: f64| Family {
        name,
        help,
        series: Series::Gauges(vec![(Labels::new(), value)]),
    };
    let count = |name, help, value: usize| gauge(name, help, value as f64);
    let bulk = service.bulk.status();
    vec![
        gauge(
            "uptime_seconds",
            "Since the service started",
            service.started.elapsed().as_secs_f64(),
        ),
        count("connections", "Connections open", service.connections.taken()),
        count("requests_in_flight", "Requests being worked on", service.in_flight.taken()),
        count("pending_memories", "Memories without vectors, about", bulk.pending),
        count(
            "scrub_damaged_blocks",
            "Sealed blocks that do not match their checksums",
            service.store.scrub_status().damaged.len(),
        ),
        gauge(
            "graph_vectors_linked_by_survey",
            "Vectors that no way through a graph led to when it was surveyed last, and that were linked then",
            service.store.graph_linked_by_survey() as f64,
        ),
        count("failed_memories", "Memories that could not be embedded", bulk.failed),
        count("bulk_queued", "Texts handed to the bulk lane's workers", bulk.queued),
        count("interactive_sessions", "Embedding sessions for queries", lane.sessions),
        count("interactive_sessions_free", "Those not in use", lane.free),
        count("interactive_waiting", "Requests that wait for one", lane.waiting),
        gauge(
            "interactive_standing_wait_seconds",
            "How long the next request would wait for one",
            lane.standing_wait_us as f64 / 1e6,
        ),
        count("queries_kept", "Queries whose vectors are kept", service.queries.kept()),
    ]
}

/// The background work, by job.
fn jobs(status: &BackgroundStatus) -> Vec<Family> {
    let labels = |job: &JobStatus| vec![("job", job.name)];
    let gauge = |name, help, value: fn(&JobStatus) -> f64| Family {
        name,
        help,
        series: Series::Gauges(status.jobs.iter().map(|job| (labels(job), value(job))).collect()),
    };
    vec![
        Family {
            name: "background_job_quanta",
            help: "Stretches of background work between which queries could go first",
            series: Series::Counters(
                status.jobs.iter().map(|job| (labels(job), job.quanta)).collect(),
            ),
        },
        gauge("background_job_busy_seconds", "All of them together, since start", |job| {
            job.total_ms as f64 / 1e3
        }),
        gauge("background_job_longest_quantum_seconds", "The longest of them", |job| {
            job.longest_quantum_us as f64 / 1e6
        }),
        gauge("background_job_due", "Whether the job has more to do", |job| {
            f64::from(u8::from(job.due))
        }),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn table() -> (Metrics, MethodNo) {
        let metrics = Metrics::new(["a.one", "a.two"].into_iter());
        let two = metrics.number("a.two").unwrap();
        (metrics, two)
    }

    #[test]
    fn requests_are_counted_by_method_outcome_and_stage() {
        let (metrics, two) = table();
        let mut stages = Stages::default();
        stages.add(Stage::Embed, 2 * MS);
        metrics.record(two, Outcome::Ok, 3 * MS, &stages);
        metrics.record(two, Outcome::Deadline, 9 * MS, &Stages::default());
        metrics.record_write(two, MS, 2);
        let exposition =
            Exposition(vec![metrics.requests(), metrics.durations(), metrics.stages()]);
        let reading = exposition.reading(0);
        let count = |outcome| {
            reading.counters
                [&format!(r#"flashbulb_requests_total{{method="a.two",outcome="{outcome}"}}"#)]
        };
        assert_eq!([count("ok"), count("busy"), count("deadline"), count("error")], [1, 0, 1, 0]);
        let found: Vec<(&str, Option<&str>, u64)> = reading
            .histograms
            .iter()
            .map(|one| {
                (
                    one.labels["method"].as_str(),
                    one.labels.get("stage").map(String::as_str),
                    one.count,
                )
            })
            .collect();
        assert_eq!(
            found,
            [("a.two", None, 2), ("a.two", Some("embed"), 1), ("a.two", Some("write"), 2)]
        );
    }

    #[test]
    fn background_jobs_are_told_apart() {
        let job = |name, quanta, due| JobStatus {
            name,
            quanta,
            total_ms: 1_500,
            longest_quantum_us: 4_000,
            due,
        };
        let status = BackgroundStatus {
            priority: "SCHED_IDLE".to_owned(),
            running: None,
            jobs: vec![job("seal", 2, false), job("graph", 7, true)],
        };
        let reading = Exposition(jobs(&status)).reading(0);
        let of = |name: &str| format!("flashbulb_background_job_{name}{{job=\"graph\"}}");
        assert_eq!(reading.counters[&of("quanta_total")], 7);
        let gauges = ["busy_seconds", "longest_quantum_seconds", "due"];
        assert_eq!(gauges.map(|name| reading.gauges[&of(name)]), [1.5, 0.004, 1.0]);
        assert_eq!(reading.gauges[r#"flashbulb_background_job_due{job="seal"}"#], 0.0);
    }

    #[test]
    fn what_was_turned_away_is_counted_and_not_timed() {
        let (metrics, two) = table();
        let busy = Outcome::of(&Err(RpcError::busy("x", 1, 1)));
        metrics.record(two, busy, MS, &Stages::default());
        let Series::Seconds(timed) = metrics.durations().series else { panic!("seconds") };
        assert!(timed.is_empty());
        let Series::Counters(counted) = metrics.requests().series else { panic!("counters") };
        let busy: u64 =
            counted.iter().filter(|(labels, _)| labels[1].1 == "busy").map(|(_, n)| n).sum();
        assert_eq!(busy, 1);
    }
}
