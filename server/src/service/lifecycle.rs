//! When and why the service stops.
//!
//! Invariant: the first cause stands; once stopping, nothing starts it again. It must not know sockets: whoever has to be
//! woken leaves a waker here.

use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Why the service stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// `admin.shutdown`.
    Requested,
    /// SIGTERM or SIGINT.
    Signal,
    /// The store no longer knows what is on the disk.
    Poisoned(String),
    /// The listening socket failed.
    Listener(String),
}

type Waker = Box<dyn Fn() + Send + Sync>;

/// Shared by everything that may stop the service or has to notice.
#[derive(Default)]
pub struct Lifecycle {
    stopping: AtomicBool,
    cause: Mutex<Option<Cause>>,
    changed: Condvar,
    waker: Mutex<Option<Waker>>,
}

impl Lifecycle {
    /// Begins to stop; later calls change nothing.
    pub fn stop(&self, cause: Cause) {
        {
            let mut known = self.cause.lock();
            if known.is_some() {
                return;
            }
            tracing::info!(?cause, "stopping");
            *known = Some(cause);
            self.stopping.store(true, Ordering::Release);
            self.changed.notify_all();
        }
        if let Some(wake) = self.waker.lock().as_ref() {
            wake();
        }
    }

    /// Whether the service is stopping.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Why it is stopping.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.cause.lock().clone()
    }

    /// Leaves what wakes the accept loop; called at once where the service is stopping already.
    pub fn on_stop(&self, wake: impl Fn() + Send + Sync + 'static) {
        *self.waker.lock() = Some(Box::new(wake));
        if self.is_stopping()
            && let Some(wake) = self.waker.lock().as_ref()
        {
            wake();
        }
    }

    /// Sleeps until the deadline or until the service stops; true where it stops.
    pub fn sleep_until(&self, deadline: Instant) -> bool {
        let mut known = self.cause.lock();
        while known.is_none() {
            if self.changed.wait_until(&mut known, deadline).timed_out() {
                break;
            }
        }
        known.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn the_first_cause_stands_and_everyone_is_woken() {
        let lifecycle = Arc::new(Lifecycle::default());
        let woken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&woken);
        lifecycle.on_stop(move || flag.store(true, Ordering::SeqCst));
        assert!(!lifecycle.sleep_until(Instant::now() + Duration::from_millis(1)));
        let sleeper = Arc::clone(&lifecycle);
        let thread = std::thread::spawn(move || {
            sleeper.sleep_until(Instant::now() + Duration::from_secs(60))
        });
        lifecycle.stop(Cause::Requested);
        lifecycle.stop(Cause::Signal);
        assert!(thread.join().expect("the sleeper does not panic"));
        assert_eq!(lifecycle.cause(), Some(Cause::Requested));
        assert!(woken.load(Ordering::SeqCst));
    }
}
