//! A second thread for the one text that somebody waits for.
//!
//! Invariant: a text's vector is the same with and without help; where the helpers are taken, the thread that has the
//! request computes alone and waits for nobody. It must not know sessions or texts.
//!
//! There are two, one for every other processor, and the one is woken that does not run on the borrower's. Left to
//! itself, a kernel in a virtual machine may take a sleeping processor for one that the host took away, and put both
//! threads on one: measured, the helper then came 3 ms late and in the borrower's place.

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::thread::JoinHandle;

use flashbulb_engine::sync::{Crew, HELPERS, Lent};
use flashbulb_kernels::encoder::Team;

/// The helpers' threads; they end when it is dropped.
pub struct Helper {
    crew: Arc<Crew>,
    threads: Vec<JoinHandle<()>>,
}

/// The right to borrow, and what was borrowed.
struct Borrower {
    from: Arc<Crew>,
    lent: Option<Lent>,
}

thread_local! {
    /// For the runs of this thread.
    static BORROWER: RefCell<Option<Borrower>> = const { RefCell::new(None) };
}

impl Helper {
    /// Starts the threads. They sleep until one is borrowed.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start() -> io::Result<Self> {
        let mut helper = Self { crew: Arc::new(Crew::new()), threads: Vec::new() };
        for side in 0..HELPERS {
            let crew = Arc::clone(&helper.crew);
            let serve = move || {
                place::keep_to(side);
                crew.serve(side);
            };
            let name = format!("helper-{side}");
            helper.threads.push(std::thread::Builder::new().name(name).spawn(serve)?);
        }
        Ok(helper)
    }

    /// Lets the runs of this thread use a helper, whenever they are free, until the guard is dropped.
    pub fn borrow(&self) -> Borrowed {
        let lent = lend(&self.crew);
        BORROWER.set(Some(Borrower { from: Arc::clone(&self.crew), lent }));
        Borrowed { _of_this_thread: PhantomData }
    }

    /// Parts of runs that helpers have done so far.
    pub fn helped(&self) -> u64 {
        self.crew.helped()
    }
}

fn lend(crew: &Arc<Crew>) -> Option<Lent> {
    Lent::of(crew, (place::side() + 1) % HELPERS)
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.crew.close();
        for thread in self.threads.drain(..) {
            // It only computes; a panic of its own was already raised where the work came from.
            let _ = thread.join();
        }
    }
}

/// The helper in the hands of this thread.
pub struct Borrowed {
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        BORROWER.take();
    }
}

/// Runs `compute` with the threads that this one may use.
pub(super) fn with_team<R>(compute: impl FnOnce(Team<'_>) -> R) -> R {
    BORROWER.with_borrow_mut(|borrower| {
        let lent = borrower.as_mut().and_then(|Borrower { from, lent }| {
            if lent.is_none() {
                // Another request had it when this one began.
                *lent = lend(from);
            }
            lent.as_mut()
        });
        let Some(lent) = lent else {
            return compute(Team::ALONE);
        };
        let lent = RefCell::new(lent);
        let each = |parts: usize, work: &(dyn Fn(usize) + Sync)| {
            lent.borrow_mut().each(parts, work);
        };
        compute(Team::new(2, &each))
    })
}

#[cfg(target_os = "linux")]
mod place {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

    use super::HELPERS;

    /// Which of the helpers belongs on the processor that the calling thread runs on.
    pub fn side() -> usize {
        sched_getcpu() % HELPERS
    }

    /// Keeps the calling thread to its side of the processors that it may use, if there are any.
    pub fn keep_to(side: usize) {
        let Ok(allowed) = sched_getaffinity(None) else {
            return;
        };
        let mut mine = CpuSet::new();
        for cpu in (side..CpuSet::MAX_CPU).step_by(HELPERS).filter(|&cpu| allowed.is_set(cpu)) {
            mine.set(cpu);
        }
        if mine.count() == 0 {
            return;
        }
        if let Err(error) = sched_setaffinity(None, &mine) {
            tracing::warn!(%error, "a helper runs where the system puts it, and may come late");
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod place {
    pub fn side() -> usize {
        0
    }

    /// Other systems do not let a thread say where it runs.
    pub fn keep_to(_side: usize) {}
}
