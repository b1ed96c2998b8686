//! One kill: a daemon that is added to, SIGKILL, and the next daemon's first answers.
//!
//! Invariant: every kill begins from a store that was closed cleanly, so that each leaves the same tail; the clock starts
//! with the process. What the clients were told is there must be there.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::result::Kill;
use crate::daemon::{ANSWER_LIMIT, Daemon, Start};
use crate::data::Corpus;
use crate::durable::record::Records;
use crate::durable::{Connection, SPACE, Writer};
use crate::{Failure, machine, space};

/// Clients that add.
const CLIENTS: usize = 8;
/// Memories of one add.
const BATCH: u64 = 16;
/// How often it is looked how much is unsealed.
const LOOK: Duration = Duration::from_millis(5);
/// Longest time to fill the tail.
const FILL_LIMIT: Duration = Duration::from_secs(600);

/// Kills daemons on one store.
pub struct Killer<'a> {
    pub program: &'a Path,
    pub store: &'a Path,
    /// Of `serve`.
    pub arguments: Vec<String>,
    pub corpus: &'a Corpus,
    pub dim: usize,
    pub seed: u64,
    /// Bytes in the log and not in segments at the kill.
    pub tail_bytes: u64,
    pub cold: bool,
}

/// What had been answered when the daemon was killed.
struct Added {
    /// Memories of the space before.
    before: u64,
    acknowledged: u64,
    head_bytes: u64,
}

impl Killer<'_> {
    fn start(&self, first: (&str, &Value)) -> Result<Daemon, Failure> {
        let arguments = &self.arguments;
        Daemon::launch(&Start { program: self.program, store: self.store, arguments, first })
    }

    /// The kill with this number.
    ///
    /// # Errors
    /// What the daemon says, or that something acknowledged is gone.
    pub fn kill(&self, number: u16) -> Result<Kill, Failure> {
        let records = Records::new(self.corpus, self.dim, self.seed ^ u64::from(number));
        let added = self.add_and_kill(number, &records)?;
        let log_bytes = log_bytes(self.store)?;
        let page_cache = self.cold.then(machine::drop_page_cache);
        let vector = records.make(u64::from(number)).vector;
        let by_vector = json!({"space": SPACE, "vector": vector, "k": 10, "mode": "dense"});
        let daemon = self.start(("memory.search", &by_vector))?;
        let answered = Instant::now();
        let mut caller = daemon.caller()?;
        let held_out = self.corpus.held_out();
        let text = &held_out[usize::from(number) % held_out.len()];
        let by_text = json!({"space": SPACE, "query": text, "k": 10, "mode": "dense"});
        let found = caller.call("memory.search", &by_text, ANSWER_LIMIT)?;
        let by_text_ms = ms(daemon.started_in + answered.elapsed());
        if found["hits"].as_array().is_none_or(Vec::is_empty) {
            return Err("the search by text found nothing".into());
        }
        let memory = daemon.memory();
        let status = caller.call("admin.status", &json!({}), ANSWER_LIMIT)?;
        let found = memories(&space::stats(&mut caller, SPACE)?)?;
        check(&added, found)?;
        let log = daemon.log();
        let kill = Kill {
            tail_mib: added.head_bytes as f64 / f64::from(1 << 20),
            log_files_mib: log_bytes as f64 / f64::from(1 << 20),
            acknowledged: added.acknowledged,
            found_beyond: found - added.before - added.acknowledged,
            page_cache,
            by_vector_ms: ms(daemon.started_in),
            by_text_ms,
            model_ready_ms: took_ms(&log, "model ready"),
            store_ready_ms: took_ms(&log, "store ready"),
            recovery: status["recovery"].clone(),
            memory,
            stopped_in_ms: 0.0,
        };
        drop(caller);
        let stopped_in_ms = ms(daemon.stop()?);
        Ok(Kill { stopped_in_ms, ..kill })
    }

    /// Adds until enough is unsealed, and kills the daemon while the clients go on.
    fn add_and_kill(&self, number: u16, records: &Records) -> Result<Added, Failure> {
        let daemon = self.start(("admin.status", &json!({})))?;
        let mut caller = daemon.caller()?;
        let before = memories(&space::stats(&mut caller, SPACE)?)?;
        let (next, acknowledged) = (AtomicU64::new(0), AtomicU64::new(0));
        let killing = AtomicBool::new(false);
        let writers: Vec<Connection> = (0..CLIENTS)
            .map(|_| Ok(Connection(daemon.caller()?)))
            .collect::<Result<_, Failure>>()?;
        let head_bytes = std::thread::scope(|scope| {
            let client = |mut writer: Connection| -> Result<(), Failure> {
                loop {
                    let first = next.fetch_add(BATCH, Ordering::Relaxed);
                    let batch: Vec<_> = (first..first + BATCH)
                        .map(|n| {
                            let mut record = records.make(n);
                            record.id = format!("kill-{number}-{n}");
                            record
                        })
                        .collect();
                    match writer.add(&batch) {
                        Ok(()) => drop(acknowledged.fetch_add(BATCH, Ordering::Relaxed)),
                        Err(_) if killing.load(Ordering::Acquire) => return Ok(()),
                        Err(e) => return Err(e),
                    }
                }
            };
            let clients: Vec<_> =
                writers.into_iter().map(|writer| scope.spawn(move || client(writer))).collect();
            let head_bytes =
                self.wait_for_tail(&mut caller, &|| clients.iter().all(|c| !c.is_finished()));
            killing.store(true, Ordering::Release);
            daemon.kill()?;
            for client in clients {
                client.join().map_err(|_| "a client panicked")??;
            }
            head_bytes
        })?;
        Ok(Added { before, acknowledged: acknowledged.into_inner(), head_bytes })
    }

    fn wait_for_tail(
        &self,
        caller: &mut crate::caller::Caller,
        go_on: &dyn Fn() -> bool,
    ) -> Result<u64, Failure> {
        let begun = Instant::now();
        while go_on() && begun.elapsed() < FILL_LIMIT {
            let status = caller.call("admin.status", &json!({}), ANSWER_LIMIT)?;
            let head = status["store"]["head_bytes"].as_u64();
            let head = head.ok_or("admin.status has no store.head_bytes")?;
            if head >= self.tail_bytes {
                return Ok(head);
            }
            std::thread::sleep(LOOK);
        }
        Err("the clients ended, or the tail did not grow: the store seals sooner than expected"
            .into())
    }
}

fn check(added: &Added, found: u64) -> Result<(), Failure> {
    let least = added.before + added.acknowledged;
    let most = least + CLIENTS as u64 * BATCH;
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(format!(
        "the space had {} memories and {} more were acknowledged before the kill; after it there are {found}",
        added.before, added.acknowledged
    )
    .into())
}

fn memories(stats: &Value) -> Result<u64, Failure> {
    stats["memories"].as_u64().ok_or_else(|| "space.stats has no memories".into())
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// Bytes of log files in a store that no process has open.
fn log_bytes(store: &Path) -> Result<u64, Failure> {
    let mut sum = 0;
    for entry in std::fs::read_dir(store)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("wal-") {
            sum += entry.metadata()?.len();
        }
    }
    Ok(sum)
}

/// The `took_ms` of the first log line that says `what`.
fn took_ms(log: &str, what: &str) -> Option<u64> {
    let line = log.lines().find(|line| line.contains(what))?;
    let digits = line.split_once("took_ms=")?.1;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let added = Added { before: 100, acknowledged: 32, head_bytes: 0 };
        assert!(check(&added, 131).is_err());
        assert!(check(&added, 132).is_ok());
        // In flight when it was killed.
        assert!(check(&added, 132 + 128).is_ok());
        assert!(check(&added, 132 + 129).is_err());
    }

    #[test]
    fn times_are_read_from_the_log() {
        let log = "INFO model ready took_ms=640 fingerprint=\"m\"\nINFO store ready took_ms=1234 recovery=R { took_ms: 9 }\n";
        assert_eq!(took_ms(log, "store ready"), Some(1234));
        assert_eq!(took_ms(log, "model ready"), Some(640));
        assert_eq!(took_ms(log, "listening"), None);
    }
}
