//! Load: queries that never repeat, clients that ask in closed loops, and what came of each request.
//!
//! Invariant: every request that is sent is accounted for; a client never gives up on an answer and never hides one.
//! What an answer should be is the tests' matter, except for the shape of a refusal, which is the same everywhere.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Conn, RpcError, clip};
use crate::daemon::Daemon;
use crate::data::Rng;

pub const BUSY: i64 = 1006;
pub const DEADLINE_EXCEEDED: i64 = 1007;

/// A hint to come back later than this is no hint.
const LONGEST_RETRY_MS: u64 = 60_000;

const WORDS: [&str; 48] = [
    "harbour",
    "invoice",
    "window",
    "ticket",
    "garden",
    "doctor",
    "yellow",
    "backup",
    "morning",
    "piano",
    "server",
    "bicycle",
    "recipe",
    "manager",
    "river",
    "holiday",
    "camera",
    "deploy",
    "sister",
    "engine",
    "library",
    "coffee",
    "report",
    "winter",
    "airport",
    "meeting",
    "kitchen",
    "password",
    "concert",
    "market",
    "lawyer",
    "budget",
    "forest",
    "printer",
    "teacher",
    "bridge",
    "charger",
    "painting",
    "neighbour",
    "allergy",
    "train",
    "contract",
    "island",
    "medicine",
    "database",
    "birthday",
    "visitor",
    "platform",
];

/// A text of `words` words and a number, which nobody wrote before.
pub fn text(rng: &mut Rng, words: usize) -> String {
    let mut text = format!("{}", rng.below(1_000_000_000));
    for _ in 0..words {
        text.push(' ');
        text.push_str(WORDS[rng.below(WORDS.len())]);
    }
    text
}

/// A search for such a text in `space`, for one hit.
pub fn search(space: &str, rng: &mut Rng, words: usize) -> Value {
    json!({"space": space, "query": text(rng, words), "k": 1})
}

/// What came of one request, and how long its client waited for it.
#[derive(Debug)]
pub struct Answered {
    pub waited: Duration,
    pub outcome: Result<Value, RpcError>,
}

impl Answered {
    pub fn is_busy(&self) -> bool {
        self.outcome.as_ref().is_err_and(|e| e.code == BUSY)
    }
}

/// Sends one request and waits for what comes.
#[track_caller]
pub fn ask(conn: &mut Conn, method: &str, params: &Value) -> Answered {
    let started = Instant::now();
    let outcome = conn.call(method, params);
    Answered { waited: started.elapsed(), outcome }
}

/// The hint of a refusal; fails the test unless this is a well-formed `Busy`.
#[track_caller]
pub fn retry_after(error: &RpcError) -> Duration {
    assert_eq!(error.code, BUSY, "expected Busy: {error:?}");
    assert!(error.data["what"].as_str().is_some_and(|w| !w.is_empty()), "what is busy: {error:?}");
    let hint = error.data["retry_after_ms"].as_u64();
    let Some(ms) = hint.filter(|ms| (1..=LONGEST_RETRY_MS).contains(ms)) else {
        panic!("retry_after_ms is a positive number of milliseconds: {error:?}");
    };
    Duration::from_millis(ms)
}

/// Repeats a request that is refused after the time that the refusal names; the result and the refusals before it.
#[track_caller]
pub fn patiently(conn: &mut Conn, method: &str, params: &Value, limit: Duration) -> (Value, u64) {
    let end = Instant::now() + limit;
    for refused in 0.. {
        let error = match conn.call(method, params) {
            Ok(result) => return (result, refused),
            Err(error) => error,
        };
        let wait = retry_after(&error);
        assert!(
            Instant::now() + wait < end,
            "{method} {} was refused {refused} times in {limit:?}",
            clip(&params.to_string())
        );
        thread::sleep(wait);
    }
    unreachable!("the limit ends the loop")
}

/// Clients that each ask in a closed loop, sleeping `pause` after a refusal.
pub struct Storm {
    pub clients: usize,
    pub lasts: Duration,
    pub pause: Duration,
    pub seed: u64,
}

impl Storm {
    /// Runs the clients to their end and returns every answer.
    pub fn run(&self, daemon: &Daemon, params: impl Fn(&mut Rng) -> Value + Sync) -> Vec<Answered> {
        thread::scope(|scope| {
            let one = |client: usize| {
                let (mut conn, params) = (daemon.conn(), &params);
                scope.spawn(move || {
                    let mut rng = Rng::new(self.seed * 1000 + client as u64);
                    let (end, mut answers) = (Instant::now() + self.lasts, Vec::new());
                    while Instant::now() < end {
                        let answer = ask(&mut conn, "memory.search", &params(&mut rng));
                        if answer.is_busy() && !self.pause.is_zero() {
                            thread::sleep(self.pause);
                        }
                        answers.push(answer);
                    }
                    answers
                })
            };
            let running: Vec<_> = (0..self.clients).map(one).collect();
            running.into_iter().flat_map(|r| r.join().expect("a client")).collect()
        })
    }
}

/// Tells clients of a scope to stop when the test is done with them, and when it fails: the scope waits for them.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The number at which `percent` of the numbers end; zero of none.
pub fn percentile<T: Copy + Ord + Default>(of: impl IntoIterator<Item = T>, percent: usize) -> T {
    let mut sorted: Vec<T> = of.into_iter().collect();
    sorted.sort_unstable();
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

/// One number of `admin.status`, by the names on the way to it.
#[track_caller]
pub fn status_number(conn: &mut Conn, path: &[&str]) -> u64 {
    let status = conn.ok("admin.status", json!({}));
    let found = path.iter().fold(&status, |value, key| &value[*key]);
    found.as_u64().unwrap_or_else(|| panic!("admin.status has a whole number {path:?}: {found}"))
}

/// A counter of `admin.status`.
#[track_caller]
pub fn counter(conn: &mut Conn, name: &str) -> u64 {
    status_number(conn, &["counters", name])
}
