//! Small quanta: where long background work lets others go first.
//!
//! Invariant: between two pauses lies a bounded amount of work, counted in bytes, so that who paces it can measure the
//! stretches and hold the next one back. Knows nothing of who that is, or of what is worked on but its name.

use std::cell::Cell;
use std::io;

use crate::store::Job;

/// Bytes copied, written or summed between two pauses: a few hundred microseconds of work.
const QUANTUM_BYTES: usize = 256 << 10;

/// How background work is paced.
pub struct Pace<'a> {
    pause: Option<&'a dyn Fn(Job)>,
    job: Cell<Option<Job>>,
    worked: Cell<usize>,
}

impl std::fmt::Debug for Pace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pace").field("worked", &self.worked.get()).finish_non_exhaustive()
    }
}

impl<'a> Pace<'a> {
    /// Calls `pause` after each quantum of a job. It may wait, but not for long: locks of upkeep are held meanwhile.
    pub fn new(pause: &'a dyn Fn(Job)) -> Pace<'a> {
        Pace { pause: Some(pause), job: Cell::new(None), worked: Cell::new(0) }
    }

    /// Without pauses: for work that somebody waits for.
    pub fn unpaced() -> Pace<'static> {
        Pace { pause: None, job: Cell::new(None), worked: Cell::new(0) }
    }

    /// Says which job begins.
    pub(crate) fn begin(&self, job: Job) {
        self.job.set(Some(job));
        self.worked.set(0);
    }

    /// Says that so many bytes were worked on.
    pub(crate) fn worked(&self, bytes: usize) {
        let worked = self.worked.get() + bytes;
        if worked < QUANTUM_BYTES {
            self.worked.set(worked);
            return;
        }
        self.worked.set(0);
        if let (Some(pause), Some(job)) = (self.pause, self.job.get()) {
            pause(job);
        }
    }

    /// `bytes` in parts of one quantum each, with their offsets.
    pub(crate) fn parts<'b>(&self, bytes: &'b [u8]) -> impl Iterator<Item = (u64, &'b [u8])> {
        let offsets = (0..).map(|at: u64| at * QUANTUM_BYTES as u64);
        offsets.zip(bytes.chunks(QUANTUM_BYTES)).inspect(|(_, part)| self.worked(part.len()))
    }
}

/// A writer that pauses as [`Pace`] says.
#[derive(Debug)]
pub(crate) struct Paced<'a, 'p, W> {
    pub(crate) out: W,
    pub(crate) pace: &'a Pace<'p>,
}

impl<W: io::Write> io::Write for Paced<'_, '_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.pace.worked(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_comes_with_each_quantum() {
        let pauses = Cell::new(0);
        let pause = |job| {
            assert_eq!(job, Job::Merge);
            pauses.set(pauses.get() + 1);
        };
        let pace = Pace::new(&pause);
        pace.worked(QUANTUM_BYTES);
        assert_eq!(pauses.get(), 0, "no job has begun");
        pace.begin(Job::Merge);
        pace.worked(QUANTUM_BYTES - 1);
        assert_eq!(pauses.get(), 0);
        pace.worked(1);
        assert_eq!(pauses.get(), 1);
        let bytes = vec![7; 2 * QUANTUM_BYTES + 5];
        let parts: Vec<(u64, usize)> = pace.parts(&bytes).map(|(at, p)| (at, p.len())).collect();
        let quantum = QUANTUM_BYTES as u64;
        assert_eq!(parts, [(0, QUANTUM_BYTES), (quantum, QUANTUM_BYTES), (2 * quantum, 5)]);
        assert_eq!(pauses.get(), 3);
        Pace::unpaced().worked(10 * QUANTUM_BYTES);
    }
}
