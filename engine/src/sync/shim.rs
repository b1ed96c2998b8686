//! One set of names for atomics, mutex and condition variable: std and parking_lot, or loom's.
//!
//! Invariant: the same source compiles against both; nothing in `engine::sync` uses std's atomics
//! directly. Must not know: what is built from them.

#[cfg(loom)]
pub use self::modelled::*;
#[cfg(not(loom))]
pub use self::real::*;

#[cfg(not(loom))]
mod real {
    pub use parking_lot::{Condvar, Mutex, MutexGuard};
    pub use std::hint::spin_loop;
    pub use std::sync::Arc;
    pub use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
    use std::time::Duration;

    /// Sleeping and waking.
    pub mod thread {
        pub use std::thread::{Thread, current, park_timeout};
    }

    /// Waits to be woken, but not longer than `span`; whether that passed.
    pub fn wait_for<T>(woken: &Condvar, held: &mut MutexGuard<'_, T>, span: Duration) -> bool {
        woken.wait_for(held, span).timed_out()
    }

    /// std's cell with loom's shape.
    #[derive(Debug)]
    pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        /// A cell.
        pub fn new(value: T) -> UnsafeCell<T> {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        /// Gives a pointer to read through.
        pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        /// Gives a pointer to write through.
        pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

#[cfg(loom)]
mod modelled {
    pub use loom::cell::UnsafeCell;
    pub use loom::hint::spin_loop;
    pub use loom::sync::Arc;
    pub use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

    /// Sleeping and waking; loom knows no time, so a wait ends by a wake-up only.
    pub mod thread {
        pub use loom::thread::{Thread, current};

        /// Sleeps until woken.
        pub fn park_timeout(_most: std::time::Duration) {
            loom::thread::park();
        }
    }

    /// Waits to be woken; loom knows no time.
    pub fn wait_for<T>(
        woken: &Condvar,
        held: &mut MutexGuard<'_, T>,
        _span: std::time::Duration,
    ) -> bool {
        woken.wait(held);
        false
    }

    use std::ops::{Deref, DerefMut};

    const UNPOISONED: &str = "a panic inside a model ends the model";

    /// loom's mutex with parking_lot's shape.
    #[derive(Debug)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A mutex that nobody holds.
        pub fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        /// Waits for the mutex.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().expect(UNPOISONED)))
        }
    }

    /// Holds a [`Mutex`]. Empty only while a [`Condvar`] waits with it.
    #[derive(Debug)]
    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("held outside of a wait")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held outside of a wait")
        }
    }

    /// loom's condition variable with parking_lot's shape.
    #[derive(Debug)]
    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        /// A condition variable that nobody waits on.
        #[expect(clippy::new_without_default, reason = "parking_lot's has one; no model needs it")]
        pub fn new() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }

        /// Gives the mutex back, waits to be woken, takes the mutex again.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().expect("held outside of a wait");
            guard.0 = Some(self.0.wait(held).expect(UNPOISONED));
        }

        /// Wakes one waiter.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes all waiters.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
