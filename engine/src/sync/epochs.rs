//! When what readers can no longer find may be written again: epoch-based reclamation.
//!
//! K. Fraser, "Practical lock-freedom" (2004), with two counters of readers, for even and odd epochs, in the place of his
//! list of threads, as Linux's SRCU has them. So a reader is not tied to a thread, and pins with one addition.
//!
//! Invariant: what a pinned reader has found is not reused before that reader goes. Readers never wait and never begin anew.
//! Must not know: what is reused, or how readers find it.
//!
//! # Why two epochs are enough
//!
//! Something is unlinked, and the epoch is then r. The step to r + 1 finds the counter of r + 1's parity at zero, the step to
//! r + 2 that of r's; both come after the unlinking. A reader R adds itself to one of the two, whichever epoch it saw, and so
//! meets one of these steps. All accesses to a counter are read-modify-writes, so they have one order, each reads what the one
//! before it wrote, and no `SeqCst` is needed:
//!
//! - R's addition comes first. The step read zero, so R's subtraction came before it too. It releases and the step
//!   acquires: all that R read, it read before the reuse.
//! - The step comes first. It releases and R's addition acquires: R looks for things after the unlinking, and no longer finds
//!   what was unlinked.
//!
//! Nothing here rests on the epoch that R saw being the newest. A reader that is stopped between its load and its addition is
//! counted under an epoch that has passed, which puts a step off for as long as it reads, and no more: those that come after
//! it see the new epoch.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{AtomicU64, Mutex, Ordering};
use std::fmt;
use std::marker::PhantomData;

/// Epochs, with those who read in them.
///
/// The order for writers: unlink, take [`now`](Self::now), keep what was unlinked until [`is_past`](Self::is_past) says that
/// nobody can have it any more.
pub struct Epochs<P: Publication = ReleaseAcquire> {
    /// The epoch. Stored by who advances it (under `writer`), loaded by readers; Relaxed both ways, as it only chooses a
    /// counter (see above). Model: `what_is_pinned_is_not_reused`.
    epoch: AtomicU64,
    /// Keeps those who advance one at a time, and their epoch; readers never touch it. The epoch is here too because a writer
    /// that loaded the other one would hide readers' loads from loom, which remembers only the last access of an atomic.
    writer: Mutex<u64>,
    /// Those who read in even and in odd epochs.
    readers: [Readers; 2],
    marker: PhantomData<P>,
}

/// A counter of readers, on a cache line of its own.
#[repr(align(64))]
struct Readers {
    /// Readers add one with `P::LOAD` before they look for anything and take it off with `P::STORE` after their last look;
    /// who advances reads it with `P::BOTH`, in a read-modify-write that adds nothing. 64 bits, so that no number of guards
    /// that were forgotten comes round to zero. Model: `what_is_pinned_is_not_reused`.
    pinned: AtomicU64,
}

impl Epochs {
    /// Epoch 0, and nobody in it; allocates nothing.
    pub fn new() -> Epochs {
        Epochs::with_publication()
    }
}

impl Default for Epochs {
    fn default() -> Self {
        Epochs::new()
    }
}

impl<P: Publication> Epochs<P> {
    /// Epoch 0, and nobody in it; ordered as `P` says.
    pub fn with_publication() -> Epochs<P> {
        Epochs {
            epoch: AtomicU64::new(0),
            writer: Mutex::new(0),
            readers: std::array::from_fn(|_| Readers { pinned: AtomicU64::new(0) }),
            marker: PhantomData,
        }
    }

    /// Keeps what is found from here on from being reused, until the guard goes. One load and one addition, whatever others do.
    #[inline]
    pub fn pin(&self) -> Pinned<'_, P> {
        let pinned = self.readers_in(self.epoch.load(Ordering::Relaxed));
        pinned.fetch_add(1, P::LOAD);
        Pinned { pinned, marker: PhantomData }
    }

    /// The epoch: what was unlinked before this call is marked with it.
    pub fn now(&self) -> u64 {
        *self.writer.lock()
    }

    /// Begins the next epoch, if the readers of the one before this have gone. Never waits for readers.
    pub fn try_advance(&self) -> bool {
        let mut now = self.writer.lock();
        // The epoch to come shares the counter of the one before.
        if self.readers_in(*now + 1).fetch_add(0, P::BOTH) != 0 {
            return false;
        }
        *now += 1;
        self.epoch.store(*now, Ordering::Relaxed);
        true
    }

    /// Whether no reader can have what was unlinked when the epoch was `unlinked`.
    pub fn is_past(&self, unlinked: u64) -> bool {
        unlinked + P::GRACE <= self.now()
    }

    fn readers_in(&self, epoch: u64) -> &AtomicU64 {
        &self.readers[epoch as usize & 1].pinned
    }
}

impl<P: Publication> fmt::Debug for Epochs<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epochs").finish_non_exhaustive()
    }
}

/// Holds back the reuse of what its holder can find.
#[must_use = "nothing is held back once the guard goes"]
pub struct Pinned<'a, P: Publication = ReleaseAcquire> {
    /// The counter to which it was added, and from which it is taken again, whatever the epoch is by then.
    pinned: &'a AtomicU64,
    marker: PhantomData<P>,
}

impl<P: Publication> Drop for Pinned<'_, P> {
    #[inline]
    fn drop(&mut self) {
        self.pinned.fetch_sub(1, P::STORE);
    }
}

impl<P: Publication> fmt::Debug for Pinned<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn epochs_pass_when_nobody_reads() {
        let epochs = Epochs::new();
        let unlinked = epochs.now();
        assert!(!epochs.is_past(unlinked));
        assert!(epochs.try_advance() && !epochs.is_past(unlinked));
        assert!(epochs.try_advance() && epochs.is_past(unlinked));
        assert_eq!(epochs.now(), unlinked + 2);
    }

    #[test]
    fn a_reader_lets_one_epoch_pass_and_no_more() {
        let epochs = Epochs::new();
        for _ in 0..3 {
            let reader = epochs.pin();
            let unlinked = epochs.now();
            assert!(epochs.try_advance());
            let later = epochs.pin();
            assert!(!epochs.try_advance() && !epochs.is_past(unlinked));
            drop(reader);
            assert!(epochs.try_advance() && epochs.is_past(unlinked));
            assert!(!epochs.try_advance(), "the later reader is there still");
            drop(later);
            assert!(epochs.try_advance());
        }
    }

    #[test]
    fn readers_are_counted_apart() {
        assert_eq!((size_of::<Epochs>(), align_of::<Epochs>()), (192, 64));
    }
}
