//! One turn: some clients add to one new store in a closed loop, each waiting for its acknowledgement.
//!
//! Invariant: what counts towards the rate was acknowledged within the timed stretch; the latency of every add that began
//! within it is kept, that of the last ones too. At the end the store holds exactly what it acknowledged.

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::device;
use super::record::Records;
use super::system::{Kind, System};
use crate::Failure;
use crate::load::mix::Request;
use crate::load::offer::{Load, offer};
use crate::load::outcome::search_times;
use crate::stats::{histogram, record};

/// What a turn is like.
pub struct Turn<'a> {
    pub kind: Kind,
    pub clients: usize,
    /// Memories of one add.
    pub batch: usize,
    /// Before the timed stretch: a log that grows for the first time, or a cold cache, is not what lasts.
    pub warm_up: Duration,
    pub timed: Duration,
    pub records: &'a Records,
    pub dim: usize,
    pub program: &'a Path,
    /// Where the store is made; it is removed afterwards.
    pub dir: &'a Path,
    /// Searches beside the adds, and how many a second.
    pub searches: Option<(&'a [Request], f64)>,
}

/// What came of it.
pub struct Outcome {
    /// Memories acknowledged within the timed stretch.
    pub memories: u64,
    pub seconds: f64,
    pub latency: Histogram<u64>,
    /// Mean bytes of a memory, without any format.
    pub bytes_per_memory: f64,
    /// Bytes that reached the device in the timed stretch, whoever wrote them.
    pub written: Option<u64>,
    /// The same from the making of the store until it was closed and synced, by all memories it took.
    pub written_whole: Option<f64>,
    /// From the scheduled moment; of searches beside the adds.
    pub searches: Option<Histogram<u64>>,
}

/// What one client did.
struct Own {
    memories: u64,
    bytes: u64,
    all: u64,
    latency: Histogram<u64>,
}

impl Turn<'_> {
    /// Makes the store, has it written to, checks it and removes it.
    ///
    /// # Errors
    /// What the system says, or that it holds another number of memories than it acknowledged.
    pub fn run(&self) -> Result<Outcome, Failure> {
        let dir = tempfile::Builder::new().prefix("durable").tempdir_in(self.dir)?;
        device::settle(self.dir)?;
        let before = device::written(self.dir);
        let system = self.kind.open(dir.path(), self.dim, self.program)?;
        let (mut outcome, acknowledged) = self.drive(&*system)?;
        let found = system.count()?;
        if found != acknowledged {
            let name = self.kind.name();
            return Err(
                format!("{name} holds {found} memories and acknowledged {acknowledged}").into()
            );
        }
        system.close()?;
        // What it left to the operating system counts too.
        device::settle(self.dir)?;
        let whole = device::written(self.dir).zip(before).map(|(a, b)| a.saturating_sub(b));
        outcome.written_whole = whole.map(|w| w as f64 / acknowledged.max(1) as f64);
        drop(dir);
        device::settle(self.dir)?;
        Ok(outcome)
    }

    /// The adds, and how many memories were acknowledged in all.
    fn drive(&self, system: &dyn System) -> Result<(Outcome, u64), Failure> {
        let next = AtomicU64::new(1);
        // The space, the table's first page: before anything else.
        system.writer()?.add(&[self.records.make(0)])?;
        let ready = Barrier::new(self.clients + 1);
        let (clients, searches, written) = std::thread::scope(|scope| {
            let client = || self.client(system, &next, &ready);
            let handles: Vec<_> = (0..self.clients).map(|_| scope.spawn(client)).collect();
            ready.wait();
            let beside = scope.spawn(|| self.search(system));
            std::thread::sleep(self.warm_up);
            let before = device::written(self.dir);
            std::thread::sleep(self.timed);
            let after = device::written(self.dir);
            let clients: Vec<Result<Own, Failure>> = handles
                .into_iter()
                .map(|h| h.join().unwrap_or_else(|_| Err("a client panicked".into())))
                .collect();
            let searches =
                beside.join().unwrap_or_else(|_| Err("the searching thread panicked".into()));
            (clients, searches, after.zip(before).map(|(a, b)| a.saturating_sub(b)))
        });
        let mut all = 1;
        let mut bytes = 0;
        let mut outcome = Outcome {
            memories: 0,
            seconds: self.timed.as_secs_f64(),
            latency: histogram()?,
            bytes_per_memory: 0.0,
            written,
            written_whole: None,
            searches: searches?,
        };
        for own in clients {
            let own = own?;
            outcome.memories += own.memories;
            outcome.latency.add(&own.latency)?;
            all += own.all;
            bytes += own.bytes;
        }
        outcome.bytes_per_memory = bytes as f64 / (all - 1).max(1) as f64;
        Ok((outcome, all))
    }

    /// One client; it begins when all are ready.
    fn client(
        &self,
        system: &dyn System,
        next: &AtomicU64,
        ready: &Barrier,
    ) -> Result<Own, Failure> {
        let writer = system.writer();
        // Also with a failure at hand: the others wait.
        ready.wait();
        let mut writer = writer?;
        let from = Instant::now() + self.warm_up;
        let until = from + self.timed;
        let mut own = Own { memories: 0, bytes: 0, all: 0, latency: histogram()? };
        let batch = self.batch as u64;
        loop {
            let first = next.fetch_add(batch, Ordering::Relaxed);
            let records: Vec<_> = (first..first + batch).map(|n| self.records.make(n)).collect();
            let begun = Instant::now();
            if begun >= until {
                return Ok(own);
            }
            writer.add(&records)?;
            let took = begun.elapsed();
            own.all += batch;
            own.bytes += records.iter().map(|r| r.bytes() as u64).sum::<u64>();
            own.memories += if counts(begun, took, from, until) { batch } else { 0 };
            if begun >= from {
                record(&mut own.latency, took);
            }
        }
    }

    fn search(&self, system: &dyn System) -> Result<Option<Histogram<u64>>, Failure> {
        let Some(((requests, rate), target)) = self.searches.zip(system.target()) else {
            return Ok(None);
        };
        let outcome = offer(&Load {
            target: &target,
            pid: Some(system.pid()),
            requests,
            rate,
            seconds: (self.warm_up + self.timed).as_secs_f64(),
            most: usize::MAX,
            seed: 1,
            connections: 8,
            timeout: Duration::from_secs(5),
        })?;
        Ok(Some(search_times(&outcome)?.0))
    }
}

/// Whether an add that began at `begun` was acknowledged between `from` and `until`.
fn counts(begun: Instant, took: Duration, from: Instant, until: Instant) -> bool {
    let acknowledged = begun + took;
    acknowledged >= from && acknowledged < until
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::Corpus;

    #[test]
    fn an_add_counts_when_it_is_acknowledged_in_time() {
        let from = Instant::now() + Duration::from_secs(10);
        let until = from + Duration::from_secs(5);
        let at = |s: f64| from - Duration::from_secs(5) + Duration::from_secs_f64(s);
        let cases = [(4.0, 0.5, false), (4.0, 1.5, true), (9.0, 0.5, true), (9.0, 1.5, false)];
        for (begun, took, counted) in cases {
            let took = Duration::from_secs_f64(took);
            assert_eq!(counts(at(begun), took, from, until), counted, "{begun} s");
        }
    }

    #[test]
    fn a_turn_is_timed_checked_and_leaves_nothing() {
        let corpus = Corpus::read(None, 100, 1).unwrap();
        let records = Records::new(&corpus, 16, 1);
        let dir = tempfile::tempdir().unwrap();
        let turn = Turn {
            kind: Kind::SqliteOne,
            clients: 2,
            batch: 3,
            warm_up: Duration::from_millis(20),
            timed: Duration::from_millis(200),
            records: &records,
            dim: 16,
            program: Path::new(""),
            dir: dir.path(),
            searches: None,
        };
        let outcome = turn.run().unwrap();
        assert!(outcome.memories > 0 && outcome.memories.is_multiple_of(3));
        // An add that was begun before the window and acknowledged within it counts and is not timed: one a client.
        assert!(outcome.latency.len() + 2 >= outcome.memories / 3);
        assert!(outcome.bytes_per_memory > 64.0, "{}", outcome.bytes_per_memory);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
