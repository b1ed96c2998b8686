//! Threads that stand by to take parts of another thread's work, without being waited for.
//!
//! Who has work takes the crew, wakes one helper, and then hands out turns of work, each in parts. A part is taken by
//! whoever comes first, so a helper that wakes late costs nothing: the owner has done its parts meanwhile. Between
//! turns the helper looks for the next without sleeping, since a wake-up takes as long as a turn; it sleeps when the
//! crew is given back, or when a turn is long in coming. There are [`HELPERS`], so that an owner can choose one by
//! where it runs; the other sleeps on.
//!
//! Invariant: each part of a turn runs once, and [`Lent::each`] does not return, nor unwind, while a helper is inside
//! the work. Must not know: what the work is.

use super::bell::Bell;
use super::publication::{Publication, ReleaseAcquire};
use super::shim::{Arc, AtomicPtr, AtomicU32, AtomicU64, Ordering, spin_loop};
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

/// Helpers of a crew.
pub const HELPERS: usize = 2;

/// Most parts of a turn.
pub const MAX_PARTS: usize = u32::MAX as usize;

/// How often a helper looks for the next turn before it sleeps: some hundred microseconds.
const HELPER_LOOKS: u32 = if cfg!(loom) { 0 } else { 10_000 };
/// How often an owner looks whether a helper is done before it sleeps.
const OWNER_LOOKS: u32 = if cfg!(loom) { 0 } else { 2_000 };

/// One turn of work, on the stack of its owner.
struct Task<'a> {
    work: &'a (dyn Fn(usize) + Sync),
}

/// What owner and helper share.
pub struct Crew<P = ReleaseAcquire> {
    /// `parts << 32 | next part`. Stored by the owner with `P::STORE` when a turn begins, raised by who takes a part
    /// (`P::LOAD`: a helper then sees the task), set to its end by the owner when the turn ends. A part can be taken
    /// from the turn at hand only, and that one cannot end before it is done. Models: `crew_runs_each_part_once`,
    /// `crew_goes_from_turn_to_turn`.
    turn: AtomicU64,
    /// The task of the turn at hand; written by the owner before `turn` and read by helpers after they took a part of
    /// it, so Relaxed. Models: as `turn`.
    task: AtomicPtr<Task<'static>>,
    /// Parts that helpers have done in this turn. Set to zero by the owner before `turn`, raised by helpers with
    /// `P::STORE`, awaited by the owner with `P::LOAD`, who then sees what the work wrote. Models: as `turn`.
    done: AtomicU32,
    /// 1 if a helper's part of this turn panicked. Set to zero with `done`, written before it, read after it, so Relaxed.
    /// No model: it follows `done`.
    broken: AtomicU32,
    /// 1 while the crew is lent. Taken with `P::LOAD` and given back with `P::STORE`, so that owners follow one another;
    /// helpers read it Relaxed, to know whether looking for turns is worth while. Model: `crew_has_one_owner`.
    lent: AtomicU32,
    /// 1 when helpers are to end. Relaxed: nothing comes with it. Model: `crew_runs_each_part_once`.
    closed: AtomicU32,
    /// Parts that helpers have done since the beginning. Relaxed: it is a count and orders nothing. No model.
    helped: AtomicU64,
    /// Where each helper sleeps.
    helpers: [Bell<P>; HELPERS],
    /// Where the owner sleeps.
    owner: Bell<P>,
    marker: PhantomData<P>,
}

impl Crew {
    /// A crew whose helpers have yet to come to [`serve`](Self::serve).
    pub fn new() -> Crew {
        Crew::with_publication()
    }
}

impl Default for Crew {
    fn default() -> Self {
        Crew::new()
    }
}

impl<P: Publication> Crew<P> {
    /// As [`Crew::new`], published as `P` says.
    pub fn with_publication() -> Crew<P> {
        Crew {
            turn: AtomicU64::new(0),
            task: AtomicPtr::new(ptr::null_mut()),
            done: AtomicU32::new(0),
            broken: AtomicU32::new(0),
            lent: AtomicU32::new(0),
            closed: AtomicU32::new(0),
            helped: AtomicU64::new(0),
            helpers: std::array::from_fn(|_| Bell::new()),
            owner: Bell::new(),
            marker: PhantomData,
        }
    }

    /// The life of a helper: returns after [`close`](Self::close). One thread calls it for each helper.
    ///
    /// # Panics
    /// If `helper` is not below [`HELPERS`].
    pub fn serve(&self, helper: usize) {
        let bell = &self.helpers[helper];
        let mut looks = 0;
        while self.closed.load(Ordering::Relaxed) == 0 {
            if let Some(part) = self.take() {
                self.help_with(part);
                looks = 0;
            } else if looks < HELPER_LOOKS && self.lent.load(Ordering::Relaxed) == 1 {
                looks += 1;
                spin_loop();
            } else {
                bell.wait();
                looks = 0;
            }
        }
    }

    /// Lets the helpers return from [`serve`](Self::serve). A turn under way is finished by its owner.
    pub fn close(&self) {
        self.closed.store(1, Ordering::Relaxed);
        self.helpers.iter().for_each(Bell::ring);
    }

    /// Parts that helpers, not owners, have done since the beginning.
    pub fn helped(&self) -> u64 {
        self.helped.load(Ordering::Relaxed)
    }

    /// Takes a part of the turn at hand.
    fn take(&self) -> Option<usize> {
        let mut turn = self.turn.load(Ordering::Relaxed);
        while next(turn) < parts(turn) {
            let raised = self.turn.compare_exchange(turn, turn + 1, P::LOAD, Ordering::Relaxed);
            match raised {
                Ok(_) => return Some(next(turn)),
                Err(now) => turn = now,
            }
        }
        None
    }

    fn help_with(&self, part: usize) {
        let task = self.task.load(Ordering::Relaxed);
        // SAFETY: the part was taken from the turn of this task, and its owner keeps the task and all that the work
        // borrows until `done` has counted the part.
        let work = unsafe { (*task).work };
        if catch_unwind(AssertUnwindSafe(|| work(part))).is_err() {
            self.broken.store(1, Ordering::Relaxed);
        }
        self.helped.fetch_add(1, Ordering::Relaxed);
        self.done.fetch_add(1, P::STORE);
        self.owner.ring();
    }
}

impl<P> fmt::Debug for Crew<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").finish_non_exhaustive()
    }
}

fn parts(turn: u64) -> usize {
    (turn >> 32) as usize
}

fn next(turn: u64) -> usize {
    (turn & u64::from(u32::MAX)) as usize
}

/// The crew in the hands of one owner; given back when dropped.
pub struct Lent<P: Publication = ReleaseAcquire> {
    crew: Arc<Crew<P>>,
    helper: usize,
}

impl<P: Publication> Lent<P> {
    /// Takes the crew and wakes a helper. `None` if somebody has the crew.
    ///
    /// # Panics
    /// If `helper` is not below [`HELPERS`].
    pub fn of(crew: &Arc<Crew<P>>, helper: usize) -> Option<Lent<P>> {
        let taken = crew.lent.compare_exchange(0, 1, P::LOAD, Ordering::Relaxed);
        taken.ok()?;
        let lent = Lent { crew: Arc::clone(crew), helper };
        crew.helpers[helper].ring();
        Some(lent)
    }

    /// Runs `work(0)` to `work(parts - 1)`, each once, in this thread and the helper's, and returns when all are done.
    ///
    /// # Panics
    /// If a part panics, or there are more than [`MAX_PARTS`].
    pub fn each(&mut self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        assert!(parts <= MAX_PARTS, "{parts} parts");
        let crew = &*self.crew;
        let task = Task { work };
        crew.done.store(0, Ordering::Relaxed);
        crew.broken.store(0, Ordering::Relaxed);
        crew.task.store(ptr::from_ref(&task).cast_mut().cast(), Ordering::Relaxed);
        crew.turn.store((parts as u64) << 32, P::STORE);
        crew.helpers[self.helper].ring();
        let mut turn = Turn { crew, mine: 0 };
        while let Some(part) = crew.take() {
            turn.mine += 1;
            work(part);
        }
        drop(turn);
        let broken = crew.broken.load(Ordering::Relaxed) == 1;
        assert!(!broken, "a helper's part of the work panicked");
    }
}

impl<P: Publication> Drop for Lent<P> {
    fn drop(&mut self) {
        self.crew.lent.store(0, P::STORE);
    }
}

impl<P: Publication> fmt::Debug for Lent<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

/// A turn under way. Dropped, also by a panic, it takes what is left and waits for what helpers have.
struct Turn<'a, P: Publication> {
    crew: &'a Crew<P>,
    mine: u32,
}

impl<P: Publication> Drop for Turn<'_, P> {
    fn drop(&mut self) {
        let taken = next(self.crew.turn.swap(0, Ordering::Relaxed)) as u32;
        let wanted = taken - self.mine;
        let mut looks = 0;
        while self.crew.done.load(P::LOAD) != wanted {
            if looks < OWNER_LOOKS {
                looks += 1;
                spin_loop();
            } else {
                self.crew.owner.wait();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    /// Runs `test` with a crew whose helper is there.
    fn with_helper(test: impl FnOnce(&Arc<Crew>)) {
        let crew = Arc::new(Crew::new());
        let helper = {
            let crew = Arc::clone(&crew);
            thread::spawn(move || crew.serve(1))
        };
        test(&crew);
        crew.close();
        assert!(helper.join().is_ok());
    }

    #[test]
    fn without_a_helper_the_owner_does_it_all() {
        let crew = Arc::new(Crew::new());
        let mut lent = Lent::of(&crew, 0);
        assert!(lent.is_some() && Lent::of(&crew, 1).is_none());
        let ran = AtomicUsize::new(0);
        let count = |_| {
            ran.fetch_add(1, Ordering::Relaxed);
        };
        lent.iter_mut().for_each(|lent| lent.each(3, &count));
        assert_eq!((ran.load(Ordering::Relaxed), crew.helped()), (3, 0));
        drop(lent);
        assert!(Lent::of(&crew, 0).is_some());
    }

    #[test]
    fn a_slow_part_does_not_hold_up_the_others() {
        with_helper(|crew| {
            let Some(mut lent) = Lent::of(crew, 1) else {
                return;
            };
            let by = AtomicUsize::new(0);
            let here = thread::current().id();
            lent.each(3, &|part| {
                if part == 0 {
                    thread::sleep(Duration::from_millis(200));
                }
                if thread::current().id() != here {
                    by.fetch_add(1, Ordering::Relaxed);
                }
            });
            // Whoever has the slow part, the other thread does the other two.
            assert!([1, 2].contains(&by.load(Ordering::Relaxed)));
        });
    }

    #[test]
    fn a_panic_in_any_part_comes_out_and_the_crew_goes_on() {
        with_helper(|crew| {
            let Some(mut lent) = Lent::of(crew, 1) else {
                return;
            };
            for bad in 0..8 {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    lent.each(8, &|part| {
                        thread::sleep(Duration::from_millis(1));
                        // The last two rounds break in both threads.
                        assert!(part != bad && bad < 6, "on purpose");
                    });
                }));
                assert!(outcome.is_err(), "the panic of part {bad} was lost");
                let ran = AtomicUsize::new(0);
                lent.each(8, &|_| {
                    ran.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(ran.load(Ordering::Relaxed), 8);
            }
        });
    }
}
