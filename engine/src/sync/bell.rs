//! Where one thread sleeps until another rings.
//!
//! Invariant: a ring is never lost: if nobody sleeps, the next [`wait`](Bell::wait) returns at once. A wait may also
//! return without a ring, so who waits checks what it waits for. Must not know: what that is.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{AtomicU32, Condvar, Mutex, Ordering};
use std::fmt;
use std::marker::PhantomData;

const SILENT: u32 = 0;
const RUNG: u32 = 1;
const ASLEEP: u32 = 2;

/// A bell for one waiter at a time; any thread may ring.
pub struct Bell<P = ReleaseAcquire> {
    /// Set to `RUNG` by who rings (Release), taken back and set to `ASLEEP` by the waiter (Acquire), who then sees what
    /// came before the ring. Models: those of `Crew`, with a mutant that does not ring.
    state: AtomicU32,
    lock: Mutex<()>,
    woken: Condvar,
    marker: PhantomData<P>,
}

impl<P: Publication> Bell<P> {
    /// A silent bell.
    pub fn new() -> Bell<P> {
        Bell {
            state: AtomicU32::new(SILENT),
            lock: Mutex::new(()),
            woken: Condvar::new(),
            marker: PhantomData,
        }
    }

    /// Wakes the waiter, or spares the next one its sleep.
    pub fn ring(&self) {
        if P::WAKES && self.state.swap(RUNG, Ordering::Release) == ASLEEP {
            // The waiter holds the lock from before it says that it sleeps until it does.
            drop(self.lock.lock());
            self.woken.notify_one();
        }
    }

    /// Sleeps until the bell is rung.
    pub fn wait(&self) {
        if self.take_ring() {
            return;
        }
        let mut lock = self.lock.lock();
        let asleep =
            self.state.compare_exchange(SILENT, ASLEEP, Ordering::Relaxed, Ordering::Relaxed);
        if asleep.is_ok() {
            while self.state.load(Ordering::Relaxed) == ASLEEP {
                self.woken.wait(&mut lock);
            }
        }
        self.take_ring();
    }

    fn take_ring(&self) -> bool {
        let taken = self.state.compare_exchange(RUNG, SILENT, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok()
    }
}

impl<P: Publication> Default for Bell<P> {
    fn default() -> Self {
        Bell::new()
    }
}

impl<P> fmt::Debug for Bell<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn a_ring_before_the_wait_spares_it_once() {
        let bell = Bell::<ReleaseAcquire>::new();
        bell.ring();
        bell.ring();
        bell.wait();
        let begun = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                bell.ring();
            });
            bell.wait();
        });
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn two_threads_wake_each_other_many_times() {
        let bells = [Bell::<ReleaseAcquire>::new(), Bell::new()];
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    bells[0].wait();
                    bells[1].ring();
                }
            });
            for _ in 0..10_000 {
                bells[0].ring();
                bells[1].wait();
            }
        });
    }
}
