//! Calling one thread that sleeps, without a lock.
//!
//! A [`Bell`](super::Bell) serves waiters that change and takes a mutex to ring; here the sleeper is one thread for good, so
//! a call is one swap and, where it may sleep, an unpark: a caller at idle priority holds nothing while the kernel stops it.
//!
//! Invariant: a call is never lost: if the thread does not sleep, its next wait returns at once. A wait may also return
//! without a call. Must not know: what is called for.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{AtomicU32, thread};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// Calls one thread.
pub struct Call<P = ReleaseAcquire> {
    /// 1 when the thread is called. Set by callers (`P::STORE`), taken back by the thread (`P::LOAD`), which then sees what
    /// came before the call. Models: `call_is_never_lost`, `mailbox_wakes_its_owner`.
    called: AtomicU32,
    thread: thread::Thread,
    marker: PhantomData<P>,
}

impl<P: Publication> Call<P> {
    /// For the calling thread, which alone may [`wait`](Self::wait).
    pub fn here() -> Call<P> {
        Call::to(thread::current())
    }

    /// For `thread`, which alone may [`wait`](Self::wait).
    pub fn to(thread: thread::Thread) -> Call<P> {
        Call { called: AtomicU32::new(0), thread, marker: PhantomData }
    }

    /// Wakes the thread, or spares its next wait.
    pub fn call(&self) {
        // Who called before and was not heard yet has unparked it already.
        if P::WAKES && self.called.swap(1, P::STORE) == 0 {
            self.thread.unpark();
        }
    }

    /// Sleeps until there was a call, or for about `most`.
    pub fn wait(&self, most: Duration) {
        if self.called.swap(0, P::LOAD) == 0 {
            thread::park_timeout(most);
            self.called.swap(0, P::LOAD);
        }
    }
}

impl<P> fmt::Debug for Call<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_call_before_the_wait_spares_it_once() {
        let call = Call::<ReleaseAcquire>::here();
        call.call();
        call.call();
        let begun = Instant::now();
        call.wait(Duration::from_secs(10));
        assert!(begun.elapsed() < Duration::from_secs(5));
        // The park token of the call that was heard already may end one more wait early, so this one only bounds.
        call.wait(Duration::from_millis(20));
        let begun = Instant::now();
        call.wait(Duration::from_millis(50));
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }
}
